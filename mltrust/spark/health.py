"""Log, rejects, heartbeats and outcomes to one row per model version and day, and one per outcome and day."""

from datetime import UTC, date, datetime, time, timedelta
from functools import reduce
from math import nan

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from mltrust.health import UNKNOWN, LogDay, OutcomeDay
from mltrust.spark import outcome

_MODEL_DAY = ("model_name", "model_version", "day")
_CELL = ("schema_version", "feature_version", "traffic", "status", "lag")
_QUANTILES = {"lag_p50": 0.5, "lag_p95": 0.95}


def log_days(log: DataFrame, rejects: DataFrame, heartbeats: DataFrame, *, start: date, end: date) -> list[LogDay]:
    """Every model version and day of [start, end) of which anything is known; each table is read once.

    Of the log and the heartbeats only the partitions of these days are read.
    """
    cells = (
        _log_cells(_dated(log, start, end)),
        _reject_cells(rejects, start, end),
        _heartbeat_cells(_dated(heartbeats, start, end)),
    )
    united = reduce(lambda left, right: left.unionByName(right, allowMissingColumns=True), cells)
    sums = [name for name in LogDay._fields if name.startswith("n_") and name != "n_producers"]
    refused = F.struct("reason_code", "n_rejected")
    found = united.groupBy(*_MODEL_DAY).agg(
        *(F.coalesce(F.sum(name), F.lit(0)).alias(name) for name in sums),
        F.map_from_entries(F.array_sort(F.collect_list(F.when(F.col("reason_code").isNotNull(), refused)))).alias(
            "rejects"
        ),
        F.count("producer_id").alias("n_producers"),
        *(F.array_sort(F.collect_set(name)).alias(f"{name}s") for name in ("schema_version", "feature_version")),
        *_lags("n_records"),
    )
    ordered = sorted(found.select(*LogDay._fields).collect(), key=lambda row: (row["day"], *row[:2]))
    return [LogDay(**row.asDict()) for row in ordered]


def outcome_days(outcomes: DataFrame, log: DataFrame, *, start: date, end: date, match_days: int) -> list[OutcomeDay]:
    """Every name of outcomes and day of [start, end); of the log `match_days` more are read, to find their requests.

    An outcome keyed by request is matched where the log holds its request (and its item, where it names one), of
    any traffic, not later than itself and at most `match_days` UTC days before. Corrections of any day before `end`
    are taken in.
    """
    corrections = outcome.corrected(outcomes.where(F.col("event_date") < F.lit(end)))
    highest = outcome.highest_revisions(_dated(outcomes, start, end), corrections).withColumn("lag", _lag())
    rows = _dated(log, start - timedelta(days=match_days), end).select(*_REQUEST)
    belongs = outcome.follows() & (F.col("r.event_date") >= F.date_sub("o.event_date", match_days))
    each = (
        highest.alias("o")
        .join(rows.alias("r"), belongs, "left")
        .groupBy(
            "o.name",
            F.col("o.event_date").alias("day"),
            "o.outcome_id",
            "o.lag",
            (F.col("o.revision") > 0).alias("is_corrected"),
            F.col("o.value").isNotNull().alias("holds"),
            F.col("o.request_id").isNotNull().alias("by_request"),
        )
        .agg((F.count("r.request_id") > 0).alias("is_matched"))
    )
    counts = _outcome_counts()
    cells = each.groupBy("name", "day", "lag").agg(*(n.alias(name) for name, n in counts.items()))
    found = cells.groupBy("name", "day").agg(*(F.sum(name).alias(name) for name in counts), *_lags("n_outcomes"))
    ordered = sorted(found.select(*OutcomeDay._fields).collect(), key=lambda row: (row["day"], row["name"]))
    return [OutcomeDay(**row.asDict()) for row in ordered]


_REQUEST = ("request_id", "item_id", "event_time", "event_date")


