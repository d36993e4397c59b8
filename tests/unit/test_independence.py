"""Pearson's test of a table, against scipy's and by its laws."""

from math import isnan

import numpy as np
import pytest
from scipy import stats

from mltrust.stats.independence import independence, summed


@pytest.mark.parametrize("seed", range(5))
def test_a_table_is_tested_as_scipy_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.poisson(20, (int(rng.integers(2, 6)), int(rng.integers(2, 4)))) + 1
    expected = stats.chi2_contingency(table, correction=False)
    found = independence(table)
    assert (found.n, found.df) == (table.sum(), expected.dof)
    assert (found.statistic, found.pvalue) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-9)


def test_rows_and_columns_without_counts_do_not_count() -> None:
    assert independence([[10, 20, 0], [30, 5, 0], [0, 0, 0]]) == independence([[10, 20], [30, 5]])


def test_one_row_is_independent_and_no_counts_are_untested() -> None:
    assert independence([[10, 20]])[1:] == (0.0, 0, 1.0)
    assert isnan(independence([[0, 0], [0, 0]]).pvalue)
    assert isnan(independence(np.empty((0, 2))).pvalue)


def test_small_rows_are_joined_until_they_are_large_enough() -> None:
    table = [[100, 110], [3, 2], [2, 4], [60, 50]]
    assert independence(table, smallest_expected=5) == independence([[100, 110], [60, 50], [5, 6]])
    # 5.3 expected of the two smallest in the smaller column are enough; of one alone they were not.
    assert independence([[100, 110], [1, 0], [60, 50]], smallest_expected=5).df == 1


def test_disjoint_tables_add_up() -> None:
    one, two = independence([[10, 20], [30, 5]]), independence([[7, 9], [5, 4], [8, 8]])
    both = summed([one, independence([[0, 0]]), two])
    assert (both.n, both.df) == (one.n + two.n, 3)
    assert both.pvalue == pytest.approx(stats.chi2.sf(one.statistic + two.statistic, 3), rel=1e-12)
    assert isnan(summed([]).pvalue)


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(ValueError, match="not negative"):
        independence([[1, -1]])
