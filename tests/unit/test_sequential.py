from collections.abc import Sequence
from fractions import Fraction
from math import comb, factorial, inf, isnan, log, nan, prod, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from mltrust.states.moments import FloatArray
from mltrust.stats.means import normal_score
from mltrust.stats.sequential import (
    Look,
    PhaseLooks,
    Spending,
    alpha_spent,
    always_valid,
    always_valid_pvalue,
    best_rho,
    confidence_sequence,
    counts_as_look,
    crossing_probabilities,
    group_sequential,
    group_sequential_pvalue,
    log_bayes_factor,
    log_e_value,
    one_sided_log_e_value,
    sequential_srm,
    spending_bounds,
    srm_concentration,
)
from tests.unit.test_calibration import RUNS, assert_share

REL = 1e-9
LOOKS = 60
FIVE_LOOKS = (0.2, 0.4, 0.6, 0.8, 1.0)
SPENDINGS: tuple[Spending, ...] = ("obrien_fleming", "pocock")

each_spending = pytest.mark.parametrize("spending", SPENDINGS)
alphas = st.floats(1e-6, 0.3)


def assert_never_above(level: float, pvalues: FloatArray) -> None:
    """As many p-values at the level as in 99.9 % of the times if each has that chance, or fewer."""
    assert (pvalues <= level).sum() <= stats.binom.ppf(0.999, len(pvalues), level)


# The smallest p-value so far


@given(st.lists(st.floats(-50, 700) | st.just(nan), max_size=20))
def test_the_pvalue_never_rises_and_is_that_of_the_strongest_evidence(evidence: list[float]) -> None:
    pvalues = always_valid_pvalue(evidence)
    for look, pvalue in enumerate(pvalues):
        seen = [each for each in evidence[: look + 1] if not isnan(each)]
        expected = min(1.0, float(np.exp(-max(seen)))) if seen else nan
        assert pvalue == pytest.approx(expected, rel=REL, abs=0, nan_ok=True)


def test_pvalues_run_along_the_last_axis_and_hold_for_evidence_without_limit() -> None:
    assert always_valid_pvalue([[0.0, inf, 1.0], [nan, -inf, log(4)]]).tolist() == [
        [1.0, 0.0, 0.0],
        pytest.approx([nan, 1.0, 0.25], nan_ok=True),
    ]


# Sequential SRM


counts_of_looks = st.lists(st.lists(st.integers(0, 500), min_size=3, max_size=3), min_size=1, max_size=5).map(
    lambda increments: np.cumsum(increments, axis=0).tolist()
)
weights = st.lists(st.floats(0.1, 10), min_size=3, max_size=3)
concentrations = st.floats(1, 10_000)


def one_phase(counts: Sequence[Sequence[int]], expected: Sequence[float], concentration: float = 100) -> list:
    return sequential_srm([PhaseLooks(expected, counts)], concentration=concentration)