def _outcome_counts() -> dict[str, Column]:
    holds, by_request = F.col("holds"), F.col("by_request")
    return {
        "n_outcomes": F.count_if(holds),
        "n_corrected": F.count_if(holds & F.col("is_corrected")),
        "n_retracted": F.count_if(~holds),
        "n_by_request": F.count_if(holds & by_request),
        "n_by_unit": F.count_if(holds & ~by_request),
        "n_unmatched": F.count_if(holds & by_request & ~F.col("is_matched")),
    }


def _dated(rows: DataFrame, start: date, end: date) -> DataFrame:
    return rows.where((F.col("event_date") >= F.lit(start)) & (F.col("event_date") < F.lit(end)))


def _lag() -> Column:
    """Seconds from event to arrival, rounded down: to whole ones, from 1000 on to three digits.

    So a day has few different lags, whose exact percentiles do not depend on how the rows are partitioned.
    """
    seconds = (F.unix_micros("ingested_at") - F.unix_micros("event_time")) / 1_000_000
    digits = F.floor(F.log10(F.greatest(F.abs(seconds), F.lit(1.0))))
    step = F.pow(F.lit(10.0), F.greatest(digits - 2, F.lit(0)))
    return F.floor(seconds / step) * step


def _lags(n: str) -> list[Column]:
    """Percentiles and maximum of the column `lag` that occurs `n` times."""
    found = {name: F.percentile("lag", at, F.col(n)) for name, at in _QUANTILES.items()}
    found["lag_max"] = F.max(F.when(F.col(n) > 0, F.col("lag")))
    return [F.coalesce(each, F.lit(nan)).alias(name) for name, each in found.items()]


def _log_cells(log: DataFrame) -> DataFrame:
    """Counts of rows by versions and lag, and beside them each request counted once.

    A request stands beside its rows as a group of its own: of 3 M rows in 252 groups this took 4.8 s, count_distinct
    among the other aggregates 15 s, as it makes Spark sort every row, and two scans 7 s.
    """
    rows = log.withColumns({"day": F.col("event_date"), "lag": _lag()})
    no_request = F.lit(None).cast("string").alias("request_id")
    no_cell = (F.lit(None).cast(rows.schema[name].dataType).alias(name) for name in _CELL)
    both = F.array(F.struct(no_request, *_CELL), F.struct("request_id", *no_cell))
    groups = rows.select(*_MODEL_DAY, F.inline(both)).groupBy(*_MODEL_DAY, "request_id", *_CELL).count()
    n, is_row = F.col("count"), F.col("request_id").isNull()
    counted = {
        "n_records": is_row,
        "n_production": F.col("traffic") == "production",
        "n_shadow": F.col("traffic") == "shadow",
        "n_errors": F.col("status") == "error",
    }
    return groups.groupBy(*_MODEL_DAY, "schema_version", "feature_version", "lag").agg(
        F.count("request_id").alias("n_requests"),
        *(F.sum(F.when(condition, n).otherwise(0)).alias(name) for name, condition in counted.items()),
    )


def _reject_cells(rejects: DataFrame, start: date, end: date) -> DataFrame:
    first, after = (F.lit(datetime.combine(day, time(), UTC)) for day in (start, end))
    within = rejects.where((F.col("ingested_at") >= first) & (F.col("ingested_at") < after))
    model = (F.coalesce(F.nullif(name, F.lit("")), F.lit(UNKNOWN)).alias(name) for name in _MODEL_DAY[:2])
    keyed = within.select(*model, F.to_date("ingested_at").alias("day"), "reason_code")
    return keyed.groupBy(*_MODEL_DAY, "reason_code").agg(F.count("*").alias("n_rejected"))


def _heartbeat_cells(heartbeats: DataFrame) -> DataFrame:
    told = ("logged", "dropped", "invalid", "spilled")
    keyed = heartbeats.withColumn("day", F.col("event_date")).groupBy(*_MODEL_DAY, "producer_id")
    return keyed.agg(*(F.sum(name).alias(f"n_{name}") for name in told))
