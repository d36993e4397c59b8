"""Maintenance: files are joined, keys audited, and a unit is forgotten, in the tables and on the disk."""

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from jobs import maintain_lakehouse
from mltrust.errors import ConfError
from mltrust.verdicts import Exit
from tests.jobs.test_incremental import Experiment, day, purchases, records
from tests.unit.test_record import v02

AS_OF = datetime(2026, 10, 9, tzinfo=UTC)


@pytest.fixture(scope="module")
def template(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two days in several files and commits, with rejects, built."""
    log = Experiment(spark, tmp_path_factory.mktemp("template"))
    bad = [
        json.dumps(v02(unit_id="u3", traffic="else")).encode(),
        b'{"unit_id": "u33"',
        json.dumps(v02(request_id="u3", traffic="u3")).encode(),  # names u3, and is not of it
        b'\xff {"u3"',
    ]
    log.arrive("a", [*records(5, range(10)), *bad], purchases(5, 5, range(10)))
    more = {"outcome_id": "of-unit", "unit_id": "u3", "name": "purchase", "value": 1, "event_time": 1_791_250_000}
    again = json.dumps(v02(request_id="d5-1", unit_id="u1", event_time="2026-10-06T00:00:00Z")).encode()
    log.arrive("b", [*records(6, range(8)), again], [*purchases(6, 5, [3, 4]), json.dumps(more).encode()])
    log.arrive("c", records(6, [8, 9]), purchases(6, 6, [9]))
    log.build(day(7))
    shutil.rmtree(log.root / "landing")
    return log.root


class Maintained(Experiment):
    def maintain(self, erase_unit: str | None = None, purge_hours: int = 24) -> Exit:
        retention = replace(self.conf.settings.retention, purge_hours=purge_hours)
        conf = replace(self.conf, settings=replace(self.conf.settings, retention=retention))
        return maintain_lakehouse.run(self.spark, conf, AS_OF, erase_unit=erase_unit)

    def revenue(self) -> dict[str, float | None]:
        rows = self.lake.read("unit_days").where("day = DATE '2026-10-05'").collect()
        return {row["unit_id"]: row["revenue"] for row in rows}

    def files(self, table: str) -> list[Path]:
        return list((self.root / "recommendations" / table).rglob("*.parquet"))

    def on_disk(self, text: str) -> set[str]:
        """Tables of which a data file holds the text, whether a version needs the file or not."""
        tables = (path.name for path in (self.root / "recommendations").iterdir() if path.name[0] != "_")
        return {
            table
            for table in tables
            for path in self.files(table)
            if "_delta_log" not in path.parts
            and f'"{text}"' in json.dumps(pq.read_table(path).to_pylist(), default=str)
        }


@pytest.fixture
def log(spark: SparkSession, template: Path, tmp_path: Path) -> Maintained:
    return Maintained(spark, shutil.copytree(template, tmp_path / "lake"))


@pytest.mark.slow
def test_an_erased_unit_is_gone_from_every_table_and_then_from_the_disk(log: Maintained) -> None:
    before = {
        row["unit_id"]: row["revenue"] for row in log.lake.read("unit_days").where("day = '2026-10-05'").collect()
    }
    held = {"inference_log", "outcomes", "inference_log_rejects", "exposures", "unit_days"}
    assert log.on_disk("u3") | log.on_disk("d5-3") >= held - {"inference_log_rejects"}
    assert log.maintain(erase_unit="u3") == Exit.PASS
    begun, record = log.lake.read("erasures").orderBy("revision").collect()
    assert (begun["state"], begun["revision"], begun["removed"]) == ("begun", 0, {})
    assert record["removed"] == {
        "inference_log": 2,
        "outcomes": 3,
        "inference_log_rejects": 2,
        "exposures": 1,
        "unit_days": 4,  # two days, in the experiment and in all requests
    }
    assert (record["state"], record["revision"], record["experiments"]) == ("erased", 1, ["ranker_v2"])
    assert {Path(source).name for source in record["sources"]} == {"a.jsonl", "b.jsonl"}
    assert "u3" not in json.dumps(record.asDict(recursive=True), default=str).replace(record["unit_hash"], "")
    left = [row["raw"] for row in log.lake.read("inference_log_rejects").orderBy("position").collect()]
    assert [left[0], len(left)] == ['{"unit_id": "u33"', 2]
    after = {
        row["unit_id"]: row["revenue"] for row in log.lake.read("unit_days").where("day = '2026-10-05'").collect()
    }
    assert after == {unit: revenue for unit, revenue in before.items() if unit != "u3"}
    said = log.lake.metadata("unit_days", experiment_id="ranker_v2")
    assert said["input_versions"] == log.lake.versions("inference_log", "outcomes")

    assert "inference_log" in log.on_disk("u3")
    log.maintain(purge_hours=0)
    assert log.on_disk("u3") | log.on_disk("d5-3") == set()
    states = [row["state"] for row in log.lake.read("erasures").orderBy("erasure_id", "revision").collect()]
    assert states == ["begun", "erased", "purged"]
    # The change feed ends at the purge: what was built before it is built again in full.
    built_at = log.lake.versions("exposures")
    log.arrive("d", records(6, [11]), [])
    log.build(day(8))
    assert log.lake.versions("exposures") != built_at
    properties = log.spark.sql(f"SHOW TBLPROPERTIES delta.`{log.lake.path('inference_log')}`").collect()
    assert {row["key"]: row["value"] for row in properties}["delta.appendOnly"] == "true"


@pytest.mark.slow
def test_small_files_are_joined_and_what_was_built_stays_built(log: Maintained) -> None:
    tables = log.tables()
    assert log.maintain() == Exit.PASS
    kept = {row["table"]: row for row in log.lake.read("maintenance").collect()}
    assert (kept["inference_log"]["n_files"], kept["inference_log"]["n_rows"]) == (2, 21)
    assert kept["inference_log"]["n_compacted"] == 1
    assert kept["inference_log"]["n_repeated_keys"] == 0
    assert kept["inference_log"]["n_ids_on_several_dates"] == 1
    assert kept["outcomes"]["n_compacted"] >= 1
    versions = log.lake.versions("exposures", "unit_days")
    log.build(day(7))
    assert log.lake.versions("exposures", "unit_days") == versions
    assert log.tables() == tables
    log.maintain()
    again = {row["table"]: row for row in log.lake.read("maintenance").collect()}
    assert again["inference_log"]["n_compacted"] == 0
    assert len(again) == len(kept) + ("maintenance" not in kept)


@pytest.mark.slow
def test_a_key_held_twice_is_a_breach_and_an_id_on_two_dates_is_named(log: Maintained) -> None:
    rows = log.lake.read("inference_log")
    again = rows.where("request_id = 'd5-2'").withColumns(
        {"event_time": F.expr("event_time + interval 1 day"), "event_date": F.expr("event_date + 1")}
    )
    again.unionByName(rows.where("request_id = 'd6-1'")).write.format("delta").mode("append").save(
        log.lake.path("inference_log")
    )
    assert log.maintain() == Exit.BREACH
    [row] = log.lake.read("maintenance").where("table = 'inference_log'").collect()
    assert (row["n_repeated_keys"], row["n_ids_on_several_dates"]) == (1, 2)
    assert (row["verdict"], row["reason"]) == ("breach", "1 keys are held by more than one row")


@pytest.mark.slow
def test_an_erasure_that_died_is_ended_by_the_next(log: Maintained, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*arguments: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as dying:
        dying.setattr("mltrust.build.build_all", die)
        with pytest.raises(RuntimeError, match="killed"):
            log.maintain(erase_unit="u3")
    assert log.lake.read("inference_log").where("unit_id = 'u3'").isEmpty()
    assert log.maintain(erase_unit="u3") == Exit.PASS
    rows = log.lake.read("erasures").orderBy("revision").collect()
    assert [row["state"] for row in rows] == ["begun", "begun", "erased"]
    assert len({row["erasure_id"] for row in rows}) == 1
    assert rows[-1]["experiments"] == ["ranker_v2"]
    assert {"inference_log", "outcomes"} <= rows[-1]["removed"].keys()
    assert {Path(source).name for source in rows[-1]["sources"]} >= {"a.jsonl", "b.jsonl"}
    assert "u3" not in {row["unit_id"] for row in log.lake.read("exposures").collect()}


@pytest.mark.slow
def test_a_request_id_that_two_units_used_is_erased_of_one(log: Maintained) -> None:
    """d5-1 is a request of u1 on two days; here u2 has used it as well."""
    shared = json.dumps(v02(request_id="d5-1", unit_id="u2", event_time="2026-10-07T00:00:00Z")).encode()
    log.arrive("shared", [shared], [])
    log.maintain(erase_unit="u1")
    kept = log.lake.read("inference_log").where("request_id = 'd5-1'").collect()
    assert [row["unit_id"] for row in kept] == ["u2"]


@pytest.mark.parametrize("nothing", ["", "  "])
def test_erasing_no_unit_is_refused(spark: SparkSession, tmp_path: Path, nothing: str) -> None:
    with pytest.raises(ConfError, match="--erase-unit: given nothing"):
        Maintained(spark, tmp_path).maintain(erase_unit=nothing)
