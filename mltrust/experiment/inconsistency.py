"""What in the conf of an experiment contradicts itself."""

import difflib
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from math import isfinite
from typing import TYPE_CHECKING

from mltrust.metrics import BUILT_IN_COLUMNS, MetricColumns, unknown_columns

if TYPE_CHECKING:
    from mltrust.experiment.spec import Experiment

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_NONE = "(none declared)"
#: Above this level nothing is shown by a test.
_LARGEST_ALPHA = 0.5


def of_arms(experiment: "Experiment") -> Iterator[str]:
    """Contradictions in the phases, the arms and their time."""
    if not experiment.phases:
        yield "phases is empty; expected the first day with the weights of the arms"
        return
    yield from _of_phases(experiment)
    if experiment.control not in experiment.arms:
        yield f"control {experiment.control!r} is none of the arms {', '.join(experiment.arms)}"
    elif len(experiment.arms) < 2:
        yield f"arms: only {experiment.control!r}, expected a treatment beside it"


def _of_phases(experiment: "Experiment") -> Iterator[str]:
    first = sorted(experiment.arms)
    for day, weights in experiment.phases.items():
        if sorted(weights) != first:
            yield f"phases.{day}: arms {sorted(weights)}, in the first phase {first}"
        elif min(weights.values()) < 0 or not sum(weights.values()) > 0 or not all(map(isfinite, weights.values())):
            yield f"phases.{day}: weights {list(weights.values())}, expected none below 0 and one above"
    end = experiment.planned_end
    if end is not None and (late := [f"{day}" for day in sorted(experiment.phases) if day >= end]):
        yield f"planned_end is {end}, and a phase begins on {', '.join(late)}, when no unit enters any more"


def of_the_rest(experiment: "Experiment") -> Iterator[str]:
    """Contradictions in everything else, of arms that are consistent."""
    yield from _of_allocation(experiment)
    yield from _of_levels(experiment)
    yield from _of_metrics(experiment)
    yield from _of_past(experiment)
    yield from _of_resampling(experiment)
    yield from _of_sample(experiment)
    yield from _of_attributes(experiment)
    if experiment.unit == "bucket_id":
        yield from _of_buckets(experiment)
    if experiment.inference != "fixed":
        yield from _of_looks(experiment)


def _of_allocation(experiment: "Experiment") -> Iterator[str]:
    if strange := set(experiment.buckets.values()) - set(experiment.arms):
        yield f"buckets map to {_listed(strange)}, which is none of the arms"
    if never := [arm for arm in experiment.treatments if not experiment.comparable_phases(arm)]:
        yield f"phases: {', '.join(never)} and {experiment.control} never have weight in the same phase"
    if strange := set(experiment.served_by) - set(experiment.arms):
        yield f"served_by names {_listed(strange)}, which is none of the arms"
    if experiment.assignment is not None and experiment.unit not in (None, "unit_id"):
        yield f"assignment: a {experiment.unit} is not hashed to a bucket; only the unit unit_id is"


def _of_levels(experiment: "Experiment") -> Iterator[str]:
    for name, level in (("alpha", experiment.alpha), ("srm_alpha", experiment.srm_alpha)):
        if not 0 < level < _LARGEST_ALPHA:
            yield f"{name} is {level}, expected a level above 0 and below {_LARGEST_ALPHA}"
    if experiment.horizon is not None and experiment.horizon < 1:
        yield f"horizon is {experiment.horizon} units, expected 1 or more"
    if experiment.salts is not None and experiment.salts < 100:
        yield f"salts is {experiment.salts}, expected 100 or more A/A tests (1000 tell well)"


def _of_metrics(experiment: "Experiment") -> Iterator[str]:
    names = [metric.name for metric in experiment.metrics]
    if not experiment.unit_metrics:
        yield "metrics has no metric of units; expected one beside quantiles, or any at all"
    if twice := _repeated(names):
        yield f"metrics: {', '.join(twice)} declared twice"
    decision_set = experiment.decision_set or ()
    if unknown := set(decision_set) - set(names):
        yield f"decision_set: {_listed(unknown)} is none of the metrics"
    if twice := _repeated(decision_set):
        yield f"decision_set: {', '.join(twice)} is named twice"
    if not any(map(experiment.decides, experiment.metrics)):
        yield "no metric decides; expected a goal, a guardrail or a decision_set"


def _of_past(experiment: "Experiment") -> Iterator[str]:
    if experiment.pre_days is None:
        if experiment.covariates:
            yield "covariates without pre_days; say how many days before exposure they are summed over"
        return
    if experiment.pre_days < 1:
        yield f"pre_days is {experiment.pre_days}, expected 1 or more"
    if experiment.unit not in (None, "unit_id"):
        yield f"pre_days: a {experiment.unit} has no past; only the unit unit_id has covariates"