@pytest.mark.parametrize("counts", [(0, 0), (7, 3), (40, 60), (12, 9, 30)])
def test_under_uniform_shares_the_likelihood_is_that_of_bayes(counts: tuple[int, ...]) -> None:
    # Bayes (1763), Laplace: all counts of n units in k arms are equally likely, whatever n.
    n, k = sum(counts), len(counts)
    orders = Fraction(factorial(n), prod(factorial(each) for each in counts))
    expected = Fraction(k**n, comb(n + k - 1, k - 1)) / orders
    factor = log_bayes_factor(counts, shares=[1 / k] * k, prior=[1] * k)
    assert factor == pytest.approx(log(expected), rel=REL, abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(counts_of_looks, weights, concentrations)
def test_the_evidence_is_the_product_of_predictions_unit_by_unit(
    counts: list[list[int]], expected: list[float], concentration: float
) -> None:
    shares = np.array(expected) / sum(expected)
    units = np.repeat(np.eye(3), counts[-1], axis=0)[:200]
    before = units.cumsum(axis=0) - units
    predicted = (concentration * shares + before) / (concentration + before.sum(axis=1, keepdims=True))
    ratio = np.log(((predicted / shares) ** units).prod(axis=1)).sum()
    factor = log_bayes_factor(units.sum(axis=0), shares=shares, prior=concentration * shares)
    assert factor == pytest.approx(ratio, rel=1e-7, abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(counts_of_looks, weights, st.floats(1e-3, 1e3), st.permutations([0, 1, 2]))
def test_the_order_of_arms_and_the_scale_of_the_weights_do_not_matter(
    counts: list[list[int]], expected: list[float], scale: float, order: list[int]
) -> None:
    moved = [[look[arm] for arm in order] for look in counts]
    plain = one_phase(counts, expected)
    other = one_phase(moved, [scale * expected[arm] for arm in order])
    # A difference of ln Gammas of about 1e4.
    assert np.array(other) == pytest.approx(np.array(plain), rel=1e-7, abs=1e-9, nan_ok=True)


@settings(deadline=None, max_examples=40)
@given(counts_of_looks, weights, st.integers(1, 1000))
def test_an_arm_of_weight_zero_is_counted_apart_and_changes_nothing_else(
    counts: list[list[int]], expected: list[float], unexpected: int
) -> None:
    plain = one_phase(counts, expected)
    result = one_phase([[unexpected, *look] for look in counts], [0.0, *expected])
    for one, other in zip(plain, result, strict=True):
        assert (one.n_unexpected, other.n_unexpected) == (0, unexpected)
        assert (one.n, one[2:]) == (other.n, pytest.approx(other[2:], nan_ok=True))


@settings(deadline=None, max_examples=40)
@given(counts_of_looks, weights, weights)
def test_the_evidence_of_phases_adds_up(counts: list[list[int]], first: list[float], second: list[float]) -> None:
    both = sequential_srm([PhaseLooks(first, counts), PhaseLooks(second, counts)], concentration=100)
    alone = [one_phase(counts, expected) for expected in (first, second)]
    for total, one, other in zip(both, *alone, strict=True):
        assert total.n == one.n + other.n
        expected = one.log_bayes_factor + other.log_bayes_factor
        assert total.log_bayes_factor == pytest.approx(expected, nan_ok=True, abs=1e-9)


def test_a_phase_without_units_changes_nothing() -> None:
    counts = [[50, 40], [90, 95]]
    later = PhaseLooks([1, 9], [[0, 0], [0, 0]])
    assert sequential_srm([PhaseLooks([1, 1], counts), later], concentration=100) == one_phase(counts, [1, 1])


def test_a_change_of_allocation_is_not_taken_for_a_mismatch() -> None:
    ramp = PhaseLooks([9, 1], [[905, 95], [905, 95]])
    full = PhaseLooks([1, 1], [[0, 0], [4980, 5020]])
    assert sequential_srm([ramp, full], concentration=100)[-1].pvalue > 0.5
    pooled = one_phase([[905, 95], [5885, 5115]], [1, 1])
    assert pooled[-1].pvalue < 1e-10


def test_exactly_the_promised_counts_are_evidence_for_the_promise() -> None:
    first, last = one_phase([[500, 300, 200], [5000, 3000, 2000]], [5, 3, 2])
    assert last.log_bayes_factor < first.log_bayes_factor < 0
    assert (first.pvalue, last.pvalue) == (1, 1)


def test_a_mismatch_that_was_seen_once_is_not_forgotten() -> None:
    seen, last = one_phase([[300, 100], [3000, 3000]], [1, 1])
    assert last.log_bayes_factor < 0 < seen.log_bayes_factor
    assert last.pvalue == seen.pvalue < 1e-10


def test_before_there_are_units_to_compare_the_test_is_undefined() -> None:
    empty, some = one_phase([[0, 0], [1, 0]], [1, 1])
    assert (empty.n, some.n) == (0, 1)
    assert isnan(empty.log_bayes_factor)
    assert isnan(empty.pvalue)
    assert some.pvalue == pytest.approx(1)
    assert one_phase([], [1, 1]) == []


def test_one_arm_has_nothing_to_compare() -> None:
    (alone,) = one_phase([[100, 3]], [1, 0])
    assert (alone.n, alone.n_unexpected) == (100, 3)
    assert isnan(alone.pvalue)
    phases = [PhaseLooks([1, 0], [[100, 0]]), PhaseLooks([1, 1], [[20, 10]])]
    (beside,) = sequential_srm(phases, concentration=100)
    assert beside.n == 130
    assert beside.pvalue == one_phase([[20, 10]], [1, 1])[0].pvalue


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([], "one phase or more"),
        ([PhaseLooks([1, 1], [[1, 1]]), PhaseLooks([1, 1], [])], r"same looks.*\[1, 0\]"),
        ([PhaseLooks([1, 1], [[1, 1, 1]])], "one number per arm"),
        ([PhaseLooks([1, 1], [1, 1])], "one number per arm"),
        ([PhaseLooks([[1, 1]], [[1, 1]])], "one number per arm"),
        ([PhaseLooks([], [[], []])], "not all 0"),
        ([PhaseLooks([0, 0], [[1, 1]])], "not all 0"),
        ([PhaseLooks([1, -1], [[1, 1]])], "not negative"),
        ([PhaseLooks([1, nan], [[1, 1]])], "finite"),
        ([PhaseLooks([1, 1], [[1, -1]])], "cumulative"),
        ([PhaseLooks([1, 1], [[1, 5], [2, 4]])], "cumulative"),
    ],
)
def test_phases_that_make_no_sense_are_refused(phases: list[PhaseLooks], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sequential_srm(phases, concentration=100)


@pytest.mark.parametrize("concentration", [0, -1, nan, inf])
def test_a_concentration_that_is_not_positive_is_refused(concentration: float) -> None:
    with pytest.raises(ValueError, match=f"concentration is a finite positive.*{concentration}"):
        one_phase([[1, 1]], [1, 1], concentration)


def test_the_concentration_is_a_tenth_of_the_expected_units_within_limits() -> None:
    assert [srm_concentration(units) for units in (0, 999, 2000, 99_000, 1e9)] == [100, 100, 200, 9900, 10_000]
    for units in (-1, nan, inf):
        with pytest.raises(ValueError, match="finite and not negative"):
            srm_concentration(units)


def srm_pvalues(units: int, shares: list[float], truth: list[float], concentration: float, seed: int) -> FloatArray:
    """P-values at the last of 60 looks at this many units each."""
    counts = np.random.default_rng(seed).multinomial(units, truth, (RUNS, LOOKS)).cumsum(axis=1)
    evidence = log_bayes_factor(counts, shares=shares, prior=concentration * np.array(shares))
    return always_valid_pvalue(evidence)[:, -1]


@pytest.mark.slow
@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.9, 0.1], [0.5, 0.3, 0.2]])
def test_sixty_looks_at_a_fair_split_rarely_find_a_mismatch(shares: list[float]) -> None:
    pvalues = srm_pvalues(500, shares, shares, srm_concentration(0), seed=1)
    for level in (0.05, 0.001):
        assert_never_above(level, pvalues)


