"""CUPED: arms compared after what the units already did before the experiment is taken out.

A covariate is known before exposure, or the adjustment takes out part of the effect itself. A unit without a
pre-period has its covariates at 0 and a further covariate that is 1 for such units. In CUPAC a covariate is a
prediction that was made before exposure (Tang et al. 2020).
"""

from collections.abc import Sequence
from math import exp, inf, log, nan, sqrt
from typing import NamedTuple

import numpy as np
from scipy import special

from mltrust.states.moments import FloatArray, Moments
from mltrust.stats.means import Arm, Comparison, contrast, satterthwaite

# Moments agree to 1e-12 relative whatever the order of their merges: a smaller remainder is rounding.
_ROUNDING = 1e-12
# On correlations, which have that rounding too: along a smaller eigenvalue theta would have no two right digits.
_COLLINEAR = 1e-10
# Below so many standard errors the logarithm of a mean is not near enough to normal.
_SE_OF_LOG = 3


class Quantity(NamedTuple):
    """What is compared or adjusted for: sum(numerator) / sum(denominator), a mean over units without the latter."""

    numerator: str
    denominator: str | None = None


class Cuped(NamedTuple):
    """An adjusted comparison, of method `cuped`, and how it was adjusted.

    `control` and `treatment` are the adjusted arms, which `comparison` compares: the means are those at the
    covariates of both arms together, the variances what the covariates leave. They go wherever arms go, such
    as into `non_inferiority`. `theta` has one coefficient per covariate; `rank` is how many covariates are
    neither constant nor linear in the others. `variance_reduction` is the share of the effect's variance that
    went, negative where the adjustment made it worse.
    """

    comparison: Comparison
    theta: tuple[float, ...]
    rank: int
    variance_reduction: float
    control: Arm
    treatment: Arm


class RelativeInterval(NamedTuple):
    """Confidence limits of the relative effect, nan where they are undefined."""

    low: float
    high: float


def cuped(
    *,
    control: Moments,
    treatment: Moments,
    metric: Quantity,
    covariates: Sequence[Quantity],
    alpha: float = 0.05,
    df: float | None = None,
    theta: Sequence[float] | None = None,
) -> Cuped:
    """Welch's test of two arms whose means are moved along theta to the covariates of both arms together.

    Parameters
    ----------
    control, treatment
        States of the same columns. Only these two arms make theta: a third arm changes nothing here.
    df
        As in `welch`, on the adjusted variances.
    theta
        Coefficients that were chosen elsewhere, one per covariate. By default Sx⁻¹·Sxy from the
        cross-products within the arms, added: the slopes of the regression of y on arm and covariates.

    Notes
    -----
    effect = (y_t - y_c) - θᵀ(x_t - x_c) and se² = V_c/n_c + V_t/n_t with V = s²_y + θᵀSx·θ - 2θᵀSxy per arm.
    A ratio of sums, metric or covariate, enters as its linearisation (a - R·b)/b̄ at the means of its arm. The
    covariance of two such values is rcov(a/b, c/e) = [Cov(a,c) - Cov(a,e)·R' - Cov(b,c)·R + Cov(b,e)·R·R']/(b̄·ē),
    theta of one ratio on another therefore sum n·rcov(R,R') / sum n·rvar(R') over the arms (moments over n),
    and a covariate without a denominator the case e = 1: means and ratios adjust for either.

    The pseudoinverse leaves out what is constant or collinear, so that the result is that of fewer covariates.
    Theta is taken as known, which makes se² too small by about 2·rank/n: nothing for hundreds of units.
    Fieller's interval of the relative effect counts the chance in the covariates' common mean as well: without it, at
    a correlation of 0.9 and a constant effect of +100 %, it misses 10 % of the time instead of 5 %. Nan where an arm
    has fewer than 2 units or a denominator of mean 0, and where the covariates leave no variance.

    References
    ----------
    Deng, A., Xu, Y., Kohavi, R. and Walker, T. (2013). Improving the sensitivity of online controlled
    experiments by utilizing pre-experiment data. WSDM '13, 123-132, eq. 4 and appendix B (ratios).
    """
    quantities = [metric, *covariates]
    arms = [_linearised(state, quantities) for state in (control, treatment)]
    slopes, rank = _regression(arms[0].scatter + arms[1].scatter)
    if theta is not None:
        slopes = _given(theta, covariates)
    centre = _values(control + treatment, covariates)
    adjusted = [_adjusted(arm, slopes, centre) for arm in arms]
    chance = _centre_chance(arms, slopes)
    at_centre = adjusted[0].variance + adjusted[0].n * chance.variance
    comparison = contrast(
        method="cuped",
        control=adjusted[0]._replace(variance=at_centre),
        treatment=adjusted[1],
        effect_variance=sum(arm.mean_variance for arm in adjusted),
        df=satterthwaite(adjusted) if df is None else df,
        alpha=alpha,
        covariance=chance.covariance - adjusted[0].mean_variance,
    )
    plain = sum(_first(arm).mean_variance for arm in arms)
    return Cuped(
        comparison=comparison,
        theta=tuple(slopes.tolist()),
        rank=rank,
        variance_reduction=1 - sum(arm.mean_variance for arm in adjusted) / plain if plain > 0 else nan,
        control=adjusted[0],
        treatment=adjusted[1],
    )


