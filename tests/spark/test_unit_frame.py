"""The frame of units that a readout reduces."""

import hashlib
from dataclasses import replace
from datetime import date

import numpy as np
import pytest
from pyspark.sql import SparkSession

from mltrust.experiment.assignment import Assignment
from mltrust.metrics import Cap, Metric
from mltrust.slices import Slicing
from mltrust.spark import exposure, outcome, unit_frame, units
from mltrust.spark.unit_frame import (
    capped_column,
    mature_column,
    product_columns,
    trend_column,
    value_column,
    window_column,
)
from tests.spark.built import (
    AS_OF,
    CLICKED,
    COLUMNS,
    EXPERIMENT,
    LOG,
    MONEY,
    OUTCOMES,
    SPEED,
    Built,
    an_outcome,
    at,
    flags,
    row,
)
from tests.spark.frames import frame


def test_after_the_planned_end_nobody_enters_and_what_has_no_window_stands_still(spark: SparkSession) -> None:
    visits = Metric("visits", "mean", "n_requests", role="goal")
    fast = Metric("fast", "mean", "n_requests", window_days=3)
    ended = replace(EXPERIMENT, metrics=(visits, fast), planned_end=date(2026, 10, 7), buckets={})
    rows = [
        row(at(6), "r1", "a", variant="c"),
        row(at(7), "r2", "a", variant="t"),  # launched to everybody: no crossing
        row(at(7), "r3", "b", variant="t"),
    ]
    built = Built(spark, rows, experiment=ended)
    exposed = unit_frame.exposed_units(built.exposures, ended, AS_OF)
    [only] = unit_frame.of_units(exposed, built.days, ended, AS_OF, {}).collect()
    assert (only["unit_id"], only["crossed"]) == ("a", "no")
    values = [only[value_column(metric, "n_requests")] for metric in (visits, fast)]
    assert values == [1.0, 2.0]


def test_the_variants_of_other_experiments_stand_beside_the_own(spark: SparkSession) -> None:
    rows = [row(at(5), f"r{unit}", unit, variant="c") for unit in "abd"]
    other = replace(EXPERIMENT, experiment_id="o.1")
    met = [row(at(5), "o1", "a", variant="t", carries="o.1"), row(at(8), "o2", "b", variant="c", carries="o.1")]
    built, others = Built(spark, rows), Built(spark, met, experiment=other)
    exposed = unit_frame.exposed_units(built.exposures, EXPERIMENT, AS_OF)
    found = unit_frame.with_overlaps(exposed, others.exposures, ["o.1"], AS_OF)
    assert {each["unit_id"]: each["in o.1"] for each in found.collect()} == {"a": "t", "b": "c", "d": "(none)"}
    earlier = unit_frame.with_overlaps(exposed, others.exposures, ["o.1"], at(7, 0))
    assert {each["unit_id"]: each["in o.1"] for each in earlier.collect()} == {"a": "t", "b": "(none)", "d": "(none)"}


def test_a_units_trend_is_its_slope_over_the_days_of_the_window(spark: SparkSession) -> None:
    money = Metric("money", "mean", "money", role="goal", window_days=3)
    rows = [row(at(5), f"r{unit}", unit, variant="c") for unit in "ab"] + [row(at(8), "rd", "d", variant="c")]
    sales = {"a": (1.0, 2.0, 6.0, 100.0), "b": (0.0, 0.0, 0.0, 0.0)}
    outcomes = [
        an_outcome(at(5 + after, 13), f"{unit}{after}", "sale", value, unit=unit)
        for unit, values in sales.items()
        for after, value in enumerate(values)
    ]
    built = Built(spark, rows, outcomes, replace(EXPERIMENT, metrics=(money,)), at(9))
    found = sorted(
        (
            each[trend_column(money)],
            each[window_column(money)],
            each[product_columns(money)["money x money"]],
        )
        for each in built.frame().collect()
        if each[mature_column(money)]
    )
    slope = np.polyfit(range(3), sales["a"][:3], 1)[0]
    assert found == [(0.0, 0.0, 0.0), (pytest.approx(slope), 9.0, 81.0)]


@pytest.mark.slow
def test_a_cap_cuts_off_the_sums_of_single_units_and_says_whose(spark: SparkSession) -> None:
    rows = [row(at(5), f"r{unit}", unit, variant="ct"[ord(unit) % 2]) for unit in "abdefghi"]
    paid = dict(zip("abdefghi", (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 100.0), strict=True))
    outcomes = [an_outcome(at(6), unit, "sale", value, unit=unit) for unit, value in paid.items()]
    fixed = Metric("fixed", "mean", "money", role="goal", cap=Cap(at=5.5))
    relative = Metric("relative", "mean", "money", cap=Cap(quantile=0.75), missing="exclude")
    built = Built(spark, rows, outcomes, replace(EXPERIMENT, metrics=(fixed, relative)))
    caps = unit_frame.quantile_caps(built.frame(), built.experiment)
    assert caps == {"relative": np.quantile(list(paid.values()), 0.75)}
    exposed = unit_frame.exposed_units(built.exposures, built.experiment, built.as_of)
    frame = unit_frame.of_units(exposed, built.days, built.experiment, built.as_of, {}, caps).collect()
    values = sorted(each[value_column(fixed, "money")] for each in frame)
    assert values == [1.0, 2.0, 3.0, 4.0, 5.0, 5.5, 5.5, 5.5]
    assert sum(each[capped_column(fixed)] for each in frame) == 3
    assert max(each[value_column(relative, "money")] for each in frame) == caps["relative"]
    assert sum(each[capped_column(relative)] for each in frame) == 2
    assert max(each[product_columns(fixed)["money x money"]] for each in frame) == 5.5**2


