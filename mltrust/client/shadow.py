"""Shadow calls: the champion answers, the candidate is asked about the same request off its path."""

import os
import threading
import uuid
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from time import perf_counter
from typing import Generic, Literal, NamedTuple, TypeVar, cast

from mltrust.client.heartbeats import now_micros
from mltrust.client.logger import InferenceLogger

Answer = TypeVar("Answer")
Read = TypeVar("Read")
Features = Mapping[str, object]
Traffic = Literal["production", "shadow"]


@dataclass(frozen=True, slots=True)
class Model(Generic[Answer]):
    """A model by its names in the log; `predict` takes the features of one request."""

    name: str
    version: str
    predict: Callable[[Features], Answer]


class ShadowCounts(NamedTuple):
    """Calls of this process: the champion's, and of the candidate's those made, those skipped, those that raised."""

    served: int
    shadowed: int
    skipped: int
    failed: int


class _Request(NamedTuple):
    """What both records share; `features` as they were before any model saw them."""

    request_id: str
    item_id: str
    unit_id: str | None
    experiments: Sequence[Mapping[str, object]]
    event_time: int
    features: Features


class _Called(NamedTuple):
    """What a model said, or raised."""

    answer: object
    error: BaseException | None
    latency_ms: float


class _Pool:
    """Daemon threads behind a bounded queue: one that hangs keeps neither a request nor the exit waiting."""

    def __init__(self, *, threads: int, capacity: int) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Callable[[], None]] = deque()
        self._busy = self._started = 0
        self._threads, self._capacity = threads, capacity

    def fresh(self) -> "_Pool":
        """An empty pool of the same size, for a forked child."""
        return _Pool(threads=self._threads, capacity=self._capacity)

    def offer(self, work: Callable[[], None]) -> bool:
        """Whether the work was taken."""
        with self._changed, suppress(RuntimeError):  # no thread can be started
            if len(self._waiting) >= self._capacity:
                return False
            if self._busy + len(self._waiting) >= self._started and self._started < self._threads:
                threading.Thread(target=self._run, name="mltrust-shadow", daemon=True).start()
                self._started += 1
            self._waiting.append(work)
            self._changed.notify_all()
            return True
        return False

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                work = self._waiting.popleft()
                self._busy += 1
            with suppress(BaseException):  # a candidate that calls sys.exit must not end its thread
                work()
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    def wait(self, timeout: float) -> bool:
        """Whether all work was done within `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._busy, timeout)


class Shadow(Generic[Answer]):
    """Serves the champion's answers and shadows them with the candidate's; made by `shadow`."""

    def __init__(
        self, champion: Model[Answer], candidate: Model[Answer], log: "_Log[Answer]", *, threads: int, capacity: int
    ) -> None:
        self._champion, self._candidate, self._log = champion, candidate, log
        self._pool = _Pool(threads=threads, capacity=capacity)
        self._lock, self._counts, self._pid = threading.Lock(), Counter[str](), os.getpid()

    def __call__(
        self,
        features: Features,
        *,
        request_id: str | None = None,
        item_id: str = "",
        unit_id: str | None = None,
        experiments: Sequence[Mapping[str, object]] = (),
    ) -> Answer:
        """The champion's answer, or what it raises. Without a request_id both records share a new one."""
        if self._pid != os.getpid():
            self._renew()
        event_time, copied = now_micros(), _copied(features)
        kept = features if copied is None else copied
        request = _Request(request_id or uuid.uuid4().hex, item_id, unit_id, experiments, event_time, kept)
        called = _called(self._champion, features, Exception)
        self._count("served")
        self._log(self._champion, "production", request, called)
        if copied is None or not self._pool.offer(lambda: self._shadow(request)):
            self._count("skipped")
        if called.error is not None:
            raise called.error
        return cast(Answer, called.answer)

    def _renew(self) -> None:
        """In a forked child: threads and locks of its own."""
        self._pool = self._pool.fresh()
        self._lock, self._counts, self._pid = threading.Lock(), Counter(), os.getpid()

    def _shadow(self, request: _Request) -> None:
        # Whatever a candidate raises, sys.exit() too.
        called = _called(self._candidate, deepcopy(request.features), BaseException)
        self._count("shadowed" if called.error is None else "failed")
        self._log(self._candidate, "shadow", request, called)

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    def counts(self) -> ShadowCounts:
        with self._lock:
            return ShadowCounts(*(self._counts[name] for name in ShadowCounts._fields))

    def wait(self, timeout: float) -> bool:
        """Whether the candidate has answered everything within `timeout` seconds: before the logger is closed."""
        return self._pool.wait(timeout)


def _copied(features: Features) -> dict[str, object] | None:
    with suppress(Exception):
        return deepcopy(dict(features))
    return None


def _called(model: Model[Answer], features: Features, caught: type[BaseException]) -> _Called:
    started, answer, raised = perf_counter(), None, None
    try:
        answer = model.predict(features)
    except caught as error:
        raised = error
    return _Called(answer, raised, 1000 * (perf_counter() - started))


class _Log(Generic[Answer]):
    """Logs what a model said of a request."""

    def __init__(
        self,
        logger: InferenceLogger,
        feature_version: str,
        score: Callable[[Answer], float | None] | None,
        action: Callable[[Answer], str | None] | None,
    ) -> None:
        self._logger, self._feature_version = logger, feature_version
        self._score, self._action = score, action

    def __call__(self, model: Model[Answer], traffic: Traffic, request: _Request, called: _Called) -> None:
        failed = called.error is not None
        self._logger.log(
            request_id=request.request_id,
            item_id=request.item_id,
            unit_id=request.unit_id,
            experiments=request.experiments,
            event_time=request.event_time,
            model_name=model.name,
            model_version=model.version,
            feature_version=self._feature_version,
            features=request.features,
            traffic=traffic,
            status="error" if failed else "ok",
            error_type=type(called.error).__name__ if failed else None,
            prediction_score=None if failed else _read(self._score, called.answer),
            action=None if failed else _read(self._action, called.answer),
            latency_ms=called.latency_ms,
        )


def _read(read: Callable[[Answer], Read | None] | None, answer: object) -> Read | None:
    """What `read` finds in an answer; None, for ingest to refuse, where it raises."""
    with suppress(Exception):
        return None if read is None else read(cast(Answer, answer))
    return None


def _as_score(answer: object) -> float | None:
    return cast(float, answer)


def shadow(
    champion: Model[Answer],
    candidate: Model[Answer],
    logger: InferenceLogger,
    *,
    feature_version: str,
    score: Callable[[Answer], float | None] = _as_score,
    action: Callable[[Answer], str | None] | None = None,
    threads: int = 1,
    capacity: int = 100,
) -> Shadow[Answer]:
    """A callable that serves the champion, and asks the candidate too, off the path of the request.

    Both are logged under one request_id and event_time, the candidate as shadow traffic, with the features as they
    were before any model saw them. The candidate gets a deep copy of these, in one of `threads` threads behind a
    queue of `capacity` requests; when that is full it is not asked, which is counted. It cannot change, delay or
    fail an answer; the interpreter and its lock it shares. `score` and `action` read an answer, by default the
    score is the answer itself.
    """
    log = _Log(logger, feature_version, score, action)
    return Shadow(champion, candidate, log, threads=threads, capacity=capacity)
