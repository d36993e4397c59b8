"""The logger: what becomes of every record, whatever the service passes and the sink does."""

import json
import logging
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from mltrust.client import Block, ContractError, Counts, Drop, InferenceLogger, Spill
from mltrust.client.buffer import MAX_MODELS, Batch
from mltrust.client.landing import HOST
from mltrust.client.sinks import Stream
from mltrust.client.writer import Preparer
from mltrust.contract import Contract, Domain, Feature, SchemaVersion
from mltrust.record import HEARTBEAT, HeartbeatReader, OutcomeReader, RecordReader, Rejected, Row

ROOT = Path(__file__).parents[2]
FEATURES = {
    "device": Feature("string"),
    "age": Feature("long", domain=Domain(min=0, max=130)),
    "price": Feature("double"),
    "member": Feature("boolean"),
    "since": Feature("timestamp"),
}
CONTRACT = Contract("recommendations", {"v02": SchemaVersion()}, {"f02": FEATURES})
READER = RecordReader(CONTRACT)
PATIENCE = 30.0  # seconds, where a test waits for another thread: far above what any machine takes


class Memory:
    """A sink that keeps what it is given; `gate` holds it up, `failing` makes it fail."""

    def __init__(self) -> None:
        self.lines: dict[Stream, list[bytes]] = {"records": [], "outcomes": []}
        self.gate = threading.Event()
        self.gate.set()
        self.failing = False
        self.started: list[str] = []
        self.n_synced = 0
        self.n_tended = 0
        self.closed = False

    def start(self, producer_id: str) -> None:
        self.gate.wait()
        self.started.append(producer_id)

    def write(self, stream: Stream, lines: Sequence[bytes]) -> None:
        self.gate.wait()
        if self.failing:
            raise OSError("no space left on device")
        self.lines[stream] += lines

    def sync(self) -> None:
        self.n_synced = len(self.lines["records"]) + len(self.lines["outcomes"])

    def tend(self) -> float:
        self.n_tended += 1
        return 3600.0

    def close(self) -> None:
        self.closed = True

    def forked(self) -> None:
        """Nothing is open."""

    def records(self) -> list[bytes]:
        return [line for line in self.lines["records"] if HEARTBEAT not in json.loads(line)]

    def request_ids(self) -> list[str]:
        return [json.loads(line)["request_id"] for line in self.records()]

    def heartbeats(self) -> list[Row]:
        objects = (json.loads(line) for line in self.lines["records"])
        found = [HeartbeatReader().read_object(each) for each in objects if HEARTBEAT in each]
        return [row for row in found if not isinstance(row, Rejected)]


def predict(logger: InferenceLogger, request_id: str = "r1", model_version: str = "1", **changes: object) -> bool:
    """Logs a valid prediction with `changes`."""
    given: dict[str, object] = {
        "request_id": request_id,
        "unit_id": "u1",
        "model_name": "ranker",
        "model_version": model_version,
        "feature_version": "f02",
        "features": {"device": "mobile", "age": 31},
        "prediction_score": 0.5,
    }
    return logger.log(**given | changes)  # type: ignore[arg-type]


