"""Is the effect the same for all: over the slices of an attribute, and over the variants of other experiments?"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from mltrust.experiment.cells import NO_VARIANT, ExperimentStates, SliceStates
from mltrust.experiment.check import Check, Finding, judged
from mltrust.experiment.methods import compared
from mltrust.experiment.spec import Experiment
from mltrust.experiment.sufficiency import too_small
from mltrust.metrics import Metric
from mltrust.stats.heterogeneity import heterogeneity, qualitative_interaction
from mltrust.stats.means import Comparison

#: Level at which effects that differ are named.
_LEVEL = 0.01


class _Parts(NamedTuple):
    """Disjoint parts of the units, by the name of what parts them."""

    name: str
    slices: Sequence[SliceStates]
    values: Sequence[str]


def interactions(states: ExperimentStates, experiment: Experiment) -> list[Check]:
    """Whether effects differ, of every metric that decides or is secondary; something to look at, never a failure."""
    if experiment.unit == "bucket_id":
        return []
    sets = [
        _Parts(" x ".join(names), slices, [each.slice.slice_value for each in slices])
        for names, slices in states.sets.items()
    ]
    overlaps = [
        _Parts(f"experiment {other}", *met)
        for other, by_variant in states.overlaps.items()
        if (met := _met(by_variant))[0]
    ]
    rows: list[Check] = []
    for check, parts in (("heterogeneity", sets), ("interaction", overlaps)):
        rows += judged(
            check,
            "Cochran's Q",
            [each for part in parts for each in _differing(part, experiment)],
            level=_LEVEL,
            blocks=False,
        )
        rows += judged(
            check,
            "Gail-Simon",
            [each for part in parts for each in _opposed(part, experiment)],
            level=_LEVEL,
            blocks=False,
        )
    return rows


def _met(by_variant: Mapping[str, SliceStates]) -> tuple[list[SliceStates], list[str]]:
    """The parts of the units that are in another experiment."""
    met = {variant: states for variant, states in by_variant.items() if variant != NO_VARIANT}
    return list(met.values()), list(met)


def _differing(parts: _Parts, experiment: Experiment) -> Iterator[Finding]:
    for metric, treatment, told in _comparisons(parts, experiment):
        test = heterogeneity([each for _, each in told])
        words = f"the effect by {parts.name}: {_listed(told)}"
        alarm = f"the effect is not the same by {parts.name}: {_listed(told)}"
        yield Finding(
            test.n, test.statistic, float(test.df), test.pvalue, words, alarm, metric.name, treatment, parts.name
        )


def _opposed(parts: _Parts, experiment: Experiment) -> Iterator[Finding]:
    for metric, treatment, told in _comparisons(parts, experiment):
        test = qualitative_interaction([each for _, each in told])
        words = f"no opposite effects shown by {parts.name}"
        alarm = f"some gain and others lose by {parts.name}: {_listed(told)}"
        df = float(test.n_slices - 1)
        yield Finding(test.n, test.statistic, df, test.pvalue, words, alarm, metric.name, treatment, parts.name)


def _comparisons(parts: _Parts, experiment: Experiment) -> Iterator[tuple[Metric, str, list[tuple[str, Comparison]]]]:
    """Per metric and treatment the comparison in every part that is large enough."""
    for metric in experiment.unit_metrics:
        for treatment in experiment.treatments if metric.role != "diagnostic" else ():
            each = [
                (value, compared(states, experiment, metric, treatment))
                for value, states in zip(parts.values, parts.slices, strict=True)
            ]
            yield (
                metric,
                treatment,
                [(v, c) for v, c in each if c.std_error > 0 and not too_small(metric, c, experiment)],
            )


def _listed(told: Sequence[tuple[str, Comparison]]) -> str:
    return ", ".join(f"{value} {each.effect:+.4g}" for value, each in told)
