"""In which slices a row counts: the values of its attributes, and every declared set of them; samples of slices."""

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from mltrust.slices import MISSING, Slice, Slicing, interval_names, name_slice
from mltrust.spark.replicates import SEED

#: Sets of attributes; () is overall.
Sets = Sequence[tuple[str, ...]]
#: The slices of a row as ARRAY<STRUCT<set_at, slice_values>>: which of the sets, and the values of its attributes.
PLACES, SET, VALUES = "places", "set_at", "slice_values"
PLACES_TYPE = f"{PLACES} ARRAY<STRUCT<{SET}: INT, {VALUES}: ARRAY<STRING>>>"


def slice_value(name: str, slicing: Slicing) -> Column:
    """The value of a slice attribute as text; a number with edges is the interval that it lies in."""
    column = F.col(slicing.attributes[name])
    value = column.cast("string")
    if edges := slicing.edges.get(name, ()):
        *labels, last = interval_names(edges)
        value = F.when(column >= edges[-1], last)
        for label, edge in zip(reversed(labels), reversed(edges), strict=True):
            value = F.when(column < edge, label).otherwise(value)
    return F.coalesce(value, F.lit(MISSING))


def places(sets: Sets) -> Column:
    """The slices of a row; attributes are text columns without nulls."""
    of_sets = (F.struct(F.lit(at).alias(SET), _values(names).alias(VALUES)) for at, names in enumerate(sets))
    return F.array(*of_sets).alias(PLACES)


def _values(names: Sequence[str]) -> Column:
    return F.array(*(F.col(name).cast("string") for name in names)).cast("array<string>")


def slice_of(sets: Sets, set_at: int, values: Sequence[str]) -> Slice:
    """The name of a place."""
    return name_slice(dict(zip(sets[set_at], values, strict=True)))


def sampled(rows: DataFrame, keys: Sequence[str], *, by: str, n: int, seed: int = SEED) -> DataFrame:
    """The rows of a sample of about n hashes `by` of every slice and key; `places` are those it was drawn for.

    A row is drawn for a place if its hash is below the place's own threshold: a place with up to n hashes is taken
    whole, each place's sample is a plain random one, and those of two places overlap as far as they can. Thresholds
    come from counts that are approximate (to 5 %) and the same for the same rows; one Spark job.
    """
    placed = rows.select(*keys, by, F.inline(PLACES)).groupBy(*keys, SET, VALUES)
    counts = placed.agg(F.approx_count_distinct(by).alias("n")).collect()
    thresholds = [
        part
        for row in counts
        if row["n"] > n
        for part in (
            F.array(*map(F.lit, [*(row[key] for key in keys), str(row[SET]), *row[VALUES]])),
            F.lit(n / row["n"]),
        )
    ]
    if not thresholds:
        return rows
    of_places = F.create_map(*thresholds)
    drawn = F.shiftrightunsigned(F.xxhash64(F.lit(seed), F.col(by)), 11) / 2**53

    def is_drawn(place: Column) -> Column:
        at = F.concat(F.array(*map(F.col, keys), place[SET].cast("string")), place[VALUES])
        return drawn < F.coalesce(F.try_element_at(of_places, at), F.lit(1.0))

    return rows.withColumn(PLACES, F.filter(PLACES, is_drawn)).where(F.size(PLACES) > 0)
