"""Log rows to profiles: how many rows lie in each cell of each column, for all windows, slices and arms in one pass.

Every value becomes the number of its cell, the rows of a unit are brought together, and numpy counts them. What is
counted are integers, so that no partitioning changes a bit of the result.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from mltrust.drift.cells import Cells, OrderedCells, n_cells, with_squares
from mltrust.drift.families import EVERY_ROW, SHADOWED, arm_name
from mltrust.drift.profile import N_BUCKETS, Profile, bucket_of
from mltrust.drift.spec import Window
from mltrust.experiment.spec import Experiment
from mltrust.slices import OTHER, Slicing, name_slice
from mltrust.spark.exposure import variant_in
from mltrust.spark.logs import ArrowMap
from mltrust.spark.moments import chunks, groups
from mltrust.spark.places import slice_value

_EPOCH = date(1970, 1, 1).toordinal()
# Bytes of counts that a task holds before it passes them on.
_HELD = 256_000_000
_KEYS = ("model_version", "traffic")
_PROFILED = (
    "model_version STRING, traffic STRING, arm STRING, window_at INT, set_at INT, slice_values ARRAY<STRING>, "
    "column_at INT, n_units BIGINT, counts BINARY, units BINARY, location BINARY"
)
_ARROW = pa.schema(
    [
        *((name, pa.string()) for name in ("model_version", "traffic", "arm")),
        ("window_at", pa.int32()),
        ("set_at", pa.int32()),
        ("slice_values", pa.list_(pa.string())),
        ("column_at", pa.int32()),
        ("n_units", pa.int64()),
        *((name, pa.binary()) for name in ("counts", "units", "location")),
    ]
)


class Survey(NamedTuple):
    """What is counted of the rows of a model: in which windows, of which columns, in which slices and arms.

    `kept` are the values of slice attributes that have slices of their own; the others are `(other)`.
    """

    cells: Mapping[str, Cells]
    windows: tuple[Window, ...]
    slicing: Slicing
    kept: Mapping[str, tuple[str, ...]]
    experiments: tuple[Experiment, ...] = ()
    unit: str = "unit_id"
    with_shadowed: bool = False

    @property
    def sets(self) -> tuple[tuple[str, ...], ...]:
        return ((), *self.slicing.declared())


def profiles(log: DataFrame, survey: Survey) -> DataFrame:
    """A row for every model version, traffic, arm, window, slice and column that has rows, as in `drift_profile`.

    `log` holds the rows of one model. Two shuffles: of the rows, by unit, and of counts; one Spark job.
    """
    placed = _needed(log, survey).mapInArrow(*_placing(survey))
    by_unit = placed.repartition("unit").sortWithinPartitions("unit")
    partial = by_unit.mapInArrow(_counter(survey), _PROFILED)
    key = ("model_version", "traffic", "arm", "window_at", "set_at", "slice_values")
    return partial.repartition(*key).mapInArrow(_merger(survey), PROFILE)


#: What a profile is of, and its counts, without the model's name and the stamp of the run.
PROFILE = (
    "model_version STRING, traffic STRING, arm STRING, window_start TIMESTAMP, window_end TIMESTAMP, "
    "slice_key STRING, slice_value STRING, column STRING, edges_version STRING, n_units BIGINT, "
    "counts ARRAY<ARRAY<BIGINT>>, units ARRAY<BIGINT>, location ARRAY<ARRAY<BIGINT>>"
)


def _needed(log: DataFrame, survey: Survey) -> DataFrame:
    """The rows of any of the windows, with what is counted of them by position: names may hold any character."""
    first, after = min(each.start for each in survey.windows), max(each.end for each in survey.windows)
    rows = log.where((F.col("event_date") >= F.lit(first)) & (F.col("event_date") < F.lit(after)))
    unit = "request_id" if survey.unit == "request_id" else F.coalesce("unit_id", "request_id")
    produced = F.col("traffic") == "production"
    return rows.select(
        F.xxhash64(unit).alias("unit"),
        F.unix_date("event_date").alias("day"),
        *([F.xxhash64("request_id").alias("request")] if survey.with_shadowed else []),
        "model_version",
        "traffic",
        *(F.when(produced, _arm(each)).alias(f"arm{at}") for at, each in enumerate(survey.experiments)),
        *(
            kept_value(name, survey.slicing, survey.kept).alias(f"slice{at}")
            for at, name in enumerate(_attributes(survey))
        ),
        *(_value(name, each).alias(f"value{at}") for at, (name, each) in enumerate(survey.cells.items())),
    )


def _attributes(survey: Survey) -> tuple[str, ...]:
    return tuple(sorted(survey.slicing.attributes))


def _arm(experiment: Experiment) -> Column:
    return F.concat(F.lit(arm_name(experiment.experiment_id, "")), variant_in(experiment))


def kept_value(name: str, slicing: Slicing, kept: Mapping[str, tuple[str, ...]]) -> Column:
    """A slice attribute's value as text, `(other)` where it has no slice of its own."""
    value, own = slice_value(name, slicing), kept.get(name)
    return value if own is None else F.when(value.isin(list(own)), value).otherwise(OTHER)


