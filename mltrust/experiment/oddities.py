"""What a careful reader would doubt before believing an effect: its size, its skew, its trend, its trigger."""

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from math import isnan, nan

from mltrust.experiment.cells import (
    TREND,
    UNITS,
    WINDOW,
    ExperimentStates,
    Triggered,
    capped_block,
    has_products,
    has_trend,
    product,
    products_block,
    trend_block,
)
from mltrust.experiment.check import Check, Finding, judged
from mltrust.experiment.effects import Effect
from mltrust.experiment.methods import compared, is_far_from_zero
from mltrust.experiment.shares import shares
from mltrust.experiment.spec import Experiment
from mltrust.metrics import Metric
from mltrust.stats.means import mean_arm, welch
from mltrust.stats.ratios import ratio_arm
from mltrust.stats.skew import THRESHOLD, Skew, skew
from mltrust.stats.skew_kinds import skew_of_ratios, skew_of_shares
from mltrust.verdicts import Verdict

#: A relative effect above, or a p-value below: more often a mistake in the data than a discovery (Twyman's law).
_TOO_LARGE, _TOO_CERTAIN = 0.3, 1e-12
_TREND_LEVEL = 0.01
#: Of guardrails: a test of one side is off by a tenth of its level where g is `THRESHOLD` (docs/calibration.md).
THRESHOLD_OF_GUARDRAILS = 0.02


def oddities(
    states: ExperimentStates, experiment: Experiment, effects: Sequence[Effect], delays: Collection[str] = ()
) -> list[Check]:
    """Twyman's law, skewness, trend and delay of every overall effect, and the units that the trigger left out."""
    if experiment.unit == "bucket_id":
        return list(_twyman(effects))
    trends = judged("trend", "delta method", list(_trends(states, experiment)), level=_TREND_LEVEL, blocks=False)
    capped = judged(
        "capping", "chi-square", list(_caps(states, experiment)), level=experiment.srm_alpha, blocks=False
    )
    waits = judged(
        "outcome delay",
        "as the metric",
        list(_waits(effects, experiment, delays)),
        level=experiment.srm_alpha,
        blocks=False,
    )
    return [
        *_twyman(effects),
        *_skews(states, experiment),
        *capped,
        *trends,
        *waits,
        *_untriggered(states, experiment),
    ]


def _waits(effects: Sequence[Effect], experiment: Experiment, delays: Collection[str]) -> Iterator[Finding]:
    """Whether outcomes of the arms come equally late, for metrics of delays: else windows cut off unequal shares."""
    of_delays = {metric.name for metric in experiment.metrics if metric.numerator in delays}
    for row in _leading(effects):
        if row.metric in of_delays:
            after = f"{row.mean_control:.4g} days in {row.control}, {row.mean_treatment:.4g} in {row.treatment}"
            words = f"outcomes after {after}"
            yield Finding(
                n=row.n_control + row.n_treatment,
                statistic=row.statistic,
                df=row.df,
                pvalue=row.pvalue,
                words=words,
                alarm=f"{words}: a window cuts off more of one arm's",
                metric=row.metric,
                treatment=row.treatment,
                value=row.effect,
            )


def _leading(effects: Sequence[Effect]) -> Iterator[Effect]:
    """Of every metric and treatment the overall effect by the leading method, which comes first."""
    seen = set()
    for row in effects:
        if row.overall and (row.metric, row.treatment) not in seen:
            seen.add((row.metric, row.treatment))
            yield row


def _caps(states: ExperimentStates, experiment: Experiment) -> Iterator[Finding]:
    """Whether as many units of every arm were cut off: if not, the cap hides a part of the effect."""
    for metric in experiment.unit_metrics:
        if metric.cap is None:
            continue
        found = shares(experiment, partial(_capped, states, metric))
        yield Finding(
            n=found.n,
            statistic=found.test.statistic,
            df=float(found.test.df),
            pvalue=found.test.pvalue,
            words=f"units cut off: {found}",
            alarm=f"the cap hides a part of the effect; units cut off: {found}",
            metric=metric.name,
        )


def _capped(states: ExperimentStates, metric: Metric, arm: str, phases: tuple[int, ...]) -> tuple[int, int]:
    return states.whole.count(capped_block(metric), arm, phases), states.overall.moments(metric, arm, phases).n


def _twyman(effects: Sequence[Effect]) -> Iterator[Check]:
    for row in _leading(effects):
        if row.role == "diagnostic":
            continue
        odd = abs(row.rel_effect) > _TOO_LARGE or row.pvalue < _TOO_CERTAIN
        words = f"{row.rel_effect:+.1%} (p = {row.pvalue:.2g})"
        yield Check(
            check="twyman",
            method="size and p-value",
            treatment=row.treatment,
            metric=row.metric,
            n_units=row.n_control + row.n_treatment,
            value=row.rel_effect,
            pvalue=row.pvalue,
            threshold=_TOO_LARGE,
            verdict=Verdict.INCONCLUSIVE if odd or isnan(row.pvalue) else Verdict.PASS,
            reason=f"check the data: {words} is larger or surer than most real effects" if odd else words,
            decides=False,
        )


