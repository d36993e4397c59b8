"""Series that Spark makes of a log: what a share counts, and how far time has come."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from mltrust.monitor.cells import MAX_VALUES
from mltrust.monitor.spec import Monitor, SeriesMetric, SeriesSpec
from mltrust.slices import OTHER
from mltrust.spark.series import Sources, Span, arrived, newest, of_rejects, of_requests, problems

START = datetime(2026, 11, 2, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
METRICS = {
    "timeouts": SeriesMetric("share", value="error_type = 'timeout'"),
    "score": SeriesMetric("mean", value="prediction_score"),
}
MONITOR = Monitor("m", "log", "m", series=SeriesSpec(METRICS))
SCHEMA = """model_name STRING, model_version STRING, traffic STRING, event_time TIMESTAMP, event_date DATE,
request_id STRING, error_type STRING, prediction_score DOUBLE"""


@pytest.fixture(scope="module")
def log(spark: SparkSession) -> DataFrame:
    """Four requests of an hour, of which one timed out, and one whose clock is years ahead."""
    times = [START + timedelta(minutes=at) for at in range(4)] + [START + timedelta(days=900)]
    rows = [
        ("m", "1", "production", at, at.date(), f"r{n}", None if n else "timeout", 0.5 if n else None)
        for n, at in enumerate(times)
    ]
    return spark.createDataFrame(rows, SCHEMA)


def test_a_condition_that_is_null_is_not_met_and_a_number_that_is_null_is_left_out(log: DataFrame) -> None:
    span = Span(((START, START + HOUR),))
    made = of_requests(Sources(log, log, log), MONITOR, span, max_cells=100)
    found = {row.key.metric: row for row in made if row.key.model_version == "1"}
    assert (found["timeouts"].n_requests, found["timeouts"].value) == (4, 0.25)
    assert (found["score"].n_requests, found["score"].value) == (3, 0.5)


def test_every_request_with_an_error_counts_under_one_error_type(spark: SparkSession) -> None:
    types = [("r0", "timeout"), ("r0", "oom"), ("r1", None), ("r2", "timeout"), ("r3", "timeout"), ("r4", "")]
    rows = [("m", "1", "production", START, START.date(), request, told, None) for request, told in types]
    log = spark.createDataFrame(rows, SCHEMA)
    # A condition may be a number, as for a share without by.
    failed = SeriesMetric("share", value="int(error_type IS NOT NULL)", by="nullif(error_type, '')")
    metrics = {"errors": failed, "requests": SeriesMetric("count", by="error_type IS NULL")}
    monitor = Monitor("m", "log", "m", series=SeriesSpec(metrics))
    made = of_requests(Sources(log, log, log), monitor, Span(((START, START + HOUR),)), max_cells=100)
    found = {(row.key.metric, row.key.slice_value): row for row in made if row.key.model_version == "1"}
    shares = {value: row.value for (metric, value), row in found.items() if metric == "errors"}
    assert shares == {"": 0.8, "oom": 0.2, "timeout": 0.4, "(null)": 0.2}
    counts = {value: row.n_requests for (metric, value), row in found.items() if metric == "requests"}
    assert counts == {"": 5, "true": 1, "false": 4}
    assert {row.n_requests for (metric, _), row in found.items() if metric == "errors"} == {5}


def test_a_burst_of_error_types_that_are_all_distinct_is_the_commonest_and_the_others(spark: SparkSession) -> None:
    n, first, second = 30_000, F.lit(START), F.lit(START + HOUR)
    told = {
        "model_name": F.lit("m"),
        "model_version": F.lit("1"),
        "traffic": F.lit("production"),
        "event_time": F.when(F.col("id") < n, first).otherwise(second),
        "event_date": F.lit(START.date()),
        "request_id": F.concat(F.lit("r"), "id"),
        # In the first hour each comes once, but for 25 that come twice; in the second there is one.
        "error_type": F.when(F.col("id") >= n, "late").otherwise(
            F.concat(F.lit("e"), F.lpad(F.col("id") % (n - 25), 5, "0"))
        ),
        "prediction_score": (F.col("id") % 100).cast("double"),
    }
    log = spark.range(n + 40).select(*(column.alias(name) for name, column in told.items()))
    metrics = {
        "errors": SeriesMetric("share", value="request_id <> 'r7'", by="error_type"),
        "requests": SeriesMetric("count", by="request_id"),
        "score": SeriesMetric("mean", value="prediction_score"),
    }
    monitor = Monitor("m", "log", "m", series=SeriesSpec(metrics))
    made = of_requests(Sources(log, log, log), monitor, Span(((START, START + 2 * HOUR),)), max_cells=20_000)
    rows = {
        (row.key.metric, row.key.slice_value, row.bucket_start): row for row in made if row.key.model_version == "1"
    }
    errors = {value: row.value * n for (metric, value, at), row in rows.items() if (metric, at) == ("errors", START)}
    twice = [f"e{at:05}" for at in range(25) if at != 7]
    assert errors == pytest.approx({"": n - 1, OTHER: n - 1 - 40} | dict.fromkeys(twice[:20], 2), rel=1e-12)
    assert ("errors", "late", START + HOUR) in rows
    # Of those that are equally rare the first by name have series.
    assert sum(metric == "requests" and at == START for metric, _, at in rows) == 1 + MAX_VALUES + 1
    # What is not broken down is what it was, added up from cells in which it was known apart.
    score, scores = rows["score", "", START], np.arange(n) % 100
    assert (score.n_requests, score.value) == (n, pytest.approx(scores.mean(), rel=1e-12))
    assert score.std_error == pytest.approx(scores.std(ddof=1) / np.sqrt(n), rel=1e-12)


def test_rejects_are_broken_down_by_reason_code(spark: SparkSession) -> None:
    given = [("m", "1", "domain"), ("m", "", "domain"), (None, None, "json"), ("another", "1", "json")]
    rows = [(*row, START + timedelta(minutes=at)) for at, row in enumerate(given)]
    schema = "model_name STRING, model_version STRING, reason_code STRING, ingested_at TIMESTAMP"
    rejects = spark.createDataFrame(rows, schema)
    metrics = {"rejects": SeriesMetric("count", source="rejects", by="reason_code")}
    monitor = Monitor("m", "log", "m", series=SeriesSpec(metrics))
    made = of_rejects(Sources(rejects, rejects, rejects), monitor, Span(((START, START + 2 * HOUR),)))
    found = {(row.key.model_version, str(row.key.slice), row.bucket_start): row.value for row in made}
    assert found == {
        ("(all)", "overall", START): 3,
        ("(all)", "overall", START + HOUR): 0,
        ("(all)", "reason_code:domain", START): 2,
        ("(all)", "reason_code:json", START): 1,
        ("1", "overall", START): 1,
        ("1", "reason_code:domain", START): 1,
        ("(unknown)", "overall", START): 2,
        ("(unknown)", "reason_code:domain", START): 1,
        ("(unknown)", "reason_code:json", START): 1,
    }


def test_a_record_ahead_of_the_clock_says_nothing_of_how_far_time_has_come(log: DataFrame) -> None:
    last = START + timedelta(minutes=3)
    assert newest(log, MONITOR, START + HOUR) == last
    found = arrived(log, MONITOR, START - HOUR, START + HOUR)
    assert (found.buckets, found.newest) == ([START], last)
    assert newest(log, MONITOR, START - HOUR) is None


def test_an_expression_that_spark_does_not_take_is_a_problem_of_the_conf(log: DataFrame) -> None:
    assert problems(log, MONITOR) == []
    for wrong in ("no_such_column", "error_type = '"):
        metrics = {"errors": SeriesMetric("share", value=wrong)}
        (told,) = problems(log, Monitor("m", "log", "m", series=SeriesSpec(metrics)))
        assert told.startswith("series.metrics.errors.value is")
        by = {"errors": SeriesMetric("count", by=wrong)}
        (told,) = problems(log, Monitor("m", "log", "m", series=SeriesSpec(by)))
        assert told.startswith("series.metrics.errors.by is")
