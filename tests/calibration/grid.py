"""What is calibrated: a registry of tests, the grid that each of them is run on, and counts of what came out."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from math import inf, isnan
from typing import Literal, NamedTuple

import numpy as np

from tests.calibration.laws import EVENTS, LAWS, skew_of

SPLITS = {"50/50": 0.5, "90/10": 0.1}
UNITS = (500, 5_000, 50_000)
LEVELS = (0.05, 0.001)
#: By how much the treatment's mean is larger where intervals are asked for the truth.
PLANTED = 0.1

Kind = Literal["exact", "conservative", "quantile"]


class Piece(NamedTuple):
    """One row of the table: a test at a place of the grid. `law` is '' where values do not matter."""

    test: str
    split: str
    law: str
    units: int

    @property
    def name(self) -> str:
        return ", ".join(part for part in (self.test, self.split, self.law, f"{self.units:,} units") if part)

    @property
    def arms(self) -> tuple[int, int]:
        """Units of control and treatment."""
        n_treatment = round(self.units * SPLITS[self.split])
        return self.units - n_treatment, n_treatment


class Size(NamedTuple):
    """What decides whether a test has promised anything: g of the skew criterion, and in the smallest part that is
    compared the units, and the units with and without an event.
    """

    g: float
    units: float
    events: float = inf


class Tally(NamedTuple):
    """Counts over runs: of p-values at both levels or below, of nan, and of intervals that hold the truth."""

    runs: int
    undefined: int = 0
    rejected: int = 0
    rejected_far: int = 0
    intervals: int = 0
    covered: int = 0
    rel_intervals: int = 0
    rel_covered: int = 0

    def plus(self, other: "Tally") -> "Tally":
        return Tally(*(a + b for a, b in zip(self, other, strict=True)))


Run = Callable[[Piece, np.random.Generator, int], Tally]
ToSize = Callable[[Piece], Size]


@dataclass(frozen=True)
class Calibration:
    """A test: what it has promised, where it makes sense, how often it is run and how."""

    name: str
    kind: Kind
    laws: tuple[str, ...]
    sizes: tuple[int, ...]
    levels: tuple[float, float]
    runs: tuple[int, int]
    smallest: int
    size: ToSize
    run: Run
    says: str

    def pieces(self) -> list[Piece]:
        return [Piece(self.name, *at) for at in product(SPLITS, self.laws or ("",), self.sizes)]

    def n_runs(self, units: int, scale: float) -> int:
        return max(20, round(self.runs[units >= 50_000] * scale))


REGISTRY: dict[str, Calibration] = {}


def plain_size(piece: Piece) -> Size:
    """The size of arms whose means are compared; the law decides about events."""
    n = min(piece.arms)
    share = EVENTS.get(piece.law)
    skewness = skew_of(piece.law, *piece.arms) if piece.law else 0.0
    return Size(skewness, n, inf if share is None else n * min(share, 1 - share))


def calibrated(
    name: str,
    *,
    kind: Kind = "exact",
    laws: tuple[str, ...] = LAWS,
    sizes: tuple[int, ...] = UNITS,
    levels: tuple[float, float] = LEVELS,
    runs: tuple[int, int] = (100_000, 20_000),
    smallest: int = 2,
    size: ToSize = plain_size,
) -> Callable[[Run], Run]:
    """Registers a function that makes some runs of a piece; its docstring stands above the table.

    `runs` is the number below 50,000 units and from there on, `smallest` the number of units in the smallest part
    from which the test promises something.
    """

    def register(run: Run) -> Run:
        says = " ".join((run.__doc__ or "").split())
        REGISTRY[name] = Calibration(name, kind, laws, sizes, levels, runs, smallest, size, run, says)
        return run

    return register


def tally(
    pvalues: Iterable[float],
    *,
    levels: Sequence[float] = LEVELS,
    held: Iterable[bool] = (),
    rel_held: Iterable[bool] = (),
) -> Tally:
    """Counts of p-values, and of intervals by whether they held the truth."""
    p = np.fromiter(pvalues, dtype=np.float64)
    abs_held, relative = list(held), list(rel_held)
    return Tally(
        runs=len(p),
        undefined=int(np.isnan(p).sum()),
        rejected=int((p <= levels[0]).sum()),
        rejected_far=int((p <= levels[1]).sum()),
        intervals=len(abs_held),
        covered=int(sum(abs_held)),
        rel_intervals=len(relative),
        rel_covered=int(sum(relative)),
    )


class Interval(NamedTuple):
    low: float
    high: float

    def holds(self, truth: float) -> bool:
        return self.low <= truth <= self.high

    @property
    def is_bounded(self) -> bool:
        return not (isnan(self.low) or isnan(self.high))
