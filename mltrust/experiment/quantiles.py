"""Quantiles of the rows of units, as the 90th percentile of latencies: readings overall and by slice."""

from collections.abc import Sequence
from math import inf, nan

from mltrust.experiment.cells import ExperimentStates, RowStates
from mltrust.experiment.methods import with_margins
from mltrust.experiment.readings import Reading
from mltrust.experiment.spec import Experiment
from mltrust.metrics import BELOW, ROWS, Metric
from mltrust.slices import OVERALL, Slice
from mltrust.stats.quantiles import Quantile, clustered_quantile, compare_quantiles, quantile_arm


def overall_quantiles(states: ExperimentStates, experiment: Experiment) -> list[Reading]:
    """Readings of all units, in the order of the metrics."""
    return [
        each
        for metric in experiment.quantiles
        for each in slice_quantiles(states, experiment, metric, [Slice(*OVERALL)])
    ]


def slice_quantiles(
    states: ExperimentStates, experiment: Experiment, metric: Metric, slices: Sequence[Slice]
) -> list[Reading]:
    """Readings of slices for every treatment."""
    return [
        _reading(states.quantiles[each], experiment, metric, treatment)
        for each in slices
        if each in states.quantiles
        for treatment in experiment.treatments
    ]


def _reading(states: RowStates, experiment: Experiment, metric: Metric, treatment: str) -> Reading:
    control, treated = (_quantile(states, metric, arm) for arm in (experiment.control, treatment))
    arms = ((experiment.control, control), (treatment, treated))
    lacks = "; ".join(f"{arm}: {each.reason}" for arm, each in arms if each.reason)
    if experiment.ratio_changes(treatment) or len(experiment.comparable_phases(treatment)) < len(experiment.phases):
        lacks = "the allocation changed, and quantiles are not compared within phases"
        control, treated = (each._replace(std_error=nan) for each in (control, treated))
    comparison = compare_quantiles(control=control, treatment=treated, alpha=experiment.alpha)
    pairs = [(quantile_arm(control), quantile_arm(treated))]
    return Reading(metric, treatment, states.units, with_margins(comparison, pairs, metric, inf), True, lacks=lacks)


def _quantile(states: RowStates, metric: Metric, arm: str) -> Quantile:
    moments, order = states.units.moments(metric, arm), states.order.get((metric.name, arm))
    if order is None:
        return Quantile(0, 0, metric.level or nan, nan, nan, nan, "no row has a value")
    return clustered_quantile(order, moments, below=BELOW, rows=ROWS)
