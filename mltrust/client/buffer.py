"""The bounded queue between a service and its writer, and the counts of what became of every record."""

import threading
from collections import Counter, deque
from dataclasses import dataclass, field
from time import monotonic

from mltrust.client.counts import Counts, Model, Tally, total

#: A record under the model it is counted for; an outcome under None.
Entry = tuple[Model | None, dict[str, object]]

#: More models than this in one heartbeat are counted together: a service that logs its request ids as
#: model_version must not fill its memory with counts.
MAX_MODELS = 1000
OTHER: Model = ("(other)", "(other)")
# The writer waits this long for company before it takes a few entries, so that most calls need not wake it.
_LINGER_SECONDS = 0.01


@dataclass(slots=True, eq=False)
class Batch:
    """Entries that left the queue together; `first` is their place among all that were ever taken."""

    first: int
    entries: list[Entry]
    models: Counter[Model | None]
    invalid: Counter[Model | None] = field(default_factory=Counter)
    spilled: bool = False


class Buffer:
    """Holds at most `capacity` entries in memory, those in a writer's hands included.

    The lock is reentrant, as a signal handler or a finalizer may log in the midst of a call.
    """

    def __init__(self, capacity: int, *, crowded: int) -> None:
        self.capacity = capacity
        self._crowded = crowded
        self._lock = threading.RLock()
        self._work, self._crowd, self._done = (threading.Condition(self._lock) for _ in range(3))
        self._entries: deque[Entry] = deque()
        self._open: dict[int, Batch] = {}
        self._returned: deque[Batch] = deque()
        self._line: deque[threading.Condition] = deque()
        self._held = self._taken = self._popped = self._durable = 0
        self._idle = self._hurried = self.closing = self.abandoned = False
        self._marks: list[int] = []
        self._past: dict[bool, Tally] = {False: Tally(), True: Tally()}
        self._tallies: dict[Model | None, Tally] = {}

    def take(self, model: Model | None, record: dict[str, object], *, patience: float) -> bool:
        """Whether the entry was taken; waits for room for `patience` seconds at most, else it counts as dropped."""
        with self._lock:
            counted = self._counted(model)
            self._tally(counted).logged += 1
            if self.closing or not self._has_place(patience):
                self._tally(counted).dropped += 1
                return False
            self._entries.append((counted, record))
            self._taken += 1
            if self._idle:
                self._hurry(linger=True)
            elif len(self._entries) >= self._crowded:
                self._crowd.notify()
        return True

    def _counted(self, model: Model | None) -> Model | None:
        known = model is None or model in self._tallies or len(self._tallies) < MAX_MODELS
        return model if known else OTHER

    def _tally(self, model: Model | None) -> Tally:
        found = self._tallies.get(model)
        if found is None:
            found = self._tallies[model] = Tally()
        return found

    def _has_place(self, patience: float) -> bool:
        """Whether the caller got a place, which then counts as held."""
        if self._held < self.capacity and not self._line:
            self._held += 1
            return True
        self._hurry()
        return patience > 0 and self._waited(patience)

    def _waited(self, patience: float) -> bool:
        """Places go to those who wait in their order. Whoever came next took them all when they did not: the
        others need the GIL first, and waited a second for a queue that had room every 20 ms.
        """
        place = threading.Condition(self._lock)
        self._line.append(place)
        place.wait_for(lambda: self.closing or place not in self._line, patience)
        if place in self._line:
            self._line.remove(place)
            return False
        if self.closing:
            self._held -= 1
        return not self.closing

    def _hurry(self, *, linger: bool = False) -> None:
        self._idle, self._hurried = False, self._hurried or not linger
        self._work.notify()

    def pop(self, most: int, *, patience: float) -> Batch | None:
        """The next entries, or None where there are none within `patience` seconds. For the writer."""
        with self._lock:
            if not self._entries and not self._returned and not self._hurried:
                self._idle = True
                self._work.wait(max(0.0, patience))
                self._idle = False
            if 0 < len(self._entries) < most and not self._hurried:
                self._work.wait(_LINGER_SECONDS)
            self._hurried = False
            return self._returned.popleft() if self._returned else self._cut(most)

    def pop_crowded(self, most: int, *, patience: float) -> Batch | None:
        """As `pop`, where the queue is crowded. For the spiller, which leaves the rest to the writer."""
        with self._lock:
            if len(self._entries) < self._crowded and not self.closing:
                self._crowd.wait(patience)
            return self._cut(most) if len(self._entries) >= self._crowded and not self.closing else None

    def _cut(self, most: int) -> Batch | None:
        n = min(most, len(self._entries))
        if n == 0:
            return None
        entries = [self._entries.popleft() for _ in range(n)]
        batch = Batch(self._popped, entries, Counter(model for model, _ in entries))
        self._popped += n
        self._open[batch.first] = batch
        return batch

    def give_back(self, batch: Batch) -> None:
        """The spiller could not spill the batch: the next one for the writer."""
        with self._lock:
            self._returned.append(batch)
            self._hurry()

    def has_room(self) -> bool:
        """Whether the queue is so short that the writer has time for spilled batches."""
        return len(self._entries) <= self._crowded // 2

    def spilled(self, batch: Batch) -> None:
        """The batch lies in a spill file, and no longer in memory."""
        with self._lock:
            if batch.first not in self._open or batch.spilled:
                return
            self._release(batch)
            batch.spilled = True
            for model, n in batch.models.items():
                self._tally(model).spilled += n
            self._hurry()

    def written(self, batch: Batch) -> None:
        """The sink has the batch. One that was given up before stays so."""
        with self._lock:
            if self._settled(batch):
                for model, n in batch.models.items():
                    self._tally(model).written += n
                for model, n in batch.invalid.items():
                    self._tally(model).invalid += n

    def dropped(self, batch: Batch) -> None:
        """The batch is lost."""
        with self._lock:
            if self._settled(batch):
                for model, n in batch.models.items():
                    self._tally(model).dropped += n

    def _settled(self, batch: Batch) -> bool:
        """Whether the batch was still open; it is no more."""
        if self._open.pop(batch.first, None) is None:
            return False
        self._release(batch)
        return True

    def _release(self, batch: Batch) -> None:
        if not batch.spilled:
            self._held -= len(batch.entries)
            batch.entries = []
            while self._line and self._held < self.capacity:
                self._held += 1
                self._line.popleft().notify()

    def wait_durable(self, timeout: float) -> bool:
        """Whether everything taken before this call became durable within `timeout` seconds."""
        with self._lock:
            mark = self._taken
            self._marks.append(mark)
            self._hurry()
            try:
                self._done.wait_for(lambda: self.abandoned or self._durable >= mark, timeout)
            finally:
                self._marks.remove(mark)
            return self._durable >= mark

    def settled(self) -> int:
        """How many of the first taken entries are all written or dropped."""
        with self._lock:
            return min(self._open, default=self._popped)

    def drained(self) -> bool:
        """Whether everything that was taken is written or dropped."""
        with self._lock:
            return self.settled() == self._taken

    def awaited(self) -> int | None:
        """`settled`, where a sync would let a flush return; else None."""
        with self._lock:
            upto = self.settled()
            return upto if any(self._durable < mark <= upto for mark in self._marks) else None

    def durable(self, upto: int) -> None:
        """The first `upto` entries are durable: flushes that waited for no more return."""
        with self._lock:
            self._durable = max(self._durable, upto)
            self._done.notify_all()

    def pause(self, seconds: float) -> None:
        """Waits before the next attempt, `seconds` at most; not at all once the logger is being closed."""
        until = monotonic() + seconds
        with self._lock:
            closing = self.closing
            self._done.wait_for(lambda: self.abandoned or self.closing != closing, until - monotonic())

    def close(self) -> None:
        """From here on nothing is taken; what was taken goes out."""
        with self._lock:
            self.closing = True
            self._hurry()
            for condition in (self._crowd, self._done, *self._line):
                condition.notify_all()

    def abandon(self, most: int) -> list[Batch]:
        """Everything that is still in memory, in batches to be settled by the caller: the writer is given up."""
        with self._lock:
            self.closing = self.abandoned = True
            while self._cut(most) is not None:
                pass
            self._hurry()
            self._done.notify_all()
            return [batch for batch in self._open.values() if not batch.spilled]

    def counts(self, *, outcomes: bool = False) -> Counts:
        """The counts of all records, or of all outcomes."""
        with self._lock:
            current = [tally for model, tally in self._tallies.items() if (model is None) is outcomes]
            return total([self._past[outcomes], *current])

    def beat(self) -> dict[Model, Tally]:
        """The counts of every model since the last call, which they leave."""
        with self._lock:
            found, self._tallies = self._tallies, {}
            for model, tally in found.items():
                self._past[model is None].add(tally)
            return {model: tally for model, tally in found.items() if model is not None}

    def left(self) -> dict[Model, Tally]:
        """What lies in spill files, counted as written: for a heartbeat that arrives behind it or not at all."""
        with self._lock:
            found: dict[Model, Tally] = {}
            for batch in self._open.values():
                for model, n in batch.models.items():
                    if batch.spilled and model is not None:
                        tally = found.setdefault(model, Tally())
                        tally.add(Tally(written=n, invalid=batch.invalid[model]))
            return found
