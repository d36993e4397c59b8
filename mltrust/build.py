"""Builds unit tables, of an experiment and of everyone's past: everything, or what changed since an earlier build.

Those of a trial are not kept: they are read once, by the plan of its experiment.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mltrust.conf import Conf
from mltrust.experiment.spec import Experiment
from mltrust.experiment.trial import History, Trial, wanted_since
from mltrust.io.tables import Lakehouse, Versions
from mltrust.metrics import MetricColumns
from mltrust.runtime import Built
from mltrust.spark import exposure, increments, outcome, plans, units
from mltrust.spark.increments import Changed, Earlier
from mltrust.spark.logs import kept


def earlier_build(lake: Lakehouse, before: Built, inputs: Versions) -> Earlier | None:
    """What arrived since an earlier build, None where only a full build can tell."""
    rows, outcomes = (lake.arrived(name, before.input_versions[name], inputs[name]) for name in inputs)
    if rows is None or outcomes is None:
        return None
    arrived = exposure.production(rows, before.as_of)
    if before.experiment_id == units.EVERYONE:
        return Earlier(before.as_of, None, arrived, outcomes)
    exposures = lake.read("exposures", lake.version("exposures"), where={"experiment_id": before.experiment_id})
    return Earlier(before.as_of, exposures, arrived, outcomes)


def build_all(lake: Lakehouse, conf: Conf, as_of: datetime, inputs: Versions) -> Built:
    """Replaces everything of the experiment."""
    experiment = conf.the_experiment()
    rows, outcomes = _read(lake, conf, as_of, inputs)
    candidates = exposure.candidates(rows, experiment)
    built = Built(
        experiment.experiment_id, as_of, conf.units_hash, inputs, experiment.start, exposure.unexposed(candidates)
    )
    where = {"experiment_id": experiment.experiment_id}
    lake.replace(exposure.found(candidates, experiment), "exposures", where, built.metadata())
    days = _unit_days(rows, outcomes, lake.read("exposures", where=where), experiment, conf.columns, as_of)
    lake.replace(days, "unit_days", where, built.metadata())
    return built


def build_changed(
    lake: Lakehouse, conf: Conf, reach: datetime, inputs: Versions, before: Built, earlier: Earlier
) -> tuple[Built, str]:
    """Replaces what changed since an earlier build, which lies before `reach`."""
    experiment, where = conf.the_experiment(), {"experiment_id": before.experiment_id}
    rows, outcomes = _read(lake, conf, reach, inputs)
    candidates = exposure.candidates(increments.new_rows(rows, earlier), experiment)
    assert earlier.exposures is not None
    exposures = exposure.merged(earlier.exposures, exposure.found(candidates, experiment))
    with (
        kept(exposures) as exposed,
        increments.changed(rows, outcomes, exposed, earlier, experiment, reach.date()) as changed,
    ):
        more = exposure.unexposed(candidates)
        if not changed.days and not any(more.values()):
            return before, "nothing changed"
        if not changed.days:  # only more was left out: a commit that says so
            changed = changed._replace(days=(before.as_of.date() - timedelta(days=1),))
        left_out = {name: n + before.left_out[name] for name, n in more.items()}
        built = before._replace(as_of=reach, input_versions=inputs, left_out=left_out)
        with _changed_days(rows, outcomes, exposed, experiment, conf.columns, reach, changed) as again:
            unchanged = changed.unchanged(lake.read("unit_days", where=where))
            lake.replace(exposed, "exposures", where, built.metadata())
            lake.replace(unchanged.unionByName(again), "unit_days", where, built.metadata(), days=changed.days)
    return built, _words(before, reach, changed)


def build_past(lake: Lakehouse, conf: Conf, as_of: datetime, inputs: Versions) -> Built:
    """Replaces everyone's days from the first one on that the experiment's covariates may need."""
    since = conf.the_experiment().past_since
    everyone, where = units.everyone(conf.the_experiment(), since), {"experiment_id": units.EVERYONE}
    rows, outcomes = _read(lake, conf, as_of, inputs, since)
    built = Built(units.EVERYONE, as_of, conf.columns_hash, inputs, since, {})
    days = _unit_days(rows, outcomes, None, everyone, conf.columns, as_of)
    lake.replace(days, "unit_days", where, built.metadata())
    return built


def build_changed_past(
    lake: Lakehouse, conf: Conf, reach: datetime, inputs: Versions, before: Built, earlier: Earlier
) -> tuple[Built, str]:
    """Replaces what changed of everyone's days since an earlier build."""
    everyone, where = units.everyone(conf.the_experiment(), before.since), {"experiment_id": units.EVERYONE}
    rows, outcomes = _read(lake, conf, reach, inputs, before.since)
    late = earlier._replace(rows=_since(earlier.rows, before.since), outcomes=_since(earlier.outcomes, before.since))
    with increments.changed(rows, outcomes, None, late, everyone, reach.date()) as changed:
        if not changed.days:
            return before, "nothing changed"
        built = before._replace(as_of=reach, input_versions=inputs)
        with _changed_days(rows, outcomes, None, everyone, conf.columns, reach, changed) as again:
            unchanged = changed.unchanged(lake.read("unit_days", where=where))
            lake.replace(unchanged.unionByName(again), "unit_days", where, built.metadata(), days=changed.days)
    return built, _words(before, reach, changed)


