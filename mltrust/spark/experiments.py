"""The states of an experiment from its unit tables."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from mltrust.experiment import fairness
from mltrust.experiment.cells import (
    AGREES,
    ARM_KEYS,
    BUCKET,
    DAY,
    FAILED,
    HALF,
    MISSERVED,
    NO_BUCKET,
    PAST,
    TREND,
    TRIGGERED,
    UNITS,
    WEIGHT,
    WINDOW,
    YES,
    Arm,
    Bucket,
    Crossings,
    ExperimentStates,
    Resalted,
    SliceStates,
    Triggered,
    arm_keys,
    by_day,
    by_value,
    capped_block,
    crossings,
    has_products,
    has_trend,
    mature_block,
    metric_block,
    overall_of,
    past_names,
    product,
    products_block,
    slices_by_day,
    slices_of,
    trend_block,
)
from mltrust.experiment.resampling import RESAMPLED_KINDS
from mltrust.experiment.spec import Experiment, Search
from mltrust.metrics import HistogramColumn, Metric
from mltrust.slices import Slice, name_slice
from mltrust.spark.exposure import rejected
from mltrust.spark.moments import Block, Cell, CellSet, cardinality, cells
from mltrust.spark.quantiles import quantile_states
from mltrust.spark.replicates import ResampledCell, ResampledSet, replicates
from mltrust.spark.unit_frame import (
    capped_column,
    exposed_units,
    mature_column,
    of_units,
    overlap_column,
    product_columns,
    quantile_caps,
    trend_column,
    value_column,
    window_column,
    with_kept_values,
    with_overlaps,
)
from mltrust.states.replicates import Replicates


def blocks_of(experiment: Experiment) -> tuple[Block, ...]:
    """A block per metric with its covariates, per maturity window, of all units' past, and of their number."""
    past = past_names(experiment.all_past_columns())
    mature = {mature_block(metric): mature_column(metric) for metric in experiment.unit_metrics}
    return (
        Block(UNITS),
        *([Block(PAST, past, past)] if past else []),
        *(Block(name, where=flag) for name, flag in mature.items()),
        *(_metric_block(metric, experiment) for metric in experiment.unit_metrics),
    )


def _metric_block(metric: Metric, experiment: Experiment) -> Block:
    past = past_names(experiment.past_columns(metric))
    values = _values(metric)
    return values._replace(sources=(*values.sources, *past), columns=(*values.columns, *past))


def _values(metric: Metric) -> Block:
    """The block of a metric's columns without covariates."""
    values = tuple(value_column(metric, column) for column in metric.columns())
    return Block(metric_block(metric), values, metric.columns())


def _whole_blocks(experiment: Experiment) -> tuple[Block, ...]:
    """Blocks of all units together, which no slice needs."""
    skewed = [metric for metric in experiment.unit_metrics if has_products(metric)]
    trends = [metric for metric in experiment.unit_metrics if has_trend(metric)]
    return (
        Block(UNITS),
        Block(FAILED, where=FAILED),
        Block(MISSERVED, where=MISSERVED),
        *(
            Block(
                products_block(metric),
                (*_values(metric).sources, *product_columns(metric).values()),
                (*metric.columns(), *product_columns(metric)),
            )
            for metric in skewed
        ),
        *(
            Block(capped_block(metric), where=capped_column(metric))
            for metric in experiment.unit_metrics
            if metric.cap is not None
        ),
        *(
            Block(trend_block(metric), (trend_column(metric), window_column(metric)), (TREND, WINDOW))
            for metric in trends
        ),
    )


def others(exposures: DataFrame, experiment: Experiment) -> DataFrame:
    """Of all exposures those of other experiments on the same kind of unit."""
    same = F.col("unit_kind") == (experiment.unit or "unit_id")
    return exposures.where((F.col("experiment_id") != experiment.experiment_id) & same)


def overlapping(others: DataFrame) -> list[str]:
    """The experiments that have exposures among `others`, sorted; one Spark job."""
    return sorted(row["experiment_id"] for row in others.select("experiment_id").distinct().collect())


