"""How a treatment is held against its control: as it is, adjusted by the past, or at every look so far."""

from collections.abc import Callable, Sequence
from functools import partial
from math import inf, isnan, nan
from typing import NamedTuple

import numpy as np

from mltrust.experiment.cells import NO_PAST, SliceStates, mature_block, past_column
from mltrust.experiment.spec import Experiment
from mltrust.metrics import KINDS, Metric
from mltrust.states.moments import Moments
from mltrust.stats.cuped import Cuped, Quantity, cuped
from mltrust.stats.equivalence import equivalence
from mltrust.stats.means import (
    Arm,
    Comparison,
    FiellerInterval,
    contrast,
    fieller,
    mean_arm,
    normal_score,
    one_sided_pvalue,
    welch,
)
from mltrust.stats.post_stratification import join_small, post_stratified
from mltrust.stats.sequential import (
    Look,
    always_valid,
    always_valid_pvalue,
    best_rho,
    confidence_sequence,
    counts_as_look,
    group_sequential,
    group_sequential_pvalue,
    one_sided_log_e_value,
)

#: How many standard errors a mean must be from 0 to be divided by.
_FAR = 3

Pair = tuple[Arm, Arm]
ToArms = Callable[[Moments, Moments], Pair]


class Compared(NamedTuple):
    """A comparison over (control, treatment) `pairs`, one, or one per allocation phase.

    `from_margin` compares the treatment with the control made worse by the metric's margin. `half_width` is that of
    the interval, `non_inferiority` the one-sided p-value that a loss of the margin is excluded, `equivalence` that of
    the two one-sided tests that the arms are the same but for the metric's equivalence margin. `sign` is that of the
    effect that a test at several looks has shown, 0 where the last look says the opposite; None for a test at one.
    `shown_now`: whether the last of several looks shows its effect by itself.
    """

    comparison: Comparison
    pairs: tuple[Pair, ...]
    from_margin: Comparison | None
    non_inferiority: float
    half_width: float
    equivalence: float = nan
    sign: int | None = None
    shown_now: bool = False


def plain(metric: Metric) -> ToArms:
    """The arms of a metric as they are."""
    to_arm = KINDS[metric.kind].arm
    return lambda control, treatment: (to_arm(control, metric), to_arm(treatment, metric))


def adjusted(metric: Metric, experiment: Experiment) -> ToArms:
    """The arms of a metric moved by CUPED to the past of both together."""

    def arms(control: Moments, treatment: Moments) -> Pair:
        if not (control.n and treatment.n):
            return plain(metric)(control, treatment)
        found = _by_past(metric, experiment, control, treatment)
        return found.control, found.treatment

    return arms


def _by_past(metric: Metric, experiment: Experiment, control: Moments, treatment: Moments) -> Cuped:
    """CUPED by the metric's own past and the conf's covariates, without a ratio of which an arm has hardly a past."""
    past = [Quantity(*(past_column(column) for column in metric.columns()))]
    past += [Quantity(past_column(name)) for name in experiment.covariates if name not in metric.columns()]
    known = [each for each in past if all(_is_defined(each, state) for state in (control, treatment))]
    return cuped(
        control=control,
        treatment=treatment,
        metric=Quantity(metric.numerator, metric.denominator),
        covariates=[*known, Quantity(NO_PAST)],
        alpha=experiment.alpha,
    )


def _is_defined(quantity: Quantity, state: Moments) -> bool:
    """Whether enough units of an arm had a past for its ratio to be known: a denominator far from 0."""
    if quantity.denominator is None:
        return True
    return is_far_from_zero(mean_arm(state, quantity.denominator))


def is_far_from_zero(arm: Arm) -> bool:
    """Whether a mean is known well enough to be divided by."""
    return arm.mean**2 > _FAR**2 * arm.mean_variance


