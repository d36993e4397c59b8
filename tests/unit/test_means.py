from dataclasses import replace
from math import inf, isnan, nan

import numpy as np
import pandas as pd
import pytest
import tea_tasting as tt
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import confint_proportions_2indep, proportions_ztest
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from mltrust.states.moments import FloatArray, Moments
from mltrust.stats.means import Arm, Margin, fieller, mean_arm, non_inferiority, proportion, welch

REL = 1e-9  # of other programs' floats, which take other sums in another order


def arm(sample: FloatArray) -> Arm:
    return mean_arm(Moments.of(("y",), sample[:, None]), "y")


@pytest.fixture(params=[1, 2, 3])
def two_samples(request: pytest.FixtureRequest) -> tuple[FloatArray, FloatArray]:
    rng = np.random.default_rng(request.param)
    return rng.gamma(2, 3, size=20 * request.param), rng.gamma(2, 4, size=35)


arms = st.builds(
    Arm,
    n=st.integers(2, 10_000),
    mean=st.floats(-100, 100),
    variance=st.floats(0, 1e4, allow_subnormal=False),
)


def test_welch_is_that_of_scipy_and_statsmodels(two_samples: tuple[FloatArray, FloatArray]) -> None:
    c, t = two_samples
    result = welch(control=arm(c), treatment=arm(t), alpha=0.1)
    scipy = stats.ttest_ind(t, c, equal_var=False)
    assert (result.statistic, result.df, result.pvalue) == pytest.approx(
        (scipy.statistic, scipy.df, scipy.pvalue), rel=REL
    )
    assert (result.ci_low, result.ci_high) == pytest.approx(scipy.confidence_interval(0.9), rel=REL)
    other = CompareMeans(DescrStatsW(t), DescrStatsW(c))
    assert (result.statistic, result.pvalue, result.df) == pytest.approx(other.ttest_ind(usevar="unequal"), rel=REL)
    assert result.std_error == pytest.approx(other.std_meandiff_separatevar, rel=REL)


def test_welch_is_that_of_tea_tasting(two_samples: tuple[FloatArray, FloatArray]) -> None:
    c, t = two_samples
    data = pd.DataFrame({"y": [*c, *t], "variant": [0] * len(c) + [1] * len(t)})
    other = tt.Mean("y", use_t=True, equal_var=False).analyze(data, 0, 1, "variant")
    result = welch(control=arm(c), treatment=arm(t))
    assert (
        result.mean_control,
        result.mean_treatment,
        result.effect,
        result.ci_low,
        result.ci_high,
        result.rel_effect,
        result.pvalue,
        result.statistic,
    ) == pytest.approx(
        (
            other.control,
            other.treatment,
            other.effect_size,
            other.effect_size_ci_lower,
            other.effect_size_ci_upper,
            other.rel_effect_size,
            other.pvalue,
            other.statistic,
        ),
        rel=REL,
    )


def test_welch_takes_the_degrees_of_freedom_of_buckets() -> None:
    control, treatment = Arm(20, 1.0, 0.3), Arm(20, 1.2, 0.5)
    result = welch(control=control, treatment=treatment, df=38)
    assert result.df == 38
    assert result.pvalue == pytest.approx(2 * stats.t.sf(abs(result.statistic), 38), rel=REL)
    normal = welch(control=control, treatment=treatment, df=inf)
    assert normal.pvalue == pytest.approx(2 * stats.norm.sf(abs(normal.statistic)), rel=REL)


def test_a_tiny_pvalue_keeps_its_digits() -> None:
    result = welch(control=Arm(10_000, 0.0, 1.0), treatment=Arm(10_000, 0.5, 1.0))
    assert result.pvalue == pytest.approx(2 * stats.t.sf(result.statistic, result.df), rel=REL, abs=0)
    assert 0 < result.pvalue < 1e-200


@settings(deadline=None)
@given(arms, arms, st.floats(0.001, 0.5))
def test_the_relative_interval_excludes_zero_exactly_when_the_absolute_one_does(
    control: Arm, treatment: Arm, alpha: float
) -> None:
    result = welch(control=control, treatment=treatment, alpha=alpha)
    if isnan(result.rel_ci_low) or min(abs(result.ci_low), abs(result.ci_high)) < 1e-9 * result.std_error:
        return
    rejects = result.pvalue < alpha
    assert rejects == (result.ci_low > 0 or result.ci_high < 0)
    assert rejects == (result.rel_ci_low > 0 or result.rel_ci_high < 0)
    assert result.rel_ci_low <= result.rel_effect * (1 + 1e-9 * (1 if result.rel_effect > 0 else -1))