def states(
    exposures: DataFrame,
    days: DataFrame,
    experiment: Experiment,
    as_of: datetime,
    *,
    max_cells: int,
    max_values: int,
    others: DataFrame | None = None,
    rejects: DataFrame | None = None,
    histograms: Mapping[str, HistogramColumn] | None = None,
) -> ExperimentStates:
    """Reduces the units once: to the finest cells where they are few, else to the declared sets in the same pass.

    `others` are the exposures of other experiments on the same kind of unit, `rejects` the records of the log that
    ingest refused, `histograms` the columns that quantiles are of; those cost two passes.
    A conf that asks for resampling or fairness costs one more pass, over the units with only what that needs.
    """
    attributes = tuple(sorted(experiment.slices.attributes))
    units, drawn = sampled(exposed_units(exposures, experiment, as_of), experiment)
    # Buckets are in every experiment alike: they share nothing.
    others = None if experiment.unit == "bucket_id" else others
    overlaps = [] if others is None else overlapping(others)
    if others is not None and overlaps:
        units = with_overlaps(units, others, overlaps, as_of)
    size = cardinality(units, attributes, max_values)
    framed = _with_fairness(experiment)
    caps = quantile_caps(of_units(units, days, framed, as_of, {}), framed)
    frame = of_units(units, days, framed, as_of, size.kept, caps)
    n_cells = size.n_cells * len(experiment.arms) * len(experiment.phases)
    notes = [f"{name}: the {len(kept)} most frequent values, the rest is (other)" for name, kept in size.kept.items()]
    notes += [drawn] if drawn else []
    if n_cells > max_cells:
        notes.insert(0, f"about {n_cells:,} cells (limit {max_cells:,}): the declared sets were reduced directly")
    reduced = _reduced(frame, experiment, attributes, overlaps, finest=n_cells <= max_cells)
    reduced = _resalted(_resampled(reduced, frame, experiment), frame, experiment)
    quantiles = quantile_states(with_kept_values(units, size.kept), days, experiment, histograms or {}, as_of)
    lost = {} if rejects is None else rejected(rejects, experiment)
    return replace(reduced, quantiles=quantiles, rejects=lost, note="; ".join(notes))


def sampled(units: DataFrame, experiment: Experiment) -> tuple[DataFrame, str]:
    """The units that are read, with the number of units that each stands for, and in words what was drawn.

    Which are drawn depends on their hash alone, so that it is the same ones for every metric and on every day. One
    Spark job where the conf asks for a sample.
    """
    if experiment.sample is None:
        return units, ""
    rate, by = experiment.sample.rate, experiment.sample.by
    counts = {tuple(row[name] for name in by): row["count"] for row in units.groupBy(*by).count().collect()}
    rates = {stratum: min(1.0, max(rate, experiment.sample.min_units / n)) for stratum, n in counts.items()}
    known = F.create_map(*(part for stratum, one in rates.items() for part in (_stratum(stratum), F.lit(one))))
    own = F.try_element_at(known, F.array(*by) if by else _stratum(())) if rates else F.lit(1.0)
    drawn = F.pmod(F.xxhash64(F.lit("sample"), "unit_id"), F.lit(_STEPS)) < own * F.lit(_STEPS)
    words = ", ".join(
        f"{' x '.join(stratum) or 'all units'} 1 in {1 / one:.3g}" for stratum, one in sorted(rates.items())
    )
    found = units.where(drawn).withColumn(WEIGHT, (1 / own).cast("string"))
    return found, f"a sample of the {sum(counts.values()):,} units, weighted: {words}"


#: Steps in which hashes are compared with rates.
_STEPS = 2**40


def _stratum(values: Sequence[str]) -> Column:
    return F.array(*map(F.lit, values)) if values else F.array().cast("array<string>")


def _reduced(
    frame: DataFrame,
    experiment: Experiment,
    attributes: tuple[str, ...],
    overlaps: Sequence[str],
    *,
    finest: bool,
) -> ExperimentStates:
    """All states in one pass: of slices, of exposure days, of all units, and of what the conf asks for beside."""
    declared, blocks, search = experiment.slices.declared(), blocks_of(experiment), experiment.search
    keys = arm_keys(experiment)
    sets = {
        "days": CellSet((*keys, DAY), blocks),
        "whole": CellSet(keys, _whole_blocks(experiment)),
        **{f"count {name}": CellSet((*keys, DAY, name), (Block(UNITS),)) for name in attributes},
        **{f"overlap {name}": CellSet((*keys, overlap_column(name)), blocks) for name in overlaps},
    }
    if finest:
        sets["finest"] = CellSet((*keys, *attributes), blocks)
    else:
        sets["overall"] = CellSet(keys, blocks)
        sets |= {f"slices {names}": CellSet((*keys, *names), blocks) for names in declared}
    if experiment.trigger is not None:
        sets["triggered"] = CellSet((*keys, TRIGGERED), blocks)
    if experiment.assignment is not None:
        sets["buckets"] = CellSet((BUCKET,), (Block(UNITS), Block(AGREES, where=AGREES)))
    if search is not None:
        sets["halves"] = CellSet((*keys, HALF, *sorted(search.attributes)), blocks)
    found = dict(zip(sets, cells(frame, list(sets.values())), strict=True))
    sliced = {names: found["finest" if finest else f"slices {names}"] for names in declared}
    return ExperimentStates(
        overall=overall_of(found["finest" if finest else "overall"]),
        sets={names: slices_of(its, names) for names, its in sliced.items()},
        by_day=by_day(found["days"]),
        counts_by_day=dict(
            item for name in attributes for item in slices_by_day(found[f"count {name}"], name).items()
        ),
        whole=overall_of(found["whole"]),
        triggered=_triggered(found.get("triggered")),
        overlaps={name: by_value(found[f"overlap {name}"], overlap_column(name)) for name in overlaps},
        buckets={
            values[BUCKET]: Bucket(blocks[UNITS].n, blocks[AGREES].n) for values, blocks in found.get("buckets", ())
        },
        halves=_halves(found.get("halves", []), search),
    )


