"""The gap between the highest and the lowest of several independent estimates, and how it differs between arms.

The largest of noisy estimates is too high and the smallest too low: their distance is above 0 also where nothing
differs, and an interval about two slices that were picked for being extreme is too narrow. Here every pair of
slices has its interval, of one joint confidence, and the limits of the gap follow from them.
"""

from collections.abc import Sequence
from math import hypot, nan
from typing import NamedTuple

import numpy as np
from scipy import special


class Gap(NamedTuple):
    """max - min of estimates, its limits, and the places of the lowest and the highest; -1 where there is no gap.

    The value is biased upwards, the limits are not: where the estimates do not differ, the lower one is 0 with the
    stated confidence. `unfolded` is the lower limit that may be below 0.
    """

    value: float
    ci_low: float
    ci_high: float
    lowest: int
    highest: int
    unfolded: float


def worst_gap(values: Sequence[float], variances: Sequence[float], *, df: float, alpha: float = 0.05) -> Gap:
    """The gap of independent estimates with their variances on `df` degrees of freedom; nan for fewer than 2.

    Notes
    -----
    With joint confidence 1 - alpha, by Bonferroni over the K·(K - 1) / 2 pairs (t with df, where each of the two
    variances has df or more), every difference of two true values lies within c·se of its estimate. So the largest of
    them is at least max(d - c·se) and at most max(d + c·se), whichever slices it is of. For K = 2 this is the t
    interval of the difference, folded at 0. By the studentized range c would be 2 % (K = 3) to 5 % (K = 50) smaller,
    but only where the variances are equal.
    """
    K = len(values)
    if K < 2:
        return Gap(nan, nan, nan, -1, -1, nan)
    m, v = np.asarray(values, dtype=np.float64), np.asarray(variances, dtype=np.float64)
    critical = -float(special.stdtrit(df, alpha / (K * (K - 1))))
    difference, half = m[:, np.newaxis] - m, critical * np.sqrt(v[:, np.newaxis] + v)
    apart = ~np.eye(K, dtype=bool)
    low = float(np.max((difference - half)[apart]))
    return Gap(
        value=float(np.ptp(m)),
        ci_low=max(0.0, low),
        ci_high=float(np.max((difference + half)[apart])),
        lowest=int(np.argmin(m)),
        highest=int(np.argmax(m)),
        unfolded=low,
    )


class Limits(NamedTuple):
    """A difference and its limits."""

    value: float
    ci_low: float
    ci_high: float


def gap_difference(*, control: Gap, treatment: Gap) -> Limits:
    """The gap of the treatment minus that of the control, of independent arms, by their own limits (MOVER).

    Of the lower limits it takes the unfolded ones: folded at 0 they are too near where an arm has no gap.

    References
    ----------
    Zou, G. Y. and Donner, A. (2008). Construction of confidence limits about effect measures: a general approach.
    Statistics in Medicine 27, 1693-1702.
    """
    c, t = control, treatment
    value = t.value - c.value
    return Limits(
        value,
        value - hypot(t.value - t.unfolded, c.ci_high - c.value),
        value + hypot(t.ci_high - t.value, c.value - c.unfolded),
    )
