"""Landing files to typed rows, and what becomes of each row: accepted, rejected or duplicate."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import date, datetime
from typing import NamedTuple, Protocol

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession, Window
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

from mltrust.contract import Reason
from mltrust.errors import DataError
from mltrust.record import Rejected, Row, raw_text

ArrowMap = Callable[[Iterable[pa.RecordBatch]], Iterable[pa.RecordBatch]]


class Reader(Protocol):
    """Reads one wire record: a row, or why it is refused."""

    def read(self, raw: bytes) -> Row | Rejected: ...


# What ingest knows of a line beside its record.
_ORIGIN = "source STRING, position BIGINT, file_size BIGINT, file_modified TIMESTAMP"
_REFUSAL = (
    "raw STRING, raw_encoding STRING, reason_code STRING, reason STRING, "
    "seen_model_version STRING, seen_experiment_id STRING, seen_bucket_id STRING"
)
_ARRIVAL = ("ingested_at", "source", "ingest_batch")
# What the rejects tables show of a record that could be read and conflicts with the log.
_OF_RECORD = {
    "model_version": "model_version",
    "experiment_id": "try_element_at(experiments, 1).experiment_id",
    "bucket_id": "try_element_at(experiments, 1).bucket_id",
}


def lines(spark: SparkSession, folder: str, max_files: int) -> DataFrame:
    """A stream of the lines of every file in `folder` and its subfolders, as bytes, with where they came from.

    A file must be complete when it appears, and is read once; names that begin with `_` or `.` are left alone.
    """
    return (
        spark.readStream.format("text")
        .option("lineSep", "\n")
        .option("maxFilesPerTrigger", max_files)
        .option("recursiveFileLookup", "true")
        # By default a file older by a week than the newest one is passed over without a word.
        .option("maxFileAge", "36500d")
        .load(folder)
        .select(
            F.col("value").cast("binary").alias("raw"),
            F.col("_metadata.file_path").alias("source"),
            F.col("_metadata.file_block_start").alias("block_start"),
            F.col("_metadata.file_size").alias("file_size"),
            F.col("_metadata.file_modification_time").alias("file_modified"),
        )
    )


def parsed_schema(table: StructType) -> StructType:
    """Columns of `parse`: the table's own, null where refused, then origin and refusal."""
    own = [each for each in table if each.name not in _ARRIVAL]
    return StructType([*own, *_struct(f"{_ORIGIN}, {_REFUSAL}")])


def _struct(columns: str) -> StructType:
    parsed = StructType.fromDDL(columns)
    assert isinstance(parsed, StructType)
    return parsed


def parse(raw_lines: DataFrame, reader: Reader, table: StructType) -> DataFrame:
    """Every line that is not blank as a typed row or a refusal.

    `position` counts the lines of a file from 1; where a large file is read in several blocks, those of a later
    block count from the byte at which the block starts, so that no two lines share one.
    """
    schema = parsed_schema(table)
    # NOT NULL is the table's promise about accepted rows; a refused line has none of the columns.
    nullable = _struct(", ".join(f"`{each.name}` {each.dataType.simpleString()}" for each in schema))
    return raw_lines.mapInArrow(_parser(reader, nullable), nullable)


def _parser(reader: Reader, schema: StructType) -> ArrowMap:
    arrow = pa.schema([pa.field(each.name, arrow_type(each.dataType)) for each in schema])

    def parse_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        seen: dict[tuple[str, int], int] = {}
        for batch in batches:
            rows = []
            for raw, source, block, size, modified in zip(*(column.to_pylist() for column in batch), strict=True):
                seen[source, block] = seen.get((source, block), 0) + 1
                line = raw.rstrip(b"\r")
                if line.strip():
                    origin = {"source": source, "position": block + seen[source, block]}
                    rows.append(_read(reader, line) | origin | {"file_size": size, "file_modified": modified})
            yield pa.RecordBatch.from_arrays(
                [pa.array([row.get(field.name) for row in rows], field.type) for field in arrow], schema=arrow
            )

    return parse_batches


