from collections.abc import Callable, Iterator
from functools import partial, reduce
from math import isnan, nan
from operator import add

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mltrust.states.moments import FloatArray, Moments
from mltrust.stats.cuped import Cuped, Quantity, cuped, log_ratio
from mltrust.stats.means import Arm, fieller, mean_arm, welch
from mltrust.stats.ratios import ratio_arm
from tests.unit.test_calibration import assert_level

COLUMNS = ("y", "x1", "x2", "x3", "one")
Y, X1, X2, X3 = (Quantity(column) for column in COLUMNS[:4])
TRAFFIC = ("clicks", "views", "old_clicks", "old_views", "one")
CTR, OLD_CTR = Quantity("clicks", "views"), Quantity("old_clicks", "old_views")
# Sums in another order, and a regression that is solved otherwise: both lose some digits to the condition of x.
close = partial(pytest.approx, rel=1e-9)


def users(n: int, seed: int, *, lift: float = 0.0) -> FloatArray:
    """n units of y, three covariates that it depends on, and a constant 1."""
    rng = np.random.default_rng(seed)
    x1, x2 = rng.gamma(2, 2, n), rng.normal(50, 9, n)
    x3 = 0.3 * x2 + rng.poisson(2, n)
    y = 4 + lift + 0.7 * x1 + 0.1 * x2 - 0.4 * x3 + rng.gamma(1, 2, n)
    return np.column_stack([y, x1, x2, x3, np.ones(n)])


def traffic(n: int, seed: int) -> FloatArray:
    """n units of clicks and views after and before, and a constant 1; the click rate is the unit's own."""
    rng = np.random.default_rng(seed)
    rate, pace = rng.beta(2, 6, n), rng.gamma(2, 2, n)
    views, old_views = 1 + rng.poisson(pace), 1 + rng.poisson(pace)
    return np.column_stack([rng.binomial(views, rate), views, rng.binomial(old_views, rate), old_views, np.ones(n)])


CONTROL, TREATMENT = users(90, 1), users(60, 2, lift=1.0)
C, T = (Moments.of(COLUMNS, sample) for sample in (CONTROL, TREATMENT))
OLD, NEW = (Moments.of(TRAFFIC, traffic(n, seed)) for n, seed in ((300, 3), (200, 4)))


def regression(control: FloatArray, treatment: FloatArray, *columns: str) -> FloatArray:
    """Coefficients of least squares of y on arm, covariates and 1."""
    rows = np.vstack([control, treatment])
    arm = np.repeat([0.0, 1.0], [len(control), len(treatment)])
    design = np.column_stack([arm, *(rows[:, COLUMNS.index(column)] for column in columns), np.ones(len(rows))])
    return np.linalg.lstsq(design, rows[:, 0])[0]


def numbers(result: Cuped) -> tuple[float, ...]:
    return (*result.comparison[3:], result.variance_reduction)


@pytest.mark.parametrize("covariates", [[X1], [X2, X1], [X1, X2, X3]], ids=len)
def test_theta_and_effect_are_those_of_the_regression_on_arm_and_covariates(covariates: list[Quantity]) -> None:
    result = cuped(control=C, treatment=T, metric=Y, covariates=covariates)
    expected = regression(CONTROL, TREATMENT, *(each.numerator for each in covariates))
    assert (result.comparison.effect, *result.theta) == close(tuple(expected[:-1]))
    assert result.rank == len(covariates)


@pytest.mark.parametrize("covariates", [[X1], [X1, X2, X3]], ids=len)
def test_it_is_welchs_test_of_the_adjusted_values_of_the_units(covariates: list[Quantity]) -> None:
    result = cuped(control=C, treatment=T, metric=Y, covariates=covariates, alpha=0.1)
    indices = [COLUMNS.index(each.numerator) for each in covariates]
    centre = np.vstack([CONTROL, TREATMENT])[:, indices].mean(axis=0)
    arms = []
    for sample in (CONTROL, TREATMENT):
        values = sample[:, 0] - (sample[:, indices] - centre) @ np.array(result.theta)
        arms.append(Arm(len(values), float(values.mean()), float(values.var(ddof=1))))
    expected = welch(control=arms[0], treatment=arms[1], alpha=0.1)
    assert result.comparison[1:-2] == close(expected[1:-2])
    assert result.comparison.method == "cuped"
    assert (*result.control, *result.treatment) == close((*arms[0], *arms[1]))


