"""The log's past as the tables of an experiment that every unit enters when it is first seen."""

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mltrust.errors import ConfError
from mltrust.experiment.spec import Experiment
from mltrust.experiment.trial import History, Trial
from mltrust.spark.exposure import unit_rows


def exposing(rows: DataFrame, experiment: Experiment) -> DataFrame:
    """The rows that would expose their unit, by `plan.where`; ConfError where that is no condition on a record."""
    if (where := experiment.plan.where) is None:
        return rows
    try:
        _ = (chosen := rows.where(F.expr(where))).schema
    except Exception as error:  # a parser or an analyser, of a classic or a Connect session
        said = str(error).splitlines()[0]
        raise ConfError(f"plan.where: {where!r} cannot be read on a record: {said}") from None
    return chosen


def history(rows: DataFrame, experiment: Experiment) -> History:
    """From when to when units were seen in these rows; one Spark job."""
    seen = unit_rows(exposing(rows, experiment), experiment).where(F.col("unit").isNotNull())
    days = seen.agg(F.min("event_date").alias("first"), F.max("event_date").alias("last")).first()
    return History(None, None) if days is None else History(days["first"], days["last"])


def carrying(rows: DataFrame, experiment: Experiment) -> DataFrame:
    """The exposing rows as if each carried the experiment, in its control."""
    entry = F.struct(
        F.lit(experiment.experiment_id).alias("experiment_id"),
        F.lit(None).cast("string").alias("bucket_id"),
        F.lit(experiment.control).alias("variant"),
    )
    return exposing(rows, experiment).withColumn("experiments", F.array(entry))


def with_copies(days: DataFrame, trial: Trial) -> DataFrame:
    """Rows of unit_days with the columns of the trial's metrics that count to the end of a week."""
    return days.withColumns(
        {name: F.when(F.col("day") < F.lit(end), F.col(of)) for name, (of, end) in trial.copies().items()}
    )
