"""What checks of data quality count beside profiles: rows by hour, and units within which a column changes."""

from collections.abc import Sequence
from typing import NamedTuple

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from mltrust.drift.spec import Window

_HOUR_SECONDS = 3600


class Changes(NamedTuple):
    """Units with several rows, and by column those of them whose rows have several values."""

    n_units: int
    n_changed: dict[str, int]


def hourly(log: DataFrame, windows: Sequence[Window]) -> dict[tuple[str, Window], list[int]]:
    """Production rows by hour of each window, of every model version with rows in it; one Spark job."""
    rows = _within(log, windows).where(F.col("traffic") == "production")
    hour = F.floor(F.unix_seconds("event_time") / _HOUR_SECONDS) - F.unix_date("event_date") * 24
    counted = rows.groupBy("model_version", "event_date", hour.alias("hour")).count().collect()
    found: dict[tuple[str, Window], list[int]] = {}
    for row in counted:
        for window in windows:
            if window.start <= row["event_date"] < window.end:
                hours = found.setdefault((row["model_version"], window), [0] * (24 * window.days))
                hours[24 * (row["event_date"] - window.start).days + row["hour"]] += row["count"]
    return found


def changes(log: DataFrame, windows: Sequence[Window], columns: Sequence[str]) -> dict[tuple[str, Window], Changes]:
    """By model version and window, production rows of units that are named; one Spark job."""
    rows = _within(log, windows).where((F.col("traffic") == "production") & F.col("unit_id").isNotNull())
    placed = rows.select("model_version", "unit_id", F.explode(_places(windows)).alias("at"), *columns_of(columns))
    several = placed.groupBy("model_version", "at", "unit_id").agg(
        F.count("*").alias("n"),
        *((F.min(f"c{at}") != F.max(f"c{at}")).alias(f"changed{at}") for at in range(len(columns))),
    )
    counted = (
        several.where(F.col("n") > 1)
        .groupBy("model_version", "at")
        .agg(
            F.count("*").alias("n_units"), *(F.count_if(f"changed{at}").alias(f"n{at}") for at in range(len(columns)))
        )
    )
    return {
        (row["model_version"], windows[row["at"]]): Changes(
            row["n_units"], {name: row[f"n{at}"] for at, name in enumerate(columns)}
        )
        for row in counted.collect()
    }


def columns_of(columns: Sequence[str]) -> list[Column]:
    """The columns by position: names may hold any character."""
    return [F.col(name).alias(f"c{at}") for at, name in enumerate(columns)]


def _within(log: DataFrame, windows: Sequence[Window]) -> DataFrame:
    first, after = min(each.start for each in windows), max(each.end for each in windows)
    return log.where((F.col("event_date") >= F.lit(first)) & (F.col("event_date") < F.lit(after)))


def _places(windows: Sequence[Window]) -> Column:
    """The positions of the windows that hold a row's day."""
    day = F.col("event_date")
    held = [
        F.when((day >= F.lit(each.start)) & (day < F.lit(each.end)), F.lit(at)) for at, each in enumerate(windows)
    ]
    return F.filter(F.array(*held), lambda at: at.isNotNull())