def test_without_covariates_it_is_the_plain_test() -> None:
    result = cuped(control=C, treatment=T, metric=Y, covariates=[])
    plain = welch(control=mean_arm(C, "y"), treatment=mean_arm(T, "y"))
    assert result.comparison[1:] == close(plain[1:], rel=1e-12)
    assert result[1:4] == ((), 0, 0)
    ratio = cuped(control=OLD, treatment=NEW, metric=CTR, covariates=[])
    plain = welch(control=ratio_arm(OLD, "clicks", "views"), treatment=ratio_arm(NEW, "clicks", "views"))
    assert ratio.comparison[1:] == close(plain[1:])


def test_the_variance_reduction_is_that_of_the_effect() -> None:
    result = cuped(control=C, treatment=T, metric=Y, covariates=[X1, X2])
    plain = cuped(control=C, treatment=T, metric=Y, covariates=[])
    assert 0.3 < result.variance_reduction < 1
    kept = (result.comparison.std_error / plain.comparison.std_error) ** 2
    assert result.variance_reduction == close(1 - kept)


def test_a_theta_that_does_not_fit_makes_it_worse_and_says_so() -> None:
    result = cuped(control=C, treatment=T, metric=Y, covariates=[X1], theta=[-1.0])
    assert result.theta == (-1.0,)
    assert result.variance_reduction < -1


def test_a_theta_of_zero_changes_nothing() -> None:
    result = cuped(control=C, treatment=T, metric=Y, covariates=[X1, X2], theta=[0, 0])
    assert numbers(result) == close(numbers(cuped(control=C, treatment=T, metric=Y, covariates=[])), rel=1e-12)


def test_the_numbers_of_theta_are_those_of_the_covariates() -> None:
    with pytest.raises(ValueError, match="each of 2 covariates"):
        cuped(control=C, treatment=T, metric=Y, covariates=[X1, X2], theta=[0.5])


def test_only_the_two_arms_that_are_compared_make_theta() -> None:
    other = users(80, 5)
    other[:, 0] += 3 * other[:, 1]
    result = cuped(control=C, treatment=Moments.of(COLUMNS, other), metric=Y, covariates=[X1])
    assert result.theta[0] == close(regression(CONTROL, other, "x1")[1])
    assert result.theta[0] > 1.5 > cuped(control=C, treatment=T, metric=Y, covariates=[X1]).theta[0]


def test_a_denominator_of_one_is_no_denominator() -> None:
    plain = cuped(control=C, treatment=T, metric=Y, covariates=[X1, X2])
    over_one = [Quantity(each.numerator, "one") for each in (Y, X1, X2)]
    ratio = cuped(control=C, treatment=T, metric=over_one[0], covariates=over_one[1:])
    assert (*numbers(ratio), *ratio.theta) == close((*numbers(plain), *plain.theta))
    mixed = cuped(control=OLD, treatment=NEW, metric=CTR, covariates=[Quantity("old_clicks")])
    over_one = [Quantity("old_clicks", "one")]
    expected = cuped(control=OLD, treatment=NEW, metric=CTR, covariates=over_one)
    assert (*numbers(mixed), *mixed.theta) == close((*numbers(expected), *expected.theta))


@pytest.mark.parametrize("covariate", [OLD_CTR, Quantity("old_clicks", "one")], ids=["ratio", "mean"])
def test_theta_of_a_ratio_is_the_formula_of_covariances_of_ratios(covariate: Quantity) -> None:
    numerator = denominator = 0.0
    reduced = []
    for n, seed in ((300, 3), (200, 4)):
        # Moments over n, not n - 1: then n·rcov is the cross-product of linearised values within the arm.
        columns = dict(zip(TRAFFIC, traffic(n, seed).T, strict=True))
        names = ("clicks", "views", covariate.numerator, str(covariate.denominator))
        S = np.cov([columns[name] for name in names], ddof=0)
        a, b, c, e = (columns[name].mean() for name in names)
        R, Rx = a / b, c / e
        rcov = (S[0, 2] - S[0, 3] * Rx - S[1, 2] * R + S[1, 3] * R * Rx) / (b * e)
        rvar = (S[2, 2] - 2 * Rx * S[2, 3] + Rx * Rx * S[3, 3]) / (e * e)
        numerator, denominator = numerator + n * rcov, denominator + n * rvar
        own = (S[0, 0] - 2 * R * S[0, 1] + R * R * S[1, 1]) / (b * b)
        reduced.append((R, Rx, own, rcov, rvar, n))
    theta = numerator / denominator
    result = cuped(control=OLD, treatment=NEW, metric=CTR, covariates=[covariate])
    assert result.theta == close((theta,))
    (R_c, Rx_c, *_), (R_t, Rx_t, *_) = reduced
    assert result.comparison.effect == close(R_t - R_c - theta * (Rx_t - Rx_c))
    variance = sum((own + theta * theta * v - 2 * theta * k) / (n - 1) for _, _, own, k, v, n in reduced)
    assert result.comparison.std_error == close(variance**0.5)
    assert result.variance_reduction > 0.05


