"""The Kafka sink: written is what was delivered, and what was not is sent again."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from mltrust.client import InferenceLogger
from mltrust.client.kafka import Kafka, Report
from mltrust.errors import PlatformError
from mltrust.record import HEARTBEAT
from tests.unit.test_client import CONTRACT, PATIENCE, READER, ROOT, predict, until

CONFIG: dict[str, object] = {"bootstrap.servers": "localhost:9092"}


class Message(NamedTuple):
    topic: str
    value: bytes
    key: bytes | None


class Refusal:
    """An error of a broker."""

    def __init__(self, *, fatal: bool = False) -> None:
        self._fatal = fatal

    def fatal(self) -> bool:
        return self._fatal

    def __str__(self) -> str:
        return "broker down"


class Broker:
    """A producer whose reports come at the next poll; `refuses` says which message it does not deliver."""

    def __init__(self, room: int = 1000) -> None:
        self.delivered: list[Message] = []
        self.waiting: list[tuple[Message, Report]] = []
        self.refuses: Callable[[Message], Refusal | None] = lambda _: None
        self.silent = False
        self.room = room
        self.n_made = 0

    def make(self, config: dict[str, object]) -> "Broker":
        self.config = config
        self.n_made += 1
        return self

    def produce(self, topic: str, value: bytes, key: bytes | None, *, on_delivery: Report) -> None:
        if len(self.waiting) >= self.room:
            raise BufferError("queue full")
        self.waiting.append((Message(topic, value, key), on_delivery))

    def poll(self, timeout: float) -> int:
        if self.silent:
            return 0
        waiting, self.waiting = self.waiting, []
        for message, report in waiting:
            refusal = self.refuses(message)
            if refusal is None:
                self.delivered.append(message)
            report(refusal, message)
        return len(waiting)


def sink(broker: Broker, **options: object) -> Kafka:
    return Kafka("predictions", CONFIG, make_producer=broker.make, **options)  # type: ignore[arg-type]


def test_records_and_outcomes_go_to_their_topics_keyed_by_request() -> None:
    broker = Broker()
    with InferenceLogger(CONTRACT, sink(broker)) as logger:
        predict(logger, "r1")
        logger.outcome(outcome_id="o1", request_id="r1", name="click", value=1.0)
        logger.outcome(outcome_id="o2", unit_id="u1", name="click", value=1.0)
    assert [(each.topic, each.key) for each in broker.delivered] == [
        ("predictions", b"r1"),
        ("predictions-outcomes", b"r1"),
        ("predictions-outcomes", None),
        ("predictions", logger.producer_id.encode()),
    ]
    assert isinstance(READER.read(broker.delivered[0].value), dict)
    assert json.loads(broker.delivered[-1].value)[HEARTBEAT]["written"] == 1
    assert (broker.config["acks"], broker.config["enable.idempotence"]) == ("all", True)


@pytest.mark.parametrize("weak", [{"acks": "1"}, {"acks": 0}, {"enable.idempotence": False}])
def test_a_config_that_weakens_the_acknowledgement_is_refused(weak: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="acknowledgement rests on it"):
        Kafka("predictions", CONFIG | weak, make_producer=Broker().make)
    Kafka("predictions", CONFIG | {"acks": -1, "enable.idempotence": "true"}, make_producer=Broker().make)


def test_only_what_was_not_delivered_is_sent_again() -> None:
    broker, refusals = Broker(), [Refusal(), Refusal()]
    broker.refuses = lambda message: refusals.pop() if message.value == b'{"request_id":"b"}' and refusals else None
    kafka = sink(broker)
    lines = [b'{"request_id":"%s"}' % name for name in (b"a", b"b", b"c")]
    for _ in range(2):
        with pytest.raises(OSError, match="1 of 3 lines not delivered to predictions: broker down"):
            kafka.write("records", lines)
    kafka.write("records", lines)
    assert [each.key for each in broker.delivered] == [b"a", b"c", b"b"]


def test_what_no_report_came_for_is_waited_for_and_not_sent_twice() -> None:
    broker = Broker()
    broker.silent = True
    kafka = sink(broker, delivery_seconds=0.01)
    lines = [b'{"request_id":"a"}']
    with pytest.raises(OSError, match=r"1 of 1 lines not delivered to predictions: no report within 0.01 s"):
        kafka.write("records", lines)
    broker.silent = False
    kafka.write("records", lines)
    assert len(broker.delivered) == 1


def test_a_full_producer_is_polled_until_it_has_room() -> None:
    broker = Broker(room=2)
    sink(broker).write("records", [b"%d" % at for at in range(7)])
    assert [each.value for each in broker.delivered] == [b"%d" % at for at in range(7)]
    broker.silent = True
    with pytest.raises(BufferError):
        sink(broker, delivery_seconds=0.01).write("records", [b"1", b"2", b"3"])


def test_after_a_fatal_error_another_producer_takes_over() -> None:
    broker, refusals = Broker(), [Refusal(fatal=True)]
    broker.refuses = lambda _: refusals.pop() if refusals else None
    kafka = sink(broker)
    lines = [b"1", b"2"]
    with pytest.raises(OSError, match="broker down"):
        kafka.write("records", lines)
    kafka.write("records", lines)
    assert broker.n_made == 2
    assert {each.value for each in broker.delivered} == {b"1", b"2"}


def test_written_counts_what_was_delivered_through_an_outage() -> None:
    broker = Broker()
    broker.refuses = lambda _: Refusal()
    with InferenceLogger(CONTRACT, sink(broker), capacity=10) as logger:
        taken = [predict(logger, str(at)) for at in range(15)]
        with pytest.raises(TimeoutError):
            logger.flush(0.1)
        assert (sum(taken), logger.counts().written, logger.counts().queued) == (10, 0, 10)
        broker.refuses = lambda _: None
        assert logger.flush(PATIENCE).written == 10
    assert [each.key for each in broker.delivered[:10]] == [str(at).encode() for at in range(10)]


def test_a_forked_child_makes_a_producer_of_its_own() -> None:
    broker = Broker()
    kafka = sink(broker)
    assert broker.n_made == 0, "none before the first line: its threads would not survive a fork"
    kafka.write("records", [b"1"])
    kafka.forked()
    kafka.write("records", [b"2"])
    assert broker.n_made == 2
    assert kafka.tend() > 0
    kafka.close()


def test_a_missing_library_is_named_when_the_sink_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(PlatformError, match="confluent-kafka is not installed"):
        Kafka("predictions", CONFIG)


def test_the_library_s_own_mock_cluster_delivers_what_is_logged() -> None:
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from mltrust.client import InferenceLogger
from mltrust.client.kafka import Kafka
from mltrust.contract import Contract, SchemaVersion
config = {{"bootstrap.servers": "", "test.mock.num.brokers": 3}}
logger = InferenceLogger(Contract("log", {{"v02": SchemaVersion()}}, {{"f02": {{}}}}), Kafka("predictions", config))
for at in range(1000):
    logger.log(request_id=str(at), model_name="m", model_version="1", feature_version="f02", features={{}},
               prediction_score=0.5)
assert logger.flush(60).written == 1000
assert logger.close() == (1000, 1000, 0, 0, 0, 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_broker_that_is_not_there_holds_up_nobody() -> None:
    kafka = Kafka("predictions", {"bootstrap.servers": "127.0.0.1:1", "log_level": 0}, delivery_seconds=1.0)
    logger = InferenceLogger(CONTRACT, kafka, capacity=5)
    taken = [predict(logger, str(at)) for at in range(8)]
    assert sum(taken) == 5
    assert logger.close(timeout=0.5).dropped == 8
    until(lambda: logger.counts().queued == 0)
