"""CUPED against published values, and against installed programs on random tables with arms of unequal sizes."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
import tea_tasting as tt

from mltrust.states.moments import FloatArray, Moments
from mltrust.stats.cuped import Quantity, cuped, log_ratio
from mltrust.stats.means import Arm, Comparison, mean_arm, welch
from mltrust.stats.ratios import ratio_arm
from tests.oracle.test_experiment import close, entry

REVENUE, REVENUE_BEFORE = Quantity("revenue"), Quantity("revenue_covariate")
BEFORE = [Quantity(f"{name}_covariate") for name in ("sessions", "orders", "revenue")]


def moments(sums: dict) -> Moments:
    """The state of n, sums and raw sums of products."""
    columns, n = tuple(sums["sum"]), sums["n"]
    total, products = np.array([sums["sum"][column] for column in columns]), sums["sumprod"]
    raw = [[products.get(f"{a}*{b}", products.get(f"{b}*{a}")) for b in columns] for a in columns]
    return Moments(columns, n, total / n, np.array(raw) - np.outer(total, total) / n)


@pytest.fixture(scope="module")
def guide() -> dict:
    return entry("cuped", "tea_user_guide")


@pytest.fixture(scope="module")
def with_covariates(guide: dict) -> tuple[Moments, Moments]:
    control, treatment = (moments(guide["suffstats"]["cov"][each]) for each in "01")
    return control, treatment


def assert_is_tea_tasting(result: Comparison, control: Arm, treatment: Arm, expected: dict) -> None:
    assert (result.effect, result.rel_effect, result.pvalue) == close(
        (expected["eff"], expected["rel"], expected["p"])
    )
    if "ci" in expected:
        assert (result.ci_low, result.ci_high) == close(expected["ci"])
    assert log_ratio(control=control, treatment=treatment) == close(tuple(expected["rel_ci"]))


@pytest.mark.parametrize("name", ["revenue", "orders_per_session"])
def test_plain_means_and_ratios_are_those_of_the_guide_of_tea_tasting(guide: dict, name: str) -> None:
    states = [moments(guide["suffstats"]["plain"][each]) for each in "01"]
    if name == "revenue":
        control, treatment = (mean_arm(state, "revenue") for state in states)
    else:
        control, treatment = (ratio_arm(state, "orders", "sessions") for state in states)
    result = welch(control=control, treatment=treatment)
    assert_is_tea_tasting(result, control, treatment, guide["expected"][name])


@pytest.mark.parametrize(
    ("name", "metric", "covariate"),
    [
        ("cuped_revenue", REVENUE, REVENUE_BEFORE),
        (
            "cuped_ratio_orders_sessions",
            Quantity("orders", "sessions"),
            Quantity("orders_covariate", "sessions_covariate"),
        ),
    ],
    ids=["mean", "ratio"],
)
def test_with_its_theta_cuped_is_that_of_the_guide_of_tea_tasting(
    guide: dict, with_covariates: tuple[Moments, Moments], name: str, metric: Quantity, covariate: Quantity
) -> None:
    expected = guide["expected"][name]
    control, treatment = with_covariates
    result = cuped(
        control=control, treatment=treatment, metric=metric, covariates=[covariate], theta=[expected["theta"]]
    )
    assert_is_tea_tasting(result.comparison, result.control, result.treatment, expected)
    assert result.theta == (expected["theta"],)


def test_our_own_theta_on_the_guides_data_comes_from_within_the_arms(
    with_covariates: tuple[Moments, Moments],
) -> None:
    control, treatment = with_covariates
    result = cuped(control=control, treatment=treatment, metric=REVENUE, covariates=[REVENUE_BEFORE])
    # Half of the last digit given.
    assert result.theta == pytest.approx((0.4340671486,), rel=0, abs=5e-11)
    assert result.comparison.effect == pytest.approx(0.7314006927, rel=0, abs=5e-11)


def test_with_the_theta_of_merged_arms_three_covariates_are_those_of_the_guides_data(
    guide: dict, with_covariates: tuple[Moments, Moments]
) -> None:
    control, treatment = with_covariates
    expected = guide["expected"]["multicov_revenue_3cov"]
    theta = theta_of_merged(control + treatment, "revenue", [each.numerator for each in BEFORE])
    assert theta == pytest.approx(expected["theta"], rel=0, abs=5e-9)
    result = cuped(control=control, treatment=treatment, metric=REVENUE, covariates=BEFORE, theta=theta)
    assert (result.comparison.effect, result.comparison.std_error) == close((expected["eff"], expected["se"]))
    assert result.rank == 3


def theta_of_merged(both: Moments, y: str, covariates: Sequence[str]) -> list[float]:
    """Slopes of y on the covariates in both arms at once, as if there were no arms."""
    x = [both.index(column) for column in covariates]
    return np.linalg.solve(both.scatter[np.ix_(x, x)], both.scatter[x, both.index(y)]).tolist()


def test_our_own_theta_of_three_covariates_gives_the_effect_of_the_regression(
    guide: dict, with_covariates: tuple[Moments, Moments]
) -> None:
    control, treatment = with_covariates
    effect, std_error = guide["expected"]["multicov_revenue_3cov"]["ancova_ols"]
    result = cuped(control=control, treatment=treatment, metric=REVENUE, covariates=BEFORE)
    assert result.comparison.effect == close(effect)
    # The regression takes one variance for both arms and estimates it with three units fewer.
    assert result.comparison.std_error == pytest.approx(std_error, rel=1e-3)


@pytest.fixture(params=[1, 2, 3])
def table(request: pytest.FixtureRequest) -> pd.DataFrame:
    """One row per unit: y and clicks per view, three covariates, and clicks per view of before."""
    rng = np.random.default_rng(request.param)
    n = 20_000
    variant = (rng.random(n) < 0.25 * request.param).astype(int)
    x = rng.gamma(2, 2, (n, 3)) + rng.normal(0, 2, (n, 1))
    rate, pace = rng.beta(2, 6, n), rng.gamma(2, 2, n)
    views, old_views = 1 + rng.poisson(pace), 1 + rng.poisson(pace)
    return pd.DataFrame(
        {
            "variant": variant,
            "y": 10 + 0.1 * variant + x @ [0.5, -0.3, 0.2] + rng.normal(0, 2, n),
            **{f"x{i}": x[:, i] for i in range(3)},
            "clicks": rng.binomial(views, rate),
            "views": views,
            "old_clicks": rng.binomial(old_views, rate),
            "old_views": old_views,
        }
    )


COLUMNS = ("y", "x0", "x1", "x2", "clicks", "views", "old_clicks", "old_views")


def arms(table: pd.DataFrame) -> tuple[Moments, Moments]:
    control, treatment = (
        Moments.of(COLUMNS, table.loc[table["variant"] == variant, list(COLUMNS)]) for variant in (0, 1)
    )
    return control, treatment


@pytest.mark.parametrize("covariates", [["x0"], ["x0", "x1", "x2"]], ids=len)
def test_theta_and_effect_are_those_of_the_regression_of_statsmodels(
    table: pd.DataFrame, covariates: list[str]
) -> None:
    control, treatment = arms(table)
    result = cuped(
        control=control, treatment=treatment, metric=Quantity("y"), covariates=[Quantity(x) for x in covariates]
    )
    fit = smf.ols(f"y ~ variant + {' + '.join(covariates)}", table).fit(cov_type="HC0")
    assert result.theta == close(tuple(fit.params[covariates]))
    assert result.comparison.effect == close(fit.params["variant"])
    # The sandwich has, as we have, a variance per arm, but over n and with the imbalance of x.
    assert result.comparison.std_error == pytest.approx(fit.bse["variant"], rel=1e-3)


@pytest.mark.parametrize(
    ("metric", "covariate"),
    [(Quantity("y"), Quantity("x0")), (Quantity("clicks", "views"), Quantity("old_clicks", "old_views"))],
    ids=["mean", "ratio"],
)
def test_with_its_theta_cuped_is_that_of_tea_tasting(
    table: pd.DataFrame, metric: Quantity, covariate: Quantity
) -> None:
    control, treatment = arms(table)
    if metric.denominator is None:
        tool = tt.Mean(metric.numerator, covariate.numerator)
    else:
        tool = tt.RatioOfMeans(metric.numerator, metric.denominator, covariate.numerator, covariate.denominator)
    expected = tool.analyze(table, 0, 1, "variant")
    own, before = linearised(table, metric), linearised(table, covariate)
    theta = float(np.cov(own, before)[0, 1] / before.var(ddof=1))
    result = cuped(control=control, treatment=treatment, metric=metric, covariates=[covariate], theta=[theta])
    comparison = result.comparison
    assert (
        comparison.mean_control,
        comparison.mean_treatment,
        comparison.effect,
        comparison.ci_low,
        comparison.ci_high,
        comparison.rel_effect,
        comparison.pvalue,
        comparison.statistic,
    ) == close(
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
    limits = log_ratio(control=result.control, treatment=result.treatment)
    assert limits == close((expected.rel_effect_size_ci_lower, expected.rel_effect_size_ci_upper))


def linearised(table: pd.DataFrame, quantity: Quantity) -> FloatArray:
    """(a - R·b) / mean(b) of every unit at the ratio R of the whole table, or the column itself."""
    a = table[quantity.numerator].to_numpy(dtype=np.float64)
    if quantity.denominator is None:
        return a
    b = table[quantity.denominator].to_numpy(dtype=np.float64)
    return (a - a.mean() / b.mean() * b) / b.mean()


def test_a_ratio_over_plain_covariates_is_the_regression_of_its_linearised_values(table: pd.DataFrame) -> None:
    control, treatment = arms(table)
    covariates = ["old_clicks", "old_views"]
    result = cuped(
        control=control,
        treatment=treatment,
        metric=Quantity("clicks", "views"),
        covariates=[Quantity(x) for x in covariates],
    )
    parts = []
    for _, part in table.groupby("variant"):
        ratio = part["clicks"].mean() / part["views"].mean()
        parts.append(part.assign(z=linearised(part, Quantity("clicks", "views")) + ratio))
    fit = smf.ols(f"z ~ variant + {' + '.join(covariates)}", pd.concat(parts)).fit(cov_type="HC0")
    assert result.theta == close(tuple(fit.params[covariates]), rel=1e-8)
    assert result.comparison.effect == close(fit.params["variant"], rel=1e-8)
    assert result.comparison.std_error == pytest.approx(fit.bse["variant"], rel=1e-3)
    assert result.variance_reduction > 0.01
