"""Is the experiment valid? Each check is a row with its numbers, its verdict and its words."""

from collections.abc import Sequence
from math import isnan, nan
from typing import NamedTuple

from mltrust.experiment.cells import UNITS, ExperimentStates, SliceStates
from mltrust.experiment.spec import Experiment
from mltrust.metrics import KINDS, Metric
from mltrust.slices import OVERALL, n_attributes
from mltrust.stats.multiplicity import benjamini_hochberg
from mltrust.stats.post_stratification import join_small
from mltrust.stats.simpson import Gap, pooled_gap
from mltrust.stats.srm import SRM, srm
from mltrust.verdicts import Verdict

#: Level at which the gap between pooled and post-stratified effects is named (FORMULAS of the docs, Simpson).
_GAP_LEVEL = 0.01


class Check(NamedTuple):
    """A row of experiment_checks. `treatment` and `metric` are '' where the check concerns all of them."""

    check: str
    treatment: str
    metric: str
    slice_key: str
    slice_value: str
    method: str
    n_units: int
    value: float
    statistic: float
    df: float
    pvalue: float
    qvalue: float
    n_family: int
    threshold: float
    verdict: Verdict
    reason: str
    decides: bool


def checks(states: ExperimentStates, experiment: Experiment) -> list[Check]:
    """Every check of the experiment: the failed ones first, then by how many attributes their slices cross."""
    found = [*_srm_rows(states, experiment), *_simpson_rows(states, experiment)]
    return sorted(found, key=lambda each: (each.verdict is not Verdict.BREACH, n_attributes(each.slice_key)))


def _srm_rows(states: ExperimentStates, experiment: Experiment) -> list[Check]:
    return [row for family in states.levels() for row in _srm_family(family, experiment)]


def _srm_family(slices: Sequence[SliceStates], experiment: Experiment) -> list[Check]:
    """Sample ratio mismatch of the slices of one nesting level, corrected among themselves by Benjamini-Hochberg."""
    tests = [_srm(each, experiment) for each in slices]
    qvalues = benjamini_hochberg([test.pvalue for test in tests])
    n_family = sum(not isnan(test.pvalue) for test in tests)
    return [
        _srm_row(each, test, qvalue, n_family, experiment)
        for each, test, qvalue in zip(slices, tests, qvalues, strict=True)
    ]


def _srm(states: SliceStates, experiment: Experiment) -> SRM:
    """The test of the units in arms that had weight in their phase; the others are `n_unexpected`."""
    phases = range(len(experiment.phases))
    counts = {
        (arm, phase): states.count(UNITS, arm, (phase,))
        for arm in experiment.arms
        for phase in phases
        if experiment.has_weight(arm, phase)
    }
    by_phase = [sum(n for (_, its_phase), n in counts.items() if its_phase == phase) for phase in phases]
    by_arm = [sum(n for (its_arm, _), n in counts.items() if its_arm == arm) for arm in experiment.arms]
    n_unexpected = sum(states.count(UNITS, arm) for arm in experiment.arms) - sum(by_arm)
    if not sum(by_arm):
        return SRM(0, n_unexpected, nan, len(by_arm) - 1, nan)
    test = srm(by_arm, experiment.expected_counts(by_phase))
    return test._replace(n_unexpected=test.n_unexpected + n_unexpected)


def _srm_row(states: SliceStates, test: SRM, qvalue: float, n_family: int, experiment: Experiment) -> Check:
    counts = ", ".join(f"{arm} {states.count(UNITS, arm):,}" for arm in experiment.arms)
    if experiment.unit == "bucket_id":
        verdict, reason = Verdict.INCONCLUSIVE, "units are buckets, whose counts per arm are fixed"
    elif test.n_unexpected:
        verdict, reason = Verdict.BREACH, f"{test.n_unexpected:,} units in an arm of weight 0 ({counts})"
    elif isnan(qvalue):
        verdict, reason = Verdict.INCONCLUSIVE, f"fewer than 5 units expected in an arm ({counts})"
    elif qvalue < experiment.srm_alpha:
        verdict, reason = Verdict.BREACH, f"the arms do not have the units that were allocated ({counts})"
    else:
        verdict, reason = Verdict.PASS, counts
    overall = tuple(states.slice) == OVERALL
    return Check(
        check="srm",
        treatment="",
        metric="",
        slice_key=states.slice.slice_key,
        slice_value=states.slice.slice_value,
        method="chi-square",
        n_units=test.n + test.n_unexpected,
        value=nan,
        statistic=test.statistic,
        df=float(test.df),
        pvalue=test.pvalue,
        qvalue=qvalue,
        n_family=n_family,
        threshold=experiment.srm_alpha,
        verdict=verdict,
        reason=reason,
        # A slice too small to be tested says nothing against the whole.
        decides=(overall and experiment.unit != "bucket_id") or verdict is Verdict.BREACH,
    )


def _simpson_rows(states: ExperimentStates, experiment: Experiment) -> list[Check]:
    if experiment.unit == "bucket_id":
        return []
    return [
        _simpson_row(_gap(slices, experiment, treatment, metric), attributes, treatment, metric)
        for attributes, slices in states.sets.items()
        for metric in experiment.metrics
        # The gap is one of unit-weighted means; the pool of a ratio is weighted by its denominator.
        if metric.role in ("goal", "secondary") and metric.denominator is None
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
        df=nan,
        pvalue=gap.pvalue,
        qvalue=nan,
        n_family=1,
        threshold=_GAP_LEVEL,
        verdict=verdict,
        reason=words[gap.kind],
        decides=verdict is Verdict.BREACH,
    )
