"""Ingest from a real Kafka broker, as a program of its own: with the package that Spark's source is in."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from deltalake import DeltaTable

from mltrust.client import InferenceLogger
from mltrust.client.kafka import Kafka
from mltrust.verdicts import Exit
from tests.conftest import ROOT
from tests.jobs.broker import Broker
from tests.jobs.conftest import copied_conf
from tests.jobs.live import waited
from tests.jobs.test_ingest import lines

pytestmark = pytest.mark.slow


class Service:
    """A lakehouse of its own that takes from topics of its own."""

    def __init__(self, broker: Broker, folder: Path, name: str, max_messages: int = 100_000) -> None:
        self.broker, self.folder, self.topic = broker, folder, name
        broker.topic(name, 3)
        broker.topic(f"{name}-outcomes", 1)
        self._conf = copied_conf(folder, n_units=10) / "env/local.yaml"
        self._settings = yaml.safe_load(self._conf.read_text())
        self._kafka: dict[str, object] = {"max_messages_per_batch": max_messages}
        topics = {"records": name, "outcomes": f"{name}-outcomes"}
        self.told(topics=topics, options={"kafka.client.id": "${CLIENT_ID}"})

    def told(self, **kafka: object) -> None:
        """Writes the conf with what is changed in its section on Kafka."""
        given = {"servers": self.broker.servers} | self._kafka | kafka
        self._kafka = {key: given[key] for key in ("max_messages_per_batch", "topics", "options")}
        ingest = {"kafka": given, "max_reject_share": 1.0}
        self._conf.write_text(yaml.safe_dump(self._settings | {"ingest": ingest}))

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "jobs.ingest_logs", "--config", "conf/contracts/recommendations.yaml"]
        with (self.folder / "ingest.log").open("ab") as out:
            return subprocess.Popen(
                [*command, *arguments],
                cwd=self.folder,
                stdout=out,
                stderr=out,
                env=os.environ | {"PYTHONPATH": str(ROOT), "CLIENT_ID": "ingest"} | environment,
                start_new_session=True,
            )

    def ingest(self) -> int:
        return self.start().wait(300)

    def said(self) -> str:
        return (self.folder / "ingest.log").read_text()

    def rows(self, table: str, *columns: str) -> list[dict[str, object]]:
        path = self.folder / f".lakehouse/recommendations/{table}"
        return DeltaTable(str(path)).to_pyarrow_table(columns=list(columns) or None).to_pylist()

    def request_ids(self) -> list[object]:
        return sorted(str(row["request_id"]) for row in self.rows("inference_log", "request_id"))


def test_what_the_client_logged_to_a_broker_is_in_the_log_once(broker: Broker, tmp_path: Path) -> None:
    service = Service(broker, tmp_path, "predictions")
    contract = ROOT / "conf/contracts/recommendations.json"
    with InferenceLogger(contract, Kafka("predictions", {"bootstrap.servers": broker.servers})) as logger:
        for at in range(500):
            logger.log(
                request_id=f"r{at:03}",
                model_name="recommender",
                model_version="2",
                feature_version="f02",
                features={"device": "mobile", "age": 30},
                prediction_score=0.5,
            )
    broker.send_aborted("predictions", lines("aborted"))
    broken = [*lines("twice", prediction_score=0.1), b"{broken", b"", None]
    broker.send("predictions", [*lines("twice", "twice"), *broken])
    broker.send("predictions-outcomes", [json.dumps(each).encode() for each in OUTCOMES])
    assert service.ingest() == Exit.PASS, service.said()[-3000:]
    assert service.request_ids() == [*(f"r{at:03}" for at in range(500)), "twice"]
    assert [row["value"] for row in service.rows("outcomes", "value")] == [1.0]
    (heartbeat,) = {(row["logged"], row["written"]) for row in service.rows("heartbeats") if row["logged"]}
    assert heartbeat == (500, 500)
    books = [row for row in service.rows("ingest_batches") if row["kind"] == "inference_log"]
    assert (sum(row["accepted"] for row in books), sum(row["duplicates"] for row in books)) == (501, 1)
    refused = {str(row["reason_code"]): row for row in service.rows("inference_log_rejects")}
    assert refused.keys() == {"conflicting_duplicate", "unparsable"}
    assert str(refused["unparsable"]["source"]).startswith("kafka:predictions/")
    assert sum(row["records"] for row in books) == 504 + sum(row["heartbeats"] for row in books)

    assert service.ingest() == Exit.PASS
    assert len(service.rows("ingest_batches")) == len(books) + 1


OUTCOMES = [
    {"outcome_id": "o1", "request_id": "r001", "name": "purchase", "value": 1.0, "event_time": "2026-10-05T08:10:00Z"}
]


def test_ingest_killed_while_messages_come_takes_every_one_once(broker: Broker, tmp_path: Path) -> None:
    service, rng, sent = Service(broker, tmp_path, "killed", max_messages=600), random.Random(3), list[str]()
    interrupted = 0
    for attempt in range(3):
        ids = [f"{attempt}-{at:04}" for at in range(1500)]
        broker.send("killed", lines(*ids, *rng.sample(sent, min(50, len(sent)))))
        sent += ids
        running = service.start("--continuous", "--trigger", "1")
        before = len(service.rows("ingest_batches")) if attempt else 0
        is_at_work = waited(lambda before=before: _n_batches(service) > before, 300)  # type: ignore[misc]
        time.sleep(rng.uniform(0, 3))
        interrupted += is_at_work and running.poll() is None
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    running = service.start("--continuous", "--trigger", "1")
    assert waited(lambda: sum(row["records"] for row in service.rows("ingest_batches")) >= len(sent) + 100, 300)
    broker.send("killed", lines("last"))
    assert waited(lambda: "last" in service.request_ids(), 60)
    assert waited(lambda: " 0 messages behind" in service.said(), 60)
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == Exit.PASS, service.said()[-3000:]
    assert interrupted == 3
    assert service.request_ids() == sorted([*sent, "last"])
    books = service.rows("ingest_batches")
    assert sum(row["accepted"] for row in books) == len(sent) + 1
    assert sum(row["duplicates"] for row in books) == 100
    assert max(row["records"] for row in books) <= 600


def _n_batches(service: Service) -> int:
    try:
        return len(service.rows("ingest_batches"))
    except Exception:  # not made yet
        return 0


def test_mistakes_about_a_topic_and_brokers_that_are_down_are_said_in_a_line(broker: Broker, tmp_path: Path) -> None:
    service = Service(broker, tmp_path, "mistakes")

    def says(**kafka: object) -> str:
        service.told(**kafka)
        assert service.ingest() == Exit.INVALID
        return service.said().strip().splitlines()[-1]

    assert says(topics={"records": "never"}) == "ingest_logs: kafka:never: the brokers have no such topic"
    topic = {"records": "mistakes"}
    no_host = "ingest_logs: kafka:mistakes: no Kafka client can be made of the servers and options: No resolvable"
    assert says(topics=topic, servers="mistyped.invalid:9092").startswith(no_host)
    broker.send("mistakes", lines("before"))
    broker.stop()
    brief = {
        "kafka.default.api.timeout.ms": "3000",
        "kafka.request.timeout.ms": "2000",
        "fetchOffset.numRetries": "1",
    }
    try:
        assert "kafka:mistakes: the brokers do not answer" in says(options=brief)
    finally:
        broker.start()
    assert "Traceback" not in service.said()
    assert service.ingest() == Exit.PASS
    assert service.request_ids() == ["before"]


def test_lost_messages_are_said_with_the_folder_to_delete_and_the_rest_is_taken_after_it(
    broker: Broker, tmp_path: Path
) -> None:
    service = Service(broker, tmp_path, "lost")
    broker.send("lost", lines("kept"))
    assert service.ingest() == Exit.PASS
    broker.send("lost", lines(*(f"lost-{at}" for at in range(100))))
    broker.lose("lost", 3)
    assert service.ingest() == Exit.INVALID
    said = re.search(
        r"ingest_logs: kafka:lost: messages that were not read yet are gone .*, delete (\S+): what", service.said()
    )
    assert said, service.said()[-3000:]
    broker.send("lost", lines("kept", "new"))
    shutil.rmtree(said[1])
    assert service.ingest() == Exit.PASS, service.said()[-3000:]
    assert service.request_ids() == ["kept", "new"]
    assert sum(row["duplicates"] for row in service.rows("ingest_batches")) == 1
