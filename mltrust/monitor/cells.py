"""From the finest cells of a bucket to the series: cells are added up over versions, arms and slices."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import product
from typing import NamedTuple

import numpy as np

from mltrust.monitor.series import Kind, SeriesKey
from mltrust.monitor.spec import Monitor
from mltrust.slices import name_slice
from mltrust.states.moments import FloatArray

#: The version of series over all versions.
EVERY_VERSION = "(all)"
#: The metric of a row that only says up to when was judged, where no series has a row that could.
JUDGED = "(judged)"


class Values(NamedTuple):
    """Of every cell the requests that a metric is known of, their mean, and their squares about it."""

    n: FloatArray
    mean: FloatArray
    squares: FloatArray


class Cells(NamedTuple):
    """Cells of requests, one each: labels by name (`bucket`, `model_version`, `arm`, slice attributes) and values."""

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
    for version, arm in _levels(monitor):
        for attributes in ((), *monitor.series.slices.declared()):
            names = ("bucket", *(["model_version"] if version else []), *(["arm"] if arm else []), *attributes)
            chosen = [name for name in metrics if not (version and arm) or monitor.series.kinds[name] == "count"]
            found += _grouped(cells, monitor, chosen, names, attributes)
    return [row for row in found if row.key.arm != NO_ARM]


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
            key = SeriesKey(
                monitor.model_name,
                str(label.get("model_version", EVERY_VERSION)),
                str(label.get("arm", "")),
                metric,
                *name_slice({name: str(label[name]) for name in attributes}),
            )
            bucket = label["bucket"]
            assert isinstance(bucket, datetime)
            rows.append(Row(key, bucket, int(n[at]), float(value[at]), float(std_error[at])))
    return rows


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
