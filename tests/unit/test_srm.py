from math import erfc, isnan
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mltrust.stats.srm import srm

COUNTS = st.lists(st.integers(0, 10**7), min_size=2, max_size=6)
WEIGHTS = st.lists(st.floats(0.01, 100), min_size=6, max_size=6)
REL = 1e-9


def defined(counts: list[int], weights: list[float]) -> bool:
    """Whether the test is defined, away from an expected count of 5 that rounding could move."""
    return sum(counts) * min(weights) / sum(weights) > 5.001


@settings(deadline=None, max_examples=40)
@given(COUNTS, WEIGHTS, st.floats(1e-6, 1e6))
def test_only_the_proportions_of_the_weights_matter(counts: list[int], weights: list[float], scale: float) -> None:
    weights = weights[: len(counts)]
    assume(defined(counts, weights))
    plain, scaled = srm(counts, weights), srm(counts, [scale * weight for weight in weights])
    # A statistic near 0 is a difference of two nearly equal counts, known to 1e-16 of them.
    assert scaled.statistic == pytest.approx(plain.statistic, rel=REL, abs=1e-12 * sum(counts))
    assert (scaled.n, scaled.n_unexpected, scaled.df) == (plain.n, plain.n_unexpected, plain.df)


@settings(deadline=None, max_examples=40)
@given(COUNTS, WEIGHTS, st.randoms(use_true_random=False))
def test_the_order_of_the_arms_does_not_matter(counts: list[int], weights: list[float], random: Random) -> None:
    arms = list(zip(counts, weights, strict=False))
    shuffled = random.sample(arms, len(arms))
    first, second = (srm(*zip(*each, strict=True)) for each in (arms, shuffled))
    assert first.statistic == pytest.approx(second.statistic, rel=REL, abs=1e-12 * sum(counts), nan_ok=True)
    assert (first.n, first.df) == (second.n, second.df)


@settings(deadline=None, max_examples=40)
@given(COUNTS, WEIGHTS, st.lists(st.integers(0, 1000), min_size=1, max_size=3))
def test_an_arm_of_weight_zero_is_counted_apart_and_changes_nothing_else(
    counts: list[int], weights: list[float], unexpected: list[int]
) -> None:
    weights = weights[: len(counts)]
    plain = srm(counts, weights)
    result = srm([*unexpected, *counts], [0.0] * len(unexpected) + weights)
    assert result.n_unexpected == sum(unexpected)
    assert plain.n_unexpected == 0
    assert result.n == plain.n == sum(counts)
    assert result.df == plain.df
    assert (result.statistic, result.pvalue) == pytest.approx(
        (plain.statistic, plain.pvalue), rel=REL, abs=0, nan_ok=True
    )


def test_units_only_where_none_should_be_are_counted_and_not_tested() -> None:
    result = srm([0, 0, 12], [0.5, 0.5, 0.0])
    assert (result.n, result.n_unexpected) == (0, 12)
    assert isnan(result.pvalue)


def test_exactly_the_promised_counts_have_a_pvalue_of_one() -> None:
    result = srm([500, 300, 200], [5, 3, 2])
    assert (result.n, result.statistic, result.df, result.pvalue) == (1000, 0, 2, 1)


def test_a_tiny_pvalue_keeps_its_digits() -> None:
    # chi2 = 2 · 15,000² / 1,000,000 = 450, whose p is erfc(sqrt(450 / 2)).
    result = srm([1_015_000, 985_000], [1, 1])
    assert result.statistic == 450
    assert result.pvalue == pytest.approx(erfc(15), rel=1e-9, abs=0)


def test_expected_counts_are_weights_as_well() -> None:
    assert srm([520, 480], [500.0, 500.0]) == srm([520, 480], [0.5, 0.5])


def test_phases_of_allocation_are_tested_against_the_sum_of_what_they_promised() -> None:
    # 10,000 units at 90/10 and then 10,000 at 50/50, each as promised but for a few.
    counts, promised = [14_020, 5_980], [9_000 + 5_000, 1_000 + 5_000]
    assert srm(counts, promised).pvalue > 0.5
    assert srm(counts, [0.5, 0.5]).pvalue < 1e-300


@pytest.mark.parametrize(("counts", "weights"), [([4, 4], [1, 1]), ([94, 5], [19, 1]), ([0, 0], [1, 1])])
def test_an_expected_count_below_five_is_inconclusive(counts: list[int], weights: list[float]) -> None:
    result = srm(counts, weights)
    assert result.n == sum(counts)
    assert isnan(result.statistic)
    assert isnan(result.pvalue)


def test_an_expected_count_of_five_is_tested() -> None:
    assert srm([5, 5], [1, 1]).pvalue == 1


def test_one_arm_has_nothing_to_compare() -> None:
    for result in (srm([100], [1.0]), srm([100, 3], [1.0, 0.0])):
        assert (result.n, result.df) == (100, 0)
        assert isnan(result.pvalue)


@pytest.mark.parametrize(
    ("counts", "expected", "message"),
    [
        ([1, 2], [1.0], "one number per arm"),
        ([[1, 2]], [[1.0, 1.0]], "one number per arm"),
        ([-1, 2], [1.0, 1.0], "not negative"),
        ([1, 2], [1.0, -1.0], "not negative"),
        ([1, 2], [0.0, 0.0], "not all 0"),
        ([1, 2], [1.0, float("nan")], "not negative"),
        ([], [], "not all 0"),
    ],
)
def test_counts_and_weights_that_make_no_sense_are_refused(counts: list, expected: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        srm(counts, expected)
