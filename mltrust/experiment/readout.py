"""What does the experiment say? Checks and effects, and the one recommendation that follows from them."""

from collections.abc import Sequence
from datetime import date
from math import isnan
from typing import Literal, NamedTuple

from mltrust.experiment.cells import ExperimentStates
from mltrust.experiment.check import Check
from mltrust.experiment.checks import checks
from mltrust.experiment.disparities import FAIRNESS, Disparity, disparities
from mltrust.experiment.effects import Effect, effects
from mltrust.experiment.spec import Experiment
from mltrust.slices import Slice, n_attributes
from mltrust.verdicts import Verdict, combine

Recommendation = Literal["ship", "do not ship", "keep running", "invalid"]

_WEEK = 7


class Readout(NamedTuple):
    """The verdict of the decision set, what to do about it and why, and all rows behind it."""

    verdict: Verdict
    recommendation: Recommendation
    reasons: tuple[str, ...]
    effects: tuple[Effect, ...]
    checks: tuple[Check, ...]
    disparities: tuple[Disparity, ...] = ()


def readout(states: ExperimentStates, experiment: Experiment, as_of: date) -> Readout:
    """Reads an experiment's states as of a day: effects, what speaks against them, and the recommendation."""
    found, unlike = effects(states, experiment, as_of), disparities(states, experiment)
    checked = checks(states, experiment, found, unlike)
    deciding = [row.verdict for row in found if row.decides] + [row.verdict for row in checked if row.decides]
    recommendation, reasons = _recommend(found, checked, experiment, as_of)
    return Readout(combine(deciding), recommendation, tuple(reasons), tuple(found), tuple(checked), tuple(unlike))


def _recommend(
    effects: Sequence[Effect], checked: Sequence[Check], experiment: Experiment, as_of: date
) -> tuple[Recommendation, list[str]]:
    if failed := [each for each in checked if each.check != FAIRNESS and each.decides and _fails(each)]:
        return "invalid", [_of_check(each) for each in failed]
    deciding = [each for each in effects if each.decides]
    said = {
        verdict: [
            _says(each.metric, each.treatment, "", "", each.reason) for each in deciding if each.verdict is verdict
        ]
        for verdict in Verdict
    }
    for row in checked:
        if row.check == FAIRNESS and row.decides and row.verdict is not Verdict.PASS:
            said[row.verdict].append(_of_check(row))
    odd = _too_good(checked, deciding)
    if said[Verdict.BREACH]:
        return "do not ship", odd + said[Verdict.BREACH]
    if waits := _waits(experiment, as_of):
        return "keep running", [*odd, waits, *said[Verdict.INCONCLUSIVE], *said[Verdict.PASS]]
    if deciding and not said[Verdict.INCONCLUSIVE]:
        doubts = (
            _other_losses(effects)
            + _losing_slices(effects)
            + _doubts(checked, deciding)
            + _odd_days(experiment, as_of)
            + _interference(experiment)
        )
        return "ship", odd + said[Verdict.PASS] + [f"but {doubt}" for doubt in doubts]
    goals = [each for each in deciding if each.role == "goal"]
    if goals and all(_no_effect(each, experiment) for each in goals):
        words = [_says(each.metric, each.treatment, "", "", _no_effect(each, experiment)) for each in goals]
        return "do not ship", words
    return "keep running", odd + said[Verdict.INCONCLUSIVE] or ["nothing decides"]


def _waits(experiment: Experiment, as_of: date) -> str:
    """Why it is too early to ship, whatever the numbers say; '' where it is not."""
    rules, end = experiment.rules, experiment.planned_end
    if rules.planned_end and experiment.inference == "fixed" and end is not None and as_of < end:
        return f"the planned end is {end}, and a test of a fixed horizon is read once, at its end"
    if rules.whole_weeks and (as_of - experiment.start).days < _WEEK:
        return f"units were exposed for {(as_of - experiment.start).days} days, not for every day of a week"
    return ""


