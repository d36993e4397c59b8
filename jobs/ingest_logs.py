"""Takes landing files and topics into the log and the outcomes: every record once, rejects, balanced books."""

import sys
from datetime import UTC, datetime

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from mltrust import landing, queries, runtime
from mltrust.conf import Conf
from mltrust.errors import DataError
from mltrust.report.ingest import describe
from mltrust.spark import logs
from mltrust.verdicts import Exit


def run(
    spark: SparkSession,
    conf: Conf,
    as_of: datetime,
    *,
    once: bool = True,
    continuous: bool = False,
    trigger: str = "5",
) -> Exit:
    """Ingests every landing file and message that was not read yet; breach above the conf's max_reject_share.

    `once`, the default, takes what is there and ends, `continuous` goes on until it is stopped.
    """
    lake = runtime.lakehouse(spark, conf)
    lake.ensure(*landing.TABLES)
    began = datetime.now(UTC)
    with runtime.tracked("ingest_logs", conf, as_of, lake, {}) as tracked:
        if continuous:
            queries.until_stopped(landing.starting(spark, conf, runtime.parse_seconds("--trigger", trigger)))
        elif not landing.ingest_all(spark, conf):
            raise DataError(
                "no landing folder and no topic: expected files in "
                f"{conf.settings.landing_folder(conf.log, 'records')}, or ingest.kafka in the conf"
            )
        entered = lake.read("ingest_batches").where(F.col("ingested_at") >= F.lit(began))
        summary = describe(logs.sums(entered), conf.settings.ingest.max_reject_share)
        tracked.run.metrics(summary.metrics)
        if not continuous:  # which may have gone on for months
            tracked.run.table([row.asDict() for row in entered.collect()], "ingest_batches.json")
        return tracked.conclude(summary.verdict, summary.markdown)


def main() -> int:
    """The job as a program; its exit code."""
    flags = {
        "--once": "take what is there and end (the default)",
        "--continuous": "go on until stopped (SIGTERM or Ctrl-C)",
    }
    options = {"--trigger": "seconds between two batches of --continuous (5)"}
    return runtime.main(run, job="ingest_logs", description=__doc__, flags=flags, options=options)


if __name__ == "__main__":
    sys.exit(main())
