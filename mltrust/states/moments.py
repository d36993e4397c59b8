"""Centred moments of units, merged without going back to the rows."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import combinations_with_replacement
from math import nan
from operator import add

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Count, means and centred cross-products of k columns over n units.

    The observation is the unit. States are added across disjoint units only: a unit seen on two days is one
    observation, so days add up before a state is made of them. `mean` has shape (k,) and is nan where n = 0,
    `scatter` has shape (k, k) and holds the sums of products about the means. k = 0 counts units.
    """

    columns: tuple[str, ...]
    n: int
    mean: FloatArray
    scatter: FloatArray

    def __post_init__(self) -> None:
        k = len(self.columns)
        if self.mean.shape != (k,) or self.scatter.shape != (k, k):
            raise ValueError(
                f"moments of the {k} columns {self.columns} need mean ({k},) and scatter ({k}, {k}), "
                f"got {self.mean.shape} and {self.scatter.shape}"
            )

    @classmethod
    def empty(cls, columns: tuple[str, ...]) -> "Moments":
        """The state of no units: the identity of `+`."""
        k = len(columns)
        return cls(columns, 0, np.full(k, nan), np.zeros((k, k)))

    @classmethod
    def of(cls, columns: tuple[str, ...], sample: ArrayLike) -> "Moments":
        """The state of a sample of shape (n, k), one row per unit; ValueError where a value is not finite."""
        values = np.asarray(sample, dtype=np.float64)
        return cls.by_group(columns, np.zeros(len(values), dtype=np.intp), 1, values)[0]

    @classmethod
    def by_group(
        cls, columns: tuple[str, ...], codes: NDArray[np.integer], n_groups: int, sample: ArrayLike
    ) -> list["Moments"]:
        """The states of groups 0 to n_groups - 1, where row i of the sample (n, k) belongs to group codes[i].

        A group without rows gets the empty state. ValueError where a value is not finite: what to do with
        missing values is the caller's decision.

        Two passes: rows are first taken relative to one row of their group, so that an offset costs no digits
        and a constant column has a scatter of exactly 0. Sums run in the order of the rows, free of BLAS and
        its threads, so that the same rows give the same bits.
        """
        values = np.asarray(sample, dtype=np.float64)
        _check_sample(columns, codes, n_groups, values)
        k, rows = len(columns), np.ascontiguousarray(values.T)
        n = np.bincount(codes, minlength=n_groups)
        pilot = np.zeros((k, n_groups))
        pilot[:, codes] = rows
        centred = rows - pilot[:, codes]
        shift = np.zeros((k, n_groups))
        for i in range(k):
            shift[i] = np.bincount(codes, centred[i], n_groups) / np.maximum(n, 1)
        centred -= shift[:, codes]
        mean = np.where(n > 0, pilot + shift, nan).T
        scatter = np.zeros((n_groups, k, k))
        for i, j in combinations_with_replacement(range(k), 2):
            scatter[:, i, j] = scatter[:, j, i] = np.bincount(codes, centred[i] * centred[j], n_groups)
        return [cls(columns, *state) for state in zip(n.tolist(), mean, scatter, strict=True)]

    def __add__(self, other: "Moments") -> "Moments":
        """The state of both sets of units (Chan, Golub, LeVeque 1979); ValueError if the columns differ."""
        if self.columns != other.columns:
            raise ValueError(f"cannot add moments of columns {self.columns} and {other.columns}")
        if self.n == 0 or other.n == 0:
            return self if other.n == 0 else other
        n = self.n + other.n
        difference = other.mean - self.mean
        mean = self.mean + difference * (other.n / n)
        between = np.outer(difference, difference) * (self.n * other.n / n)
        return Moments(self.columns, n, mean, self.scatter + other.scatter + between)

    def index(self, column: str) -> int:
        """The position of a column; ValueError if the state does not have it."""
        if column not in self.columns:
            raise ValueError(f"no column {column!r} in a state of columns {self.columns}")
        return self.columns.index(column)

    def var(self, column: str) -> float:
        """Unbiased variance of one unit, nan for n < 2."""
        return self.cov(column, column)

    def cov(self, a: str, b: str) -> float:
        """Unbiased covariance within one unit, nan for n < 2."""
        product = float(self.scatter[self.index(a), self.index(b)])
        return product / (self.n - 1) if self.n > 1 else nan


def merge(states: Iterable[Moments], columns: tuple[str, ...]) -> Moments:
    """The sum of the states in the order given; without any, the empty state of the columns."""
    return reduce(add, states, Moments.empty(columns))


def weighted(parts: Mapping[float, Moments], columns: tuple[str, ...]) -> Moments:
    """The state of units that stand for several each, by how many: a sample drawn at different rates.

    n is the number of units seen, `mean` is sum w·y / sum w, and the covariance of one unit is such that cov / n is
    the linearised one of that mean, sum w²·(y - mean)(y - mean)' / (sum w)², times n / (n - 1). With equal weights it
    is the plain sum of the states.

    References
    ----------
    Särndal, C.-E., Swensson, B. and Wretman, J. (1992). Model assisted survey sampling, 5.7 and 5.10. Springer.
    """
    seen = {weight: state for weight, state in parts.items() if state.n}
    if len(seen) < 2:
        return merge(seen.values(), columns)
    n, total = sum(state.n for state in seen.values()), sum(weight * state.n for weight, state in seen.items())
    first = next(iter(seen.values())).mean
    # Relative to one of the means, so that an offset costs no digits.
    mean = first + sum(weight * state.n / total * (state.mean - first) for weight, state in seen.items())
    scatter = np.zeros((len(mean), len(mean)))
    for weight, state in seen.items():
        difference = state.mean - mean
        scatter += weight**2 * (state.scatter + state.n * np.outer(difference, difference))
    return Moments(next(iter(seen.values())).columns, n, mean, scatter * (n / total) ** 2)


def _check_sample(columns: tuple[str, ...], codes: NDArray[np.integer], n_groups: int, values: FloatArray) -> None:
    expected = (len(codes), len(columns))
    if values.shape != expected:
        raise ValueError(f"a sample of columns {columns} needs shape {expected}, got {values.shape}")
    if len(codes) and not (codes.min() >= 0 and codes.max() < n_groups):
        raise ValueError(f"group codes must be in [0, {n_groups}), got {codes.min()} to {codes.max()}")
    finite = np.isfinite(values)
    if not finite.all():
        bad = [column for i, column in enumerate(columns) if not finite[:, i].all()]
        raise ValueError(f"missing or infinite values in columns {bad}")
