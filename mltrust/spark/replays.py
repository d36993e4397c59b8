"""Replayed rows to evidence: a set in hash parts for scoring, and what both models said reduced by slice and unit."""

from collections.abc import Mapping, Sequence
from functools import reduce
from math import nan
from operator import and_
from typing import NamedTuple

import numpy as np
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import NumericType, StructType
from pyspark.sql.window import Window

from mltrust.contract import FeatureType
from mltrust.replay.compare import (
    BOTH,
    CANDIDATE,
    CHAMPION,
    DECISIONS,
    LABELLED,
    PAIRED,
    REPRODUCED,
    SCORED,
    TIMED,
    TRIED,
    WEIGHT,
    Evidence,
    Grid,
    Mismatch,
    Role,
    Scale,
)
from mltrust.replay.perturb import Context, Spread
from mltrust.replay.spec import PROMISES, Perturbation, Replay
from mltrust.slices import MISSING, OTHER, OVERALL, Slice, name_slice
from mltrust.spark.moments import Block, CellSet, cells
from mltrust.spark.places import slice_value
from mltrust.spark.replay_sets import KEY
from mltrust.spark.scoring import DRAW, IS_TRIED, LOGGED, PREVIOUS, arrays
from mltrust.states.moments import Moments

#: Quantile cells of a score, on which ranks and calibration are read.
N_CELLS = 50
_N_DONORS = 1000
_SLICE = ("slice_key", "slice_value")


def _unit() -> Column:
    return F.coalesce("unit_id", "request_id")


def _weight() -> Column:
    return F.col("weight")


def _difference() -> Column:
    return F.col(CANDIDATE) - F.col(CHAMPION)


def part_names(replay: Replay) -> list[str]:
    """The parts in which a set is scored, each written once."""
    return [f"{at + 1:03d} of {replay.parts:03d}" for at in range(replay.parts)]


def to_score(
    rows: DataFrame, replay: Replay, part: str, perturbations: Sequence[Perturbation], n_tasks: int
) -> DataFrame:
    """The rows of one part of a set as scoring takes them, in one order whatever the files.

    Parts are of units, so that the request of a unit before lies in the same part.
    """  # fmt: skip
    at = part_names(replay).index(part)
    own = rows.where(F.pmod(F.xxhash64(F.lit("part"), _unit()), F.lit(replay.parts)) == at)
    drawn = F.shiftrightunsigned(F.xxhash64(F.lit("tried"), _unit()), 11) * F.lit(2.0**-53)
    own = own.withColumns(
        {
            LOGGED: F.col("prediction_score"),
            DRAW: F.xxhash64(F.lit("draw"), *KEY),
            IS_TRIED: (F.lit(True) if replay.perturbed_share >= 1 else drawn < replay.perturbed_share),
        }
    )
    if any(each.kind == "stale" for each in perturbations):
        before = Window.partitionBy(_unit()).orderBy("event_time", "request_id", "item_id")
        own = own.withColumn(PREVIOUS, F.when(F.col("unit_id").isNotNull(), F.lag("features").over(before)))
    return own.repartition(n_tasks, *KEY).sortWithinPartitions(*KEY)


def context(rows: DataFrame, types: Mapping[str, FeatureType]) -> Context:
    """What a set lends to perturbations: spreads of its numbers, and rows to swap from; two Spark jobs."""
    features = rows.schema["features"].dataType
    assert isinstance(features, StructType)
    numbers = [each.name for each in features if isinstance(each.dataType, NumericType)]
    columns = [
        function(F.col(f"features.{name}").cast("double")).alias(f"{what} {name}")
        for name in numbers
        for what, function in (("sd", F.stddev_samp), ("low", F.min), ("high", F.max))
    ]
    found = rows.agg(F.count("*").alias("n"), *columns).collect()[0]
    spreads = {
        name: Spread(*(nan if (value := found[f"{what} {name}"]) is None else value for what in Spread._fields))
        for name in numbers
    }
    donors = rows.orderBy(F.xxhash64(F.lit("donor"), *KEY), *KEY).limit(_N_DONORS).select("features.*").toArrow()
    return Context(types, spreads, arrays(donors) if donors.num_rows else {})


def joined(replayed: DataFrame, replay_set: DataFrame) -> DataFrame:
    """Replayed rows with what the set knows of them; keys are unique in both."""
    known = replay_set.select(
        *KEY, "unit_id", "weight", "label", "action", "propensity", "feature_version", "features", "model_version"
    )
    return replayed.join(known, list(KEY))


class Frame(NamedTuple):
    """Replayed rows with a column for every sum, the states to be made of them, and what they have in common."""

    rows: DataFrame
    blocks: tuple[Block, ...]
    scale: Scale
    n_noise: int


