"""Simpson's paradox: do the slices say the opposite of the pool, and is that more than noise?"""

from collections.abc import Sequence
from math import isnan, nan, sqrt
from typing import Literal, NamedTuple

import numpy as np
from scipy import special

from mltrust.stats.independence import independence
from mltrust.stats.means import Arm
from mltrust.stats.post_stratification import post_stratified, terms

#: Level at which the gap between pooled and post-stratified effects is named.
GAP_LEVEL = 0.01
_REVERSAL_LEVEL = 0.05
_MIX_LEVEL = 0.001


class Gap(NamedTuple):
    """The pooled effect minus the post-stratified one, over n units in n_slices.

    `mix_pvalue` tests whether the arms have the same mix of slices. `reversal`: mix and gap are significant
    and the slices are shown to go against the pool. `mix shift`: both are significant, the reversal is not
    shown. `none`: not both are. `inconclusive`: the gap has no test.
    """

    n: int
    n_slices: int
    pooled: float
    post_stratified: float
    gap: float
    std_error: float
    statistic: float
    pvalue: float
    mix_pvalue: float
    kind: Literal["reversal", "mix shift", "none", "inconclusive"]


def pooled_gap(pairs: Sequence[tuple[Arm, Arm]]) -> Gap:
    """The gap of (control, treatment) pairs of slices, its normal test given the counts, and its name.

    The gap comes from slices that have another share in an arm than in the whole:
    gap = sum a_k·t_k - sum b_k·c_k with a_k = n_tk/n_t - w_k and b_k = n_ck/n_c - w_k, and its variance is
    sum a_k²·V_tk/n_tk + sum b_k²·V_ck/n_ck. It is significant at p < 0.01, and then a reversal where every
    slice has the sign opposite to the pool, or the post-stratified effect is significant (p < 0.05) with it.

    Shares that agree exactly leave no gap (p = 1). The test is given the counts: where slices differ a lot,
    the mixes that chance alone leaves in a randomised experiment make a gap that is significant and tiny, and
    with a pooled effect near 0 they now and then put every slice on its other side. Therefore neither is named
    unless the mixes differ by more than chance: Pearson's test of slices by arms, p < 0.001.
    """
    adjusted = post_stratified(pairs)
    n = [c.n + t.n for c, t in pairs]
    control, treatment = (terms(_excess(arms, n), arms) for arms in zip(*pairs, strict=True))
    gap = sum(arm.mean for arm in treatment) - sum(arm.mean for arm in control)
    variance = sum(arm.mean_variance for arm in control + treatment)
    std_error = sqrt(variance) if variance > 0 else nan
    statistic = 0.0 if gap == 0 else gap / std_error
    pvalue = 2 * float(special.ndtr(-abs(statistic)))
    pooled = adjusted.effect + gap
    shown = adjusted.pvalue < _REVERSAL_LEVEL and adjusted.effect * pooled < 0
    reversal = shown or all((t.mean - c.mean) * pooled < 0 for c, t in pairs)
    return Gap(
        n=sum(n),
        n_slices=len(pairs),
        pooled=pooled,
        post_stratified=adjusted.effect,
        gap=gap,
        std_error=std_error,
        statistic=statistic,
        pvalue=pvalue,
        mix_pvalue=(mix_pvalue := _mix_pvalue(pairs)),
        kind=_kind(pvalue, mix_pvalue, reversal=reversal),
    )


def _mix_pvalue(pairs: Sequence[tuple[Arm, Arm]]) -> float:
    """Pearson's test that slice and arm are independent; 1 for one slice, nan without an arm."""
    counts = np.array([(control.n, treatment.n) for control, treatment in pairs])
    return independence(counts).pvalue if counts.sum(axis=0).all() else nan


def _excess(arms: Sequence[Arm], n: Sequence[int]) -> list[float]:
    """Share of each slice in the arm minus its share in both arms (n units), exactly 0 where they agree."""
    n_arm, n_both = sum(arm.n for arm in arms), sum(n)
    return [(arm.n * n_both - n_k * n_arm) / (n_arm * n_both or nan) for arm, n_k in zip(arms, n, strict=True)]


def _kind(
    pvalue: float, mix_pvalue: float, *, reversal: bool
) -> Literal["reversal", "mix shift", "none", "inconclusive"]:
    if isnan(pvalue):
        return "inconclusive"
    if pvalue >= GAP_LEVEL or not mix_pvalue < _MIX_LEVEL:
        return "none"
    return "reversal" if reversal else "mix shift"