def test_the_mean_of_a_ratio_is_that_at_the_ratio_of_both_arms_together() -> None:
    result = cuped(control=OLD, treatment=NEW, metric=CTR, covariates=[OLD_CTR])
    both = ratio_arm(OLD + NEW, "old_clicks", "old_views").mean
    for arm, state in ((result.control, OLD), (result.treatment, NEW)):
        own, before = (ratio_arm(state, *each).mean for each in ((CTR[0], "views"), (OLD_CTR[0], "old_views")))
        assert arm.mean == close(own - result.theta[0] * (before - both), rel=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.floats(1e-9, 1e9), st.floats(-1e3, 1e3))
def test_neither_unit_nor_origin_of_a_covariate_changes_the_comparison(scale: float, origin: float) -> None:
    states = []
    for sample in (CONTROL, TREATMENT):
        moved = sample.copy()
        moved[:, 1] = scale * (moved[:, 1] + origin)
        states.append(Moments.of(COLUMNS, moved))
    result = cuped(control=states[0], treatment=states[1], metric=Y, covariates=[X1, X2, X3])
    expected = cuped(control=C, treatment=T, metric=Y, covariates=[X1, X2, X3])
    assert result.rank == 3
    assert numbers(result) == close(numbers(expected), rel=1e-9)
    assert result.theta[0] * scale == close(expected.theta[0], rel=1e-9)


def with_column(sample: FloatArray, column: FloatArray) -> Moments:
    """The last column replaced, and the state merged from parts as it is in production."""
    changed = np.column_stack([sample[:, :-1], column])
    return reduce(add, (Moments.of(COLUMNS, part) for part in np.array_split(changed, 7)))


@pytest.mark.parametrize(
    ("column", "rank"),
    [
        (lambda x: np.full(len(x), 0.1), 2),
        (lambda x: 0.1 + 1.4e-17 * (np.arange(len(x)) % 3), 2),
        (lambda x: np.zeros(len(x)), 2),
        (lambda x: 3 * x[:, 1] - 1e4, 2),
        (lambda x: x[:, 1] / 3 + 1e-7 * x[:, 2] + 0.7, 2),
        (lambda x: x[:, 1] + 1e-3 * np.arange(len(x)), 3),
    ],
    ids=["constant", "constant up to rounding", "zero", "of one", "of two", "nearly of one"],
)
def test_a_constant_or_collinear_covariate_leaves_the_result_of_fewer(
    column: Callable[[FloatArray], FloatArray], rank: int
) -> None:
    c, t = (with_column(sample, column(sample)) for sample in (CONTROL, TREATMENT))
    result = cuped(control=c, treatment=t, metric=Y, covariates=[X1, X2, Quantity("one")])
    fewer = cuped(control=c, treatment=t, metric=Y, covariates=[X1, X2])
    assert result.rank == rank
    # What is collinear up to rounding leaves its rounding, divided by how nearly collinear x1 and x2 are.
    same = numbers(result) == close(numbers(fewer), rel=1e-8)
    assert same == (rank == 2)


def test_a_ratio_that_is_the_same_for_every_unit_is_a_constant_covariate() -> None:
    c, t = (with_column(sample, 0.3 * sample[:, 2]) for sample in (CONTROL, TREATMENT))
    result = cuped(control=c, treatment=t, metric=Y, covariates=[X1, Quantity("one", "x2")])
    assert result.rank == 1
    assert numbers(result) == close(numbers(cuped(control=C, treatment=T, metric=Y, covariates=[X1])))


def test_only_constant_covariates_leave_the_plain_test() -> None:
    result = cuped(control=C, treatment=T, metric=Y, covariates=[Quantity("one"), Quantity("x1", "x1")])
    assert (result.theta, result.rank) == ((0, 0), 0)
    assert numbers(result) == close(numbers(cuped(control=C, treatment=T, metric=Y, covariates=[])), rel=1e-12)


