"""The lakehouse: every table with its key and constraints, and the few ways in which tables are read and written.

SQL text is made here and nowhere else. What immutability rests on: `inference_log` and `outcomes` are
appendOnly and written by insert-only MERGE on their keys.
"""

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import reduce
from pathlib import Path
from typing import Any, Literal, TypeVar

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import DataType, StructField, StructType

from mltrust.contract import Contract, FeatureType
from mltrust.errors import DataError, SchemaError

T = TypeVar("T")
Versions = dict[str, int]
Keep = Literal["audit", "rebuild"]

_SQL_TYPES: Mapping[FeatureType, str] = {
    "boolean": "BOOLEAN",
    "long": "BIGINT",
    "double": "DOUBLE",
    "string": "STRING",
    "timestamp": "TIMESTAMP",
}
_ARRIVAL = """
    content_hash STRING NOT NULL, ingested_at TIMESTAMP NOT NULL, source STRING NOT NULL,
    ingest_batch STRING NOT NULL"""
_RECORD = f"""
    schema_version STRING NOT NULL, request_id STRING NOT NULL, item_id STRING NOT NULL, unit_id STRING,
    event_time TIMESTAMP NOT NULL, event_date DATE NOT NULL,
    model_name STRING NOT NULL, model_version STRING NOT NULL, feature_version STRING NOT NULL,
    experiments ARRAY<STRUCT<experiment_id: STRING, bucket_id: STRING, variant: STRING>> NOT NULL,
    traffic STRING NOT NULL, status STRING NOT NULL, error_type STRING,
    prediction_score DOUBLE, action STRING, propensity DOUBLE, latency_ms DOUBLE, infra MAP<STRING, DOUBLE>,
    extra STRING,{_ARRIVAL}"""
_OUTCOME = f"""
    outcome_id STRING NOT NULL, revision BIGINT NOT NULL, request_id STRING, item_id STRING, unit_id STRING,
    name STRING NOT NULL, value DOUBLE, event_time TIMESTAMP NOT NULL, event_date DATE NOT NULL,
    extra STRING,{_ARRIVAL}"""
_REJECT = """
    ingest_batch STRING NOT NULL, source STRING NOT NULL, position BIGINT NOT NULL,
    raw STRING NOT NULL, raw_encoding STRING NOT NULL, reason_code STRING NOT NULL, reason STRING NOT NULL,
    model_name STRING, model_version STRING, experiment_id STRING, bucket_id STRING,
    ingested_at TIMESTAMP NOT NULL"""
_RESULT = """
    as_of TIMESTAMP NOT NULL, run_id STRING NOT NULL, conf_hash STRING NOT NULL,
    input_versions MAP<STRING, BIGINT> NOT NULL, written_at TIMESTAMP NOT NULL"""
