"""The rows that expose a unit, and as what."""

import hashlib
from dataclasses import replace
from datetime import date

import pytest
from pyspark.sql import SparkSession

from mltrust.experiment.assignment import Assignment
from mltrust.slices import Slicing
from tests.spark.built import EXPERIMENT, Built, at, flags, row


def test_the_first_production_row_that_carries_the_experiment_exposes(spark: SparkSession) -> None:
    built = Built(
        spark,
        [
            row(at(4), "r0", "a", variant="c"),  # before the experiment starts
            row(at(5, 9), "r1", "a", variant="c", traffic="shadow"),
            row(at(5, 10), "r2", "a", variant="c", status="error"),  # errors expose
            row(at(5, 11), "r3", "a", variant="t"),  # contaminated: stays under its first variant
            row(at(6), "r4", "b", variant="t", carries="other"),
            row(at(9, 0), "r5", "d", variant="t"),  # not before as_of
        ],
    )
    assert built.first() == {"a": ("c", at(5, 10))}
    [exposed] = built.exposures.collect()
    assert exposed["slice_values"] == {"device": "ios"}
    names = ("variant", "model_version", "triggered", "slice_values")
    seen = [(each["day"].day, *(each[name] for name in names)) for each in exposed["days"]]
    assert seen == [(5, "c", "1", False, {"device": "ios"}), (5, "t", "1", False, {"device": "ios"})]


def test_a_number_with_edges_is_the_interval_that_it_lies_in(spark: SparkSession) -> None:
    slicing = Slicing({"speed": "latency_ms"}, edges={"speed": (10.0, 20.5)})
    latencies = {"a": 9.9, "b": 10.0, "d": 20.4, "e": 20.5, "f": 1e9, "g": None, "h": -1.0}
    rows = [row(at(5), f"r{unit}", unit, variant="c", latency=each) for unit, each in latencies.items()]
    built = Built(spark, rows, experiment=replace(EXPERIMENT, slices=slicing))
    assert flags(built, "speed") == {
        "a": "< 10", "b": "[10, 20.5)", "d": "[10, 20.5)", "e": ">= 20.5", "f": ">= 20.5", "g": "(null)", "h": "< 10",
    }  # fmt: skip


def test_a_unit_is_triggered_from_the_day_on_which_the_trigger_held(spark: SparkSession) -> None:
    rows = [
        row(at(5), "r1", "a", variant="c", latency=1.0),
        row(at(6), "r2", "a", variant="c", latency=99.0),
        row(at(5), "r3", "b", variant="t", latency=None),
        row(at(6), "r4", "d", variant="t", latency=99.0),
    ]
    built = Built(spark, rows, experiment=replace(EXPERIMENT, trigger="latency_ms > 50"))
    assert flags(built, "triggered") == {"a": "yes", "b": "no", "d": "yes"}
    built.as_of = at(6, 0)
    assert flags(built, "triggered") == {"a": "no", "b": "no"}


def test_a_unit_is_misserved_where_a_version_of_another_arm_answered_it(spark: SparkSession) -> None:
    rows = [
        row(at(5), "r1", "a", variant="c", version="1"),
        row(at(6), "r2", "a", variant="c", version="2"),
        row(at(5), "r3", "b", variant="c", version="1"),
        row(at(5), "r4", "d", variant="t", version="7"),
    ]
    built = Built(spark, rows, experiment=replace(EXPERIMENT, served_by={"c": ("1",)}))
    assert flags(built, "misserved") == {"a": True, "b": False, "d": False}
    built.as_of = at(6, 0)
    assert flags(built, "misserved") == {"a": False, "b": False, "d": False}


@pytest.mark.parametrize("name", ["md5", "sha256"])
def test_a_unit_agrees_where_its_bucket_is_what_the_declared_hash_gives(spark: SparkSession, name: str) -> None:
    def bucket(unit: str) -> str:
        digest = hashlib.new(name, f"e/{unit}/x".encode()).hexdigest()
        return f"b{int(digest[:15], 16) % 7:02}"

    rows = [
        row(at(5), "r1", "ünit a", variant="c", bucket=bucket("ünit a")),
        row(at(5), "r2", "b", variant="c", bucket=bucket("b")),
        row(at(5), "r3", "d", variant="t", bucket="b99"),
        row(at(5), "r4", "e", variant="t"),
    ]
    declared = Assignment("e", 7, name, key="{salt}/{unit}/x", bucket="b%02d")  # type: ignore[arg-type]
    built = Built(spark, rows, experiment=replace(EXPERIMENT, buckets={}, assignment=declared))
    assert flags(built, "agrees") == {"ünit a": True, "b": True, "d": False, "e": False}
    assert flags(built, "bucket")["e"] == "(none)"


def test_the_variant_is_as_logged_else_by_bucket_and_a_conflict_exposes_nobody_and_is_counted(
    spark: SparkSession,
) -> None:
    built = Built(
        spark,
        [
            row(at(5), "r1", "logged", variant="t"),
            row(at(5), "r2", "by_bucket", bucket="b2"),
            row(at(5), "r3", "agreed", variant="c", bucket="b1"),
            row(at(5), "r4", "unknown_bucket", variant="c", bucket="b9"),
            row(at(5), "r5", "conflict", variant="c", bucket="b2"),
            row(at(5), "r6", "no_arm", variant="x"),
            row(at(5), "r7", "nothing"),
            row(at(5), "r8", None, variant="c"),
        ],
    )
    assert {unit: variant for unit, (variant, _) in built.first().items()} == {
        "logged": "t",
        "by_bucket": "t",
        "agreed": "c",
        "unknown_bucket": "c",
    }
    assert built.left_out == {"without_unit": 1, "without_variant": 3}


def test_the_phase_is_that_of_the_first_exposure(spark: SparkSession) -> None:
    phases = {date(2026, 10, 5): {"c": 9.0, "t": 1.0}, date(2026, 10, 7): {"c": 1.0, "t": 1.0}}
    rows = [
        row(at(6), "r1", "a", variant="c"),
        row(at(8), "r2", "a", variant="c"),
        row(at(7, 0), "r3", "b", variant="t"),
    ]
    frame = Built(spark, rows, experiment=replace(EXPERIMENT, phases=phases)).frame().collect()
    assert {each["variant"]: each["phase"] for each in frame} == {"c": 0, "t": 1}


def test_a_unit_seen_in_two_variants_before_as_of_is_crossed(spark: SparkSession) -> None:
    rows = [
        row(at(5), "r1", "a", variant="c"),
        row(at(7), "r2", "a", variant="t"),
        row(at(5), "r3", "b", variant="t"),
        row(at(6), "r4", "b", variant="t"),
    ]
    built = Built(spark, rows)
    assert {each["variant"]: each["crossed"] for each in built.frame().collect()} == {"c": "yes", "t": "no"}
    built.as_of = at(7, 0)
    assert {each["crossed"] for each in built.frame().collect()} == {"no"}
