"""What a process leaves that was killed while it made a table.

Delta makes the folder of the log before the first commit. Cut off between them, CREATE TABLE IF NOT EXISTS finds a
folder that is not empty and makes nothing, and every reader finds no table: nothing but removing the folder helps.
"""

import logging
import re
import time
from contextlib import suppress
from math import ceil
from pathlib import Path

from mltrust.errors import DataError

log = logging.getLogger("mltrust")

#: What is left, in words.
UNFINISHED = "what an earlier run left in its _delta_log"
_COMMITTED = re.compile(r"\d{20}\.|_last_checkpoint$")
#: Seconds in which a log without a commit may be that of a writer which is alive: CREATE took 51 s once.
_YOUNG = 60


def remove_unfinished(table: str) -> None:
    """Removes the log folder of a table of which no version was ever committed; no data lie below it.

    Nothing is removed together with what it holds: a commit that arrives meanwhile stays. A log that was written to
    within the last minute is given the rest of it to become a table, and left alone if it is written to again. Raises
    DataError where the log holds a commit before that, and where the table does not lie on this machine.
    """
    folder = Path(table.removeprefix("file:"))
    left = folder / "_delta_log"
    if not folder.is_dir():
        raise DataError(
            f"{table} is no table, and {UNFINISHED} cannot be looked at from here; "
            f"remove {table}/_delta_log if it holds no {0:020}.json and nothing else is running"
        )
    with suppress(FileNotFoundError):  # another writer removed the same
        if committed := _commits(_held(left)):
            raise DataError(f"{table} is no table though its log holds {committed[0]}")
        _wait_for_commit(left, table)
        held = _held(left)
        if not _commits(held) and _age(left) >= _YOUNG:
            with suppress(OSError):  # a commit that arrived: making the table again tells
                for path in held:
                    path.rmdir() if path.is_dir() else path.unlink()
                left.rmdir()


def _wait_for_commit(left: Path, table: str) -> None:
    """Returns once the log is old, or has a commit."""
    seconds = min(_YOUNG, ceil(_YOUNG - _age(left)))
    if seconds > 0:
        log.info("%s: a log without a commit; waiting up to %d s, as its writer may be alive", table, seconds)
    for _ in range(seconds):
        time.sleep(1)
        if _commits(_held(left)):
            return


def _held(left: Path) -> list[Path]:
    """What a log holds; what a folder holds before the folder."""
    return sorted(left.rglob("*"), reverse=True)


def _commits(held: list[Path]) -> list[str]:
    return [path.name for path in held if _COMMITTED.match(path.name)]


def _age(left: Path) -> float:
    """Seconds since something was made in a log or its folders."""
    folders = [left, *(path for path in left.rglob("*") if path.is_dir())]
    return time.time() - max(folder.stat().st_mtime for folder in folders)
