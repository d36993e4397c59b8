"""Quantiles of rows that come in clusters: a percentile of all requests, where units are randomised.

Two passes. The first finds the quantile and the order statistics around it, from sorted rows or from counts on
fixed cells. The second sums per unit its rows and those at or below the threshold that the first one found; from the
moments of these two columns follows how far the share below is known when units and not rows are the observations.
Undefined is nan, and `reason` says why.
"""

from math import ceil, floor, inf, isfinite, nan, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mltrust.states.moments import FloatArray, Moments
from mltrust.stats.means import Arm, Comparison, contrast
from mltrust.stats.ratios import ratio_arm

#: Below these a quantile has no standard error: rows on its thinner side, and units.
MIN_ROWS, MIN_UNITS = 50, 200
# Of 95 %: the span in which the density of the rows around the quantile is estimated, whatever the test's alpha.
_Z = 1.959963984540054


class Positions(NamedTuple):
    """Ranks among n sorted rows, 1 to n: of the quantile, and of the limits of its interval."""

    low: int
    at: int
    high: int


class OrderStatistics(NamedTuple):
    """A quantile of n_rows rows, `level` of which are at or below it, and the limits of its interval.

    `low` and `high` are the limits if rows were independent. `threshold` is where the second pass cuts: rows at or
    below it are counted per unit.
    """

    n_rows: int
    level: float
    value: float
    low: float
    high: float
    threshold: float


class Quantile(NamedTuple):
    """A quantile of one arm: of the rows of n_units units.

    `design_effect` is the variance of the share at or below the threshold, over what it would be for independent
    rows. std_error is nan where `reason` is not ''.
    """

    n_units: int
    n_rows: int
    level: float
    value: float
    std_error: float
    design_effect: float
    reason: str


def positions(n: int, level: float) -> Positions:
    """The ranks of a quantile: ceil(n·v), and floor and ceil of n·(v ± z·sqrt(v(1 - v)/n)) within 1 to n.

    `level` is v, 0.9 for the 90th percentile. ValueError where it is not between 0 and 1, or n is 0.

    References
    ----------
    Deng, A., Knoblich, U. and Lu, J. (2018). Applying the delta method in metric analytics: a practical guide
    with novel ideas. KDD '18, 233-242, on percentile metrics.
    """
    if not 0 < level < 1 or n < 1:
        raise ValueError(f"a quantile needs a level between 0 and 1 and a row, got {level} of {n} rows")
    half_width = _Z * sqrt(n * level * (1 - level))
    # 0.07·100 is 7.000000000000001 in floats: the 7th row, not the 8th.
    at = ceil(round(n * level, 6))
    return Positions(max(1, floor(n * level - half_width)), max(1, at), min(n, ceil(n * level + half_width)))


def of_sorted_rows(rows: FloatArray, level: float) -> OrderStatistics:
    """The order statistics of all rows of an arm, in ascending order."""
    low, at, high = (float(rows[rank - 1]) for rank in positions(len(rows), level))
    return OrderStatistics(len(rows), level, at, low, high, threshold=at)


def of_cells(counts: NDArray[np.int64], edges: FloatArray, level: float) -> OrderStatistics:
    """The order statistics of counts of rows on the cells (edges[i], edges[i + 1]], as far as cells tell.

    Parameters
    ----------
    edges
        One more than counts, ascending; the first and last may be infinite. The same for all arms, and fixed
        before the rows are seen.

    Notes
    -----
    Value and limits are interpolated within their cells, which are wide beside the distance of the limits where rows
    are many: the outer edges of cells made intervals that held the truth in 99.7 % and more. What interpolation does
    to a value it does in both arms alike. The threshold is the upper edge of the value's cell, so that counts per
    unit on the same cells are all that the second pass needs. What lies beyond the finite edges is nan.
    """
    if len(edges) != len(counts) + 1 or not (np.diff(edges) > 0).all():
        raise ValueError(f"{len(counts)} cells need one more edge, ascending, got {len(edges)} edges")
    below = np.cumsum(counts)
    n = int(below[-1]) if len(below) else 0
    ranks = positions(n, level)
    low, value, high = (_interpolated(rank, counts, below, edges) for rank in ranks)
    return OrderStatistics(n, level, value, low, high, threshold=float(edges[np.searchsorted(below, ranks.at) + 1]))


