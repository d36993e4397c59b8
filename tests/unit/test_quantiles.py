from math import inf, isnan, nan, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from mltrust.states.moments import FloatArray, Moments
from mltrust.stats.quantiles import (
    Quantile,
    clustered_quantile,
    compare_quantiles,
    of_cells,
    of_sorted_rows,
    positions,
    quantile_std_error,
)

COLUMNS = ("below", "rows")


def per_unit(values: FloatArray, codes: NDArray[np.integer], threshold: float) -> Moments:
    """The second pass: moments of the rows at or below the threshold and of all rows, per unit."""
    sums = [np.bincount(codes, values <= threshold), np.bincount(codes)]
    return Moments.of(COLUMNS, np.column_stack(sums))


def quantile(values: FloatArray, codes: NDArray[np.integer], level: float = 0.9) -> Quantile:
    found = of_sorted_rows(np.sort(values), level)
    return clustered_quantile(found, per_unit(values, codes, found.threshold), below="below", rows="rows")


def clusters(rng: np.random.Generator, n_units: int, *, sd: float = 1.0) -> tuple[FloatArray, NDArray[np.integer]]:
    """Latencies of units with 1 to some 20 rows, log-normal around a level of the unit's own."""
    codes = np.repeat(np.arange(n_units), 1 + rng.poisson(rng.gamma(2, 3, n_units)))
    return np.exp(rng.normal(0, sd, n_units)[codes] + rng.normal(0, 1, len(codes))), codes


@pytest.mark.parametrize(
    ("n", "level", "expected"),
    [
        # n·v ± 1.96·sqrt(n·v(1 - v)): 50 ± 9.8, 90 ± 5.88, 900 ± 18.6, 7 ± 5.001; 7 is 0.07·100 in decimals only.
        (100, 0.5, (40, 50, 60)),
        (100, 0.9, (84, 90, 96)),
        (1000, 0.9, (881, 900, 919)),
        (100, 0.07, (1, 7, 13)),
        (10, 0.99, (9, 10, 10)),
        (1, 0.5, (1, 1, 1)),
    ],
)
def test_positions_are_those_computed_by_hand(n: int, level: float, expected: tuple[int, int, int]) -> None:
    assert positions(n, level) == expected


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_the_interval_of_the_positions_covers_a_quantile_of_independent_rows(level: float) -> None:
    n = 10_000
    low, at, high = positions(n, level)
    # Y_(low) <= q < Y_(high) exactly where the number of rows at or below q is in [low, high).
    chance = stats.binom.cdf(high - 1, n, level) - stats.binom.cdf(low - 1, n, level)
    assert 0.9499 <= chance < 0.96
    assert stats.binom.cdf(at, n, level) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_units_of_one_row_have_the_standard_error_of_independent_rows(level: float) -> None:
    n = 20_000
    values = stats.norm.ppf((np.arange(n) + 0.5) / n)
    found = quantile(values, np.arange(n), level)
    assert found.value == pytest.approx(stats.norm.ppf(level), abs=1e-3)
    # s²/n over p(1 - p)/n, of zeros and ones.
    assert found.design_effect == pytest.approx(n / (n - 1))
    # The density is an average over the interval, and positions are rounded outward by up to a row in 100.
    density = stats.norm.pdf(stats.norm.ppf(level))
    assert found.std_error == pytest.approx(sqrt(level * (1 - level) / n) / density, rel=0.02)


def test_the_standard_error_of_independent_rows_is_that_of_maritz_and_jarrett() -> None:
    values = np.random.default_rng(1).gamma(2, 1, 3000)
    expected = stats.mstats.mjci(values, [0.5, 0.75, 0.9])
    for level, std_error in zip((0.5, 0.75, 0.9), expected, strict=True):
        # Both estimate the density: theirs from weights, this from two order statistics.
        assert quantile(values, np.arange(3000), level).std_error == pytest.approx(std_error, rel=0.15)


def test_a_unit_whose_rows_are_all_alike_counts_once() -> None:
    values, copies = np.random.default_rng(2).gamma(2, 1, 3000), 9
    once = quantile(values, np.arange(3000))
    repeated = quantile(np.repeat(values, copies), np.repeat(np.arange(3000), copies))
    assert repeated.value == once.value
    assert repeated.design_effect == pytest.approx(copies * once.design_effect)
    assert repeated.std_error == pytest.approx(once.std_error, rel=0.25)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_the_standard_error_is_that_of_resampled_units(level: float) -> None:
    rng = np.random.default_rng(3)
    values, codes = clusters(rng, 1000)
    rows = np.split(values, np.flatnonzero(np.diff(codes)) + 1)
    drawn = [
        np.quantile(
            np.concatenate([rows[unit] for unit in rng.integers(0, 1000, 1000)]), level, method="inverted_cdf"
        )
        for _ in range(300)
    ]
    found = quantile(values, codes, level)
    assert found.design_effect > 2
    # 300 replicates are off by 4 %, the density by more.
    assert found.std_error == pytest.approx(np.std(drawn, ddof=1), rel=0.2)


