from math import inf, isnan, nan, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mltrust.stats.means import Arm, Margin, non_inferiority, welch
from mltrust.stats.power import critical_width, mde, mde_beyond, power_at, power_beyond, sample_size

LEVELS = st.floats(0.001, 0.2)
POWERS = st.floats(0.3, 0.99)
SIZES = st.floats(1e-6, 1e6)
SIDES = st.sampled_from([1, 2])


def test_the_minimum_detectable_effect_is_the_textbooks() -> None:
    assert mde(std_error=1) == pytest.approx(1.959964 + 0.841621, abs=1e-6)
    assert mde(std_error=1, sides=1) == pytest.approx(1.644854 + 0.841621, abs=1e-6)
    assert mde_beyond(half_width=3, std_error=1) == pytest.approx(3.841621, abs=1e-6)


@given(SIZES, LEVELS, POWERS, SIDES)
def test_power_is_the_inverse_of_the_minimum_detectable_effect(
    std_error: float, alpha: float, power: float, sides: int
) -> None:
    effect = mde(std_error=std_error, alpha=alpha, power=power, sides=sides)
    assert power_at(effect, std_error=std_error, alpha=alpha, sides=sides) == pytest.approx(power, rel=1e-12)
    beyond = mde_beyond(half_width=3 * std_error, std_error=std_error, power=power)
    assert power_beyond(beyond, half_width=3 * std_error, std_error=std_error) == pytest.approx(power, rel=1e-12)


@given(SIZES, SIZES, st.floats(0.05, 0.5), st.floats(0.05, 0.5), LEVELS, POWERS, SIDES)
def test_a_sample_size_has_its_effect_as_minimum_detectable_one(
    v_c: float, v_t: float, share_c: float, share_t: float, alpha: float, power: float, sides: int
) -> None:
    n = sample_size(
        effect=0.3,
        variance_control=v_c,
        variance_treatment=v_t,
        share_control=share_c,
        share_treatment=share_t,
        alpha=alpha,
        power=power,
        sides=sides,
    )
    std_error = sqrt(v_c / (n * share_c) + v_t / (n * share_t))
    assert mde(std_error=std_error, alpha=alpha, power=power, sides=sides) == pytest.approx(0.3, rel=1e-12)


def test_half_the_effect_takes_four_times_the_units() -> None:
    n = [sample_size(effect=effect, variance_control=4, variance_treatment=5) for effect in (0.1, 0.05, -0.05)]
    assert n[1:] == pytest.approx([4 * n[0]] * 2)


def test_no_effect_is_found_by_chance_alone_and_by_no_number_of_units() -> None:
    assert power_at(0, std_error=1) == pytest.approx(0.025)
    assert power_at(0, std_error=1, sides=1) == pytest.approx(0.05)
    assert sample_size(effect=0, variance_control=1, variance_treatment=1) == inf


def test_two_sides_take_the_size_of_an_effect_and_one_side_its_sign() -> None:
    assert power_at(-3, std_error=1) == power_at(3, std_error=1) > 0.8
    assert power_at(-3, std_error=1, sides=1) < 1e-5


@pytest.mark.parametrize("std_error", [0, nan, -1])
def test_without_a_standard_error_there_is_no_power(std_error: float) -> None:
    assert isnan(mde(std_error=std_error))
    assert isnan(mde_beyond(half_width=1, std_error=std_error))
    assert isnan(power_at(1, std_error=std_error))
    assert isnan(power_beyond(1, half_width=1, std_error=std_error))
    assert isnan(critical_width(std_error=std_error))


def test_what_is_undefined_stays_so() -> None:
    assert isnan(power_at(nan, std_error=1))
    assert isnan(mde_beyond(half_width=nan, std_error=1))
    assert isnan(sample_size(effect=nan, variance_control=1, variance_treatment=1))
    assert isnan(sample_size(effect=1, variance_control=nan, variance_treatment=1))
    assert isnan(sample_size(effect=1, variance_control=0, variance_treatment=0))


@pytest.mark.parametrize("share", [0, 1, -0.1, nan])
def test_alpha_and_power_lie_between_zero_and_one(share: float) -> None:
    with pytest.raises(ValueError, match="alpha lies between 0 and 1"):
        mde(std_error=1, alpha=share)
    with pytest.raises(ValueError, match="power lies between 0 and 1"):
        mde(std_error=1, power=share)


@pytest.mark.parametrize(("control", "treatment"), [(0, 0.5), (0.5, 0), (0.6, 0.5), (nan, 0.5)])
def test_shares_of_units_are_positive_and_at_most_one_together(control: float, treatment: float) -> None:
    with pytest.raises(ValueError, match="shares"):
        sample_size(
            effect=1,
            variance_control=1,
            variance_treatment=1,
            share_control=control,
            share_treatment=treatment,
        )


RUNS = 20_000


def assert_power(found: list[bool], power: float) -> None:
    low, high = stats.binom.interval(0.999, len(found), power)
    assert low <= sum(found) <= high


def drawn(rng: np.random.Generator, n: int, mean: float, sd: float) -> list[Arm]:
    means, variances = rng.normal(mean, sd / sqrt(n), RUNS), sd**2 * rng.chisquare(n - 1, RUNS) / (n - 1)
    return [Arm(n, *each) for each in zip(means.tolist(), variances.tolist(), strict=True)]


@pytest.mark.slow
def test_welchs_test_finds_an_effect_in_planned_units_as_often_as_promised() -> None:
    n = sample_size(
        effect=0.5, variance_control=4, variance_treatment=9, share_control=0.6, share_treatment=0.3, power=0.9
    )
    rng = np.random.default_rng(1)
    control, treatment = drawn(rng, round(0.6 * n), 10.0, 2.0), drawn(rng, round(0.3 * n), 10.5, 3.0)
    pvalues = [welch(control=c, treatment=t).pvalue for c, t in zip(control, treatment, strict=True)]
    assert_power([p < 0.05 for p in pvalues], 0.9)


def test_no_effect_passes_its_margin_as_often_as_promised() -> None:
    std_error = sqrt(4 / 600 + 4 / 600)
    margin = Margin(absolute=mde(std_error=std_error, power=0.8, sides=1))
    rng = np.random.default_rng(2)
    control, treatment = drawn(rng, 600, 10.0, 2.0), drawn(rng, 600, 10.0, 2.0)
    pvalues = [
        non_inferiority(control=c, treatment=t, margin=margin, increase_is_good=True).pvalue
        for c, t in zip(control, treatment, strict=True)
    ]
    assert_power([p < 0.05 for p in pvalues], 0.8)
