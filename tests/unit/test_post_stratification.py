from collections.abc import Sequence
from math import isnan, nan
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrust.states.moments import Moments
from mltrust.stats.means import Arm, mean_arm, welch
from mltrust.stats.post_stratification import join_small, post_stratified

ARMS = st.builds(
    Arm, n=st.integers(2, 10_000), mean=st.floats(-100, 100), variance=st.floats(0, 1e4, allow_subnormal=False)
)
PAIRS = st.lists(st.tuples(ARMS, ARMS), min_size=1, max_size=6)
TEST = ("effect", "std_error", "df", "statistic", "pvalue", "ci_low", "ci_high")


def numbers(result: object, names: Sequence[str] = TEST) -> list[float]:
    return [getattr(result, name) for name in names]


@settings(deadline=None, max_examples=40)
@given(ARMS, ARMS, st.booleans())
def test_one_slice_is_welchs_test(control: Arm, treatment: Arm, fixed_weights: bool) -> None:
    result = post_stratified([(control, treatment)], fixed_weights=fixed_weights, alpha=0.1)
    expected = welch(control=control, treatment=treatment, alpha=0.1)
    assert (result.n_control, result.n_treatment) == (control.n, treatment.n)
    # A limit close to 0 has the rounding of the standard error it is made from.
    size = 0 if isnan(expected.std_error) else 1e-12 * expected.std_error
    assert numbers(result) == pytest.approx(numbers(expected), rel=1e-9, abs=size, nan_ok=True)


def test_one_slice_has_fiellers_interval_of_welchs_test() -> None:
    control, treatment = Arm(120, 5.0, 30.0), Arm(250, 5.6, 40.0)
    names = ("mean_control", "mean_treatment", "rel_effect", "rel_ci_low", "rel_ci_high")
    expected = welch(control=control, treatment=treatment)
    assert numbers(post_stratified([(control, treatment)]), names) == pytest.approx(
        numbers(expected, names), rel=1e-12
    )


@settings(deadline=None, max_examples=40)
@given(PAIRS, st.booleans(), st.randoms(use_true_random=False))
def test_the_order_of_the_slices_does_not_matter(
    pairs: list[tuple[Arm, Arm]], fixed_weights: bool, random: Random
) -> None:
    shuffled = random.sample(pairs, len(pairs))
    first, second = (post_stratified(each, fixed_weights=fixed_weights) for each in (pairs, shuffled))
    assert first.effect == pytest.approx(second.effect, rel=0, abs=1e-12 * 100)  # of the largest means
    assert first.std_error == pytest.approx(second.std_error, rel=1e-9, abs=1e-12, nan_ok=True)


@settings(deadline=None, max_examples=40)
@given(PAIRS, st.booleans())
def test_exchanging_the_arms_changes_the_sign_only(pairs: list[tuple[Arm, Arm]], fixed_weights: bool) -> None:
    result = post_stratified(pairs, fixed_weights=fixed_weights)
    exchanged = post_stratified([(t, c) for c, t in pairs], fixed_weights=fixed_weights)
    assert exchanged.effect == pytest.approx(-result.effect, rel=0, abs=1e-12 * 100)  # of the largest means
    assert (exchanged.std_error, exchanged.df) == pytest.approx(
        (result.std_error, result.df), rel=1e-9, abs=1e-12, nan_ok=True
    )


@settings(deadline=None, max_examples=40)
@given(PAIRS)
def test_known_shares_of_the_slices_never_leave_more_error(pairs: list[tuple[Arm, Arm]]) -> None:
    known, came = (post_stratified(pairs, fixed_weights=fixed).std_error for fixed in (True, False))
    assert isnan(known) or known <= came * (1 + 1e-12)


@settings(deadline=None, max_examples=40)
@given(PAIRS, st.floats(0.01, 0.5))
def test_the_relative_interval_excludes_zero_exactly_when_the_absolute_one_does(
    pairs: list[tuple[Arm, Arm]], alpha: float
) -> None:
    result = post_stratified(pairs, alpha=alpha)
    if isnan(result.rel_ci_low) or min(abs(result.ci_low), abs(result.ci_high)) < 1e-6 * result.std_error:
        return
    assert (result.rel_ci_low > 0 or result.rel_ci_high < 0) == (result.ci_low > 0 or result.ci_high < 0)


def test_equal_effects_in_all_slices_have_no_error_from_their_shares() -> None:
    pairs = [(Arm(100, base, 4.0), Arm(50, base + 0.5, 4.0)) for base in (1.0, 8.0, 16.0)]
    known, came = (post_stratified(pairs, fixed_weights=fixed) for fixed in (True, False))
    assert came.effect == pytest.approx(0.5, rel=1e-12)
    assert came.std_error == pytest.approx(known.std_error, rel=1e-12)
    # The control mean does depend on which slices came, and with it the relative effect.
    assert came.rel_ci_high - came.rel_ci_low > known.rel_ci_high - known.rel_ci_low


