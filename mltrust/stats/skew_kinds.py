"""The skewness of the difference of two shares, and of two ratios of sums; see `skew` for that of means."""

from collections.abc import Sequence
from math import isnan, nan, sqrt

from mltrust.states.moments import Moments
from mltrust.stats.means import Arm
from mltrust.stats.skew import THRESHOLD, Skew

# As in `skew`: values farther from 0, in standard deviations, leave no third moment.
_LARGEST_OFFSET = 1e6
# As in `cuped`: a smaller remainder of terms is what their rounding leaves.
_ROUNDING = 1e-12


def skew_of_shares(*, control: Arm, treatment: Arm) -> Skew:
    """g of two shares of units, whose skewness is (1 - 2p) / sqrt(p(1 - p)), p that of both arms together.

    Reads n and mean of the arms.
    """
    n = control.n + treatment.n
    p = (control.n * control.mean + treatment.n * treatment.mean) / n if n else nan
    own = (1 - 2 * p) / sqrt(p * (1 - p)) if 0 < p < 1 else nan
    return _skew(control.n, treatment.n, own)


def skew_of_ratios(
    *, control: Moments, treatment: Moments, numerator: str, denominator: str, products: tuple[str, str, str]
) -> Skew:
    """g of two ratios of sums, from the skewness of a unit's part y - R·d in the ratio R of its own arm.

    Parameters
    ----------
    products
        The columns that hold y², y·d and d² of numerator y and denominator d, not centred.

    Notes
    -----
    The third moment of y - R·d is m(y,y,y) - 3R·m(y,y,d) + 3R²·m(y,d,d) - R³·m(d,d,d), where m(a,b,c) =
    (C(a, bc) - b̄·C(a, c) - c̄·C(a, b)) / n. Nan where nothing varies, where the denominator has mean 0, and where a
    mean is more than 1e6 standard deviations from 0, which leaves no digits.
    """
    arms = [state for state in (control, treatment) if state.n]
    parts = [_part(state, numerator, denominator, products) for state in arms]
    n = sum(state.n for state in arms)
    second, third = (sum(part[at] for part in parts) / n if n else nan for at in (0, 1))
    own = third / (second * sqrt(second)) if second > 0 else nan
    return _skew(control.n, treatment.n, own)


def _part(state: Moments, y: str, d: str, products: tuple[str, str, str]) -> tuple[float, float]:
    """Sums over units of the second and of the third power of y - R·d."""
    yy, yd, dd = products
    mean = {name: float(state.mean[state.index(name)]) for name in (y, d)}
    spread = {name: sqrt(_scatter(state, name, name) / state.n) for name in (y, d)}
    if not mean[d] or any(abs(mean[name]) > _LARGEST_OFFSET * spread[name] > 0 for name in (y, d)):
        return nan, nan
    ratio = mean[y] / mean[d]
    terms = _scatter(state, y, y), -2 * ratio * _scatter(state, y, d), ratio**2 * _scatter(state, d, d)
    of_squares = sum(terms)
    if of_squares <= _ROUNDING * sum(map(abs, terms)):
        return 0.0, 0.0
    if abs(mean[y]) > _LARGEST_OFFSET * sqrt(of_squares / state.n):
        return nan, nan

    def third(a: str, b: str, c: str, bc: str) -> float:
        return _scatter(state, a, bc) - mean[b] * _scatter(state, a, c) - mean[c] * _scatter(state, a, b)

    of_cubes: Sequence[float] = (
        third(y, y, y, yy),
        -3 * ratio * third(y, y, d, yd),
        3 * ratio**2 * third(y, d, d, dd),
        -(ratio**3) * third(d, d, d, dd),
    )
    return of_squares, sum(of_cubes)


def _scatter(state: Moments, a: str, b: str) -> float:
    return float(state.scatter[state.index(a), state.index(b)])


def _skew(n_control: int, n_treatment: int, own: float) -> Skew:
    """That of the difference, of arms whose units have the skewness `own`."""
    value = nan
    if n_control and n_treatment:
        value = abs(own) * abs(n_treatment**-2 - n_control**-2) / (1 / n_treatment + 1 / n_control) ** 1.5
    if isnan(value):
        return Skew(n_control, n_treatment, own, value, THRESHOLD, "inconclusive")
    return Skew(n_control, n_treatment, own, value, THRESHOLD, "skewed" if value > THRESHOLD else "none")
