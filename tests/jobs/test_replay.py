"""Replays on the simulated log: what leaves it, what is given again, who passes, and what a killed run leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import cast
from xml.etree import ElementTree as ET

import mlflow
import pandas as pd
import pytest
from deltalake import DeltaTable
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from pyspark.sql import functions as F

from jobs import compare_shadow, export_replay_set, replay_traffic
from mltrust.conf import Conf
from mltrust.contract import Scrub, Scrubbing
from mltrust.errors import ConfError, DataError
from mltrust.io.tables import Lakehouse
from mltrust.replay.masking import Key
from mltrust.replay.spec import Gate, ModelRef, Rule, Sample
from mltrust.verdicts import Exit
from tests.jobs.conftest import AS_OF, World
from tests.jobs.test_pipeline import newest_run
from tests.unit.conftest import edited

# Minutes on one lakehouse: more than the suite's budget for all jobs together.
pytestmark = pytest.mark.slow

SECRET = "a secret of 32 bytes for the test"
KEY = ["event_date", "request_id", "item_id"]
#: What may differ between two runs of one replay.
VOLATILE = ["run_id", "written_at", "champion_ms", "candidate_ms"]


@pytest.fixture(scope="module", autouse=True)
def key() -> None:
    os.environ["MLTRUST_SCRUB_KEY"] = SECRET


def table(world: World, name: str, replay_id: str) -> pd.DataFrame:
    """The rows of a replay in the order of their keys; arrays as tuples, so that they can be compared."""
    rows = cast(pd.DataFrame, DeltaTable(world.lake().path(name)).to_pandas())
    rows = rows[rows["replay_id"] == replay_id].reset_index(drop=True)
    for column in (each for each in rows if str(each).endswith(("_tried", "_failed"))):
        rows[column] = rows[column].map(lambda each: each if each is None else tuple(each))
    return rows.sort_values(KEY, ignore_index=True) if "request_id" in rows else rows


def with_replay(conf: Conf, **changes: object) -> Conf:
    return replace(conf, replay=replace(conf.the_replay(), **changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def exported(world: World) -> World:
    assert export_replay_set.run(world.spark, world.load("replays/better_ranker.yaml"), AS_OF) == Exit.PASS
    return world


@pytest.fixture(scope="module")
def replayed(exported: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("ci")
    for name in ("better_ranker", "overfit_ranker"):
        files = {"junit": str(folder / f"{name}.xml"), "summary": str(folder / f"{name}.md")}
        exit_code = replay_traffic.run(exported.spark, exported.load(f"replays/{name}.yaml"), AS_OF, **files)
        exported.exits[name] = exit_code
    exported.exits["folder"] = folder  # type: ignore[assignment]
    return exported


def test_a_set_holds_the_champions_predictions_scrubbed(exported: World) -> None:
    found = table(exported, "replay_sets", "better_ranker").set_index(KEY)
    log = cast(pd.DataFrame, DeltaTable(exported.lake().path("inference_log")).to_pandas())
    days = log["event_date"].astype(str).between("2026-10-05", "2026-10-25")
    wanted = log[days & (log["model_version"] == "1") & (log["traffic"] == "production") & (log["status"] == "ok")]
    wanted = wanted[wanted["model_name"] == "recommender"].set_index(KEY).sort_index()
    assert list(found.index) == list(wanted.index)
    assert found["features"].to_dict() == wanted["features"].to_dict()
    assert found["prediction_score"].to_dict() == wanted["prediction_score"].to_dict()
    key = Key(SECRET.encode())
    assert found["unit_id"].to_dict() == {
        at: key.pseudonym("unit_id", unit) for at, unit in wanted["unit_id"].items()
    }
    assert 0.05 < found["label"].mean() < 0.95
    said = exported.lake().metadata("replay_sets", replay_id="better_ranker")
    assert said["key_id"] == key.key_id
    assert SECRET not in json.dumps(said)


def test_exporting_again_gives_the_same_hash_and_another_key_another_one(
    exported: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf, lake = exported.load("replays/better_ranker.yaml"), exported.lake()
    first = lake.metadata("replay_sets", replay_id="better_ranker")
    copy = with_replay(conf, replay_id="copy")
    assert export_replay_set.run(exported.spark, copy, AS_OF) == Exit.PASS
    assert lake.metadata("replay_sets", replay_id="copy")["content_hash"] == first["content_hash"]
    monkeypatch.setenv("MLTRUST_SCRUB_KEY", SECRET[::-1])
    assert export_replay_set.run(exported.spark, copy, AS_OF) == Exit.PASS
    other = lake.metadata("replay_sets", replay_id="copy")
    assert (other["content_hash"] != first["content_hash"], other["key_id"] != first["key_id"]) == (True, True)
    assert other["n_rows"] == first["n_rows"]


def test_every_row_of_the_champion_is_given_again_bit_for_bit(replayed: World) -> None:
    rows = table(replayed, "replay_rows", "better_ranker")
    assert len(rows) == len(table(replayed, "replay_sets", "better_ranker"))
    assert rows["champion"].tolist() == rows["logged"].tolist()
    assert set(rows["ulps"]) == {0}
    assert rows["candidate_error"].isna().all()
    findings = table(replayed, "replay_findings", "better_ranker")
    exact = findings[(findings["measure"] == "exact") & (findings["slice_key"] == "")]
    assert exact["value"].tolist() == [1.0]
    noise = findings[findings["measure"] == "noise_floor"]
    assert noise["value"].tolist() == [0.0]


def test_the_good_candidate_is_not_refused_and_the_overfit_one_is_with_its_feature_named(replayed: World) -> None:
    # Models of 500 units: the candidate is better in the demo, here it need only behave.
    found = table(replayed, "replay_findings", "better_ranker")
    wrong = found[found["decides"] & (found["verdict"] == "breach")]
    assert set(wrong["measure"]) <= {"squared_error_change"}
    assert replayed.exits["overfit_ranker"] == Exit.BREACH
    run = newest_run(replayed, "replay_traffic overfit_ranker")
    assert run.data.tags["mlflow.note.content"].startswith(
        "**breach**: instability of the candidate under jitter(similarity_score): "
    )
    findings = table(replayed, "replay_findings", "overfit_ranker")
    wrong = findings[findings["decides"] & (findings["verdict"] == "breach")]
    assert set(wrong["perturbation"]) == {"jitter(similarity_score)"}


def test_the_verdict_stands_on_the_candidates_version_and_in_files_for_ci(replayed: World) -> None:
    client = mlflow.MlflowClient()
    version = client.get_model_version_by_alias("recommender", "overfit")
    run = newest_run(replayed, "replay_traffic overfit_ranker")
    assert version.tags["mltrust.replay.overfit_ranker"] == "breach"
    assert version.tags["mltrust.replay.overfit_ranker.run_id"] == run.info.run_id
    folder = cast(Path, replayed.exits["folder"])
    suite = ET.parse(folder / "overfit_ranker.xml").getroot()
    assert int(suite.attrib["failures"]) >= 1
    assert (folder / "overfit_ranker.md").read_text().startswith("**breach**: instability of the candidate")
    artifacts = {each.path for each in client.list_artifacts(run.info.run_id)}
    assert {"junit.xml", "report.md", "findings.json", "differ_most.json"} <= artifacts


def test_shadow_traffic_is_paired_with_production(replayed: World) -> None:
    conf = replayed.load("replays/better_ranker.yaml")
    assert compare_shadow.run(replayed.spark, conf, AS_OF) in (Exit.PASS, Exit.INCONCLUSIVE)
    findings = table(replayed, "replay_findings", "better_ranker")
    own = findings[(findings["kind"] == "shadow") & (findings["slice_key"] == "")].set_index(["measure", "role"])[
        "value"
    ]
    log = replayed.lake().read("inference_log").where("event_date >= '2026-10-05' AND event_date < '2026-10-26'")
    shadows = log.where("traffic = 'shadow'").count()
    champions = log.where("traffic = 'production' AND model_version = '1' AND model_name = 'recommender'").count()
    assert own["unmatched_shadow", "pair"] == own["features_differ", "pair"] == own["lag_seconds", "pair"] == 0
    assert own["unshadowed", "pair"] == pytest.approx(1 - shadows / champions / 0.1, abs=1e-9)
    assert (findings["kind"] == "replay").any()  # the replay's findings are left alone


def test_a_replay_that_died_is_finished_by_the_next_run_as_if_it_never_had(
    replayed: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = table(replayed, "replay_rows", "overfit_ranker")
    conf = with_replay(replayed.load("replays/overfit_ranker.yaml"), replay_id="died", parts=4)
    original, written = Lakehouse.replace, []

    def dying(self: Lakehouse, *args: object, **more: object) -> None:
        if args[1] == "replay_rows":
            if len(written) == 2:
                raise KeyboardInterrupt
            written.append(args[2])
        original(self, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Lakehouse, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        replay_traffic.run(replayed.spark, conf, AS_OF)
    assert 0 < len(table(replayed, "replay_rows", "died")) < len(whole)
    assert len(table(replayed, "replay_findings", "died")) == 0
    tags = mlflow.MlflowClient().get_model_version_by_alias("recommender", "overfit").tags
    assert tags["mltrust.replay.died"] == "running"
    monkeypatch.setattr(Lakehouse, "replace", original)
    assert replay_traffic.run(replayed.spark, conf, AS_OF) == Exit.BREACH
    metrics = newest_run(replayed, "replay_traffic overfit_ranker").data.metrics
    assert (metrics["parts_found"], metrics["parts_scored"]) == (2, 2)
    # Parts, and of which rows the noise is told, are of the plan; all else is of the row alone.
    of_plan = ["replay_id", "plan", "part", "champion_noise", "candidate_noise", *VOLATILE]
    finished = table(replayed, "replay_rows", "died").drop(columns=of_plan)
    pd.testing.assert_frame_equal(finished, whole.drop(columns=of_plan))


def test_rare_slices_are_drawn_more_often_and_weigh_less(exported: World) -> None:
    conf = exported.load("replays/better_ranker.yaml")
    selection = replace(
        conf.the_replay().the_selection(), sample=Sample(600, ("device",), 250, seed=3), hard_within=0.02
    )
    assert (
        export_replay_set.run(exported.spark, with_replay(conf, replay_id="drawn", select=selection), AS_OF)
        == Exit.PASS
    )
    found, whole = table(exported, "replay_sets", "drawn"), table(exported, "replay_sets", "better_ranker")
    sizes = found.groupby("stratum").size()
    assert set(sizes.index) == {"(hard)", "desktop", "mobile", "tablet"}
    # Poisson sampling: within five standard deviations of 250.
    assert (sizes[["desktop", "tablet"]].sub(250).abs() < 5 * 250**0.5).all()
    hard = whole[(whole["prediction_score"] - 0.5).abs() <= 0.02]
    assert set(found[found["stratum"] == "(hard)"]["request_id"]) == set(hard["request_id"])
    assert set(found[found["stratum"] == "(hard)"]["weight"]) == {1.0}
    # The weights add up to the traffic, which so few rows estimate with a standard error of some 4 %.
    assert found["weight"].sum() == pytest.approx(len(whole), rel=0.2)


def test_an_hour_is_reproduced_by_its_request_ids(exported: World) -> None:
    conf = exported.load("replays/better_ranker.yaml")
    ids = tuple(table(exported, "replay_sets", "better_ranker")["request_id"].head(7))
    selection = replace(conf.the_replay().the_selection(), request_ids=ids)
    gate = Gate((Rule("reproduced", min=1.0), Rule("errors", max=0.0)))
    incident = with_replay(conf, replay_id="incident", select=selection, gate=gate, perturbations=(), parts=1)
    # Seven rows: their combinations of device and region are rarer than k.
    assert export_replay_set.run(exported.spark, incident, AS_OF) == Exit.BREACH
    contract = replace(conf.contract, scrub=replace(cast(Scrubbing, conf.contract.scrub), k=1))
    incident = replace(incident, contract=contract)
    assert export_replay_set.run(exported.spark, incident, AS_OF) == Exit.PASS
    assert replay_traffic.run(exported.spark, incident, AS_OF) == Exit.PASS
    rows = table(exported, "replay_rows", "incident")
    assert set(rows["request_id"]) == set(ids)
    assert set(rows["ulps"]) == {0}


# What an operator can mend.


def test_what_cannot_be_replayed_is_said_with_the_right_code(
    exported: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf, spark = exported.load("replays/better_ranker.yaml"), exported.spark
    gone = with_replay(conf, candidate=ModelRef("recommender", version="99"))
    with pytest.raises(ConfError, match=r"model 'recommender': the registry has versions 1, 2, 3"):
        replay_traffic.run(spark, gone, AS_OF)
    with pytest.raises(DataError, match="holds no set 'never'; run export_replay_set with the conf of 'never'"):
        replay_traffic.run(spark, with_replay(conf, select=None, set_of="never", shadow=None), AS_OF)
    with pytest.raises(DataError, match="the set 'better_ranker' is of recommender 1, the champion is recommender 2"):
        replay_traffic.run(spark, with_replay(conf, champion=ModelRef("recommender", version="2")), AS_OF)
    with pytest.raises(ConfError, match="its set is that of replay 'better_ranker'; export that"):
        export_replay_set.run(spark, exported.load("replays/overfit_ranker.yaml"), AS_OF)
    with pytest.raises(ConfError, match="shadow: missing; expected the gate"):
        compare_shadow.run(spark, exported.load("replays/overfit_ranker.yaml"), AS_OF)
    nothing = replace(conf.the_replay().the_selection(), request_ids=("none",))
    assert (
        export_replay_set.run(spark, with_replay(conf, replay_id="none", select=nothing), AS_OF) == Exit.INCONCLUSIVE
    )
    page = newest_run(exported, "export_replay_set better_ranker").data.tags["mlflow.note.content"]
    assert page.startswith("**inconclusive**: nothing selected")
    monkeypatch.delenv("MLTRUST_SCRUB_KEY")
    with pytest.raises(ConfError, match="MLTRUST_SCRUB_KEY is not set in the environment"):
        export_replay_set.run(spark, conf, AS_OF)


def test_a_policy_on_an_input_of_a_model_is_refused(exported: World) -> None:
    conf = exported.load("replays/better_ranker.yaml")
    columns = {**cast(Scrubbing, conf.contract.scrub).columns, "features.age": Scrub("bucket", width=10)}
    scrubbed = replace(conf, contract=replace(conf.contract, scrub=Scrubbing(columns)))
    with pytest.raises(ConfError, match=r"features.age is bucket, but recommender 1 reads it; expected keep"):
        export_replay_set.run(exported.spark, scrubbed, AS_OF)


def log_plain(name: str, *inputs: ColSpec) -> None:
    class Plain(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        def predict(self, context: object, model_input: pd.DataFrame, params: object = None) -> pd.Series:
            if (model_input["age"] == 40).any():
                raise ValueError("forty")
            return model_input["age"] / 100

    mlflow.pyfunc.log_model(
        name=name, python_model=Plain(), registered_model_name=name, signature=ModelSignature(Schema(list(inputs))),
        pip_requirements=["pandas"],
    )  # fmt: skip


def test_a_model_that_raises_on_some_rows_is_refused_and_one_with_another_signature_is_no_candidate(
    replayed: World,
) -> None:
    log_plain("forty", ColSpec("long", "age"))
    log_plain("strange", ColSpec("long", "age"), ColSpec("string", "zip"))
    conf = with_replay(
        replayed.load("replays/overfit_ranker.yaml"), replay_id="forty", candidate=ModelRef("forty", version="1"),
        perturbations=(), gate=Gate((Rule("errors", max=0.001),)),
    )  # fmt: skip
    assert replay_traffic.run(replayed.spark, conf, AS_OF) == Exit.BREACH
    rows = table(replayed, "replay_rows", "forty")
    failed = rows["candidate_error"] == "ValueError: forty"
    ages = table(replayed, "replay_sets", "better_ranker")["features"].map(lambda each: each["age"])
    assert failed.tolist() == (ages == 40).tolist()
    assert rows["candidate"].isna().tolist() == failed.tolist()
    strange = with_replay(conf, candidate=ModelRef("strange", version="1"))
    with pytest.raises(ConfError, match=r"strange 1 reads 'zip' \(string\), which is no feature of the log"):
        replay_traffic.run(replayed.spark, strange, AS_OF)


def test_no_nan_is_in_any_table(replayed: World) -> None:
    for name in ("replay_rows", "replay_findings", "replay_sets"):
        rows = replayed.lake().read(name)
        doubles = [each.name for each in rows.schema if each.dataType.simpleString() == "double"]
        counts = rows.agg(*(F.count_if(F.isnan(each)).alias(each) for each in doubles)).collect()[0]
        assert sum(counts) == 0


def conf_of(world: World, replay_id: str) -> Path:
    """The overfit ranker's replay under another id, which is also its file's."""
    path = world.conf / "replays" / f"{replay_id}.yaml"
    path.write_text((world.conf / "replays" / "overfit_ranker.yaml").read_text())
    edited(path, "parts: 2", "parts: 6")
    return edited(path, "replay_id: overfit_ranker", f"replay_id: {replay_id}")


def started(world: World, config: Path) -> subprocess.Popen[bytes]:
    """The job as a program, in a process group of its own with its JVM and Python workers."""
    command = [
        sys.executable,
        "-m",
        "mltrust_jobs.replay_traffic",
        "--config",
        str(config),
        "--as-of",
        f"{AS_OF:%Y-%m-%dT%H:%MZ}",
    ]
    return subprocess.Popen(command, cwd=world.folder, start_new_session=True, stderr=subprocess.DEVNULL)


def n_parts(world: World, replay_id: str) -> int:
    """Commits of parts in the table's log."""
    log = Path(world.lake().path("replay_rows"), "_delta_log")
    wanted = f'\\"replay_id\\": \\"{replay_id}\\"'
    return sum(wanted in path.read_text() for path in log.glob("*.json"))