@settings(deadline=None)
@given(arms, arms, st.floats(1.0, 4.0))
def test_fieller_limits_are_where_the_shifted_test_is_at_its_critical_value(
    control: Arm, treatment: Arm, critical: float
) -> None:
    effect = treatment.mean - control.mean
    variance = control.mean_variance + treatment.mean_variance
    low, high, g = fieller(
        effect=effect,
        effect_variance=variance,
        mean=control.mean,
        mean_variance=control.mean_variance,
        critical=critical,
    )
    if not g < 0.99:  # nearer to 1 the limits have no digits left to check
        return
    for limit in (low, high):
        factor = 1 + limit
        difference = treatment.mean - factor * control.mean
        bound = critical**2 * (treatment.mean_variance + factor**2 * control.mean_variance)
        assert difference**2 == pytest.approx(bound, rel=1e-6, abs=1e-9 * treatment.mean**2 + 1e-12)


def test_a_relative_effect_over_a_mean_near_zero_has_no_interval() -> None:
    result = welch(control=Arm(100, 0.01, 1.0), treatment=Arm(100, 5.0, 1.0))
    assert result.pvalue < 1e-12
    assert result.rel_effect == pytest.approx(499)
    assert isnan(result.rel_ci_low)
    assert isnan(result.rel_ci_high)
    assert fieller(effect=5, effect_variance=0.02, mean=0.01, mean_variance=0.01, critical=1.96).g > 1


def test_a_relative_effect_over_zero_is_nan() -> None:
    result = welch(control=Arm(100, 0.0, 1.0), treatment=Arm(100, 5.0, 1.0))
    assert result.effect == 5
    assert isnan(result.rel_effect)
    assert isnan(result.rel_ci_low)
    assert isnan(result.rel_ci_high)


def test_fieller_of_nan_is_nan() -> None:
    for unknown in ("effect", "effect_variance", "mean", "mean_variance", "critical"):
        known = {"effect": 1.0, "effect_variance": 0.1, "mean": 5.0, "mean_variance": 0.1, "critical": 2.0}
        low, high, _ = fieller(**(known | {unknown: nan}))
        assert isnan(low)
        assert isnan(high)


@pytest.mark.parametrize("test", [welch, proportion])
@pytest.mark.parametrize(
    ("control", "treatment"),
    [
        (Arm(0, nan, nan), Arm(0, nan, nan)),
        (Arm(0, nan, nan), Arm(10, 0.5, 0.25)),
        (Arm(1, 0.0, nan), Arm(10, 0.5, 0.25)),
        (Arm(10, 0.5, 0.25), Arm(1, 1.0, 0.0)),
        (Arm(10, 0.0, 0.0), Arm(10, 0.0, 0.0)),
        (Arm(10, 1.0, 0.0), Arm(10, 1.0, 0.0)),
    ],
)
def test_an_undefined_test_is_nan(test: type[welch], control: Arm, treatment: Arm) -> None:
    result = test(control=control, treatment=treatment)
    assert (result.n_control, result.n_treatment) == (control.n, treatment.n)
    undefined = (result.std_error, result.statistic, result.pvalue, result.ci_low, result.ci_high)
    assert all(isnan(value) for value in undefined)
    margin = Margin(absolute=0.1)
    assert isnan(non_inferiority(control=control, treatment=treatment, margin=margin, increase_is_good=True).pvalue)


def test_one_arm_without_variance_leaves_the_other_arms_degrees_of_freedom() -> None:
    result = welch(control=Arm(10, 1.0, 0.0), treatment=Arm(20, 2.0, 1.0))
    assert result.df == pytest.approx(19)
    assert 0 < result.pvalue < 1


