"""What a process leaves that was killed while it made a table.

Delta makes the folder of the log before the first commit. Cut off between them, CREATE TABLE IF NOT EXISTS finds a
folder that is not empty and makes nothing, and every reader finds no table: nothing but removing the folder helps.
"""

import re
import time
from contextlib import suppress
from pathlib import Path

from mltrust.errors import DataError

#: What is left, in words.
UNFINISHED = "what an earlier run left in its _delta_log"
_COMMITTED = re.compile(r"\d{20}\.|_last_checkpoint$")
#: Seconds in which a log without a commit may be that of a writer which is alive.
_YOUNG = 5


def remove_unfinished(table: str) -> None:
    """Removes the log folder of a table of which no version was ever committed; no data lie below it.

    Nothing is removed together with what it holds: a commit that arrives meanwhile stays. A log that was written to
    within the last seconds is given time to become a table, and left alone if it is written to again. Raises
    DataError where the log holds a commit after all, and where the table does not lie on this machine.
    """
    folder = Path(table.removeprefix("file:"))
    log = folder / "_delta_log"
    if not folder.is_dir():
        raise DataError(
            f"{table} is no table, and {UNFINISHED} cannot be looked at from here; "
            f"remove {table}/_delta_log if it holds no {0:020}.json and nothing else is running"
        )
    with suppress(FileNotFoundError):  # another writer removed the same
        time.sleep(max(0.0, _YOUNG - _age(log)))
        left = sorted(log.rglob("*"), reverse=True)  # what a folder holds before the folder
        if committed := [path.name for path in left if _COMMITTED.match(path.name)]:
            raise DataError(f"{table} is no table though its log holds {committed[-1]}")
        if _age(log) >= _YOUNG:
            with suppress(OSError):  # a commit that arrived: making the table again tells
                for path in left:
                    path.rmdir() if path.is_dir() else path.unlink()
                log.rmdir()


def _age(log: Path) -> float:
    """Seconds since something was made in a log or its folders."""
    folders = [log, *(path for path in log.rglob("*") if path.is_dir())]
    return time.time() - max(folder.stat().st_mtime for folder in folders)
