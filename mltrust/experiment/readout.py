"""What does the experiment say? Effects with their verdicts, and the one recommendation that follows."""

from collections.abc import Callable, Sequence
from math import isnan, nan
from typing import Literal, NamedTuple

from mltrust.experiment.cells import UNITS, ExperimentStates, SliceStates, mature_block
from mltrust.experiment.checks import Check, checks
from mltrust.experiment.spec import Experiment
from mltrust.metrics import KINDS, Metric
from mltrust.slices import OVERALL, n_attributes
from mltrust.stats.means import Arm, Comparison, one_sided_pvalue, welch
from mltrust.stats.multiplicity import benjamini_hochberg, holm
from mltrust.stats.post_stratification import join_small, post_stratified
from mltrust.verdicts import Verdict, combine

Recommendation = Literal["ship", "do not ship", "keep running", "invalid"]

#: Below these a slice has no verdict: units per arm, buckets per arm, events and non-events per arm of a share.
MIN_UNITS, MIN_BUCKETS, MIN_EVENTS = 50, 20, 5


class Effect(NamedTuple):
    """A row of experiment_effects: one metric of one treatment in one slice."""

    treatment: str
    metric: str
    slice_key: str
    slice_value: str
    method: str
    role: str
    direction: str
    control: str
    n_control: int
    n_treatment: int
    n_immature: int
    n_missing: int
    mean_control: float
    mean_treatment: float
    effect: float
    std_error: float
    df: float
    statistic: float
    pvalue: float
    qvalue: float
    n_family: int
    ci_low: float
    ci_high: float
    rel_effect: float
    rel_ci_low: float
    rel_ci_high: float
    non_inferiority_pvalue: float
    alpha: float
    verdict: Verdict
    reason: str
    decides: bool

    @property
    def overall(self) -> bool:
        return (self.slice_key, self.slice_value) == OVERALL


class Readout(NamedTuple):
    """The verdict of the decision set, what to do about it and why, and all rows behind it."""

    verdict: Verdict
    recommendation: Recommendation
    reasons: tuple[str, ...]
    effects: tuple[Effect, ...]
    checks: tuple[Check, ...]


class _Reading(NamedTuple):
    """A comparison before its family and its verdict are known."""

    metric: Metric
    treatment: str
    states: SliceStates
    comparison: Comparison
    non_inferiority: float


def readout(states: ExperimentStates, experiment: Experiment) -> Readout:
    """Reads an experiment's states: checks first, then effects, then the recommendation."""
    checked = checks(states, experiment)
    effects = _effects(states, experiment)
    deciding = [row.verdict for row in effects if row.decides] + [row.verdict for row in checked if row.decides]
    verdict = combine(deciding)
    recommendation, reasons = _recommend(effects, checked)
    return Readout(verdict, recommendation, tuple(reasons), tuple(effects), tuple(checked))


def _effects(states: ExperimentStates, experiment: Experiment) -> list[Effect]:
    overall = [
        _read(states.overall, experiment, metric, treatment)
        for metric in experiment.metrics
        for treatment in experiment.treatments
    ]
    rows = _overall_families(overall, experiment)
    if experiment.unit == "bucket_id":  # slices vary within a bucket
        return rows
    for slices in states.levels()[1:]:
        for metric in experiment.metrics:
            family = [
                _read(each, experiment, metric, treatment) for each in slices for treatment in experiment.treatments
            ]
            rows += _judged(family, benjamini_hochberg([each.comparison.pvalue for each in family]), experiment)
    return rows


