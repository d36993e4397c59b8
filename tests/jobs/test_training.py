"""A training set from the simulated log, against labels that are made without Spark."""

import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import cast

import pandas as pd
import pytest
from deltalake import DeltaTable
from pyspark.sql import functions as F

from jobs import export_training_set
from mltrust.conf import Conf
from mltrust.errors import ConfError
from mltrust.training import Label
from mltrust.verdicts import Exit
from tests.jobs.conftest import AS_OF, World
from tests.jobs.test_pipeline import newest_run

KEY = ["event_date", "request_id", "model_name", "model_version", "item_id"]
WEEK = timedelta(days=7)


def table(world: World, name: str) -> pd.DataFrame:
    return cast(pd.DataFrame, DeltaTable(world.lake().path(name)).to_pandas())


def rows_of(world: World, training_set_id: str) -> pd.DataFrame:
    rows = table(world, "training_sets")
    return rows[rows["training_set_id"] == training_set_id].set_index(KEY).sort_index()


def with_set(conf: Conf, **changes: object) -> Conf:
    return replace(conf, training_set=replace(conf.the_training_set(), **changes))  # type: ignore[arg-type]


def expected(world: World, as_of: datetime) -> pd.DataFrame:
    """Mature predictions of the shipped set with `label`, whether a purchase of their request followed in a week."""
    log = table(world, "inference_log")
    days = log["event_date"].between(date(2026, 10, 5), date(2026, 10, 25))
    served = (log["model_name"] == "recommender") & (log["traffic"] == "production") & (log["status"] == "ok")
    rows = log[days & served & (log["event_time"] + WEEK <= pd.Timestamp(as_of))]
    told = table(world, "outcomes").query("name == 'purchase'")
    assert set(told["revision"]) == {0}
    told = told[told["event_time"] < pd.Timestamp(as_of)].groupby("request_id")["event_time"].apply(list).to_dict()
    labels = [
        float(any(when <= each < when + WEEK for each in told.get(request, [])))
        for request, when in zip(rows["request_id"], rows["event_time"], strict=True)
    ]
    return rows.assign(label=labels).set_index(KEY).sort_index()


@pytest.fixture(scope="module")
def exported(world: World) -> World:
    conf = world.load("training_sets/conversion.yaml")
    other = with_set(conf, training_set_id="other", label=Label("rating", "last", 7, "exclude"), split=None)
    assert export_training_set.run(world.spark, other, AS_OF) == Exit.PASS
    assert export_training_set.run(world.spark, conf, AS_OF) == Exit.PASS
    return world


@pytest.mark.slow
def test_rows_features_and_labels_are_those_of_the_log_and_the_outcomes(exported: World) -> None:
    found, wanted = rows_of(exported, "conversion"), expected(exported, AS_OF)
    assert list(found.index) == list(wanted.index)
    assert found["label"].to_dict() == wanted["label"].to_dict()
    assert 0.05 < found["label"].mean() < 0.95
    assert found["features"].to_dict() == wanted["features"].to_dict()
    assert found["event_time"].to_dict() == wanted["event_time"].to_dict()
    units = found.groupby("unit_id")["fold"].nunique()
    assert set(units) == {1}
    assert set(found["fold"]) == {"train", "test"}


@pytest.mark.slow
def test_what_is_excluded_without_an_outcome_is_left_out_and_the_rest_has_its_value(exported: World) -> None:
    found = rows_of(exported, "other")
    ratings = table(exported, "outcomes").query("name == 'rating'").set_index("request_id")["value"]
    assert len(found) > 0
    assert {key[1]: label for key, label in found["label"].items()}.items() <= ratings.to_dict().items()
    assert found["fold"].isna().all()


