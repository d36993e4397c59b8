"""Landing files: complete when they appear, published once, recovered from dead processes, whole lines only."""

import errno
import fcntl
import gzip
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mltrust.client import Files, InferenceLogger, recover
from mltrust.client.landing import HOST
from mltrust.formats.files import WireReader
from mltrust.record import HEARTBEAT, Rejected
from tests.unit.test_client import CONTRACT, PATIENCE, ROOT, predict, until

PRODUCER = "0123456789abcdef0123456789abcdef"


def published(folder: Path, stream: str = "records") -> list[Path]:
    return sorted(each for each in (folder / stream).glob("*") if each.name[0] not in "._")


def hidden(folder: Path, stream: str = "records") -> list[Path]:
    return sorted((folder / stream).glob("_*"))


def lines(folder: Path, stream: str = "records") -> list[bytes]:
    """The lines of all published files; every file must end with a newline."""
    found = []
    for path in published(folder, stream):
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        assert content.endswith(b"\n"), path
        found += content.splitlines()
    return found


def request_ids(folder: Path) -> list[str]:
    records = (json.loads(line) for line in lines(folder))
    return [each["request_id"] for each in records if HEARTBEAT not in each]


def files(folder: Path, **options: object) -> Files:
    made = Files(folder, **options)  # type: ignore[arg-type]
    made.start(PRODUCER)
    return made


def test_a_file_is_hidden_until_it_is_complete(tmp_path: Path) -> None:
    sink = files(tmp_path)
    sink.write("records", [b'{"a":1}', b'{"a":2}'])
    sink.write("outcomes", [b'{"b":1}'])
    sink.tend()
    assert published(tmp_path) == published(tmp_path, "outcomes") == []
    (growing,) = hidden(tmp_path)
    assert growing.read_bytes() == b'{"a":1}\n{"a":2}\n', "the system has a batch when write returns"
    sink.close()
    assert lines(tmp_path) == [b'{"a":1}', b'{"a":2}']
    assert lines(tmp_path, "outcomes") == [b'{"b":1}']
    assert hidden(tmp_path) == hidden(tmp_path, "outcomes") == []


def test_a_name_says_when_where_and_by_whom(tmp_path: Path) -> None:
    sink = files(tmp_path, max_bytes=1)
    for at in range(3):
        sink.write("records", [b"%d" % at])
    sink.close()
    names = [path.name for path in published(tmp_path)]
    assert [each.read_bytes() for each in published(tmp_path)] == [b"0\n", b"1\n", b"2\n"], "names sort by time"
    assert all(f"Z-{HOST}-{os.getpid()}-{PRODUCER}-" in name for name in names)
    assert len(set(names)) == 3


def test_a_file_is_published_when_it_is_large_enough(tmp_path: Path) -> None:
    sink = files(tmp_path, max_bytes=20)
    sink.write("records", [b"x" * 10])
    sink.tend()
    assert published(tmp_path) == []
    sink.write("records", [b"x" * 10])
    sink.tend()
    assert [path.stat().st_size for path in published(tmp_path)] == [22]
    sink.close()
    assert len(published(tmp_path)) == 1, "no empty file is published"


def test_a_file_is_published_when_it_is_old_enough_though_nothing_more_comes(tmp_path: Path) -> None:
    with InferenceLogger(CONTRACT, Files(tmp_path, max_seconds=0.05)) as logger:
        predict(logger, "a")
        until(lambda: len(published(tmp_path)) == 1)
        predict(logger, "b")
        until(lambda: len(published(tmp_path)) == 2)
    assert request_ids(tmp_path) == ["a", "b"]


def test_what_appears_never_changes(tmp_path: Path) -> None:
    seen: dict[str, bytes] = {}
    with InferenceLogger(CONTRACT, Files(tmp_path, max_bytes=500)) as logger:
        for at in range(300):
            predict(logger, str(at))
            if at % 10 == 0:
                logger.flush(PATIENCE)
                for path in published(tmp_path):
                    assert seen.setdefault(path.name, path.read_bytes()) == path.read_bytes()
    assert len(seen) > 10
    assert request_ids(tmp_path) == [str(at) for at in range(300)]


