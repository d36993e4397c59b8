"""Outcomes in their highest revisions, the rows that they follow, and those that count for an experiment."""

from datetime import datetime

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from mltrust.experiment.spec import Experiment
from mltrust.spark.exposure import unit_rows


def corrected(outcomes: DataFrame) -> DataFrame:
    """`highest` revision of every outcome that was corrected. Files without corrections are passed over."""
    revised = outcomes.where(F.col("revision") > 0)
    return revised.groupBy("outcome_id").agg(F.max("revision").alias("highest"))


def highest_revisions(outcomes: DataFrame, corrections: DataFrame) -> DataFrame:
    """The outcomes in their highest revisions, the retracted among them.

    One id and revision on two days are two outcomes, as one request_id on two days is two records.
    """
    known = outcomes.join(corrections, "outcome_id", "left")
    return known.where(F.col("revision") == F.coalesce("highest", F.lit(0))).drop("highest")


def current(outcomes: DataFrame, corrections: DataFrame, as_of: datetime) -> DataFrame:
    """The outcomes in their highest revisions, without the retracted, with event times before as_of."""
    before = highest_revisions(outcomes, corrections).where(F.col("event_date") < F.lit(as_of.date()))
    return before.where(F.col("value").isNotNull()).select("outcome_id", *_KEYS, *_OUTCOME)


_KEYS = ("request_id", "item_id", "unit_id", "event_time")
_OUTCOME = ("name", "value", "event_date")
_COUNTED = (*_OUTCOME, "score", "delay")


def resolved(outcomes: DataFrame, rows: DataFrame, experiment: Experiment, *, same_day: bool = False) -> DataFrame:
    """Outcomes keyed by request with `unit`, `request_time` and `score` of the row that they follow most closely.

    That is the last row of the request (of its item, where the outcome names one) at or before the outcome; with
    both keys the request decides. Of rows at the same time the one that is last by unit, item and model gives the
    score. Those without such a row are left out. `same_day` looks for it on their own day.
    """
    requests = unit_rows(rows, experiment).where(F.col("unit").isNotNull())
    belongs = follows()
    if same_day:
        belongs &= F.col("o.event_date") == F.col("r.event_date")
    keyed = outcomes.where(F.col("request_id").isNotNull()).alias("o")
    found = keyed.join(requests.select(*_REQUEST).alias("r"), belongs)
    last = F.max(F.struct("r.event_time", "r.unit"))
    # An aggregate of its own, so that scores are read only where a metric column needs them.
    score = F.max_by("r.prediction_score", F.struct(*(f"r.{name}" for name in _LAST_ROW)))
    return (
        found.groupBy("o.outcome_id", "o.event_date")
        .agg(
            last.alias("last"),
            score.alias("score"),
            *(F.first(f"o.{name}").alias(name) for name in ("name", "value", "event_time")),
        )
        .select(
            *("outcome_id", "name", "value", "event_date", "event_time", "score"),
            F.col("last.unit").alias("unit"),
            F.col("last.event_time").alias("request_time"),
        )
    )


_LAST_ROW = ("event_time", "unit", "item_id", "model_name", "model_version")
_REQUEST = (*_LAST_ROW, "request_id", "event_date", "prediction_score")


def follows() -> Column:
    """Whether an outcome (o) is of the request of a row (r), of its item where it names one, and not before it."""
    of_item = F.col("o.item_id").isNull() | (F.col("o.item_id") == F.col("r.item_id"))
    of_request = F.col("o.request_id") == F.col("r.request_id")
    return of_request & of_item & (F.col("r.event_time") <= F.col("o.event_time"))


def counted(
    outcomes: DataFrame, resolved_outcomes: DataFrame, exposed: DataFrame | None, experiment: Experiment
) -> DataFrame:
    """Outcomes that count, with their `unit`: of counted requests, or of units after their first exposure.

    `score` is that of their row, null where they are keyed by unit, and `delay` the days since their row, or since
    the unit's first exposure. Outcomes keyed by unit count only where the unit is unit_id. Of `units.everyone` all
    count; there those keyed by unit have no delay.
    """
    without_score = F.lit(None).cast("double").alias("score")
    unit_keyed = outcomes.where(F.col("request_id").isNull()).withColumnRenamed("unit_id", "unit")
    of_requests = resolved_outcomes.withColumn("delay", _days_since("request_time"))
    if exposed is None:
        own = unit_keyed.where(F.col("unit").isNotNull()).withColumn("delay", F.lit(None).cast("double"))
        return of_requests.select("unit", *_COUNTED).unionByName(
            own.select("unit", *_OUTCOME, without_score, "delay")
        )
    first = exposed.select(F.col("unit_id").alias("unit"), "first_exposure")
    counts = of_requests.join(first, "unit").where(F.col("request_time") >= F.col("first_exposure"))
    by_request = counts.select("unit", *_COUNTED)
    if experiment.unit != "unit_id":
        return by_request
    by_unit = unit_keyed.join(first, "unit").where(F.col("event_time") >= F.col("first_exposure"))
    delay = _days_since("first_exposure").alias("delay")
    return by_request.unionByName(by_unit.select("unit", *_OUTCOME, without_score, delay))


def _days_since(time: str) -> Column:
    """Days from a time to that of the event."""
    return (F.unix_micros("event_time") - F.unix_micros(time)) / F.lit(86_400_000_000)
