"""Which outcomes count, on which day, and of whom."""

from dataclasses import replace

import pytest
from pyspark.sql import SparkSession

from tests.spark.built import EXPERIMENT, Built, an_outcome, at, row


def test_outcomes_count_on_their_own_day_by_request_or_by_unit(spark: SparkSession) -> None:
    rows = [
        row(at(5, 8), "r0", "a", carries="other"),
        row(at(5, 10), "r1", "a", variant="c"),
        row(at(5, 10), "r1", "a", variant="c", item="i2"),
        row(at(5, 10), "r9", "b", variant="t"),
    ]
    outcomes = [
        an_outcome(at(7), "late", request="r1"),
        an_outcome(at(5, 11), "item", request="r1", item="i2"),
        an_outcome(at(5, 11), "no_such_item", request="r1", item="i3"),
        an_outcome(at(5, 11), "before_exposure", request="r0"),
        an_outcome(at(5, 11), "request_decides", request="r9", unit="a"),
        an_outcome(at(6), "of_unit", "sale", 5.0, unit="a"),
        an_outcome(at(5, 9), "unit_before_exposure", "sale", 7.0, unit="a"),
        an_outcome(at(5, 9), "comes_before_its_request", request="r1"),
        an_outcome(at(6), "unmatched", request="r77"),
        an_outcome(at(9), "after_as_of", request="r1"),
        an_outcome(at(6), "another_name", "rating", 3.0, request="r1"),
    ]
    built = Built(spark, rows, outcomes)
    counted = {key: (each["clicks"], each["money"]) for key, each in built.sums().items()}
    assert counted == {("a", 5): (1.0, None), ("a", 6): (None, 5.0), ("a", 7): (1.0, None), ("b", 5): (1.0, None)}
    assert built.sums()["a", 7]["n_requests"] == 0


def test_the_highest_revision_counts_and_a_null_value_retracts(spark: SparkSession) -> None:
    rows = [row(at(5), "r1", "a", variant="c")]
    outcomes = [
        an_outcome(at(6), "corrected", "sale", 5.0, request="r1"),
        an_outcome(at(6), "corrected", "sale", 8.0, request="r1", revision=2),
        an_outcome(at(6), "corrected", "sale", 6.0, request="r1", revision=1),
        an_outcome(at(6), "retracted", "sale", 100.0, request="r1"),
        an_outcome(at(6), "retracted", "sale", None, request="r1", revision=1),
    ]
    assert Built(spark, rows, outcomes).sums()["a", 6]["money"] == 8.0


@pytest.mark.slow
def test_one_id_on_two_days_is_two_outcomes_and_a_correction_replaces_both(spark: SparkSession) -> None:
    rows = [row(at(5), "r1", "a", variant="c")]
    outcomes = [an_outcome(at(day), "o", "sale", float(day), request="r1") for day in (6, 8)]
    money = {key: each["money"] for key, each in Built(spark, rows, outcomes).sums().items()}
    assert money == {("a", 5): None, ("a", 6): 6.0, ("a", 8): 8.0}
    correction = an_outcome(at(7), "o", "sale", 1.0, request="r1", revision=1)
    money = {key: each["money"] for key, each in Built(spark, rows, [*outcomes, correction]).sums().items()}
    assert money == {("a", 5): None, ("a", 7): 1.0}


def test_an_outcome_belongs_to_the_last_row_of_its_request_before_it(spark: SparkSession) -> None:
    rows = [
        row(at(5, 8), "r1", "a", variant="c"),
        row(at(6, 8), "r1", "b", variant="t"),  # the same request_id on another day
        row(at(6, 8), "r1", None, item="i2"),
    ]
    outcomes = [an_outcome(at(5, 9), "1", request="r1"), an_outcome(at(6, 9), "2", request="r1")]
    clicks = {key: each["clicks"] for key, each in Built(spark, rows, outcomes).sums().items()}
    assert clicks == {("a", 5): 1.0, ("b", 6): 1.0}


def test_an_outcome_of_a_whole_request_belongs_to_its_last_item_at_that_time_whatever_the_scores(
    spark: SparkSession,
) -> None:
    rows = [
        row(at(5, 9), "r1", "a", variant="c", item="z", score=0.9),
        row(at(5, 10), "r1", "a", variant="c", item="i1", score=0.7),
        row(at(5, 10), "r1", "a", variant="c", item="i2", score=0.1),
    ]
    outcomes = [
        an_outcome(at(6), "1", "sale", 1.0, request="r1"),
        an_outcome(at(7), "2", "sale", 1.0, request="r1", item="i1"),
    ]
    found = Built(spark, rows, outcomes).predictions("sale")
    assert found["a", 6]["squared_error"] == pytest.approx(1 - 2 * 0.1)
    assert found["a", 7]["squared_error"] == pytest.approx(1 - 2 * 0.7)


def test_a_delay_is_the_days_from_the_row_or_from_the_units_first_exposure(spark: SparkSession) -> None:
    rows = [
        row(at(5, 6), "r1", "a", variant="c"),
        row(at(5, 12), "r2", "a", variant="c"),
        row(at(5, 12), "r2", "a", variant="c", item="i2"),
    ]
    outcomes = [
        an_outcome(at(6, 0), "1", "sale", 3.0, request="r2"),
        an_outcome(at(7, 12), "2", "sale", 3.0, request="r2", item="i2"),
        an_outcome(at(7, 18), "3", "sale", 0.0, unit="a"),
        an_outcome(at(8), "4", "click", request="r1"),
    ]
    built = Built(spark, rows, outcomes)
    assert {day: each["wait"] for (_, day), each in built.sums().items()} == {5: None, 6: 0.5, 7: 4.5, 8: None}


def test_a_request_as_unit_takes_only_outcomes_keyed_by_request(spark: SparkSession) -> None:
    rows = [row(at(5), "r1", "a", variant="c"), row(at(5), "r2", "a", variant="t")]
    outcomes = [an_outcome(at(6), "1", request="r2"), an_outcome(at(6), "2", unit="a")]
    built = Built(spark, rows, outcomes, replace(EXPERIMENT, unit="request"))
    assert {unit: variant for unit, (variant, _) in built.first().items()} == {"r1": "c", "r2": "t"}
    assert {key: each["clicks"] for key, each in built.sums().items()} == {
        ("r1", 5): None,
        ("r2", 5): None,
        ("r2", 6): 1.0,
    }
