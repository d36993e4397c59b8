"""The health of a log, against counts that are made without Spark."""

import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import cast

import mlflow
import numpy as np
import pandas as pd
import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession

from jobs import report_log_health
from mltrust.conf import Conf
from mltrust.health import UNKNOWN
from mltrust.io.tables import Lakehouse
from mltrust.settings import Health
from mltrust.verdicts import Exit, Verdict
from tests.jobs.conftest import AS_OF, World
from tests.jobs.test_ingest import Log, lines
from tests.jobs.test_pipeline import newest_run

MODEL = ["model_name", "model_version"]


def table(lake: Lakehouse, name: str) -> pd.DataFrame:
    return cast(pd.DataFrame, DeltaTable(lake.path(name)).to_pandas())


def within(frame: pd.DataFrame, column: str, start: date, end: date) -> pd.DataFrame:
    days = pd.to_datetime(frame[column]).dt.date
    return frame.assign(day=days)[(days >= start) & (days < end)]


def with_health(conf: Conf, **changes: float) -> Conf:
    return replace(conf, settings=replace(conf.settings, health=Health(**changes)))  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_report_counts_what_the_tables_hold_and_leads_with_its_verdict(world: World) -> None:
    conf, lake = world.load("contracts/recommendations.yaml"), world.lake()
    # The simulated requests end on 26 October: nothing is known of the last day before as_of.
    assert report_log_health.run(world.spark, conf, AS_OF) == Exit.INCONCLUSIVE
    start, end = AS_OF.date() - timedelta(days=28), AS_OF.date()
    found = table(lake, "log_health").set_index([*MODEL, "day"])
    log = within(table(lake, "inference_log"), "event_date", start, end)
    lags = (log["ingested_at"] - log["event_time"]).dt.total_seconds()
    log = log.assign(lag=lags)
    assert found["n_records"].sum() == len(log)
    for key, rows in log.groupby([*MODEL, "day"]):
        row = found.loc[key]
        assert row["n_records"] == len(rows)
        assert row["n_requests"] == rows["request_id"].nunique()
        assert row["n_production"] == (rows["traffic"] == "production").sum()
        assert row["n_errors"] == (rows["status"] == "error").sum()
        assert list(row["schema_versions"]) == sorted(rows["schema_version"].unique())
        # Lags are rounded down, to whole seconds or three digits: by less than 1 %, or a second.
        for name, value in (("lag_p50", np.percentile(rows["lag"], 50)), ("lag_max", rows["lag"].max())):
            assert value - max(1, abs(value) * 0.01) <= row[name] <= value
    run = newest_run(world, "report_log_health recommendations")
    assert run.data.tags["mlflow.note.content"].startswith("**inconclusive**: 2026-11-01: nothing was logged")
    assert "| recommender | 1 |" in run.data.tags["mlflow.note.content"]
    version = found.groupby(level=[0, 1])["n_records"].sum()
    assert run.data.metrics["health/recommender/1/records"] == version["recommender", "1"]
    artifacts = {each.path for each in mlflow.artifacts.list_artifacts(run_id=run.info.run_id)}
    assert {"report.md", "volume.png", "log_health.json", "outcome_health.json"} <= artifacts
    assert {each.dataset.name for each in run.inputs.dataset_inputs} == set(report_log_health.INPUTS)
    assert set(found["run_id"]) == {run.info.run_id}


@pytest.mark.slow
def test_outcomes_are_counted_by_name_and_every_simulated_one_finds_its_request(world: World) -> None:
    report_log_health.run(world.spark, world.load("contracts/recommendations.yaml"), AS_OF)
    start, end = AS_OF.date() - timedelta(days=28), AS_OF.date()
    told = within(table(world.lake(), "outcomes"), "event_date", start, end)
    found = table(world.lake(), "outcome_health")
    counts = told.groupby(["name", "day"]).size()
    assert found.set_index(["name", "day"])["n_outcomes"].to_dict() == counts.to_dict()
    assert (found["n_by_request"] == found["n_outcomes"]).all()
    log = table(world.lake(), "inference_log")
    first = log.groupby("request_id")["event_time"].min()
    follows = told["request_id"].map(first) <= told["event_time"]
    assert found["n_unmatched"].sum() == (~follows).sum()


