"""Production and shadow rows of one request, paired."""

from datetime import datetime, time, timedelta
from typing import NamedTuple

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from mltrust.replay.compare import BOTH, CANDIDATE, CHAMPION, Estimate, Role, share
from mltrust.replay.gate import Finding, extra
from mltrust.replay.spec import Replay, Shadow
from mltrust.spark.moments import Block, CellSet, cells
from mltrust.spark.replay_sets import KEY, is_selected, served
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
    What is asked for is said of each side alone, and its other half may lie beyond, up to the lag that is allowed.
    """
    shadow = replay.shadow or Shadow(replay.gate)
    sides = {
        CHAMPION: _side(_around(log, replay, shadow, "production", replay.champion.name, champion, as_of), CHAMPION),
        CANDIDATE: _side(_around(log, replay, shadow, "shadow", replay.candidate.name, candidate, as_of), CANDIDATE),
    }
    both = sides[CHAMPION].join(sides[CANDIDATE], ["request_id", "item_id"], "full")
    [found] = cells(_counted(both, shadow), [CellSet((), (Block("all", _COUNTS, _COUNTS),))])
    pairs = both.where(F.col("champion_selected") & F.col("candidate_selected").isNotNull()).select(
        *KEY, *_as_replayed(), "unit_id", "feature_version", F.lit(1.0).alias("weight"),
        F.lit(None).cast("double").alias("label"), F.lit(None).cast("string").alias("action"),
        F.col("champion_features").alias("features"), F.lit(champion).alias("model_version"),
    )  # fmt: skip
    return Pairing(pairs, merge((cell.states["all"] for cell in found), _COUNTS))


def _around(
    log: DataFrame, replay: Replay, shadow: Shadow, traffic: str, model: str, version: str, as_of: datetime
) -> DataFrame:
    """The rows of one side on the days of the selection and as far around them as a shadow may lie apart."""
    chosen, lag = replay.the_selection(), timedelta(seconds=shadow.max_lag_seconds)
    first, last = (datetime.combine(day, time()) for day in (chosen.start, chosen.end))
    end = min((last + lag + timedelta(days=1, microseconds=-1)).date(), as_of.date())
    rows = served(log, model, version, traffic, (first - lag).date(), end)
    error = F.when(F.col("status") == "error", F.coalesce("error_type", F.lit("error")))
    return rows.withColumns({_ERROR: error, "selected": F.coalesce(is_selected(replay), F.lit(False))})


def _side(rows: DataFrame, role: Role) -> DataFrame:
    """One row a request and item, its columns named by the role; `selected` is null where there is none."""
    common = ("event_date", "unit_id", "feature_version") if role == CHAMPION else ()
    first = F.min_by(
        F.struct("selected", "prediction_score", _ERROR, "latency_ms", "event_time", "features", *common),
        F.struct("event_time", "event_date"),
    )
    one = rows.groupBy("request_id", "item_id").agg(first.alias("row"))
    return one.select(
        "request_id", "item_id", F.col("row.selected").alias(f"{role}_selected"),
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
            F.col(role), F.col(f"{role}_error"), F.col(f"{role}_ms"),
            *(F.lit(None).cast(kind).alias(f"{role}_{name}") for name, kind in empty.items()),
        )
    ]  # fmt: skip
    return [*of_role, F.lit(None).cast("double").alias("logged"), F.lit(None).cast("bigint").alias("ulps")]


def _counted(both: DataFrame, shadow: Shadow) -> DataFrame:
    production, shadowed = (F.coalesce(f"{role}_selected", F.lit(False)) for role in BOTH)
    has_production, has_shadow = (F.col(f"{role}_selected").isNotNull() for role in BOTH)
    pair = production & has_shadow
    lag = (F.unix_micros("candidate_time") - F.unix_micros("champion_time")) / _MICROS
    values = {
        "champions": production,
        "expected": production.cast("double") * shadow.expected_share,
        "missing": production & ~has_shadow,
        "shadows": shadowed,
        "unmatched": shadowed & ~has_production,
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
