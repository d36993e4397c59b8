"""The states of quantiles: which value of the rows they are, and then how units vary about it.

Two passes over the units, whatever the number of quantiles: the first counts rows on the histograms' cells per arm
and slice, the second reduces per unit the rows at or below the arm's quantile. Slices are those of the declared sets.
"""

from collections.abc import Mapping
from datetime import date, datetime

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from mltrust.experiment.cells import ARM_KEYS, UNITS, RowStates, mature_block, metric_block, slices_of
from mltrust.experiment.spec import Experiment
from mltrust.metrics import BELOW, ROWS, HistogramColumn, Metric
from mltrust.slices import Slice, name_slice
from mltrust.spark.moments import Block, CellSet, cells
from mltrust.spark.unit_frame import is_mature, mature_column, while_running
from mltrust.spark.units import EVERYONE
from mltrust.stats.quantiles import OrderStatistics, of_cells

_Set = tuple[str, ...]
#: Of every set of attributes and metric the quantile of each arm: of the variant and the values of the attributes.
_Found = dict[tuple[_Set, str], dict[tuple[str, ...], OrderStatistics]]


def quantile_states(
    units: DataFrame,
    days: DataFrame,
    experiment: Experiment,
    histograms: Mapping[str, HistogramColumn],
    as_of: datetime,
) -> dict[Slice, RowStates]:
    """The states of every quantile of the experiment, overall and by the slices of the declared sets.

    `units` are as in the frame of units that other metrics are reduced from, with the slice values that are kept.
    """
    if not experiment.quantiles:
        return {}
    frame = _frame(units, days, experiment, as_of.date())
    found = _order_statistics(frame, experiment, histograms)
    return _reduced(frame, found, experiment, histograms)


def _sets(experiment: Experiment) -> list[_Set]:
    return [(), *experiment.slices.declared()]


def _entries(metric: Metric) -> str:
    """The column of a unit's cells and their numbers of rows."""
    return f"entries|{metric.name}"


def _frame(units: DataFrame, days: DataFrame, experiment: Experiment, as_of: date) -> DataFrame:
    """`units` with flags of maturity, and per quantile the cells of the days that count, null before maturity."""
    own = days.where((F.col("day") < F.lit(as_of)) & (F.col("experiment_id") != EVERYONE))
    joined = own.join(units.select("unit_id", "exposure_day"), "unit_id")
    # Entries of several days may name a cell twice: they are only ever summed.
    per_unit = joined.groupBy("unit_id").agg(
        *(
            F.flatten(F.collect_list(_of_day(metric, experiment))).alias(_entries(metric))
            for metric in experiment.quantiles
        )
    )
    flags = {mature_column(metric): is_mature(metric, as_of) for metric in experiment.quantiles}
    found = units.join(per_unit, "unit_id", "left").withColumns(flags)
    mature = {
        _entries(metric): F.when(F.col(f"`{mature_column(metric)}`"), F.col(f"`{_entries(metric)}`"))
        for metric in experiment.quantiles
    }
    return found.withColumns(mature)


def _of_day(metric: Metric, experiment: Experiment) -> Column:
    entries = F.map_entries(metric.numerator)
    if metric.window_days is None:
        return F.when(while_running(experiment), entries)
    return F.when(F.datediff("day", "exposure_day") < metric.window_days, entries)


