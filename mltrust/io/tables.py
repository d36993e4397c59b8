"""The lakehouse: the few ways in which the tables of a log are read and written.

SQL text is made in this package and nowhere else. What immutability rests on: `inference_log` and `outcomes` are
appendOnly and written by insert-only MERGE on their keys.
"""

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

from pyspark.sql import DataFrame, DataFrameReader, DataFrameWriter, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import DataType, DoubleType, StructField, StructType

from mltrust.contract import Contract
from mltrust.errors import DataError, SchemaError
from mltrust.io.schemas import Keep, Table, literal, quoted, tables_of
from mltrust.io.unfinished import UNFINISHED, remove_unfinished
from mltrust.io.views import VIEWS
from mltrust.metrics import MetricColumns

T = TypeVar("T")
Versions = dict[str, int]


class Lakehouse:
    """The tables of one log in one session."""

    def __init__(
        self,
        spark: SparkSession,
        contract: Contract,
        *,
        root: str,
        catalog: str | None = None,
        metric_columns: MetricColumns | None = None,
        keep_days: Mapping[Keep, int],
    ) -> None:
        self.spark = spark
        self.tables = tables_of(contract, metric_columns or MetricColumns())
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
            if not self._made(self.tables[name]):
                remove_unfinished(self.path(name))
                if not self._made(self.tables[name]):
                    raise DataError(f"{self.path(name)} is no table, and {UNFINISHED} could not be removed")

    def _made(self, table: Table) -> bool:
        """Makes a table with all its columns; False where a log without a commit is in its place."""
        retried(lambda: self.spark.sql(self._create(table)))
        try:
            # Between the folder and the first commit of another writer there is no table for some moments.
            retried(lambda: retried(lambda: self._widen(table)), attempts=6, signs=_NO_TABLE)
        except Exception as error:
            if self._catalog or not _shows(error, _NO_TABLE):
                raise
            return False
        return True

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
            return self.spark.catalog.tableExists(self._sql_name(name))
        except Exception as error:  # of a path that is no table
            if _shows(error, _NO_TABLE):
                return False
            raise

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
        seen: set[int] = set()
        # A table that is written every few seconds has a long history, and its newest commits are the wanted ones.
        for limit in (" LIMIT 20", ""):
            history = self.spark.sql(f"DESCRIBE HISTORY {self._sql_name(name)}{limit}")
            for row in history.where("userMetadata IS NOT NULL").select("version", "userMetadata").collect():
                found = json.loads(row["userMetadata"])
                if row["version"] not in seen and isinstance(found, dict) and wanted.items() <= found.items():
                    seen.add(row["version"])
                    yield row["version"], found

    def read(self, name: str, version: int | None = None, where: Mapping[str, str] | None = None) -> DataFrame:
        """A table at a version (None: its newest), of it the rows with the given values."""
        reader = self.spark.read.format("delta")
        if version is not None:
            reader = reader.option("versionAsOf", version)
        rows = self._loaded(reader, name)
        return reduce(lambda left, item: left.where(F.col(item[0]) == item[1]), (where or {}).items(), rows)

    def view(self, name: str) -> DataFrame:
        """A view; in a catalog it can also be read by SQL as `<log>_<name>` once `ensure_view` has made it."""
        view = VIEWS[name]
        ranked = self.read(view.of).where(view.where).selectExpr("*", f"{view.rank} AS rank")
        return ranked.where(f"rank = 1 AND {view.having}").selectExpr(*view.columns)

    def ensure_view(self, name: str) -> None:
        """Makes a view where there is a catalog that can keep it."""
        if self._catalog:
            made = f"CREATE OR REPLACE VIEW {self._sql_name(name)} AS {self.view_sql(name)}"
            retried(lambda: self.spark.sql(made))

    def view_sql(self, name: str) -> str:
        """The rows of a view as SQL."""
        view = VIEWS[name]
        ranked = f"SELECT *, {view.rank} AS rank FROM {self._sql_name(view.of)} WHERE {view.where}"
        return f"SELECT {', '.join(view.columns)} FROM ({ranked}) WHERE rank = 1 AND {view.having}"

    def _loaded(self, reader: DataFrameReader, name: str) -> DataFrame:
        return reader.table(self.path(name)) if self._catalog else reader.load(self.path(name))

    def _saved(self, writer: DataFrameWriter, name: str) -> None:
        target = self.path(name)
        retried(lambda: writer.saveAsTable(target) if self._catalog else writer.save(target))

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
        inserted = self._loaded(changes, name).where(F.col("_change_type") == "insert")
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
        """A frame of few rows in the table's schema, to be one file; a nan becomes NULL and reaches no table."""
        schema = self.read(name).schema
        plain = [tuple(_plain(row[each.name], each.dataType) for each in schema) for row in rows]
        return self.spark.createDataFrame(plain, schema).coalesce(1)

    def insert_new(self, rows: DataFrame, name: str, dates: Sequence[date]) -> None:
        """Inserts the rows whose key the table does not hold, and reads only the partitions of `dates`.

        `rows` must not repeat a key. Two of these at once conflict and are retried: none inserts a key twice.
        """
        if not dates:
            return
        table = self.tables[name]
        on = " AND ".join(f"t.{quoted(column)} = s.{quoted(column)}" for column in table.key)
        merge = (
            f"MERGE INTO {self._sql_name(name)} t USING {{rows}} s "
            f"ON t.{_is_one_of(str(table.subject), dates)} AND {on} WHEN NOT MATCHED THEN INSERT *"
        )
        conforming = self.conform(rows, name)
        retried(lambda: self.spark.sql(merge, rows=conforming))

    def replace(
        self,
        rows: DataFrame,
        name: str,
        where: Mapping[str, str | datetime],
        metadata: Mapping[str, object] | None = None,
        days: Sequence[date] | None = None,
        ranges: Sequence[Mapping[str, str | datetime]] = (),
        among: Mapping[str, Sequence[str]] | None = None,
        within: Mapping[str, Sequence[tuple[datetime, datetime]]] | None = None,
    ) -> None:
        """Overwrites exactly the rows for which every column of `where` has the given text or time.

        With `days`, of these only the rows whose `day` is one of them; with `ranges`, those that also match any of
        these; with `among` those in which every column has one of the texts, with `within` those in which every time
        lies in one of the ranges [start, end).
        """
        conditions = [_equal(where)] if where else []
        if days is not None:
            conditions.append(_is_one_of("day", days))
        if ranges:
            conditions.append(f"({' OR '.join(f'({_equal(each)})' for each in ranges)})")
        conditions += [_is_one_of(column, values) for column, values in (among or {}).items()]
        conditions += [_lies_in(column, spans) for column, spans in (within or {}).items()]
        condition = " AND ".join(conditions)
        writer = (
            self.conform(rows, name)
            .write.format("delta")
            .mode("overwrite")
            .option("replaceWhere", condition)
            .option("userMetadata", json.dumps(metadata or {}, sort_keys=True))
        )
        self._saved(writer, name)

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
            self._set_property(table.name, "delta.appendOnly", str(on).lower())

    def _set_property(self, name: str, key: str, value: str) -> None:
        alter = f"ALTER TABLE {self._sql_name(name)} SET TBLPROPERTIES ({literal(key)} = {literal(value)})"
        retried(lambda: self.spark.sql(alter))

    def compact(self, name: str, partitions: Sequence[date | str]) -> None:
        """Joins the small files of partitions, in Z-order where the table names one; of all without a subject."""
        table = self.tables[name]
        where = f" WHERE {_is_one_of(table.subject, partitions)}" if table.subject else ""
        order = f" ZORDER BY ({', '.join(map(quoted, table.order))})" if table.order else ""
        retried(lambda: self.spark.sql(f"OPTIMIZE {self._sql_name(name)}{where}{order}"))

    def vacuum(self, name: str) -> None:
        """Removes files that no version within the table's retention needs; a younger table has none."""
        made = self.spark.sql(f"DESCRIBE DETAIL {self._sql_name(name)}").select("createdAt").first()
        kept = timedelta(days=self._keep_days[self.tables[name].keep])
        created = made and made["createdAt"]
        if created is None or created.astimezone(UTC) + kept < datetime.now(UTC):
            self.spark.sql(f"VACUUM {self._sql_name(name)}")

    def purge(self, name: str, keep_hours: int) -> None:
        """Removes files that no version of the last hours needs; earlier ones cannot be read in full any more.

        The table keeps the version until which that is so, as its change feed then ends there.
        """
        check = "spark.databricks.delta.retentionDurationCheck.enabled"
        self._set_property(name, _PURGED, str(self.version(name)))
        with suppress(Exception):  # where it cannot be set, the platform decides
            self.spark.conf.set(check, "false")
        try:
            self.spark.sql(f"VACUUM {self._sql_name(name)} RETAIN {keep_hours} HOURS")
        finally:
            with suppress(Exception):
                self.spark.conf.unset(check)

    def append(self, rows: Sequence[Mapping[str, object]], name: str) -> None:
        """Appends few rows."""
        self._saved(self.conform(self.rows(name, rows), name).write.format("delta").mode("append"), name)

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


