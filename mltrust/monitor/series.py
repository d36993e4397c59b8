"""Series: what a metric was in every bucket of time, for a model version, arm and slice; many of them as a panel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, NamedTuple, Self

import numpy as np

from mltrust.slices import Slice
from mltrust.states.moments import FloatArray

Kind = Literal["count", "share", "mean"]


class SeriesKey(NamedTuple):
    """Whose series it is."""

    model_name: str
    model_version: str
    arm: str
    metric: str
    slice_key: str
    slice_value: str

    @property
    def slice(self) -> Slice:
        return Slice(self.slice_key, self.slice_value)


class Point(NamedTuple):
    """One bucket of a series. The observation is the request; `value` is nan where it is not known (yet)."""

    bucket_start: datetime
    n_requests: int
    value: float
    std_error: float


class Columns(NamedTuple):
    """Rows of series as columns: the number of the series and of the bucket, then what a point holds."""

    row: np.ndarray
    at: np.ndarray
    n: FloatArray
    value: FloatArray
    std_error: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """Series on one grid of buckets, [start + i·bucket, start + (i + 1)·bucket): arrays (series, buckets).

    `value` of a count is the number itself, of a share x/n, of a mean the mean over requests. It is nan where
    nothing is known: no requests to take it over, or outcomes that are not mature. `std_error` is of the value.
    """

    keys: tuple[SeriesKey, ...]
    kinds: tuple[Kind, ...]
    start: datetime
    bucket: timedelta
    n: FloatArray
    value: FloatArray
    std_error: FloatArray

    def __post_init__(self) -> None:
        shapes = {self.n.shape, self.value.shape, self.std_error.shape}
        if len(shapes) != 1 or len(self.keys) != len(self.kinds) or self.n.shape[:1] != (len(self.keys),):
            raise ValueError(f"a panel needs arrays (series, buckets) of one shape, given {shapes}")

    @classmethod
    def of(
        cls,
        points: Mapping[SeriesKey, Sequence[Point]],
        kinds: Mapping[str, Kind],
        *,
        start: datetime,
        end: datetime,
        bucket: timedelta,
    ) -> Self:
        """The panel of [start, end) of points by series; `kinds` by metric.

        A bucket of which no row tells had no request: 0 in a count, from the series' first row on, else nan.
        """
        keys = sorted(points)
        rows = [(at, *row) for at, key in enumerate(keys) for row in points[key]]
        columns = Columns(
            np.array([row[0] for row in rows], dtype=int),
            np.array([(row[1] - start) // bucket for row in rows], dtype=int),
            *(np.array([row[i] for row in rows], dtype=float) for i in (2, 3, 4)),
        )
        return cls.of_columns(keys, kinds, columns, start=start, end=end, bucket=bucket)

    @classmethod
    def of_columns(
        cls,
        keys: Sequence[SeriesKey],
        kinds: Mapping[str, Kind],
        columns: Columns,
        *,
        start: datetime,
        end: datetime,
        bucket: timedelta,
    ) -> Self:
        """The panel of rows as columns: `row` says whose series, `at` which bucket. Of two rows the later counts."""
        shape = (len(keys), int((end - start) / bucket))
        inside = (columns.at >= 0) & (columns.at < shape[1])
        row, at, *values = (each[inside] for each in columns)
        n, value, std_error = np.zeros(shape), np.full(shape, np.nan), np.full(shape, np.nan)
        is_count = np.array([kinds[key.metric] == "count" for key in keys], dtype=bool)
        first = np.full(shape[0], shape[1])
        np.minimum.at(first, row.astype(int), at)
        silent = is_count[:, None] & (np.arange(shape[1]) >= first[:, None])
        value[silent] = 0.0
        for array, given in zip((n, value, std_error), values, strict=True):
            array[row, at] = given
        return cls(tuple(keys), tuple(kinds[key.metric] for key in keys), start, bucket, n, value, std_error)

    @property
    def n_buckets(self) -> int:
        return int(self.n.shape[1])

    @property
    def per_day(self) -> int:
        """Buckets in a day, 1 for longer ones."""
        return max(1, round(timedelta(days=1) / self.bucket))

    def time(self, at: int) -> datetime:
        """The start of a bucket; of the one past the last the panel's end."""
        return self.start + at * self.bucket

    def index(self, moment: datetime) -> int:
        """The bucket that holds a moment."""
        return int((moment - self.start) // self.bucket)

    def rows(self, chosen: Sequence[int]) -> "Panel":
        """The panel of some of the series."""
        at = np.asarray(chosen, dtype=int)
        keys, kinds = (tuple(each[i] for i in at) for each in (self.keys, self.kinds))
        arrays = {name: getattr(self, name)[at] for name in ("n", "value", "std_error")}
        return Panel(keys, kinds, self.start, self.bucket, **arrays)

    def before(self, end: datetime) -> "Panel":
        """The panel up to a moment."""
        at = max(0, self.index(end))
        return replace(self, **{name: getattr(self, name)[:, :at] for name in ("n", "value", "std_error")})
