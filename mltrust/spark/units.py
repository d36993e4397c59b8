"""From log rows to units: exposures, unit_days, and the one frame of units that a readout reduces."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from functools import reduce
from math import inf

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from mltrust.errors import ConfError
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
    has_squares,
    has_trend,
    past_column,
)
from mltrust.experiment.spec import Experiment
from mltrust.metrics import BUILT_IN_COLUMNS, KINDS, HistogramColumn, Metric, MetricColumns
from mltrust.slices import MISSING, OTHER, Slicing, interval_names
from mltrust.spark import predictions


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


def slice_value(name: str, slicing: Slicing) -> Column:
    """The value of a slice attribute as text; a number with edges is the interval that it lies in."""
    column = F.col(slicing.attributes[name])
    value = column.cast("string")
    if edges := slicing.edges.get(name, ()):
        *labels, last = interval_names(edges)
        value = F.when(column >= edges[-1], last)
        for label, edge in zip(reversed(labels), reversed(edges), strict=True):
            value = F.when(column < edge, label).otherwise(value)
    return F.coalesce(value, F.lit(MISSING))


def unexposed(candidate_rows: DataFrame) -> dict[str, int]:
    """How many rows carry the experiment and expose nobody, by why; one Spark job."""
    counts = candidate_rows.agg(
        F.count_if(F.col("unit").isNull()).alias("without_unit"),
        F.count_if(F.col("unit").isNotNull() & F.col("variant").isNull()).alias("without_variant"),
    ).first()
    return {} if counts is None else {name: int(n) for name, n in counts.asDict().items()}


def exposures(candidate_rows: DataFrame, experiment: Experiment) -> DataFrame:
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


def merged_exposures(before: DataFrame, added: DataFrame) -> DataFrame:
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


#: The experiment_id of unit_days that hold the whole production traffic of every unit, exposed or not.
EVERYONE = "(all)"


def everyone(experiment: Experiment, since: date) -> Experiment:
    """The log's whole traffic since a day as an experiment: what the past of its units is built by."""
    weights = next(iter(experiment.phases.values()))
    return replace(experiment, experiment_id=EVERYONE, unit="unit_id", phases={since: weights})


def counted(rows: DataFrame, exposed: DataFrame | None, experiment: Experiment) -> DataFrame:
    """Production rows that count: of exposed units, any model, from the first exposure on; of `everyone` all."""
    if exposed is None:
        return unit_rows(rows, experiment).where(F.col("unit").isNotNull())
    first = exposed.select(F.col("unit_id").alias("unit"), "first_exposure")
    joined = unit_rows(rows, experiment).join(first, "unit")
    return joined.where(F.col("event_time") >= F.col("first_exposure"))


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


def current_outcomes(outcomes: DataFrame, corrections: DataFrame, as_of: datetime) -> DataFrame:
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


