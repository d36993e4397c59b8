"""How long an experiment has to run: what it would find after each number of weeks, if its units are as before."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from math import ceil, inf, isnan, nan
from typing import Literal, NamedTuple

from mltrust.experiment.cells import ExperimentStates, SliceStates, metric_block
from mltrust.experiment.looks import rising
from mltrust.experiment.methods import Compared, fixed, is_readable
from mltrust.experiment.spec import Experiment, Inference
from mltrust.experiment.sufficiency import too_small
from mltrust.experiment.trial import Arrivals, Trial, arrivals, expected
from mltrust.metrics import Metric
from mltrust.slices import OVERALL, Slice
from mltrust.stats.power import Sides, critical_width, mde_beyond, power_beyond
from mltrust.stats.sequential import Look, always_valid, best_rho, spending_bounds
from mltrust.verdicts import Verdict

Claim = Literal["effect", "non-inferiority"]


class Prospect(NamedTuple):
    """A row of experiment_plans: a metric of a treatment in a slice, read by one method after some weeks.

    `mde` is the effect that would be found with the power that the conf's rules ask for, of a guardrail the margin
    that a treatment without an effect would be shown to keep; `target` is what the conf asks for, `power` the chance
    to find it, and `n_needed` how many units in all arms would find it with the asked power. `alpha` is what one
    test has where `n_family` are corrected together. `is_extrapolated`: more weeks than the trial had.
    """

    treatment: str
    metric: str
    slice_key: str
    slice_value: str
    method: str
    weeks: int
    role: str
    claim: Claim
    is_extrapolated: bool
    n_control: int
    n_treatment: int
    n_units: int
    mean_control: float
    std_error: float
    half_width: float
    mde: float
    rel_mde: float
    target: float
    power: float
    n_needed: float
    variance_reduction: float
    alpha: float
    n_family: int
    leads: bool
    decides: bool
    verdict: Verdict
    reason: str

    @property
    def overall(self) -> bool:
        return (self.slice_key, self.slice_value) == OVERALL


class Planned(NamedTuple):
    """The fewest weeks after which all that decides is found, None without any, and all rows behind it."""

    verdict: Verdict
    weeks: int | None
    reasons: tuple[str, ...]
    prospects: tuple[Prospect, ...]
    arrivals: Arrivals


def plan(states: ExperimentStates, experiment: Experiment, trial: Trial) -> Planned:
    """Plans an experiment from the states of its trial."""
    overall = arrivals(states.overall, trial)
    rows = [
        row
        for level in states.levels()
        for each in level
        for row in _of_slice(each, experiment, trial, arrivals(each, trial, overall.decline), overall, len(level))
    ]
    weeks, reasons = _fewest_weeks(rows)
    verdict = Verdict.INCONCLUSIVE if weeks is None else Verdict.PASS
    return Planned(verdict, weeks, (*reasons, *_not_planned(experiment)), tuple(rows), overall)


def _not_planned(experiment: Experiment) -> Iterator[str]:
    """What of the conf a plan does not follow."""
    if experiment.sample is not None:
        yield f"the readout is to read a sample of {experiment.sample.rate:.3g} of the units; this is planned for all"


def _fewest_weeks(rows: Sequence[Prospect]) -> tuple[int | None, list[str]]:
    deciding = [row for row in rows if row.decides]
    durations = sorted({row.weeks for row in deciding})
    for weeks in durations:
        own = [row for row in deciding if row.weeks == weeks]
        if all(row.verdict is Verdict.PASS for row in own):
            return weeks, [_says(row) for row in own]
    last = [row for row in deciding if row.weeks == durations[-1]] if durations else []
    return None, [_says(row) for row in sorted(last, key=lambda row: row.verdict is Verdict.PASS)]


def _says(row: Prospect) -> str:
    return f"{row.metric} ({row.treatment}): {row.reason}"


def _of_slice(
    states: SliceStates, experiment: Experiment, trial: Trial, coming: Arrivals, overall: Arrivals, n_in_level: int
) -> Iterator[Prospect]:
    durations = range(trial.maturing + 1, experiment.plan.max_weeks + 1)
    share = sum(coming.observed) / sum(overall.observed) if sum(overall.observed) else nan
    for metric in experiment.unit_metrics:
        n_family = _family(metric, experiment, states.slice, n_in_level)
        own = replace(experiment, alpha=experiment.alpha / n_family)
        each = {weeks: expected(states, own, trial, metric, coming, weeks) for weeks in durations}
        for treatment in experiment.treatments:
            yield from _by_every_method(_Design(own, metric, treatment, states.slice, n_family, share, trial), each)


def _family(metric: Metric, experiment: Experiment, of: Slice, n_in_level: int) -> int:
    """With how many others a test is corrected in the readout: at worst it has that share of alpha."""
    if metric.role == "guardrail":
        return 1
    if of != OVERALL:
        return n_in_level * len(experiment.treatments)
    if metric.role == "goal":
        return len(experiment.treatments)
    return sum(other.role == metric.role for other in experiment.unit_metrics) * len(experiment.treatments)


class _Design(NamedTuple):
    """What is compared in which slice; `share` is the slice's of all units, alpha that of one of `n_family` tests."""

    experiment: Experiment
    metric: Metric
    treatment: str
    slice: Slice
    n_family: int
    share: float
    trial: Trial

    @property
    def claim(self) -> Claim:
        return "non-inferiority" if self.metric.role == "guardrail" else "effect"


