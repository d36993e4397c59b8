"""build_units after more has arrived: what it reads, and that it comes to what a full build makes."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from pyspark.sql import Row, SparkSession

from jobs import analyze_experiment, build_units
from mltrust import conf
from mltrust.conf import Conf
from mltrust.contract import Feature
from mltrust.errors import DataError
from mltrust.verdicts import Exit
from tests.conftest import ROOT, CountFiles
from tests.jobs.test_ingest import Log
from tests.unit.test_record import v02

#: The hash of the shipped experiment's conf where this test changed it.
OF_ANOTHER_START = "of another start"


def day(number: int) -> datetime:
    return datetime(2026, 10, number, tzinfo=UTC)


def records(number: int, ids: Sequence[int]) -> list[bytes]:
    """One request of each unit on a day."""
    arms = ("control", "treatment")
    made = (
        v02(
            request_id=f"d{number}-{at}",
            unit_id=f"u{at}",
            event_time=f"2026-10-{number:02}T0{at % 10}:00:00Z",
            experiments=[{"experiment_id": "ranker_v2", "variant": arms[at % 2]}],
            latency_ms=at + at * number % 7 / 7,
        )
        for at in ids
    )
    return [json.dumps(record).encode() for record in made]


def purchases(number: int, of_day: int, ids: Sequence[int]) -> list[bytes]:
    made = (
        {
            "outcome_id": f"o{number}-{of_day}-{at}",
            "request_id": f"d{of_day}-{at}",
            "name": "purchase",
            "value": at + 0.1,
            "event_time": f"2026-10-{number:02}T12:00:00Z",
        }
        for at in ids
    )
    return [json.dumps(outcome).encode() for outcome in made]


class Experiment(Log):
    """A log with the shipped experiment over it."""

    def __init__(self, spark: SparkSession, root: Path) -> None:
        super().__init__(spark, root)
        shipped = conf.load(ROOT / "conf/experiments/ranker_v2.yaml", "local")
        self.experiment: Conf = replace(shipped, settings=self.conf.settings)

    def arrive(self, name: str, lines: list[bytes], outcomes: list[bytes]) -> None:
        self.land(f"{name}.jsonl", lines)
        self.land(f"{name}.jsonl", outcomes, "outcomes")
        self.ingest()

    def build(self, as_of: datetime, *, full: bool = False) -> None:
        build_units.run(self.spark, self.experiment, as_of, full=full)

    def add_feature(self, name: str) -> None:
        """A newer contract, whose new feature version brings a column."""
        contract = self.conf.contract
        newer = replace(
            contract,
            features=contract.features | {"f03": contract.features["f02"] | {name: Feature("string")}},
            field_numbers=contract.field_numbers | {name: 100},
        )
        self.conf, self.experiment = (replace(each, contract=newer) for each in (self.conf, self.experiment))

    def tables(self) -> dict[str, list[Row]]:
        ordered = {"exposures": ["unit_id"], "unit_days": ["experiment_id", "unit_id", "day"]}
        return {name: self.lake.read(name).orderBy(*key).collect() for name, key in ordered.items()}


@pytest.fixture(scope="module")
def template(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three days, each in files of its own, built day by day until the last."""
    log = Experiment(spark, tmp_path_factory.mktemp("template"))
    for number in (5, 6, 7):
        log.arrive(f"day{number}", records(number, range(10)), purchases(number, number, range(0, 10, 3)))
    for number in (6, 7):
        log.build(day(number))
    shutil.rmtree(log.root / "landing")
    return log.root


@pytest.fixture
def grown(spark: SparkSession, template: Path, tmp_path: Path) -> Experiment:
    return Experiment(spark, shutil.copytree(template, tmp_path / "lake"))


@pytest.fixture
def choosing_files(spark: SparkSession) -> Iterator[None]:
    """As on a cluster: files are chosen by their statistics too, by which those without corrections are known."""
    before = spark.conf.get("spark.databricks.delta.stats.skipping")
    spark.conf.set("spark.databricks.delta.stats.skipping", "true")
    yield
    spark.conf.set("spark.databricks.delta.stats.skipping", str(before))


