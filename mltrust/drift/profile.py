"""The state of a column in a window: what is left of its rows, to be added and compared."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mltrust.drift.cells import Cells, IntArray, OrderedCells, n_cells

#: Hash buckets of the unit: the groups of the jackknife by which rows of one unit are known to be alike.
N_BUCKETS = 64
_SQUARE = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """Rows and units of one column, slice and window, by cell: exact integers.

    Attributes
    ----------
    counts
        (cells, 64): rows by cell and by hash bucket of the unit.
    units
        (cells,): units with a row in the cell. They are added as if units of the two states were disjoint.
    n_units
        Units with any row.
    location
        (3, 64) for ordered columns, (0, 64) else: sums by bucket of `OrderedCells.located` over rows with a value.
    by_cell, n_rows
        Rows (cells,) in each cell, and all of them, those with a missing value too.
    """

    counts: IntArray
    units: IntArray
    n_units: int
    location: IntArray
    by_cell: IntArray = field(init=False, repr=False)
    n_rows: int = field(init=False)

    _LOCATED: ClassVar[int] = 3

    def __post_init__(self) -> None:
        expected = ((len(self.counts), N_BUCKETS), (len(self.counts),))
        if (self.counts.shape, self.units.shape) != expected or self.location.shape not in ((3, 64), (0, 64)):
            raise ValueError(
                f"a profile has counts (cells, {N_BUCKETS}), units (cells,) and location (3 or 0, {N_BUCKETS}), got "
                f"{self.counts.shape}, {self.units.shape} and {self.location.shape}"
            )
        if any(each.dtype != np.int64 for each in (self.counts, self.units, self.location)):
            raise ValueError("counts and sums of a profile are int64")
        # Every test asks for them, a hundred times a window.
        object.__setattr__(self, "by_cell", self.counts.sum(axis=1))
        object.__setattr__(self, "n_rows", int(self.by_cell.sum()))

    @classmethod
    def empty(cls, cells: Cells) -> "Profile":
        """No rows: the identity of `+`."""
        k, located = n_cells(cells), cls._LOCATED if cells.is_ordered else 0
        zeros = (np.zeros(shape, dtype=np.int64) for shape in ((k, N_BUCKETS), k, (located, N_BUCKETS)))
        counts, units, location = zeros
        return cls(counts, units, 0, location)

    @classmethod
    def of(cls, cells: Cells, values: ArrayLike, units: NDArray[np.int64] | None = None) -> "Profile":
        """The profile of a sample: values of rows, and 64-bit hashes of their units.

        Without units every row is a unit of its own, and its bucket is that of its position.
        """
        index = cells.index(values)  # type: ignore[arg-type]
        hashes = np.arange(len(index), dtype=np.int64) if units is None else units
        if hashes.shape != index.shape:
            raise ValueError(f"{len(index)} values need as many hashes of units, got {hashes.shape}")
        buckets, k = bucket_of(hashes), n_cells(cells)
        counts = np.bincount(index * N_BUCKETS + buckets, minlength=k * N_BUCKETS).reshape(k, N_BUCKETS)
        _, codes = np.unique(hashes, return_inverse=True)
        n_units = int(codes.max(initial=-1)) + 1
        pairs = np.unique(index * max(n_units, 1) + codes) // max(n_units, 1)
        location = np.zeros((0, N_BUCKETS), dtype=np.int64)
        if isinstance(cells, OrderedCells):
            location = np.zeros((cls._LOCATED, N_BUCKETS), dtype=np.int64)
            for sums, part in zip(location, cells.located(values), strict=True):
                np.add.at(sums, buckets, part)
        return cls(counts.astype(np.int64), np.bincount(pairs, minlength=k).astype(np.int64), n_units, location)

    def __add__(self, other: "Profile") -> "Profile":
        """The profile of both sets of rows; ValueError if the cells differ.

        A unit with rows in both is counted twice among units, as of two windows.
        """
        if (self.counts.shape, self.location.shape) != (other.counts.shape, other.location.shape):
            raise ValueError(
                f"cannot add profiles of {len(self.counts)} and {len(other.counts)} cells, "
                f"{len(self.location)} and {len(other.location)} sums of locations"
            )
        return Profile(
            self.counts + other.counts,
            self.units + other.units,
            self.n_units + other.n_units,
            self.location + other.location,
        )

    @property
    def is_clustered(self) -> bool:
        """Whether some unit has several rows, so that rows are not independent of one another."""
        return self.n_rows > self.n_units

    def located(self, n_ordinary: int) -> tuple[IntArray, IntArray, list[int]]:
        """By bucket rows (64,) with a value and sums of steps (64,), and the exact sums of squares as integers.

        Squares are Python's integers: 1e9 rows far out are more than 64 bits hold.
        """
        n = self.counts.sum(axis=0) - self.counts[n_ordinary]
        squares = [high * _SQUARE + low for high, low in zip(*self.location[1:].tolist(), strict=True)]
        return n, self.location[0], squares


def pooled(profiles: Sequence[Profile], *, recurring: bool) -> Profile:
    """The profile of all rows of several windows; ValueError without any.

    Where units may recur in several of them, how many there are is not known from their numbers in each: they are at
    least as many as in the window that has most, and that is what is said.
    """
    total = reduce(add, profiles)
    if not recurring or len(profiles) < 2:
        return total
    units = np.max([each.units for each in profiles], axis=0)
    return replace(total, units=units, n_units=max(each.n_units for each in profiles))


def bucket_of(hashes: NDArray[np.int64]) -> IntArray:
    """The bucket of every hash, 0 to 63: Spark's pmod(hash, 64)."""
    return np.mod(hashes, N_BUCKETS).astype(np.int64)
