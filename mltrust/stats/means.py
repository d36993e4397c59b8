"""Two arms compared by their means: Welch's test, proportions, relative effects, non-inferiority.

An arm is the number of its units, its mean and the variance of one unit. For a ratio the mean is the ratio
and the variance that of its linearisation, so that every comparison below holds for ratios too. Undefined
is nan, and a result that is undefined in one number still has the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import copysign, inf, nan, sqrt
from typing import NamedTuple

from scipy import special

from mltrust.states.moments import Moments

_SMALLEST_TAIL = 1e-300


class Arm(NamedTuple):
    """One arm of an experiment: n units, their mean, and the variance of one unit (nan if undefined)."""

    n: int
    mean: float
    variance: float

    @property
    def mean_variance(self) -> float:
        """Variance of the mean, nan for fewer than 2 units."""
        return self.variance / self.n if self.n > 1 else nan


class Comparison(NamedTuple):
    """A treatment against its control.

    The n are units, `rel_effect` and its limits shares of the control mean. Intervals have confidence
    1 - alpha. df is nan where the law is normal. A relative interval of nan beside a defined absolute one is
    unbounded: the control mean cannot be told from 0.
    """

    method: str
    n_control: int
    n_treatment: int
    mean_control: float
    mean_treatment: float
    effect: float
    std_error: float
    df: float
    statistic: float
    pvalue: float
    ci_low: float
    ci_high: float
    rel_effect: float
    rel_ci_low: float
    rel_ci_high: float


class FiellerInterval(NamedTuple):
    """Confidence limits of a ratio; nan where g >= 1, that is, where the confidence set is unbounded."""

    low: float
    high: float
    g: float


class NonInferiority(NamedTuple):
    """One-sided test that a treatment is not worse than its control by the margin or more.

    The statistic is positive where the treatment is better than the margin asks for.
    """

    statistic: float
    df: float
    pvalue: float


@dataclass(frozen=True, slots=True)
class Margin:
    """The largest acceptable loss: in the unit of the metric, or as a share of the control mean."""

    absolute: float | None = None
    relative: float | None = None

    def __post_init__(self) -> None:
        given = [size for size in (self.absolute, self.relative) if size is not None]
        if len(given) != 1 or not 0 < given[0] < inf:
            raise ValueError(f"a margin is one positive number, absolute or relative, got {self}")

    def size(self, mean: float) -> float:
        """The margin in the unit of the metric, at a control mean."""
        return self.absolute if self.absolute is not None else abs(mean) * (self.relative or 0)

    def limit(self, control: Arm, *, increase_is_good: bool) -> Arm:
        """The control made worse by the margin: m - x or m·(1 - r); m + x or m·(1 + r) if a decrease is good.

        A relative margin is a share of the size of the mean, so that a negative mean too becomes worse.
        """
        worse = -1 if increase_is_good else 1
        factor = 1 + worse * copysign(self.relative or 0, control.mean)
        mean = factor * control.mean + worse * (self.absolute or 0)
        return Arm(control.n, mean, factor * factor * control.variance)


def mean_arm(state: Moments, column: str) -> Arm:
    """The arm of a column's mean over units."""
    return Arm(state.n, float(state.mean[state.index(column)]), state.var(column))


def welch(*, control: Arm, treatment: Arm, alpha: float = 0.05, df: float | None = None) -> Comparison:
    """Welch's t test of two means, its interval, and Fieller's interval of the relative effect.

    Parameters
    ----------
    df
        Instead of the Satterthwaite approximation: buckets - 2 where the units are buckets, inf for a
        normal law.

    Notes
    -----
    Both intervals have the same critical value, so that one excludes 0 exactly when the other does (as long
    as the relative one is bounded). Test and intervals are nan for fewer than 2 units in an arm and where
    neither arm varies.

    References
    ----------
    Welch, B. L. (1947). The generalization of Student's problem when several different population variances
    are involved. Biometrika 34, 28-35.
    """
    if df is None:
        df = satterthwaite([control, treatment])
    return contrast(
        method="welch",
        control=control,
        treatment=treatment,
        effect_variance=control.mean_variance + treatment.mean_variance,
        df=df,
        alpha=alpha,
    )


def proportion(*, control: Arm, treatment: Arm, alpha: float = 0.05) -> Comparison:
    """Score test of two shares of units with the pooled variance; its intervals with the unpooled p(1 - p)/n.

    Reads n and mean of the arms. `statistic` and `pvalue` are the score test's; `std_error` and both
    intervals are the unpooled ones, and the relative interval excludes 0 exactly when the absolute one
    does. Close to alpha the p-value can therefore contradict the intervals: decide on the p-value. An arm of
    only zeros against one of only ones has a test but no interval.

    References
    ----------
    Newcombe, R. G. (1998). Interval estimation for the difference between independent proportions.
    Statistics in Medicine 17, 873-890, method 1 (the interval).
    """
    control, treatment = _binomial(control), _binomial(treatment)
    n = control.n + treatment.n
    share = (control.n * control.mean + treatment.n * treatment.mean) / n if n else nan
    pooled = [arm._replace(variance=share * (1 - share)) for arm in (control, treatment)]
    score = (treatment.mean - control.mean) / _std_error(pooled[0].mean_variance + pooled[1].mean_variance)
    unpooled = welch(control=control, treatment=treatment, alpha=alpha, df=inf)
    pvalue = 2 * float(special.ndtr(-abs(score)))
    return unpooled._replace(method="proportion", df=nan, statistic=score, pvalue=pvalue)