@pytest.mark.parametrize("wrong", [{"max_bytes": 0}, {"max_seconds": 0}, {"sync_seconds": -1}])
def test_limits_that_make_no_sense_are_refused(tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected 1 or more, above 0, and 0 or more"):
        Files(tmp_path, **wrong)  # type: ignore[arg-type]


def test_compressed_files_are_gzip_whose_batches_can_be_read_one_by_one(tmp_path: Path) -> None:
    sink = files(tmp_path, compress=True)
    sink.write("records", [b"first", b"second"])
    (growing,) = hidden(tmp_path)
    assert gzip.decompress(growing.read_bytes()) == b"first\nsecond\n"
    sink.write("records", [b"third"])
    sink.close()
    (path,) = published(tmp_path)
    assert path.name.endswith(".jsonl.gz")
    assert lines(tmp_path) == [b"first", b"second", b"third"]


@pytest.mark.parametrize("compress", [False, True])
def test_ingest_reads_every_line_of_a_file_heartbeats_included(tmp_path: Path, compress: bool) -> None:
    with InferenceLogger(CONTRACT, Files(tmp_path, compress=compress)) as logger:
        for at in range(100):
            predict(logger, str(at))
            logger.outcome(outcome_id=str(at), request_id=str(at), name="click", value=1.0)
            if at % 7 == 0:
                logger.flush(PATIENCE)
    for stream, n_lines in (("records", 101), ("outcomes", 100)):
        (path,) = published(tmp_path, stream)
        found = [read.found for read in WireReader(CONTRACT, stream).file(path.name, path.read_bytes())]  # type: ignore[arg-type]
        assert len(found) == n_lines
        assert not [each for each in found if isinstance(each, Rejected)]
        assert sum(HEARTBEAT in each for each in found) == n_lines - 100


def left_behind(folder: Path, content: bytes, *, host: str = HOST, suffix: str = ".jsonl", number: int = 1) -> Path:
    """The hidden file of a process that ended."""
    path = folder / "records" / f"_20261005T080000000000Z-{host}-4242-{PRODUCER}-{number:06}{suffix}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def test_the_start_publishes_the_whole_lines_of_dead_processes(tmp_path: Path) -> None:
    left_behind(tmp_path, b'{"request_id":"a"}\n{"request_id":"b"}\n{"requ')
    left_behind(tmp_path, b"", number=2)
    left_behind(tmp_path, b'{"torn', number=3)
    left_behind(tmp_path, b"x" * 200_000 + b"\n" + b"y" * 200_000, number=4)
    files(tmp_path).close()
    assert [path.read_bytes() for path in published(tmp_path)] == [
        b'{"request_id":"a"}\n{"request_id":"b"}\n',
        b"x" * 200_000 + b"\n",
    ]
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("cut", [0, 1, 5, 30])
def test_the_whole_members_of_a_compressed_file_are_published(tmp_path: Path, cut: int) -> None:
    members = [gzip.compress(f'{{"request_id":"{at}"}}\n'.encode()) for at in range(1000)]
    content = b"".join(members)
    left_behind(tmp_path, content[: len(content) - cut], suffix=".jsonl.gz")
    recover(tmp_path)
    assert request_ids(tmp_path) == [str(at) for at in range(1000 if cut == 0 else 999)]


def test_files_of_other_hosts_are_for_an_operator(tmp_path: Path) -> None:
    left_behind(tmp_path, b'{"request_id":"a"}\n', host="elsewhere-7")
    assert recover(tmp_path) == []
    (path,) = recover(tmp_path, all_hosts=True)
    assert path == published(tmp_path)[0]
    assert request_ids(tmp_path) == ["a"]


def test_a_process_that_ends_while_another_runs_is_recovered_by_that(tmp_path: Path) -> None:
    with InferenceLogger(CONTRACT, Files(tmp_path, max_seconds=0.05)) as logger:
        predict(logger, "new")
        logger.flush(PATIENCE)
        left_behind(tmp_path, b'{"request_id":"old"}\n')
        until(lambda: "old" in request_ids(tmp_path))
    assert sorted(request_ids(tmp_path)) == ["new", "old"]


def test_an_operator_recovers_from_the_command_line(tmp_path: Path) -> None:
    left_behind(tmp_path, b'{"request_id":"a"}\n', host="elsewhere-7")
    command = [sys.executable, "-m", "mltrust.client", str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout == b""
    said = subprocess.run([*command, "--all-hosts"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert said.splitlines() == [str(path) for path in published(tmp_path)]
    assert request_ids(tmp_path) == ["a"]


def test_what_is_no_landing_file_of_ours_is_left_alone(tmp_path: Path) -> None:
    names = ["_SUCCESS", "_copying.jsonl", f"_20261005T080000000000Z-{HOST}-x-{PRODUCER}-1.jsonl", ".hidden"]
    (tmp_path / "records").mkdir()
    for name in names:
        (tmp_path / "records" / name).write_bytes(b"torn")
    assert recover(tmp_path, all_hosts=True) == []
    assert sorted(path.name for path in (tmp_path / "records").iterdir()) == sorted(names)
    assert recover(tmp_path / "nowhere") == []


def test_the_file_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    sink = files(tmp_path)
    sink.write("records", [b"1"])
    assert recover(tmp_path, all_hosts=True) == []
    second = files(tmp_path)
    second.write("records", [b"2"])
    sink.write("records", [b"3"])
    sink.close()
    second.close()
    assert sorted(lines(tmp_path)) == [b"1", b"2", b"3"]


def test_many_that_recover_at_once_publish_every_file_once(tmp_path: Path) -> None:
    for number in range(200):
        left_behind(tmp_path, b'{"request_id":"%d"}\n{' % number, number=number)
    with ThreadPoolExecutor(4) as pool:
        found = [path for each in pool.map(lambda _: recover(tmp_path), range(4)) for path in each]
    assert Counter(found) == Counter(published(tmp_path))
    assert request_ids(tmp_path) == [str(number) for number in range(200)]


def test_a_file_whose_lock_is_taken_before_its_owner_takes_it_is_left_to_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, stolen = fcntl.flock, list[int]()

    def late(fd: int, operation: int) -> None:
        if not stolen:
            stolen.append(1)
            recover(tmp_path)
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    sink = files(tmp_path)
    sink.write("records", [b"1"])
    sink.close()
    assert lines(tmp_path) == [b"1"]


class FullDisk:
    """os.write that takes half of what it is given and then fails, while `full`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self.half = False
        write = os.write

        def limited(fd: int, data: memoryview) -> int:
            if not self.full:
                return write(fd, data)
            self.half = not self.half
            if self.half:
                return write(fd, bytes(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, "no space left on device")

        monkeypatch.setattr(os, "write", limited)


@pytest.mark.parametrize("compress", [False, True])
def test_a_full_disk_leaves_no_part_of_a_line_and_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: bool
) -> None:
    disk = FullDisk(monkeypatch)
    sink = files(tmp_path, compress=compress)
    sink.write("records", [b"first line"])
    disk.full = True
    for _ in range(3):
        with pytest.raises(OSError, match="no space left"):
            sink.write("records", [b"second line", b"third line"])
    disk.full = False
    sink.write("records", [b"second line", b"third line"])
    sink.close()
    assert lines(tmp_path) == [b"first line", b"second line", b"third line"]


def test_closing_on_a_full_disk_publishes_the_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FullDisk(monkeypatch)
    sink = files(tmp_path)
    sink.write("records", [b"first line"])
    disk.full = True
    with pytest.raises(OSError, match="no space left"):
        sink.write("records", [b"second line"])
    sink.close()
    assert lines(tmp_path) == [b"first line"]


def test_a_service_on_a_full_disk_loses_what_its_queue_cannot_hold_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(monkeypatch)
    with InferenceLogger(CONTRACT, Files(tmp_path), capacity=20) as logger:
        predict(logger, "before")
        logger.flush(PATIENCE)
        disk.full = True
        taken = [f"during {at}" for at in range(50) if predict(logger, f"during {at}")]
        assert len(taken) == 20
        disk.full = False
        logger.flush(PATIENCE)
        predict(logger, "after")
    assert request_ids(tmp_path) == ["before", *taken, "after"]


def test_a_failed_sync_acknowledges_nothing_and_its_lines_are_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, failing = os.fsync, [False]

    def broken(fd: int) -> None:
        if failing[0]:
            raise OSError(errno.EIO, "input/output error")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", broken)
    sink = files(tmp_path)
    sink.write("records", [b"synced"])
    sink.sync()
    sink.write("records", [b"perhaps lost"])
    failing[0] = True
    for _ in range(3):
        with pytest.raises(OSError, match="input/output"):
            sink.sync()
        with pytest.raises(OSError, match="input/output"):
            sink.close()
    failing[0] = False
    sink.write("records", [b"later"])
    sink.sync()
    sink.close()
    recover(tmp_path)
    assert lines(tmp_path) == [b"synced", b"perhaps lost", b"later"]


def test_a_file_that_somebody_removes_blocks_nothing_that_follows(tmp_path: Path) -> None:
    sink = files(tmp_path)
    sink.write("records", [b"removed"])
    hidden(tmp_path)[0].unlink()
    with pytest.raises(FileNotFoundError):
        sink.close()
    sink.write("records", [b"kept"])
    sink.close()
    assert lines(tmp_path) == [b"kept"]


def test_a_file_is_synced_within_sync_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, fsync = threading.Event(), os.fsync

    def noted(fd: int) -> None:
        fsync(fd)
        synced.set()

    monkeypatch.setattr(os, "fsync", noted)
    with InferenceLogger(CONTRACT, Files(tmp_path, sync_seconds=0.05)) as logger:
        predict(logger)
        assert synced.wait(PATIENCE)
        assert published(tmp_path) == []