def prepared(rows: DataFrame, replay: Replay, perturbations: Sequence[Perturbation], *, max_values: int) -> Frame:
    """The rows with every sum that measures are made of, exploded by slice; one Spark job for quantiles."""
    edges = [at / N_CELLS for at in range(1, N_CELLS)]
    quantiles = [F.percentile(role, [*edges, 1 - replay.top_share]).alias(f"{role} quantiles") for role in BOTH]
    there = F.col(CHAMPION).isNotNull() & F.col(CANDIDATE).isNotNull()
    found = rows.agg(
        *quantiles,
        *(F.stddev_samp(role).alias(f"{role} sd") for role in BOTH),
        *(F.max(f"{role}_noise").alias(f"{role} noise") for role in BOTH),
        F.count_if(F.col(f"{CHAMPION}_noise").isNotNull()).alias("n noise"),
    ).collect()[0]
    noise = max((found[f"{role} noise"] for role in BOTH if found[f"{role} noise"] is not None), default=nan)
    scale = Scale(_or_nan(found[f"{CHAMPION} sd"]), _or_nan(found[f"{CANDIDATE} sd"]), noise)
    # The champion's own noise: a candidate that differs from itself must not be excused by it.
    tolerance = max(replay.tolerance, found[f"{CHAMPION} noise"] or 0.0)
    tops = {role: (found[f"{role} quantiles"] or [None])[-1] for role in BOTH}
    sums = {
        **_paired(replay, tops, tolerance),
        **_labelled(replay),
        **_scored(),
        **_timed(),
        **_reproduced(replay),
        **_tried(replay, perturbations, tolerance),
    }
    grid = {f"{role} cell": _cell(role, (found[f"{role} quantiles"] or [])[:-1]) for role in BOTH}
    named = {f"{block}|{column}": value for (block, column), value in sums.items()}
    base = rows.withColumn("is_paired", there).select(
        _unit().alias("unit"), "weight", "label", "is_paired", CHAMPION, CANDIDATE,
        _slices(rows, replay, max_values).alias("slice"),
        *(value.alias(name) for name, value in grid.items()),
        *(value.cast("double").alias(name) for name, value in named.items()),
    )  # fmt: skip
    exploded = base.withColumn("slice", F.explode("slice")).select("*", "slice.*").drop("slice")
    return Frame(exploded, _blocks(sums), scale, found["n noise"])


def _or_nan(value: float | None) -> float:
    return nan if value is None else value


Sums = dict[tuple[str, str], Column]


def _paired(replay: Replay, tops: Mapping[Role, float | None], tolerance: float) -> Sums:
    yes = {role: _yes(F.col(role), replay) for role in BOTH}
    top = {role: F.col(role) >= F.lit(tops[role]) for role in BOTH}
    values = {
        WEIGHT: F.lit(1.0),
        DECISIONS: _decisions(replay),
        "agree": F.abs(_difference()) <= tolerance,
        "difference": _difference(),
        "abs_difference": F.abs(_difference()),
        "up": _holds(~yes[CHAMPION] & yes[CANDIDATE]),
        "down": _holds(yes[CHAMPION] & ~yes[CANDIDATE]),
        "champion": F.col(CHAMPION),
        "candidate": F.col(CANDIDATE),
        "top": top[CHAMPION],
        "candidate_top": top[CANDIDATE],
        "both_top": top[CHAMPION] & top[CANDIDATE],
    }
    return {
        ("paired", name): F.when(_difference().isNotNull(), value.cast("double") * _weight())
        for name, value in values.items()
    }


def _decisions(replay: Replay) -> Column:
    return F.lit(0.0 if replay.threshold is None else 1.0)


def _holds(condition: Column) -> Column:
    """False where it cannot be said: a sum that is null would take its unit out of the others too."""
    return F.coalesce(condition, F.lit(False))


def _yes(score: Column, replay: Replay) -> Column:
    return score >= F.lit(replay.threshold).cast("double")


def _labelled(replay: Replay) -> Sums:
    is_yes = F.col("label") > 0
    right = {role: _yes(F.col(role), replay) == is_yes for role in BOTH}
    values = {
        WEIGHT: F.lit(1.0),
        DECISIONS: _decisions(replay),
        "win": _holds(right[CANDIDATE] & ~right[CHAMPION]),
        "loss": _holds(right[CHAMPION] & ~right[CANDIDATE]),
        **{f"{role}_squared": F.pow(F.col(role) - F.col("label"), 2) for role in BOTH},
    }
    there = _difference().isNotNull() & F.col("label").isNotNull()
    return {("labelled", name): F.when(there, value.cast("double") * _weight()) for name, value in values.items()}


def _scored() -> Sums:
    values = {
        "rows": F.lit(1.0),
        **{f"{role}_errors": F.col(f"{role}_error").isNotNull() for role in BOTH},
    }
    return {("scored", name): value for name, value in values.items()}


