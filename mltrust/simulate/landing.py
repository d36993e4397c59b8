"""Writes the lines of a simulation into the landing folders of its log, and says what it wrote."""

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, Observation, SparkSession
from pyspark.sql import functions as F

from mltrust.errors import DataError
from mltrust.settings import Settings
from mltrust.simulate.faults import OUTCOME_FAULTS, RECORD_FAULTS
from mltrust.simulate.models import Served, scored
from mltrust.simulate.spec import Simulation
from mltrust.simulate.traffic import live, served
from mltrust.simulate.wire import ACCEPTED, legacy_lines, outcome_lines, record_lines

Stream = Literal["records", "outcomes"]
_KINDS = (ACCEPTED, *dict.fromkeys([*RECORD_FAULTS, *OUTCOME_FAULTS]))


class Written(NamedTuple):
    """Lines written, per stream: kind (accepted, duplicate or reason code) -> how many."""

    records: Mapping[str, int]
    outcomes: Mapping[str, int]


def folders(settings: Settings, log: str) -> dict[Stream, str]:
    """The landing folder of each stream of the log."""
    return {stream: settings.landing_folder(log, stream) for stream in get_args(Stream)}


def refuse_used(spark: SparkSession, into: Mapping[Stream, str]) -> None:
    """Raises DataError where a landing folder has files already, as ingest reads each but once."""
    for folder in into.values():
        if _has_lines(spark, folder):
            raise DataError(
                f"{folder}: has files already, expected none; ingest reads each file once, so that a new "
                "simulation takes a new root, or one whose landing folder, tables and checkpoints are deleted"
            )


def write(
    spark: SparkSession, simulation: Simulation, models: Mapping[str, Served], into: Mapping[Stream, str]
) -> Written:
    """What was written: records and outcomes, by the champion and the candidate of `models`."""
    rows = served(live(spark, simulation), simulation)
    records = record_lines(scored(rows, models), models, simulation).unionByName(legacy_lines(spark, simulation))
    return Written(
        records=_write(records, into["records"], simulation.n_files),
        outcomes=_write(outcome_lines(rows, simulation), into["outcomes"], simulation.n_files),
    )


def _write(lines: DataFrame, folder: str, n_files: int) -> dict[str, int]:
    counted = Observation()
    (
        lines.observe(counted, *(F.count_if(F.col("kind") == kind).alias(kind) for kind in _KINDS))
        .repartitionById(n_files, "file")
        # The same lines in the same order, wherever they were made.
        .sortWithinPartitions("day", "line")
        .select("line")
        .write.mode("append")
        .text(folder)
    )
    return {kind: n for kind, n in counted.get.items() if n}


def _has_lines(spark: SparkSession, folder: str) -> bool:
    try:
        return not spark.read.option("recursiveFileLookup", "true").text(folder).isEmpty()
    except AnalysisException as error:
        if error.getCondition() == "PATH_NOT_FOUND":
            return False
        raise
