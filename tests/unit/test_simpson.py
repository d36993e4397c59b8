from math import isnan, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mltrust.stats.means import Arm
from mltrust.stats.simpson import Gap, pooled_gap

MEANS = st.floats(-100, 100)
COUNTS = st.integers(2, 10_000)
ARMS = st.builds(Arm, n=COUNTS, mean=MEANS, variance=st.floats(0.01, 1e4))
PAIRS = st.lists(st.tuples(ARMS, ARMS), min_size=1, max_size=6)
SIZE = 1e-12 * 100  # of the largest means


def share(successes: int, n: int) -> Arm:
    p = successes / n
    return Arm(n, p, p * (1 - p))


@settings(deadline=None, max_examples=40)
@given(PAIRS)
def test_the_pool_is_the_difference_of_the_means_of_all_units(pairs: list[tuple[Arm, Arm]]) -> None:
    gap = pooled_gap(pairs)
    control, treatment = zip(*pairs, strict=True)
    means = [sum(arm.n * arm.mean for arm in arms) / sum(arm.n for arm in arms) for arms in (control, treatment)]
    assert gap.pooled == pytest.approx(means[1] - means[0], rel=0, abs=SIZE)
    assert gap.gap == pytest.approx(gap.pooled - gap.post_stratified, rel=0, abs=SIZE)
    assert (gap.n, gap.n_slices) == (sum(arm.n for arm in control + treatment), len(pairs))


@settings(deadline=None, max_examples=40)
@given(PAIRS)
def test_exchanging_the_arms_changes_signs_but_no_name(pairs: list[tuple[Arm, Arm]]) -> None:
    gap, exchanged = pooled_gap(pairs), pooled_gap([(t, c) for c, t in pairs])
    assert (exchanged.pooled, exchanged.gap) == pytest.approx((-gap.pooled, -gap.gap), rel=0, abs=SIZE)
    assert exchanged.mix_pvalue == pytest.approx(gap.mix_pvalue, rel=1e-9)
    # Signs and levels that are decided by rounding may be decided either way.
    if min(abs(gap.pooled), abs(gap.post_stratified), abs(gap.gap)) > 1e-6 and abs(gap.pvalue - 0.01) > 1e-6:
        assert exchanged.kind == gap.kind


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(COUNTS, MEANS, MEANS), min_size=1, max_size=6), st.integers(1, 9))
def test_the_same_mix_in_both_arms_leaves_no_gap(slices: list[tuple[int, float, float]], factor: int) -> None:
    gap = pooled_gap([(Arm(n, c, 1.0), Arm(factor * n, t, 1.0)) for n, c, t in slices])
    assert (gap.gap, gap.statistic, gap.pvalue, gap.kind) == (0, 0, 1, "none")
    assert gap.mix_pvalue == pytest.approx(1)


@settings(deadline=None, max_examples=40)
@given(ARMS, ARMS)
def test_one_slice_has_no_gap(control: Arm, treatment: Arm) -> None:
    gap = pooled_gap([(control, treatment)])
    assert (gap.n_slices, gap.gap, gap.pvalue, gap.mix_pvalue, gap.kind) == (1, 0, 1, 1, "none")


@settings(deadline=None, max_examples=40)
@given(PAIRS)
def test_the_mix_is_tested_as_a_table_of_slices_by_arms(pairs: list[tuple[Arm, Arm]]) -> None:
    counts = [[control.n, treatment.n] for control, treatment in pairs]
    expected = stats.chi2_contingency(counts, correction=False)
    # A statistic near 0 is a difference of nearly equal counts; far in the tail its error counts in full.
    tolerance = 1e-10 * max(1, expected.statistic)
    assert pooled_gap(pairs).mix_pvalue == pytest.approx(expected.pvalue, rel=tolerance, abs=1e-300)


def test_every_slice_against_the_pool_is_a_reversal() -> None:
    # 0.01 ± 0.07 within the slices: not shown by itself.
    pairs = [(Arm(900, 9.0, 1.0), Arm(100, 9.01, 1.0)), (Arm(100, 1.0, 1.0), Arm(900, 1.01, 1.0))]
    gap = pooled_gap(pairs)
    assert gap.pooled < 0 < gap.post_stratified
    assert gap.kind == "reversal"


def test_a_significant_effect_within_slices_against_the_pool_is_a_reversal_even_if_one_slice_is_not() -> None:
    pairs = [
        (Arm(900, 9.0, 1.0), Arm(100, 9.5, 1.0)),
        (Arm(100, 1.0, 1.0), Arm(900, 1.5, 1.0)),
        (Arm(100, 5.0, 1.0), Arm(100, 4.99, 1.0)),
    ]
    gap = pooled_gap(pairs)
    assert gap.pooled < 0 < gap.post_stratified
    assert gap.kind == "reversal"


