"""The slice that loses most among crossings of attributes: found on half of the units, confirmed on the others."""

from collections.abc import Iterator, Mapping
from math import inf, isnan
from typing import NamedTuple

from mltrust.experiment.cells import ExperimentStates, SliceStates
from mltrust.experiment.check import Check
from mltrust.experiment.methods import compared
from mltrust.experiment.spec import Experiment, Search
from mltrust.experiment.sufficiency import too_small
from mltrust.metrics import Metric
from mltrust.slices import Slice
from mltrust.stats.heterogeneity import shrunken
from mltrust.stats.means import Comparison, one_sided_pvalue
from mltrust.stats.multiplicity import benjamini_hochberg
from mltrust.verdicts import Verdict

#: How many slices per metric and treatment the second half is asked about.
_CONFIRMED = 3


class _Found(NamedTuple):
    """A slice that loses on the first half, and what the second half says of it."""

    metric: Metric
    treatment: str
    slice: Slice
    first: Comparison
    shrunken: float
    second: Comparison

    @property
    def pvalue(self) -> float:
        """Of the second half, that the slice does not lose."""
        # The law of shares is normal, which a comparison says by df of nan.
        second = self.second._replace(df=inf) if isnan(self.second.df) else self.second
        return one_sided_pvalue(second, increase=self.metric.direction == "decrease")


def worst_slices(states: ExperimentStates, experiment: Experiment) -> list[Check]:
    """The worst slices of every metric that decides; a warning, as the slices were not declared beforehand."""
    if experiment.search is None:
        return []
    found = [
        each
        for metric in experiment.unit_metrics
        for treatment in experiment.treatments
        if experiment.decides(metric)
        for each in _search(*states.halves, experiment, experiment.search, metric, treatment)
    ]
    qvalues = benjamini_hochberg([each.pvalue for each in found])
    return [_row(each, qvalue, len(found), experiment) for each, qvalue in zip(found, qvalues, strict=True)]


def _search(
    first: Mapping[Slice, SliceStates],
    second: Mapping[Slice, SliceStates],
    experiment: Experiment,
    search: Search,
    metric: Metric,
    treatment: str,
) -> Iterator[_Found]:
    """The slices whose loss is the largest for its standard error, the worst first."""
    known = {
        where: comparison
        for where, states in first.items()
        for comparison in [compared(states, experiment, metric, treatment)]
        if _is_large(comparison, metric, experiment, search)
        if _is_large(compared(_at(second, where), experiment, metric, treatment), metric, experiment, search)
    }
    sign = 1 if metric.direction == "increase" else -1
    ascending = sorted(known, key=lambda where: sign * known[where].statistic)
    for where in [each for each in ascending if sign * known[each].effect < 0][:_CONFIRMED]:
        siblings = [known[each] for each in known if each.slice_key == where.slice_key]
        confirmed = compared(_at(second, where), experiment, metric, treatment)
        yield _Found(metric, treatment, where, known[where], shrunken(known[where], siblings), confirmed)


def _is_large(comparison: Comparison, metric: Metric, experiment: Experiment, search: Search) -> bool:
    large = _n_smaller(comparison) >= search.min_units
    return large and comparison.std_error > 0 and not too_small(metric, comparison, experiment)


def _n_smaller(comparison: Comparison) -> int:
    """Units of the smaller arm."""
    return min(comparison.n_control, comparison.n_treatment)


def _at(half: Mapping[Slice, SliceStates], where: Slice) -> SliceStates:
    return half.get(where, SliceStates.empty())


def _row(found: _Found, qvalue: float, n_family: int, experiment: Experiment) -> Check:
    second = found.second
    raw = f"{found.first.effect:+.4g} on the half that it was found on (shrunken {found.shrunken:+.4g})"
    confirmed = f"{second.effect:+.4g} on the other (q = {qvalue:.2g})"
    if qvalue <= experiment.alpha:
        verdict, words = Verdict.BREACH, "loses, found and confirmed"
    else:
        verdict, words = Verdict.PASS if qvalue == qvalue else Verdict.INCONCLUSIVE, "not confirmed"
    return Check(
        check="worst slice",
        method="found on one half, confirmed on the other",
        treatment=found.treatment,
        metric=found.metric.name,
        slice_key=found.slice.slice_key,
        slice_value=found.slice.slice_value,
        n_units=found.first.n_control + found.first.n_treatment + second.n_control + second.n_treatment,
        value=second.effect,
        statistic=second.statistic,
        df=second.df,
        pvalue=found.pvalue,
        qvalue=qvalue,
        n_family=n_family,
        threshold=experiment.alpha,
        verdict=verdict,
        reason=f"{words}: {raw}, {confirmed}",
        decides=False,
    )
