"""Log rows to two-sample tests: a hash sample of the reference and of every window, told apart in the executors.

    columns = {"features.age": "double", "features.device": "string"}
    found = two_samples(rows, columns, key="window", reference="2026-10", windows=["2026-11-01"], sets=[()])
    found["2026-11-01"][Slice("", "")]                  a TwoSample for drift.multivariate

Of every slice and window the rows are taken whose hash is below a threshold, about `n_rows` of them, and each window
is brought together with the reference's rows in one task, which learns and scores. Rows are sorted by their hashes
before, so that the partitioning does not matter. Two jobs: one counts rows, one learns.
"""

from collections.abc import Callable, Mapping, Sequence
from math import nan

import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from mltrust.drift.multivariate import TwoSample, two_sample
from mltrust.slices import Slice
from mltrust.spark.places import PLACES, SET, VALUES, Sets, places, sampled, slice_of

_UNIT, _ORDER, _SIDE, _WINDOW = "unit", "order", "side", "window"
_TEXT = "string"
_FOUND = (
    f"{_WINDOW} STRING, {SET} INT, {VALUES} ARRAY<STRING>, "
    "n_reference BIGINT, n_current BIGINT, auc DOUBLE, std_error DOUBLE"
)


def two_samples(
    rows: DataFrame,
    columns: Mapping[str, str],
    *,
    key: str,
    reference: str,
    windows: Sequence[str],
    sets: Sets,
    n_rows: int = 5_000,
) -> dict[str, dict[Slice, TwoSample]]:
    """Of every window the slices of each set (() is overall) that it or the reference has.

    `key` says which window a row is of: `reference` or one of `windows`. `columns` says of each column of the log
    whether it is compared as text (`string`) or as a number (any other type). `key` and the attributes of `sets` are
    text columns without nulls.
    """
    needed = rows.where(F.col(key).isin([reference, *windows])).select(
        F.col(key).alias(_SIDE),
        F.xxhash64(F.coalesce("unit_id", "request_id")).alias(_UNIT),
        F.xxhash64("request_id", "item_id").alias(_ORDER),
        places(sets),
        *(_value(name, kind).alias(f"value{at}") for at, (name, kind) in enumerate(columns.items())),
    )
    drawn = sampled(needed, (_SIDE,), by=_ORDER, n=n_rows)
    every_window = F.array(*map(F.lit, windows))
    compared = F.when(F.col(_SIDE) == reference, every_window).otherwise(F.array(_SIDE))
    both = drawn.select("*", F.inline(PLACES)).withColumn(_WINDOW, F.explode(compared)).drop(PLACES)
    told = both.groupBy(_WINDOW, SET, VALUES).applyInArrow(_telling(reference, tuple(columns.values())), _FOUND)
    found: dict[str, dict[Slice, TwoSample]] = {window: {} for window in windows}
    for row in told.collect():
        n = row["n_reference"], row["n_current"]
        where = slice_of(sets, row[SET], row[VALUES])
        found[row[_WINDOW]][where] = TwoSample(*n, *(_known(row[name]) for name in ("auc", "std_error")))
    return found


def _known(value: float | None) -> float:
    return nan if value is None else value


def _value(column: str, kind: str) -> Column:
    return F.col(column).cast(_TEXT if kind == _TEXT else "double")


def _telling(reference: str, kinds: tuple[str, ...]) -> Callable[[pa.Table], pa.Table]:
    def tell(rows: pa.Table) -> pa.Table:
        ordered = rows.sort_by([(_UNIT, "ascending"), (_ORDER, "ascending"), (_SIDE, "ascending")])
        values = [
            ordered[f"value{at}"].to_pylist() if kind == _TEXT else ordered[f"value{at}"].to_numpy()
            for at, kind in enumerate(kinds)
        ]
        is_current = ordered[_SIDE].to_numpy() != reference
        result = two_sample(values, is_current, ordered[_UNIT].to_numpy())
        first = rows.slice(0, 1)
        own = {name: first[name] for name in (_WINDOW, SET, VALUES)}
        return pa.table(own | {name: [value] for name, value in result._asdict().items()})

    return tell