def test_a_unit_with_a_failed_request_after_its_exposure_has_failed(spark: SparkSession) -> None:
    rows = [
        row(at(5, 1), "r0", "a", variant="c", carries="o", status="error"),  # before its exposure
        row(at(5, 3), "r1", "a", variant="c"),
        row(at(5), "r2", "b", variant="t"),
        row(at(6), "r3", "b", variant="t", status="error", device=None),
    ]
    found = {each["variant"]: each["failed"] for each in Built(spark, rows).frame().collect()}
    assert found == {"c": False, "t": True}


@pytest.mark.slow
def test_buckets_without_traffic_are_units_with_nothing(spark: SparkSession) -> None:
    experiment = replace(
        EXPERIMENT, unit="bucket_id", metrics=(SPEED,), buckets={"b1": "c", "b2": "t", "b3": "t"}, slices=Slicing()
    )
    rows = [
        row(at(5), "r1", None, bucket="b1"),
        row(at(6), "r2", "x", bucket="b1"),
        row(at(6), "r3", "y", bucket="b2"),
    ]
    built = Built(spark, rows, experiment=experiment)
    found = {
        (each["variant"], each[value_column(SPEED, "latency")], each[value_column(SPEED, "n_predictions")])
        for each in built.frame().collect()
    }
    assert found == {("c", 20.0, 2.0), ("t", 10.0, 1.0), ("t", 0.0, 0.0)}


@pytest.fixture
def windowed(spark: SparkSession) -> Built:
    rows = [
        row(at(5, 23), "r1", "early", variant="c"),
        row(at(7), "r2", "just_mature", variant="t", device=None),
        row(at(8), "r3", "immature", variant="t", device="tv"),
    ]
    outcomes = [
        an_outcome(at(6, 23), "1", request="r1"),  # the second and last day of its window
        an_outcome(at(8, 1), "2", "sale", 4.0, request="r1"),
        an_outcome(at(8, 2), "3", request="r3"),
    ]
    return Built(spark, rows, outcomes)


def test_a_window_counts_whole_days_the_exposure_day_first_and_needs_maturity(windowed: Built) -> None:
    clicked, mature = value_column(CLICKED, "clicks"), mature_column(CLICKED)
    found = {each["device"]: (each[mature], each[clicked]) for each in windowed.frame().collect()}
    assert found == {"ios": (True, 1.0), "(null)": (True, 0.0), "tv": (False, None)}


def test_a_click_after_the_window_does_not_count(spark: SparkSession) -> None:
    built = Built(spark, [row(at(5), "r1", "a", variant="c")], [an_outcome(at(7, 0), "1", request="r1")])
    [found] = built.frame().collect()
    assert found[value_column(CLICKED, "clicks")] == 0.0


def test_missing_is_zero_or_left_out_as_the_metric_says(windowed: Built) -> None:
    money = {each["device"]: each[value_column(MONEY, "money")] for each in windowed.frame().collect()}
    assert money == {"ios": 4.0, "(null)": None, "tv": None}


def test_an_earlier_as_of_sees_what_was_before_it(windowed: Built) -> None:
    windowed.as_of = at(8, 0)
    found = {each["device"]: each[mature_column(CLICKED)] for each in windowed.frame().collect()}
    assert found == {"ios": True, "(null)": False}


def test_values_that_are_not_kept_become_other(windowed: Built) -> None:
    kept = windowed.frame({"device": ("ios",)}).collect()
    assert sorted(each["device"] for each in kept) == ["(other)", "(other)", "ios"]


def test_covariates_are_the_whole_traffic_of_the_days_before_exposure(spark: SparkSession) -> None:
    rows = [
        row(at(2), "r0", "a", latency=1.0),  # too long before
        row(at(3), "r1", "a", latency=2.0, carries="other", version="2"),
        row(at(4, 23), "r2", "a", latency=4.0),
        row(at(5, 9), "r3", "a", latency=8.0, carries="other"),  # before the exposure, on its day
        row(at(5, 10), "r4", "a", latency=16.0, variant="c"),
        row(at(5, 10), "r5", "b", latency=32.0, variant="t"),
        row(at(4), "r6", "b", latency=None, traffic="shadow"),
    ]
    outcomes = [
        an_outcome(at(4), "1", "sale", 5.0, request="r0"),
        an_outcome(at(3), "2", "sale", 3.0, unit="a"),
        an_outcome(at(6), "3", "sale", 7.0, unit="a"),
    ]
    experiment = replace(EXPERIMENT, pre_days=2, covariates=("latency",))
    built = Built(spark, rows, outcomes, experiment)
    everyone = units.everyone(experiment, date(2026, 10, 1))
    production, told = exposure.production(frame(spark, rows, LOG), AS_OF), frame(spark, outcomes, OUTCOMES)
    current = outcome.current(told, outcome.corrected(told), AS_OF)
    counting = outcome.counted(current, outcome.resolved(current, production, everyone), None, everyone)
    past = units.unit_days(units.counted(production, None, everyone), counting, everyone, COLUMNS)
    built.days = built.days.unionByName(past)
    found = {each["variant"]: each for each in built.frame().collect()}
    assert (found["c"]["past latency"], found["c"]["past money"], found["c"]["no past"]) == (6.0, 8.0, False)
    assert (found["t"]["past latency"], found["t"]["past money"], found["t"]["no past"]) == (0.0, 0.0, True)
    assert found["c"][value_column(SPEED, "latency")] == 16.0


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
