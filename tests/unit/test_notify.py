"""Notices on their way: a webhook that is down for a while, a file that a writer left half written."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from mltrust.errors import ConfError
from mltrust.io.notify import address_of, deliver
from mltrust.monitor.notices import Notice, attempted, newest, of_decisions, to_send
from mltrust.monitor.rules import carried_out, decide
from mltrust.monitor.spec import Monitor, RollbackRule, Target
from tests.unit.test_monitor_rules import BESIDE, REGISTRY, incident

NOW = datetime(2026, 11, 2, 12, tzinfo=UTC)


def notice(name: str = "n1") -> Notice:
    return Notice(
        name, 0, "all", "m", "queued", 0, json.dumps({"notice_id": name, "text": "über"}), NOW, NOW, NOW, ""
    )


@dataclass
class Receiver:
    """A webhook: what it was sent, and whether it is up."""

    port: int = 0
    is_up: bool = True
    moved: int = 0
    bodies: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    @property
    def target(self) -> Target:
        return Target("webhook", f"http://127.0.0.1:{self.port}/hook")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    state = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            if state.is_up:
                state.bodies.append(body)
                state.keys.append(self.headers["Idempotency-Key"])
            self.send_response(state.moved or (200 if state.is_up else 503))
            if state.moved:
                self.send_header("Location", "/elsewhere")
            self.end_headers()

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    state.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_receiver_that_is_down_for_minutes_gets_every_notice_once_when_it_is_back(receiver: Receiver) -> None:
    log, now = [notice("a"), notice("b")], NOW
    receiver.is_up = False
    while now < NOW + timedelta(minutes=20):
        receiver.is_up = now >= NOW + timedelta(minutes=7)
        log += [attempted(due, now=now, error=deliver(due, receiver.target)) for due in to_send(log, now)]
        now += timedelta(seconds=5)
    assert sorted(receiver.keys) == ["a", "b"]
    assert {each.state for each in newest(log)} == {"sent"}
    assert all(3 < each.attempts < 12 for each in newest(log))
    assert json.loads(receiver.bodies[0])["text"] == "über"


def test_nobody_at_home_is_an_error_and_no_exception() -> None:
    assert "refused" in str(deliver(notice(), Target("webhook", "http://127.0.0.1:9/")))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_receiver_that_moved_has_not_got_it(receiver: Receiver, status: int) -> None:
    receiver.moved = status
    assert f"HTTP Error {status}" in str(deliver(notice(), receiver.target))


@pytest.mark.parametrize("address", ["http://host:port/", "http://a b/", "http://[::1/", "http://"])
def test_an_address_that_makes_no_sense_is_a_failed_attempt(address: str) -> None:
    assert deliver(notice(), Target("webhook", address)) is not None


def test_a_file_has_a_notice_once(tmp_path: Path) -> None:
    target = Target("file", str(tmp_path / "deep" / "notices.jsonl"))
    for name in ("a", "b", "a"):
        assert deliver(notice(name), target) is None
    lines = Path(target.address).read_text().splitlines()
    assert [json.loads(line)["notice_id"] for line in lines] == ["a", "b"]


def test_a_line_that_a_killed_writer_left_half_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "notices.jsonl"
    path.write_text(notice("a").payload + "\n" + notice("b").payload[:-3])
    assert deliver(notice("b"), Target("file", str(path))) is None
    assert path.read_text().splitlines()[-1] == notice("b").payload


def test_secrets_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_TOKEN", "t0k")
    assert address_of(Target("webhook", "https://hook/${HOOK_TOKEN}")) == "https://hook/t0k"
    with pytest.raises(ConfError, match="NO_SUCH_NAME"):
        address_of(Target("webhook", "https://hook/${NO_SUCH_NAME}"))
    assert "NO_SUCH_NAME" in str(deliver(notice(), Target("webhook", "${NO_SUCH_NAME}")))


def test_an_error_does_not_tell_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_TOKEN", "t0k with spaces")
    told = str(deliver(notice(), Target("webhook", "http://127.0.0.1:9/${HOOK_TOKEN}")))
    assert "${HOOK_TOKEN}" in told
    assert "t0k" not in told


def test_a_webhook_is_an_address_of_the_web() -> None:
    assert "begins with http" in str(deliver(notice(), Target("webhook", "file:///etc/passwd")))


def test_apprise_is_an_extra() -> None:
    pytest.importorskip("apprise")
    assert "does not know" in str(deliver(notice(), Target("apprise", "nonsense")))


def test_a_service_that_is_told_to_stop_a_candidate_gets_the_model_the_version_and_the_action(
    receiver: Receiver,
) -> None:
    rule = RollbackRule("candidate", action="stop", dry_run=False, page=("router",))
    monitor = Monitor("watch", "log", "m", rules=(rule,), notify={"router": receiver.target})
    made = decide(rule, [incident(version="3")], [], REGISTRY, NOW, BESIDE)
    decisions = [*made, *(carried_out(each, now=NOW) for each in made)]
    (queued,) = of_decisions(decisions, monitor, NOW)
    assert deliver(queued, monitor.notify[queued.target]) is None
    told = json.loads(receiver.bodies[0])
    wanted = ("kind", "model_name", "model_version", "action", "state", "dry_run", "rollback_rule", "incident_id")
    assert [told[name] for name in wanted] == ["decision", "m", "3", "stop", "done", False, "candidate", "a"]
    assert receiver.keys == [told["notice_id"]]
