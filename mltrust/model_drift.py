"""Drift that profiles of inputs and scores do not show: how versions use their inputs, what follows from scores."""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from mltrust.conf import Conf
from mltrust.drift.attribution import attribution_drift
from mltrust.drift.performance import ScoreLabels, estimates, performance_drift
from mltrust.drift.readout import ModelShifts
from mltrust.drift.spec import Drift, Window
from mltrust.io import models
from mltrust.io.tables import Lakehouse, Versions
from mltrust.slices import Slice
from mltrust.spark import training
from mltrust.spark.attribution import N_BUCKETS, Sampling, Version, attributions, background
from mltrust.spark.logs import kept
from mltrust.spark.performance import score_labels
from mltrust.spark.profiles import kept_value
from mltrust.states.replicates import Replicates
from mltrust.training import Label, TrainingSet

S = TypeVar("S")
Kept = Mapping[str, tuple[str, ...]]
_REFERENCE, _CURRENT = "reference", "current"
_VERSION = "model_version"


def attribution(log: DataFrame, conf: Conf, slices: Kept, as_of: datetime) -> list[ModelShifts]:
    """The attributions of every registered version with rows in the last window against those of the reference.

    Versions that the registry does not have are left out.
    """
    drift, name = conf.the_drift(), conf.the_monitor().model_name
    if drift.attribution is None:
        return []
    window = drift.window(as_of.date())
    rows = _sided(_produced(log, conf), drift, slices, window)
    here = {row[_VERSION] for row in rows.where(F.col("side") == _CURRENT).select(_VERSION).distinct().collect()}
    sampling = Sampling(drift.attribution.n_units, drift.attribution.rows_per_unit)
    found = []
    for version in sorted(here & set(models.versions(name))):
        explained = Version(version, partial(_itself, models.load(name, version)), models.inputs(name, version))
        own = rows.where((F.col("side") == _CURRENT) & (F.col(_VERSION) == version))
        past = rows.where((F.col("side") == _REFERENCE) & (F.col(_VERSION) == _before(drift, version)))
        states = attributions(
            own.unionByName(past), [explained], of=background(past, explained.types), sets=_sets(drift),
            keys=("side",), sampling=sampling,
        ).states  # fmt: skip
        sides = {side[0]: {where: each[version] for where, each in by.items()} for side, by in states.items()}
        pairs = _pairs(sides, partial(Replicates.empty, tuple(explained.types), N_BUCKETS))
        found.append(ModelShifts(version, window, tuple(attribution_drift(pairs, drift.attribution.rule))))
    return found


def performance(lake: Lakehouse, inputs: Versions, conf: Conf, slices: Kept, as_of: datetime) -> list[ModelShifts]:
    """The performance of every version in the last window whose outcomes are all known, against the reference's."""
    drift = conf.the_drift()
    if (asked := drift.performance) is None:
        return []
    window = drift.window(as_of.date() - timedelta(days=asked.window_days))
    label = Label(asked.outcome, "any" if asked.missing == "zero" else "last", asked.window_days, asked.missing)
    model = conf.the_monitor().model_name
    since, until = min(drift.reference.start, window.start), max(drift.reference.end, window.end)
    wanted = TrainingSet("performance", conf.log, since, until, label, model_name=model)
    log, outcomes = (lake.read(name, inputs[name]) for name in ("inference_log", "outcomes"))
    features = conf.contract.feature_types()
    predicted = training.predictions(log, wanted, tuple(features), log.schema, as_of)
    labelled = training.labelled(predicted, outcomes, label, as_of, since=since)
    with kept(_sided(labelled, drift, slices, window)) as rows:
        states = score_labels(rows, sets=_sets(drift), keys=("side", _VERSION))
    found = []
    for version in sorted(version for side, version in states if side == _CURRENT):
        current = states[_CURRENT, version]
        sides = {_CURRENT: current, _REFERENCE: states.get((_REFERENCE, _before(drift, version)), {})}
        shifts = performance_drift(_pairs(sides, ScoreLabels.empty), asked.rule)
        of = [(where, each) for where, state in current.items() for each in estimates(state, asked.rule)]
        found.append(ModelShifts(version, window, tuple(shifts), tuple(of)))
    return found


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
