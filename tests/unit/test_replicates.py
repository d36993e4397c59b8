from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from mltrust.states.moments import FloatArray
from mltrust.states.replicates import (
    UNITS,
    Replicates,
    buckets,
    delete_a_bucket,
    poisson,
    poisson_weights,
    splitmix64,
)

COLUMNS = ("y", "d")
Reduce = Callable[[FloatArray, NDArray[np.uint64]], Replicates]
RNG = np.random.default_rng(1)
# Integers, of which sums are exact in any order.
SAMPLE = RNG.integers(-1000, 1000, (300, 2)).astype(float)
HASHES = RNG.integers(0, 2**64, 300, dtype=np.uint64)


def by_poisson(sample: FloatArray, units: NDArray[np.uint64]) -> Replicates:
    return poisson(COLUMNS, sample, units, seed=7, n_replicates=9)


def by_bucket(sample: FloatArray, units: NDArray[np.uint64]) -> Replicates:
    return delete_a_bucket(COLUMNS, sample, units, seed=7, n_buckets=9)


both = pytest.mark.parametrize("reduce", [by_poisson, by_bucket])


@both
@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(0, 300), max_size=4), data=st.data())
def test_batches_of_units_in_any_order_add_up_to_all_units(
    reduce: Reduce, cuts: list[int], data: st.DataObject
) -> None:
    parts = np.split(data.draw(st.permutations(range(300))), sorted(cuts))
    total = Replicates.empty(COLUMNS, 9)
    for part in parts:
        total = total + reduce(SAMPLE[part], HASHES[part])
    whole = reduce(SAMPLE, HASHES)
    assert (total.columns, total.n, total.n_replicates) == (whole.columns, whole.n, whole.n_replicates)
    assert total.sums.tobytes() == whole.sums.tobytes()


@both
def test_the_first_row_is_the_sample_itself(reduce: Reduce) -> None:
    state = reduce(SAMPLE, HASHES)
    assert state.columns == (UNITS, "y", "d")
    assert state.sums[0].tolist() == [300, *SAMPLE.sum(axis=0)]
    assert (state.n, state.n_replicates, state.sums.shape) == (300, 9, (10, 3))


@pytest.mark.parametrize("n", [0, 1, 300, 40_000])
def test_poisson_sums_are_those_of_its_weights(n: int) -> None:
    sample, units = RNG.normal(5, 1, (n, 2)), RNG.integers(0, 2**64, n, dtype=np.uint64)
    state = poisson(COLUMNS, sample, units, seed=3, n_replicates=10)
    expected = Replicates.of(COLUMNS, sample, poisson_weights(units, seed=3, n_replicates=10))
    # 40,000 products summed in another order.
    np.testing.assert_allclose(state.sums, expected.sums, rtol=1e-12)


def test_a_replicate_without_a_bucket_is_the_sum_over_the_others() -> None:
    codes = buckets(HASHES, seed=7, n_buckets=9)
    weights = codes != np.arange(9)[:, None]
    assert by_bucket(SAMPLE, HASHES).sums.tolist() == Replicates.of(COLUMNS, SAMPLE, weights).sums.tolist()


def test_more_replicates_leave_the_first_ones_as_they_are() -> None:
    many = poisson_weights(HASHES, seed=7, n_replicates=100)
    assert many.shape == (100, 300)
    for n in (1, 4, 5, 97):
        assert (poisson_weights(HASHES, seed=7, n_replicates=n) == many[:n]).all()


def test_a_signed_hash_is_read_by_its_bits() -> None:
    signed = HASHES.view(np.int64)
    assert (signed < 0).any()
    assert (by_poisson(SAMPLE, signed).sums == by_poisson(SAMPLE, HASHES).sums).all()
    assert (by_bucket(SAMPLE, signed).sums == by_bucket(SAMPLE, HASHES).sums).all()


def test_splitmix64_is_the_published_generator() -> None:
    # The first five numbers of splitmix64.c from the seed 1234567, as Rosetta Code prints them.
    counter = np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert splitmix64(counter).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_weights_and_buckets_never_change() -> None:
    # States that are kept, or come from machines of different kinds, must have the same replicates.
    units = np.arange(12, dtype=np.uint64)
    assert poisson_weights(units, seed=0, n_replicates=5).astype(int).tolist() == [
        [2, 1, 2, 0, 1, 1, 0, 1, 1, 0, 0, 0],
        [5, 0, 0, 0, 0, 2, 3, 1, 0, 1, 2, 3],
        [1, 1, 2, 2, 1, 1, 2, 2, 3, 2, 0, 2],
        [0, 1, 0, 1, 0, 1, 2, 0, 0, 0, 0, 1],
        [1, 1, 3, 0, 1, 0, 2, 1, 1, 1, 0, 0],
    ]
    assert buckets(units, seed=0, n_buckets=64).tolist() == [24, 45, 17, 34, 55, 9, 14, 37, 17, 63, 2, 24]


# The worst unit ids there are, and hashes as they come.
IDS = {"counted": np.arange(20_000, dtype=np.uint64), "hashed": RNG.integers(0, 2**64, 20_000, dtype=np.uint64)}
ids = pytest.mark.parametrize("units", IDS.values(), ids=IDS)


