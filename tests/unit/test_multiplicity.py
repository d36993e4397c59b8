from collections.abc import Callable
from itertools import chain, combinations
from math import isnan, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrust.stats.multiplicity import benjamini_hochberg, holm

Adjust = Callable[[list[float]], tuple[float, ...]]

both = pytest.mark.parametrize("adjust", [benjamini_hochberg, holm])
PVALUES = st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.01, 0.05, 1.0])), max_size=30)
WITH_NAN = st.lists(st.one_of(st.floats(0, 1), st.just(nan)), max_size=30)


@both
@settings(deadline=None, max_examples=40)
@given(pvalues=PVALUES)
def test_a_smaller_pvalue_never_gets_a_larger_adjusted_one(adjust: Adjust, pvalues: list[float]) -> None:
    adjusted = adjust(pvalues)
    ascending = [q for _, q in sorted(zip(pvalues, adjusted, strict=True))]
    assert ascending == sorted(adjusted)


@both
@settings(deadline=None, max_examples=40)
@given(pvalues=PVALUES, data=st.data())
def test_smaller_pvalues_never_give_larger_adjusted_ones(
    adjust: Adjust, pvalues: list[float], data: st.DataObject
) -> None:
    smaller = [data.draw(st.floats(0, p)) for p in pvalues]
    assert all(a <= b for a, b in zip(adjust(smaller), adjust(pvalues), strict=True))


@both
@settings(deadline=None, max_examples=40)
@given(pvalues=WITH_NAN, data=st.data())
def test_the_order_of_the_tests_is_kept_and_does_not_matter(
    adjust: Adjust, pvalues: list[float], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(pvalues))))
    adjusted = adjust(pvalues)
    np.testing.assert_array_equal(adjust([pvalues[i] for i in order]), [adjusted[i] for i in order])


@both
@settings(deadline=None, max_examples=40)
@given(pvalues=WITH_NAN)
def test_nan_stays_nan_and_is_no_member_of_the_family(adjust: Adjust, pvalues: list[float]) -> None:
    adjusted = adjust(pvalues)
    assert [isnan(q) for q in adjusted] == [isnan(p) for p in pvalues]
    assert tuple(q for q in adjusted if not isnan(q)) == adjust([p for p in pvalues if not isnan(p)])


@both
@settings(deadline=None, max_examples=40)
@given(pvalues=PVALUES)
def test_adjusting_never_makes_a_pvalue_smaller_nor_larger_than_one(adjust: Adjust, pvalues: list[float]) -> None:
    # p·m/m may lose the last bit.
    assert all(p * (1 - 1e-15) <= q <= 1 for p, q in zip(pvalues, adjust(pvalues), strict=True))


@settings(deadline=None, max_examples=40)
@given(PVALUES)
def test_holm_never_rejects_more_than_benjamini_hochberg(pvalues: list[float]) -> None:
    adjusted = zip(benjamini_hochberg(pvalues), holm(pvalues), strict=True)
    assert all(q <= family_wise * (1 + 1e-15) for q, family_wise in adjusted)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closure_of_bonferroni(pvalues: list[float]) -> None:
    m = len(pvalues)
    families = list(chain.from_iterable(combinations(range(m), size) for size in range(1, m + 1)))
    bonferroni = {family: min(1, len(family) * min(pvalues[i] for i in family)) for family in families}
    closure = [max(p for family, p in bonferroni.items() if i in family) for i in range(m)]
    assert holm(pvalues) == pytest.approx(tuple(closure), rel=1e-15, abs=0)


@pytest.mark.parametrize("seed", range(20))
def test_a_qvalue_is_at_most_the_rate_exactly_where_the_step_up_rejects(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pvalues, rate = rng.beta(0.3, 2, 30), rng.uniform(0.01, 0.3)
    below = np.flatnonzero(np.sort(pvalues) <= rate * np.arange(1, 31) / 30)
    n_rejected = below[-1] + 1 if len(below) else 0
    rejected = np.array(benjamini_hochberg(pvalues.tolist())) <= rate
    assert rejected.sum() == n_rejected
    assert not n_rejected or pvalues[rejected].max() == np.sort(pvalues)[n_rejected - 1]


@both
def test_one_test_needs_no_correction(adjust: Adjust) -> None:
    assert adjust([0.03]) == (0.03,)
    np.testing.assert_array_equal(adjust([nan, 0.03, nan]), [nan, 0.03, nan])


@both
def test_no_tests_give_no_pvalues(adjust: Adjust) -> None:
    assert adjust([]) == ()


@both
@pytest.mark.parametrize("wrong", [-0.01, 1.01])
def test_a_pvalue_outside_zero_and_one_is_refused(adjust: Adjust, wrong: float) -> None:
    with pytest.raises(ValueError, match=str(wrong)):
        adjust([0.5, wrong])
