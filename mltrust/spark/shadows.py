"""Production and shadow rows of one request, paired."""

from datetime import datetime
from typing import NamedTuple

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from mltrust.replay.compare import BOTH, CANDIDATE, CHAMPION, Estimate, share
from mltrust.replay.gate import Finding, extra
from mltrust.replay.spec import Replay, Shadow
from mltrust.spark.moments import Block, CellSet, cells
from mltrust.spark.replay_sets import KEY, selected
from mltrust.states.moments import Moments, merge

_COUNTS = ("champions", "expected", "missing", "shadows", "unmatched", "pairs", "late", "lag", "differ")
_MICROS = 1_000_000
_ERROR = "why it failed"


class Pairing(NamedTuple):
    """Pairs in the columns of replayed rows, and how many rows of either side are alone, by unit."""

    pairs: DataFrame
    counts: Moments


def paired(log: DataFrame, replay: Replay, champion: str, candidate: str, as_of: datetime) -> Pairing:
    """The champion's production rows with the candidate's shadow of the same request and item; one Spark job.

    Errors of both are part of it. A request has one production row and one shadow: of several the first by event
    time. The lag is of event times; a shadow logged by the client has the production row's own and so no lag.
    """
    sides = {
        CHAMPION: _side(log, replay, "production", replay.champion.name, champion, as_of),
        CANDIDATE: _side(log, replay, "shadow", replay.candidate.name, candidate, as_of),
    }
    both = sides[CHAMPION].join(sides[CANDIDATE], ["request_id", "item_id"], "full")
    shadow = replay.shadow or Shadow(replay.gate)
    [found] = cells(_counted(both, shadow), [CellSet((), (Block("all", _COUNTS, _COUNTS),))])
    is_pair = F.col("is_champion") & F.col("is_candidate")
    pairs = both.where(is_pair).select(
        *KEY, *_as_replayed(), "unit_id", "feature_version", F.lit(1.0).alias("weight"),
        F.lit(None).cast("double").alias("label"), F.lit(None).cast("string").alias("action"),
        F.col("champion_features").alias("features"), F.lit(champion).alias("model_version"),
    )  # fmt: skip
    return Pairing(pairs, merge((cell.states["all"] for cell in found), _COUNTS))


def _side(log: DataFrame, replay: Replay, traffic: str, model: str, version: str, as_of: datetime) -> DataFrame:
    """The rows of one side, one a request and item, its columns named by its role."""
    rows = selected(log, replay, version, as_of, model=model, traffic=traffic, with_errors=True)
    error = F.when(F.col("status") == "error", F.coalesce("error_type", F.lit("error")))
    rows = rows.withColumn(_ERROR, error)
    role = CHAMPION if traffic == "production" else CANDIDATE
    common = ("event_date", "unit_id", "feature_version") if role == CHAMPION else ()
    first = F.min_by(
        F.struct("prediction_score", _ERROR, "latency_ms", "event_time", "features", *common),
        F.struct("event_time", "event_date"),
    )
    one = rows.groupBy("request_id", "item_id").agg(first.alias("row"))
    return one.select(
        "request_id", "item_id", F.lit(True).alias(f"is_{role}"),
        *(F.col(f"row.{name}").alias(name) for name in common),
        F.col("row.prediction_score").alias(role),
        F.col("row")[_ERROR].alias(f"{role}_error"),
        F.col("row.latency_ms").alias(f"{role}_ms"),
        F.col("row.event_time").alias(f"{role}_time"),
        F.col("row.features").alias(f"{role}_features"),
    )  # fmt: skip


def _as_replayed() -> list[Column]:
    """The columns of a scored row: what nobody tried is null."""
    empty = {"noise": "double", "tried": "array<double>", "failed": "array<bigint>"}
    of_role = [
        column
        for role in BOTH
        for column in (
            F.col(role), F.col(f"{role}_error"), F.coalesce(f"{role}_ms", F.lit(0.0)).alias(f"{role}_ms"),
            *(F.lit(None).cast(kind).alias(f"{role}_{name}") for name, kind in empty.items()),
        )
    ]  # fmt: skip
    return [*of_role, F.lit(None).cast("double").alias("logged"), F.lit(None).cast("bigint").alias("ulps")]


def _counted(both: DataFrame, shadow: Shadow) -> DataFrame:
    production, has = F.coalesce("is_champion", F.lit(False)), F.coalesce("is_candidate", F.lit(False))
    pair = production & has
    lag = (F.unix_micros("candidate_time") - F.unix_micros("champion_time")) / _MICROS
    values = {
        "champions": production,
        "expected": production.cast("double") * shadow.expected_share,
        "missing": production & ~has,
        "shadows": has,
        "unmatched": has & ~production,
        "pairs": pair,
        "late": pair & (lag > shadow.max_lag_seconds),
        "lag": F.when(pair, lag).otherwise(0.0),
        "differ": pair & ~F.col("champion_features").eqNullSafe(F.col("candidate_features")),
    }
    unit = F.coalesce("unit_id", "request_id").alias("unit")
    return both.groupBy(unit).agg(*(F.sum(value.cast("double")).alias(name) for name, value in values.items()))


def findings(counts: Moments, shadow: Shadow) -> list[Finding]:
    """What the pairing found: shadows that are missing, alone, late, or that saw other features."""
    if counts.n == 0:
        return []
    pairs = share(counts, "pairs", "champions")
    unshadowed = Estimate(
        1 - pairs.value / shadow.expected_share, pairs.std_error / shadow.expected_share, pairs.n_units
    )
    found = {
        "unshadowed": unshadowed,
        "unmatched_shadow": share(counts, "unmatched", "shadows"),
        "late": share(counts, "late", "pairs"),
        "lag_seconds": share(counts, "lag", "pairs"),
        "features_differ": share(counts, "differ", "pairs"),
    }
    return [extra(name, "pair", counts.n, estimate) for name, estimate in found.items()]
