"""Tests that may be looked at more than once: on any day, or at looks that share the error out beforehand.

On any day: evidence e against the null hypothesis (a Bayes factor, an e-value) whose expectation is 1 at most
where it holds, whenever one stops. min(1, 1/e) at the best look so far is then a p-value at every look (Ville).
The concentration or the horizon that it needs is fixed before the first look. A group-sequential test spends
alpha by the information of its looks; it is sharper, and says nothing on the days between.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, e, exp, inf, isnan, log, log1p, nan, pi, sqrt
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from mltrust.states.moments import FloatArray

Spending = Literal["obrien_fleming", "pocock"]

_CONCENTRATION = (100, 10_000)
_SMALLEST_ARM = 100
_SMALLEST_EXPECTED = 50
_SMALLEST_STEP = 1e-4
_SMALLEST_PROBABILITY = 1e-300
_LARGEST_Z = 38.0  # Beyond it the tail of a normal law is 0 in floats.
_SMALLEST_PVALUE, _LARGEST_PVALUE = 1e-290, 0.5


class PhaseLooks(NamedTuple):
    """What one phase of the allocation promised, and the units per arm that it had up to every look.

    Only the proportions of `expected` matter. counts[i][j] are the units of arm j exposed in this phase up to
    look i: 0 before the phase began, and constant after its end.
    """

    expected: Sequence[float]
    counts: Sequence[Sequence[int]]


class SequentialSRM(NamedTuple):
    """The test of the units per arm at one look.

    n counts the units in arms with a positive weight in their phase, `n_unexpected` those in other arms: any
    is a failure of its own. The Bayes factor is that of this look, against the promised shares; the p-value
    that of all looks so far. Both are nan while there is nothing to compare.
    """

    n: int
    n_unexpected: int
    log_bayes_factor: float
    pvalue: float


@dataclass(frozen=True, slots=True)
class Look:
    """An effect up to one look, over n units of both arms; `counts` is False where it is not to be read yet."""

    effect: float
    std_error: float
    n: int
    counts: bool = True

    def __post_init__(self) -> None:
        if self.n < 0 or self.std_error < 0:
            raise ValueError(f"n and std_error of a look are not negative, got {self}")


class AlwaysValid(NamedTuple):
    """One look of those at which interval and p-value hold all together.

    The interval leaves out 0 exactly when pvalue < alpha, that is when log_e_value > -ln(alpha).
    """

    n: int
    half_width: float
    ci_low: float
    ci_high: float
    log_e_value: float
    pvalue: float


class SequentialMean(NamedTuple):
    """What the `n_looks` looks that counted so far say together; n units at the last look, counted or not.

    The smallest p-value and the intersection of the intervals, nan before a look counted. Where `is_empty`,
    the intervals have no point in common: the limits are nan and the p-value is below alpha. A constant effect
    does that with chance alpha at most, so that the likelier reason is an effect that changed with time.
    """

    n: int
    n_looks: int
    ci_low: float
    ci_high: float
    is_empty: bool
    pvalue: float


class GroupLook(NamedTuple):
    """One look of a group-sequential test.

    `alpha_spent` is the chance of rejecting at this look or before without an effect, `nominal_alpha` the
    two-sided p-value of the bound, `has_crossed` whether |statistic| reached the bound here or before.
    """

    information: float
    alpha_spent: float
    bound: float
    nominal_alpha: float
    statistic: float
    has_crossed: bool


def always_valid_pvalue(log_evidence: ArrayLike) -> FloatArray:
    """The running minimum of min(1, 1/e) along the last axis, the looks; a look of nan does not count."""
    evidence = np.asarray(log_evidence, dtype=np.float64)
    return np.fmin.accumulate(np.exp(-np.maximum(evidence, 0)), axis=-1)


def srm_concentration(expected_units: float) -> float:
    """The concentration for a slice: a tenth of its units expected at the planned end, from 100 to 10,000.

    Fixed before the first look. A larger one is for smaller deviations, and needs more units to see any: at
    p < 0.001, a slice of 2,000 units split 55/45 is found two times in three with 100, never with 10,000.
    """
    if not 0 <= expected_units < inf:
        raise ValueError(f"expected units are finite and not negative, got {expected_units}")
    smallest, largest = _CONCENTRATION
    return min(largest, max(smallest, expected_units / 10))


def log_bayes_factor(counts: ArrayLike, *, shares: ArrayLike, prior: ArrayLike) -> FloatArray:
    """ln of the likelihood of counts (..., arms) under shares drawn from Dirichlet(prior), over that under `shares`.

    shares and prior have the shape (arms,) and are positive. Only the counts matter, not the order of units.
    The differences of ln Gamma know it to about 1e-5 at a billion units, and to 1e-8 at a million.

    References
    ----------
    Lindon, M. and Malek, A. (2022). Anytime-valid inference for multinomial count data. NeurIPS 35,
    arXiv:2011.03567.
    """
    n, p, a = (np.asarray(each, dtype=np.float64) for each in (counts, shares, prior))
    given = special.gammaln(a + n).sum(-1) - special.gammaln(a.sum() + n.sum(-1))
    before = special.gammaln(a).sum() - special.gammaln(a.sum())
    return np.asarray(given - before - special.xlogy(n, p).sum(-1))


def sequential_srm(phases: Sequence[PhaseLooks], *, concentration: float) -> list[SequentialSRM]:
    """The test at every look of the units per arm against what one or more phases of allocation promised.

    The alternative draws the shares of every phase for itself from Dirichlet(concentration · promised shares),
    so that the evidence is the product of the phases' Bayes factors, whose expectation is 1 at every look
    where all promises hold. It pays for every phase that has units. A phase of one arm compares nothing.
    """
    if not 0 < concentration < inf:
        raise ValueError(f"a concentration is a finite positive number, got {concentration}")
    n_looks = [len(phase.counts) for phase in phases]
    if len(set(n_looks)) != 1:
        raise ValueError(f"one phase or more, all with the same looks, are expected, got looks {n_looks}")
    n, n_unexpected, n_compared, evidence = np.sum([_evidence(phase, concentration) for phase in phases], axis=0)
    evidence = np.where(n_compared > 0, evidence, nan)
    looks = zip(n, n_unexpected, evidence, always_valid_pvalue(evidence), strict=True)
    return [SequentialSRM(int(here), int(off), float(ln), float(pvalue)) for here, off, ln, pvalue in looks]


def _evidence(phase: PhaseLooks, concentration: float) -> FloatArray:
    """(4, looks): units in arms with a weight, in the others, units to compare, and ln of the Bayes factor."""
    weights, counts = _arms(phase)
    planned = weights > 0
    n, shares = counts[:, planned].sum(axis=1), weights[planned] / weights.sum()
    n_compared = n if len(shares) > 1 else np.zeros_like(n)
    evidence = log_bayes_factor(counts[:, planned], shares=shares, prior=concentration * shares)
    return np.stack([n, counts[:, ~planned].sum(axis=1), n_compared, evidence])


def _arms(phase: PhaseLooks) -> tuple[FloatArray, FloatArray]:
    """The weights (arms,) and the counts (looks, arms) of a phase."""
    weights, counts = (np.asarray(each, dtype=np.float64) for each in phase)
    if weights.ndim != 1 or (counts.size and counts.shape[1:] != weights.shape):
        raise ValueError(f"expected and every look's counts need one number per arm, got {phase}")
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise ValueError(f"expected is finite, not negative and not all 0, got {phase.expected}")
    counts = counts.reshape(-1, len(weights))
    if not (np.diff(counts, axis=0, prepend=0) >= 0).all():
        raise ValueError(f"counts are cumulative, so none is negative or falls between looks, got {phase.counts}")
    return weights, counts


def counts_as_look(*, n_control: int, n_treatment: int, share: float | None = None) -> bool:
    """Whether the effect has enough units to be taken as normal, and the look therefore counts.

    Each arm has 100 units; with `share`, that of all units with a rare event, also 50 expected units with it
    and 50 without. 100 units of both arms together do not do: with two of them in one arm, sixty looks at
    normal data reject with alpha = 0.05 in 7 % of experiments without an effect; this way in 0.8 %.
    """
    if share is not None and (share < 0 or share > 1):
        raise ValueError(f"a share of units lies in [0, 1], got {share}")
    smaller = min(n_control, n_treatment)
    dense = share is None or (smaller * share >= _SMALLEST_EXPECTED and smaller * (1 - share) >= _SMALLEST_EXPECTED)
    return smaller >= _SMALLEST_ARM and dense


def best_rho(*, alpha: float, horizon: float) -> float:
    """The rho with which the interval is about as short as it can be at a horizon, in units of both arms.

    Fixed with alpha before the first look. In Howard's terms, with units for variance, rho is 1/rho² of this.

    References
    ----------
    Waudby-Smith, I., Arbour, D., Sinha, R., Kennedy, E. H. and Ramdas, A. (2024). Time-uniform central limit
    theory and asymptotic confidence sequences. Annals of Statistics 52, 2613-2640, arXiv:2103.06476v7, eq. 161:
    rho² = (-2 ln alpha + ln(1 - 2 ln alpha)) / horizon.
    """
    if not 0 < horizon < inf:
        raise ValueError(f"a horizon is a finite positive number of units, got {horizon}")
    odds = -2 * log(_level(alpha))
    return sqrt((odds + log1p(odds)) / horizon)


def log_e_value(statistic: ArrayLike, n: ArrayLike, *, rho: float) -> FloatArray:
    """ln of the e-value against no effect, of statistic = effect / std_error over n units of both arms.

    With r = n·rho² it is z²/2 · r/(1 + r) - ln(1 + r)/2: how much likelier z is under effects drawn from
    N(0, n·std_error²·rho²) than under none.

    References
    ----------
    Robbins, H. (1970). Statistical methods related to the law of the iterated logarithm. Annals of
    Mathematical Statistics 41, 1397-1409.
    """
    z, r = np.asarray(statistic, dtype=np.float64), np.asarray(n, dtype=np.float64) * rho**2
    return np.asarray(z * z / 2 * r / (1 + r) - np.log1p(r) / 2)


def one_sided_log_e_value(statistic: ArrayLike, n: ArrayLike, *, rho: float) -> FloatArray:
    """ln of the e-value against an effect of 0 or less; as `log_e_value`, of positive effects only.

    How much likelier z is under effects drawn from |N(0, n·std_error²·rho²)| than under none: the two-sided e-value
    times 2·Phi(z·sqrt(r / (1 + r))), with r = n·rho².

    References
    ----------
    Howard, S. R., Ramdas, A., McAuliffe, J. and Sekhon, J. (2021). Time-uniform, nonparametric, nonasymptotic
    confidence sequences. Annals of Statistics 49, 1055-1080: the one-sided normal mixture.
    """
    z, r = np.asarray(statistic, dtype=np.float64), np.asarray(n, dtype=np.float64) * rho**2
    return np.asarray(log_e_value(z, n, rho=rho) + log(2) + special.log_ndtr(z * np.sqrt(r / (1 + r))))


def always_valid(look: Look, *, alpha: float, rho: float) -> AlwaysValid:
    """The interval and the p-value of one look, whether it counts or not; see `best_rho`.

    half_width = std_error · sqrt((1 + r)/r · (ln(1 + r) - 2 ln alpha)) with r = n·rho²: at its ends the
    e-value is 1/alpha. Nan without units, effect or a positive standard error.

    References
    ----------
    Waudby-Smith et al. (2024), eq. 9, with sigma² = n·std_error².
    """
    if not 0 < rho < inf:
        raise ValueError(f"rho is a finite positive number, got {rho}")
    r = look.n * rho**2 or nan
    # A standard error of 0 says that nothing varied, not that the effect is known without error.
    std_error = look.std_error or nan
    half_width = std_error * sqrt((1 + r) / r * (log1p(r) - 2 * log(_level(alpha))))
    evidence = float(log_e_value(look.effect / std_error, look.n or nan, rho=rho))
    return AlwaysValid(
        n=look.n,
        half_width=half_width,
        ci_low=look.effect - half_width,
        ci_high=look.effect + half_width,
        log_e_value=evidence,
        pvalue=exp(-max(evidence, 0.0)) if not isnan(evidence) else nan,
    )


def confidence_sequence(looks: Sequence[Look], *, alpha: float, horizon: float) -> list[SequentialMean]:
    """What is known at every look, in the order of time, about an effect that is the same at all of them.

    With chance 1 - alpha no interval ever leaves out the effect, as far as effects are normal, see
    `counts_as_look`. Looks that do not count, or whose effect or standard error is undefined, change nothing.
    """
    if any(later.n < earlier.n for earlier, later in pairwise(looks)):
        raise ValueError(f"looks are cumulative, so n does not fall, got {[look.n for look in looks]}")
    rho = best_rho(alpha=alpha, horizon=horizon)
    each = [always_valid(look, alpha=alpha, rho=rho) for look in looks]
    numbers = np.array([(one.ci_low, one.ci_high, one.log_e_value) for one in each]).reshape(-1, 3)
    numbers[[not look.counts for look in looks]] = nan
    low, high = np.fmax.accumulate(numbers[:, 0]), np.fmin.accumulate(numbers[:, 1])
    is_empty = low > high
    low[is_empty] = high[is_empty] = nan
    n_looks = (~np.isnan(numbers[:, 2])).cumsum()
    columns = n_looks, low, high, is_empty, always_valid_pvalue(numbers[:, 2])
    rows = zip(looks, *(column.tolist() for column in columns), strict=True)
    return [SequentialMean(look.n, *row) for look, *row in rows]


def group_sequential(
    statistics: Sequence[float],
    information: Sequence[float],
    *,
    alpha: float,
    spending: Spending = "obrien_fleming",
) -> list[GroupLook]:
    """The two-sided test at looks with these z statistics; see `spending_bounds` for their information.

    Of means give their `means.normal_score`.

    A look of nan crosses nothing, and has spent its alpha.
    """
    _check_lengths(statistics, information)
    bounds = spending_bounds(information, alpha=alpha, spending=spending)
    crossed = np.logical_or.accumulate(np.abs(statistics) >= np.asarray(bounds))
    rows = zip(information, bounds, statistics, crossed.tolist(), strict=True)
    return [
        GroupLook(
            information=t,
            alpha_spent=alpha_spent(t, alpha=alpha, spending=spending),
            bound=bound,
            nominal_alpha=2 * float(special.ndtr(-bound)),
            statistic=z,
            has_crossed=has_crossed,
        )
        for t, bound, z, has_crossed in rows
    ]


def group_sequential_pvalue(
    statistics: Sequence[float], information: Sequence[float], *, spending: Spending = "obrien_fleming"
) -> float:
    """The smallest alpha with which one of these looks crosses: the p-value of the test up to the last of them.

    Given as 1 above 0.5 (up to there the bounds of one alpha lie within those of a smaller one), never below
    1e-290, and nan where no statistic is defined.

    References
    ----------
    Liu, Q. and Anderson, K. M. (2008). On adaptive extensions of group sequential trials for clinical
    investigations. Journal of the American Statistical Association 103, 1621-1630.
    """
    _check_lengths(statistics, information)
    sizes = np.abs(np.asarray(statistics, dtype=np.float64))
    if np.isnan(sizes).all():
        return nan

    def excess(log_alpha: float) -> float:
        bounds = np.array(spending_bounds(information, alpha=exp(log_alpha), spending=spending))
        # Where no look has a finite bound the excess is -inf, from which no root is interpolated.
        return max(float(np.nanmax(sizes - bounds)), -_LARGEST_Z)

    smallest, largest = log(_SMALLEST_PVALUE), log(_LARGEST_PVALUE)
    if excess(largest) < 0:
        return 1.0
    return _SMALLEST_PVALUE if excess(smallest) >= 0 else exp(optimize.brentq(excess, smallest, largest))


def alpha_spent(information: float, *, alpha: float, spending: Spending = "obrien_fleming") -> float:
    """The chance of rejecting without an effect up to a share of the planned information; alpha from 1 on.

    Half of it on each side: 4(1 - Phi(z_{alpha/4} / sqrt(t))) like O'Brien and Fleming, late, or
    alpha·ln(1 + (e - 1)t) like Pocock, early.

    References
    ----------
    Lan, K. K. G. and DeMets, D. L. (1983). Discrete sequential boundaries for clinical trials. Biometrika 70,
    659-663.
    """
    if not 0 < information < inf:
        raise ValueError(f"information is a finite positive share of the planned one, got {information}")
    return _SPENDING[spending](min(information, 1.0), _level(alpha))


def spending_bounds(
    information: Sequence[float], *, alpha: float, spending: Spending = "obrien_fleming"
) -> tuple[float, ...]:
    """The bound of |z| at every look; inf at a look with nothing to spend.

    `information` is what the looks had of the planned information (1 / std_error², or units), rising by 1e-4
    or more. It may overrun: the first look from 1 on spends all that is left, and looks after it have nothing.
    The correlation of the looks is that of the information they had, which is not cut off at 1.

    References
    ----------
    Lan and DeMets (1983), see `alpha_spent`.
    """
    finest = _finest_steps(information)
    spent = [0.0, *(alpha_spent(t, alpha=alpha, spending=spending) for t in information)]
    paths, bounds = _START, list[float]()
    for k, t in enumerate(information):
        bounds.append(paths.bound(spent[k + 1] - spent[k], t))
        paths = paths.within(bounds[k], t, finest[k])
    return tuple(bounds)


def crossing_probabilities(bounds: Sequence[float], information: Sequence[float]) -> tuple[float, ...]:
    """The chance without an effect that each look is the first with |z| beyond its bound; see `spending_bounds`.

    References
    ----------
    Armitage, P., McPherson, C. K. and Rowe, B. C. (1969). Repeated significance tests on accumulating data.
    Journal of the Royal Statistical Society A 132, 235-244.
    """
    _check_lengths(bounds, information)
    if not all(bound > 0 for bound in bounds):
        raise ValueError(f"bounds of |z| are positive, got {bounds}")
    finest = _finest_steps(information)
    paths, chances = _START, list[float]()
    for k, t in enumerate(information):
        chances.append(paths.crossing(bounds[k], t))
        paths = paths.within(bounds[k], t, finest[k])
    return tuple(chances)


@dataclass(frozen=True, slots=True, eq=False)
class _Paths:
    """The law of the score z·sqrt(information) that has crossed no bound yet: masses at the nodes of a quadrature.

    Without an effect the score is a Brownian motion whose time is the information.
    """

    score: FloatArray
    mass: FloatArray
    information: float

    def crossing(self, bound: float, information: float) -> float:
        """Chance that |z| is beyond the bound at this information."""
        limit, step = bound * sqrt(information), sqrt(information - self.information)
        beyond = special.ndtr((self.score - limit) / step) + special.ndtr((-self.score - limit) / step)
        return float(self.mass @ beyond)

    def bound(self, probability: float, information: float) -> float:
        """The bound that is crossed with this probability."""
        if probability < _SMALLEST_PROBABILITY:
            return inf
        # Paths that were lost can only make the bound lower than that of a single look; 1e-6 is for rounding.
        highest = 1e-6 - float(special.ndtri(probability / 2))
        return float(optimize.brentq(lambda z: self.crossing(z, information) / probability - 1, 0.0, highest))

    def within(self, bound: float, information: float, finest: float) -> "_Paths":
        """The paths whose |z| is within the bound at this information.

        `finest` is the smaller standard deviation of the steps before and after it. Panels of 16 nodes are four
        of it wide, with which results do not change by 1e-10 when there are twice as many.
        """
        limit, step = min(bound, _LARGEST_Z) * sqrt(information), sqrt(information - self.information)
        edges = np.linspace(-limit, limit, 1 + ceil(limit / (2 * finest)))
        half = (edges[1] - edges[0]) / 2
        score = (edges[:-1, None] + half * (1 + _NODES)).ravel()
        weights = np.tile(half * _WEIGHTS, len(edges) - 1) / (step * sqrt(2 * pi))
        density = np.exp(-(((score[:, None] - self.score) / step) ** 2) / 2) @ self.mass
        return _Paths(score, weights * density, information)


def _finest_steps(information: Sequence[float]) -> list[float]:
    """The standard deviation of the score's steps before and after every look, whichever is smaller."""
    steps = np.diff(np.asarray(information, dtype=np.float64), prepend=0)
    if not ((steps >= _SMALLEST_STEP) & (steps < inf)).all():
        raise ValueError(f"information rises from 0 by {_SMALLEST_STEP} or more to every look, got {information}")
    return [sqrt(min(pair)) for pair in pairwise([*steps.tolist(), inf])]


def _obrien_fleming(t: float, alpha: float) -> float:
    return 4 * float(special.ndtr(special.ndtri(alpha / 4) / sqrt(t)))


def _pocock(t: float, alpha: float) -> float:
    return alpha * log1p((e - 1) * t)


_SPENDING: Mapping[Spending, Callable[[float, float], float]] = {"obrien_fleming": _obrien_fleming, "pocock": _pocock}
_NODES, _WEIGHTS = special.roots_legendre(16)
_START = _Paths(np.zeros(1), np.ones(1), 0.0)


def _level(alpha: float) -> float:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha lies between 0 and 1, got {alpha}")
    return alpha


def _check_lengths(numbers: Sequence[float], information: Sequence[float]) -> None:
    if len(numbers) != len(information):
        raise ValueError(f"looks need one number each, got {len(numbers)} for {len(information)} of information")
