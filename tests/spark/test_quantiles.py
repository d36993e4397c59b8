"""Quantiles of rows in units: the same numbers from Spark as from numpy on all rows."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from mltrust.errors import ConfError
from mltrust.experiment.effects import Effect, effects
from mltrust.experiment.spec import Experiment
from mltrust.metrics import HistogramColumn, Metric, MetricColumns, RequestColumn
from mltrust.slices import Slicing
from mltrust.spark import experiments, units
from mltrust.states.moments import Moments
from mltrust.stats.means import Margin
from mltrust.stats.quantiles import clustered_quantile, of_cells, of_sorted_rows
from mltrust.verdicts import Verdict
from tests.conftest import CountJobs

AS_OF = datetime(2026, 10, 20, tzinfo=UTC)
START = date(2026, 10, 5)
LATENCY = HistogramColumn("latency_ms", low=1, high=10_000, n_cells=400)
WAITS = HistogramColumn("wait", low=0, high=50, n_cells=25, scale="linear")
COLUMNS = MetricColumns(
    requests={"latency": RequestColumn("latency_ms")}, histograms={"latencies": LATENCY, "waits": WAITS}
)
P90 = Metric("p90", "quantile", "latencies", level=0.9, role="diagnostic", direction="decrease")
WEEK = Metric("median_wait", "quantile", "waits", level=0.5, window_days=3)
MEAN = Metric("latency", "mean", "latency", role="goal")
N_UNITS = 900


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    """Latencies of requests of units that have a level of their own, the treatment's a tenth slower."""
    rng = np.random.default_rng(5)
    n_rows = rng.poisson(6, N_UNITS) + 1
    unit = np.repeat(np.arange(N_UNITS), n_rows)
    own = rng.normal(4, 0.5, N_UNITS)[unit] + np.where(unit % 2, 0.1, 0)
    n = len(unit)
    waits = rng.poisson(20, n).astype(float)
    waits[rng.random(n) < 0.1] = np.nan
    return pd.DataFrame(
        {
            "unit": unit.astype(str),
            "variant": np.where(unit % 2, "t", "c"),
            "device": np.where(unit % 3 == 0, "tablet", "phone"),
            "event_date": [date(2026, 10, 5 + day) for day in rng.integers(0, 6, n)],
            "request_id": np.arange(n).astype(str),
            "latency_ms": np.exp(own + rng.normal(0, 0.6, n)),
            "wait": waits,
            "status": "ok",
            "score": 0.5,
        }
    )


class Tables(NamedTuple):
    exposures: DataFrame
    days: DataFrame


@pytest.fixture(scope="module")
def tables(spark: SparkSession, rows: pd.DataFrame) -> Iterator[Tables]:
    log = spark.createDataFrame(rows.replace({np.nan: None}))
    none = log.select("unit", "event_date", F.lit("x").alias("name"), F.lit(1.0).alias("value")).limit(0)
    days = units.unit_days(log, none, EXPERIMENT, COLUMNS).cache()
    seen = F.struct(
        F.lit(START).alias("day"),
        F.col("variant"),
        F.lit("1").alias("model_version"),
        F.lit(False).alias("triggered"),
    )
    exposures = log.select("unit", "variant", "device").distinct()
    yield Tables(
        exposures.select(
            F.col("unit").alias("unit_id"),
            "variant",
            F.lit(datetime(2026, 10, 5, tzinfo=UTC)).alias("first_exposure"),
            F.lit(None).cast("string").alias("bucket_id"),
            F.create_map(F.lit("device"), F.col("device")).alias("slice_values"),
            F.array(seen).alias("days"),
        ).cache(),
        days,
    )
    days.unpersist()


def experiment(*metrics: Metric, **changes: object) -> Experiment:
    own = {"metrics": metrics, "slices": Slicing({"device": "features.device"}), "unit": "unit_id"} | changes
    return Experiment("e", "log", "c", {START: {"c": 1.0, "t": 1.0}}, **own)  # type: ignore[arg-type]


EXPERIMENT = experiment(MEAN, P90, WEEK)


def read(tables: Tables, spec: Experiment = EXPERIMENT) -> list[Effect]:
    states = experiments.states(
        tables.exposures, tables.days, spec, AS_OF, max_cells=1000, max_values=50, histograms=COLUMNS.histograms
    )
    return effects(states, spec, AS_OF.date())


def by_numpy(rows: pd.DataFrame, metric: Metric, column: HistogramColumn) -> tuple[float, float]:
    """The quantile and its standard error, from all rows."""
    known = rows.dropna(subset=[column.value])
    values, edges = known[column.value].to_numpy(), column.edges()
    counts = np.bincount(np.searchsorted(edges, values) - 1, minlength=len(edges) - 1)
    order = of_cells(counts.astype(np.int64), edges, metric.level or 0)
    per_unit = known.assign(below=values <= order.threshold, rows=1).groupby("unit")[["below", "rows"]].sum()
    moments = Moments.of(("below", "rows"), per_unit.to_numpy(dtype=np.float64))
    found = clustered_quantile(order, moments, below="below", rows="rows")
    return found.value, found.std_error


