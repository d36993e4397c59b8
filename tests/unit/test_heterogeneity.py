from math import inf, isnan, nan, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from statsmodels.stats.oneway import anova_oneway

from mltrust.states.moments import FloatArray, Moments, merge
from mltrust.stats.heterogeneity import against_rest, heterogeneity, qualitative_interaction, shrunken
from mltrust.stats.means import Arm, Comparison, mean_arm, satterthwaite, welch

REL = 1e-9


def effect(size: float, std_error: float, n: int = 100, df: float = inf) -> Comparison:
    """A comparison with the effect and standard error given, of n units per arm; normal unless df is given."""
    return welch(control=Arm(n, 0.0, 0.0), treatment=Arm(n, size, n * std_error**2), df=df)


EFFECTS = st.lists(st.builds(effect, st.floats(-10, 10), st.floats(0.01, 10)), min_size=2, max_size=8)


@settings(deadline=None)
@given(EFFECTS)
def test_two_slices_are_against_their_rest_what_they_are_against_each_other(effects: list[Comparison]) -> None:
    a, b = effects[:2]
    test = against_rest(own=a, rest=b)
    q = heterogeneity([a, b])
    assert test.statistic**2 == pytest.approx(q.statistic, rel=REL, abs=1e-12)
    assert test.pvalue == pytest.approx(q.pvalue, rel=1e-6)
    assert test.difference == a.effect - b.effect


@settings(deadline=None)
@given(EFFECTS)
def test_exchanging_the_arms_exchanges_the_signs_and_nothing_else(effects: list[Comparison]) -> None:
    exchanged = [each._replace(effect=-each.effect) for each in effects]
    one, other = qualitative_interaction(effects), qualitative_interaction(exchanged)
    assert (other.q_positive, other.q_negative, other.pvalue) == (one.q_negative, one.q_positive, one.pvalue)
    assert heterogeneity(exchanged).statistic == pytest.approx(heterogeneity(effects).statistic, rel=REL)


@settings(deadline=None)
@given(EFFECTS)
def test_q_is_the_least_sum_of_squares_about_any_common_effect(effects: list[Comparison]) -> None:
    found = heterogeneity(effects)
    assert (found.n, found.n_slices, found.df) == (200 * len(effects), len(effects), len(effects) - 1)
    for shift in (-0.1, 0.0, 0.1):
        common = found.effect + shift
        about = sum(((each.effect - common) / each.std_error) ** 2 for each in effects)
        assert about == pytest.approx(found.statistic + (shift / found.std_error) ** 2, rel=1e-6)


@settings(deadline=None)
@given(EFFECTS)
def test_the_qualitative_pvalue_is_the_sum_of_its_definition(effects: list[Comparison]) -> None:
    found = qualitative_interaction(effects)
    z = [(each.effect / each.std_error) ** 2 * (1 if each.effect > 0 else -1) for each in effects]
    q = min(sum(each for each in z if each > 0), -sum(each for each in z if each < 0))
    K = len(effects)
    pvalue = sum(stats.binom.pmf(h, K - 1, 0.5) * stats.chi2.sf(q, h) for h in range(1, K))
    assert found.statistic == pytest.approx(q, rel=REL)
    assert found.pvalue == pytest.approx(pvalue, rel=1e-9)


def test_effects_of_one_sign_are_no_qualitative_interaction() -> None:
    found = qualitative_interaction([effect(5, 1), effect(0.1, 1), effect(0, 1)])
    assert (found.q_positive, found.q_negative, found.statistic) == (pytest.approx(25.01), 0, 0)
    assert found.pvalue == pytest.approx(1 - 2**-2)


def test_thousands_of_slices_have_a_pvalue() -> None:
    effects = [effect(0.5 - k % 2, 1.0) for k in range(3000)]
    found = qualitative_interaction(effects)
    assert found.pvalue == pytest.approx(stats.norm.sf((375 - 1499.5) / sqrt(1499.5 * 2.5)), rel=1e-3)


