"""The one frame that a readout reduces: a row per unit, with its arm, slices, flags and values of metrics."""

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from functools import reduce
from itertools import combinations_with_replacement
from math import inf

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from mltrust.experiment.assignment import HEX_DIGITS, Assignment
from mltrust.experiment.cells import (
    AGREES,
    BUCKET,
    FAILED,
    HALF,
    MISSERVED,
    NO_BUCKET,
    NO_PAST,
    NO_VARIANT,
    TRIGGERED,
    YES,
    has_products,
    has_trend,
    past_column,
    product,
)
from mltrust.experiment.spec import Experiment
from mltrust.metrics import KINDS, Metric
from mltrust.slices import MISSING, OTHER
from mltrust.spark.units import EVERYONE


def value_column(metric: Metric, column: str) -> str:
    """The name of a unit's value of a metric column: what was observed, within which window, missing how."""
    window = "all" if metric.window_days is None else f"{metric.window_days}d"
    cap = "" if metric.cap is None else f"|at {metric.cap.at}, {metric.cap.quantile}"
    return f"{column}|{KINDS[metric.kind].unit_value}|{window}|{metric.missing}{cap}"


def capped_column(metric: Metric) -> str:
    """The name of the flag that a unit's sum was cut off."""
    return f"capped|{value_column(metric, metric.numerator)}"


def mature_column(metric: Metric) -> str:
    """The name of the flag that a unit's window of the metric is over."""
    return f"mature|{metric.window_days}"


def product_columns(metric: Metric) -> dict[str, str]:
    """The names of the products of a unit's values, by those in a block."""
    return {
        product(a, b): f"{value_column(metric, a)} x {value_column(metric, b)}"
        for a, b in combinations_with_replacement(metric.columns(), 2)
    }


def trend_column(metric: Metric) -> str:
    """The name of a unit's change of the numerator per day since exposure."""
    return f"trend|{metric.numerator}|{metric.window_days}d"


def window_column(metric: Metric) -> str:
    """The name of a unit's sum of the numerator over the window, 0 where there is none, never cut off."""
    return f"window|{metric.numerator}|{metric.window_days}d"


def exposed_units(exposures: DataFrame, experiment: Experiment, as_of: datetime) -> DataFrame:
    """One row per unit exposed before as_of and the planned end.

    Columns are `unit_id`, `variant`, `exposure_day`, `phase` and each slice attribute. What is seen after the planned
    end is not of the experiment any more.

    Flags, which are yes or no: `crossed` where a unit was seen in several variants, `triggered` where the trigger
    held, `misserved` where a model version answered that is not of the unit's arm, `agrees` where its bucket is the
    one that the declared hash gives. `half` is one of two that the units fall into by chance.
    """
    until = F.lit(experiment.until(as_of.date()))
    seen = F.filter("days", lambda each: each["day"] < until)
    n_variants = F.size(F.array_distinct(F.transform(seen, lambda each: each["variant"])))
    bucket = F.coalesce("bucket_id", F.lit(NO_BUCKET))
    before = exposures.where(F.to_date("first_exposure") < until).select(
        "unit_id",
        "variant",
        F.to_date("first_exposure").alias("exposure_day"),
        _phase(experiment).alias("phase"),
        _yes(n_variants > 1).alias("crossed"),
        _yes(F.exists(seen, lambda each: each["triggered"])).alias(TRIGGERED),
        F.exists(seen, lambda each: _misserved(each, experiment)).alias(MISSERVED),
        bucket.alias(BUCKET),
        (bucket == _declared_bucket(experiment.assignment)).alias(AGREES),
        F.pmod(F.xxhash64(F.lit(HALF), "unit_id"), F.lit(2)).alias(HALF),
        *(F.col("slice_values")[name].alias(name) for name in experiment.slices.attributes),
    )
    return _with_silent_buckets(before, experiment)


def _yes(flag: Column) -> Column:
    return F.when(flag, YES).otherwise("no")


def _misserved(seen: Column, experiment: Experiment) -> Column:
    """Whether on a day a unit met an arm by a model version that the conf does not name for it."""
    strange = (
        (seen["variant"] == arm) & ~seen["model_version"].isin(list(versions))
        for arm, versions in experiment.served_by.items()
    )
    return reduce(lambda one, other: one | other, strange, F.lit(False))


def _declared_bucket(assignment: Assignment | None) -> Column:
    """The bucket that the declared hash gives a unit; null where none is declared."""
    if assignment is None:
        return F.lit(None).cast("string")
    before, after = assignment.around_unit()
    text = F.concat(F.lit(before), F.col("unit_id"), F.lit(after))
    hashed = F.md5(text) if assignment.hash == "md5" else F.sha2(text, 256)
    number = F.conv(F.substring(hashed, 1, HEX_DIGITS), 16, 10).cast("long") % assignment.n_buckets
    return F.format_string(assignment.bucket, number)


