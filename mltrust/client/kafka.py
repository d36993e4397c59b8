"""A sink of Kafka topics; needs confluent-kafka (extra `kafka`)."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol

from mltrust.client.sinks import Stream
from mltrust.errors import PlatformError
from mltrust.record import HEARTBEAT

_POLL_SECONDS = 0.1
_IDLE_SECONDS = 10.0
# What the acknowledgement rests on, and how a config may spell it.
_FIXED = {"acks": ("all", "-1"), "enable.idempotence": ("true",)}


class DeliveryError(Protocol):
    """Why a broker did not take a line."""

    def fatal(self) -> bool: ...


Report = Callable[[DeliveryError | None, object], None]


class Producer(Protocol):
    """What this sink needs of confluent_kafka.Producer."""

    def produce(self, topic: str, value: bytes, key: bytes | None, *, on_delivery: Report) -> None: ...

    def poll(self, timeout: float) -> int: ...


MakeProducer = Callable[[dict[str, object]], Producer]


@dataclass(slots=True, eq=False)
class _Delivery:
    """A list of lines on its way: positions that must be sent, and those that no report has come for."""

    lines: Sequence[bytes]
    unsent: set[int]
    in_flight: set[int] = field(default_factory=set)
    error: DeliveryError | None = None

    def report(self, position: int) -> Report:
        def reported(error: DeliveryError | None, _message: object) -> None:
            self.in_flight.discard(position)
            if error is not None:
                self.unsent.add(position)
                self.error = error

        return reported


class Kafka:
    """Lines as messages: records in `topic`, outcomes in `outcomes_topic` (`<topic>-outcomes`), keyed by request_id.

    A line counts as written when its delivery is reported, with acks=all and an idempotent producer; a config that
    says otherwise is refused. What is not delivered within `delivery_seconds` is sent again, and may then be
    there twice, identical, which ingest counts as a duplicate.

    Raises PlatformError where confluent-kafka is not installed.
    """

    def __init__(
        self,
        topic: str,
        config: Mapping[str, object],
        *,
        outcomes_topic: str | None = None,
        delivery_seconds: float = 30.0,
        make_producer: MakeProducer | None = None,
    ) -> None:
        for name, admitted in _FIXED.items():
            if str(config.get(name, admitted[0])).lower() not in admitted:
                raise ValueError(f"{name} is {config[name]!r}, expected {admitted[0]}: acknowledgement rests on it")
        self._topics: dict[Stream, str] = {"records": topic, "outcomes": outcomes_topic or f"{topic}-outcomes"}
        self._config: dict[str, object] = {
            "acks": "all",
            "enable.idempotence": True,
            "delivery.timeout.ms": int(delivery_seconds * 1000),
            **config,
        }
        self._seconds = delivery_seconds
        self._make = make_producer or _confluent()
        self._producer: Producer | None = None
        self._delivery = _Delivery((), set())
        self._inherited: list[Producer | None] = []

    def start(self, producer_id: str) -> None:
        """Nothing is left behind that could be taken up."""

    def write(self, stream: Stream, lines: Sequence[bytes]) -> None:
        if lines is not self._delivery.lines:
            self._delivery = _Delivery(lines, set(range(len(lines))))
        delivery, until = self._delivery, monotonic() + self._seconds
        # Made at the first line: its threads do not survive a fork.
        producer = self._producer = self._producer or self._make(self._config)
        for position in sorted(delivery.unsent):
            self._send(producer, self._topics[stream], position, until)
        while delivery.in_flight and monotonic() < until:
            producer.poll(_POLL_SECONDS)
        self._require_delivered(self._topics[stream])

    def _send(self, producer: Producer, topic: str, position: int, until: float) -> None:
        delivery = self._delivery
        line, report = delivery.lines[position], delivery.report(position)
        while True:
            try:
                producer.produce(topic, line, _key(line), on_delivery=report)
            except BufferError:  # the producer's own queue is full until reports are taken
                if monotonic() >= until:
                    raise
                producer.poll(_POLL_SECONDS)
            else:
                break
        delivery.unsent.discard(position)
        delivery.in_flight.add(position)

    def _require_delivered(self, topic: str) -> None:
        delivery = self._delivery
        n_missing = len(delivery.unsent) + len(delivery.in_flight)
        if n_missing == 0:
            return
        error, delivery.error = delivery.error, None
        if error is not None and error.fatal():
            # This producer takes nothing any more. Its reports go to the old delivery.
            self._producer = None
            self._delivery = _Delivery(delivery.lines, delivery.unsent | delivery.in_flight)
        why = error or f"no report within {self._seconds} s"
        raise OSError(f"{n_missing} of {len(delivery.lines)} lines not delivered to {topic}: {why}")

    def sync(self) -> None:
        """What is written is delivered."""

    def tend(self) -> float:
        if self._producer is not None:
            self._producer.poll(0.0)
        return _IDLE_SECONDS

    def close(self) -> None:
        self._producer = None

    def forked(self) -> None:
        self._inherited.append(self._producer)  # kept, as its end would wait for threads that are not here
        self._producer, self._delivery = None, _Delivery((), set())


def _key(line: bytes) -> bytes | None:
    """The request_id of a line, or of a heartbeat the producer_id: what belongs together stays in one partition."""
    with suppress(ValueError, KeyError, TypeError):
        record = json.loads(line)
        found = record[HEARTBEAT]["producer_id"] if HEARTBEAT in record else record["request_id"]
        return found.encode() if isinstance(found, str) else None
    return None


def _confluent() -> MakeProducer:
    try:
        from confluent_kafka import Producer as Confluent  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise PlatformError("confluent-kafka is not installed; pip install 'mltrust[kafka]'") from None
    made: MakeProducer = Confluent
    return made
