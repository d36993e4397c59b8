"""Do the arms differ in what the variant should not change: who is immature, missing, crossed, exposed when, before?

Tests of one kind are corrected by Benjamini-Hochberg and fail at `srm_alpha`, as slices of the sample ratio do.
"""

from collections.abc import Iterator, Sequence
from math import isnan, nan
from typing import NamedTuple

from mltrust.experiment.cells import NO_PAST, UNITS, ExperimentStates, mature_block
from mltrust.experiment.check import Check
from mltrust.experiment.spec import Experiment
from mltrust.metrics import Metric
from mltrust.stats.independence import Independence, independence, summed
from mltrust.stats.means import mean_arm, welch
from mltrust.stats.multiplicity import benjamini_hochberg
from mltrust.verdicts import Verdict

#: From this share and number of crossed units on the readout says so.
CROSSED_SHARE, CROSSED_UNITS = 0.01, 10
_SMALLEST_EXPECTED = 5


class _Share(NamedTuple):
    """Of the n units of an arm those that something is true of."""

    arm: str
    n_true: int
    n: int

    def __str__(self) -> str:
        return f"{self.arm} {self.n_true:,} of {self.n:,}" + (f" ({self.n_true / self.n:.2%})" if self.n else "")


class _Finding(NamedTuple):
    """A test before its family is known. `subject` is the metric or window that it concerns, '' for all."""

    subject: str
    treatment: str
    n: int
    statistic: float
    df: float
    pvalue: float
    words: str


def imbalances(states: ExperimentStates, experiment: Experiment) -> list[Check]:
    """Checks of all units together; none where units are buckets, whose arms are few and fixed."""
    if experiment.unit == "bucket_id":
        return []
    families = {
        "exposure timing": [_timing(states, experiment)],
        "immaturity": list(_immaturity(states, experiment)),
        "missingness": list(_missingness(states, experiment)),
        "pre-exposure bias": list(_bias(states, experiment)),
    }
    rows = [row for name, found in families.items() for row in _judged(name, found, experiment)]
    return [_contamination(states, experiment), *rows]


def _contamination(states: ExperimentStates, experiment: Experiment) -> Check:
    """The share of units that were seen in more than one variant; a warning, as each counts under its first."""
    shares = [_Share(arm, states.overall.crossed(arm), states.overall.count(UNITS, arm)) for arm in experiment.arms]
    crossed, n = sum(each.n_true for each in shares), sum(each.n for each in shares)
    share = crossed / n if n else nan
    many = share >= CROSSED_SHARE and crossed >= CROSSED_UNITS
    words = f"{_listed(shares)} were seen in more than one variant"
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


def _timing(states: ExperimentStates, experiment: Experiment) -> _Finding:
    """Whether the arms were exposed on the same days, within allocation phases."""
    tests = []
    for phase in range(len(experiment.phases)):
        arms = [arm for arm in experiment.arms if experiment.has_weight(arm, phase)]
        days = [[each.count(UNITS, arm, (phase,)) for arm in arms] for each in states.by_day.values()]
        if days:
            tests.append(independence(days, smallest_expected=_SMALLEST_EXPECTED))
    return _finding("", summed(tests), f"days of first exposure ({len(states.by_day)} days)")


def _immaturity(states: ExperimentStates, experiment: Experiment) -> Iterator[_Finding]:
    """Whether as many units of every arm have a window behind them; one test per length of window."""
    windows = {metric.window_days: mature_block(metric) for metric in experiment.metrics if metric.window_days}
    for days, mature in sorted(windows.items()):
        shares = [
            _Share(arm, n - states.overall.count(mature, arm), n)
            for arm in experiment.arms
            for n in [states.overall.count(UNITS, arm)]
        ]
        yield _of_shares(f"{days} days", shares, f"immature in a window of {days} days")


def _missingness(states: ExperimentStates, experiment: Experiment) -> Iterator[_Finding]:
    """Whether as many units of every arm lack a value, for metrics that leave such units out."""
    for metric in experiment.metrics:
        if metric.missing == "exclude":
            yield _of_shares(metric.name, list(_missing(states, experiment, metric)), "without a value")


def _missing(states: ExperimentStates, experiment: Experiment, metric: Metric) -> Iterator[_Share]:
    for arm in experiment.arms:
        n = states.overall.count(mature_block(metric), arm)
        yield _Share(arm, n - states.overall.moments(metric, arm).n, n)


def _bias(states: ExperimentStates, experiment: Experiment) -> Iterator[_Finding]:
    """Whether a treatment's units differed from the control's before they were exposed, per covariate."""
    for treatment in experiment.treatments:
        phases = experiment.comparable_phases(treatment)
        control, treated = (states.overall.past(arm, phases) for arm in (experiment.control, treatment))
        if experiment.ratio_changes(treatment) or not (control.n and treated.n):
            continue
        for name in control.columns:
            test = welch(control=mean_arm(control, name), treatment=mean_arm(treated, name))
            subject = "units without a past" if name == NO_PAST else f"{name} before exposure"
            words = f"{subject}: {test.mean_control:.4g} in control, {test.mean_treatment:.4g} in {treatment}"
            n = control.n + treated.n
            yield _Finding(name, treatment, n, test.statistic, test.df, test.pvalue, words)


def _of_shares(subject: str, shares: Sequence[_Share], words: str) -> _Finding:
    """The test of the shares of all arms; none where few units are expected on either side."""
    table = [[each.n_true for each in shares], [each.n - each.n_true for each in shares]]
    n = sum(each.n for each in shares)
    smallest = min(sum(side) * each.n / n for side in table for each in shares) if n else 0
    test = independence(table)
    if 0 < smallest < _SMALLEST_EXPECTED:
        test = test._replace(statistic=nan, pvalue=nan)
    return _finding(subject, test, f"{words}: {_listed(shares)}")


def _finding(subject: str, test: Independence, words: str) -> _Finding:
    return _Finding(subject, "", test.n, test.statistic, float(test.df), test.pvalue, words)


def _listed(shares: Sequence[_Share]) -> str:
    return ", ".join(map(str, shares))


def _judged(check: str, family: Sequence[_Finding], experiment: Experiment) -> list[Check]:
    qvalues = benjamini_hochberg([each.pvalue for each in family])
    n_family = sum(not isnan(each.pvalue) for each in family)
    return [_row(check, each, qvalue, n_family, experiment) for each, qvalue in zip(family, qvalues, strict=True)]


def _row(check: str, found: _Finding, qvalue: float, n_family: int, experiment: Experiment) -> Check:
    if isnan(qvalue):
        verdict, reason = Verdict.INCONCLUSIVE, f"not tested, too few units: {found.words}"
    elif qvalue < experiment.srm_alpha:
        verdict, reason = Verdict.BREACH, f"the arms differ in {found.words}"
    else:
        verdict, reason = Verdict.PASS, found.words
    return Check(
        check=check,
        method="Welch" if check == "pre-exposure bias" else "chi-square",
        n_units=found.n,
        threshold=experiment.srm_alpha,
        verdict=verdict,
        reason=reason,
        decides=verdict is Verdict.BREACH,
        treatment=found.treatment,
        metric=found.subject,
        statistic=found.statistic,
        df=found.df,
        pvalue=found.pvalue,
        qvalue=qvalue,
        n_family=n_family,
    )
