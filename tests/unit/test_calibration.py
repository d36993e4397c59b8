"""Rejection rates of the tests in simulated experiments where nothing is to be found."""

from collections.abc import Iterable, Iterator
from functools import cache

import numpy as np
import pytest
from scipy import stats

from mltrust.states.moments import FloatArray, Moments
from mltrust.stats.means import Arm, Margin, non_inferiority, proportion, welch
from mltrust.stats.post_stratification import post_stratified
from mltrust.stats.ratios import ratio_arm
from mltrust.stats.srm import srm

RUNS = 20_000


def assert_level(pvalues: Iterable[float], level: float = 0.05) -> None:
    """As many p-values below the level as in 99.9 % of the times if each has that chance; 0.045 to 0.055 at 0.05."""
    assert_share([p < level for p in pvalues], level)


def assert_share(rejected: list[bool], level: float) -> None:
    low, high = stats.binom.interval(0.999, len(rejected), level)
    assert low <= sum(rejected) <= high


def normal_arms(rng: np.random.Generator, n: int, mean: float, sd: float) -> Iterator[Arm]:
    """Arms of n normal units: mean and variance are independent, normal and chi-square."""
    means = rng.normal(mean, sd / np.sqrt(n), RUNS)
    variances = sd**2 * rng.chisquare(n - 1, RUNS) / (n - 1)
    return (Arm(n, *each) for each in zip(means.tolist(), variances.tolist(), strict=True))


