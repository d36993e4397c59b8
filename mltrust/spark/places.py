"""In which slices a row counts: overall, and one slice of every declared set of attributes."""

from collections.abc import Sequence

from pyspark.sql import Column
from pyspark.sql import functions as F

from mltrust.slices import Slice, name_slice

#: Sets of attributes; () is overall.
Sets = Sequence[tuple[str, ...]]
#: The columns that `placed` gives: which of the sets, and the values of its attributes.
SET, VALUES = "set_at", "slice_values"


def places(sets: Sets) -> Column:
    """The slices of a row as ARRAY<STRUCT<set_at, slice_values>>; attributes are text columns without nulls."""
    return F.array(*(F.struct(F.lit(at).alias(SET), values_of(names).alias(VALUES)) for at, names in enumerate(sets)))


def values_of(names: Sequence[str]) -> Column:
    """The values of attributes as one array of text."""
    return F.array(*(F.col(name).cast("string") for name in names)).cast("array<string>")


def slice_of(sets: Sets, set_at: int, values: Sequence[str]) -> Slice:
    """The name of a place."""
    return name_slice(dict(zip(sets[set_at], values, strict=True)))
