"""Plans an experiment from the log's past: what it would find after each number of weeks, and how many it needs."""

import sys
from datetime import datetime

from pyspark.sql import SparkSession

from mltrust import build, runtime
from mltrust.conf import Conf
from mltrust.experiment.planning import plan
from mltrust.experiment.trial import Trial, unplannable
from mltrust.report.figures import detectable
from mltrust.report.plan import markdown, metrics
from mltrust.spark import experiments
from mltrust.verdicts import Exit, Verdict


def run(spark: SparkSession, conf: Conf, as_of: datetime) -> Exit:
    """Replaces the plan of this experiment and as_of; pass where some number of weeks is enough."""
    experiment, limits, lake = conf.the_experiment(), conf.settings.limits, runtime.lakehouse(spark, conf)
    lake.require("inference_log", "outcomes", made_by="ingest_logs")
    lake.ensure("experiment_plans")
    inputs = lake.versions("inference_log", "outcomes")
    with runtime.tracked("plan_experiment", conf, as_of, lake, inputs) as tracked:
        history = build.history(lake, conf, as_of, inputs)
        if why_not := unplannable(experiment, history, as_of.date()):
            return tracked.conclude(Verdict.INCONCLUSIVE, f"**no plan** — {why_not}")
        trial = Trial.before(as_of.date(), experiment, history)
        with build.trial_tables(lake, conf, trial, as_of, inputs) as (exposures, days):
            states = experiments.states(
                exposures, days, trial.experiment, as_of, max_cells=limits.max_cells, max_values=limits.max_values
            )
        found = plan(states, experiment, trial)
        mine = {"experiment_id": experiment.experiment_id}
        rows = [row._asdict() | mine for row in found.prospects]
        where = mine | {"as_of": as_of}
        lake.replace(lake.rows("experiment_plans", [row | tracked.stamp for row in rows]), "experiment_plans", where)
        tracked.run.table([row._asdict() for row in found.prospects if row.overall], "experiment_plans.json")
        tracked.run.metrics(metrics(found))
        tracked.run.figure(detectable(found), "detectable.png")
        return tracked.conclude(found.verdict, markdown(found, experiment, trial, as_of, states.note))


def main() -> int:
    """The job as a program; its exit code."""
    return runtime.main(run, job="plan_experiment", description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
