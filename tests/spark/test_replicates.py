"""Replicates reduced by Spark against replicates by numpy."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from mltrust.spark.moments import Block
from mltrust.spark.replicates import SEED, ResampledCell, ResampledSet, replicates
from mltrust.states.replicates import Replicates, delete_a_bucket, poisson
from tests.conftest import CountJobs
from tests.spark.frames import frame

BLOCKS = (
    Block("units"),
    Block("over 30", where="flag"),
    Block("pair", ("a|7d", "b|7d"), ("a", "b")),
)
ARMS = ResampledSet(("arm",), BLOCKS, "bootstrap", 30)
DEVICES = ResampledSet(("arm", "device"), BLOCKS, "jackknife", 50)
ALL = ResampledSet((), BLOCKS[:1], "jackknife", 64)
Row = tuple[str, str, str, float | None, float, bool]


def sample(n: int = 900) -> list[Row]:
    """Rows of n units, some without `a`; the last one in a cell of its own."""
    rng = np.random.default_rng(3)
    return [
        (
            f"u{unit}",
            str(rng.choice(["c", "t"])) if unit < n - 1 else "lone",
            str(rng.choice(["ios", "(null)"])),
            None if rng.random() < 0.1 and unit < n - 1 else float(rng.normal(5)),
            float(rng.exponential()),
            bool(rng.random() < 0.5),
        )
        for unit in range(n)
    ]


def units(spark: SparkSession, rows: Sequence[Row], partitions: int = 3) -> DataFrame:
    schema = "unit_id STRING, arm STRING, device STRING, `a|7d` DOUBLE, `b|7d` DOUBLE, flag BOOLEAN"
    return frame(spark, rows, schema).repartition(partitions)


@pytest.fixture(scope="module")
def hashes(spark: SparkSession) -> dict[str, int]:
    found = spark.range(900).select(F.concat(F.lit("u"), F.col("id").cast("string")).alias("unit_id"))
    return {row["unit_id"]: row["h"] for row in found.select("unit_id", F.xxhash64("unit_id").alias("h")).collect()}


def by_numpy(
    rows: Sequence[Row], hashes: dict[str, int], own: ResampledSet, block: Block, cell: dict[str, str]
) -> Replicates:
    at = {"arm": 1, "device": 2, "a|7d": 3, "b|7d": 4}
    there = [
        row
        for row in rows
        if all(row[at[key]] == value for key, value in cell.items())
        and (block.where is None or row[5])
        and None not in [row[at[source]] for source in block.sources]
    ]
    values = np.array([[row[at[source]] for source in block.sources] for row in there], dtype=float)
    of: NDArray[np.int64] = np.array([hashes[row[0]] for row in there], dtype=np.int64)
    reduce: Callable[..., Replicates] = poisson if own.method == "bootstrap" else delete_a_bucket
    named = {"n_replicates" if own.method == "bootstrap" else "n_buckets": own.n}
    return reduce(block.columns, values.reshape(len(there), -1), of, seed=SEED, **named)


def assert_same(found: Replicates, expected: Replicates) -> None:
    """Equal to 1e-12: the sums are of the same terms in another order."""
    assert (found.columns, found.n) == (expected.columns, expected.n)
    np.testing.assert_allclose(found.sums, expected.sums, rtol=1e-12, atol=1e-10)


def test_spark_states_equal_numpy_states_of_every_set_in_one_pass(
    spark: SparkSession, hashes: dict[str, int], count_jobs: CountJobs
) -> None:
    rows, sets = sample(), (ARMS, DEVICES, ALL)
    with count_jobs() as together:
        found = replicates(units(spark, rows), sets)
    assert [len(each) for each in found] == [3, 5, 1]
    for own, cells in zip(sets, found, strict=True):
        for cell in cells:
            for block in own.blocks:
                assert_same(cell.states[block.name], by_numpy(rows, hashes, own, block, cell.values))
    assert found[2][0].states["units"].n == 900
    with count_jobs() as one:
        replicates(units(spark, rows), [ALL])
    assert together.n == one.n


@pytest.mark.slow
def test_partitioning_and_order_do_not_matter(spark: SparkSession) -> None:
    rows = sample()
    [few], [many] = (
        replicates(units(spark, each, partitions), [ARMS]) for each, partitions in ((rows, 1), (rows[::-1], 7))
    )
    assert [cell.values for cell in few] == [cell.values for cell in many]
    for one, another in zip(few, many, strict=True):
        for name, state in one.states.items():
            assert_same(another.states[name], state)


@pytest.mark.slow
def test_cells_of_a_set_add_up_to_the_coarser_ones(spark: SparkSession) -> None:
    coarse, fine = replicates(units(spark, sample()), [DEVICES._replace(keys=("arm",)), DEVICES])

    def of(cell: ResampledCell) -> Replicates:
        parts = [each.states["pair"] for each in fine if each.values["arm"] == cell.values["arm"]]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    for cell in coarse:
        assert_same(of(cell), cell.states["pair"])


def test_no_units_give_no_cells(spark: SparkSession) -> None:
    assert replicates(units(spark, sample(3)).where("arm = 'nobody'"), [ARMS, ALL]) == [[], []]
