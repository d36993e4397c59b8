"""A service under gunicorn, with its logger made before the workers are forked."""

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from mltrust.record import HEARTBEAT
from tests.unit.test_client import CONTRACT, PATIENCE, ROOT
from tests.unit.test_client_files import hidden, lines, published, request_ids

APP = """
import json, sys
from mltrust.client import Files, InferenceLogger

logger = InferenceLogger("contract.json", Files("landing"))
logger.log(request_id="before the fork", model_name="m", model_version="1", feature_version="f02", features={},
           prediction_score=0.5)

def app(environ, start_response):
    request_id = environ["PATH_INFO"].strip("/")
    taken = logger.log(request_id=request_id, model_name="m", model_version="1", feature_version="f02",
                       features={"age": 31}, prediction_score=0.5)
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps([taken, logger.producer_id]).encode()]
"""


@pytest.mark.slow
def test_workers_forked_from_a_preloaded_service_log_each_by_itself(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(APP)
    (tmp_path / "contract.json").write_text(CONTRACT.to_json())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        "--preload",
        "--workers",
        "2",
        "--threads",
        "4",
        "--bind",
        f"127.0.0.1:{port}",
        "--pythonpath",
        str(ROOT),
    ]
    server = subprocess.Popen([sys.executable, "-m", "gunicorn", *options, "service:app"], cwd=tmp_path)
    try:
        answer(port, "first")
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda at: answer(port, f"r{at}"), range(200)))
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE) == 0
    assert all(taken for taken, _ in answers)
    found = Counter(request_ids(tmp_path / "landing"))
    assert found == Counter(["before the fork", "first", *(f"r{at}" for at in range(200))])
    assert hidden(tmp_path / "landing") == []
    workers = {producer for _, producer in answers}
    assert len({path.name for path in published(tmp_path / "landing")}) == len(workers) + 1
    beats = [json.loads(line)[HEARTBEAT] for line in lines(tmp_path / "landing") if b'"heartbeat"' in line[:20]]
    assert sum(beat["logged"] for beat in beats) == sum(beat["written"] for beat in beats) == 202


def answer(port: int, request_id: str) -> tuple[bool, str]:
    """What the service says, once it is up: whether it logged, and as which producer."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        url = f"http://127.0.0.1:{port}/{request_id}"
        with suppress(ConnectionError, urllib.error.URLError), urllib.request.urlopen(url, timeout=PATIENCE) as said:
            taken, producer = json.load(said)
            return taken, producer
        time.sleep(0.05)
    raise AssertionError("the service did not come up")
