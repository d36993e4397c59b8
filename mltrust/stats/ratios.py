"""Ratios of two sums over units, such as clicks per impression."""

from math import nan

from mltrust.states.moments import Moments
from mltrust.stats.means import Arm

# Moments agree to 1e-12 relative whatever the order of their merges: a smaller remainder is rounding.
_ROUNDING = 1e-12


def ratio_arm(state: Moments, numerator: str, denominator: str) -> Arm:
    """The arm of sum(numerator) / sum(denominator), with the delta method's variance of one unit.

    With R = y/d, V = (s²_y - 2R·s_yd + R²·s²_d) / d². n counts units, not rows: that is what makes V right
    where a unit has many rows. Nan where the denominator has mean 0; a variance of exactly 0 where
    numerator and denominator are proportional.

    References
    ----------
    Deng, A., Knoblich, U. and Lu, J. (2018). Applying the delta method in metric analytics: a practical
    guide with novel ideas. KDD '18, 233-242, on cluster randomisation.
    """
    y, d = (float(state.mean[state.index(column)]) for column in (numerator, denominator))
    if d == 0:
        return Arm(state.n, nan, nan)
    ratio = y / d
    own, scale = state.var(numerator), ratio * ratio * state.var(denominator)
    cross = 2 * ratio * state.cov(numerator, denominator)
    remainder = own - cross + scale
    variance = 0.0 if remainder <= _ROUNDING * (own + abs(cross) + scale) else remainder / (d * d)
    return Arm(state.n, ratio, variance)