def test_with_an_indicator_it_does_not_matter_which_value_stands_for_no_pre_period() -> None:
    results = []
    for filler in (0.0, 7.0):
        states = []
        for sample in (CONTROL, TREATMENT):
            new = np.arange(len(sample)) % 4 == 0
            x1 = np.where(new, filler, sample[:, 1])
            states.append(Moments.of(COLUMNS, np.column_stack([sample[:, 0], x1, new, sample[:, 3:]])))
        results.append(cuped(control=states[0], treatment=states[1], metric=Y, covariates=[X1, X2]))
    assert numbers(results[0]) == close(numbers(results[1]))
    assert results[0].theta[0] == close(results[1].theta[0])


def test_the_relative_interval_is_fiellers_over_the_adjusted_control_mean() -> None:
    result = cuped(control=C, treatment=T, metric=Y, covariates=[X1])
    comparison = result.comparison
    n, at = len(CONTROL) + len(TREATMENT), COLUMNS.index(X1.numerator)
    theta, samples = result.theta[0], (CONTROL, TREATMENT)
    within = sum(((sample[:, at] - sample[:, at].mean()) ** 2).sum() for sample in samples) / (n - 2)
    left = [theta * np.cov(sample[:, 0] - theta * sample[:, at], sample[:, at])[0, 1] for sample in samples]
    common = (theta**2 * within + 2 * left[0]) / n  # of the covariates' common mean
    assert comparison.rel_effect == close(comparison.effect / result.control.mean, rel=1e-12)
    low, high, g = fieller(
        effect=comparison.effect,
        effect_variance=comparison.std_error**2,
        mean=result.control.mean,
        mean_variance=result.control.variance / len(CONTROL) + common,
        critical=(comparison.ci_high - comparison.effect) / comparison.std_error,
        covariance=(left[1] - left[0]) / n - result.control.variance / len(CONTROL),
    )
    assert g < 0.1
    assert (comparison.rel_ci_low, comparison.rel_ci_high) == close((low, high))


def test_the_degrees_of_freedom_of_buckets_are_taken() -> None:
    result = cuped(control=C, treatment=T, metric=Y, covariates=[X1], df=48)
    assert result.comparison.df == 48


@pytest.mark.parametrize(("n_control", "n_treatment"), [(0, 0), (0, 60), (90, 0), (1, 60), (90, 1)])
@pytest.mark.parametrize(
    ("metric", "covariates"), [(Y, [X1]), (Quantity("y", "x2"), [Quantity("x1", "x3"), X2])], ids=["mean", "ratio"]
)
def test_an_arm_of_fewer_than_two_units_has_no_test(
    n_control: int, n_treatment: int, metric: Quantity, covariates: list[Quantity]
) -> None:
    c, t = Moments.of(COLUMNS, CONTROL[:n_control]), Moments.of(COLUMNS, TREATMENT[:n_treatment])
    result = cuped(control=c, treatment=t, metric=metric, covariates=covariates)
    comparison = result.comparison
    assert (comparison.n_control, comparison.n_treatment) == (n_control, n_treatment)
    undefined = (comparison.std_error, comparison.pvalue, comparison.ci_low, comparison.rel_ci_high)
    assert all(isnan(each) for each in (*undefined, result.variance_reduction))
    assert isnan(comparison.effect) == (0 in (n_control, n_treatment))


@pytest.mark.parametrize(
    ("metric", "covariates"), [(Quantity("y", "zero"), [X1]), (Y, [X1, Quantity("x2", "zero")])], ids=["y", "x"]
)
def test_a_denominator_of_zero_has_no_test(metric: Quantity, covariates: list[Quantity]) -> None:
    columns = (*COLUMNS[:-1], "zero")
    zero = np.zeros((90, 1))
    c, t = (Moments.of(columns, np.hstack([each[:, :-1], zero[: len(each)]])) for each in (CONTROL, TREATMENT))
    result = cuped(control=c, treatment=t, metric=metric, covariates=covariates)
    assert all(isnan(each) for each in (*result.theta, *numbers(result)))
    assert result.rank == 0


def test_covariates_that_explain_everything_leave_no_test() -> None:
    c, t = (Moments.of(COLUMNS, sample[:2]) for sample in (CONTROL, TREATMENT))
    few = cuped(control=c, treatment=t, metric=Y, covariates=[X1, X2, X3])
    itself = cuped(control=C, treatment=T, metric=Y, covariates=[Y])
    c, t = (with_column(sample, sample[:, :3] @ [0, 0.7, 1 / 3] + 0.1) for sample in (CONTROL, TREATMENT))
    linear = cuped(control=c, treatment=t, metric=Quantity("one"), covariates=[X1, X2])
    for result in (few, itself, linear):
        assert result.variance_reduction == 1
        assert isnan(result.comparison.std_error)
        assert isnan(result.comparison.pvalue)


