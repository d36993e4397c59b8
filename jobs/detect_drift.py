"""Looks for drift in what a model reads and predicts: a window against its references, each one family of tests."""

import sys
from datetime import datetime

from pyspark.sql import SparkSession

from mltrust import profiling, runtime
from mltrust.conf import Conf
from mltrust.drift.families import families, needed
from mltrust.drift.readout import judge, verdict
from mltrust.errors import ConfError
from mltrust.model_drift import model_drift
from mltrust.report import drift as report
from mltrust.report import model_drift as of_models
from mltrust.report.drift_figures import distributions, heat_map
from mltrust.verdicts import Exit, Verdict

TABLES = ("drift_edges", "drift_profile", "drift_findings", "performance")


def run(spark: SparkSession, conf: Conf, as_of: datetime, rehearse: str | None = None) -> Exit:
    """Replaces the findings of this monitor and as_of; with `rehearse` says what past windows would have given."""
    monitor, drift, lake = conf.the_monitor(), conf.the_drift(), runtime.lakehouse(spark, conf)
    n_windows = 1 if rehearse is None else _number(rehearse)
    lake.require("inference_log", "outcomes", made_by="ingest_logs")
    lake.ensure(*TABLES)
    lake.ensure_view("drift_metrics")
    inputs = lake.versions("inference_log", "outcomes")
    with runtime.tracked("detect_drift", conf, as_of, lake, inputs) as tracked:
        log, end = lake.read("inference_log", inputs["inference_log"]), as_of.date()
        windows = needed(drift, end, n_windows - 1)
        found = profiling.profiled(lake, conf, log, windows, tracked)
        arms = profiling.arms(conf)
        past = [families(drift, found.surveyed, arms, end, back) for back in range(n_windows)]
        if rehearse is not None:
            words = report.rehearsal([judge(each, found.cells, drift) for each in past])
            return tracked.conclude(Verdict.PASS, words)
        judged = judge(past[0], found.cells, drift, profiling.counted(log, conf, as_of))
        more = model_drift(lake, inputs, conf, found, judged, as_of)
        mine = {"model_name": monitor.model_name, "monitor_id": monitor.monitor_id}
        where = mine | {"as_of": as_of}
        for name, results in (
            ("drift_findings", [*report.rows(judged), *of_models.finding_rows(more.tests(), drift)]),
            ("performance", of_models.performance_rows(more.performance)),
        ):
            rows = [row | mine for row in results]
            lake.replace(lake.rows(name, [row | tracked.stamp for row in rows]), name, where)
            tracked.run.table(rows, f"{name}.json")
        tracked.run.metrics(report.metrics(judged) | of_models.metrics(more.performance))
        history = [row.asDict() for row in profiling.history(lake, conf, as_of).collect()]
        tracked.run.series(report.series(history))
        tracked.run.figure(heat_map(report.heat(history)), "drift.png")
        if moved := report.moved(judged, found.cells):
            tracked.run.figure(distributions(moved), "distributions.png")
        parts = of_models.markdown(more.all(), more.moves)
        words = report.markdown(judged, monitor.model_name, parts, found.n_counted, len(windows))
        return tracked.conclude(verdict(judged, more.all()), words)


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfError(f"--rehearse {text}: expected how many windows before as_of, 1 or more")
    return int(text)


def main() -> int:
    """The job as a program; its exit code."""
    options = {"--rehearse": "judge this many past windows, write no findings, and say how often the alarm fires"}
    return runtime.main(run, job="detect_drift", description=__doc__, options=options)


if __name__ == "__main__":
    sys.exit(main())
