"""Reads an experiment: validity first, then effects by slice, then one verdict, in Delta and in MLflow."""

import sys
from datetime import datetime

from pyspark.sql import SparkSession

from mltrust import runtime
from mltrust.conf import Conf
from mltrust.experiment.readout import readout
from mltrust.report.figures import forest
from mltrust.report.readout import markdown, metrics
from mltrust.spark import experiments
from mltrust.spark.units import EVERYONE
from mltrust.verdicts import Exit, Verdict


def run(spark: SparkSession, conf: Conf, as_of: datetime) -> Exit:
    """Replaces the results of this experiment and as_of; ends with the verdict of its decision set."""
    experiment, limits, lake = conf.the_experiment(), conf.settings.limits, runtime.lakehouse(spark, conf)
    if experiment.unit is None:
        with runtime.tracked("analyze_experiment", conf, as_of, lake, {}) as tracked:
            return tracked.conclude(Verdict.INCONCLUSIVE, "the conf states no unit (unit_id, request or bucket_id)")
    lake.require("exposures", "unit_days", made_by="build_units")
    inputs = runtime.units_built(lake, conf, as_of)
    lake.ensure("experiment_effects", "experiment_checks", "experiment_fairness", "inference_log_rejects")
    inputs |= lake.versions("inference_log_rejects")
    with runtime.tracked("analyze_experiment", conf, as_of, lake, inputs) as tracked:
        mine = {"experiment_id": experiment.experiment_id}
        exposures, days = (lake.read(name, inputs[name], mine) for name in ("exposures", "unit_days"))
        if experiment.pre_days is not None:
            days = days.unionByName(lake.read("unit_days", inputs["unit_days"], {"experiment_id": EVERYONE}))
        states = experiments.states(
            exposures,
            days,
            experiment,
            as_of,
            max_cells=limits.max_cells,
            max_values=limits.max_values,
            others=experiments.others(lake.read("exposures", inputs["exposures"]), experiment),
            rejects=lake.read("inference_log_rejects", inputs["inference_log_rejects"]),
            histograms=conf.columns.histograms,
        )
        found = readout(states, experiment, as_of.date(), conf.columns.delays())
        where = mine | {"as_of": as_of}
        for name, results in (
            ("experiment_effects", found.effects),
            ("experiment_checks", found.checks),
            ("experiment_fairness", found.disparities),
        ):
            rows = [row._asdict() | mine for row in results]
            lake.replace(lake.rows(name, [row | tracked.stamp for row in rows]), name, where)
            tracked.run.table(rows, f"{name}.json")
        left_out = tracked.run.metrics(metrics(found))
        tracked.run.figure(forest(found.effects), "forest.png")
        tracked.run.tags({"recommendation": found.recommendation})
        if len(found.advice) > 1:
            tracked.run.tags({f"recommendation.{each.treatment}": each.recommendation for each in found.advice})
        return tracked.conclude(found.verdict, markdown(found, experiment, as_of, left_out, states.note))


def main() -> int:
    """The job as a program; its exit code."""
    return runtime.main(run, job="analyze_experiment", description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
