"""Do the arms differ in what the variant should not change: who is immature, missing, crossed, failed, exposed when?

Tests of one kind are corrected by Benjamini-Hochberg and fail at `srm_alpha`, as slices of the sample ratio do.
"""

from collections.abc import Iterator
from functools import partial
from math import nan

from mltrust.experiment.cells import (
    FAILED,
    MISSERVED,
    NO_PAST,
    PAST,
    UNITS,
    ExperimentStates,
    SliceStates,
    mature_block,
    metric_block,
)
from mltrust.experiment.check import Check, Finding, judged
from mltrust.experiment.mismatch import sample_ratio
from mltrust.experiment.shares import Share, Shares, shares
from mltrust.experiment.spec import Experiment
from mltrust.stats.independence import Independence, independence, summed
from mltrust.stats.means import mean_arm
from mltrust.stats.post_stratification import join_small, post_stratified
from mltrust.stats.srm import SRM, srm
from mltrust.verdicts import Verdict

#: From this share and number of crossed units on the readout says so.
CROSSED_SHARE, CROSSED_UNITS = 0.01, 10
_SMALLEST_EXPECTED = 5


def imbalances(states: ExperimentStates, experiment: Experiment) -> list[Check]:
    """Checks of all units together; none where units are buckets, whose arms are few and fixed."""
    if experiment.unit == "bucket_id":
        return []
    level = experiment.srm_alpha
    families = {
        "exposure timing": [_timing(states, experiment)],
        "immaturity": list(_immaturity(states, experiment)),
        "missingness": list(_missingness(states, experiment)),
        "errors": [_failures(states, experiment)],
        "rejects": [_rejects(states, experiment)],
    }
    rows = [row for name, found in families.items() for row in judged(name, "chi-square", found, level=level)]
    bias = judged("pre-exposure bias", "Welch", list(_bias(states, experiment)), level=level)
    uncrossed = judged("uncrossed", "chi-square", _ratio_uncrossed(states, experiment), level=level, blocks=False)
    return [_contamination(states, experiment), *uncrossed, *_misserved(states, experiment), *rows, *bias]


def _contamination(states: ExperimentStates, experiment: Experiment) -> Check:
    """The share of units that were seen in more than one variant; a warning, as each counts under its first."""
    arms = [Share(arm, states.overall.crossed(arm), states.overall.count(UNITS, arm)) for arm in experiment.arms]
    crossed, n = sum(each.n_true for each in arms), sum(each.n for each in arms)
    share = crossed / n if n else nan
    many = share >= CROSSED_SHARE and crossed >= CROSSED_UNITS
    words = f"{', '.join(map(str, arms))} were seen in more than one variant"
    return Check(
        check="contamination",
        method="share of units",
        n_units=n,
        threshold=CROSSED_SHARE,
        verdict=Verdict.INCONCLUSIVE if many or not n else Verdict.PASS,
        reason=f"{words}; they count under their first variant, which hides part of an effect" if many else words,
        decides=False,
        value=share,
    )


def _ratio_uncrossed(states: ExperimentStates, experiment: Experiment) -> list[Finding]:
    """Whether the units that were seen in one variant only are as allocated, where others were seen in several.

    If not, one arm loses more of its units to the others (as the smaller one of unequal arms does by itself, where
    units are assigned anew), and the effect without crossed units compares what is left.
    """
    if not any(states.overall.crossed(arm) for arm in experiment.arms):
        return []
    rest = states.overall.uncrossed()
    test = sample_ratio(rest, experiment)
    words = ", ".join(f"{arm} {rest.count(UNITS, arm):,}" for arm in experiment.arms)
    return [
        Finding(
            test.n,
            test.statistic,
            float(test.df),
            test.pvalue,
            f"units of one variant only: {words}",
            f"units seen in one variant only are not as allocated, so others were lost unequally: {words}",
        )
    ]


def _timing(states: ExperimentStates, experiment: Experiment) -> Finding:
    """Whether the arms were exposed on the same days, within allocation phases."""
    tests = []
    for phase in range(len(experiment.phases)):
        arms = [arm for arm in experiment.arms if experiment.has_weight(arm, phase)]
        days = [[each.count(UNITS, arm, (phase,)) for arm in arms] for each in states.by_day.values()]
        if days:
            tests.append(independence(days, smallest_expected=_SMALLEST_EXPECTED))
    return _finding("", summed(tests), f"days of first exposure ({len(states.by_day)} days)")


def _immaturity(states: ExperimentStates, experiment: Experiment) -> Iterator[Finding]:
    """Whether as many units of every arm have a window behind them; one test per length of window."""
    windows = {metric.window_days: mature_block(metric) for metric in experiment.unit_metrics if metric.window_days}
    for days, mature in sorted(windows.items()):
        yield _of_shares(
            f"{days} days",
            shares(experiment, partial(_without, states.overall, UNITS, mature)),
            f"units immature in a window of {days} days",
        )


