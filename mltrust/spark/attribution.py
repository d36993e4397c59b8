"""SHAP values of logged inputs, in the executors, to attribution states per window and slice.

    of = background(reference_rows, types)
    found = attributions(rows, [Version("7", loader, types)], of=of, sets=[(), ("device",)], keys=("window",))
    found.states[("2026-11-01",)][Slice("device", "tv")]["7"]      a Replicates state for drift.attribution

`rows` are log rows with `features` as logged, `request_id`, `item_id` and `unit_id`, the text columns `keys` (a
window, an arm) and the attributes of `sets`, none of them null. One version and several windows tell whether its use
of the inputs moved; several versions are all explained on the same rows, whatever version answered them.

Only a sample is explained: of every slice the units whose hash is below the slice's own threshold, so that a slice of
few units is taken whole and each slice's sample is a plain random one, without weights. A unit's mean |SHAP| is over
at most `rows_per_unit` of its rows. All is decided by hashes, and sums run in the order of hashes: the same rows give
the same bits, however they are partitioned. Two jobs: one counts units, one explains.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple
from uuid import uuid4

import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from mltrust.slices import Slice
from mltrust.spark.explainers import Explain, Model, Scale, common_scale, explain, method_of, score_of, typed
from mltrust.spark.logs import ArrowMap
from mltrust.spark.places import PLACES, PLACES_TYPE, SET, VALUES, Sets, places, sampled, slice_of
from mltrust.spark.replicates import SEED
from mltrust.states.replicates import UNITS, Replicates, delete_a_bucket

#: Groups of units for the jackknife.
N_BUCKETS = 64
_ORDER, _PHI = "order of the row", "phi"
_UNIT = "hash of the unit"


class Version(NamedTuple):
    """A model version to be explained: a picklable loader, called once per Python worker, and its inputs.

    `types` are the names and types of the model's signature (`double`, `long`, `string`, `boolean`), in its order;
    a type that is '' keeps the log's own.
    """

    name: str
    load: Callable[[], Model]
    types: Mapping[str, str]


class Sampling(NamedTuple):
    """How many units of every slice and window are explained, and of each at most how many rows."""

    n_units: int = 1_000
    rows_per_unit: int = 2
    seed: int = SEED


SAMPLING = Sampling()


class Attributions(NamedTuple):
    """By key values and slice, the state of every version: columns are features, the observation is the unit.

    `methods` says how each version was explained, `scale` in which unit: that of the score, or log-odds (`margin`).
    Rows that a model refused are left out of all versions' states, and counted.
    """

    states: Mapping[tuple[str, ...], Mapping[Slice, Mapping[str, Replicates]]]
    n_rows: int
    n_refused: int
    methods: Mapping[str, str]
    scale: Scale


def background(rows: DataFrame, types: Mapping[str, str], n: int = 50) -> pd.DataFrame:
    """Some rows of the reference as the model's input: what a feature is when it is left out; one Spark job.

    The `n` rows with the smallest hashes of their request, so that it is the same for the same log. Time goes with
    them: 1,000 rows by a forest of 60 trees and 100 background rows take 10 s of one core.
    """
    chosen = rows.select(
        *(F.col(f"features.`{name}`").alias(name) for name in types),
        F.xxhash64("request_id", "item_id").alias(_ORDER),
    )
    table = chosen.orderBy(_ORDER, *types).limit(n).toArrow()
    return _frame({name: table[name].combine_chunks() for name in types}, types)


def attributions(
    rows: DataFrame,
    versions: Sequence[Version],
    *,
    of: pd.DataFrame,
    sets: Sets,
    keys: Sequence[str] = (),
    sampling: Sampling = SAMPLING,
) -> Attributions:
    """Mean |SHAP| per unit of every version, by key values and slice of each set (() is overall).

    `of` is the `background`; it has every version's features. A version has an attribution of 0 by features that
    only others take. ValueError where a model has no one score, or refuses the background.
    """
    features = tuple(dict.fromkeys(name for each in versions for name in each.types))
    models = [(each, each.load()) for each in versions]
    scale = common_scale([model for _, model in models])
    methods = {}
    for each, model in models:
        score_of(model, scale)(_own(of, each))
        methods[each.name] = method_of(model, _own(of, each), scale=scale)
    chosen = _sampled(_needed(rows, features, sets, keys), keys, sampling)
    explained = chosen.mapInArrow(*_explaining(tuple(versions), features, of, scale, tuple(keys)))
    placed = explained.select("*", F.inline(PLACES)).drop(PLACES)
    reduced = placed.groupBy(*keys, SET, VALUES).applyInArrow(*_reducing(tuple(keys), len(versions), len(features)))
    return _collected(reduced, [each.name for each in versions], features, sets, keys, methods, scale)


def _needed(rows: DataFrame, features: Sequence[str], sets: Sets, keys: Sequence[str]) -> DataFrame:
    """What is sampled and explained of the rows, with the hash of their unit: the request, where there is no unit."""
    return rows.select(
        *(F.col(name).cast("string").alias(name) for name in keys),
        F.xxhash64(F.coalesce("unit_id", "request_id")).alias(_UNIT),
        F.xxhash64("request_id", "item_id").alias(_ORDER),
        places(sets),
        F.struct(*(F.col(f"features.`{name}`").alias(name) for name in features)).alias("features"),
    )


def _sampled(rows: DataFrame, keys: Sequence[str], sampling: Sampling) -> DataFrame:
    """The sampled rows, of every unit the first ones by their hash; one Spark job counts the units of places."""
    of_units = sampled(rows, keys, by=_UNIT, n=sampling.n_units, seed=sampling.seed)
    nth = F.row_number().over(Window.partitionBy(*keys, _UNIT).orderBy(_ORDER))
    return of_units.withColumn("nth", nth).where(F.col("nth") <= sampling.rows_per_unit).drop("nth")


# Explanations that a Python worker holds, by the run that they are of: a model is loaded once and not per task.
_HELD: dict[str, list[Explain]] = {}


def _explainers(run: str, versions: Sequence[Version], of: pd.DataFrame, scale: Scale) -> list[Explain]:
    if run not in _HELD:
        _HELD.clear()
        _HELD[run] = [explain(each.load(), _own(of, each), scale=scale) for each in versions]
    return _HELD[run]


def _own(of: pd.DataFrame, version: Version) -> pd.DataFrame:
    """The background as this version takes it."""
    return typed({name: of[name] for name in version.types}, version.types)


def _explaining(
    versions: tuple[Version, ...], features: tuple[str, ...], of: pd.DataFrame, scale: Scale, keys: tuple[str, ...]
) -> tuple[ArrowMap, str]:
    """What replaces `features` by `phi`, the |SHAP| of all versions one after the other, and its schema."""
    run = uuid4().hex
    kept = (*keys, _UNIT, _ORDER, PLACES)

    def explain_rows(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        explainers = _explainers(run, versions, of, scale)
        for batch in batches:
            columns = dict(zip(features, batch.column("features").flatten(), strict=True))
            found = np.zeros((batch.num_rows, len(versions), len(features)))
            for at, (version, explainer) in enumerate(zip(versions, explainers, strict=True)):
                own = [features.index(name) for name in version.types]
                found[:, at, own] = np.abs(_values(explainer, _frame(columns, version.types)))
            phi = found.reshape(batch.num_rows, -1)
            offsets = np.arange(len(phi) + 1, dtype=np.int32) * phi.shape[1]
            arrays = [*(batch.column(name) for name in kept), pa.ListArray.from_arrays(offsets, phi.ravel())]
            yield pa.RecordBatch.from_arrays(arrays, names=[*kept, _PHI])

    schema = (
        "".join(f"`{name}` STRING, " for name in keys)
        + f"`{_UNIT}` BIGINT, `{_ORDER}` BIGINT, "
        + f"{PLACES_TYPE}, {_PHI} ARRAY<DOUBLE>"
    )
    return explain_rows, schema


def _frame(columns: Mapping[str, pa.Array], types: Mapping[str, str]) -> pd.DataFrame:
    return typed({name: columns[name].to_pandas() for name in types}, types)


def _values(explainer: Explain, frame: pd.DataFrame) -> np.ndarray:
    """The values of a frame; nan for the rows that the model refuses, which are found one by one."""
    try:
        return explainer(frame)
    except (ValueError, TypeError, KeyError):  # what models say of values that they do not know
        if len(frame) < 2:
            return np.full(frame.shape, np.nan)
        half = len(frame) // 2
        return np.concatenate([_values(explainer, frame.iloc[:half]), _values(explainer, frame.iloc[half:])])


def _reducing(keys: tuple[str, ...], n_versions: int, n_features: int) -> tuple[Callable[[pa.Table], pa.Table], str]:
    """What makes one row of the rows of a place: counts, and the sums of its units without each bucket."""

    def reduce(rows: pa.Table) -> pa.Table:
        units, order = (rows[name].to_numpy() for name in (_UNIT, _ORDER))
        phi = rows[_PHI].combine_chunks().values.to_numpy().reshape(rows.num_rows, n_versions * n_features)
        is_explained = ~np.isnan(phi).any(axis=1)
        sorted_rows = np.lexsort((order, units))
        sorted_rows = sorted_rows[is_explained[sorted_rows]]
        distinct, mean = _unit_means(units[sorted_rows], phi[sorted_rows])
        names = tuple(map(str, range(phi.shape[1])))
        sums = delete_a_bucket(names, mean, distinct, seed=SEED, n_buckets=N_BUCKETS).sums
        first = rows.slice(0, 1)
        return pa.table(
            {name: first[name] for name in (*keys, SET, VALUES)}
            | {"n_rows": [rows.num_rows], "n_refused": [int((~is_explained).sum())], "sums": [sums.tobytes()]}
        )

    schema = ", ".join(
        [
            *(f"`{name}` STRING" for name in keys),
            f"{SET} INT, {VALUES} ARRAY<STRING>, n_rows BIGINT, n_refused BIGINT",
            "sums BINARY",
        ]
    )
    return reduce, schema


def _unit_means(units: np.ndarray, phi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct units of rows that are sorted by unit, and the means of their rows."""
    distinct, first, n = np.unique(units, return_index=True, return_counts=True)
    if not len(distinct):
        return distinct, phi
    return distinct, np.add.reduceat(phi, first, axis=0) / n[:, np.newaxis]


