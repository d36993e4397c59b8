"""Builds the unit tables of an experiment: everything, or what changed since an earlier build."""

from datetime import datetime, timedelta

from mltrust.conf import Conf
from mltrust.io.tables import Lakehouse, Versions
from mltrust.runtime import Built
from mltrust.spark import increments, units
from mltrust.spark.increments import Earlier
from mltrust.spark.logs import kept


def earlier_build(lake: Lakehouse, before: Built, inputs: Versions) -> Earlier | None:
    """What arrived since an earlier build, None where only a full build can tell."""
    rows, outcomes = (lake.arrived(name, before.input_versions[name], inputs[name]) for name in inputs)
    if rows is None or outcomes is None:
        return None
    exposures = lake.read("exposures", lake.version("exposures"), where={"experiment_id": before.experiment_id})
    return Earlier(before.as_of, exposures, units.production(rows, before.as_of), outcomes)


def build_all(lake: Lakehouse, conf: Conf, as_of: datetime, inputs: Versions) -> Built:
    """Replaces everything of the experiment."""
    experiment = conf.the_experiment()
    rows = units.production(lake.read("inference_log", inputs["inference_log"]), as_of)
    outcomes = lake.read("outcomes", inputs["outcomes"])
    units.refuse_unknown(rows, conf.columns)
    candidates = units.candidates(rows, experiment)
    built = Built(experiment.experiment_id, as_of, conf.units_hash, inputs, units.unexposed(candidates))
    where = {"experiment_id": experiment.experiment_id}
    lake.replace(units.exposures(candidates, experiment), "exposures", where, built.metadata())
    exposed = lake.read("exposures", where=where)
    current = units.current_outcomes(outcomes, units.corrected(outcomes), as_of)
    resolved = units.resolved(current, rows, experiment)
    counting = units.counted_outcomes(current, resolved, exposed, experiment)
    counted = units.counted(rows, exposed, experiment)
    days = units.unit_days(counted, counting, experiment, conf.columns)
    lake.replace(days, "unit_days", where, built.metadata())
    return built


def build_changed(
    lake: Lakehouse, conf: Conf, reach: datetime, inputs: Versions, before: Built, earlier: Earlier
) -> tuple[Built, str]:
    """Replaces what changed since an earlier build, which lies before `reach`."""
    experiment, where = conf.the_experiment(), {"experiment_id": before.experiment_id}
    rows = units.production(lake.read("inference_log", inputs["inference_log"]), reach)
    outcomes = lake.read("outcomes", inputs["outcomes"])
    units.refuse_unknown(rows, conf.columns)
    candidates = units.candidates(increments.new_rows(rows, earlier), experiment)
    exposures = units.merged_exposures(earlier.exposures, units.exposures(candidates, experiment))
    with (
        kept(exposures) as exposed,
        increments.changed(rows, outcomes, exposed, earlier, experiment, reach.date()) as changed,
    ):
        more = units.unexposed(candidates)
        if not changed.days and not any(more.values()):
            return before, "nothing changed"
        days = changed.days or (before.as_of.date() - timedelta(days=1),)  # a commit, as only more was left out
        left_out = {name: n + before.left_out[name] for name, n in more.items()}
        built = Built(before.experiment_id, reach, conf.units_hash, inputs, left_out)
        current = units.current_outcomes(changed.on_days(outcomes), units.corrected(outcomes), reach)
        with increments.resolved(current, rows, changed, experiment) as resolved:
            counting = changed.of(units.counted_outcomes(current, resolved, exposed, experiment))
            counted = changed.of(units.counted(changed.on_days(rows), exposed, experiment))
            again = units.unit_days(counted, counting, experiment, conf.columns)
            unchanged = changed._replace(days=days).unchanged(lake.read("unit_days", where=where))
            lake.replace(exposed, "exposures", where, built.metadata())
            lake.replace(unchanged.unionByName(again), "unit_days", where, built.metadata(), days=days)
    n_new = (reach.date() - before.as_of.date()).days
    return built, f"{n_new} new days, {len(changed.days) - n_new} earlier days in part"