@pytest.mark.slow
def test_looks_at_every_change_of_allocation_rarely_find_a_mismatch() -> None:
    rng, evidence = np.random.default_rng(2), np.zeros((RUNS, LOOKS))
    for phase, treated in enumerate((0.01, 0.1, 0.5)):
        shares = np.array([1 - treated, treated])
        units = np.zeros(LOOKS, dtype=np.int64)
        units[20 * phase : 20 * phase + 20] = 200
        counts = rng.multinomial(units, shares, (RUNS, LOOKS)).cumsum(axis=1)
        evidence += log_bayes_factor(counts, shares=shares, prior=100 * shares)
    pvalues = always_valid_pvalue(evidence)[:, -1]
    for level in (0.05, 0.001):
        assert_never_above(level, pvalues)


@pytest.mark.slow
def test_a_small_slice_finds_a_mismatch_with_a_small_concentration_only() -> None:
    found = {
        concentration: (srm_pvalues(33, [0.5, 0.5], [0.55, 0.45], concentration, seed=3) < 0.001).mean()
        for concentration in (100, 10_000)
    }
    assert 0.6 < found[100] < 0.7
    assert found[10_000] == 0


# Sequential mean


effects, std_errors, units = st.floats(-100, 100), st.floats(1e-3, 100), st.integers(1, 10**7)
looks_in_time = st.lists(st.builds(Look, effects, std_errors, units, st.booleans()), min_size=1, max_size=8).map(
    lambda looks: sorted(looks, key=lambda look: look.n)
)
plans = st.tuples(alphas, st.floats(10, 1e7))


