"""What a policy would have earned, from the log of another one: IPW, SNIPW, DM and DR, with refusals.

The observation is the request. Everything is a function of a few sums over requests, so that the sample and its
bootstrap replicates go through the same lines, and a log of any size is first reduced to `Replicates` of `COLUMNS`.

References
----------
Dudik, M., Langford, J. and Li, L. (2011). Doubly robust policy evaluation and learning. ICML 2011.
Swaminathan, A. and Joachims, T. (2015). The self-normalized estimator for counterfactual learning. NeurIPS 2015.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import nan, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mltrust.states.moments import FloatArray
from mltrust.states.replicates import UNITS, Replicates

#: Columns of a request: its weight w = pi_e(a|x) / pi_b(a|x), w², w·r, the reward that a model expects of the new
#: policy, q(x, pi_e), and the same corrected by what was seen, q(x, pi_e) + w·(r - q(x, a)).
WEIGHT, SQUARED, WEIGHTED, DIRECT, CORRECTED = "weight", "weight squared", "weighted reward", "direct", "corrected"
COLUMNS = (WEIGHT, SQUARED, WEIGHTED, DIRECT, CORRECTED)

#: Fewer effective requests than these, or one request with more of the weight than this, and nothing is said.
MIN_ESS, MAX_SHARE = 200.0, 0.05
#: Beyond so many standard errors from 1, the mean weight says that propensities are wrong or actions never tried.
_MEAN_WEIGHT_Z = 3.0

_ESTIMATORS: dict[str, Callable[[Replicates], FloatArray]] = {
    "ipw": lambda sums: sums.column(WEIGHTED) / sums.column(UNITS),
    "snipw": lambda sums: sums.column(WEIGHTED) / sums.column(WEIGHT),
    "dm": lambda sums: sums.column(DIRECT) / sums.column(UNITS),
    "dr": lambda sums: sums.column(CORRECTED) / sums.column(UNITS),
}
#: Those that do not rest on a model of the reward.
MODEL_FREE = ("ipw", "snipw")
#: The only one that does not rest on weights.
_UNWEIGHTED = ("dm",)


class PolicyValue(NamedTuple):
    """The mean reward of the new policy by one estimator; nan and a `refusal` where the log cannot tell."""

    estimator: str
    n: int
    value: float
    std_error: float
    ci_low: float
    ci_high: float
    refusal: str


class Overlap(NamedTuple):
    """How far the log covers the new policy: effective sample size, largest share of one request, mean weight.

    `warning` is empty unless the mean weight is not 1.
    """

    n: int
    ess: float
    max_weight: float
    max_share: float
    mean_weight: float
    mean_weight_se: float
    warning: str

    @property
    def refusal(self) -> str:
        """Why no weighted estimate is made; empty where one is."""
        if not self.ess >= MIN_ESS:
            return f"effective sample size {self.ess:.1f} of {self.n:,} requests, expected {MIN_ESS:g} or more"
        if self.max_share > MAX_SHARE:
            return f"one request has {self.max_share:.1%} of the weight, expected {MAX_SHARE:.0%} or less"
        return ""


@dataclass(frozen=True, slots=True, eq=False)
class Weighed:
    """The sums of requests under bootstrap weights, and their largest weight; added over disjoint requests."""

    sums: Replicates
    max_weight: float

    def __add__(self, other: "Weighed") -> "Weighed":
        return Weighed(self.sums + other.sums, max(self.max_weight, other.max_weight))


def sample(
    *,
    rewards: ArrayLike,
    weights: ArrayLike,
    expected: ArrayLike | None = None,
    expected_logged: ArrayLike | None = None,
) -> FloatArray:
    """The `COLUMNS` of requests, (n, 5).

    Parameters
    ----------
    rewards, weights
        What was earned, and pi_e(a|x) / pi_b(a|x) of the logged action, (n,).
    expected, expected_logged
        A model's mean reward of the new policy and of the logged action, (n,): 0 without a model, which makes DR
        the same as IPW.

    Raises ValueError where a weight is negative or anything is not finite.
    """  # fmt: skip
    r, w = np.asarray(rewards, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    q_new = np.zeros_like(r) if expected is None else np.asarray(expected, dtype=np.float64)
    q_logged = np.zeros_like(r) if expected_logged is None else np.asarray(expected_logged, dtype=np.float64)
    columns = np.column_stack([w, w * w, w * r, q_new, q_new + w * (r - q_logged)])
    if not np.isfinite(columns).all():
        raise ValueError("rewards, weights and expectations must be finite: leave a request without them out")
    if (w < 0).any():
        raise ValueError(f"weights are ratios of probabilities, expected 0 or more, got {w.min():g}")
    return columns


def overlap(state: Weighed) -> Overlap:
    """The effective sample size (sum w)² / sum w² and what else says whether weights can be trusted."""
    n, weight, squared = state.sums.n, *(float(state.sums.column(name)[0]) for name in (WEIGHT, SQUARED))
    if n < 2 or weight == 0:
        return Overlap(n, nan, state.max_weight, nan, weight / n if n else nan, nan, "")
    mean = weight / n
    se = sqrt(max(0.0, squared / n - mean * mean) / (n - 1))
    off = abs(mean - 1) > _MEAN_WEIGHT_Z * se and abs(mean - 1) > 1e-9
    warning = (
        f"the mean weight is {mean:.4g} (standard error {se:.2g}), expected 1: propensities are wrong, or the new "
        "policy does what was never tried"
    )
    return Overlap(
        n, weight**2 / squared, state.max_weight, state.max_weight / weight, mean, se, warning if off else ""
    )


def estimates(state: Weighed, *, with_model: bool, alpha: float = 0.05) -> list[PolicyValue]:
    """The value of the new policy by every estimator, with the bootstrap's standard error and percentile interval.

    `with_model`: the expectations are a model's; without one DM and DR are left out.
    """
    why = overlap(state).refusal
    names = tuple(_ESTIMATORS) if with_model else MODEL_FREE
    return [_estimate(name, state.sums, alpha, "" if name in _UNWEIGHTED else why) for name in names]


def _estimate(name: str, sums: Replicates, alpha: float, refusal: str) -> PolicyValue:
    if refusal or sums.n < 2:
        return PolicyValue(name, sums.n, nan, nan, nan, nan, refusal or f"{sums.n} requests, expected 2 or more")
    with np.errstate(divide="ignore", invalid="ignore"):
        values = _ESTIMATORS[name](sums)
    replicates = values[1:]
    low, high = np.quantile(replicates, [alpha / 2, 1 - alpha / 2])
    return PolicyValue(name, sums.n, float(values[0]), float(replicates.std(ddof=1)), float(low), float(high), "")
