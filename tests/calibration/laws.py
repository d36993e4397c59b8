"""What a unit of a simulated experiment is worth: five laws, drawn as sums per arm, or as units with rows and a past.

A sum over many units is drawn from its own law where that is known, so that 50,000 units cost what one costs.
"""

from collections.abc import Callable, Sequence
from functools import cache
from hashlib import sha256
from math import exp, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from mltrust.states.moments import FloatArray, Moments
from mltrust.stats.means import Arm
from mltrust.stats.skew import skew

IntArray = NDArray[np.int64]

LAWS = ("normal", "bernoulli", "poisson", "lognormal", "spenders")
HEAVY = ("lognormal", "spenders")
#: Share of units with an event; of spenders the others are worth nothing.
EVENTS = {"bernoulli": 0.05, "spenders": 0.05}
_COUNTS = np.arange(30)


def seeded(name: str) -> np.random.Generator:
    """The generator of a name, the same on every machine."""
    return np.random.default_rng(np.random.SeedSequence(int.from_bytes(sha256(name.encode()).digest()[:16])))


class Drawn(NamedTuple):
    """Numbers of units, and sums of their values and of the squares: arrays (runs, groups)."""

    n: IntArray
    total: FloatArray
    squares: FloatArray

    @property
    def mean(self) -> FloatArray:
        """Nan where there are no units."""
        return self.total / np.where(self.n, self.n, np.nan)

    @property
    def variance(self) -> FloatArray:
        """Of one unit, nan for fewer than 2."""
        scatter = np.maximum(self.squares - self.total**2 / np.where(self.n, self.n, np.nan), 0)
        return scatter / np.where(self.n > 1, self.n - 1, np.nan)

    def arms(self) -> list[list[Arm]]:
        """The arms of every run, one per group."""
        columns = self.n.tolist(), self.mean.tolist(), self.variance.tolist()
        return [[Arm(*each) for each in zip(*run, strict=True)] for run in zip(*columns, strict=True)]

    def so_far(self) -> "Drawn":
        """Groups added up from the first to each."""
        return Drawn(*(np.cumsum(each, axis=1) for each in self))


def draw(rng: np.random.Generator, law: str, n: ArrayLike, factor: ArrayLike = 1.0) -> Drawn:
    """Sums over n units, (runs, groups), whose mean is the law's times a factor, one per group.

    Of counts and events the factor is one of the rate, of other values one of the value.
    """
    units = np.asarray(n, dtype=np.int64)
    factors = np.broadcast_to(np.asarray(factor, dtype=np.float64), units.shape)
    return Drawn(units, *_SUMS[law](rng, units, factors))


Sums = Callable[[np.random.Generator, IntArray, FloatArray], tuple[FloatArray, FloatArray]]


def _normal(rng: np.random.Generator, n: IntArray, factor: FloatArray) -> tuple[FloatArray, FloatArray]:
    total = n + np.sqrt(n) * rng.standard_normal(n.shape)
    about = np.where(n > 1, rng.chisquare(np.maximum(n - 1, 1)), 0.0)
    return factor * total, factor**2 * (about + total**2 / np.maximum(n, 1))


def _bernoulli(rng: np.random.Generator, n: IntArray, factor: FloatArray) -> tuple[FloatArray, FloatArray]:
    events = rng.binomial(n, EVENTS["bernoulli"] * factor).astype(np.float64)
    return events, events


def _poisson(rng: np.random.Generator, n: IntArray, factor: FloatArray) -> tuple[FloatArray, FloatArray]:
    # How many units have each count.
    law = stats.poisson.pmf(_COUNTS, factor[:1, :, None])
    units = rng.multinomial(n, law / law.sum(axis=-1, keepdims=True))
    return (units @ _COUNTS).astype(np.float64), (units @ _COUNTS**2).astype(np.float64)


def _lognormal(rng: np.random.Generator, n: IntArray, factor: FloatArray) -> tuple[FloatArray, FloatArray]:
    values = np.exp(rng.standard_normal(int(n.sum())))
    return factor * _by_group(values, n), factor**2 * _by_group(values * values, n)


def _spenders(rng: np.random.Generator, n: IntArray, factor: FloatArray) -> tuple[FloatArray, FloatArray]:
    return _lognormal(rng, rng.binomial(n, EVENTS["spenders"]), factor)


def _by_group(values: FloatArray, n: IntArray) -> FloatArray:
    """Sums of consecutive values, n at a time."""
    ends = n.ravel().cumsum()
    # A group without units would get the value that it starts at.
    sums = np.add.reduceat(np.append(values, 0.0), ends - n.ravel())
    return np.where(n > 0, sums.reshape(n.shape), 0.0)


_SUMS: dict[str, Sums] = {
    "normal": _normal,
    "bernoulli": _bernoulli,
    "poisson": _poisson,
    "lognormal": _lognormal,
    "spenders": _spenders,
}


def mean_of(law: str) -> float:
    """The mean of one unit."""
    return _raw_moments(law, 1.0)[0]


def sd_of(law: str) -> float:
    """The standard deviation of one unit."""
    first, second, *_ = _raw_moments(law, 1.0)
    return sqrt(second - first * first)


def skew_of(law: str, n_control: float, n_treatment: float, factor: float = 1.0) -> float:
    """The skewness of the difference of two means of this law, as the readout would find it in a lot of data."""
    raw = _raw_moments(law, factor)
    covariance = np.array([[raw[1], raw[2]], [raw[2], raw[3]]]) - np.outer(raw[:2], raw[:2])
    return _skew(np.array(raw[:2]), covariance, n_control, n_treatment)