def _by_every_method(design: _Design, states: Mapping[int, SliceStates]) -> Iterator[Prospect]:
    experiment, metric, trial = design.experiment, design.metric, design.trial
    plain: dict[int, Compared] = {}
    for by_past in (False, True) if experiment.pre_days is not None else (False,):
        n_looks: list[int] = []
        for weeks, each in states.items():
            measured = trial.measured(metric, weeks)
            found = fixed(each, experiment, measured, design.treatment, by_past=by_past)
            plain.setdefault(weeks, found)
            n_looks.append(found.comparison.n_control + found.comparison.n_treatment)
            n_units = sum(each.count(metric_block(measured), arm) for arm in experiment.arms)
            horizon = n_units if experiment.horizon is None else experiment.horizon * design.share
            horizon *= experiment.share_of_arms(design.treatment)
            for inference in _INFERENCES if metric.window_days else _ONCE:
                test = _Test(design, inference, by_past, found, plain[weeks], tuple(n_looks), horizon, n_units, weeks)
                yield _prospect(test)


class _Test(NamedTuple):
    """A design as it is read by one method after some weeks, without an effect."""

    design: _Design
    inference: Inference
    by_past: bool
    compared: Compared
    plain: Compared
    n_looks: tuple[int, ...]
    horizon: float
    n_units: int
    weeks: int

    @property
    def std_error(self) -> float:
        """Of the effect, of a guardrail that of its distance to the margin."""
        shifted = self.compared.from_margin if self.design.claim == "non-inferiority" else None
        return (self.compared.comparison if shifted is None else shifted).std_error

    @property
    def leads(self) -> bool:
        """Whether the conf reads the metric by this method: slices, and values that still grow, once only."""
        experiment, metric = self.design.experiment, self.design.metric
        once = self.design.slice != OVERALL or metric.window_days is None
        inference = "fixed" if once else experiment.inference
        return (self.inference, self.by_past) == (inference, experiment.pre_days is not None)

    @property
    def decides(self) -> bool:
        experiment, metric = self.design.experiment, self.design.metric
        decisive = metric.role in ("goal", "guardrail")
        if experiment.decision_set is not None:
            decisive = metric.name in experiment.decision_set
        return self.leads and decisive and self.design.slice == OVERALL


def _fixed_width(test: _Test) -> float:
    sides: Sides = 1 if test.design.claim == "non-inferiority" else 2
    return critical_width(std_error=test.std_error, alpha=test.design.experiment.alpha, sides=sides)


def _always_valid_width(test: _Test) -> float:
    n = test.n_looks[-1]
    if not (n and test.horizon > 0 and test.std_error > 0):
        return nan
    # As the readout has it: rho of alpha on both sides, whatever the claim.
    rho = best_rho(alpha=test.design.experiment.alpha, horizon=test.horizon)
    return always_valid(Look(0.0, test.std_error, n), alpha=_alpha_of_both_sides(test), rho=rho).half_width


