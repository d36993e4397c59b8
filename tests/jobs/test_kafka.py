"""Ingest from a real Kafka broker, as a program of its own: with the package that Spark's source is in."""

import json
import random
import re
import shutil
import time
from pathlib import Path

import pytest

from mltrust.client import InferenceLogger
from mltrust.client.kafka import Kafka
from mltrust.verdicts import Exit
from tests.conftest import ROOT
from tests.jobs import live
from tests.jobs.broker import Broker
from tests.jobs.live import waited
from tests.jobs.test_ingest import lines

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def client_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIENT_ID", "ingest")


class Service(live.Place):
    """A place that takes from topics of its own."""

    def __init__(self, broker: Broker, folder: Path, name: str, max_messages: int = 100_000) -> None:
        super().__init__(folder)
        broker.topic(name, 3)
        broker.topic(f"{name}-outcomes", 1)
        self._kafka = {
            "servers": broker.servers,
            "topics": {"records": name, "outcomes": f"{name}-outcomes"},
            "options": {"kafka.client.id": "${CLIENT_ID}"},
            "max_messages_per_batch": max_messages,
        }
        self.configure()

    def configure(self, **kafka: object) -> None:
        """Writes into the conf what is taken from Kafka, with what is changed of it."""
        self.tell(ingest={"kafka": self._kafka | kafka, "max_reject_share": 1.0})

    def ingest(self) -> int:
        return self.job("ingest_logs").wait()

    def printed(self) -> str:
        """All that the processes printed."""
        return (self.folder / "ingest_logs.log").read_text()

    def request_ids(self) -> list[str]:
        return sorted(row["request_id"] for row in self.rows("inference_log"))


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
    assert service.ingest() == Exit.PASS, service.printed()[-3000:]
    assert service.request_ids() == [*(f"r{at:03}" for at in range(500)), "twice"]
    assert [row["value"] for row in service.rows("outcomes")] == [1.0]
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
        before, running = len(service.rows("ingest_batches")), continuous(service)
        is_at_work = waited(lambda before=before: len(service.rows("ingest_batches")) > before, 300)  # type: ignore[misc]
        time.sleep(rng.uniform(0, 3))
        interrupted += is_at_work and running.is_running
        running.kill()
    running = continuous(service)
    assert waited(lambda: sum(row["records"] for row in service.rows("ingest_batches")) >= len(sent) + 100, 300)
    broker.send("killed", lines("last"))
    assert waited(lambda: "last" in service.request_ids(), 60)
    assert waited(lambda: " 0 messages behind" in service.printed(), 60)
    assert running.terminate(60) == Exit.PASS, running.said()
    assert interrupted == 3
    assert service.request_ids() == sorted([*sent, "last"])
    books = service.rows("ingest_batches")
    assert sum(row["accepted"] for row in books) == len(sent) + 1
    assert sum(row["duplicates"] for row in books) == 100
    assert max(row["records"] for row in books) <= 600


def continuous(service: Service) -> live.Process:
    return service.job("ingest_logs", "--continuous", "--trigger", "1")


def test_mistakes_about_a_topic_and_brokers_that_are_down_are_said_in_a_line(broker: Broker, tmp_path: Path) -> None:
    service = Service(broker, tmp_path, "mistakes")

    def says(**kafka: object) -> str:
        service.configure(**kafka)
        assert service.ingest() == Exit.INVALID
        return service.printed().strip().splitlines()[-1]

    assert says(topics={"records": "never"}) == "ingest_logs: kafka:never: the brokers have no such topic"
    no_host = "ingest_logs: kafka:mistakes: no Kafka client can be made of the servers and options: No resolvable"
    assert says(servers="mistyped.invalid:9092").startswith(no_host)
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
    assert "Traceback" not in service.printed()
    service.configure()
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
        r"ingest_logs: kafka:lost: messages that were not read yet are gone .*, delete (\S+): what", service.printed()
    )
    assert said, service.printed()[-3000:]
    broker.send("lost", lines("kept", "new"))
    shutil.rmtree(said[1])
    assert service.ingest() == Exit.PASS, service.printed()[-3000:]
    assert service.request_ids() == ["kept", "new"]
    assert sum(row["duplicates"] for row in service.rows("ingest_batches")) == 1