def history(lake: Lakehouse, conf: Conf, as_of: datetime, inputs: Versions) -> History:
    """From when to when units are in the log, as far back as a plan of the experiment looks."""
    experiment = conf.the_experiment()
    # A week more, so that a first day without traffic is not taken for the beginning of the log.
    since = wanted_since(experiment, as_of.date()) - timedelta(days=7)
    return plans.history(_read(lake, conf, as_of, inputs, since)[0], experiment)


@contextmanager
def trial_tables(
    lake: Lakehouse, conf: Conf, trial: Trial, as_of: datetime, inputs: Versions
) -> Iterator[tuple[DataFrame, DataFrame]]:
    """The exposures and the unit_days of a trial, with the units' past where the experiment has covariates."""
    tried = trial.experiment
    rows, outcomes = _read(lake, conf, as_of, inputs, tried.past_since)
    candidates = exposure.candidates(plans.carrying(rows, tried), tried)
    with kept(exposure.found(candidates, tried)) as exposed:
        days = _unit_days(rows, outcomes, exposed, tried, conf.columns, as_of)
        if tried.pre_days is not None:
            everyone = units.everyone(tried, tried.past_since)
            days = days.unionByName(_unit_days(rows, outcomes, None, everyone, conf.columns, as_of))
        yield exposed, plans.with_copies(days, trial)


def _read(
    lake: Lakehouse, conf: Conf, as_of: datetime, inputs: Versions, since: date = date.min
) -> tuple[DataFrame, DataFrame]:
    rows = exposure.production(lake.read("inference_log", inputs["inference_log"]), as_of)
    units.refuse_unknown(rows, conf.columns, conf.the_experiment().trigger)
    return _since(rows, since), _since(lake.read("outcomes", inputs["outcomes"]), since)


def _since(rows: DataFrame, day: date) -> DataFrame:
    return rows if day == date.min else rows.where(F.col("event_date") >= F.lit(day))


def _unit_days(
    rows: DataFrame,
    outcomes: DataFrame,
    exposed: DataFrame | None,
    experiment: Experiment,
    columns: MetricColumns,
    as_of: datetime,
) -> DataFrame:
    current = outcome.current(outcomes, outcome.corrected(outcomes), as_of)
    resolved = outcome.resolved(current, rows, experiment)
    counting = outcome.counted(current, resolved, exposed, experiment)
    return units.unit_days(units.counted(rows, exposed, experiment), counting, experiment, columns)


@contextmanager
def _changed_days(
    rows: DataFrame,
    outcomes: DataFrame,
    exposed: DataFrame | None,
    experiment: Experiment,
    columns: MetricColumns,
    reach: datetime,
    changed: Changed,
) -> Iterator[DataFrame]:
    """Rows of `unit_days` that are built again."""
    current = outcome.current(changed.on_days(outcomes), outcome.corrected(outcomes), reach)
    with increments.resolved(current, rows, changed, experiment) as resolved:
        counting = changed.of(outcome.counted(current, resolved, exposed, experiment))
        counted = changed.of(units.counted(changed.on_days(rows), exposed, experiment))
        yield units.unit_days(counted, counting, experiment, columns)


def _words(before: Built, reach: datetime, changed: Changed) -> str:
    n_new = (reach.date() - before.as_of.date()).days
    return f"{n_new} new days, {len(changed.days) - n_new} earlier days in part"
