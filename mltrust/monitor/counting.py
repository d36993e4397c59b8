"""How sure counting alone lets one be that a bucket is not like the weeks before it.

The root of a count is normal enough where there are many events, and not in the far tail where there are few: none of
12 expected events lies 5.8 standard errors below on that scale, which has the chance 3 in 10⁹ by the normal law, and
6 in 10⁶ by the right one. Tests of shares with 12 events in a bucket spent 20 times their error by it. Exact tests do
not: given how many events the bucket and the weeks before it had together, those of the bucket are binomial where
they are a count (Przyborowski and Wilenski 1940), hypergeometric where they are some of its requests (Fisher 1935).
The weeks count for as much as their median is worth, 2/pi of them.

References
----------
Fisher, R. A. (1935). The logic of inductive inference. Journal of the Royal Statistical Society 98, 39-82.
Przyborowski, J. and Wilenski, H. (1940). Homogeneity of results in testing samples from Poisson series. Biometrika
31, 313-323.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from mltrust.monitor.series import Panel
from mltrust.states.moments import FloatArray


def by_counting(panel: Panel, expected: FloatArray, centre_noise: FloatArray, where: np.ndarray) -> FloatArray:
    """Two-sided p-values that counting alone gives the buckets in `where`; 0, which claims nothing, elsewhere.

    `expected` are the values that the weeks before gave, and `centre_noise` is the variance that counting leaves them
    on the scale of the residuals. A mean counts nothing.
    """
    kinds = np.array(panel.kinds)[:, None]
    found = np.zeros(panel.value.shape)
    count, share = where & (kinds == "count"), where & (kinds == "share")
    found[count] = of_counts(panel.value[count], expected[count], 1 / centre_noise[count])
    n_before = (1 / centre_noise[share] - 2) / 4
    found[share] = of_shares(panel.value[share] * panel.n[share], panel.n[share], expected[share], n_before)
    return found


def of_counts(x: FloatArray, expected: FloatArray, n_weeks: FloatArray) -> FloatArray:
    """P-values of x events where `n_weeks` buckets before had `expected` events each."""
    together, part = x + np.rint(n_weeks * expected), 1 / (1 + n_weeks)
    return _two_sided(stats.binom.cdf(x, together, part), stats.binom.sf(x - 1, together, part))


def of_shares(x: FloatArray, n: FloatArray, expected: FloatArray, n_before: FloatArray) -> FloatArray:
    """P-values of x among n requests where of `n_before` requests before the share `expected` had the property."""
    x, n, n_before = (np.rint(each) for each in (x, n, n_before))
    together = x + np.rint(n_before * expected)
    law = n + n_before, together, n
    return _two_sided(stats.hypergeom.cdf(x, *law), stats.hypergeom.sf(x - 1, *law))


def _two_sided(below: ArrayLike, above: ArrayLike) -> FloatArray:
    return np.asarray(np.minimum(1.0, 2 * np.minimum(below, above)))
