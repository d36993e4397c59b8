"""Power of experiments against published values and statsmodels."""

import pytest
from scipy import special
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import samplesize_proportions_2indep_onetail

from mltrust.stats.power import mde, power_at, sample_size
from tests.oracle.test_experiment import close, entry


def test_the_power_is_within_two_points_of_the_t_test_of_r() -> None:
    oracle = entry("power", "R_ttest_power")
    std_error = (2 / oracle["n"]) ** 0.5
    assert power_at(oracle["d"], std_error=std_error) == pytest.approx(oracle["power"], abs=0.02)
    for_90 = (2 / oracle["n_for_.9"]) ** 0.5
    assert power_at(oracle["d"], std_error=for_90) == pytest.approx(0.9, abs=0.02)


def test_the_sample_size_is_that_of_evan_millers_calculator() -> None:
    oracle = entry("power", "evan_miller")
    base, raised = oracle["base"], oracle["base"] + oracle["mde_abs"]
    # Two-sided 5 %, power 80 %, units per arm. Without an effect both arms have the variance of the base.
    n = sample_size(
        effect=oracle["mde_abs"],
        variance_control=base * (1 - base),
        variance_treatment=raised * (1 - raised),
        variance_null=base * (1 - base),
    )
    assert n / 2 == close(oracle["n"])


@pytest.mark.parametrize("ratio", [1, 0.25, 3])
@pytest.mark.parametrize(("alternative", "sides"), [("two-sided", 2), ("larger", 1)])
def test_power_and_sample_size_are_those_of_statsmodels(ratio: float, alternative: str, sides: int) -> None:
    # So large an effect is less than once in 1e9 significant with the wrong sign, which statsmodels counts as found.
    found = NormalIndPower().power(0.8, 100, 0.01, ratio=ratio, alternative=alternative)
    std_error = (1 / 100 + 1 / (100 * ratio)) ** 0.5
    assert power_at(0.8, std_error=std_error, alpha=0.01, sides=sides) == close(found, rel=1e-8)
    n = NormalIndPower().solve_power(0.2, None, 0.05, 0.9, ratio=ratio, alternative=alternative)
    total = sample_size(
        effect=0.2,
        variance_control=1,
        variance_treatment=1,
        share_control=1 / (1 + ratio),
        share_treatment=ratio / (1 + ratio),
        power=0.9,
        sides=sides,
    )
    # That of an iterative solver.
    assert total / (1 + ratio) == close(n, rel=1e-6)


@pytest.mark.parametrize("ratio", [1, 0.25, 3])
def test_the_sample_size_of_shares_is_that_of_statsmodels(ratio: float) -> None:
    base, difference = 0.05, 0.01
    expected = samplesize_proportions_2indep_onetail(difference, base, 0.8, ratio=ratio, alpha=0.05)
    # statsmodels takes the variance without an effect at the share of both arms together, and gives the units of
    # the arm with the share base + difference, of which the other has `ratio` times as many.
    average = base + difference / (1 + ratio)
    total = sample_size(
        effect=difference,
        variance_control=base * (1 - base),
        variance_treatment=(base + difference) * (1 - base - difference),
        share_control=ratio / (1 + ratio),
        share_treatment=1 / (1 + ratio),
        variance_null=average * (1 - average),
    )
    assert total / (1 + ratio) == close(expected)


def test_the_minimum_detectable_effect_has_both_quantiles() -> None:
    assert mde(std_error=1, alpha=0.1, power=0.7) == close(special.ndtri(0.95) + special.ndtri(0.7))
