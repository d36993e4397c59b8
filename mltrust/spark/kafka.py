"""Messages of a Kafka topic to typed rows: a message is what a line of a landing file is."""

from collections.abc import Iterable, Iterator, Mapping

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from mltrust.contract import Contract
from mltrust.formats.files import Stream, WireReader
from mltrust.spark.logs import ArrowMap, Batch, SourceFile, arrow_batch, arrow_schema, parsed_schema, row_of


def arrivals(
    spark: SparkSession, servers: str, topic: str, options: Mapping[str, str], max_messages: int
) -> DataFrame:
    """A stream of the messages of `topic`, from the earliest on unless `options` say otherwise.

    Messages that are gone before they were read end the query: nothing is passed over without a word. Those of
    transactions that were aborted are none.
    """
    fixed = {
        "kafka.bootstrap.servers": servers,
        "subscribe": topic,
        "maxOffsetsPerTrigger": str(max_messages),
        "failOnDataLoss": "true",
    }
    return spark.readStream.format("kafka").options(**_DEFAULTS | dict(options) | fixed).load()


_DEFAULTS = {"startingOffsets": "earliest", "kafka.isolation.level": "read_committed"}


def place(servers: str, topic: str) -> str:
    """Names a topic of these brokers, in whatever order they are listed: the offsets of other brokers are others."""
    return "|".join([*sorted(each.strip().lower() for each in servers.split(",")), topic])


def batch_of(arrived: DataFrame) -> Batch:
    """The pieces of partitions that a batch is made of; one Spark job. A batch that is done again has the same."""
    pieces = arrived.groupBy("topic", "partition").agg(
        F.min("offset").alias("first"),
        F.max("offset").alias("last"),
        F.sum(F.coalesce(F.octet_length("value"), F.lit(0))).alias("size"),
        F.max("timestamp").alias("latest"),
    )
    found = (
        SourceFile(f"{_prefix(topic, partition)}{first}-{last}", "", size, latest)
        for topic, partition, first, last, size, latest in pieces.collect()
    )
    return Batch(tuple(sorted(found)))


def parse(arrived: DataFrame, batch: Batch, contract: Contract, stream: Stream, table: StructType) -> DataFrame:
    """Every message of a batch as a typed row, a heartbeat or a refusal; its `position` is its offset.

    A message without a value, with which a compacted topic says that a key is gone, is a blank line: nothing.
    """
    schema = parsed_schema(table)
    pieces = {each.source.rpartition("/")[0] + "/": each.source for each in batch.files}
    named = F.create_map(*(F.lit(text) for pair in pieces.items() for text in pair))
    prefix = F.format_string(_prefix("%s", "%d"), "topic", "partition")
    messages = arrived.where(F.col("value").isNotNull()).select(
        "value", F.element_at(named, prefix).alias("source"), "offset"
    )
    return messages.mapInArrow(_parser(contract, stream, schema), schema)


def _prefix(topic: str, partition: int | str) -> str:
    return f"kafka:{topic}/{partition}/"


def _parser(contract: Contract, stream: Stream, schema: StructType) -> ArrowMap:
    arrow = arrow_schema(schema)

    def parse_messages(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        reader = WireReader(contract, stream)
        for batch in batches:
            columns = (column.to_pylist() for column in batch)
            read = ((reader.line(offset, value), source) for value, source, offset in zip(*columns, strict=True))
            yield arrow_batch([row_of(found, source) for found, source in read if found], arrow)

    return parse_messages