def _interpolated(rank: int, counts: NDArray[np.int64], below: NDArray[np.int64], edges: FloatArray) -> float:
    """The value at a rank, as if the rows of a cell lay evenly in it; nan where the cell has no end."""
    cell = int(np.searchsorted(below, rank))
    left, right = float(edges[cell]), float(edges[cell + 1])
    within = 1 - (int(below[cell]) - rank) / int(counts[cell])
    return left + within * (right - left) if isfinite(right - left) else nan


def clustered_quantile(found: OrderStatistics, state: Moments, *, below: str, rows: str) -> Quantile:
    """The quantile with its standard error, from the order statistics and the moments per unit.

    Parameters
    ----------
    state
        One observation per unit, with the columns `below`, its rows at or below `found.threshold`, and `rows`,
        all its rows. ValueError where these are not the rows of `found`.

    Notes
    -----
    Inconclusive, that is, a std_error of nan: fewer than 200 units; fewer than 50 rows above the quantile (below
    it, for a level under 0.5); equal limits (`ties`), around which the rows have no density; a limit beyond the
    cells.
    """
    if abs(state.n * float(state.mean[state.index(rows)]) - found.n_rows) > 0.5:
        raise ValueError(f"the order statistics are of {found.n_rows} rows, the moments of other ones")
    share = ratio_arm(state, below, rows)
    independent = share.mean * (1 - share.mean) / found.n_rows
    design_effect = share.mean_variance / independent if independent > 0 else nan
    std_error, reason = nan, _reason(found, state.n)
    if not reason:
        std_error = quantile_std_error(
            low=found.low, high=found.high, cluster_variance=share.mean_variance, iid_variance=independent
        )
        reason = "" if std_error > 0 else "the rows at or below the quantile do not vary between units"
    return Quantile(
        n_units=state.n,
        n_rows=found.n_rows,
        level=found.level,
        value=found.value,
        std_error=nan if reason else std_error,
        design_effect=design_effect,
        reason=reason,
    )


def quantile_std_error(*, low: float, high: float, cluster_variance: float, iid_variance: float) -> float:
    """The standard error sigma·sqrt(V_cluster / V_iid), sigma = (high - low) / (2z): nan where V_iid is not positive.

    `low` and `high` are the limits at 95 % for independent rows. The variances are those of the share of rows at or
    below the quantile: over units, by the delta method of a ratio, and over independent rows, p(1 - p)/n.

    References
    ----------
    Deng, A., Knoblich, U. and Lu, J. (2018). Applying the delta method in metric analytics: a practical guide
    with novel ideas. KDD '18, 233-242, on percentile metrics.
    """
    if not (iid_variance > 0 and cluster_variance >= 0):
        return nan
    return (high - low) / (2 * _Z) * sqrt(cluster_variance / iid_variance)


def quantile_arm(found: Quantile) -> Arm:
    """A quantile as the mean of its units: with the variance of a unit that gives it its standard error."""
    return Arm(found.n_units, found.value, found.n_units * found.std_error**2)


def compare_quantiles(*, control: Quantile, treatment: Quantile, alpha: float = 0.05) -> Comparison:
    """The comparison of two arms' quantiles, on the normal law; its n are units.

    ValueError where they are quantiles of different levels.
    """
    if control.level != treatment.level:
        raise ValueError(f"cannot compare the quantiles {control.level} and {treatment.level}")
    compared = contrast(
        method="quantile",
        control=quantile_arm(control),
        treatment=quantile_arm(treatment),
        effect_variance=control.std_error**2 + treatment.std_error**2,
        df=inf,
        alpha=alpha,
    )
    return compared._replace(df=nan)


def _reason(found: OrderStatistics, n_units: int) -> str:
    """Why there is no standard error, '' if there is."""
    n_beyond = round(found.n_rows * min(found.level, 1 - found.level), 6)  # 500·(1 - 0.9) is 49.99999999999999
    if n_units < MIN_UNITS:
        return f"{n_units} units, at least {MIN_UNITS} needed"
    if n_beyond < MIN_ROWS:
        return f"{int(n_beyond)} rows beyond the quantile, at least {MIN_ROWS} needed"
    if not (isfinite(found.low) and isfinite(found.high)):
        return "the interval of the quantile reaches beyond the cells"
    if found.low == found.high:
        return "ties"
    return ""
