"""Two arms by their means, ratios and adjusted means."""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import numpy as np

from mltrust.states.moments import FloatArray, Moments
from mltrust.stats.bayes import beta_binomial, normal_normal
from mltrust.stats.cuped import Quantity, cuped
from mltrust.stats.equivalence import equivalence
from mltrust.stats.means import Arm, Comparison, Margin, non_inferiority, proportion, welch
from mltrust.stats.ratios import ratio_arm
from tests.calibration.grid import PLANTED, Interval, Piece, Size, Tally, calibrated, tally
from tests.calibration.laws import Population, draw, mean_of, scaled, skew_among, with_past, with_rows

ONE_SIDE = (0.025, 0.0005)
MARGIN = Margin(relative=PLANTED)
# CUPED takes a quarter of a millisecond: its intervals are asked on fewer runs than its p-values.
_INTERVALS_OF_CUPED = 0.2

Pairs = Iterable[tuple[Arm, Arm]]


def pairs(piece: Piece, rng: np.random.Generator, runs: int, factor: float = 1.0) -> Pairs:
    """Control and treatment of every run; the treatment's mean is the law's times a factor."""
    drawn = draw(rng, piece.law, np.broadcast_to(piece.arms, (runs, 2)), np.array([1.0, factor]))
    return [(control, treatment) for control, treatment in drawn.arms()]


def held(found: Sequence[Comparison], mean: float) -> dict[str, list[bool]]:
    """Whether the intervals hold the planted effect; relative ones where they are bounded."""
    relative = [Interval(each.rel_ci_low, each.rel_ci_high) for each in found]
    return {
        "held": [Interval(each.ci_low, each.ci_high).holds(PLANTED * mean) for each in found],
        "rel_held": [each.holds(PLANTED) for each in relative if each.is_bounded],
    }


@calibrated("Welch")
def run_welch(piece: Piece, rng: np.random.Generator, runs: int) -> Tally:
    """Two means; intervals of an effect of +10 %."""
    planted = [welch(control=c, treatment=t) for c, t in pairs(piece, rng, runs, 1 + PLANTED)]
    pvalues = [welch(control=c, treatment=t).pvalue for c, t in pairs(piece, rng, runs)]
    return tally(pvalues, **held(planted, mean_of(piece.law)))


@lru_cache(maxsize=200_000)
def _proportion(control: Arm, treatment: Arm) -> Comparison:
    return proportion(control=control, treatment=treatment)


@calibrated("proportion", laws=("bernoulli",))
def run_proportion(piece: Piece, rng: np.random.Generator, runs: int) -> Tally:
    """Two shares by the pooled score test; the unpooled interval of an effect of +10 %."""
    planted = [_proportion(c, t) for c, t in pairs(piece, rng, runs, 1 + PLANTED)]
    pvalues = [_proportion(c, t).pvalue for c, t in pairs(piece, rng, runs)]
    return tally(pvalues, **held(planted, mean_of(piece.law)))


def _one_sided(*, increase_is_good: bool) -> Callable[[Piece, np.random.Generator, int], Tally]:
    def run(piece: Piece, rng: np.random.Generator, runs: int) -> Tally:
        at_margin = pairs(piece, rng, runs, 1 - PLANTED if increase_is_good else 1 + PLANTED)
        return tally(
            non_inferiority(control=c, treatment=t, margin=MARGIN, increase_is_good=increase_is_good).pvalue
            for c, t in at_margin
        )

    which = "smaller" if increase_is_good else "larger"
    run.__doc__ = f"One-sided: passing a treatment whose mean is {which} by exactly the relative margin of 10 %."
    return run


calibrated("non-inferiority, increase is good")(_one_sided(increase_is_good=True))
calibrated("non-inferiority, decrease is good")(_one_sided(increase_is_good=False))


@calibrated("equivalence", kind="conservative")
def run_equivalence(piece: Piece, rng: np.random.Generator, runs: int) -> Tally:
    """Two one-sided tests (TOST): calling a treatment the same that is smaller by exactly the margin of 10 %."""
    at_margin = pairs(piece, rng, runs, 1 - PLANTED)
    return tally(equivalence(control=c, treatment=t, margin=MARGIN).pvalue for c, t in at_margin)


@calibrated("chance to beat, flat prior", levels=ONE_SIDE)
def run_chance(piece: Piece, rng: np.random.Generator, runs: int) -> Tally:
    """Bayesian, normal with the flat prior: how often the chance to beat the control is above 97.5 % and 99.95 %."""
    found = (welch(control=c, treatment=t) for c, t in pairs(piece, rng, runs))
    posteriors = (normal_normal(effect=e.effect, std_error=e.std_error, increase_is_good=True) for e in found)
    return tally((1 - each.chance_to_beat for each in posteriors), levels=ONE_SIDE)


