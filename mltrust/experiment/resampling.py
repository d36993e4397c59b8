"""Metrics compared by replicates of their units: a witness beside the method that leads.

It knows nothing of the metric but its sums, and so would show an error in a variance in closed form.
"""

from math import copysign, nan

import numpy as np

from mltrust.experiment.cells import ExperimentStates, metric_block
from mltrust.experiment.methods import Compared
from mltrust.experiment.spec import Experiment
from mltrust.metrics import Metric
from mltrust.states.replicates import UNITS, Replicates
from mltrust.stats.bootstrap import Resampled, bootstrap, jackknife
from mltrust.stats.means import Comparison, one_sided_pvalue
from mltrust.stats.post_stratification import join_small

#: Metric kinds that are a sum over a sum, or over the number of units.
RESAMPLED_KINDS = ("mean", "proportion", "ratio")

_COMPARE = {"bootstrap": bootstrap, "jackknife": jackknife}


def resampled(states: ExperimentStates, experiment: Experiment, metric: Metric, treatment: str) -> Compared | None:
    """All units of two arms by the conf's replicates; None without them, or without units in both arms.

    As `methods.fixed`, within allocation phases where the ratio of the arms changed. The phases' weights are those
    of each replicate, so that their chance is in the standard error.
    """
    if experiment.resampling is None or metric.kind not in RESAMPLED_KINDS:
        return None
    phases = experiment.comparable_phases(treatment)
    by_phase = experiment.ratio_changes(treatment)
    strata = [[phase] for phase in phases] if by_phase else [phases]
    pairs = [(_state(states, metric, experiment.control, at), _state(states, metric, treatment, at)) for at in strata]
    there = [(control, treated) for control, treated in pairs if control is not None and treated is not None]
    if len(there) < len(pairs):
        return None
    joined = join_small(there).pairs
    control, treated = (_stratified(joined, metric, arm) for arm in (0, 1))
    compare, alpha = _COMPARE[experiment.resampling], experiment.alpha
    comparison = compare(control=control, treatment=treated, alpha=alpha)
    if by_phase:
        comparison = comparison._replace(method=f"{comparison.method}, post-stratified")
    shifted = _from_margin(experiment, metric, control, treated)
    excluded = nan if shifted is None else one_sided_pvalue(shifted, increase=metric.direction == "increase")
    half_width = (comparison.ci_high - comparison.ci_low) / 2
    return Compared(comparison, (), shifted, excluded, half_width)


def _state(states: ExperimentStates, metric: Metric, arm: str, phases: list[int]) -> Replicates | None:
    found = [
        blocks[metric_block(metric)]
        for its, blocks in sorted(states.replicates.items(), key=lambda item: item[0])
        if its.variant == arm and its.phase in phases
    ]
    return sum(found[1:], found[0]) if found else None


def _stratified(pairs: list[tuple[Replicates, Replicates]], metric: Metric, arm: int) -> Resampled:
    """The arm of the metric's mean over strata, weighted by the units of both arms."""
    of_arm = [pair[arm] for pair in pairs]
    weights = np.array([control.column(UNITS) + treated.column(UNITS) for control, treated in pairs])
    with np.errstate(divide="ignore", invalid="ignore"):
        each = [state.column(metric.numerator) / state.column(metric.denominator or UNITS) for state in of_arm]
        values = np.sum(weights / weights.sum(axis=0) * each, axis=0)
    values = np.where(np.isfinite(values), values, nan)
    return Resampled(sum(state.n for state in of_arm), float(values[0]), values[1:])


def _from_margin(
    experiment: Experiment, metric: Metric, control: Resampled, treatment: Resampled
) -> Comparison | None:
    """The treatment against the control made worse by the metric's margin."""
    if metric.margin is None or experiment.resampling is None:
        return None
    worse = -1 if metric.direction == "increase" else 1
    absolute, relative = metric.margin.absolute or 0.0, metric.margin.relative or 0.0

    # By the sign of the sample's mean for all replicates, as of a margin that is a share of its size.
    factor, shift = 1 + worse * copysign(relative, control.value), worse * absolute
    shifted = Resampled(control.n, factor * control.value + shift, factor * control.replicates + shift)
    return _COMPARE[experiment.resampling](control=shifted, treatment=treatment, alpha=experiment.alpha)