def _overall_families(overall: Sequence[_Reading], experiment: Experiment) -> list[Effect]:
    """Holm over the treatments of each goal, none over guardrails, Benjamini-Hochberg within the other roles."""
    rows: dict[tuple[str, str], Effect] = {}
    families: dict[tuple[str, str], Callable[[Sequence[float]], Sequence[float]]] = {
        **{("goal", metric.name): holm for metric in experiment.metrics if metric.role == "goal"},
        **{("guardrail", metric.name): tuple for metric in experiment.metrics if metric.role == "guardrail"},
        ("secondary", ""): benjamini_hochberg,
        ("diagnostic", ""): benjamini_hochberg,
    }
    for (role, name), correct in families.items():
        family = [each for each in overall if each.metric.role == role and name in ("", each.metric.name)]
        for row in _judged(family, correct([each.comparison.pvalue for each in family]), experiment):
            rows[row.metric, row.treatment] = row
    return [rows[each.metric.name, each.treatment] for each in overall]


def _read(states: SliceStates, experiment: Experiment, metric: Metric, treatment: str) -> _Reading:
    """Compares a treatment with the control, within allocation phases where their ratio changed.

    Phases in which one of them had no weight have nothing to compare with, and are left out.
    """
    kind, alpha, names = KINDS[metric.kind], experiment.alpha, (experiment.control, treatment)
    phases = experiment.comparable_phases(treatment)
    control, treated = (kind.arm(states.moments(metric, arm, phases), metric) for arm in names)
    pairs, df = [(control, treated)], None
    if experiment.unit == "bucket_id":
        df = max(1, control.n + treated.n - 2)
        comparison = welch(control=control, treatment=treated, alpha=alpha, df=df)
    elif experiment.ratio_changes(treatment):
        by_phase = [tuple(states.moments(metric, arm, (at,)) for arm in names) for at in phases]
        joined = join_small([(c, t) for c, t in by_phase]).pairs
        pairs = [(kind.arm(c, metric), kind.arm(t, metric)) for c, t in joined]
        comparison = post_stratified(pairs, alpha=alpha)
    else:
        comparison = kind.compare(control=control, treatment=treated, alpha=alpha)
    return _Reading(metric, treatment, states, comparison, _non_inferiority(metric, pairs, df))


def _non_inferiority(metric: Metric, pairs: Sequence[tuple[Arm, Arm]], df: float | None = None) -> float:
    """One-sided p-value that a loss of the margin is excluded, over (control, treatment) pairs of phases."""
    if metric.margin is None:
        return nan
    good = metric.direction == "increase"
    worse = [(metric.margin.limit(control, increase_is_good=good), treatment) for control, treatment in pairs]
    return one_sided_pvalue(post_stratified(worse, df=df), increase=good)


def _judged(family: Sequence[_Reading], qvalues: Sequence[float], experiment: Experiment) -> list[Effect]:
    n_family = sum(not isnan(qvalue) for qvalue in qvalues)
    return [_effect(each, qvalue, n_family, experiment) for each, qvalue in zip(family, qvalues, strict=True)]


def _effect(reading: _Reading, qvalue: float, n_family: int, experiment: Experiment) -> Effect:
    metric, states, compared = reading.metric, reading.states, reading.comparison
    pair = (experiment.control, reading.treatment)
    phases = experiment.comparable_phases(reading.treatment)
    units = sum(states.count(UNITS, arm, phases) for arm in pair)
    mature = sum(states.count(mature_block(metric), arm, phases) for arm in pair)
    verdict, reason = _judge(reading, qvalue, experiment)
    overall = tuple(states.slice) == OVERALL
    decisive = metric.role in ("goal", "guardrail")
    if experiment.decision_set is not None:
        decisive = metric.name in experiment.decision_set
    return Effect(
        treatment=reading.treatment,
        metric=metric.name,
        slice_key=states.slice.slice_key,
        slice_value=states.slice.slice_value,
        role=metric.role,
        direction=metric.direction,
        control=experiment.control,
        n_immature=units - mature,
        n_missing=mature - compared.n_control - compared.n_treatment,
        qvalue=qvalue,
        n_family=n_family,
        non_inferiority_pvalue=reading.non_inferiority,
        alpha=experiment.alpha,
        verdict=verdict,
        reason=reason,
        decides=overall and decisive,
        **compared._asdict(),
    )


