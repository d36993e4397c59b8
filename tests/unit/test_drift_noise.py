"""What the tests of drift say without any: the short form of the calibration, and the laws that they rest on."""

from math import isnan, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mltrust.drift.cells import OrderedCells, UnorderedCells
from mltrust.drift.noise import (
    Sides,
    expected_rows,
    homogeneity,
    hypergeometric_tail,
    location_test,
    mixture_tail,
    pooled_ordered,
    pooled_unordered,
    shape_test,
    structural_tests,
)
from mltrust.drift.profile import Profile

LETTERS = UnorderedCells.of("abcde")
AGES = OrderedCells.of(np.arange(95))


def sides(cells: object, reference: object, current: object, *, units: int = 1, paired: bool = False) -> Sides:
    """Profiles of two samples whose units have so many rows each, one after the other."""
    profiles = [
        Profile.of(cells, sample, (np.arange(len(sample)) // units + 1_000_000 * at * (not paired)).astype(np.int64))  # type: ignore[arg-type]
        for at, sample in enumerate((reference, current))
    ]
    return Sides(cells, *profiles, paired=paired)  # type: ignore[arg-type]


def test_the_shape_is_tested_as_a_contingency_table() -> None:
    reference, current = [*"a" * 50, *"b" * 30, *"c" * 40, *"d" * 20, *"e" * 20], [*"a" * 30, *"b" * 40, *"c" * 30]
    found = shape_test(sides(LETTERS, reference, [*current, *"d" * 20, *"e" * 9]))
    scipy = stats.chi2_contingency([[50, 30, 40, 20, 20], [30, 40, 30, 20, 9]])
    assert (found.statistic, found.df, found.pvalue) == pytest.approx((scipy.statistic, 4, scipy.pvalue))
    assert found.design_effect == 1


def test_far_out_the_likelihood_ratio_must_agree() -> None:
    reference, current = np.array([5e5, *[5e3] * 9]), np.array([500.0, 17, 12, *[5.0] * 7])
    found = homogeneity(reference, current)
    table = [reference, current]
    pearson, ratio = (stats.chi2_contingency(table, lambda_=each) for each in ("pearson", "log-likelihood"))
    assert found.statistic == pytest.approx(pearson.statistic)
    assert found.pvalue == pytest.approx(max(pearson.pvalue, ratio.pvalue))
    assert pearson.pvalue < 2e-4 < 3e-3 < ratio.pvalue < 0.01


@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 60), st.data())
def test_the_exact_tail_is_that_of_the_hypergeometric_law(marked: int, n: int, m: int, data: st.DataObject) -> None:
    marked = min(marked, n + m)
    x = data.draw(st.integers(max(0, marked - m), min(marked, n)))
    law = stats.hypergeom(n + m, marked, n)
    beyond_the_mean = x * (n + m) - marked * n
    tail = law.sf(x - 1) if beyond_the_mean > 0 else law.cdf(x) if beyond_the_mean < 0 else 1.0
    assert hypergeometric_tail(x, marked, n, n + m) == pytest.approx(tail, rel=1e-9)


def test_the_exact_tail_holds_far_out_and_for_large_counts() -> None:
    law = stats.hypergeom(138_916, 5_000, 70_131)
    for x in (2_200, 2_500, 2_524, 2_540, 2_900):
        tail = min(law.sf(x - 1), law.cdf(x))
        # lgamma of 1e5 is 1e6, of which a float keeps 1e-10.
        assert hypergeometric_tail(x, 5_000, 70_131, 138_916) == pytest.approx(tail, rel=1e-8)


@given(st.lists(st.floats(0, 20), min_size=1, max_size=15))
def test_pooled_cells_expect_enough_and_none_is_lost(expected: list[float]) -> None:
    for pool in (pooled_ordered, pooled_unordered):
        groups = pool(np.array(expected))
        if groups:
            assert sorted(at for group in groups for at in group) == list(range(len(expected)))
            assert all(sum(expected[at] for at in group) >= 5 - 1e-9 for group in groups)
        else:
            assert sum(expected) < 5 + 1e-9
    for group in pooled_ordered(np.array(expected)):
        assert group == list(range(group[0], group[-1] + 1))


def test_fewer_than_two_cells_with_enough_rows_say_nothing() -> None:
    found = shape_test(sides(LETTERS, [*"a" * 1000, "b", "b"], [*"a" * 1000, "c"]))
    assert isnan(found.pvalue)
    assert found.problem == "fewer than two cells expect 5 rows"