_SLICE = "slice_key STRING NOT NULL, slice_value STRING NOT NULL"
_WINDOW = "window_start TIMESTAMP NOT NULL, window_end TIMESTAMP NOT NULL"
_DAY_OF_TIME = "unix_date(event_date) = floor(unix_micros(event_time) / 86400000000)"
_DRIFT_KEY = ("model_name", "model_version", "traffic", "arm", "window_start", "window_end", "slice_key",
              "slice_value", "column")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a log. `key` names one row; `keep` which retention it has; `subject` its partition column.

    `order` are the columns of its Z-order: a search for one of them passes over files that cannot hold it.
    """

    name: str
    columns: str
    key: tuple[str, ...]
    subject: str | None = None
    checks: tuple[tuple[str, str], ...] = ()
    append_only: bool = False
    keep: Keep = "audit"
    order: tuple[str, ...] = ()


def _result(name: str, key: tuple[str, ...], columns: str, subject: str) -> Table:
    return Table(name, f"{columns}, {_RESULT}", key, subject)


_BOOKS = Table(
    "ingest_batches",
    """ingest_batch STRING NOT NULL, kind STRING NOT NULL, source STRING NOT NULL,
    file_size BIGINT NOT NULL, file_modified TIMESTAMP NOT NULL, records BIGINT NOT NULL,
    accepted BIGINT NOT NULL, rejected BIGINT NOT NULL, duplicates BIGINT NOT NULL,
    heartbeats BIGINT NOT NULL, ingested_at TIMESTAMP NOT NULL""",
    key=("ingest_batch", "source"),
    checks=(("balanced", "records = accepted + rejected + duplicates + heartbeats"),),
)
_HEARTBEATS = Table(
    "heartbeats",
    """producer_id STRING NOT NULL, sequence BIGINT NOT NULL, model_name STRING NOT NULL,
    model_version STRING NOT NULL, window_start TIMESTAMP NOT NULL, event_time TIMESTAMP NOT NULL,
    event_date DATE NOT NULL, logged BIGINT NOT NULL, written BIGINT NOT NULL, dropped BIGINT NOT NULL,
    invalid BIGINT NOT NULL, spilled BIGINT NOT NULL, host STRING,
    ingested_at TIMESTAMP NOT NULL, source STRING NOT NULL, ingest_batch STRING NOT NULL""",
    key=("event_date", "producer_id", "sequence", "model_name", "model_version"),
    subject="event_date",
    checks=(("event_date_is_the_utc_day", _DAY_OF_TIME),),
    append_only=True,
)
_EFFECTS = _result(
    "experiment_effects",
    ("experiment_id", "as_of", "treatment", "metric", "slice_key", "slice_value", "method"),
    f"""experiment_id STRING NOT NULL, treatment STRING NOT NULL, metric STRING NOT NULL, {_SLICE},
    method STRING NOT NULL, role STRING NOT NULL, direction STRING NOT NULL, control STRING NOT NULL,
    n_control BIGINT NOT NULL, n_treatment BIGINT NOT NULL,
    n_immature BIGINT NOT NULL, n_missing BIGINT NOT NULL,
    mean_control DOUBLE, mean_treatment DOUBLE, effect DOUBLE, std_error DOUBLE, df DOUBLE, statistic DOUBLE,
    pvalue DOUBLE, qvalue DOUBLE, n_family BIGINT NOT NULL, ci_low DOUBLE, ci_high DOUBLE,
    rel_effect DOUBLE, rel_ci_low DOUBLE, rel_ci_high DOUBLE, non_inferiority_pvalue DOUBLE,
    alpha DOUBLE NOT NULL, verdict STRING NOT NULL, reason STRING NOT NULL, decides BOOLEAN NOT NULL""",
    "experiment_id",
)
_CHECKS = _result(
    "experiment_checks",
    ("experiment_id", "as_of", "treatment", "check", "metric", "slice_key", "slice_value", "method"),
    f"""experiment_id STRING NOT NULL, treatment STRING NOT NULL, `check` STRING NOT NULL, metric STRING NOT NULL,
    {_SLICE}, method STRING NOT NULL, n_units BIGINT NOT NULL, value DOUBLE, statistic DOUBLE, df DOUBLE,
    pvalue DOUBLE, qvalue DOUBLE, n_family BIGINT NOT NULL, threshold DOUBLE, verdict STRING NOT NULL,
    reason STRING NOT NULL, decides BOOLEAN NOT NULL""",
    "experiment_id",
)
_ERASURES = Table(
    "erasures",
    f"""erasure_id STRING NOT NULL, revision BIGINT NOT NULL, unit_hash STRING NOT NULL, state STRING NOT NULL,
    removed MAP<STRING, BIGINT> NOT NULL, versions_after MAP<STRING, BIGINT> NOT NULL,
    sources ARRAY<STRING> NOT NULL, experiments ARRAY<STRING> NOT NULL, {_RESULT}""",
    key=("erasure_id", "revision"),
    append_only=True,
)
_MAINTENANCE = _result(
    "maintenance",
    ("table", "as_of"),
    """table STRING NOT NULL, n_rows BIGINT NOT NULL, n_files BIGINT NOT NULL, n_small_files BIGINT NOT NULL,
    n_bytes BIGINT NOT NULL, n_compacted BIGINT NOT NULL, n_repeated_keys BIGINT, n_ids_on_several_dates BIGINT,
    verdict STRING NOT NULL, reason STRING NOT NULL""",
    "table",
)
_MODEL = "model_name STRING NOT NULL, model_version STRING NOT NULL"
_LAGS = "lag_p50 DOUBLE, lag_p95 DOUBLE, lag_max DOUBLE"
_LOG_HEALTH = _result(
    "log_health",
    ("model_name", "model_version", "day"),
    f"""{_MODEL}, day DATE NOT NULL, n_records BIGINT NOT NULL, n_requests BIGINT NOT NULL,
    n_production BIGINT NOT NULL, n_shadow BIGINT NOT NULL, n_errors BIGINT NOT NULL, n_rejected BIGINT NOT NULL,
    rejects MAP<STRING, BIGINT> NOT NULL, n_logged BIGINT NOT NULL, n_dropped BIGINT NOT NULL,
    n_invalid BIGINT NOT NULL, n_spilled BIGINT NOT NULL, n_producers BIGINT NOT NULL,
    schema_versions ARRAY<STRING> NOT NULL, feature_versions ARRAY<STRING> NOT NULL, {_LAGS},
    verdict STRING NOT NULL, reason STRING NOT NULL""",
    "day",
)
_OUTCOME_HEALTH = _result(
    "outcome_health",
    ("name", "day"),
    f"""name STRING NOT NULL, day DATE NOT NULL, n_outcomes BIGINT NOT NULL, n_corrected BIGINT NOT NULL,
    n_retracted BIGINT NOT NULL, n_by_request BIGINT NOT NULL, n_by_unit BIGINT NOT NULL,
    n_unmatched BIGINT NOT NULL, {_LAGS}""",
    "day",
)
_LATER = (
    Table(
        "drift_profile",
        f"""{_MODEL}, traffic STRING NOT NULL, arm STRING NOT NULL, {_WINDOW}, {_SLICE}, `column` STRING NOT NULL,
        edges_version STRING NOT NULL, n_units BIGINT NOT NULL, counts ARRAY<ARRAY<BIGINT>> NOT NULL, {_RESULT}""",
        (*_DRIFT_KEY, "edges_version"),
        subject="model_name",
        keep="rebuild",
    ),
    _result(
        "drift_findings",
        (*_DRIFT_KEY, "edges_version", "reference", "measure"),
        f"""{_MODEL}, traffic STRING NOT NULL, arm STRING NOT NULL, {_WINDOW}, {_SLICE}, `column` STRING NOT NULL,
        edges_version STRING NOT NULL, reference STRING NOT NULL, measure STRING NOT NULL,
        n_reference BIGINT NOT NULL, n_current BIGINT NOT NULL, value DOUBLE, statistic DOUBLE, df DOUBLE,
        design_effect DOUBLE, pvalue DOUBLE, qvalue DOUBLE, n_family BIGINT NOT NULL, threshold DOUBLE,
        verdict STRING NOT NULL, reason STRING NOT NULL""",
        "model_name",
    ),
    _result(
        "performance",
        (
            "model_name",
            "model_version",
            "arm",
            "window_start",
            "window_end",
            "slice_key",
            "slice_value",
            "metric",
        ),
        f"""{_MODEL}, arm STRING NOT NULL, {_WINDOW}, {_SLICE}, metric STRING NOT NULL, n_units BIGINT NOT NULL,
        n_predictions BIGINT NOT NULL, value DOUBLE, std_error DOUBLE, verdict STRING NOT NULL,
        reason STRING NOT NULL""",
        "model_name",
    ),
    _result(
        "replay_sets",
        ("replay_id", "request_id", "item_id"),
        """replay_id STRING NOT NULL, request_id STRING NOT NULL, item_id STRING NOT NULL,
        record STRING NOT NULL, weight DOUBLE NOT NULL, content_hash STRING NOT NULL""",
        "replay_id",
    ),
    _result(
        "replay_findings",
        ("replay_id", "model_version", "slice_key", "slice_value", "measure"),
        f"""replay_id STRING NOT NULL, {_MODEL}, {_SLICE}, measure STRING NOT NULL, n_rows BIGINT NOT NULL,
        value DOUBLE, std_error DOUBLE, pvalue DOUBLE, qvalue DOUBLE, n_family BIGINT NOT NULL, threshold DOUBLE,
        verdict STRING NOT NULL, reason STRING NOT NULL""",
        "replay_id",
    ),
    _result(
        "replay_rows",
        ("replay_id", "request_id", "item_id", "model_version", "perturbation"),
        f"""replay_id STRING NOT NULL, request_id STRING NOT NULL, item_id STRING NOT NULL, {_MODEL},
        perturbation STRING NOT NULL, logged DOUBLE, replayed DOUBLE, error STRING""",
        "replay_id",
    ),
    _result(
        "monitor_series",
        ("model_name", "model_version", "arm", "metric", "slice_key", "slice_value", "bucket_start"),
        f"""{_MODEL}, arm STRING NOT NULL, metric STRING NOT NULL, {_SLICE}, bucket_start TIMESTAMP NOT NULL,
        n_requests BIGINT NOT NULL, value DOUBLE, std_error DOUBLE""",
        "model_name",
    ),
    _result(
        "incidents",
        ("incident_id", "revision"),
        f"""incident_id STRING NOT NULL, revision BIGINT NOT NULL, {_MODEL}, {_SLICE}, metric STRING NOT NULL,
        state STRING NOT NULL, severity STRING NOT NULL, opened_at TIMESTAMP NOT NULL, recovered_at TIMESTAMP,
        value DOUBLE, threshold DOUBLE, contributors STRING, reason STRING NOT NULL""",
        "model_name",
    ),
    _result(
        "decisions",
        ("decision_id", "revision"),
        f"""decision_id STRING NOT NULL, revision BIGINT NOT NULL, incident_id STRING, {_MODEL},
        rollback_rule STRING NOT NULL, action STRING NOT NULL, state STRING NOT NULL, dry_run BOOLEAN NOT NULL,
        decided_at TIMESTAMP NOT NULL, reason STRING NOT NULL""",
        "model_name",
    ),
)


def tables_of(contract: Contract, metric_columns: Sequence[str] = ()) -> dict[str, Table]:
    """All tables of a log by name. Features and metric columns give two of them their last columns."""
    features = ", ".join(f"{quoted(name)}: {_SQL_TYPES[kind]}" for name, kind in contract.feature_types().items())
    scored = "prediction_score IS NOT NULL"
    if contract.prediction == "action":
        scored += " OR action IS NOT NULL"
    tables = (
        Table(
            "inference_log",
            # Features come last: Delta keeps statistics of the first 32 leaf columns.
            f"{_RECORD}, features STRUCT<{features}>",
            ("event_date", "request_id", "model_name", "model_version", "traffic", "item_id"),
            subject="event_date",
            checks=(
                ("event_date_is_the_utc_day", _DAY_OF_TIME),
                ("score", f"CASE WHEN status = 'error' THEN prediction_score IS NULL ELSE {scored} END"),
                ("traffic", "traffic IN ('production', 'shadow')"),
                ("status", "status IN ('ok', 'error')"),
            ),
            append_only=True,
            order=("request_id", "unit_id"),
        ),
        Table("inference_log_rejects", _REJECT, ("ingest_batch", "source", "position")),
        Table(
            "outcomes",
            _OUTCOME,
            ("event_date", "outcome_id", "revision"),
            subject="event_date",
            checks=(
                ("event_date_is_the_utc_day", _DAY_OF_TIME),
                ("keyed", "request_id IS NOT NULL OR unit_id IS NOT NULL"),
            ),
            append_only=True,
            order=("request_id", "outcome_id"),
        ),
        Table("outcomes_rejects", _REJECT, ("ingest_batch", "source", "position")),
        _BOOKS,
        _HEARTBEATS,
        Table(
            "exposures",
            """experiment_id STRING NOT NULL, unit_kind STRING NOT NULL, unit_id STRING NOT NULL,
            first_exposure TIMESTAMP NOT NULL, request_id STRING NOT NULL, item_id STRING NOT NULL,
            model_name STRING NOT NULL, model_version STRING NOT NULL, variant STRING NOT NULL,
            slice_values MAP<STRING, STRING> NOT NULL,
            days ARRAY<STRUCT<day: DATE, variant: STRING, slice_values: MAP<STRING, STRING>>> NOT NULL""",
            ("experiment_id", "unit_kind", "unit_id"),
            subject="experiment_id",
            keep="rebuild",
            order=("unit_id",),
        ),
        Table(
            "unit_days",
            ", ".join(
                (
                    "experiment_id STRING NOT NULL, unit_kind STRING NOT NULL, unit_id STRING NOT NULL, "
                    "day DATE NOT NULL, n_requests BIGINT NOT NULL, n_predictions BIGINT NOT NULL",
                    *(f"{quoted(name)} DOUBLE" for name in metric_columns),
                )
            ),
            ("experiment_id", "unit_kind", "unit_id", "day"),
            subject="experiment_id",
            keep="rebuild",
            order=("day",),
        ),
        Table(
            "training_sets",
            f"""training_set_id STRING NOT NULL, event_date DATE NOT NULL, request_id STRING NOT NULL, {_MODEL},
            item_id STRING NOT NULL, event_time TIMESTAMP NOT NULL, unit_id STRING, feature_version STRING NOT NULL,
            prediction_score DOUBLE, action STRING, propensity DOUBLE, label DOUBLE NOT NULL,
            n_outcomes BIGINT NOT NULL, fold STRING, {_RESULT}, features STRUCT<{features}>""",
            ("training_set_id", "event_date", "request_id", "model_name", "model_version", "item_id"),
            subject="training_set_id",
        ),
        _EFFECTS,
        _CHECKS,
        _LOG_HEALTH,
        _OUTCOME_HEALTH,
        _ERASURES,
        _MAINTENANCE,
        *_LATER,
    )
    return {table.name: table for table in tables}


def quoted(name: str) -> str:
    """An identifier for SQL text."""
    return "`" + name.replace("`", "``") + "`"


def literal(value: str) -> str:
    """A string literal for SQL text."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


