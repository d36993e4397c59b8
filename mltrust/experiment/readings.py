"""The comparisons behind the effects: every metric by every method that the conf asks for, overall and by slice."""

from collections.abc import Iterator, Sequence
from datetime import date
from math import isnan, nan
from typing import NamedTuple

from mltrust.experiment.cells import UNITS, ExperimentStates, SliceStates
from mltrust.experiment.looks import Looks, looks, rising
from mltrust.experiment.methods import (
    Compared,
    at_every_look,
    at_planned_looks,
    by_slices,
    diluted,
    fixed,
    untested,
    value_limits,
    whatever_is_missing,
)
from mltrust.experiment.resampling import resampled
from mltrust.experiment.spec import Experiment
from mltrust.metrics import Metric
from mltrust.stats.means import Comparison


class Reading(NamedTuple):
    """A comparison before its family and its verdict are known; `leads` where the conf decides by its method.

    `lacks` says in words why there can be no verdict, '' where there can. `looked` are the units of the last planned
    look, where those that came after it are not read yet. `note` is said beside the verdict.
    """

    metric: Metric
    treatment: str
    states: SliceStates
    compared: Compared
    leads: bool
    variance_reduction: float = nan
    lacks: str = ""
    looked: SliceStates | None = None
    note: str = ""

    @property
    def comparison(self) -> Comparison:
        return self.compared.comparison

    @property
    def role(self) -> str:
        return self.metric.role if self.leads else "diagnostic"


def overall_readings(states: ExperimentStates, experiment: Experiment, as_of: date) -> dict[str, list[Reading]]:
    """Readings of all units by method, each in the order of the metrics; the leading method first."""
    found: dict[str, list[Reading]] = {"leading": [], "by past": [], "plain": []}
    known = looks(states, experiment) if experiment.inference != "fixed" else None
    by_past = experiment.pre_days is not None
    for metric in experiment.unit_metrics:
        for treatment in experiment.treatments:
            plain = _fixed(states.overall, experiment, metric, treatment, by_past=False)
            best = _fixed(states.overall, experiment, metric, treatment, by_past=True) if by_past else plain
            sequential = _sequential(known, experiment, best, as_of) if known is not None else None
            found["leading"].append(sequential or best)
            if sequential is not None:
                found["by past" if by_past else "plain"].append(best._replace(leads=False))
            if by_past:
                found["plain"].append(plain._replace(leads=False))
    return found | {
        "resampled": list(_resampled(states, experiment)),
        "without crossed": list(_without_crossed(states, experiment)),
        **{
            f"post-stratified by {' x '.join(names)}": list(_post_stratified(names, slices, states, experiment))
            for names, slices in states.sets.items()
        },
        "bounds": list(_bounds(states, experiment)),
        "triggered": list(_triggered(states, experiment)),
        "diluted": list(_diluted(states, experiment)),
    }


def slice_readings(slices: Sequence[SliceStates], experiment: Experiment, metric: Metric) -> list[Reading]:
    """Readings of slices of one nesting level by the leading fixed method, for every treatment."""
    by_past = experiment.pre_days is not None
    return [
        _fixed(each, experiment, metric, treatment, by_past=by_past)
        for each in slices
        for treatment in experiment.treatments
    ]


def _fixed(states: SliceStates, experiment: Experiment, metric: Metric, treatment: str, *, by_past: bool) -> Reading:
    compared = fixed(states, experiment, metric, treatment, by_past=by_past)
    if not by_past:
        return Reading(metric, treatment, states, compared, leads=True)
    before = fixed(states, experiment, metric, treatment).comparison
    return Reading(metric, treatment, states, compared, leads=True, variance_reduction=_reduction(compared, before))


def _reduction(compared: Compared, before: Comparison) -> float:
    """The share of an effect's variance that a method takes away."""
    return 1 - (compared.comparison.std_error / before.std_error) ** 2 if before.std_error > 0 else nan


def _sequential(known: Looks, experiment: Experiment, best: Reading, as_of: date) -> Reading | None:
    """The reading at every look so far; None for a metric without a window, whose values still grow."""
    metric, by_past = best.metric, experiment.pre_days is not None
    if metric.window_days is None:
        return None
    planned = experiment.inference == "group_sequential"
    at = known.every_week(metric, experiment.start, as_of) if planned else known.every_day()
    each = [fixed(states, experiment, metric, best.treatment, by_past=by_past) for states in at]
    horizon = known.horizon * experiment.share_of_arms(best.treatment)
    if not planned:
        return best._replace(compared=at_every_look(each, metric, experiment, horizon)) if each else None
    if experiment.horizon is None:
        return best._replace(compared=untested(best.compared), lacks=_NO_HORIZON)
    told = rising([(one.comparison.n_control + one.comparison.n_treatment) / horizon for one in each])
    if not told:
        return best._replace(compared=untested(best.compared), lacks=_NO_LOOK)
    compared = at_planned_looks([each[look] for look in told], metric, experiment, horizon)
    spent = isnan(compared.half_width) and not compared.comparison.pvalue <= experiment.alpha
    return best._replace(compared=compared, lacks=_SPENT if spent else "", looked=at[told[-1]])


