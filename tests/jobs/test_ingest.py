"""Ingest under bad input, crashes and concurrency: every record once, the books balanced."""

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from jobs import ingest_logs
from mltrust import conf, landing, runtime
from mltrust.conf import Conf
from mltrust.contract import Reason
from mltrust.errors import DataError
from mltrust.formats import avro, protobuf
from mltrust.io.tables import Lakehouse
from mltrust.record import RecordReader
from mltrust.settings import Ingest
from mltrust.verdicts import Exit
from tests.conftest import ROOT
from tests.unit.test_record import BAD, V01, v02

AS_OF = datetime(2026, 11, 2, tzinfo=UTC)


@cache
def empty(spark: SparkSession) -> Path:
    """A lakehouse whose tables hold nothing, to be copied: making them costs more than most tests."""
    root = Path(tempfile.mkdtemp(dir=Path.cwd()))
    runtime.lakehouse(spark, of(root)).ensure(*landing.TABLES)
    return root


def of(root: Path) -> Conf:
    """The shipped conf of a log that lies in `root`; its runs lie together with those of other tests."""
    shipped = conf.load(ROOT / "conf/contracts/recommendations.yaml", "local")
    ingest = replace(shipped.settings.ingest, max_reject_share=1.0)
    return replace(shipped, settings=replace(shipped.settings, root=str(root), ingest=ingest))


class Log:
    """A lakehouse of its own with landing folders to write into."""

    def __init__(self, spark: SparkSession, root: Path) -> None:
        self.spark, self.root, self.conf = spark, root, of(root)

    def land(self, name: str, lines: list[bytes], kind: str = "records", root: Path | None = None) -> Path:
        path = (root or self.root) / "landing/recommendations" / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = b"".join(line + b"\n" for line in lines)
        hidden = path.with_name(f"_{name}")
        hidden.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        hidden.rename(path)
        return path

    def write(self, name: str, content: bytes, kind: str = "records") -> None:
        path = self.root / "landing/recommendations" / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def ingest(self) -> Exit:
        return ingest_logs.run(self.spark, self.conf, AS_OF)

    @property
    def lake(self) -> Lakehouse:
        return runtime.lakehouse(self.spark, self.conf)

    def books(self) -> dict[str, tuple[int, int, int, int]]:
        """File name -> records, accepted, rejected, duplicates, summed over its batches."""
        found: dict[str, tuple[int, int, int, int]] = {}
        for row in self.lake.read("ingest_batches").collect():
            name, numbers = (
                Path(unquote(row["source"])).name,
                tuple(row[each] for each in ("records", "accepted", "rejected", "duplicates")),
            )
            assert numbers[0] == sum(numbers[1:]) + row["heartbeats"]
            assert name not in found
            found[name] = numbers
        return found

    def request_ids(self) -> list[str]:
        return sorted(row["request_id"] for row in self.lake.read("inference_log").select("request_id").collect())


@pytest.fixture
def log(spark: SparkSession, tmp_path: Path) -> Log:
    return Log(spark, shutil.copytree(empty(spark), tmp_path, dirs_exist_ok=True))


def lines(*request_ids: str, **changes: object) -> list[bytes]:
    return [json.dumps(v02(request_id=each, **changes)).encode() for each in request_ids]


def test_each_reason_code_reaches_the_rejects_table_with_the_raw_line(log: Log) -> None:
    bad = [raw.replace(b"\n", b" ") for _, raw, _ in BAD]
    inconsistent = lines("err", status="error")
    first = lines("taken")
    log.land("bad.jsonl", [*bad, *inconsistent, b"", b"  ", V01.replace(b"\n", b" "), *first])
    log.land("a.avro", [b"no container"])
    assert log.ingest() == Exit.PASS
    log.land("later.jsonl", lines("taken", prediction_score=0.25))
    log.ingest()
    rows = log.lake.read("inference_log_rejects").orderBy("source", "position").collect()
    codes = [str(code) for code, _, _ in BAD]
    assert [row["reason_code"] for row in rows] == ["unreadable", *codes, "inconsistent", "conflicting_duplicate"]
    assert {row["reason_code"] for row in rows} == set(Reason)
    for row, raw in zip(rows[1:], bad, strict=False):
        assert (row["raw"].encode() == raw) == (row["raw_encoding"] == "text")
    assert [row["raw_encoding"] for row in rows].count("base64") == 2
    assert (rows[-1]["model_name"], rows[-1]["model_version"]) == ("ranker", "1")
    assert {row["model_name"] for row in rows} == {None, "linear_regression", "ranker"}
    assert log.books() == {
        "a.avro": (1, 0, 1, 0),
        "bad.jsonl": (len(bad) + 3, 2, len(bad) + 1, 0),
        "later.jsonl": (1, 0, 1, 0),
    }