def _equal(values: Mapping[str, str | datetime]) -> str:
    return " AND ".join(
        f"{quoted(column)} = {_moment(value) if isinstance(value, datetime) else literal(value)}"
        for column, value in values.items()
    )


def _is_one_of(column: str, values: Sequence[date | str]) -> str:
    listed = (f"DATE {literal(each.isoformat())}" if isinstance(each, date) else literal(each) for each in values)
    return f"{quoted(column)} IN ({', '.join(listed)})"


def _lies_in(column: str, ranges: Sequence[tuple[datetime, datetime]]) -> str:
    name = quoted(column)
    ends = ((_moment(start), _moment(end)) for start, end in ranges)
    return "(" + " OR ".join(f"({name} >= {start} AND {name} < {end})" for start, end in ends) + ")"


def _moment(at: datetime) -> str:
    return f"TIMESTAMP {literal(at.astimezone(UTC).isoformat())}"


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


def _shows(error: Exception, signs: Sequence[str]) -> bool:
    # Classic and Connect sessions raise different types for one fault.
    return any(sign in f"{type(error).__name__} {error}" for sign in signs)


def retried(write: Callable[[], T], attempts: int = 12, signs: Sequence[str] = _CONFLICTS) -> T:
    """The result of a write that is tried again, after a growing pause, while another writer is in its way.

    `signs` are of errors that pass.
    """
    for attempt in range(1, attempts):
        try:
            return write()
        except Exception as error:
            if not _shows(error, signs):
                raise
            time.sleep(min(8.0, 0.2 * 2**attempt) * random.uniform(0.5, 1))
    return write()


def _struct(columns: str) -> StructType:
    parsed = StructType.fromDDL(columns)
    assert isinstance(parsed, StructType)
    return parsed


def _plain(value: object, kind: DataType) -> object:
    """A value as Spark takes it: NULL for nan, and a whole number where the column is of doubles."""
    if isinstance(value, float) and math.isnan(value):
        return None
    return float(value) if type(value) is int and isinstance(kind, DoubleType) else value


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
