"""Open Bandit from landing files to a verdict: two policies that a shop really served side by side."""

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import mlflow
import pytest
from pyspark.sql import Row, SparkSession

from jobs import analyze_experiment, build_units, ingest_logs
from mltrust import conf as confs
from mltrust import runtime
from mltrust.conf import Conf
from mltrust.io.tables import Lakehouse
from mltrust.verdicts import Exit, Verdict
from tests.conftest import ROOT
from tests.real import open_bandit

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not os.environ.get("MLTRUST_DATA"), reason="MLTRUST_DATA is unset: it names the folder of the real data"
    ),
    # MLflow's mapping of its own database, made at the first connection.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]

CONF = ROOT / "tests" / "real" / "conf"
AS_OF = datetime(2019, 12, 1, tzinfo=UTC)


class Ran(NamedTuple):
    """What the three jobs left, and their exit codes in order."""

    lake: Lakehouse
    exits: tuple[Exit, Exit, Exit]


@pytest.fixture(scope="module")
def data() -> Path:
    return Path(os.environ["MLTRUST_DATA"], "open_bandit_men")


@pytest.fixture(scope="module")
def ran(spark: SparkSession, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    root = tmp_path_factory.mktemp("open_bandit")
    contract = _conf(f"contracts/{open_bandit.LOG}.yaml", root)
    experiment = _conf(f"experiments/{open_bandit.EXPERIMENT}.yaml", root)
    open_bandit.land(data, root / "landing")
    before = mlflow.get_tracking_uri()
    exits = (
        ingest_logs.run(spark, contract, AS_OF),
        build_units.run(spark, experiment, AS_OF),
        analyze_experiment.run(spark, experiment, AS_OF),
    )
    yield Ran(runtime.lakehouse(spark, experiment), exits)
    mlflow.set_tracking_uri(before)


def _conf(file: str, root: Path) -> Conf:
    """The conf, with everything that it writes in `root`."""
    conf = confs.load(CONF / file, "local")
    tracking = replace(conf.settings.tracking, uri=f"sqlite:///{root}/mlflow.db", artifacts=str(root / "artifacts"))
    return replace(conf, settings=replace(conf.settings, root=str(root), tracking=tracking))


def effects(ran: Ran) -> dict[tuple[str, str], Row]:
    """The leading effects by slice."""
    leading = ran.lake.read("experiment_effects").where("role != 'diagnostic'").collect()
    return {(row["slice_key"], row["slice_value"]): row for row in leading}


def test_every_impression_and_every_click_is_accepted_and_the_books_balance(ran: Ran) -> None:
    books = ran.lake.read("ingest_batches").collect()
    assert all(book["records"] == book["accepted"] + book["rejected"] + book["duplicates"] for book in books)
    entered = {(book["kind"], Path(book["source"]).stem): (book["records"], book["accepted"]) for book in books}
    assert entered == {
        ("inference_log", "random-men"): (10_000, 10_000),
        ("inference_log", "bts-men"): (10_000, 10_000),
        ("outcomes", "random-men"): (46, 46),
        ("outcomes", "bts-men"): (69, 69),
    }
    for table, n in {"inference_log": 20_000, "outcomes": 46 + 69}.items():
        assert ran.lake.read(table).count() == n
        assert ran.lake.read(f"{table}_rejects").isEmpty()


def test_the_log_holds_actions_with_their_propensities_and_no_score(ran: Ran) -> None:
    log = ran.lake.read("inference_log")
    assert log.where("prediction_score IS NOT NULL OR action IS NULL OR propensity IS NULL").isEmpty()
    assert {row["action"] for row in log.select("action").distinct().collect()} == {str(item) for item in range(34)}
    # The random policy shows each of the 34 items of the campaign alike.
    of_random = log.where("model_version = 'random'").select("propensity").distinct().collect()
    assert [row["propensity"] for row in of_random] == [1 / 34]


def test_every_impression_is_a_unit_and_every_click_finds_its_own(ran: Ran) -> None:
    built = ran.lake.metadata("unit_days", experiment_id=open_bandit.EXPERIMENT)
    assert built["left_out"] == {"without_unit": 0, "without_variant": 0}
    assert ran.lake.read("exposures").count() == 20_000
    clicked = ran.lake.read("unit_days").where("clicks IS NOT NULL").groupBy("clicks").count().collect()
    assert [tuple(row) for row in clicked] == [(1.0, 115)]


def test_thompson_sampling_gets_more_clicks_than_random(ran: Ran) -> None:
    overall = effects(ran)["", ""]
    assert (overall["metric"], overall["control"], overall["treatment"]) == ("ctr", "random", "bts")
    assert (overall["n_control"], overall["n_treatment"]) == (10_000, 10_000)
    assert (overall["n_immature"], overall["n_missing"]) == (0, 0)
    # 1e-12: the shares are 46 and 69 in 10,000, whatever the order in which they were summed.
    assert overall["mean_control"] == pytest.approx(46 / 10_000, rel=1e-12)
    assert overall["mean_treatment"] == pytest.approx(69 / 10_000, rel=1e-12)
    # The pooled two-sample z test of these counts; half of the last digit given.
    assert overall["statistic"] == pytest.approx(2.15095, abs=5e-6)
    assert overall["pvalue"] == pytest.approx(0.03148, abs=5e-6)
    assert overall["verdict"] == Verdict.PASS
    assert overall["decides"]


def test_positions_are_slices_that_add_up_to_the_arms(ran: Ran) -> None:
    found = effects(ran)
    found.pop(("", ""))
    counted = {
        where: (
            row["n_control"],
            round(row["n_control"] * row["mean_control"]),
            row["n_treatment"],
            round(row["n_treatment"] * row["mean_treatment"]),
        )
        for where, row in found.items()
    }
    # Impressions and clicks of random, then of bts, as counted in the files.
    assert counted == {
        ("position", "1"): (3284, 10, 3339, 30),
        ("position", "2"): (3388, 22, 3262, 21),
        ("position", "3"): (3328, 14, 3399, 18),
    }
    assert [sum(column) for column in zip(*counted.values(), strict=True)] == [10_000, 46, 10_000, 69]


def test_the_exit_code_is_that_of_the_goal_as_no_check_fails(ran: Ran) -> None:
    checks = ran.lake.read("experiment_checks").collect()
    assert not [row for row in checks if row["verdict"] == Verdict.BREACH]
    assert ran.exits == (Exit.PASS, Exit.PASS, Exit.PASS)
