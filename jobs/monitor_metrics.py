"""Watches a model: series, findings within a budget, incidents, decisions and rollbacks, notices, and a live page.

`--continuous` goes on until it is stopped, and judges by the event time of what arrives; with `--ingest` the same
process also takes in landing files and topics.
"""

import sys
from datetime import datetime
from functools import partial
from itertools import chain

from pyspark.sql import SparkSession

from mltrust import landing, queries, runtime, watch
from mltrust.conf import Conf, refuse
from mltrust.errors import ConfError
from mltrust.io import tracking
from mltrust.report.monitor import markdown
from mltrust.spark import series
from mltrust.verdicts import Exit


def run(
    spark: SparkSession,
    conf: Conf,
    as_of: datetime,
    *,
    since: str | None = None,
    continuous: bool = False,
    once: bool = True,
    ingest: bool = False,
    trigger: str = "5",
) -> Exit:
    """Scans what is new up to as_of; breach while an incident is open, inconclusive where nothing could be judged."""
    if ingest and not continuous:
        raise ConfError("--ingest: expected with --continuous only; ingest_logs takes in what is there")
    monitor = watch.require_series(conf)
    lake = runtime.lakehouse(spark, conf)
    if ingest:
        lake.ensure(*landing.TABLES)
    lake.require("inference_log", made_by="ingest_logs")
    lake.ensure(*watch.READ[1:], *watch.WRITTEN)
    lake.ensure_view("stopped_versions")
    refuse(conf.path, series.problems(lake.read("inference_log"), monitor))
    inputs = lake.versions(*watch.READ)
    first = None if since is None else runtime.parse_moment("--since", since)
    with runtime.tracked("monitor_metrics", conf, as_of, lake, inputs) as tracked:
        if continuous:
            seconds = runtime.parse_seconds("--trigger", trigger)
            tracking.impatient()
            scan = partial(watch.scan_again, conf=conf, tracked=tracked, since=first, seconds=seconds)
            ingesting = landing.starting(spark, conf, seconds) if ingest else ()
            watching = queries.every(spark, seconds, scan, f"monitor {monitor.monitor_id}")
            queries.until_stopped(chain(ingesting, watching))
            return tracked.conclude(*watch.standing(lake, monitor))
        found = watch.scanned(lake, conf, as_of, inputs, tracked.stamp, since=first)
        page = watch.written_pages(found.view, f"{lake.folder('monitor')}/{monitor.monitor_id}")
        watch.chart(found, tracked)
        if page is not None:
            tracked.run.text(page.read_text(encoding="utf-8"), "monitor.html")
        tracked.run.table([row._asdict() for row in found.view.live], "incidents.json")
        return tracked.conclude(found.verdict, markdown(found.view))


def main() -> int:
    """The job as a program; its exit code."""
    flags = {
        "--continuous": "go on until stopped, up to the event time of what arrives",
        "--once": "scan what is there and end (the default)",
        "--ingest": "with --continuous: take in landing files and topics too, in the same process",
    }
    options = {
        "--since": "UTC time from which the first scan judges (default: a day before its end)",
        "--trigger": "seconds between two scans (5)",
    }
    return runtime.main(
        run, job="monitor_metrics", description=__doc__, flags=flags, options=options, any_moment=True
    )


if __name__ == "__main__":
    sys.exit(main())