@pytest.mark.parametrize(("x_c", "n_c", "x_t", "n_t"), [(30, 100, 25, 60), (7, 500, 21, 480), (0, 50, 3, 40)])
def test_proportion_is_that_of_statsmodels_and_tea_tasting(x_c: int, n_c: int, x_t: int, n_t: int) -> None:
    control, treatment = (arm(np.repeat([1.0, 0.0], [x, n - x])) for x, n in ((x_c, n_c), (x_t, n_t)))
    result = proportion(control=control, treatment=treatment)
    assert (result.statistic, result.pvalue) == pytest.approx(proportions_ztest([x_t, x_c], [n_t, n_c]), rel=REL)
    interval = confint_proportions_2indep(x_t, n_t, x_c, n_c, method="wald", compare="diff")
    assert (result.ci_low, result.ci_high) == pytest.approx(interval, rel=REL)
    data = pd.DataFrame(
        {
            "y": np.repeat([1, 0, 1, 0], [x_c, n_c - x_c, x_t, n_t - x_t]),
            "variant": np.repeat([0, 1], [n_c, n_t]),
        }
    )
    if x_c:
        other = tt.Proportion("y", method="norm", correction=False).analyze(data, 0, 1, "variant")
        assert (result.effect, result.rel_effect, result.pvalue) == pytest.approx(
            (other.effect_size, other.rel_effect_size, other.pvalue), rel=REL
        )


def test_only_zeros_against_only_ones_has_a_test_but_no_interval() -> None:
    result = proportion(control=Arm(10, 0.0, 0.0), treatment=Arm(10, 1.0, 0.0))
    assert result.pvalue == pytest.approx(proportions_ztest([10, 0], [10, 10])[1], rel=REL)
    assert isnan(result.ci_low)


def test_a_proportion_outside_zero_and_one_is_refused() -> None:
    with pytest.raises(ValueError, match="1.2"):
        proportion(control=Arm(10, 0.5, 0.2), treatment=Arm(10, 1.2, 0.2))


@pytest.mark.parametrize("increase_is_good", [True, False])
def test_non_inferiority_is_scipys_one_sided_test_on_shifted_or_scaled_controls(
    two_samples: tuple[FloatArray, FloatArray], increase_is_good: bool
) -> None:
    c, t = two_samples
    worse = -1 if increase_is_good else 1
    for margin, limit in (
        (Margin(absolute=0.7), c + worse * 0.7),
        (Margin(relative=0.1), c * (1 + worse * 0.1)),
    ):
        result = non_inferiority(control=arm(c), treatment=arm(t), margin=margin, increase_is_good=increase_is_good)
        alternative = "greater" if increase_is_good else "less"
        scipy = stats.ttest_ind(t, limit, equal_var=False, alternative=alternative)
        assert (-worse * result.statistic, result.df, result.pvalue) == pytest.approx(
            (scipy.statistic, scipy.df, scipy.pvalue), rel=REL
        )


def test_non_inferiority_of_a_ratio_agrees_with_the_limit_of_fieller() -> None:
    control, treatment = Arm(400, 10.0, 9.0), Arm(380, 10.2, 16.0)
    interval = welch(control=control, treatment=treatment, alpha=0.1, df=100)
    at_limit = non_inferiority(
        control=control,
        treatment=treatment,
        margin=Margin(relative=-interval.rel_ci_low),
        increase_is_good=True,
        df=100,
    )
    assert at_limit.pvalue == pytest.approx(0.05, rel=REL)


def test_a_negative_mean_too_is_made_worse_by_a_relative_margin() -> None:
    profit = Arm(100, -10.0, 4.0)
    assert Margin(relative=0.1).limit(profit, increase_is_good=True).mean == pytest.approx(-11)
    assert Margin(relative=0.1).limit(profit, increase_is_good=False).mean == pytest.approx(-9)


@pytest.mark.parametrize(
    ("absolute", "relative"), [(None, None), (0.1, 0.1), (0.0, None), (-1.0, None), (None, nan), (inf, None)]
)
def test_a_margin_is_one_positive_number(absolute: float | None, relative: float | None) -> None:
    with pytest.raises(ValueError, match="one positive number"):
        Margin(absolute=absolute, relative=relative)


def test_a_margin_can_be_replaced_but_not_changed() -> None:
    assert replace(Margin(absolute=1.0), absolute=2.0) == Margin(absolute=2.0)
