"""What every unit did on every day: rows of `unit_days`, of an experiment or of the whole traffic."""

from dataclasses import replace
from datetime import date

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from mltrust.errors import ConfError
from mltrust.experiment.spec import Experiment
from mltrust.metrics import BUILT_IN_COLUMNS, HistogramColumn, MetricColumns
from mltrust.spark import predictions
from mltrust.spark.exposure import unit_rows

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