@ids
def test_weights_follow_the_poisson_law(units: NDArray[np.uint64]) -> None:
    weights = poisson_weights(units, seed=5, n_replicates=100)
    observed = np.bincount(np.minimum(weights, 7).astype(int).ravel())
    law = stats.poisson.pmf(np.arange(7), 1)
    expected = weights.size * np.append(law, 1 - law.sum())
    # Chances are rounded to 2^-16: 2 million weights must not show it.
    assert stats.chisquare(observed, expected, sum_check=False).pvalue > 0.001
    assert weights.mean() == pytest.approx(1, abs=4 / np.sqrt(weights.size))
    assert weights.var() == pytest.approx(1, abs=4 * np.sqrt(3 / weights.size))


@ids
def test_weights_of_replicates_are_uncorrelated(units: NDArray[np.uint64]) -> None:
    weights = poisson_weights(units, seed=5, n_replicates=100)
    correlation = np.corrcoef(weights)[np.triu_indices(100, 1)] * np.sqrt(len(units))
    assert np.abs(correlation).max() < 5  # of 4,950 normal variables: exceeded once in 350
    assert stats.kstest(correlation, "norm").pvalue > 0.001


@ids
def test_weights_of_neighbouring_units_and_seeds_are_uncorrelated(units: NDArray[np.uint64]) -> None:
    weights = poisson_weights(units, seed=5, n_replicates=40)
    others = [
        np.roll(weights, 1, axis=1),
        *(poisson_weights(units, seed=s, n_replicates=40) for s in (4, 6, 5 + 2**63)),
    ]
    for other in others:
        correlation = ((weights - 1) * (other - 1)).mean(axis=1) * np.sqrt(len(units))
        assert stats.kstest(correlation, "norm").pvalue > 0.001


@ids
def test_buckets_are_equally_likely_and_independent_of_the_weights(units: NDArray[np.uint64]) -> None:
    codes = buckets(units, seed=5, n_buckets=64)
    assert stats.chisquare(np.bincount(codes, minlength=64)).pvalue > 0.001
    weights = poisson_weights(units, seed=5, n_replicates=1)[0]
    table = np.histogram2d(codes, np.minimum(weights, 3), bins=(64, 4))[0]
    assert stats.chi2_contingency(table).pvalue > 0.001


@both
def test_the_empty_state_changes_nothing(reduce: Reduce) -> None:
    state = reduce(SAMPLE, HASHES)
    for total in (state + Replicates.empty(COLUMNS, 9), Replicates.empty(COLUMNS, 9) + state):
        assert (total.n, total.sums.tolist()) == (state.n, state.sums.tolist())
    nobody = reduce(SAMPLE[:0], HASHES[:0])
    assert (nobody.n, nobody.sums.any(), nobody.sums.shape) == (0, False, (10, 3))


def test_a_state_without_columns_counts_units() -> None:
    state = poisson((), np.empty((300, 0)), HASHES, seed=7, n_replicates=9)
    assert (state.column(UNITS) == by_poisson(SAMPLE, HASHES).column(UNITS)).all()


def test_states_of_other_replicates_cannot_be_added() -> None:
    with pytest.raises(ValueError, match=r"9 replicates .* and 8"):
        by_poisson(SAMPLE, HASHES) + Replicates.empty(COLUMNS, 8)
    with pytest.raises(ValueError, match=r"'y', 'd'.* and .*'d', 'y'"):
        by_poisson(SAMPLE, HASHES) + Replicates.empty(("d", "y"), 9)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\['d'\]"):
        by_poisson(np.array([[1.0, np.nan]]), HASHES[:1])
    with pytest.raises(ValueError, match=r"needs shape \(n, 2\), got \(300, 1\)"):
        by_poisson(SAMPLE[:, :1], HASHES)
    with pytest.raises(ValueError, match="as many hashes"):
        by_bucket(SAMPLE, HASHES[1:])
    with pytest.raises(ValueError, match="64 bits, got float64"):
        by_poisson(SAMPLE, HASHES.astype(float))
    with pytest.raises(ValueError, match="64 bits, got int32"):
        by_bucket(SAMPLE, HASHES.astype(np.int32))
    with pytest.raises(ValueError, match=r"shape \(B, 300\), got \(2, 299\)"):
        Replicates.of(COLUMNS, SAMPLE, np.ones((2, 299)))
    with pytest.raises(ValueError, match="at least 1 replicate"):
        poisson(COLUMNS, SAMPLE, HASHES, seed=7, n_replicates=0)
    with pytest.raises(ValueError, match="at least 2 buckets"):
        delete_a_bucket(COLUMNS, SAMPLE, HASHES, seed=7, n_buckets=1)
    with pytest.raises(ValueError, match="distinct"):
        Replicates.empty(("y", UNITS), 3)
    with pytest.raises(ValueError, match=r"\(1 \+ replicates, 1\), got \(1, 1\)"):
        Replicates.empty((), 0)
    with pytest.raises(ValueError, match="'z'"):
        Replicates.empty(COLUMNS, 3).column("z")