@given(effects, std_errors, units, plans)
def test_the_interval_is_that_of_all_effects_whose_e_value_stays_below_one_over_alpha(
    effect: float, std_error: float, n: int, plan: tuple[float, float]
) -> None:
    alpha, horizon = plan
    rho = best_rho(alpha=alpha, horizon=horizon)
    result = always_valid(Look(effect, std_error, n), alpha=alpha, rho=rho)
    evidence = log_e_value(result.half_width / std_error, n, rho=rho)
    assert evidence == pytest.approx(-log(alpha), rel=REL)
    middle = (result.ci_low + result.ci_high) / 2
    assert middle == pytest.approx(effect, rel=REL, abs=1e-12 * result.half_width)
    if abs(abs(effect) - result.half_width) > 1e-9 * result.half_width:
        assert (abs(effect) > result.half_width) == (result.pvalue < alpha)


@given(effects, std_errors, units, plans, st.floats(1e-3, 1e3))
def test_the_unit_of_the_metric_does_not_matter(
    effect: float, std_error: float, n: int, plan: tuple[float, float], scale: float
) -> None:
    alpha, horizon = plan
    rho = best_rho(alpha=alpha, horizon=horizon)
    plain = always_valid(Look(effect, std_error, n), alpha=alpha, rho=rho)
    scaled = always_valid(Look(scale * effect, scale * std_error, n), alpha=alpha, rho=rho)
    assert scaled.half_width == pytest.approx(scale * plain.half_width, rel=REL)
    assert scaled.log_e_value == pytest.approx(plain.log_e_value, rel=REL, abs=1e-9)


@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_the_interval_is_about_the_shortest_at_its_horizon(alpha: float) -> None:
    def half_width(horizon: float) -> float:
        look = Look(effect=0.0, std_error=1.0, n=5000)
        return always_valid(look, alpha=alpha, rho=best_rho(alpha=alpha, horizon=horizon)).half_width

    shortest = min(half_width(5000 * factor) for factor in np.geomspace(0.1, 10, 401))
    # The formula is an approximation of the best rho that is 0.03 % too wide at most here.
    assert half_width(5000) == pytest.approx(shortest, rel=1e-3)
    assert half_width(5000) < 1.05 * half_width(2500) < 1.1 * half_width(5000)


@pytest.mark.parametrize(
    "look",
    [
        Look(nan, 1.0, 100),
        Look(1.0, nan, 100),
        Look(1.0, 0.0, 100),
        Look(nan, nan, 0),
        Look(1.0, 1.0, 0),
    ],
    ids=str,
)
def test_an_undefined_look_is_nan_and_does_not_count(look: Look) -> None:
    result = always_valid(look, alpha=0.05, rho=0.1)
    assert isnan(result.log_e_value)
    assert isnan(result.pvalue)
    assert isnan(result.ci_low)
    assert isnan(result.ci_high)
    (only,) = confidence_sequence([look], alpha=0.05, horizon=1000)
    assert (only.n, only.n_looks, only.is_empty) == (look.n, 0, False)
    assert all(isnan(each) for each in (only.ci_low, only.ci_high, only.pvalue))


@given(looks_in_time, plans)
def test_what_is_known_is_the_intersection_and_the_smallest_pvalue_of_the_looks_that_count(
    looks: list[Look], plan: tuple[float, float]
) -> None:
    alpha, horizon = plan
    rho = best_rho(alpha=alpha, horizon=horizon)
    results = confidence_sequence(looks, alpha=alpha, horizon=horizon)
    for at, result in enumerate(results):
        seen = [always_valid(look, alpha=alpha, rho=rho) for look in looks[: at + 1] if look.counts]
        assert (result.n, result.n_looks) == (looks[at].n, len(seen))
        low, high = max((one.ci_low for one in seen), default=nan), min((one.ci_high for one in seen), default=nan)
        assert result.is_empty == (low > high)
        limits = (nan, nan) if result.is_empty else (low, high)
        assert (result.ci_low, result.ci_high) == pytest.approx(limits, rel=REL, nan_ok=True)
        expected = min((one.pvalue for one in seen), default=nan)
        assert result.pvalue == pytest.approx(expected, rel=REL, abs=0, nan_ok=True)


@given(looks_in_time, plans)
def test_the_interval_leaves_out_zero_or_is_empty_only_where_the_pvalue_rejects(
    looks: list[Look], plan: tuple[float, float]
) -> None:
    alpha, horizon = plan
    for result in confidence_sequence(looks, alpha=alpha, horizon=horizon):
        if not result.n_looks or abs(result.pvalue / alpha - 1) < 1e-9:
            continue
        assert (result.is_empty or result.ci_low > 0 or result.ci_high < 0) == (result.pvalue < alpha)


