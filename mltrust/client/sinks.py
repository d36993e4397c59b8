"""What a sink promises to the logger."""

from collections.abc import Sequence
from typing import Literal, Protocol

Stream = Literal["records", "outcomes"]
STREAMS: tuple[Stream, ...] = ("records", "outcomes")


class Sink(Protocol):
    """Where lines go. One thread at a time calls it: the logger's writer; `forked` is called by a forked child.

    Any exception of `write`, `sync` and `tend` counts as a passing failure and the call is repeated, so an
    exception must leave the sink usable.
    """

    def start(self, producer_id: str) -> None:
        """Called once before anything else in a process: takes up what earlier processes left."""

    def write(self, stream: Stream, lines: Sequence[bytes]) -> None:
        """Takes all lines, each without its newline: afterwards the end of this process loses none of them.

        After an exception the same list object comes again, until it is taken.
        """

    def sync(self) -> None:
        """Afterwards the end of this machine loses nothing that was written before."""

    def tend(self) -> float:
        """Does what time asks for (rotates, syncs) and gives the seconds until it next wants to be called."""

    def close(self) -> None:
        """Syncs, publishes and lets go of everything."""

    def forked(self) -> None:
        """Lets go of what belongs to the parent process, without touching it."""
