"""The cells of every column, from the rows of the reference: the same rows give the same cells, however they lie."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from mltrust.contract import FeatureType
from mltrust.drift.cells import MAX_DISTINCT, Cells, OrderedCells, UnorderedCells
from mltrust.slices import Slicing
from mltrust.spark.places import slice_value

# Rows of which quantiles are taken exactly. Of more rows a sample by a hash of the request: a sketch would depend on
# how the rows lie, and with it every later p-value.
_QUANTILE_ROWS = 1_000_000
_LEVELS = [at / 1000 for at in range(1001)]
# What approx_count_distinct may say of MAX_DISTINCT values, at its default error of 5 %.
_PERHAPS_FEW = MAX_DISTINCT + 5


class Basis(NamedTuple):
    """What the reference fixes: the cells of the columns, and of slice attributes the values that have slices."""

    cells: dict[str, Cells]
    kept: dict[str, tuple[str, ...]]


class _Listed(NamedTuple):
    """The most frequent values of a column, and how many rows have any value, and one of their own."""

    counts: dict[str, int]
    n_rows: int
    n_singletons: int

    def is_whole(self) -> bool:
        return sum(self.counts.values()) == self.n_rows


def basis(
    rows: DataFrame,
    columns: Mapping[str, FeatureType],
    slicing: Slicing,
    *,
    n_cells: int,
    max_values: int,
    max_slices: int,
) -> Basis:
    """What the rows of the reference fix; a column without values there has no cells. At most three Spark jobs."""
    numbers = [name for name, kind in columns.items() if kind in ("long", "double")]
    extremes = _extremes(rows, numbers)
    few = [name for name, each in extremes.items() if each.n_distinct <= _PERHAPS_FEW]
    texts = {name: F.col(name).cast("string") for name in columns if name not in numbers}
    texts |= {name: _number(name).cast("string") for name in few}
    texts |= {_slice_of(name): slice_value(name, slicing) for name in slicing.attributes}
    listed = _listed(rows, texts, max(max_values, max_slices, MAX_DISTINCT))
    discrete = {
        name: listed[name] for name in few if listed[name].is_whole() and _n_values(listed[name]) <= MAX_DISTINCT
    }
    quantiles = _quantiles(rows, {name: each for name, each in extremes.items() if name not in discrete})
    found: dict[str, Cells] = {
        **{name: OrderedCells.of_values(_by_number(each)) for name, each in discrete.items()},
        **{name: OrderedCells.of_quantiles(each, n_cells) for name, each in quantiles.items()},
        **{
            name: UnorderedCells.of_counts(
                each.counts, max_values, n_rows=each.n_rows, n_singletons=each.n_singletons
            )
            for name, each in listed.items()
            if name in columns and name not in numbers
        },
    }
    kept = {name: _kept(listed.get(_slice_of(name)), max_slices) for name in slicing.attributes}
    return Basis({name: found[name] for name in columns if name in found}, kept)


class _Extremes(NamedTuple):
    """What a first pass finds of a column of numbers."""

    n: int
    n_distinct: int
    low: float
    high: float


def _number(column: str) -> Column:
    """The number, null where it is none or infinite."""
    number = F.col(column).cast("double")
    return F.when(F.abs(number) < float("inf"), number)  # nan is larger than infinity in Spark


def _extremes(rows: DataFrame, numbers: Sequence[str]) -> dict[str, _Extremes]:
    """Of the columns that have a number at all."""
    if not numbers:
        return {}
    found = rows.agg(
        *(
            F.struct(
                F.count(_number(name)),
                F.approx_count_distinct(_number(name)),
                F.min(_number(name)),
                F.max(_number(name)),
            ).alias(str(at))
            for at, name in enumerate(numbers)
        )
    ).first()
    assert found is not None
    return {name: _Extremes(*found[at]) for at, name in enumerate(numbers) if found[at][0]}


def _listed(rows: DataFrame, texts: Mapping[str, Column], at_most: int) -> dict[str, _Listed]:
    """Of each column the `at_most` most frequent values; columns without values are left out. One Spark job."""
    if not texts:
        return {}
    names = list(texts)
    values = F.array(*(F.struct(F.lit(at).alias("at"), texts[name].alias("value")) for at, name in enumerate(names)))
    counts = rows.select(F.inline(values)).where(F.col("value").isNotNull()).groupBy("at", "value").count()
    of_column = Window.partitionBy("at")
    ranked = counts.select(
        "*",
        F.row_number().over(of_column.orderBy(F.desc("count"), "value")).alias("rank"),
        F.sum("count").over(of_column).alias("n_rows"),
        F.count_if(F.col("count") == 1).over(of_column).alias("n_singletons"),
    )
    found: dict[str, _Listed] = {}
    for row in ranked.where(F.col("rank") <= at_most).collect():
        own = found.setdefault(names[row["at"]], _Listed({}, row["n_rows"], row["n_singletons"]))
        own.counts[row["value"]] = row["count"]
    return found


def _quantiles(rows: DataFrame, extremes: Mapping[str, _Extremes]) -> dict[str, list[float]]:
    """1,001 quantiles of each column, the first and the last of them exact. One Spark job."""
    if not extremes:
        return {}
    every = -(-max(each.n for each in extremes.values()) // _QUANTILE_ROWS)
    sample = rows if every == 1 else rows.where(F.pmod(F.xxhash64("request_id"), F.lit(every)) == 0)
    levels = F.array(*map(F.lit, _LEVELS))
    found = sample.agg(
        *(F.percentile(_number(name), levels).alias(str(at)) for at, name in enumerate(extremes))
    ).first()
    assert found is not None
    inner = {name: found[at] or [] for at, name in enumerate(extremes)}
    return {name: [each.low, *inner[name][1:-1], each.high] for name, each in extremes.items()}


def _n_values(listed: _Listed) -> int:
    return len(listed.counts)


def _by_number(listed: _Listed) -> dict[float, int]:
    return {float(value): n for value, n in listed.counts.items()}


def _slice_of(attribute: str) -> str:
    """The name of a slice attribute among columns: no column is named so."""
    return f"slice {attribute}"


def _kept(listed: _Listed | None, max_slices: int) -> tuple[str, ...]:
    if listed is None:
        return ()
    by_rows = sorted(listed.counts.items(), key=lambda each: (-each[1], each[0]))
    return tuple(value for value, _ in by_rows[:max_slices])
