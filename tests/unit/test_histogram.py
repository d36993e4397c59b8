import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mltrust.states.histogram import Histogram

ARMS = ("control", "treatment", "holdout")
SAMPLES = st.lists(st.sampled_from(ARMS))


@given(SAMPLES, SAMPLES)
def test_adding_the_parts_counts_the_whole(a: list[str], b: list[str]) -> None:
    total = Histogram.of(ARMS, a) + Histogram.of(ARMS, b)
    assert total.counts.tolist() == [(a + b).count(arm) for arm in ARMS]
    assert total.n == len(a + b)


@given(SAMPLES)
def test_no_observations_change_nothing(sample: list[str]) -> None:
    counts = Histogram.of(ARMS, sample)
    assert (counts + Histogram.empty(ARMS)).counts.tolist() == counts.counts.tolist()


def test_counts_above_the_precision_of_floats_are_exact() -> None:
    large = Histogram(("a",), np.array([2**53], dtype=np.int64))
    assert (large + Histogram.of(("a",), ["a"])).n == 2**53 + 1


def test_a_value_outside_the_support_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"\['pool'\] are not in the support"):
        Histogram.of(ARMS, ["control", "pool"])


def test_histograms_of_other_supports_cannot_be_added() -> None:
    with pytest.raises(ValueError, match=r"\('a',\) and \('b',\)"):
        Histogram.empty(("a",)) + Histogram.empty(("b",))


def test_counts_that_are_no_integers_or_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="float64"):
        Histogram(("a",), np.array([1.5]))
    with pytest.raises(ValueError, match=r"\(1,\)"):
        Histogram(("a", "b"), np.array([1]))
    with pytest.raises(ValueError, match="distinct"):
        Histogram.empty(("a", "a"))
