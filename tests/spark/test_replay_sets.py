"""Small logs to replay sets: who is selected, how often, what is scrubbed, and who stays behind."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from mltrust.contract import Contract, Feature, SchemaVersion, Scrub, Scrubbing
from mltrust.replay import masking
from mltrust.replay.masking import Key
from mltrust.replay.spec import Gate, ModelRef, Replay, Rule, Sample, Selection
from mltrust.slices import Slicing
from mltrust.spark import replay_sets
from tests.spark.frames import frame

AS_OF = datetime(2026, 11, 2, tzinfo=UTC)
SECRET = Key(b"0123456789abcdef")
FEATURES = "features STRUCT<note: STRING, device: STRING, age: BIGINT, price: DOUBLE>"
LOG = f"""event_date DATE, request_id STRING, item_id STRING, model_name STRING, model_version STRING,
    traffic STRING, status STRING, error_type STRING, event_time TIMESTAMP, unit_id STRING, feature_version STRING,
    prediction_score DOUBLE, action STRING, propensity DOUBLE, latency_ms DOUBLE,
    experiments ARRAY<STRUCT<experiment_id: STRING, bucket_id: STRING, variant: STRING>>, {FEATURES}"""
SELECTION = Selection(date(2026, 10, 5), date(2026, 10, 8))
REPLAY = Replay(
    "r", "shop", ModelRef("m", version="1"), ModelRef("m", version="2"), Gate((Rule("churn", max=1.0),)), SELECTION,
    threshold=0.5, slices=Slicing({"device": "features.device"}),
)  # fmt: skip
KEEP = Scrub("keep")
COLUMNS = {
    "request_id": KEEP, "item_id": KEEP, "action": KEEP, "unit_id": Scrub("pseudonym"), "features.note": KEEP,
    "features.device": Scrub("keep", quasi_identifier=True), "features.age": Scrub("bucket", width=10),
}  # fmt: skip


def contract(k: int = 1, **columns: Scrub) -> Contract:
    changed = {name.replace("__", "."): scrub for name, scrub in columns.items()}
    kinds = {"note": Feature("string"), "device": Feature("string"), "age": Feature("long", "personal"),
             "price": Feature("double")}  # fmt: skip
    return Contract("shop", {"v02": SchemaVersion()}, {"f01": kinds}, scrub=Scrubbing({**COLUMNS, **changed}, k))


def row(
    request: str,
    *,
    day: int = 5,
    hour: int = 12,
    note: str | None = "fine",
    device: str | None = "tv",
    age: int | None = 34,
    **changes: object,
) -> tuple[object, ...]:
    moment = datetime(2026, 10, day, hour, tzinfo=UTC)
    values: dict[str, object] = {
        "event_date": moment.date(), "request_id": request, "item_id": "", "model_name": "m", "model_version": "1",
        "traffic": "production", "status": "ok", "error_type": None, "event_time": moment, "unit_id": f"u-{request}",
        "feature_version": "f01", "prediction_score": 0.3, "action": None, "propensity": None, "latency_ms": 1.5,
        "experiments": [{"experiment_id": "e", "bucket_id": "b", "variant": "treatment"}],
        "features": {"note": note, "device": device, "age": age, "price": 2.5},
    }  # fmt: skip
    return tuple((values | changes).values())


def selected(spark: SparkSession, rows: Sequence[tuple[object, ...]], selection: Selection) -> list[str]:
    log = frame(spark, rows, LOG)
    found = replay_sets.selected(log, replace(REPLAY, select=selection), "1", AS_OF)
    return sorted(each["request_id"] for each in found.collect())


def test_only_what_is_asked_for_is_selected(spark: SparkSession) -> None:
    rows = [
        row("in"),
        row("phone", device="phone"),
        row("late", day=8),
        row("at three", hour=15),
        row("shadow", traffic="shadow"),
        row("failed", status="error", prediction_score=None),
        row("other version", model_version="2"),
        row("other model", model_name="n"),
        row("control", experiments=[{"experiment_id": "e", "bucket_id": "b", "variant": "control"}]),
        row("none", experiments=[]),
    ]
    everyone = ["at three", "control", "in", "none", "phone"]
    since = datetime(2026, 10, 5, 15, tzinfo=UTC)
    for selection, expected in (
        (SELECTION, everyone),
        (replace(SELECTION, where={"device": ("phone", "web")}), ["phone"]),
        (replace(SELECTION, since=since, until=since + timedelta(hours=1)), ["at three"]),
        (replace(SELECTION, experiment="e"), ["at three", "control", "in", "phone"]),
        (replace(SELECTION, experiment="e", variant="control"), ["control"]),
        (replace(SELECTION, request_ids=("in", "none", "gone")), ["in", "none"]),
    ):
        assert selected(spark, rows, selection) == expected


def scrubbed(spark: SparkSession, rows: Sequence[tuple[object, ...]], of: Contract) -> DataFrame:
    log = frame(spark, rows, LOG)
    drawn = replay_sets.drawn(replay_sets.selected(log, REPLAY, "1", AS_OF), REPLAY)
    ready = replay_sets.with_label(drawn, None, REPLAY, AS_OF)
    plan = masking.plan(of)
    return replay_sets.with_group_size(replay_sets.scrubbed(ready, plan, SECRET, log.schema), plan)


def exported(spark: SparkSession, rows: Sequence[tuple[object, ...]], of: Contract) -> list[Row]:
    return sorted(
        replay_sets.exported(scrubbed(spark, rows, of), masking.plan(of)).collect(),
        key=lambda each: each["request_id"],
    )


PLANTED = {
    "mail": "ask ann@example.org about it",
    "card": "4111 1111 1111 1111",
    "iban": "to DE89 3704 0044 0532 0130 00",
    "phone": "+49 30 1234567",
    "ip": "from 192.168.10.7",
}


@pytest.mark.slow
def test_rows_with_planted_personal_data_stay_behind_and_are_counted_by_kind(spark: SparkSession) -> None:
    rows = [row("clean"), row("none", note=None), *(row(name, note=text) for name, text in PLANTED.items())]
    assert [each["request_id"] for each in exported(spark, rows, contract())] == ["clean", "none"]
    found = replay_sets.summary(scrubbed(spark, rows, contract()), masking.plan(contract()))
    assert (found.n_drawn, found.n_rows, found.n_stopped, found.n_rare) == (7, 2, 5, 0)
    kinds = {"features.note: e-mail", "features.note: card", "features.note: IBAN", "features.note: phone",
             "features.note: IP address"}  # fmt: skip
    assert kinds <= found.stopped.keys()
    # What is dropped is not searched, and nothing of it leaves.
    dropped = exported(spark, rows, contract(features__note=Scrub("drop")))
    assert len(dropped) == 7
    assert {each["features"]["note"] for each in dropped} == {None}


def test_every_policy_does_what_it_says(spark: SparkSession) -> None:
    of = contract(
        features__note=Scrub("truncate", length=3), features__device=Scrub("pseudonym"), features__price=Scrub("null")
    )
    [found, empty] = exported(spark, [row("a"), row("b", note=None, device=None, age=None, unit_id=None)], of)
    assert found["unit_id"] == SECRET.pseudonym("unit_id", "u-a")
    assert found["features"].asDict() == {
        "note": "fin", "device": SECRET.pseudonym("features.device", "tv"), "age": 30, "price": None
    }  # fmt: skip
    assert empty["unit_id"] is None
    assert set(empty["features"].asDict().values()) == {None}


@pytest.mark.slow
def test_rare_combinations_stay_behind(spark: SparkSession) -> None:
    rows = [*(row(f"tv{at}") for at in range(3)), row("fridge", device="fridge"), row("none", device=None),
            row("tv with a mail", note=PLANTED["mail"])]  # fmt: skip
    of = contract(k=3)
    assert [each["request_id"] for each in exported(spark, rows, of)] == ["tv0", "tv1", "tv2"]
    found = replay_sets.summary(scrubbed(spark, rows, of), masking.plan(of))
    assert (found.n_stopped, found.n_rare, found.n_left_out) == (1, 2, 3)
    assert found.anonymity == (3, 3, 1, 2)


@pytest.mark.slow
def test_the_hash_is_of_the_content_whatever_the_order_and_partitions(spark: SparkSession) -> None:
    rows = [row(f"r{at}", note=f"n{at}") for at in range(20)]
    plan = masking.plan(contract())
    hashes = {
        replay_sets.summary(scrubbed(spark, given, contract()).repartition(parts), plan).content_hash
        for given, parts in ((rows, 1), (rows[::-1], 3))
    }
    assert len(hashes) == 1
    other = [*rows[:-1], row("r19", note="n20")]
    assert replay_sets.summary(scrubbed(spark, other, contract()), plan).content_hash not in hashes


def test_weights_are_one_over_the_rate_and_add_up_to_the_traffic(spark: SparkSession) -> None:
    n = 4000
    log = spark.range(n).select(
        F.concat(F.lit("r"), "id").alias("request_id"),
        F.lit("").alias("item_id"),
        F.when(F.col("id") % 20 == 0, "fridge").otherwise("tv").alias("device"),
        (F.col("id") % 100 / 100).alias("prediction_score"),
    )
    log = log.withColumn("features", F.struct("device"))
    sample = replace(SELECTION, sample=Sample(400, ("device",), 100, seed=1), hard_within=0.011)
    found = replay_sets.drawn(log, replace(REPLAY, select=sample))
    strata = {row["stratum"]: (row["n"], row["weight"], row["sum"]) for row in found.groupBy("stratum").agg(
        F.count("*").alias("n"), F.first("weight").alias("weight"), F.sum("weight").alias("sum")
    ).collect()}  # fmt: skip
    assert strata["(hard)"] == (3 * n // 100, 1.0, 3 * n // 100)  # scores 0.49, 0.50, 0.51
    n_fridge = sum(1 for at in range(0, n, 20) if at % 100 not in (49, 50, 51))
    assert strata["fridge"][1] == pytest.approx(n_fridge / 100)
    # Poisson sampling: a sum of weights has the standard deviation sqrt(n (1 - rate) / rate).
    for name, size in (("fridge", n_fridge), ("tv", n - n_fridge - 3 * n // 100)):
        assert abs(strata[name][2] - size) < 5 * (size * (strata[name][1] - 1)) ** 0.5
    in_proportion = replace(REPLAY, select=replace(SELECTION, sample=Sample(777, ("device",), seed=1)))
    assert replay_sets.drawn(log, in_proportion).select("weight").distinct().count() == 1
    again = replay_sets.drawn(log.repartition(5), replace(REPLAY, select=sample))
    assert {row["request_id"] for row in again.collect()} == {row["request_id"] for row in found.collect()}


def test_an_empty_selection_is_empty_with_a_sample_too(spark: SparkSession) -> None:
    log = frame(spark, [row("a", model_version="2")], LOG)
    chosen = replace(REPLAY, select=replace(SELECTION, sample=Sample(10, ("device",))))
    assert replay_sets.drawn(replay_sets.selected(log, chosen, "1", AS_OF), chosen).collect() == []
