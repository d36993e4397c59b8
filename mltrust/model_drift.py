"""Drift that profiles of inputs and scores do not show: how versions use their inputs, what follows from scores."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple, TypeVar

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from mltrust.conf import Conf
from mltrust.drift.attribution import attribution_drift
from mltrust.drift.cells import Cells
from mltrust.drift.moves import Move, drifted_features, moves_of
from mltrust.drift.multivariate import multivariate_drift
from mltrust.drift.performance import ScoreLabels, estimates, performance_drift
from mltrust.drift.readout import Judged, ModelShifts
from mltrust.drift.relation import Residuals, relation_drift
from mltrust.drift.spec import Drift, Window
from mltrust.io import models
from mltrust.io.tables import Lakehouse, Versions
from mltrust.profiling import Profiled
from mltrust.slices import Slice
from mltrust.spark import training
from mltrust.spark.attribution import N_BUCKETS, Sampling, Version, attributions, background
from mltrust.spark.logs import kept
from mltrust.spark.multivariate import two_samples
from mltrust.spark.performance import score_labels
from mltrust.spark.profiles import kept_value
from mltrust.spark.relation import residuals
from mltrust.states.replicates import Replicates
from mltrust.training import Label, TrainingSet

S = TypeVar("S")
Kept = Mapping[str, tuple[str, ...]]
_REFERENCE, _CURRENT = "reference", "current"
_VERSION = "model_version"


class ModelDrift(NamedTuple):
    """What was found of a model's versions, in families of their own, and what the moves of outcomes are made of."""

    attribution: tuple[ModelShifts, ...] = ()
    multivariate: tuple[ModelShifts, ...] = ()
    performance: tuple[ModelShifts, ...] = ()
    relation: tuple[ModelShifts, ...] = ()
    moves: tuple[Move, ...] = ()

    def tests(self) -> tuple[ModelShifts, ...]:
        """Those that stand among the findings; performance has a table of its own."""
        return (*self.attribution, *self.multivariate, *self.relation)

    def all(self) -> tuple[ModelShifts, ...]:
        return (*self.attribution, *self.multivariate, *self.performance, *self.relation)


def model_drift(
    lake: Lakehouse, inputs: Versions, conf: Conf, profiled: Profiled, judged: Sequence[Judged], as_of: datetime
) -> ModelDrift:
    """What the conf asks for, of every version with rows in its window."""
    drift, log = conf.the_drift(), lake.read("inference_log", inputs["inference_log"])
    rows = _sided(_produced(log, conf), drift, profiled.slices, drift.window(as_of.date()))
    attribution = _attribution(rows, conf, as_of) if drift.attribution is not None else []
    found = ModelDrift(tuple(attribution))
    if drift.multivariate is not None:
        found = found._replace(multivariate=tuple(_multivariate(rows, conf, profiled, as_of)))
    if drift.performance is not None:
        outcomes = lake.read("outcomes", inputs["outcomes"])
        found = _with_outcomes(found, log, outcomes, conf, profiled, judged, as_of)
    return found


def _attribution(rows: DataFrame, conf: Conf, as_of: datetime) -> Iterator[ModelShifts]:
    """The attributions of every registered version against those of the reference; others are left out."""
    drift, name = conf.the_drift(), conf.the_monitor().model_name
    assert drift.attribution is not None
    sampling = Sampling(drift.attribution.n_units, drift.attribution.rows_per_unit)
    registered = set(models.versions(name))
    for version, current, past in _by_version(rows, drift):
        if version not in registered:
            continue
        explained = Version(version, partial(_itself, models.load(name, version)), models.inputs(name, version))
        states = attributions(
            current.unionByName(past), [explained], of=background(past, explained.types), sets=_sets(drift),
            keys=("side",), sampling=sampling,
        ).states  # fmt: skip
        sides = {side[0]: {where: each[version] for where, each in by.items()} for side, by in states.items()}
        pairs = _pairs(sides, partial(Replicates.empty, tuple(explained.types), N_BUCKETS))
        shifts = attribution_drift(pairs, drift.attribution.rule)
        yield ModelShifts("attribution", version, drift.window(as_of.date()), tuple(shifts))


def _multivariate(rows: DataFrame, conf: Conf, profiled: Profiled, as_of: datetime) -> Iterator[ModelShifts]:
    """Whether a classifier tells the window's features from the reference's."""
    drift = conf.the_drift()
    assert drift.multivariate is not None
    kinds = {name: "double" if each.is_ordered else "string" for name, each in _features(profiled).items()}
    for version, current, past in _by_version(rows, drift):
        told = two_samples(
            current.unionByName(past), kinds, key="side", reference=_REFERENCE, windows=[_CURRENT],
            sets=_sets(drift), n_rows=drift.multivariate.n_rows,
        )  # fmt: skip
        shifts = multivariate_drift(told[_CURRENT], drift.multivariate.rule)
        yield ModelShifts("multivariate", version, drift.window(as_of.date()), tuple(shifts))


