"""Labelled predictions to performance states: counts by score cell, label and bucket, per window and slice.

    rows = training.labelled(predictions, outcomes, label, as_of, since)     with `is_mature`, `label`
    score_labels(rows, sets=[(), ("device",)], keys=("window",))[("2026-11-01",)][Slice("", "")]

`label` is null where nothing is known; only mature rows count. The rows are read twice (`logs.kept` keeps
them).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from mltrust.drift.performance import N_BUCKETS, N_CELLS, POSITIVE, STEPS, UNLABELLED, ScoreLabels
from mltrust.slices import Slice
from mltrust.spark.places import PLACES, SET, VALUES, Sets, places, slice_of

_CODE, _UNIT = "code", "unit"
_UNUSABLE = -1
States = Mapping[tuple[str, ...], Mapping[Slice, ScoreLabels]]


def score_labels(labelled: DataFrame, *, sets: Sets, keys: Sequence[str] = ()) -> States:
    """The state of the mature predictions, by key values and slice of each set (() is overall); one collect.

    `keys` and the attributes of `sets` are text columns without nulls. A row without a score (it failed) is none.
    """
    mature = labelled.where(F.col("is_mature") & F.col("prediction_score").isNotNull())
    unit = F.xxhash64(F.coalesce("unit_id", "request_id"))
    coded = mature.select(
        *(F.col(name).cast("string").alias(name) for name in keys),
        places(sets),
        unit.alias(_UNIT),
        _code(unit).alias(_CODE),
    )
    where = (*keys, SET, VALUES)
    placed = coded.select(*keys, F.inline(PLACES), _UNIT, _CODE)
    counted = placed.groupBy(*where, _CODE).agg(F.count("*").alias("n"))
    # Per place one row on the driver: lists of its codes and their counts.
    lists = counted.groupBy(*where).agg(F.collect_list(_CODE).alias("codes"), F.collect_list("n").alias("counts"))
    n_units = placed.groupBy(*where).agg(F.count_distinct(_UNIT).alias("n_units"))
    found: dict[tuple[str, ...], dict[Slice, ScoreLabels]] = {}
    for row in lists.join(n_units, list(where)).collect():
        state = _state(np.array(row["codes"]), np.array(row["counts"]), row["n_units"])
        found.setdefault(tuple(row[name] for name in keys), {})[slice_of(sets, row[SET], row[VALUES])] = state
    return found


def _code(unit: Column) -> Column:
    """One number for label, score cell and bucket; -1 where the score is no probability, or the label not 0 or 1."""
    score, label = F.col("prediction_score"), F.col("label")
    usable = score.between(0, 1) & (label.isNull() | label.isin(0.0, 1.0))
    kind = F.when(label.isNull(), UNLABELLED).otherwise((label == POSITIVE).cast("int"))
    step = F.floor((F.ln(score / (1 - score)) + N_CELLS / (2 * STEPS)) * STEPS)
    cell = F.when(score <= 0, 0).when(score >= 1, N_CELLS - 1).otherwise(step)
    within = F.least(F.greatest(cell, F.lit(0)), F.lit(N_CELLS - 1))
    code = (kind * N_CELLS + within) * N_BUCKETS + F.pmod(unit, F.lit(N_BUCKETS))
    return F.when(usable, code).otherwise(_UNUSABLE).cast("int")


def _state(codes: NDArray[np.int64], n: NDArray[np.int64], n_units: int) -> ScoreLabels:
    counts, is_usable = np.zeros(3 * N_CELLS * N_BUCKETS, dtype=np.int64), codes != _UNUSABLE
    counts[codes[is_usable]] = n[is_usable]
    return ScoreLabels(counts.reshape(3, N_CELLS, N_BUCKETS), n_units, int(n[~is_usable].sum()))
