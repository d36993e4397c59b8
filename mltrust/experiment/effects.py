"""What an experiment's metrics say: effects by slice and method, their families and their verdicts."""

from collections.abc import Callable, Iterator, Sequence
from datetime import date
from math import isnan, nan
from typing import NamedTuple

from mltrust.experiment.cells import UNITS, ExperimentStates, SliceStates, mature_block
from mltrust.experiment.looks import Looks, looks
from mltrust.experiment.methods import Compared, at_every_look, at_planned_looks, fixed
from mltrust.experiment.spec import Experiment
from mltrust.metrics import KINDS, Metric
from mltrust.slices import OVERALL
from mltrust.stats.means import Comparison
from mltrust.stats.multiplicity import benjamini_hochberg, holm
from mltrust.stats.power import mde_beyond
from mltrust.verdicts import Verdict

#: Below these a slice has no verdict: units per arm, buckets per arm, events and non-events per arm of a share.
MIN_UNITS, MIN_BUCKETS, MIN_EVENTS = 50, 20, 5


class Effect(NamedTuple):
    """A row of experiment_effects: one metric of one treatment in one slice, by one method.

    The method that the conf leads with has the metric's role; of any other the role is `diagnostic`. `mde` is the
    effect that would be found with the power that the conf's rules ask for, `variance_reduction` the share of the
    effect's variance that the units' past explains.
    """

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
    mde: float = nan
    variance_reduction: float = nan

    @property
    def overall(self) -> bool:
        return (self.slice_key, self.slice_value) == OVERALL


class _Reading(NamedTuple):
    """A comparison before its family and its verdict are known; `leads` where the conf decides by its method."""

    metric: Metric
    treatment: str
    states: SliceStates
    compared: Compared
    leads: bool
    variance_reduction: float = nan

    @property
    def comparison(self) -> Comparison:
        return self.compared.comparison

    @property
    def role(self) -> str:
        return self.metric.role if self.leads else "diagnostic"


def effects(states: ExperimentStates, experiment: Experiment, as_of: date) -> list[Effect]:
    """All units by every method, the leading one first; then every slice by the leading fixed one."""
    rows = [
        row
        for family in _overall(states, experiment, as_of).values()
        for row in _overall_families(family, experiment)
    ]
    if experiment.unit == "bucket_id":  # slices vary within a bucket
        return rows
    by_past = experiment.pre_days is not None
    for slices in states.levels()[1:]:
        for metric in experiment.metrics:
            family = [
                _fixed(each, experiment, metric, treatment, by_past=by_past, leads=True)
                for each in slices
                for treatment in experiment.treatments
            ]
            rows += _judged(family, benjamini_hochberg([each.comparison.pvalue for each in family]), experiment)
    return rows


def _overall(states: ExperimentStates, experiment: Experiment, as_of: date) -> dict[str, list[_Reading]]:
    """Readings of all units by method, in the order of the metrics; the leading method first."""
    found: dict[str, list[_Reading]] = {"leading": [], "by past": [], "plain": [], "without crossed": []}
    known = looks(states, experiment) if experiment.inference != "fixed" else None
    by_past = experiment.pre_days is not None
    for metric in experiment.metrics:
        for treatment in experiment.treatments:
            plain = _fixed(states.overall, experiment, metric, treatment, by_past=False, leads=True)
            best = (
                _fixed(states.overall, experiment, metric, treatment, by_past=True, leads=True) if by_past else plain
            )
            sequential = _sequential(known, experiment, best, as_of) if known is not None else None
            found["leading"].append(sequential or best)
            if sequential is not None:
                found["by past" if by_past else "plain"].append(best._replace(leads=False))
            if by_past:
                found["plain"].append(plain._replace(leads=False))
            found["without crossed"] += _without_crossed(states.overall, experiment, metric, treatment, by_past)
    return found


def _fixed(
    states: SliceStates, experiment: Experiment, metric: Metric, treatment: str, *, by_past: bool, leads: bool
) -> _Reading:
    compared = fixed(states, experiment, metric, treatment, by_past=by_past)
    if not by_past:
        return _Reading(metric, treatment, states, compared, leads)
    before = fixed(states, experiment, metric, treatment).comparison.std_error
    reduction = 1 - (compared.comparison.std_error / before) ** 2
    return _Reading(metric, treatment, states, compared, leads, reduction)


