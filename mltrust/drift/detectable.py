"""How small a drift would have been found: what stands beside every pass."""

from math import ceil, isnan, log, nan, sqrt

from scipy import special

from mltrust.drift.alarm import Alarm, Judged
from mltrust.drift.noise import LOCATION, SHAPE, Measured
from mltrust.stats.power import mde

POWER = 0.8


def detectable(judged: Judged, alarm: Alarm, q: float, n_structural: int) -> float:
    """The drift in the unit of the measure that such a window breaches at with 80 % power, were it the only one.

    Never below the floor, under which nothing is a breach. Nan without a test. A test that is alone to reject must
    reach q over the family's size. Shape by the noncentral chi-square law, location by the normal one, a structural
    cell by the exact threshold on a reference without such rows and the normal one else.
    """
    test, alpha = judged.test, q / max(judged.n_family, 1)
    if isnan(test.pvalue):
        return nan
    found = {SHAPE: _shape, LOCATION: _location}.get(test.measure)
    smallest = found(test, alpha) if found else _share(test, alpha / n_structural)
    return max(smallest, alarm.floor(test.measure))


def _shape(test: Measured, alpha: float) -> float:
    """Divergence in bits: noncentrality is 8nm/(n + m) of it in nats over the design effect."""
    if not test.df > 0:
        return nan
    noncentrality = float(special.chndtrinc(special.chdtri(test.df, alpha), test.df, 1 - POWER))
    n, m = test.n_current, test.n_reference
    return noncentrality * test.design_effect * (n + m) / (8 * n * m * log(2))


def _location(test: Measured, alpha: float) -> float:
    return mde(std_error=test.std_error, alpha=alpha, power=POWER)


def _share(test: Measured, alpha: float) -> float:
    """Growth of the share of a cell."""
    n, m = test.n_current, test.n_reference
    before = test.reference_value
    if before > 0:
        return mde(std_error=sqrt(before * (1 - before) * (1 / n + 1 / m)), alpha=alpha, power=POWER)
    # Of x marked rows all are in the current window with a chance of about (n/(n + m))^x, doubled.
    needed = min(n, ceil(log(alpha / 2) / log(n / (n + m))))
    return float(special.bdtri(needed - 1, n, 1 - POWER))