@pytest.mark.slow
@pytest.mark.usefixtures("choosing_files")
def test_after_one_more_day_only_that_days_files_are_read(grown: Experiment, count_files: CountFiles) -> None:
    tables = {name: grown.root / "recommendations" / name for name in ("inference_log", "outcomes")}
    files = {name: list(path.glob("event_date=*/*.parquet")) for name, path in tables.items()}
    of_day = {name: sum("2026-10-07" in str(path) for path in paths) for name, paths in files.items()}
    assert all(len(paths) == 3 * of_day[name] for name, paths in files.items())
    for path in tables.values():
        for number in (5, 6):
            (path / f"event_date=2026-10-0{number}").rename(path / f"_away{number}")
    with count_files() as read:
        grown.build(day(8))
    assert {name: read.of[name] for name in files} == of_day
    for path in tables.values():
        for number in (5, 6):
            (path / f"_away{number}").rename(path / f"event_date=2026-10-0{number}")
    changed = grown.tables()
    with count_files() as read:
        grown.build(day(8), full=True)
    assert {name: read.of[name] for name in files} == {name: len(paths) for name, paths in files.items()}
    assert grown.tables() == changed
    assert {row["day"].day for row in changed["unit_days"]} == {5, 6, 7}


@pytest.mark.slow
def test_late_rows_corrections_and_a_new_column_are_taken_in(grown: Experiment) -> None:
    grown.build(day(8))
    correction = json.dumps(
        json.loads(purchases(6, 6, [3])[0]) | {"revision": 1, "value": 100.5, "event_time": "2026-10-07T13:00:00Z"}
    )
    grown.add_feature("weather")
    # Late by two days: rows of new and of known units, an outcome of an earlier day's request, a correction.
    grown.arrive(
        "late",
        [*records(5, [10, 11]), *records(8, [1, 2]), *records(5, [1])],
        [*purchases(7, 5, [4, 10]), *purchases(8, 6, [2]), correction.encode()],
    )
    grown.build(day(9))
    said = grown.lake.metadata("unit_days", experiment_id="ranker_v2")
    assert said["as_of"] == "2026-10-09T00:00:00+00:00"
    assert "weather" in grown.lake.read("inference_log").select("features.*").columns
    changed = grown.tables()
    grown.build(day(9), full=True)
    assert grown.tables() == changed
    money = {(row["unit_id"], row["day"].day): row["revenue"] for row in grown.lake.read("unit_days").collect()}
    assert (money["u3", 6], money["u3", 7], money["u4", 7], money["u10", 7], money["u2", 8]) == (
        None,
        100.5 + 3.1,
        4.1,
        10.1,
        2.1,
    )


@pytest.mark.slow
def test_the_past_of_units_is_built_and_adjusts_the_effects(grown: Experiment) -> None:
    shipped = grown.experiment.the_experiment()
    phases = {date(2026, 10, 7): {"control": 1.0, "treatment": 1.0}}
    spec = replace(shipped, phases=phases, pre_days=2, assignment=None)  # these units have no buckets
    grown.experiment = replace(
        grown.experiment, experiment=spec, units_hash=OF_ANOTHER_START, conf_hash=OF_ANOTHER_START
    )
    with pytest.raises(DataError, match="run build_units"):
        analyze_experiment.run(grown.spark, grown.experiment, day(8))
    grown.build(day(8))
    known = {(row["experiment_id"], row["unit_id"], row["day"].day): row for row in grown.tables()["unit_days"]}
    assert {key[2] for key in known if key[0] == "(all)"} == {5, 6, 7}
    assert known["(all)", "u3", 6]["revenue"] == 3.1
    assert {key[2] for key in known if key[0] == "ranker_v2"} == {7}
    assert analyze_experiment.run(grown.spark, grown.experiment, day(8)) == Exit.INCONCLUSIVE
    found = grown.lake.read("experiment_effects").where("slice_key = ''").collect()
    assert {row["method"] for row in found if row["metric"] == "latency"} == {"cuped", "welch"}
    # The latency of these units is nearly their number, on every day.
    [led] = [row for row in found if (row["metric"], row["method"]) == ("latency", "cuped")]
    assert 0.9 < led["variance_reduction"] < 1
    biased = grown.lake.read("experiment_checks").where("`check` = 'pre-exposure bias'").collect()
    assert {row["metric"] for row in biased} > {"past latency_ms", "no past"}
    earlier = replace(spec, pre_days=30)
    grown.experiment = replace(grown.experiment, experiment=earlier)
    with pytest.raises(DataError, match="past of units is not in unit_days from 2026-09-07"):
        analyze_experiment.run(grown.spark, grown.experiment, day(8))


@pytest.mark.slow
def test_after_rows_were_removed_everything_is_built_again(grown: Experiment) -> None:
    grown.spark.sql(
        f"ALTER TABLE delta.`{grown.lake.path('inference_log')}` SET TBLPROPERTIES ('delta.appendOnly' = 'false')"
    )
    grown.spark.sql(f"DELETE FROM delta.`{grown.lake.path('inference_log')}` WHERE unit_id = 'u1'")
    grown.build(day(8))
    assert "u1" not in {row["unit_id"] for row in grown.lake.read("exposures").collect()}
