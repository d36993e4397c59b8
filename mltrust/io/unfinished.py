"""What a process leaves that was killed while it made a table.

Delta makes the folder of the log before the first commit. Cut off between them, CREATE TABLE IF NOT EXISTS finds a
folder that is not empty and makes nothing, and every reader finds no table: nothing but removing the folder helps.
"""

import re
from contextlib import suppress
from typing import Any

from pyspark.sql import SparkSession

from mltrust.errors import DataError

_COMMITTED = re.compile(r"\d{20}\.|_last_checkpoint$")


def remove_unfinished(spark: SparkSession, table: str) -> None:
    """Removes the log folder of a table of which no version was ever committed; no data lie below it.

    Nothing is removed together with what it holds: a commit that arrives meanwhile stays. Raises DataError where the
    folder holds a commit after all, or the session cannot reach the files.
    """
    jvm: Any = getattr(spark, "_jvm", None)
    if jvm is None:
        raise DataError(f"{table}: its making was cut off before the first commit; remove {table}/_delta_log")
    log = jvm.org.apache.hadoop.fs.Path(f"{table}/_delta_log")
    files = log.getFileSystem(spark._jsparkSession.sessionState().newHadoopConf())
    if not files.exists(log):
        return
    left = [status.getPath() for status in files.listStatus(log)]
    if committed := sorted(path.getName() for path in left if _COMMITTED.match(path.getName())):
        raise DataError(f"{table}: is no table though its log holds {committed[0]}")
    with suppress(Exception):  # another writer removes the same or commits at last: making it again tells
        for path in [*left, log]:
            files.delete(path, False)