def fixed(
    states: SliceStates, experiment: Experiment, metric: Metric, treatment: str, *, by_past: bool = False
) -> Compared:
    """The test of what there is, within allocation phases where the ratio of the arms changed.

    Phases in which one of them had no weight have nothing to compare with, and are left out.
    """
    to_arms = adjusted(metric, experiment) if by_past else plain(metric)
    names, alpha = (experiment.control, treatment), experiment.alpha
    phases, df = experiment.comparable_phases(treatment), None
    whole, treated = (states.moments(metric, arm, phases) for arm in names)
    if experiment.ratio_changes(treatment) and experiment.unit != "bucket_id":
        by_phase = [tuple(states.moments(metric, arm, (at,)) for arm in names) for at in phases]
        pairs = [to_arms(c, t) for c, t in join_small([(c, t) for c, t in by_phase]).pairs]
        comparison = post_stratified(pairs, alpha=alpha)
    elif by_past and whole.n and treated.n:
        # Its relative interval knows what chance in the covariates does to the control mean, which arms do not tell.
        found = _by_past(metric, experiment, whole, treated)
        pairs, comparison = [(found.control, found.treatment)], found.comparison
    else:
        pairs = [plain(metric)(whole, treated)]
        df = max(1.0, whole.n + treated.n - 2) if experiment.unit == "bucket_id" else None
        # Shares of weighted units have the variance of their weights, not that of a share.
        as_means = by_past or experiment.sample is not None or df is not None
        compare = partial(welch, df=df) if as_means else KINDS[metric.kind].compare
        comparison = compare(control=pairs[0][0], treatment=pairs[0][1], alpha=alpha)
    if by_past:
        comparison = comparison._replace(method="cuped" if len(pairs) == 1 else "cuped, post-stratified")
    return with_margins(comparison, pairs, metric, df)


def with_margins(comparison: Comparison, pairs: Sequence[Pair], metric: Metric, df: float | None) -> Compared:
    """A comparison of these pairs of arms with what it says of the metric's margins."""
    shifted = _from_margin(metric, pairs, df)
    excluded = nan if shifted is None else one_sided_pvalue(shifted, increase=metric.direction == "increase")
    half_width = (comparison.ci_high - comparison.ci_low) / 2
    return Compared(comparison, tuple(pairs), shifted, excluded, half_width, _same_but_for(metric, pairs, df))


def _same_but_for(metric: Metric, pairs: Sequence[Pair], df: float | None) -> float:
    """The p-value of equivalence, of one pair of arms."""
    if metric.equivalence is None or len(pairs) != 1:
        return nan
    [(control, treatment)] = pairs
    return equivalence(control=control, treatment=treatment, margin=metric.equivalence, df=df).pvalue


def compared(states: SliceStates, experiment: Experiment, metric: Metric, treatment: str) -> Comparison:
    """The comparison by the fixed method that leads."""
    return fixed(states, experiment, metric, treatment, by_past=experiment.pre_days is not None).comparison


def by_slices(
    slices: Sequence[SliceStates], experiment: Experiment, metric: Metric, treatment: str
) -> tuple[Compared, int]:
    """The test within slices, weighted by their units, and how many of them had too few and were taken together."""
    phases = experiment.comparable_phases(treatment)
    moments = [tuple(each.moments(metric, arm, phases) for arm in (experiment.control, treatment)) for each in slices]
    to_arms = plain(metric)
    joined = join_small([(c, t) for c, t in moments])
    pairs = [to_arms(c, t) for c, t in joined.pairs]
    return with_margins(post_stratified(pairs, alpha=experiment.alpha), pairs, metric, None), joined.n_joined


def value_limits(metric: Metric) -> tuple[float, float] | None:
    """What a unit's value can be at least and at most, as far as the metric says so; None without limits.

    A capped sum is taken to be 0 or more.
    """
    if KINDS[metric.kind].unit_value == "any":
        return 0.0, 1.0
    return (0.0, metric.cap.at) if metric.cap is not None and metric.cap.at is not None else None


def whatever_is_missing(
    states: SliceStates, experiment: Experiment, metric: Metric, treatment: str, limits: tuple[float, float]
) -> Compared | None:
    """The comparison with missing values at the limits that are worst and best for the effect; None without missing.

    The interval reaches from the lower limit of the worst to the upper limit of the best; the effect is their middle,
    and the p-value the larger of both, 1 where they have not the same sign.

    References
    ----------
    Horowitz, J. L. and Manski, C. F. (2000). Nonparametric analysis of randomized experiments with missing covariate
    and outcome data. Journal of the American Statistical Association 95, 77-84.
    """
    phases, arms = experiment.comparable_phases(treatment), (experiment.control, treatment)
    known = [states.moments(metric, arm, phases) for arm in arms]
    missing = [
        states.count(mature_block(metric), arm, phases) - state.n for arm, state in zip(arms, known, strict=True)
    ]
    if not any(missing) or not all(state.n for state in known):
        return None
    low, high = limits
    worst, best = (_filled(known, missing, values, metric, experiment.alpha) for values in ((high, low), (low, high)))
    comparison = worst._replace(
        method="bounds of what is missing",
        effect=(worst.effect + best.effect) / 2,
        std_error=max(worst.std_error, best.std_error),
        mean_control=(worst.mean_control + best.mean_control) / 2,
        mean_treatment=(worst.mean_treatment + best.mean_treatment) / 2,
        df=nan,
        statistic=nan,
        pvalue=max(worst.pvalue, best.pvalue) if worst.effect * best.effect > 0 else 1.0,
        ci_low=worst.ci_low,
        ci_high=best.ci_high,
        rel_effect=nan,
        rel_ci_low=nan,
        rel_ci_high=nan,
    )
    return Compared(comparison, (), None, nan, (best.ci_high - worst.ci_low) / 2)


