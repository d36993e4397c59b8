"""A frame of units to moments per cell: one pass, any number of metrics, slices and arms.

Each task centres and reduces its own rows with numpy (`mapInArrow`), one shuffle brings the partial states of a
cell together, and Chan's formula merges them. For a handful of columns Spark's own `covar_pop` is quicker; its cost
grows faster with the columns (`make bench` shows both).
"""

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mltrust.slices import OTHER
from mltrust.spark.codec import pack, unpack
from mltrust.spark.logs import ArrowMap
from mltrust.states.moments import Moments

# Rows reduced at once in a task: many enough that numpy works on columns, few enough to stay in the cache.
_CHUNK = 200_000
_PARTIAL = "in_set INT, cell ARRAY<STRING>, part BIGINT, n ARRAY<BIGINT>, packed ARRAY<DOUBLE>"
_ARROW = pa.schema(
    [
        ("in_set", pa.int32()),
        ("cell", pa.list_(pa.string())),
        ("part", pa.int64()),
        ("n", pa.list_(pa.int64())),
        ("packed", pa.list_(pa.float64())),
    ]
)


class Block(NamedTuple):
    """Columns whose moments are kept together, over the units where none of them is null.

    `columns` are their names in the state; no column at all counts units. `where` names a flag that must be true.
    """

    name: str
    sources: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    where: str | None = None


class Cell(NamedTuple):
    """The states of one cell of one set: the values of the set's keys, and a state per block."""

    values: dict[str, str]
    states: dict[str, Moments]


class CellSet(NamedTuple):
    """Key columns by which units are cut into cells, and the blocks that each cell keeps."""

    keys: tuple[str, ...]
    blocks: tuple[Block, ...]


CellKey = tuple[int, tuple[str, ...]]
States = dict[CellKey, list[Moments]]


def cells(frame: DataFrame, sets: Sequence[CellSet]) -> list[list[Cell]]:
    """For each set the cells that occur, sorted, with a state per block; one Spark job.

    Key columns must not be null. The merge order is that of the partitions, so that the same partitioning
    gives the same bits.
    """
    keys = tuple(dict.fromkeys(name for each in sets for name in each.keys))
    blocks = dict.fromkeys(block for each in sets for block in each.blocks)
    sources = tuple(dict.fromkeys(source for block in blocks for source in (*block.sources, *flags(block))))
    needed = frame.select(
        *(F.col(f"`{name}`").cast("string").alias(name) for name in keys),
        *(F.col(f"`{name}`").cast("double").alias(name) for name in sources),
        F.spark_partition_id().cast("bigint").alias("part"),
    )
    # Positions, not names: names of sources hold characters that are no identifiers.
    partial = needed.mapInArrow(_reducer(keys, sources, tuple(sets)), _PARTIAL)
    merged = partial.repartition("in_set", "cell").mapInArrow(_merger(tuple(sets)), _PARTIAL)
    found: list[list[Cell]] = [[] for _ in sets]
    for row in sorted(merged.collect(), key=lambda row: (row["in_set"], row["cell"])):
        own = sets[row["in_set"]]
        states = unpack([block.columns for block in own.blocks], row["n"], row["packed"])
        values = dict(zip(own.keys, row["cell"], strict=True))
        found[row["in_set"]].append(
            Cell(values, {block.name: state for block, state in zip(own.blocks, states, strict=True)})
        )
    return found


def flags(block: Block) -> tuple[str, ...]:
    """The columns that must be true for a unit to count in a block."""
    return () if block.where is None else (block.where,)


