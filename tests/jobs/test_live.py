"""The continuous process on live traffic: a fault, a decision within a minute, a rollback, recovery; and killed."""

import random
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from mltrust.verdicts import Exit
from tests.jobs import live
from tests.jobs.broker import Broker, free_port

# Minutes of a clock, second JVMs, and a broker.
pytestmark = pytest.mark.slow


def test_a_candidate_that_fails_in_one_slice_is_rolled_back_within_a_minute(tmp_path: Path) -> None:
    place = live.Place(tmp_path)
    seen = live.run(place, place.land, "errors")
    assert_rolled_back(place, seen)
    assert seen.decided is not None
    assert seen.decided < 60


def test_what_comes_by_kafka_is_watched_alike(tmp_path: Path, broker: Broker) -> None:
    broker.topic("live", 2)
    place = live.Place(tmp_path, {"kafka": {"servers": broker.servers, "topics": {"records": "live"}}})
    seen = live.run(place, lambda lines: broker.send("live", lines), "scores", per_second=1000, clean_seconds=60)
    assert_rolled_back(place, seen)
    assert {row["source"].split(":")[0] for row in place.rows("ingest_batches")} == {"kafka"}


def assert_rolled_back(place: live.Place, seen: live.Seen) -> None:
    assert seen.slices == [f"device:{live.HURT}"]
    assert seen.n_incidents == 1
    assert seen.rolled_back is not None
    assert seen.recovered is not None
    assert seen.exit_code == Exit.PASS
    assert place.answers() == [0.0, 1.0]
    acted = [row for row in place.rows("decisions") if row["action"] == "rollback"]
    assert sorted(row["state"] for row in acted) == ["done", "due"]
    assert {(row["from_version"], row["to_version"]) for row in acted} == {("2", "1")}
    told = place.notices()
    assert len({each["notice_id"] for each in told}) == len(told)
    for each in (("incident", "opened"), ("decision", "done"), ("incident", "recovered")):
        assert [(notice["kind"], notice["state"]) for notice in told].count(each) == 1


class Receiver:
    """A webhook that keeps what it is sent, by its key."""

    def __init__(self, port: int) -> None:
        self.keys = Counter[str]()
        kept = self.keys

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                kept[self.headers["Idempotency-Key"]] += 1
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_a_process_that_is_killed_again_and_again_keeps_everything_once(tmp_path: Path) -> None:
    port, rng = free_port(), random.Random(2)
    told = {name: {"kind": kind, "address": address} for name, kind, address in (
        ("file", "file", str(tmp_path / "notices.jsonl")), ("hook", "webhook", f"http://127.0.0.1:{port}/"),
    )}  # fmt: skip
    place = live.Place(tmp_path, notify=told)
    place.register()
    traffic = live.Traffic(place.land, per_second=400)
    traffic.history(minutes=10, per_second=50)
    for name in ("ingest_logs", "monitor_metrics"):
        assert (loading := place.job(name)).wait() == 0, loading.said()
    place.release("2")
    traffic.start()
    for kill in range(4):
        before, process = place.n_scans(), place.watching(trigger=2)
        assert live.waited(lambda before=before: place.n_scans() > before, 300), process.said()  # type: ignore[misc]
        traffic.fault = "errors" if kill >= 1 else None
        time.sleep(rng.uniform(0, 15))
        assert process.is_running, process.said()
        process.kill()
    process = place.watching(trigger=2)
    assert live.waited(lambda: place.champion() == "1", 240), process.said()
    traffic.fault = None
    assert live.waited(lambda: any(row["state"] == "recovered" for row in place.rows("incidents")), 240)
    traffic.stop()
    # The webhook was down from the first notice on, for minutes.
    receiver = Receiver(port)
    assert live.waited(lambda: set(states(place).values()) == {"sent"}, 600), states(place)
    assert live.waited(lambda: len(place.rows("inference_log")) == traffic.n, 60)
    assert process.terminate() == Exit.PASS, process.said()
    receiver.close()

    rows = place.rows("inference_log")
    assert len({row["request_id"] for row in rows}) == len(rows) == traffic.n
    books = place.rows("ingest_batches")
    assert sum(row["accepted"] for row in books) == traffic.n
    assert_series_are_of(place, rows)
    for table, key in (
        ("monitor_findings", ("metric", "model_version", "slice_value", "detector", "bucket_start")),
        ("incidents", ("incident_id", "revision")),
        ("decisions", ("decision_id", "revision")),
        ("notifications", ("notice_id", "revision")),
    ):
        keys = [tuple(row[each] for each in key) for row in place.rows(table)]
        assert len(set(keys)) == len(keys) > 0, table
    assert len({row["incident_id"] for row in place.rows("incidents")}) == 1
    acted = [row["state"] for row in place.rows("decisions") if row["action"] == "rollback"]
    assert sorted(acted) == ["done", "due"]
    sent = [each["notice_id"] for each in place.notices()]
    assert len(set(sent)) == len(sent)
    hooked = {key for key in states(place) if key in receiver.keys}
    assert hooked
    assert set(receiver.keys.values()) == {1}
    assert len(receiver.keys) + len(sent) == len(states(place))


def states(place: live.Place) -> dict[str, str]:
    """The state of every notice as it stands."""
    rows = sorted(place.rows("notifications"), key=lambda row: row["revision"])
    return {row["notice_id"]: row["state"] for row in rows}


def assert_series_are_of(place: live.Place, log: list[dict[str, Any]]) -> None:
    """Every bucket of requests that was judged counts what the log holds of it."""
    counted = Counter(
        row["event_time"].replace(microsecond=0, second=row["event_time"].second // 10 * 10) for row in log
    )
    series = {
        row["bucket_start"]: row["n_requests"]
        for row in place.rows("monitor_series")
        if (row["metric"], row["slice_key"], row["model_version"]) == ("requests", "", "(all)")
    }
    assert len(series) > 20
    assert {at: counted[at] for at in series} == series