@settings(deadline=None)
@given(
    st.lists(st.integers(-50, 150), min_size=1, max_size=300),
    st.lists(st.integers(-20, 120), min_size=2, max_size=20, unique=True),
    st.sampled_from([0.1, 0.5, 0.9]),
)
def test_cells_hold_the_order_statistics_of_their_rows(rows: list[int], inner: list[int], level: float) -> None:
    values, edges = np.sort(np.array(rows, dtype=float)), np.array([-inf, *sorted(inner), inf])
    cell = np.searchsorted(edges, values, side="left") - 1
    exact = of_sorted_rows(values, level)
    found = of_cells(np.bincount(cell, minlength=len(edges) - 1), edges, level)
    assert (found.n_rows, found.level) == (exact.n_rows, level)
    # Each is in the cell of that of the rows.
    for mine, row in ((found.low, exact.low), (found.value, exact.value), (found.high, exact.high)):
        of_row = int(np.searchsorted(edges, row)) - 1
        left, right = edges[of_row], edges[of_row + 1]
        assert isnan(mine) == (not np.isfinite(right - left))
        assert isnan(mine) or left < mine <= right
    assert found.threshold == edges[np.searchsorted(edges, exact.value)]


def test_fine_cells_say_what_rows_say() -> None:
    values, codes = clusters(np.random.default_rng(4), 1500)
    # 1 % wide, as are those of a log-spaced histogram.
    edges = np.concatenate([[-inf], np.exp(np.arange(-8, 8, 0.01)), [inf]])
    states = [np.histogram(part, edges)[0] for part in np.array_split(values, 5)]
    found = of_cells(sum(states), edges, 0.9)
    state = per_unit(values, codes, found.threshold)
    result, exact = clustered_quantile(found, state, below="below", rows="rows"), quantile(values, codes)
    assert result.value == pytest.approx(exact.value, rel=0.01)
    assert result.design_effect == pytest.approx(exact.design_effect, rel=0.05)
    assert result.std_error == pytest.approx(exact.std_error, rel=0.15)


def test_rows_within_a_coarse_cell_are_taken_to_lie_evenly_in_it() -> None:
    edges = np.arange(0, 12, 1.0)
    values = np.random.default_rng(5).uniform(0, 10, 20_000)
    found, exact = of_cells(np.histogram(values, edges)[0], edges, 0.95), of_sorted_rows(np.sort(values), 0.95)
    assert found.threshold == 10
    assert (found.low, found.value, found.high) == pytest.approx((exact.low, exact.value, exact.high), abs=0.03)
    assert found.high - found.low == pytest.approx(exact.high - exact.low, rel=0.15)


def test_the_design_effect_holds_where_the_threshold_of_a_cell_is_not_at_the_level() -> None:
    values, codes = clusters(np.random.default_rng(6), 2000, sd=0.0)
    edges = np.array([0.0, 2.0, 3.0, 6.0, inf])
    found = of_cells(np.histogram(values, edges)[0], edges, 0.9)
    result = clustered_quantile(found, per_unit(values, codes, found.threshold), below="below", rows="rows")
    # Independent rows, of which 96 % are below 6: over 0.9·0.1 the design effect would be 0.4.
    assert np.mean(values <= found.threshold) > 0.95
    assert result.design_effect == pytest.approx(1, abs=0.1)


def test_what_lies_beyond_the_cells_is_inconclusive() -> None:
    edges = np.array([0.0, 1.0, 2.0, inf])
    found = of_cells(np.array([5000, 4000, 1000]), edges, 0.9)
    assert isnan(found.high)
    state = Moments(COLUMNS, 1000, np.array([9.0, 10.0]), np.eye(2))
    result = clustered_quantile(found, state, below="below", rows="rows")
    assert isnan(result.std_error)
    assert result.reason == "the interval of the quantile reaches beyond the cells"
    assert isnan(of_cells(np.array([5000, 3000, 2000]), edges, 0.9).value)


