"""What a logger counts of its records."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

#: model_name and model_version.
Model = tuple[str, str]


class Counts(NamedTuple):
    """Records since the logger was made: logged = written + dropped + queued.

    `logged` are the calls, `written` what the sink has taken, `queued` what waits in memory or in spill files.
    `invalid` are those among the written that break the contract, `spilled` those that went by a spill file.
    """

    logged: int
    written: int
    dropped: int
    invalid: int
    spilled: int
    queued: int


@dataclass(slots=True)
class Tally:
    """Counts that still grow."""

    logged: int = 0
    written: int = 0
    dropped: int = 0
    invalid: int = 0
    spilled: int = 0

    def add(self, other: "Tally") -> None:
        self.logged += other.logged
        self.written += other.written
        self.dropped += other.dropped
        self.invalid += other.invalid
        self.spilled += other.spilled


def total(tallies: Iterable[Tally]) -> Counts:
    """The sum of the tallies."""
    found = Tally()
    for tally in tallies:
        found.add(tally)
    queued = found.logged - found.written - found.dropped
    return Counts(found.logged, found.written, found.dropped, found.invalid, found.spilled, queued)