def test_a_reversal_that_could_be_noise_is_a_mix_shift() -> None:
    pairs = [(Arm(900, 9.0, 1.0), Arm(100, 9.02, 1.0)), (Arm(100, 1.0, 1.0), Arm(900, 0.99, 1.0))]
    gap = pooled_gap(pairs)
    assert gap.pooled < 0 < gap.post_stratified
    assert gap.kind == "mix shift"


def test_a_pool_and_slices_of_the_same_sign_are_at_most_a_mix_shift() -> None:
    pairs = [(Arm(900, 1.0, 1.0), Arm(100, 2.0, 1.0)), (Arm(100, 9.0, 1.0), Arm(900, 10.0, 1.0))]
    assert pooled_gap(pairs).kind == "mix shift"


def test_a_mix_that_chance_may_have_made_gets_no_name() -> None:
    # Mixes of 51 % and 49 %: p = 0.37. With slices as far apart as 1 and 9 the gap is significant nevertheless.
    pairs = [(Arm(510, 9.0, 0.01), Arm(490, 9.05, 0.01)), (Arm(490, 1.0, 0.01), Arm(510, 1.05, 0.01))]
    gap = pooled_gap(pairs)
    assert gap.pooled < 0 < gap.post_stratified
    assert gap.pvalue < 1e-100
    assert gap.mix_pvalue == pytest.approx(stats.chi2.sf(0.8, 1))
    assert gap.kind == "none"
    larger = [(c._replace(n=20 * c.n), t._replace(n=20 * t.n)) for c, t in pairs]
    assert pooled_gap(larger).kind == "reversal"


def test_a_different_mix_of_slices_that_are_alike_gets_no_name() -> None:
    gap = pooled_gap([(share(90, 900), share(10, 100)), (share(10, 100), share(90, 900))])
    assert gap.mix_pvalue < 1e-100
    assert gap.kind == "none"


@pytest.mark.parametrize(
    "pairs",
    [
        [(Arm(50, 1.0, 1.0), Arm(50, 1.0, 1.0)), (Arm(30, 2.0, 1.0), Arm(0, nan, nan))],
        [(Arm(50, 1.0, 1.0), Arm(50, 1.0, 1.0)), (Arm(30, 2.0, 1.0), Arm(1, 2.0, nan))],
        [(Arm(50, 1.0, 1.0), Arm(0, nan, nan)), (Arm(30, 2.0, 1.0), Arm(0, nan, nan))],
        [(Arm(900, 1.0, 0.0), Arm(100, 1.0, 0.0)), (Arm(100, 2.0, 0.0), Arm(900, 2.0, 0.0))],
    ],
    ids=["empty arm of a slice", "one unit", "no treatment", "nothing varies"],
)
def test_a_gap_without_a_test_is_inconclusive(pairs: list[tuple[Arm, Arm]]) -> None:
    gap = pooled_gap(pairs)
    assert isnan(gap.pvalue)
    assert gap.kind == "inconclusive"


def test_a_mix_without_an_arm_has_no_test() -> None:
    assert isnan(
        pooled_gap([(Arm(50, 1.0, 1.0), Arm(0, nan, nan)), (Arm(30, 2.0, 1.0), Arm(0, nan, nan))]).mix_pvalue
    )


RATES = np.array([0.02, 0.2, 0.5, 0.9])
SHARES = np.array([0.4, 0.3, 0.2, 0.1])


def experiments(runs: int, *, n: tuple[int, int], effect: float, shift: float = 0.0) -> list[Gap]:
    """The gaps of experiments with one effect in all slices; `shift` of the treatment goes from first to last."""
    rng = np.random.default_rng(1)
    mixes = SHARES, SHARES + shift * np.array([-1, 0, 0, 1])
    arms = []
    for n_arm, mix, rates in zip(n, mixes, (RATES, RATES + effect), strict=True):
        counts = rng.multinomial(n_arm, mix, runs)
        cells = np.dstack([rng.binomial(counts, rates), counts]).tolist()
        arms.append([[share(*cell) for cell in run] for run in cells])
    return [pooled_gap(list(zip(*run, strict=True))) for run in zip(*arms, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("effect", [0.0, 0.01])
@pytest.mark.parametrize("n", [(2000, 2000), (3200, 800)])
def test_clean_experiments_with_slices_far_apart_get_almost_no_names(n: tuple[int, int], effect: float) -> None:
    runs = 1500
    gaps = experiments(runs, n=n, effect=effect)
    # The gap itself is significant in most of them, as it is tested given the mix.
    assert np.mean([gap.pvalue < 0.01 for gap in gaps]) > 0.5
    # A name needs a mix at p < 0.001: at most 7 of 1,500 with a chance of 99.9 %.
    named = sum(gap.kind != "none" for gap in gaps)
    assert named <= stats.binom.ppf(0.999, runs, 0.001)


def test_experiments_with_a_moved_mix_are_named() -> None:
    gaps = experiments(200, n=(2000, 2000), effect=0.01, shift=0.1)
    assert {gap.kind for gap in gaps} <= {"mix shift", "reversal"}
