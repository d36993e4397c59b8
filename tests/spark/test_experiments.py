"""The states of an experiment: one pass whatever the metrics, the same states whichever way they are reduced."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import statsmodels.api as sm
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from mltrust.experiment import fairness
from mltrust.experiment.assignment import Assignment
from mltrust.experiment.cells import (
    MISSERVED,
    UNITS,
    ExperimentStates,
    metric_block,
    product,
    products_block,
    trend_block,
)
from mltrust.experiment.effects import effects
from mltrust.experiment.fairness import Fairness
from mltrust.experiment.spec import Experiment, Sample, Search
from mltrust.metrics import Metric, prediction_columns
from mltrust.slices import Slice, Slicing
from mltrust.spark import experiments
from mltrust.spark.unit_frame import of_units, value_column
from tests.conftest import CountJobs

AS_OF = datetime(2026, 10, 20, tzinfo=UTC)
N_UNITS, N_METRICS, N_ATTRIBUTES = 400, 20, 6
ATTRIBUTES = {f"s{at}": f"features.s{at}" for at in range(N_ATTRIBUTES)}
METRICS = tuple(
    Metric(f"m{at}", ("mean", "proportion")[at % 2], f"c{at}", role="goal", window_days=(None, 3, 7)[at % 3])
    for at in range(N_METRICS)
)
EXPERIMENT = Experiment(
    experiment_id="e",
    log="log",
    control="c",
    phases={date(2026, 10, 5): {"c": 1.0, "t": 1.0}},
    metrics=METRICS,
    unit="unit_id",
    slices=Slicing(ATTRIBUTES, (("s0",), ("s1", "s2"), ("s5",))),
)


class Tables(NamedTuple):
    exposures: DataFrame
    days: DataFrame


@pytest.fixture(scope="module")
def tables(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tables]:
    folder: Path = tmp_path_factory.mktemp("unit_tables")
    unit = F.col("id").cast("string")
    values = [
        part for name in ATTRIBUTES for part in (F.lit(name), F.substring(F.md5(F.concat(unit, F.lit(name))), 1, 1))
    ]
    spark.range(N_UNITS).select(
        unit.alias("unit_id"),
        F.when(F.xxhash64("id") % 2 == 0, "c").otherwise("t").alias("variant"),
        F.lit(datetime(2026, 10, 5, 9, tzinfo=UTC)).alias("first_exposure"),
        F.format_string("b%d", F.col("id") % 10).alias("bucket_id"),
        F.create_map(*values).alias("slice_values"),
        F.array(
            F.struct(
                F.lit(date(2026, 10, 5)).alias("day"),
                F.lit("c").alias("variant"),
                F.lit("1").alias("model_version"),
                (F.col("id") % 4 == 0).alias("triggered"),
            )
        ).alias("days"),
    ).write.parquet(f"{folder}/exposures")
    spark.range(N_UNITS * 5).select(
        F.when(F.col("id") < N_UNITS, "(all)").otherwise("e").alias("experiment_id"),
        (F.col("id") % N_UNITS).cast("string").alias("unit_id"),
        F.date_add(F.lit(date(2026, 10, 5)), (F.col("id") / N_UNITS).cast("int")).alias("day"),
        (F.xxhash64("id") % 50 == 0).cast("bigint").alias("n_errors"),
        *(((F.xxhash64("id", F.lit(at)) % 7) * 1.5).alias(f"c{at}") for at in range(N_METRICS)),
    ).write.parquet(f"{folder}/unit_days")
    # Whether a small table is broadcast depends on its width, and a broadcast is a job.
    spark.conf.set("spark.sql.autoBroadcastJoinThreshold", "-1")
    yield Tables(spark.read.parquet(f"{folder}/exposures"), spark.read.parquet(f"{folder}/unit_days"))
    spark.conf.unset("spark.sql.autoBroadcastJoinThreshold")


def read(tables: Tables, experiment: Experiment = EXPERIMENT, max_cells: int = 20_000) -> ExperimentStates:
    return experiments.states(tables.exposures, tables.days, experiment, AS_OF, max_cells=max_cells, max_values=50)


def test_jobs_do_not_grow_with_metrics_and_slices(tables: Tables, count_jobs: CountJobs) -> None:
    with count_jobs() as narrow:
        read(tables, replace(EXPERIMENT, metrics=METRICS[:1], slices=Slicing(ATTRIBUTES, (("s0",),))))
    with count_jobs() as wide:
        states = read(tables)
    assert len(states.sets) == 3
    assert wide.n == narrow.n
    with count_jobs() as one_by_one:
        for metric in METRICS[:2]:
            read(tables, replace(EXPERIMENT, metrics=(metric,)))
    assert one_by_one.n == 2 * wide.n  # so the count above would tell


@pytest.mark.slow
def test_more_attributes_and_the_past_add_no_job(tables: Tables, count_jobs: CountJobs) -> None:
    with count_jobs() as narrow:
        read(tables, replace(EXPERIMENT, metrics=METRICS[:1]))
    with count_jobs() as of_all_attributes:
        states = read(tables, replace(EXPERIMENT, slices=Slicing(ATTRIBUTES)))
    assert states.sets.keys() == {(name,) for name in ATTRIBUTES}
    assert of_all_attributes.n == narrow.n
    with count_jobs() as with_past:
        states = read(tables, replace(EXPERIMENT, pre_days=3, covariates=("c0",)))
    assert "past c4" in states.overall.moments(METRICS[4], "c").columns
    assert with_past.n == narrow.n


def test_unit_days_are_scanned_once(tables: Tables, spark: SparkSession) -> None:
    units = experiments.exposed_units(tables.exposures, EXPERIMENT, AS_OF)
    frame = of_units(units, tables.days, EXPERIMENT, AS_OF, {})
    plan = frame._jdf.queryExecution().optimizedPlan().toString()
    scans = [line for line in plan.splitlines() if "Relation [" in line and "c19#" in line]
    assert len(scans) == 1


def numbers(states: ExperimentStates) -> dict[tuple[str, str, str, str], tuple[int, list[float]]]:
    return {
        (each.slice.slice_key, each.slice.slice_value, arm, metric.name): (
            each.count(UNITS, arm),
            [*each.moments(metric, arm).mean.tolist(), *each.moments(metric, arm).scatter.ravel().tolist()],
        )
        for each in states.every_slice()
        for arm in EXPERIMENT.arms
        for metric in METRICS
    }


@pytest.mark.slow
def test_the_declared_sets_reduced_directly_are_those_added_up_from_the_finest_cells(
    tables: Tables, count_jobs: CountJobs
) -> None:
    finest = numbers(read(tables))
    with count_jobs() as jobs:
        declared = numbers(read(tables, max_cells=1))
    with count_jobs() as again:
        read(tables)
    assert jobs.n == again.n
    assert finest.keys() == declared.keys()
    for key, (n, values) in finest.items():
        assert declared[key][0] == n
        np.testing.assert_allclose(declared[key][1], values, rtol=1e-12, atol=1e-9)


def test_overall_agrees_with_plain_sums(tables: Tables) -> None:
    states = read(tables)
    sums = (
        tables.days.where("experiment_id = 'e' AND day < '2026-10-08'").groupBy("unit_id").agg(F.sum("c4").alias("y"))
    )
    expected = tables.exposures.join(sums, "unit_id").groupBy("variant").agg(F.avg("y"), F.var_samp("y")).collect()
    assert METRICS[4].window_days == 3
    for variant, mean, variance in expected:
        found = states.overall.moments(METRICS[4], variant)
        assert found.mean[0] == pytest.approx(mean, rel=1e-12)
        assert found.var("c4") == pytest.approx(variance, rel=1e-12)
    assert metric_block(METRICS[4]) in next(iter(states.overall.blocks.values()))


@pytest.mark.slow
def test_what_the_conf_asks_for_beside_comes_from_the_same_pass(tables: Tables, count_jobs: CountJobs) -> None:
    with count_jobs() as plain:
        read(tables)
    asked = replace(
        EXPERIMENT,
        trigger="triggered",
        assignment=Assignment("e", 10, bucket="b%d"),
        search=Search(("s0", "s1"), depth=2),
        served_by={"c": ("2",)},
    )
    with count_jobs() as more:
        states = read(tables, asked)
    assert more.n == plain.n
    triggered, n = states.triggered, sum(states.overall.count(UNITS, arm) for arm in "ct")
    assert triggered is not None
    assert sum(triggered.units.count(UNITS, arm) for arm in "ct") == N_UNITS // 4
    assert sum(triggered.complement.count(UNITS, arm) for arm in "ct") == n - N_UNITS // 4
    assert {name: bucket.n for name, bucket in states.buckets.items()} == {
        f"b{at}": N_UNITS // 10 for at in range(10)
    }
    assert 0 < sum(bucket.n_agreeing for bucket in states.buckets.values()) < N_UNITS / 5
    assert states.whole.count(MISSERVED, "c") == states.overall.count(UNITS, "c")
    assert {where.slice_key for where in states.halves[0]} == {"s0", "s1", "s0 x s1"}
    for where in states.halves[0].keys() & {each.slice for each in states.sets["s0",]}:
        both = sum(half[where].count(UNITS, arm) for half in states.halves for arm in "ct")
        [whole] = [each for each in states.sets["s0",] if each.slice == where]
        assert both == sum(whole.count(UNITS, arm) for arm in "ct")


@pytest.mark.slow
def test_whole_blocks_hold_squares_and_trends_of_all_units(tables: Tables) -> None:
    states = read(tables)
    metric = METRICS[4]
    squares = states.whole.block(products_block(metric), "c")
    own = states.overall.moments(metric, "c")
    assert squares.mean[1] == pytest.approx(own.var("c4") * (own.n - 1) / own.n + own.mean[0] ** 2, rel=1e-9)
    assert squares.columns == ("c4", "c4 x c4")
    ages = np.arange(3) - 1.0
    daily = tables.days.where("experiment_id = 'e'").join(tables.exposures.where("variant = 'c'"), "unit_id")
    by_day = {row["day"].day: row["y"] for row in daily.groupBy("day").agg(F.sum("c4").alias("y")).collect()}
    expected = sum(age * by_day.get(5 + at, 0.0) for at, age in enumerate(ages)) / 2 / own.n
    assert states.whole.block(trend_block(metric), "c").mean == pytest.approx([expected, own.mean[0]], rel=1e-9)


def test_the_products_of_a_ratio_are_those_of_its_units(tables: Tables) -> None:
    ratio = Metric("ratio", "ratio", "c1", denominator="c2", role="goal", window_days=7)
    states = read(tables, replace(EXPERIMENT, metrics=(ratio,), slices=Slicing(ATTRIBUTES, (("s0",),))))
    whole, alone = states.whole.block(products_block(ratio), "t"), states.overall.moments(ratio, "t")
    assert whole.n == alone.n > 0
    for a, b in (("c1", "c1"), ("c1", "c2"), ("c2", "c2")):
        at, to = alone.index(a), alone.index(b)
        expected = alone.scatter[at, to] / alone.n + alone.mean[at] * alone.mean[to]
        assert whole.mean[whole.index(product(a, b))] == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
def test_units_that_meet_other_experiments_are_kept_by_their_variants(tables: Tables) -> None:
    others = tables.exposures.where("unit_id < '5'").select(
        F.lit("other one").alias("experiment_id"), "unit_id", "variant", "first_exposure"
    )
    states = experiments.states(
        tables.exposures, tables.days, EXPERIMENT, AS_OF, max_cells=20_000, max_values=50, others=others
    )
    met = states.overlaps["other one"]
    assert set(met) == {"(none)", "c", "t"}
    assert met["c"].count(UNITS, "t") == met["t"].count(UNITS, "c") == 0
    assert met["c"].count(UNITS, "c") + met["(none)"].count(UNITS, "c") == states.overall.count(UNITS, "c")


@pytest.mark.slow
def test_other_metrics_over_the_same_columns_shuffle_no_more_bytes(tables: Tables, spark: SparkSession) -> None:
    context = spark.sparkContext._jsc.sc()

    def written() -> int:
        context.listenerBus().waitUntilEmpty()
        executors = context.statusStore().executorList(False)
        return sum(executors.apply(at).totalShuffleWrite() for at in range(executors.size()))

    def shuffled(metrics: Sequence[Metric]) -> int:
        before = written()
        read(tables, replace(EXPERIMENT, metrics=tuple(metrics), slices=Slicing()))
        return written() - before

    kinds = [
        Metric(f"{kind} of {a}, {window}", kind, a, denominator=b, role="goal", window_days=window)
        for window in (None, 3, 7)
        for a, b in (("c0", "c1"), ("c1", "c0"))
        for kind, b in (("mean", None), ("proportion", None), ("ratio", b))
    ]
    one, many = shuffled(kinds[2:3]), shuffled(kinds)
    own = shuffled([Metric(f"m{at}", "mean", f"c{at}", role="goal", window_days=3) for at in range(20)])
    assert one > 0
    assert many < 1.1 * one
    assert own > 2 * one  # what grows is the columns of unit_days that are read; so the comparison would tell


def with_predictions(tables: Tables) -> Tables:
    """The tables with columns of a prediction; a tenth of the units have no scored one."""
    scored = F.when(F.col("unit_id") % 10 != 0, F.col("c0") + 1)
    given = {name: F.col(f"c{at}") for at, name in enumerate(prediction_columns("p"))}
    return tables._replace(days=tables.days.withColumns(given | {"p_scored": scored}))


@pytest.mark.slow
def test_fairness_is_read_by_slice_in_the_pass_of_the_resampling(tables: Tables, count_jobs: CountJobs) -> None:
    told = with_predictions(tables)
    of_metrics = replace(EXPERIMENT, resampling="bootstrap", replicates=200)
    with count_jobs() as resampled:
        alone = read(told, of_metrics)
    assert alone.fairness == {}
    with count_jobs() as both:
        states = read(told, replace(of_metrics, fairness=Fairness("p", ("s0", "s3"), 3)))
    assert both.n == resampled.n
    assert states.replicates.keys() == alone.replicates.keys()
    assert {where.slice_key for where in states.fairness} == {"s0", "s3"}
    expected = (
        told.days.where("experiment_id = 'e' AND day < '2026-10-08' AND p_scored IS NOT NULL")
        .join(told.exposures, "unit_id")
        .groupBy("variant", F.col("slice_values")["s3"].alias("value"))
        .agg(F.count_distinct("unit_id").alias("n"), *(F.sum(f"p_{name}").alias(name) for name in fairness.COLUMNS))
        .collect()
    )
    assert len(expected) > 20
    for sums in expected:
        found = states.fairness[Slice("s3", sums["value"])][sums["variant"], 0]
        assert (found.n, found.n_replicates) == (sums["n"], fairness.BUCKETS)
        for name in fairness.COLUMNS:
            assert found.column(name)[0] == pytest.approx(sums[name], rel=1e-12)


@pytest.mark.slow
def test_resampling_costs_one_more_pass_over_the_same_units(tables: Tables, count_jobs: CountJobs) -> None:
    with count_jobs() as plain:
        states = read(tables)
    with count_jobs() as resampled:
        drawn = read(tables, replace(EXPERIMENT, resampling="jackknife"))
    with count_jobs() as narrow:
        read(tables, replace(EXPERIMENT, metrics=METRICS[:1], resampling="jackknife"))
    assert plain.n < resampled.n == narrow.n <= 2 * plain.n
    assert states.replicates == {}
    for arm, blocks in drawn.replicates.items():
        for metric in METRICS:
            moments = drawn.overall.moments(metric, arm.variant)
            found = blocks[metric_block(metric)]
            assert (found.n, found.n_replicates) == (moments.n, 64)
            assert found.column(metric.numerator)[0] == pytest.approx(moments.n * moments.mean[0], rel=1e-12)


@pytest.mark.slow
def test_new_salts_of_the_controls_units_are_drawn_in_one_more_pass(tables: Tables, count_jobs: CountJobs) -> None:
    with count_jobs() as plain:
        read(tables)
    with count_jobs() as more:
        states = read(tables, replace(EXPERIMENT, salts=100))
    assert more.n > plain.n
    found, metric = states.resalted["m4"].replicates, METRICS[4]
    own = states.overall.moments(metric, "c")
    assert found.n == own.n
    assert states.resalted["m4"].centre == (own.mean[0],)
    assert found.column("c4")[0] == pytest.approx(0, abs=1e-9 * own.n)
    assert found.column("c4 x c4")[0] == pytest.approx(own.scatter[0, 0], rel=1e-9)
    # Ten buckets, of which each salt takes some.
    assert len(set(found.column("units")[1:])) > 5


SAMPLED = replace(EXPERIMENT, metrics=METRICS[:4], sample=Sample(0.4, ("s0",), min_units=20))


@pytest.mark.slow
def test_a_sample_is_drawn_by_stratum_and_its_units_stand_for_all(tables: Tables, count_jobs: CountJobs) -> None:
    with count_jobs() as all_units:
        whole = read(tables, replace(SAMPLED, sample=None))
    with count_jobs() as fewer:
        states = read(tables, SAMPLED)
    assert fewer.n - all_units.n in (1, 2)  # the sizes of the strata: with adaptive execution a stage is a job
    arms = list(states.overall.blocks)
    assert all(1 <= arm.weight <= 2.5 for arm in arms)
    assert len({arm.weight for arm in arms}) > 3
    n_drawn = sum(states.overall.count(UNITS, arm) for arm in "ct")
    assert N_UNITS / 3 < n_drawn < 0.95 * N_UNITS
    stands_for = sum(blocks[UNITS].n * arm.weight for arm, blocks in states.overall.blocks.items())
    assert stands_for == pytest.approx(N_UNITS, rel=0.1)
    assert "a sample of the 400 units, weighted: 0 1 in " in states.note
    for metric in SAMPLED.metrics:
        mine, everyone = (each.overall.moments(metric, "c") for each in (states, whole))
        error = np.sqrt(mine.var(metric.numerator) / mine.n)
        assert abs(mine.mean[0] - everyone.mean[0]) < 4 * error


@pytest.mark.slow
def test_the_units_of_a_sample_are_the_same_ones_however_it_is_reduced(tables: Tables) -> None:
    finest, declared = read(tables, SAMPLED), read(tables, SAMPLED, max_cells=1)
    for one, other in zip(finest.every_slice(), declared.every_slice(), strict=True):
        assert one.slice == other.slice
        for metric in SAMPLED.metrics:
            a, b = (each.moments(metric, "t") for each in (one, other))
            assert a.n == b.n
            np.testing.assert_allclose(a.mean, b.mean, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(a.scatter, b.scatter, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_effects_of_a_sample_are_those_of_weighted_least_squares(tables: Tables, spark: SparkSession) -> None:
    states = read(tables, SAMPLED)
    drawn, _ = experiments.sampled(experiments.exposed_units(tables.exposures, SAMPLED, AS_OF), SAMPLED)
    frame = of_units(drawn, tables.days, SAMPLED, AS_OF, {}).toPandas()
    for metric in SAMPLED.metrics[:2]:
        [row] = [
            each
            for each in effects(states, SAMPLED, AS_OF.date())
            if each.metric == metric.name and each.overall and each.role == "goal"
        ]
        y = frame[value_column(metric, metric.numerator)].astype(float)
        treated = (frame["variant"] == "t").astype(float)
        weights = frame["weight"].astype(float)
        fit = sm.WLS(y, sm.add_constant(treated), weights=weights).fit(cov_type="HC0")
        assert row.method == "welch"
        assert row.effect == pytest.approx(fit.params.iloc[1], rel=1e-9)
        # HC0 has n where a sample variance has n - 1, in each arm.
        assert row.std_error == pytest.approx(fit.bse.iloc[1], rel=5e-3)
