"""Were units assigned by chance: evenly over buckets, by the declared hash, independently of other experiments?"""

from collections.abc import Iterator, Sequence
from math import isnan

from mltrust.experiment.assignment import Assignment
from mltrust.experiment.cells import NO_VARIANT, UNITS, ExperimentStates
from mltrust.experiment.check import Check, Finding, judged
from mltrust.experiment.spec import Experiment
from mltrust.stats.independence import Independence, independence, summed
from mltrust.stats.srm import srm
from mltrust.verdicts import Verdict

_SMALLEST_EXPECTED = 5


def randomisations(states: ExperimentStates, experiment: Experiment) -> list[Check]:
    """The check of buckets where the conf declares how they come about, and of every experiment that shares units.

    Buckets that are units are in every experiment alike, whatever their users are: they share nothing.
    """
    found: list[Check] = []
    if experiment.assignment is not None:
        found += _assignment(states, experiment, experiment.assignment)
    overlaps = list(_overlaps(states, experiment)) if experiment.unit != "bucket_id" else []
    return found + judged("overlap", "chi-square", overlaps, level=experiment.srm_alpha)


def _assignment(states: ExperimentStates, experiment: Experiment, assignment: Assignment) -> Iterator[Check]:
    n = sum(bucket.n for bucket in states.buckets.values())
    yield _agreement(states, n, assignment)
    together = [
        [states.buckets[name].n if name in states.buckets else 0 for name in names]
        for names in assignment.opened_together()
    ]
    strange = n - sum(map(sum, together))
    yield from judged("assignment", "chi-square", [_evenness(together, n)], level=experiment.srm_alpha)
    if strange:
        which = "that was opened" if assignment.opened else "of the declared ones"
        yield _failed("buckets", n, strange, f"{strange:,} of {n:,} units are in no bucket {which}")


def _evenness(together: Sequence[Sequence[int]], n: int) -> Finding:
    """Whether units are spread evenly over the buckets that were opened together; each has had its own time."""
    tests = [(counts, srm(counts, [1.0] * len(counts))) for counts in together if len(counts) > 1]
    told = [(counts, test) for counts, test in tests if not isnan(test.pvalue)]
    test = summed([Independence(of.n, of.statistic, of.df, of.pvalue) for _, of in told])
    n_told, n_buckets = sum(len(counts) for counts, _ in told), sum(len(counts) for counts, _ in tests)
    words = f"{test.n:,} units in {n_told:,} buckets"
    if n_told < n_buckets:
        words += f" ({n_buckets - n_told:,} have too few units to be tested)"
    return Finding(
        n=n,
        statistic=test.statistic,
        df=float(test.df),
        pvalue=test.pvalue,
        words=words,
        alarm=f"units are not spread evenly: {words}; of a ramp by buckets say which were opened together (opened)",
        metric="evenness",
    )


def _agreement(states: ExperimentStates, n: int, assignment: Assignment) -> Check:
    strange = n - sum(bucket.n_agreeing for bucket in states.buckets.values())
    how = f"{assignment.hash} of salt {assignment.salt!r} and unit"
    if strange:
        return _failed("hash", n, strange, f"{strange:,} of {n:,} units are in another bucket than {how} gives")
    verdict = Verdict.PASS if n else Verdict.INCONCLUSIVE
    words = f"{n:,} units are in the buckets that {how} gives"
    return Check("assignment", "share of units", n, 0.0, verdict, words, decides=False, metric="hash", value=0.0)


def _failed(subject: str, n: int, strange: int, words: str) -> Check:
    return Check(
        check="assignment",
        method="share of units",
        n_units=n,
        threshold=0.0,
        verdict=Verdict.BREACH,
        reason=words,
        decides=True,
        metric=subject,
        value=strange / n,
    )


def _overlaps(states: ExperimentStates, experiment: Experiment) -> Iterator[Finding]:
    """Whether units of all arms that are in another experiment met its variants alike, within allocation phases.

    How many of an arm are in it is not tested: a variant may lead more of its units to where the other one runs.
    """
    for other, by_variant in states.overlaps.items():
        met = [each for variant, each in by_variant.items() if variant != NO_VARIANT]
        if not met:  # no unit is in both
            continue
        tests = []
        for phase in range(len(experiment.phases)):
            arms = [arm for arm in experiment.arms if experiment.has_weight(arm, phase)]
            counts = [[each.count(UNITS, arm, (phase,)) for arm in arms] for each in met]
            tests.append(independence(counts, smallest_expected=_SMALLEST_EXPECTED))
        found = summed(tests)
        shared = _shares(states, experiment, other)
        yield Finding(
            n=found.n,
            statistic=found.statistic,
            df=float(found.df),
            pvalue=found.pvalue,
            words=f"units shared with {other}: {shared}",
            alarm=f"the arms do not meet the variants of {other} alike ({shared} of their units are in it)",
            metric=other,
        )


def _shares(states: ExperimentStates, experiment: Experiment, other: str) -> str:
    within = [each for variant, each in states.overlaps[other].items() if variant != NO_VARIANT]
    counts = {arm: sum(each.count(UNITS, arm) for each in within) for arm in experiment.arms}
    totals = {arm: states.overall.count(UNITS, arm) for arm in experiment.arms}
    return ", ".join(f"{arm} {counts[arm] / totals[arm]:.1%}" for arm in experiment.arms if totals[arm])
