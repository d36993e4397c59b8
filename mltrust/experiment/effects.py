"""What an experiment's metrics say: effects by slice and method, their families and their verdicts."""

from collections.abc import Callable, Sequence
from datetime import date
from math import inf, isnan, nan
from typing import NamedTuple

from scipy import special

from mltrust.experiment.cells import UNITS, ExperimentStates, mature_block, rests_of
from mltrust.experiment.quantiles import overall_quantiles, slice_quantiles
from mltrust.experiment.readings import Reading, overall_readings, slice_readings
from mltrust.experiment.spec import Experiment
from mltrust.experiment.sufficiency import too_small
from mltrust.metrics import KINDS
from mltrust.slices import OVERALL
from mltrust.stats.bayes import FLAT, Normal, Posterior, beta_binomial, normal_normal
from mltrust.stats.heterogeneity import against_rest
from mltrust.stats.multiplicity import benjamini_hochberg, holm
from mltrust.stats.power import mde_beyond
from mltrust.verdicts import Verdict

#: The method of the plain comparison of two shares.
_PLAIN_SHARE = "proportion"


class Effect(NamedTuple):
    """A row of experiment_effects: one metric of one treatment in one slice, by one method.

    The method that the conf leads with has the metric's role; of any other the role is `diagnostic`. `mde` is the
    effect that would be found with the power that the conf's rules ask for, `variance_reduction` the share of the
    effect's variance that the method takes away. `against_rest` is the effect in a slice minus that in all others of
    its set. `chance_to_beat` and `expected_loss`, in the effect's unit, are those of taking the treatment, by the
    metric's prior. `equivalence_pvalue` is that of the two one-sided tests against the metric's equivalence margin.
    """

    treatment: str
    metric: str
    slice_key: str
    slice_value: str
    method: str
    role: str
    direction: str
    control: str
    n_control: int
    n_treatment: int
    n_immature: int
    n_missing: int
    mean_control: float
    mean_treatment: float
    effect: float
    std_error: float
    df: float
    statistic: float
    pvalue: float
    qvalue: float
    n_family: int
    ci_low: float
    ci_high: float
    rel_effect: float
    rel_ci_low: float
    rel_ci_high: float
    non_inferiority_pvalue: float
    alpha: float
    verdict: Verdict
    reason: str
    decides: bool
    mde: float = nan
    variance_reduction: float = nan
    against_rest: float = nan
    against_rest_pvalue: float = nan
    against_rest_qvalue: float = nan
    chance_to_beat: float = nan
    expected_loss: float = nan
    equivalence_pvalue: float = nan

    @property
    def overall(self) -> bool:
        return (self.slice_key, self.slice_value) == OVERALL


def effects(states: ExperimentStates, experiment: Experiment, as_of: date) -> list[Effect]:
    """All units by every method, the leading one first; then every slice by the leading fixed one."""
    rows = [
        row
        for readings in _overall_readings(states, experiment, as_of)
        for row in _overall_families(readings, experiment)
    ]
    if experiment.unit == "bucket_id":  # slices vary within a bucket
        return rows
    for sets in states.nested():
        slices = [each for those in sets for each in those]
        rests = [each for those in sets for each in rests_of(those)]
        for metric in experiment.unit_metrics:
            family = slice_readings(slices, experiment, metric)
            others = slice_readings(rests, experiment, metric)
            sizes = [len(those) for those in sets]
            rows += _beside_rests(_of_slices(family, experiment), family, others, sizes, experiment)
        for metric in experiment.quantiles:
            rows += _of_slices(
                slice_quantiles(states, experiment, metric, [each.slice for each in slices]), experiment
            )
    return rows


def _overall_readings(states: ExperimentStates, experiment: Experiment, as_of: date) -> list[list[Reading]]:
    """Readings of all units by method, the leading one first; quantiles have but one."""
    leading, *others = overall_readings(states, experiment, as_of).values()
    return [[*leading, *overall_quantiles(states, experiment)], *others]


def _of_slices(family: Sequence[Reading], experiment: Experiment) -> list[Effect]:
    """Slices that are too small for a verdict are no members of the family that is corrected."""
    pvalues = [
        nan if each.lacks or too_small(each.metric, each.comparison, experiment) else each.comparison.pvalue
        for each in family
    ]
    return _judged(family, benjamini_hochberg(pvalues), experiment)


