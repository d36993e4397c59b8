"""Cells of a column: where its values are counted, fixed by the reference alone.

A value lies in an *ordinary* cell, an interval or a category of the reference, or in a *structural* one: missing,
outside the reference's range, or of no category that the reference has. Every artefact of cells is plain values, and
its version is a hash of them: counts of one version can be added and compared, whoever counted them.
"""

import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from itertools import pairwise
from math import isfinite

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mltrust.states.moments import FloatArray

IntArray = NDArray[np.int64]

MISSING, BELOW, ABOVE, UNSEEN, OTHER = "missing", "below", "above", "unseen", "other"
#: Cells of a column of numbers: of as many different values each has its own, of more the cells are quantiles.
N_CELLS, MAX_DISTINCT = 10, 20
#: Categories that have a cell of their own.
MAX_VALUES = 50
#: Integer steps of a standard deviation in which locations are summed, and the farthest of them.
STEPS, _FARTHEST = 4096, 1000
#: Squares are summed in two parts, of which neither overflows before 5e11 rows.
_LOW_BITS = 20
#: Values farther from the quartiles than as many of their ranges do not move the mean.
_FENCE = 10


@dataclass(frozen=True)
class OrderedCells:
    """Cells of numbers: right-closed intervals from `minimum` to the last of `edges`, then missing, below, above.

    The first interval is [minimum, edges[0]], the i-th (edges[i - 1], edges[i]]; `minimum` and the last edge are the
    reference's. Where the reference has few different values (`discrete`) the edges are these values. `center` and
    `scale` are the reference's mean and standard deviation, in whose steps locations are summed, after values are
    cut off at `low` and `high`: the reference's minimum and maximum, or, where these lie absurdly far outside of the
    quartiles, a fence; one outlier would hide every shift of the mean.
    """

    minimum: float
    edges: tuple[float, ...]
    low: float
    high: float
    center: float
    scale: float
    discrete: bool = False

    def __post_init__(self) -> None:
        if not self.edges or not all(map(isfinite, (self.minimum, *self.edges))):
            raise ValueError(f"cells need a finite minimum and finite edges, got {self.minimum} and {self.edges}")
        if not all(a < b for a, b in pairwise(self.edges)) or self.minimum > self.edges[0]:
            raise ValueError(f"edges ascend from the minimum {self.minimum} without duplicates, got {self.edges}")
        if not (self.minimum <= self.low <= self.high <= self.edges[-1] and self.low <= self.center <= self.high):
            raise ValueError(f"expected minimum <= low <= center <= high <= maximum, got {self}")
        if not 0 < self.scale < np.inf:
            raise ValueError(f"scale is {self.scale}, expected above 0 (1 for a column that does not vary)")

    @classmethod
    def of(cls, reference: ArrayLike, n_cells: int = N_CELLS, max_distinct: int = MAX_DISTINCT) -> "OrderedCells":
        """The cells of a reference sample; missing (nan) and infinite values are left out.

        ValueError where nothing is left.
        """
        sample = np.asarray(reference, dtype=np.float64)
        values = sample[np.isfinite(sample)]
        if not len(values):
            raise ValueError("a reference without a finite value has no cells")
        distinct = np.unique(values)
        low, high = _fences(np.quantile(values, [0, 0.25, 0.75, 1]).tolist())
        levels, cut = _levels(n_cells), values.clip(low, high)
        edges = distinct if (few := len(distinct) <= max_distinct) else np.quantile(values, levels)
        return cls._made(float(distinct[0]), edges.tolist(), low, high, float(cut.mean()), float(cut.std()), few)

    @classmethod
    def of_quantiles(cls, quantiles: Sequence[float], n_cells: int = N_CELLS) -> "OrderedCells":
        """The cells of a reference known by quantiles at equal steps of the level, from its minimum to its maximum.

        Exact or approximate ones: 101 of them or more, 1,001 where there is a choice. Centre and scale are those of
        the values between, as tests take mean and variance from exact sums and only need the frame.
        """
        grid = np.asarray(quantiles, dtype=np.float64)
        if len(grid) < 2 or not np.isfinite(grid).all() or (np.diff(grid) < 0).any():
            raise ValueError(f"expected two or more finite quantiles in ascending order, got {quantiles}")
        at = np.linspace(0, 1, len(grid))
        low, high = _fences(np.interp([0, 0.25, 0.75, 1], at, grid).tolist())
        cut = ((grid[1:] + grid[:-1]) / 2).clip(low, high)
        edges = np.interp(_levels(n_cells), at, grid)
        return cls._made(float(grid[0]), edges.tolist(), low, high, float(cut.mean()), float(cut.std()), False)

    @classmethod
    def of_values(cls, counts: Mapping[float, int]) -> "OrderedCells":
        """The cells of a reference of few different values, one a value, from how many rows have each."""
        values, weights = np.array(sorted(counts), dtype=np.float64), [counts[value] for value in sorted(counts)]
        if not len(values) or not np.isfinite(values).all() or min(weights) < 1:
            raise ValueError(f"expected finite values that one row or more have each, got {counts}")
        low, high = _fences(_weighted_quartiles(values.tolist(), weights))
        cut = values.clip(low, high)
        mean = float(np.average(cut, weights=weights))
        sd = float(np.sqrt(np.average((cut - mean) ** 2, weights=weights)))
        return cls._made(float(values[0]), values.tolist(), low, high, mean, sd, True)

    @classmethod
    def _made(
        cls, minimum: float, edges: list[float], low: float, high: float, mean: float, sd: float, discrete: bool
    ) -> "OrderedCells":
        """The cells with duplicate edges dropped, and rounding errors of the mean beyond the limits too."""
        distinct = tuple(sorted(set(edges)))
        return cls(minimum, distinct, low, high, min(max(mean, low), high), sd if sd > 0 else 1.0, discrete)

    @property
    def is_ordered(self) -> bool:
        return True

    @property
    def maximum(self) -> float:
        """The largest value of the reference."""
        return self.edges[-1]

    @property
    def n_ordinary(self) -> int:
        """How many cells are intervals: the first ones."""
        return len(self.edges)

    @property
    def structural(self) -> tuple[str, ...]:
        """The kinds of the cells after the ordinary ones, in their order."""
        return (MISSING, BELOW, ABOVE)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every cell as a person reads it."""
        minimum, *edges = _named((self.minimum, *self.edges))
        if self.discrete:
            ordinary = edges
        else:
            first = minimum if self.minimum == self.edges[0] else f"[{minimum}, {edges[0]}]"
            ordinary = [first, *(f"({a}, {b}]" for a, b in pairwise(edges))]
        return (*ordinary, MISSING, f"below {minimum}", f"above {edges[-1]}")

    @cached_property
    def version(self) -> str:
        """The `edges_version`: the same for the same cells, on every machine."""
        return _hashed(self.to_plain())

    @property
    def widths(self) -> FloatArray:
        """The distances between the points of neighbours, from below over the ordinary cells to above.

        Of an interval the point is its middle, of a single value that value; outside there is only the limit itself.
        """
        left = np.array((self.minimum, *self.edges[:-1]))
        right = np.array(self.edges)
        middle = right if self.discrete else (left + right) / 2
        return np.diff(np.concatenate(([self.minimum], middle, [self.maximum])))

    def index(self, values: ArrayLike) -> IntArray:
        """The cell of every value; nan is missing. Integers are exact up to 2^53."""
        x = np.asarray(values, dtype=np.float64)
        n = self.n_ordinary
        found = np.searchsorted(np.array(self.edges), x, side="left").astype(np.int64)
        found[x < self.minimum] = n + 1
        found[x > self.maximum] = n + 2
        found[np.isnan(x)] = n
        return found

    def steps(self, values: ArrayLike) -> IntArray:
        """How many steps each value lies from the centre; 0 for a missing one, which is counted as missing."""
        x = np.asarray(values, dtype=np.float64)
        z = ((x.clip(self.low, self.high) - self.center) / self.scale).clip(-_FARTHEST, _FARTHEST)
        steps: IntArray = np.rint(STEPS * np.where(np.isnan(z), 0, z)).astype(np.int64)
        return steps

    def located(self, values: ArrayLike) -> IntArray:
        """(3, n) integers that sum to the location: see `with_squares`. Missing values are 0."""
        return with_squares(self.steps(values))

    def to_plain(self) -> dict[str, object]:
        """The artefact as JSON has it."""
        return {"kind": "ordered", **asdict(self), "edges": list(self.edges)}


@dataclass(frozen=True)
class UnorderedCells:
    """Cells of categories: the reference's values by descending frequency, then missing, and what is not listed.

    Where the list is the whole reference (`complete`), what is not listed is `unseen`. Else the reference has such
    rows too, and the last cell is `(other)`: values beyond the most frequent ones and values that it never had are
    counted there together, and its growth is tested as exactly. `n_singletons` of the reference's `n_rows` rows have
    a value that no other row has: as many rows of a new window would be unseen without any drift (Good 1953).
    """

    values: tuple[str, ...]
    complete: bool = True
    n_singletons: int = 0
    n_rows: int = 0

    def __post_init__(self) -> None:
        if len(set(self.values)) != len(self.values):
            raise ValueError(f"categories are distinct, got {self.values}")
        if not 0 <= self.n_singletons <= self.n_rows:
            raise ValueError(f"{self.n_singletons} of {self.n_rows} rows cannot have a value of their own")

    @classmethod
    def of(cls, reference: Iterable[str | None], max_values: int = MAX_VALUES) -> "UnorderedCells":
        """The cells of a reference sample; None is missing."""
        counts: dict[str, int] = {}
        for value in reference:
            if value is not None:
                counts[value] = counts.get(value, 0) + 1
        return cls.of_counts(counts, max_values)

    @classmethod
    def of_counts(
        cls,
        counts: Mapping[str, int],
        max_values: int = MAX_VALUES,
        *,
        n_rows: int | None = None,
        n_singletons: int | None = None,
    ) -> "UnorderedCells":
        """The cells of a reference by the rows that have each value, or of its most frequent values.

        `n_rows` and `n_singletons` say how many rows have any value, and how many one of their own, where `counts`
        does not have all values.
        """
        by_rows = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
        kept, listed = by_rows[:max_values], sum(counts.values())
        total = listed if n_rows is None else n_rows
        complete = total == sum(n for _, n in kept)
        alone = sum(n == 1 for n in counts.values()) if n_singletons is None else n_singletons
        return cls(tuple(value for value, _ in kept), complete, alone, total)

    @property
    def is_ordered(self) -> bool:
        return False

    @property
    def n_ordinary(self) -> int:
        """How many cells are categories: the first ones."""
        return len(self.values)

    @property
    def structural(self) -> tuple[str, ...]:
        """The kinds of the cells after the ordinary ones, in their order."""
        return (MISSING, UNSEEN if self.complete else OTHER)

    @property
    def names(self) -> tuple[str, ...]:
        """Every cell as a person reads it."""
        return (*self.values, MISSING, UNSEEN if self.complete else f"({OTHER})")

    @cached_property
    def version(self) -> str:
        """The `edges_version`: the same for the same cells, on every machine."""
        return _hashed(self.to_plain())

    def index(self, values: Iterable[str | None]) -> IntArray:
        """The cell of every value; None is missing."""
        at: dict[str | None, int] = {value: i for i, value in enumerate(self.values)}
        at[None] = self.n_ordinary
        return np.array([at.get(value, self.n_ordinary + 1) for value in values], dtype=np.int64)

    def to_plain(self) -> dict[str, object]:
        """The artefact as JSON has it."""
        return {"kind": "unordered", **asdict(self), "values": list(self.values)}


Cells = OrderedCells | UnorderedCells


def n_cells(cells: Cells) -> int:
    """Ordinary and structural cells together."""
    return cells.n_ordinary + len(cells.structural)


def from_plain(plain: Mapping[str, object]) -> Cells:
    """The cells that `to_plain` gave, after a way through JSON."""
    fields = {name: tuple(each) if isinstance(each, list) else each for name, each in plain.items() if name != "kind"}
    found: Cells = {"ordered": OrderedCells, "unordered": UnorderedCells}[str(plain["kind"])](**fields)
    return found


def with_squares(steps: IntArray) -> IntArray:
    """(3, n) integers that sum to a location: steps q from the centre, and high and low part of q².

    Sums of integers are the same in any order; q² = hi·2^20 + lo.
    """
    square = steps * steps
    return np.stack([steps, square >> _LOW_BITS, square & ((1 << _LOW_BITS) - 1)])


def _levels(n_cells: int) -> FloatArray:
    """The levels of the right ends of cells that hold the same share of rows each."""
    if n_cells < 2:
        raise ValueError(f"a shape needs 2 cells or more, got {n_cells}")
    return np.arange(1, n_cells + 1) / n_cells


def _fences(quartiles: list[float]) -> tuple[float, float]:
    """Where values are cut off, from minimum, quartiles and maximum; nowhere if half of the rows have one value."""
    minimum, first, third, maximum = quartiles
    reach = _FENCE * (third - first)
    return (max(minimum, first - reach), min(maximum, third + reach)) if reach > 0 else (minimum, maximum)


def _weighted_quartiles(values: list[float], weights: list[int]) -> list[float]:
    """Minimum, quartiles and maximum of values that several rows have each."""
    cumulated = np.cumsum(weights).tolist()
    inner = [values[bisect_left(cumulated, level * cumulated[-1])] for level in (0.25, 0.75)]
    return [values[0], *inner, values[-1]]


def number(x: float) -> str:
    """A number as text, six digits or a whole number."""
    return str(int(x)) if isfinite(x) and x == int(x) and abs(x) < 1e15 else format(x, ".6g")


def _named(numbers: tuple[float, ...]) -> list[str]:
    """Numbers as text, short where that tells them apart."""
    short = [number(x) for x in numbers]
    return short if len(set(short)) == len(set(numbers)) else [repr(x) for x in numbers]


def _hashed(plain: Mapping[str, object]) -> str:
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return sha256(text.encode()).hexdigest()[:12]
