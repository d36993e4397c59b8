"""Processes that are killed, that fork, and that serve from many threads."""

import json
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from mltrust.client import Block, Drop, Files, InferenceLogger, Spill, recover
from mltrust.record import HEARTBEAT
from tests.unit.test_client import CONTRACT, PATIENCE, READER, ROOT, predict, until
from tests.unit.test_client_files import hidden, lines, published, request_ids

SERVICE = """
import json, sys, threading, time
sys.path.insert(0, sys.argv[1])
from mltrust.client import Drop, Files, InferenceLogger, Spill

contract, folder, spill, compress, pause = sys.argv[2:7]
logger = InferenceLogger(
    contract,
    Files(folder, max_bytes=30_000, compress=compress == "gzip"),
    when_full=Spill(spill) if spill else Drop(),
    capacity=200,
    heartbeat_seconds=0.05,
)
done, dropped = [0] * 4, [[] for _ in range(4)]
calls = [threading.Lock() for _ in range(4)]

def serve(name):
    while True:
        at = done[name]
        with calls[name]:
            if not logger.log(request_id=f"{name}-{at}", model_name="m", model_version="1", feature_version="f02",
                              features={"age": 31, "device": "mobile"}, prediction_score=0.5):
                dropped[name].append(at)
            done[name] = at + 1
        if at % 20 == 0:
            time.sleep(float(pause))

for name in range(4):
    threading.Thread(target=serve, args=(name,), daemon=True).start()
while True:
    for call in calls:
        call.acquire()
    marks, lost, counts = list(done), [list(each) for each in dropped], logger.counts()
    for call in calls:
        call.release()
    logger.flush(60)
    print(json.dumps([marks, lost, [counts.logged, counts.dropped]]), flush=True)
"""


class Acknowledged(NamedTuple):
    """How many predictions of each thread a killed service had acknowledged, and which of those it had dropped.

    `counted` are the logger's own numbers of logged and of dropped ones at that moment.
    """

    marks: list[int]
    dropped: list[list[int]]
    counted: list[int]

    def expected(self) -> set[str]:
        """The request_ids that must be there."""
        lost = {f"{name}-{at}" for name, each in enumerate(self.dropped) for at in each}
        return {f"{name}-{at}" for name, mark in enumerate(self.marks) for at in range(mark)} - lost


def killed_service(
    folder: Path, *, spill: str = "", compress: str = "", pause: float = 0.002, seconds: float
) -> Acknowledged:
    """Starts a service, kills it `seconds` after its second flush, and gives what it had acknowledged by then.

    Its threads pause after every 20 predictions; with the default the queue is full all the time.
    """
    contract = folder / "contract.json"
    contract.write_text(CONTRACT.to_json())
    arguments = [str(ROOT), str(contract), str(folder), spill, compress, str(pause)]
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", SERVICE, *arguments], stdout=subprocess.PIPE, text=True
    ) as service:
        assert service.stdout is not None
        said = [service.stdout.readline() for _ in range(2)]
        time.sleep(seconds)
        service.kill()
        said += service.stdout.readlines()
    whole = [line for line in said if line.endswith("\n")]
    return Acknowledged(*json.loads(whole[-1]))


def check_one_kill(folder: Path, *, compress: str, seconds: float) -> None:
    acknowledged = killed_service(folder, compress=compress, seconds=seconds)
    assert len(hidden(folder)) <= 1
    recover(folder)
    assert hidden(folder) == []
    present = Counter(request_ids(folder))
    assert set(present.values()) <= {1}, "nothing is there twice"
    expected = acknowledged.expected()
    assert expected <= present.keys(), "everything acknowledged is there"
    dropped = {f"{name}-{at}" for name, each in enumerate(acknowledged.dropped) for at in each}
    assert not dropped & present.keys()
    assert acknowledged.counted == [sum(acknowledged.marks), len(dropped)], "drops equal the counter"
    beats = [json.loads(line)[HEARTBEAT] for line in lines(folder) if HEARTBEAT.encode() in line[:20]]
    assert len(dropped) > 0
    assert beats, "the log itself shows them"
    assert sum(beat["dropped"] for beat in beats) > 0
    assert all(isinstance(READER.read(line), dict) for line in lines(folder) if HEARTBEAT.encode() not in line[:20])


