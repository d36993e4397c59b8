"""The producer's one class: takes predictions and outcomes from a service, never raises, never waits by itself."""

import atexit
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from weakref import WeakSet

from mltrust.client.counts import Counts, Model
from mltrust.client.engine import Engine, Options
from mltrust.client.heartbeats import now_micros
from mltrust.client.policies import DROP, WhenFull
from mltrust.client.reports import log
from mltrust.client.sinks import Sink, Stream
from mltrust.client.wire import SCHEMA_VERSION, ContractError, Press
from mltrust.contract import Contract, from_json

_EXIT_SECONDS = 5.0


class InferenceLogger:
    """Logs the predictions of a service.

    `contract` is a contract or the path of a compiled one; `sink` belongs to this logger alone. `log` and
    `outcome` put a record into a queue of `capacity` entries and return; a thread checks the records by the
    contract and brings them to the sink. A record that breaks the contract is written as it is and counted as
    invalid, as ingest keeps what it rejects. With `strict` it is checked in the call, which then raises
    ContractError: for tests and staging.

    Raises ValueError where the contract cannot be read, or knows no v02.
    """

    def __init__(
        self,
        contract: Contract | str | os.PathLike[str],
        sink: Sink,
        *,
        when_full: WhenFull = DROP,
        capacity: int = 10_000,
        heartbeat_seconds: float = 60.0,
        strict: bool = False,
    ) -> None:
        if capacity < 1 or heartbeat_seconds <= 0:
            raise ValueError(f"capacity is {capacity}, heartbeat_seconds {heartbeat_seconds}; expected both above 0")
        known = contract if isinstance(contract, Contract) else from_json(Path(contract).read_text("utf-8"))
        self._press, self._sink, self._strict = Press(known), sink, strict
        self._options = Options(when_full, capacity, heartbeat_seconds)
        self._engine = Engine(self._press, sink, self._options)
        _LIVE.add(self)

    @property
    def producer_id(self) -> str:
        """Names this logger in this process; the same in its files and heartbeats."""
        return self._engine.producer_id

    def log(
        self,
        *,
        request_id: str,
        model_name: str,
        model_version: str,
        feature_version: str,
        features: Mapping[str, object],
        prediction_score: float | None = None,
        unit_id: str | None = None,
        item_id: str = "",
        event_time: datetime | int | None = None,
        experiments: Sequence[Mapping[str, object]] = (),
        traffic: Literal["production", "shadow"] = "production",
        status: Literal["ok", "error"] = "ok",
        error_type: str | None = None,
        action: str | None = None,
        propensity: float | None = None,
        latency_ms: float | None = None,
        infra: Mapping[str, float] | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> bool:
        """Whether the prediction was taken; False: dropped and counted.

        `event_time` is an aware datetime or microseconds since the epoch, by default now. Mappings are copied,
        what is inside them is not. `extra` are fields that the contract does not know; ingest keeps them.
        """
        record: dict[str, object] = {
            "schema_version": SCHEMA_VERSION,
            "request_id": request_id,
            "item_id": item_id,
            "unit_id": unit_id,
            "event_time": now_micros() if event_time is None else event_time,
            "model_name": model_name,
            "model_version": model_version,
            "feature_version": feature_version,
            "experiments": _listed(experiments),
            "traffic": traffic,
            "status": status,
            "error_type": error_type,
            "prediction_score": prediction_score,
            "action": action,
            "propensity": propensity,
            "latency_ms": latency_ms,
            "infra": _copied(infra),
            "features": _copied(features),
            "extra": _copied(extra),
        }
        return self._take((_name(model_name), _name(model_version)), record)

    def outcome(
        self,
        *,
        outcome_id: str,
        name: str,
        value: float | None,
        request_id: str | None = None,
        item_id: str | None = None,
        unit_id: str | None = None,
        revision: int = 0,
        event_time: datetime | int | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> bool:
        """Whether the outcome was taken; False: dropped and counted. `value=None` retracts."""
        record: dict[str, object] = {
            "outcome_id": outcome_id,
            "revision": revision,
            "request_id": request_id,
            "item_id": item_id,
            "unit_id": unit_id,
            "name": name,
            "value": value,
            "event_time": now_micros() if event_time is None else event_time,
            "extra": _copied(extra),
        }
        return self._take(None, record)

    def _take(self, model: Model | None, record: dict[str, object]) -> bool:
        if self._strict:
            line = self._press.outcome(record) if model is None else self._press.record(record)
            if line.rejected is not None:
                raise ContractError(line.rejected)
        try:
            return self._engine.take(model, record)
        except Exception:  # a service must not fail because its log does
            with suppress(Exception):
                log.exception("a record was not taken")
            return False

    def counts(self, stream: Stream = "records") -> Counts:
        """What became of the records, or of the outcomes, of this process."""
        return self._engine.buffer.counts(outcomes=stream == "outcomes")

    def flush(self, timeout: float = 10.0) -> Counts:
        """Returns when everything taken before this call is durable in the sink: the acknowledgement.

        Raises TimeoutError where that takes longer than `timeout` seconds.
        """
        if not self._engine.buffer.wait_durable(timeout):
            raise TimeoutError(f"not durable after {timeout} s: {self.counts()}, outcomes {self.counts('outcomes')}")
        return self.counts()

    def close(self, timeout: float = 10.0) -> Counts:
        """Brings out what was taken, with a last heartbeat, and closes the sink; afterwards calls drop.

        What the sink has not taken after `timeout` seconds is dropped and counted, or left in spill files, which
        the next process takes up.
        """
        self._engine.close(timeout)
        return self.counts()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _forked(self) -> None:
        """In a forked child: a queue, a producer id and files of its own; a closed logger stays closed."""
        closed = self._engine.buffer.closing
        self._engine.forked()
        self._sink.forked()
        self._engine = Engine(self._press, self._sink, self._options)
        if closed:
            self._engine.close(timeout=0.0)


def _copied(given: Mapping[str, object] | None) -> object:
    with suppress(Exception):
        return None if given is None else dict(given)
    return given


def _listed(given: Sequence[Mapping[str, object]]) -> object:
    with suppress(Exception):
        return list(given) or None
    return given


def _name(given: object) -> str:
    """A model's name or version as heartbeats say it, half of a surrogate pair as `?`."""
    with suppress(Exception):
        text = "" if given is None else str(given)
        return text.encode("utf-8", "replace").decode("utf-8") or "(none)"
    return "(none)"


_LIVE: WeakSet[InferenceLogger] = WeakSet()


def _close_all() -> None:
    for logger in list(_LIVE):
        logger.close(_EXIT_SECONDS)


def _after_fork() -> None:
    for logger in list(_LIVE):
        logger._forked()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork)