def counted_outcomes(
    outcomes: DataFrame, resolved_outcomes: DataFrame, exposed: DataFrame | None, experiment: Experiment
) -> DataFrame:
    """Outcomes that count, with their `unit`: of counted requests, or of units after their first exposure.

    `score` is that of their row, null where they are keyed by unit, and `delay` the days since their row, or since
    the unit's first exposure. Outcomes keyed by unit count only where the unit is unit_id. Of `everyone` all count;
    there those keyed by unit have no delay.
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


def refuse_unknown(rows: DataFrame, columns: MetricColumns, trigger: str | None = None) -> None:
    """Raises ConfError where the value of a metric column, or the trigger, is no SQL expression on a record."""
    for name, column in (columns.requests | columns.histograms).items():
        _refuse_unreadable(rows, f"metric column {name!r}", column.value, "double")
    if trigger is not None:
        _refuse_unreadable(rows, "trigger", trigger, "boolean")


def _refuse_unreadable(rows: DataFrame, what: str, expression: str, type_: str) -> None:
    try:
        _ = rows.select(F.expr(expression).cast(type_)).schema
    except Exception as error:  # a parser or an analyser, of a classic or a Connect session
        said = str(error).splitlines()[0]
        raise ConfError(f"{what}: {expression!r} cannot be read on a record: {said}") from None


def unit_days(
    counted_rows: DataFrame, counting_outcomes: DataFrame, experiment: Experiment, columns: MetricColumns
) -> DataFrame:
    """Rows of `unit_days`: sums of every metric column per unit and UTC day, null where nothing was seen."""
    of_requests = counted_rows.groupBy("unit", F.col("event_date").alias("day")).agg(
        F.count_distinct("request_id").alias("n_requests"),
        F.count("*").alias("n_predictions"),
        F.count_if(F.col("status") == "error").alias("n_errors"),
        *(_aggregate(F.expr(each.value), each.aggregate).alias(name) for name, each in columns.requests.items()),
        *predictions.of_rows(columns),
    )
    outcome_sums = [
        _aggregate(
            F.when(F.col("name") == each.outcome, F.col(_OUTCOME_VALUE[each.aggregate])), each.aggregate
        ).alias(name)
        for name, each in columns.outcomes.items()
    ]
    joined = of_requests
    if outcome_sums or columns.predictions:
        per_day = counting_outcomes.groupBy("unit", F.col("event_date").alias("day"))
        days = per_day.agg(*outcome_sums, *predictions.of_outcomes(columns))
        joined = of_requests.join(days, ["unit", "day"], "full")
    if columns.histograms:
        joined = joined.join(_histograms(counted_rows, columns), ["unit", "day"], "left")
    return joined.select(
        F.lit(experiment.experiment_id).alias("experiment_id"),
        F.lit(experiment.unit).alias("unit_kind"),
        F.col("unit").alias("unit_id"),
        "day",
        *(F.coalesce(name, F.lit(0)).alias(name) for name in BUILT_IN_COLUMNS),
        *columns.requests,
        *columns.outcomes,
        *predictions.of_days(columns),
        *columns.histograms,
    )


def _histograms(counted_rows: DataFrame, columns: MetricColumns) -> DataFrame:
    """A map from cells to numbers of rows per unit, day and histogram, null where there is no value."""
    every = F.array(
        *(
            F.struct(F.lit(name).alias("name"), _cell(F.expr(each.value), each).alias("cell"))
            for name, each in columns.histograms.items()
        )
    )
    rows = counted_rows.select("unit", F.col("event_date").alias("day"), F.explode(every).alias("one"))
    counts = rows.where(F.col("one.cell").isNotNull()).groupBy("unit", "day", "one").count()
    cells = {
        name: F.array_sort(F.collect_list(F.when(F.col("one.name") == name, F.struct("one.cell", "count"))))
        for name in columns.histograms
    }
    return counts.groupBy("unit", "day").agg(
        *(F.when(F.size(found) > 0, F.map_from_entries(found)).alias(name) for name, found in cells.items())
    )


def _cell(value: Column, column: HistogramColumn) -> Column:
    """The cell of a value: 0 up to `low`, then those of the scale, and the last one above `high`."""
    number, low, high = value.cast("double"), F.lit(column.low), F.lit(column.high)
    share = (number - low) / (high - low) if column.scale == "linear" else F.ln(number / low) / F.ln(high / low)
    inner = F.greatest(F.lit(1), F.least(F.lit(column.n_cells), F.ceil(share * F.lit(column.n_cells))))
    found = F.when(number <= low, 0).when(number > high, column.n_cells + 1).otherwise(inner)
    return F.when(number.isNotNull() & ~F.isnan(number), found.cast("int"))


#: What of an outcome an aggregate is of.
_OUTCOME_VALUE = {"sum": "value", "count": "value", "delay": "delay"}


def _aggregate(value: Column, how: str) -> Column:
    """A sum, or a count of what is not null, which is null where there is nothing to count."""
    return F.nullif(F.count(value), F.lit(0)).cast("double") if how == "count" else F.sum(value.cast("double"))


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


def squares_column(metric: Metric) -> str:
    """The name of the square of a unit's value."""
    return f"squares|{value_column(metric, metric.numerator)}"


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


def unit_frame(
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
            {squares_column(metric): _squares(metric) for metric in experiment.unit_metrics if has_squares(metric)}
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


def _squares(metric: Metric) -> Column:
    value = F.col(f"`{value_column(metric, metric.numerator)}`")
    return value * value


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
