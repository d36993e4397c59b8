"""Two arms compared by replicates of any statistic: Poisson bootstrap and delete-a-group jackknife.

For statistics that have no variance in closed form, and as a witness for those that have one. Undefined is nan:
a replicate without a value, such as a ratio over a sum of 0, leaves the comparison without a standard error.
"""

from collections.abc import Callable
from math import nan
from typing import NamedTuple

import numpy as np

from mltrust.states.moments import FloatArray
from mltrust.states.replicates import UNITS, Replicates
from mltrust.stats.means import Arm, Comparison, contrast

# Replicates of a constant differ by rounding, and what is that small beside the value is no variation. Sums of a
# million units agree to 1e-14.
_ROUNDING = 1e-13


class Resampled(NamedTuple):
    """A statistic of one arm: its n units, its value for the sample, and for each of the replicates (B,)."""

    n: int
    value: float
    replicates: FloatArray


class Percentiles(NamedTuple):
    """What is read from the replicates themselves, of which there are `n_replicates`.

    The limits of the effect and of the relative effect have confidence 1 - alpha and need no law. The p-value is
    never below 2 / n_replicates: fewer than one replicate has not been seen.
    """

    n_replicates: int
    pvalue: float
    ci_low: float
    ci_high: float
    rel_ci_low: float
    rel_ci_high: float


def resampled(state: Replicates, statistic: Callable[[Replicates], FloatArray]) -> Resampled:
    """The arm of a statistic of sums: from a state to one value per row of its sums, (1 + B,)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        values = statistic(state)
    values = np.where(np.isfinite(values), values, nan)
    return Resampled(state.n, float(values[0]), values[1:])


def resampled_mean(state: Replicates, column: str) -> Resampled:
    """The arm of a column's mean over units."""
    return resampled_ratio(state, column, UNITS)


def resampled_ratio(state: Replicates, numerator: str, denominator: str) -> Resampled:
    """The arm of sum(numerator) / sum(denominator)."""
    return resampled(state, lambda sums: sums.column(numerator) / sums.column(denominator))


def resampled_total(state: Replicates, column: str) -> Resampled:
    """The arm of a column's total over its n units: sum(W·y)·n / sum(W).

    The weights of a replicate do not add up to n, and without n / sum(W) their sum would vary the total as much
    again as the values do.
    """
    return resampled(state, lambda sums: sums.column(column) * (sums.n / sums.column(UNITS)))


def bootstrap(*, control: Resampled, treatment: Resampled, alpha: float = 0.05) -> Comparison:
    """The comparison whose standard error is the standard deviation of the bootstrap's replicates.

    p-value and intervals come from effect / std_error on the t law of units - 2, the relative interval is
    Fieller's, and so they agree with each other and have all their digits. Control and treatment may share
    units: the covariance of their replicates counts.

    References
    ----------
    Chamandy, N., Muralidharan, O., Najmi, A. and Naidu, S. (2012). Estimating uncertainty for massive data
    streams. Technical report, Google.
    """
    return _compared(
        "bootstrap", control, treatment, _covariance(control, treatment), control.n + treatment.n - 2, alpha
    )


def jackknife(*, control: Resampled, treatment: Resampled, alpha: float = 0.05) -> Comparison:
    """The comparison whose standard error comes from leaving out a group of units at a time, in both arms.

    The law is t with groups - 1 degrees of freedom, not with those of the units.

    References
    ----------
    Kott, P. S. (2001). The delete-a-group jackknife. Journal of Official Statistics 17, 521-526.
    """
    covariance = jackknife_covariance(np.column_stack(_replicates(control, treatment)))
    return _compared("jackknife", control, treatment, covariance, len(control.replicates) - 1, alpha)


def jackknife_covariance(estimates: FloatArray) -> FloatArray:
    """The covariance (p, p) of p estimates from their values (G, p) without each of G groups of units.

    (G - 1) / G · sum of products about the means. The groups are of one expected size, such as hash buckets;
    where every unit is a group this is the jackknife of Tukey. Nan for fewer than 2 groups.

    References
    ----------
    Kott, P. S. (2001). The delete-a-group jackknife. Journal of Official Statistics 17, 521-526.
    """
    G = len(estimates)
    if G < 2:
        return np.full((estimates.shape[1], estimates.shape[1]), nan)
    centred = estimates - estimates.mean(axis=0)
    covariance: FloatArray = (G - 1) / G * (centred.T @ centred)
    return covariance


def percentiles(*, control: Resampled, treatment: Resampled, alpha: float = 0.05) -> Percentiles:
    """The percentile interval and p-value of the effect of the bootstrap's replicates.

    All nan where a replicate has no value, and the limits where alpha is below 2 / B: they would lie outside of
    all replicates. The p-value is twice the share of replicates on the far side of 0. Decide on that of
    `bootstrap`, which can be small.

    References
    ----------
    Efron, B. and Tibshirani, R. J. (1993). An Introduction to the Bootstrap, 13.3. Chapman & Hall.
    """
    c, t = _replicates(control, treatment)
    B, effect = len(c), t - c
    if np.isnan(effect).any():
        return Percentiles(B, nan, nan, nan, nan, nan)
    far = 2 * min(np.mean(effect <= 0), np.mean(effect >= 0))
    relative = np.divide(effect, c, out=np.full(B, nan), where=c != 0)
    limits = [
        np.quantile(values, [alpha / 2, 1 - alpha / 2]) if alpha * B >= 2 else (nan, nan)
        for values in (effect, relative)
    ]
    return Percentiles(B, min(1.0, max(float(far), 2 / B)), *(float(limit) for pair in limits for limit in pair))


def _covariance(control: Resampled, treatment: Resampled) -> FloatArray:
    c, t = _replicates(control, treatment)
    if len(c) < 2:
        return np.full((2, 2), nan)
    return np.cov(c, t)


def _replicates(control: Resampled, treatment: Resampled) -> tuple[FloatArray, FloatArray]:
    c, t = control.replicates, treatment.replicates
    if c.shape != t.shape or c.ndim != 1:
        raise ValueError(f"both arms need one value per replicate, got shapes {c.shape} and {t.shape}")
    return c, t


def _compared(
    method: str, control: Resampled, treatment: Resampled, covariance: FloatArray, df: int, alpha: float
) -> Comparison:
    """The comparison that follows from the covariance (2, 2) of the control's and the treatment's values."""
    (v_control, shared), (_, v_treatment) = covariance.tolist()
    variance = v_control + v_treatment - 2 * shared
    if variance <= (_ROUNDING * max(abs(control.value), abs(treatment.value))) ** 2:
        variance = 0.0
    return contrast(
        method=method,
        control=Arm(control.n, control.value, control.n * v_control),
        treatment=Arm(treatment.n, treatment.value, treatment.n * v_treatment),
        effect_variance=variance,
        df=df,
        alpha=alpha,
        covariance=shared - v_control,
    )
