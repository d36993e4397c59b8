"""Replays a set through champion and candidate: reproduction, comparison, perturbed inputs, and the gate.

Scores are made in parts, each written once: a run that died is finished by the next one.
"""

import sys
from datetime import datetime

from pyspark.sql import SparkSession

from mltrust import replaying, runtime
from mltrust.conf import Conf
from mltrust.verdicts import Exit

FILES = {"--junit": "file to write the gate's findings to as JUnit XML", "--summary": "file for the page in Markdown"}


def run(spark: SparkSession, conf: Conf, as_of: datetime, **files: str) -> Exit:
    """Scores what is not scored yet, compares all of it, and ends with the gate's verdict."""
    replay, lake = conf.the_replay(), runtime.lakehouse(spark, conf)
    made = replaying.newest_set(lake, conf)
    lake.ensure(replaying.ROWS, replaying.FINDINGS)
    inputs = {replaying.SETS: made.version}
    with runtime.tracked("replay_traffic", conf, as_of, lake, inputs) as tracked:
        work, rows = replaying.scores(replaying.begin(conf, lake, tracked), made)
        found = replaying.compared(work, rows, n_weights=made.n_weights)
        return replaying.conclude(work, found, replay.gate, files)


def main() -> int:
    """The job as a program; its exit code."""
    return runtime.main(run, job="replay_traffic", description=__doc__, options=FILES)


if __name__ == "__main__":
    sys.exit(main())
