"""Replayed rows to the sums of off-policy values: what the candidate's decisions would have earned."""

from collections.abc import Mapping
from typing import NamedTuple

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from mltrust.replay.compare import CANDIDATE, CHAMPION
from mltrust.replay.spec import Replay
from mltrust.spark.moments import Block
from mltrust.spark.replay_sets import KEY
from mltrust.spark.replicates import ResampledSet, replicates
from mltrust.states.replicates import Replicates
from mltrust.stats.off_policy import COLUMNS, Weighed

_N_REPLICATES = 1000
_BLOCK = Block("all", COLUMNS, COLUMNS)


class Reduced(NamedTuple):
    """The sums of the rows that count, and why others do not: by reason how many."""

    state: Weighed
    left_out: Mapping[str, int]


def reduced(rows: DataFrame, replay: Replay) -> Reduced:
    """The sums over rows with an action, its propensity and a label; four Spark jobs.

    The candidate's decision is one of `actions` by the threshold, its weight 1 over the propensity where the log took
    the same and 0 where not. The reward model is the mean label by decision and tenth of the champion's score, always
    of the other half of the units.
    """
    assert replay.actions is not None
    known = F.col("action").isin(list(replay.actions))
    scored = F.col(CANDIDATE).isNotNull() & F.col(CHAMPION).isNotNull()
    possible = (F.col("propensity") > 0) & (F.col("propensity") <= 1)
    reasons = {
        "a model gave no score": ~scored,
        "no propensity": F.col("propensity").isNull() | ~possible,
        f"the action is none of {', '.join(replay.actions)}": ~F.coalesce(known, F.lit(False)),
        "no label": F.col("label").isNull(),
    }
    why = F.lit(None).cast("string")
    for words, applies in reversed(reasons.items()):
        why = F.when(applies, words).otherwise(why)
    told = rows.withColumn("why", why)
    counted = {row["why"]: row["count"] for row in told.groupBy("why").count().collect() if row["why"]}
    return Reduced(_state(told.where(F.col("why").isNull()), replay), counted)


def _state(rows: DataFrame, replay: Replay) -> Weighed:
    below, above = replay.actions or ("", "")
    deciles = (
        rows.agg(F.percentile(CHAMPION, [at / 10 for at in range(1, 10)]).alias("deciles")).collect()[0][0] or []
    )
    tenth = F.lit(0)
    for edge in deciles:
        tenth = tenth + (F.col(CHAMPION) >= edge).cast("int")
    fold = F.pmod(F.xxhash64(F.lit("fold"), F.coalesce("unit_id", "request_id")), F.lit(2))
    chosen = F.when(F.col(CANDIDATE) >= F.lit(replay.threshold), above).otherwise(below)
    rows = rows.withColumns({"tenth": tenth, "fold": fold, "chosen": chosen})
    means = (
        rows.groupBy("fold", "tenth", "action").agg(F.sum("label").alias("sum"), F.count("*").alias("n")).collect()
    )
    cells = {(row["fold"], row["tenth"], row["action"]): (row["sum"], row["n"]) for row in means}
    expected, logged = (_expectation(cells, F.col(name)) for name in ("chosen", "action"))
    weight = F.when(F.col("chosen") == F.col("action"), 1 / F.col("propensity")).otherwise(0.0)
    values = (
        weight,
        weight * weight,
        weight * F.col("label"),
        expected,
        expected + weight * (F.col("label") - logged),
    )
    sums = rows.select(
        F.concat_ws("/", *KEY).alias("request"),
        *(value.cast("double").alias(name) for name, value in zip(COLUMNS, values, strict=True)),
    )
    [found] = replicates(sums, [ResampledSet((), (_BLOCK,), "bootstrap", _N_REPLICATES)], unit="request")
    largest = sums.agg(F.max(COLUMNS[0])).collect()[0][0] or 0.0
    state = found[0].states["all"] if found else Replicates.empty(COLUMNS, _N_REPLICATES)
    return Weighed(state, largest)


def _expectation(cells: Mapping[tuple[int, int, str], tuple[float, int]], action: Column) -> Column:
    """The mean label of the other fold's rows of the same tenth and action, else of that action, else of all."""
    values: dict[str, float] = {}
    for fold in (0, 1):
        other = {key[1:]: value for key, value in cells.items() if key[0] != fold}
        whole = _mean(list(other.values()), 0.0)
        for name in {key[1] for key in other}:
            of_action = _mean([value for key, value in other.items() if key[1] == name], whole)
            values[f"{fold}/{name}"] = of_action
            for tenth in range(10):
                own = other.get((tenth, name))
                values[f"{fold}/{tenth}/{name}"] = of_action if own is None else own[0] / own[1]
        values[str(fold)] = whole
    if not values:
        return F.lit(0.0)
    table = F.create_map(*(F.lit(part) for pair in values.items() for part in pair))
    of_fold, of_tenth = F.col("fold").cast("string"), F.col("tenth").cast("string")
    names = (F.concat_ws("/", of_fold, of_tenth, action), F.concat_ws("/", of_fold, action), of_fold)
    return F.coalesce(*(F.try_element_at(table, name) for name in names))


def _mean(parts: list[tuple[float, int]], default: float) -> float:
    n = sum(count for _, count in parts)
    return sum(total for total, _ in parts) / n if n else default
