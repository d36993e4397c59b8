"""What a logger runs in one process: queue, writer and spiller, started at the first record, closed once."""

import threading
import uuid
from contextlib import suppress
from threading import Thread
from time import monotonic
from typing import NamedTuple

from mltrust.client.buffer import Batch, Buffer
from mltrust.client.counts import Model, Tally
from mltrust.client.heartbeats import Pulse
from mltrust.client.policies import Block, Spill, WhenFull
from mltrust.client.reports import Reports
from mltrust.client.sinks import Sink
from mltrust.client.spool import Lines, Spool
from mltrust.client.wire import Press
from mltrust.client.writer import Preparer, Spiller, Writer, batch_size

_LAST_SECONDS = 0.5


class Options(NamedTuple):
    """How a logger queues."""

    when_full: WhenFull
    capacity: int
    heartbeat_seconds: float


class Engine:
    """The queue and the threads of one process; a forked child makes its own."""

    def __init__(self, press: Press, sink: Sink, options: Options) -> None:
        policy = options.when_full
        self.producer_id = uuid.uuid4().hex
        half, never = (options.capacity + 1) // 2, options.capacity + 1
        self.buffer = Buffer(options.capacity, crowded=half if isinstance(policy, Spill) else never)
        self._patience = policy.milliseconds / 1000 if isinstance(policy, Block) else 0.0
        self._reports = Reports()
        self._preparer = Preparer(press, self._reports)
        self._pulse = Pulse(self.producer_id, options.heartbeat_seconds)
        self._spool = Spool(policy, self.producer_id) if isinstance(policy, Spill) else None
        self._writer = Writer(self.buffer, sink, self._preparer, self._pulse, self._spool, self._reports)
        self._lock = threading.RLock()
        # Not started before the first record: a service that forks its workers does so with no thread of ours.
        self._threads: tuple[Thread, ...] = ()

    def take(self, model: Model | None, record: dict[str, object]) -> bool:
        """Whether the record was taken; otherwise it counts as dropped."""
        taken = self.buffer.take(model, record, patience=self._patience)
        if taken and not self._threads:
            self._start()
        return taken

    def _start(self) -> None:
        # A system that has no thread left gets another chance at the next record.
        with self._lock, suppress(RuntimeError):
            if self._threads or self.buffer.closing:
                return
            writer = Thread(target=self._writer.run, args=(self.producer_id,), name="mltrust-writer", daemon=True)
            writer.start()
            self._threads = (writer,)
            if self._spool is not None:
                spiller = Spiller(self.buffer, self._spool, self._preparer, self._reports)
                second = Thread(target=spiller.run, name="mltrust-spiller", daemon=True)
                second.start()
                self._threads = (writer, second)

    def close(self, timeout: float) -> None:
        """Brings out what was taken within `timeout` seconds; what is left then is spilled or dropped."""
        with self._lock:
            if self.buffer.closing:
                return
            self.buffer.close()
            self._join(timeout)
            if self._running() or not self.buffer.drained():
                self._abandon()
            if self._spool is not None and not self._running():
                self._spool.close()

    def _join(self, timeout: float) -> None:
        until = monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, until - monotonic()))

    def _running(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def _abandon(self) -> None:
        """Spills what is still in memory; drops it where that is not the policy, or fails."""
        rest = self.buffer.abandon(batch_size(self.buffer.capacity))
        self._join(_LAST_SECONDS)
        # A spiller that hangs would make this thread hang too.
        spool = None if any(thread.is_alive() for thread in self._threads[1:]) else self._spool
        for batch in rest:
            if spool is not None and spool.has_room() and self._spilled(spool, batch, self._preparer.lines(batch)):
                self.buffer.spilled(batch)
            else:
                self.buffer.dropped(batch)
        if spool is not None:
            self._spilled(spool, None, {"records": self._last_heartbeats()})
        left = self.buffer.counts()
        self._reports.warn("closed before the sink took all: %d dropped, %d spilled", left.dropped, left.queued)

    def _spilled(self, spool: Spool, batch: Batch | None, lines: Lines) -> bool:
        try:
            spool.put(batch, lines)
        except OSError as error:
            self._reports.failing("the spill folder", error)
            return False
        return True

    def _last_heartbeats(self) -> list[bytes]:
        """Those that the sink did not take, and the last ones, which count what is left in spill files as written.

        They lie behind it in those files: whoever reads them has read it.
        """
        tallies = self.buffer.beat()
        for model, tally in self.buffer.left().items():
            tallies.setdefault(model, Tally()).add(tally)
        return self._writer.unsent + self._pulse.lines(tallies)

    def forked(self) -> None:
        """In a forked child: lets go of what is the parent's."""
        if self._spool is not None:
            self._spool.forked()
