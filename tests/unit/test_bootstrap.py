from math import isnan, sqrt

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from mltrust.states.moments import FloatArray, Moments
from mltrust.states.replicates import Replicates, delete_a_bucket, poisson
from mltrust.stats.bootstrap import (
    Resampled,
    bootstrap,
    jackknife,
    jackknife_covariance,
    percentiles,
    resampled,
    resampled_mean,
    resampled_ratio,
    resampled_total,
)
from mltrust.stats.means import mean_arm, welch
from mltrust.stats.ratios import ratio_arm

REL = 1e-9  # of other programs' floats, which take other sums in another order
COLUMNS = ("y", "d")


def units(n: int, *, first: int = 0) -> NDArray[np.uint64]:
    return np.arange(first, first + n, dtype=np.uint64)


def sample(rng: np.random.Generator, n: int, rate: float = 0.3) -> FloatArray:
    """Clicks y and views d of n units, some of which click more than others."""
    views = 1 + rng.poisson(4, n)
    return np.column_stack([rng.binomial(views, rng.beta(4 * rate, 4 * (1 - rate), n)), views]).astype(float)


def without_each(values: FloatArray) -> Replicates:
    return Replicates.of(COLUMNS, values, 1 - np.eye(len(values)))


def test_a_jackknife_over_pairs_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(1)
    c = rng.gamma(2, 3, (40, 2))
    t = c + rng.normal(0.5, 2, (40, 2))
    # Unit i of both arms is left out together, as a bucket is.
    arms = [resampled_mean(without_each(values), "y") for values in (c, t)]
    result = jackknife(control=arms[0], treatment=arms[1], alpha=0.1)
    expected = stats.ttest_rel(t[:, 0], c[:, 0])
    assert (result.statistic, result.df, result.pvalue) == pytest.approx(
        (expected.statistic, expected.df, expected.pvalue), rel=REL
    )
    assert (result.ci_low, result.ci_high) == pytest.approx(expected.confidence_interval(0.9), rel=REL)


def test_the_jackknife_covariance_of_means_is_the_one_in_closed_form() -> None:
    values = np.random.default_rng(2).gamma(2, 3, (50, 2))
    estimates = without_each(values).sums[1:, 1:] / 49
    np.testing.assert_allclose(jackknife_covariance(estimates), np.cov(values, rowvar=False) / 50, rtol=1e-9)


