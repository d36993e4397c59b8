"""Tests over slices, and families of tests."""

from collections.abc import Sequence
from math import inf

import numpy as np

from mltrust.states.moments import Moments, merge
from mltrust.stats.heterogeneity import against_rest, heterogeneity, qualitative_interaction
from mltrust.stats.means import Arm, Comparison, mean_arm, welch
from mltrust.stats.multiplicity import benjamini_hochberg, holm
from mltrust.stats.post_stratification import join_small, post_stratified
from mltrust.stats.simpson import pooled_gap
from tests.calibration.grid import PLANTED, Piece, Size, Tally, calibrated, tally
from tests.calibration.laws import EVENTS, Drawn, draw, mean_of, sd_of, skew_of
from tests.calibration.means import held

#: Slices by chance, and the means of their units as shares of the overall one.
SHARES, FACTORS = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.7, 1.0, 1.3, 1.6])
#: The readout compares effects of slices from here on.
SMALLEST = 50
N_FAMILY, N_TREATMENTS = 5, 3

Slices = list[tuple[Arm, Arm]]


def drawn_slices(
    piece: Piece,
    rng: np.random.Generator,
    runs: int,
    *,
    shares: Sequence[float] = tuple(SHARES),
    factors: Sequence[float] = tuple(FACTORS),
    effect: float = 0.0,
) -> tuple[Drawn, Drawn]:
    """Control and treatment by slice, with an effect that is the same share of the mean in all slices."""
    counts = [rng.multinomial(n, shares, runs) for n in piece.arms]
    means = [np.array(factors), np.array(factors) * (1 + effect)]
    control, treatment = (draw(rng, piece.law, n, mean) for n, mean in zip(counts, means, strict=True))
    return control, treatment


def paired(control: Drawn, treatment: Drawn) -> list[Slices]:
    return [list(zip(*run, strict=True)) for run in zip(control.arms(), treatment.arms(), strict=True)]


def size_of(piece: Piece, shares: Sequence[float], factors: Sequence[float]) -> Size:
    """The largest skewness and the smallest counts of any slice."""
    n_c, n_t = piece.arms
    rate = EVENTS.get(piece.law)
    grows = piece.law == "bernoulli"
    return Size(
        g=max(skew_of(piece.law, n_c * k, n_t * k, f) for k, f in zip(shares, factors, strict=True)),
        units=min(n_c, n_t) * float(min(shares)),
        events=inf
        if rate is None
        else min(min(n_c, n_t) * k * rate * (f if grows else 1) for k, f in zip(shares, factors, strict=True)),
    )


def slice_size(piece: Piece) -> Size:
    return size_of(piece, tuple(SHARES), tuple(FACTORS))


def family_size(piece: Piece) -> Size:
    return size_of(piece, [1 / N_FAMILY] * N_FAMILY, [1.0] * N_FAMILY)


def compared(slices: Slices) -> list[Comparison]:
    return [welch(control=c, treatment=t) for c, t in slices]


def state(arm: Arm) -> Moments:
    """The state of an arm's values."""
    if arm.n == 0:
        return Moments.empty(("y",))
    scatter = arm.variance * (arm.n - 1) if arm.n > 1 else 0.0
    return Moments(("y",), arm.n, np.array([arm.mean]), np.array([[scatter]]))


def _joined(slices: Slices) -> Slices:
    if min(arm.n for pair in slices for arm in pair) >= 5:
        return slices
    states = [(state(c), state(t)) for c, t in slices]
    return [(mean_arm(c, "y"), mean_arm(t, "y")) for c, t in join_small(states).pairs]


@calibrated("post-stratification", size=slice_size, smallest=5)
def run_post_stratification(piece: Piece, rng: np.random.Generator, runs: int) -> Tally:
    """Means by four slices of 40, 30, 20 and 10 %, that come by chance and differ in their means."""
    planted = [post_stratified(_joined(each)) for each in paired(*drawn_slices(piece, rng, runs, effect=PLANTED))]
    found = [post_stratified(_joined(each)).pvalue for each in paired(*drawn_slices(piece, rng, runs))]
    return tally(found, **held(planted, mean_of(piece.law)))