@pytest.mark.slow
def test_rejects_are_those_of_the_table_by_model_and_reason_on_the_day_they_came(world: World) -> None:
    rejects = table(world.lake(), "inference_log_rejects")
    last = rejects["ingested_at"].max().date()
    as_of = datetime.combine(last + timedelta(days=1), datetime.min.time(), UTC)
    conf = with_health(world.load("contracts/recommendations.yaml"), days=2)
    code = report_log_health.run(world.spark, conf, as_of)
    found = within(table(world.lake(), "log_health"), "day", last - timedelta(days=1), last + timedelta(days=1))
    known = rejects.fillna({"model_name": UNKNOWN, "model_version": UNKNOWN})
    counts = within(known, "ingested_at", last - timedelta(days=1), last + timedelta(days=1))
    expected = counts.groupby([*MODEL, "day", "reason_code"]).size().to_dict()
    assert {
        (row["model_name"], row["model_version"], row["day"], reason): n
        for _, row in found.iterrows()
        for reason, n in row["rejects"]
    } == expected
    assert {key[0] for key in expected} == {"recommender", UNKNOWN}
    # Nothing but rejects on the last day: all of it was refused.
    if not found["n_records"].sum():
        assert code == Exit.BREACH
        assert set(found["verdict"]) == {Verdict.BREACH}


def heartbeat(day: int, *, logged: int, dropped: int) -> bytes:
    moment = int(datetime(2026, 10, day, 12, tzinfo=UTC).timestamp()) * 1_000_000
    told: dict[str, object] = {
        "producer_id": "p", "sequence": day, "model_name": "ranker", "model_version": "1", "window_start": moment,
        "event_time": moment, "logged": logged, "written": logged - dropped, "dropped": dropped, "invalid": 0,
        "spilled": 0,
    }  # fmt: skip
    return json.dumps({"heartbeat": told}).encode()


def of(day: int, n: int) -> list[bytes]:
    return lines(*(f"d{day}-{at}" for at in range(n)), event_time=f"2026-10-{day:02}T08:00:00Z")


@pytest.fixture
def log(spark: SparkSession, tmp_path: Path) -> Log:
    log = Log(spark, tmp_path)
    log.conf = with_health(log.conf, days=2, match_days=0)
    log.land("a.jsonl", [*of(1, 3), *of(5, 99), *of(6, 99), heartbeat(5, logged=100, dropped=1)])
    log.ingest()
    return log


@pytest.mark.slow
def test_a_run_reads_and_replaces_its_own_days_and_no_others(log: Log) -> None:
    def report(day: int) -> Exit:
        return report_log_health.run(log.spark, log.conf, datetime(2026, 10, day, tzinfo=UTC))

    def days() -> dict[int, tuple[int, int, str]]:
        rows = table(log.lake, "log_health").itertuples()
        return {row.day.day: (row.n_records, row.n_dropped, row.run_id) for row in rows}

    for path in (log.root / "recommendations/inference_log/event_date=2026-10-01").glob("*.parquet"):
        path.unlink()
    assert report(7) == Exit.PASS
    first = days()
    assert {day: found[:2] for day, found in first.items()} == {5: (99, 1), 6: (99, 0)}
    log.land("b.jsonl", [*of(5, 100), *of(7, 98), heartbeat(7, logged=100, dropped=2)])
    log.ingest()
    assert report(8) == Exit.BREACH
    later = days()
    assert {day: found[:2] for day, found in later.items()} == {5: (99, 1), 6: (99, 0), 7: (98, 2)}
    assert later[5] == first[5]
    assert later[6][2] == later[7][2] != first[6][2]
    report(7)
    again = days()
    assert (again[5][0], again[7]) == (100, later[7])