def until(condition: Callable[[], bool]) -> None:
    """Waits for another thread to make the condition true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def balanced(counts: Counts) -> bool:
    return counts.logged == counts.written + counts.dropped + counts.queued


@pytest.fixture
def sink() -> Iterator[Memory]:
    made = Memory()
    yield made
    made.failing = False
    made.gate.set()


def logged_line(sink: Memory) -> Row | Rejected:
    return READER.read(sink.records()[-1])


def test_a_prediction_becomes_a_v02_record_that_ingest_accepts(sink: Memory) -> None:
    with InferenceLogger(CONTRACT, sink) as logger:
        taken = predict(
            logger,
            item_id="i7",
            event_time=1791158400_123456,
            experiments=[{"experiment_id": "e", "bucket_id": "b", "variant": "control"}],
            action="show",
            propensity=0.25,
            latency_ms=12.5,
            infra={"cpu": 0.5},
            extra={"region": "emea"},
        )
    row = logged_line(sink)
    assert taken
    assert isinstance(row, dict), row
    del row["content_hash"]
    assert row == {
        "schema_version": "v02",
        "request_id": "r1",
        "item_id": "i7",
        "unit_id": "u1",
        "event_time": 1791158400_123456,
        "event_date": 20731,
        "model_name": "ranker",
        "model_version": "1",
        "feature_version": "f02",
        "experiments": [{"experiment_id": "e", "bucket_id": "b", "variant": "control"}],
        "traffic": "production",
        "status": "ok",
        "error_type": None,
        "prediction_score": 0.5,
        "action": "show",
        "propensity": 0.25,
        "latency_ms": 12.5,
        "infra": {"cpu": 0.5},
        "features": {"device": "mobile", "age": 31, "price": None, "member": None, "since": None},
        "extra": '{"region": "emea"}',
    }
    assert b'"event_time":"2026-10-05T00:00:00.123456+00:00"' in sink.records()[-1]


def test_an_outcome_goes_to_the_stream_of_outcomes_and_is_counted_there(sink: Memory) -> None:
    with InferenceLogger(CONTRACT, sink) as logger:
        logger.outcome(outcome_id="o1", request_id="r1", item_id="", name="click", value=1.0)
        logger.outcome(outcome_id="o1", request_id="r1", name="click", value=None, revision=1)
        logger.outcome(outcome_id="o2", name="click", value=1.0)
        logger.flush(PATIENCE)
        assert logger.counts() == Counts(0, 0, 0, 0, 0, 0)
        assert logger.counts("outcomes") == Counts(logged=3, written=3, dropped=0, invalid=1, spilled=0, queued=0)
    first, retraction, keyless = (OutcomeReader().read(line) for line in sink.lines["outcomes"])
    assert isinstance(first, dict)
    assert (first["outcome_id"], first["value"], first["item_id"]) == ("o1", 1.0, "")
    assert isinstance(retraction, dict)
    assert (retraction["value"], retraction["revision"], retraction["item_id"]) == (None, 1, None)
    assert isinstance(keyless, Rejected)
    assert sink.lines["records"] == []


def test_the_contract_may_be_the_path_of_a_compiled_one(sink: Memory, tmp_path: Path) -> None:
    path = tmp_path / "recommendations.json"
    path.write_text(CONTRACT.to_json())
    with InferenceLogger(path, sink) as logger:
        predict(logger)
    assert isinstance(logged_line(sink), dict)


def test_a_contract_without_v02_as_its_columns_are_is_refused(sink: Memory) -> None:
    renamed = SchemaVersion(wire={"request_id": "rid"})
    for versions in ({"v01": SchemaVersion()}, {"v02": renamed}):
        with pytest.raises(ValueError, match="expected v02"):
            InferenceLogger(Contract("log", versions, {"f02": {}}), sink)


@pytest.mark.parametrize("wrong", [{"capacity": 0}, {"heartbeat_seconds": 0}])
def test_a_queue_without_capacity_or_pulse_is_refused(sink: Memory, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected both above 0"):
        InferenceLogger(CONTRACT, sink, **wrong)  # type: ignore[arg-type]


def test_a_flush_returns_when_everything_logged_before_is_durable(sink: Memory) -> None:
    with InferenceLogger(CONTRACT, sink) as logger:
        for at in range(1200):
            predict(logger, str(at))
        counts = logger.flush(PATIENCE)
        assert (counts.written, counts.queued) == (1200, 0)
        assert sink.n_synced == 1200
    assert sink.request_ids() == [str(at) for at in range(1200)]


def test_a_flush_of_what_the_sink_does_not_take_times_out(sink: Memory) -> None:
    sink.gate.clear()
    with InferenceLogger(CONTRACT, sink) as logger:
        assert logger.flush(0.01).logged == 0
        predict(logger)
        with pytest.raises(TimeoutError, match="not durable after 0.05 s"):
            logger.flush(0.05)
        sink.gate.set()
        assert logger.flush(PATIENCE).written == 1


def test_drop_takes_exactly_the_capacity_and_counts_the_rest(sink: Memory) -> None:
    sink.gate.clear()
    with InferenceLogger(CONTRACT, sink, when_full=Drop(), capacity=10) as logger:
        taken = [predict(logger, str(at)) for at in range(30)]
        assert taken == [True] * 10 + [False] * 20
        assert logger.counts() == Counts(logged=30, written=0, dropped=20, invalid=0, spilled=0, queued=10)
        sink.gate.set()
        logger.flush(PATIENCE)
        assert predict(logger, "later")
    assert sink.request_ids() == [*(str(at) for at in range(10)), "later"]


def test_block_waits_for_room_and_then_drops(sink: Memory) -> None:
    sink.gate.clear()
    with InferenceLogger(CONTRACT, sink, when_full=Block(milliseconds=20), capacity=1) as logger:
        assert predict(logger, "first")
        assert not predict(logger, "in vain")
        assert logger.counts().dropped == 1
        sink.gate.set()


def test_block_takes_the_record_as_soon_as_there_is_room(sink: Memory) -> None:
    sink.gate.clear()
    with InferenceLogger(CONTRACT, sink, when_full=Block(1000 * PATIENCE), capacity=1) as logger:
        predict(logger, "first")
        threading.Timer(0.05, sink.gate.set).start()
        assert predict(logger, "second")
    assert sink.request_ids() == ["first", "second"]


def test_closing_lets_a_blocked_call_go(sink: Memory) -> None:
    sink.gate.clear()
    logger = InferenceLogger(CONTRACT, sink, when_full=Block(1000 * PATIENCE), capacity=1)
    predict(logger, "first")
    answers: list[bool] = []
    blocked = threading.Thread(target=lambda: answers.append(predict(logger, "second")))
    blocked.start()
    until(lambda: logger.counts().logged == 2)
    closing = threading.Thread(target=logger.close)
    closing.start()
    blocked.join(PATIENCE)
    sink.gate.set()
    closing.join(PATIENCE)
    assert answers == [False]
    assert logger.counts() == Counts(logged=2, written=1, dropped=1, invalid=0, spilled=0, queued=0)


@pytest.mark.parametrize("milliseconds", [0, -1, float("nan"), float("inf")])
def test_a_block_without_a_time_is_refused(milliseconds: float) -> None:
    with pytest.raises(ValueError, match="expected a number above 0"):
        Block(milliseconds)


def spill_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.jsonl"))


def test_spill_loses_nothing_while_the_sink_hangs(sink: Memory, tmp_path: Path) -> None:
    sink.gate.clear()
    with InferenceLogger(CONTRACT, sink, when_full=Spill(tmp_path), capacity=40) as logger:
        for at in range(200):
            predict(logger, str(at))
            until(lambda: logger.counts().queued - logger.counts().spilled < 40)
        assert logger.counts().spilled > 100
        assert spill_files(tmp_path)
        sink.gate.set()
        counts = logger.flush(PATIENCE)
    assert (counts.logged, counts.written, counts.dropped) == (200, 200, 0)
    assert Counter(sink.request_ids()) == Counter(str(at) for at in range(200))
    assert list(tmp_path.iterdir()) == []


def test_what_is_spilled_while_the_sink_still_starts_lies_where_the_next_process_looks(tmp_path: Path) -> None:
    sink = Memory()
    sink.gate.clear()
    with InferenceLogger(CONTRACT, sink, when_full=Spill(tmp_path), capacity=40) as logger:
        taken = [predict(logger, str(at)) for at in range(30)]
        until(lambda: logger.counts().spilled > 0)
        assert sink.started == []
        [folder] = tmp_path.iterdir()
        assert folder.name.endswith(logger.producer_id)
        sink.gate.set()
    assert sorted(sink.request_ids()) == sorted(str(at) for at, was in enumerate(taken) if was)


def test_spill_drops_what_goes_beyond_its_bytes(sink: Memory, tmp_path: Path) -> None:
    sink.gate.clear()
    with InferenceLogger(CONTRACT, sink, when_full=Spill(tmp_path, max_bytes=1), capacity=40) as logger:
        until(lambda: predict(logger) and logger.counts().spilled > 0)
        until(lambda: not predict(logger))
        assert logger.counts().spilled <= 10  # one batch is a quarter of the capacity
        sink.gate.set()
        counts = logger.flush(PATIENCE)
        assert (counts.queued, counts.written + counts.dropped) == (0, counts.logged)


def test_a_spill_folder_that_cannot_be_written_is_no_worse_than_dropping(
    sink: Memory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file"
    file.touch()
    sink.gate.clear()
    with InferenceLogger(CONTRACT, sink, when_full=Spill(file), capacity=40) as logger:
        until(lambda: not predict(logger))
        until(lambda: "the spill folder fails" in caplog.text)
        sink.gate.set()
        counts = logger.flush(PATIENCE)
    assert counts.written + counts.dropped == counts.logged
    assert len(sink.request_ids()) == counts.written


def test_what_is_spilled_when_a_logger_closes_is_taken_up_by_the_next_one(sink: Memory, tmp_path: Path) -> None:
    sink.failing = True
    logger = InferenceLogger(CONTRACT, sink, when_full=Spill(tmp_path), capacity=40)
    for at in range(100):
        predict(logger, str(at), features={"age": "old" if at == 7 else 31})
        until(lambda: logger.counts().queued - logger.counts().spilled < 40)
    counts = logger.close(timeout=0.1)
    assert (counts.logged, counts.written, counts.dropped, counts.queued) == (100, 0, 0, 100)

    later = Memory()
    with InferenceLogger(CONTRACT, later, when_full=Spill(tmp_path)) as second:
        predict(second, "new")
        until(lambda: len(later.request_ids()) == 101 and not spill_files(tmp_path))
    assert Counter(later.request_ids()) == Counter([*(str(at) for at in range(100)), "new"])
    by_producer = {row["producer_id"]: row for row in later.heartbeats()}
    first = by_producer[logger.producer_id]
    assert (first["logged"], first["written"], first["dropped"]) == (100, 100, 0)
    assert by_producer[second.producer_id]["logged"] == 1
    assert list(tmp_path.iterdir()) == []


def test_spill_files_of_other_hosts_are_left_alone(sink: Memory, tmp_path: Path) -> None:
    folders = [tmp_path / f"{host}-4242-{'0' * 32}" for host in (f"{HOST}-2", "elsewhere")]
    for folder in folders:
        folder.mkdir()
        (folder / "lock").touch()
        (folder / "000000001.records.jsonl").write_bytes(b'{"request_id":"theirs"}\n')
    with InferenceLogger(CONTRACT, sink, when_full=Spill(tmp_path)) as logger:
        predict(logger, "ours")
    assert sink.request_ids() == ["ours"]
    assert len(spill_files(tmp_path)) == 2


def test_a_spilled_line_that_a_kill_cut_off_goes(sink: Memory, tmp_path: Path) -> None:
    folder = tmp_path / f"{HOST}-4242-{'0' * 32}"
    folder.mkdir()
    (folder / "lock").touch()
    (folder / "000000001.records.jsonl").write_bytes(b'{"request_id":"whole"}\n{"requ')
    with InferenceLogger(CONTRACT, sink, when_full=Spill(tmp_path)) as logger:
        predict(logger, "ours")
        until(lambda: not spill_files(tmp_path))
    assert sorted(sink.request_ids()) == ["ours", "whole"]
    assert list(tmp_path.iterdir()) == []


def test_the_spill_files_of_a_living_logger_are_left_alone(sink: Memory, tmp_path: Path) -> None:
    sink.gate.clear()
    with InferenceLogger(CONTRACT, sink, when_full=Spill(tmp_path), capacity=4) as first:
        until(lambda: predict(first, "first") and first.counts().spilled > 0)
        other = Memory()
        with InferenceLogger(CONTRACT, other, when_full=Spill(tmp_path)) as second:
            predict(second, "second")
        assert other.request_ids() == ["second"]
        sink.gate.set()
    assert set(sink.request_ids()) == {"first"}


def test_counts_add_up_whatever_threads_do_to_a_tiny_queue(sink: Memory) -> None:
    for policy in (Drop(), Block(0.1), Block(1000 * PATIENCE)):
        sink.lines["records"].clear()
        taken: list[str] = []
        with InferenceLogger(CONTRACT, sink, when_full=policy, capacity=3, heartbeat_seconds=0.01) as logger:

            def hammer(name: str, logger: InferenceLogger = logger, taken: list[str] = taken) -> None:
                ids = (f"{name}-{at}" for at in range(150))
                taken.extend(each for each in ids if predict(logger, each, model_version=name))

            threads = [threading.Thread(target=hammer, args=(str(at),)) for at in range(6)]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                assert balanced(logger.counts())
                time.sleep(0.001)
        counts = logger.counts()
        assert (counts.logged, counts.written + counts.dropped) == (900, 900)
        assert Counter(sink.request_ids()) == Counter(taken)
        assert len(taken) == counts.written
        assert_heartbeats_add_up(sink, logger)
    assert counts.dropped == 0


def assert_heartbeats_add_up(sink: Memory, logger: InferenceLogger) -> None:
    beats = [row for row in sink.heartbeats() if row["producer_id"] == logger.producer_id]
    assert [row["sequence"] for row in beats] == list(range(len(beats)))
    counts = logger.counts()._asdict()
    for name in ("logged", "written", "dropped", "invalid", "spilled"):
        assert sum(row[name] for row in beats) == counts[name], name  # type: ignore[misc]
    for version in {row["model_version"] for row in beats}:
        mine = [row for row in beats if row["model_version"] == version]
        sums = [sum(row[name] for row in mine) for name in ("logged", "written", "dropped")]  # type: ignore[misc]
        assert sums[0] == sums[1] + sums[2]


def test_heartbeats_show_drops_and_invalid_records_per_model(sink: Memory) -> None:
    sink.gate.clear()
    with InferenceLogger(CONTRACT, sink, capacity=3) as logger:
        predict(logger, "a", model_version="1")
        predict(logger, "b", model_version="1", features={"age": -1})
        predict(logger, "c", model_version="2")
        predict(logger, "d", model_version="2")
        sink.gate.set()
    found = {row["model_version"]: row for row in sink.heartbeats()}
    names = ("logged", "written", "dropped", "invalid", "spilled")
    assert [found["1"][name] for name in names] == [2, 2, 0, 1, 0]
    assert [found["2"][name] for name in names] == [2, 1, 1, 0, 0]
    assert found["1"]["model_name"] == "ranker"
    assert found["1"]["host"]
    assert sink.closed


def test_heartbeats_come_in_time_and_their_windows_join(sink: Memory) -> None:
    with InferenceLogger(CONTRACT, sink, heartbeat_seconds=0.02) as logger:
        for n_beats in (1, 2, 3):
            predict(logger)
            until(lambda n=n_beats: len(sink.heartbeats()) >= n)  # type: ignore[misc]
        time.sleep(0.1)
        n_beats = len(sink.heartbeats())
    beats = sink.heartbeats()
    assert len(beats) == n_beats, "a window without traffic has no heartbeat"
    assert all(row["window_start"] <= row["event_time"] for row in beats)  # type: ignore[operator]
    assert all(b["window_start"] >= a["event_time"] for a, b in pairwise(beats))  # type: ignore[operator]
    assert_heartbeats_add_up(sink, logger)


def test_a_service_with_endless_model_versions_counts_the_rest_together(sink: Memory) -> None:
    with InferenceLogger(CONTRACT, sink) as logger:
        for at in range(MAX_MODELS + 5):
            predict(logger, model_version=str(at))
        logger.outcome(outcome_id="o1", request_id="r1", name="click", value=1.0)
    assert len(sink.lines["outcomes"]) == 1
    beats = sink.heartbeats()
    assert len(beats) == MAX_MODELS + 1
    assert [row["logged"] for row in beats if row["model_version"] == "(other)"] == [5]
    assert_heartbeats_add_up(sink, logger)


def test_a_failing_sink_is_reported_once_and_tried_until_it_works(
    sink: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    sink.failing = True
    with InferenceLogger(CONTRACT, sink, capacity=5) as logger:
        taken = [predict(logger, str(at)) for at in range(8)]
        until(lambda: "the sink fails" in caplog.text)
        time.sleep(0.2)
        sink.failing = False
        counts = logger.flush(PATIENCE)
    assert sum(taken) == counts.written == 5
    assert sink.request_ids() == [str(at) for at in range(5)]
    assert caplog.text.count("the sink fails") == 1
    assert caplog.text.count("the sink works again") == 1
    assert caplog.text.count("dropped 3 of 8 predictions of ranker 1") == 1


def test_what_a_closed_logger_could_not_write_counts_as_dropped(
    sink: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    sink.failing = True
    logger = InferenceLogger(CONTRACT, sink)
    predict(logger)
    assert logger.close(timeout=0.05) == Counts(logged=1, written=0, dropped=1, invalid=0, spilled=0, queued=0)
    assert "closed before the sink took all: 1 dropped" in caplog.text
    with pytest.raises(TimeoutError):
        logger.flush(0.01)


def test_a_sink_that_hangs_does_not_hold_up_the_exit_of_a_service(sink: Memory) -> None:
    sink.gate.clear()
    logger = InferenceLogger(CONTRACT, sink)
    predict(logger)
    counts = logger.close(timeout=0.05)
    sink.gate.set()
    assert (counts.dropped, counts.written) == (1, 0)
    until(lambda: sink.closed)
    assert logger.counts() == counts, "what was given up stays so"


def test_a_closed_logger_drops_and_may_be_closed_again(sink: Memory) -> None:
    with InferenceLogger(CONTRACT, sink) as logger:
        predict(logger)
    assert not predict(logger)
    assert logger.close() == Counts(logged=2, written=1, dropped=1, invalid=0, spilled=0, queued=0)


def test_a_logger_without_records_starts_no_thread_and_writes_nothing(sink: Memory) -> None:
    before = threading.active_count()
    with InferenceLogger(CONTRACT, sink):
        assert threading.active_count() == before
    assert sink.started == []


def test_a_logger_that_has_nothing_to_do_sleeps(sink: Memory, tmp_path: Path) -> None:
    with InferenceLogger(CONTRACT, sink, when_full=Spill(tmp_path)) as logger:
        predict(logger)
        logger.flush(PATIENCE)
        time.sleep(0.1)
        before = sink.n_tended
        time.sleep(0.3)
        assert sink.n_tended == before


def test_a_batch_that_cannot_be_prepared_is_dropped_and_the_next_is_written(
    sink: Memory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prepare, errors = Preparer.lines, [MemoryError("no memory")]

    def lines(preparer: Preparer, batch: Batch) -> dict[Stream, list[bytes]]:
        if errors:
            raise errors.pop()
        return prepare(preparer, batch)

    monkeypatch.setattr(Preparer, "lines", lines)
    with InferenceLogger(CONTRACT, sink) as logger:
        predict(logger, "lost")
        until(lambda: logger.counts().dropped == 1)
        predict(logger, "kept")
    assert sink.request_ids() == ["kept"]
    assert "the writer fails and is tried again: MemoryError" in caplog.text


def test_a_sink_whose_start_and_upkeep_fail_is_written_to_all_the_same(
    sink: Memory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> float:
        raise PermissionError("not yours")

    monkeypatch.setattr(sink, "start", fails)
    monkeypatch.setattr(sink, "tend", fails)
    with InferenceLogger(CONTRACT, sink) as logger:
        predict(logger)
        assert logger.flush(PATIENCE).written == 1
        monkeypatch.setattr(sink, "sync", fails)
        predict(logger)
        with pytest.raises(TimeoutError):
            logger.flush(0.05)
    for what in ("recovery of the sink", "the sink's upkeep", "the sink's sync"):
        assert caplog.text.count(f"{what} fails") == 1


def test_an_invalid_record_is_written_as_it_is_and_reported_once_per_reason(
    sink: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    with InferenceLogger(CONTRACT, sink) as logger:
        for age in (-1, 200, "old"):
            assert predict(logger, features={"age": age})
        counts = logger.flush(PATIENCE)
    assert (counts.written, counts.invalid) == (3, 3)
    assert [json.loads(line)["features"]["age"] for line in sink.records()] == [-1, 200, "old"]
    warnings = [each.message for each in caplog.records if "ingest will reject" in each.message]
    assert len(warnings) == 2
    assert "features.age is -1, expected [0, 130]" in warnings[0]


def test_strict_raises_what_was_given_and_expected_where(sink: Memory) -> None:
    with InferenceLogger(CONTRACT, sink, strict=True) as logger:
        assert predict(logger)
        for changes, field, given, expected in (
            ({"features": {"age": "old"}}, "features.age", '"old"', "a 64-bit integer"),
            ({"request_id": ""}, "request_id", "missing", "what the contract says"),
            ({"prediction_score": None}, "prediction_score", "missing and status is ok", "what the contract says"),
            ({"experiments": [{"experiment_id": "e"}] * 2}, "experiments", "experiments names one", "what the"),
            ({"feature_version": "f9"}, "feature_version", '"f9"', "one of f02"),
        ):
            with pytest.raises(ContractError) as raised:
                predict(logger, **changes)
            assert raised.value.field == field
            assert raised.value.given.startswith(given)
            assert raised.value.expected.startswith(expected)
        with pytest.raises(ContractError, match="both request_id and unit_id are missing"):
            logger.outcome(outcome_id="o", name="click", value=1)
    assert logger.counts().logged == 1


def test_a_logging_handler_that_raises_stops_nothing(sink: Memory) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("broken")

    handler = Broken()
    logging.getLogger("mltrust.client").addHandler(handler)
    try:
        with InferenceLogger(CONTRACT, sink) as logger:
            predict(logger, features={"age": "old"})
    finally:
        logging.getLogger("mltrust.client").removeHandler(handler)
    assert logger.counts().written == 1


def test_a_signal_handler_may_log_in_the_midst_of_a_call(sink: Memory) -> None:
    with InferenceLogger(CONTRACT, sink, capacity=100) as logger:
        before = signal.signal(signal.SIGALRM, lambda *_: predict(logger, "inner") and None)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        try:
            for _ in range(500):
                predict(logger, "outer")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    counts = logger.counts()
    assert counts.logged > 500
    assert counts.logged == counts.written + counts.dropped
    assert len(sink.request_ids()) == counts.written


def test_the_client_imports_the_standard_library_only() -> None:
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
before = set(sys.modules)
import mltrust.client, mltrust.client.shadow, mltrust.client.kafka
new = {{name.partition('.')[0] for name in set(sys.modules) - before}}
strange = new - set(sys.stdlib_module_names) - {{'mltrust'}}
assert not strange, strange
loaded = {{name for name in sys.modules if name.startswith('mltrust.')}}
allowed = ('mltrust.client', 'mltrust.contract', 'mltrust.coercion', 'mltrust.record', 'mltrust.errors')
assert all(name.startswith(allowed) for name in loaded), loaded
"""
    # -S: no site-packages, as after pip install --no-deps.
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)


def test_a_service_without_third_party_packages_logs_to_files(tmp_path: Path) -> None:
    contract = tmp_path / "contract.json"
    contract.write_text(CONTRACT.to_json())
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from mltrust.client import Files, InferenceLogger
logger = InferenceLogger({str(contract)!r}, Files({str(tmp_path)!r}))
logger.log(request_id="r1", model_name="m", model_version="1", feature_version="f02", features={{"age": 3}},
           prediction_score=0.5)
"""
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)
    (published,) = (tmp_path / "records").iterdir()
    record, heartbeat = published.read_bytes().splitlines()
    assert isinstance(READER.read(record), dict)
    assert json.loads(heartbeat)[HEARTBEAT]["written"] == 1
