"""What to do about a treatment, and why: the rules between checks, effects and a ship."""

from collections.abc import Sequence
from datetime import date
from math import isnan
from typing import Literal, NamedTuple

from mltrust.experiment.check import Check
from mltrust.experiment.disparities import FAIRNESS
from mltrust.experiment.effects import Effect
from mltrust.experiment.spec import Experiment
from mltrust.slices import Slice, n_attributes
from mltrust.verdicts import Verdict

Recommendation = Literal["ship", "keep running", "do not ship", "invalid"]

_WEEK = 7
#: Before its planned end a fixed test shows harm at this level only (Haybittle-Peto; Peto et al. 1976).
EARLY_LEVEL = 0.001


class Advice(NamedTuple):
    """What to do about one treatment and why; the verdict is what exit codes say of it.

    To ship is a pass. Harm and an invalid experiment are a breach. No effect worth having, and whatever is still
    open, are inconclusive.
    """

    treatment: str
    recommendation: Recommendation
    verdict: Verdict
    reasons: tuple[str, ...]


def advice(
    effects: Sequence[Effect], checked: Sequence[Check], experiment: Experiment, as_of: date, treatment: str
) -> Advice:
    """The advice on a treatment, from its own effects, and from the checks of it and of all arms."""
    own = [each for each in effects if each.treatment == treatment]
    about = [each for each in checked if each.treatment in ("", treatment)]
    recommendation, verdict, reasons = _recommend(own, about, experiment, as_of)
    return Advice(treatment, recommendation, verdict, tuple(reasons))


def _recommend(
    effects: Sequence[Effect], checked: Sequence[Check], experiment: Experiment, as_of: date
) -> tuple[Recommendation, Verdict, list[str]]:
    if failed := [each for each in checked if each.check != FAIRNESS and each.decides and _fails(each)]:
        return "invalid", Verdict.BREACH, [_of_check(each) for each in failed]
    deciding = [each for each in effects if each.decides]
    unfair = [
        each for each in checked if each.check == FAIRNESS and each.decides and each.verdict is not Verdict.PASS
    ]
    early, odd = _early(experiment, as_of), _too_good(checked, deciding)
    harm = [each for each in deciding if each.verdict is Verdict.BREACH and (not early or each.qvalue <= EARLY_LEVEL)]
    limited = [each for each in unfair if _fails(each)] if _is_over(experiment, as_of) else []
    if losses := [_of_effect(each) for each in harm] + [_of_check(each) for each in limited]:
        return "do not ship", Verdict.BREACH, odd + losses
    open_ = [_of_effect(each) for each in deciding if each.verdict is Verdict.INCONCLUSIVE]
    open_ += [_of_check(each) for each in unfair]
    gains = [_of_effect(each) for each in deciding if each.verdict is Verdict.PASS]
    if waits := early or _short_of_a_week(experiment, as_of):
        losing = [f"{_of_effect(each)} so far" for each in deciding if each.verdict is Verdict.BREACH]
        return "keep running", Verdict.INCONCLUSIVE, [*odd, waits, *losing, *open_, *gains]
    if deciding and not open_:
        doubts = _doubts(effects, checked, deciding, experiment, as_of)
        return "ship", Verdict.PASS, odd + gains + [f"but {doubt}" for doubt in doubts]
    goals = [each for each in deciding if each.role == "goal"]
    if goals and all(_no_effect(each, experiment) for each in goals):
        words = [_says(each.metric, each.treatment, "", "", _no_effect(each, experiment)) for each in goals]
        return "do not ship", Verdict.INCONCLUSIVE, words
    return "keep running", Verdict.INCONCLUSIVE, odd + open_ or ["nothing decides"]


def _is_over(experiment: Experiment, as_of: date) -> bool:
    """Whether what is tested once, however effects are, may decide; without a planned end it always may."""
    end = experiment.planned_end
    return end is None or as_of >= end or not experiment.rules.planned_end


def _early(experiment: Experiment, as_of: date) -> str:
    """Why a test of a fixed horizon is not read yet; '' from its planned end on, and where the rules do not ask."""
    if experiment.inference != "fixed" or _is_over(experiment, as_of):
        return ""
    end = f"the planned end is {experiment.planned_end}"
    return f"{end}: a test of a fixed horizon is read once, then (harm from p <= {EARLY_LEVEL} on)"


def _short_of_a_week(experiment: Experiment, as_of: date) -> str:
    n_days = (as_of - experiment.start).days
    if not experiment.rules.whole_weeks or n_days >= _WEEK:
        return ""
    return f"units were exposed for {n_days} days, not for every day of a week"