def _of_resampling(experiment: "Experiment") -> Iterator[str]:
    if experiment.resampling is None:
        if experiment.replicates is not None:
            yield "replicates without resampling; say bootstrap or jackknife"
    elif experiment.n_replicates < experiment.fewest_replicates:
        yield (
            f"replicates is {experiment.replicates}, expected {experiment.fewest_replicates} or more for a "
            f"{experiment.resampling}"
        )


def _of_sample(experiment: "Experiment") -> Iterator[str]:
    if experiment.sample is None:
        return
    no_weights = {
        "quantiles": experiment.quantiles,
        "caps at a quantile": [each for each in experiment.metrics if each.cap is not None and each.cap.quantile],
        "resampling": experiment.resampling,
        "salts": experiment.salts,
        "fairness": experiment.fairness,
        f"inference {experiment.inference}": experiment.inference != "fixed",
        "the unit bucket_id": experiment.unit == "bucket_id",
        "a ratio of the arms that changes": any(map(experiment.ratio_changes, experiment.treatments)),
    }
    if together := [name for name, given in no_weights.items() if given]:
        yield f"sample: {', '.join(together)} cannot be had from weighted units"


def _of_attributes(experiment: "Experiment") -> Iterator[str]:
    """Slice attributes that parts of the conf name, and nobody declared."""
    named = {
        "fairness": () if experiment.fairness is None else experiment.fairness.attributes,
        "sample": () if experiment.sample is None else experiment.sample.by,
        "search": () if experiment.search is None else experiment.search.attributes,
    }
    for part, names in named.items():
        if strange := set(names) - set(experiment.slices.attributes):
            yield f"{part}: {_listed(strange)} is none of slices.attributes"


def _of_buckets(experiment: "Experiment") -> Iterator[str]:
    """What cannot be had where the units are buckets: few, all there at once, and each of many slices."""
    if not experiment.buckets:
        yield "buckets is empty; the unit bucket_id needs every bucket with its arm"
    if experiment.inference != "fixed":
        yield f"inference {experiment.inference}: the units are buckets, which all come at once"
    if experiment.resampling == "jackknife":
        yield "resampling jackknife: the units are buckets, too few to be left out in groups"
    if shares := [each.name for each in experiment.metrics if each.kind == "proportion"]:
        yield f"metrics: {', '.join(shares)} is a share of units, and the units are buckets"
    vary = {
        "fairness": experiment.fairness,
        "search": experiment.search,
        "trigger": experiment.trigger,
        "salts": experiment.salts,
        "served_by": experiment.served_by,
    }
    for name, given in vary.items():
        if given:
            yield f"{name}: the units are buckets, and people vary within a bucket"


def _of_looks(experiment: "Experiment") -> Iterator[str]:
    """What cannot decide at several looks."""
    deciding = [metric for metric in experiment.metrics if experiment.decides(metric)]
    if growing := [each.name for each in deciding if not each.of_rows and not each.window_days]:
        yield (
            f"inference {experiment.inference}: {', '.join(growing)} decides and has no window_days; a value that "
            "still grows cannot be read at several looks"
        )
    if skipping := [each.name for each in deciding if each.of_rows]:
        yield (
            f"inference {experiment.inference}: {', '.join(skipping)} decides and is a quantile, which has no test "
            "for several looks"
        )


def with_log(
    experiment: "Experiment", columns: MetricColumns, attributes: Collection[str], texts: Collection[str]
) -> Iterator[str]:
    """What a log lacks: columns of slices, which are numbers where they have edges, of metrics and of predictions."""
    log, slices = f"of log {experiment.log!r}", experiment.slices
    if not _NAME.fullmatch(experiment.experiment_id):
        yield f"experiment_id is {experiment.experiment_id!r}, expected letters, digits, _, . and -"
    for name, column in slices.attributes.items():
        if column not in attributes:
            near = difflib.get_close_matches(column, attributes, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            yield f"slices.attributes.{name}: {column!r} is no column {log}{hint}"
        elif name in slices.edges and column in texts:
            yield f"slices.edges.{name}: {column!r} is no number, which alone lies between edges"
    for metric in experiment.metrics:
        if unknown := unknown_columns(metric, columns):
            what, known = ("histogram", columns.histograms) if metric.of_rows else ("metric column", columns.names())
            expected = ", ".join(known) or _NONE
            yield f"metrics.{metric.name}: {', '.join(unknown)} is no {what} {log}; expected one of {expected}"
    sums = (*columns.names(), *BUILT_IN_COLUMNS)
    for name in experiment.covariates:
        if name not in sums:
            yield f"covariates: {name} is no metric column {log}; expected one of {', '.join(sums)}"
    fairness = experiment.fairness
    if fairness is not None and fairness.predictions not in columns.predictions:
        expected = ", ".join(columns.predictions) or "none"
        yield f"fairness.predictions: {fairness.predictions!r} is no prediction {log}; expected one of {expected}"


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for name, n in Counter(names).items() if n > 1]


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))
