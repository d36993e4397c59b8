"""Sample ratio mismatch: do the arms have the units that the allocation promised?"""

from collections.abc import Sequence
from math import nan
from typing import NamedTuple

import numpy as np
from scipy import special

_SMALLEST_EXPECTED = 5  # Cochran (1954): below it chi-square is no approximation of Pearson's statistic.


class SRM(NamedTuple):
    """Pearson's chi-square test of the units per arm.

    n counts the units in arms with a positive weight, which are the test's. `n_unexpected` counts units in
    arms that should have none: any is a failure of its own, whatever the p-value. Nan is inconclusive.
    """

    n: int
    n_unexpected: int
    statistic: float
    df: int
    pvalue: float


def srm(counts: Sequence[int], expected: Sequence[float]) -> SRM:
    """The test of counts of units per arm against weights or expected counts, in the same order of arms.

    Only the proportions of `expected` matter: where the allocation changed, give the sum over its phases.
    Statistic and p-value are nan without units, with an expected count below 5, and with fewer than two
    arms to compare.

    References
    ----------
    Fabijan, A. et al. (2019). Diagnosing sample ratio mismatch in online controlled experiments. KDD '19,
    2156-2164.
    """
    observed, weights = np.asarray(counts), np.asarray(expected, dtype=np.float64)
    if observed.shape != weights.shape or observed.ndim != 1:
        raise ValueError(f"counts and expected need one number per arm each, got {counts} and {expected}")
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any() and (observed >= 0).all()):
        raise ValueError(f"counts and expected are not negative, expected not all 0, got {counts} and {expected}")
    planned = weights > 0
    n, n_unexpected = int(observed[planned].sum()), int(observed[~planned].sum())
    expectation = n * weights[planned] / weights.sum()
    df = len(expectation) - 1
    if df == 0 or expectation.min() < _SMALLEST_EXPECTED:
        return SRM(n, n_unexpected, nan, df, nan)
    statistic = float(((observed[planned] - expectation) ** 2 / expectation).sum())
    return SRM(n, n_unexpected, statistic, df, float(special.chdtrc(df, statistic)))