def test_an_effect_that_turned_leaves_no_interval_and_says_so_from_then_on() -> None:
    looks = [Look(1.0, 0.1, 1000), Look(-1.0, 0.1, 2000), Look(0.0, 0.1, 3000)]
    before, *after = confidence_sequence(looks, alpha=0.05, horizon=3000)
    assert not before.is_empty
    assert 0 < before.ci_low < before.ci_high
    for result in after:
        assert result.is_empty
        assert isnan(result.ci_low)
        assert isnan(result.ci_high)
        assert result.pvalue < 1e-10


def test_a_look_that_does_not_count_leaves_things_as_they_were() -> None:
    looks = [Look(9.0, 0.1, 50, counts=False), Look(0.1, 0.1, 500), Look(9.0, 0.1, 600, counts=False)]
    early, first, late = confidence_sequence(looks, alpha=0.05, horizon=1000)
    assert (early.n, early.n_looks) == (50, 0)
    assert isnan(early.pvalue)
    assert late == first._replace(n=600)
    assert confidence_sequence([], alpha=0.05, horizon=1000) == []


@pytest.mark.parametrize(
    ("n_control", "n_treatment", "share", "counts"),
    [
        (100, 100, None, True),
        (10_000, 99, None, False),
        (1000, 1000, 0.05, True),
        (1000, 999, 0.05, False),
        (1000, 1000, 0.96, False),
        (1000, 1000, nan, False),
        (1000, 1000, 0.0, False),
    ],
)
def test_a_look_counts_where_its_smaller_arm_has_enough(
    n_control: int, n_treatment: int, share: float | None, counts: bool
) -> None:
    assert counts_as_look(n_control=n_control, n_treatment=n_treatment, share=share) == counts
    assert counts_as_look(n_control=n_treatment, n_treatment=n_control, share=share) == counts


def test_numbers_that_make_no_sense_are_refused() -> None:
    look = Look(1.0, 1.0, 100)
    with pytest.raises(ValueError, match="not negative.*n=-1"):
        Look(1.0, 1.0, -1)
    with pytest.raises(ValueError, match="not negative.*std_error=-1"):
        Look(1.0, -1.0, 100)
    with pytest.raises(ValueError, match=r"does not fall.*\[100, 99\]"):
        confidence_sequence([look, Look(1.0, 1.0, 99)], alpha=0.05, horizon=1000)
    with pytest.raises(ValueError, match="share of units.*1.2"):
        counts_as_look(n_control=100, n_treatment=100, share=1.2)
    for horizon in (0, -1, nan, inf):
        with pytest.raises(ValueError, match=f"horizon.*{horizon}"):
            best_rho(alpha=0.05, horizon=horizon)
        with pytest.raises(ValueError, match=f"rho.*{horizon}"):
            always_valid(look, alpha=0.05, rho=horizon)
    for alpha in (0, 1, nan):
        with pytest.raises(ValueError, match=f"alpha lies between 0 and 1, got {alpha}"):
            always_valid(look, alpha=alpha, rho=0.1)
        with pytest.raises(ValueError, match=f"alpha lies between 0 and 1, got {alpha}"):
            best_rho(alpha=alpha, horizon=1000)


class Drawn:
    """An arm of RUNS experiments at LOOKS looks, n units more at every one: cumulative units, means, variances."""

    def __init__(self, n: int, totals: FloatArray, squares: FloatArray) -> None:
        self.n = n * np.arange(1, LOOKS + 1)
        self.mean = totals.cumsum(axis=1) / self.n
        scatter = squares.cumsum(axis=1) - self.n * self.mean**2
        self.mean_variance = scatter / (self.n - 1) / self.n

    @classmethod
    def normal(cls, rng: np.random.Generator, n: int) -> "Drawn":
        totals = rng.normal(0, sqrt(n), (RUNS, LOOKS))
        return cls(n, totals, totals**2 / n + rng.chisquare(n - 1, (RUNS, LOOKS)))

    @classmethod
    def bernoulli(cls, rng: np.random.Generator, n: int) -> "Drawn":
        events = rng.binomial(n, 0.05, (RUNS, LOOKS)).astype(np.float64)
        return cls(n, events, events)


