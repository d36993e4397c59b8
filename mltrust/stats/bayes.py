"""What the data say about an effect as a distribution: chance to beat the control, expected loss, interval.

Two models: an effect whose estimate is normal, and shares of units that are beta. A prior speaks only where there
are units: an arm without any has no result, whatever the prior.
"""

from dataclasses import dataclass
from functools import partial
from math import ceil, exp, inf, log, nan, pi, sqrt
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from mltrust.states.moments import FloatArray
from mltrust.stats.means import Arm

# Where the quadrature over a share ends: below this chance nothing that is reported changes.
_TAIL = 1e-18
_SMALLEST = 0.1
# Steps per standard deviation. The sum of a smooth density is exact from 2 on; the limits of a difference meet
# a kink where one share reaches 0 or 1, and 32 steps keep that below 5e-4 of probability.
_STEPS = 32


class Posterior(NamedTuple):
    """The distribution of the effect of a treatment, in the unit in which the effect was given.

    `chance_to_beat` is the probability that the treatment is better than its control. `loss_control` and
    `loss_treatment` are what one expects to lose by keeping the control and by taking the treatment: the mean
    shortfall, counted 0 where the choice was right. The interval is equal-tailed, with probability 1 - alpha.
    """

    effect: float
    sd: float
    chance_to_beat: float
    loss_control: float
    loss_treatment: float
    ci_low: float
    ci_high: float


class CredibleInterval(NamedTuple):
    """Equal-tailed limits."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Normal:
    """A normal distribution; as a prior, of the effect. An infinite sd is the flat prior."""

    mean: float = 0.0
    sd: float = inf

    def __post_init__(self) -> None:
        if not (abs(self.mean) < inf and self.sd > 0):
            raise ValueError(f"a normal distribution has a finite mean and a positive sd, got {self}")


@dataclass(frozen=True, slots=True)
class Beta:
    """A beta distribution of a share, as if a successes and b failures had been seen; both at least 0.1.

    Below that much of it lies at shares too close to 0 or 1 for floating point.
    """

    a: float
    b: float

    def __post_init__(self) -> None:
        if not (_SMALLEST <= self.a < inf and _SMALLEST <= self.b < inf):
            raise ValueError(f"a beta distribution has finite a and b of at least {_SMALLEST}, got {self}")

    @property
    def mean(self) -> float:
        """The expected share."""
        return self.a / (self.a + self.b)

    @property
    def variance(self) -> float:
        """The variance of the share."""
        return self.mean * self.b / ((self.a + self.b) * (self.a + self.b + 1))

    def interval(self, alpha: float = 0.05) -> CredibleInterval:
        """The limits that hold the share with probability 1 - alpha."""
        tail = alpha / 2
        return CredibleInterval(
            float(special.betaincinv(self.a, self.b, tail)), float(special.betainccinv(self.a, self.b, tail))
        )


FLAT = Normal()
JEFFREYS = Beta(0.5, 0.5)


def normal_normal(
    *, effect: float, std_error: float, increase_is_good: bool, prior: Normal = FLAT, alpha: float = 0.05
) -> Posterior:
    """The posterior of an effect with a normal estimate and a normal prior; nan unless std_error > 0.

    With the flat prior `chance_to_beat` is one minus the one-sided p-value and the interval that of a normal law.
    The effect may be absolute or relative: losses and limits are in its unit.

    References
    ----------
    Gelman, A. et al. (2013). Bayesian data analysis, 3rd ed., eq. 2.10.
    """
    if not std_error > 0:
        return _undefined(effect)
    weight, prior_weight = 1 / (std_error * std_error), 1 / (prior.sd * prior.sd)
    mean = (weight * effect + prior_weight * prior.mean) / (weight + prior_weight)
    sd = 1 / sqrt(weight + prior_weight)
    half_width = -float(special.ndtri(alpha / 2)) * sd
    gain, loss = _mean_excess(mean, sd), _mean_excess(-mean, sd)
    return Posterior(
        effect=mean,
        sd=sd,
        chance_to_beat=float(special.ndtr(mean / sd if increase_is_good else -mean / sd)),
        loss_control=gain if increase_is_good else loss,
        loss_treatment=loss if increase_is_good else gain,
        ci_low=mean - half_width,
        ci_high=mean + half_width,
    )


def share_posterior(arm: Arm, prior: Beta = JEFFREYS) -> Beta:
    """The posterior of the share of units that an arm's mean is; ValueError outside [0, 1] and without units."""
    if not (arm.n > 0 and 0 <= arm.mean <= 1):
        raise ValueError(f"a share needs units and a mean in [0, 1], got {arm}")
    return Beta(prior.a + arm.n * arm.mean, prior.b + arm.n * (1 - arm.mean))


