"""One story, read from the tables: a candidate is shadowed, replayed, released, does harm, and is rolled back."""

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow
import pytest
from pyspark.sql import SparkSession

from jobs import (
    analyze_experiment,
    build_units,
    compare_shadow,
    detect_drift,
    export_replay_set,
    ingest_logs,
    monitor_metrics,
    replay_traffic,
    simulate_traffic,
)
from mltrust import conf as confs
from mltrust import runtime
from mltrust.io.tables import Lakehouse
from mltrust.verdicts import Exit
from tests.conftest import ROOT
from tests.jobs.conftest import changed

# Every job on one lakehouse: minutes.
pytestmark = pytest.mark.slow

OVER = datetime(2026, 10, 26, tzinfo=UTC)
BEFORE_THE_FAULT = datetime(2026, 10, 25, 12, tzinfo=UTC)
AN_HOUR_LATER = OVER + timedelta(minutes=70)
MATURE = datetime(2026, 11, 2, tzinfo=UTC)


class Story:
    """What every chapter came to, and the tables that it is read from."""

    def __init__(self, spark: SparkSession, folder: Path) -> None:
        self.spark, self.folder, self.exits = spark, folder, dict[str, Exit]()
        self._conf = shutil.copytree(ROOT / "conf", folder / "conf")
        self.change("env/local.yaml", root=str(folder / "lake"), tracking=self.tracking)
        # A slice that is harmed more, and more of its requests failing, than in the demo: there are fewer units.
        harmed = {"effect": 0.5, "effect_in": {"device": {"tablet": -1.2}}}
        failing = {"role": "candidate", "failing_in": {"device": "tablet"}, "from_hour": 492, "share": 0.9}
        self.change(
            "simulations/demo.yaml",
            n_units=16000, training_units=2000, experiments={"ranker_v2": harmed}, outages={"tablets": failing},
            drifts={"cents": {"feature": "price", "from_day": 20, "share": 0.2, "factor": 100}}, dirt={},
        )  # fmt: skip
        self.change(
            "monitors/recommender.yaml",
            detectors=[{"kind": "concurrent", "metrics": ["error_rate"], "severity": "critical", "min_requests": 5}],
            rules=[
                {"name": "errors", "metrics": ["error_rate"], "dry_run": False, "evidence_hours": 1e6}
                | {"page": ["file"]}
            ],
            notify={"file": {"kind": "file", "address": str(folder / "notices.jsonl")}},
        )  # fmt: skip

    @property
    def tracking(self) -> dict[str, str]:
        return {"uri": f"sqlite:///{self.folder}/mlflow.db", "artifacts": str(self.folder / "artifacts")}

    def change(self, file: str, **settings: object) -> None:
        with changed(self._conf / file) as plain:
            plain |= settings

    def tell(self, chapter: str, job: ModuleType, config: str, as_of: datetime) -> None:
        self.exits[chapter] = job.run(self.spark, confs.load(self._conf / config, "local"), as_of)

    def lake(self) -> Lakehouse:
        return runtime.lakehouse(self.spark, confs.load(self._conf / "contracts/recommendations.yaml", "local"))

    def rows(self, table: str, where: str = "true") -> list[dict[str, Any]]:
        return [row.asDict() for row in self.lake().read(table).where(where).collect()]

    def champion(self) -> str:
        client = mlflow.MlflowClient(self.tracking["uri"], self.tracking["uri"])
        return str(client.get_model_version_by_alias("recommender", "champion").version)

    def release(self, version: str) -> None:
        client = mlflow.MlflowClient(self.tracking["uri"], self.tracking["uri"])
        client.set_registered_model_alias("recommender", "champion", version)


