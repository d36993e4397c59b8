"""Effects that differ between slices, against published values and statsmodels."""

from math import inf

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from statsmodels.stats.meta_analysis import combine_effects

from mltrust.states.moments import Moments, merge
from mltrust.stats.heterogeneity import against_rest, heterogeneity, qualitative_interaction
from mltrust.stats.means import Arm, Comparison, mean_arm, proportion, welch
from tests.oracle.test_experiment import close, entries, entry, slices


def shares(oracle: dict) -> list[Comparison]:
    return [proportion(control=control, treatment=treatment) for control, treatment in slices(oracle)]


# As printed, to half of the last digit.
@pytest.mark.parametrize(("name", "pvalue", "error"), [("ucb", 0.511, 5e-4), ("tutorial_ios_ipad", 0.0522, 5e-5)])
def test_qualitative_interactions_have_the_published_pvalues(name: str, pvalue: float, error: float) -> None:
    found = qualitative_interaction(shares(entry("simpson", name)))
    assert found.pvalue == close(pvalue, rel=0, abs=error)


def test_the_statistics_of_the_tutorial_are_those_computed_by_hand() -> None:
    found = qualitative_interaction(shares(entry("simpson", "tutorial_ios_ipad")))
    # 0.1² / (0.2·0.8/100 + 0.1·0.9/1000) and 0.05² / (0.05·0.95/1000 + 0.1·0.9/100)
    assert (found.q_positive, found.q_negative) == close((0.01 / 0.00169, 0.0025 / 0.0009475))
    assert (found.n, found.n_slices, found.statistic) == (2200, 2, found.q_negative)


def test_kidney_stones_of_both_sizes_favour_one_treatment() -> None:
    found = qualitative_interaction(shares(entry("simpson", "kidney")))
    assert found.q_negative == 0
    assert found.pvalue == close(0.5)


@pytest.mark.parametrize(
    ("n_slices", "critical"),
    [(2, 2.71), (3, 4.23), (4, 5.43), (5, 6.50), (6, 7.48), (7, 8.41), (8, 9.29), (9, 10.15), (10, 10.99)],
)
def test_critical_values_are_those_tabled_by_gail_and_simon(n_slices: int, critical: float) -> None:
    """min(Q+, Q-) at the level 0.05, which two decimals tell to 3e-4."""
    units = [(10.0, 1.0), *[(-((critical / (n_slices - 1)) ** 0.5), 1.0)] * (n_slices - 1)]
    arms = [(Arm(100, 0.0, 0.0), Arm(100, size, 100 * var)) for size, var in units]
    effects = [welch(control=c, treatment=t, df=inf) for c, t in arms]  # their effects are normal
    found = qualitative_interaction(effects)
    assert found.statistic == close(critical)
    assert found.pvalue == close(0.05, rel=0, abs=3e-4)


@entries("simpson")
def test_q_is_that_of_statsmodels(oracle: dict) -> None:
    effects = shares(oracle)
    found = heterogeneity(effects)
    expected = combine_effects(
        np.array([each.effect for each in effects]), np.array([each.std_error**2 for each in effects])
    )
    assert (found.effect, found.std_error) == close((expected.mean_effect_fe, expected.sd_eff_w_fe))
    homogeneity = expected.test_homogeneity()
    assert (found.statistic, found.df, found.pvalue) == close(
        (homogeneity.statistic, homogeneity.df, homogeneity.pvalue), rel=1e-8
    )


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_slice_against_its_rest_is_the_interaction_of_a_regression_of_statsmodels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 400
    table = pd.DataFrame({"segment": rng.integers(0, 4, n), "variant": rng.integers(0, 2, n)})
    table["y"] = rng.gamma(2, 3 + table["segment"] * table["variant"])
    pairs = [
        tuple(Moments.of(("y",), each.loc[each["variant"] == variant, ["y"]]) for variant in (0, 1))
        for _, each in table.groupby("segment")
    ]
    rests = [
        tuple(merge((other[arm] for other in pairs if other is not pair), ("y",)) for arm in (0, 1)) for pair in pairs
    ]
    own, others = (
        [welch(control=mean_arm(c, "y"), treatment=mean_arm(t, "y"), df=inf) for c, t in each]
        for each in (pairs, rests)
    )
    for segment, (one, rest) in enumerate(zip(own, others, strict=True)):
        found = against_rest(own=one, rest=rest)
        table["inside"] = (table["segment"] == segment).astype(int)
        fit = smf.ols("y ~ variant * inside", table).fit(cov_type="HC2")  # a variance per cell, a normal law
        name = "variant:inside"
        assert (found.difference, found.std_error) == close((fit.params[name], fit.bse[name]))
        assert (found.statistic, found.pvalue) == close((fit.tvalues[name], fit.pvalues[name]), rel=1e-8)
        assert (found.n, found.n_rest) == (table["inside"].sum(), n - table["inside"].sum())