def _timed() -> Sums:
    times = {f"{role}_ms": F.col(f"{role}_ms") for role in BOTH}
    there = reduce(and_, (value.isNotNull() for value in times.values()))
    return {("timed", name): F.when(there, value) for name, value in {"rows": F.lit(1.0), **times}.items()}


def _reproduced(replay: Replay) -> Sums:
    there = F.col(LOGGED).isNotNull()
    # A champion that raises gives no score again.
    ulps = F.coalesce("ulps", F.lit(2**62))
    values = {"rows": F.lit(1.0), "reproduced": ulps <= replay.ulps, "exact": ulps == 0}
    return {("reproduced", name): F.when(there, value.cast("double")) for name, value in values.items()}


def _tried(replay: Replay, perturbations: Sequence[Perturbation], tolerance: float) -> Sums:
    found: Sums = {}
    for role in BOTH:
        score = F.col(role)
        for at, each in enumerate(perturbations):
            after = F.get(f"{role}_tried", F.lit(at))
            failed = F.coalesce(F.array_contains(f"{role}_failed", at), F.lit(False))
            there, moved = after.isNotNull() & score.isNotNull(), after - score
            broken = {"increasing": -moved, "decreasing": moved}.get(each.kind, F.abs(moved)) > tolerance
            values = {
                WEIGHT: F.lit(1.0),
                "scored": there,
                DECISIONS: F.when(there, _decisions(replay)).otherwise(0.0),
                "promised": F.lit(1.0 if each.kind in PROMISES else 0.0),
                "shift": F.coalesce(F.abs(moved), F.lit(0.0)),
                "flipped": _holds(_yes(after, replay) != _yes(score, replay)),
                "broken": failed | _holds(broken),
                "failed": failed,
            }
            for name, value in values.items():
                found[f"{role} {at}", name] = F.when(there | failed, value.cast("double") * _weight())
    return found


def _blocks(sums: Sums) -> tuple[Block, ...]:
    columns: dict[str, list[str]] = {}
    for block, column in sums:
        columns.setdefault(block, []).append(column)
    return tuple(Block(name, tuple(f"{name}|{each}" for each in own), tuple(own)) for name, own in columns.items())


def _cell(role: Role, edges: Sequence[float]) -> Column:
    """The quantile cell of a score: how many edges it has reached."""
    found = F.lit(0)
    for edge in edges:
        found = found + (F.col(role) >= edge).cast("int")
    return found


def _slices(rows: DataFrame, replay: Replay, max_values: int) -> Column:
    """The slices of a row: overall, and one of every declared set."""
    slicing = replay.slices
    values = {name: slice_value(name, slicing) for name in slicing.attributes}
    kept = _frequent(rows, values, max_values)
    for name, frequent in kept.items():
        values[name] = F.when(values[name].isin(frequent) | (values[name] == MISSING), values[name]).otherwise(OTHER)
    texts = {name: _escaped(value) for name, value in values.items()}
    found = [_slice(OVERALL[0], F.lit(OVERALL[1]))]
    for names in slicing.declared():
        key = name_slice(dict.fromkeys(names, "")).slice_key
        found.append(_slice(key, F.concat_ws(" x ", *(texts[name] for name in names))))
    return F.array(*found)


def _slice(key: str, value: Column) -> Column:
    return F.struct(F.lit(key).alias("slice_key"), value.alias("slice_value"))


def _escaped(text: Column) -> Column:
    """As `mltrust.slices` escapes values."""
    return F.replace(F.replace(text, F.lit("\\"), F.lit("\\\\")), F.lit(" x "), F.lit(" \\x "))


def _frequent(rows: DataFrame, values: Mapping[str, Column], max_values: int) -> dict[str, list[str]]:
    """Of attributes with too many values the most frequent ones."""
    if not values:
        return {}
    counts = rows.agg(*(F.approx_count_distinct(value).alias(name) for name, value in values.items())).collect()[0]
    kept = {}
    for name in (name for name in values if counts[name] > max_values):
        ordered = (
            rows.groupBy(values[name].alias("value")).count().orderBy(F.desc("count"), "value").limit(max_values)
        )
        kept[name] = [row["value"] for row in ordered.collect()]
    return kept


