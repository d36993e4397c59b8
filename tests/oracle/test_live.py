"""Statistics of experiments against installed programs, on random tables with arms of unequal sizes."""

from collections.abc import Callable
from functools import partial
from math import inf, sqrt

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
import tea_tasting as tt
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportions_ztest
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from mltrust.states.moments import FloatArray, Moments
from mltrust.stats.means import Arm, Comparison, mean_arm, proportion, welch
from mltrust.stats.multiplicity import benjamini_hochberg, holm
from mltrust.stats.post_stratification import post_stratified
from mltrust.stats.ratios import ratio_arm
from mltrust.stats.simpson import pooled_gap
from mltrust.stats.srm import srm

# Other programs sum in another order. The default absolute tolerance of 1e-12 would accept any tiny p-value.
close = partial(pytest.approx, rel=1e-9, abs=0)
COLUMNS = ("y", "clicks", "views")


@pytest.fixture(params=[1, 2, 3, 4])
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    return np.random.default_rng(request.param)


@pytest.fixture
def table(rng: np.random.Generator) -> pd.DataFrame:
    """One row per unit, with a slice that both the arm and the outcome depend on."""
    n = int(rng.integers(60, 600))
    segment = rng.integers(0, 3, n)
    variant = (rng.random(n) < 0.2 + 0.2 * segment).astype(int)
    views = 1 + rng.poisson(3, n)
    return pd.DataFrame(
        {
            "segment": segment,
            "variant": variant,
            "y": rng.gamma(2, 3 + segment + 0.5 * variant),
            "views": views,
            "clicks": rng.binomial(views, rng.beta(2, 6, n)),
        }
    )


def arms(table: pd.DataFrame, to_arm: Callable[[Moments], Arm]) -> tuple[Arm, Arm]:
    samples = (table.loc[table["variant"] == variant, list(COLUMNS)] for variant in (0, 1))
    control, treatment = (to_arm(Moments.of(COLUMNS, sample)) for sample in samples)
    return control, treatment


def mean_of_y(state: Moments) -> Arm:
    return mean_arm(state, "y")


def clicks_per_view(state: Moments) -> Arm:
    return ratio_arm(state, "clicks", "views")


def samples_of_y(table: pd.DataFrame) -> tuple[FloatArray, FloatArray]:
    control, treatment = (table.loc[table["variant"] == variant, "y"].to_numpy() for variant in (0, 1))
    return control, treatment


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_welch_is_that_of_scipy(table: pd.DataFrame, alpha: float) -> None:
    control, treatment = arms(table, mean_of_y)
    result = welch(control=control, treatment=treatment, alpha=alpha)
    c, t = samples_of_y(table)
    expected = stats.ttest_ind(t, c, equal_var=False)
    assert (result.statistic, result.df, result.pvalue) == close((expected.statistic, expected.df, expected.pvalue))
    assert (result.ci_low, result.ci_high) == close(expected.confidence_interval(1 - alpha))


def test_welch_is_that_of_statsmodels(table: pd.DataFrame) -> None:
    control, treatment = arms(table, mean_of_y)
    result = welch(control=control, treatment=treatment)
    c, t = samples_of_y(table)
    expected = CompareMeans(DescrStatsW(t), DescrStatsW(c))
    assert (result.statistic, result.pvalue, result.df) == close(expected.ttest_ind(usevar="unequal"))
    assert (result.ci_low, result.ci_high) == close(expected.tconfint_diff(usevar="unequal"))


def test_a_normal_law_is_the_z_test_of_statsmodels(table: pd.DataFrame) -> None:
    control, treatment = arms(table, mean_of_y)
    result = welch(control=control, treatment=treatment, df=inf)
    c, t = samples_of_y(table)
    expected = CompareMeans(DescrStatsW(t), DescrStatsW(c))
    assert (result.statistic, result.pvalue) == close(expected.ztest_ind(usevar="unequal"))
    assert (result.ci_low, result.ci_high) == close(expected.zconfint_diff(usevar="unequal"))


@pytest.mark.parametrize(
    ("metric", "to_arm"),
    [(tt.Mean("y"), mean_of_y), (tt.RatioOfMeans("clicks", "views"), clicks_per_view)],
    ids=["mean", "ratio"],
)
def test_means_and_ratios_are_those_of_tea_tasting(
    table: pd.DataFrame, metric: tt.Mean | tt.RatioOfMeans, to_arm: Callable[[Moments], Arm]
) -> None:
    control, treatment = arms(table, to_arm)
    result = welch(control=control, treatment=treatment)
    expected = metric.analyze(table, 0, 1, "variant")
    assert absolute(result) == close(
        (
            expected.control,
            expected.treatment,
            expected.effect_size,
            expected.effect_size_ci_lower,
            expected.effect_size_ci_upper,
            expected.rel_effect_size,
            expected.pvalue,
            expected.statistic,
        )
    )


