"""How far two counts on the same cells are apart: the registry of effect sizes.

A measure is a function from the counts of both sides to what every cell contributes; their sum, or their maximum, is
its value. It says nothing of chance, but what it would be on average without any drift: no measure of counts is 0
then, and `expected` is what a small sample adds to it. Adding one is one decorated function; its claims are tested.
"""

from collections.abc import Callable
from math import inf, log, nan, pi, sqrt
from typing import Literal, NamedTuple, Protocol

import numpy as np
from scipy import special

from mltrust.drift.cells import Cells, OrderedCells
from mltrust.states.moments import FloatArray

Total = Literal["sum", "max"]
# E sup |B| of the Brownian bridge, the mean of Kolmogorov's law.
_KOLMOGOROV_MEAN = sqrt(pi / 2) * log(2)


class Contributions(Protocol):
    def __call__(self, reference: FloatArray, current: FloatArray, cells: Cells, /) -> FloatArray: ...


class Expected(Protocol):
    def __call__(self, reference: FloatArray, current: FloatArray, cells: Cells, /) -> float: ...


class Measure(NamedTuple):
    """An effect size and its claims.

    `contributions` are (cells,) in the order of the profile, and `expected` the mean without drift of independent
    rows, which grows with the design effect, or with its root where the measure is not `quadratic`. Values lie in
    [0, high] and do not change when the sides are swapped.
    """

    name: str
    unit: str
    high: float
    total: Total
    ordered_only: bool
    quadratic: bool
    contributions: Contributions
    expected: Expected

    def value(self, reference: FloatArray, current: FloatArray, cells: Cells) -> float:
        """The measure of counts (cells,) of both sides; nan where one has none, or the cells have no order."""
        if (self.ordered_only and not cells.is_ordered) or not (reference.any() and current.any()):
            return nan
        found = self.contributions(reference, current, cells)
        return float(found.sum() if self.total == "sum" else found.max())

    def noise(self, reference: FloatArray, current: FloatArray, cells: Cells, design_effect: float = 1.0) -> float:
        """What the measure is on average without drift."""
        if (self.ordered_only and not cells.is_ordered) or not (reference.any() and current.any()):
            return nan
        inflation = design_effect if self.quadratic else sqrt(design_effect)
        return self.expected(reference, current, cells) * inflation


MEASURES: dict[str, Measure] = {}


def measure(
    name: str,
    *,
    expected: Expected,
    unit: str = "1",
    high: float = 1.0,
    total: Total = "sum",
    ordered_only: bool = False,
    quadratic: bool = False,
) -> Callable[[Contributions], Contributions]:
    """Registers a function from counts to contributions as the measure `name`."""

    def register(contributions: Contributions) -> Contributions:
        if name in MEASURES:
            raise ValueError(f"measure {name!r} is registered twice")
        MEASURES[name] = Measure(name, unit, high, total, ordered_only, quadratic, contributions, expected)
        return contributions

    return register


def _shares(counts: FloatArray) -> FloatArray:
    shares: FloatArray = counts / counts.sum()
    return shares


def _sizes(reference: FloatArray, current: FloatArray) -> tuple[float, float, FloatArray]:
    """1/n + 1/m, occupied cells - 1, and the shares of both sides together."""
    n, m = current.sum(), reference.sum()
    both = reference + current
    return float((n + m) / (n * m)), int((both > 0).sum()) - 1, both / (n + m)


def _per_df(factor: float) -> Expected:
    """(k - 1)(n + m)/(nm) times a factor: the mean of what is a multiple of chi-square."""

    def expected(reference: FloatArray, current: FloatArray, _: Cells) -> float:
        rate, df, _shares_of_both = _sizes(reference, current)
        return factor * df * rate

    return expected


def _normal_sds(reference: FloatArray, current: FloatArray) -> FloatArray:
    """The standard deviations of the differences of shares without drift."""
    rate, _, both = _sizes(reference, current)
    deviations: FloatArray = np.sqrt(both * (1 - both) * rate)
    return deviations


def _expected_half_sum(reference: FloatArray, current: FloatArray, _: Cells) -> float:
    return float(_normal_sds(reference, current).sum()) * sqrt(2 / pi) / 2


def _expected_largest(reference: FloatArray, current: FloatArray, _: Cells) -> float:
    """E max |Z| of normal differences taken as independent, by the integral of its survival function."""
    sds = _normal_sds(reference, current)
    if not (sds := sds[sds > 0]).size:
        return 0.0
    at = np.linspace(0, 8 * sds.max(), 400)
    survival = 1 - special.erf(at / (sds[:, np.newaxis] * sqrt(2))).prod(axis=0)
    return float(np.trapezoid(survival, at))


def _expected_ks(reference: FloatArray, current: FloatArray, cells: Cells) -> float:
    """The mean of Kolmogorov's law; on cells, an upper bound of it."""
    rate, _, _both = _sizes(_in_order(reference, cells), _in_order(current, cells))
    return _KOLMOGOROV_MEAN * sqrt(rate)


