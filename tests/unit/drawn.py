"""States of an experiment from arrays of units, as Spark would reduce them."""

from collections.abc import Mapping
from datetime import date
from itertools import combinations_with_replacement

import numpy as np

from mltrust.experiment.cells import (
    ARM_KEYS,
    DAY,
    FAILED,
    HALF,
    MISSERVED,
    TREND,
    TRIGGERED,
    UNITS,
    WINDOW,
    Blocks,
    ExperimentStates,
    SliceStates,
    Triggered,
    by_day,
    by_value,
    capped_block,
    crossings,
    has_products,
    has_trend,
    mature_block,
    metric_block,
    overall_of,
    product,
    products_block,
    slices_of,
    trend_block,
)
from mltrust.experiment.spec import Experiment
from mltrust.metrics import KINDS, Metric
from mltrust.states.moments import Moments

START = date(2026, 10, 5)
#: Keys of cells with the value of a unit that the test says nothing of.
_KEYS = {**dict(zip(ARM_KEYS, ("c", "0", "no"), strict=True)), DAY: START.isoformat(), TRIGGERED: "no", HALF: "0"}

Units = Mapping[str, np.ndarray]
Cell = tuple[Mapping[str, str], Blocks]


def experiment(*metrics: Metric, **changes: object) -> Experiment:
    spec: dict[str, object] = {
        "experiment_id": "e",
        "log": "log",
        "control": "c",
        "phases": {START: {"c": 1.0, "t": 1.0}},
        "metrics": metrics,
        "unit": "unit_id",
        "interference": "none",
    }
    return Experiment(**(spec | changes))  # type: ignore[arg-type]


def arms(n: int) -> np.ndarray:
    """2n units, every other one treated."""
    return np.tile(["c", "t"], n)


def states(spec: Experiment, units: Units, overlaps: tuple[str, ...] = ()) -> ExperimentStates:
    """Arrays by name: keys of cells and attributes as text, metric columns, flags, `trend <metric>` as numbers.

    A metric column that is nan is missing. `overlaps` names the arrays that hold the variants of other experiments.
    """
    n = len(units["variant"])
    told = {name: np.full(n, value) for name, value in _KEYS.items()} | dict(units)
    attributes = tuple(sorted(spec.slices.attributes))
    cells = _cells(spec, told, (*_KEYS, *attributes, *overlaps))
    triggered = by_value(cells, TRIGGERED)
    halves = [[cell for cell in cells if cell[0][HALF] == half] for half in ("0", "1")]
    return ExperimentStates(
        overall=overall_of(cells),
        sets={names: slices_of(cells, names) for names in spec.slices.declared()},
        by_day=by_day(cells),
        whole=overall_of(cells),
        triggered=spec.trigger and Triggered(*(triggered.get(flag, SliceStates.empty()) for flag in ("yes", "no"))),  # type: ignore[arg-type]
        overlaps={name: by_value(cells, name) for name in overlaps},
        halves=({}, {}) if spec.search is None else tuple(crossings(half, spec.search) for half in halves),  # type: ignore[arg-type]
    )


def _cells(spec: Experiment, units: Units, keys: tuple[str, ...]) -> list[Cell]:
    labels = np.array(["\x1f".join(each) for each in zip(*(units[key] for key in keys), strict=True)])
    return [
        (dict(zip(keys, label.split("\x1f"), strict=True)), _blocks(spec, units, labels == label))
        for label in np.unique(labels)
    ]


def _blocks(spec: Experiment, units: Units, mine: np.ndarray) -> Blocks:
    blocks = {UNITS: _counted(mine)}
    for flag in (FAILED, MISSERVED):
        blocks[flag] = _counted(mine & units[flag]) if flag in units else _counted(np.zeros(0))
    for metric in spec.metrics:
        blocks |= _of_metric(metric, units, mine)
    return blocks


def _of_metric(metric: Metric, units: Units, mine: np.ndarray) -> dict[str, Moments]:
    sample = np.column_stack([units[name][mine] for name in metric.columns()]).astype(float)
    there = ~np.isnan(sample).any(axis=1)
    values = sample[there] > 0 if KINDS[metric.kind].unit_value == "any" else sample[there]
    blocks = {metric_block(metric): Moments.of(metric.columns(), values), mature_block(metric): _counted(mine)}
    if has_products(metric):
        pairs = list(combinations_with_replacement(range(len(metric.columns())), 2))
        names = [product(metric.columns()[a], metric.columns()[b]) for a, b in pairs]
        products = np.column_stack([values, *(values[:, a] * values[:, b] for a, b in pairs)])
        blocks[products_block(metric)] = Moments.of((*metric.columns(), *names), products)
    if has_trend(metric):
        slopes = units.get(f"trend {metric.name}", np.zeros(len(mine)))[mine]
        sums = np.nan_to_num(units[metric.numerator][mine].astype(float))
        blocks[trend_block(metric)] = Moments.of((TREND, WINDOW), np.column_stack([slopes, sums]))
    if metric.cap is not None:
        blocks[capped_block(metric)] = _counted(units["capped"][mine])
    return blocks


def _counted(flags: np.ndarray) -> Moments:
    return Moments.of((), np.empty((int(flags.sum()), 0)))