def skew_among(values: FloatArray, n_control: float, n_treatment: float) -> float:
    """The same of values that a unit has with equal chances."""
    large = Moments.of(("y", "squares"), np.column_stack([values, values**2]))
    return _skew(large.mean, large.scatter / large.n, n_control, n_treatment)


def _skew(mean: FloatArray, covariance: FloatArray, n_control: float, n_treatment: float) -> float:
    arms = [Moments(("y", "squares"), round(n), mean, covariance * n) for n in (n_control, n_treatment)]
    return skew(control=arms[0], treatment=arms[1], column="y", squares="squares").value


def _raw_moments(law: str, f: float) -> tuple[float, float, float, float]:
    if law == "normal":
        return 1.0, 2.0, 4.0, 10.0
    if law == "bernoulli":
        rate = EVENTS["bernoulli"] * f
        return rate, rate, rate, rate
    if law == "poisson":
        return f, f + f**2, f + 3 * f**2 + f**3, f + 7 * f**2 + 6 * f**3 + f**4
    share = EVENTS["spenders"] if law == "spenders" else 1.0
    first, second, third, fourth = (share * exp(k * k / 2) for k in (1, 2, 3, 4))
    return first, second, third, fourth


class Population:
    """2^16 units that a law made once, from which runs draw with replacement.

    What is true of them (means, ratios, skewness) is known exactly, and drawing one costs a few nanoseconds
    whatever the law.
    """

    def __init__(self, columns: tuple[str, ...], values: FloatArray) -> None:
        self.columns, self.values, self.mean = columns, values, values.mean(axis=0)
        self._centred = np.ascontiguousarray((values - self.mean).T)

    def column(self, name: str) -> FloatArray:
        return self.values[:, self.columns.index(name)]

    def states(self, rng: np.random.Generator, runs: int, n: int) -> list[Moments]:
        """The state of n units in every run."""
        at = self._at(rng, (runs, n))
        drawn = [column[at] for column in self._centred]
        k = len(self.columns)
        means, scatters = np.empty((runs, k)), np.empty((runs, k, k))
        for i in range(k):
            means[:, i] = drawn[i].sum(axis=1) / n
        for i in range(k):
            for j in range(i + 1):
                product = np.vecdot(drawn[i], drawn[j]) - n * means[:, i] * means[:, j]
                scatters[:, i, j] = scatters[:, j, i] = product
        return [Moments(self.columns, n, *each) for each in zip(means + self.mean, scatters, strict=True)]

    def units(self, rng: np.random.Generator, n: int) -> FloatArray:
        """The values (n, k) of n units."""
        return self.values[self._at(rng, n)]

    def _at(self, rng: np.random.Generator, shape: int | tuple[int, int]) -> NDArray[np.uint16]:
        return rng.integers(0, len(self.values), shape, dtype=np.uint16)


def scaled(state: Moments, columns: Sequence[str], factor: float) -> Moments:
    """The state of units whose values in some columns are `factor` times as large."""
    by = np.array([factor if column in columns else 1.0 for column in state.columns])
    return Moments(state.columns, state.n, state.mean * by, state.scatter * np.outer(by, by))


_N = 1 << 16


@cache
def with_past(law: str) -> Population:
    """Units of one value y each, and x of the same law before the experiment, which says something of y."""
    rng = seeded(f"population {law}")
    z = rng.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], _N)
    if law == "normal":
        values = 1 + z
    elif law == "lognormal":
        values = np.exp(z)
    elif law == "poisson":
        values = rng.poisson(0.7, (_N, 1)) + rng.poisson(0.3, (_N, 2))
    elif law == "bernoulli":
        values = rng.random((_N, 2)) < rng.beta(0.05, 0.95, (_N, 1))
    else:
        again = rng.random((_N, 2)) < 0.6
        spends = np.where(again, rng.random((_N, 1)), rng.random((_N, 2))) < EVENTS["spenders"]
        values = spends * np.exp(z)
    return Population(("y", "x"), np.asarray(values, dtype=np.float64))


@cache
def with_rows(law: str) -> Population:
    """Units of 1 to some 10 rows, alike within a unit: y the rows' sum, d their number; x and e those of the past."""
    rng = seeded(f"rows {law}")
    own = rng.standard_normal((_N, 1))
    rate = rng.beta(0.5, 9.5, (_N, 1))
    often = rng.gamma(2, 0.5, (_N, 1))
    spends = rng.random((_N, 1)) < EVENTS["spenders"]
    columns = []
    for _ in ("now", "before"):
        d = 1 + rng.poisson(2, _N)
        at = np.repeat(np.arange(_N), d)
        own_part, other = own[at, 0], rng.standard_normal(len(at))
        rows = {
            "normal": lambda mixed: 1 + mixed,
            "lognormal": np.exp,
            "spenders": lambda mixed, at=at: spends[at, 0] * np.exp(mixed),
            "bernoulli": lambda mixed, at=at: rng.random(len(mixed)) < rate[at, 0],
            "poisson": lambda _, at=at: rng.poisson(often[at, 0]),
        }[law](sqrt(0.5) * (own_part + other))
        columns += [np.bincount(at, rows, _N), d]
    return Population(("y", "d", "x", "e"), np.column_stack(columns).astype(np.float64))
