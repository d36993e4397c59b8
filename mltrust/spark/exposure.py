"""From log rows to exposures: which unit, variant and slices a row is of, and where a unit was first seen."""

from datetime import datetime

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from mltrust.experiment.spec import Experiment
from mltrust.spark.places import slice_value


def production(log: DataFrame, as_of: datetime) -> DataFrame:
    """The rows that units are made of: production traffic before as_of, errors included."""
    bounded = log.where(F.col("event_date") < F.lit(as_of.date()))
    return bounded.where(F.col("traffic") == "production")


def unit_rows(rows: DataFrame, experiment: Experiment) -> DataFrame:
    """`rows` with `unit` (null where a row has none) and `element`, its entry of this experiment (or null).

    A bucket is a unit only where the row carries the experiment; a unit_id or a request is one on every row.
    """
    with_entry = rows.withColumn("element", _entry(experiment))
    unit = {
        "unit_id": F.col("unit_id"),
        "request": F.col("request_id"),
        "bucket_id": F.col("element.bucket_id"),
    }
    return with_entry.withColumn("unit", unit[experiment.unit or "unit_id"])


def _entry(experiment: Experiment) -> Column:
    entries = F.filter("experiments", lambda entry: entry["experiment_id"] == experiment.experiment_id)
    return F.try_element_at(entries, F.lit(1))


def rejected(rejects: DataFrame, experiment: Experiment) -> dict[str, int]:
    """How many records of each arm ingest refused, as far as their arm could be read; one Spark job."""
    found = rejects.withColumn("variant", variant_in(experiment))
    counts = found.where(F.col("variant").isNotNull()).groupBy("variant").count().collect()
    return {row["variant"]: int(row["count"]) for row in counts}


def variant_in(experiment: Experiment) -> Column:
    """A row's variant of the experiment, as `candidates` gives it; null where it carries none."""
    return _variant(experiment, _entry(experiment))


def _variant(experiment: Experiment, element: Column) -> Column:
    """The variant as logged, where null by bucket; null where the two disagree or name no arm."""
    buckets = [part for bucket, arm in experiment.buckets.items() for part in (F.lit(bucket), F.lit(arm))]
    by_bucket = F.try_element_at(F.create_map(*buckets), element["bucket_id"]) if buckets else F.lit(None)
    logged = element["variant"]
    agreed = F.when(logged.isNull() | by_bucket.isNull() | (logged == by_bucket), F.coalesce(logged, by_bucket))
    return F.when(agreed.isin(list(experiment.arms)), agreed)


def candidates(rows: DataFrame, experiment: Experiment) -> DataFrame:
    """Rows that carry the experiment from its start on, with `variant` and `slice_values`."""
    carried = unit_rows(rows, experiment).where(F.col("element").isNotNull())
    started = carried.where(F.col("event_date") >= F.lit(experiment.start))
    values = [slice_value(name, experiment.slices).alias(name) for name in sorted(experiment.slices.attributes)]
    slices = F.struct(*values) if values else F.lit(None).cast("struct<none: string>")
    trigger = F.lit(None).cast("boolean") if experiment.trigger is None else F.expr(experiment.trigger)
    return started.withColumns(
        {
            "variant": _variant(experiment, F.col("element")),
            "bucket_id": F.col("element.bucket_id"),
            "triggered": F.coalesce(trigger, F.lit(False)),
            "slices": slices,
        }
    )


def unexposed(candidate_rows: DataFrame) -> dict[str, int]:
    """How many rows carry the experiment and expose nobody, by why; one Spark job."""
    counts = candidate_rows.agg(
        F.count_if(F.col("unit").isNull()).alias("without_unit"),
        F.count_if(F.col("unit").isNotNull() & F.col("variant").isNull()).alias("without_variant"),
    ).first()
    return {} if counts is None else {name: int(n) for name, n in counts.asDict().items()}


def found(candidate_rows: DataFrame, experiment: Experiment) -> DataFrame:
    """Rows of `exposures`: a unit's first exposure, its request, variant and slices then, and what each day saw."""
    names = sorted(experiment.slices.attributes)
    exposing = candidate_rows.where(F.col("unit").isNotNull() & F.col("variant").isNotNull())
    first = F.min(F.struct("event_time", *_FIRST_ROW, "variant", "bucket_id", "slices"))
    days = F.collect_set(F.struct(F.col("event_date").alias("day"), *_SEEN, "slices"))
    found = exposing.groupBy("unit").agg(first.alias("first"), F.array_sort(days).alias("days"))
    return found.select(
        F.lit(experiment.experiment_id).alias("experiment_id"),
        F.lit(experiment.unit).alias("unit_kind"),
        F.col("unit").alias("unit_id"),
        F.col("first.event_time").alias("first_exposure"),
        *(F.col(f"first.{name}").alias(name) for name in _FIRST_ROW),
        *(F.col(f"first.{name}").alias(name) for name in ("variant", "bucket_id")),
        _as_map(F.col("first.slices"), names).alias("slice_values"),
        F.transform("days", lambda each: _seen(each, _as_map(each["slices"], names))).alias("days"),
    )


#: What is kept of every day of a unit, beside its slice values: every combination that was seen.
_SEEN = ("variant", "model_version", "triggered")


def _seen(day: Column, slice_values: Column) -> Column:
    fields = (day[name].alias(name) for name in ("day", *_SEEN))
    return F.struct(*fields, slice_values.alias("slice_values"))


# With the time of the row they say which of two is first.
_FIRST_ROW = ("request_id", "item_id", "model_name", "model_version")
_OF_UNIT = ("experiment_id", "unit_kind", "unit_id")


def merged(before: DataFrame, added: DataFrame) -> DataFrame:
    """The exposures of all rows from those of two disjoint parts of them."""
    both = before.unionByName(added)
    rest = [name for name in before.columns if name not in (*_OF_UNIT, "days")]
    order = F.struct("first_exposure", *_FIRST_ROW)
    found = both.groupBy(*_OF_UNIT).agg(
        F.min_by(F.struct(*rest), order).alias("first"),
        F.array_sort(F.array_distinct(F.flatten(F.collect_list(_comparable("days"))))).alias("days"),
    )
    days = F.transform("days", lambda each: _seen(each, F.map_from_entries(each["entries"])))
    return found.select(*_OF_UNIT, "first.*", days.alias("days")).select(*before.columns)


def _comparable(days: str) -> Column:
    """`days` with entries for maps, which Spark cannot compare."""
    return F.transform(
        days,
        lambda each: F.struct(
            *(each[name].alias(name) for name in ("day", *_SEEN)),
            F.array_sort(F.map_entries(each["slice_values"])).alias("entries"),
        ),
    )


def _as_map(slices: Column, names: list[str]) -> Column:
    if not names:
        return F.create_map().cast("map<string, string>")
    return F.create_map(*(part for name in names for part in (F.lit(name), slices[name])))