def beta_binomial(
    *, control: Arm, treatment: Arm, increase_is_good: bool, prior: Beta = JEFFREYS, alpha: float = 0.05
) -> Posterior:
    """The posterior of the difference of two shares of units with the same beta prior; nan without units.

    Reads n and mean of the arms. Mean and sd are closed; chance, losses and limits are integrals over one share
    of the distribution function of the other: exact to 1e-10, only the limits of a share near 0 or 1 to 5e-4
    of probability.

    References
    ----------
    Stucchio, C. (2015). Bayesian A/B testing at VWO, on the expected loss.
    """
    if min(control.n, treatment.n) == 0:
        return _undefined(treatment.mean - control.mean)
    c, t = (share_posterior(arm, prior) for arm in (control, treatment))
    if c.mean + t.mean > 1:
        # The difference of the failures is the same, and shares near 0 have the digits that shares near 1 lack.
        c, t = Beta(t.b, t.a), Beta(c.b, c.a)
    (above, gain), (below, loss) = _beats(t, c), _beats(c, t)
    return Posterior(
        effect=t.mean - c.mean,
        sd=sqrt(c.variance + t.variance),
        chance_to_beat=above if increase_is_good else below,
        loss_control=gain if increase_is_good else loss,
        loss_treatment=loss if increase_is_good else gain,
        ci_low=_quantile(t, c, alpha / 2),
        ci_high=-_quantile(c, t, alpha / 2),
    )


def _undefined(effect: float) -> Posterior:
    return Posterior(effect, nan, nan, nan, nan, nan, nan)


def _mean_excess(mean: float, sd: float) -> float:
    """The mean of max(x, 0) of a normal x."""
    z = mean / sd
    return mean * float(special.ndtr(z)) + sd * exp(-z * z / 2) / sqrt(2 * pi)


def _beats(one: Beta, other: Beta) -> tuple[float, float]:
    """The probability of one > other, and the mean of max(one - other, 0)."""
    if _spread(one) <= _spread(other):
        x, weight = _grid(one)
        below, mean_below = (special.betainc(other.a + i, other.b, x) for i in (0, 1))
        chance, excess = weight @ below, weight @ (x * below - other.mean * mean_below)
    else:
        x, weight = _grid(other)
        above, mean_above = (special.betaincc(one.a + i, one.b, x) for i in (0, 1))
        chance, excess = weight @ above, weight @ (one.mean * mean_above - x * above)
    return float(chance), float(excess)


def _quantile(one: Beta, other: Beta, tail: float) -> float:
    """What one - other stays below with the probability `tail`, which is under 1/2."""
    mean, sd = one.mean - other.mean, sqrt(one.variance + other.variance)
    if _spread(one) <= _spread(other):
        (x, weight), sign, law = _grid(one), -1, partial(special.betaincc, other.a, other.b)
    else:
        (x, weight), sign, law = _grid(other), 1, partial(special.betainc, one.a, one.b)

    def excess(d: float) -> float:
        return float(weight @ law(np.clip(x + sign * d, 0, 1))) - tail

    # By Cantelli's inequality the limit lies between these.
    return float(optimize.brentq(excess, mean - sd / sqrt(tail), mean + sd, xtol=1e-9 * sd))


def _spread(share: Beta) -> float:
    """The standard deviation of the share's logit."""
    return sqrt(float(special.polygamma(1, share.a) + special.polygamma(1, share.b)))


def _grid(share: Beta) -> tuple[FloatArray, FloatArray]:
    """Points of a share and weights that sum to 1: the trapezoidal rule on the logit, whose density is smooth.

    The integral goes over the share with the smaller spread, across which the other's distribution is smooth
    too. Log densities are taken relative to the mode, where those of a billion units would cancel.
    """
    mode = log(share.a / share.b)
    low, high = _logit_limit(share.a, share.b) - mode, -_logit_limit(share.b, share.a) - mode
    u = np.linspace(low, high, ceil((high - low) / _spread(share) * _STEPS))
    p, q = float(special.expit(mode)), float(special.expit(-mode))
    density = np.exp(-share.a * np.log1p(q * np.expm1(-u)) - share.b * np.log1p(p * np.expm1(u)))
    return special.expit(mode + u), density / density.sum()


def _logit_limit(a: float, b: float) -> float:
    return float(special.logit(special.betaincinv(a, b, _TAIL)))
