"""What happens to a record when the queue is full. The choice is the service's; no policy raises."""

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Drop:
    """The record is dropped and counted: the call never waits."""


@dataclass(frozen=True, slots=True)
class Block:
    """The call waits for room, `milliseconds` at most; then the record is dropped and counted."""

    milliseconds: float

    def __post_init__(self) -> None:
        if not 0 < self.milliseconds < float("inf"):
            raise ValueError(f"milliseconds is {self.milliseconds}, expected a number above 0; Drop() never waits")


@dataclass(frozen=True, slots=True)
class Spill:
    """From half full on, the older records go to files in `folder`, and from there to the sink when it has room.

    A thread of its own writes them: the call never waits, and a record is dropped only where that thread does not
    keep up, or where `max_bytes` of one process wait in the folder. The folder should lie on another disk than the
    sink's: a full one fails both.
    """

    folder: str | os.PathLike[str]
    max_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes is {self.max_bytes}, expected 1 or more")


WhenFull = Drop | Block | Spill
DROP = Drop()