@lru_cache(maxsize=200_000)
def _beta_binomial(control: Arm, treatment: Arm) -> float:
    return beta_binomial(control=control, treatment=treatment, increase_is_good=True).chance_to_beat


@calibrated("chance to beat, shares", laws=("bernoulli",), levels=ONE_SIDE, runs=(2_000, 1_000))
def run_chance_of_shares(piece: Piece, rng: np.random.Generator, runs: int) -> Tally:
    """Bayesian, beta-binomial with Jeffreys' prior: the same of two shares. Some 10 ms each, hence fewer runs."""
    return tally((1 - _beta_binomial(c, t) for c, t in pairs(piece, rng, runs)), levels=ONE_SIDE)


def _size_among(piece: Piece, population: Population, linear: FloatArray) -> Size:
    n = min(piece.arms)
    share = float((population.column("y") > 0).mean()) if piece.law in ("bernoulli", "spenders") else None
    events = {} if share is None else {"events": n * min(share, 1 - share)}
    return Size(skew_among(linear, *piece.arms), n, **events)


def _linear(population: Population, metric: Quantity) -> FloatArray:
    """A quantity's linearisation: what a unit adds to it."""
    y = population.column(metric.numerator)
    if metric.denominator is None:
        return y - y.mean()
    d = population.column(metric.denominator)
    return (y - y.mean() / d.mean() * d) / d.mean()


def _residual(population: Population, metric: Quantity, covariate: Quantity) -> FloatArray:
    y, x = _linear(population, metric), _linear(population, covariate)
    return y - (x @ y) / (x @ x) * x


PER_ROW, ROWS_BEFORE = Quantity("y", "d"), Quantity("x", "e")
VALUE, BEFORE = Quantity("y"), Quantity("x")


def ratio_size(piece: Piece) -> Size:
    return _size_among(piece, with_rows(piece.law), _linear(with_rows(piece.law), PER_ROW))


@calibrated("ratio", size=ratio_size)
def run_ratio(piece: Piece, rng: np.random.Generator, runs: int) -> Tally:
    """Clustered rows: units of 1 to some 10 rows that are alike, the mean of rows by the delta method over units."""
    population = with_rows(piece.law)
    arms = [[ratio_arm(state, "y", "d") for state in population.states(rng, runs, n)] for n in piece.arms]
    found = [welch(control=c, treatment=t).pvalue for c, t in zip(*arms, strict=True)]
    larger = [Arm(n, (1 + PLANTED) * mean, (1 + PLANTED) ** 2 * variance) for n, mean, variance in arms[1]]
    planted = [welch(control=c, treatment=t) for c, t in zip(arms[0], larger, strict=True)]
    y, d, *_ = population.mean
    return tally(found, **held(planted, y / d))


def _run_cuped(
    piece: Piece, rng: np.random.Generator, runs: int, population: Population, metric: Quantity, covariate: Quantity
) -> Tally:
    controls, treatments = (population.states(rng, runs, n) for n in piece.arms)
    n_planted = max(1, round(runs * _INTERVALS_OF_CUPED))

    def compared(control: Moments, treatment: Moments) -> Comparison:
        return cuped(control=control, treatment=treatment, metric=metric, covariates=[covariate]).comparison

    found = [compared(c, t).pvalue for c, t in zip(controls, treatments, strict=True)]
    larger = [scaled(state, ["y"], 1 + PLANTED) for state in treatments[:n_planted]]
    planted = [compared(c, t) for c, t in zip(controls[:n_planted], larger, strict=True)]
    y = population.mean[0]
    truth = y if metric.denominator is None else y / population.mean[1]
    return tally(found, **held(planted, float(truth)))


@calibrated(
    "CUPED",
    size=lambda piece: _size_among(piece, with_past(piece.law), _residual(with_past(piece.law), VALUE, BEFORE)),
)
def run_cuped(piece: Piece, rng: np.random.Generator, runs: int) -> Tally:
    """A mean adjusted by one covariate of the same law; intervals on a fifth of the runs."""
    return _run_cuped(piece, rng, runs, with_past(piece.law), VALUE, BEFORE)


@calibrated(
    "CUPED of a ratio",
    size=lambda piece: _size_among(
        piece, with_rows(piece.law), _residual(with_rows(piece.law), PER_ROW, ROWS_BEFORE)
    ),
)
def run_cuped_ratio(piece: Piece, rng: np.random.Generator, runs: int) -> Tally:
    """Clustered rows, their mean adjusted by that of the unit's rows before; intervals on a fifth of the runs."""
    return _run_cuped(piece, rng, runs, with_rows(piece.law), PER_ROW, ROWS_BEFORE)
