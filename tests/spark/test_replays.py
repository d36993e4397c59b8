"""Replayed rows to evidence: what Spark reduces is what numpy says of the rows."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from math import isnan

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from mltrust.replay import gate
from mltrust.replay.compare import MEASURES, TRIALS
from mltrust.replay.spec import Gate, ModelRef, Perturbation, Replay, Rule, Selection, Shadow
from mltrust.slices import OVERALL, Slice, Slicing
from mltrust.spark import policy_values, replays, shadows
from mltrust.stats import off_policy
from mltrust.training import Label
from tests.spark.frames import frame
from tests.spark.test_replay_sets import AS_OF, LOG, row

N = 1500
ALL = Slice(*OVERALL)
REPLAY = Replay(
    "r", "shop", ModelRef("m", version="1"), ModelRef("m", version="2"), Gate((Rule("churn", max=1.0),)),
    Selection(date(2026, 10, 5), date(2026, 10, 8)), threshold=0.5, slices=Slicing({"device": "features.device"}),
    label=Label("sale", "any", 7), actions=("hide", "show"),
)  # fmt: skip
TRIED = (Perturbation("jitter", ("age",)), Perturbation("increasing", ("age",)))
DDL = """event_date DATE, request_id STRING, item_id STRING, unit_id STRING, weight DOUBLE, label DOUBLE,
    action STRING, propensity DOUBLE, feature_version STRING, features STRUCT<device: STRING, age: BIGINT>,
    logged DOUBLE, ulps BIGINT, champion DOUBLE, champion_error STRING, champion_ms DOUBLE, champion_noise DOUBLE,
    champion_tried ARRAY<DOUBLE>, champion_failed ARRAY<BIGINT>, candidate DOUBLE, candidate_error STRING,
    candidate_ms DOUBLE, candidate_noise DOUBLE, candidate_tried ARRAY<DOUBLE>, candidate_failed ARRAY<BIGINT>"""


def drawn() -> pd.DataFrame:
    rng = np.random.default_rng(5)
    champion = rng.random(N)
    candidate = np.clip(champion + rng.normal(0, 0.1, N), 0, 1)
    shifted = [
        np.clip(candidate + rng.normal(0, 0.05, N), 0, 1),
        candidate + rng.choice([0.1, -0.1], N, p=[0.9, 0.1]),
    ]
    return pd.DataFrame(
        {
            "unit": rng.integers(0, 500, N),
            "weight": rng.choice([1.0, 4.0], N),
            "device": rng.choice(["tv", "web"], N),
            "label": (rng.random(N) < champion).astype(float),
            "champion": champion,
            "candidate": candidate,
            "jittered": shifted[0],
            "raised": shifted[1],
            "action": np.where(rng.random(N) < 0.7, "show", "hide"),
        }
    )


DATA = drawn()


def rows(spark: SparkSession) -> DataFrame:
    def one(at: int, each: pd.Series) -> tuple[object, ...]:  # type: ignore[type-arg]
        tried = [each["jittered"], None if at % 7 == 0 else each["raised"]] if at % 2 else None
        return (
            date(2026, 10, 5), f"r{at:04d}", "", f"u{each['unit']}", each["weight"], each["label"], each["action"],
            0.7 if each["action"] == "show" else 0.3, "f01", {"device": each["device"], "age": 30},
            each["champion"], 0, each["champion"], None, 0.01, 0.0, tried, None,
            each["candidate"], None, 0.02, 1e-9, tried, [1] if at % 2 and at % 7 == 0 else None,
        )  # fmt: skip

    return frame(spark, [one(at, each) for at, each in DATA.iterrows()], DDL)  # type: ignore[arg-type]


def weighted(values: "pd.Series[float]", where: "pd.Series[bool] | None" = None) -> float:
    kept = slice(None) if where is None else where
    return float(np.average(values[kept], weights=DATA["weight"][kept]))


def test_evidence_of_every_slice_is_that_of_its_rows(spark: SparkSession) -> None:
    prepared = replays.prepared(rows(spark), REPLAY, TRIED, max_values=50)
    evidence = replays.evidence(prepared, TRIED)
    assert list(evidence) == [ALL, Slice("device", "tv"), Slice("device", "web")]
    flips = ((DATA["champion"] >= 0.5) != (DATA["candidate"] >= 0.5)).astype(float)
    difference = DATA["candidate"] - DATA["champion"]
    for where, own in evidence.items():
        chosen = DATA["device"].eq(where.slice_value) if where.slice_value else pd.Series(True, index=DATA.index)
        assert (own.n_rows, own.paired.n) == (chosen.sum(), DATA["unit"][chosen].nunique())
        found = {name: each.of(own, "pair").value for name, each in MEASURES.items() if "pair" in each.roles}
        assert found["churn"] == pytest.approx(weighted(flips, chosen), rel=1e-9)
        assert found["score_shift"] == pytest.approx(weighted(difference, chosen), rel=1e-9)
        assert found["max_difference"] == pytest.approx(difference[chosen].abs().max(), rel=1e-12)
        assert found["latency_ratio"] == pytest.approx(2, rel=1e-12)
        assert not own.one_row_each
        assert own.grid.weight.sum() == pytest.approx(DATA["weight"][chosen].sum(), rel=1e-12)
    assert evidence[ALL].scale.noise_floor == 1e-9
    assert MEASURES["reproduced"].of(evidence[ALL], "champion").value == 1
    squared = (DATA["candidate"] - DATA["label"]) ** 2 - (DATA["champion"] - DATA["label"]) ** 2
    assert MEASURES["squared_error_change"].of(evidence[ALL], "pair").value == pytest.approx(
        weighted(squared), rel=1e-9
    )


@pytest.mark.slow
def test_perturbations_count_the_rows_they_were_tried_on_and_where_the_model_raised(spark: SparkSession) -> None:
    evidence = replays.evidence(replays.prepared(rows(spark), REPLAY, TRIED, max_values=50), TRIED)[ALL]
    tried, failed = DATA.index % 2 == 1, (DATA.index % 2 == 1) & (DATA.index % 7 == 0)
    jitter = evidence.tried["candidate", "jitter(age)"]
    shift = (DATA["jittered"] - DATA["candidate"]).abs()
    assert TRIALS["instability"].of(jitter, 1.0).value == pytest.approx(weighted(shift, pd.Series(tried)), rel=1e-9)
    assert isnan(TRIALS["broken_promises"].of(jitter, 1.0).value)
    promise = evidence.tried["candidate", "increasing(age)"]
    broken = ((DATA["raised"] < DATA["candidate"]) | failed).astype(float)
    assert TRIALS["broken_promises"].of(promise, 1.0).value == pytest.approx(
        weighted(broken, pd.Series(tried)), rel=1e-9
    )
    raised = pd.Series(failed.astype(float))
    assert TRIALS["perturbed_errors"].of(promise, 1.0).value == pytest.approx(
        weighted(raised, pd.Series(tried)), rel=1e-9
    )
    # The champion gave no score there, and nobody says that it raised.
    assert TRIALS["perturbed_errors"].of(evidence.tried["champion", "increasing(age)"], 1.0).value == 0


@pytest.mark.slow
def test_nothing_is_said_of_decisions_without_a_threshold(spark: SparkSession) -> None:
    plain = replace(REPLAY, threshold=None, actions=None)
    evidence = replays.evidence(replays.prepared(rows(spark), plain, TRIED, max_values=50), TRIED)
    found = {each.measure for each in gate.findings(evidence)}
    assert not found & {"churn", "win_balance", "perturbed_flips"}
    assert {"score_shift", "squared_error_change", "instability", "rank_correlation"} <= found


def test_why_scores_are_not_given_again_is_said_by_cause(spark: SparkSession) -> None:
    at = F.substring("request_id", 2, 4).cast("int")
    changed = rows(spark).withColumns(
        {
            "ulps": F.when(at < 5, None).when(at < 20, 3).otherwise(0),
            "champion_error": F.when(at < 2, "ValueError: x"),
            "feature_version": F.when(at == 2, "f00").otherwise("f01"),
            "features": F.when(at.isin(3, 4, 5), F.lit(None)).otherwise(F.col("features")),
        }
    )
    found = replays.mismatched(changed, REPLAY, ["age"])
    assert [(each.reason, each.n_rows, each.example) for each in found] == [
        ("inputs are whole: another environment, or served otherwise", 14, "r0006"),
        ("age is missing", 3, "r0003"),
        ("the model raised", 2, "r0000"),
        ("logged under another feature version", 1, "r0002"),
    ]
    assert [each.n_rows for each in replays.mismatched(changed, replace(REPLAY, ulps=3), ["age"])] == [2, 2, 1]


def test_worst_rows_are_those_with_changed_decisions_that_differ_most(spark: SparkSession) -> None:
    found = replays.worst(rows(spark), REPLAY, 5)
    flips = (DATA["champion"] >= 0.5) != (DATA["candidate"] >= 0.5)
    wanted = (DATA["candidate"] - DATA["champion"]).abs()[flips].nlargest(5).index
    assert [each["request_id"] for each in found] == [f"r{at:04d}" for at in wanted]
    assert found[0]["features"] == f'{{"device":"{DATA["device"][wanted[0]]}","age":30}}'


@pytest.mark.slow
def test_off_policy_sums_are_those_of_the_rows(spark: SparkSession) -> None:
    reduced = policy_values.reduced(rows(spark), REPLAY)
    assert (reduced.state.sums.n, reduced.left_out) == (N, {})
    chosen = np.where(DATA["candidate"] >= 0.5, "show", "hide")
    weights = (chosen == DATA["action"]) / np.where(DATA["action"] == "show", 0.7, 0.3)
    found = {each.estimator: each for each in off_policy.estimates(reduced.state, with_model=True)}
    rewards = DATA["label"].to_numpy()
    assert found["ipw"].value == pytest.approx((weights * rewards).mean(), rel=1e-9)
    assert found["snipw"].value == pytest.approx((weights * rewards).sum() / weights.sum(), rel=1e-9)
    assert reduced.state.max_weight == pytest.approx(weights.max(), rel=1e-12)
    # The label depends on the champion's score alone, of which the model knows the tenth: no action is better.
    for name in ("dm", "dr"):
        assert found[name].value == pytest.approx(rewards.mean(), abs=4 * found[name].std_error + 0.02)
        assert found[name].std_error < found["ipw"].std_error


@pytest.mark.slow
def test_rows_without_what_a_value_needs_are_left_out_by_reason(spark: SparkSession) -> None:
    changed = rows(spark).withColumns(
        {
            "propensity": F.when(F.col("request_id") < "r0003", None).otherwise(F.col("propensity")),
            "action": F.when(F.col("request_id") == "r0005", "bid").otherwise(F.col("action")),
            "label": F.when(F.col("request_id") == "r0006", None).otherwise(F.col("label")),
            "candidate": F.when(F.col("request_id") == "r0007", None).otherwise(F.col("candidate")),
        }
    )
    reduced = policy_values.reduced(changed, REPLAY)
    assert reduced.left_out == {
        "no propensity": 3, "the action is none of hide, show": 1, "no label": 1, "a model gave no score": 1
    }  # fmt: skip
    assert reduced.state.sums.n == N - 6
    nothing = policy_values.reduced(changed.where(F.lit(False)), REPLAY)
    assert all(isnan(each.value) for each in off_policy.estimates(nothing.state, with_model=True))


def test_shadows_are_paired_and_what_is_alone_late_or_different_is_counted(spark: SparkSession) -> None:
    def shadow(request: str, **changes: object) -> tuple[object, ...]:
        return row(request, **({"model_version": "2", "traffic": "shadow", "prediction_score": 0.4} | changes))  # type: ignore[arg-type]

    noon = datetime(2026, 10, 5, 12, tzinfo=UTC)
    log = [
        *(row(f"r{at}") for at in range(8)),
        *(shadow(f"r{at}") for at in range(3)),
        shadow("r3", event_time=noon + timedelta(seconds=90)),
        shadow("r4", device="web"),
        shadow("r5", status="error", prediction_score=None),
        shadow("alone"),
        shadow("r0", event_time=noon + timedelta(seconds=1)),  # a second shadow of one request
    ]
    replay = replace(REPLAY, shadow=Shadow(REPLAY.gate, expected_share=1.0, max_lag_seconds=60))
    frame_ = frame(spark, log, LOG)
    paired = shadows.paired(frame_, replay, "1", "2", AS_OF)
    found = {
        each.measure: each.value for each in shadows.findings(paired.counts, replay.shadow or Shadow(REPLAY.gate))
    }
    assert found == {
        "unshadowed": pytest.approx(2 / 8), "unmatched_shadow": pytest.approx(1 / 7), "late": pytest.approx(1 / 6),
        "lag_seconds": pytest.approx(90 / 6), "features_differ": pytest.approx(1 / 6),
    }  # fmt: skip
    pairs = {each["request_id"]: each for each in paired.pairs.collect()}
    assert sorted(pairs) == [f"r{at}" for at in range(6)]
    assert (pairs["r5"]["candidate"], pairs["r0"]["candidate"], pairs["r0"]["champion"]) == (None, 0.4, 0.3)
    evidence = replays.evidence(replays.prepared(paired.pairs, replay, (), max_values=50), ())
    assert MEASURES["mean_difference"].of(evidence[ALL], "pair").value == pytest.approx(0.1)
    assert evidence[ALL].one_row_each


@pytest.mark.slow
def test_a_pair_is_not_cut_apart_by_the_edges_of_what_is_asked_for(spark: SparkSession) -> None:
    def shadow(request: str, seconds: float, **changes: object) -> tuple[object, ...]:
        given = {"model_version": "2", "traffic": "shadow", "event_time": noon + timedelta(seconds=seconds)}
        return row(request, **(given | changes))  # type: ignore[arg-type]

    noon = datetime(2026, 10, 5, 12, tzinfo=UTC)
    log = [
        row("before", event_time=noon - timedelta(seconds=1)),
        row("within", event_time=noon + timedelta(seconds=9)),
        shadow("before", 1),  # its production row is not asked for: neither a pair nor alone
        shadow("within", 11, device="web"),
        shadow("alone", 5),
    ]
    chosen = replace(
        REPLAY.the_selection(), since=noon, until=noon + timedelta(seconds=10), where={"device": ("tv",)}
    )
    own = Shadow(REPLAY.gate, max_lag_seconds=60)
    paired = shadows.paired(frame(spark, log, LOG), replace(REPLAY, select=chosen, shadow=own), "1", "2", AS_OF)
    assert [each["request_id"] for each in paired.pairs.collect()] == ["within"]
    found = {each.measure: each.value for each in shadows.findings(paired.counts, own)}
    assert (found["unshadowed"], found["unmatched_shadow"], found["features_differ"]) == (0.0, 0.5, 1.0)
