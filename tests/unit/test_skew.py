from math import exp, isnan, nan, sqrt

import numpy as np
import pytest
from scipy import stats

from mltrust.states.moments import FloatArray, Moments, merge
from mltrust.stats.means import Arm, mean_arm, welch
from mltrust.stats.skew import THRESHOLD, Skew, skew, skewness
from mltrust.stats.skew_kinds import skew_of_ratios, skew_of_shares

COLUMNS = ("y", "squares")


def state(values: FloatArray, centre: float = 0.0) -> Moments:
    return Moments.of(COLUMNS, np.column_stack([values, (values - centre) ** 2]))


def of(*samples: FloatArray, centre: float = 0.0) -> float:
    states = [state(sample, centre) for sample in samples]
    return skewness(states, column="y", squares="squares", centre=centre)


def compared(control: FloatArray, treatment: FloatArray) -> Skew:
    return skew(control=state(control), treatment=state(treatment), column="y", squares="squares")


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("centre", [0.0, 7.0])
def test_skewness_is_that_of_scipy(seed: int, centre: float) -> None:
    rng = np.random.default_rng(seed)
    for values in (rng.lognormal(0, 1, 500), rng.normal(5, 2, 500), -rng.gamma(1, 3, 20)):
        assert of(values, centre=centre) == pytest.approx(stats.skew(values), rel=1e-9, abs=1e-12)


def test_skewness_of_merged_states_is_that_of_the_whole() -> None:
    values = np.random.default_rng(4).lognormal(0, 1, 1000)
    parts = merge((state(part) for part in np.array_split(values, 13)), COLUMNS)
    assert skewness([parts], column="y", squares="squares") == pytest.approx(stats.skew(values), rel=1e-9)


def test_arms_are_taken_about_their_own_means() -> None:
    rng = np.random.default_rng(5)
    control, treatment = rng.gamma(2, 1, 300), rng.gamma(2, 1, 100) + 20
    within = np.concatenate([control - control.mean(), treatment - treatment.mean()])
    assert of(control, treatment) == pytest.approx(stats.skew(within), rel=1e-9)
    assert compared(control, treatment).skewness == of(control, treatment)


@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6, -1e6])
def test_an_offset_costs_digits_but_not_the_skewness(offset: float) -> None:
    values = stats.zscore(np.random.default_rng(6).gamma(2, 1, 2000))
    # 3e-17·offset², measured, and three times that.
    assert of(values + offset) == pytest.approx(stats.skew(values), abs=1e-12 + 1e-16 * offset**2)


def test_an_offset_that_leaves_no_third_moment_is_inconclusive_and_a_centre_near_it_helps() -> None:
    values = stats.zscore(np.random.default_rng(7).gamma(2, 1, 2000))
    far = values + 1e9
    assert isnan(of(far))
    assert compared(far, far[:100]).kind == "inconclusive"
    # values + 1e9 keeps 1e-7 of the values.
    assert of(far, centre=1e9) == pytest.approx(stats.skew(values), abs=1e-6)


def test_the_skewness_of_a_difference_of_means_is_the_simulated_one() -> None:
    n_c, n_t, shape = 60, 20, 0.25
    rng = np.random.default_rng(8)
    # A mean of n gamma values is gamma.
    means = [rng.gamma(shape * n, 1 / n, 400_000) for n in (n_c, n_t)]
    large = state(rng.gamma(shape, 1, 300_000))
    arms = [Moments(COLUMNS, n, large.mean, large.scatter * n / large.n) for n in (n_c, n_t)]
    found = skew(control=arms[0], treatment=arms[1], column="y", squares="squares")
    assert found.value == pytest.approx(stats.skew(means[1] - means[0]), rel=0.03)
    assert found.kind == "skewed"


def test_arms_of_one_size_cancel_whatever_the_skewness() -> None:
    values = np.random.default_rng(9).lognormal(0, 2, 400)
    found = compared(values[:200], values[200:])
    assert found.skewness > 5
    assert (found.value, found.kind) == (0, "none")


def test_exchanging_or_mirroring_the_arms_changes_no_flag() -> None:
    values = np.random.default_rng(10).lognormal(0, 1, 400)
    found, mirrored = compared(values[:300], values[300:]), compared(-values[:300], -values[300:])
    exchanged = compared(values[300:], values[:300])
    assert found.value == pytest.approx(exchanged.value) == pytest.approx(mirrored.value)
    assert mirrored.skewness == pytest.approx(-found.skewness)