def test_the_jackknife_of_one_group_is_nan() -> None:
    assert np.isnan(jackknife_covariance(np.ones((1, 2)))).all()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_standard_errors_of_means_and_ratios_are_those_in_closed_form(seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = sample(rng, 3000), sample(rng, 2000, 0.33)
    moments = [Moments.of(COLUMNS, values) for values in samples]
    hashes = units(3000), units(2000, first=3000)
    drawn = [poisson(COLUMNS, *each, seed=seed) for each in zip(samples, hashes, strict=True)]
    left_out = [delete_a_bucket(COLUMNS, *each, seed=seed) for each in zip(samples, hashes, strict=True)]
    for states, compare, error in ((drawn, bootstrap, 1 / sqrt(2 * 1000)), (left_out, jackknife, 1 / sqrt(2 * 63))):
        for to_arm, to_resampled in (
            (lambda state: mean_arm(state, "y"), lambda state: resampled_mean(state, "y")),
            (lambda state: ratio_arm(state, *COLUMNS), lambda state: resampled_ratio(state, *COLUMNS)),
        ):
            expected = welch(control=to_arm(moments[0]), treatment=to_arm(moments[1]))
            control, treatment = map(to_resampled, states)
            result = compare(control=control, treatment=treatment)
            assert (result.mean_control, result.mean_treatment, result.effect) == pytest.approx(
                (expected.mean_control, expected.mean_treatment, expected.effect), rel=REL
            )
            # A standard deviation of B values is off by 1 / sqrt(2B), of G groups by 1 / sqrt(2(G - 1)).
            assert result.std_error == pytest.approx(expected.std_error, rel=4 * error)


def test_the_bootstrap_is_that_of_scipy() -> None:
    rng = np.random.default_rng(4)
    values = rng.gamma(1, 3, (1000, 1))
    state = poisson(("y",), values, units(1000), seed=4, n_replicates=2000)
    arm = resampled_mean(state, "y")
    other = stats.bootstrap((values[:, 0],), np.mean, n_resamples=2000, method="percentile", rng=rng, batch=100)
    error = 4 * sqrt(2 / (2 * 2000))
    assert arm.replicates.std(ddof=1) == pytest.approx(other.standard_error, rel=error)
    nothing = Resampled(1000, 0.0, np.zeros(2000))
    result = percentiles(control=nothing, treatment=arm)
    # A quantile at 0.025 of B values is off by sqrt(0.025·0.975/B)/phi(1.96) of a standard error.
    limit = 4 * sqrt(2 * 0.025 * 0.975 / 2000) / stats.norm.pdf(1.96) * other.standard_error
    assert result.ci_low == pytest.approx(other.confidence_interval.low, abs=limit)
    assert result.ci_high == pytest.approx(other.confidence_interval.high, abs=limit)


def test_a_total_varies_as_the_mean_times_the_number_of_units() -> None:
    state = poisson(COLUMNS, sample(np.random.default_rng(5), 500), units(500), seed=5)
    total, mean = resampled_total(state, "y"), resampled_mean(state, "y")
    assert (total.n, total.value) == (500, state.sums[0, 1])
    np.testing.assert_allclose(total.replicates, 500 * mean.replicates, rtol=1e-12)


def test_a_tiny_pvalue_comes_from_the_standard_error_and_not_from_replicates() -> None:
    rng = np.random.default_rng(6)
    samples = rng.normal(5, 1, (400, 2)), rng.normal(6, 1, (400, 2))
    states = [
        poisson(COLUMNS, values, units(400, first=at), seed=6) for at, values in zip((0, 400), samples, strict=True)
    ]
    control, treatment = (resampled_mean(state, "y") for state in states)
    result = bootstrap(control=control, treatment=treatment)
    assert result.df == 798
    assert result.pvalue == pytest.approx(2 * stats.t.sf(result.effect / result.std_error, 798), rel=REL, abs=0)
    assert 0 < result.pvalue < 1e-20
    read = percentiles(control=control, treatment=treatment)
    assert (read.n_replicates, read.pvalue) == (1000, 2 / 1000)
    assert 0 < read.ci_low < result.effect < read.ci_high
    assert 0 < read.rel_ci_low < result.rel_effect < read.rel_ci_high


def test_percentiles_are_read_from_the_replicates() -> None:
    control = Resampled(100, 10.0, np.full(200, 10.0))
    treatment = Resampled(100, 11.0, 10 + np.linspace(-1, 3, 200))
    result = percentiles(control=control, treatment=treatment, alpha=0.1)
    assert (result.ci_low, result.ci_high) == pytest.approx((-1 + 4 * 0.05, 3 - 4 * 0.05))
    assert (result.rel_ci_low, result.rel_ci_high) == pytest.approx((result.ci_low / 10, result.ci_high / 10))
    assert result.pvalue == 2 * 50 / 200


def test_the_pvalue_of_replicates_that_are_all_0_is_1() -> None:
    arm = Resampled(100, 1.0, np.ones(200))
    assert percentiles(control=arm, treatment=arm).pvalue == 1


def test_limits_beyond_all_replicates_are_nan() -> None:
    rng = np.random.default_rng(7)
    control, treatment = (Resampled(100, 1.0, rng.normal(1, 0.1, 100)) for _ in range(2))
    assert not isnan(percentiles(control=control, treatment=treatment, alpha=0.02).ci_low)
    few = percentiles(control=control, treatment=treatment, alpha=0.01)
    assert isnan(few.ci_low)
    assert isnan(few.rel_ci_high)
    assert few.pvalue > 0


def test_a_replicate_without_a_value_leaves_no_standard_error() -> None:
    # One unit in ten has a view, and some replicates draw none of them.
    values = np.column_stack([np.ones(10), np.eye(10)[0]])
    state = poisson(COLUMNS, values, units(10), seed=8)
    arm = resampled_ratio(state, *COLUMNS)
    assert arm.value == 10
    assert np.isnan(arm.replicates).any()
    for compare in (bootstrap, jackknife):
        result = compare(control=arm, treatment=arm)
        assert result.effect == 0
        assert isnan(result.std_error)
        assert isnan(result.pvalue)
    read = percentiles(control=arm, treatment=arm)
    assert all(isnan(value) for value in read[1:])


@pytest.mark.parametrize("n", [0, 1])
def test_arms_without_units_are_nan(n: int) -> None:
    arm = resampled_mean(poisson(COLUMNS, np.ones((n, 2)), units(n), seed=9), "y")
    assert isnan(bootstrap(control=arm, treatment=arm).pvalue)
    assert isnan(percentiles(control=arm, treatment=arm).pvalue)


def test_constants_have_no_standard_error_however_they_are_rounded() -> None:
    for reduce in (poisson, delete_a_bucket):
        states = [
            reduce(("y",), np.full((3000, 1), value), units(3000, first=at), seed=10)
            for at, value in ((0, 0.1), (3000, 0.3))
        ]
        control, treatment = (resampled_mean(state, "y") for state in states)
        assert np.ptp(control.replicates) > 0
        result = (bootstrap if reduce is poisson else jackknife)(control=control, treatment=treatment)
        assert result.effect == pytest.approx(0.2)
        assert isnan(result.pvalue)


def test_an_offset_of_a_million_standard_errors_keeps_the_standard_error() -> None:
    values = np.random.default_rng(11).normal(0, 1, (1000, 1))
    arms = [resampled_mean(poisson(("y",), values + offset, units(1000), seed=11), "y") for offset in (0.0, 1e6)]
    nothing = Resampled(1000, 0.0, np.zeros(1000))
    near, far = (bootstrap(control=nothing, treatment=arm).std_error for arm in arms)
    assert far == pytest.approx(near, rel=1e-6)


def test_arms_that_share_units_count_their_covariance() -> None:
    rng = np.random.default_rng(12)
    c = rng.normal(10, 5, (2000, 1))
    t = c + rng.normal(0, 1, (2000, 1))
    control, treatment = (resampled_mean(poisson(("y",), values, units(2000), seed=12), "y") for values in (c, t))
    result = bootstrap(control=control, treatment=treatment)
    assert result.std_error == pytest.approx(stats.sem(t - c)[0], rel=4 / sqrt(2000))


def test_any_statistic_of_sums_can_be_compared() -> None:
    rng = np.random.default_rng(13)
    columns = ("y", "squares")
    arms = []
    for at in (0, 4000):
        y = rng.normal(3, 2, 4000)
        state = poisson(columns, np.column_stack([y, y * y]), units(4000, first=at), seed=13)

        def spread(state: Replicates) -> FloatArray:
            mean, squares = (state.column(column) / state.column("units") for column in columns)
            return np.sqrt(squares - mean * mean)

        arms.append(resampled(state, spread))
    result = bootstrap(control=arms[0], treatment=arms[1])
    # The standard deviation of n normal values is off by sd / sqrt(2n).
    assert result.std_error == pytest.approx(2 / sqrt(2 * 4000) * sqrt(2), rel=0.15)


def test_arms_of_other_replicates_cannot_be_compared() -> None:
    arms = [Resampled(10, 1.0, np.ones(B)) for B in (5, 6)]
    for compare in (bootstrap, jackknife, percentiles):
        with pytest.raises(ValueError, match=r"\(5,\) and \(6,\)"):
            compare(control=arms[0], treatment=arms[1])


def rejections(compare: type[bootstrap], runs: int) -> float:
    """Share of p < 0.05 among experiments without an effect on clicks per view, of 300 and 200 units."""
    rng, pvalues = np.random.default_rng(14), []
    for run in range(runs):
        arms = []
        for n, first in ((300, 1000 * run), (200, 1000 * run + 300)):
            options = {"n_replicates": 200} if compare is bootstrap else {"n_buckets": 64}
            reduce = poisson if compare is bootstrap else delete_a_bucket
            state = reduce(COLUMNS, sample(rng, n), units(n, first=first), seed=14, **options)
            arms.append(resampled_ratio(state, *COLUMNS))
        pvalues.append(compare(control=arms[0], treatment=arms[1]).pvalue)
    return float(np.mean(np.array(pvalues) < 0.05))


@pytest.mark.slow
@pytest.mark.parametrize("compare", [bootstrap, jackknife])
def test_clicks_per_view_without_an_effect_are_rejected_at_the_level(compare: type[bootstrap]) -> None:
    runs = 2000
    low, high = stats.binom.interval(0.999, runs, 0.05)
    assert low <= runs * rejections(compare, runs) <= high
