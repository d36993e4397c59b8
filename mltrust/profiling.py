"""Profiles of a model's windows, counted once: what is kept is read, what is missing is counted in one pass."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np
from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F

from mltrust.conf import Conf
from mltrust.contract import FeatureType
from mltrust.drift.alarm import Key
from mltrust.drift.cells import Cells, from_plain
from mltrust.drift.families import Arms, Population, Slot, arm_name
from mltrust.drift.profile import N_BUCKETS, Profile
from mltrust.drift.readout import Counted
from mltrust.drift.spec import LATENCY, SCORE, Window
from mltrust.errors import DataError
from mltrust.io.tables import Lakehouse
from mltrust.runtime import Tracked
from mltrust.spark import edges, quality
from mltrust.spark.edges import Basis
from mltrust.spark.logs import short_hash
from mltrust.spark.profiles import Survey, profiles
from mltrust.spark.quality import Changes

#: Windows that a run's page looks back on.
HISTORY = 30
_SLICE_VALUES = "slice values"


class Profiled(NamedTuple):
    """The profiles of everyone in every window, the cells that they are counted on, and the values that have slices.

    `n_counted` windows were counted by this run; the others were kept.
    """

    surveyed: dict[Slot, dict[Key, Profile]]
    cells: dict[str, Cells]
    slices: dict[str, tuple[str, ...]]
    n_counted: int


def arms(conf: Conf) -> dict[str, Arms]:
    """The arms of the experiments that the monitor compares, as profiles name them."""
    return {
        each.experiment_id: Arms(
            arm_name(each.experiment_id, each.control),
            tuple(arm_name(each.experiment_id, treatment) for treatment in each.treatments),
        )
        for each in conf.compared
    }


def profiled(lake: Lakehouse, conf: Conf, log: DataFrame, windows: Sequence[Window], tracked: Tracked) -> Profiled:
    """The profiles of windows; those that are not kept yet are counted from `log` and kept."""
    monitor, drift = conf.the_monitor(), conf.the_drift()
    of_model = log.where(F.col("model_name") == monitor.model_name)
    basis = _basis(lake, conf, of_model, tracked)
    survey = Survey(
        basis.cells, tuple(windows), drift.slices, basis.kept, conf.compared, drift.unit,
        with_shadowed=any(each.kind == "production" for each in drift.against),
    )  # fmt: skip
    survey_hash = _survey_hash(survey)
    kept = lake.read("drift_profile", where={"model_name": monitor.model_name, "survey_hash": survey_hash})
    there = {_window(row) for row in kept.select(*_days()).distinct().collect()}
    if missing := tuple(window for window in windows if window not in there):
        names = {"model_name": F.lit(monitor.model_name), "survey_hash": F.lit(survey_hash)}
        rows = tracked.stamped(profiles(of_model, survey._replace(windows=missing)).withColumns(names))
        where = {"model_name": monitor.model_name, "survey_hash": survey_hash}
        lake.replace(rows, "drift_profile", where, ranges=[window.times("window") for window in missing])
    wanted = lake.read("drift_profile", where={"model_name": monitor.model_name, "survey_hash": survey_hash})
    return Profiled(_read(wanted, windows), basis.cells, basis.kept, len(missing))


def _basis(lake: Lakehouse, conf: Conf, of_model: DataFrame, tracked: Tracked) -> Basis:
    """The cells of every column: those that were fixed for this reference, else fixed now, and kept."""
    monitor, drift = conf.the_monitor(), conf.the_drift()
    columns = _columns(conf)
    limits = conf.settings.limits
    reference = drift.reference.window
    shaping = (
        tuple(map(str, reference)), columns, drift.n_cells, drift.max_values, limits.max_values,
        drift.slices.attributes, drift.slices.edges,
    )  # fmt: skip
    where = {"model_name": monitor.model_name, "basis_hash": short_hash(json.dumps(shaping, sort_keys=True))}
    if kept := lake.read("drift_edges", where=where).collect():
        return _fixed(kept, columns)
    rows = of_model.where(
        (F.col("event_date") >= F.lit(reference.start))
        & (F.col("event_date") < F.lit(reference.end))
        & (F.col("traffic") == "production")
    )
    found = edges.basis(
        rows, columns, drift.slices, n_cells=drift.n_cells, max_values=drift.max_values, max_slices=limits.max_values
    )  # fmt: skip
    if not found.cells:
        raise DataError(
            f"{lake.path('inference_log')} has no production rows of model {monitor.model_name!r} with values in "
            f"{reference}; expected some, as {conf.path}: drift.reference fixes the cells of every column by them"
        )
    artefacts = [
        *((name, "cells", each.version, each.to_plain()) for name, each in found.cells.items()),
        *((name, _SLICE_VALUES, "", list(values)) for name, values in found.kept.items()),
    ]
    times = reference.times("window")
    made = [
        {"column": name, "kind": kind, "edges_version": version, "cells": json.dumps(plain), **where, **times}
        for name, kind, version, plain in artefacts
    ]
    lake.replace(lake.rows("drift_edges", [row | tracked.stamp for row in made]), "drift_edges", where)
    return found


def _columns(conf: Conf) -> dict[str, FeatureType]:
    """The columns to profile with their types."""
    types = conf.contract.feature_types()
    kinds: dict[str, FeatureType] = {f"features.{name}": kind for name, kind in types.items()}
    kinds |= {SCORE: "double", LATENCY: "double"}
    return {name: kinds[name] for name in conf.the_drift().profiled(types)}


def _fixed(rows: Sequence[Row], columns: Mapping[str, FeatureType]) -> Basis:
    cells = {row["column"]: from_plain(json.loads(row["cells"])) for row in rows if row["kind"] == "cells"}
    kept = {row["column"]: tuple(json.loads(row["cells"])) for row in rows if row["kind"] == _SLICE_VALUES}
    return Basis({name: cells[name] for name in columns if name in cells}, kept)


def _survey_hash(survey: Survey) -> str:
    """What names the counts beside their window: the same for the same cells, slices, arms and units."""
    experiments = [(each.experiment_id, each.arms, sorted(each.buckets.items())) for each in survey.experiments]
    shaping = (
        {name: each.version for name, each in survey.cells.items()},
        [survey.slicing.attributes, survey.sets, survey.slicing.edges, survey.kept],
        experiments,
        [survey.unit, survey.with_shadowed],
    )
    return short_hash(json.dumps(shaping, sort_keys=True))


def _days() -> tuple[Column, Column]:
    """The window of a row, in days: Python gives times in the zone of the machine."""
    return F.to_date("window_start").alias("start"), F.to_date("window_end").alias("end")


def _window(row: Row) -> Window:
    return Window(row["start"], row["end"])


def _read(rows: DataFrame, windows: Sequence[Window]) -> dict[Slot, dict[Key, Profile]]:
    """Profiles by whose they are and by column and slice; the driver holds some thousand counts of each."""
    starts = [window.start_time for window in windows]
    found: dict[Slot, dict[Key, Profile]] = {}
    for row in rows.where(F.col("window_start").isin(starts)).select("*", *_days()).collect():
        if (window := _window(row)) not in windows:
            continue
        slot = Slot(Population(row["model_version"], row["traffic"], row["arm"]), window)
        key = Key(row["column"], row["slice_key"], row["slice_value"])
        found.setdefault(slot, {})[key] = Profile(
            np.array(row["counts"], dtype=np.int64),
            np.array(row["units"], dtype=np.int64),
            row["n_units"],
            np.array(row["location"], dtype=np.int64).reshape(-1, N_BUCKETS),
        )
    return found


def history(lake: Lakehouse, conf: Conf, as_of: datetime) -> DataFrame:
    """Findings of all rows of the last windows against the first of the monitor's references, one as_of a window."""
    monitor, drift = conf.the_monitor(), conf.the_drift()
    since = as_of - HISTORY * timedelta(days=drift.window_days)
    rows = lake.read("drift_findings", where={"model_name": monitor.model_name, "monitor_id": monitor.monitor_id})
    of_all = (
        (F.col("slice_key") == "") & (F.col("family") == "window") & (F.col("reference") == str(drift.against[0]))
    )
    return rows.where(of_all & (F.col("as_of") > F.lit(since)) & (F.col("as_of") <= F.lit(as_of)))


def counted(log: DataFrame, conf: Conf, as_of: datetime) -> dict[tuple[str, Window], Counted]:
    """What the quality of the last window's data is judged by, and the reference's; two Spark jobs."""
    monitor, drift = conf.the_monitor(), conf.the_drift()
    windows = (drift.window(as_of.date()), drift.reference.window)
    of_model = log.where(F.col("model_name") == monitor.model_name)
    by_hour = quality.hourly(of_model, windows)
    changes = quality.changes(of_model, windows, tuple(_columns(conf)))
    nothing = Changes(0, {})
    return {key: Counted(hours, *changes.get(key, nothing)) for key, hours in by_hour.items()}