def non_inferiority(
    *, control: Arm, treatment: Arm, margin: Margin, increase_is_good: bool, df: float | None = None
) -> NonInferiority:
    """One-sided Welch test of the treatment against the control made worse by the margin.

    An absolute margin x tests mean_t - mean_c > -x (< x where a decrease is good). A relative margin r tests
    mean_t - f·mean_c > 0 with f = 1 - r (< 0 with f = 1 + r) and variance V_t/n_t + f²·V_c/n_c, and so needs
    no interval of a ratio. `df` is as in `welch`.
    """
    limit = margin.limit(control, increase_is_good=increase_is_good)
    test = welch(control=limit, treatment=treatment, df=df)
    statistic = test.statistic if increase_is_good else -test.statistic
    return NonInferiority(statistic, test.df, one_sided_pvalue(test, increase=increase_is_good))


def one_sided_pvalue(test: Comparison, *, increase: bool) -> float:
    """The p-value of a t test against no increase of the mean, or against no decrease."""
    return float(special.stdtr(test.df, -test.statistic if increase else test.statistic))


def normal_score(statistic: float, df: float) -> float:
    """The z with the p-value that `statistic` has on the t law of df; the statistic itself where df is nan (normal).

    What tests of several z are given: with 10 treated units at the first of five looks and 50 at the last,
    group-sequential bounds of t statistics are crossed in 5.9 % of experiments without an effect, of these in 5.2 %.

    References
    ----------
    Jennison, C. and Turnbull, B. W. (2000). Group sequential methods with applications to clinical trials, 3.3.
    Chapman & Hall.
    """
    tail = float(special.stdtr(df, -abs(statistic)))
    # Where the tail is no float any more, no bound is near.
    return copysign(-float(special.ndtri(tail)), statistic) if tail > _SMALLEST_TAIL else statistic


def fieller(
    *,
    effect: float,
    effect_variance: float,
    mean: float,
    mean_variance: float,
    critical: float,
    covariance: float | None = None,
) -> FiellerInterval:
    """Confidence limits of effect / mean: the roots L of (E - L·m)² = c²·Var(E - L·m).

    Parameters
    ----------
    mean, mean_variance
        The control mean and its variance.
    critical
        c, the one of the absolute interval: the limits then exclude 0 exactly when that interval does.
    covariance
        Of effect and mean; -mean_variance if not given, as for an effect of mean_t - mean_c with
        independent arms.

    Notes
    -----
    With r = E/m, s = c/m and g = s²·V_m the limits are
    (r - s²·C ± |s|·sqrt(V_E - 2r·C + r²·V_m - s²·(V_E·V_m - C²))) / (1 - g).
    g >= 1 means that the mean cannot be told from 0 and that no bounded interval has the stated confidence.

    References
    ----------
    Fieller, E. C. (1954). Some problems in interval estimation. Journal of the Royal Statistical Society B
    16, 175-185.
    """
    scale = critical / mean if mean else inf
    g = scale * scale * mean_variance
    if not g < 1:
        return FiellerInterval(nan, nan, g)
    C = -mean_variance if covariance is None else covariance
    ratio = effect / mean
    determinant = effect_variance * mean_variance - C * C
    inner = effect_variance - 2 * ratio * C + ratio * ratio * mean_variance - scale * scale * determinant
    centre = ratio - scale * scale * C
    half_width = abs(scale) * sqrt(max(inner, 0.0))
    return FiellerInterval((centre - half_width) / (1 - g), (centre + half_width) / (1 - g), g)


def satterthwaite(arms: Sequence[Arm]) -> float:
    """Degrees of freedom of the variance of a sum of independent means, nan where it is undefined or 0.

    References
    ----------
    Satterthwaite, F. E. (1946). An approximate distribution of estimates of variance components. Biometrics
    Bulletin 2, 110-114.
    """
    total = sum(arm.mean_variance for arm in arms)
    if not total > 0:
        return nan
    return 1 / sum((arm.mean_variance / total) ** 2 / (arm.n - 1) for arm in arms)


def contrast(
    *,
    method: str,
    control: Arm,
    treatment: Arm,
    effect_variance: float,
    df: float,
    alpha: float,
    covariance: float | None = None,
) -> Comparison:
    """The comparison that follows from mean_t - mean_c and its variance, on the t law of df.

    df = inf is the normal law. `covariance` is that of effect and control mean, as in `fieller`.
    """
    effect = treatment.mean - control.mean
    std_error = _std_error(effect_variance)
    statistic = effect / std_error
    critical = -float(special.stdtrit(df, alpha / 2))
    relative = fieller(
        effect=effect,
        effect_variance=std_error * std_error,
        mean=control.mean,
        mean_variance=control.mean_variance,
        critical=critical,
        covariance=covariance,
    )
    return Comparison(
        method=method,
        n_control=control.n,
        n_treatment=treatment.n,
        mean_control=control.mean,
        mean_treatment=treatment.mean,
        effect=effect,
        std_error=std_error,
        df=df,
        statistic=statistic,
        # stdtr(df, -|t|) is the sf of scipy.stats.t, without the cost of a distribution object per slice.
        pvalue=2 * float(special.stdtr(df, -abs(statistic))),
        ci_low=effect - critical * std_error,
        ci_high=effect + critical * std_error,
        rel_effect=effect / control.mean if control.mean else nan,
        rel_ci_low=relative.low,
        rel_ci_high=relative.high,
    )


def _std_error(variance: float) -> float:
    # A variance of 0 says that nothing varied, not that the effect is known without error.
    return sqrt(variance) if variance > 0 else nan


def _binomial(arm: Arm) -> Arm:
    if arm.mean < 0 or arm.mean > 1:
        raise ValueError(f"a proportion lies in [0, 1], got a mean of {arm.mean}")
    return arm._replace(variance=arm.mean * (1 - arm.mean))
