"""A row of what was checked of an experiment, and how tests of one kind become such rows."""

from collections.abc import Sequence
from math import isnan, nan
from typing import NamedTuple

from mltrust.stats.multiplicity import benjamini_hochberg
from mltrust.verdicts import Verdict


class Check(NamedTuple):
    """A row of experiment_checks. `treatment` and `metric` are '' where the check concerns all of them."""

    check: str
    method: str
    n_units: int
    threshold: float
    verdict: Verdict
    reason: str
    decides: bool
    treatment: str = ""
    metric: str = ""
    slice_key: str = ""
    slice_value: str = ""
    value: float = nan
    statistic: float = nan
    df: float = nan
    pvalue: float = nan
    qvalue: float = nan
    n_family: int = 1


class Finding(NamedTuple):
    """A test before its family is known. `metric` is what it concerns, `alarm` stands for `words` where it fails.

    `untested` says why there is none where its p-value is nan.
    """

    n: int
    statistic: float
    df: float
    pvalue: float
    words: str
    alarm: str
    metric: str = ""
    treatment: str = ""
    slice_key: str = ""
    slice_value: str = ""
    value: float = nan
    untested: str = "too few units"


def judged(check: str, method: str, family: Sequence[Finding], *, level: float, blocks: bool = True) -> list[Check]:
    """Tests of one kind, corrected by Benjamini-Hochberg: those below the level fail.

    What fails is a breach that decides, or, where it does not `blocks`, something to look at: inconclusive.
    """
    qvalues = benjamini_hochberg([each.pvalue for each in family])
    n_family = sum(not isnan(each.pvalue) for each in family)
    return [
        _row(check, method, each, qvalue, n_family, level, blocks)
        for each, qvalue in zip(family, qvalues, strict=True)
    ]


def _row(check: str, method: str, found: Finding, qvalue: float, n_family: int, level: float, blocks: bool) -> Check:
    if isnan(qvalue):
        verdict, reason = Verdict.INCONCLUSIVE, f"not tested, {found.untested}: {found.words}"
    elif qvalue < level:
        verdict, reason = Verdict.BREACH if blocks else Verdict.INCONCLUSIVE, found.alarm
    else:
        verdict, reason = Verdict.PASS, found.words
    return Check(
        check=check,
        method=method,
        n_units=found.n,
        threshold=level,
        verdict=verdict,
        reason=reason,
        decides=verdict is Verdict.BREACH,
        treatment=found.treatment,
        metric=found.metric,
        slice_key=found.slice_key,
        slice_value=found.slice_value,
        value=found.value,
        statistic=found.statistic,
        df=found.df,
        pvalue=found.pvalue,
        qvalue=qvalue,
        n_family=n_family,
    )
