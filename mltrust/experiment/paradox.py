"""Simpson's paradox in an experiment: do slices say the opposite of all units together?"""

from collections.abc import Sequence
from math import nan

from mltrust.experiment.cells import ExperimentStates, SliceStates
from mltrust.experiment.check import Check
from mltrust.experiment.spec import Experiment
from mltrust.metrics import KINDS, Metric
from mltrust.stats.post_stratification import join_small
from mltrust.stats.simpson import GAP_LEVEL, Gap, pooled_gap
from mltrust.verdicts import Verdict


def paradoxes(states: ExperimentStates, experiment: Experiment) -> list[Check]:
    """The gap of every metric that decides or is secondary, per declared set; none of weighted units."""
    if experiment.unit == "bucket_id" or experiment.sample is not None:
        return []
    return [
        _simpson_row(_gap(slices, experiment, treatment, metric), attributes, treatment, metric)
        for attributes, slices in states.sets.items()
        for metric in experiment.unit_metrics
        # The gap is one of unit-weighted means; the pool of a ratio is weighted by its denominator.
        if (experiment.decides(metric) or metric.role == "secondary") and metric.denominator is None
        for treatment in experiment.treatments
        if len(slices) > 1
    ]


def _gap(slices: Sequence[SliceStates], experiment: Experiment, treatment: str, metric: Metric) -> Gap:
    """The gap of the slices; untested where one is left, or the allocation changed and the pool mixes phases."""
    phases, arms = experiment.comparable_phases(treatment), (experiment.control, treatment)
    pairs = [tuple(each.moments(metric, arm, phases) for arm in arms) for each in slices]
    joined = join_small([(control, treated) for control, treated in pairs]).pairs
    to_arm = KINDS[metric.kind].arm
    gap = pooled_gap([(to_arm(c, metric), to_arm(t, metric)) for c, t in joined])
    if len(joined) < 2 or experiment.ratio_changes(treatment):
        return gap._replace(kind="inconclusive", statistic=nan, pvalue=nan)
    return gap


def _simpson_row(gap: Gap, attributes: tuple[str, ...], treatment: str, metric: Metric) -> Check:
    verdict = {"reversal": Verdict.BREACH, "none": Verdict.PASS}.get(gap.kind, Verdict.INCONCLUSIVE)
    by = " x ".join(attributes)
    words = {
        "reversal": f"Simpson's paradox: pooled {gap.pooled:+.4g}, within {by} {gap.post_stratified:+.4g}; "
        "the arms do not have the same mix, and the pooled effect points the wrong way",
        "mix shift": f"mix shift: pooled {gap.pooled:+.4g}, within {by} {gap.post_stratified:+.4g}; "
        "part of the pooled effect comes from unequal mixes",
        "none": f"pooled {gap.pooled:+.4g}, within {by} {gap.post_stratified:+.4g}",
        "inconclusive": f"not compared with {by}: too few units, or the allocation changed between phases",
    }
    return Check(
        check="simpson",
        treatment=treatment,
        metric=metric.name,
        slice_key=by,
        slice_value="(all)",
        method=gap.kind,
        n_units=gap.n,
        value=gap.gap,
        statistic=gap.statistic,
        pvalue=gap.pvalue,
        threshold=GAP_LEVEL,
        verdict=verdict,
        reason=words[gap.kind],
        decides=verdict is Verdict.BREACH,
    )
