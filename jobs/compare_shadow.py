"""Compares shadow traffic with production: rows of one request, paired; what is alone, late or different."""

import sys
from datetime import datetime

from pyspark.sql import SparkSession

from mltrust import replaying, runtime
from mltrust.conf import Conf, refuse
from mltrust.errors import ConfError
from mltrust.replay import masking
from mltrust.spark import shadows
from mltrust.verdicts import Exit

FILES = {"--junit": "file to write the gate's findings to as JUnit XML", "--summary": "file for the page in Markdown"}


def run(spark: SparkSession, conf: Conf, as_of: datetime, **files: str) -> Exit:
    """Pairs the champion's production rows with the candidate's shadows, and ends with the verdict of their gate."""
    replay, lake = conf.the_replay(), runtime.lakehouse(spark, conf)
    if replay.shadow is None:
        raise ConfError(f"{conf.path}: shadow: missing; expected the gate that shadow traffic has to pass")
    names = masking.by_scrubbed(
        masking.plan(conf.contract), replay.slices.attributes, replay.slices.attributes, "slices"
    )
    refuse(conf.path, names)
    lake.require("inference_log", made_by="ingest_logs")
    lake.ensure(replaying.FINDINGS)
    inputs = lake.versions("inference_log")
    with runtime.tracked("compare_shadow", conf, as_of, lake, inputs) as tracked:
        work = replaying.begin(conf, lake, tracked, kind="shadow")
        log = lake.read("inference_log", inputs["inference_log"])
        paired = shadows.paired(log, replay, work.champion.version, work.candidate.version, as_of)
        found = replaying.compared(work, paired.pairs)
        of_pairing = shadows.findings(paired.counts, replay.shadow)
        both = found._replace(findings=[*found.findings, *of_pairing])
        return replaying.conclude(work, both, replay.shadow.gate, files)


def main() -> int:
    """The job as a program; its exit code."""
    return runtime.main(run, job="compare_shadow", description=__doc__, options=FILES)


if __name__ == "__main__":
    sys.exit(main())