def _beside_rests(
    rows: Sequence[Effect],
    own: Sequence[Reading],
    rests: Sequence[Reading],
    sizes: Sequence[int],
    experiment: Experiment,
) -> list[Effect]:
    """Effects of slices with how they differ from those of all other slices of their set; sets have these sizes.

    Of two slices only the first is tested, as the second says the same; none that is too small for a verdict, or has
    such a rest.
    """
    n_treatments = len(rows) // (sum(sizes) or 1)
    tested = [size > 1 and at < (size if size > 2 else 1) for size in sizes for at in range(size)]
    found = [
        against_rest(own=one.comparison, rest=rest.comparison)
        if told and not any(too_small(each.metric, each.comparison, experiment) for each in (one, rest))
        else None
        for one, rest, told in zip(own, rests, [each for each in tested for _ in range(n_treatments)], strict=True)
    ]
    qvalues = benjamini_hochberg([nan if each is None else each.pvalue for each in found])
    return [
        row
        if each is None
        else row._replace(against_rest=each.difference, against_rest_pvalue=each.pvalue, against_rest_qvalue=qvalue)
        for row, each, qvalue in zip(rows, found, qvalues, strict=True)
    ]


def _overall_families(overall: Sequence[Reading], experiment: Experiment) -> list[Effect]:
    """Holm over the treatments of each goal, none over guardrails, Benjamini-Hochberg within the other roles."""
    rows: dict[tuple[str, str], Effect] = {}
    families: dict[tuple[str, str], Callable[[Sequence[float]], Sequence[float]]] = {
        **{("goal", metric.name): holm for metric in experiment.metrics if metric.role == "goal"},
        **{("guardrail", metric.name): tuple for metric in experiment.metrics if metric.role == "guardrail"},
        ("secondary", ""): benjamini_hochberg,
        ("diagnostic", ""): benjamini_hochberg,
    }
    for (role, name), correct in families.items():
        family = [each for each in overall if each.metric.role == role and name in ("", each.metric.name)]
        for row in _judged(family, correct([each.comparison.pvalue for each in family]), experiment):
            rows[row.metric, row.treatment] = row
    return [rows[each.metric.name, each.treatment] for each in overall]


def _judged(family: Sequence[Reading], qvalues: Sequence[float], experiment: Experiment) -> list[Effect]:
    n_family = sum(not isnan(qvalue) for qvalue in qvalues)
    return [_effect(each, qvalue, n_family, experiment) for each, qvalue in zip(family, qvalues, strict=True)]


def _effect(reading: Reading, qvalue: float, n_family: int, experiment: Experiment) -> Effect:
    metric, states, compared = reading.metric, reading.states, reading.comparison
    pair = (experiment.control, reading.treatment)
    phases = experiment.comparable_phases(reading.treatment)
    units = sum(states.count(UNITS, arm, phases) for arm in pair)
    looked = reading.looked or states
    mature = sum(looked.count(mature_block(metric), arm, phases) for arm in pair)
    verdict, reason = _judge(reading, qvalue, experiment)
    overall = tuple(states.slice) == OVERALL
    posterior = _posterior(reading)
    return Effect(
        treatment=reading.treatment,
        metric=metric.name,
        slice_key=states.slice.slice_key,
        slice_value=states.slice.slice_value,
        role=reading.role,
        direction=metric.direction,
        control=experiment.control,
        n_immature=units - mature,
        n_missing=mature - compared.n_control - compared.n_treatment,
        qvalue=qvalue,
        n_family=n_family,
        non_inferiority_pvalue=reading.compared.non_inferiority,
        alpha=experiment.alpha,
        verdict=verdict,
        reason="; ".join(filter(None, (reason, _did_not_help(reading, experiment), reading.note))),
        decides=overall and experiment.decides(metric) and reading.leads,
        mde=_mde(reading, experiment, n_family if reading.role == "goal" and overall else 1),
        variance_reduction=reading.variance_reduction,
        chance_to_beat=posterior.chance_to_beat,
        expected_loss=posterior.loss_treatment,
        equivalence_pvalue=reading.compared.equivalence,
        **compared._asdict(),
    )


def _mde(reading: Reading, experiment: Experiment, n_tests: int = 1) -> float:
    """The effect that would be found, at the level that Holm leaves the smallest of so many p-values."""
    levels = (experiment.alpha / max(1, n_tests), experiment.alpha)
    corrected, plain = (-float(special.ndtri(level / 2)) for level in levels)
    half_width = reading.compared.half_width * corrected / plain
    return mde_beyond(half_width=half_width, std_error=reading.comparison.std_error, power=experiment.rules.power)


def _did_not_help(reading: Reading, experiment: Experiment) -> str:
    """Says where a method takes away no more of the variance than covariates of pure chance would."""
    if isnan(reading.variance_reduction):
        return ""
    by_past = reading.comparison.method.startswith("cuped")
    n = reading.comparison.n_control + reading.comparison.n_treatment
    rank = len(experiment.past_columns(reading.metric)) + 1 if by_past else 0
    # Of n units, rank covariates of pure chance explain a share of chi-square(rank) / n.
    by_chance = float(special.chdtri(rank, 0.05)) / n if rank and n else 0.0
    if reading.variance_reduction > by_chance:
        return ""
    return "the units' past explains no more than chance would" if by_past else "it takes no variance away"


