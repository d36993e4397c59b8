"""Sample ratio mismatch of an experiment: have the arms the units that were allocated to them?"""

from collections.abc import Mapping, Sequence
from datetime import date
from itertools import accumulate
from math import isnan, nan

from mltrust.experiment.cells import UNITS, ExperimentStates, SliceStates
from mltrust.experiment.check import Check
from mltrust.experiment.spec import Experiment
from mltrust.slices import OVERALL, Slice
from mltrust.stats.multiplicity import benjamini_hochberg
from mltrust.stats.sequential import PhaseLooks, SequentialSRM, sequential_srm, srm_concentration
from mltrust.stats.srm import SRM, srm
from mltrust.verdicts import Verdict

ByDay = Mapping[date, SliceStates]


def mismatches(states: ExperimentStates, experiment: Experiment) -> list[Check]:
    """The tests of all units and of every slice, of the units so far and of all exposure days as looks."""
    fixed = [row for family in states.levels() for row in _srm_family(family, experiment)]
    if experiment.unit == "bucket_id":
        return fixed
    overall = {Slice(*OVERALL): states.by_day}
    return [*fixed, *_sequential_family(overall, states, experiment)] + [
        row
        for name in sorted(experiment.slices.attributes)
        for row in _sequential_family(
            {where: days for where, days in states.counts_by_day.items() if where.slice_key == name},
            states,
            experiment,
        )
    ]


def _sequential_family(
    slices: Mapping[Slice, ByDay], states: ExperimentStates, experiment: Experiment
) -> list[Check]:
    """The sequential tests of the slices of one attribute, or of all units, corrected by Benjamini-Hochberg."""
    tests = {
        where: sequential_srm(
            [_looks(days, at, experiment) for at in range(len(experiment.phases))],
            concentration=srm_concentration(_expected_units(days, states, experiment)),
        )
        for where, days in slices.items()
        if days
    }
    last = {where: looks[-1] for where, looks in tests.items()}
    qvalues = benjamini_hochberg([each.pvalue for each in last.values()])
    n_family = sum(not isnan(each.pvalue) for each in last.values())
    return [
        _sequential_row(where, list(slices[where]), tests[where], qvalue, n_family, experiment)
        for where, qvalue in zip(last, qvalues, strict=True)
    ]


def _looks(days: ByDay, phase: int, experiment: Experiment) -> PhaseLooks:
    """The weights of a phase, and the units of every arm that were exposed in it up to each day."""
    daily = [[each.count(UNITS, arm, (phase,)) for arm in experiment.arms] for each in days.values()]
    weights = sorted(experiment.phases.items())[phase][1]
    upto = accumulate(daily, lambda total, day: [n + more for n, more in zip(total, day, strict=True)])
    return PhaseLooks([weights[arm] for arm in experiment.arms], list(upto))


def _expected_units(days: ByDay, states: ExperimentStates, experiment: Experiment) -> float:
    """The units of a slice at the planned end, as its share of the units of the first day has it.

    Of what has come in it only knows the first day, so that it stays the same at every look.
    """
    first = next(iter(states.by_day))
    n_first = sum(states.by_day[first].count(UNITS, arm) for arm in experiment.arms)
    own = sum(days[first].count(UNITS, arm) for arm in experiment.arms) if first in days else 0
    return experiment.expected_units(n_first) * own / n_first


def _sequential_row(
    where: Slice,
    days: Sequence[date],
    looks: Sequence[SequentialSRM],
    qvalue: float,
    n_family: int,
    experiment: Experiment,
) -> Check:
    last, alpha = looks[-1], experiment.srm_alpha
    since = next((day for day, look in zip(days, looks, strict=True) if look.pvalue < alpha), None)
    if isnan(qvalue):
        verdict, reason = Verdict.INCONCLUSIVE, "no arms to compare"
    elif qvalue < alpha:
        verdict, reason = Verdict.BREACH, f"the arms do not have the units that were allocated, since {since}"
    else:
        verdict, reason = Verdict.PASS, f"{len(looks)} exposure days as looks"
    return Check(
        check="srm",
        method="sequential",
        n_units=last.n + last.n_unexpected,
        threshold=alpha,
        verdict=verdict,
        reason=reason,
        decides=verdict is Verdict.BREACH,
        slice_key=where.slice_key,
        slice_value=where.slice_value,
        statistic=last.log_bayes_factor,
        pvalue=last.pvalue,
        qvalue=qvalue,
        n_family=n_family,
    )


def _srm_family(slices: Sequence[SliceStates], experiment: Experiment) -> list[Check]:
    """Sample ratio mismatch of the slices of one nesting level, corrected among themselves by Benjamini-Hochberg."""
    tests = [sample_ratio(each, experiment) for each in slices]
    qvalues = benjamini_hochberg([test.pvalue for test in tests])
    n_family = sum(not isnan(test.pvalue) for test in tests)
    return [
        _srm_row(each, test, qvalue, n_family, experiment)
        for each, test, qvalue in zip(slices, tests, qvalues, strict=True)
    ]


def sample_ratio(states: SliceStates, experiment: Experiment) -> SRM:
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
        slice_key=states.slice.slice_key,
        slice_value=states.slice.slice_value,
        method="chi-square",
        n_units=test.n + test.n_unexpected,
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
