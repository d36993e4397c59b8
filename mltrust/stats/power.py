"""Power of a test of an effect: what it would find, how surely, and with how many units.

Every test here says "effect" where the estimate lies further than a half width from 0. That is z·se for a fixed
test, and the half width at the planned end for a sequential one. Laws are normal: below some dozens of units
they promise more than a t test keeps (0.885 instead of 0.869 for 20 and 20 units one standard deviation apart).
"""

from math import inf, nan, sqrt
from typing import Literal

from scipy import special

Sides = Literal[1, 2]


def critical_width(*, std_error: float, alpha: float = 0.05, sides: Sides = 2) -> float:
    """How far from 0 an estimate is significant: z_{1 - alpha/sides}·se, nan unless se > 0.

    One side is for non-inferiority, where the distance is that from the margin.
    """
    # A standard error of 0 says that nothing varied, not that every effect would be found.
    return -float(special.ndtri(_inside(alpha, "alpha") / sides)) * std_error if std_error > 0 else nan


def mde(*, std_error: float, alpha: float = 0.05, power: float = 0.8, sides: Sides = 2) -> float:
    """The minimum detectable effect, (z_{1 - alpha/sides} + z_power)·se, in the unit of the metric.

    A true effect of this size is found with the chance `power`. With one side it is the margin of
    non-inferiority that a treatment without any effect passes with that chance.

    References
    ----------
    Bloom, H. S. (1995). Minimum detectable effects: a simple way to report the statistical power of experimental
    designs. Evaluation Review 19, 547-556.
    """
    half_width = critical_width(std_error=std_error, alpha=alpha, sides=sides)
    return mde_beyond(half_width=half_width, std_error=std_error, power=power)


def mde_beyond(*, half_width: float, std_error: float, power: float = 0.8) -> float:
    """The minimum detectable effect of an interval of a given half width: half_width + z_power·se.

    For a sequential test half width and se are those at its planned end. A look before the end may find the
    effect as well, so that the true power is a little higher.
    """
    z = float(special.ndtri(_inside(power, "power")))
    return half_width + z * std_error if half_width > 0 and std_error > 0 else nan


def power_at(effect: float, *, std_error: float, alpha: float = 0.05, sides: Sides = 2) -> float:
    """The chance that a true effect is found on its own side of 0: the inverse of `mde`.

    An effect on the wrong side is not power. Two sides take the size of the effect, one side takes its sign:
    the effect is then the distance to the margin, positive where the treatment is better than that.
    """
    half_width = critical_width(std_error=std_error, alpha=alpha, sides=sides)
    return power_beyond(abs(effect) if sides == 2 else effect, half_width=half_width, std_error=std_error)


def power_beyond(effect: float, *, half_width: float, std_error: float) -> float:
    """The chance that the estimate of a true effect exceeds the half width, as in `mde_beyond`."""
    return float(special.ndtr((effect - half_width) / std_error)) if half_width > 0 and std_error > 0 else nan


def sample_size(
    *,
    effect: float,
    variance_control: float,
    variance_treatment: float,
    share_control: float = 0.5,
    share_treatment: float = 0.5,
    variance_null: float | None = None,
    alpha: float = 0.05,
    power: float = 0.8,
    sides: Sides = 2,
) -> float:
    """Units of the whole experiment so that the effect is found with the given power; not rounded, inf for 0.

    Parameters
    ----------
    effect
        In the unit of the metric; for one side, the distance to the margin.
    variance_control, variance_treatment
        Of one unit, under the effect; after CUPED those of the adjusted arms.
    share_control, share_treatment
        Of the experiment's units that are in the arm. Other arms may have the rest.
    variance_null
        Of one unit of either arm if there is no effect, where the test uses that: p(1 - p) for the share p of both
        arms together (Fleiss, statsmodels) or of the control (Evan Miller's calculator). By default the variances
        above: `mde` at this number of units is then the effect.

    Notes
    -----
    n = ((z_{1 - alpha/sides}·sd_0 + z_power·sd_1) / effect)², where sd_1² = V_c/share_c + V_t/share_t and sd_0²
    is the same of the variance without an effect.

    References
    ----------
    Fleiss, J. L., Tytun, A. and Ury, H. K. (1980). A simple approximation for calculating sample sizes for
    comparing independent proportions. Biometrics 36, 343-346, eq. 3: shares of units, with the variance of the
    share in both arms together as the one without an effect.
    """
    if not (share_control > 0 and share_treatment > 0 and share_control + share_treatment <= 1 + 1e-9):
        raise ValueError(f"shares are positive and at most 1 together, got {share_control} and {share_treatment}")
    sd = sqrt(variance_control / share_control + variance_treatment / share_treatment)
    sd_null = sd if variance_null is None else sqrt(variance_null * (1 / share_control + 1 / share_treatment))
    width = critical_width(std_error=sd_null, alpha=alpha, sides=sides)
    total = mde_beyond(half_width=width, std_error=sd, power=power)
    return (total / effect) ** 2 if effect else inf


def _inside(share: float, name: str) -> float:
    if not 0 < share < 1:
        raise ValueError(f"{name} lies between 0 and 1, got {share}")
    return share
