"""A number of a reference against that of a current window, and how a family of such comparisons is judged.

What has no count behind it (an attribution, a residual, an AUC) is compared by the delete-a-group jackknife: the same
hash bucket of units is left out on both sides at once. So one test serves whether the units of the two sides are
others, partly the same (people come back), or all the same (two versions on the same inputs), and it needs no formula
of a variance. Its law is t with buckets - 1 degrees of freedom; from 100 units a side it keeps its level
(docs/drift-models.md).
"""

from collections.abc import Sequence
from math import inf, isnan, nan
from typing import NamedTuple

import numpy as np
from scipy import special

from mltrust.slices import Slice
from mltrust.stats.bootstrap import Resampled, jackknife
from mltrust.stats.multiplicity import benjamini_hochberg
from mltrust.verdicts import Verdict

#: Units that each side needs for a verdict.
FEWEST_UNITS = 100
_POWER = 0.8


class Shift(NamedTuple):
    """What a current window's number is beside the reference's; the n are units.

    `value` is current - reference, `ci_low` and `ci_high` its limits of confidence 0.95. `threshold` is the smallest
    value that counts, in the same unit, and `mde` the one that is found with a chance of 0.8. Before `judged` the
    verdict is inconclusive and `reason` says what was seen, or why nothing was tested.
    """

    measure: str
    column: str
    slice_key: str
    slice_value: str
    n_reference: int
    n_current: int
    reference: float
    current: float
    value: float
    std_error: float
    df: float
    statistic: float
    pvalue: float
    ci_low: float
    ci_high: float
    threshold: float
    is_large: bool
    reason: str
    qvalue: float = nan
    n_family: int = 0
    mde: float = nan
    verdict: Verdict = Verdict.INCONCLUSIVE

    @property
    def slice(self) -> Slice:
        return Slice(self.slice_key, self.slice_value)


def shift(
    *,
    measure: str,
    column: str,
    where: Slice,
    reference: Resampled,
    current: Resampled,
    threshold: float,
    harm: int = 0,
    fewest_units: int = FEWEST_UNITS,
    on_logs: bool = False,
    why_not: str = "",
) -> Shift:
    """The comparison of two numbers by their values without each bucket of units.

    Parameters
    ----------
    threshold
        The smallest difference that counts; |value| must exceed it.
    harm
        1 where only a rise counts, -1 where only a fall does, 0 where either does. The test is two-sided always.
    on_logs
        Test the ratio of two positive numbers too, and believe the less certain of both tests. Means of skewed
        values need it: 100 exponential units against 5,000 are rejected 0.42 % of the time at 0.001 by the
        difference, 0.16 % by the ratio; of lognormal ones (sd of logs 0.7) 0.53 % and 0.31 %.
    why_not
        Why it is not to be tested, where the caller knows a reason: the numbers stay, the p-value is nan.
    """
    found = jackknife(control=reference, treatment=current)
    tested = found
    if on_logs and (ratio := jackknife(control=logs(reference), treatment=logs(current))).pvalue > found.pvalue:
        tested = ratio
    is_same = _is_same(reference, current)
    why_not = why_not or _why_not(reference, current, fewest_units)
    if not why_not and isnan(tested.std_error) and not is_same:
        why_not = "nothing varies between units"
    return Shift(
        measure=measure,
        column=column,
        slice_key=where.slice_key,
        slice_value=where.slice_value,
        n_reference=reference.n,
        n_current=current.n,
        reference=reference.value,
        current=current.value,
        value=found.effect,
        std_error=found.std_error,
        df=float(found.df),
        statistic=tested.statistic,
        pvalue=nan if why_not else 1.0 if is_same else tested.pvalue,
        ci_low=found.ci_low,
        ci_high=found.ci_high,
        threshold=threshold,
        is_large=(found.effect * harm if harm else abs(found.effect)) >= threshold,
        reason=why_not or f"{reference.value:.4g} to {current.value:.4g}",
    )


def logs(arm: Resampled) -> Resampled:
    """The natural logarithm of a number; nan where it is not positive."""
    values = np.array([arm.value, *arm.replicates])
    found = np.log(values, out=np.full(len(values), nan), where=values > 0)
    return Resampled(arm.n, float(found[0]), found[1:])


def _is_same(reference: Resampled, current: Resampled) -> bool:
    """Whether both sides are equal with all units and without any bucket: a feature that no version uses, say."""
    return reference.value == current.value and np.array_equal(reference.replicates, current.replicates)


def _why_not(reference: Resampled, current: Resampled, fewest_units: int) -> str:
    for name, side in (("reference", reference), ("current window", current)):
        if side.n < fewest_units:
            return f"{side.n} units in the {name}, at least {fewest_units} needed"
        if isnan(side.value):
            return f"undefined in the {name}"
    return ""


def judged(family: Sequence[Shift], q: float) -> list[Shift]:
    """The comparisons as one Benjamini-Hochberg family, each with its verdict.

    Breach where qvalue <= q and the value is large, inconclusive where it was not tested, else pass, and then
    `reason` says which difference would have been found. Sides that are the same in every bucket pass with p = 1.
    """
    qvalues = benjamini_hochberg([each.pvalue for each in family])
    n_family = sum(not isnan(each) for each in qvalues)
    return [_with_verdict(each, qvalue, n_family, q) for each, qvalue in zip(family, qvalues, strict=True)]


def _with_verdict(found: Shift, qvalue: float, n_family: int, q: float) -> Shift:
    if isnan(qvalue):
        return found._replace(n_family=n_family)
    if isnan(found.std_error):
        same = f"{found.reason}, the same on both sides"
        return found._replace(qvalue=qvalue, n_family=n_family, verdict=Verdict.PASS, reason=same)
    mde = detectable(found.std_error, found.df, q / n_family)
    is_breach = qvalue <= q and found.is_large
    words = f"{found.reason} (q = {qvalue:.2g})"
    return found._replace(
        qvalue=qvalue,
        n_family=n_family,
        mde=mde,
        verdict=Verdict.BREACH if is_breach else Verdict.PASS,
        reason=words if is_breach else f"{words}; a difference of {mde:.2g} would have been found",
    )


def detectable(std_error: float, df: float, alpha: float) -> float:
    """The difference that a two-sided test at alpha finds with a chance of 0.8: (t_{1-alpha/2} + t_{0.8})·std_error.

    References
    ----------
    Bloom, H. S. (1995). Minimum detectable effects: a simple way to report the statistical power of experimental
    designs. Evaluation Review 19, 547-556.
    """
    law = inf if isnan(df) else df
    return float(special.stdtrit(law, 1 - alpha / 2) + special.stdtrit(law, _POWER)) * std_error