def test_a_column_of_one_value_has_no_shape_to_change() -> None:
    found = shape_test(sides(UnorderedCells.of("a"), "a" * 200, ["a"] * 100 + ["new"] * 100))
    assert (found.pvalue, found.corrected) == (1.0, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("k", [2, 5, 10])
@pytest.mark.parametrize("sizes", [(100, 100), (200, 10_000)])
def test_without_drift_the_shape_is_rejected_as_often_as_stated(k: int, sizes: tuple[int, int]) -> None:
    """The short form of docs/drift-calibration.md."""
    rng, shares = np.random.default_rng(7), np.arange(1, k + 1) / (k * (k + 1) / 2)
    a, b = (rng.multinomial(n, shares, 4000).astype(float) for n in sizes)
    pvalues = []
    for reference, current in zip(a, b, strict=True):
        groups = pooled_unordered(expected_rows(reference, current))
        pooled = (np.array([each[group].sum() for group in groups]) for each in (reference, current))
        pvalues.append(homogeneity(*pooled).pvalue)
    low, high = stats.binom.interval(0.999, len(pvalues), 0.05)
    assert 0.8 * low <= (np.array(pvalues) <= 0.05).sum() <= 1.1 * high


def _clustered(rng: np.random.Generator, *, sticky: bool, n_units: int = 200, rows: int = 10) -> np.ndarray:
    """Rows (n_units·rows,) of five categories; units prefer some, and of a sticky one a unit has all rows or none."""
    shares = rng.dirichlet(np.full(5, 0.8), n_units)
    codes = (rng.random((n_units, rows, 1)) > shares.cumsum(axis=1)[:, np.newaxis, :-1]).sum(axis=2)
    if sticky:
        codes[rng.random(n_units) < 0.2] = 4
    return np.array(list("abcde"))[codes.ravel()]


@pytest.mark.slow
@pytest.mark.parametrize("sticky", [False, True])
def test_rows_of_one_unit_do_not_make_an_alarm(sticky: bool) -> None:
    rng = np.random.default_rng(11)
    found = []
    for _ in range(150):
        samples = [_clustered(rng, sticky=sticky) for _ in range(2)]
        hashes = [rng.integers(-(2**63), 2**63, 200).repeat(10) for _ in range(2)]
        profiles = [Profile.of(LETTERS, list(each), units) for each, units in zip(samples, hashes, strict=True)]
        found.append(shape_test(Sides(LETTERS, *profiles)))
    pvalues = np.array([test.pvalue for test in found])
    assert np.mean([test.design_effect for test in found]) > 2
    # Of 150 draws at 0.05 99.9 % of counts are at most 17. Naive rows reject in more than a third.
    assert (pvalues <= 0.05).sum() <= 17
    assert (pvalues <= 0.5).sum() >= 45
    naive = np.array([stats.chi2.sf(test.statistic, 4) for test in found])
    assert (naive <= 0.05).mean() > 0.3


def test_the_law_of_clustered_rows_is_f_for_one_weight_and_chi_square_for_many_groups() -> None:
    for x in (4.0, 11.0, 30.0):
        assert mixture_tail(2 * x, np.array([2.0]), 63) == pytest.approx(stats.f.sf(x, 1, 63))
        # The saddlepoint of four equal weights is 0.7 % above at 0.03 and 1.5 % at 5e-6.
        assert mixture_tail(3 * x, np.full(4, 3.0), 10**9) == pytest.approx(stats.chi2.sf(x, 4), rel=0.03)
    assert mixture_tail(9.0, np.full(9, 1.0), 63) == pytest.approx(stats.f.sf(1, 9, 63), rel=0.05)


def test_far_out_the_largest_weight_decides() -> None:
    rng, weights = np.random.default_rng(6), np.array([10.0, 1, 1, 1, 1])
    drawn = rng.chisquare(1, (400_000, 5)) @ weights
    # 400 of 400,000 draws lie beyond, which is known to 5 %.
    beyond = float(np.quantile(drawn, 0.999))
    assert mixture_tail(beyond, weights, 10**9) == pytest.approx(0.001, rel=0.2)


def test_a_candidate_that_answers_the_same_requests_alike_has_not_drifted() -> None:
    values = np.random.default_rng(3).uniform(0, 94, 500)
    found = sides(AGES, values, values, paired=True)
    location = location_test(found)
    assert location is not None
    assert [test.pvalue for test in (shape_test(found), location, *structural_tests(found))] == [1.0] * 5


def test_paired_sides_show_what_unpaired_ones_would_not() -> None:
    rng = np.random.default_rng(5)
    champion = rng.uniform(5, 89, 1000)
    candidate = champion + rng.normal(1.5, 1, 1000)
    paired, unpaired = (location_test(sides(AGES, champion, candidate, paired=each)) for each in (True, False))
    assert paired is not None
    assert unpaired is not None
    assert paired.value == unpaired.value
    assert paired.pvalue < 1e-6 < 0.01 < unpaired.pvalue


def test_the_location_is_welchs_test_of_winsorised_values() -> None:
    rng = np.random.default_rng(8)
    reference, current = rng.uniform(0, 94, 900), rng.uniform(0, 120, 300)
    cells = OrderedCells.of(reference)
    found = location_test(sides(cells, reference, [*current, nan, nan]))
    cut = current.clip(reference.min(), reference.max())
    scipy = stats.ttest_ind(cut, reference, equal_var=False)
    assert found is not None
    # Steps of 1/4096 of a standard deviation leave 1e-4 of it.
    assert found.statistic == pytest.approx(scipy.statistic, rel=1e-3)
    assert found.df == pytest.approx(scipy.df, rel=1e-3)
    assert found.value == pytest.approx((cut.mean() - reference.mean()) / reference.std(), abs=1e-3)
    assert found.reference_value == pytest.approx(reference.mean(), abs=0.01)
    assert found.n_current == 300


def test_one_outlier_neither_makes_nor_hides_a_shift() -> None:
    rng = np.random.default_rng(9)
    reference, current = rng.normal(40, 20, 5000), rng.normal(45, 20, 1000)
    without = location_test(sides(OrderedCells.of(reference), reference, current))
    current[0] = 1e6
    with_one = location_test(sides(OrderedCells.of(reference), reference, current))
    reference[0] = 1e6
    on_both = location_test(sides(OrderedCells.of(reference), reference, current))
    assert without is not None
    assert with_one is not None
    assert on_both is not None
    assert without.pvalue < 1e-6
    assert with_one.pvalue < 1e-6
    assert on_both.pvalue < 1e-6


def test_categories_and_constants_have_no_location() -> None:
    assert location_test(sides(LETTERS, "ab", "ab")) is None
    assert location_test(sides(OrderedCells.of([3, 3]), [3] * 200, [3] * 150 + [4] * 50)) is None


def test_structural_cells_are_tested_one_by_one_and_exactly() -> None:
    reference, current = np.arange(95).repeat(20).astype(float), np.arange(95).repeat(4).astype(float)
    current[:6] = 96
    missing, below, above = structural_tests(sides(AGES, reference, current))
    n, m = len(current), len(reference)
    assert above.pvalue == pytest.approx(6 * stats.hypergeom.sf(5, n + m, 6, n))
    assert (above.value, above.reference_value) == (6 / n, 0.0)
    assert (missing.pvalue, below.pvalue) == (1.0, 1.0)


def test_a_cell_that_empties_is_found_too() -> None:
    reference = np.where(np.arange(2000) % 10 == 0, nan, np.arange(2000) % 95)
    missing, *_ = structural_tests(sides(AGES, reference, np.arange(500) % 95))
    assert missing.value == pytest.approx(-0.1)
    assert missing.pvalue < 1e-9


def test_units_count_where_rows_are_clustered() -> None:
    current = np.arange(1000) % 95.0
    current[:10] = 99
    reference = np.arange(5000) % 95.0
    one, ten = (structural_tests(sides(AGES, reference, current, units=each))[2] for each in (1, 10))
    assert (one.n_current, ten.n_current) == (1000, 100)
    assert one.pvalue < 1e-5
    # Ten rows of one unit are one unit: 2·3 tests times a chance of 100/600.
    assert ten.pvalue == pytest.approx(1.0)


def test_values_that_only_one_row_has_are_expected_to_be_new_ones() -> None:
    rng = np.random.default_rng(2)
    long_tail = (rng.pareto(0.7, 6000) * 3).astype(int).astype(str)
    cells = UnorderedCells.of(long_tail[:5000], max_values=10_000)
    assert cells.complete
    samples = list(long_tail[:5000]), list(long_tail[5000:])
    unseen, naive = (structural_tests(sides(each, *samples))[1] for each in (cells, UnorderedCells(cells.values)))
    assert unseen.current_value > 0.03
    assert naive.pvalue < 1e-12
    assert unseen.pvalue > 0.01


@pytest.mark.slow
def test_units_of_a_longer_window_have_more_rows_and_no_more_missing_ones() -> None:
    """A fortnight of a row every other day against a day: 1 % of the rows are missing, whosever they are."""
    rng, cells, found = np.random.default_rng(12), OrderedCells.of(np.arange(100.0)), []
    for _ in range(300):
        values = np.where(rng.random(8_000) < 0.01, np.nan, rng.integers(0, 100, 8_000))
        fortnight, day = np.repeat(np.arange(1_000), 7), np.arange(1_000)
        before, now = Profile.of(cells, values[:7_000], fortnight), Profile.of(cells, values[7_000:], day)
        (missing, *_) = structural_tests(Sides(cells, before, now))
        found.append(missing.pvalue)
    # Twice the exact tail times three cells: far below the level.
    assert np.mean(np.array(found) < 0.05) <= 0.02
    assert min(found) > 0.001


def test_a_sticky_cell_of_units_alike_is_held_against_units() -> None:
    """Units of which one in 50 always misses a value: a window of half the rows has as many of them."""
    cells, units = OrderedCells.of(np.arange(100.0)), np.arange(2_000)
    values = np.where(units % 50 == 0, np.nan, units % 100)
    before = Profile.of(cells, np.repeat(values, 10), np.repeat(units, 10))
    now = Profile.of(cells, values, units)
    (missing, *_) = structural_tests(Sides(cells, before, now))
    assert missing.pvalue == 1.0