def test_quantiles_and_their_errors_are_those_of_numpy_on_all_rows(tables: Tables, rows: pd.DataFrame) -> None:
    found = {(row.metric, row.slice_value): row for row in read(tables) if row.method == "quantile"}
    assert found.keys() == {(name, where) for name in ("p90", "median_wait") for where in ("", "phone", "tablet")}
    in_window = rows[rows["event_date"] < date(2026, 10, 8)]
    for (name, where), row in found.items():
        metric, column, counted = (P90, LATENCY, rows) if name == "p90" else (WEEK, WAITS, in_window)
        own = counted[counted["device"] == where] if where else counted
        control, treatment = (by_numpy(own[own["variant"] == arm], metric, column) for arm in "ct")
        assert (row.mean_control, row.mean_treatment) == pytest.approx((control[0], treatment[0]), rel=1e-9)
        if np.isnan(control[1] + treatment[1]):
            assert np.isnan(row.std_error)
            assert row.verdict is Verdict.INCONCLUSIVE
        else:
            assert row.std_error == pytest.approx(np.hypot(control[1], treatment[1]), rel=1e-9)
    assert found["p90", ""].effect == pytest.approx(found["p90", ""].mean_control * (np.exp(0.1) - 1), rel=0.5)


@pytest.mark.slow
def test_a_quantile_from_cells_is_that_of_the_sorted_rows_but_for_a_cell(tables: Tables, rows: pd.DataFrame) -> None:
    [row] = [each for each in read(tables) if each.metric == "p90" and each.overall]
    for arm, found in (("c", row.mean_control), ("t", row.mean_treatment)):
        latencies = np.sort(rows.loc[rows["variant"] == arm, "latency_ms"].to_numpy())
        exact = of_sorted_rows(latencies, 0.9).value
        assert abs(np.log(found / exact)) <= np.log(10_000) / 400


@pytest.mark.slow
def test_a_guardrail_on_a_quantile_excludes_a_loss_or_finds_one(tables: Tables) -> None:
    for relative, verdict in ((0.5, Verdict.PASS), (0.001, Verdict.BREACH)):
        spec = experiment(MEAN, replace(P90, role="guardrail", margin=Margin(relative=relative)))
        [row] = [each for each in read(tables, spec) if each.metric == "p90" and each.overall]
        assert (row.verdict, row.decides) == (verdict, True), row


@pytest.mark.slow
def test_too_few_units_and_a_changed_allocation_have_no_verdict_and_say_why(tables: Tables) -> None:
    few = tables._replace(exposures=tables.exposures.where(F.col("unit_id").cast("int") < 300))
    [row] = [each for each in read(few) if each.metric == "p90" and each.overall]
    assert row.verdict is Verdict.INCONCLUSIVE
    assert "c: 150 units, at least 200 needed; t: 150 units" in row.reason
    ramped = replace(EXPERIMENT, phases={START: {"c": 9, "t": 1}, date(2026, 10, 6): {"c": 1, "t": 1}})
    [row] = [each for each in read(tables, ramped) if each.metric == "p90" and each.overall]
    assert row.verdict is Verdict.INCONCLUSIVE
    assert "the allocation changed" in row.reason


@pytest.mark.slow
def test_quantiles_cost_two_jobs_however_many(tables: Tables, count_jobs: CountJobs) -> None:
    def jobs(*metrics: Metric) -> int:
        with count_jobs() as counted:
            read(tables, experiment(MEAN, *metrics))
        return counted.n

    more = [replace(P90, name=f"p{at}", level=at / 100) for at in (50, 75, 95)]
    assert jobs(*more, WEEK) == jobs(WEEK)


def test_only_the_rows_of_a_histogram_cost_bytes(tables: Tables) -> None:
    found = tables.days.select("latencies", "waits").collect()
    n_rows = sum(sum(row["latencies"].values()) for row in found)
    n_waits = sum(sum(row["waits"].values()) for row in found if row["waits"] is not None)
    assert n_rows > n_waits > 0.8 * n_rows
    assert all(0 <= cell <= 26 for row in found for cell in (row["waits"] or {}))


def test_a_value_at_an_edge_or_beyond_the_cells_is_counted_where_numpy_counts_it(spark: SparkSession) -> None:
    values = [-3.0, 0.0, 1e-9, 2.0, 2.5, 49.9, 50.0, 50.1, float("inf"), None, float("nan")]
    rows = [(str(at), START, "r", "ok", value) for at, value in enumerate(values)]
    log = spark.createDataFrame(rows, "unit STRING, event_date DATE, request_id STRING, status STRING, wait DOUBLE")
    columns = MetricColumns(histograms={"waits": WAITS})
    none = log.select("unit", "event_date", F.lit("x").alias("name"), F.lit(1.0).alias("value")).limit(0)
    days = units.unit_days(log, none, EXPERIMENT, columns)
    found = {int(row["unit_id"]): row["waits"] for row in days.collect()}
    for at, value in enumerate(values):
        if value is None or np.isnan(value):
            assert found[at] is None
        else:
            assert found[at] == {int(np.searchsorted(WAITS.edges(), value)) - 1: 1}


def test_a_histogram_that_is_no_expression_on_a_record_is_a_conf_error(spark: SparkSession) -> None:
    log = spark.createDataFrame([(1.0,)], "latency_ms DOUBLE")
    with pytest.raises(ConfError, match="metric column 'speed': 'lattency' cannot be read on a record"):
        units.refuse_unknown(log, MetricColumns(histograms={"speed": HistogramColumn("lattency", 1, 2)}))


def test_quantiles_need_a_histogram_and_sums_do_not_take_one() -> None:
    def problems(*metrics: Metric) -> list[str]:
        return experiment(MEAN, *metrics).problems(COLUMNS, ["features.device"])

    assert problems(P90) == []
    [text] = problems(replace(P90, numerator="latency"))
    assert text.startswith("metrics.p90: latency is no histogram of log 'log'; expected one of latencies, waits")
    [text] = problems(Metric("m", "mean", "waits"))
    assert text.startswith("metrics.m: waits is no metric column of log 'log'")
