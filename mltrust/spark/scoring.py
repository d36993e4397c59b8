"""Models on rows in executors: every model and every perturbation on the same batch, in one pass.

A model comes as a picklable loader and is loaded once per Python worker. Batches have a fixed number of rows whatever
Spark sends, as the last bits of a score may depend on it. A row on which a model raises is a row with an error.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from time import perf_counter
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from mltrust.replay import compare
from mltrust.replay.compare import Role
from mltrust.replay.perturb import Context, perturbed
from mltrust.replay.spec import Perturbation
from mltrust.spark.logs import ArrowMap, arrow_type

Scores = np.ndarray
#: From the inputs of a model, one row each, to a number each; float32 where that is what the model gives.
Predict = Callable[[pd.DataFrame], Scores]
#: A row's columns for scoring beside its `features`: a hash of its key, and whether perturbations are tried on it.
DRAW, IS_TRIED, PREVIOUS, LOGGED = "draw", "is_tried", "previous", "logged"
_HAS_PREVIOUS = "has previous"
# Rows tried alone in a task after their batch failed. Beyond, rows of a failing batch have the batch's error.
_MAX_ALONE = 1000
_MAX_ERROR = 300
# Rows of a task whose noise is measured: each costs three more predictions.
_NOISE_ROWS = 2000


class Load(Protocol):
    """What loads a model in a worker. Equal loaders load the same model, so that it is loaded once."""

    def __call__(self) -> Predict: ...

    def __hash__(self) -> int: ...


class Input(NamedTuple):
    """A column that a model reads, by the type of its signature (MLflow's names of types)."""

    name: str
    type: str
    required: bool = True


class Scorer(NamedTuple):
    """A model at work: whose scores they are, how it is loaded, what it reads, whether it is perturbed too."""

    role: Role
    load: Load
    inputs: tuple[Input, ...]
    is_tried: bool = True


class Task(NamedTuple):
    """What is done with every batch. `noise`: the first rows of a task are scored again under three other splits."""

    scorers: tuple[Scorer, ...]
    perturbations: tuple[Perturbation, ...] = ()
    context: Context = Context({}, {}, {})
    batch_rows: int = 10_000
    noise: bool = False


def columns_of(task: Task) -> str:
    """The columns that scoring adds, as DDL.

    Of each model: its score, its error, milliseconds of a row, how far other batch splits moved the score (of the
    rows on which that was tried), the scores under each perturbation (null: not tried or not applicable) and the
    positions of those under which it raised. `ulps`: how far the champion's score is from the logged one.
    """
    own = (
        "{0} DOUBLE, {0}_error STRING, {0}_ms DOUBLE, {0}_noise DOUBLE, {0}_tried ARRAY<DOUBLE>, "
        "{0}_failed ARRAY<BIGINT>"
    )
    return ", ".join([*(own.format(each.role) for each in task.scorers), "ulps BIGINT"])


def scored(rows: DataFrame, task: Task, keep: Sequence[str]) -> DataFrame:
    """The columns `keep` of rows, with what the models say of them: one pass.

    `rows` has `features`, `draw`, `is_tried`, `logged` (the score to be reproduced) and, for stale values,
    `previous` (the features of the unit's request before).
    """
    kept = StructType([rows.schema[name] for name in keep])
    added = StructType.fromDDL(columns_of(task))
    assert isinstance(added, StructType)
    schema = StructType([*kept, *added])
    tried = (DRAW, IS_TRIED) if task.perturbations else ()
    needed = dict.fromkeys([*keep, *(name for name in (*tried, LOGGED) if name in rows.columns)])
    given = rows.select(*needed, *_flat(rows, task))
    return given.mapInArrow(_scorer(task, tuple(keep), schema), schema)


def _flat_name(struct: str, field: str = "") -> str:
    """No dot: mapInArrow finds its columns by name, and would take what stands before one for a struct."""
    return f"{struct}/{field}"


def _flat(rows: DataFrame, task: Task) -> list[Column]:
    """The features that are read or changed as columns of their own: structs cost as much as all else on the way."""
    wanted = {each.name for scorer in task.scorers for each in scorer.inputs}
    wanted |= {name for each in task.perturbations for name in each.features}
    found = []
    for struct in (each for each in ("features", PREVIOUS) if each in rows.columns):
        fields = rows.schema[struct].dataType
        assert isinstance(fields, StructType)
        found += [F.col(struct)[name].alias(_flat_name(struct, name)) for name in fields.names if name in wanted]
    return [*found, F.col(PREVIOUS).isNotNull().alias(_HAS_PREVIOUS)] if PREVIOUS in rows.columns else found


# Of this worker: models stay while tasks of one replay follow one another.
_LOADED: dict[Load, Predict] = {}


def loaded(loads: Sequence[Load]) -> list[Predict]:
    """The models, loaded once in this process; others that it held are let go."""
    for other in _LOADED.keys() - set(loads):
        del _LOADED[other]
    for load in loads:
        if load not in _LOADED:
            _LOADED[load] = load()
    return [_LOADED[load] for load in loads]


def _scorer(task: Task, keep: tuple[str, ...], schema: StructType) -> ArrowMap:
    arrow = pa.schema([pa.field(each.name, arrow_type(each.dataType)) for each in schema])

    def score(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        models = loaded([each.load for each in task.scorers])
        budgets = [Budgets() for _ in task.scorers]
        for at, batch in enumerate(rebatched(batches, task.batch_rows)):
            found = _of_batch(batch, task, models, budgets, noise=task.noise and at == 0)
            found |= {name: batch[name].combine_chunks() for name in keep}
            arrays = [_array(found[field.name], field.type) for field in arrow]
            yield pa.RecordBatch.from_arrays(arrays, schema=arrow)

    return score


def rebatched(batches: Iterable[pa.RecordBatch], n: int) -> Iterator[pa.Table]:
    """The rows of all batches in tables of exactly `n` rows, but for the last; none is empty."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        held.append(batch)
        count += batch.num_rows
        while count >= n:
            table = pa.Table.from_batches(held)
            yield table.slice(0, n)
            held, count = table.slice(n).to_batches(), count - n
    if count:
        yield pa.Table.from_batches(held)


def _array(values: object, kind: pa.DataType) -> pa.Array:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    # nan is no number of ours: NULL in tables.
    return pa.array(values, kind, from_pandas=True)


class _Budget:
    """How many rows may still be tried alone."""

    def __init__(self, n: int) -> None:
        self.left = n


class Budgets:
    """Those of one model in one task: what perturbations spend is not missing for its own errors."""

    def __init__(self) -> None:
        self.plain, self.perturbed = _Budget(_MAX_ALONE), _Budget(_MAX_ALONE)


class Predicted(NamedTuple):
    """Scores, nan where there is none, and why (None where there is one)."""

    scores: Scores
    errors: list[str | None] | None


def _of_batch(
    batch: pa.Table, task: Task, models: Sequence[Predict], budgets: Sequence[Budgets], *, noise: bool
) -> dict[str, object]:
    columns, n = arrays(batch, _flat_name("features")), batch.num_rows
    tried = _tried_rows(batch) if task.perturbations else np.empty(0, dtype=np.intp)
    variants = _variants(batch, task, columns, tried)
    found: dict[str, object] = {"ulps": pa.nulls(n, pa.int64())}
    for scorer, predict, budget in zip(task.scorers, models, budgets, strict=True):
        frame, started = inputs(columns, scorer.inputs, n), perf_counter()
        plain = predicted(predict, frame, budget.plain)
        milliseconds = 1000 * (perf_counter() - started) / n
        scores = plain.scores.astype(np.float64)
        found |= {
            scorer.role: scores,
            f"{scorer.role}_error": plain.errors or [None] * n,
            f"{scorer.role}_ms": np.full(n, milliseconds),
            f"{scorer.role}_noise": _noise(predict, frame, scores) if noise else np.full(n, np.nan),
            **_perturbed(
                scorer, predict, frame, scores, tried, variants if scorer.is_tried else [], budget.perturbed
            ),
        }
        if scorer.role == compare.CHAMPION and LOGGED in batch.column_names:
            apart = compare.ulps(batch[LOGGED].to_numpy(), plain.scores)
            found["ulps"] = pa.array(apart, mask=apart < 0)
    return found


def _tried_rows(batch: pa.Table) -> np.ndarray:
    return np.flatnonzero(batch[IS_TRIED].to_numpy())


class _Variant(NamedTuple):
    """The changed columns of the tried rows, and to which of them the change applies."""

    columns: Mapping[str, np.ndarray]
    applies: np.ndarray


def _variants(batch: pa.Table, task: Task, columns: Mapping[str, np.ndarray], tried: np.ndarray) -> list[_Variant]:
    if not len(tried):
        return []
    own = {name: values[tried] for name, values in columns.items()}
    draws = batch[DRAW].to_numpy()[tried].view(np.uint64)
    previous: dict[str, np.ndarray] = {}
    if _HAS_PREVIOUS in batch.column_names:
        previous = {name: values[tried] for name, values in arrays(batch, _flat_name(PREVIOUS)).items()}
        previous["has_previous"] = np.asarray(batch[_HAS_PREVIOUS])[tried]
    return [_Variant(*perturbed(each, own, task.context, draws, previous)) for each in task.perturbations]


def _perturbed(
    scorer: Scorer,
    predict: Predict,
    frame: pd.DataFrame,
    scores: Scores,
    tried: np.ndarray,
    variants: Sequence[_Variant],
    budget: _Budget,
) -> dict[str, object]:
    """Scores under every variant as lists per row, null for rows on which nothing was tried."""
    n, k = len(scores), len(variants)
    table, failed = np.full((len(tried), k), np.nan), np.zeros((len(tried), k), dtype=bool)
    own, kinds = frame.iloc[tried], {each.name: each for each in scorer.inputs}
    for at, variant in enumerate(variants):
        read = [name for name in variant.columns if name in kinds]
        if not read:  # the model does not see the change
            table[:, at] = np.where(variant.applies, scores[tried], np.nan)
            continue
        changed = own.copy(deep=False)
        for name in read:
            changed[name] = pd.Series(typed(variant.columns[name], kinds[name].type), index=own.index)
        found = predicted(predict, changed, budget)
        table[:, at] = np.where(variant.applies, found.scores, np.nan)
        failed[:, at] = variant.applies & np.isnan(found.scores) & ~np.isnan(scores[tried])
    failures: list[list[int] | None] = [None] * n
    for row in np.flatnonzero(failed.any(axis=1)):
        failures[tried[row]] = np.flatnonzero(failed[row]).tolist()
    return {f"{scorer.role}_tried": _lists(table, n, tried), f"{scorer.role}_failed": failures}


def _lists(table: np.ndarray, n: int, tried: np.ndarray) -> pa.Array:
    """A list per row of the batch, of the row of the table that was tried on it; null for the others."""
    k = table.shape[1]
    if not len(tried) or not k:
        return pa.nulls(n, pa.list_(pa.float64()))
    lengths, there = np.zeros(n, dtype=np.int32), np.zeros(n, dtype=bool)
    lengths[tried], there[tried] = k, True
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    values = pa.array(table.ravel(), pa.float64(), from_pandas=True)
    return pa.ListArray.from_arrays(offsets, values, mask=pa.array(~there))


def _noise(predict: Predict, frame: pd.DataFrame, scores: Scores) -> Scores:
    """The largest difference of a row's score from itself under three other batch splits; nan where not tried."""
    n, worst = min(len(frame), _NOISE_ROWS), np.full(len(frame), np.nan)
    worst[:n] = 0.0
    for size, step in ((max(1, n // 2), 1), (max(1, n // 7), 1), (max(1, n // 3), -1)):
        order = np.arange(n)[::step]
        for start in range(0, n, size):
            own = order[start : start + size]
            again = predicted(predict, frame.iloc[own], _Budget(0)).scores
            worst[own] = np.maximum(worst[own], np.abs(again - scores[own]))
    return worst


def predicted(predict: Predict, frame: pd.DataFrame, budget: _Budget) -> Predicted:
    """The scores of a frame. Where the model raises, the frame is halved until the rows that fail stand alone."""
    try:
        scores = _checked(predict(frame), len(frame))
    except Exception as error:
        return _halved(predict, frame, budget, _words(error))
    undefined = ~np.isfinite(scores)
    if not undefined.any():
        return Predicted(scores, None)
    errors = [f"the model gave {value}" if bad else None for value, bad in zip(scores, undefined, strict=True)]
    return Predicted(np.where(undefined, np.nan, scores).astype(scores.dtype), errors)


def _halved(predict: Predict, frame: pd.DataFrame, budget: _Budget, error: str) -> Predicted:
    n = len(frame)
    # In the narrowest type: beside rows that did not fail they take theirs.
    nothing = np.full(n, np.nan, dtype=np.float32)
    if n == 1:
        budget.left -= 1
        return Predicted(nothing, [error])
    if budget.left <= 0:
        return Predicted(nothing, [f"in a batch of {n} rows that failed: {error}"] * n)
    parts = [predicted(predict, part, budget) for part in (frame.iloc[: n // 2], frame.iloc[n // 2 :])]
    errors = [each for part in parts for each in (part.errors or [None] * len(part.scores))]
    return Predicted(np.concatenate([part.scores for part in parts]), errors)


def _checked(scores: Scores, n: int) -> Scores:
    found = np.asarray(scores)
    if found.shape != (n,):
        raise ValueError(f"the model gave an array of shape {found.shape} for {n} rows, expected ({n},)")
    return found if found.dtype == np.float32 else found.astype(np.float64)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_MAX_ERROR]


def arrays(batch: pa.Table, prefix: str = "") -> dict[str, np.ndarray]:
    """The columns with the prefix, by what follows it: numbers with nan, text and booleans as objects with None."""
    names = [name for name in batch.column_names if name.startswith(prefix)]
    return {name.removeprefix(prefix): _values(_whole(batch[name])) for name in names}


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _values(array: pa.Array) -> np.ndarray:
    if pa.types.is_integer(array.type) and array.null_count:
        array = array.cast(pa.float64())
    if pa.types.is_boolean(array.type) and array.null_count:
        return np.array(array.to_pylist(), dtype=object)
    return np.asarray(array.to_numpy(zero_copy_only=False))


def inputs(columns: Mapping[str, np.ndarray], wanted: Sequence[Input], n: int) -> pd.DataFrame:
    """The frame that a model is given: its inputs in their order and types; one that the log lacks is missing."""
    return pd.DataFrame(
        {
            each.name: typed(columns[each.name] if each.name in columns else np.full(n, None), each.type)
            for each in wanted
        },
        copy=False,
    )


def typed(values: np.ndarray, kind: str) -> np.ndarray:
    """Values in the type of a signature. Whole numbers and booleans with missing ones are float64 and objects."""
    if kind == "string":
        return values.astype(object)
    if kind == "boolean":
        return values if any(value is None for value in values) else values.astype(bool)
    if kind == "datetime":
        return values.astype("datetime64[ns]")
    numbers = values if values.dtype.kind in "iuf" else values.astype(np.float64)
    if kind in ("long", "integer"):
        if numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
            return numbers.astype(np.float64)
        # One that does not fit stays as it is, for the model to refuse: it must not become another number.
        fits = kind == "integer" and np.all(np.abs(numbers) <= np.iinfo(np.int32).max)
        return numbers.astype(np.int32 if fits else np.int64)
    return numbers.astype(np.float32 if kind == "float" else np.float64)