def _group_sequential_width(test: _Test) -> float:
    """At the last of weekly looks; one that adds next to nothing is no look."""
    if not test.horizon > 0:
        return nan
    shares = [n / test.horizon for n in test.n_looks]
    looks = tuple(shares[at] for at in rising(shares))
    bound = _last_bound(looks, _alpha_of_both_sides(test)) if looks else inf
    return bound * test.std_error if bound < inf else nan


def _alpha_of_both_sides(test: _Test) -> float:
    """What a test at several looks, which is of both sides, has: a guardrail asks about one of them."""
    alpha = test.design.experiment.alpha
    return 2 * alpha if test.design.claim == "non-inferiority" else alpha


_ONCE: tuple[Inference, ...] = ("fixed",)
_WIDTHS: Mapping[Inference, Callable[[_Test], float]] = {
    "fixed": _fixed_width,
    "always_valid": _always_valid_width,
    "group_sequential": _group_sequential_width,
}
_INFERENCES = tuple(_WIDTHS)


@lru_cache(maxsize=4096)  # Metrics and adjustments share their looks, and a bound takes up to 14 ms.
def _last_bound(information: tuple[float, ...], alpha: float) -> float:
    return spending_bounds(information, alpha=alpha)[-1]


def _prospect(test: _Test) -> Prospect:
    design, compared = test.design, test.compared.comparison
    metric, asked_power = design.metric, design.experiment.rules.power
    half_width, std_error, mean = _WIDTHS[test.inference](test), test.std_error, compared.mean_control
    mde = mde_beyond(half_width=half_width, std_error=std_error, power=asked_power)
    asked = metric.margin if design.claim == "non-inferiority" else metric.smallest_effect
    target = nan if asked is None else asked.size(mean) or nan
    n_needed = test.n_units * (mde / target) ** 2
    verdict, reason = _judge(test, mde, target, n_needed)
    return Prospect(
        treatment=design.treatment,
        metric=metric.name,
        slice_key=design.slice.slice_key,
        slice_value=design.slice.slice_value,
        method=test.inference.replace("_", "-") + (", cuped" if test.by_past else ""),
        weeks=test.weeks,
        role=metric.role,
        claim=design.claim,
        is_extrapolated=test.weeks > design.trial.weeks,
        n_control=compared.n_control,
        n_treatment=compared.n_treatment,
        n_units=test.n_units,
        mean_control=mean,
        std_error=std_error,
        half_width=half_width,
        mde=mde,
        rel_mde=mde / abs(mean) if mean else nan,
        target=target,
        power=power_beyond(target, half_width=half_width, std_error=std_error),
        n_needed=float(ceil(n_needed)) if n_needed < inf else nan,
        variance_reduction=1 - (compared.std_error / test.plain.comparison.std_error) ** 2 if test.by_past else nan,
        alpha=design.experiment.alpha,
        n_family=design.n_family,
        leads=test.leads,
        decides=test.decides,
        verdict=verdict,
        reason=reason,
    )


def _judge(test: _Test, mde: float, target: float, n_needed: float) -> tuple[Verdict, str]:
    """Pass where what the conf asks for is found with the power that it asks for, else inconclusive."""
    metric, compared = test.design.metric, test.compared.comparison
    if words := too_small(metric, compared, test.design.experiment):
        return Verdict.INCONCLUSIVE, words
    if test.inference != "fixed" and not is_readable(metric, compared):
        return Verdict.INCONCLUSIVE, "too few units or events for a sequential test"
    if isnan(mde):
        return Verdict.INCONCLUSIVE, "no test: nothing varies"
    found, mean = "a loss of" if test.design.claim == "non-inferiority" else "an effect of", compared.mean_control
    size = f"{found} {_amount(mde, mean)}"
    if isnan(target):
        return Verdict.INCONCLUSIVE, f"{size} would do; the conf says no smallest_effect that is worth finding"
    told = "is excluded" if test.design.claim == "non-inferiority" else "is found"
    if mde <= target:
        return Verdict.PASS, f"{size} {told}, asked {_amount(target, mean)}: {ceil(n_needed):,} units needed"
    return (
        Verdict.INCONCLUSIVE,
        f"only {size} {told}, asked {_amount(target, mean)}: "
        f"{ceil(n_needed):,} units needed, {test.n_units:,} expected",
    )


def _amount(size: float, mean: float) -> str:
    return f"{size:.3g}" + (f" ({size / abs(mean):.2%})" if mean else "")