def evidence(frame: Frame, perturbations: Sequence[Perturbation]) -> dict[Slice, Evidence]:
    """What is known of every slice, overall first; three Spark jobs, whatever the number of measures."""
    sums = [F.sum(source).alias(source) for block in frame.blocks for source in block.sources]
    units = frame.rows.groupBy(*_SLICE, "unit").agg(
        F.count("*").alias("n"),
        F.max(F.abs(F.col(CANDIDATE) - F.col(CHAMPION))).alias("max_difference"),
        F.bool_and(F.col("weight") == 1).alias("is_unweighted"),
        *sums,
    )
    [found] = cells(units, [CellSet(_SLICE, frame.blocks)])
    known = units.groupBy(*_SLICE).agg(
        F.sum("n").alias("n"),
        ((F.max("n") == 1) & F.bool_and("is_unweighted")).alias("one_row_each"),
        F.max("max_difference").alias("max_difference"),
    )
    facts = {Slice(row["slice_key"], row["slice_value"]): row for row in known.collect()}
    grids = _grids(frame.rows)
    by_slice = {}
    for cell in found:
        where, states = Slice(cell.values["slice_key"], cell.values["slice_value"]), cell.states
        fact = facts[where]
        by_slice[where] = Evidence(
            n_rows=fact["n"],
            one_row_each=fact["one_row_each"],
            max_difference=_or_nan(fact["max_difference"]),
            **{name: states.get(name, Moments.empty(columns)) for name, columns in _STATES.items()},
            grid=grids.get(where, Grid.empty(N_CELLS)),
            tried={
                (role, each.name): states.get(f"{role} {at}", Moments.empty(TRIED))
                for role in BOTH
                for at, each in enumerate(perturbations)
            },
            scale=frame.scale,
        )
    return dict(sorted(by_slice.items(), key=lambda item: (item[0] != OVERALL, item[0])))


_STATES = {"paired": PAIRED, "labelled": LABELLED, "scored": SCORED, "timed": TIMED, "reproduced": REPRODUCED}


def _grids(rows: DataFrame) -> dict[Slice, Grid]:
    """The grids of both scores by slice, from one row per slice and cell."""
    has_label = F.col("label").isNotNull()
    sums = {
        "weight": _weight(),
        "champion": _weight() * F.col(CHAMPION),
        "candidate": _weight() * F.col(CANDIDATE),
        "labelled": F.when(has_label, _weight()).otherwise(0.0),
        "labels": F.when(has_label, _weight() * F.col("label")).otherwise(0.0),
    }
    counted = (
        rows.where("is_paired")
        .groupBy(*_SLICE, *(f"{role} cell" for role in BOTH))
        .agg(*(F.sum(value).alias(name) for name, value in sums.items()))
        .collect()
    )
    found: dict[Slice, dict[str, np.ndarray]] = {}
    for row in counted:
        tables = found.setdefault(
            Slice(row["slice_key"], row["slice_value"]), {name: np.zeros((N_CELLS, N_CELLS)) for name in sums}
        )
        for name in sums:
            tables[name][row["champion cell"], row["candidate cell"]] = row[name]
    return {where: Grid(**tables) for where, tables in found.items()}


def mismatched(rows: DataFrame, replay: Replay, inputs: Sequence[str]) -> list[Mismatch]:
    """Why logged scores were not given again, the most frequent reason first; two Spark jobs.

    `inputs` are the features that the champion reads. Where a row lacks one, or was logged under another feature
    version than most, that is the likely cause; what is left is the environment or what the log does not hold.
    """
    usual = rows.agg(F.mode("feature_version", deterministic=True)).collect()[0][0]
    features = rows.schema["features"].dataType
    assert isinstance(features, StructType)
    wrong = rows.where(F.col(LOGGED).isNotNull() & F.coalesce(F.col("ulps") > replay.ulps, F.lit(True)))
    reason = F.when(F.col(f"{CHAMPION}_error").isNotNull(), "the model raised")
    reason = reason.when(F.col("feature_version") != F.lit(usual), "logged under another feature version")
    for name in (each for each in inputs if each in features.names):
        reason = reason.when(F.col(f"features.{name}").isNull(), f"{name} is missing")
    counted = (
        wrong.groupBy(reason.otherwise("inputs are whole: another environment, or served otherwise").alias("reason"))
        .agg(F.count("*").alias("n"), F.max("ulps").alias("ulps"), F.min("request_id").alias("example"))
        .orderBy(F.desc("n"), "reason")
    )
    return [
        Mismatch(row["reason"], row["n"], nan if row["ulps"] is None else float(row["ulps"]), row["example"])
        for row in counted.collect()
    ]


def worst(rows: DataFrame, replay: Replay, n: int) -> list[dict[str, object]]:
    """The rows on which the models differ most, changed decisions first, with what both were given."""
    flipped = (
        F.lit(False) if replay.threshold is None else _yes(F.col(CHAMPION), replay) != _yes(F.col(CANDIDATE), replay)
    )
    chosen = (
        rows.where(_difference().isNotNull())
        .select(
            *KEY, CHAMPION, CANDIDATE, _difference().alias("difference"), flipped.alias("is_flipped"), "label",
            F.to_json("features").alias("features"),
        )
        .orderBy(F.desc("is_flipped"), F.desc(F.abs("difference")), *KEY)
        .limit(n)
    )  # fmt: skip
    return [row.asDict() for row in chosen.collect()]