def _judge(reading: _Reading, qvalue: float, experiment: Experiment) -> tuple[Verdict, str]:
    """The verdict of one effect: pass where the wanted claim is shown, breach where harm is, else inconclusive."""
    metric, compared, alpha = reading.metric, reading.comparison, experiment.alpha
    if too_small := _too_small(metric, compared, experiment):
        return Verdict.INCONCLUSIVE, too_small
    if isnan(qvalue):
        return Verdict.INCONCLUSIVE, "no test: nothing varies, or too few units"
    better = (compared.effect > 0) == (metric.direction == "increase")
    shown = qvalue <= alpha
    if metric.role == "guardrail":
        if reading.non_inferiority <= alpha:
            return Verdict.PASS, f"a loss of the margin is excluded (p = {reading.non_inferiority:.2g})"
        if shown and not better:
            return Verdict.BREACH, f"worse by {abs(compared.effect):.4g} (q = {qvalue:.2g})"
        return (
            Verdict.INCONCLUSIVE,
            f"a loss of the margin is not excluded (p = {reading.non_inferiority:.2g})",
        )
    if not shown:
        return Verdict.INCONCLUSIVE, f"no effect shown (q = {qvalue:.2g})"
    word = "better" if better else "worse"
    return (
        Verdict.PASS if better else Verdict.BREACH,
        f"{word} by {abs(compared.effect):.4g} (q = {qvalue:.2g})",
    )


def _too_small(metric: Metric, compared: Comparison, experiment: Experiment) -> str:
    least = MIN_BUCKETS if experiment.unit == "bucket_id" else MIN_UNITS
    smaller = min(compared.n_control, compared.n_treatment)
    if smaller < least:
        return f"{smaller} units in an arm, at least {least} needed"
    if KINDS[metric.kind].unit_value == "any":
        arms = ((compared.n_control, compared.mean_control), (compared.n_treatment, compared.mean_treatment))
        events = min(n * share for n, mean in arms for share in (mean, 1 - mean))
        if round(events) < MIN_EVENTS:
            return f"{round(events)} units with or without the event in an arm, at least {MIN_EVENTS} needed"
    return ""


def _recommend(effects: Sequence[Effect], checked: Sequence[Check]) -> tuple[Recommendation, list[str]]:
    if failed := [each for each in checked if each.decides and each.verdict is Verdict.BREACH]:
        return "invalid", [
            _says(each.check, each.metric, each.slice_key, each.slice_value, each.reason) for each in failed
        ]
    deciding = [each for each in effects if each.decides]
    said = {
        verdict: [
            _says(each.metric, each.treatment, "", "", each.reason) for each in deciding if each.verdict is verdict
        ]
        for verdict in Verdict
    }
    if said[Verdict.BREACH]:
        return "do not ship", said[Verdict.BREACH]
    if deciding and not said[Verdict.INCONCLUSIVE]:
        return "ship", said[Verdict.PASS] + _losing_slices(effects)
    return "keep running", said[Verdict.INCONCLUSIVE] or ["nothing decides"]


def _losing_slices(effects: Sequence[Effect]) -> list[str]:
    """What whoever ships should know: single attributes in which a goal or a guardrail loses."""
    losing = [
        row
        for row in effects
        if row.verdict is Verdict.BREACH and row.role in ("goal", "guardrail") and n_attributes(row.slice_key) == 1
    ]
    worst = sorted(losing, key=lambda row: row.qvalue)
    return ["but " + _says(row.metric, row.treatment, row.slice_key, row.slice_value, row.reason) for row in worst]


def _says(subject: str, whose: str, slice_key: str, slice_value: str, reason: str) -> str:
    where = f" in {slice_key}:{slice_value}" if slice_key else ""
    return f"{subject}{f' ({whose})' if whose else ''}{where}: {reason}"
