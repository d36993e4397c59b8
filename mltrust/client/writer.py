"""The threads behind a logger: one brings the queue to the sink, one brings a crowded queue to spill files."""

import os
from collections import Counter
from collections.abc import Callable
from time import monotonic

from mltrust.client.buffer import Batch, Buffer
from mltrust.client.heartbeats import Pulse
from mltrust.client.reports import Reports
from mltrust.client.sinks import Sink, Stream
from mltrust.client.spool import Spilled, Spool
from mltrust.client.wire import Press

_MOST_ENTRIES = 500
_FIRST_PAUSE, _LONGEST_PAUSE, _CLOSING_PAUSE = 0.05, 5.0, 0.1
_RETRY_SECONDS = 0.5


def batch_size(capacity: int) -> int:
    """Entries in a batch: few enough that batches in hand leave most of the queue to the callers."""
    return max(1, min(_MOST_ENTRIES, capacity // 4))


class Preparer:
    """Checks batches and makes their lines."""

    def __init__(self, press: Press, reports: Reports) -> None:
        self._press, self._reports = press, reports

    def lines(self, batch: Batch) -> dict[Stream, list[bytes]]:
        """The lines of a batch by stream; notes in the batch which of them are invalid."""
        lines: dict[Stream, list[bytes]] = {"records": [], "outcomes": []}
        batch.invalid = Counter()
        for model, record in batch.entries:
            made = self._press.outcome(record) if model is None else self._press.record(record)
            lines["outcomes" if model is None else "records"].append(made.text)
            if made.rejected is not None:
                batch.invalid[model] += 1
                self._reports.invalid(made.rejected)
            # Else a request that wants the GIL back waits for Python's switch interval: with two request threads
            # and a busy writer p99 was 6 ms, with this 0.02 ms. time.sleep(0) takes 70 us, this 0.6.
            os.sched_yield()
        return lines


class Spiller:
    """Keeps the queue short while the sink is slow."""

    def __init__(self, buffer: Buffer, spool: Spool, preparer: Preparer, reports: Reports) -> None:
        self._buffer, self._spool, self._preparer, self._reports = buffer, spool, preparer, reports
        self._most = batch_size(buffer.capacity)

    def run(self) -> None:
        while not self._buffer.closing:
            if not self._spool.has_room():
                self._buffer.pause(_FIRST_PAUSE)
            elif (batch := self._buffer.pop_crowded(self._most, patience=_RETRY_SECONDS)) is not None:
                self._spill(batch)

    def _spill(self, batch: Batch) -> None:
        try:
            self._spool.put(batch, self._preparer.lines(batch))
        except Exception as error:  # a full disk, most likely
            self._reports.failing("the spill folder", error)
            self._buffer.give_back(batch)
            self._buffer.pause(_RETRY_SECONDS)
        else:
            self._reports.works("the spill folder")
            self._buffer.spilled(batch)


class Writer:
    """Brings batches, spilled batches and heartbeats to the sink, and insists until it takes them."""

    def __init__(
        self, buffer: Buffer, sink: Sink, preparer: Preparer, pulse: Pulse, spool: Spool | None, reports: Reports
    ) -> None:
        self._buffer, self._sink, self._preparer, self._pulse = buffer, sink, preparer, pulse
        self._spool, self._reports = spool, reports
        self._most = batch_size(buffer.capacity)
        self._tend_at = 0.0
        #: Heartbeats that the sink has not taken yet.
        self.unsent: list[bytes] = []

    def run(self, producer_id: str) -> None:
        self._tried("recovery of the sink", lambda: self._sink.start(producer_id))
        if self._spool is not None:
            self._start_spool(self._spool)
        while not self._buffer.abandoned and not (self._buffer.closing and self._buffer.drained()):
            if not self._tried("the writer", self._turn):
                self._buffer.pause(_RETRY_SECONDS)
        if not self._buffer.abandoned:
            self._beat()
        self._end()

    def _start_spool(self, spool: Spool) -> None:
        if n_batches := spool.start():
            self._reports.warn("took up %d spilled batches of processes that ended", n_batches)

    def _turn(self) -> None:
        batch = self._buffer.pop(self._most, patience=self._patience())
        if batch is not None:
            self._write(batch)
        if self._spool is not None and self._buffer.has_room() and (spilled := self._spool.first()) is not None:
            self._feed(self._spool, spilled)
        if monotonic() >= self._pulse.due_at:
            self._beat()
        self._acknowledge()
        self._tend()

    def _patience(self) -> float:
        if self._spool is not None and self._spool.first() is not None:
            return 0.0
        return min(self._tend_at, self._pulse.due_at) - monotonic()

    def _write(self, batch: Batch) -> None:
        try:
            lines = self._preparer.lines(batch)
        except Exception:  # no memory, most likely; the next batch may be smaller
            self._buffer.dropped(batch)
            raise
        if self._delivered(lines):
            self._buffer.written(batch)

    def _delivered(self, lines: dict[Stream, list[bytes]]) -> bool:
        return all(self._insisted(stream, each) for stream, each in lines.items() if each)

    def _insisted(self, stream: Stream, lines: list[bytes]) -> bool:
        """Whether the sink has the lines at last; False where the logger was given up before."""
        pause = _FIRST_PAUSE
        while not self._buffer.abandoned:
            if self._tried("the sink", lambda: self._sink.write(stream, lines)):
                return True
            self._buffer.pause(min(pause, _CLOSING_PAUSE) if self._buffer.closing else pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        return False

    def _tried(self, what: str, work: Callable[[], object]) -> bool:
        try:
            work()
        except Exception as error:
            self._reports.failing(what, error)
            return False
        self._reports.works(what)
        return True

    def _feed(self, spool: Spool, spilled: Spilled) -> None:
        try:
            lines = spilled.lines()
        except OSError as error:
            self._reports.failing(f"reading {', '.join(map(str, spilled.paths))}", error)
            spool.skip(spilled)
            if spilled.batch is not None:
                self._buffer.dropped(spilled.batch)
            return
        if self._delivered(lines):
            spool.done(spilled)
            if spilled.batch is not None:
                self._buffer.written(spilled.batch)

    def _beat(self) -> None:
        tallies = self._buffer.beat()
        self._reports.dropped(tallies)
        self.unsent = self._pulse.lines(tallies)
        if self.unsent and self._insisted("records", self.unsent):
            self.unsent = []

    def _acknowledge(self) -> None:
        upto = self._buffer.awaited()
        if upto is not None and self._tried("the sink's sync", self._sink.sync):
            self._buffer.durable(upto)

    def _tend(self) -> None:
        self._tend_at = monotonic() + _RETRY_SECONDS
        self._tried("the sink's upkeep", self._tend_sink)

    def _tend_sink(self) -> None:
        self._tend_at = monotonic() + self._sink.tend()

    def _end(self) -> None:
        while not self._tried("closing the sink", self._sink.close) and not self._buffer.abandoned:
            self._buffer.pause(_CLOSING_PAUSE)
        if not self._buffer.abandoned:
            self._buffer.durable(self._buffer.settled())
