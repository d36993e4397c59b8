"""Landing files and topics taken into the log and the outcomes: every record once, rejects, balanced books."""

import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from mltrust import queries, runtime
from mltrust.conf import Conf
from mltrust.contract import Contract
from mltrust.formats.files import Stream
from mltrust.io.secrets import from_environment
from mltrust.queries import Running, Work
from mltrust.spark import kafka, logs, mistakes
from mltrust.spark.logs import Batch, Book
from mltrust.spark.mistakes import Mistakes, operators_mistake

log = logging.getLogger("mltrust")
KINDS: dict[str, Stream] = {"inference_log": "records", "outcomes": "outcomes"}
TABLES = (*KINDS, *(f"{table}_rejects" for table in KINDS), "heartbeats", "ingest_batches")


class Inlet(NamedTuple):
    """A place that records of a table come from: its name for people, its progress, how it is read, what can fail."""

    table: str
    where: str
    checkpoint: str
    batch_of: Callable[[DataFrame], Batch]
    parse: Callable[[DataFrame, Batch, Contract, Stream, StructType], DataFrame]
    mistakes: Mistakes


def ingest_all(spark: SparkSession, conf: Conf) -> bool:
    """Takes what is new at every inlet of every kind; whether there is any."""
    are_there = [ingest_table(spark, conf, table) for table in KINDS]
    return any(are_there)


def ingest_table(spark: SparkSession, conf: Conf, table: str) -> bool:
    """Takes what is new of the table in its landing folder and its topic; whether there is either."""
    found = inlets(spark, conf, table)
    for inlet, arrivals in found:
        queries.until_ended(_query(conf, inlet, arrivals, every=None))
    return bool(found)


def starting(spark: SparkSession, conf: Conf, seconds: float) -> Iterator[Running]:
    """Starts the queries that take in what arrives, one per inlet, each as it is asked for.

    A missing landing folder is made if there is no topic.
    """
    for table, kind in KINDS.items():
        if conf.settings.ingest.topic(kind) is None:
            logs.made(spark, conf.settings.landing_folder(conf.log, kind))
        for inlet, arrivals in inlets(spark, conf, table):
            yield _query(conf, inlet, arrivals, every=seconds)


def _query(conf: Conf, inlet: Inlet, arrivals: DataFrame, *, every: float | None) -> Running:
    """An inlet's query that looks every so many seconds, or takes what is there and ends, with the same progress."""
    work = work_of(conf, inlet)
    named = arrivals.writeStream.foreachBatch(work).queryName(f"ingest {inlet.table} from {inlet.where}")
    kept = named.option("checkpointLocation", inlet.checkpoint)
    writer = kept.trigger(availableNow=True) if every is None else kept.trigger(processingTime=f"{every:g} seconds")
    with work.explaining():
        return Running(writer.start(), work, again=writer.start)


def inlets(spark: SparkSession, conf: Conf, table: str) -> list[tuple[Inlet, DataFrame]]:
    """A table's landing folder, where it is there, and its topic, where the conf names one; and what arrives."""
    settings, kind, found = conf.settings.ingest, KINDS[table], list[tuple[Inlet, DataFrame]]()
    folder = conf.settings.landing_folder(conf.log, kind)
    checkpoints = runtime.lakehouse(spark, conf).folder("checkpoints")
    if logs.is_there(spark, folder):
        files = logs.arrivals(spark, folder, settings.max_files_per_batch)
        progress = f"{checkpoints}/{table}-{logs.short_hash(folder)}"
        found.append((Inlet(table, folder, progress, logs.batch_of, logs.parse, mistakes.FOLDER), files))
    else:
        log.info("%s: no landing folder %s", table, folder)
    if (given := settings.kafka) is not None and (topic := settings.topic(kind)) is not None:
        options = {name: from_environment(text, f"kafka: {name}") for name, text in given.options.items()}
        progress = f"{checkpoints}/{table}-kafka-{logs.short_hash(kafka.place(given.servers, topic))}"
        inlet = Inlet(table, f"kafka:{topic}", progress, kafka.batch_of, kafka.parse, mistakes.TOPIC)
        with work_of(conf, inlet).explaining():
            messages = kafka.arrivals(spark, given.servers, topic, options, given.max_messages_per_batch)
        found.append((inlet, messages))
    return found


def work_of(conf: Conf, inlet: Inlet) -> Work:
    """What is done with every batch of an inlet."""
    mistake = partial(operators_mistake, where=inlet.where, signs=inlet.mistakes, checkpoint=inlet.checkpoint)
    return Work(partial(ingest_batch, conf=conf, inlet=inlet), mistake)


def ingest_batch(arrived: DataFrame, number: int, *, conf: Conf, inlet: Inlet) -> None:
    """One batch of an inlet. Done again after a crash, it comes to the same end."""
    with logs.kept(arrived):  # the messages of a topic would be fetched twice
        batch = inlet.batch_of(arrived)
        if batch.files:
            log.info("%s batch %d: %s", inlet.table, number, logs.totals(_ingested(arrived, batch, conf, inlet)))


def _ingested(arrived: DataFrame, batch: Batch, conf: Conf, inlet: Inlet) -> list[Book]:
    """The books of a batch that was taken in."""
    table, lake, ingested_at = inlet.table, runtime.lakehouse(arrived.sparkSession, conf), datetime.now(UTC)
    stored, key = lake.read(table), lake.tables[table].key
    parsed = inlet.parse(arrived, batch, conf.contract, KINDS[table], stored.schema)
    with logs.kept(parsed):
        held = logs.contents(parsed)
        arriving = logs.arriving(logs.ranked(parsed, key), stored.schema, batch.batch_id, ingested_at)
        lake.insert_new(arriving, table, held.dates)
        lake.insert_new(logs.heartbeats(parsed, batch.batch_id, ingested_at), "heartbeats", held.heartbeat_dates)
        now_stored = lake.read(table).where(F.col("event_date").isin(list(held.dates)))
        settled = logs.settled(parsed, now_stored, key, batch.batch_id)
        books = logs.books(settled, batch, table, ingested_at)
        mine = {"ingest_batch": batch.batch_id}
        if any(book.rejected for book in books):
            lake.replace(logs.rejects(settled, batch.batch_id, ingested_at), f"{table}_rejects", mine)
        # The books come last: a batch that they name is whole.
        lake.replace(lake.rows("ingest_batches", [book._asdict() for book in books]), "ingest_batches", mine)
    return books
