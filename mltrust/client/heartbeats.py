"""Heartbeats: what a producer counted of each model since its last heartbeat, as lines of the log itself."""

import time
from collections.abc import Mapping

from mltrust.client.counts import Model, Tally
from mltrust.client.landing import HOST
from mltrust.client.wire import encoded, iso
from mltrust.record import HEARTBEAT


def now_micros() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


class Pulse:
    """The heartbeats of one producer, every `seconds`; their sequence counts from 0 without gaps."""

    def __init__(self, producer_id: str, seconds: float) -> None:
        self._producer_id, self._seconds = producer_id, seconds
        self._sequence, self._window_start = 0, now_micros()
        self.due_at = time.monotonic() + seconds

    def lines(self, tallies: Mapping[Model, Tally]) -> list[bytes]:
        """A line per model that has counts, for the window that ends now; the next window begins."""
        now = max(now_micros(), self._window_start)
        found = [self._line(model, tally, now) for model, tally in tallies.items() if tally != Tally()]
        self._window_start = now
        self.due_at = time.monotonic() + self._seconds
        return found

    def _line(self, model: Model, tally: Tally, now: int) -> bytes:
        model_name, model_version = model
        line = {
            "producer_id": self._producer_id,
            "sequence": self._sequence,
            "model_name": model_name,
            "model_version": model_version,
            "window_start": iso(self._window_start),
            "event_time": iso(now),
            "logged": tally.logged,
            "written": tally.written,
            "dropped": tally.dropped,
            "invalid": tally.invalid,
            "spilled": tally.spilled,
            "host": HOST,
        }
        self._sequence += 1
        return encoded({HEARTBEAT: line})