def _value(column: str, cells: Cells) -> Column:
    return F.col(column).cast("double" if cells.is_ordered else "string")


def _placing(survey: Survey) -> tuple[ArrowMap, str]:
    """What turns values into the numbers of their cells, and the schema of its result."""
    cells = tuple(survey.cells.values())
    arms = "".join(f"arm{at} STRING, " for at in range(len(survey.experiments)))
    slices = "".join(f"slice{at} STRING, " for at in range(len(_attributes(survey))))
    request = "request BIGINT, " if survey.with_shadowed else ""
    placed = ", ".join(
        f"cell{at} SMALLINT" + (f", q{at} INT" if each.is_ordered else "") for at, each in enumerate(cells)
    )

    def place(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            names = [name for name in batch.schema.names if not name.startswith("value")]
            arrays = [batch.column(name) for name in names]
            for at, each in enumerate(cells):
                for name, array in _placed(batch.column(f"value{at}"), each, at):
                    names.append(name)
                    arrays.append(array)
            yield pa.RecordBatch.from_arrays(arrays, names=names)

    schema = f"unit BIGINT, day INT, {request}model_version STRING, traffic STRING, {arms}{slices}{placed}"
    return place, schema


def _placed(values: pa.Array, cells: Cells, at: int) -> Iterator[tuple[str, pa.Array]]:
    if isinstance(cells, OrderedCells):
        numbers = values.to_numpy(zero_copy_only=False)
        yield f"cell{at}", pa.array(cells.index(numbers).astype(np.int16))
        yield f"q{at}", pa.array(cells.steps(numbers).astype(np.int32))
    else:
        known = pc.index_in(values, value_set=pa.array(cells.values, pa.string()))
        index = pc.fill_null(known, cells.n_ordinary + 1)
        yield f"cell{at}", pc.if_else(pc.is_null(values), cells.n_ordinary, index).cast(pa.int16())


class _Key(NamedTuple):
    """Whose rows were counted: positions stand for windows and slice sets."""

    model_version: str
    traffic: str
    arm: str
    window_at: int
    set_at: int
    slice_values: tuple[str, ...]


_Total = dict[_Key, list[Profile]]


def _counter(survey: Survey) -> ArrowMap:
    """Profiles of the rows of a task, which come sorted by unit."""

    def count(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        total: _Total = {}
        for rows in _whole_units(chunks(batches)):
            for at, window in enumerate(survey.windows):
                if (within := _within(rows, window)).num_rows:
                    _add_window(total, within, at, survey)
            if sum(each.counts.nbytes for profiles in total.values() for each in profiles) > _HELD:
                yield _packed(total)
                total = {}
        yield _packed(total)

    return count


def _whole_units(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows, sorted by unit, in tables none of which ends within a unit."""
    held: pa.Table | None = None
    for table in tables:
        rows = table if held is None else pa.concat_tables([held, table])
        units = rows["unit"].to_numpy()
        end = int(np.searchsorted(units, units[-1]))  # signed and ascending, as Spark sorts them
        if end:
            yield rows.slice(0, end)
        held = rows.slice(end)
    if held is not None:
        yield held


def _within(rows: pa.Table, window: Window) -> pa.Table:
    start, end = (day.toordinal() - _EPOCH for day in window)
    days = rows["day"].to_numpy()
    inside = (days >= start) & (days < end)
    return rows if inside.all() else rows.filter(pa.array(inside))


def _add_window(total: _Total, rows: pa.Table, window_at: int, survey: Survey) -> None:
    for with_arm in _by_arm(rows, survey):
        counted = _Counted.of(with_arm, survey)
        encoded = {name: with_arm[name].combine_chunks().dictionary_encode() for name in _keys(survey)}
        for set_at, names in enumerate(survey.sets):
            columns = [f"slice{_attributes(survey).index(name)}" for name in names]
            labels, code = groups([encoded[name] for name in (*_ROW_KEY, *columns)], with_arm.num_rows)
            by_group = counted.profiles(code, len(labels))
            for label, profiles in zip(labels, by_group, strict=True):
                key = _Key(label[0], label[1], label[2], window_at, set_at, label[3:])
                known = total.get(key)
                total[key] = profiles if known is None else [a + b for a, b in zip(known, profiles, strict=True)]


_ROW_KEY = ("model_version", "traffic", "arm")


def _keys(survey: Survey) -> tuple[str, ...]:
    return (*_ROW_KEY, *(f"slice{at}" for at in range(len(_attributes(survey)))))


def _by_arm(rows: pa.Table, survey: Survey) -> Iterator[pa.Table]:
    """The rows with `arm`: all of them, those of each experiment's arms, those that a shadow answered too."""
    yield rows.append_column("arm", pa.array(np.full(rows.num_rows, EVERY_ROW, dtype=object), pa.string()))
    for at in range(len(survey.experiments)):
        own = rows.filter(pc.is_valid(rows[f"arm{at}"]))
        if own.num_rows:
            yield own.append_column("arm", own[f"arm{at}"])
    if survey.with_shadowed:
        shadows = rows.filter(pc.equal(rows["traffic"], "shadow"))["request"]
        of_them = pc.and_(
            pc.equal(rows["traffic"], "production"), pc.is_in(rows["request"], value_set=shadows.combine_chunks())
        )
        own = rows.filter(of_them)
        if own.num_rows:
            yield own.append_column("arm", pa.array(np.full(own.num_rows, SHADOWED, dtype=object), pa.string()))


class _Counted(NamedTuple):
    """Rows as numpy sees them: the rank of their units, their buckets, and per column their cells (and steps)."""

    cells: tuple[Cells, ...]
    unit: NDArray[np.int64]
    bucket: NDArray[np.int64]
    placed: tuple[NDArray[np.int64], ...]
    steps: tuple[NDArray[np.int64] | None, ...]

    @classmethod
    def of(cls, rows: pa.Table, survey: Survey) -> "_Counted":
        units, cells = rows["unit"].to_numpy(), tuple(survey.cells.values())
        return cls(
            cells,
            np.cumsum(np.diff(units, prepend=units[:1]) != 0),
            bucket_of(units),
            tuple(rows[f"cell{at}"].to_numpy().astype(np.int64) for at in range(len(cells))),
            tuple(
                rows[f"q{at}"].to_numpy().astype(np.int64) if each.is_ordered else None
                for at, each in enumerate(cells)
            ),
        )

    def profiles(self, code: NDArray[np.intp], n_groups: int) -> list[list[Profile]]:
        """For each group the profiles of all columns."""
        n_units = np.bincount(np.unique(self.unit * n_groups + code) % n_groups, minlength=n_groups)
        by_column = [self._of_column(at, code, n_groups, n_units) for at in range(len(self.cells))]
        return [list(profiles) for profiles in zip(*by_column, strict=True)]

    def _of_column(
        self, at: int, code: NDArray[np.intp], n_groups: int, n_units: NDArray[np.intp]
    ) -> Iterator[Profile]:
        k = n_cells(self.cells[at])
        cell = code * k + self.placed[at]
        counts = _bincount(cell * N_BUCKETS + self.bucket, n_groups * k * N_BUCKETS)
        pairs = np.unique(self.unit * (n_groups * k) + cell, sorted=False) % (n_groups * k)
        units, located = _bincount(pairs, n_groups * k), self._located(at, code, n_groups)
        for group in range(n_groups):
            own = slice(group * k, (group + 1) * k)
            yield Profile(
                counts[own.start * N_BUCKETS : own.stop * N_BUCKETS].reshape(k, N_BUCKETS),
                units[own],
                int(n_units[group]),
                located[:, group],
            )

    def _located(self, at: int, code: NDArray[np.intp], n_groups: int) -> NDArray[np.int64]:
        """(3 or 0, groups, 64): sums of the steps and of the parts of their squares."""
        steps, flat = self.steps[at], code * N_BUCKETS + self.bucket
        sums = [] if steps is None else [_bincount(flat, n_groups * N_BUCKETS, part) for part in with_squares(steps)]
        return np.array(sums, dtype=np.int64).reshape(len(sums), n_groups, N_BUCKETS)


def _bincount(at: NDArray[np.int64], size: int, weights: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Counts or sums, exact: numpy adds weights as doubles, and those of a chunk of rows stay below 2**53."""
    return np.bincount(at, weights=weights, minlength=size).astype(np.int64)


def _packed(total: _Total) -> pa.RecordBatch:
    """Partial profiles, one row a key and column."""
    rows = [(key, at, each) for key, profiles in total.items() for at, each in enumerate(profiles)]
    columns = (
        *([getattr(key, name) for key, _, _ in rows] for name in _Key._fields[:-1]),
        [list(key.slice_values) for key, _, _ in rows],
        [at for _, at, _ in rows],
        [each.n_units for _, _, each in rows],
        *([getattr(each, name).tobytes() for _, _, each in rows] for name in ("counts", "units", "location")),
    )
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _ARROW, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=_ARROW)


def _unpacked(row: Mapping[str, object], cells: Cells) -> Profile:
    counts, units, location = (
        np.frombuffer(row[name], dtype=np.int64)  # type: ignore[call-overload]
        for name in ("counts", "units", "location")
    )
    return Profile(
        counts.reshape(n_cells(cells), N_BUCKETS), units, int(str(row["n_units"])), location.reshape(-1, N_BUCKETS)
    )


def _merger(survey: Survey) -> ArrowMap:
    """The profiles of keys and columns, from partial ones of disjoint units."""
    cells = tuple(survey.cells.values())

    def merge(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        total: dict[tuple[_Key, int], Profile] = {}
        for row in (row for batch in batches for row in batch.to_pylist()):
            version, traffic, arm = (row[name] for name in _ROW_KEY)
            key = _Key(version, traffic, arm, row["window_at"], row["set_at"], tuple(row["slice_values"]))
            profile, known = _unpacked(row, cells[row["column_at"]]), total.get((key, row["column_at"]))
            total[key, row["column_at"]] = profile if known is None else known + profile
        yield _final(total, survey)

    return merge


_FINAL = pa.schema(
    [
        *((name, pa.string()) for name in ("model_version", "traffic", "arm")),
        *((name, pa.timestamp("us", "UTC")) for name in ("window_start", "window_end")),
        *((name, pa.string()) for name in ("slice_key", "slice_value", "column", "edges_version")),
        ("n_units", pa.int64()),
        ("counts", pa.list_(pa.list_(pa.int64()))),
        ("units", pa.list_(pa.int64())),
        ("location", pa.list_(pa.list_(pa.int64()))),
    ]
)


def _final(total: Mapping[tuple[_Key, int], Profile], survey: Survey) -> pa.RecordBatch:
    names, cells = tuple(survey.cells), tuple(survey.cells.values())
    slices = [name_slice(dict(zip(survey.sets[key.set_at], key.slice_values, strict=True))) for key, _ in total]
    windows = [survey.windows[key.window_at] for key, _ in total]
    columns = (
        *([getattr(key, name) for key, _ in total] for name in _ROW_KEY),
        [each.start_time for each in windows],
        [each.end_time for each in windows],
        [each.slice_key for each in slices],
        [each.slice_value for each in slices],
        [names[at] for _, at in total],
        [cells[at].version for _, at in total],
        [each.n_units for each in total.values()],
        *([getattr(each, name).tolist() for each in total.values()] for name in ("counts", "units", "location")),
    )
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _FINAL, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=_FINAL)