def _reducer(
    keys: tuple[str, ...],
    sources: tuple[str, ...],
    sets: tuple[CellSet, ...],
) -> ArrowMap:
    def reduce(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        total: States = {}
        part = 0
        for chunk in chunks(batches):
            part = chunk["part"][0].as_py()
            values = {name: chunk[name].to_numpy(zero_copy_only=False) for name in sources}
            codes = {name: chunk[name].combine_chunks().dictionary_encode() for name in keys}
            for at, each in enumerate(sets):
                labels, code = groups([codes[name] for name in each.keys], chunk.num_rows)
                _add(total, at, labels, [_states(block, values, code, len(labels)) for block in each.blocks])
        yield _to_batch(total, part)

    return reduce


def chunks(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The rows of all batches in tables that are reduced at once, none of them empty."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(each.num_rows for each in held) >= _CHUNK:
            yield pa.Table.from_batches(held)
            held = []
    if any(each.num_rows for each in held):
        yield pa.Table.from_batches(held)


def groups(encoded: Sequence[pa.DictionaryArray], rows: int) -> tuple[list[tuple[str, ...]], np.ndarray]:
    """The distinct key tuples of a chunk, and for each row which of them it has."""
    combined = np.zeros(rows, dtype=np.int64)
    for array in encoded:
        combined = combined * len(array.dictionary) + array.indices.to_numpy()
    first, code = _first_and_code(combined, prod(len(array.dictionary) for array in encoded))
    picked = [array.take(pa.array(first)).to_pylist() for array in encoded]
    return list(zip(*picked, strict=True)) if encoded else [()] * len(first), code


def _first_and_code(values: np.ndarray, n_possible: int) -> tuple[np.ndarray, np.ndarray]:
    """The first row of each distinct value, by value, and for each row the index of its value."""
    if n_possible > len(values):
        _, first, code = np.unique(values, return_index=True, return_inverse=True)
        return first, code
    # Few possible values, as nearly always: tables of them instead of a sort of the rows.
    at = np.full(n_possible, -1)
    at[values[::-1]] = np.arange(len(values))[::-1]
    seen = np.flatnonzero(at >= 0)
    index = np.zeros(n_possible, dtype=np.intp)
    index[seen] = np.arange(len(seen))
    return at[seen], index[values]


def _states(block: Block, values: dict[str, np.ndarray], code: np.ndarray, n_groups: int) -> list[Moments]:
    sample = np.empty((len(code), len(block.sources)))
    for at, source in enumerate(block.sources):
        sample[:, at] = values[source]
    there = ~np.isnan(sample).any(axis=1)
    if block.where is not None:
        there &= values[block.where] == 1
    if not there.all():
        code, sample = code[there], sample[there]
    return Moments.by_group(block.columns, code, n_groups, sample)


def _add(total: States, at: int, labels: Sequence[tuple[str, ...]], by_block: Sequence[list[Moments]]) -> None:
    for label, states in zip(labels, zip(*by_block, strict=True), strict=True):
        known = total.get((at, label))
        total[at, label] = list(states) if known is None else [a + b for a, b in zip(known, states, strict=True)]


def _merger(sets: tuple[CellSet, ...]) -> ArrowMap:
    columns = [[block.columns for block in each.blocks] for each in sets]

    def merge(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        total: States = {}
        rows = [row for batch in batches for row in batch.to_pylist()]
        for row in sorted(rows, key=lambda row: row["part"]):
            states = unpack(columns[row["in_set"]], row["n"], row["packed"])
            _add(total, row["in_set"], [tuple(row["cell"])], [[state] for state in states])
        yield _to_batch(total, 0)

    return merge


def _to_batch(total: States, part: int) -> pa.RecordBatch:
    packed = [pack(states) for states in total.values()]
    columns = (
        [at for at, _ in total],
        [list(label) for _, label in total],
        [part] * len(total),
        [n for n, _ in packed],
        [values for _, values in packed],
    )
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _ARROW, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=_ARROW)


class Cardinality(NamedTuple):
    """How many cells all attributes together have (estimated), and per attribute the values to keep, if not all."""

    n_cells: int
    kept: dict[str, tuple[str, ...]]


def cardinality(frame: DataFrame, attributes: Sequence[str], max_values: int) -> Cardinality:
    """Estimates the finest cells of a frame of units, and names the most frequent values where there are too many.

    One Spark job, and one more for each attribute with more than `max_values` values.
    """
    if not attributes:
        return Cardinality(1, {})
    counts = frame.agg(
        F.approx_count_distinct(F.struct(*attributes)).alias("n"),
        *(F.approx_count_distinct(name).alias(f"n_{name}") for name in attributes),
    ).first()
    assert counts is not None
    many = [name for name in attributes if counts[f"n_{name}"] > max_values]
    kept = {}
    for name in many:
        ordered = frame.groupBy(name).count().orderBy(F.desc("count"), name).limit(max_values)
        kept[name] = tuple(row[name] for row in ordered.collect() if row[name] != OTHER)
    shrunk = counts["n"]
    for name in many:
        shrunk = shrunk * (max_values + 1) // counts[f"n_{name}"]
    return Cardinality(max(1, shrunk), kept)
