"""Effects within slices, averaged with the shares of the slices in both arms together.

A pair is the (control, treatment) of one slice. Slices are defined by what was known before exposure.
"""

from collections.abc import Sequence
from functools import reduce
from math import nan
from operator import add
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

import numpy as np

from mltrust.stats.means import Arm, Comparison, contrast, satterthwaite


class _State(Protocol):
    @property
    def n(self) -> int: ...

    def __add__(self, other: Self, /) -> Self: ...


#: Moments or Replicates.
S = TypeVar("S", bound=_State)


class Joined(NamedTuple, Generic[S]):
    """Slices, and how many of the given ones were joined into the last of them."""

    pairs: list[tuple[S, S]]
    n_joined: int


def join_small(pairs: Sequence[tuple[S, S]], *, smallest: int = 5) -> Joined[S]:
    """The pairs by size, those with fewer than `smallest` units in an arm joined into one and put last.

    While the joined one is itself too small, it takes in the smallest of the others: no unit is dropped.
    """
    ascending = sorted(pairs, key=_smaller_arm)
    n = sum(_smaller_arm(pair) < smallest for pair in pairs)
    while 0 < n < len(pairs) and _smaller_arm(_total(ascending[:n])) < smallest:
        n += 1
    return Joined([*ascending[n:], *([_total(ascending[:n])] if n else [])], n)


def post_stratified(
    pairs: Sequence[tuple[Arm, Arm]],
    *,
    alpha: float = 0.05,
    df: float | None = None,
    fixed_weights: bool = False,
) -> Comparison:
    """The comparison of weighted slice means: sum w_k·(t_k - c_k), w_k the share of all units in slice k.

    Parameters
    ----------
    pairs
        (control, treatment) per slice; an arm of fewer than 2 units makes the test nan, see `join_small`.
    df
        Instead of the Satterthwaite approximation on the variances within slices; inf for a normal law.
    fixed_weights
        Whether the shares of the slices are known, as those of allocation phases. By default they are those
        of the units that happened to come, whose variance sum w_k·(effect_k - effect)² / N is added.

    Notes
    -----
    One slice gives Welch's test. The relative effect is by Fieller over the weighted control mean, whose
    variance and covariance with the effect have the same two parts.

    References
    ----------
    Miratrix, L. W., Sekhon, J. S. and Yu, B. (2013). Adjusting treatment effects by post-stratification in
    randomized experiments. Journal of the Royal Statistical Society B 75, 369-396.
    """
    if not pairs:
        raise ValueError("post-stratification needs at least one slice, got none")
    n = [control.n + treatment.n for control, treatment in pairs]
    w = np.array([n_k / (sum(n) or nan) for n_k in n])
    control, treatment = (terms(w.tolist(), arms) for arms in zip(*pairs, strict=True))
    n_control, n_treatment = (sum(arm.n for arm in arms) for arms in (control, treatment))
    mean_control, mean_treatment = (sum(arm.mean for arm in arms) for arms in (control, treatment))
    v_control, v_treatment = (sum(arm.mean_variance for arm in arms) for arms in (control, treatment))
    deviation = np.array([(c.mean - mean_control, t.mean - mean_treatment) for c, t in pairs])
    deviation[:, 1] -= deviation[:, 0]
    # Of the control mean and the effect, from the shares of the slices.
    between = np.zeros((2, 2)) if fixed_weights else (w * deviation.T) @ deviation / sum(n)
    return contrast(
        method="post-stratified",
        control=Arm(n_control, mean_control, n_control * (v_control + float(between[0, 0]))),
        treatment=Arm(n_treatment, mean_treatment, nan),
        effect_variance=v_control + v_treatment + float(between[1, 1]),
        df=satterthwaite([*control, *treatment]) if df is None else df,
        alpha=alpha,
        covariance=float(between[0, 1]) - v_control,
    )


def terms(w: Sequence[float], arms: Sequence[Arm]) -> list[Arm]:
    """The terms of the weighted sum of the arms' means, as arms."""
    return [Arm(arm.n, w_k * arm.mean, w_k * w_k * arm.variance) for w_k, arm in zip(w, arms, strict=True)]


def _smaller_arm(pair: tuple[S, S]) -> int:
    return min(pair[0].n, pair[1].n)


def _total(pairs: Sequence[tuple[S, S]]) -> tuple[S, S]:
    control, treatment = zip(*pairs, strict=True)
    return reduce(add, control), reduce(add, treatment)