def _without_crossed(
    states: SliceStates, experiment: Experiment, metric: Metric, treatment: str, by_past: bool
) -> Iterator[_Reading]:
    """The same without units that were seen in several variants, where there are any: not randomised any more."""
    if any(states.crossed(arm) for arm in experiment.arms):
        found = _fixed(states.uncrossed(), experiment, metric, treatment, by_past=by_past, leads=False)
        method = f"{found.comparison.method}, without crossed units"
        yield found._replace(compared=found.compared._replace(comparison=found.comparison._replace(method=method)))


def _sequential(known: Looks, experiment: Experiment, best: _Reading, as_of: date) -> _Reading | None:
    """The reading at every look so far; None for a metric without a window, whose values still grow."""
    metric, by_past = best.metric, experiment.pre_days is not None
    if metric.window_days is None:
        return None
    planned = experiment.inference == "group_sequential"
    at = known.every_week(metric, experiment.start, as_of) if planned else known.every_day()
    each = [fixed(states, experiment, metric, best.treatment, by_past=by_past) for states in at]
    if not each:
        return None
    combine = at_planned_looks if planned else at_every_look
    return best._replace(compared=combine(each, metric, experiment, known.horizon))


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
    if reading.variance_reduction <= 0:
        reason += "; the units' past explains nothing"
    overall = tuple(states.slice) == OVERALL
    decisive = metric.role in ("goal", "guardrail")
    if experiment.decision_set is not None:
        decisive = metric.name in experiment.decision_set
    return Effect(
        treatment=reading.treatment,
        metric=metric.name,
        slice_key=states.slice.slice_key,
        slice_value=states.slice.slice_value,
        role=reading.role,
        direction=metric.direction,
        control=experiment.control,
        n_immature=units - mature,
        n_missing=mature - compared.n_control - compared.n_treatment,
        qvalue=qvalue,
        n_family=n_family,
        non_inferiority_pvalue=reading.compared.non_inferiority,
        alpha=experiment.alpha,
        verdict=verdict,
        reason=reason,
        decides=overall and decisive and reading.leads,
        mde=mde_beyond(
            half_width=reading.compared.half_width, std_error=compared.std_error, power=experiment.rules.power
        ),
        variance_reduction=reading.variance_reduction,
        **compared._asdict(),
    )


def _judge(reading: _Reading, qvalue: float, experiment: Experiment) -> tuple[Verdict, str]:
    """The verdict of one effect: pass where the wanted claim is shown, breach where harm is, else inconclusive."""
    metric, compared, alpha = reading.metric, reading.comparison, experiment.alpha
    if words := too_small(metric, compared, experiment):
        return Verdict.INCONCLUSIVE, words
    if isnan(qvalue):
        return Verdict.INCONCLUSIVE, "no test: nothing varies, or too few units"
    better = (compared.effect > 0) == (metric.direction == "increase")
    shown = qvalue <= alpha
    if metric.role == "guardrail":
        excluded = reading.compared.non_inferiority
        if excluded <= alpha:
            return Verdict.PASS, f"a loss of the margin is excluded (p = {excluded:.2g})"
        if shown and not better:
            return Verdict.BREACH, f"worse by {abs(compared.effect):.4g} (q = {qvalue:.2g})"
        return (
            Verdict.INCONCLUSIVE,
            f"a loss of the margin is not excluded (p = {excluded:.2g})",
        )
    if not shown:
        return Verdict.INCONCLUSIVE, f"no effect shown (q = {qvalue:.2g})"
    word = "better" if better else "worse"
    return (
        Verdict.PASS if better else Verdict.BREACH,
        f"{word} by {abs(compared.effect):.4g} (q = {qvalue:.2g})",
    )


def too_small(metric: Metric, compared: Comparison, experiment: Experiment) -> str:
    """Why a slice has no verdict; '' where it has one."""
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
