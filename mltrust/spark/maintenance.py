"""The state of tables: their files, and whether what is promised of their keys holds."""

import re
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import NamedTuple

from pyspark.sql import DataFrame
from pyspark.sql import functions as F


class Files(NamedTuple):
    """Files of a partition, or of several."""

    n_rows: int
    n_files: int
    n_small_files: int
    n_bytes: int


class Stored(NamedTuple):
    """The rows of a table and the column that they are partitioned by."""

    rows: DataFrame
    partition: str | None


def files_of(tables: Mapping[str, Stored], small_bytes: int) -> dict[str, dict[str, Files]]:
    """Per table and partition ('' where a table has none) its files, from their footers; one job for all tables.

    Partitions are texts, dates as in 2026-10-05. A table without rows has none.
    """
    if not tables:
        return {}
    rows = reduce(DataFrame.unionByName, (_located(name, *stored) for name, stored in tables.items()))
    files = rows.groupBy("table", "partition", "path").agg(
        F.first("size").alias("size"), F.count("*").alias("n_rows")
    )
    partitions = files.groupBy("table", "partition").agg(
        F.sum("n_rows").alias("n_rows"),
        F.count("*").alias("n_files"),
        F.count_if(F.col("size") < small_bytes).alias("n_small_files"),
        F.sum("size").alias("n_bytes"),
    )
    found: dict[str, dict[str, Files]] = {name: {} for name in tables}
    for row in partitions.collect():
        found[row["table"]][row["partition"]] = Files(*(row[name] for name in Files._fields))
    return found


def _located(name: str, rows: DataFrame, partition: str | None) -> DataFrame:
    """Of every row where it lies."""
    return rows.select(
        F.lit(name).alias("table"),
        (F.col(partition).cast("string") if partition else F.lit("")).alias("partition"),
        F.col("_metadata.file_path").alias("path"),
        F.col("_metadata.file_size").alias("size"),
    )


def total(partitions: Mapping[str, Files]) -> Files:
    """The files of all partitions."""
    return Files(*(sum(getattr(files, name) for files in partitions.values()) for name in Files._fields))


def repeated_keys(rows: DataFrame, key: Sequence[str]) -> int:
    """How many keys more than one row has; promised is none."""
    repeated = rows.groupBy(*key).agg(F.count("*").alias("n")).where(F.col("n") > 1)
    found = repeated.agg(F.count("*").alias("n")).first()
    return 0 if found is None else int(found["n"])


def on_several_dates(rows: DataFrame, identity: Sequence[str]) -> DataFrame:
    """Identities with rows on more than one event_date, and on which: each date counts as a record of its own."""
    dates = rows.groupBy(*identity).agg(F.array_sort(F.collect_set("event_date")).alias("dates"))
    return dates.where(F.size("dates") > 1)


def requests_of_unit(log: DataFrame, unit_id: str) -> list[str]:
    """Ids of the requests that are the unit's alone: one that another unit used on another day says nothing."""
    own = log.where(F.col("unit_id") == unit_id).select("request_id").distinct()
    units = log.join(own, "request_id", "left_semi").groupBy("request_id")
    alone = units.agg(F.count_distinct("unit_id").alias("n")).where(F.col("n") == 1)
    return sorted(row["request_id"] for row in alone.collect())


def rejects_of_unit(rejects: DataFrame, unit_id: str, requests: Sequence[str]) -> DataFrame:
    """Keys of the rejects of a unit or of its requests.

    What is JSON is asked for its ids; in other text the unit must stand as a word, in bytes anywhere.
    """
    raw, binary = F.col("raw"), F.col("raw_encoding") == "base64"
    packed = F.coalesce(F.get_json_object("raw", "$.protobuf"), F.when(binary, raw))
    content = F.try_to_binary(packed, F.lit("base64")).cast("string")
    word = rf"(^|[^\w-]){re.escape(unit_id)}($|[^\w-])"
    of_json = (F.get_json_object("raw", "$.unit_id") == unit_id) | F.get_json_object("raw", "$.request_id").isin(
        list(requests)
    )
    is_json = F.get_json_object("raw", "$").isNotNull()
    names_it = F.when(packed.isNotNull(), content.contains(unit_id)).when(is_json, of_json).otherwise(raw.rlike(word))
    return rejects.where(F.coalesce(names_it, F.lit(False))).select("ingest_batch", "source", "position")