@pytest.mark.parametrize(
    ("n_units", "n_rows", "level", "reason"),
    [
        (199, 10_000, 0.9, "199 units, at least 200 needed"),
        (200, 499, 0.9, "49 rows beyond the quantile, at least 50 needed"),
        (200, 4999, 0.01, "49 rows beyond the quantile, at least 50 needed"),
        (200, 400, 0.99, "4 rows beyond the quantile, at least 50 needed"),
        (200, 500, 0.9, ""),
        (200, 5000, 0.99, ""),
        (200, 5000, 0.01, ""),
    ],
)
def test_a_quantile_of_too_little_data_is_inconclusive(n_units: int, n_rows: int, level: float, reason: str) -> None:
    values = np.random.default_rng(7).normal(0, 1, n_rows)
    result = quantile(values, np.arange(n_rows) % n_units, level)
    assert (result.n_units, result.n_rows, result.reason) == (n_units, n_rows, reason)
    assert isnan(result.std_error) == bool(reason)
    assert not isnan(result.value)


def test_ties_around_the_quantile_are_inconclusive() -> None:
    values = np.round(np.random.default_rng(8).exponential(1, 5000))
    result = quantile(values, np.arange(5000) % 500, 0.9)
    assert (result.value, result.reason) == (2, "ties")
    assert isnan(result.std_error)


def test_shares_that_do_not_vary_between_units_are_inconclusive() -> None:
    values = np.tile(np.arange(10.0), 500) + np.linspace(0, 0.1, 5000)
    result = quantile(values, np.repeat(np.arange(500), 10), 0.9)
    assert result.reason == "the rows at or below the quantile do not vary between units"
    assert isnan(result.std_error)
    assert isnan(quantile_std_error(low=1, high=2, cluster_variance=0.1, iid_variance=0))


def test_moments_of_other_rows_are_refused() -> None:
    values, codes = clusters(np.random.default_rng(9), 300)
    found = of_sorted_rows(np.sort(values), 0.9)
    with pytest.raises(ValueError, match="of other ones"):
        clustered_quantile(found, per_unit(values[1:], codes[1:], found.threshold), below="below", rows="rows")


@pytest.mark.parametrize("level", [0.0, 1.0, 90.0, nan])
def test_a_level_that_is_no_share_is_refused(level: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        positions(100, level)


def test_no_rows_and_cells_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="0 rows"):
        of_sorted_rows(np.array([]), 0.9)
    with pytest.raises(ValueError, match="0 rows"):
        of_cells(np.array([0, 0]), np.arange(3.0), 0.9)
    for edges in ([0.0, 1.0], [0.0, 2.0, 1.0], [0.0, 1.0, 1.0]):
        with pytest.raises(ValueError, match="one more edge"):
            of_cells(np.array([1, 2]), np.array(edges), 0.9)


def known(value: float, std_error: float, level: float = 0.9) -> Quantile:
    return Quantile(1000, 9000, level, value, std_error, 1.0, "")


def test_quantiles_are_compared_on_the_normal_law() -> None:
    result = compare_quantiles(control=known(100, 3), treatment=known(112, 4), alpha=0.1)
    assert (result.method, result.n_control, result.effect, result.std_error) == ("quantile", 1000, 12, 5)
    assert isnan(result.df)
    assert result.pvalue == pytest.approx(2 * stats.norm.sf(12 / 5))
    assert (result.ci_low, result.ci_high) == pytest.approx(stats.norm.interval(0.9, 12, 5))
    assert 0 < result.rel_ci_low < result.rel_effect == 0.12 < result.rel_ci_high


def test_an_arm_without_a_standard_error_leaves_the_comparison_without_a_test() -> None:
    result = compare_quantiles(control=known(100, nan), treatment=known(112, 4))
    assert result.effect == 12
    assert isnan(result.pvalue)
    assert isnan(result.rel_ci_low)


def test_quantiles_of_other_levels_are_not_compared() -> None:
    with pytest.raises(ValueError, match=r"0\.9 and 0\.5"):
        compare_quantiles(control=known(1, 1), treatment=known(1, 1, level=0.5))


@pytest.mark.slow
def test_intervals_of_differences_of_clustered_quantiles_hold_the_truth() -> None:
    rng, runs = np.random.default_rng(10), 2000
    covered, naive = 0, 0
    for _ in range(runs):
        control, treatment = (quantile(*clusters(rng, n, sd=0.7)) for n in (500, 400))
        result = compare_quantiles(control=control, treatment=treatment)
        covered += result.ci_low <= 0 <= result.ci_high
        arms = [each._replace(std_error=each.std_error / sqrt(each.design_effect)) for each in (control, treatment)]
        rows = compare_quantiles(control=arms[0], treatment=arms[1])
        naive += rows.ci_low <= 0 <= rows.ci_high
    assert 0.925 <= covered / runs <= 0.96
    # Taking rows for units does not.
    assert naive / runs < 0.9