def _posterior(reading: Reading) -> Posterior:
    """What the comparison says of the effect, given the prior of the metric.

    Without one it is flat on the effect, or, of a plain share of units, Jeffreys' on the share of either arm.
    """
    metric, compared = reading.metric, reading.comparison
    if metric.prior_sd is None and compared.method == _PLAIN_SHARE and min(compared.n_control, compared.n_treatment):
        [(control, treatment)] = reading.compared.pairs
        return beta_binomial(control=control, treatment=treatment, increase_is_good=metric.direction == "increase")
    sd = inf if metric.prior_sd is None else metric.prior_sd.size(compared.mean_control)
    known = sd > 0  # not a share of a control mean of 0, or of none
    return normal_normal(
        effect=compared.effect,
        std_error=compared.std_error if known else nan,
        increase_is_good=metric.direction == "increase",
        prior=Normal(0.0, sd) if known else FLAT,
    )


def _could_show(reading: Reading, experiment: Experiment) -> str:
    """What a slice could have shown, in words."""
    smallest = _mde(reading, experiment)
    return "" if isnan(smallest) else f"; it could have shown an effect of {smallest:.4g}"


def _judge(reading: Reading, qvalue: float, experiment: Experiment) -> tuple[Verdict, str]:
    """The verdict of one effect: pass where the wanted claim is shown, breach where harm is, else inconclusive."""
    metric, compared, alpha = reading.metric, reading.comparison, experiment.alpha
    if metric.role == "guardrail" and compared.effect == 0 and not compared.std_error > 0:
        return _of_one_value(reading, alpha)
    if lacks := reading.lacks or too_small(metric, compared, experiment):
        return Verdict.INCONCLUSIVE, lacks + _could_show(reading, experiment)
    if isnan(qvalue):
        return Verdict.INCONCLUSIVE, "no test: nothing varies, or too few units"
    better = (compared.effect > 0) == (metric.direction == "increase")
    shown = qvalue <= alpha
    contradicted = shown and reading.compared.sign == 0
    if metric.role == "guardrail":
        # Harm that the last look shows by itself is none to wait for, whatever was before.
        harm = shown and not better and (reading.compared.shown_now or not contradicted)
        return _of_guardrail(reading, qvalue, alpha, harm=harm)
    if contradicted:
        return Verdict.INCONCLUSIVE, f"shown at an earlier look (q = {qvalue:.2g}), and the latest one says otherwise"
    if not shown:
        return Verdict.INCONCLUSIVE, f"no effect shown (q = {qvalue:.2g})"
    word = "better" if better else "worse"
    return (
        Verdict.PASS if better else Verdict.BREACH,
        f"{word} by {abs(compared.effect):.4g} (q = {qvalue:.2g})",
    )


def _of_guardrail(reading: Reading, qvalue: float, alpha: float, *, harm: bool) -> tuple[Verdict, str]:
    """Pass where a loss of the margin is excluded and the last estimate is within it; breach where harm is shown."""
    excluded, margin = reading.compared.non_inferiority, reading.compared.from_margin
    loss = margin.effect if margin is not None else nan
    beyond = not (loss > 0 if reading.metric.direction == "increase" else loss < 0)
    if excluded <= alpha and not beyond:
        return Verdict.PASS, f"a loss of the margin is excluded (p = {excluded:.2g})"
    if harm:
        return Verdict.BREACH, f"worse by {abs(reading.comparison.effect):.4g} (q = {qvalue:.2g})"
    if excluded <= alpha:
        words = f"a loss of the margin was excluded at an earlier look (p = {excluded:.2g})"
        return Verdict.INCONCLUSIVE, f"{words}, and the latest one is beyond it"
    if isnan(excluded):
        return Verdict.INCONCLUSIVE, "no test of the margin"
    return Verdict.INCONCLUSIVE, f"a loss of the margin is not excluded (p = {excluded:.2g})"


def _of_one_value(reading: Reading, alpha: float) -> tuple[Verdict, str]:
    """The verdict of a guardrail of which all units of both arms have the same value.

    Of an event that no treated unit had, a share of the margin or more is excluded where (1 - margin)^n <= alpha.
    """
    compared, margin = reading.comparison, reading.metric.margin
    never = f"every unit of both arms has the same value, {compared.mean_control:.4g}"
    if KINDS[reading.metric.kind].unit_value != "any" or margin is None or margin.absolute is None:
        words = "only a proportion with an absolute margin can pass so"
        return Verdict.INCONCLUSIVE, f"{never}, so there is nothing to compare; {words}"
    excluded = max(0.0, 1 - margin.absolute) ** compared.n_treatment
    if excluded <= alpha:
        return Verdict.PASS, f"{never}; a loss of the margin is excluded (p = {excluded:.2g})"
    return Verdict.INCONCLUSIVE, f"{never}; a loss of the margin is not excluded (p = {excluded:.2g})"
