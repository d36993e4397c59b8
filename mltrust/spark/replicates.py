"""A frame of units to replicates per cell: one pass, any number of metrics, slices and arms.

As `spark.moments` does for moments: each task reduces its own rows with numpy (`mapInArrow`), one shuffle brings the
partial states of a cell together. The weights of a unit come from its hash by Spark's xxhash64, so that neither the
partitioning nor the cell matters. Those of a bootstrap are drawn once per unit, for all blocks of a set.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mltrust.spark.logs import ArrowMap
from mltrust.spark.moments import Block, CellKey, chunks, flags, groups
from mltrust.states.replicates import UNITS, Replicates, delete_a_bucket, poisson, resalted

#: One for all: states of one seed can be added, and arms compared replicate by replicate.
SEED = 20261005
_HASH = "hash of the unit"
_PARTIAL = "in_set INT, cell ARRAY<STRING>, part BIGINT, sums BINARY"
_ARROW = pa.schema(
    [("in_set", pa.int32()), ("cell", pa.list_(pa.string())), ("part", pa.int64()), ("sums", pa.binary())]
)


class ResampledSet(NamedTuple):
    """Key columns by which units are cut into cells, the blocks of each cell, and how many replicates of which kind.

    A `jackknife` leaves out one of `n` hash buckets of units at a time, `resalting` takes the half of the units that
    a new salt would put into one of two arms.
    """

    keys: tuple[str, ...]
    blocks: tuple[Block, ...]
    method: Literal["bootstrap", "jackknife", "resalting"]
    n: int


class ResampledCell(NamedTuple):
    """The replicates of one cell of one set: the values of the set's keys, and a state per block."""

    values: dict[str, str]
    states: dict[str, Replicates]


def replicates(frame: DataFrame, sets: Sequence[ResampledSet], *, unit: str = "unit_id") -> list[list[ResampledCell]]:
    """For each set the cells that occur, sorted, with a state per block; one Spark job.

    `unit` is the column that says whose row it is, with one row per unit. A unit counts in a block where none of its
    columns is null. Key columns must not be null.
    """
    keys = tuple(dict.fromkeys(name for each in sets for name in each.keys))
    blocks = dict.fromkeys(block for each in sets for block in each.blocks)
    sources = tuple(dict.fromkeys(source for block in blocks for source in (*block.sources, *flags(block))))
    needed = frame.select(
        *(F.col(name).cast("string").alias(name) for name in keys),
        *(F.col(f"`{name}`").cast("double").alias(name) for name in sources),
        F.xxhash64(unit).alias(_HASH),
        F.spark_partition_id().cast("bigint").alias("part"),
    )
    partial = needed.mapInArrow(_reducer(sources, tuple(sets)), _PARTIAL)
    together = partial.repartition("in_set", "cell").sortWithinPartitions("in_set", "cell", "part")
    merged = together.mapInArrow(_merge, _PARTIAL)
    found: list[list[ResampledCell]] = [[] for _ in sets]
    for row in sorted(merged.collect(), key=lambda row: (row["in_set"], row["cell"])):
        own = sets[row["in_set"]]
        sums = np.frombuffer(row["sums"]).reshape(1 + own.n, -1)
        values = dict(zip(own.keys, row["cell"], strict=True))
        found[row["in_set"]].append(ResampledCell(values, _by_block(own.blocks, sums)))
    return found


def _by_block(blocks: Sequence[Block], sums: np.ndarray) -> dict[str, Replicates]:
    """The states whose sums lie beside one another, in each block first the weights of its units."""
    states, at = {}, 0
    for block in blocks:
        own = sums[:, at : at + 1 + len(block.columns)]
        states[block.name] = Replicates((UNITS, *block.columns), int(own[0, 0]), own)
        at += 1 + len(block.columns)
    return states


def _reducer(sources: tuple[str, ...], sets: tuple[ResampledSet, ...]) -> ArrowMap:
    def reduce(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        total: dict[CellKey, np.ndarray] = {}
        part = 0
        for chunk in chunks(batches):
            part = chunk["part"][0].as_py()
            values = {name: chunk[name].to_numpy(zero_copy_only=False) for name in sources}
            hashes = chunk[_HASH].to_numpy(zero_copy_only=False)
            for at, each in enumerate(sets):
                encoded = [chunk[name].combine_chunks().dictionary_encode() for name in each.keys]
                labels, code = groups(encoded, chunk.num_rows)
                sample = np.column_stack([_sample(block, values, len(code)) for block in each.blocks])
                for label, rows in zip(labels, _rows(code, len(labels)), strict=True):
                    _add(total, (at, label), _sums(each, sample[rows], hashes[rows]))
        yield _to_batch(total, part)

    return reduce


def _sample(block: Block, values: dict[str, np.ndarray], n: int) -> np.ndarray:
    """(n, 1 + k): whether a unit counts in the block, and its values there, else 0."""
    sample = np.ones((n, 1 + len(block.sources)))
    for at, source in enumerate(block.sources, 1):
        sample[:, at] = values[source]
    there = ~np.isnan(sample).any(axis=1)
    for flag in flags(block):
        there &= values[flag] == 1
    sample[~there] = 0
    return sample


def _rows(code: np.ndarray, n_groups: int) -> list[np.ndarray]:
    """The rows of each group, in their order."""
    order = np.argsort(code, kind="stable")
    return np.split(order, np.cumsum(np.bincount(code, minlength=n_groups))[:-1])


def _sums(own: ResampledSet, sample: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    columns = tuple(map(str, range(sample.shape[1])))
    if own.method == "jackknife":
        return delete_a_bucket(columns, sample, hashes, seed=SEED, n_buckets=own.n).sums[:, 1:]
    draw = poisson if own.method == "bootstrap" else resalted
    return draw(columns, sample, hashes, seed=SEED, n_replicates=own.n).sums[:, 1:]


def _add(total: dict[CellKey, np.ndarray], key: CellKey, sums: np.ndarray) -> None:
    total[key] = total[key] + sums if key in total else sums


def _merge(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    total: dict[CellKey, np.ndarray] = {}
    for batch in batches:
        for row in batch.to_pylist():
            _add(total, (row["in_set"], tuple(row["cell"])), np.frombuffer(row["sums"]))
    yield _to_batch(total, 0)


def _to_batch(total: dict[CellKey, np.ndarray], part: int) -> pa.RecordBatch:
    columns = (
        [at for at, _ in total],
        [list(label) for _, label in total],
        [part] * len(total),
        [np.ascontiguousarray(sums).tobytes() for sums in total.values()],
    )
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _ARROW, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=_ARROW)