@pytest.mark.parametrize(
    ("n", "kind"), [((1800, 200), "skewed"), ((1000, 1000), "none"), ((1_800_000, 200_000), "none")]
)
def test_rare_spenders_are_flagged_where_arms_are_unequal_and_small(n: tuple[int, int], kind: str) -> None:
    # 5 % spend a lognormal amount: moments of any order in closed form.
    raw = [0.05 * exp(k * k / 2) for k in (1, 2, 3, 4)]
    mean, covariance = np.array(raw[:2]), np.array([[raw[1], raw[2]], [raw[2], raw[3]]])
    covariance -= np.outer(mean, mean)
    control, treatment = (Moments(COLUMNS, size, mean, covariance * size) for size in n)
    found = skew(control=control, treatment=treatment, column="y", squares="squares")
    law = raw[2] - 3 * mean[0] * raw[1] + 2 * mean[0] ** 3
    assert found.skewness == pytest.approx(law / sqrt(raw[1] - mean[0] ** 2) ** 3)
    assert (found.threshold, found.kind) == (THRESHOLD, kind)


def test_welch_errs_where_the_flag_is_up() -> None:
    rng, n, runs = np.random.default_rng(11), (1800, 200), 3000
    rejected = 0
    for _ in range(runs):
        arms = []
        for size in n:
            spent = np.zeros((size, 1))
            spenders = rng.binomial(size, 0.05)
            spent[:spenders, 0] = rng.lognormal(0, 1, spenders)
            arms.append(mean_arm(Moments.of(("y",), spent), "y"))
        rejected += welch(control=arms[0], treatment=arms[1]).pvalue < 0.05
    # 14 % where this was first simulated.
    assert rejected / runs == pytest.approx(0.14, abs=0.03)


@pytest.mark.parametrize(("n_control", "n_treatment"), [(0, 0), (0, 10), (10, 0), (1, 1)])
def test_arms_that_do_not_vary_are_inconclusive(n_control: int, n_treatment: int) -> None:
    found = compared(np.full(n_control, 0.1), np.full(n_treatment, 0.1))
    assert (found.n_control, found.n_treatment) == (n_control, n_treatment)
    assert isnan(found.value)
    assert found.kind == "inconclusive"


def test_no_states_have_no_skewness() -> None:
    assert isnan(of())


def ratios(control: FloatArray, treatment: FloatArray) -> Skew:
    """Of arrays (n, 2) of numerators and denominators."""
    columns = ("y", "d", "yy", "yd", "dd")
    arms = [Moments.of(columns, np.column_stack([y, d, y * y, y * d, d * d])) for y, d in (control.T, treatment.T)]
    return skew_of_ratios(
        control=arms[0], treatment=arms[1], numerator="y", denominator="d", products=("yy", "yd", "dd")
    )


def test_the_skewness_of_a_ratio_is_that_of_what_units_add_to_it() -> None:
    rng = np.random.default_rng(9)
    arms = [np.column_stack([d * rng.gamma(2, 1, n), d]) for n in (900, 100) for d in [1.0 + rng.poisson(3, n)]]
    parts = [y - y.sum() / d.sum() * d for y, d in (arm.T for arm in arms)]
    found = ratios(arms[0], arms[1])
    assert found.skewness == pytest.approx(stats.skew(np.concatenate(parts)), rel=1e-9)
    assert found.value == pytest.approx(found.skewness * abs(100**-2 - 900**-2) / (1 / 100 + 1 / 900) ** 1.5)


@pytest.mark.parametrize(
    "arm",
    [
        pytest.param(np.column_stack([np.arange(50) / 3, np.arange(50) / 7]), id="in proportion"),
        pytest.param(np.column_stack([np.arange(50.0), np.zeros(50)]), id="no denominator"),
        pytest.param(np.column_stack([1e9 + np.arange(50.0), np.full(50, 1.0)]), id="far from 0"),
        pytest.param(np.empty((0, 2)), id="nobody"),
    ],
)
def test_a_ratio_that_leaves_no_third_moment_is_inconclusive(arm: FloatArray) -> None:
    found = ratios(arm, arm[:20])
    assert (isnan(found.value), found.kind) == (True, "inconclusive")


def test_the_skewness_of_shares_is_that_of_bernoulli_values_and_none_of_one_value() -> None:
    control, treatment = np.arange(900) < 40, np.arange(100) < 6
    arms = [Arm(len(each), float(each.mean()), nan) for each in (control, treatment)]
    found = skew_of_shares(control=arms[0], treatment=arms[1])
    assert found.skewness == pytest.approx(stats.bernoulli.stats(0.046, moments="s"))
    assert found.kind == "skewed"
    for share in (0.0, 1.0):
        same = skew_of_shares(control=Arm(900, share, nan), treatment=Arm(100, share, nan))
        assert (isnan(same.value), same.kind) == (True, "inconclusive")