def _odd_days(experiment: Experiment, as_of: date) -> list[str]:
    n_days = (min(as_of, experiment.planned_end or as_of) - experiment.start).days
    if not experiment.rules.whole_weeks or n_days % _WEEK == 0:
        return []
    return [f"units were exposed for {n_days} days, which are no whole weeks"]


def _interference(experiment: Experiment) -> list[str]:
    """What the comparison rests on beside chance: that a unit's variant does not act on other units."""
    if experiment.interference == "possible":
        return ["units may act on one another: the effect on all of them can be another one"]
    if experiment.interference is None:
        return ["the conf does not say whether units act on one another (interference: none | possible)"]
    return []


def _no_effect(row: Effect, experiment: Experiment) -> str:
    """Why a goal has no effect worth having; '' where that is not shown.

    Either both arms are shown to be the same within a margin, or the smallest effect worth finding would have been
    found, and was not.
    """
    [metric] = [each for each in experiment.metrics if each.name == row.metric]
    if row.verdict is not Verdict.INCONCLUSIVE:
        return ""
    if row.equivalence_pvalue <= row.alpha:
        return f"the same in both arms within its margin (p = {row.equivalence_pvalue:.2g})"
    if metric.smallest_effect is not None and row.mde <= metric.smallest_effect.size(row.mean_control):
        return f"no effect: one of {row.mde:.4g}, smaller than the smallest worth finding, would have been found"
    return ""


#: Checks that warn of something without making an experiment invalid, in the order in which a ship names them.
_WARNINGS = ("contamination", "capping", "simpson", "skew", "trend", "interaction", "heterogeneity", "worst slice")


def _doubts(checked: Sequence[Check], deciding: Sequence[Effect]) -> list[str]:
    """What whoever ships should know of the checks: what they warn of, and the worst slices that were confirmed."""
    metrics = {"", *(each.metric for each in deciding)}
    about = [each for each in checked if each.metric in metrics and (each.verdict is Verdict.BREACH or _warns(each))]
    return [_of_check(each) for name in _WARNINGS for each in about if each.check == name]


def _fails(row: Check) -> bool:
    return row.verdict is Verdict.BREACH


def _warns(row: Check) -> bool:
    """Whether a check found something, rather than too little to say."""
    if row.check in ("capping", "trend", "interaction", "heterogeneity"):
        return row.verdict is Verdict.INCONCLUSIVE and row.qvalue < row.threshold
    if row.check == "simpson":
        return row.method == "mix shift"
    return row.verdict is Verdict.INCONCLUSIVE and row.value > row.threshold


def _too_good(checked: Sequence[Check], deciding: Sequence[Effect]) -> list[str]:
    """Twyman's law comes before whatever is said of what decides."""
    metrics = {each.metric for each in deciding}
    rows = [each for each in checked if each.check == "twyman" and each.metric in metrics]
    return [_of_check(each) for each in rows if each.verdict is Verdict.INCONCLUSIVE and not isnan(each.pvalue)]


def _of_check(row: Check) -> str:
    return _says(row.check, row.metric, row.slice_key, row.slice_value, row.reason)


def _other_losses(effects: Sequence[Effect]) -> list[str]:
    """What whoever ships should know: metrics that are shown to be worse, and do not decide."""
    return [
        _says(row.metric, row.treatment, "", "", row.reason)
        for row in effects
        if row.overall and row.verdict is Verdict.BREACH and row.role != "diagnostic" and not row.decides
    ]


def _losing_slices(effects: Sequence[Effect]) -> list[str]:
    """What whoever ships should know: single attributes in which a goal or a guardrail loses."""
    losing = [
        row
        for row in effects
        if row.verdict is Verdict.BREACH and row.role in ("goal", "guardrail") and n_attributes(row.slice_key) == 1
    ]
    worst = sorted(losing, key=lambda row: row.qvalue)
    return [_says(row.metric, row.treatment, row.slice_key, row.slice_value, row.reason) for row in worst]


def _says(subject: str, whose: str, slice_key: str, slice_value: str, reason: str) -> str:
    where = f" in {Slice(slice_key, slice_value)}" if slice_value else f" by {slice_key}" if slice_key else ""
    return f"{subject}{f' ({whose})' if whose else ''}{where}: {reason}"