@pytest.fixture(scope="module")
def story(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLTRUST_SCRUB_KEY", "a key of this story alone, 32 bytes")
        told = Story(spark, tmp_path_factory.mktemp("story"))
        told.tell("simulated", simulate_traffic, "simulations/demo.yaml", MATURE)
        told.tell("logged", ingest_logs, "contracts/recommendations.yaml", MATURE)
        told.tell("selected", export_replay_set, "replays/better_ranker.yaml", MATURE)
        told.tell("shadowed", compare_shadow, "replays/better_ranker.yaml", MATURE)
        told.tell("replayed", replay_traffic, "replays/better_ranker.yaml", MATURE)
        told.tell("units", build_units, "experiments/ranker_v2.yaml", MATURE)
        told.tell("experiment", analyze_experiment, "experiments/ranker_v2.yaml", MATURE)
        told.tell("quiet", monitor_metrics, "monitors/recommender.yaml", BEFORE_THE_FAULT)
        told.release("2")
        told.tell("drifted", detect_drift, "monitors/recommender.yaml", OVER)
        told.tell("caught", monitor_metrics, "monitors/recommender.yaml", AN_HOUR_LATER)
        yield told


def test_every_chapter_ends_as_it_should(story: Story) -> None:
    breaches = {"experiment", "drifted", "caught"}
    assert story.exits == {name: Exit.BREACH if name in breaches else Exit.PASS for name in story.exits}


def test_the_candidate_was_shadowed_before_it_served(story: Story) -> None:
    assert {row["traffic"] for row in story.rows("inference_log", "model_version = '2'")} == {"production", "shadow"}
    gate = story.rows("replay_findings", "kind = 'shadow' AND decides")
    assert {row["verdict"] for row in gate} == {"pass"}


def test_it_passed_the_gate_of_the_replay(story: Story) -> None:
    deciding = story.rows("replay_findings", "kind = 'replay' AND decides")
    assert {row["verdict"] for row in deciding} == {"pass"}
    assert {row["measure"] for row in deciding} >= {"reproduced", "churn", "instability"}


def test_the_experiment_was_fair_and_shows_the_harm_in_one_slice(story: Story) -> None:
    checks = story.rows("experiment_checks", "check = 'srm' AND slice_key = ''")
    assert {row["verdict"] for row in checks} == {"pass"}
    effects = story.rows(
        "experiment_effects", "metric = 'conversion' AND slice_key = 'device' AND role <> 'diagnostic'"
    )
    lost = [row["slice_value"] for row in effects if row["verdict"] == "breach"]
    assert lost == ["tablet"]
    (worst,) = (row for row in effects if row["slice_value"] == "tablet")
    assert worst["ci_high"] < 0
    (overall,) = story.rows("experiment_effects", "metric = 'conversion' AND slice_key = '' AND decides")
    assert overall["effect"] > 0


def test_the_units_own_past_made_it_more_precise(story: Story) -> None:
    reduced = story.rows("experiment_effects", "slice_key = '' AND variance_reduction IS NOT NULL")
    assert max(row["variance_reduction"] for row in reduced) > 0


def test_drift_is_found_in_the_column_that_drifted(story: Story) -> None:
    assert story.rows("drift_profile", "`column` = 'features.price'")
    of_last = "verdict = 'breach' AND slice_key = '' AND family <> 'pooled'"
    columns = {row["column"] for row in story.rows("drift_findings", of_last)}
    assert "features.price" in columns
    assert not columns & {"features.device", "features.region", "features.age", "features.similarity_score"}


def test_attributions_say_what_the_drift_does_to_the_scores(story: Story) -> None:
    attributed = story.rows("drift_findings", "family = 'attribution'")
    assert {row["column"] for row in attributed} >= {"features.price", "features.device"}


def test_one_incident_names_the_slice_and_the_version(story: Story) -> None:
    newest = {row["incident_id"]: row for row in sorted(story.rows("incidents"), key=lambda row: row["revision"])}
    (incident,) = newest.values()
    assert (incident["metric"], incident["slice_key"], incident["slice_value"]) == ("error_rate", "device", "tablet")
    assert (incident["blamed_version"], incident["state"], incident["severity"]) == ("2", "open", "critical")
    contributors = json.loads(incident["contributors"])
    assert contributors[0]["slice"] == "device:tablet"
    assert any("features.price" in each["metric"] for each in contributors)


def test_the_alias_was_moved_back_and_everyone_told(story: Story) -> None:
    assert story.champion() == "1"
    acted = sorted(story.rows("decisions", "action = 'rollback'"), key=lambda row: row["revision"])
    assert [row["state"] for row in acted] == ["due", "done"]
    assert {(row["from_version"], row["to_version"]) for row in acted} == {("2", "1")}
    told = [json.loads(line) for line in (story.folder / "notices.jsonl").read_text().splitlines()]
    kinds = [(each["kind"], each["state"]) for each in told]
    assert kinds.count(("incident", "opened")) == kinds.count(("decision", "done")) == 1


def test_the_page_shows_it(story: Story) -> None:
    pages = Path(story.lake().folder("monitor")) / "recommender"
    text = (pages / "index.html").read_text()
    assert "device:tablet" in text
    (incident,) = {row["incident_id"] for row in story.rows("incidents")}
    assert "What to do" in (pages / f"incident-{incident}.html").read_text()
    series = story.rows("monitor_series", "metric = 'error_rate' AND slice_value = 'tablet' AND model_version = '2'")
    assert max(row["value"] for row in series if row["n_requests"] >= 5) > 0.5