def test_the_effect_is_the_one_by_hand() -> None:
    # Shares 0.2 and 0.8, effects 1 and -2: 0.2·1 - 0.8·2. Variance: 0.04·(1/5 + 1/5) + 0.64·(4/40 + 4/40) within,
    # and (0.2·2.4² + 0.8·0.6²) / 100 between.
    pairs = [(Arm(10, 0.0, 2.0), Arm(10, 1.0, 2.0)), (Arm(40, 5.0, 4.0), Arm(40, 3.0, 4.0))]
    within, between = 0.04 * 0.4 + 0.64 * 0.2, (0.2 * 2.4**2 + 0.8 * 0.6**2) / 100
    for fixed_weights, variance in ((True, within), (False, within + between)):
        result = post_stratified(pairs, fixed_weights=fixed_weights)
        assert (result.n_control, result.n_treatment) == (50, 50)
        assert (result.mean_control, result.mean_treatment) == pytest.approx((4.0, 2.6))
        assert result.effect == pytest.approx(-1.4)
        assert result.std_error == pytest.approx(variance**0.5)


def test_an_unequal_mix_of_slices_is_no_effect() -> None:
    pairs = [(Arm(900, 1.0, 1.0), Arm(100, 1.0, 1.0)), (Arm(100, 9.0, 1.0), Arm(900, 9.0, 1.0))]
    result = post_stratified(pairs)
    assert (result.effect, result.pvalue) == (0, 1)


@pytest.mark.parametrize("small", [Arm(0, nan, nan), Arm(1, 3.0, nan)])
def test_a_slice_with_fewer_than_two_units_in_an_arm_has_no_test(small: Arm) -> None:
    result = post_stratified([(Arm(50, 1.0, 1.0), Arm(50, 2.0, 1.0)), (Arm(10, 1.0, 1.0), small)])
    assert (result.n_control, result.n_treatment) == (60, 50 + small.n)
    assert all(isnan(value) for value in numbers(result, TEST[1:]))


def test_units_that_never_vary_have_no_test() -> None:
    result = post_stratified([(Arm(50, 1.0, 0.0), Arm(50, 2.0, 0.0))] * 2)
    assert result.effect == 1
    assert isnan(result.pvalue)


def test_no_slices_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one slice"):
        post_stratified([])


def units(n: int, mean: float) -> Moments:
    return Moments.of(("y",), mean + np.arange(n)[:, None])


SIZES = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=8)


@settings(deadline=None, max_examples=40)
@given(SIZES, st.integers(1, 8))
def test_joining_small_slices_drops_no_unit(sizes: list[tuple[int, int]], smallest: int) -> None:
    pairs = [(units(c, 10.0 * k), units(t, 10.0 * k + 1)) for k, (c, t) in enumerate(sizes)]
    joined = join_small(pairs, smallest=smallest)
    for before, after in zip(zip(*pairs, strict=True), zip(*joined.pairs, strict=True), strict=True):
        assert sum(state.n for state in after) == sum(state.n for state in before)
        totals = [sum(state.n * state.mean[0] for state in each if state.n) for each in (before, after)]
        assert totals[1] == pytest.approx(totals[0], rel=1e-12)


@settings(deadline=None, max_examples=40)
@given(SIZES, st.integers(1, 8))
def test_no_slice_stays_small_unless_all_of_them_together_are(sizes: list[tuple[int, int]], smallest: int) -> None:
    pairs = [(units(c, 0.0), units(t, 0.0)) for c, t in sizes]
    joined = join_small(pairs, smallest=smallest)
    n_left_alone = len(joined.pairs) - (joined.n_joined > 0)
    assert n_left_alone + joined.n_joined == len(pairs)
    small = [min(c.n, t.n) < smallest for c, t in joined.pairs]
    together = min(sum(c for c, _ in sizes), sum(t for _, t in sizes))
    assert small == [False] * len(joined.pairs) or (len(small) == 1 and together < smallest)
    if all(min(size) >= smallest for size in sizes):
        assert joined.n_joined == 0


def test_the_joined_slice_is_last_and_takes_in_the_smallest_of_the_others_while_it_is_small() -> None:
    pairs = [(units(c, 0.0), units(t, 0.0)) for c, t in ((90, 80), (2, 3), (7, 6), (50, 60))]
    joined = join_small(pairs)
    assert [(c.n, t.n) for c, t in joined.pairs] == [(50, 60), (90, 80), (2 + 7, 3 + 6)]
    assert joined.n_joined == 2


def test_the_joined_slice_takes_in_no_other_once_it_is_large_enough() -> None:
    joined = join_small(
        [(units(2, 0.0), units(3, 0.0)), (units(7, 0.0), units(6, 0.0)), (units(3, 0.0), units(2, 0.0))]
    )
    assert [(c.n, t.n) for c, t in joined.pairs] == [(7, 6), (5, 5)]


def test_slices_that_are_large_enough_stay_apart() -> None:
    pairs = [(units(5, 0.0), units(9, 1.0)), (units(20, 0.0), units(5, 1.0))]
    joined = join_small(pairs)
    assert joined.n_joined == 0
    assert len(joined.pairs) == 2


def test_slices_too_small_even_together_become_one() -> None:
    joined = join_small([(units(1, 0.0), units(2, 0.0)), (units(2, 0.0), units(1, 0.0))])
    assert [(c.n, t.n) for c, t in joined.pairs] == [(3, 3)]
    assert joined.n_joined == 2


def test_joined_slices_are_compared_as_one() -> None:
    pairs = [(units(3, 1.0), units(4, 2.0)), (units(2, 5.0), units(3, 1.0))]
    (together,) = join_small(pairs).pairs
    control, treatment = (mean_arm(a + b, "y") for a, b in zip(*pairs, strict=True))
    result = post_stratified([(mean_arm(together[0], "y"), mean_arm(together[1], "y"))])
    assert numbers(result) == pytest.approx(numbers(welch(control=control, treatment=treatment)), rel=1e-9)
