"""A landing file in the making: hidden and locked until it is complete, whole lines only.

The lock is the kernel's (flock), so it ends with its process, however that ends: a hidden file whose lock can be
taken has no owner any more.
"""

import fcntl
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from mltrust.client.sinks import STREAMS

#: This machine, as file names say it.
HOST = re.sub(r"[^A-Za-z0-9.]", "-", os.uname().nodename) or "host"
_HIDDEN = re.compile(r"_\d{8}T\d{12}Z-(?P<host>.+)-\d+-[0-9a-f]+-\d+\.jsonl(?P<gzip>\.gz)?")
_CHUNK_BYTES = 1 << 16
_GZIP = 31  # zlib's number for the gzip format


def hidden_name(producer_id: str, number: int, *, compress: bool) -> str:
    """A name that no other file has and that sorts by time: UTC time, host, process, producer, number."""
    made = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
    return f"_{made}-{HOST}-{os.getpid()}-{producer_id}-{number:06}.jsonl{'.gz' if compress else ''}"


def locked(path: Path, flags: int) -> int | None:
    """A descriptor of `path` that holds its lock; None where another process holds it or has moved the file."""
    fd = os.open(path, flags, 0o666)
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between open and lock another process may have published or removed it.
        if os.path.samestat(os.fstat(fd), os.stat(path)):
            return fd
    os.close(fd)
    return None


def sync_folder(folder: Path) -> None:
    """Afterwards the names in `folder` survive the end of the machine."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@dataclass(slots=True, eq=False)
class LandingFile:
    """An open hidden file. `n_bytes` are whole lines; `unsynced` is what the disk may not have yet."""

    path: Path
    fd: int
    born: float
    compress: bool
    n_bytes: int = 0
    n_synced: int = 0
    unsynced: list[bytes] = field(default_factory=list)

    def append(self, lines: Sequence[bytes]) -> None:
        """Hands the lines to the system; OSError where it took not all of them, and then it keeps none."""
        data = b"".join(line + b"\n" for line in lines)
        if self.compress:
            data = zlib.compress(data, wbits=_GZIP)
        self.cut(self.n_bytes)
        _write(self.fd, data)
        self.n_bytes += len(data)
        self.unsynced += lines

    def cut(self, n_bytes: int) -> None:
        """Takes off what stands behind the first `n_bytes`."""
        if os.fstat(self.fd).st_size != n_bytes:
            os.ftruncate(self.fd, n_bytes)
        os.lseek(self.fd, n_bytes, os.SEEK_SET)
        self.n_bytes = n_bytes

    def sync(self) -> None:
        os.fsync(self.fd)
        if self.n_synced == 0:
            sync_folder(self.path.parent)
        self.n_synced = self.n_bytes
        self.unsynced = []

    def publish(self) -> None:
        """Gives the file the name by which ingest sees it, or removes it where it is empty; lets go of the lock."""
        self.cut(self.n_bytes)
        _publish(self.path, self.fd, self.n_bytes)
        os.close(self.fd)

    def give_up(self) -> None:
        """Publishes what the disk has for certain, if that can be done."""
        with suppress(OSError):
            self.cut(self.n_synced)
            _publish(self.path, self.fd, self.n_bytes)
        os.close(self.fd)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _publish(path: Path, fd: int, n_bytes: int) -> None:
    if n_bytes == 0:
        path.unlink(missing_ok=True)
        return
    os.fsync(fd)
    path.rename(path.with_name(path.name[1:]))
    sync_folder(path.parent)


def recover(folder: str | os.PathLike[str], *, all_hosts: bool = False) -> list[Path]:
    """Publishes what dead processes left in the landing folder of a log, and gives the published files.

    A last line that was cut off goes: it was never acknowledged. Files of other hosts are left alone unless
    `all_hosts`, which is for an operator who knows that those hosts are gone, as locks of other machines are not
    seen on every network file system.
    """
    found = (path for stream in STREAMS for path in _hidden(Path(folder, stream)))
    return [path.with_name(path.name[1:]) for path in found if _recovered(path, all_hosts=all_hosts)]


def _hidden(folder: Path) -> list[Path]:
    try:
        return sorted(folder / name for name in os.listdir(folder) if name.startswith("_"))
    except FileNotFoundError:
        return []


def _recovered(path: Path, *, all_hosts: bool) -> bool:
    """Whether this was the file of a dead process, and is now published."""
    named = _HIDDEN.fullmatch(path.name)
    if named is None or not (all_hosts or named["host"] == HOST):
        return False
    with _locked(path) as fd:
        if fd is None:
            return False
        n_bytes = _whole_members(fd) if named["gzip"] else _whole_lines(fd)
        os.ftruncate(fd, n_bytes)
        _publish(path, fd, n_bytes)
        return n_bytes > 0


@contextmanager
def _locked(path: Path) -> Iterator[int | None]:
    fd = None
    with suppress(OSError):
        fd = locked(path, os.O_RDWR)
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def _whole_lines(fd: int) -> int:
    """Bytes up to and with the last newline."""
    end = os.fstat(fd).st_size
    while end > 0:
        start = max(0, end - _CHUNK_BYTES)
        at = os.pread(fd, end - start, start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


def _whole_members(fd: int) -> int:
    """Bytes up to the end of the last complete gzip member; each holds whole lines."""
    whole = read = 0
    member = zlib.decompressobj(wbits=_GZIP)
    with suppress(zlib.error):
        while chunk := os.pread(fd, _CHUNK_BYTES, read):
            read += len(chunk)
            while chunk:
                member.decompress(chunk)
                if not member.eof:
                    break
                chunk = member.unused_data
                whole = read - len(chunk)
                member = zlib.decompressobj(wbits=_GZIP)
    return whole
