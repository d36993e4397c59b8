"""The gap of the extremes: its limits hold where slices tie, and where they do not."""

from math import isnan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mltrust.states.moments import FloatArray
from mltrust.stats.gaps import Gap, gap_difference, worst_gap

DF = 63


def test_the_gap_of_two_is_their_difference_on_t_folded_at_0() -> None:
    gap = worst_gap([0.5, 0.2], [0.01, 0.02], df=DF, alpha=0.1)
    half = stats.t.ppf(0.95, DF) * 0.03**0.5
    assert (gap.lowest, gap.highest) == (1, 0)
    assert (gap.value, gap.ci_low, gap.ci_high) == pytest.approx((0.3, 0.3 - half, 0.3 + half))
    near = worst_gap([0.5, 0.49], [0.01, 0.02], df=DF, alpha=0.1)
    assert (near.ci_low, near.unfolded) == (0, pytest.approx(0.01 - half))


def test_the_difference_of_gaps_of_two_is_on_the_same_t() -> None:
    c, t = (worst_gap([high, 0.0], [0.01, 0.02], df=DF) for high in (0.3, 0.5))
    found = gap_difference(control=c, treatment=t)
    half = stats.t.ppf(0.975, DF) * 0.06**0.5
    assert found == pytest.approx((0.2, 0.2 - half, 0.2 + half))


def test_limits_are_of_whichever_pair_reaches_furthest() -> None:
    # The third is of few units: it may lie anywhere, and says nothing of the lower limit.
    gap = worst_gap([0.0, 1.0, 0.5], [1e-4, 1e-4, 4.0], df=DF)
    sure = worst_gap([0.0, 1.0], [1e-4, 1e-4], df=DF)
    assert gap.value == sure.value
    assert 0.9 < gap.ci_low < sure.ci_low
    assert gap.ci_high > 4


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3)), min_size=2, max_size=6), st.floats(-1e3, 1e3))
def test_a_gap_knows_no_order_and_no_zero(slices: list[tuple[float, float]], shift: float) -> None:
    values, variances = zip(*slices, strict=True)
    gap = worst_gap(values, variances, df=DF)
    turned = worst_gap([value + shift for value in values[::-1]], variances[::-1], df=DF)
    assert (turned.value, turned.ci_low, turned.ci_high) == pytest.approx(
        (gap.value, gap.ci_low, gap.ci_high), rel=1e-9, abs=1e-9
    )
    assert gap.ci_low <= gap.value <= gap.ci_high
    assert gap.value == values[gap.highest] - values[gap.lowest]


def test_without_two_slices_there_is_no_gap() -> None:
    for values in ([], [0.5]):
        gap = worst_gap(values, [0.1] * len(values), df=DF)
        assert isnan(gap.value)
        assert isnan(gap.ci_high)
        assert all(isnan(limit) for limit in gap_difference(control=gap, treatment=gap))


NONE, ONE_OUT, BOTH_ENDS = (lambda K: [0] * K, lambda K: [5] + [0] * (K - 1), lambda K: [20, *[0] * (K - 2), -20])


@pytest.mark.slow
@pytest.mark.parametrize("K", [2, 4, 10])
@pytest.mark.parametrize("treated", [NONE, ONE_OUT, BOTH_ENDS])
def test_limits_hold_with_their_confidence_whether_or_not_slices_differ(K: int, treated: object) -> None:
    """2,000 runs: a coverage of 0.95 is found within 0.015 (three standard errors).

    The t interval of the two extremes, as if they had been named before, covers no gap of ten slices in 40 %.
    """
    rng = np.random.default_rng(K)
    truth = np.array([NONE(K), treated(K)], dtype=float)  # type: ignore[operator]
    gaps_of_truth = np.ptp(truth, axis=1)
    held, of_difference, naive, N = 0, 0, 0, 2000
    for _ in range(N):
        c, t = (drawn(each, rng) for each in truth)
        held += t.ci_low <= gaps_of_truth[1] <= t.ci_high
        _, low, high = gap_difference(control=c, treatment=t)
        of_difference += low <= gaps_of_truth[1] - gaps_of_truth[0] <= high
        naive += abs(t.value - gaps_of_truth[1]) <= 2 * 2**0.5
    assert min(held, of_difference) / N > 0.935
    if treated is NONE and K == 10:
        assert naive / N < 0.5


def drawn(truth: FloatArray, rng: np.random.Generator) -> Gap:
    """The gap of estimates with standard error 1, known from 64 groups."""
    return worst_gap(rng.normal(truth, 1).tolist(), (rng.chisquare(DF, len(truth)) / DF).tolist(), df=DF)
