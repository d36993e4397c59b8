"""Says whether a log is whole: volume, rejects, drops and lags per model version and day, outcomes that match."""

import sys
from datetime import datetime, timedelta

from pyspark.sql import SparkSession

from mltrust import runtime
from mltrust.conf import Conf
from mltrust.health import Limits, judged, outcome_windows
from mltrust.report.figures import volume
from mltrust.report.health import markdown, metrics
from mltrust.spark import health
from mltrust.verdicts import Exit

INPUTS = ("inference_log", "inference_log_rejects", "heartbeats", "outcomes")


def run(spark: SparkSession, conf: Conf, as_of: datetime) -> Exit:
    """Replaces the rows of the days before as_of; breach where the last day or the window as a whole is one."""
    settings, lake = conf.settings.health, runtime.lakehouse(spark, conf)
    lake.require("inference_log", "outcomes", made_by="ingest_logs")
    lake.ensure("inference_log_rejects", "heartbeats", "log_health", "outcome_health")
    inputs = lake.versions(*INPUTS)
    with runtime.tracked("report_log_health", conf, as_of, lake, inputs) as tracked:
        log, rejects, heartbeats, outcomes = (lake.read(name, inputs[name]) for name in INPUTS)
        end = as_of.date()
        days = [end - timedelta(days=age) for age in range(settings.days, 0, -1)]
        logged = health.log_days(log, rejects, heartbeats, start=days[0], end=end)
        told = health.outcome_days(outcomes, log, start=days[0], end=end, match_days=settings.match_days)
        limits = Limits(settings.max_drop_share, conf.settings.ingest.max_reject_share)
        found = judged(logged, limits, end)
        tables = {
            "log_health": [row._asdict() | judgement._asdict() for row, judgement in found.days],
            "outcome_health": [row._asdict() for row in told],
        }
        for name, rows in tables.items():
            lake.replace(lake.rows(name, [row | tracked.stamp for row in rows]), name, {}, days=days)
            tracked.run.table(rows, f"{name}.json")
        left_out = tracked.run.metrics(metrics(found))
        tracked.run.figure(volume(logged, days), "volume.png")
        words = markdown(found, outcome_windows(told), days[0], end, left_out)
        return tracked.conclude(found.verdict, words)


def main() -> int:
    """The job as a program; its exit code."""
    return runtime.main(run, job="report_log_health", description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
