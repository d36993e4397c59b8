"""Spill files: batches that a full queue leaves on disk until the sink has time for them."""

import os
import re
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mltrust.client.buffer import Batch
from mltrust.client.landing import HOST, locked
from mltrust.client.policies import Spill
from mltrust.client.sinks import STREAMS, Stream

Lines = Mapping[Stream, Sequence[bytes]]
_LOCK = "lock"
_OURS = re.compile(re.escape(HOST) + r"-\d+-[0-9a-f]+")


class Spilled(NamedTuple):
    """The files of one batch; `batch` is None where another process spilled it."""

    paths: tuple[Path, ...]
    n_bytes: int
    batch: Batch | None

    def lines(self) -> dict[Stream, list[bytes]]:
        """The whole lines, by stream; a line that was cut off goes."""
        return {_stream(path): path.read_bytes().split(b"\n")[:-1] for path in self.paths}


def _stream(path: Path) -> Stream:
    return next(stream for stream in STREAMS if path.name.endswith(f".{stream}.jsonl"))


class Spool:
    """The spilled batches of one process: a folder of its own, locked for as long as the process lives.

    At the start it takes up the folders of dead processes of this host. A batch is a file per stream and goes
    when the sink has it, so a process that is killed leaves at most the batch in hand to be sent twice.
    """

    def __init__(self, policy: Spill, producer_id: str) -> None:
        self._folder, self._max_bytes = Path(policy.folder), policy.max_bytes
        self._waiting: deque[Spilled] = deque()
        self._locks: dict[Path, int] = {}
        # Named before any thread runs: the spiller may put batches while the sink still starts.
        self._own = self._folder / f"{HOST}-{os.getpid()}-{producer_id}"
        # The spiller alone counts what came, the writer alone what went: no lock.
        self._number = self._n_bytes_put = self._n_bytes_done = 0

    def start(self) -> int:
        """Takes up what dead processes left, and says how many batches that is."""
        folders = [each for each in sorted(self._folder.glob(f"{HOST}-*")) if _OURS.fullmatch(each.name)]
        return sum(self._adopted(folder) for folder in folders if folder != self._own)

    def _adopted(self, folder: Path) -> int:
        """How many batches the folder of a dead process brought."""
        found: list[Spilled] = []
        with suppress(OSError):
            if (fd := locked(folder / _LOCK, os.O_RDWR)) is not None:
                self._locks[folder] = fd
                found = [Spilled((path,), 0, None) for path in sorted(folder.glob("*.jsonl"))]
                self._waiting += found
                self._leave(folder)
        return len(found)

    def _leave(self, folder: Path) -> None:
        """Removes the folder and its lock where no batch is left in it."""
        if any(folder.glob("*.jsonl")):
            return
        (folder / _LOCK).unlink(missing_ok=True)
        folder.rmdir()
        os.close(self._locks.pop(folder))

    def has_room(self) -> bool:
        return self._n_bytes_put - self._n_bytes_done < self._max_bytes

    def put(self, batch: Batch | None, lines: Lines) -> None:
        """Writes the batch; OSError where it cannot, and then nothing of it is left."""
        self._claim()
        self._number += 1
        paths = {stream: self._own / f"{self._number:09}.{stream}.jsonl" for stream in STREAMS if lines.get(stream)}
        try:
            sizes = [path.write_bytes(b"".join(line + b"\n" for line in lines[each])) for each, path in paths.items()]
        except OSError:
            for path in paths.values():
                path.unlink(missing_ok=True)
            raise
        self._n_bytes_put += sum(sizes)
        self._waiting.append(Spilled(tuple(paths.values()), sum(sizes), batch))

    def _claim(self) -> None:
        if self._own in self._locks:
            return
        self._own.mkdir(parents=True, exist_ok=True)
        fd = locked(self._own / _LOCK, os.O_RDWR | os.O_CREAT)
        if fd is None:
            raise OSError(f"{self._own}: another process holds it")
        self._locks[self._own] = fd

    def first(self) -> Spilled | None:
        """The batch that has waited longest."""
        return self._waiting[0] if self._waiting else None

    def done(self, spilled: Spilled) -> None:
        """The sink has the first batch."""
        self.skip(spilled)
        for path in spilled.paths:
            path.unlink(missing_ok=True)
            if path.parent != self._own:
                self._leave(path.parent)

    def skip(self, spilled: Spilled) -> None:
        """Leaves the files of the first batch where they are."""
        self._waiting.popleft()
        self._n_bytes_done += spilled.n_bytes

    def close(self) -> None:
        """Leaves what is still there to a later process."""
        if self._own in self._locks:
            self._leave(self._own)
        self.forked()

    def forked(self) -> None:
        for fd in self._locks.values():
            os.close(fd)
        self._waiting, self._locks = deque(), {}