def lognormal_arms(rng: np.random.Generator, n: int) -> Iterator[Arm]:
    for _ in range(RUNS // 1000):
        sample = np.exp(rng.standard_normal((1000, n)))
        yield from (
            Arm(n, *each)
            for each in zip(sample.mean(axis=1).tolist(), sample.var(axis=1, ddof=1).tolist(), strict=True)
        )


def ratio_arms(rng: np.random.Generator, n: int) -> Iterator[Arm]:
    """Arms of clicks per view of n units with 1 to 8 views, of which some have many views and a low rate."""
    cells = np.array([(clicks, views) for views in range(1, 9) for clicks in range(views + 1)], dtype=np.float64)
    clicks, views = cells.T
    light = stats.poisson.pmf(views - 1, 0.5) * stats.binom.pmf(clicks, views, 0.4)
    heavy = stats.poisson.pmf(views - 1, 3.0) * stats.binom.pmf(clicks, views, 0.15)
    counts = rng.multinomial(n, (light + heavy) / (light + heavy).sum(), RUNS).astype(np.float64)
    means = counts @ cells / n
    products = counts @ (cells[:, :, None] * cells[:, None, :]).reshape(-1, 4)
    scatters = products.reshape(-1, 2, 2) - n * means[:, :, None] * means[:, None, :]
    columns = ("clicks", "views")
    return (ratio_arm(Moments(columns, n, *each), *columns) for each in zip(means, scatters, strict=True))


@pytest.mark.parametrize(
    ("control", "treatment"),
    [((50, 1.0), (50, 1.0)), ((50, 1.0), (20, 3.0))],
    ids=["equal", "smaller and more variable treatment"],
)
def test_welch_rejects_normal_means_at_its_level(control: tuple[int, float], treatment: tuple[int, float]) -> None:
    rng = np.random.default_rng(1)
    arms = [normal_arms(rng, n, 10.0, sd) for n, sd in (control, treatment)]
    assert_level(welch(control=c, treatment=t).pvalue for c, t in zip(*arms, strict=True))


def test_welch_rejects_lognormal_means_at_its_level() -> None:
    rng = np.random.default_rng(2)
    arms = [lognormal_arms(rng, 500) for _ in range(2)]
    assert_level(welch(control=c, treatment=t).pvalue for c, t in zip(*arms, strict=True))


@pytest.mark.parametrize("n", [(2000, 2000), (2000, 1000)])
def test_proportion_rejects_at_its_level(n: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    arms = [[Arm(n_arm, x / n_arm, 0.0) for x in rng.binomial(n_arm, 0.05, RUNS).tolist()] for n_arm in n]
    pvalue = cache(lambda control, treatment: proportion(control=control, treatment=treatment).pvalue)
    assert_level(map(pvalue, *arms))


def test_ratios_of_correlated_counts_reject_at_their_level() -> None:
    rng = np.random.default_rng(4)
    arms = [ratio_arms(rng, 500) for _ in range(2)]
    assert_level(welch(control=c, treatment=t).pvalue for c, t in zip(*arms, strict=True))


@pytest.mark.parametrize(
    ("margin", "mean", "increase_is_good"),
    [
        (Margin(absolute=0.5), 9.5, True),
        (Margin(absolute=0.5), 10.5, False),
        (Margin(relative=0.1), 9.0, True),
        (Margin(relative=0.1), 11.0, False),
    ],
)
def test_non_inferiority_passes_a_treatment_exactly_at_its_margin_at_its_level(
    margin: Margin, mean: float, increase_is_good: bool
) -> None:
    rng = np.random.default_rng(5)
    arms = normal_arms(rng, 60, 10.0, 5.0), normal_arms(rng, 400, mean, 3.0)
    assert_level(
        non_inferiority(control=c, treatment=t, margin=margin, increase_is_good=increase_is_good).pvalue
        for c, t in zip(*arms, strict=True)
    )


@pytest.mark.parametrize("weights", [(1, 1), (9, 1), (50, 30, 15, 5)])
def test_srm_rejects_a_fair_split_at_its_level(weights: tuple[int, ...]) -> None:
    rng = np.random.default_rng(6)
    counts = rng.multinomial(10_001, np.array(weights) / sum(weights), RUNS).tolist()
    pvalue = cache(lambda *counts: srm(counts, weights).pvalue)
    pvalues = [pvalue(*each) for each in counts]
    for level in (0.05, 0.001):
        assert_level(pvalues, level)


SHARES = np.array([0.4, 0.3, 0.2, 0.1])
BASE = np.array([5.0, 8.0, 12.0, 20.0])


def slices(rng: np.random.Generator, effects: FloatArray, *, runs: int = RUNS) -> Iterator[list[tuple[Arm, Arm]]]:
    """Experiments with 600 and 400 normal units, in four slices by chance."""
    arms = []
    for n_arm, means in ((600, BASE), (400, BASE + effects)):
        counts = rng.multinomial(n_arm, SHARES, runs)
        drawn = rng.normal(means, 2.0 / np.sqrt(counts))
        variances = 4.0 * rng.chisquare(counts - 1) / (counts - 1)
        arms.append(zip(counts.tolist(), drawn.tolist(), variances.tolist(), strict=True))
    for run in zip(*arms, strict=True):
        control, treatment = ([Arm(*each) for each in zip(*arm, strict=True)] for arm in run)
        yield list(zip(control, treatment, strict=True))


NO_EFFECTS = np.zeros(4)
EFFECTS_OF_MEAN_ZERO = np.array([3.0, -2.0, -3.0, 0.0])  # 0.4·3 - 0.3·2 - 0.2·3 = 0


def test_post_stratification_rejects_at_its_level_where_no_slice_has_an_effect() -> None:
    drawn = slices(np.random.default_rng(7), NO_EFFECTS)
    assert_level(post_stratified(pairs).pvalue for pairs in drawn)


def test_post_stratification_rejects_at_its_level_where_the_effects_of_slices_average_to_nothing() -> None:
    drawn = list(slices(np.random.default_rng(8), EFFECTS_OF_MEAN_ZERO, runs=8000))
    assert_level(post_stratified(pairs).pvalue for pairs in drawn)
    # Taking the shares that happened to come as known does not: the error from the shares is missing.
    known = [post_stratified(pairs, fixed_weights=True).pvalue < 0.05 for pairs in drawn[:1000]]
    assert np.mean(known) > 0.08


def test_the_relative_interval_of_post_stratification_holds_the_truth_at_its_level() -> None:
    effects = EFFECTS_OF_MEAN_ZERO + 2.0
    truth = SHARES @ effects / (SHARES @ BASE)
    drawn = slices(np.random.default_rng(9), effects, runs=8000)
    results = [post_stratified(pairs) for pairs in drawn]
    assert_share([not result.rel_ci_low <= truth <= result.rel_ci_high for result in results], 0.05)
