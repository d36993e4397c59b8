"""The rows that expose a unit, and as what."""

from dataclasses import replace

from pyspark.sql import SparkSession

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
