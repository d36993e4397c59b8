"""The monitor as a job: a log of five weeks, a fault in one slice, an incident, a rollback, notices and pages."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import mlflow.sklearn
import pandas as pd
import pytest
import yaml
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from sklearn.tree import DecisionTreeClassifier

from jobs import monitor_metrics
from mltrust import conf as confs
from mltrust import runtime
from mltrust.conf import Conf
from mltrust.io import models, tracking
from mltrust.io.tables import Lakehouse
from mltrust.verdicts import Exit
from tests.conftest import ROOT
from tests.jobs.conftest import changed

# Minutes on one lakehouse: more than the suite's budget for all jobs together.
pytestmark = pytest.mark.slow

START = datetime(2026, 9, 7, tzinfo=UTC)
DAYS = 36
PER_HOUR = 240
END = START + timedelta(days=DAYS)
HURT_FROM = END - timedelta(hours=5)

MONITOR = {
    "monitor_id": "watch",
    "log": "recommendations",
    "model_name": "recommender",
    "budget": 0.2,
    "series": {
        "bucket_seconds": 3600,
        "history_days": 36,
        "metrics": {
            "requests": {"kind": "count"},
            "error_rate": {"kind": "share", "value": "status = 'error'", "worse": "up"},
            "score": {"kind": "mean", "value": "prediction_score"},
            "rejects": {"kind": "count", "source": "rejects", "worse": "up"},
            "purchases": {"kind": "share", "source": "outcomes", "outcome": "purchase", "maturity_hours": 24},
        },
        "slices": {"attributes": {"device": "features.device"}},
        "arms": {"by": "model_version"},
    },
    "detectors": [
        {"kind": "seasonal"},
        {"kind": "concurrent", "severity": "critical", "min_requests": 10},
    ],
    # The log is of a month that is over: evidence of any age is taken.
    "rules": [
        {"name": "errors", "metrics": ["error_rate"], "dry_run": False, "evidence_hours": 1e6, "page": ["file"]}
    ],
    "notify": {"file": {"kind": "file", "address": "notices.jsonl"}},
}


class Place(NamedTuple):
    """A lakehouse of its own with a log, and a registry with two versions of the model."""

    spark: SparkSession
    conf: Path
    folder: Path

    def load(self, **settings: object) -> Conf:
        path = self.conf / "monitors" / "watch.yaml"
        path.write_text(yaml.safe_dump(MONITOR | settings))
        return confs.load(path, "local")

    def lake(self) -> Lakehouse:
        return runtime.lakehouse(self.spark, self.load())

    def rows(self, table: str) -> list[dict[str, Any]]:
        return [row.asDict() for row in self.lake().read(table).collect()]


def log_rows(spark: SparkSession, lake: Lakehouse, hours: tuple[int, int], *, first: int = 0) -> DataFrame:
    """240 requests an hour: 1 of 4 by version 2, 1 of 4 from tablets; from HURT_FROM on version 2 fails there."""
    per_second = 3600 / PER_HOUR
    rows = spark.range(first + hours[0] * PER_HOUR, first + hours[1] * PER_HOUR)
    n = F.col("id") % 1_000_000
    at = F.timestamp_micros(F.lit(round(START.timestamp()) * 1_000_000) + (n * per_second * 1_000_000).cast("bigint"))
    draw = (F.xxhash64("id", F.lit("error")) % 1000 + 1000) % 1000
    is_new, device = (F.pmod(F.xxhash64("id"), F.lit(4)) == 0), F.pmod(F.xxhash64("id", F.lit("d")), F.lit(4))
    hurt = (at >= F.lit(HURT_FROM)) & is_new & (device == 0)
    fails = F.when(hurt, draw < 800).otherwise(draw < 20)
    score = F.when(fails, None).otherwise(0.3 + 0.1 * F.randn(7))
    columns = {
        "schema_version": F.lit("v02"),
        "request_id": F.concat(F.lit("r"), F.col("id")),
        "item_id": F.lit(""),
        "unit_id": F.concat(F.lit("u"), F.col("id") % 500),
        "event_time": at,
        "event_date": F.to_date(at),
        "model_name": F.lit("recommender"),
        "model_version": F.when(is_new, "2").otherwise("1"),
        "feature_version": F.lit("f02"),
        "experiments": F.expr("array()").cast(
            "ARRAY<STRUCT<experiment_id: STRING, bucket_id: STRING, variant: STRING>>"
        ),
        "traffic": F.lit("production"),
        "status": F.when(fails, "error").otherwise("ok"),
        "error_type": F.when(fails, "timeout"),
        "prediction_score": score,
        "action": F.lit(None).cast("string"),
        "propensity": F.lit(None).cast("double"),
        "latency_ms": F.lit(20.0),
        "infra": F.lit(None).cast("MAP<STRING, DOUBLE>"),
        "extra": F.lit(None).cast("string"),
        "content_hash": F.col("id").cast("string"),
        "ingested_at": at,
        "source": F.lit("test"),
        "ingest_batch": F.lit("b"),
    }
    types = lake.read("inference_log").schema["features"].dataType
    fields = [
        (F.when(device == 0, "tablet").otherwise("mobile") if each.name == "device" else F.lit(None))
        .cast(each.dataType)
        .alias(each.name)
        for each in types  # type: ignore[attr-defined]
    ]
    return rows.select(*(column.alias(name) for name, column in columns.items()), F.struct(*fields).alias("features"))


def outcome_rows(lake: Lakehouse) -> DataFrame:
    """A purchase an hour after one request in five."""
    log = lake.read("inference_log").where(F.pmod(F.xxhash64("request_id"), F.lit(5)) == 0)
    later = F.col("event_time") + F.expr("INTERVAL 1 HOUR")
    return log.select(
        F.concat(F.lit("o"), "request_id").alias("outcome_id"),
        F.lit(0).cast("bigint").alias("revision"),
        "request_id",
        F.lit(None).cast("string").alias("item_id"),
        F.lit(None).cast("string").alias("unit_id"),
        F.lit("purchase").alias("name"),
        F.lit(1.0).alias("value"),
        later.alias("event_time"),
        F.to_date(later).alias("event_date"),
        F.lit(None).cast("string").alias("extra"),
        "content_hash",
        later.alias("ingested_at"),
        "source",
        "ingest_batch",
    )


def arrive(lake: Lakehouse, rows: DataFrame, table: str = "inference_log") -> None:
    """Appends rows, as ingest does, which also looks whether they are there."""
    lake.conform(rows, table).write.format("delta").mode("append").save(lake.path(table))


class Story(NamedTuple):
    """What was seen before and after the scan that found the fault, and again after one that had nothing to do."""

    place: Place
    exits: list[Exit]
    said: list[list[float]]
    counts: list[dict[str, int]]


TABLES = ("monitor_series", "monitor_findings", "incidents", "decisions", "notifications")


@pytest.fixture(scope="module")
def place(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("monitor")
    copy = shutil.copytree(ROOT / "conf", folder / "conf")
    runs = {"uri": f"sqlite:///{folder}/mlflow.db", "artifacts": str(folder / "artifacts")}
    with changed(copy / "env/local.yaml") as env:
        env |= {"root": str(folder / "lake"), "tracking": runs}
    made = Place(spark, copy, folder)
    lake = made.lake()
    lake.ensure("inference_log", "inference_log_rejects", "outcomes")
    arrive(lake, log_rows(spark, lake, (0, DAYS * 24 - 6)))
    arrive(lake, outcome_rows(lake), "outcomes")
    return made


@pytest.fixture(scope="module")
def story(place: Place) -> Story:
    settings = place.load().settings.tracking
    tracking.connect(tracking.Server(settings.uri, settings.artifacts, settings.experiment))
    example = pd.DataFrame({"x": [0.0, 1.0]})
    for classes in ([0, 1], [1, 0]):
        model = DecisionTreeClassifier().fit(example, classes)
        models.register(model, name="recommender", alias="champion", example=example)
    client = mlflow.MlflowClient()
    client.set_registered_model_alias("recommender", "champion", "1")
    conf, lake = place.load(notify=notified(place.folder)), place.lake()
    exits = [monitor_metrics.run(place.spark, conf, END - timedelta(hours=6))]
    client.set_registered_model_alias("recommender", "champion", "2")
    arrive(lake, log_rows(place.spark, lake, (DAYS * 24 - 6, DAYS * 24)))
    said, counts = [loaded()], []
    for _ in range(2):
        exits.append(monitor_metrics.run(place.spark, conf, END))
        said.append(loaded())
        counts.append({table: lake.read(table).count() for table in TABLES})
    return Story(place, exits, said, counts)


def notified(folder: Path) -> dict[str, object]:
    return {"file": {"kind": "file", "address": str(folder / "notices.jsonl")}}


def loaded() -> list[float]:
    """What the model that is named champion says."""
    model = mlflow.sklearn.load_model("models:/recommender@champion")
    return [float(each) for each in model.predict(pd.DataFrame({"x": [0.0, 1.0]}))]


def test_a_clean_history_passes_and_a_fault_is_a_breach(story: Story) -> None:
    assert story.exits == [Exit.PASS, Exit.BREACH, Exit.BREACH]


def test_the_fault_is_one_incident_named_by_the_slice_and_the_version(story: Story) -> None:
    rows = sorted(story.place.rows("incidents"), key=lambda row: row["revision"])
    assert len({row["incident_id"] for row in rows}) == 1
    last = rows[-1]
    assert (last["metric"], last["slice_key"], last["slice_value"]) == ("error_rate", "device", "tablet")
    assert (last["blamed_version"], last["severity"], last["state"]) == ("2", "critical", "open")
    assert json.loads(last["contributors"])[0]["slice"] == "device:tablet"


def test_the_rollback_changes_what_the_alias_loads(story: Story) -> None:
    before, after, again = story.said
    assert before == [1.0, 0.0]
    assert after == again == [0.0, 1.0]
    acted = [row for row in story.place.rows("decisions") if row["rollback_rule"] == "errors"]
    assert [row["state"] for row in sorted(acted, key=lambda row: row["revision"])] == ["due", "done"]
    assert {(row["from_version"], row["to_version"]) for row in acted} == {("2", "1")}


def test_a_second_run_with_the_same_as_of_adds_only_that_the_alias_moved(story: Story) -> None:
    first, again = story.counts
    assert again == first | {"decisions": first["decisions"] + 1}
    moved = [row for row in story.place.rows("decisions") if row["action"] == "observe"]
    assert max(moved, key=lambda row: row["revision"])["to_version"] == "1"


def test_everyone_is_told_once(story: Story) -> None:
    told = [json.loads(line) for line in (story.place.folder / "notices.jsonl").read_text().splitlines()]
    assert len({each["notice_id"] for each in told}) == len(told)
    assert {(each["kind"], each["state"]) for each in told} >= {("incident", "opened"), ("decision", "done")}
    newest = {
        row["notice_id"]: row["state"]
        for row in sorted(story.place.rows("notifications"), key=lambda r: r["revision"])
    }
    assert set(newest.values()) == {"sent"}


def test_outcomes_are_not_there_before_they_are_mature(story: Story) -> None:
    of = story.place.lake().read("monitor_series").groupBy("metric").agg(F.max("bucket_start").alias("last"))
    last = {row["metric"]: row["last"].astimezone(UTC) for row in of.collect()}
    assert last["requests"] == END - timedelta(hours=1)
    assert last["purchases"] == END - timedelta(hours=25)


def test_the_series_are_what_the_log_holds(story: Story) -> None:
    lake = story.place.lake()
    counted = lake.read("monitor_series").where("metric = 'requests' AND model_version = '(all)' AND slice_key = ''")
    assert counted.agg(F.sum("n_requests")).first()[0] == lake.read("inference_log").count()
    at = F.col("bucket_start") == F.lit(END - timedelta(hours=2))
    row = lake.read("monitor_series").where(at & (F.col("metric") == "error_rate")).where("slice_value = 'tablet'")
    found = {each["model_version"]: each for each in row.collect()}
    log = lake.read("inference_log").where(F.date_trunc("hour", "event_time") == F.lit(END - timedelta(hours=2)))
    direct = (
        log.where("features.device = 'tablet'")
        .groupBy("model_version")
        .agg(F.count("*").alias("n"), F.avg((F.col("status") == "error").cast("int")).alias("share"))
    )
    for each in direct.collect():
        kept = found[each["model_version"]]
        assert (kept["n_requests"], kept["value"]) == (each["n"], pytest.approx(each["share"], rel=1e-12))


def test_the_pages_open_from_disk(story: Story) -> None:
    pages = Path(story.place.lake().folder("monitor")) / "watch"
    text = (pages / "index.html").read_text()
    assert "http" not in text.replace("http-equiv", "")
    assert "device:tablet" in text
    (incident,) = {row["incident_id"] for row in story.place.rows("incidents")}
    assert "What to do" in (pages / f"incident-{incident}.html").read_text()


def test_a_version_beside_which_another_serves_is_stopped_and_a_tag_puts_it_back(story: Story) -> None:
    place = story.place
    rule = {"name": "stop", "metrics": ["error_rate"], "action": "stop", "alias": "challenger", "dry_run": False}
    conf = place.load(monitor_id="stopping", notify={}, rules=[rule | {"evidence_hours": 1e6}])
    monitor_metrics.run(place.spark, conf, END)
    acted = [row for row in place.rows("decisions") if row["rollback_rule"] == "stop"]
    assert [row["state"] for row in sorted(acted, key=lambda row: row["revision"])] == ["due", "done"]
    assert {row["model_version"] for row in place.lake().view("stopped_versions").collect()} == {"2"}
    mlflow.MlflowClient().set_registered_model_tag("recommender", "mltrust.serve.2", "mended")
    monitor_metrics.run(place.spark, conf, END)
    assert place.lake().view("stopped_versions").collect() == []