def pvalues_at_the_end(
    control: Drawn, treatment: Drawn, alpha: float, counts: FloatArray | bool = True
) -> FloatArray:
    n = control.n + treatment.n
    std_error = np.sqrt(control.mean_variance + treatment.mean_variance)
    # Where nothing varied yet.
    std_error[std_error == 0] = nan
    z = (treatment.mean - control.mean) / std_error
    evidence = np.where(counts, log_e_value(z, n, rho=best_rho(alpha=alpha, horizon=n[-1])), nan)
    return always_valid_pvalue(evidence)[:, -1]


@pytest.mark.slow
@pytest.mark.parametrize("n", [(100, 100), (900, 100)])
def test_sixty_looks_at_normal_data_without_an_effect_rarely_reject(n: tuple[int, int]) -> None:
    rng = np.random.default_rng(4)
    control, treatment = (Drawn.normal(rng, each) for each in n)
    for alpha in (0.05, 0.001):
        assert_never_above(alpha, pvalues_at_the_end(control, treatment, alpha))


@pytest.mark.slow
@pytest.mark.parametrize("n", [(100, 100), (900, 100)])
def test_sixty_looks_at_rare_events_without_an_effect_rarely_reject(n: tuple[int, int]) -> None:
    rng = np.random.default_rng(5)
    control, treatment = (Drawn.bernoulli(rng, each) for each in n)
    pooled = (control.n * control.mean + treatment.n * treatment.mean) / (control.n + treatment.n)
    counts = np.vectorize(lambda a, b, share: counts_as_look(n_control=a, n_treatment=b, share=share))
    assert_never_above(0.05, pvalues_at_the_end(control, treatment, 0.05, counts(control.n, treatment.n, pooled)))


def test_a_hundred_units_of_which_two_are_treated_are_too_few_to_look_at() -> None:
    rng = np.random.default_rng(6)
    control, treatment = Drawn.normal(rng, 98), Drawn.normal(rng, 2)
    assert (pvalues_at_the_end(control, treatment, 0.05) <= 0.05).mean() > 0.06
    counts = [counts_as_look(n_control=a, n_treatment=b) for a, b in zip(control.n, treatment.n, strict=True)]
    assert (pvalues_at_the_end(control, treatment, 0.05, np.array(counts)) <= 0.05).mean() < 0.01


# Group-sequential tests


def rising(gaps: list[float]) -> list[float]:
    return np.cumsum(gaps).tolist()


informations = st.lists(st.floats(0.02, 0.4), min_size=1, max_size=5).map(rising)


@settings(deadline=None, max_examples=40)
@given(informations, alphas, st.sampled_from(SPENDINGS))
def test_the_bounds_are_crossed_with_the_chances_that_are_spent(
    information: list[float], alpha: float, spending: Spending
) -> None:
    bounds = spending_bounds(information, alpha=alpha, spending=spending)
    spent = [alpha_spent(t, alpha=alpha, spending=spending) for t in information]
    chances = crossing_probabilities(bounds, information)
    assert np.cumsum(chances) == pytest.approx(spent, rel=REL, abs=1e-15)


@each_spending
def test_all_of_alpha_is_spent_at_the_end_and_never_less_later(spending: Spending) -> None:
    spent = [alpha_spent(t, alpha=0.05, spending=spending) for t in (*np.linspace(0.001, 1, 100), 1.5)]
    assert spent == sorted(spent)
    assert spent[-1] == spent[-2] == pytest.approx(0.05, rel=REL)


@each_spending
@pytest.mark.parametrize("information", [0.4, 1.0, 1.7])
def test_a_single_look_is_a_fixed_test_of_what_it_may_spend(spending: Spending, information: float) -> None:
    (bound,) = spending_bounds([information], alpha=0.05, spending=spending)
    spent = alpha_spent(information, alpha=0.05, spending=spending)
    assert bound == pytest.approx(stats.norm.isf(spent / 2), rel=REL)


@each_spending
def test_a_look_right_after_another_changes_next_to_nothing(spending: Spending) -> None:
    *_, plain = spending_bounds([0.5, 1.0], alpha=0.05, spending=spending)
    *_, more = spending_bounds([0.5, 0.5002, 1.0], alpha=0.05, spending=spending)
    assert more == pytest.approx(plain, abs=2e-4)


