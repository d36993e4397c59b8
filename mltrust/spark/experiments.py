"""The states of an experiment from its unit tables."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from pyspark.sql import DataFrame

from mltrust.experiment import fairness
from mltrust.experiment.cells import (
    ARM_KEYS,
    DAY,
    PAST,
    UNITS,
    Arm,
    ExperimentStates,
    by_day,
    mature_block,
    metric_block,
    overall_of,
    past_names,
    slices_by_day,
    slices_of,
)
from mltrust.experiment.resampling import RESAMPLED_KINDS
from mltrust.experiment.spec import Experiment
from mltrust.metrics import Metric
from mltrust.slices import Slice, name_slice
from mltrust.spark.moments import Block, CellSet, cardinality, cells
from mltrust.spark.replicates import ResampledCell, ResampledSet, replicates
from mltrust.spark.units import exposed_units, mature_column, unit_frame, value_column
from mltrust.states.replicates import Replicates


def blocks_of(experiment: Experiment) -> tuple[Block, ...]:
    """A block per metric with its covariates, per maturity window, of all units' past, and of their number."""
    past = past_names(experiment.all_past_columns())
    mature = {mature_block(metric): mature_column(metric) for metric in experiment.metrics}
    return (
        Block(UNITS),
        *([Block(PAST, past, past)] if past else []),
        *(Block(name, where=flag) for name, flag in mature.items()),
        *(_metric_block(metric, experiment) for metric in experiment.metrics),
    )


def _metric_block(metric: Metric, experiment: Experiment) -> Block:
    past = past_names(experiment.past_columns(metric))
    values = _values(metric)
    return values._replace(sources=(*values.sources, *past), columns=(*values.columns, *past))


def _values(metric: Metric) -> Block:
    """The block of a metric's columns without covariates."""
    values = tuple(value_column(metric, column) for column in metric.columns())
    return Block(metric_block(metric), values, metric.columns())


def states(
    exposures: DataFrame,
    days: DataFrame,
    experiment: Experiment,
    as_of: datetime,
    *,
    max_cells: int,
    max_values: int,
) -> ExperimentStates:
    """Reduces the units once: to the finest cells where they are few, else to the declared sets in the same pass.

    A conf that asks for resampling or fairness costs one more pass, over the units with only what that needs.
    """
    attributes = tuple(sorted(experiment.slices.attributes))
    units = exposed_units(exposures, experiment, as_of)
    size = cardinality(units, attributes, max_values)
    frame = unit_frame(units, days, _with_fairness(experiment), as_of, size.kept)
    n_cells = size.n_cells * len(experiment.arms) * len(experiment.phases)
    notes = [f"{name}: the {len(kept)} most frequent values, the rest is (other)" for name, kept in size.kept.items()]
    if n_cells > max_cells:
        notes.insert(0, f"about {n_cells:,} cells (limit {max_cells:,}): the declared sets were reduced directly")
    reduced = _reduced(frame, experiment, attributes, finest=n_cells <= max_cells)
    return replace(_resampled(reduced, frame, experiment), note="; ".join(notes))


def _reduced(
    frame: DataFrame, experiment: Experiment, attributes: tuple[str, ...], *, finest: bool
) -> ExperimentStates:
    """All states in one pass: by slices, by exposure day, and the counts of each attribute's slices by that day."""
    declared, blocks = experiment.slices.declared(), blocks_of(experiment)
    sliced = [attributes] if finest else [(), *declared]
    of_days, *rest = cells(
        frame,
        [
            CellSet((*ARM_KEYS, DAY), blocks),
            *(CellSet((*ARM_KEYS, DAY, name), (Block(UNITS),)) for name in attributes),
            *(CellSet((*ARM_KEYS, *names), blocks) for names in sliced),
        ],
    )
    counts, found = rest[: len(attributes)], rest[len(attributes) :]
    by_set = found * len(declared) if finest else found[1:]
    return ExperimentStates(
        overall=overall_of(found[0]),
        sets={names: slices_of(its, names) for names, its in zip(declared, by_set, strict=True)},
        by_day=by_day(of_days),
        counts_by_day=dict(
            item for name, its in zip(attributes, counts, strict=True) for item in slices_by_day(its, name).items()
        ),
    )


def _with_fairness(experiment: Experiment) -> Experiment:
    """The experiment with the columns of predictions among its metrics, for the frame of units alone."""
    if experiment.fairness is None:
        return experiment
    return replace(experiment, metrics=(*experiment.metrics, *experiment.fairness.metrics()))


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


def _metrics_set(experiment: Experiment) -> list[ResampledSet]:
    blocks = tuple(_values(metric) for metric in experiment.metrics if metric.kind in RESAMPLED_KINDS)
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