def told(world: World, replay_id: str) -> dict[tuple[str, ...], tuple[float, str | None]]:
    """Values and verdicts of every finding that is no time of this machine."""
    rows = table(world, "replay_findings", replay_id)
    rows = rows[~rows["measure"].str.startswith("latency")]
    names = ["measure", "role", "perturbation", "slice_key", "slice_value"]
    return {tuple(row[name] for name in names): (row["value"], row["verdict"]) for row in rows.to_dict("records")}


def test_a_killed_replay_is_finished_by_the_next_run_and_equals_an_undisturbed_one(exported: World) -> None:
    config = conf_of(exported, "killed")
    process = started(exported, config)
    deadline = time.monotonic() + 600
    while n_parts(exported, "killed") < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    there = table(exported, "replay_rows", "killed")
    whole = table(exported, "replay_sets", "better_ranker")
    assert 0 < len(there) < len(whole)
    assert len(table(exported, "replay_findings", "killed")) == 0
    version = mlflow.MlflowClient().get_model_version_by_alias("recommender", "overfit")
    assert version.tags["mltrust.replay.killed"] == "running"

    assert started(exported, config).wait(timeout=600) == Exit.BREACH
    assert started(exported, conf_of(exported, "undisturbed")).wait(timeout=600) == Exit.BREACH
    rows = [
        table(exported, "replay_rows", name).drop(columns=["replay_id", "conf_hash", *VOLATILE])
        for name in ("killed", "undisturbed")
    ]
    pd.testing.assert_frame_equal(*rows)
    left, right = (told(exported, name) for name in ("killed", "undisturbed"))
    assert {name: verdict for name, (_, verdict) in left.items()} == {
        name: verdict for name, (_, verdict) in right.items()
    }
    # Sums of doubles, in whatever order partitions came.
    assert {name: value for name, (value, _) in left.items()} == pytest.approx(
        {name: value for name, (value, _) in right.items()}, rel=1e-12, abs=1e-15
    )
