"""Labelled predictions to the states of relation drift: residuals by cell of every column, per window and slice.

    rows = training.labelled(predictions, outcomes, label, as_of, since)     with `is_mature`, `label`
    residuals(rows, cells, sets=[(), ("device",)], keys=("window",))[("2026-11-01",)][Slice("", "")]["features.age"]

Sums are of integers, so that no partitioning changes a bit of them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from mltrust.drift.cells import Cells, n_cells
from mltrust.drift.profile import N_BUCKETS
from mltrust.drift.relation import FARTHEST, STEPS, Residuals
from mltrust.slices import Slice
from mltrust.spark.logs import ArrowMap
from mltrust.spark.places import PLACES, PLACES_TYPE, SET, VALUES, Sets, places, slice_of

_UNIT, _BUCKET, _STEPS, _CELLS, _CELL = "unit", "bucket", "steps", "cells", "cell"
States = Mapping[tuple[str, ...], Mapping[Slice, Mapping[str, Residuals]]]


def residuals(labelled: DataFrame, cells: Mapping[str, Cells], *, sets: Sets, keys: Sequence[str] = ()) -> States:
    """The residuals of mature labelled rows by key values, slice of each set (() is overall) and column; one collect.

    `cells` are of columns of the log (`features.age`, `prediction_score`). `keys` and the attributes of `sets` are
    text columns without nulls.
    """
    known = F.col("is_mature") & F.col("label").isNotNull() & F.col("prediction_score").isNotNull()
    needed = _needed(labelled.where(known), cells, sets, keys)
    where = (*keys, SET, VALUES)
    placed = needed.mapInArrow(*_placing(cells, keys)).select(*keys, F.inline(PLACES), _UNIT, _STEPS, _CELLS)
    counted = (
        placed.select(*where, F.pmod(_UNIT, F.lit(N_BUCKETS)).alias(_BUCKET), _STEPS, F.explode(_CELLS).alias(_CELL))
        .groupBy(*where, _CELL, _BUCKET)
        .agg(F.count("*").alias("n"), F.sum(_STEPS).alias("total"))
    )
    entry = F.struct((F.col(_CELL) * N_BUCKETS + F.col(_BUCKET)).cast("int").alias("code"), "n", "total")
    lists = counted.groupBy(*where).agg(F.collect_list(entry).alias("entries"))
    n_units = placed.groupBy(*where).agg(F.count_distinct(_UNIT).alias("n_units"))
    found: dict[tuple[str, ...], dict[Slice, Mapping[str, Residuals]]] = {}
    for row in lists.join(n_units, list(where)).collect():
        states = _states(cells, np.array(row["entries"], dtype=np.int64).reshape(-1, 3), row["n_units"])
        found.setdefault(tuple(row[name] for name in keys), {})[slice_of(sets, row[SET], row[VALUES])] = states
    return found


def _needed(rows: DataFrame, cells: Mapping[str, Cells], sets: Sets, keys: Sequence[str]) -> DataFrame:
    step = F.rint((F.col("label") - F.col("prediction_score")) * STEPS)
    within = F.least(F.greatest(step, F.lit(float(-FARTHEST))), F.lit(float(FARTHEST)))
    return rows.select(
        *(F.col(name).cast("string").alias(name) for name in keys),
        places(sets),
        F.xxhash64(F.coalesce("unit_id", "request_id")).alias(_UNIT),
        within.cast("bigint").alias(_STEPS),
        *(_value(name, each).alias(f"value{at}") for at, (name, each) in enumerate(cells.items())),
    )


def _value(column: str, cells: Cells) -> Column:
    return F.col(column).cast("double" if cells.is_ordered else "string")


def _placing(cells: Mapping[str, Cells], keys: Sequence[str]) -> tuple[ArrowMap, str]:
    """What gives every row its cell in each column, those of all columns numbered one after the other."""
    of_columns, offsets = tuple(cells.values()), _offsets(cells)
    kept = (*keys, PLACES, _UNIT, _STEPS)

    def place(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            index = np.empty((batch.num_rows, len(of_columns)), dtype=np.int32)
            for at, each in enumerate(of_columns):
                values = batch.column(f"value{at}")
                known = values.to_numpy(zero_copy_only=False) if each.is_ordered else values.to_pylist()
                index[:, at] = each.index(known) + offsets[at]
            ends = np.arange(batch.num_rows + 1, dtype=np.int32) * len(of_columns)
            arrays = [*(batch.column(name) for name in kept), pa.ListArray.from_arrays(ends, index.ravel())]
            yield pa.RecordBatch.from_arrays(arrays, names=[*kept, _CELLS])

    schema = (
        "".join(f"`{name}` STRING, " for name in keys)
        + f"{PLACES_TYPE}, {_UNIT} BIGINT, {_STEPS} BIGINT, {_CELLS} ARRAY<INT>"
    )
    return place, schema


def _offsets(cells: Mapping[str, Cells]) -> list[int]:
    """The number of each column's first cell, and at last that of all cells."""
    return list(accumulate(map(n_cells, cells.values()), initial=0))


def _states(cells: Mapping[str, Cells], entries: np.ndarray, n_units: int) -> dict[str, Residuals]:
    offsets = _offsets(cells)
    counts, totals = np.zeros((2, offsets[-1], N_BUCKETS), dtype=np.int64)
    at = np.divmod(entries[:, 0], N_BUCKETS)
    counts[at], totals[at] = entries[:, 1], entries[:, 2]
    return {
        name: Residuals(counts[first:after].copy(), totals[first:after].copy(), n_units)
        for name, (first, after) in zip(cells, pairwise(offsets), strict=True)
    }
