"""Moments reduced by Spark against moments by numpy."""

from math import nan

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from mltrust.spark.codec import pack, unpack
from mltrust.spark.moments import Block, Cell, CellSet, cardinality, cells
from mltrust.states.moments import Moments
from tests.conftest import CountJobs

BLOCKS = (
    Block("units"),
    Block("over 30", where="flag"),
    Block("one", ("a|7d",), ("a",)),
    Block("pair", ("a|7d", "b|7d"), ("a", "b")),
)


def sample(n: int, *, offset: float = 0.0, seed: int = 3) -> dict[str, list[object]]:
    """Rows with nulls, a constant column, and a cell `lone` of a single unit."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(offset, 1, n), rng.exponential(1, n) + offset
    a[rng.random(n) < 0.1] = nan
    return {
        "arm": [*rng.choice(["c", "t"], n - 1).tolist(), "lone"],
        "device": rng.choice(["ios", "tv", "(null)"], n).tolist(),
        "a|7d": [None if np.isnan(x) else float(x) for x in a[:-1]] + [1.0],
        "b|7d": b.tolist(),
        "constant": [2.5] * n,
        "flag": (rng.random(n) < 0.5).tolist(),
    }


def frame(spark: SparkSession, columns: dict[str, list[object]], partitions: int = 3) -> DataFrame:
    schema = "arm STRING, device STRING, `a|7d` DOUBLE, `b|7d` DOUBLE, constant DOUBLE, flag BOOLEAN"
    # Not by repartition, after which the order of the rows in a partition is that of their arrival.
    rows = spark.sparkContext.parallelize(list(zip(*columns.values(), strict=True)), partitions)
    return spark.createDataFrame(rows, schema)


def by_numpy(columns: dict[str, list[object]], block: Block, **where: str) -> Moments:
    rows = [
        [row[source] for source in block.sources]
        for row in (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
        if all(row[key] == value for key, value in where.items())
        and (block.where is None or row[block.where])
        and None not in [row[source] for source in block.sources]
    ]
    return Moments.of(block.columns, np.array(rows, dtype=float).reshape(len(rows), len(block.sources)))


def same(found: Moments, expected: Moments, offset: float = 0.0) -> None:
    """Equal to 1e-12, and where values lie at an offset, as well as means of doubles can be told apart there."""
    assert (found.columns, found.n) == (expected.columns, expected.n)
    resolution = np.spacing(offset) if offset else 0.0
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.scatter, expected.scatter, rtol=1e-12, atol=1e-12 + found.n * resolution)


@pytest.mark.parametrize("offset", [0.0, 1e9])
def test_spark_states_equal_numpy_states(spark: SparkSession, offset: float) -> None:
    columns = sample(2000, offset=offset)
    blocks = (*BLOCKS, Block("constant", ("constant",), ("constant",)))
    [found] = cells(frame(spark, columns), [CellSet(("arm", "device"), blocks)])
    assert len(found) == 7
    for cell in found:
        for block in blocks:
            same(cell.states[block.name], by_numpy(columns, block, **cell.values), offset)
        assert cell.states["constant"].scatter.tolist() == [[0.0]]
    [lone] = [cell for cell in found if cell.values["arm"] == "lone"]
    assert lone.states["units"].n == 1
    assert np.isnan(lone.states["one"].var("a"))


def bits(found: list[Cell]) -> list[tuple[object, ...]]:
    return [
        (cell.values, name, state.n, state.mean.tobytes(), state.scatter.tobytes())
        for cell in found
        for name, state in cell.states.items()
    ]


@pytest.mark.slow
def test_the_same_partitioning_gives_the_same_bits_and_another_the_same_to_1e12(spark: SparkSession) -> None:
    columns = sample(3000)
    [first], [again], [other] = (
        cells(frame(spark, columns, partitions), [CellSet(("arm",), BLOCKS)]) for partitions in (4, 4, 7)
    )
    assert bits(first) == bits(again)
    for one, another in zip(first, other, strict=True):
        for name, state in one.states.items():
            assert another.states[name].n == state.n
            np.testing.assert_allclose(another.states[name].mean, state.mean, rtol=1e-12)
            np.testing.assert_allclose(another.states[name].scatter, state.scatter, rtol=1e-12)


def test_several_sets_are_reduced_in_one_pass_as_they_are_one_by_one(
    spark: SparkSession, count_jobs: CountJobs
) -> None:
    columns = sample(1000)
    sets = [CellSet(("arm",), BLOCKS), CellSet(("arm", "device"), BLOCKS[:1]), CellSet((), BLOCKS)]
    with count_jobs() as together:
        found = cells(frame(spark, columns), sets)
    with count_jobs() as one:
        [alone] = cells(frame(spark, columns), [CellSet(("arm",), BLOCKS)])
    assert together.n == one.n
    assert bits(found[0]) == bits(alone)
    assert {tuple(cell.states) for cell in found[1]} == {(BLOCKS[0].name,)}
    same(found[2][0].states["pair"], by_numpy(columns, BLOCKS[3]))


def test_no_rows_give_no_cells(spark: SparkSession) -> None:
    empty = frame(spark, sample(10)).where("arm = 'nobody'")
    assert cells(empty, [CellSet(("arm",), BLOCKS), CellSet((), BLOCKS)]) == [[], []]


def test_jobs_do_not_grow_with_metrics_and_attributes(spark: SparkSession, count_jobs: CountJobs) -> None:
    names = [f"m{i}" for i in range(20)]
    attributes = [f"s{i}" for i in range(6)]
    wide = spark.range(500).select(
        *(F.rand(at).alias(name) for at, name in enumerate(names)),
        *(F.when(F.rand(at + 50) < 0.5, "x").otherwise("y").alias(name) for at, name in enumerate(attributes)),
    )
    blocks = [Block(name, (name,), (name,)) for name in names]
    with count_jobs() as one:
        cells(wide, [CellSet(tuple(attributes[:1]), tuple(blocks[:1]))])
    with count_jobs() as all_of_them:
        [found] = cells(wide, [CellSet(tuple(attributes), tuple(blocks))])
    assert len(found) == 64
    assert all_of_them.n == one.n
    with count_jobs() as one_by_one:
        for block in blocks[:5]:
            cells(wide, [CellSet(tuple(attributes), (block,))])
    assert one_by_one.n == 5 * one.n  # what the count above would be, were metrics reduced one by one


def test_states_survive_their_packing() -> None:
    states = [
        Moments.of(("a", "b"), [[1.0, 2.0], [3.0, 5.0]]),
        Moments.empty(("c",)),
        Moments.of((), np.empty((4, 0))),
    ]
    found = unpack([("a", "b"), ("c",), ()], *pack(states))
    for state, expected in zip(found, states, strict=True):
        assert (state.columns, state.n) == (expected.columns, expected.n)
        np.testing.assert_array_equal(state.mean, expected.mean)
        np.testing.assert_array_equal(state.scatter, expected.scatter)


def test_values_beyond_the_most_frequent_are_named_and_cells_estimated(spark: SparkSession) -> None:
    rows = [(f"v{i}", "x") for i in range(9) for _ in range(i + 1)]
    units = spark.createDataFrame(rows, "many STRING, one STRING")
    assert cardinality(units, ("many", "one"), 10) == (9, {})
    found = cardinality(units, ("many", "one"), 3)
    assert found.kept == {"many": ("v8", "v7", "v6")}
    assert found.n_cells <= 4
    assert cardinality(units, (), 3) == (1, {})
