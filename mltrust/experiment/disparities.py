"""Do predictions serve every slice alike? Measures by arm and slice, the worst gap, and what the treatment changes.

The observation is the unit: a mature one with a scored prediction in the window. Standard errors come from leaving
out a hash bucket of units at a time.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan, sqrt
from typing import NamedTuple

import numpy as np
from scipy import special

from mltrust.experiment.cells import ExperimentStates
from mltrust.experiment.check import Check
from mltrust.experiment.fairness import MEASURES, Fairness, Measure, total
from mltrust.experiment.spec import Experiment
from mltrust.slices import Slice
from mltrust.states.replicates import UNITS, Replicates
from mltrust.stats.bootstrap import jackknife_covariance, resampled
from mltrust.stats.gaps import Gap, gap_difference, worst_gap
from mltrust.stats.means import Arm, Comparison, contrast
from mltrust.stats.multiplicity import benjamini_hochberg
from mltrust.verdicts import Verdict

#: The name of the checks.
FAIRNESS = "fairness"
#: The values under which rows over all slices of an attribute stand.
GAP, GAP_DIFFERENCE = "(gap)", "(gap difference)"


class Disparity(NamedTuple):
    """A row of experiment_fairness: one measure of one arm in one slice, or over the slices of an attribute.

    Of a slice `value` is the measure and `difference` that from all other slices of the attribute together. Under
    `(gap)` the value is the largest measure minus the smallest, under `(gap difference)` the treatment's gap minus
    the control's. `n_predictions` counts what the measure is divided by.
    """

    variant: str
    predictions: str
    measure: str
    slice_key: str
    slice_value: str
    n_units: int
    n_predictions: int
    value: float
    verdict: Verdict
    reason: str
    std_error: float = nan
    df: float = nan
    ci_low: float = nan
    ci_high: float = nan
    difference: float = nan
    difference_ci_low: float = nan
    difference_ci_high: float = nan
    pvalue: float = nan
    qvalue: float = nan
    n_family: int = 0
    threshold: float = nan


class _Estimate(NamedTuple):
    """A measure of the units of an arm in a slice; `too_few` says why it cannot be compared, if so."""

    where: Slice
    n_units: int
    n_predictions: int
    value: float
    variance: float
    too_few: str

    def arm(self) -> Arm:
        return Arm(self.n_units, self.value, self.n_units * self.variance)


_States = Mapping[Slice, Replicates]


def disparities(states: ExperimentStates, experiment: Experiment) -> list[Disparity]:
    """Every measure by attribute: its slices in every arm, then the gap of every arm, then what treatments change."""
    if experiment.fairness is None:
        return []
    return [
        row
        for attribute in experiment.fairness.attributes
        for measure in MEASURES
        for row in _Reading(states, experiment, experiment.fairness, attribute, measure).rows()
    ]


def fairness_checks(rows: Sequence[Disparity], experiment: Experiment) -> list[Check]:
    """A check per limited gap of a treatment. The control's gaps are reported: they are there already."""
    return [
        Check(
            check=FAIRNESS,
            method="jackknife",
            n_units=row.n_units,
            threshold=row.threshold,
            verdict=row.verdict,
            reason=row.reason,
            decides=True,
            treatment=row.variant,
            metric=f"{row.predictions}_{row.measure}",
            slice_key=row.slice_key,
            slice_value=row.slice_value,
            value=row.value,
        )
        for row in rows
        if row.slice_value == GAP and row.variant in experiment.treatments and not isnan(row.threshold)
    ]