@pytest.mark.parametrize("test", [heterogeneity, qualitative_interaction])
def test_what_cannot_be_compared_is_nan(test: type[heterogeneity]) -> None:
    assert isnan(test([]).pvalue)
    assert isnan(test([effect(1, 1)]).pvalue)
    assert isnan(test([effect(1, 1), effect(1, 0)]).pvalue)
    one_unit = welch(control=Arm(100, 0.0, 1.0), treatment=Arm(1, 1.0, nan))
    unknown = test([effect(1, 1), effect(1, 1), one_unit])
    assert (unknown.n, unknown.n_slices) == (501, 3)
    assert isnan(unknown.statistic)
    assert isnan(unknown.pvalue)


def test_each_of_three_slices_is_tested_against_the_other_two() -> None:
    rng = np.random.default_rng(2)
    samples = [[rng.normal(k * arm, 1, (60 + 10 * k, 1)) for arm in (0, 1)] for k in range(3)]
    pairs = [tuple(Moments.of(("y",), sample) for sample in pair) for pair in samples]
    rests = [
        tuple(merge((other[arm] for other in pairs if other is not pair), ("y",)) for arm in (0, 1)) for pair in pairs
    ]
    compared, others = (
        [welch(control=mean_arm(c, "y"), treatment=mean_arm(t, "y")) for c, t in each] for each in (pairs, rests)
    )
    found = [against_rest(own=own, rest=rest) for own, rest in zip(compared, others, strict=True)]
    assert [each.n for each in found] == [120, 140, 160]
    assert [each.n_rest for each in found] == [300, 280, 260]
    rest = [np.vstack([samples[0][arm], samples[2][arm]]) for arm in (0, 1)]
    arms = [*samples[1], *rest]
    expected = arms[1].mean() - arms[0].mean() - (arms[3].mean() - arms[2].mean())
    variance = sum(arm.var(ddof=1) / len(arm) for arm in arms)
    assert found[1].difference == pytest.approx(expected)
    assert found[1].std_error == pytest.approx(sqrt(variance))
    df = satterthwaite([Arm(len(arm), 0.0, float(arm.var(ddof=1))) for arm in arms])
    assert found[1].df == pytest.approx(df)
    assert found[1].pvalue == pytest.approx(2 * stats.t.sf(abs(found[1].statistic), df))
    assert found[2].effect == compared[2].effect
    assert found[2].effect_rest == others[2].effect


def test_a_slice_without_a_standard_error_has_no_test_against_its_rest() -> None:
    found = [against_rest(own=own, rest=effect(1, 1)) for own in (effect(1, 1), effect(1, 0), effect(2, 1))]
    assert [isnan(each.pvalue) for each in found] == [False, True, False]


def test_a_shrunken_effect_lies_between_the_slice_and_the_mean_of_all() -> None:
    slices = [effect(-3, 1), effect(0, 1), effect(1, 1), effect(2, 1)]
    # By hand: mean 0, Q = 14, tau² = (14 - 3) / (4 - 4 / 4) = 11/3, B = (11/3) / (14/3).
    assert shrunken(slices[0], slices) == pytest.approx(-3 * 11 / 14)


def test_slices_that_differ_by_no_more_than_chance_shrink_to_their_mean() -> None:
    slices = [effect(1, 1), effect(1.5, 1), effect(2, 1)]
    assert shrunken(slices[2], slices) == pytest.approx(1.5)


def test_one_slice_alone_is_not_shrunken() -> None:
    assert shrunken(effect(2, 1), [effect(2, 1)]) == 2