def _missingness(states: ExperimentStates, experiment: Experiment) -> Iterator[Finding]:
    """Whether as many units of every arm lack a value, for metrics that leave such units out."""
    for metric in experiment.unit_metrics:
        if metric.missing == "exclude":
            missing = partial(_without, states.overall, mature_block(metric), metric_block(metric))
            yield _of_shares(metric.name, shares(experiment, missing), "units without a value")


def _without(states: SliceStates, of: str, block: str, arm: str, phases: tuple[int, ...]) -> tuple[int, int]:
    """The units of one block that are not in another, and all of the one."""
    n = states.count(of, arm, phases)
    return n - states.count(block, arm, phases), n


def _bias(states: ExperimentStates, experiment: Experiment) -> Iterator[Finding]:
    """Whether a treatment's units differed from the control's before they were exposed, per covariate.

    Within allocation phases where the ratio of the arms changed.
    """
    for treatment in experiment.treatments:
        phases = experiment.comparable_phases(treatment)
        strata = [(phase,) for phase in phases] if experiment.ratio_changes(treatment) else [tuple(phases)]
        arms = [
            tuple(states.overall.block(PAST, arm, those) for arm in (experiment.control, treatment))
            for those in strata
        ]
        pairs = join_small([(control, treated) for control, treated in arms if control.n and treated.n]).pairs
        n = sum(control.n + treated.n for control, treated in pairs)
        for name in pairs[0][0].columns if pairs else ():
            test = post_stratified([(mean_arm(control, name), mean_arm(treated, name)) for control, treated in pairs])
            subject = "units without a past" if name == NO_PAST else f"{name} before exposure"
            words = f"{subject}: {test.mean_control:.4g} in control, {test.mean_treatment:.4g} in {treatment}"
            alarm = f"the arms differ in {words}"
            yield Finding(n, test.statistic, test.df, test.pvalue, words, alarm, name, treatment)


def _failures(states: ExperimentStates, experiment: Experiment) -> Finding:
    """Whether as many units of every arm had a failed request."""

    def failed(arm: str, phases: tuple[int, ...]) -> tuple[int, int]:
        return states.whole.count(FAILED, arm, phases), states.whole.count(UNITS, arm, phases)

    return _of_shares("", shares(experiment, failed), "units with a failed request")


def _rejects(states: ExperimentStates, experiment: Experiment) -> Finding:
    """Whether the arms lost as many records to the rejects table as they have units; a test of rows, not units.

    Not where the ratio of the arms changed: rejects have no phase, and units of an earlier one have more rows.
    """
    lost = [states.rejects.get(arm, 0) for arm in experiment.arms]
    units = [states.overall.count(UNITS, arm) for arm in experiment.arms]
    counts = zip(experiment.arms, lost, units, strict=True)
    words = "rejected records: " + ", ".join(f"{arm} {n:,} beside {of:,} units" for arm, n, of in counts)
    test = SRM(sum(lost), 0, nan, 0, nan if sum(lost) or not all(units) else 1.0)
    changed = any(map(experiment.ratio_changes, experiment.treatments))
    if changed:
        test = test._replace(pvalue=nan)
    elif sum(lost) and all(units):
        test = srm(lost, [float(n) for n in units])
    alarm = f"the arms lost unequal shares; {words}"
    found = Finding(test.n, test.statistic, float(test.df), test.pvalue, words, alarm)
    return found._replace(untested="the ratio of the arms changed") if changed else found


def _misserved(states: ExperimentStates, experiment: Experiment) -> Iterator[Check]:
    """Units that were answered by a model version which is not of their arm, by the arms that the conf names."""
    for arm, versions in experiment.served_by.items():
        n, strange = states.overall.count(UNITS, arm), states.whole.count(MISSERVED, arm)
        words = f"{Share(arm, strange, n)} were answered by a model version other than {', '.join(versions)}"
        yield Check(
            check="served by",
            method="share of units",
            treatment="" if arm == experiment.control else arm,
            metric=arm,
            n_units=n,
            threshold=CROSSED_SHARE,
            verdict=Verdict.INCONCLUSIVE if not n else Verdict.BREACH if strange else Verdict.PASS,
            reason=words,
            decides=bool(n and strange),
            value=strange / n if n else nan,
        )


def _of_shares(metric: str, found: Shares, words: str) -> Finding:
    return _finding(metric, found.test._replace(n=found.n), f"{words}: {found}")


def _finding(metric: str, test: Independence, words: str) -> Finding:
    alarm = f"the arms differ in {words}"
    return Finding(test.n, test.statistic, float(test.df), test.pvalue, words, alarm, metric)