@pytest.mark.slow
def test_the_run_says_what_is_in_the_set_and_how_to_read_it_back(exported: World) -> None:
    run, found = newest_run(exported, "export_training_set conversion"), rows_of(exported, "conversion")
    content_hash = run.data.tags["content_hash"]
    page = run.data.tags["mlflow.note.content"]
    assert page.startswith(f"**pass**: {len(found):,} rows of `conversion` as of 2026-11-02, content hash")
    assert run.data.params["content_hash"] == content_hash
    assert (run.data.metrics["n_rows"], run.data.metrics["n_immature"]) == (len(found), 0)
    assert run.data.metrics["label_mean"] == pytest.approx(found["label"].mean(), rel=1e-12)
    inputs = {each.dataset.name: each.dataset for each in run.inputs.dataset_inputs}
    assert inputs.keys() == {"inference_log", "outcomes", "conversion"}
    assert inputs["conversion"].digest == content_hash
    version = json.loads(inputs["conversion"].source)["delta_table_version"]
    assert f'option("versionAsOf", {version})' in page
    said = exported.lake().metadata("training_sets", training_set_id="conversion")
    assert said["content_hash"] == content_hash
    assert said["run_id"] == run.info.run_id
    assert set(found["run_id"]) == {run.info.run_id}
    again = exported.lake().read("training_sets", version).where(F.col("training_set_id") == "conversion")
    assert again.count() == len(found)


@pytest.mark.slow
def test_running_again_replaces_its_own_rows_and_gives_the_same_hash(exported: World) -> None:
    conf = exported.load("training_sets/conversion.yaml")
    before, others = rows_of(exported, "conversion"), rows_of(exported, "other")
    first = newest_run(exported, "export_training_set conversion")
    assert export_training_set.run(exported.spark, conf, AS_OF) == Exit.PASS
    run, after = newest_run(exported, "export_training_set conversion"), rows_of(exported, "conversion")
    assert run.data.tags["content_hash"] == first.data.tags["content_hash"]
    assert run.info.run_id != first.info.run_id
    stamps = ["run_id", "written_at"]
    pd.testing.assert_frame_equal(after.drop(columns=stamps), before.drop(columns=stamps))
    assert set(after["run_id"]) == {run.info.run_id}
    pd.testing.assert_frame_equal(rows_of(exported, "other"), others)


@pytest.mark.slow
def test_an_earlier_as_of_knows_nothing_of_what_came_after_it(exported: World) -> None:
    conf = with_set(exported.load("training_sets/conversion.yaml"), training_set_id="earlier")
    as_of = datetime(2026, 10, 19, tzinfo=UTC)
    assert export_training_set.run(exported.spark, conf, as_of) == Exit.PASS
    found, wanted = rows_of(exported, "earlier"), expected(exported, as_of)
    assert found["label"].to_dict() == wanted["label"].to_dict()
    run = newest_run(exported, "export_training_set conversion")
    assert run.data.metrics["n_immature"] > 0
    assert run.data.metrics["n_rows"] == len(wanted) < len(expected(exported, AS_OF))


@pytest.mark.slow
def test_without_a_mature_row_or_any_outcome_nothing_is_said_and_nothing_replaced(exported: World) -> None:
    conf, before = exported.load("training_sets/conversion.yaml"), rows_of(exported, "conversion")
    as_of = datetime(2026, 10, 8, tzinfo=UTC)
    assert export_training_set.run(exported.spark, conf, as_of) == Exit.INCONCLUSIVE
    page = newest_run(exported, "export_training_set conversion").data.tags["mlflow.note.content"]
    assert page.startswith("**inconclusive**: no mature prediction")
    misspelt = with_set(conf, label=replace(conf.the_training_set().label, outcome="purchse"))
    assert export_training_set.run(exported.spark, misspelt, AS_OF) == Exit.INCONCLUSIVE
    pd.testing.assert_frame_equal(rows_of(exported, "conversion"), before)


def test_the_conf_of_another_job_is_refused(world: World) -> None:
    with pytest.raises(ConfError, match="expected the conf of a training set"):
        export_training_set.run(world.spark, world.load("contracts/recommendations.yaml"), AS_OF)
