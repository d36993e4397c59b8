"""Tables: constraints, immutability, writes that replace exactly their rows, and what other readers see."""

import os
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from deltalake import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from mltrust import conf
from mltrust.contract import Contract, Feature, SchemaVersion
from mltrust.errors import DataError, SchemaError
from mltrust.io.schemas import literal, quoted, tables_of
from mltrust.io.tables import Lakehouse
from mltrust.io.unfinished import remove_unfinished
from mltrust.metrics import HistogramColumn, MetricColumns, RequestColumn
from mltrust.record import RecordReader
from tests.conftest import ROOT, CountFiles

CONTRACT, _ = conf.read(Contract, ROOT / "conf/contracts/recommendations.yaml")
ACTIONS = Contract("acts", {"v02": SchemaVersion()}, {"f1": {"x": Feature("double")}}, prediction="action")
COLUMNS = MetricColumns(requests={"c": RequestColumn("c")}, histograms={"h": HistogramColumn("c", 1, 2)})


def lake_at(
    spark: SparkSession, root: Path, contract: Contract = CONTRACT, columns: MetricColumns = COLUMNS
) -> Lakehouse:
    days = {"audit": 400, "rebuild": 30}
    return Lakehouse(spark, contract, root=str(root), metric_columns=columns, keep_days=days)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def lake(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Lakehouse:
    made = lake_at(spark, tmp_path_factory.mktemp("lake"))
    made.ensure(*made.tables)
    return made


def record(lake: Lakehouse, request_id: str = "r1", **changes: object) -> DataFrame:
    row: dict[str, object] = {
        "schema_version": "v02",
        "request_id": request_id,
        "item_id": "",
        "unit_id": "u",
        "event_time": datetime(2026, 10, 5, 23, tzinfo=UTC),
        "event_date": date(2026, 10, 5),
        "model_name": "m",
        "model_version": "1",
        "feature_version": "f02",
        "experiments": [],
        "traffic": "production",
        "status": "ok",
        "error_type": None,
        "prediction_score": 0.5,
        "action": None,
        "propensity": None,
        "latency_ms": None,
        "infra": None,
        "extra": None,
        "content_hash": "h",
        "ingested_at": datetime(2026, 10, 6, tzinfo=UTC),
        "source": "file",
        "ingest_batch": "b",
        "features": None,
    }
    return lake.rows("inference_log", [row | changes])


def test_other_delta_readers_read_every_table_and_see_plain_features(lake: Lakehouse) -> None:
    for name in lake.tables:
        table = DeltaTable(lake.path(name))
        assert table.to_pyarrow_table().num_rows == 0 or name == "inference_log"
        assert table.protocol().reader_features is None
        assert (
            table.metadata().partition_columns == [lake.tables[name].subject or ()][0:1]
            or not lake.tables[name].subject
        )


def test_the_key_columns_of_every_table_are_not_null(lake: Lakehouse) -> None:
    for name, table in lake.tables.items():
        fields = {field.name: field for field in lake.read(name).schema}
        assert set(table.key) <= fields.keys(), name
        not_null = {field.name for field in DeltaTable(lake.path(name)).schema().fields if not field.nullable}
        assert set(table.key) <= not_null, name


def test_features_come_last_in_the_log(lake: Lakehouse) -> None:
    schema = lake.read("inference_log").schema
    assert schema.names[-1] == "features"
    assert [(field.name, field.dataType.simpleString()) for field in schema["features"].dataType] == [  # type: ignore[attr-defined]
        ("device", "string"),
        ("age", "bigint"),
        ("similarity_score", "double"),
        ("region", "string"),
        ("tenure_days", "bigint"),
        ("price", "double"),
    ]


def test_the_log_keeps_changes_for_400_days_and_unit_tables_for_30(lake: Lakehouse) -> None:
    properties = {name: DeltaTable(lake.path(name)).metadata().configuration for name in lake.tables}
    for name in ("inference_log", "outcomes"):
        assert properties[name]["delta.appendOnly"] == "true"
        assert properties[name]["delta.enableChangeDataFeed"] == "true"
    for name, days in (("inference_log", 400), ("experiment_effects", 400), ("unit_days", 30), ("exposures", 30)):
        assert properties[name]["delta.deletedFileRetentionDuration"] == f"interval {days} days"
        assert properties[name]["delta.logRetentionDuration"] == f"interval {days} days"


@pytest.mark.parametrize(
    ("changes", "constraint"),
    [
        ({"event_date": date(2026, 10, 6)}, "event_date_is_the_utc_day"),
        ({"status": "error"}, "score"),
        ({"prediction_score": None}, "score"),
        ({"traffic": "test"}, "traffic"),
        ({"status": "late", "prediction_score": 0.1}, "status"),
        ({"model_name": None}, "model_name"),
    ],
)
def test_the_log_refuses_what_breaks_its_promise(
    lake: Lakehouse, changes: dict[str, object], constraint: str
) -> None:
    given = record(lake).withColumns({name: F.lit(value) for name, value in changes.items()})
    with pytest.raises(Exception, match=f"(?i){constraint}"):
        lake.insert_new(given, "inference_log", [date(2026, 10, 5), date(2026, 10, 6)])


@pytest.mark.slow
def test_the_check_of_the_day_does_not_depend_on_the_zone_of_the_session(
    spark: SparkSession, lake: Lakehouse
) -> None:
    spark.conf.set("spark.sql.session.timeZone", "Asia/Tokyo")
    try:
        lake.insert_new(record(lake, "tokyo"), "inference_log", [date(2026, 10, 5)])
    finally:
        spark.conf.set("spark.sql.session.timeZone", "UTC")
    assert lake.read("inference_log").where("request_id = 'tokyo'").count() == 1


@pytest.mark.slow
def test_a_log_of_actions_takes_a_null_score_only_with_an_action(spark: SparkSession, tmp_path: Path) -> None:
    lake = lake_at(spark, tmp_path, ACTIONS)
    lake.ensure("inference_log")
    with_action = record(lake).withColumns({"prediction_score": F.lit(None), "action": F.lit("item 7")})
    lake.insert_new(with_action, "inference_log", [date(2026, 10, 5)])
    with pytest.raises(Exception, match="score"):
        lake.insert_new(with_action.withColumn("action", F.lit(None)).withColumn("request_id", F.lit("r2")),
                        "inference_log", [date(2026, 10, 5)])  # fmt: skip


def test_the_log_cannot_be_changed(spark: SparkSession, lake: Lakehouse) -> None:
    lake.insert_new(record(lake, "kept"), "inference_log", [date(2026, 10, 5)])
    for change in ("DELETE FROM delta.`{}`", "UPDATE delta.`{}` SET model_version = '2'"):
        with pytest.raises(Exception, match="DELTA_CANNOT_MODIFY_APPEND_ONLY"):
            spark.sql(change.format(lake.path("inference_log")))


def test_a_key_is_inserted_once(lake: Lakehouse) -> None:
    for content in ("one", "two"):
        lake.insert_new(record(lake, "once", content_hash=content), "inference_log", [date(2026, 10, 5)])
    assert [row["content_hash"] for row in lake.read("inference_log").where("request_id = 'once'").collect()] == [
        "one"
    ]


@pytest.fixture
def own_lake(spark: SparkSession, tmp_path: Path) -> Iterator[Lakehouse]:
    return lake_at(spark, tmp_path)


def test_files_read_by_deduplicating_a_date_do_not_grow_with_the_number_of_dates(
    own_lake: Lakehouse, count_files: CountFiles
) -> None:
    lake = own_lake
    lake.ensure("inference_log")
    lake.insert_new(record(lake, "first"), "inference_log", [date(2026, 10, 5)])
    files = []
    for age in (1, 2):
        for day in range(1, age + 1):
            old = record(lake, f"old{age}-{day}").withColumns(
                {
                    "event_date": F.lit(date(2025, 1, day)),
                    "event_time": F.lit(datetime(2025, 1, day, 5, tzinfo=UTC)),
                }
            )
            lake.insert_new(old, "inference_log", [date(2025, 1, day)])
        with count_files() as read:
            lake.insert_new(record(lake, f"next{age}"), "inference_log", [date(2026, 10, 5)])
        files.append(read.of["inference_log"])
    assert files == [1, 2]  # those of its own date, of 2 and of 5
    assert lake.read("inference_log").select(F.input_file_name()).distinct().count() == 6


def test_replace_overwrites_exactly_the_rows_of_its_subject(own_lake: Lakehouse) -> None:
    lake = own_lake
    lake.ensure("exposures")

    def exposure(experiment_id: str, unit: str) -> DataFrame:
        row = {
            "experiment_id": experiment_id,
            "unit_kind": "unit_id",
            "unit_id": unit,
            "first_exposure": datetime(2026, 10, 5, tzinfo=UTC),
            "request_id": "r",
            "item_id": "",
            "model_name": "m",
            "model_version": "1",
            "variant": "control",
            "bucket_id": None,
            "slice_values": {},
            "days": [],
        }
        return lake.rows("exposures", [row])

    for experiment_id, unit in (("a", "1"), ("it's", "2"), ("a", "3")):
        lake.replace(
            exposure(experiment_id, unit), "exposures", {"experiment_id": experiment_id}, {"e": experiment_id}
        )
    kept = {(row["experiment_id"], row["unit_id"]) for row in lake.read("exposures").collect()}
    assert kept == {("a", "3"), ("it's", "2")}
    assert lake.metadata("exposures", e="it's") == {"e": "it's"}
    assert lake.metadata("exposures", e="b") == {}
    assert lake.version("exposures") == 3
    assert [row["unit_id"] for row in lake.read("exposures", 1).collect()] == ["1"]
    with pytest.raises(Exception, match="DELTA_REPLACE_WHERE_MISMATCH"):
        lake.replace(exposure("b", "4"), "exposures", {"experiment_id": "a"})


def unfinished(root: Path) -> Path:
    """The log of a table whose making was cut off some minutes ago."""
    log = root / "recommendations/ingest_batches/_delta_log"
    staged = log / "_staged_commits"
    staged.mkdir(parents=True)
    (log / f".{0:020}.json.5d3c.tmp").write_text("{")
    for folder in (staged, log):
        os.utime(folder, (time.time() - 300,) * 2)
    return log


def test_a_table_is_made_where_the_one_that_made_it_was_killed_before_the_first_commit(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)  # for the commit of a writer that is alive
    lake = lake_at(spark, tmp_path)
    log = unfinished(tmp_path)
    lake.ensure("ingest_batches")
    assert lake.read("ingest_batches").count() == 0
    assert DeltaTable(str(log.parent)).version() == 0
    assert [file.name for file in log.glob(".*.tmp")] == []


def test_the_table_of_a_writer_that_is_alive_is_waited_for(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, log, other = lake_at(spark, tmp_path), unfinished(tmp_path), lake_at(spark, tmp_path / "other")
    other.ensure("ingest_batches")

    def commits(_: float) -> None:
        shutil.rmtree(log.parent)
        shutil.move(other.path("ingest_batches"), log.parent)
        monkeypatch.undo()

    monkeypatch.setattr(time, "sleep", commits)
    lake.ensure("ingest_batches")
    assert [path.name for path in sorted(log.glob("*.json"))] == [f"{0:020}.json"]


def test_a_log_that_is_being_written_to_or_is_gone_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, waited = unfinished(tmp_path), list[float]()

    def written_again(seconds: float) -> None:
        waited.append(seconds)
        os.utime(log)

    os.utime(log)
    monkeypatch.setattr(time, "sleep", written_again)
    remove_unfinished(str(log.parent))
    assert len(list(log.iterdir())) == 2
    assert sum(waited) == pytest.approx(60, abs=1)
    shutil.rmtree(log)
    remove_unfinished(str(log.parent))
    with pytest.raises(
        DataError, match=r"cannot be looked at from here; remove s3://b/t/_delta_log if it holds no 0"
    ):
        remove_unfinished("s3://b/t")


def test_the_commit_of_a_slow_writer_ends_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, waited = unfinished(tmp_path), list[float]()

    def commits(seconds: float) -> None:
        waited.append(seconds)
        if sum(waited) == 3:
            (log / f"{0:020}.json").write_text("{}")

    os.utime(log, (time.time() - 30,) * 2)
    monkeypatch.setattr(time, "sleep", commits)
    remove_unfinished(str(log.parent))
    assert sum(waited) == 3
    assert len(list(log.iterdir())) == 3


def test_a_log_with_a_commit_is_never_removed(tmp_path: Path) -> None:
    log = tmp_path / "recommendations/ingest_batches/_delta_log"
    log.mkdir(parents=True)
    (log / f"{1:020}.json").write_text("{}")
    with pytest.raises(DataError, match=f"is no table though its log holds {1:020}.json"):
        remove_unfinished(str(log.parent))
    assert (log / f"{1:020}.json").exists()


def test_a_newer_contract_adds_its_columns_and_old_rows_have_none(spark: SparkSession, tmp_path: Path) -> None:
    old = Contract("log", {"v02": SchemaVersion()}, {"f1": {"x": Feature("long")}})
    new = Contract("log", {"v02": SchemaVersion()}, {"f1": {"x": Feature("long")}, "f2": {"y": Feature("string")}})
    before = lake_at(spark, tmp_path, old)
    before.ensure("inference_log")
    before.insert_new(record(before, features=(7,)), "inference_log", [date(2026, 10, 5)])
    after = lake_at(spark, tmp_path, new)
    after.ensure("inference_log")
    after.ensure("inference_log")
    assert [tuple(row["features"]) for row in after.read("inference_log").collect()] == [(7, None)]
    assert after.version("inference_log") == 2  # created, inserted, widened once


def test_a_feature_that_changed_its_type_is_refused_with_the_fix(spark: SparkSession, tmp_path: Path) -> None:
    lake_at(spark, tmp_path, Contract("log", {"v02": SchemaVersion()}, {"f": {"x": Feature("long")}})).ensure(
        "inference_log"
    )
    changed = Contract("log", {"v02": SchemaVersion()}, {"f": {"x": Feature("string")}})
    with pytest.raises(SchemaError, match=r"`features`\.`x` is bigint, declared as string; .* takes a new name"):
        lake_at(spark, tmp_path, changed).ensure("inference_log")


def test_rows_with_other_columns_are_refused_by_name(lake: Lakehouse) -> None:
    with pytest.raises(SchemaError, match=r"missing \['model_name'\], unknown \['modelname'\]"):
        lake.conform(record(lake).withColumnRenamed("model_name", "modelname"), "inference_log")


def test_a_missing_table_says_what_makes_it(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unit_days does not exist; build_units makes it"):
        lake_at(spark, tmp_path).require("unit_days", made_by="build_units")


def test_nan_becomes_null(lake: Lakehouse) -> None:
    [row] = record(lake, latency_ms=float("nan")).select("latency_ms").collect()
    assert row["latency_ms"] is None


def test_text_cannot_break_out_of_sql(spark: SparkSession) -> None:
    for text in ("it's", "back\\slash", "`tick`", "a'; DROP TABLE x; --"):
        [row] = spark.sql(f"SELECT {literal(text)} AS {quoted(text)}").collect()
        assert row.asDict() == {text: text}


def test_every_column_that_the_reader_gives_has_its_place_in_the_table(lake: Lakehouse) -> None:
    raw = (
        b'{"schema_version": "v02", "request_id": "r", "event_time": 1791158400, "model_name": "m", '
        b'"model_version": "1", "feature_version": "f02", "traffic": "shadow", "status": "error"}'
    )
    row = RecordReader(CONTRACT).read(raw)
    assert isinstance(row, dict)
    arrival = {"ingested_at", "source", "ingest_batch"}
    assert row.keys() | arrival == set(lake.read("inference_log").columns)


def test_every_log_has_the_same_tables() -> None:
    assert tables_of(ACTIONS, MetricColumns()).keys() == tables_of(CONTRACT, MetricColumns()).keys()
