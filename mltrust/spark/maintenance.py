"""The state of tables: their files, and whether what is promised of their keys holds."""

import re
from collections.abc import Sequence
from datetime import date
from typing import NamedTuple

from pyspark.sql import DataFrame
from pyspark.sql import functions as F


class Files(NamedTuple):
    """Files of a table. Its `loose` partitions have several small ones."""

    n_rows: int
    n_files: int
    n_small_files: int
    n_bytes: int
    loose: tuple[date | str, ...]


def files_of(rows: DataFrame, small_bytes: int, partition: str | None) -> Files:
    """The files of a table or of some partitions of it, from their footers; one Spark job."""
    value = F.col(partition) if partition else F.lit("")
    files = rows.groupBy(F.col("_metadata.file_path").alias("path"), value.alias("partition")).agg(
        F.first("_metadata.file_size").alias("size"), F.count("*").alias("n_rows")
    )
    found = (
        files.groupBy("partition")
        .agg(
            F.sum("n_rows").alias("n_rows"),
            F.count("*").alias("n_files"),
            F.count_if(F.col("size") < small_bytes).alias("n_small_files"),
            F.sum("size").alias("n_bytes"),
        )
        .collect()
    )
    loose = sorted(row["partition"] for row in found if row["n_small_files"] > 1)
    n_rows, n_files, n_small_files, n_bytes = (sum(row[name] for row in found) for name in Files._fields[:4])
    return Files(n_rows, n_files, n_small_files, n_bytes, tuple(loose))


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
