"""From the finest cells of a bucket to the series: cells are added up over versions, arms and slices."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import product
from typing import NamedTuple

import numpy as np

from mltrust.monitor.series import Kind, SeriesKey
from mltrust.monitor.spec import Monitor
from mltrust.slices import OTHER, name_slice
from mltrust.states.moments import FloatArray

#: The version of series over all versions.
EVERY_VERSION = "(all)"
#: The metric of a row that only says up to when was judged, where no series has a row that could.
JUDGED = "(judged)"
#: How many values of an attribute have series of their own; the others are `(other)` together.
MAX_VALUES = 20


class Values(NamedTuple):
    """Of every cell the requests that a metric is known of, their mean, and their squares about it."""

    n: FloatArray
    mean: FloatArray
    squares: FloatArray


class Cells(NamedTuple):
    """Cells of requests, one each: labels by name (`bucket`, `model_version`, `arm`, slice attributes) and values.

    What a metric is broken down by is a label named by `breakdown`, None in a cell without the metric's condition; of
    a bucket it has the commonest values, and `(other)`.
    """

    labels: Mapping[str, Sequence[object]]
    values: Mapping[str, Values]


class Row(NamedTuple):
    """A row of monitor_series."""

    key: SeriesKey
    bucket_start: datetime
    n_requests: int
    value: float
    std_error: float


def rolled_up(cells: Cells, monitor: Monitor, metrics: Sequence[str]) -> list[Row]:
    """The series of these metrics: over all versions and of each, of the arms, in every declared slice."""
    if not len(cells.labels["bucket"]):
        return []
    found: list[Row] = []
    broken = [name for name in monitor.series.breakdowns if name in metrics]
    for version, arm in _levels(monitor):
        for attributes in ((), *monitor.series.slices.declared()):
            names = ("bucket", *(["model_version"] if version else []), *(["arm"] if arm else []), *attributes)
            chosen = [name for name in metrics if not (version and arm) or monitor.series.kinds[name] == "count"]
            found += _grouped(cells, monitor, chosen, names, attributes)
            for name in broken if not (version and arm) else ():
                found += _broken_down(cells, monitor, name, names, attributes)
    return [row for row in found if row.key.arm != NO_ARM]


def breakdown(metric: str) -> str:
    """The label of cells that has the values that a metric is broken down by."""
    return f"parts of {metric}"


#: The arm of requests that are in no arm; it has no series.
NO_ARM = "(none)"


def _levels(monitor: Monitor) -> list[tuple[bool, bool]]:
    """Whether series are by version and by arm. Both together are only counted: who served an arm?"""
    by_arm = monitor.series.arms is not None and monitor.series.arms.by == "experiment"
    return [each for each in product((False, True), (False, True)) if by_arm or not each[1]]


def _grouped(
    cells: Cells, monitor: Monitor, metrics: Sequence[str], names: Sequence[str], attributes: Sequence[str]
) -> list[Row]:
    labels, code = _groups([cells.labels[name] for name in names])
    known = [dict(zip(names, label, strict=True)) for label in labels]
    rows: list[Row] = []
    for metric in metrics:
        n, mean, squares = _added(cells.values[metric], code, len(labels))
        value, std_error = _values(monitor.series.kinds[metric], n, mean, squares)
        for at, label in enumerate(known):
            if not n[at]:
                continue
            key = _key(monitor, metric, label, attributes)
            rows.append(Row(key, _start(label), int(n[at]), float(value[at]), float(std_error[at])))
    return rows


def _key(monitor: Monitor, metric: str, label: Mapping[str, object], attributes: Sequence[str]) -> SeriesKey:
    return SeriesKey(
        monitor.model_name,
        str(label.get("model_version", EVERY_VERSION)),
        str(label.get("arm", "")),
        metric,
        *name_slice({name: str(label[name]) for name in attributes}),
    )


def _start(label: Mapping[str, object]) -> datetime:
    bucket = label["bucket"]
    assert isinstance(bucket, datetime)
    return bucket


def _broken_down(
    cells: Cells,
    monitor: Monitor,
    metric: str,
    names: Sequence[str],
    attributes: Sequence[str],
) -> list[Row]:
    """The parts of a metric that occurred: of a share the share of all requests of the group."""
    by = monitor.series.breakdowns[metric]
    of_groups, group = _groups([cells.labels[name] for name in names])
    requests = np.bincount(group, cells.values[metric].n, len(of_groups))
    labels, code = _groups([cells.labels[name] for name in (*names, breakdown(metric))])
    own = cells.values[metric]
    held = np.bincount(code, np.rint(own.n * np.nan_to_num(own.mean)), len(labels))
    group_of = dict(zip(code.tolist(), group.tolist(), strict=True))
    rows: list[Row] = []
    for at, label in enumerate(labels):
        if label[-1] is None or not held[at]:
            continue
        is_count, n = monitor.series.kinds[metric] == "count", float(requests[group_of[at]])
        value = float(held[at]) if is_count else float(held[at]) / n
        spread = value if is_count else max(value * (1 - value), 0.0) / n
        known = dict(zip((*names, by), label, strict=True))
        key = _key(monitor, metric, known, (*attributes, by))
        rows.append(Row(key, _start(known), round(value) if is_count else int(n), value, float(np.sqrt(spread))))
    return rows


def commonest(sizes: Mapping[str, float]) -> frozenset[str]:
    """The values with series of their own: the largest, of equals the first by name."""
    named = sorted((each for each in sizes if each != OTHER), key=lambda each: (-sizes[each], each))
    return frozenset(named[:MAX_VALUES])


def capped(buckets: Sequence[object], values: Sequence[object], sizes: FloatArray) -> list[str | None]:
    """The value of every cell, `(other)` where it is not among the commonest of its bucket; None where it has none.

    It is told by the bucket alone, so that series do not depend on what they were made together with.
    """
    found: dict[object, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for bucket, value, size in zip(buckets, values, sizes.tolist(), strict=True):
        if value is not None:
            found[bucket][str(value)] += size
    kept = {bucket: commonest(sizes) for bucket, sizes in found.items()}
    return [
        None if value is None else str(value) if str(value) in kept[bucket] else OTHER
        for bucket, value in zip(buckets, values, strict=True)
    ]


def _groups(columns: Sequence[Sequence[object]]) -> tuple[list[tuple[object, ...]], np.ndarray]:
    """The distinct labels, and of every cell which of them it has."""
    numbers: dict[tuple[object, ...], int] = {}
    code = [numbers.setdefault(label, len(numbers)) for label in zip(*columns, strict=True)]
    return list(numbers), np.array(code, dtype=int)


def _added(values: Values, code: np.ndarray, size: int) -> Values:
    """Cells of one group added up (Chan et al. 1983): counts, means weighted by them, squares about the new mean."""
    mean_of = np.nan_to_num(values.mean)
    n = np.bincount(code, values.n, size)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(code, values.n * mean_of, size) / n
    apart = values.n * (mean_of - np.nan_to_num(mean)[code]) ** 2
    squares = np.bincount(code, np.nan_to_num(values.squares) + apart, size)
    return Values(np.asarray(n, dtype=float), mean, np.asarray(squares, dtype=float))


def _values(kind: Kind, n: FloatArray, mean: FloatArray, squares: FloatArray) -> tuple[FloatArray, FloatArray]:
    if kind == "count":
        return n, np.sqrt(n)
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = mean * (1 - mean) if kind == "share" else squares / (n - 1)
        return mean, np.sqrt(np.maximum(variance, 0) / n)