@calibrated("heterogeneity", size=slice_size, smallest=SMALLEST)
def run_heterogeneity(piece: Piece, rng: np.random.Generator, runs: int) -> Tally:
    """Cochran's Q of four slices without effects; slices of 40, 30, 20 and 10 %."""
    return tally(heterogeneity(compared(each)).pvalue for each in paired(*drawn_slices(piece, rng, runs)))


@calibrated("qualitative interaction", kind="conservative", size=slice_size, smallest=SMALLEST)
def run_qualitative(piece: Piece, rng: np.random.Generator, runs: int) -> Tally:
    """Gail and Simon, where it rejects most: one slice with a large effect and three without any."""
    control, treatment = drawn_slices(piece, rng, runs)
    large = np.array([10 * sd_of(piece.law), 0, 0, 0])
    squares = treatment.squares + 2 * large * treatment.total + treatment.n * large**2
    moved = Drawn(treatment.n, treatment.total + treatment.n * large, squares)
    return tally(qualitative_interaction(compared(each)).pvalue for each in paired(control, moved))


@calibrated("slice against rest", size=slice_size, smallest=SMALLEST)
def run_against_rest(piece: Piece, rng: np.random.Generator, runs: int) -> Tally:
    """The smallest slice, 10 % of the units, against the other three together, without effects."""

    def test(slices: Slices) -> float:
        control, treatment = (mean_arm(merge(map(state, arm), ("y",)), "y") for arm in zip(*slices[:-1], strict=True))
        [own], [rest] = compared(slices[-1:]), compared([(control, treatment)])
        return against_rest(own=own, rest=rest).pvalue

    return tally(test(each) for each in paired(*drawn_slices(piece, rng, runs)))


@calibrated("Simpson's gap", size=lambda piece: size_of(piece, tuple(SHARES), (1.0,) * 4), smallest=SMALLEST)
def run_gap(piece: Piece, rng: np.random.Generator, runs: int) -> Tally:
    """The gap between the pooled and the post-stratified effect, of four slices with equal means."""
    drawn = drawn_slices(piece, rng, runs, factors=(1.0,) * 4)
    return tally(pooled_gap(each).pvalue for each in paired(*drawn))


@calibrated("Simpson's paradox named", kind="conservative", size=slice_size, smallest=SMALLEST)
def run_named(piece: Piece, rng: np.random.Generator, runs: int) -> Tally:
    """Reversals or mix shifts named in a randomised experiment of four slices that differ (in both columns)."""
    drawn = paired(*drawn_slices(piece, rng, runs))
    return tally(0.0 if pooled_gap(each).kind in ("reversal", "mix shift") else 1.0 for each in drawn)


@calibrated("Benjamini-Hochberg", kind="conservative", size=family_size, smallest=SMALLEST)
def run_benjamini_hochberg(piece: Piece, rng: np.random.Generator, runs: int) -> Tally:
    """Welch in five equal slices without effects: the smallest q-value."""
    shares = [1 / N_FAMILY] * N_FAMILY
    drawn = paired(*drawn_slices(piece, rng, runs, shares=shares, factors=[1.0] * N_FAMILY))
    return tally(float(np.nanmin(benjamini_hochberg([each.pvalue for each in compared(slices)]))) for slices in drawn)


def _several(piece: Piece) -> list[int]:
    """The control's units, and those of three treatments that have the split's ratio to it each."""
    n_c, n_t = piece.arms
    n = round(piece.units * n_t / (n_c + N_TREATMENTS * n_t))
    return [piece.units - N_TREATMENTS * n, *[n] * N_TREATMENTS]


def _several_size(piece: Piece) -> Size:
    n_c, n_t, *_ = _several(piece)
    rate = EVENTS.get(piece.law)
    return Size(skew_of(piece.law, n_c, n_t), n_t, inf if rate is None else n_t * rate)


@calibrated("Holm", kind="conservative", size=_several_size)
def run_holm(piece: Piece, rng: np.random.Generator, runs: int) -> Tally:
    """Welch of three treatments without effects against one control: the smallest adjusted p-value."""
    drawn = draw(rng, piece.law, np.broadcast_to(_several(piece), (runs, 1 + N_TREATMENTS)))
    families = ([welch(control=c, treatment=t).pvalue for t in treatments] for c, *treatments in drawn.arms())
    return tally(float(np.nanmin(holm(family))) for family in families)