def _read(reader: Reader, line: bytes) -> Row:
    text, encoding = raw_text(line)
    found = reader.read(line)
    kept: Row = {"raw": text, "raw_encoding": encoding}
    if not isinstance(found, Rejected):
        return found | kept
    return kept | {
        "reason_code": str(found.reason_code),
        "reason": found.reason,
        "seen_model_version": found.model_version,
        "seen_experiment_id": found.experiment_id,
        "seen_bucket_id": found.bucket_id,
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


class SourceFile(NamedTuple):
    """A landing file of a batch."""

    source: str
    file_size: int
    file_modified: datetime


class Batch(NamedTuple):
    """What a batch holds. Its id comes from its files, so that a batch that is done again is the same batch."""

    files: tuple[SourceFile, ...]
    dates: tuple[date, ...]

    @property
    def batch_id(self) -> str:
        return short_hash("\n".join(f"{each.source}|{each.file_size}|{each.file_modified}" for each in self.files))


def batch_of(parsed: DataFrame) -> Batch:
    """The files and event dates of a parsed batch; one Spark job."""
    found = parsed.groupBy(*SourceFile._fields).agg(F.collect_set("event_date").alias("dates")).collect()
    files = sorted(SourceFile(row["source"], row["file_size"], row["file_modified"]) for row in found)
    return Batch(tuple(files), tuple(sorted({day for row in found for day in row["dates"]})))


def ranked(parsed: DataFrame, key: Sequence[str]) -> DataFrame:
    """The readable rows with their `rank` among the rows of one key: the smallest hash, then the first line, is 1."""
    order = Window.partitionBy(*key).orderBy("content_hash", "source", "position")
    return parsed.where(F.col("reason_code").isNull()).withColumn("rank", F.row_number().over(order))


def arriving(ranked_rows: DataFrame, table: StructType, batch_id: str, ingested_at: datetime) -> DataFrame:
    """The rows to insert: one a key, with their arrival."""
    first = ranked_rows.where(F.col("rank") == 1)
    arrived = first.withColumns({"ingested_at": F.lit(ingested_at), "ingest_batch": F.lit(batch_id)})
    return arrived.select(*table.names)


def settled(parsed: DataFrame, stored: DataFrame, key: Sequence[str], batch_id: str) -> DataFrame:
    """Every line with its `fate` (accepted, rejected, duplicate) after the insert, and why it was rejected.

    It follows from what the table holds, so that a batch that died half way and is done again comes to the
    same end: accepted is the line whose row this batch stored.
    """
    held = stored.select(
        *key, F.col("content_hash").alias("stored_hash"), F.col("ingest_batch").alias("stored_batch")
    )
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
    refused = parsed.where(F.col("reason_code").isNotNull()).withColumn("fate", F.lit("rejected"))
    columns = [*parsed.columns, "fate"]
    return readable.select(*columns).unionByName(refused.select(*columns))


def rejects(settled_rows: DataFrame, batch_id: str, ingested_at: datetime) -> DataFrame:
    """Rows of a rejects table. An outcome has no model, experiment or bucket to show."""
    of_record = _OF_RECORD if "experiments" in settled_rows.columns else {}
    seen = (
        F.coalesce(f"seen_{name}", F.expr(of_record[name]) if name in of_record else F.lit(None)).alias(name)
        for name in _OF_RECORD
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
    ingested_at: datetime


def books(settled_rows: DataFrame, batch_id: str, table: str, ingested_at: datetime) -> list[Book]:
    """Rows of ingest_batches, one a file, which balance; one Spark job."""
    counts = {
        "records": F.count("*"),
        "accepted": F.count_if(F.col("fate") == "accepted"),
        "rejected": F.count_if(F.col("fate") == "rejected"),
        "duplicates": F.count_if(F.col("fate") == "duplicate"),
    }
    counted = settled_rows.groupBy(*SourceFile._fields).agg(*(n.alias(name) for name, n in counts.items()))
    named = counted.select(
        F.lit(batch_id).alias("ingest_batch"),
        F.lit(table).alias("kind"),
        "*",
        F.lit(ingested_at).alias("ingested_at"),
    )
    return [Book(*row) for row in named.select(*Book._fields).collect()]


def totals(entered: Sequence[Book]) -> str:
    """The books of a batch in words."""
    sums = {name: sum(getattr(book, name) for book in entered) for name in _COUNTED}
    return ", ".join(f"{n:,} {name}" for name, n in sums.items())


_COUNTED = ("records", "accepted", "rejected", "duplicates")

_MISTAKES = {
    "FILE_NOT_EXIST": "a landing file of an unfinished batch is gone; put it back",
    "FileNotFoundException": "a landing file of an unfinished batch is gone; put it back",
    "EOFException": "a landing file is cut off; put the whole file in its place under the same name",
    "ZipException": "a landing file is no gzip although its name says so; put a sound file in its place",
    "ConcurrentModificationException": "another ingest of the same landing folder is running",
    "CONCURRENT_STREAM_LOG_UPDATE": "another ingest of the same landing folder is running",
}


def operators_mistake(error: Exception, folder: str) -> DataError | None:
    """What an operator can mend about a failed batch of `folder`; None where the fault lies elsewhere."""
    text = str(error)
    words = next((words for sign, words in _MISTAKES.items() if sign in text), None)
    file = re.search(r"file:/[^\s,;'\")]+", text)
    return None if words is None else DataError(f"{folder}: {words}{f' ({file[0]})' if file else ''}")
