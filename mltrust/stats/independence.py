"""Are rows and columns of a table of counts independent? Pearson's test."""

from collections.abc import Sequence
from math import nan
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from mltrust.states.moments import FloatArray


class Independence(NamedTuple):
    """Pearson's chi-square test; pvalue 1 and df 0 where only one row or column has counts, nan without counts."""

    n: int
    statistic: float
    df: int
    pvalue: float


def independence(counts: ArrayLike, *, smallest_expected: float = 0) -> Independence:
    """The test of a table of counts of shape (rows, columns).

    Rows whose smallest expected count is below `smallest_expected` are joined into one, which takes in the smallest
    of the others while it is itself too small.
    """
    table = np.asarray(counts, dtype=np.float64)
    if table.ndim != 2 or (table < 0).any():
        raise ValueError(f"counts are a table of numbers that are not negative, got {table.tolist()}")
    table = _joined(table[table.sum(axis=1) > 0][:, table.sum(axis=0) > 0], smallest_expected)
    n = table.sum()
    if not n:
        return Independence(0, nan, 0, nan)
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / n
    df = (table.shape[0] - 1) * (table.shape[1] - 1)
    statistic = float(((table - expected) ** 2 / expected).sum()) if df else 0.0
    return Independence(int(n), statistic, df, float(special.chdtrc(df, statistic)) if df else 1.0)


def summed(tests: Sequence[Independence]) -> Independence:
    """One test of several tables of disjoint observations: statistics and degrees of freedom add up."""
    told = [test for test in tests if test.n]
    statistic, df = sum(test.statistic for test in told), sum(test.df for test in told)
    pvalue = (float(special.chdtrc(df, statistic)) if df else 1.0) if told else nan
    return Independence(sum(test.n for test in told), statistic if told else nan, df, pvalue)


def _joined(table: FloatArray, smallest_expected: float) -> FloatArray:
    if not table.size:
        return table
    share = table.sum(axis=0).min() / table.sum()
    ascending = table[np.argsort(table.sum(axis=1), kind="stable")]
    sizes = ascending.sum(axis=1) * share
    n = int((sizes < smallest_expected).sum())
    while 0 < n < len(sizes) and sizes[:n].sum() < smallest_expected:
        n += 1
    return np.vstack([ascending[n:], ascending[:n].sum(axis=0)]) if n else table