def _with_outcomes(
    found: ModelDrift, log: DataFrame, outcomes: DataFrame, conf: Conf, profiled: Profiled,
    judged: Sequence[Judged], as_of: datetime,
) -> ModelDrift:  # fmt: skip
    """Adds performance, relations and moves, in the last window whose outcomes are all known."""
    drift = conf.the_drift()
    asked = drift.performance
    assert asked is not None
    window = drift.window(as_of.date() - timedelta(days=asked.window_days))
    label = Label(asked.outcome, "any" if asked.missing == "zero" else "last", asked.window_days, asked.missing)
    since, until = min(drift.reference.start, window.start), max(drift.reference.end, window.end)
    wanted = TrainingSet("performance", conf.log, since, until, label, model_name=conf.the_monitor().model_name)
    predicted = training.predictions(log, wanted, tuple(conf.contract.feature_types()), log.schema, as_of)
    known = training.labelled(predicted, outcomes, label, as_of, since=since)
    labelled = _sided(known, drift, profiled.slices, window)
    features = _features(profiled)
    with kept(labelled) as rows:
        states = score_labels(rows, sets=_sets(drift), keys=("side", _VERSION))
        gone = residuals(rows, features, sets=_sets(drift), keys=("side", _VERSION))
    performance, relation, moves = [], [], []
    for version in sorted(version for side, version in states if side == _CURRENT):
        now, before = (_CURRENT, version), (_REFERENCE, _before(drift, version))
        pairs = _pairs({_CURRENT: states[now], _REFERENCE: states.get(before, {})}, ScoreLabels.empty)
        of = [(where, each) for where, state in states[now].items() for each in estimates(state, asked.rule)]
        shifts = performance_drift(pairs, asked.rule)
        performance.append(ModelShifts("performance", version, window, tuple(shifts), tuple(of)))
        columns = _columns(gone.get(now, {}), gone.get(before, {}), features)
        shifts = relation_drift(columns, asked.relation)
        relation.append(ModelShifts("relation", version, window, tuple(shifts)))
        drifted = drifted_features(version, judged, found.attribution)
        moves += moves_of(asked.outcome, version, pairs, drifted)
    return found._replace(performance=tuple(performance), relation=tuple(relation), moves=tuple(moves))


def _by_version(rows: DataFrame, drift: Drift) -> Iterator[tuple[str, DataFrame, DataFrame]]:
    """Every version with rows in the window, its rows there, and those of the reference that it is held against."""
    here = {row[_VERSION] for row in rows.where(F.col("side") == _CURRENT).select(_VERSION).distinct().collect()}
    for version in sorted(here):
        current = rows.where((F.col("side") == _CURRENT) & (F.col(_VERSION) == version))
        past = rows.where((F.col("side") == _REFERENCE) & (F.col(_VERSION) == _before(drift, version)))
        yield version, current, past


def _features(profiled: Profiled) -> dict[str, Cells]:
    return {name: each for name, each in profiled.cells.items() if name.startswith("features.")}


def _columns(
    current: Mapping[Slice, Mapping[str, Residuals]],
    reference: Mapping[Slice, Mapping[str, Residuals]],
    cells: Mapping[str, Cells],
) -> dict[Slice, dict[str, tuple[Cells, Residuals, Residuals]]]:
    """The cells and the residuals of reference and current by slice and column; where a side has none, empty ones."""
    return {
        where: {
            name: (
                each,
                reference.get(where, {}).get(name) or Residuals.empty(each),
                current.get(where, {}).get(name) or Residuals.empty(each),
            )
            for name, each in cells.items()
        }
        for where in sorted({*current, *reference})
    }


def _itself(model: S) -> S:
    """What a loader gives that takes the model along: the registry is asked once, on the driver."""
    return model


def _before(drift: Drift, version: str) -> str:
    """Whose rows of the reference a version is held against."""
    return drift.reference.model_version or version


def _sets(drift: Drift) -> list[tuple[str, ...]]:
    return [(), *drift.slices.declared()]


def _produced(log: DataFrame, conf: Conf) -> DataFrame:
    is_of_model = F.col("model_name") == conf.the_monitor().model_name
    return log.where(is_of_model & (F.col("traffic") == "production") & (F.col("status") == "ok"))


def _sided(rows: DataFrame, drift: Drift, slices: Kept, window: Window) -> DataFrame:
    """Rows of the window and of the reference with their `side` and the values of slice attributes."""
    side = F.when(_in(window), _CURRENT).when(_in(drift.reference.window), _REFERENCE)
    values = {name: kept_value(name, drift.slices, slices) for name in drift.slices.attributes}
    return rows.withColumns({"side": side} | values).where(F.col("side").isNotNull())


def _in(window: Window) -> Column:
    return (F.col("event_date") >= F.lit(window.start)) & (F.col("event_date") < F.lit(window.end))


def _pairs(sides: Mapping[str, Mapping[Slice, S]], empty: Callable[[], S]) -> dict[Slice, tuple[S, S]]:
    """(reference, current) of every slice that either has."""
    reference, current = (sides.get(side, {}) for side in (_REFERENCE, _CURRENT))
    wheres = sorted({*reference, *current})
    return {where: (reference.get(where) or empty(), current.get(where) or empty()) for where in wheres}