def _expected_wasserstein(reference: FloatArray, current: FloatArray, cells: Cells) -> float:
    a, b = _in_order(reference, cells), _in_order(current, cells)
    rate, _, both = _sizes(a, b)
    below = np.cumsum(both)[:-1].clip(0, 1)
    return float((np.sqrt(below * (1 - below) * rate) * _widths(cells)).sum()) * sqrt(2 / pi)


@measure("jsd", unit="bits", quadratic=True, expected=_per_df(1 / (8 * log(2))))
def jsd(reference: FloatArray, current: FloatArray, _: Cells) -> FloatArray:
    """Jensen-Shannon divergence in bits. Other tools print its square root.

    References
    ----------
    Lin, J. (1991). Divergence measures based on the Shannon entropy. IEEE Transactions on Information Theory 37,
    145-151, eq. 4.1. Its mean without drift: Grosse, I. et al. (2002). Analysis of symbolic sequences using the
    Jensen-Shannon divergence. Physical Review E 65, 041905.
    """
    p, q = _shares(reference), _shares(current)
    middle = (p + q) / 2
    nats = (special.rel_entr(p, middle) + special.rel_entr(q, middle)) / 2
    # No cell contributes less than 0, but rounding leaves a few -1e-17 where shares are all but the same.
    contributions: FloatArray = np.maximum(nats, 0) / log(2)
    return contributions


@measure("psi", unit="nats", high=inf, quadratic=True, expected=_per_df(1.0))
def psi(reference: FloatArray, current: FloatArray, _: Cells) -> FloatArray:
    """Population stability index. To a cell that is empty on one side alone, both counts get 0.5 added.

    References
    ----------
    Siddiqi, N. (2006). Credit risk scorecards, chapter 8. Wiley. Yurdakul, B. and Naranjo, J. (2020). Statistical
    properties of the population stability index. Journal of Risk Model Validation 14(4).
    """
    correction = 0.5 * empty_on_one_side(reference, current)
    p, q = _shares(reference + correction), _shares(current + correction)
    contributions: FloatArray = special.rel_entr(p, q) + special.rel_entr(q, p)
    return contributions


@measure("chi_square", high=inf, quadratic=True, expected=_per_df(1.0))
def chi_square(reference: FloatArray, current: FloatArray, _: Cells) -> FloatArray:
    """Sum of (p - q)²/r with the shares r of both sides together: Pearson's X² over nm/(n + m)."""
    both = _sizes(reference, current)[2]
    squares = (_shares(reference) - _shares(current)) ** 2
    contributions: FloatArray = np.divide(squares, both, out=np.zeros_like(squares), where=both > 0)
    return contributions


@measure("total_variation", expected=_expected_half_sum)
def total_variation(reference: FloatArray, current: FloatArray, _: Cells) -> FloatArray:
    """Share of the rows that would have to be in another cell."""
    gaps: FloatArray = np.abs(_shares(reference) - _shares(current)) / 2
    return gaps


@measure("l_infinity", total="max", expected=_expected_largest)
def l_infinity(reference: FloatArray, current: FloatArray, _: Cells) -> FloatArray:
    """Largest change of a cell's share."""
    gaps: FloatArray = np.abs(_shares(reference) - _shares(current))
    return gaps


@measure("ks", total="max", ordered_only=True, expected=_expected_ks)
def ks(reference: FloatArray, current: FloatArray, cells: Cells) -> FloatArray:
    """Largest difference of the distribution functions at the cells' right ends: at most that of the values."""
    found = np.zeros(len(reference))
    found[_order(cells)] = np.abs(_gaps(reference, current, cells))
    return found


@measure("wasserstein", unit="of the column", high=inf, ordered_only=True, expected=_expected_wasserstein)
def wasserstein(reference: FloatArray, current: FloatArray, cells: Cells) -> FloatArray:
    """How far a row is moved on average, where rows of a cell lie at its middle and those outside at the limits."""
    found = np.zeros(len(reference))
    found[_order(cells)[:-1]] = np.abs(_gaps(reference, current, cells))[:-1] * _widths(cells)
    return found


def empty_on_one_side(reference: FloatArray, current: FloatArray) -> FloatArray:
    """1 for every cell that only one side has rows in, else 0."""
    found: FloatArray = ((reference > 0) != (current > 0)).astype(np.float64)
    return found


def _order(cells: Cells) -> list[int]:
    """The cells with a value from the lowest to the highest."""
    n = cells.n_ordinary
    return [n + 1, *range(n), n + 2]


def _in_order(counts: FloatArray, cells: Cells) -> FloatArray:
    return counts[_order(cells)]


def _gaps(reference: FloatArray, current: FloatArray, cells: Cells) -> FloatArray:
    """The differences of the distribution functions at the right end of every cell; of no values, 0."""
    a, b = _in_order(reference, cells), _in_order(current, cells)
    if not (a.any() and b.any()):
        return np.zeros(len(a))
    return np.cumsum(_shares(b)) - np.cumsum(_shares(a))


def _widths(cells: Cells) -> FloatArray:
    assert isinstance(cells, OrderedCells)
    return cells.widths
