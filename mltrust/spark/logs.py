"""Landing files to typed rows, and what becomes of each row: accepted, rejected or duplicate."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import date, datetime
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from pyspark.sql import DataFrame, DataFrameReader, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    DataType,
    DateType,
    DoubleType,
    LongType,
    MapType,
    StringType,
    StructType,
    TimestampType,
)

from mltrust.contract import Contract, Reason
from mltrust.errors import DataError
from mltrust.formats.files import Read, Stream, WireReader, is_lines
from mltrust.record import HEARTBEAT, Rejected, Row

ArrowMap = Callable[[Iterable[pa.RecordBatch]], Iterable[pa.RecordBatch]]


# What ingest knows of a piece of a file beside its row.
_ORIGIN = "source STRING, position BIGINT"
HEARTBEAT_COLUMNS = (
    "producer_id STRING, sequence BIGINT, model_name STRING, model_version STRING, window_start TIMESTAMP, "
    "event_time TIMESTAMP, event_date DATE, logged BIGINT, written BIGINT, dropped BIGINT, invalid BIGINT, "
    "spilled BIGINT, host STRING"
)
_EXPERIMENTS = "ARRAY<STRUCT<experiment_id: STRING, bucket_id: STRING, variant: STRING>>"
_REFUSAL = (
    "raw STRING, raw_encoding STRING, reason_code STRING, reason STRING, "
    f"seen_model_name STRING, seen_model_version STRING, seen_experiments {_EXPERIMENTS}"
)
_LISTED = "path STRING, modificationTime TIMESTAMP, length BIGINT, content BINARY"
_ARRIVAL = ("ingested_at", "source", "ingest_batch")
# What the rejects tables show of a record that could be read and conflicts with the log.
_OF_RECORD = {
    "model_name": "STRING",
    "model_version": "STRING",
    "experiments": _EXPERIMENTS,
}
# Rows that leave Python at once, so that a large file does not become one Arrow batch.
_BATCH_ROWS = 4096


class SourceFile(NamedTuple):
    """A landing file of a batch."""

    source: str
    path: str
    file_size: int
    file_modified: datetime


class Batch(NamedTuple):
    """The files of a batch. Its id comes from them, so that a batch that is done again is the same batch."""

    files: tuple[SourceFile, ...]

    @property
    def batch_id(self) -> str:
        return short_hash("\n".join(f"{each.source}|{each.file_size}|{each.file_modified}" for each in self.files))


def is_there(spark: SparkSession, folder: str) -> bool:
    """Whether a landing folder exists."""
    try:
        _ = spark.read.format("binaryFile").load(folder).schema  # a Connect session looks only now
    except Exception as error:
        if "PATH_NOT_FOUND" in str(error):
            return False
        raise
    return True


def made(spark: SparkSession, folder: str) -> None:
    """Makes a landing folder on this machine where it is missing; DataError where it is missing elsewhere."""
    if ":/" not in folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
    elif not is_there(spark, folder):
        raise DataError(f"no landing folder {folder}")


def arrivals(spark: SparkSession, folder: str, max_files: int) -> DataFrame:
    """A stream of the files of `folder` and its subfolders: names, sizes and times, and nothing of their content.

    A file must be complete when it appears, and is read once; names that begin with `_` or `.` are left alone.
    """
    return (
        spark.readStream.format("binaryFile")
        .schema(_LISTED)
        .option("maxFilesPerTrigger", max_files)
        .option("recursiveFileLookup", "true")
        # By default a file older by a week than the newest one is passed over without a word.
        .option("maxFileAge", "36500d")
        .load(folder)
        .select(
            F.col("_metadata.file_path").alias("source"),
            "path",
            F.col("length").alias("file_size"),
            F.col("modificationTime").alias("file_modified"),
        )
    )


def batch_of(arrived: DataFrame) -> Batch:
    """The files of a batch of arrivals, which are few and known to the driver anyway."""
    return Batch(tuple(sorted(SourceFile(*row) for row in arrived.select(*SourceFile._fields).collect())))


def parse(arrived: DataFrame, batch: Batch, contract: Contract, stream: Stream, table: StructType) -> DataFrame:
    """Every record of the files of a batch as a typed row, a heartbeat or a refusal.

    `position` counts the lines or records of a file from 1; where a large file of lines is read in several blocks,
    those of a later block count from the byte at which the block starts, so that no two lines share one.
    """
    spark, nullable = arrived.sparkSession, parsed_schema(table)
    in_parts = [each.path for each in batch.files if is_lines(each.path)]
    whole = [each.path for each in batch.files if not is_lines(each.path)]
    frames = []
    if in_parts:
        frames.append(_lines(spark, in_parts).mapInArrow(_lines_parser(contract, stream, nullable), nullable))
    if whole:
        frames.append(_contents(spark, whole).mapInArrow(_files_parser(contract, stream, nullable), nullable))
    return reduce(DataFrame.unionByName, frames)


def _lines(spark: SparkSession, paths: list[str]) -> DataFrame:
    return _read(spark.read.format("text").option("lineSep", "\n"), paths).select(
        F.col("value").cast("binary").alias("raw"),
        F.col("_metadata.file_path").alias("source"),
        F.col("_metadata.file_block_start").alias("block_start"),
    )


def _contents(spark: SparkSession, paths: list[str]) -> DataFrame:
    return _read(spark.read.format("binaryFile"), paths).select(
        "content", F.col("_metadata.file_path").alias("source"), "path"
    )


def _read(reader: DataFrameReader, paths: list[str]) -> DataFrame:
    """The files of `paths`, in whose names * ? { and [ mean themselves."""
    return reader.load([re.sub(r"([*?{}\[\]\\])", r"\\\1", path) for path in paths])


def parsed_schema(table: StructType) -> StructType:
    """Columns of `parse`: the table's own, null where refused, a heartbeat, then origin and refusal."""
    # NOT NULL is the table's promise about accepted rows; a refused line has none of the columns.
    own = ", ".join(f"`{each.name}` {each.dataType.simpleString()}" for each in table if each.name not in _ARRIVAL)
    return _struct(f"{own}, {HEARTBEAT} STRUCT<{HEARTBEAT_COLUMNS}>, {_ORIGIN}, {_REFUSAL}")


def _struct(columns: str) -> StructType:
    parsed = StructType.fromDDL(columns)
    assert isinstance(parsed, StructType)
    return parsed


def _lines_parser(contract: Contract, stream: Stream, schema: StructType) -> ArrowMap:
    arrow = arrow_schema(schema)

    def parse_lines(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        reader, seen = WireReader(contract, stream), dict[tuple[str, int], int]()
        for batch in batches:
            rows = []
            for raw, source, block in zip(*(column.to_pylist() for column in batch), strict=True):
                seen[source, block] = seen.get((source, block), 0) + 1
                if read := reader.line(block + seen[source, block], raw):
                    rows.append(row_of(read, source))
            yield arrow_batch(rows, arrow)

    return parse_lines


def _files_parser(contract: Contract, stream: Stream, schema: StructType) -> ArrowMap:
    arrow = arrow_schema(schema)

    def parse_files(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        reader = WireReader(contract, stream)
        for batch in batches:
            for content, source, path in zip(*(batch.column(at) for at in range(3)), strict=True):
                rows = (row_of(read, source.as_py()) for read in reader.file(path.as_py(), content.as_py()))
                while some := list(islice(rows, _BATCH_ROWS)):
                    yield arrow_batch(some, arrow)

    return parse_files


def arrow_schema(schema: StructType) -> pa.Schema:
    """The columns of `schema` in Arrow's types."""
    return pa.schema([pa.field(each.name, arrow_type(each.dataType)) for each in schema])


def arrow_batch(rows: Sequence[Row], arrow: pa.Schema) -> pa.RecordBatch:
    """Rows as a batch; what a row does not have is null."""
    return pa.RecordBatch.from_arrays(
        [pa.array([row.get(field.name) for row in rows], field.type) for field in arrow], schema=arrow
    )


def row_of(read: Read, source: str) -> Row:
    """What was read at a place of `source`, as a row of `parse`."""
    found = read.found
    kept: Row = {
        "source": source,
        "position": read.position,
        "raw": read.raw,
        "raw_encoding": read.raw_encoding,
    }
    if not isinstance(found, Rejected):
        return found | kept
    return kept | {
        "reason_code": str(found.reason_code),
        "reason": found.reason,
        "seen_model_name": found.model_name,
        "seen_model_version": found.model_version,
        "seen_experiments": list(found.experiments),
    }


def arrow_type(kind: DataType) -> pa.DataType:
    """The Arrow type of a column; TypeError for one that no table of ours has."""
    if isinstance(kind, StructType):
        return pa.struct([pa.field(each.name, arrow_type(each.dataType)) for each in kind])
    if isinstance(kind, ArrayType):
        return pa.list_(arrow_type(kind.elementType))
    if isinstance(kind, MapType):
        return pa.map_(arrow_type(kind.keyType), arrow_type(kind.valueType))
    simple = {
        StringType: pa.string(),
        LongType: pa.int64(),
        DoubleType: pa.float64(),
        BooleanType: pa.bool_(),
        DateType: pa.date32(),
        TimestampType: pa.timestamp("us", tz="UTC"),
    }
    if type(kind) not in simple:
        raise TypeError(f"no Arrow type for {kind.simpleString()}")
    return simple[type(kind)]


@contextmanager
def kept(frame: DataFrame) -> Iterator[DataFrame]:
    """`frame`, computed once where the platform can keep it; where it cannot, it is computed at each use."""
    with suppress(Exception):  # serverless refuses to persist
        frame.persist()
    try:
        yield frame
    finally:
        with suppress(Exception):
            frame.unpersist()


def short_hash(text: str) -> str:
    """16 hex digits of SHA-256, to name a thing by its content."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Contents(NamedTuple):
    """What a parsed batch holds: the dates of its rows, and of its heartbeats."""

    dates: tuple[date, ...]
    heartbeat_dates: tuple[date, ...]


def contents(parsed: DataFrame) -> Contents:
    """Which dates a parsed batch touches; one Spark job, which parses it."""
    found = parsed.agg(
        F.array_sort(F.collect_set("event_date")).alias("dates"),
        F.array_sort(F.collect_set(f"{HEARTBEAT}.event_date")).alias("heartbeat_dates"),
    ).first()
    return Contents(*((), ()) if found is None else (tuple(found[name]) for name in Contents._fields))


def heartbeats(parsed: DataFrame, batch_id: str, ingested_at: datetime) -> DataFrame:
    """The heartbeats of a batch, each once."""
    told = parsed.where(F.col(HEARTBEAT).isNotNull()).select(f"{HEARTBEAT}.*", "source")
    arrived = told.withColumns({"ingested_at": F.lit(ingested_at), "ingest_batch": F.lit(batch_id)})
    return arrived.dropDuplicates(["producer_id", "sequence", "model_name", "model_version"])


def ranked(parsed: DataFrame, key: Sequence[str]) -> DataFrame:
    """The readable rows with their `rank` among the rows of one key: the smallest hash, then the first line, is 1."""
    order = Window.partitionBy(*key).orderBy("content_hash", "source", "position")
    readable = parsed.where(F.col("reason_code").isNull() & F.col(HEARTBEAT).isNull())
    return readable.withColumn("rank", F.row_number().over(order))


def arriving(ranked_rows: DataFrame, table: StructType, batch_id: str, ingested_at: datetime) -> DataFrame:
    """The rows to insert: one a key, with their arrival."""
    first = ranked_rows.where(F.col("rank") == 1)
    arrived = first.withColumns({"ingested_at": F.lit(ingested_at), "ingest_batch": F.lit(batch_id)})
    return arrived.select(*table.names)


def settled(parsed: DataFrame, stored: DataFrame, key: Sequence[str], batch_id: str) -> DataFrame:
    """Every line with its `fate` (accepted, rejected, duplicate, heartbeat) after the insert, and why.

    It follows from what the table holds, so that a batch that died half way and is done again comes to the
    same end: accepted is the line whose row this batch stored.
    """
    hashes = F.col("content_hash").alias("stored_hash"), F.col("ingest_batch").alias("stored_batch")
    # First the few that the batch has keys of: Spark sends those around, and need not shuffle the whole day.
    held = stored.select(*key, *hashes).join(parsed.select(*key), list(key), "left_semi")
    same = F.col("content_hash") == F.col("stored_hash")
    ours = (F.col("stored_batch") == batch_id) & (F.col("rank") == 1)
    readable = ranked(parsed, key).join(held, list(key), "left")
    conflict = F.concat(
        F.lit("the log holds other content under this key, with hash "), F.substring("stored_hash", 1, 12)
    )
    # No stored row at all would be a lost record: it has no fate, and the books refuse to close on it.
    fate = F.when(F.col("stored_hash").isNull(), None).when(~same, "rejected").when(ours, "accepted")
    readable = readable.withColumns(
        {
            "fate": fate.otherwise("duplicate"),
            "reason_code": F.when(~same, str(Reason.CONFLICTING_DUPLICATE)),
            "reason": F.when(~same, conflict),
        }
    )
    others = parsed.where(F.col("reason_code").isNotNull() | F.col(HEARTBEAT).isNotNull())
    named = others.withColumn("fate", F.when(F.col(HEARTBEAT).isNotNull(), HEARTBEAT).otherwise("rejected"))
    columns = [*parsed.columns, "fate"]
    return readable.select(*columns).unionByName(named.select(*columns))


def rejects(settled_rows: DataFrame, batch_id: str, ingested_at: datetime) -> DataFrame:
    """Rows of a rejects table. An outcome has no model and no experiments to show."""
    seen = (
        F.coalesce(f"seen_{name}", name if name in settled_rows.columns else F.lit(None)).cast(kind).alias(name)
        for name, kind in _OF_RECORD.items()
    )
    return settled_rows.where(F.col("fate") == "rejected").select(
        F.lit(batch_id).alias("ingest_batch"),
        *("source", "position", "raw", "raw_encoding", "reason_code", "reason"),
        *seen,
        F.lit(ingested_at).alias("ingested_at"),
    )


class Book(NamedTuple):
    """A row of ingest_batches."""

    ingest_batch: str
    kind: str
    source: str
    file_size: int
    file_modified: datetime
    records: int
    accepted: int
    rejected: int
    duplicates: int
    heartbeats: int
    ingested_at: datetime


def books(settled_rows: DataFrame, batch: Batch, table: str, ingested_at: datetime) -> list[Book]:
    """Rows of ingest_batches, one a file, which balance; one Spark job."""
    fates = {"accepted": "accepted", "rejected": "rejected", "duplicates": "duplicate", "heartbeats": HEARTBEAT}
    counts = [F.count_if(F.col("fate") == fate).alias(name) for name, fate in fates.items()]
    counted = settled_rows.groupBy("source").agg(F.count("*").alias("records"), *counts).collect()
    by_source = {row["source"]: row for row in counted}
    return [
        Book(
            ingest_batch=batch.batch_id,
            kind=table,
            source=file.source,
            file_size=file.file_size,
            file_modified=file.file_modified,
            **{name: by_source[file.source][name] if file.source in by_source else 0 for name in _COUNTED},
            ingested_at=ingested_at,
        )
        for file in batch.files
    ]


def totals(entered: Sequence[Book]) -> str:
    """The books of a batch in words."""
    sums = {name: sum(getattr(book, name) for book in entered) for name in _COUNTED}
    return ", ".join(f"{n:,} {name}" for name, n in sums.items())


def sums(entered: DataFrame) -> list[dict[str, object]]:
    """The books of any number of batches, summed by kind; `files` is how many files or pieces of partitions."""
    by_kind = entered.groupBy("kind").agg(
        F.count("*").alias("files"), *(F.sum(name).alias(name) for name in _COUNTED)
    )
    return [row.asDict() for row in by_kind.sort("kind").collect()]


_COUNTED = ("records", "accepted", "rejected", "duplicates", "heartbeats")