def _triggered(found: list[Cell] | None) -> Triggered | None:
    if found is None:
        return None
    parts = by_value(found, TRIGGERED)
    return Triggered(*(parts.get(flag, SliceStates.empty()) for flag in (YES, "no")))


def _halves(found: list[Cell], search: Search | None) -> tuple[Crossings, Crossings]:
    if search is None:
        return {}, {}
    first, second = ([cell for cell in found if cell.values[HALF] == half] for half in ("0", "1"))
    return crossings(first, search), crossings(second, search)


def _with_fairness(experiment: Experiment) -> Experiment:
    """The experiment with the columns of predictions among its metrics, for the frame of units alone."""
    if experiment.fairness is None:
        return experiment
    return replace(experiment, metrics=(*experiment.unit_metrics, *experiment.fairness.metrics()))


def _resampled(states: ExperimentStates, frame: DataFrame, experiment: Experiment) -> ExperimentStates:
    """The states with replicates of the metrics, and of the columns of predictions by slice; one pass for both."""
    sets = [*_metrics_set(experiment), *_fairness_sets(experiment)]
    if not sets:
        return states
    found = dict(zip(sets, replicates(frame, sets), strict=True))
    return replace(
        states,
        replicates={Arm.of(cell.values): cell.states for own in _metrics_set(experiment) for cell in found[own]},
        fairness=_by_slice(cell for own in _fairness_sets(experiment) for cell in found[own]),
    )


def _resalted(states: ExperimentStates, frame: DataFrame, experiment: Experiment) -> ExperimentStates:
    """The states with A/A tests of the control's units, where the conf asks for them; one more pass."""
    if experiment.salts is None or experiment.unit == "bucket_id":
        return states
    control = frame.where(F.col("variant") == experiment.control)
    whole = {metric: states.overall.moments(metric, experiment.control) for metric in experiment.unit_metrics}
    centres = {
        metric: tuple(float(state.mean[state.index(name)]) for name in metric.columns())
        for metric, state in whole.items()
        if state.n
    }
    if not centres:
        return states
    blocks = []
    for metric, centre in centres.items():
        names = metric.columns()
        about = {name: F.col(f"`{value_column(metric, name)}`") - at for name, at in zip(names, centre, strict=True)}
        pairs = {product(a, b): about[a] * about[b] for a in names for b in names}
        columns = {f"{metric.name}: {name}": column for name, column in (about | pairs).items()}
        control = control.withColumns(columns)
        blocks.append(Block(metric.name, tuple(columns), tuple(about | pairs)))
    assigned = F.when(F.col(BUCKET) != NO_BUCKET, F.col(BUCKET)).otherwise(F.col("unit_id"))
    own = ResampledSet((), tuple(blocks), "resalting", experiment.salts)
    [found] = replicates(control.withColumn("assigned", assigned), [own], unit="assigned")
    return replace(
        states,
        resalted={
            metric.name: Resalted(cell.states[metric.name], centre)
            for cell in found
            for metric, centre in centres.items()
            if metric.name in cell.states
        },
    )


def _metrics_set(experiment: Experiment) -> list[ResampledSet]:
    blocks = tuple(_values(metric) for metric in experiment.unit_metrics if metric.kind in RESAMPLED_KINDS)
    if experiment.resampling is None or not blocks:
        return []
    return [ResampledSet(ARM_KEYS, blocks, experiment.resampling, experiment.n_replicates)]


def _fairness_sets(experiment: Experiment) -> list[ResampledSet]:
    if experiment.fairness is None:
        return []
    sources = tuple(value_column(metric, metric.numerator) for metric in experiment.fairness.metrics())
    block = Block(fairness.BLOCK, sources, fairness.COLUMNS)
    return [
        ResampledSet(("variant", "phase", attribute), (block,), "jackknife", fairness.BUCKETS)
        for attribute in experiment.fairness.attributes
    ]


def _by_slice(cells: Iterable[ResampledCell]) -> dict[Slice, dict[tuple[str, int], Replicates]]:
    found: dict[Slice, dict[tuple[str, int], Replicates]] = {}
    for cell in cells:
        where = name_slice({name: value for name, value in cell.values.items() if name not in ARM_KEYS})
        found.setdefault(where, {})[cell.values["variant"], int(cell.values["phase"])] = cell.states[fairness.BLOCK]
    return dict(sorted(found.items()))