def with_overlaps(units: DataFrame, others: DataFrame, names: Sequence[str], as_of: datetime) -> DataFrame:
    """`units` with the variant of each of the other experiments, `others` being their exposures; (none) without."""
    before = others.where(F.col("first_exposure") < F.lit(as_of))
    variants = before.groupBy("unit_id").agg(
        *(
            F.max(F.when(F.col("experiment_id") == name, F.col("variant"))).alias(overlap_column(name))
            for name in names
        )
    )
    found = units.join(variants, "unit_id", "left")
    columns = map(overlap_column, names)
    return found.withColumns({name: F.coalesce(F.col(f"`{name}`"), F.lit(NO_VARIANT)) for name in columns})


def overlap_column(experiment_id: str) -> str:
    """The name of the column with the variant of another experiment."""
    return f"in {experiment_id}"


def of_units(
    units: DataFrame,
    days: DataFrame,
    experiment: Experiment,
    as_of: datetime,
    kept_values: Mapping[str, tuple[str, ...]],
    caps: Mapping[str, float] | None = None,
) -> DataFrame:
    """`units` with flags of maturity and the value of every metric column; a slice value not kept is `(other)`.

    `caps` are those of metrics by name, where one is not a number of the conf; without them nothing is cut off.

    A value is null where the unit's window is not over, and where it is missing and the metric excludes that.
    `days` are the experiment's rows of unit_days and, where it has covariates, those of everyone.
    """
    sums = {
        _sum_name(metric, column): _window_sum(metric, column, experiment) for metric, column in _columns(experiment)
    }
    sums |= {trend_column(metric): _trend_sum(metric) for metric in experiment.unit_metrics if has_trend(metric)}
    sums[FAILED] = F.sum(F.when(while_running(experiment), F.col("n_errors"))) > 0
    sums |= {past_column(column): _past_sum(column, experiment) for column in experiment.all_past_columns()}
    before = days.where(F.col("day") < F.lit(as_of.date()))
    if experiment.pre_days is not None:
        of_past = (F.col("day") >= F.lit(experiment.past_since)) & (F.col("experiment_id") == EVERYONE)
        before = before.where((F.col("experiment_id") != EVERYONE) | of_past)
        sums[NO_PAST] = F.count_if(_in_past(experiment)) == 0
    per_unit = (
        before.join(units.select("unit_id", "exposure_day"), "unit_id")
        .groupBy("unit_id")
        .agg(*(each.alias(name) for name, each in sums.items()))
    )
    return (
        with_kept_values(units, kept_values)
        .join(per_unit, "unit_id", "left")
        .withColumns({mature_column(metric): is_mature(metric, as_of.date()) for metric in experiment.unit_metrics})
        .withColumns(
            {value_column(metric, column): _value(metric, column) for metric, column in _columns(experiment)}
            | {name: F.coalesce(name, F.lit(0.0)) for name in map(past_column, experiment.all_past_columns())}
            | {
                name: _from_zero(metric, source)
                for metric in experiment.unit_metrics
                if has_trend(metric)
                for name, source in (
                    (trend_column(metric), trend_column(metric)),
                    (window_column(metric), _sum_name(metric, metric.numerator)),
                )
            }
            | ({} if experiment.pre_days is None else {NO_PAST: F.coalesce(NO_PAST, F.lit(True))})
        )
        .withColumns(_capped(experiment, caps or {}))
        .withColumns(
            {
                name: column
                for metric in experiment.unit_metrics
                if has_products(metric)
                for name, column in _products(metric).items()
            }
        )
        .drop(*_sum_names(experiment))
    )


def _in_past(experiment: Experiment) -> Column:
    age = F.datediff("day", "exposure_day")
    return (F.col("experiment_id") == EVERYONE) & (age < 0) & (age >= -(experiment.pre_days or 0))


def _past_sum(column: str, experiment: Experiment) -> Column:
    return F.sum(F.when(_in_past(experiment), F.col(column))).cast("double")


def _sum_names(experiment: Experiment) -> list[str]:
    return [_sum_name(metric, column) for metric, column in _columns(experiment)]


def _columns(experiment: Experiment) -> list[tuple[Metric, str]]:
    return [(metric, column) for metric in experiment.unit_metrics for column in metric.columns()]


def while_running(experiment: Experiment) -> Column:
    """Whether a day of a unit lies before the planned end of the experiment."""
    of_experiment = F.col("experiment_id") != EVERYONE
    end = experiment.planned_end
    return of_experiment if end is None else of_experiment & (F.col("day") < F.lit(end))


