"""A sink of landing files, which ingest reads as they are."""

import os
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

from mltrust.client.landing import LandingFile, hidden_name, locked, recover
from mltrust.client.sinks import Stream

_IDLE_SECONDS = 3600.0
# Lines stay in memory until they are synced, as a failed sync may lose them.
_MOST_UNSYNCED_BYTES = 16 << 20


class Files:
    """JSON lines in `<folder>/records` and `<folder>/outcomes`, `<landing>/<log>` being the folder.

    A file is hidden by a leading `_` while it grows and gets its name at `max_bytes`, or `max_seconds` after its
    first line. It is synced to the disk every `sync_seconds`: what a crash of the machine can take. At the start
    and every `max_seconds` the files of dead processes of this host are published. `compress` makes every batch a
    gzip member. POSIX file systems only.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        max_bytes: int = 64 << 20,
        max_seconds: float = 60.0,
        compress: bool = False,
        sync_seconds: float = 1.0,
    ) -> None:
        if max_bytes < 1 or max_seconds <= 0 or sync_seconds < 0:
            raise ValueError(
                f"max_bytes is {max_bytes}, max_seconds {max_seconds}, sync_seconds {sync_seconds}; "
                "expected 1 or more, above 0, and 0 or more"
            )
        self._folder, self._compress = Path(folder), compress
        self._max_bytes, self._max_seconds, self._sync_seconds = max_bytes, max_seconds, sync_seconds
        self._producer_id, self._number = "0", 0
        self._files: dict[Stream, LandingFile] = {}
        self._owed: dict[Stream, list[bytes]] = {}
        self._synced_at = self._recovered_at = monotonic()

    def start(self, producer_id: str) -> None:
        self._producer_id = producer_id
        self._recover()

    def _recover(self) -> None:
        # Again and again, as in a rolling deployment the old process ends after the new one started.
        self._recovered_at = monotonic()
        recover(self._folder)

    def write(self, stream: Stream, lines: Sequence[bytes]) -> None:
        self._pay(stream)
        self._file(stream).append(lines)

    def _pay(self, stream: Stream) -> None:
        """Writes again what a failed sync may have lost."""
        if owed := self._owed.get(stream):
            self._file(stream).append(owed)
            del self._owed[stream]

    def _file(self, stream: Stream) -> LandingFile:
        file = self._files.get(stream)
        if file is not None and self._complete(file):
            self._publish(stream)
            file = None
        if file is None:
            file = self._files[stream] = self._claimed(self._folder / stream)
        if file.n_bytes == 0:
            file.born = monotonic()
        return file

    def _claimed(self, folder: Path) -> LandingFile:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            self._number += 1
            path = folder / hidden_name(self._producer_id, self._number, compress=self._compress)
            fd = locked(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            if fd is not None:
                return LandingFile(path, fd, monotonic(), self._compress)

    def _complete(self, file: LandingFile) -> bool:
        return file.n_bytes >= self._max_bytes or (file.n_bytes > 0 and self._age(file) >= self._max_seconds)

    def _age(self, file: LandingFile) -> float:
        return monotonic() - file.born

    def _publish(self, stream: Stream) -> None:
        """Syncs and publishes. A file that somebody has removed is given up, as it could block all that follow."""
        self._sync(stream)
        file = self._files[stream]
        try:
            file.publish()
        except FileNotFoundError:
            os.close(self._files.pop(stream).fd)
            raise
        del self._files[stream]

    def sync(self) -> None:
        for stream in list(self._owed):
            self._pay(stream)
        for stream, file in list(self._files.items()):
            if file.unsynced:
                self._sync(stream)
        self._synced_at = monotonic()

    def _sync(self, stream: Stream) -> None:
        """After a failed fsync the next one succeeds although pages are lost: their lines go to another file."""
        file = self._files[stream]
        try:
            file.sync()
        except OSError:
            del self._files[stream]
            self._owed.setdefault(stream, []).extend(file.unsynced)
            file.give_up()
            raise

    def tend(self) -> float:
        for stream, file in list(self._files.items()):
            if self._complete(file):
                self._publish(stream)
        if self._until_sync() <= 0:
            self.sync()
        if self._until_recovery() <= 0:
            self._recover()
        ages = [self._max_seconds - self._age(file) for file in self._files.values() if file.n_bytes]
        return max(0.0, min([self._until_sync(), self._until_recovery(), *ages]))

    def _until_recovery(self) -> float:
        return self._max_seconds - (monotonic() - self._recovered_at)

    def _until_sync(self) -> float:
        behind = [file.n_bytes - file.n_synced for file in self._files.values() if file.unsynced]
        if not behind and not self._owed:
            return _IDLE_SECONDS
        if sum(behind) > _MOST_UNSYNCED_BYTES:
            return 0.0
        return self._sync_seconds - (monotonic() - self._synced_at)

    def close(self) -> None:
        self.sync()
        for stream in list(self._files):
            self._publish(stream)

    def forked(self) -> None:
        for file in self._files.values():
            os.close(file.fd)
        self._files, self._owed = {}, {}
