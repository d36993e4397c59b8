from math import isnan, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.weightstats import ttost_ind

from mltrust.states.moments import FloatArray, Moments
from mltrust.stats.equivalence import equivalence
from mltrust.stats.means import Arm, Margin, mean_arm, welch

REL = 1e-9  # of other programs' floats, which take other sums in another order

arms = st.builds(
    Arm,
    n=st.integers(2, 10_000),
    mean=st.floats(-100, 100),
    variance=st.floats(1e-6, 1e4),
)


def arm(sample: FloatArray) -> Arm:
    return mean_arm(Moments.of(("y",), sample[:, None]), "y")


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("margin", [0.3, 1.0, 4.0])
def test_both_tests_are_those_of_statsmodels(seed: int, margin: float) -> None:
    rng = np.random.default_rng(seed)
    c, t = rng.gamma(2, 3, 60 * seed), rng.gamma(2, 3.2, 90)
    result = equivalence(control=arm(c), treatment=arm(t), margin=Margin(absolute=margin))
    pvalue, low, high = ttost_ind(t, c, -margin, margin, usevar="unequal")
    assert (result.pvalue, result.pvalue_low, result.pvalue_high) == pytest.approx(
        (pvalue, low[1], high[1]), rel=REL, abs=0
    )
    assert result.effect == pytest.approx(t.mean() - c.mean())


def test_a_relative_margin_is_the_absolute_test_of_statsmodels_on_scaled_controls() -> None:
    rng = np.random.default_rng(4)
    c, t = rng.gamma(9, 3, 200), rng.gamma(9, 3.1, 300)
    result = equivalence(control=arm(c), treatment=arm(t), margin=Margin(relative=0.1))
    for factor, side, pvalue in ((0.9, 1, result.pvalue_low), (1.1, 2, result.pvalue_high)):
        # Against a scaled control and a margin of 0 (statsmodels wants low < high).
        expected = ttost_ind(t, factor * c, *((0, 1e9) if side == 1 else (-1e9, 0)), usevar="unequal")[side][1]
        assert pvalue == pytest.approx(expected, rel=REL, abs=0)
    assert result.pvalue == max(result.pvalue_low, result.pvalue_high)


@settings(deadline=None)
@given(arms, arms, st.floats(0.01, 100), st.floats(0.001, 0.4))
def test_arms_are_equivalent_exactly_where_the_interval_is_within_the_margin(
    control: Arm, treatment: Arm, size: float, alpha: float
) -> None:
    result = equivalence(control=control, treatment=treatment, margin=Margin(absolute=size), alpha=alpha)
    distance = min(size - result.ci_high, result.ci_low + size)
    if abs(distance) > 1e-9 * (size + result.ci_high - result.ci_low):
        assert (result.pvalue < alpha) == (distance > 0)


@settings(deadline=None)
@given(arms, arms, st.floats(0.01, 0.99), st.floats(0.001, 0.4))
def test_a_relative_margin_goes_with_the_relative_interval(
    control: Arm, treatment: Arm, size: float, alpha: float
) -> None:
    margin = Margin(relative=size)
    result = equivalence(control=control, treatment=treatment, margin=margin, alpha=alpha, df=50)
    if isnan(result.rel_ci_low):
        return
    distance = min(size - result.rel_ci_high, result.rel_ci_low + size)
    if abs(distance) > 1e-6 * (size + result.rel_ci_high - result.rel_ci_low):
        assert (result.pvalue < alpha) == (distance > 0)


def test_the_interval_has_the_confidence_of_two_one_sided_tests() -> None:
    control, treatment = Arm(100, 10.0, 4.0), Arm(120, 10.2, 5.0)
    result = equivalence(control=control, treatment=treatment, margin=Margin(absolute=1.0), alpha=0.05)
    interval = welch(control=control, treatment=treatment, alpha=0.1)
    assert (result.ci_low, result.ci_high) == (interval.ci_low, interval.ci_high)
    assert (result.rel_ci_low, result.rel_ci_high) == (interval.rel_ci_low, interval.rel_ci_high)


def test_no_difference_found_is_not_equivalence() -> None:
    result = equivalence(control=Arm(10, 5.0, 4.0), treatment=Arm(10, 5.0, 4.0), margin=Margin(absolute=0.5))
    assert result.effect == 0
    assert result.pvalue > 0.25


def test_one_undefined_side_makes_the_whole_undefined() -> None:
    # A loss of all of the mean needs no variance of the control, and then there is none at all.
    control, treatment = Arm(100, 5.0, 1.0), Arm(100, 5.0, 0.0)
    result = equivalence(control=control, treatment=treatment, margin=Margin(relative=1.0))
    assert isnan(result.pvalue_low)
    assert result.pvalue_high < 1e-12
    assert isnan(result.pvalue)


@pytest.mark.parametrize("control", [Arm(0, nan, nan), Arm(1, 5.0, nan), Arm(10, 5.0, 0.0)])
def test_arms_without_a_variance_are_inconclusive(control: Arm) -> None:
    result = equivalence(control=control, treatment=control, margin=Margin(absolute=1.0))
    assert (result.n_control, result.n_treatment) == (control.n, control.n)
    assert isnan(result.pvalue)
    assert isnan(result.ci_low)


@pytest.mark.parametrize("alpha", [0.0, 0.5, nan])
def test_a_level_that_leaves_no_interval_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 0.5"):
        equivalence(control=Arm(10, 5.0, 1.0), treatment=Arm(10, 5.0, 1.0), margin=Margin(absolute=1.0), alpha=alpha)