class Lakehouse:
    """The tables of one log in one session."""

    def __init__(
        self,
        spark: SparkSession,
        contract: Contract,
        *,
        root: str,
        catalog: str | None = None,
        metric_columns: Sequence[str] = (),
        keep_days: Mapping[Keep, int],
    ) -> None:
        self.spark = spark
        self.tables = tables_of(contract, metric_columns)
        self._log = contract.log
        self._catalog = catalog
        self._root = absolute(root)
        self._keep_days = keep_days

    def folder(self, name: str) -> str:
        """A folder of this log for what is no table, as checkpoints."""
        return f"{self._root}/{self._log}/_{name}"

    def path(self, name: str) -> str:
        """Where a table lies, for people and for readers other than Spark."""
        return f"{self._catalog}.{self._log}_{name}" if self._catalog else f"{self._root}/{self._log}/{name}"

    def _sql_name(self, name: str) -> str:
        where = self.path(name)
        return ".".join(map(quoted, where.split("."))) if self._catalog else f"delta.{quoted(where)}"

    def ensure(self, *names: str) -> None:
        """Creates the tables that are missing, and adds the columns that a newer contract or metric brings.

        Raises SchemaError where a column of the table has another type.
        """
        for name in names:
            table = self.tables[name]
            retried(lambda table=table: self.spark.sql(self._create(table)))  # type: ignore[misc]
            retried(lambda table=table: self._widen(table))  # type: ignore[misc]

    def _create(self, table: Table) -> str:
        kept = f"interval {self._keep_days[table.keep]} days"
        properties = {
            "delta.logRetentionDuration": kept,
            "delta.deletedFileRetentionDuration": kept,
            **({"delta.appendOnly": "true", "delta.enableChangeDataFeed": "true"} if table.append_only else {}),
            **{f"delta.constraints.{name}": check for name, check in table.checks},
        }
        listed = ", ".join(f"{literal(key)} = {literal(value)}" for key, value in properties.items())
        partition = f" PARTITIONED BY ({quoted(table.subject)})" if table.subject else ""
        return (
            f"CREATE TABLE IF NOT EXISTS {self._sql_name(table.name)} ({table.columns}) USING delta"
            f"{partition} TBLPROPERTIES ({listed})"
        )

    def _widen(self, table: Table) -> None:
        declared = _struct(table.columns)
        added = list(_additions(declared, self.read(table.name).schema, where=self.path(table.name)))
        if added:
            columns = ", ".join(f"{column} {kind.simpleString()}" for column, kind in added)
            self.spark.sql(f"ALTER TABLE {self._sql_name(table.name)} ADD COLUMNS ({columns})")

    def exists(self, name: str) -> bool:
        try:
            _ = self.read(name).schema  # a Connect session looks only now
        except Exception as error:
            if any(code in str(error) for code in _NO_TABLE):
                return False
            raise
        return True

    def require(self, *names: str, made_by: str) -> None:
        """Raises DataError where a table that this job reads is not there yet."""
        for name in names:
            if not self.exists(name):
                raise DataError(f"table {self.path(name)} does not exist; {made_by} makes it")

    def version(self, name: str) -> int:
        """The newest version of a table."""
        history = self.spark.sql(f"DESCRIBE HISTORY {self._sql_name(name)} LIMIT 1")
        return int(history.first()["version"])  # type: ignore[index]

    def versions(self, *names: str) -> Versions:
        return {name: self.version(name) for name in names}

    def metadata(self, name: str, **wanted: str) -> dict[str, object]:
        """userMetadata of the newest commit that carries the `wanted` entries; empty where there is none."""
        return next((found for _, found in self._commits(name, wanted)), {})

    def version_with(self, name: str, **wanted: str) -> int:
        """The version that the newest commit with the `wanted` entries made; DataError where there is none."""
        for version, _ in self._commits(name, wanted):
            return version
        raise DataError(f"{self.path(name)} has no commit with {wanted}")

    def _commits(self, name: str, wanted: Mapping[str, str]) -> Iterator[tuple[int, dict[str, object]]]:
        """Versions and userMetadata of the commits that carry the `wanted` entries, the newest first."""
        history = self.spark.sql(f"DESCRIBE HISTORY {self._sql_name(name)}").select("version", "userMetadata")
        for row in history.where("userMetadata IS NOT NULL").collect():
            found = json.loads(row["userMetadata"])
            if isinstance(found, dict) and wanted.items() <= found.items():
                yield row["version"], found

    def read(self, name: str, version: int | None = None, where: Mapping[str, str] | None = None) -> DataFrame:
        """A table at a version (None: its newest), of it the rows with the given values."""
        reader = self.spark.read.format("delta")
        if version is not None:
            reader = reader.option("versionAsOf", version)
        rows = reader.table(self.path(name)) if self._catalog else reader.load(self.path(name))
        return reduce(lambda left, item: left.where(F.col(item[0]) == item[1]), (where or {}).items(), rows)

    def arrived(self, name: str, after: int, upto: int) -> DataFrame | None:
        """Rows that were inserted after one version and up to another, by the table's change feed.

        None where rows were also removed or the table was made anew between: what was built must be built again.
        """
        if upto < after or not self._only_appended(name, after):
            return None
        if upto == after:
            return self.read(name, upto).where(F.lit(False))
        changes = self.spark.read.format("delta").option("readChangeFeed", "true")
        changes = changes.option("startingVersion", after + 1).option("endingVersion", upto)
        rows = changes.table(self.path(name)) if self._catalog else changes.load(self.path(name))
        inserted = rows.where(F.col("_change_type") == "insert")
        return inserted.drop("_change_type", "_commit_version", "_commit_timestamp")

    def _only_appended(self, name: str, after: int) -> bool:
        """Whether every commit after a version left the rows that were there, and their files can still be read."""
        purged = self.spark.sql(f"SHOW TBLPROPERTIES {self._sql_name(name)}").where(F.col("key") == _PURGED)
        if any(int(row["value"]) >= after for row in purged.collect()):
            return False
        history = self.spark.sql(f"DESCRIBE HISTORY {self._sql_name(name)}").where(F.col("version") > after)
        commits = history.select("operation", "operationParameters", "operationMetrics").collect()
        return all(_appends(row.asDict()) for row in commits)

    def rows(self, name: str, rows: Sequence[Mapping[str, object]]) -> DataFrame:
        """A frame of few rows in the table's schema; a nan becomes NULL, as it must not reach a table."""
        schema = self.read(name).schema
        plain = [tuple(_null_for_nan(row[column]) for column in schema.names) for row in rows]
        return self.spark.createDataFrame(plain, schema)

    def insert_new(self, rows: DataFrame, name: str, dates: Sequence[date]) -> None:
        """Inserts the rows whose key the table does not hold, and reads only the partitions of `dates`.

        `rows` must not repeat a key. Two of these at once conflict and are retried: none inserts a key twice.
        """
        if not dates:
            return
        table = self.tables[name]
        on = " AND ".join(f"t.{quoted(column)} = s.{quoted(column)}" for column in table.key)
        days = ", ".join(f"DATE {literal(day.isoformat())}" for day in dates)
        merge = (
            f"MERGE INTO {self._sql_name(name)} t USING {{rows}} s "
            f"ON t.{quoted(str(table.subject))} IN ({days}) AND {on} WHEN NOT MATCHED THEN INSERT *"
        )
        conforming = self.conform(rows, name)
        retried(lambda: self.spark.sql(merge, rows=conforming))

    def replace(
        self,
        rows: DataFrame,
        name: str,
        where: Mapping[str, str],
        metadata: Mapping[str, object] | None = None,
        days: Sequence[date] | None = None,
    ) -> None:
        """Overwrites exactly the rows for which every column of `where` has the given text or timestamp.

        With `days`, of these only the rows whose `day` is one of them.
        """
        conditions = [f"{quoted(column)} = {literal(value)}" for column, value in where.items()]
        if days is not None:
            conditions.append(f"day IN ({', '.join(f'DATE {literal(day.isoformat())}' for day in days)})")
        condition = " AND ".join(conditions)
        writer = (
            self.conform(rows, name)
            .write.format("delta")
            .mode("overwrite")
            .option("replaceWhere", condition)
            .option("userMetadata", json.dumps(metadata or {}, sort_keys=True))
        )
        target = self.path(name)
        retried(lambda: writer.saveAsTable(target) if self._catalog else writer.save(target))

    def remove(self, name: str, matching: DataFrame) -> int:
        """Removes the rows that equal a row of `matching` in its columns; returns how many.

        The one way past append-only, for what the law asks to be forgotten: the property is off meanwhile.
        """
        table, sql_name = self.tables[name], self._sql_name(name)
        on = " AND ".join(f"t.{quoted(column)} = s.{quoted(column)}" for column in matching.columns)
        merge = f"MERGE INTO {sql_name} t USING {{matching}} s ON {on} WHEN MATCHED THEN DELETE"
        self._set_append_only(table, on=False)
        try:
            done = retried(lambda: self.spark.sql(merge, matching=matching.distinct())).first()
        finally:
            self._set_append_only(table, on=True)
        return 0 if done is None else int(done["num_deleted_rows"])

    def _set_append_only(self, table: Table, *, on: bool) -> None:
        if table.append_only:
            value = literal(str(on).lower())
            alter = f"ALTER TABLE {self._sql_name(table.name)} SET TBLPROPERTIES ('delta.appendOnly' = {value})"
            retried(lambda: self.spark.sql(alter))

    def compact(self, name: str, partitions: Sequence[date | str]) -> None:
        """Joins the small files of partitions, in Z-order where the table names one; of all without a subject."""
        table = self.tables[name]
        where = order = ""
        if table.subject:
            days = (f"DATE {literal(str(each))}" if isinstance(each, date) else literal(each) for each in partitions)
            where = f" WHERE {quoted(table.subject)} IN ({', '.join(days)})"
        if table.order:
            order = f" ZORDER BY ({', '.join(map(quoted, table.order))})"
        retried(lambda: self.spark.sql(f"OPTIMIZE {self._sql_name(name)}{where}{order}"))

    def vacuum(self, name: str) -> None:
        """Removes files that no version within the table's retention needs."""
        self.spark.sql(f"VACUUM {self._sql_name(name)}")

    def purge(self, name: str, keep_hours: int) -> None:
        """Removes files that no version of the last hours needs; earlier ones cannot be read in full any more.

        The table keeps the version until which that is so, as its change feed then ends there.
        """
        sql_name, check = self._sql_name(name), "spark.databricks.delta.retentionDurationCheck.enabled"
        kept = literal(str(self.version(name)))
        retried(lambda: self.spark.sql(f"ALTER TABLE {sql_name} SET TBLPROPERTIES ({literal(_PURGED)} = {kept})"))
        with suppress(Exception):  # where it cannot be set, the platform decides
            self.spark.conf.set(check, "false")
        try:
            self.spark.sql(f"VACUUM {sql_name} RETAIN {keep_hours} HOURS")
        finally:
            with suppress(Exception):
                self.spark.conf.unset(check)

    def append(self, rows: Sequence[Mapping[str, object]], name: str) -> None:
        """Appends few rows."""
        writer = self.conform(self.rows(name, rows), name).write.format("delta").mode("append")
        target = self.path(name)
        retried(lambda: writer.saveAsTable(target) if self._catalog else writer.save(target))

    def conform(self, rows: DataFrame, name: str) -> DataFrame:
        """`rows` with the table's columns, order and types; SchemaError where columns do not match."""
        schema = self.read(name).schema
        missing = sorted(set(schema.names) - set(rows.columns))
        unknown = sorted(set(rows.columns) - set(schema.names))
        if missing or unknown:
            raise SchemaError(
                f"rows for {self.path(name)}: missing {missing or 'none'}, unknown {unknown or 'none'}; "
                f"given {rows.columns}"
            )
        return rows.select(*(F.col(quoted(each.name)).cast(each.dataType).alias(each.name) for each in schema))