def _skews(states: ExperimentStates, experiment: Experiment) -> Iterator[Check]:
    for metric in experiment.unit_metrics:
        threshold = THRESHOLD_OF_GUARDRAILS if metric.role == "guardrail" else THRESHOLD
        for treatment in experiment.treatments:
            found = _skew(states, experiment, metric, treatment)
            if found is None:
                continue
            skewed = found.value > threshold
            words = f"skewness of the difference {found.value:.3g}, of one unit {found.skewness:.3g}"
            is_sum = metric.denominator is None and has_products(metric)
            cap = "; believe a capped metric instead" if is_sum else ""
            odd = f"skewed: at arms this unequal the level does not hold{cap}"
            yield Check(
                check="skew",
                method="third moment",
                treatment=treatment,
                metric=metric.name,
                n_units=found.n_control + found.n_treatment,
                value=found.value,
                threshold=threshold,
                verdict=Verdict.INCONCLUSIVE if skewed or isnan(found.value) else Verdict.PASS,
                reason=f"{odd} ({words})" if skewed else words,
                decides=False,
            )


def _skew(states: ExperimentStates, experiment: Experiment, metric: Metric, treatment: str) -> Skew | None:
    """The skewness of a metric's effect; None without units in both arms. That of a share follows from it alone."""
    phases, names = experiment.comparable_phases(treatment), (experiment.control, treatment)
    if not has_products(metric):
        control, treated = (mean_arm(states.overall.moments(metric, arm, phases), metric.numerator) for arm in names)
        return skew_of_shares(control=control, treatment=treated) if control.n and treated.n else None
    blocks = [states.whole.block(products_block(metric), arm, phases) for arm in names]
    if not all(block.n for block in blocks):
        return None
    numerator, denominator = metric.numerator, metric.denominator
    if denominator is None:
        square = product(numerator, numerator)
        return skew(control=blocks[0], treatment=blocks[1], column=numerator, squares=square)
    return skew_of_ratios(
        control=blocks[0],
        treatment=blocks[1],
        numerator=numerator,
        denominator=denominator,
        products=(
            product(numerator, numerator),
            product(numerator, denominator),
            product(denominator, denominator),
        ),
    )


def _trends(states: ExperimentStates, experiment: Experiment) -> Iterator[Finding]:
    """Whether the relative effect changes over the days since exposure: novelty wears off, or has to be learnt.

    Units are most active on the day on which they are exposed, as that is why they are: of any effect most falls on
    it. A slope over a sum is therefore that of the arm's own days, and a constant relative effect leaves it alike.
    """
    for metric in experiment.unit_metrics:
        for treatment in experiment.treatments if has_trend(metric) else ():
            phases = experiment.comparable_phases(treatment)
            control, treated = (
                states.whole.block(trend_block(metric), arm, phases) for arm in (experiment.control, treatment)
            )
            if not (control.n and treated.n):
                continue
            test = welch(
                control=ratio_arm(control, TREND, WINDOW),
                treatment=ratio_arm(treated, TREND, WINDOW),
            )
            changed = experiment.ratio_changes(treatment)
            found = all(is_far_from_zero(mean_arm(arm, WINDOW)) for arm in (control, treated)) and not changed
            change = (metric.window_days or 0) * test.effect
            words = f"the relative effect changes by {change:+.2%} a day since exposure"
            yield Finding(
                n=test.n_control + test.n_treatment,
                statistic=test.statistic,
                df=test.df,
                pvalue=test.pvalue if found else nan,
                words=words if found else f"{metric.name} by day",
                alarm=f"{words}: what was measured is not what stays",
                metric=metric.name,
                treatment=treatment,
                value=change if found else nan,
                untested="the ratio of the arms changed" if changed else "hardly above 0, or nothing varies",
            )


def _untriggered(states: ExperimentStates, experiment: Experiment) -> list[Check]:
    """The units for which the trigger never held, as an A/A test, and whether it held alike in all arms."""
    if states.triggered is None:
        return []
    effects = [
        Finding(
            n=test.n_control + test.n_treatment,
            statistic=test.statistic,
            df=test.df,
            pvalue=test.pvalue,
            words=f"untriggered units differ by {test.effect:+.4g}",
            alarm=f"units that never met the treatment differ by {test.effect:+.4g}: the trigger misses some",
            metric=metric.name,
            treatment=treatment,
            value=test.effect,
        )
        for metric in experiment.unit_metrics
        for treatment in experiment.treatments
        for test in [compared(states.triggered.complement, experiment, metric, treatment)]
    ]
    found = shares(experiment, partial(_triggered, states.triggered))
    alike = Finding(
        n=found.n,
        statistic=found.test.statistic,
        df=float(found.test.df),
        pvalue=found.test.pvalue,
        words=f"triggered: {found}",
        alarm=f"the trigger does not hold alike in the arms: {found}",
    )
    level = experiment.srm_alpha
    return judged("trigger", "chi-square", [alike], level=level) + judged(
        "trigger complement", "A/A", effects, level=level
    )


def _triggered(states: Triggered, arm: str, phases: tuple[int, ...]) -> tuple[int, int]:
    n = states.units.count(UNITS, arm, phases)
    return n, n + states.complement.count(UNITS, arm, phases)
