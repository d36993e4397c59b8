"""The states of an experiment from its unit tables."""

from datetime import datetime

from pyspark.sql import DataFrame

from mltrust.experiment.cells import (
    ARM_KEYS,
    UNITS,
    ExperimentStates,
    mature_block,
    metric_block,
    overall_of,
    slices_of,
)
from mltrust.experiment.spec import Experiment
from mltrust.spark.moments import Block, cardinality, cells
from mltrust.spark.units import exposed_units, mature_column, unit_frame, value_column


def blocks_of(experiment: Experiment) -> list[Block]:
    """A block per metric, one per maturity window, and one that counts units."""
    mature = {mature_block(metric): mature_column(metric) for metric in experiment.metrics}
    return [
        Block(UNITS),
        *(Block(name, where=flag) for name, flag in mature.items()),
        *(
            Block(
                metric_block(metric),
                tuple(value_column(metric, column) for column in metric.columns()),
                metric.columns(),
            )
            for metric in experiment.metrics
        ),
    ]


def states(
    exposures: DataFrame,
    days: DataFrame,
    experiment: Experiment,
    as_of: datetime,
    *,
    max_cells: int,
    max_values: int,
) -> ExperimentStates:
    """Reduces the units once: to the finest cells where they are few, else to the declared sets in the same pass."""
    attributes = tuple(sorted(experiment.slices.attributes))
    units = exposed_units(exposures, experiment, as_of)
    size = cardinality(units, attributes, max_values)
    frame = unit_frame(units, days, experiment, as_of, size.kept)
    declared, blocks = experiment.slices.declared(), blocks_of(experiment)
    n_cells = size.n_cells * len(experiment.arms) * len(experiment.phases)
    together = [
        f"{name}: the {len(kept)} most frequent values, the rest is (other)" for name, kept in size.kept.items()
    ]
    if n_cells <= max_cells:
        [finest] = cells(frame, [(*ARM_KEYS, *attributes)], blocks)
        return ExperimentStates(
            overall_of(finest), {names: slices_of(finest, names) for names in declared}, "; ".join(together)
        )
    overall, *by_set = cells(frame, [(*ARM_KEYS, *names) for names in ((), *declared)], blocks)
    return ExperimentStates(
        overall_of(overall),
        {names: slices_of(found, names) for names, found in zip(declared, by_set, strict=True)},
        "; ".join(
            [f"about {n_cells:,} cells (limit {max_cells:,}): the declared sets were reduced directly", *together]
        ),
    )