# Commits that change no row, beside appending ones.
_HARMLESS = {"OPTIMIZE", "VACUUM START", "VACUUM END", "SET TBLPROPERTIES", "UNSET TBLPROPERTIES", "ADD COLUMNS",
             "ADD CONSTRAINT"}  # fmt: skip
_CHANGED_ROWS = ("numTargetRowsDeleted", "numTargetRowsUpdated")
_PURGED = "mltrust.purgedVersion"


def _appends(commit: Mapping[str, Any]) -> bool:
    """Whether a commit of a table's history left its rows alone or added to them."""
    if commit["operation"] == "MERGE":
        return all(int(commit["operationMetrics"].get(name, 0)) == 0 for name in _CHANGED_ROWS)
    if commit["operation"] == "WRITE":
        return bool(commit["operationParameters"].get("mode") == "Append")
    return commit["operation"] in _HARMLESS


_NO_TABLE = ("PATH_NOT_FOUND", "TABLE_OR_VIEW_NOT_FOUND", "DELTA_MISSING_DELTA_TABLE", "DELTA_TABLE_NOT_FOUND",
             "is not a Delta table", "doesn't exist")  # fmt: skip
_CONFLICTS = (
    "DELTA_CONCURRENT",
    "Concurrent",
    "DELTA_PROTOCOL_CHANGED",
    "DELTA_METADATA_CHANGED",
    "ProtocolChangedException",
    "MetadataChangedException",
    "DELTA_TABLE_ALREADY_EXISTS",
    "DELTA_PATH_EXISTS",
    # Two writers add the columns of one new contract.
    "FIELD_ALREADY_EXISTS",
    "FIELDS_ALREADY_EXISTS",
    "DUPLICATE_COLUMN",
)


