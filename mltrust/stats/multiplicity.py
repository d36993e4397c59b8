"""Adjusted p-values of a family of tests, in the order given.

Nan stays nan and is not a member of the family: a test that could not be made is no comparison.
"""

from collections.abc import Callable, Sequence

import numpy as np

from mltrust.states.moments import FloatArray


def benjamini_hochberg(pvalues: Sequence[float]) -> tuple[float, ...]:
    """The q-values: the smallest false discovery rate at which each test is rejected.

    References
    ----------
    Benjamini, Y. and Hochberg, Y. (1995). Controlling the false discovery rate: a practical and powerful
    approach to multiple testing. Journal of the Royal Statistical Society B 57, 289-300, eq. 1.
    """

    def step_up(ascending: FloatArray) -> FloatArray:
        m = len(ascending)
        return np.minimum.accumulate((ascending * m / np.arange(1, m + 1))[::-1])[::-1]

    return _adjusted(pvalues, step_up)


def holm(pvalues: Sequence[float]) -> tuple[float, ...]:
    """The adjusted p-values: the smallest family-wise error rate at which each test is rejected.

    References
    ----------
    Holm, S. (1979). A simple sequentially rejective multiple test procedure. Scandinavian Journal of
    Statistics 6, 65-70.
    """

    def step_down(ascending: FloatArray) -> FloatArray:
        return np.minimum(np.maximum.accumulate(ascending * np.arange(len(ascending), 0, -1)), 1)

    return _adjusted(pvalues, step_down)


def _adjusted(pvalues: Sequence[float], step: Callable[[FloatArray], FloatArray]) -> tuple[float, ...]:
    """`step` applied to the p-values that are not nan, in ascending order."""
    adjusted = np.array(pvalues, dtype=np.float64)
    if ((adjusted < 0) | (adjusted > 1)).any():
        raise ValueError(f"p-values lie in [0, 1], got {pvalues}")
    family = np.flatnonzero(~np.isnan(adjusted))
    order = family[np.argsort(adjusted[family], kind="stable")]
    adjusted[order] = step(adjusted[order])
    return tuple(adjusted.tolist())