def _window_sum(metric: Metric, column: str, experiment: Experiment) -> Column:
    if metric.window_days is None:
        counts = while_running(experiment)
    else:
        in_window = F.datediff("day", "exposure_day") < metric.window_days
        counts = (F.col("experiment_id") != EVERYONE) & in_window
    return F.sum(F.when(counts, F.col(column)))


def _capped(experiment: Experiment, caps: Mapping[str, float]) -> dict[str, Column]:
    """The values of capped metrics cut off, and whether they were."""
    found = {}
    for metric in experiment.unit_metrics:
        if metric.cap is not None:
            value, cap = F.col(f"`{value_column(metric, metric.numerator)}`"), caps.get(metric.name, metric.cap.at)
            limit = F.lit(inf if cap is None else cap)
            found[capped_column(metric)] = value > limit
            found[value_column(metric, metric.numerator)] = F.when(value.isNotNull(), F.least(value, limit))
    return found


def quantile_caps(frame: DataFrame, experiment: Experiment) -> dict[str, float]:
    """The caps of metrics that name a quantile, over the units of all arms together; one Spark job, or none."""
    capped = [(metric, metric.cap.quantile) for metric in experiment.unit_metrics if metric.cap is not None]
    wanted = [
        F.percentile(f"`{value_column(metric, metric.numerator)}`", F.lit(level)).alias(metric.name)
        for metric, level in capped
        if level is not None
    ]
    found = frame.agg(*wanted).first() if wanted else None
    return {} if found is None else {name: cap for name, cap in found.asDict().items() if cap is not None}


def _products(metric: Metric) -> dict[str, Column]:
    names, values = product_columns(metric), {a: F.col(f"`{value_column(metric, a)}`") for a in metric.columns()}
    return {names[product(a, b)]: values[a] * values[b] for a, b in combinations_with_replacement(values, 2)}


def _trend_sum(metric: Metric) -> Column:
    """A unit's slope over the days of the window: of its numerator on the days since exposure."""
    days = metric.window_days or 0
    age, centre = F.datediff("day", "exposure_day"), (days - 1) / 2
    squares = sum((at - centre) ** 2 for at in range(days))
    counts = (F.col("experiment_id") != EVERYONE) & (age < days)
    return F.sum(F.when(counts, (age - centre) / squares * F.col(metric.numerator)))


def _from_zero(metric: Metric, source: str) -> Column:
    """A column of units whose window is over, 0 where they have nothing in it."""
    found = F.coalesce(F.col(f"`{source}`").cast("double"), F.lit(0.0))
    return F.when(F.col(f"`{mature_column(metric)}`"), found)


def _sum_name(metric: Metric, column: str) -> str:
    return f"{column}|{metric.window_days}"


def _value(metric: Metric, column: str) -> Column:
    found = F.col(f"`{_sum_name(metric, column)}`").cast("double")
    if metric.missing == "zero":
        found = F.coalesce(found, F.lit(0.0))
    if KINDS[metric.kind].unit_value == "any":
        found = (found > 0).cast("double")
    return F.when(F.col(f"`{mature_column(metric)}`"), found)


def is_mature(metric: Metric, as_of: date) -> Column:
    """Whether a unit's window of the metric is over."""
    if metric.window_days is None:
        return F.lit(True)
    return F.date_add("exposure_day", metric.window_days) <= F.lit(as_of)


def _phase(experiment: Experiment) -> Column:
    """The index of the allocation phase in which the unit was first exposed."""
    starts = sorted(experiment.phases)
    passed = [(F.to_date("first_exposure") >= F.lit(day)).cast("int") for day in starts[1:]]
    return reduce(lambda total, each: total + each, passed, F.lit(0))


def with_kept_values(units: DataFrame, kept_values: Mapping[str, tuple[str, ...]]) -> DataFrame:
    """`units` with slice values that are not kept as `(other)`."""
    return units.withColumns(
        {
            name: F.when(F.col(name).isin(list(kept)), F.col(name)).otherwise(F.lit(OTHER))
            for name, kept in kept_values.items()
        }
    )


def _with_silent_buckets(units: DataFrame, experiment: Experiment) -> DataFrame:
    """Adds the conf's buckets that had no traffic: as units they count with 0."""
    if experiment.unit != "bucket_id":
        return units
    spark = units.sparkSession
    declared = spark.createDataFrame(list(experiment.buckets.items()), "unit_id STRING, variant STRING")
    silent = declared.join(units.select("unit_id"), "unit_id", "left_anti").withColumns(
        {"exposure_day": F.lit(experiment.start), "phase": F.lit(0), "crossed": F.lit("no")}
        | {TRIGGERED: F.lit("no"), MISSERVED: F.lit(False), AGREES: F.lit(None).cast("boolean")}
        | {BUCKET: F.col("unit_id"), HALF: F.lit(0).cast("bigint")}
        | {name: F.lit(MISSING) for name in experiment.slices.attributes}
    )
    return units.unionByName(silent)
