import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from mltrust.states.moments import FloatArray, Moments, merge, weighted

COLUMNS = ("y", "d", "x")
# Squares of smaller numbers underflow, and no relative bound holds for them.
NUMBERS = st.just(0.0) | st.floats(1e-100, 1e6) | st.floats(-1e6, -1e-100)


@st.composite
def samples(draw: st.DrawFn, offsets: tuple[float, ...] = (0.0, 1e9)) -> FloatArray:
    n = draw(st.integers(0, 40))
    values = draw(arrays(np.float64, (n, 3), elements=NUMBERS))
    return values + draw(st.sampled_from(offsets))


def assert_same(actual: Moments, expected: Moments) -> None:
    """Equal to 1e-12 of the size of the values: a mean near 0 of large values has no more digits than they."""
    assert (actual.columns, actual.n) == (expected.columns, expected.n)
    if expected.n == 0:
        assert np.isnan(actual.mean).all()
        assert not actual.scatter.any()
        return
    spread = np.sqrt(np.diag(expected.scatter))
    size = np.abs(expected.mean) + spread
    assert (np.abs(actual.mean - expected.mean) <= 1e-12 * size).all()
    # An entry takes the rounding of either column's mean, times the spread of the other.
    rounding = np.outer(size, spread) + np.outer(spread, size)
    assert (np.abs(actual.scatter - expected.scatter) <= 1e-12 * expected.n * rounding).all()


@settings(deadline=None)
@given(samples(), st.lists(st.integers(0, 40), max_size=4))
def test_merging_the_parts_gives_the_whole(sample: FloatArray, cuts: list[int]) -> None:
    parts = [Moments.of(COLUMNS, part) for part in np.split(sample, sorted(cuts))]
    assert_same(merge(parts, COLUMNS), Moments.of(COLUMNS, sample))


@settings(deadline=None)
@given(samples(), samples(), samples())
def test_addition_is_commutative_and_associative(a: FloatArray, b: FloatArray, c: FloatArray) -> None:
    x, y, z = (Moments.of(COLUMNS, sample) for sample in (a, b, c))
    assert_same(y + x, x + y)
    assert_same((x + y) + z, x + (y + z))


@settings(deadline=None)
@given(samples())
def test_the_empty_state_changes_nothing(sample: FloatArray) -> None:
    state, empty = Moments.of(COLUMNS, sample), Moments.empty(COLUMNS)
    for same in (state + empty, empty + state):
        np.testing.assert_array_equal(same.mean, state.mean)
        np.testing.assert_array_equal(same.scatter, state.scatter)


@settings(deadline=None)
@given(samples(), st.data())
def test_grouping_gives_the_state_of_each_group(sample: FloatArray, data: st.DataObject) -> None:
    codes = data.draw(arrays(np.int64, len(sample), elements=st.integers(0, 4)))
    states = Moments.by_group(COLUMNS, codes, 5, sample)
    assert len(states) == 5
    for group, state in enumerate(states):
        alone = Moments.of(COLUMNS, sample[codes == group])
        assert state.n == alone.n
        # The order of rows within a group is kept, and with it every bit, but the pilot row's and so the last ones.
        assert_same(state, alone)


@settings(deadline=None)
@given(samples(offsets=(0.0,)))
def test_moments_are_those_of_numpy(sample: FloatArray) -> None:
    if len(sample) < 2:
        return
    state = Moments.of(COLUMNS, sample)
    spread = np.sqrt(np.diag(state.scatter)) + np.abs(sample).max(axis=0)
    np.testing.assert_allclose(state.mean, sample.mean(axis=0), rtol=1e-12, atol=1e-12 * spread.max())
    expected = np.cov(sample, rowvar=False)
    actual = [[state.cov(a, b) for b in COLUMNS] for a in COLUMNS]
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12 * spread.max() ** 2)
    assert state.var("d") == state.cov("d", "d")


def test_an_offset_costs_no_digits() -> None:
    sample = np.random.default_rng(1).integers(0, 100, size=(1000, 3)).astype(float)
    offset = Moments.of(COLUMNS, sample + 1e9)
    np.testing.assert_allclose(offset.scatter, Moments.of(COLUMNS, sample).scatter, rtol=1e-9)


@pytest.mark.parametrize("value", [0.1, 1e9 + 0.1, -7.3e-5])
def test_a_constant_column_has_a_variance_of_exactly_zero_after_any_merges(value: float) -> None:
    parts = [Moments.of(("y",), np.full((n, 1), value)) for n in (1, 7, 10, 333)]
    whole = merge(parts, ("y",))
    assert whole.mean[0] == value
    assert whole.var("y") == 0


def test_the_same_rows_give_the_same_bits_in_either_memory_order() -> None:
    sample = np.random.default_rng(2).normal(size=(5000, 3))
    a, b = (Moments.of(COLUMNS, np.asarray(sample, order=order)) for order in ("C", "F"))
    assert a.mean.tobytes() == b.mean.tobytes()
    assert a.scatter.tobytes() == b.scatter.tobytes()