@pytest.mark.slow
def test_the_first_ingested_stays_and_within_a_batch_the_smallest_hash(log: Log) -> None:
    versions = [lines("r1", prediction_score=score)[0] for score in (0.1, 0.2, 0.3)]
    log.land("a.jsonl", [versions[2], versions[0], versions[0]])
    log.land("b.jsonl.gz", [versions[1], *lines("r2")])
    log.ingest()
    reader = RecordReader(log.conf.contract)
    hashes = [row["content_hash"] for row in map(reader.read, versions) if isinstance(row, dict)]
    [kept] = log.lake.read("inference_log").where("request_id = 'r1'").collect()
    assert kept["content_hash"] == min(map(str, hashes))
    totals = [sum(column) for column in zip(*log.books().values(), strict=True)]
    # Three contents of one key: one stays, the others conflict; a copy of the one that stays is a duplicate.
    copies = 2 if kept["prediction_score"] == 0.1 else 1
    assert totals == [5, 2, 4 - copies, copies - 1]


@pytest.mark.slow
def test_the_same_request_on_two_days_is_two_records(log: Log) -> None:
    log.land("a.jsonl", [*lines("r1"), *lines("r1", event_time="2026-10-06T00:00:00Z")])
    log.ingest()
    assert log.request_ids() == ["r1", "r1"]


@pytest.mark.slow
def test_outcomes_have_their_own_keys_rejects_and_books(log: Log) -> None:
    def told(**changes: object) -> bytes:
        record = {"outcome_id": "o", "request_id": "r", "name": "sale", "value": 1, "event_time": 1791158400}
        return json.dumps(record | changes).encode()

    log.land("o.jsonl", [told(), told(), told(revision=1, value=2), told(request_id=None), b"{"], "outcomes")
    log.ingest()
    log.land("later.jsonl", [told(value=3), told(value=2, revision=1)], "outcomes")
    log.ingest()
    assert log.books() == {"o.jsonl": (5, 2, 2, 1), "later.jsonl": (2, 0, 1, 1)}
    revisions = {row["revision"] for row in log.lake.read("outcomes").collect()}
    assert revisions == {0, 1}
    codes = sorted(row["reason_code"] for row in log.lake.read("outcomes_rejects").collect())
    assert codes == ["conflicting_duplicate", "missing_field", "unparsable"]


def test_a_day_is_ingested_without_reading_the_files_of_other_days(log: Log) -> None:
    log.land("old.jsonl", lines("r1"))
    log.ingest()
    old = list((log.root / "recommendations/inference_log").glob("event_date=2026-10-05/*.parquet"))
    assert old
    for path in old:
        path.unlink()
    log.land("new.jsonl", lines("r2", event_time="2026-10-06T00:00:00Z"))
    assert log.ingest() == Exit.PASS
    assert log.books()["new.jsonl"] == (1, 1, 0, 0)
    with pytest.raises(Exception, match="FILE_NOT_EXIST|does not exist"):
        log.lake.read("inference_log").where(F.col("event_date") == F.lit(date(2026, 10, 5))).collect()


@pytest.mark.slow
def test_too_many_rejects_end_with_a_breach(log: Log) -> None:
    log.conf = replace(log.conf, settings=replace(log.conf.settings, ingest=Ingest(max_reject_share=0.4)))
    log.land("half.jsonl", [*lines("r1"), b"{"])
    assert log.ingest() == Exit.BREACH


def test_no_landing_folder_is_named(log: Log) -> None:
    with pytest.raises(
        DataError, match=r"no landing folder and no topic: expected files in .*/recommendations/records"
    ):
        log.ingest()


