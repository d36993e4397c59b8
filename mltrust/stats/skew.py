"""Are values so skewed, and arms so unequal, that a t test of their means does not hold its level?

Third moments come from `Moments` of a column and its squares about a fixed centre, so that they merge as all others
and need no state of their own: C((y - m)³) = C(y, u) - 2·(m - c)·C(y, y) with u = (y - c)². The centre is any
constant that is fixed before the rows are read, such as 0.
"""

from collections.abc import Sequence
from math import isnan, nan, sqrt
from typing import Literal, NamedTuple

from mltrust.states.moments import Moments
from mltrust.stats.means import mean_arm

#: Above it Welch's test cannot be trusted to hold its level.
THRESHOLD = 0.05
# Values farther from their centre, in standard deviations, leave no third moment: u has lost the digits. Measured:
# the skewness is off by up to 3e-17·offset², that is, here by 3e-5.
_LARGEST_OFFSET = 1e6


class Skew(NamedTuple):
    """The skewness of one unit within the arms, and `value`, that of the difference of the two means.

    `kind` is `skewed` where value is above the threshold: then the capped metric is the one to believe.
    `inconclusive`: nothing varies, or the offset leaves no third moment.
    """

    n_control: int
    n_treatment: int
    skewness: float
    value: float
    threshold: float
    kind: Literal["skewed", "none", "inconclusive"]


def skew(*, control: Moments, treatment: Moments, column: str, squares: str, centre: float = 0.0) -> Skew:
    """The skewness of the difference of two means, g = |skewness|·|1/n_t² - 1/n_c²| / (1/n_t + 1/n_c)^1.5.

    Parameters
    ----------
    squares, centre
        As in `skewness`.

    Notes
    -----
    Third cumulants add like variances: k3·(1/n_t² - 1/n_c²) over s³·(1/n_t + 1/n_c)^1.5, where both arms have the
    same law. Equal arms cancel whatever the skewness. It is that of both arms about their own means, as the
    smaller arm, which matters most, tells least about it.

    References
    ----------
    Boos, D. D. and Hughes-Oliver, J. M. (2000). How large does n have to be for Z and t intervals? The American
    Statistician 54, 121-128.
    """
    n_c, n_t = control.n, treatment.n
    if not (n_c and n_t):
        return Skew(n_c, n_t, nan, nan, THRESHOLD, "inconclusive")
    own = skewness([control, treatment], column=column, squares=squares, centre=centre)
    value = abs(own) * abs(n_t**-2 - n_c**-2) / (1 / n_t + 1 / n_c) ** 1.5
    return Skew(n_c, n_t, own, value, THRESHOLD, _kind(value))


def skewness(states: Sequence[Moments], *, column: str, squares: str, centre: float = 0.0) -> float:
    """The skewness m3 / m2^1.5 of one unit, each about the mean of its own state.

    Parameters
    ----------
    squares, centre
        The column that holds (value - centre)², and that centre.

    Notes
    -----
    Nan where nothing varies, and where a mean is more than 1e6 standard deviations from the centre: the squares
    are then rounded by as much as the third moment is large. A centre near the mean avoids that.
    """
    states = [state for state in states if state.n]
    n = sum(state.n for state in states)
    second = sum(_scatter(state, column, column) for state in states) / (n or nan)
    if not second > 0:
        return nan
    offsets = [mean_arm(state, column).mean - centre for state in states]
    if max(abs(offset) for offset in offsets) > _LARGEST_OFFSET * sqrt(second):
        return nan
    third = sum(
        _scatter(state, column, squares) - 2 * offset * _scatter(state, column, column)
        for state, offset in zip(states, offsets, strict=True)
    )
    return third / (n * second * sqrt(second))


def _scatter(state: Moments, a: str, b: str) -> float:
    return float(state.scatter[state.index(a), state.index(b)])


def _kind(value: float) -> Literal["skewed", "none", "inconclusive"]:
    if isnan(value):
        return "inconclusive"
    return "skewed" if value > THRESHOLD else "none"
