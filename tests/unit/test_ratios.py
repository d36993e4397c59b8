from math import isnan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mltrust.states.moments import FloatArray, Moments, merge
from mltrust.stats.means import mean_arm, welch
from mltrust.stats.ratios import ratio_arm

COLUMNS = ("clicks", "views")
SCALES = st.one_of(st.floats(1e-4, 1e4), st.floats(-1e4, -1e-4))


def state(clicks: FloatArray, views: FloatArray) -> Moments:
    return Moments.of(COLUMNS, np.column_stack([clicks, views]))


def units(n: int, seed: int = 1) -> tuple[FloatArray, FloatArray]:
    """Clicks and views of n units that differ in both their traffic and their rate."""
    rng = np.random.default_rng(seed)
    views = 1.0 + rng.poisson(rng.gamma(1, 5, n))
    return rng.binomial(views.astype(int), rng.beta(1, 4, n)).astype(float), views


@settings(deadline=None, max_examples=40)
@given(arrays(np.float64, st.integers(1, 30), elements=st.floats(-1e6, 1e6, allow_subnormal=False)))
def test_a_ratio_over_a_constant_one_is_the_mean(sample: FloatArray) -> None:
    whole = state(sample, np.ones(len(sample)))
    ratio, mean = ratio_arm(whole, *COLUMNS), mean_arm(whole, "clicks")
    assert ratio[:2] == mean[:2]
    assert ratio.variance == pytest.approx(mean.variance, rel=0, abs=0, nan_ok=True)


@settings(deadline=None, max_examples=40)
@given(SCALES, SCALES)
def test_a_ratio_and_its_error_scale_with_its_columns(a: float, b: float) -> None:
    clicks, views = units(50)
    plain, scaled = ratio_arm(state(clicks, views), *COLUMNS), ratio_arm(state(a * clicks, b * views), *COLUMNS)
    assert scaled.n == plain.n
    assert scaled.mean == pytest.approx(plain.mean * a / b, rel=1e-12, abs=0)
    # The three terms of the variance are of its own size here: no digits cancel.
    assert scaled.variance == pytest.approx(plain.variance * (a / b) ** 2, rel=1e-11, abs=0)


@settings(deadline=None, max_examples=40)
@given(SCALES, SCALES)
def test_a_test_of_ratios_does_not_depend_on_the_units_of_measurement(a: float, b: float) -> None:
    def compare(a: float, b: float) -> tuple[float, float]:
        arms = []
        for n, seed in ((40, 2), (90, 3)):
            clicks, views = units(n, seed)
            arms.append(ratio_arm(state(a * clicks, b * views), *COLUMNS))
        result = welch(control=arms[0], treatment=arms[1])
        return result.pvalue, result.rel_effect

    assert compare(a, b) == pytest.approx(compare(1, 1), rel=1e-10, abs=0)


def test_the_variance_is_that_of_the_linearised_units() -> None:
    clicks, views = units(200)
    arm = ratio_arm(state(clicks, views), *COLUMNS)
    assert arm.mean == pytest.approx(clicks.sum() / views.sum(), rel=1e-12, abs=0)
    linearised = (clicks - arm.mean * views) / views.mean()
    assert arm.variance == pytest.approx(np.var(linearised, ddof=1), rel=1e-11, abs=0)


def test_the_variance_is_that_of_a_jackknife_of_units() -> None:
    clicks, views = units(2000)
    left_out = (clicks.sum() - clicks) / (views.sum() - views)
    jackknife = (len(clicks) - 1) ** 2 / len(clicks) * np.var(left_out, ddof=1)
    # The two differ by terms of the order 1/n of the largest unit's share, here below 1 %.
    assert ratio_arm(state(clicks, views), *COLUMNS).mean_variance == pytest.approx(jackknife, rel=0.01, abs=0)


def test_units_with_many_rows_have_more_variance_than_their_rows_would() -> None:
    clicks, views = units(2000)
    arm = ratio_arm(state(clicks, views), *COLUMNS)
    of_rows = arm.mean * (1 - arm.mean) / views.sum()
    assert arm.mean_variance > 2 * of_rows


def test_the_arm_of_merged_states_is_that_of_the_whole() -> None:
    clicks, views = units(500)
    cuts = [7, 8, 300]
    parts = [state(*part) for part in zip(np.split(clicks, cuts), np.split(views, cuts), strict=True)]
    whole = ratio_arm(state(clicks, views), *COLUMNS)
    assert ratio_arm(merge(parts, COLUMNS), *COLUMNS) == pytest.approx(whole, rel=1e-11, abs=0)


@pytest.mark.parametrize("factor", [0.1, 1 / 3, -7.3, 0.0])
def test_proportional_columns_have_a_variance_of_exactly_zero(factor: float) -> None:
    _, views = units(300)
    parts = [state(factor * part, part) for part in np.split(views, [1, 20, 200])]
    for whole in (state(factor * views, views), merge(parts, COLUMNS)):
        arm = ratio_arm(whole, *COLUMNS)
        assert arm.mean == pytest.approx(factor, rel=1e-12, abs=0)
        assert arm.variance == 0
        assert isnan(welch(control=arm, treatment=arm).pvalue)


def test_a_small_variance_of_nearly_proportional_columns_is_not_taken_for_rounding() -> None:
    _, views = units(300)
    clicks = views * (1 + 1e-4 * np.random.default_rng(1).normal(size=300))
    arm = ratio_arm(state(clicks, views), *COLUMNS)
    linearised = (clicks - arm.mean * views) / views.mean()
    # The variance is 1e-8 of its terms, which leaves 8 of their 16 digits.
    assert arm.variance == pytest.approx(np.var(linearised, ddof=1), rel=1e-6, abs=0)


def test_a_ratio_over_nothing_is_nan() -> None:
    for undefined in (
        state(np.ones(3), np.zeros(3)),
        Moments.empty(COLUMNS),
        state(np.ones(2), np.array([-1.0, 1.0])),
    ):
        arm = ratio_arm(undefined, *COLUMNS)
        assert arm.n == undefined.n
        assert isnan(arm.mean)
        assert isnan(arm.variance)


def test_one_unit_has_a_ratio_but_no_variance() -> None:
    arm = ratio_arm(state(np.array([1.0]), np.array([4.0])), *COLUMNS)
    assert arm[:2] == (1, 0.25)
    assert isnan(arm.variance)


def test_an_unknown_column_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'rows'"):
        ratio_arm(Moments.empty(COLUMNS), "clicks", "rows")