class _Centre(NamedTuple):
    """What chance in the covariates' common mean adds: to the variance of the adjusted control mean, and to its
    covariance with the effect.
    """

    variance: float
    covariance: float


def _centre_chance(arms: Sequence[Moments], theta: FloatArray) -> _Centre:
    """With r = y - θᵀx, m = r_c + θᵀx̄ and E = r_t - r_c: in each arm r and x̄ have the covariance cov(r, x)/n."""
    n = sum(arm.n for arm in arms)
    if any(arm.n < 2 for arm in arms):
        return _Centre(nan, nan)
    spread = sum(arm.scatter[1:, 1:] for arm in arms) / (n - 2)
    left = [theta @ (arm.scatter[1:, 0] - arm.scatter[1:, 1:] @ theta) / (arm.n - 1) for arm in arms]
    return _Centre(float(theta @ spread @ theta + 2 * left[0]) / n, float(left[1] - left[0]) / n)


def log_ratio(*, control: Arm, treatment: Arm, alpha: float = 0.05, df: float | None = None) -> RelativeInterval:
    """Limits of mean_t / mean_c - 1 from the logarithms of the means; nan unless both exceed 3 standard errors.

    The delta method on the log scale, log(mean) having variance V/(n·mean²), with the Satterthwaite df of these
    variances unless `df` is given. Unlike Fieller's interval it can contradict the absolute test.
    """
    if not all(arm.mean > _SE_OF_LOG * sqrt(arm.mean_variance) for arm in (control, treatment)):
        return RelativeInterval(nan, nan)
    logs = [Arm(arm.n, log(arm.mean), arm.variance / (arm.mean * arm.mean)) for arm in (control, treatment)]
    half_width = -float(special.stdtrit(satterthwaite(logs) if df is None else df, alpha / 2))
    half_width *= sqrt(sum(arm.mean_variance for arm in logs))
    ratio = treatment.mean / control.mean
    return RelativeInterval(ratio * exp(-half_width) - 1, ratio * exp(half_width) - 1)


def _values(state: Moments, quantities: Sequence[Quantity]) -> FloatArray:
    """The quantities of a state, shape (k,); nan where a denominator has mean 0."""
    return np.array([_value(state, each) for each in quantities], dtype=np.float64)


def _value(state: Moments, quantity: Quantity) -> float:
    return float(state.mean[state.index(quantity.numerator)]) / _denominator(state, quantity)


def _denominator(state: Moments, quantity: Quantity) -> float:
    if quantity.denominator is None:
        return 1.0
    return float(state.mean[state.index(quantity.denominator)]) or nan


def _linearised(state: Moments, quantities: Sequence[Quantity]) -> Moments:
    """The state of the quantities as if every unit had a value of each: of a ratio, its linearisation."""
    weights = np.zeros((len(quantities), len(state.columns)))
    for row, each in zip(weights, quantities, strict=True):
        scale = 1 / _denominator(state, each)
        row[state.index(each.numerator)] = scale
        if each.denominator is not None:
            row[state.index(each.denominator)] -= scale * _value(state, each)
    return _combined(state, weights, _values(state, quantities))


def _combined(state: Moments, weights: FloatArray, mean: FloatArray) -> Moments:
    """The state of linear combinations of the columns, shape (combinations, columns), with a mean that is given.

    One that varies by no more than the rounding of its terms has a scatter of exactly 0.
    """
    scatter = weights @ state.scatter @ weights.T
    size = np.abs(weights) @ np.abs(state.scatter) @ np.abs(weights.T)
    own = np.diag(scatter)
    constant = (own <= _ROUNDING * np.diag(size)) | (own <= state.n * (_ROUNDING * mean) ** 2)
    scatter[constant] = scatter[:, constant] = 0
    return Moments(tuple(str(i) for i in range(len(weights))), state.n, mean, scatter)


def _regression(scatter: FloatArray) -> tuple[FloatArray, int]:
    """Slopes of the first column on the others, which may be none, and the rank of the others."""
    if not np.isfinite(scatter).all():
        return np.full(len(scatter) - 1, nan), 0
    # Correlations, so that the units of measurement of the covariates do not decide what counts as collinear.
    scale = np.sqrt(np.diag(scatter)[1:])
    scale[scale == 0] = inf
    values, vectors = np.linalg.eigh(scatter[1:, 1:] / np.outer(scale, scale))
    kept = values > _COLLINEAR
    directions = vectors[:, kept]
    slopes = directions @ ((directions.T @ (scatter[1:, 0] / scale)) / values[kept]) / scale
    return slopes, int(kept.sum())


def _given(theta: Sequence[float], covariates: Sequence[Quantity]) -> FloatArray:
    if len(theta) != len(covariates):
        raise ValueError(f"theta needs one number for each of {len(covariates)} covariates, got {theta}")
    return np.array(theta, dtype=np.float64)


def _adjusted(arm: Moments, theta: FloatArray, centre: FloatArray) -> Arm:
    """The arm of y - θᵀ(x - centre), y being the first column and x the others."""
    weights = np.concatenate([[1.0], -theta])
    mean = arm.mean[0] - theta @ (arm.mean[1:] - centre)
    return _first(_combined(arm, weights[None, :], np.array([mean])))


def _first(state: Moments) -> Arm:
    variance = float(state.scatter[0, 0]) / (state.n - 1) if state.n > 1 else nan
    return Arm(state.n, float(state.mean[0]), variance)