@pytest.mark.slow
def test_an_unreadable_file_or_the_rest_of_one_is_one_reject(log: Log) -> None:
    path = log.land("a.jsonl.gz", lines(*(f"r{at}" for at in range(2000))))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    log.land("b.avro", [b"no container"])
    log.land("c.jsonl.zst", [b"packed otherwise"])
    log.land("d.jsonl", lines("last"))
    assert log.ingest() == Exit.PASS
    books, kept = log.books(), len(log.request_ids()) - 1
    assert 500 < kept < 1500
    assert books == {
        "a.jsonl.gz": (kept + 1, kept, 1, 0),
        "b.avro": (1, 0, 1, 0),
        "c.jsonl.zst": (1, 0, 1, 0),
        "d.jsonl": (1, 1, 0, 0),
    }
    rows = log.lake.read("inference_log_rejects").orderBy("source").collect()
    assert {row["reason_code"] for row in rows} == {"unreadable"}
    assert [row["position"] for row in rows] == [kept + 1, 1, 1]
    assert b64decode(rows[1]["raw"]) == b"no container\n"
    # Whole and under another name, the file brings what was missing.
    log.land("a2.jsonl.gz", lines(*(f"r{at}" for at in range(2000))))
    log.ingest()
    assert log.books()["a2.jsonl.gz"] == (2000, 2000 - kept, 0, kept)


@pytest.mark.slow
def test_every_format_gives_the_same_rows(log: Log) -> None:
    contract = log.conf.contract
    records = [v02(request_id=f"r{at}", event_time=1_791_158_400_000_000 + at) for at in range(50)]
    messages = [protobuf.Codec(contract, "Record").encode(record) for record in records]
    plain = [json.dumps(record).encode() for record in records]
    formats = {
        "a.jsonl": b"\n".join(plain),
        "a.jsonl.gz": gzip.compress(b"\n".join(plain)),
        "a.avro": avro.encode(records, avro.record_schema(contract)),
        "a.pb": protobuf.delimited(messages),
        "lines.jsonl": b"\n".join(json.dumps({"protobuf": b64encode(each).decode()}).encode() for each in messages),
    }
    for name, content in formats.items():
        log.write(name, content)
    log.ingest()
    assert log.request_ids() == sorted(f"r{at}" for at in range(50))
    totals = [sum(column) for column in zip(*log.books().values(), strict=True)]
    assert totals == [250, 50, 0, 200]


@pytest.mark.slow
def test_files_of_any_name_are_read(log: Log) -> None:
    names = ["a b.jsonl", "a%20b.jsonl", "a[1]{2}*?.jsonl", "ä€.jsonl", "a[1] %.avro"]
    for name in names:
        record = v02(request_id=name, event_time=1_791_158_400_000_000)
        schema = avro.record_schema(log.conf.contract)
        log.write(name, avro.encode([record], schema) if name.endswith("avro") else json.dumps(record).encode())
    log.ingest()
    assert log.request_ids() == sorted(names)
    assert log.books() == dict.fromkeys(names, (1, 1, 0, 0))


@pytest.mark.slow
def test_a_file_of_blank_lines_has_its_book(log: Log) -> None:
    log.land("a.jsonl", [b"", b" "])
    log.land("b.jsonl", lines("r1"))
    log.ingest()
    assert log.books() == {"a.jsonl": (0, 0, 0, 0), "b.jsonl": (1, 1, 0, 0)}


@pytest.mark.slow
def test_what_a_producer_says_of_itself_is_kept_once_and_is_no_prediction(log: Log) -> None:
    def beat(sequence: int, **changes: object) -> bytes:
        told: dict[str, object] = {
            "producer_id": "p",
            "sequence": sequence,
            "model_name": "ranker",
            "model_version": "1",
            "window_start": 1_791_158_400_000_000,
            "event_time": 1_791_158_460_000_000,
            "logged": 10,
            "written": 7,
            "dropped": 3,
            "invalid": 0,
            "spilled": 0,
        }
        return json.dumps({"heartbeat": told | changes}).encode()

    log.land("a.jsonl", [*lines("r1"), beat(0), beat(0), beat(1), beat(2, dropped="many")])
    log.ingest()
    log.land("b.jsonl", [beat(1), beat(3)])
    log.ingest()
    rows = log.lake.read("heartbeats").orderBy("sequence").collect()
    assert [(row["sequence"], row["dropped"]) for row in rows] == [(0, 3), (1, 3), (3, 3)]
    assert log.request_ids() == ["r1"]
    books = log.lake.read("ingest_batches").orderBy("source").collect()
    assert [(row["records"], row["accepted"], row["rejected"], row["heartbeats"]) for row in books] == [
        (5, 1, 1, 3),
        (2, 0, 0, 2),
    ]


