"""Builds exposures and unit_days of an experiment from the log and the outcomes before as_of.

Of what an earlier run built, only what changed since is built again; --full builds everything.
"""

import sys
from datetime import datetime

from pyspark.sql import SparkSession

from mltrust import build, runtime
from mltrust.conf import Conf
from mltrust.io.tables import Lakehouse, Versions
from mltrust.verdicts import Exit, Verdict


def run(spark: SparkSession, conf: Conf, as_of: datetime, *, full: bool = False) -> Exit:
    """Brings the experiment's rows up to as_of; inconclusive where its conf does not say what a unit is."""
    experiment, lake = conf.the_experiment(), runtime.lakehouse(spark, conf)
    lake.require("inference_log", "outcomes", made_by="ingest_logs")
    lake.ensure("exposures", "unit_days")
    inputs = lake.versions("inference_log", "outcomes")
    with runtime.tracked("build_units", conf, as_of, lake, inputs) as tracked:
        if experiment.unit is None:
            return tracked.conclude(Verdict.INCONCLUSIVE, "the conf states no unit (unit_id, request or bucket_id)")
        before = None if full else runtime.built(lake, conf)
        earlier = None if before is None else build.earlier_build(lake, before, inputs)
        if before is None or earlier is None:
            built, words = build.build_all(lake, conf, as_of, inputs), "built in full"
        else:
            built, words = build.build_changed(lake, conf, max(as_of, before.as_of), inputs, before, earlier)
        if experiment.pre_days is not None:
            words += f"; the units' past: {bring_past(lake, conf, as_of, inputs, full=full)}"
        tracked.run.metrics({name: float(n) for name, n in built.left_out.items()})
        left_out = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in built.left_out.items())
        return tracked.conclude(Verdict.PASS, f"exposures and unit_days: {words}; left out: {left_out}")


def bring_past(lake: Lakehouse, conf: Conf, as_of: datetime, inputs: Versions, *, full: bool) -> str:
    """Brings the days that covariates come from up to as_of; what was built, in words."""
    before = None if full else runtime.built_past(lake, conf)
    earlier = None if before is None else build.earlier_build(lake, before, inputs)
    if before is None or earlier is None:
        since = build.build_past(lake, conf, as_of, inputs).since
        return f"built in full since {since}"
    return build.build_changed_past(lake, conf, max(as_of, before.as_of), inputs, before, earlier)[1]


def main() -> int:
    """The job as a program; its exit code."""
    flags = {"--full": "build everything again instead of what changed"}
    return runtime.main(run, job="build_units", description=__doc__, flags=flags)


if __name__ == "__main__":
    sys.exit(main())
