"""Landing files taken into the log and the outcomes: every record once, rejects with reasons, balanced books."""

import logging
from datetime import UTC, datetime
from functools import partial

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming.query import StreamingQuery
from pyspark.sql.streaming.readwriter import DataStreamWriter

from mltrust import runtime
from mltrust.conf import Conf
from mltrust.formats.files import Stream
from mltrust.spark import logs

log = logging.getLogger("mltrust")
KINDS: dict[str, Stream] = {"inference_log": "records", "outcomes": "outcomes"}
TABLES = (*KINDS, *(f"{table}_rejects" for table in KINDS), "heartbeats", "ingest_batches")


def ingest_all(spark: SparkSession, conf: Conf) -> bool:
    """Takes what is new in the landing folders of every kind; whether there is any such folder."""
    are_there = [ingest_table(spark, conf, table) for table in KINDS]
    return any(are_there)


def ingest_table(spark: SparkSession, conf: Conf, table: str) -> bool:
    """Takes what is new in the table's landing folder; whether there is such a folder."""
    folder = conf.settings.landing_folder(conf.log, KINDS[table])
    if not logs.is_there(spark, folder):
        log.info("%s: no landing folder %s", table, folder)
        return False
    try:
        arriving(spark, conf, table, folder).trigger(availableNow=True).start().awaitTermination()
    except Exception as error:
        raise logs.operators_mistake(error, folder) or error from None
    return True


def started(spark: SparkSession, conf: Conf, seconds: float) -> list[StreamingQuery]:
    """The queries that take files in as they arrive, one per kind; landing folders that are missing are made."""
    found = []
    for table in KINDS:
        folder = conf.settings.landing_folder(conf.log, KINDS[table])
        logs.made(spark, folder)
        query = arriving(spark, conf, table, folder).queryName(f"ingest {table}")
        found.append(query.trigger(processingTime=f"{seconds:g} seconds").start())
    return found


def arriving(spark: SparkSession, conf: Conf, table: str, folder: str) -> DataStreamWriter:
    """The query of a landing folder, not started yet. Its checkpoint is the same however it is triggered."""
    checkpoint = runtime.lakehouse(spark, conf).folder("checkpoints")
    files = logs.arrivals(spark, folder, conf.settings.ingest.max_files_per_batch)
    return files.writeStream.foreachBatch(partial(ingest_batch, conf=conf, table=table)).option(
        "checkpointLocation", f"{checkpoint}/{table}-{logs.short_hash(folder)}"
    )


def ingest_batch(arrived: DataFrame, number: int, *, conf: Conf, table: str) -> None:
    """One batch of landing files. Done again after a crash, it comes to the same end."""
    spark, batch = arrived.sparkSession, logs.batch_of(arrived)
    if not batch.files:
        return
    lake, ingested_at = runtime.lakehouse(spark, conf), datetime.now(UTC)
    stored, key = lake.read(table), lake.tables[table].key
    with logs.kept(logs.parse(spark, batch, conf.contract, KINDS[table], stored.schema)) as parsed:
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
    log.info("%s batch %d: %s", table, number, logs.totals(books))