def _filled(
    known: Sequence[Moments], missing: Sequence[int], values: Sequence[float], metric: Metric, alpha: float
) -> Comparison:
    """The comparison of (control, treatment) with all missing units of an arm at one value."""
    whole = [state + _constant(state, n, value) for state, n, value in zip(known, missing, values, strict=True)]
    control, treatment = plain(metric)(*whole)
    return KINDS[metric.kind].compare(control=control, treatment=treatment, alpha=alpha)


def _constant(state: Moments, n: int, value: float) -> Moments:
    """n units that all have one value."""
    k = len(state.columns)
    return Moments(state.columns, n, np.full(k, value), np.zeros((k, k)))


def diluted(triggered: Compared, overall: Compared, share: float, alpha: float) -> Compared:
    """The effect on the triggered units, spread over all units, if the others have none; of one pair of arms each."""
    of, ([(control, treated)], [(own, _)]) = triggered.comparison, (overall.pairs, triggered.pairs)
    n = control.n + treated.n
    between = of.effect**2 * share * (1 - share) / n if n else nan
    comparison = contrast(
        method="triggered, diluted",
        control=control,
        treatment=treated._replace(mean=control.mean + share * of.effect, variance=nan),
        effect_variance=(share * of.std_error) ** 2 + between,
        df=inf if isnan(of.df) else of.df,
        alpha=alpha,
        covariance=-(share**2) * own.mean_variance,
    )
    return Compared(comparison, (), None, nan, (comparison.ci_high - comparison.ci_low) / 2)


def _from_margin(metric: Metric, pairs: Sequence[Pair], df: float | None) -> Comparison | None:
    if metric.margin is None:
        return None
    good = metric.direction == "increase"
    worse = [(metric.margin.limit(control, increase_is_good=good), treated) for control, treated in pairs]
    return post_stratified(worse, df=df)


def at_every_look(looks: Sequence[Compared], metric: Metric, experiment: Experiment, horizon: float) -> Compared:
    """What holds at all looks so far whenever one stops: the smallest p-value, the intervals' intersection.

    The looks are cumulative and in order of time. The margin is excluded by the one-sided test of the same kind.
    """
    alpha, now = experiment.alpha, looks[-1]
    counts = [is_readable(metric, each.comparison) for each in looks]
    held = confidence_sequence(
        [_look(each.comparison, counts=told) for each, told in zip(looks, counts, strict=True)],
        alpha=alpha,
        horizon=horizon,
    )[-1]
    rho = best_rho(alpha=alpha, horizon=horizon)
    half_widths = [always_valid(_look(each.comparison), alpha=alpha, rho=rho).half_width for each in looks]
    relative = [
        _relative(each, half_width) for each, half_width, told in zip(looks, half_widths, counts, strict=True) if told
    ]
    low = max((each.low for each in relative if not isnan(each.low)), default=nan)
    high = min((each.high for each in relative if not isnan(each.high)), default=nan)
    shown = [
        _sign(each.comparison.effect)
        for each, half_width, told in zip(looks, half_widths, counts, strict=True)
        if told and abs(each.comparison.effect) >= half_width
    ]
    comparison = _renamed(now, "always-valid", half_widths[-1])._replace(
        pvalue=held.pvalue,
        ci_low=held.ci_low,
        ci_high=held.ci_high,
        rel_ci_low=nan if held.is_empty or low > high else low,
        rel_ci_high=nan if held.is_empty or low > high else high,
    )
    return now._replace(
        comparison=comparison,
        non_inferiority=_excluded_at_a_look(looks, counts, metric, rho),
        half_width=half_widths[-1],
        equivalence=nan,
        sign=_agreed(shown, comparison.effect),
        shown_now=counts[-1] and abs(comparison.effect) >= half_widths[-1],
    )


