"""From landing files to a verdict: what the jobs leave in the tables and in MLflow."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import cast

import mlflow
import pytest
from deltalake import DeltaTable
from mlflow.entities import Run
from pyspark.sql import functions as F

from jobs import analyze_experiment, build_units, ingest_logs, simulate_traffic
from mltrust import conf
from mltrust.contract import Reason
from mltrust.errors import ConfError, DataError
from mltrust.io.tracking import MAX_METRICS
from mltrust.record import OutcomeReader, RecordReader, Rejected
from mltrust.simulate.truth import planted
from mltrust.verdicts import Exit
from tests.jobs.conftest import AS_OF, World
from tests.jobs.test_incremental import OF_ANOTHER_START
from tests.unit.conftest import edited


def test_every_job_ends_with_the_code_of_its_verdict(world: World) -> None:
    assert world.exits["simulate"] == world.exits["ingest"] == world.exits["build free_shipping"] == Exit.PASS
    assert world.exits["analyze free_shipping"] == Exit.BREACH


def test_the_books_balance_and_name_every_line_of_every_file(world: World) -> None:
    for table, kind in (("inference_log", "records"), ("outcomes", "outcomes")):
        books = world.lake().read("ingest_batches").where(F.col("kind") == table).collect()
        folder = world.folder / f".lakehouse/landing/recommendations/{kind}"
        lines = {path.as_uri(): sum(1 for _ in path.open("rb")) for path in folder.glob("*.txt")}
        assert {book["source"].replace("file:/", "file:///"): book["records"] for book in books} == lines
        assert all(book["records"] == book["accepted"] + book["rejected"] + book["duplicates"] for book in books)
        assert sum(book["accepted"] for book in books) == world.lake().read(table).count()
        assert sum(book["rejected"] for book in books) == world.lake().read(f"{table}_rejects").count()


def test_rejects_and_duplicates_are_those_that_were_planted(world: World) -> None:
    truths = planted(world.simulation())
    for stream, table in (("records", "inference_log"), ("outcomes", "outcomes")):
        found = Counter(row["reason_code"] for row in world.lake().read(f"{table}_rejects").collect())
        assert found == {row.reason_code: row.n_lines for row in truths if row.stream == stream and row.reason_code}
        duplicates = (
            world.lake().read("ingest_batches").where(F.col("kind") == table).agg(F.sum("duplicates")).first()
        )
        [expected] = [row.n_lines for row in truths if row.stream == stream and row.kind == "duplicates"]
        assert duplicates is not None
        assert duplicates[0] == expected


def test_a_reject_keeps_its_line_and_its_place(world: World) -> None:
    reader = RecordReader(world.load("contracts/recommendations.yaml").contract)
    for table, read in (("inference_log", reader.read), ("outcomes", OutcomeReader().read)):
        for row in world.lake().read(f"{table}_rejects").collect():
            path = Path(row["source"].removeprefix("file:"))
            line = path.read_bytes().splitlines()[row["position"] - 1]
            assert line.decode() == row["raw"]
            found = read(line)
            if row["reason_code"] == Reason.CONFLICTING_DUPLICATE:
                assert not isinstance(found, Rejected)
            else:
                assert isinstance(found, Rejected)
                assert (found.reason_code, found.reason) == (row["reason_code"], row["reason"])


def test_the_log_holds_each_accepted_line_once_with_its_hash(world: World) -> None:
    log = world.lake().read("inference_log")
    key = world.lake().tables["inference_log"].key
    assert log.groupBy(*key).count().where("count > 1").count() == 0
    reader = RecordReader(world.load("contracts/recommendations.yaml").contract)
    folder = world.folder / ".lakehouse/landing/recommendations/records"
    read = [reader.read(line) for path in folder.glob("*.txt") for line in path.read_bytes().splitlines()]
    hashes = {row["content_hash"] for row in read if not isinstance(row, Rejected)}
    stored = {row["content_hash"] for row in log.select("content_hash").collect()}
    assert stored <= hashes
    assert (
        len(hashes - stored)
        == Counter(row["reason_code"] for row in world.lake().read("inference_log_rejects").collect())[
            Reason.CONFLICTING_DUPLICATE
        ]
    )


def test_v01_records_are_stored_typed(world: World) -> None:
    row = world.lake().read("inference_log").where("schema_version = 'v01'").first()
    assert row is not None
    assert isinstance(row["features"]["age"], int)
    assert isinstance(row["features"]["similarity_score"], float)
    assert [(each["experiment_id"], each["variant"]) for each in row["experiments"]] == [("exp42", None)]
    assert (row["unit_id"], row["traffic"], row["features"]["region"]) == (None, "production", None)


def test_the_reversal_is_named_and_leads_the_readout(world: World) -> None:
    checks = world.lake().read("experiment_checks", where={"experiment_id": "free_shipping"})
    named = checks.where("check = 'simpson' AND metric = 'conversion' AND slice_key = 'device'").collect()
    assert [(row["method"], row["verdict"], row["decides"]) for row in named] == [("reversal", "breach", True)]
    run = newest_run(world, "analyze_experiment free_shipping")
    assert run.info.run_name == "analyze_experiment free_shipping: breach"
    assert run.data.tags["recommendation"] == "invalid"
    reasons = run.data.tags["mlflow.note.content"].split("### Checks")[0]
    assert "Simpson's paradox: pooled -" in reasons


def newest_run(world: World, name: str) -> Run:
    """The newest run of a job; not one of test_incremental, which changes a shipped experiment."""
    mlflow.set_tracking_uri("sqlite:///.lakehouse/mlflow.db")
    wanted = f"attributes.run_name LIKE '{name}: %' AND tags.conf_hash != '{OF_ANOTHER_START}'"
    found = mlflow.search_runs(experiment_names=["mltrust"], filter_string=wanted, output_format="list")
    return cast(Run, found[0])


def test_a_run_says_what_it_read_what_it_found_and_leads_with_its_verdict(world: World) -> None:
    run = newest_run(world, "analyze_experiment free_shipping")
    tags = run.data.tags
    assert (tags["verdict"], tags["experiment"], tags["job"]) == ("breach", "free_shipping", "analyze_experiment")
    assert tags["conf_hash"] == world.load("experiments/free_shipping.yaml").conf_hash
    assert tags["mlflow.note.content"].startswith("**breach**: **invalid**")
    assert int(tags["version.unit_days"]) >= 0
    inputs = {each.dataset.name: json.loads(each.dataset.source) for each in run.inputs.dataset_inputs}
    assert inputs.keys() == {"exposures", "unit_days", "inference_log", "inference_log_rejects", "outcomes"}
    assert inputs["unit_days"]["delta_table_version"] == int(tags["version.unit_days"])
    assert run.data.params == {"config": "free_shipping.yaml", "env": "local", "as_of": "2026-11-02T00:00:00+00:00"}
    artifacts = {each.path for each in mlflow.artifacts.list_artifacts(run_id=run.info.run_id)}
    assert {"conf.yaml", "report.md", "forest.png", "experiment_effects.json", "experiment_checks.json"} <= artifacts


def test_the_metrics_of_a_run_are_the_effects_of_the_table(world: World) -> None:
    run = newest_run(world, "analyze_experiment free_shipping")
    assert len(run.data.metrics) <= MAX_METRICS
    rows = world.lake().read("experiment_effects", where={"experiment_id": "free_shipping"}).collect()
    leading = [row for row in rows if row["role"] != "diagnostic"]
    effects = {(row["metric"], row["slice_key"], row["slice_value"]): row["effect"] for row in leading}
    assert run.data.metrics["effect/conversion/overall"] == effects["conversion", "", ""]
    assert run.data.metrics["effect/conversion/device:tablet"] == effects["conversion", "device", "tablet"]


@pytest.mark.slow
def test_fairness_of_the_scores_is_read_and_does_not_outlive_its_conf(ranker: World, tmp_path: Path) -> None:
    folder = shutil.copytree(ranker.conf, tmp_path / "conf")
    config = folder / "experiments/ranker_v2.yaml"
    edited(
        config, "attributes: [region], window_days: 7}", "attributes: [device], window_days: 7, max_gap: {tpr: 0.5}}"
    )
    assert analyze_experiment.run(ranker.spark, conf.load(config, "local"), AS_OF) in tuple(Exit)
    where = {"experiment_id": "ranker_v2"}
    rows = ranker.lake().read("experiment_fairness", where=where).collect()
    slices = [row for row in rows if row["slice_key"] == "device" and not row["slice_value"].startswith("(g")]
    log = ranker.lake().read("inference_log").where("traffic = 'production'")
    assert {row["slice_value"] for row in slices} == {
        row[0] for row in log.select("features.device").distinct().collect()
    }
    rates = [row for row in slices if row["measure"] == "selection_rate" and row["value"] is not None]
    assert all(0 <= row["value"] <= 1 and row["n_predictions"] >= row["n_units"] > 0 for row in rates)
    checks = ranker.lake().read("experiment_checks", where=where).where("check = 'fairness'").collect()
    assert [(row["metric"], row["treatment"], row["decides"]) for row in checks] == [
        ("purchase_tpr", "treatment", True)
    ]
    assert (
        "### Fairness over slices"
        in newest_run(ranker, "analyze_experiment ranker_v2").data.tags["mlflow.note.content"]
    )
    analyze_experiment.run(ranker.spark, ranker.load("experiments/ranker_v2.yaml"), AS_OF)
    again = ranker.lake().read("experiment_fairness", where=where)
    assert {row[0] for row in again.select("slice_key").distinct().collect()} == {"region"}


def test_every_result_row_names_its_run_conf_and_input_versions(world: World) -> None:
    run = newest_run(world, "analyze_experiment free_shipping")
    for name in ("experiment_effects", "experiment_checks"):
        for row in world.lake().read(name, where={"experiment_id": "free_shipping"}).collect():
            assert row["run_id"] == run.info.run_id
            assert row["conf_hash"] == world.load("experiments/free_shipping.yaml").conf_hash
            assert row["input_versions"].keys() == {
                "exposures",
                "unit_days",
                "inference_log",
                "inference_log_rejects",
                "outcomes",
            }


def test_other_delta_readers_read_every_table_that_the_jobs_made(world: World) -> None:
    lake = world.lake()
    for name in ("inference_log", "outcomes", "inference_log_rejects", "outcomes_rejects", "ingest_batches",
                 "exposures", "unit_days", "experiment_effects", "experiment_checks"):  # fmt: skip
        assert DeltaTable(lake.path(name)).to_pyarrow_table().num_rows == lake.read(name).count() > 0


Results = tuple[list[str], set[str]]


def results(world: World) -> Results:
    """All effects but for where they come from, with numbers to 9 digits, and the runs that they name."""
    effects = world.lake().read("experiment_effects")
    rows = effects.drop("run_id", "written_at", "input_versions").collect()
    runs = effects.select("experiment_id", "run_id").distinct().collect()
    # Moments are equal to 1e-12.
    return sorted(rounded(str(row)) for row in rows), {f"{row['experiment_id']} {row['run_id']}" for row in runs}


def assert_done_again(before: Results, after: Results, changed: str) -> None:
    assert after[0] == before[0]
    assert {run.split()[0] for run in before[1] ^ after[1]} == {changed}


def test_a_readout_done_again_is_the_same_by_another_run(world: World) -> None:
    before = results(world)
    again = analyze_experiment.run(world.spark, world.load("experiments/free_shipping.yaml"), AS_OF)
    assert again == world.exits["analyze free_shipping"]
    assert_done_again(before, results(world), "free_shipping")


@pytest.mark.slow
def test_an_experiment_built_and_read_again_leaves_the_others_alone(ranker: World) -> None:
    before = results(ranker)
    assert build_units.run(ranker.spark, ranker.load("experiments/ranker_v2.yaml"), AS_OF) == Exit.PASS
    again = analyze_experiment.run(ranker.spark, ranker.load("experiments/ranker_v2.yaml"), AS_OF)
    assert again == ranker.exits["analyze ranker_v2"]
    assert_done_again(before, results(ranker), "ranker_v2")


def rounded(row: str) -> str:
    words = row.replace(",", " ").replace(")", " ").split()
    return " ".join(_round(word) for word in words)


def _round(word: str) -> str:
    name, _, value = word.partition("=")
    try:
        return f"{name}={float(value):.9g}"
    except ValueError:
        return word


def test_nothing_new_in_the_landing_folders_is_a_pass(world: World) -> None:
    before = world.lake().version("inference_log")
    assert ingest_logs.run(world.spark, world.load("contracts/recommendations.yaml"), AS_OF) == Exit.PASS
    assert world.lake().version("inference_log") == before


def test_a_simulation_refuses_a_landing_folder_in_use(world: World) -> None:
    with pytest.raises(DataError, match="has files already"):
        simulate_traffic.run(world.spark, world.load("simulations/demo.yaml"), AS_OF)


def test_an_experiment_whose_conf_changed_asks_for_its_units(world: World) -> None:
    path = world.conf / "experiments/free_shipping.yaml"
    before = path.read_text()
    try:
        path.write_text(before.replace("device: features.device", "device: features.region"))
        with pytest.raises(DataError, match="changed since unit_days was built; run build_units"):
            analyze_experiment.run(world.spark, world.load("experiments/free_shipping.yaml"), AS_OF)
    finally:
        path.write_text(before)


def test_an_as_of_beyond_the_units_asks_for_them(world: World) -> None:
    with pytest.raises(DataError, match="ends at 2026-11-02"):
        analyze_experiment.run(world.spark, world.load("experiments/free_shipping.yaml"), AS_OF.replace(day=9))


def test_an_experiment_without_a_stated_unit_is_inconclusive(world: World) -> None:
    path = world.conf / "experiments/exp42.yaml"
    path.write_text((world.conf / "experiments/free_shipping.yaml").read_text().replace("unit: unit_id\n", ""))
    loaded = world.load("experiments/exp42.yaml")
    assert build_units.run(world.spark, loaded, AS_OF) == Exit.INCONCLUSIVE
    assert analyze_experiment.run(world.spark, loaded, AS_OF) == Exit.INCONCLUSIVE
    assert newest_run(world, "analyze_experiment exp42").data.tags["verdict"] == "inconclusive"


def test_a_job_of_an_experiment_refuses_another_conf(world: World) -> None:
    with pytest.raises(ConfError, match="expected the conf of an experiment"):
        build_units.run(world.spark, world.load("contracts/recommendations.yaml"), AS_OF)