@dataclass(frozen=True, slots=True)
class _Reading:
    """One measure over the slices of one attribute."""

    states: ExperimentStates
    experiment: Experiment
    spec: Fairness
    attribute: str
    name: str

    @property
    def measure(self) -> Measure:
        return MEASURES[self.name]

    @property
    def limit(self) -> float:
        return self.spec.max_gap.get(self.name, nan)

    def rows(self) -> list[Disparity]:
        arms = {arm: self._states(arm) for arm in self.experiment.arms}
        found = {arm: self._estimates(states) for arm, states in arms.items()}
        slices = [
            (arm, each, self._against_rest(each, arms[arm])) for arm, estimates in found.items() for each in estimates
        ]
        qvalues = benjamini_hochberg([compared.pvalue for _, _, compared in slices])
        n_family = sum(not isnan(qvalue) for qvalue in qvalues)
        return [
            *(self._of_slice(*each, qvalue, n_family) for each, qvalue in zip(slices, qvalues, strict=True)),
            *(self._of_gap(arm, estimates) for arm, estimates in found.items()),
            *(self._of_difference(treatment) for treatment in self.experiment.treatments),
        ]

    def _states(self, arm: str, phases: Collection[int] | None = None) -> _States:
        """The units of an arm by slice, of some phases or of all; slices of other arms are there with none."""
        found = {}
        for where, by_phase in self.states.fairness.items():
            if where.slice_key == self.attribute:
                own = [each for at, each in by_phase.items() if at[0] == arm and (phases is None or at[1] in phases)]
                found[where] = sum(own, _nobody(next(iter(by_phase.values()))))
        return found

    def _estimates(self, states: _States) -> list[_Estimate]:
        return [self._estimate(where, state) for where, state in states.items()]

    def _estimate(self, where: Slice, state: Replicates) -> _Estimate:
        found = resampled(state, lambda sums: total(sums, self.measure.numerator) / self._denominator(sums))
        variance = float(jackknife_covariance(found.replicates[:, np.newaxis])[0, 0])
        n = int(self._denominator(state)[0])
        if variance == 0 and self.measure.rate:
            variance = _binomial_variance(found.value, min(n, state.n))
        return _Estimate(where, state.n, n, found.value, variance, self._too_few(state.n, n, variance))

    def _denominator(self, state: Replicates) -> np.ndarray:
        return total(state, self.measure.denominator)

    def _too_few(self, n_units: int, n: int, variance: float) -> str:
        if n_units < self.spec.min_units:
            return f"{n_units} units, at least {self.spec.min_units} needed"
        if n < self.spec.min_events:
            return f"{n} {self.measure.of}, at least {self.spec.min_events} needed"
        return "" if variance > 0 else f"its {self.measure.of} are of too few units, or nothing varies"

    def _against_rest(self, own: _Estimate, states: _States) -> Comparison:
        """The slice against all others of the attribute; their units are others, and so independent of its own."""
        others = [state for where, state in states.items() if where != own.where]
        rest = self._estimate(own.where, sum(others[1:], others[0])) if others else own
        undefined = bool(own.too_few or rest.too_few) or not others
        return contrast(
            method="jackknife",
            control=rest.arm(),
            treatment=own.arm(),
            effect_variance=nan if undefined else own.variance + rest.variance,
            df=_df(states),
            alpha=self.experiment.alpha,
        )

    def _of_slice(self, arm: str, own: _Estimate, rest: Comparison, qvalue: float, n_family: int) -> Disparity:
        df = rest.df
        half_width = -float(special.stdtrit(df, self.experiment.alpha / 2)) * sqrt(own.variance)
        low, high = max(0.0, rest.ci_low, -rest.ci_high), max(-rest.ci_low, rest.ci_high)
        verdict, words = self._judge(low, high)
        reason = own.too_few or "nothing to compare with"
        if not isnan(rest.ci_low):
            between = f"[{rest.ci_low:+.3g}, {rest.ci_high:+.3g}]"
            reason = f"{rest.effect:+.3g} {between} beside the other slices (q = {qvalue:.2g}){words}"
        return Disparity(
            *self._named(arm, own.where.slice_value),
            n_units=own.n_units,
            n_predictions=own.n_predictions,
            value=own.value,
            verdict=verdict,
            reason=reason,
            std_error=sqrt(own.variance),
            df=df,
            ci_low=own.value - half_width,
            ci_high=own.value + half_width,
            difference=rest.effect,
            difference_ci_low=rest.ci_low,
            difference_ci_high=rest.ci_high,
            pvalue=rest.pvalue,
            qvalue=qvalue,
            n_family=n_family,
            threshold=self.limit,
        )

    def _of_gap(self, arm: str, estimates: Sequence[_Estimate]) -> Disparity:
        enough = [each for each in estimates if not each.too_few]
        gap = self._gap(enough)
        verdict, words = self._judge(gap.ci_low, gap.ci_high)
        reason = f"{len(enough)} of {len(estimates)} slices are large enough; a gap needs two"
        if not isnan(gap.value):
            high, low = enough[gap.highest], enough[gap.lowest]
            reason = (
                f"{high.where.slice_value} {high.value:.3g}, {low.where.slice_value} {low.value:.3g}: "
                f"a gap of {gap.value:.3g} [{gap.ci_low:.3g}, {gap.ci_high:.3g}]{words}"
            )
            if small := len(estimates) - len(enough):
                reason += f"; {small} slices with too few are not in it"
        return Disparity(
            *self._named(arm, GAP),
            n_units=sum(each.n_units for each in enough),
            n_predictions=sum(each.n_predictions for each in enough),
            value=gap.value,
            verdict=verdict,
            reason=reason,
            df=nan if isnan(gap.value) else self._gap_df(),
            ci_low=gap.ci_low,
            ci_high=gap.ci_high,
            threshold=self.limit,
        )

    def _of_difference(self, treatment: str) -> Disparity:
        """The gaps of both arms over the slices that are large enough in both, in phases that can be compared."""
        phases = self.experiment.comparable_phases(treatment)
        treated = self._states(treatment, phases)
        control = self._states(self.experiment.control, phases)
        if self.experiment.ratio_changes(treatment):
            control = self._as_exposed(treatment, phases)
        pairs = [
            pair
            for pair in zip(self._estimates(control), self._estimates(treated), strict=True)
            if not any(each.too_few for each in pair)
        ]
        gaps = [self._gap([pair[arm] for pair in pairs]) for arm in (0, 1)]
        value, low, high = gap_difference(control=gaps[0], treatment=gaps[1])
        reason = f"{len(pairs)} slices are large enough in both arms; a gap needs two"
        if not isnan(value):
            words = "wider" if low > 0 else "narrower" if high < 0 else "neither shown wider nor narrower"
            reason = (
                f"a gap of {gaps[1].value:.3g} with {self.experiment.control} at {gaps[0].value:.3g}: "
                f"{value:+.3g} [{low:+.3g}, {high:+.3g}], {words}"
            )
        return Disparity(
            *self._named(treatment, GAP_DIFFERENCE),
            n_units=sum(each.n_units for pair in pairs for each in pair),
            n_predictions=sum(each.n_predictions for pair in pairs for each in pair),
            value=value,
            verdict=Verdict.INCONCLUSIVE,
            reason=reason,
            df=nan if isnan(value) else self._gap_df(),
            ci_low=low,
            ci_high=high,
        )

    def _as_exposed(self, treatment: str, phases: Collection[int]) -> _States:
        """The control's units by slice, weighted so that each phase counts as it does in the treatment."""
        weighted = []
        for phase in phases:
            arms = [self._states(arm, (phase,)) for arm in (self.experiment.control, treatment)]
            n_control, n_treated = (sum(state.column(UNITS) for state in each.values()) for each in arms)
            with np.errstate(divide="ignore", invalid="ignore"):
                factor = np.where(n_control > 0, n_treated / n_control, 0.0)
            weighted.append({where: _scaled(state, factor) for where, state in arms[0].items()})
        return {where: sum((each[where] for each in weighted[1:]), weighted[0][where]) for where in weighted[0]}

    def _gap(self, estimates: Sequence[_Estimate]) -> Gap:
        values, variances = [each.value for each in estimates], [each.variance for each in estimates]
        return worst_gap(values, variances, df=self._gap_df(), alpha=self.experiment.alpha)

    def _gap_df(self) -> float:
        return _df(self._states(self.experiment.control))

    def _judge(self, low: float, high: float) -> tuple[Verdict, str]:
        """Whether what lies between two limits is shown to be above or below the limit of the conf."""
        if isnan(self.limit):
            return Verdict.INCONCLUSIVE, "; no limit is given"
        if isnan(low) or isnan(high):
            return Verdict.INCONCLUSIVE, ""
        if low > self.limit:
            return Verdict.BREACH, f", above the limit of {self.limit:g}"
        if high < self.limit:
            return Verdict.PASS, f", below the limit of {self.limit:g}"
        return Verdict.INCONCLUSIVE, f", not shown to be above or below the limit of {self.limit:g}"

    def _named(self, arm: str, slice_value: str) -> tuple[str, str, str, str, str]:
        return arm, self.spec.predictions, self.name, self.attribute, slice_value


def _df(states: _States) -> float:
    """Degrees of freedom of a variance from groups of units."""
    return next((state.n_replicates - 1.0 for state in states.values()), nan)


def _nobody(like: Replicates) -> Replicates:
    return Replicates.empty(like.columns[1:], like.n_replicates)


def _scaled(state: Replicates, factor: np.ndarray) -> Replicates:
    """The state with the units of each replicate weighted by a factor of their own, (1 + B,)."""
    return Replicates(state.columns, state.n, state.sums * factor[:, np.newaxis])


def _binomial_variance(rate: float, n: int) -> float:
    """The variance of a rate of which no unit differs, 0 or 1: that of n units with two more of each kind.

    References
    ----------
    Agresti, A. and Coull, B. A. (1998). Approximate is better than "exact" for interval estimation of binomial
    proportions. The American Statistician 52, 119-126.
    """
    share = (rate * n + 2) / (n + 4)
    return share * (1 - share) / (n + 4)
