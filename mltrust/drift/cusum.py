"""Slow shifts: scores of windows added up beyond a slack, and the threshold that chance crosses so often.

Without slack, or against a reference that is hardly larger than a window, the noise of the reference itself, which is
the same in every window, adds up and always alarms.
"""

from collections.abc import Iterable
from functools import lru_cache
from math import isfinite, isnan, sqrt

import numpy as np
from scipy import optimize, special

from mltrust.drift.noise import Measured

#: States between 0 and the threshold in which the sum is followed.
_STATES = 120


def score(test: Measured) -> float:
    """(x - df)/sqrt(2 df) of the chi-square x that has the test's p-value; 0 without one, which changes no sum.

    For independent rows x is Pearson's X² itself; for clustered ones it is what the F law makes of it.
    """
    if isnan(test.pvalue) or not test.df > 0:
        return 0.0
    x = float(special.chdtri(test.df, test.pvalue)) if test.pvalue > 0 else test.statistic / test.design_effect
    return (x - test.df) / sqrt(2 * test.df) if isfinite(x) else 0.0


def cusum(scores: Iterable[float], *, slack: float, threshold: float) -> float:
    """The sum C = max(0, C + score - slack) after the last of the windows; it starts anew after each crossing.

    References
    ----------
    Page, E. S. (1954). Continuous inspection schemes. Biometrika 41, 100-115.
    """
    total = 0.0
    for each in scores:
        total = max(0.0, (0.0 if total >= threshold else total) + each - slack)
    return total


@lru_cache(maxsize=4096)
def threshold(df: float, windows_between: float, slack: float) -> float:
    """The sum that windows without drift cross once in `windows_between` on average.

    Each window's score is that of a chi-square of `df`.
    """
    if not (df > 0 and windows_between > 1 and slack > 0):
        raise ValueError(f"expected df, slack above 0 and windows_between above 1: {df}, {slack}, {windows_between}")
    high = 4.0
    while run_length(df, high, slack) < windows_between:
        high *= 2

    def excess(at: float) -> float:
        return float(np.log(run_length(df, at, slack) / windows_between))

    if excess(1e-3) >= 0:
        return 1e-3
    return float(optimize.brentq(excess, 1e-3, high, xtol=1e-3))


def run_length(df: float, threshold: float, slack: float) -> float:
    """Windows until the sum first reaches the threshold, on average, from 0.

    References
    ----------
    Brook, D. and Evans, D. A. (1972). An approach to the probability distribution of CUSUM run length. Biometrika 59,
    539-549: the sum as a Markov chain between intervals of states.
    """
    width = 2 * threshold / (2 * _STATES - 1)
    at = np.arange(_STATES) * width
    # From state i at most to the upper end of interval j; whatever falls below 0 is state 0.
    reach = at[np.newaxis, :] + width / 2 - at[:, np.newaxis] + slack
    below = special.chdtr(df, np.maximum(df + sqrt(2 * df) * reach, 0))
    transitions = np.diff(below, axis=1, prepend=0.0)
    return float(np.linalg.solve(np.eye(_STATES) - transitions, np.ones(_STATES))[0])