def absolute(result: Comparison) -> tuple[float, ...]:
    return (
        result.mean_control,
        result.mean_treatment,
        result.effect,
        result.ci_low,
        result.ci_high,
        result.rel_effect,
        result.pvalue,
        result.statistic,
    )


def test_proportion_is_the_z_test_of_statsmodels(rng: np.random.Generator) -> None:
    n_control, n_treatment = (int(n) for n in rng.integers(50, 5000, 2))
    x_control, x_treatment = rng.binomial(n_control, 0.2), rng.binomial(n_treatment, 0.22)
    control, treatment = (Arm(n, x / n, 0.0) for n, x in ((n_control, x_control), (n_treatment, x_treatment)))
    result = proportion(control=control, treatment=treatment)
    expected = proportions_ztest([x_treatment, x_control], [n_treatment, n_control])
    assert (result.statistic, result.pvalue) == close(expected)


@pytest.mark.parametrize("effect", [0.2, -0.5])
def test_pvalues_keep_their_digits_far_in_the_tails(effect: float) -> None:
    control, treatment = Arm(9_000, 5.0, 1.0), Arm(10_000, 5.0 + effect, 2.0)
    moments = treatment.mean, sqrt(treatment.variance), treatment.n, control.mean, sqrt(control.variance), control.n
    result = welch(control=control, treatment=treatment)
    assert 0 < result.pvalue < 1e-20
    assert result.pvalue == close(stats.ttest_ind_from_stats(*moments, equal_var=False).pvalue)
    shares = proportion(control=Arm(9_000, 0.5, 0.0), treatment=Arm(10_000, 0.5 + effect / 2, 0.0))
    assert 0 < shares.pvalue < 1e-20
    assert shares.pvalue == close(proportions_ztest([5_000 + 5_000 * effect, 4_500], [10_000, 9_000])[1])


def test_post_stratification_is_the_saturated_regression_of_statsmodels(table: pd.DataFrame) -> None:
    pairs = [arms(each, mean_of_y) for _, each in table.groupby("segment")]
    result = post_stratified(pairs, fixed_weights=True)
    expected = cell_means(table, *post_stratified_weights(table))
    assert (result.effect, result.std_error) == close(expected)


def test_the_gap_is_that_of_the_saturated_regression_of_statsmodels(table: pd.DataFrame) -> None:
    gap = pooled_gap([arms(each, mean_of_y) for _, each in table.groupby("segment")])
    c, t = samples_of_y(table)
    assert gap.pooled == close(t.mean() - c.mean())
    shares = pd.crosstab(table["segment"], table["variant"], normalize="columns").to_numpy()
    control, treatment = post_stratified_weights(table)
    expected = cell_means(table, -shares[:, 0] - control, shares[:, 1] - treatment)
    assert (gap.gap, gap.std_error) == close(expected)
    counts = pd.crosstab(table["segment"], table["variant"])
    assert gap.mix_pvalue == close(stats.chi2_contingency(counts, correction=False).pvalue)


def post_stratified_weights(table: pd.DataFrame) -> tuple[FloatArray, FloatArray]:
    """Weights of the control and treatment means of the slices."""
    w = table["segment"].value_counts(normalize=True).sort_index().to_numpy()
    return -w, w


def cell_means(table: pd.DataFrame, control: FloatArray, treatment: FloatArray) -> tuple[float, float]:
    """A contrast of the means of slices and arms, and its standard error with a variance per cell (HC2)."""
    fit = smf.ols("y ~ C(segment):C(variant) - 1", table).fit(cov_type="HC2")
    cells = {f"C(segment)[{k}]:C(variant)[{v}]": w[k] for v, w in enumerate((control, treatment)) for k in range(3)}
    weights = np.array([cells[name] for name in fit.params.index])
    return float(weights @ fit.params), sqrt(weights @ fit.cov_params() @ weights)


@pytest.mark.parametrize("weights", [[1, 1], [0.9, 0.1], [2, 1, 1], [5, 3, 1, 1]])
def test_srm_is_the_chi_square_test_of_scipy(rng: np.random.Generator, weights: list[float]) -> None:
    p = np.array(weights) / sum(weights)
    counts = rng.multinomial(10_000, p)
    result = srm(counts.tolist(), weights)
    expected = stats.chisquare(counts, 10_000 * p)
    assert (result.statistic, result.pvalue) == close((expected.statistic, expected.pvalue))


@pytest.mark.parametrize(("adjust", "method"), [(benjamini_hochberg, "fdr_bh"), (holm, "holm")])
def test_adjusted_pvalues_are_those_of_statsmodels(
    rng: np.random.Generator, adjust: Callable[[list[float]], tuple[float, ...]], method: str
) -> None:
    pvalues = [*rng.beta(0.3, 2, 40), *rng.choice([0.01, 0.02, 1.0], 10)]
    rng.shuffle(pvalues)
    assert adjust(pvalues) == close(tuple(multipletests(pvalues, method=method)[1]))