def test_an_empty_state_has_a_mean_of_nan_not_zero() -> None:
    for state in (Moments.empty(("y",)), Moments.of(("y",), np.empty((0, 1))), merge([], ("y",))):
        assert state.n == 0
        assert np.isnan(state.mean).all()
        assert np.isnan(state.var("y"))


def test_one_unit_has_a_mean_but_no_variance() -> None:
    state = Moments.of(("y",), [[3.0]])
    assert state.mean[0] == 3
    assert np.isnan(state.var("y"))


def test_a_state_without_columns_counts_units() -> None:
    states = Moments.by_group((), np.array([0, 2, 0]), 3, np.empty((3, 0)))
    assert [state.n for state in states] == [2, 0, 1]
    assert merge(states, ()).n == 3


def test_states_of_other_columns_cannot_be_added() -> None:
    with pytest.raises(ValueError, match=r"\('y', 'd'\) and \('d', 'y'\)"):
        Moments.empty(("y", "d")) + Moments.empty(("d", "y"))
    with pytest.raises(ValueError, match="cannot add"):
        merge([Moments.empty(("d",))], ("y",))


@pytest.mark.parametrize("missing", [np.nan, np.inf])
def test_a_missing_value_is_refused_by_column(missing: float) -> None:
    with pytest.raises(ValueError, match=r"\['d'\]"):
        Moments.of(("y", "d"), [[1.0, 2.0], [3.0, missing]])


def test_an_unknown_column_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'z'.*\('y',\)"):
        Moments.empty(("y",)).var("z")


@pytest.mark.parametrize("codes", [[0, 3], [-1, 0], [0], [0, 1, 2]])
def test_codes_that_do_not_fit_the_sample_are_refused(codes: list[int]) -> None:
    with pytest.raises(ValueError, match="got"):
        Moments.by_group(("y",), np.array(codes), 3, np.zeros((2, 1)))


def test_arrays_that_do_not_fit_the_columns_are_refused() -> None:
    with pytest.raises(ValueError, match=r"need mean \(2,\) and scatter \(2, 2\), got \(1,\) and \(1, 1\)"):
        Moments(("y", "d"), 1, np.zeros(1), np.zeros((1, 1)))
    with pytest.raises(ValueError, match=r"needs shape \(2, 1\), got \(2,\)"):
        Moments.of(("y",), [1.0, 2.0])


@given(samples(), samples(), st.floats(0.5, 50))
def test_units_that_all_stand_for_as_many_have_the_plain_state(a: FloatArray, b: FloatArray, weight: float) -> None:
    one, other = Moments.of(COLUMNS, a), Moments.of(COLUMNS, b)
    assert_same(weighted({weight: one}, COLUMNS), one)
    assert_same(weighted({weight: one, 2 * weight: Moments.empty(COLUMNS)}, COLUMNS), one)
    assert weighted({}, COLUMNS).n == 0
    close = weighted({weight: one, float(np.nextafter(weight, 100)): other}, COLUMNS)
    assert_same(close, one + other)


def test_a_weighted_state_has_the_mean_and_the_robust_error_of_weighted_least_squares() -> None:
    rng = np.random.default_rng(1)
    sizes, weights = (40, 70, 15), (1.0, 4.0, 12.5)
    parts = [rng.normal(3 * at, 1 + at, (n, 3)) for at, n in enumerate(sizes)]
    state = weighted({w: Moments.of(COLUMNS, part) for w, part in zip(weights, parts, strict=True)}, COLUMNS)
    rows, w = np.vstack(parts), np.repeat(weights, sizes)
    for at, name in enumerate(COLUMNS):
        fit = sm.WLS(rows[:, at], np.ones(len(rows)), weights=w).fit(cov_type="HC1")
        assert state.mean[at] == pytest.approx(fit.params[0], rel=1e-12)
        assert np.sqrt(state.var(name) / state.n) == pytest.approx(fit.bse[0], rel=1e-12)
    assert np.linalg.eigvalsh(state.scatter).min() > 0


def test_intervals_of_a_sample_drawn_at_different_rates_hold_the_mean_of_all() -> None:
    rng = np.random.default_rng(2)
    strata = rng.choice(3, 20_000, p=[0.7, 0.25, 0.05])
    values = rng.normal(5 * strata, 1 + strata)
    rates, held, runs = np.array([0.02, 0.05, 0.3]), 0, 1000
    for _ in range(runs):
        drawn = rng.random(len(values)) < rates[strata]
        parts = {
            1 / rate: Moments.of(("y",), values[drawn & (strata == at)][:, None]) for at, rate in enumerate(rates)
        }
        state = weighted(parts, ("y",))
        held += abs(state.mean[0] - values.mean()) <= 1.96 * np.sqrt(state.var("y") / state.n)
    # All units are few beside those drawn: no less than 95 %, but for chance.
    assert stats.binom.ppf(0.001, runs, 0.95) <= held