def test_after_a_kill_everything_acknowledged_is_there_exactly_once(tmp_path: Path) -> None:
    check_one_kill(tmp_path, compress="", seconds=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("compress", ["", "gzip"])
@pytest.mark.parametrize("seed", range(5))
def test_after_ten_kills_too(tmp_path: Path, seed: int, compress: str) -> None:
    check_one_kill(tmp_path, compress=compress, seconds=random.Random(seed).uniform(0, 1.5))


def test_after_a_kill_the_next_process_takes_up_the_spill_files(tmp_path: Path) -> None:
    spill = tmp_path / "spill"
    acknowledged = killed_service(tmp_path, spill=str(spill), pause=0.005, seconds=0.3)
    with InferenceLogger(CONTRACT, Files(tmp_path), when_full=Spill(spill)) as logger:
        predict(logger, "new")
        until(lambda: not list(spill.rglob("*.jsonl")))
    present = Counter(request_ids(tmp_path))
    assert acknowledged.expected() <= present.keys()
    assert "new" in present
    # A batch is a quarter of the capacity: the one in hand at the kill may be there twice, line by line the same.
    twice = {each for each, n in present.items() if n > 1}
    assert len(twice) <= 50
    assert max(present.values()) <= 2
    assert len(set(lines(tmp_path))) == len(lines(tmp_path)) - len(twice)
    assert list(spill.iterdir()) == []


def run(code: str, *arguments: object) -> str:
    """What a Python process with this code prints; it has the standard library and the package only."""
    prelude = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    found = subprocess.run(
        [sys.executable, "-I", "-S", "-c", prelude + textwrap.dedent(code), *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return found.stdout


def test_a_forked_child_logs_by_itself_and_leaves_the_parent_alone(tmp_path: Path) -> None:
    contract = tmp_path / "contract.json"
    contract.write_text(CONTRACT.to_json())
    producers = run(
        """
        import os, sys
        from mltrust.client import Files, InferenceLogger, Spill
        logger = InferenceLogger(sys.argv[1], Files(sys.argv[2]), when_full=Spill(sys.argv[2] + "/spill"))
        def predict(request_id):
            logger.log(request_id=request_id, model_name="m", model_version="1", feature_version="f02",
                       features={"age": 3}, prediction_score=0.5)
        predict("parent before")
        logger.flush()
        for at in range(50):
            predict(f"parent queued {at}")
        children = []
        for name in range(3):
            child = os.fork()
            if child == 0:
                assert logger.counts().logged == 0
                for at in range(20):
                    predict(f"child {name} {at}")
                print(logger.producer_id, flush=True)
                assert logger.close().written == 20
                os._exit(0)
            children.append(child)
        predict("parent after")
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
        assert logger.close().written == 52
        print(logger.producer_id)
        """,
        contract,
        tmp_path,
    ).split()
    found = Counter(request_ids(tmp_path))
    queued = [f"parent queued {at}" for at in range(50)]
    children = [f"child {name} {at}" for name in range(3) for at in range(20)]
    assert found == Counter(["parent before", *queued, "parent after", *children])
    assert len(set(producers)) == 4
    assert all(any(producer in path.name for path in published(tmp_path)) for producer in producers)
    assert hidden(tmp_path) == []


def test_a_fork_in_the_midst_of_calls_of_other_threads_hangs_nobody(tmp_path: Path) -> None:
    contract = tmp_path / "contract.json"
    contract.write_text(CONTRACT.to_json())
    run(
        """
        import os, sys, threading, time
        from mltrust.client import Files, InferenceLogger
        logger = InferenceLogger(sys.argv[1], Files(sys.argv[2]), heartbeat_seconds=0.01)
        stop = threading.Event()
        def hammer():
            while not stop.is_set():
                logger.log(request_id="hammered", model_name="m", model_version="1", feature_version="f02",
                           features={"age": 3}, prediction_score=0.5)
        threads = [threading.Thread(target=hammer, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        for name in range(20):
            child = os.fork()
            if child == 0:
                logger.log(request_id=f"child {name}", model_name="m", model_version="1", feature_version="f02",
                           features={"age": 3}, prediction_score=0.5)
                os._exit(0 if logger.close().written == 1 else 1)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        """,
        contract,
        tmp_path,
    )
    found = Counter(request_ids(tmp_path))
    assert {each: n for each, n in found.items() if each != "hammered"} == {f"child {name}": 1 for name in range(20)}


def test_a_child_that_lives_on_does_not_keep_its_dead_parent_s_file(tmp_path: Path) -> None:
    contract = tmp_path / "contract.json"
    contract.write_text(CONTRACT.to_json())
    child = int(
        run(
            """
            import os, sys, time
            from mltrust.client import Files, InferenceLogger
            logger = InferenceLogger(sys.argv[1], Files(sys.argv[2]))
            logger.log(request_id="r", model_name="m", model_version="1", feature_version="f02", features={},
                       prediction_score=0.5)
            logger.flush()
            child = os.fork()
            if child == 0:
                for fd in (0, 1, 2):
                    os.close(fd)
                time.sleep(60)
            print(child, flush=True)
            os._exit(0)
            """,
            contract,
            tmp_path,
        )
    )
    try:
        until(lambda: len(recover(tmp_path)) == 1)
        assert request_ids(tmp_path) == ["r"]
    finally:
        os.kill(child, 9)


def test_a_closed_logger_stays_closed_in_a_forked_child(tmp_path: Path) -> None:
    contract = tmp_path / "contract.json"
    contract.write_text(CONTRACT.to_json())
    said = run(
        """
        import os, sys
        from mltrust.client import Files, InferenceLogger
        logger = InferenceLogger(sys.argv[1], Files(sys.argv[2]))
        logger.close()
        child = os.fork()
        if child == 0:
            taken = logger.log(request_id="r", model_name="m", model_version="1", feature_version="f02", features={})
            print(taken, logger.counts().dropped, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        """,
        contract,
        tmp_path,
    )
    assert said == "False 1\n"


class Service:
    """A plain HTTP service that predicts in a thread per request and logs what it predicts."""

    def __init__(self, logger: InferenceLogger) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                score = asked["features"]["age"] / 100
                predict(logger, asked["request_id"], features=asked["features"], prediction_score=score)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(score).encode())

            def log_message(self, format: str, *args: object) -> None:
                """Says nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def ask(self, request_id: str, age: object) -> object:
        body = json.dumps({"request_id": request_id, "features": {"age": age, "device": "mobile"}}).encode()
        url = f"http://127.0.0.1:{self.server.server_port}"
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=PATIENCE) as response:
            return json.load(response)


@contextmanager
def serving(logger: InferenceLogger) -> Iterator[Service]:
    service = Service(logger)
    yield service
    service.server.shutdown()
    service.server.server_close()
    service.thread.join(PATIENCE)


def test_what_a_service_of_many_threads_answered_is_what_ingest_reads(tmp_path: Path) -> None:
    answers: dict[str, object] = {}
    with InferenceLogger(CONTRACT, Files(tmp_path)) as logger, serving(logger) as service:

        def ask(name: int) -> None:
            for at in range(25):
                answers[f"{name}-{at}"] = service.ask(f"{name}-{at}", at)

        clients = [threading.Thread(target=ask, args=(name,)) for name in range(4)]
        for client in clients:
            client.start()
        for client in clients:
            client.join(PATIENCE)
    assert len(answers) == 100
    rows = [READER.read(line) for line in lines(tmp_path) if HEARTBEAT.encode() not in line[:20]]
    assert len(rows) == 100
    assert {row["request_id"]: row["prediction_score"] for row in rows if isinstance(row, dict)} == answers


@pytest.mark.slow
@pytest.mark.parametrize("policy", [Drop(), Block(60_000)], ids=lambda policy: type(policy).__name__)
def test_of_a_million_predictions_of_several_threads_each_is_in_a_file_or_in_the_counter(
    tmp_path: Path, policy: Drop | Block
) -> None:
    n, n_threads = 1_000_000, 4
    taken = bytearray(n)
    files = Files(tmp_path)
    # So few places that threads overtake the writer, however fast the machine is.
    with InferenceLogger(CONTRACT, files, when_full=policy, capacity=100, heartbeat_seconds=1.0) as logger:

        def serve(name: int) -> None:
            for at in range(name, n, n_threads):
                taken[at] = predict(logger, str(at))

        threads = [threading.Thread(target=serve, args=(name,)) for name in range(n_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        logger.flush(600)
        counts = logger.counts()
    found, beats = bytearray(n), Counter[str]()
    for line in lines(tmp_path):
        told = json.loads(line)
        if HEARTBEAT in told:
            beats.update({name: told[HEARTBEAT][name] for name in ("logged", "written", "dropped")})
        else:
            found[int(told["request_id"])] += 1
    assert found == taken, "what was taken is there, once; what was not is not"
    assert (counts.logged, counts.written, counts.dropped) == (n, sum(taken), n - sum(taken))
    assert beats == Counter(logged=n, written=sum(taken), dropped=n - sum(taken)), "the log itself says so"
    assert (counts.dropped > 0) == isinstance(policy, Drop)
