"""What is known of a log per model version and day, on rows small enough to check by hand."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from math import isnan

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from mltrust.health import UNKNOWN, LogDay, OutcomeDay
from mltrust.spark import health
from tests.conftest import CountJobs
from tests.spark.frames import frame

LOG = """event_date DATE, event_time TIMESTAMP, ingested_at TIMESTAMP, request_id STRING, item_id STRING,
model_name STRING, model_version STRING, schema_version STRING, feature_version STRING, traffic STRING,
status STRING"""
REJECTS = "ingested_at TIMESTAMP, model_name STRING, model_version STRING, reason_code STRING"
HEARTBEATS = """event_date DATE, producer_id STRING, model_name STRING, model_version STRING, logged BIGINT,
dropped BIGINT, invalid BIGINT, spilled BIGINT"""
OUTCOMES = """event_date DATE, event_time TIMESTAMP, ingested_at TIMESTAMP, outcome_id STRING, revision BIGINT,
request_id STRING, item_id STRING, unit_id STRING, name STRING, value DOUBLE"""
START, END = date(2026, 10, 5), date(2026, 10, 8)
Values = tuple[object, ...]


def at(day: int, hour: int = 12, minute: int = 0) -> datetime:
    return datetime(2026, 10, day, hour, minute, tzinfo=UTC)


def row(
    when: datetime,
    request: str,
    *,
    item: str = "",
    lag: float = 60,
    name: str = "m",
    version: str = "1",
    schema: str = "v02",
    features: str = "f02",
    traffic: str = "production",
    status: str = "ok",
) -> Values:
    arrived = when + timedelta(seconds=lag)
    return (when.date(), when, arrived, request, item, name, version, schema, features, traffic, status)


def outcome(
    when: datetime,
    outcome_id: str,
    *,
    request: str | None = None,
    item: str | None = None,
    unit: str | None = None,
    revision: int = 0,
    value: float | None = 1.0,
    name: str = "click",
    lag: float = 60,
) -> Values:
    arrived = when + timedelta(seconds=lag)
    return (when.date(), when, arrived, outcome_id, revision, request, item, unit, name, value)


class Made:
    """Frames of the four tables."""

    def __init__(self, spark: SparkSession) -> None:
        self.spark = spark

    def log_days(
        self, log: Sequence[Values], rejects: Sequence[Values] = (), heartbeats: Sequence[Values] = ()
    ) -> dict[tuple[str, str, int], LogDay]:
        frames = [
            self.frame(log, LOG),
            self.frame(rejects, REJECTS),
            self.frame(heartbeats, HEARTBEATS),
        ]
        found = health.log_days(*frames, start=START, end=END)
        return {(each.model_name, each.model_version, each.day.day): each for each in found}

    def outcome_days(
        self, outcomes: Sequence[Values], log: Sequence[Values], match_days: int = 2
    ) -> dict[tuple[str, int], OutcomeDay]:
        frames = self.frame(outcomes, OUTCOMES), self.frame(log, LOG)
        found = health.outcome_days(*frames, start=START, end=END, match_days=match_days)
        return {(each.name, each.day.day): each for each in found}

    def frame(self, rows: Sequence[Values], schema: str) -> DataFrame:
        return frame(self.spark, rows, schema)


@pytest.fixture
def made(spark: SparkSession) -> Made:
    return Made(spark)


def test_a_day_counts_rows_requests_traffic_errors_and_versions(made: Made) -> None:
    found = made.log_days(
        [
            row(at(5), "r1", item="a", schema="v01"),
            row(at(5), "r1", item="b"),
            row(at(5), "r1", item="b", traffic="shadow"),
            row(at(5), "r2", status="error", features="f01", lag=10),
            row(at(6, 0), "r1"),
            row(at(5), "r1", version="2"),
        ]
    )
    assert found.keys() == {("m", "1", 5), ("m", "1", 6), ("m", "2", 5)}
    day = found["m", "1", 5]
    assert (day.n_records, day.n_requests, day.n_production, day.n_shadow, day.n_errors) == (4, 2, 3, 1, 1)
    assert (day.schema_versions, day.feature_versions) == (["v01", "v02"], ["f01", "f02"])
    assert (day.lag_p50, day.lag_max) == (60, 60)
    assert found["m", "1", 6].n_requests == found["m", "2", 5].n_requests == 1
    assert (day.n_rejected, day.rejects, day.n_logged, day.n_producers) == (0, {}, 0, 0)


def test_days_are_from_start_up_to_end(made: Made) -> None:
    rows = [row(at(4, 23, 59), "a"), row(at(5, 0), "b"), row(at(7, 23, 59), "c"), row(at(8, 0), "d")]
    assert made.log_days(rows).keys() == {("m", "1", 5), ("m", "1", 7)}


@pytest.mark.slow
def test_a_lag_is_exact_to_the_second_and_to_three_digits_and_may_be_negative(made: Made) -> None:
    lags = [*range(1, 101)]
    day = made.log_days([row(at(5), f"r{lag}", lag=lag) for lag in lags])["m", "1", 5]
    # Percentiles between two values are interpolated: 1 + 99 / 2 and 1 + 99 * 0.95.
    assert (day.lag_p50, day.lag_p95, day.lag_max) == (50.5, pytest.approx(95.05, rel=1e-12), 100)
    for lag, shown in ((0.9, 0), (1.5, 1), (999.9, 999), (1000, 1000), (12_345.6, 12_300), (-0.5, -1), (-90, -90)):
        day = made.log_days([row(at(5), "r", lag=lag)])["m", "1", 5]
        assert day.lag_p50 == day.lag_p95 == day.lag_max == shown


def test_rejects_are_counted_by_reason_on_the_day_of_their_arrival(made: Made) -> None:
    rejects = [
        (at(5, 0), "m", "1", "wrong_type"),
        (at(5, 23), "m", "1", "wrong_type"),
        (at(5), "m", "1", "missing_field"),
        (at(4, 23), "m", "1", "wrong_type"),
        (at(8, 0), "m", "1", "wrong_type"),
        (at(6), "n", "7", "bad_timestamp"),
    ]
    found = made.log_days([row(at(5), "r1")], rejects)
    assert found.keys() == {("m", "1", 5), ("n", "7", 6)}
    assert found["m", "1", 5].rejects == {"missing_field": 1, "wrong_type": 2}
    assert (found["m", "1", 5].n_rejected, found["m", "1", 5].n_records) == (3, 1)
    alone = found["n", "7", 6]
    assert (alone.n_rejected, alone.n_records, alone.schema_versions) == (1, 0, [])
    assert isnan(alone.lag_p50)
    assert isnan(alone.lag_max)


def test_rejects_of_an_unreadable_model_are_unknown_and_never_empty(made: Made) -> None:
    rejects = [(at(5), None, None, "unparsable"), (at(5), "", "", "unparsable"), (at(5), "m", None, "missing_field")]
    found = made.log_days([], rejects)
    assert {key: day.rejects for key, day in found.items()} == {
        (UNKNOWN, UNKNOWN, 5): {"unparsable": 2},
        ("m", UNKNOWN, 5): {"missing_field": 1},
    }


def test_what_producers_report_is_summed_over_them(made: Made) -> None:
    day = date(2026, 10, 5)
    heartbeats: list[Values] = [
        (day, "p", "m", "1", 10, 1, 2, 3),
        (day, "p", "m", "1", 10, 0, 0, 0),
        (day, "q", "m", "1", 5, 2, 0, 1),
        (day, "q", "m", "2", 5, 5, 0, 0),
        (date(2026, 10, 8), "q", "m", "1", 5, 5, 0, 0),
    ]
    found = made.log_days([row(at(5), "r1")], heartbeats=heartbeats)
    told = found["m", "1", 5]
    assert (told.n_logged, told.n_dropped, told.n_invalid, told.n_spilled, told.n_producers) == (25, 3, 2, 4, 2)
    assert (found["m", "2", 5].n_records, found["m", "2", 5].n_dropped) == (0, 5)


def test_the_counts_do_not_depend_on_how_the_rows_are_partitioned(made: Made) -> None:
    log = [row(at(5 + n % 3, n % 24), f"r{n % 50}", item=str(n), lag=n**2, version=str(n % 4)) for n in range(300)]
    whole = made.log_days(log)
    frames = [made.frame((), schema) for schema in (REJECTS, HEARTBEATS)]
    scattered = made.frame(log[::-1], LOG).repartition(7, F.xxhash64("item_id"))
    found = health.log_days(scattered, *frames, start=START, end=END)
    assert {(each.model_name, each.model_version, each.day.day): each for each in found} == whole


def test_one_pass_takes_one_job_a_table_and_one_for_each_shuffle(made: Made, count_jobs: CountJobs) -> None:
    with count_jobs() as jobs:
        made.log_days(
            [row(at(5), "r1")], [(at(5), "m", "1", "wrong_type")], [(at(5).date(), "p", "m", "1", 5, 1, 0, 0)]
        )
    # Log: rows, then requests; rejects; heartbeats; what unites them; the result.
    assert jobs.n == 6
    with count_jobs() as jobs:
        made.outcome_days([outcome(at(5), "o", request="r1")], [row(at(5), "r1")])
    # Corrections; who is told of the requests; outcomes and lags, days; the result. Told of corrections: no job.
    assert jobs.n == 5


def test_an_outcome_is_matched_by_its_request_up_to_match_days_before_and_not_after(made: Made) -> None:
    log = [
        row(at(5), "r1", item="a"),
        row(at(5), "r1", item="b"),
        row(at(3, 0), "old"),
        row(at(2, 23), "older"),
        row(at(5), "only_shadow", traffic="shadow"),
    ]
    outcomes = [
        outcome(at(5, 12), "at once", request="r1"),
        outcome(at(5, 13), "item", request="r1", item="b"),
        outcome(at(5, 13), "no such item", request="r1", item="c"),
        outcome(at(5, 11), "too early", request="r1"),
        outcome(at(5), "two days", request="old"),
        outcome(at(5), "three days", request="older"),
        outcome(at(5), "shadow", request="only_shadow"),
        outcome(at(5), "nowhere", request="r9"),
        outcome(at(5), "of unit", unit="u"),
    ]
    day = made.outcome_days(outcomes, log)["click", 5]
    assert (day.n_outcomes, day.n_by_request, day.n_by_unit, day.n_unmatched) == (9, 8, 1, 4)


def test_outcomes_count_in_their_highest_revision_by_name_and_day(made: Made) -> None:
    log = [row(at(4), "r1")]
    outcomes = [
        outcome(at(5), "corrected", request="r1"),
        outcome(at(5), "corrected", request="r1", revision=1),
        outcome(at(5), "moved", request="r1"),
        outcome(at(6), "moved", request="r1", revision=2, name="sale"),
        outcome(at(5), "retracted", request="r1"),
        outcome(at(5), "retracted", request="r1", revision=1, value=None),
        outcome(at(5), "corrected before the window", request="r1"),
        outcome(at(4), "corrected before the window", request="r1", revision=1),
        outcome(at(5), "corrected after it", request="r1"),
        outcome(at(8), "corrected after it", request="r1", revision=1),
    ]
    found = made.outcome_days(outcomes, log)
    assert found.keys() == {("click", 5), ("sale", 6)}
    day = found["click", 5]
    assert (day.n_outcomes, day.n_corrected, day.n_retracted, day.n_unmatched) == (2, 1, 1, 0)
    assert (found["sale", 6].n_outcomes, found["sale", 6].n_corrected) == (1, 1)


def test_the_lag_of_outcomes_is_of_those_that_hold(made: Made) -> None:
    outcomes = [outcome(at(5), f"o{lag}", unit="u", lag=lag) for lag in (10, 20, 30)]
    outcomes.append(outcome(at(5), "retracted", unit="u", lag=900, value=None))
    outcomes.append(outcome(at(6), "retracted too", unit="u", value=None))
    found = made.outcome_days(outcomes, [])
    assert (found["click", 5].lag_p50, found["click", 5].lag_max) == (20, 30)
    assert isnan(found["click", 6].lag_p95)
