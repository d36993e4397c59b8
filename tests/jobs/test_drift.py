"""The drift of the simulated model: what was planted is found, counted once, and read as Databricks names it."""

from datetime import UTC, date, datetime

import mlflow
import pytest
from pyspark.sql import Row

from jobs import detect_drift
from mltrust.conf import Conf
from mltrust.errors import ConfError
from mltrust.verdicts import Exit
from tests.jobs.conftest import World
from tests.jobs.test_pipeline import newest_run

# Minutes on one lakehouse: more than the budget of all jobs together.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ranker")]

AS_OF = datetime(2026, 10, 26, tzinfo=UTC)
_OF_RUN = ("run_id", "written_at")


@pytest.fixture(scope="module")
def conf(world: World) -> Conf:
    return world.load("monitors/recommender.yaml")


def _words(world: World) -> str:
    return newest_run(world, "detect_drift recommender").data.tags["mlflow.note.content"]


def found(world: World) -> list[Row]:
    return sorted(world.lake().read("drift_findings").collect(), key=str)


@pytest.fixture(scope="module")
def drifted(world: World, conf: Conf) -> list[Row]:
    assert detect_drift.run(world.spark, conf, AS_OF) == Exit.BREACH
    return found(world)


def test_prices_in_cents_are_found_and_nothing_else(drifted: list[Row]) -> None:
    breaches = [row for row in drifted if row["verdict"] == "breach" and row["column"].startswith("features.")]
    assert {row["column"] for row in breaches} == {"features.price"}, [row["reason"] for row in breaches]
    fixed = [
        row for row in breaches if (row["slice_key"], row["reference"], row["measure"]) == ("", "fixed", "above")
    ]
    assert {row["model_version"] for row in fixed} == {"1", "2"}
    assert all(0.03 < row["value"] < 0.07 for row in fixed), "5 % were planted"
    assert all("above the reference's maximum" in row["reason"] for row in fixed)
    arms = [row for row in drifted if row["reference"] == "control of ranker_v2"]
    assert arms, "the arms were compared"
    assert {row["verdict"] for row in arms} <= {"pass", "inconclusive"}, "both arms have the same drift"


def test_the_run_leads_with_the_verdict_and_draws_what_moved(world: World, drifted: list[Row]) -> None:
    run = newest_run(world, "detect_drift recommender")
    assert run.data.tags["mlflow.note.content"].startswith("**breach**: `recommender`")
    assert "price" in run.data.tags["mlflow.note.content"].splitlines()[0]
    names = {each.path for each in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
    assert {"drift.png", "distributions.png", "report.md", "drift_findings.json"} <= names
    assert any(name.startswith("jsd over time/1/") for name in run.data.metrics)


def test_windows_are_counted_once(world: World, conf: Conf, drifted: list[Row]) -> None:
    before = world.lake().version("drift_profile")
    assert detect_drift.run(world.spark, conf, AS_OF) == Exit.BREACH
    assert world.lake().version("drift_profile") == before
    assert "0 of 6 windows were counted by this run" in _words(world)
    again = found(world)
    assert [{k: v for k, v in row.asDict().items() if k not in _OF_RUN} for row in again] == [
        {k: v for k, v in row.asDict().items() if k not in _OF_RUN} for row in drifted
    ]


def test_the_view_has_the_names_that_users_of_databricks_know(world: World, drifted: list[Row]) -> None:
    view = world.lake().view("drift_metrics")
    row = view.where("column_name = 'features.price' AND slice_key IS NULL AND model_id = '1'").first()
    assert row is not None
    assert 0 < row["js_distance"] < 1
    assert 0 <= row["ks_test"]["pvalue"] <= 1
    assert row["drift_type"] == "BASELINE"
    assert row["window"]["start"] < row["window"]["end"]
    assert row["population_stability_index"] > 0
    assert row["chi_squared_test"]["statistic"] > 0


def test_a_rehearsal_says_how_often_the_alarm_would_have_fired_and_writes_no_finding(
    world: World, conf: Conf, drifted: list[Row]
) -> None:
    before = world.lake().version("drift_findings")
    assert detect_drift.run(world.spark, conf, AS_OF, rehearse="2") == Exit.PASS
    assert world.lake().version("drift_findings") == before
    words = _words(world)
    assert "would have fired in 1 of 2 windows" in words
    assert "| 2026-10-12 to 2026-10-18 | no |" in words


@pytest.mark.parametrize("given", ["0", "some", "-1"])
def test_a_rehearsal_of_no_window_is_refused(world: World, conf: Conf, given: str) -> None:
    with pytest.raises(ConfError, match=f"--rehearse {given}: expected how many windows"):
        detect_drift.run(world.spark, conf, AS_OF, rehearse=given)


def test_performance_is_that_of_the_last_window_whose_outcomes_are_known(world: World, drifted: list[Row]) -> None:
    rows = world.lake().read("performance").where("slice_key = '' AND metric = 'auc'").collect()
    assert {row["model_version"] for row in rows} == {"1", "2"}
    for row in rows:
        assert 0.5 < row["value"] < 1
        assert abs(row["difference"]) < 5 * row["difference_std_error"]
        assert row["window_end"].date() == date(2026, 10, 19), "outcomes come within 7 days"
        assert row["verdict"] in ("pass", "inconclusive")


def test_attributions_relations_and_the_features_together_are_among_the_findings(drifted: list[Row]) -> None:
    rows = [row for row in drifted if not row["slice_key"]]
    for family in ("attribution", "relation"):
        own = {(row["model_version"], row["column"]) for row in rows if row["family"] == family}
        assert own >= {("1", "features.price"), ("2", "features.age")}
    assert {row["model_version"] for row in rows if row["measure"] == "two_sample_auc"} == {"1", "2"}
    relations = [row for row in drifted if row["family"] == "relation"]
    assert "breach" not in {row["verdict"] for row in relations}, "purchases follow the true prices, drifted or not"