def _order_statistics(frame: DataFrame, experiment: Experiment, histograms: Mapping[str, HistogramColumn]) -> _Found:
    """The quantile of every arm in every slice, from the numbers of rows in cells; one Spark job."""
    sets, attributes = _sets(experiment), sorted(experiment.slices.attributes)
    of_metrics = F.array(
        *(
            F.struct(F.lit(metric.name).alias("metric"), F.col(f"`{_entries(metric)}`").alias("entries"))
            for metric in experiment.quantiles
        )
    )
    of_sets = F.array(*(_place(at, names) for at, names in enumerate(sets)))
    rows = frame.select("variant", *attributes, F.inline(of_metrics)).withColumn("entry", F.explode("entries"))
    finest = rows.groupBy("variant", *attributes, "metric", "entry.key").agg(F.sum("entry.value").alias("n"))
    placed = finest.select("metric", F.explode(of_sets).alias("place"), "key", "n")
    counts = placed.groupBy("metric", "place", "key").agg(F.sum("n").alias("n"))
    metrics = {metric.name: metric for metric in experiment.quantiles}
    cells_of: dict[tuple[_Set, str], dict[tuple[str, ...], NDArray[np.int64]]] = {}
    for row in counts.collect():
        of_arms = cells_of.setdefault((sets[row["place"]["set"]], row["metric"]), {})
        n_cells = histograms[metrics[row["metric"]].numerator].n_cells + 2
        of_arms.setdefault(tuple(row["place"]["of"]), np.zeros(n_cells, dtype=np.int64))[row["key"]] = row["n"]
    return {
        (names, name): {arm: _statistics(each, metrics[name], histograms) for arm, each in of_arms.items()}
        for (names, name), of_arms in cells_of.items()
    }


def _place(at: int, names: _Set) -> Column:
    """Where a row counts: in an arm of a slice of a set."""
    return F.struct(F.lit(at).alias("set"), _arm(names).alias("of"))


def _arm(names: _Set) -> Column:
    return F.array("variant", *names)


def _statistics(
    counts: NDArray[np.int64], metric: Metric, histograms: Mapping[str, HistogramColumn]
) -> OrderStatistics:
    assert metric.level is not None
    return of_cells(counts, histograms[metric.numerator].edges(), metric.level)


def _reduced(
    frame: DataFrame, found: _Found, experiment: Experiment, histograms: Mapping[str, HistogramColumn]
) -> dict[Slice, RowStates]:
    """The moments over units of rows at or below the quantile and of all rows, by arm and slice; one Spark job."""
    counts: dict[str, Column] = {}
    sets: dict[_Set, CellSet] = {}
    for names in _sets(experiment):
        blocks = [
            Block(UNITS),
            *(Block(mature_block(each), where=mature_column(each)) for each in experiment.quantiles),
        ]
        for metric in experiment.quantiles:
            edges, of_arms = histograms[metric.numerator].edges(), found.get((names, metric.name), {})
            last = {arm: int(np.searchsorted(edges, each.threshold)) - 1 for arm, each in of_arms.items()}
            below, rows = f"{BELOW}|{metric.name}|{' '.join(names)}", f"{ROWS}|{metric.name}"
            counts[below] = _n_rows(metric, upto=_last_cell(names, last))
            counts[rows] = _n_rows(metric, upto=F.lit(len(edges)))
            blocks.append(Block(metric_block(metric), (below, rows), (BELOW, ROWS)))
        sets[names] = CellSet((*ARM_KEYS, *names), tuple(dict.fromkeys(blocks)))
    order: dict[Slice, dict[tuple[str, str], OrderStatistics]] = {}
    for (names, name), of_arms in found.items():
        for (variant, *values), statistics in of_arms.items():
            where = name_slice(dict(zip(names, values, strict=True)))
            order.setdefault(where, {})[name, variant] = statistics
    reduced = cells(frame.withColumns(counts), list(sets.values()))
    return {
        states.slice: RowStates(states, order.get(states.slice, {}))
        for names, its in zip(sets, reduced, strict=True)
        for states in slices_of(its, names)
    }


def _last_cell(names: _Set, last: Mapping[tuple[str, ...], int]) -> Column:
    """The last cell at or below the quantile of the unit's arm in its slice; null where that has no row."""
    if not last:
        return F.lit(None).cast("int")
    known = F.create_map(*(part for arm, cell in last.items() for part in (F.array(*map(F.lit, arm)), F.lit(cell))))
    return F.try_element_at(known, _arm(names))


def _n_rows(metric: Metric, *, upto: Column) -> Column:
    """A unit's rows in cells up to one of them; null for a unit whose window is not over, or that has no row."""
    entries = F.filter(f"`{_entries(metric)}`", lambda entry: entry["key"] <= upto)
    total = F.aggregate(entries, F.lit(0).cast("bigint"), lambda sum_, entry: sum_ + entry["value"])
    return F.when(F.size(f"`{_entries(metric)}`") > 0, total)
