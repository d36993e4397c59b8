"""What of the unit tables must be built again after more of the log has arrived, and from which days it is read.

A day that was not built yet is built whole. Of an earlier day only units are built again for which something
changed: a row or an outcome that came late, a correction, or a first exposure that turned out to be earlier.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from functools import reduce
from typing import NamedTuple

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mltrust.experiment.spec import Experiment
from mltrust.spark import exposure, outcome
from mltrust.spark.logs import kept


class Earlier(NamedTuple):
    """An earlier build: its as_of, its exposures, and the rows and outcomes of any date that arrived since.

    A build of `everyone` has no exposures: every unit counts from its first row on.
    """

    as_of: datetime
    exposures: DataFrame | None
    rows: DataFrame
    outcomes: DataFrame

    @property
    def first_new_day(self) -> date:
        return self.as_of.date()


class Changed(NamedTuple):
    """The days to build, and of those before `first_new_day` the `units` (unit, day) to build again."""

    days: tuple[date, ...]
    first_new_day: date
    units: DataFrame

    def of(self, rows: DataFrame) -> DataFrame:
        """Of rows with `unit` and `event_date` those that are built."""
        late = rows.where(F.col("event_date") < F.lit(self.first_new_day))
        new = rows.where(F.col("event_date") >= F.lit(self.first_new_day))
        changed = self.units.withColumnRenamed("day", "event_date")
        return new.unionByName(late.join(changed, ["unit", "event_date"], "left_semi"))

    def on_days(self, rows: DataFrame, day: str = "event_date") -> DataFrame:
        """Rows of the days to build; files of other days are not read."""
        return rows.where(F.col(day).isin(list(self.days)))

    def unchanged(self, unit_days: DataFrame) -> DataFrame:
        """Of the rows of unit_days on these days those that stay as they are."""
        before = self.on_days(unit_days, "day").where(F.col("day") < F.lit(self.first_new_day))
        return before.join(self.units.withColumnRenamed("unit", "unit_id"), ["unit_id", "day"], "left_anti")


def new_rows(rows: DataFrame, earlier: Earlier) -> DataFrame:
    """Rows that the earlier build did not see: of its days what arrived since, of later days everything."""
    later = rows.where(F.col("event_date") >= F.lit(earlier.first_new_day))
    return earlier.rows.where(F.col("event_date") < F.lit(earlier.first_new_day)).unionByName(later)


@contextmanager
def changed(
    rows: DataFrame,
    outcomes: DataFrame,
    exposed: DataFrame | None,
    earlier: Earlier,
    experiment: Experiment,
    reach: date,
) -> Iterator[Changed]:
    """What changed until `reach`, given all rows and outcomes of the log and the exposures in all of them.

    Asks first, in two small jobs, whether anything came late, and reads older days only where something did.
    """
    late_rows = earlier.rows.where(F.col("event_date") < F.lit(earlier.first_new_day))
    late_days = _days(late_rows)
    parts = [*_of_late_rows(late_rows, exposed, earlier, experiment)] if late_days else []
    touched = _touched_outcomes(outcomes, late_rows, late_days, earlier)
    if touched is not None:
        parts += [*_of_outcomes(touched, rows, experiment)]
    nothing = rows.select(F.col("unit_id").alias("unit"), F.col("event_date").alias("day")).limit(0)
    with kept(reduce(DataFrame.unionByName, parts, nothing).distinct()) as pairs:
        again = _days(pairs, "day") if parts else []
        n_new = (reach - earlier.first_new_day).days
        new_days = [earlier.first_new_day + timedelta(days=at) for at in range(n_new)]
        yield Changed((*again, *new_days), earlier.first_new_day, pairs)


def _days(rows: DataFrame, day: str = "event_date") -> list[date]:
    found = rows.agg(F.array_sort(F.collect_set(day)).alias("days")).first()
    return [] if found is None else list(found["days"])


def _of_late_rows(
    late_rows: DataFrame, exposed: DataFrame | None, earlier: Earlier, experiment: Experiment
) -> Iterator[DataFrame]:
    late = exposure.unit_rows(late_rows, experiment).select("unit", F.col("event_date").alias("day"))
    if exposed is None or earlier.exposures is None:
        yield late.where(F.col("unit").isNotNull())
        return
    yield late.join(exposed.select(F.col("unit_id").alias("unit")), "unit", "left_semi")
    yield _of_moved(exposed, earlier, earlier.exposures)


def _of_moved(exposed: DataFrame, earlier: Earlier, exposures: DataFrame) -> DataFrame:
    """Every day since their first exposure, for units that are first exposed on a day that was built already."""
    before = exposures.select("unit_id", F.col("first_exposure").alias("known"))
    last_day = earlier.first_new_day - timedelta(days=1)
    moved = exposed.join(before, "unit_id", "left").where(
        (F.col("known").isNull() | (F.col("first_exposure") < F.col("known")))
        & (F.to_date("first_exposure") <= F.lit(last_day))
    )
    days = F.sequence(F.to_date("first_exposure"), F.lit(last_day))
    return moved.select(F.col("unit_id").alias("unit"), F.explode(days).alias("day"))


def _touched_outcomes(
    outcomes: DataFrame, late_rows: DataFrame, late_days: list[date], earlier: Earlier
) -> DataFrame | None:
    """Outcomes on days that were built already that count otherwise now, or may; None where there are none.

    They arrived since, or a correction did, or a row of their request.
    """
    built = outcomes.where(F.col("event_date") < F.lit(earlier.first_new_day))
    late = earlier.outcomes.where(F.col("event_date") < F.lit(earlier.first_new_day))
    corrections = earlier.outcomes.where(F.col("revision") > 0).select("outcome_id").distinct()
    told = earlier.outcomes.agg(
        F.count_if(F.col("event_date") < F.lit(earlier.first_new_day)).alias("late"),
        F.count_if(F.col("revision") > 0).alias("corrections"),
    ).first()
    parts = []
    if told is not None and told["late"]:
        parts.append(late)
    if told is not None and told["corrections"]:
        parts.append(built.join(corrections, "outcome_id", "left_semi"))
    if late_days:
        since = built.where(F.col("event_date") >= F.lit(min(late_days)))
        parts.append(since.join(late_rows.select("request_id").distinct(), "request_id", "left_semi"))
    columns = ("request_id", "unit_id", "event_date")
    return reduce(DataFrame.unionByName, [each.select(*columns) for each in parts]).distinct() if parts else None


def _of_outcomes(touched: DataFrame, rows: DataFrame, experiment: Experiment) -> Iterator[DataFrame]:
    """Units to which a touched outcome counted, or counts now: every unit of its request, or its own."""
    started = exposure.unit_rows(rows.where(F.col("event_date") >= F.lit(experiment.start)), experiment)
    requests = started.where(F.col("unit").isNotNull()).select("request_id", "unit")
    keyed = touched.where(F.col("request_id").isNotNull()).select("request_id", F.col("event_date").alias("day"))
    yield keyed.join(requests, "request_id").select("unit", "day")
    if experiment.unit == "unit_id":
        by_unit = touched.where(F.col("request_id").isNull())
        yield by_unit.select(F.col("unit_id").alias("unit"), F.col("event_date").alias("day"))


@contextmanager
def resolved(outcomes: DataFrame, rows: DataFrame, changed: Changed, experiment: Experiment) -> Iterator[DataFrame]:
    """As `outcome.resolved`: on their own day first, and only what is not found there on earlier days.

    The last row before an outcome is on its own day where there is one; most outcomes follow soon, and a day whose
    outcomes all do is resolved without a look at older days. There only ids and times are read.
    """
    with kept(outcomes.where(F.col("request_id").isNotNull())) as keyed:
        near = outcome.resolved(keyed, changed.on_days(rows), experiment, same_day=True)
        with kept(keyed.join(near, ["outcome_id", "event_date"], "left_anti")) as rest:
            last = rest.agg(F.max("event_date").alias("day")).first()
            if last is None or last["day"] is None:
                yield near
                return
            before = (F.col("event_date") >= F.lit(experiment.start)) & (F.col("event_date") < F.lit(last["day"]))
            yield near.unionByName(outcome.resolved(rest, rows.where(before), experiment))
