"""Quantiles of two arms against published values."""

from math import sqrt

from mltrust.stats.quantiles import Quantile, compare_quantiles, quantile_std_error
from tests.oracle.test_experiment import close, entry


def arm(n: int, value: float, low: float, high: float) -> Quantile:
    """An arm of GrowthBook's: n independent rows, their quantile, and the limits of its interval at 95 %."""
    iid = 0.9 * 0.1 / n
    std_error = quantile_std_error(low=low, high=high, cluster_variance=iid, iid_variance=iid)
    # GrowthBook takes (n - 1)/n of the variance, 1 - 9e-5 here.
    return Quantile(n, n, 0.9, value, std_error * sqrt((n - 1) / n), 1.0, "")


def test_the_90th_percentiles_of_growthbook_have_its_difference_and_standard_error() -> None:
    oracle = entry("quantile", "gb_p90")
    result = compare_quantiles(control=arm(*oracle["c"]), treatment=arm(*oracle["t"]))
    assert (result.effect, result.std_error, result.rel_effect) == close((oracle["abs"], oracle["se"], oracle["rel"]))


def test_the_relative_interval_has_the_delta_methods_width_of_growthbook() -> None:
    oracle = entry("quantile", "gb_p90")
    # Fieller's half width over its critical value c tends to the delta method's standard error as c goes to 0,
    # here c = 0.00125, with an error of the order of c² times the squared coefficient of variation, 1e-11.
    result = compare_quantiles(control=arm(*oracle["c"]), treatment=arm(*oracle["t"]), alpha=0.999)
    critical = (result.ci_high - result.effect) / result.std_error
    assert (result.rel_ci_high - result.rel_ci_low) / 2 / critical == close(oracle["rel_se"])


def test_without_the_factor_of_growthbook_the_standard_error_is_larger_by_a_row_in_20_000() -> None:
    oracle = entry("quantile", "gb_p90")
    arms = [arm(*oracle[each]) for each in "ct"]
    arms = [each._replace(std_error=each.std_error / sqrt((each.n_rows - 1) / each.n_rows)) for each in arms]
    result = compare_quantiles(control=arms[0], treatment=arms[1])
    assert result.std_error / oracle["se"] - 1 == close(4.56e-5, rel=1e-2)