def retried(write: Callable[[], T], attempts: int = 12) -> T:
    """The result of a write that is tried again, after a growing pause, while another writer is in its way."""
    for attempt in range(1, attempts):
        try:
            return write()
        except Exception as error:  # classic and Connect sessions raise different types for one conflict
            if not any(code in f"{type(error).__name__} {error}" for code in _CONFLICTS):
                raise
            time.sleep(min(8.0, 0.2 * 2**attempt) * random.uniform(0.5, 1))
    return write()


def _struct(columns: str) -> StructType:
    parsed = StructType.fromDDL(columns)
    assert isinstance(parsed, StructType)
    return parsed


def _null_for_nan(value: object) -> object:
    return None if isinstance(value, float) and math.isnan(value) else value


def absolute(root: str) -> str:
    """`root` as Spark and everyone else sees it: URIs as they are, folders from the working folder."""
    return root.rstrip("/") if ":/" in root else str(Path(root).absolute())


def _additions(declared: StructType, present: StructType, where: str, prefix: str = "") -> list[tuple[str, DataType]]:
    """Columns (also inside structs) that are declared and not present, with their types."""
    known: dict[str, StructField] = {each.name: each for each in present}
    found: list[tuple[str, DataType]] = []
    for each in declared:
        column, there = f"{prefix}{quoted(each.name)}", known.get(each.name)
        if there is None:
            found.append((column, each.dataType))
        elif isinstance(each.dataType, StructType) and isinstance(there.dataType, StructType):
            found += _additions(each.dataType, there.dataType, where, f"{column}.")
        elif each.dataType.simpleString() != there.dataType.simpleString():
            raise SchemaError(
                f"{where}: column {column} is {there.dataType.simpleString()}, declared as "
                f"{each.dataType.simpleString()}; a column that changes its type takes a new name"
            )
    return found