def _no_effect(row: Effect, experiment: Experiment) -> str:
    """Why a goal has no effect worth having; '' where that is not shown.

    Either both arms are shown to be the same within a margin, or the smallest effect worth finding would have been
    found, and was not.
    """
    [metric] = [each for each in experiment.metrics if each.name == row.metric]
    if row.verdict is not Verdict.INCONCLUSIVE or row.qvalue <= row.alpha:
        return ""
    if row.equivalence_pvalue <= row.alpha:
        return f"the same in both arms within its margin (p = {row.equivalence_pvalue:.2g})"
    if metric.smallest_effect is not None and row.mde <= metric.smallest_effect.size(row.mean_control):
        return f"no effect: one of {row.mde:.4g}, smaller than the smallest worth finding, would have been found"
    return ""


def _doubts(
    effects: Sequence[Effect],
    checked: Sequence[Check],
    deciding: Sequence[Effect],
    experiment: Experiment,
    as_of: date,
) -> list[str]:
    """What whoever ships should know beside the gains, worst first."""
    return [
        *_other_losses(effects),
        *_losing_slices(effects, experiment),
        *_warnings(checked, deciding),
        *_no_end(experiment),
        *_odd_days(experiment, as_of),
        *_interference(experiment),
    ]


#: Checks that warn of something without making an experiment invalid, in the order in which a ship names them.
_WARNINGS = (
    "contamination",
    "uncrossed",
    "capping",
    "simpson",
    "outcome delay",
    "skew",
    "trend",
    "interaction",
    "heterogeneity",
    "worst slice",
)
#: Of these a finding is a value above the threshold, of the others a q-value below it.
_MEASURED = ("share of units", "third moment")


def _warnings(checked: Sequence[Check], deciding: Sequence[Effect]) -> list[str]:
    """What checks warn of, of all metrics or of those that decide, and the worst slices that were confirmed."""
    metrics = {"", *(each.metric for each in deciding)}
    about = [each for each in checked if each.metric in metrics or each.check == "outcome delay"]
    warned = [each for each in about if _fails(each) or _warns(each)]
    return [_of_check(each) for name in _WARNINGS for each in warned if each.check == name]


def _fails(row: Check) -> bool:
    return row.verdict is Verdict.BREACH


def _warns(row: Check) -> bool:
    """Whether a check found something, rather than too little to say."""
    if row.check == "simpson":
        return row.method == "mix shift"
    found = row.value > row.threshold if row.method in _MEASURED else row.qvalue < row.threshold
    return row.verdict is Verdict.INCONCLUSIVE and found


def _too_good(checked: Sequence[Check], deciding: Sequence[Effect]) -> list[str]:
    """Twyman's law comes before whatever is said of what decides."""
    metrics = {each.metric for each in deciding}
    rows = [each for each in checked if each.check == "twyman" and each.metric in metrics]
    return [_of_check(each) for each in rows if each.verdict is Verdict.INCONCLUSIVE and not isnan(each.pvalue)]


def _other_losses(effects: Sequence[Effect]) -> list[str]:
    """Metrics that are shown to be worse, and do not decide."""
    return [
        _of_effect(row)
        for row in effects
        if row.overall and row.verdict is Verdict.BREACH and row.role != "diagnostic" and not row.decides
    ]


def _losing_slices(effects: Sequence[Effect], experiment: Experiment) -> list[str]:
    """Single attributes in which a metric that decides loses."""
    deciding = {metric.name for metric in experiment.metrics if experiment.decides(metric)}
    losing = [
        row
        for row in effects
        if row.verdict is Verdict.BREACH and row.metric in deciding and n_attributes(row.slice_key) == 1
    ]
    return [_of_effect(row) for row in sorted(losing, key=lambda row: row.qvalue)]


def _no_end(experiment: Experiment) -> list[str]:
    if experiment.inference != "fixed" or experiment.planned_end is not None or not experiment.rules.planned_end:
        return []
    return [
        "the conf has no planned_end: a test of a fixed horizon that is read until it shows something shows too much"
    ]


def _odd_days(experiment: Experiment, as_of: date) -> list[str]:
    n_days = (experiment.until(as_of) - experiment.start).days
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


def _of_effect(row: Effect) -> str:
    return _says(row.metric, row.treatment, row.slice_key, row.slice_value, row.reason)


def _of_check(row: Check) -> str:
    return _says(row.check, row.metric, row.slice_key, row.slice_value, row.reason)


def _says(subject: str, whose: str, slice_key: str, slice_value: str, reason: str) -> str:
    where = f" in {Slice(slice_key, slice_value)}" if slice_value else f" by {slice_key}" if slice_key else ""
    return f"{subject}{f' ({whose})' if whose else ''}{where}: {reason}"