def test_two_ingests_of_overlapping_files_at_once_take_every_record_once(log: Log) -> None:
    other = Log(log.spark, log.root)
    other.conf = replace(other.conf, settings=replace(other.conf.settings, landing=str(log.root / "second/landing")))
    ids = [f"r{at:03}" for at in range(60)]
    for at in range(3):
        log.land(f"a{at}.jsonl", lines(*ids[at * 15 : at * 15 + 30]))
        log.land(f"b{at}.jsonl", lines(*ids[at * 15 : at * 15 + 30]), root=log.root / "second")
    ends: list[Exit] = []
    # The work of the two jobs at once; their MLflow runs would share one process.
    threads = [threading.Thread(target=lambda each=each: ends.append(ingest_only(each))) for each in (log, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends == [Exit.PASS, Exit.PASS]
    assert log.request_ids() == ids
    books = log.books()
    assert len(books) == 6
    assert sum(accepted for _, accepted, _, _ in books.values()) == 60
    assert sum(duplicates for *_, duplicates in books.values()) == 120
    assert log.lake.read("inference_log_rejects").count() == 0


def ingest_only(log: Log) -> Exit:
    landing.ingest_table(log.spark, log.conf, "inference_log")
    return Exit.PASS


def killed_ingest(folder: Path, now: Callable[[], bool]) -> bool:
    """Starts ingest as a program and kills it with all its processes when `now` says so; whether it still ran."""
    command = [sys.executable, "-m", "mltrust_jobs.ingest_logs", "--config", "conf/contracts/recommendations.yaml"]
    with (folder / "killed.log").open("ab") as output:
        started = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, start_new_session=True)
    while started.poll() is None:
        if now():
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()
            return True
        time.sleep(0.02)
    return False


def at_random(rng: random.Random) -> Callable[[], bool]:
    end = time.monotonic() + rng.uniform(8, 22)
    return lambda: time.monotonic() > end


def assert_killed_ingest_loses_nothing(
    spark: SparkSession, folder: Path, kills: int, moment: Callable[[random.Random], Callable[[], bool]]
) -> None:
    """Kills ingest at its moments while files keep coming, then lets it finish: the books must balance."""
    from tests.jobs.conftest import copied_conf

    copy = copied_conf(folder, n_units=10)
    base = copy / "base.yaml"
    base.write_text(base.read_text().replace("max_files_per_batch: 1000", "max_files_per_batch: 6"))
    log = Log(spark, folder / ".lakehouse")
    rng, expected, landed = random.Random(5), set[str](), dict[str, int]()
    interrupted = 0
    for attempt in range(kills):
        for at in range(6):
            ids = [f"{attempt}-{at}-{line:04}" for line in range(400)]
            repeated = rng.sample(sorted(expected), min(50, len(expected)))
            name = f"{attempt}-{at}.jsonl"
            log.land(name, [*lines(*ids), *lines(*repeated), b"{broken"])
            landed[name] = 401 + len(repeated)
            expected.update(ids)
        interrupted += killed_ingest(folder, moment(rng))
        time.sleep(0.5)
    loaded = conf.load(copy / "contracts/recommendations.yaml", "local")
    tracking = replace(
        loaded.settings.tracking, uri=f"sqlite:///{log.root}/mlflow.db", artifacts=str(log.root / "artifacts")
    )
    settings = replace(loaded.settings, root=str(log.root), tracking=tracking)
    log.conf = replace(loaded, settings=settings)
    log.ingest()
    assert interrupted > 0
    assert log.request_ids() == sorted(expected)
    books = log.books()
    assert {name: book[0] for name, book in books.items()} == landed
    assert sum(accepted for _, accepted, _, _ in books.values()) == len(expected)
    assert {rejected for _, _, rejected, _ in books.values()} == {1}
    assert log.lake.read("inference_log_rejects").count() == len(landed)


def test_ingest_killed_once_and_finished_takes_every_record_once(spark: SparkSession, tmp_path: Path) -> None:
    merged, booked = (
        tmp_path / f".lakehouse/recommendations/{table}/_delta_log/{1:020}.json"
        for table in ("inference_log", "ingest_batches")
    )

    def between(_: random.Random) -> Callable[[], bool]:
        return lambda: merged.exists() and not booked.exists()

    assert_killed_ingest_loses_nothing(spark, tmp_path, 1, between)


@pytest.mark.slow
def test_ingest_killed_ten_times_and_finished_takes_every_record_once(spark: SparkSession, tmp_path: Path) -> None:
    assert_killed_ingest_loses_nothing(spark, tmp_path, 10, at_random)