def test_daily_looks_have_bounds_too() -> None:
    days = [day / LOOKS for day in range(1, LOOKS + 1)]
    bounds = spending_bounds(days, alpha=0.05)
    assert sum(crossing_probabilities(bounds, days)) == pytest.approx(0.05, rel=REL)
    assert list(bounds) == sorted(bounds, reverse=True)
    assert bounds[-1] > spending_bounds(FIVE_LOOKS, alpha=0.05)[-1]


def test_a_look_too_early_to_spend_anything_cannot_be_crossed() -> None:
    early, *rest = spending_bounds([0.001, 0.5, 1.0], alpha=0.05)
    assert early == inf
    assert rest == pytest.approx(spending_bounds([0.5, 1.0], alpha=0.05), rel=REL)


def test_overrunning_information_spends_the_rest_once_and_counts_in_the_correlation() -> None:
    *_, at_end = spending_bounds(FIVE_LOOKS, alpha=0.05)
    *earlier, overrun, later = spending_bounds([*FIVE_LOOKS[:-1], 1.3, 1.5], alpha=0.05)
    assert tuple(earlier) == pytest.approx(spending_bounds(FIVE_LOOKS, alpha=0.05)[:-1], rel=REL)
    # Less correlated with the looks before, it would reject more often with the same bound.
    assert overrun > at_end
    assert later == inf


def test_information_that_does_not_rise_is_refused() -> None:
    for information in ([0.5, 0.5], [0.5, 0.4], [0.0, 1.0], [-0.1], [nan], [0.5, inf], [0.5, 0.50001]):
        with pytest.raises(ValueError, match="information"):
            spending_bounds(information, alpha=0.05)
        with pytest.raises(ValueError, match="information rises from 0 by 0.0001 or more"):
            crossing_probabilities([2.0] * len(information), information)
    for information in (0, -1, nan, inf):
        with pytest.raises(ValueError, match=f"information is a finite positive share.*{information}"):
            alpha_spent(information, alpha=0.05)
    with pytest.raises(ValueError, match="alpha lies between 0 and 1, got 1.5"):
        spending_bounds([1.0], alpha=1.5)
    for bound in (0.0, -1.0, nan):
        with pytest.raises(ValueError, match=f"positive, got .*{bound}"):
            crossing_probabilities([2.0, bound], [0.5, 1.0])
    for test in (crossing_probabilities, group_sequential_pvalue):
        with pytest.raises(ValueError, match="one number each, got 2 for 1"):
            test([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="one number each, got 1 for 2"):
        group_sequential([1.0], [0.5, 1.0], alpha=0.05)


def test_a_crossed_bound_stays_crossed_and_nan_crosses_nothing() -> None:
    looks = group_sequential([nan, 3.0, -2.7, 0.1, nan], FIVE_LOOKS, alpha=0.05)
    assert [look.has_crossed for look in looks] == [False, False, True, True, True]
    assert [look.bound for look in looks] == list(spending_bounds(FIVE_LOOKS, alpha=0.05))
    assert [look.alpha_spent for look in looks] == [alpha_spent(t, alpha=0.05) for t in FIVE_LOOKS]
    assert looks[-1].nominal_alpha == pytest.approx(2 * stats.norm.sf(looks[-1].bound), rel=REL)
    assert not any(look.has_crossed for look in group_sequential([nan] * 5, FIVE_LOOKS, alpha=0.05))
    assert group_sequential([], [], alpha=0.05) == []


@given(st.floats(-30, 30), st.floats(1, 1e6))
def test_a_normal_score_has_the_pvalue_of_the_t_statistic(statistic: float, df: float) -> None:
    z = normal_score(statistic, df)
    assert stats.norm.logsf(abs(z)) == pytest.approx(stats.t.logsf(abs(statistic), df), rel=1e-6)
    assert z * statistic >= 0
    assert abs(z) <= abs(statistic) * (1 + 1e-6) + 1e-12


def test_a_statistic_that_is_normal_or_beyond_all_bounds_is_its_own_score() -> None:
    assert normal_score(-2.5, nan) == -2.5
    assert normal_score(500.0, 1e9) == 500.0
    assert isnan(normal_score(nan, 10.0))


def test_five_looks_at_few_normal_units_reject_at_their_level() -> None:
    control, treatment = (Drawn.normal(np.random.default_rng(seed), n) for seed, n in ((8, 9), (9, 3)))
    looks = [11, 23, 35, 47, 59]  # of 60 days, on which 9 and 3 units come
    variance = [arm.mean_variance[:, looks] for arm in (control, treatment)]
    z = (treatment.mean - control.mean)[:, looks] / np.sqrt(sum(variance))
    df = sum(variance) ** 2 / (
        variance[0] ** 2 / (control.n[looks] - 1) + variance[1] ** 2 / (treatment.n[looks] - 1)
    )
    bounds = np.array(spending_bounds(FIVE_LOOKS, alpha=0.05))
    assert_share((np.abs(np.vectorize(normal_score)(z, df)) >= bounds).any(axis=1).tolist(), 0.05)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(-8, 8), min_size=3, max_size=3), alphas, st.sampled_from(SPENDINGS))
