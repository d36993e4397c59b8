"""Builds exposures and unit_days of an experiment from the log and the outcomes before as_of, in full."""

import sys
from datetime import datetime

from pyspark.sql import SparkSession

from mltrust import runtime
from mltrust.conf import Conf
from mltrust.spark import units
from mltrust.verdicts import Exit, Verdict


def run(spark: SparkSession, conf: Conf, as_of: datetime) -> Exit:
    """Replaces the experiment's rows; inconclusive where its conf does not say what a unit is."""
    experiment, lake = conf.the_experiment(), runtime.lakehouse(spark, conf)
    lake.require("inference_log", "outcomes", made_by="ingest_logs")
    lake.ensure("exposures", "unit_days")
    inputs = lake.versions("inference_log", "outcomes")
    with runtime.tracked("build_units", conf, as_of, lake, inputs) as tracked:
        if experiment.unit is None:
            return tracked.conclude(Verdict.INCONCLUSIVE, "the conf states no unit (unit_id, request or bucket_id)")
        rows = units.production(lake.read("inference_log", inputs["inference_log"]), as_of)
        outcomes = units.current_outcomes(lake.read("outcomes", inputs["outcomes"]), as_of)
        units.refuse_unknown(rows, conf.columns)
        candidates = units.candidates(rows, experiment)
        left_out = units.unexposed(candidates) | {"unmatched_outcomes": units.unmatched(outcomes, rows)}
        built = {
            "experiment_id": experiment.experiment_id,
            "as_of": as_of.isoformat(),
            "units_hash": conf.units_hash,
            "input_versions": inputs,
            "left_out": left_out,
        }
        where = {"experiment_id": experiment.experiment_id}
        lake.replace(units.exposures(candidates, experiment), "exposures", where, built)
        exposed = lake.read("exposures", where=where)
        counted = units.counted(rows, exposed, experiment)
        counted_outcomes = units.outcome_rows(outcomes, counted, exposed, experiment)
        lake.replace(units.unit_days(counted, counted_outcomes, experiment, conf.columns), "unit_days", where, built)
        tracked.run.metrics({name: float(n) for name, n in left_out.items()})
        return tracked.conclude(Verdict.PASS, "exposures and unit_days are rebuilt; left out: " + _listed(left_out))


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in counts.items())


def main() -> int:
    """The job as a program; its exit code."""
    return runtime.main(run, job="build_units", description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
