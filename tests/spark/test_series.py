"""Series that Spark makes of a log: what a share counts, and how far time has come."""

from datetime import UTC, datetime, timedelta

import pytest
from pyspark.sql import DataFrame, SparkSession

from mltrust.monitor.spec import Monitor, SeriesMetric, SeriesSpec
from mltrust.spark.series import Sources, Span, arrived, newest, of_requests, problems

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