def test_the_pvalue_is_below_alpha_where_the_test_with_alpha_crosses(
    z: list[float], alpha: float, spending: Spending
) -> None:
    information = [0.3, 0.7, 1.1]
    pvalue = group_sequential_pvalue(z, information, spending=spending)
    if abs(pvalue / alpha - 1) > 1e-6:
        crossed = group_sequential(z, information, alpha=alpha, spending=spending)[-1].has_crossed
        assert crossed == (pvalue < alpha)


@each_spending
def test_the_pvalue_of_one_look_at_the_end_is_that_of_a_fixed_test(spending: Spending) -> None:
    for z in (1.0, -1.96, 5.0, 20.0):
        pvalue = group_sequential_pvalue([z], [1.0], spending=spending)
        assert pvalue == pytest.approx(2 * stats.norm.sf(abs(z)), rel=1e-6, abs=0)


def test_pvalues_have_an_end_on_both_sides_and_ignore_undefined_looks() -> None:
    assert group_sequential_pvalue([0.0] * 5, FIVE_LOOKS) == 1
    assert group_sequential_pvalue([50.0] * 5, FIVE_LOOKS) == 1e-290
    assert isnan(group_sequential_pvalue([nan] * 5, FIVE_LOOKS))
    assert isnan(group_sequential_pvalue([], []))
    some = group_sequential_pvalue([nan, nan, nan, nan, 2.2], FIVE_LOOKS)
    assert some == group_sequential_pvalue([0.0, 0.0, 0.0, 0.0, 2.2], FIVE_LOOKS)


@each_spending
@pytest.mark.parametrize("information", [FIVE_LOOKS, (0.07, 0.3, 0.35, 0.8, 1.15)])
def test_five_looks_reject_at_their_level(spending: Spending, information: tuple[float, ...]) -> None:
    steps = np.diff(information, prepend=0)
    score = (np.random.default_rng(7).standard_normal((RUNS, 5)) * np.sqrt(steps)).cumsum(axis=1)
    bounds = np.array(spending_bounds(information, alpha=0.05, spending=spending))
    assert_share((np.abs(score / np.sqrt(information)) >= bounds).any(axis=1).tolist(), 0.05)


@pytest.mark.parametrize("z", [-3.0, 0.0, 1.0, 4.0])
@pytest.mark.parametrize("n", [100, 40_000])
def test_the_one_sided_e_value_is_the_mixture_of_likelihoods_of_positive_effects(z: float, n: int) -> None:
    rho = best_rho(alpha=0.05, horizon=5000)

    def ratio(effect: float) -> float:
        """Of effects in standard errors of one unit."""
        at = effect * sqrt(n)
        return float(np.exp(at * z - at * at / 2) * 2 * stats.norm.pdf(effect, scale=rho))

    expected, _ = integrate.quad(ratio, 0, 12 * rho, points=[max(0.0, z / sqrt(n))], limit=200)
    found = float(one_sided_log_e_value(z, n, rho=rho))
    assert found == pytest.approx(np.log(expected), abs=1e-7)


@pytest.mark.slow
def test_a_one_sided_claim_looked_at_daily_is_wrong_as_rarely_as_promised() -> None:
    rng, n = np.random.default_rng(12), np.arange(1, 61) * 100
    z = rng.normal(0, 1, (20_000, 60)).cumsum(axis=1) / np.sqrt(np.arange(1, 61))
    evidence = one_sided_log_e_value(z, n, rho=best_rho(alpha=0.05, horizon=6000))
    wrong = int((always_valid_pvalue(evidence)[:, -1] <= 0.05).sum())
    assert 0 < wrong <= stats.binom.ppf(0.999, 20_000, 0.05)
