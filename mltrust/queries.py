"""Queries of streams: what an operator reads of one that failed, and how they go on and end."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from mltrust.errors import MltrustError
from mltrust.spark import mistakes
from mltrust.spark.mistakes import is_mended_by_a_start, operators_mistake

log = logging.getLogger("mltrust")


class Work:
    """What a query does with every batch, and what an operator can mend about an error that ends it.

    An error of ours is kept: Spark hands on no more than its text.
    """

    def __init__(
        self,
        work: Callable[[DataFrame, int], None],
        mistake: Callable[[Exception], MltrustError | None] = lambda _: None,
    ) -> None:
        self._work, self._mistake = work, mistake
        self._error: MltrustError | None = None

    def __call__(self, batch: DataFrame, number: int) -> None:
        try:
            self._work(batch, number)
        except MltrustError as error:
            self._error = error
            raise

    def explained(self, error: Exception) -> Exception:
        """The error to end with instead of that of the query, which is logged where it says more."""
        if self._error is not None:
            return self._error
        if (mistake := self._mistake(error)) is None:
            return error
        log.warning("%s", str(error).partition("\n=== Streaming Query ===")[0].strip())
        return mistake

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Ends with the explained error where the block does with one of a query."""
        try:
            yield
        except Exception as error:
            raise self.explained(error) from None


class Running(NamedTuple):
    """A query that was started, its work, and how it is started again where that may be all that it needs."""

    query: StreamingQuery
    work: Work
    again: Callable[[], StreamingQuery] | None = None

    def then(self) -> "Running | None":
        """What goes on in place of a query that is not active any more: itself, started again behind its error.

        None where it ended by itself. Raises its error, explained, where a start would not mend it, and that of the
        second start.
        """
        try:
            self.query.awaitTermination()  # one that is not active may still be about to end
        except Exception as error:
            if self.again is None or not is_mended_by_a_start(error):
                raise self.work.explained(error) from None
        else:
            return None
        log.info("%s: started again, behind a batch that an earlier run began", self.query.name)
        with self.work.explaining():
            return Running(self.again(), self.work)


def every(spark: SparkSession, seconds: float, do: Callable[[DataFrame, int], None], name: str) -> Iterator[Running]:
    """Starts, as it is asked for, a query that does some work every so many seconds, whether or not anything arrives.

    Silence must be seen too. It keeps nothing: what the work has to know of its past it reads from its tables.
    """
    mistake = partial(operators_mistake, where=name, signs=mistakes.ANY, checkpoint="")
    ticks, work = spark.readStream.format("rate").option("rowsPerSecond", 1).load(), Work(do, mistake)
    query = ticks.writeStream.queryName(name).foreachBatch(work).trigger(processingTime=f"{seconds:g} seconds")
    with work.explaining():
        running = Running(query.start(), work)
    yield running


def until_ended(running: Running) -> None:
    """Waits for a query that takes what is there and ends; an error is raised, explained.

    A query that is waited for no more, as a notebook's cell was interrupted, is ended: it would hinder the next.
    """
    query = running.query
    try:
        while query.isActive:
            time.sleep(0.1)  # here an interrupt is what it is; within a call of the JVM it may be any error
    except BaseException:
        query.stop()
        raise
    if (again := running.then()) is not None:
        until_ended(again)


def until_stopped(starting: Iterable[Running], *, look_seconds: float = 1.0) -> None:
    """Starts queries one after the other and waits until the process is told to stop (SIGTERM, Ctrl-C) or one fails.

    All are then ended after their batch, also where one of them could not be started.
    """
    stopped = threading.Event()

    def stop(*_: object) -> None:
        stopped.set()

    running, told, before = list[Running](), dict[str, int](), dict[signal.Signals, Any]()
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, stop)
        for each in starting:  # told to stop meanwhile, it goes on until the one that is being started is known
            running.append(each)
            if stopped.is_set():
                break
        is_over = False
        while not is_over:
            is_over = stopped.wait(look_seconds)
            for at, each in enumerate(running):
                if each.query.isActive:
                    continue
                if (again := each.then()) is None:
                    is_over = True
                else:
                    running[at] = again
            told |= _said_behind([each.query for each in running], told)
    finally:
        for number, handler in before.items():  # told again, the process ends at once
            signal.signal(number, handler)
        end([each.query for each in running])


def _said_behind(queries: Sequence[StreamingQuery], told: Mapping[str, int]) -> dict[str, int]:
    """By how many messages queries of topics are behind where that is most; what was not told yet is logged."""
    found = dict[str, int]()
    for query in queries:
        for source in (query.lastProgress or {"sources": []})["sources"]:
            if (n := source["metrics"].get("maxOffsetsBehindLatest")) is not None:
                found[query.name] = int(n)
    for name, n in found.items():
        if told.get(name) != n:
            log.info("%s: %s messages behind in the partition with most", name, f"{n:,}")
    return found


def end(queries: Sequence[StreamingQuery], patience: float = 20) -> None:
    """Ends queries between two batches, or after so many seconds in all.

    One that is cut off is sound, and done again, but prints what it died of.
    """
    until, left = time.monotonic() + patience, list(queries)
    while left:
        is_late = time.monotonic() > until
        for query in list(left):
            if is_late or not (query.isActive and query.status["isTriggerActive"]):
                query.stop()
                left.remove(query)
        time.sleep(0.05)