_NO_HORIZON = "the conf has no horizon, of which every planned look is a share: plan_experiment says how many units"
_NO_LOOK = "no planned look yet: the windows of the first week's units are not over, or these are next to none"
_SPENT = "this look has no alpha to spend: too few units yet, or an earlier one had as many as the horizon"


def _each(experiment: Experiment) -> Iterator[tuple[Metric, str]]:
    return ((metric, treatment) for metric in experiment.unit_metrics for treatment in experiment.treatments)


def _without_crossed(states: ExperimentStates, experiment: Experiment) -> Iterator[Reading]:
    """Without units that were seen in several variants, where there are any: not randomised any more."""
    if not any(states.overall.crossed(arm) for arm in experiment.arms):
        return
    rest, by_past = states.overall.uncrossed(), experiment.pre_days is not None
    for metric, treatment in _each(experiment):
        found = _fixed(rest, experiment, metric, treatment, by_past=by_past)
        yield _named(found, f"{found.comparison.method}, without crossed units")


def _resampled(states: ExperimentStates, experiment: Experiment) -> Iterator[Reading]:
    """By replicates of the units, where the conf asks for them."""
    for metric, treatment in _each(experiment):
        if (drawn := resampled(states, experiment, metric, treatment)) is not None:
            yield Reading(metric, treatment, states.overall, drawn, leads=False)


def _post_stratified(
    names: Sequence[str], slices: Sequence[SliceStates], states: ExperimentStates, experiment: Experiment
) -> Iterator[Reading]:
    """Within the slices of a declared set, as if every slice had its share of the units in both arms."""
    if experiment.unit == "bucket_id" or experiment.sample is not None or len(slices) < 2:
        return
    for metric, treatment in _each(experiment):
        if metric.denominator is not None or experiment.ratio_changes(treatment):
            continue
        compared, n_joined = by_slices(slices, experiment, metric, treatment)
        plain = fixed(states.overall, experiment, metric, treatment).comparison
        reading = Reading(metric, treatment, states.overall, compared, False, _reduction(compared, plain))
        if n_joined:
            reading = reading._replace(note=f"{n_joined} slices taken together for want of units")
        yield _named(reading, f"post-stratified by {' x '.join(names)}")


def _bounds(states: ExperimentStates, experiment: Experiment) -> Iterator[Reading]:
    """With all missing values as bad for the treatment as they can be, and as good: what holds whatever they are."""
    for metric, treatment in _each(experiment):
        limits = value_limits(metric)
        if limits is None or metric.missing != "exclude" or experiment.sample is not None:
            continue
        if experiment.ratio_changes(treatment):
            continue
        compared = whatever_is_missing(states.overall, experiment, metric, treatment, limits)
        if compared is not None:
            yield Reading(metric, treatment, states.overall, compared, leads=False)


def _triggered(states: ExperimentStates, experiment: Experiment) -> Iterator[Reading]:
    """Of the units alone for which the trigger held."""
    if states.triggered is None:
        return
    for metric, treatment in _each(experiment):
        found = _fixed(states.triggered.units, experiment, metric, treatment, by_past=experiment.pre_days is not None)
        yield _named(found, f"{found.comparison.method}, triggered")


def _diluted(states: ExperimentStates, experiment: Experiment) -> Iterator[Reading]:
    """What the effect on triggered units comes to over all units, if the others have none."""
    if states.triggered is None:
        return
    for metric, treatment in _each(experiment):
        if metric.denominator is None:
            found = _fixed(states.triggered.units, experiment, metric, treatment, by_past=False)
            plain = fixed(states.overall, experiment, metric, treatment)
            if len(plain.pairs) != 1:  # within phases, in which the share may differ
                continue
            compared = diluted(found.compared, plain, _share(states, experiment, treatment), experiment.alpha)
            reading = found._replace(
                states=states.overall,
                compared=compared,
                variance_reduction=_reduction(compared, plain.comparison),
            )
            yield _named(reading, "triggered, diluted")


def _share(states: ExperimentStates, experiment: Experiment, treatment: str) -> float:
    """The share of the units of both arms for which the trigger held."""
    assert states.triggered is not None
    arms, phases = (experiment.control, treatment), experiment.comparable_phases(treatment)
    n = sum(states.overall.count(UNITS, arm, phases) for arm in arms)
    return sum(states.triggered.units.count(UNITS, arm, phases) for arm in arms) / n if n else nan


def _named(reading: Reading, method: str) -> Reading:
    """A reading that does not lead, under the name of its method."""
    comparison = reading.comparison._replace(method=method)
    return reading._replace(compared=reading.compared._replace(comparison=comparison), leads=False)