def _excluded_at_a_look(looks: Sequence[Compared], counts: Sequence[bool], metric: Metric, rho: float) -> float:
    """The smallest one-sided p-value of looks that count, against a loss of the margin; nan without a margin."""
    good = 1 if metric.direction == "increase" else -1
    shifted = [look.from_margin for look in looks if look.from_margin is not None]
    if not shifted:
        return nan
    n = [each.n_control + each.n_treatment for each in shifted]
    evidence = one_sided_log_e_value([good * each.statistic for each in shifted], n, rho=rho)
    return float(always_valid_pvalue(np.where(counts, evidence, nan))[-1])


def _agreed(shown: Sequence[int], effect: float) -> int:
    """The sign that looks have shown and the last effect has too; 0 where there is no such one."""
    signs = {*shown, _sign(effect)}
    return signs.pop() if shown and len(signs) == 1 else 0


def _sign(effect: float) -> int:
    """1, -1, or 0 for an effect that is 0 or nan."""
    return (effect > 0) - (effect < 0)


def at_planned_looks(looks: Sequence[Compared], metric: Metric, experiment: Experiment, horizon: float) -> Compared:
    """The group-sequential test at planned looks so far, by O'Brien-Fleming spending up to `horizon` units."""
    now, alpha = looks[-1], experiment.alpha
    information = [(each.comparison.n_control + each.comparison.n_treatment) / horizon for each in looks]
    statistics = [
        normal_score(each.comparison.effect / each.comparison.std_error, each.comparison.df) for each in looks
    ]
    tests = group_sequential(statistics, information, alpha=alpha)
    bound = tests[-1].bound
    half_width = bound * now.comparison.std_error if bound < inf else nan
    comparison = _renamed(now, "group-sequential", half_width)
    good = 1 if metric.direction == "increase" else -1
    # Looks on the bad side of the margin exclude nothing.
    shifted = [each.from_margin for each in looks if each.from_margin is not None]
    of_margin = [max(0.0, good * normal_score(each.statistic, each.df)) for each in shifted]
    excluded = group_sequential_pvalue(of_margin, information) if of_margin else nan
    return now._replace(
        comparison=comparison._replace(
            statistic=statistics[-1], pvalue=group_sequential_pvalue(statistics, information)
        ),
        # Each side has half of what both spend; above a half p is not known, and said to be 1.
        non_inferiority=excluded / 2 if excluded < 1 else excluded,
        half_width=half_width,
        equivalence=nan,
        sign=_agreed(
            [_sign(each.statistic) for each in tests if abs(each.statistic) >= each.bound], comparison.effect
        ),
        shown_now=abs(tests[-1].statistic) >= bound,
    )


def untested(now: Compared) -> Compared:
    """The comparison at planned looks where there is none to make: the effect without a test or an interval."""
    comparison = _renamed(now, "group-sequential", nan)
    return Compared(comparison, now.pairs, None, nan, nan)


def is_readable(metric: Metric, compared: Comparison) -> bool:
    """Whether there are enough units, and of a share enough of both kinds, for the effect to be normal."""
    n = {"n_control": compared.n_control, "n_treatment": compared.n_treatment}
    if KINDS[metric.kind].unit_value != "any" or not all(n.values()):
        return counts_as_look(**n)
    events = compared.n_control * compared.mean_control + compared.n_treatment * compared.mean_treatment
    return counts_as_look(**n, share=min(1.0, max(0.0, events / sum(n.values()))))


def _look(compared: Comparison, *, counts: bool = True) -> Look:
    n = compared.n_control + compared.n_treatment
    return Look(compared.effect, compared.std_error, n, counts and compared.std_error > 0)


def _renamed(now: Compared, method: str, half_width: float) -> Comparison:
    """The last look's comparison under another method: its interval and that of the relative effect."""
    compared, relative = now.comparison, _relative(now, half_width)
    return compared._replace(
        method=method,
        df=nan,
        statistic=nan,
        pvalue=nan,
        ci_low=compared.effect - half_width,
        ci_high=compared.effect + half_width,
        rel_ci_low=relative.low,
        rel_ci_high=relative.high,
    )


def _relative(now: Compared, half_width: float) -> FiellerInterval:
    """Limits of the relative effect, of one pair of arms, as wide as the absolute interval of this half width.

    By CUPED the chance in the covariates' common mean is left out: of effects of 10 % about 1 % of the variance.
    """
    if len(now.pairs) != 1:
        return FiellerInterval(nan, nan, nan)
    compared = now.comparison
    return fieller(
        effect=compared.effect,
        effect_variance=compared.std_error**2,
        mean=compared.mean_control,
        mean_variance=now.pairs[0][0].mean_variance,
        critical=half_width / compared.std_error,
    )