def test_shrinking_the_worst_of_many_slices_without_a_difference_takes_the_luck_away() -> None:
    rng = np.random.default_rng(11)
    worst = [min((effect(y, 1.0) for y in rng.normal(size=10)), key=lambda each: each.effect) for _ in range(300)]
    pulled = []
    for _ in range(300):
        slices = [effect(y, 1.0) for y in rng.normal(size=10)]
        pulled.append(shrunken(min(slices, key=lambda each: each.effect), slices))
    assert np.mean([each.effect for each in worst]) < -1.4
    assert np.mean(pulled) > -0.5


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(0.1, 10), st.floats(3, 1000)), min_size=2, max_size=2))
def test_two_slices_are_on_the_t_law_against_their_rest_and_against_each_other(
    slices: list[tuple[float, float, float]],
) -> None:
    a, b = (effect(size, std_error, df=df) for size, std_error, df in slices)
    test = against_rest(own=a, rest=b)
    expected = satterthwaite([Arm(df + 1, 0.0, (df + 1) * std_error**2) for _, std_error, df in slices])
    assert test.df == pytest.approx(expected, rel=REL)
    assert test.pvalue == pytest.approx(2 * stats.t.sf(abs(test.statistic), test.df), rel=REL)
    q = heterogeneity([a, b])
    assert (q.pvalue, q.df_error) == pytest.approx((test.pvalue, test.df), rel=1e-6)


@pytest.mark.parametrize("K", [2, 3, 6])
def test_heterogeneity_of_group_means_is_the_analysis_of_variance_of_welch(K: int) -> None:
    rng = np.random.default_rng(K)
    groups = [rng.normal(0.3 * at, 1 + at, 5 + 3 * at) for at in range(K)]
    found = heterogeneity([effect(float(y.mean()), float(stats.sem(y)), df=len(y) - 1) for y in groups])
    expected = anova_oneway(groups, use_var="unequal", welch_correction=True)
    assert (found.pvalue, found.df_error) == pytest.approx((expected.pvalue, expected.df_denom), rel=REL)


def test_standard_errors_of_many_units_are_as_good_as_known() -> None:
    many, known = ([effect(0.1 * at, 0.1, df=df) for at in range(4)] for df in (1e9, inf))
    for test in (heterogeneity, qualitative_interaction):
        assert test(many).pvalue == pytest.approx(test(known).pvalue, rel=1e-6)
    assert isnan(heterogeneity(known).df_error)
    assert isnan(against_rest(own=known[0], rest=known[1]).df)


RUNS = 20_000


def simulated(rng: np.random.Generator, truth: FloatArray, n: int) -> list[list[Comparison]]:
    """Experiments in slices with n normal units of variance 1 per arm and the effects given."""
    drawn = rng.normal(truth, sqrt(2 / n), (RUNS, len(truth)))
    errors = np.sqrt((rng.chisquare(n - 1, (2, *drawn.shape)) / (n - 1)).sum(axis=0) / n)
    return [
        [effect(*each, n, df=2 * (n - 1)) for each in zip(*run, strict=True)]
        for run in zip(drawn.tolist(), errors.tolist(), strict=True)
    ]


def assert_level(pvalues: list[float], level: float = 0.05) -> None:
    low, high = stats.binom.interval(0.999, RUNS, level)
    assert low <= np.sum(np.array(pvalues) < 0.05) <= high


@pytest.mark.slow
@pytest.mark.parametrize("n", [10, 400])
def test_heterogeneity_rejects_one_effect_in_all_slices_at_its_level(n: int) -> None:
    runs = simulated(np.random.default_rng(3), np.full(4, 0.3), n)
    assert_level([heterogeneity(run).pvalue for run in runs])


@pytest.mark.slow
def test_the_qualitative_test_is_at_its_level_where_one_effect_is_large_and_the_others_are_0() -> None:
    runs = simulated(np.random.default_rng(4), np.array([9.0, 0, 0, 0]), 400)
    assert_level([qualitative_interaction(run).pvalue for run in runs])


@pytest.mark.slow
def test_the_qualitative_test_is_below_its_level_where_all_effects_are_0() -> None:
    runs = simulated(np.random.default_rng(5), np.zeros(4), 400)
    rejected = np.mean([qualitative_interaction(run).pvalue < 0.05 for run in runs])
    # min(Q+, Q-) of 4 normal variables is that large with a chance of 0.9 %.
    h = np.arange(1, 4)
    critical = 5.43  # of Gail and Simon's table
    chance = sum(special.binom(4, k) / 16 * stats.chi2.sf(critical, k) * stats.chi2.sf(critical, 4 - k) for k in h)
    assert rejected == pytest.approx(chance, abs=4 * sqrt(chance / RUNS))