def test_an_unknown_column_is_refused() -> None:
    with pytest.raises(ValueError, match="no column 'x9'"):
        cuped(control=C, treatment=T, metric=Y, covariates=[Quantity("x9")])


def test_the_log_ratio_needs_means_above_three_standard_errors() -> None:
    far, near = Arm(100, 5.0, 4.0), Arm(100, 0.59, 4.0)
    assert not isnan(log_ratio(control=far, treatment=far).low)
    below = [(far, near), (near, far), (far, Arm(100, -5.0, 4.0)), (far, Arm(1, 5.0, nan)), (Arm(0, nan, nan), far)]
    for control, treatment in below:
        assert all(isnan(limit) for limit in log_ratio(control=control, treatment=treatment))


def test_the_log_ratio_and_fieller_agree_where_means_are_far_from_zero() -> None:
    control, treatment = Arm(40_000, 50.0, 400.0), Arm(50_000, 51.0, 380.0)
    welchs = welch(control=control, treatment=treatment, df=100)
    # They differ by terms of the order of the square of a mean's relative error, 0.002; the width is 0.01.
    assert log_ratio(control=control, treatment=treatment, df=100) == close(
        (welchs.rel_ci_low, welchs.rel_ci_high), rel=0, abs=1e-5
    )


RUNS = 10_000


def cuped_pvalues(samples: Iterator[FloatArray], sizes: tuple[int, int]) -> Iterator[float]:
    """p-values of experiments drawn in batches of shape (batch, units, 3), the first units being the control."""
    columns = ("y", "x1", "x2")
    for sample in samples:
        means, scatters = [], []
        for units in np.split(sample, [sizes[0]], axis=1):
            means.append(units.mean(axis=1))
            centred = units - means[-1][:, None, :]
            scatters.append(centred.transpose(0, 2, 1) @ centred)
        for run in range(len(sample)):
            c, t = (Moments(columns, n, means[i][run], scatters[i][run]) for i, n in enumerate(sizes))
            yield cuped(control=c, treatment=t, metric=Y, covariates=[X1, X2]).comparison.pvalue


def normal_batches(rng: np.random.Generator, n: int, batch: int = 500) -> Iterator[FloatArray]:
    for _ in range(RUNS // batch):
        x = rng.standard_normal((batch, n, 2))
        yield np.concatenate([2 + x @ [[1.0], [-0.5]] + rng.standard_normal((batch, n, 1)), x], axis=2)


def poisson_batches(rng: np.random.Generator, n: int, batch: int = 500) -> Iterator[FloatArray]:
    for _ in range(RUNS // batch):
        pace = rng.gamma(1.0, 2.0, (batch, n))
        is_new = rng.random((batch, n)) < 0.2
        before = np.where(is_new, 0, rng.poisson(pace))
        yield np.stack([rng.poisson(pace), before, is_new], axis=2)


@pytest.mark.slow
@pytest.mark.parametrize("batches", [normal_batches, poisson_batches])
def test_it_rejects_at_its_level(batches: Callable[[np.random.Generator, int], Iterator[FloatArray]]) -> None:
    sizes = (200, 120)
    samples = batches(np.random.default_rng(10), sum(sizes))
    assert_level(cuped_pvalues(samples, sizes))


@pytest.mark.slow
@pytest.mark.parametrize("slope", [1, 2])
def test_the_relative_interval_of_a_large_effect_covers_it(slope: int) -> None:
    """+100 % at a correlation of 0.9, the same for all units or in proportion to what they did before."""
    rng, runs, n, missed = np.random.default_rng(17), 2000, 300, 0
    for _ in range(runs):
        x = rng.normal(10, 3, 2 * n)
        y = x + rng.normal(0, 1.45, 2 * n)
        control, treated = (
            Moments.of(("y", "x"), np.column_stack(part))
            for part in ((y[:n], x[:n]), (slope * y[n:] + 10 * (2 - slope), x[n:]))
        )
        found = cuped(control=control, treatment=treated, metric=Quantity("y"), covariates=[Quantity("x")]).comparison
        missed += not found.rel_ci_low <= 1 <= found.rel_ci_high
    low, high = stats.binom.interval(0.999, runs, 0.05)
    assert low <= missed <= high