def _collected(
    reduced: DataFrame,
    versions: Sequence[str],
    features: tuple[str, ...],
    sets: Sets,
    keys: Sequence[str],
    methods: Mapping[str, str],
    scale: Scale,
) -> Attributions:
    states: dict[tuple[str, ...], dict[Slice, dict[str, Replicates]]] = {}
    n_rows = n_refused = 0
    for row in reduced.collect():
        sums = np.frombuffer(row["sums"]).reshape(1 + N_BUCKETS, 1 + len(versions) * len(features))
        where = slice_of(sets, row[SET], row[VALUES])
        own = states.setdefault(tuple(row[key] for key in keys), {}).setdefault(where, {})
        for at, version in enumerate(versions):
            own[version] = _state(sums, features, at)
        if not sets[row[SET]]:
            n_rows, n_refused = n_rows + row["n_rows"], n_refused + row["n_refused"]
    return Attributions(states, n_rows, n_refused, methods, scale)


def _state(sums: np.ndarray, features: tuple[str, ...], at: int) -> Replicates:
    """The state of the version at this position, whose columns lie beside one another."""
    k, n = len(features), int(sums[0, 0])
    own = sums[:, 1 + at * k : 1 + (at + 1) * k]
    return Replicates((UNITS, *features), n, np.column_stack([sums[:, 0], own]))
