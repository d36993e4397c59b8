"""Log rows and outcomes to exposures, unit_days and the frame of units, small enough to check by hand."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from math import log
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession
from sklearn.metrics import brier_score_loss, confusion_matrix, log_loss

from mltrust.errors import ConfError
from mltrust.experiment.assignment import Assignment
from mltrust.experiment.spec import Experiment
from mltrust.metrics import (
    BUILT_IN_COLUMNS,
    PREDICTION_COLUMNS,
    Cap,
    Metric,
    MetricColumns,
    OutcomeColumn,
    PredictionColumns,
    RequestColumn,
    prediction_columns,
)
from mltrust.slices import Slicing
from mltrust.spark import units
from mltrust.spark.units import mature_column, value_column
from tests.spark.frames import frame

LOG = """event_date DATE, event_time TIMESTAMP, request_id STRING, item_id STRING, unit_id STRING,
model_name STRING, model_version STRING, traffic STRING, status STRING, latency_ms DOUBLE,
prediction_score DOUBLE,
experiments ARRAY<STRUCT<experiment_id: STRING, bucket_id: STRING, variant: STRING>>,
features STRUCT<device: STRING>"""
OUTCOMES = """event_date DATE, event_time TIMESTAMP, outcome_id STRING, revision BIGINT, request_id STRING,
item_id STRING, unit_id STRING, name STRING, value DOUBLE, content_hash STRING"""

COLUMNS = MetricColumns(
    requests={
        "latency": RequestColumn("latency_ms"),
    },
    outcomes={
        "clicks": OutcomeColumn("click", "count"),
        "money": OutcomeColumn("sale"),
        "wait": OutcomeColumn("sale", "delay"),
    },
    predictions={"sale": PredictionColumns("sale"), "click": PredictionColumns("click", threshold=0.2)},
)
CLICKED = Metric("clicked", "proportion", "clicks", role="goal", window_days=2)
MONEY = Metric("money", "mean", "money", missing="exclude")
SPEED = Metric("speed", "ratio", "latency", denominator="n_predictions", role="goal")
EXPERIMENT = Experiment(
    experiment_id="e",
    log="log",
    control="c",
    phases={date(2026, 10, 5): {"c": 1.0, "t": 1.0}},
    metrics=(CLICKED, MONEY, SPEED),
    unit="unit_id",
    buckets={"b1": "c", "b2": "t"},
    slices=Slicing({"device": "features.device"}),
)
AS_OF = datetime(2026, 10, 9, tzinfo=UTC)


def at(day: int, hour: int = 12) -> datetime:
    return datetime(2026, 10, day, hour, tzinfo=UTC)


def row(
    when: datetime,
    request: str,
    unit: str | None,
    *,
    variant: str | None = None,
    bucket: str | None = None,
    device: str | None = "ios",
    traffic: str = "production",
    status: str = "ok",
    item: str = "",
    version: str = "1",
    carries: str = "e",
    latency: float | None = 10.0,
    score: float | None = 0.25,
) -> tuple[object, ...]:
    element = [(carries, bucket, variant)]
    model = ("m", version, traffic, status, latency, score)
    return (when.date(), when, request, item, unit, *model, element, (device,))


def outcome(
    when: datetime,
    outcome_id: str,
    name: str = "click",
    value: float | None = 1.0,
    *,
    request: str | None = None,
    item: str | None = None,
    unit: str | None = None,
    revision: int = 0,
) -> tuple[object, ...]:
    return (when.date(), when, outcome_id, revision, request, item, unit, name, value, f"{value}")


class Built:
    """Everything that build_units makes of rows and outcomes."""

    def __init__(
        self,
        spark: SparkSession,
        rows: Sequence[tuple[object, ...]],
        outcomes: Sequence[tuple[object, ...]] = (),
        experiment: Experiment = EXPERIMENT,
        as_of: datetime = AS_OF,
    ) -> None:
        production = units.production(frame(spark, rows, LOG), as_of)
        told = frame(spark, outcomes, OUTCOMES)
        current = units.current_outcomes(told, units.corrected(told), as_of)
        candidates = units.candidates(production, experiment)
        self.experiment, self.as_of = experiment, as_of
        self.left_out = units.unexposed(candidates)
        self.exposures = units.exposures(candidates, experiment)
        counted = units.counted(production, self.exposures, experiment)
        resolved = units.resolved(current, production, experiment)
        counting = units.counted_outcomes(current, resolved, self.exposures, experiment)
        self.days = units.unit_days(counted, counting, experiment, COLUMNS)

    def first(self) -> dict[str, tuple[str, datetime]]:
        return {
            each["unit_id"]: (each["variant"], each["first_exposure"].astimezone(UTC))
            for each in self.exposures.collect()
        }

    def sums(self) -> dict[tuple[str, int], dict[str, object]]:
        names = (*BUILT_IN_COLUMNS, *COLUMNS.requests, *COLUMNS.outcomes)
        return {
            (each["unit_id"], each["day"].day): {name: each[name] for name in names} for each in self.days.collect()
        }

    def predictions(self, name: str) -> dict[tuple[str, int], dict[str, float | None]]:
        """The columns of a prediction that are not null, by unit and day; days without any are left out."""
        found = {
            (each["unit_id"], each["day"].day): {
                column.removeprefix(f"{name}_"): each[column]
                for column in prediction_columns(name)
                if each[column] is not None
            }
            for each in self.days.collect()
        }
        return {key: columns for key, columns in found.items() if columns}

    def frame(self, kept: dict[str, tuple[str, ...]] | None = None) -> DataFrame:
        exposed = units.exposed_units(self.exposures, self.experiment, self.as_of)
        return units.unit_frame(exposed, self.days, self.experiment, self.as_of, kept or {})


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
    [exposure] = built.exposures.collect()
    assert exposure["slice_values"] == {"device": "ios"}
    names = ("variant", "model_version", "triggered", "slice_values")
    seen = [(each["day"].day, *(each[name] for name in names)) for each in exposure["days"]]
    assert seen == [(5, "c", "1", False, {"device": "ios"}), (5, "t", "1", False, {"device": "ios"})]


def flags(built: Built, name: str) -> dict[str, object]:
    exposed = units.exposed_units(built.exposures, built.experiment, built.as_of)
    return {each["unit_id"]: each[name] for each in exposed.collect()}


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
    exposed = units.exposed_units(built.exposures, ended, AS_OF)
    [only] = units.unit_frame(exposed, built.days, ended, AS_OF, {}).collect()
    assert (only["unit_id"], only["crossed"]) == ("a", "no")
    values = [only[units.value_column(metric, "n_requests")] for metric in (visits, fast)]
    assert values == [1.0, 2.0]


def test_the_variants_of_other_experiments_stand_beside_the_own(spark: SparkSession) -> None:
    rows = [row(at(5), f"r{unit}", unit, variant="c") for unit in "abd"]
    other = replace(EXPERIMENT, experiment_id="o.1")
    met = [row(at(5), "o1", "a", variant="t", carries="o.1"), row(at(8), "o2", "b", variant="c", carries="o.1")]
    built, others = Built(spark, rows), Built(spark, met, experiment=other)
    exposed = units.exposed_units(built.exposures, EXPERIMENT, AS_OF)
    found = units.with_overlaps(exposed, others.exposures, ["o.1"], AS_OF)
    assert {each["unit_id"]: each["in o.1"] for each in found.collect()} == {"a": "t", "b": "c", "d": "(none)"}
    earlier = units.with_overlaps(exposed, others.exposures, ["o.1"], at(7, 0))
    assert {each["unit_id"]: each["in o.1"] for each in earlier.collect()} == {"a": "t", "b": "(none)", "d": "(none)"}


def test_a_units_trend_is_its_slope_over_the_days_of_the_window(spark: SparkSession) -> None:
    money = Metric("money", "mean", "money", role="goal", window_days=3)
    rows = [row(at(5), f"r{unit}", unit, variant="c") for unit in "ab"] + [row(at(8), "rd", "d", variant="c")]
    sales = {"a": (1.0, 2.0, 6.0, 100.0), "b": (0.0, 0.0, 0.0, 0.0)}
    outcomes = [
        outcome(at(5 + after, 13), f"{unit}{after}", "sale", value, unit=unit)
        for unit, values in sales.items()
        for after, value in enumerate(values)
    ]
    built = Built(spark, rows, outcomes, replace(EXPERIMENT, metrics=(money,)), at(9))
    found = sorted(
        (each[units.trend_column(money)], each[units.window_column(money)], each[units.squares_column(money)])
        for each in built.frame().collect()
        if each[mature_column(money)]
    )
    slope = np.polyfit(range(3), sales["a"][:3], 1)[0]
    assert found == [(0.0, 0.0, 0.0), (pytest.approx(slope), 9.0, 81.0)]


@pytest.mark.slow
def test_a_cap_cuts_off_the_sums_of_single_units_and_says_whose(spark: SparkSession) -> None:
    rows = [row(at(5), f"r{unit}", unit, variant="ct"[ord(unit) % 2]) for unit in "abdefghi"]
    paid = dict(zip("abdefghi", (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 100.0), strict=True))
    outcomes = [outcome(at(6), unit, "sale", value, unit=unit) for unit, value in paid.items()]
    fixed = Metric("fixed", "mean", "money", role="goal", cap=Cap(at=5.5))
    relative = Metric("relative", "mean", "money", cap=Cap(quantile=0.75), missing="exclude")
    built = Built(spark, rows, outcomes, replace(EXPERIMENT, metrics=(fixed, relative)))
    caps = units.quantile_caps(built.frame(), built.experiment)
    assert caps == {"relative": np.quantile(list(paid.values()), 0.75)}
    exposed = units.exposed_units(built.exposures, built.experiment, built.as_of)
    frame = units.unit_frame(exposed, built.days, built.experiment, built.as_of, {}, caps).collect()
    values = sorted(each[value_column(fixed, "money")] for each in frame)
    assert values == [1.0, 2.0, 3.0, 4.0, 5.0, 5.5, 5.5, 5.5]
    assert sum(each[units.capped_column(fixed)] for each in frame) == 3
    assert max(each[value_column(relative, "money")] for each in frame) == caps["relative"]
    assert sum(each[units.capped_column(relative)] for each in frame) == 2
    assert max(each[units.squares_column(fixed)] for each in frame) == 5.5**2


def test_a_unit_with_a_failed_request_after_its_exposure_has_failed(spark: SparkSession) -> None:
    rows = [
        row(at(5, 1), "r0", "a", variant="c", carries="o", status="error"),  # before its exposure
        row(at(5, 3), "r1", "a", variant="c"),
        row(at(5), "r2", "b", variant="t"),
        row(at(6), "r3", "b", variant="t", status="error", device=None),
    ]
    found = {each["variant"]: each["failed"] for each in Built(spark, rows).frame().collect()}
    assert found == {"c": False, "t": True}


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


def test_days_hold_the_sums_of_all_production_rows_from_the_first_exposure_on(spark: SparkSession) -> None:
    built = Built(
        spark,
        [
            row(at(5, 8), "r0", "a", carries="other"),  # before the exposure
            row(at(5, 10), "r1", "a", variant="c"),
            row(at(5, 10), "r1", "a", variant="c", item="i2"),  # a second prediction of one request
            row(at(5, 23), "r2", "a", carries="other", version="9"),  # any model, whatever it carries
            row(at(6, 0), "r3", "a", variant="c", status="error", latency=None),
            row(at(6, 1), "r4", "a", variant="c", traffic="shadow"),
        ],
    )
    nothing = {"n_errors": 0, "clicks": None, "money": None, "wait": None}
    assert built.sums() == {
        ("a", 5): {"n_requests": 2, "n_predictions": 3, "latency": 30.0, **nothing},
        ("a", 6): {"n_requests": 1, "n_predictions": 1, "latency": None, **nothing, "n_errors": 1},
    }


def test_outcomes_count_on_their_own_day_by_request_or_by_unit(spark: SparkSession) -> None:
    rows = [
        row(at(5, 8), "r0", "a", carries="other"),
        row(at(5, 10), "r1", "a", variant="c"),
        row(at(5, 10), "r1", "a", variant="c", item="i2"),
        row(at(5, 10), "r9", "b", variant="t"),
    ]
    outcomes = [
        outcome(at(7), "late", request="r1"),
        outcome(at(5, 11), "item", request="r1", item="i2"),
        outcome(at(5, 11), "no_such_item", request="r1", item="i3"),
        outcome(at(5, 11), "before_exposure", request="r0"),
        outcome(at(5, 11), "request_decides", request="r9", unit="a"),
        outcome(at(6), "of_unit", "sale", 5.0, unit="a"),
        outcome(at(5, 9), "unit_before_exposure", "sale", 7.0, unit="a"),
        outcome(at(5, 9), "comes_before_its_request", request="r1"),
        outcome(at(6), "unmatched", request="r77"),
        outcome(at(9), "after_as_of", request="r1"),
        outcome(at(6), "another_name", "rating", 3.0, request="r1"),
    ]
    built = Built(spark, rows, outcomes)
    counted = {key: (each["clicks"], each["money"]) for key, each in built.sums().items()}
    assert counted == {("a", 5): (1.0, None), ("a", 6): (None, 5.0), ("a", 7): (1.0, None), ("b", 5): (1.0, None)}
    assert built.sums()["a", 7]["n_requests"] == 0


def test_the_highest_revision_counts_and_a_null_value_retracts(spark: SparkSession) -> None:
    rows = [row(at(5), "r1", "a", variant="c")]
    outcomes = [
        outcome(at(6), "corrected", "sale", 5.0, request="r1"),
        outcome(at(6), "corrected", "sale", 8.0, request="r1", revision=2),
        outcome(at(6), "corrected", "sale", 6.0, request="r1", revision=1),
        outcome(at(6), "retracted", "sale", 100.0, request="r1"),
        outcome(at(6), "retracted", "sale", None, request="r1", revision=1),
    ]
    assert Built(spark, rows, outcomes).sums()["a", 6]["money"] == 8.0


@pytest.mark.slow
def test_one_id_on_two_days_is_two_outcomes_and_a_correction_replaces_both(spark: SparkSession) -> None:
    rows = [row(at(5), "r1", "a", variant="c")]
    outcomes = [outcome(at(day), "o", "sale", float(day), request="r1") for day in (6, 8)]
    money = {key: each["money"] for key, each in Built(spark, rows, outcomes).sums().items()}
    assert money == {("a", 5): None, ("a", 6): 6.0, ("a", 8): 8.0}
    correction = outcome(at(7), "o", "sale", 1.0, request="r1", revision=1)
    money = {key: each["money"] for key, each in Built(spark, rows, [*outcomes, correction]).sums().items()}
    assert money == {("a", 5): None, ("a", 7): 1.0}


def test_an_outcome_belongs_to_the_last_row_of_its_request_before_it(spark: SparkSession) -> None:
    rows = [
        row(at(5, 8), "r1", "a", variant="c"),
        row(at(6, 8), "r1", "b", variant="t"),  # the same request_id on another day
        row(at(6, 8), "r1", None, item="i2"),
    ]
    outcomes = [outcome(at(5, 9), "1", request="r1"), outcome(at(6, 9), "2", request="r1")]
    clicks = {key: each["clicks"] for key, each in Built(spark, rows, outcomes).sums().items()}
    assert clicks == {("a", 5): 1.0, ("b", 6): 1.0}


def test_a_prediction_counts_on_its_day_and_its_outcome_adds_the_difference_on_its_own(spark: SparkSession) -> None:
    rows = [
        row(at(5, 10), "r1", "a", variant="c", score=0.8),
        row(at(5, 11), "r2", "a", variant="c", score=0.3),
        row(at(5, 12), "r3", "a", variant="c", score=None, status="error"),
        row(at(6), "r4", "a", variant="c", score=0.5),
    ]
    outcomes = [
        outcome(at(7), "1", "sale", 9.0, request="r1"),
        outcome(at(7), "2", "sale", 0.0, request="r2"),  # an outcome of value 0 is none
        outcome(at(7), "3", "sale", 1.0, request="r3"),  # of a row without a score
        outcome(at(7), "4", "sale", 1.0, unit="a"),  # of no prediction
        outcome(at(7), "5", "click", 1.0, request="r2"),
        outcome(at(6, 13), "6", "sale", 1.0, request="r4"),
    ]
    found = Built(spark, rows, outcomes).predictions("sale")
    assert found["a", 5] == pytest.approx(
        {
            "scored": 2.0,
            "scores": 1.1,
            "residual": -1.1,
            "log_loss": -log(0.2) - log(0.7),
            "squared_error": 0.64 + 0.09,
            "selected": 1.0,
        }
    )
    assert found["a", 6] == pytest.approx(
        {
            "scored": 1.0,
            "positives": 1.0,
            "scores": 0.5,
            "residual": 0.5,
            "log_loss": -log(0.5),
            "squared_error": 0.25,
            "selected": 1.0,
            "true_positives": 1.0,
        }
    )
    assert found["a", 7] == pytest.approx(
        {
            "positives": 1.0,
            "residual": 1.0,
            "log_loss": log(0.2) - log(0.8),
            "squared_error": 1 - 1.6,
            "true_positives": 1.0,
        }
    )
    assert found.keys() == {("a", 5), ("a", 6), ("a", 7)}
    clicks = Built(spark, rows, outcomes).predictions("click")
    assert (clicks["a", 5]["selected"], clicks["a", 7]["true_positives"]) == (2.0, 1.0)  # from 0.2 on


def test_a_score_that_is_no_probability_is_not_scored_and_a_certain_one_has_a_finite_loss(
    spark: SparkSession,
) -> None:
    rows = [
        *(row(at(5), f"r{n}", "a", variant="c", score=x) for n, x in enumerate((-0.1, 1.1, float("nan"), None))),
        row(at(6), "sure", "a", variant="c", score=1.0),
        row(at(7), "never", "a", variant="c", score=0.0),
    ]
    outcomes = [
        outcome(at(8, 1), "1", "sale", 1.0, request="r1"),
        outcome(at(6, 13), "2", "sale", 1.0, request="sure"),
        outcome(at(7, 13), "3", "sale", 1.0, request="never"),
    ]
    found = Built(spark, rows, outcomes).predictions("sale")
    assert found.keys() == {("a", 6), ("a", 7)}
    assert found["a", 6]["log_loss"] == pytest.approx(0, abs=1e-12)
    assert found["a", 7]["log_loss"] == pytest.approx(-log(1e-15))


def test_an_outcome_of_a_whole_request_belongs_to_its_last_item_at_that_time_whatever_the_scores(
    spark: SparkSession,
) -> None:
    rows = [
        row(at(5, 9), "r1", "a", variant="c", item="z", score=0.9),
        row(at(5, 10), "r1", "a", variant="c", item="i1", score=0.7),
        row(at(5, 10), "r1", "a", variant="c", item="i2", score=0.1),
    ]
    outcomes = [
        outcome(at(6), "1", "sale", 1.0, request="r1"),
        outcome(at(7), "2", "sale", 1.0, request="r1", item="i1"),
    ]
    found = Built(spark, rows, outcomes).predictions("sale")
    assert found["a", 6]["squared_error"] == pytest.approx(1 - 2 * 0.1)
    assert found["a", 7]["squared_error"] == pytest.approx(1 - 2 * 0.7)


def test_the_columns_of_predictions_are_the_measures_of_the_rows(spark: SparkSession) -> None:
    """Against scikit-learn on the rows themselves, of outcomes that follow up to three days later."""
    rng = np.random.default_rng(5)
    scores, labels = rng.uniform(0.01, 0.99, 60), rng.random(60) < 0.4
    rows = [row(at(5, n % 24), f"r{n}", f"u{n % 7}", variant="c", score=float(x)) for n, x in enumerate(scores)]
    outcomes = [
        outcome(at(5 + n % 4, 23), f"o{n}", "sale", 2.0, request=f"r{n}") for n, label in enumerate(labels) if label
    ]
    days = Built(spark, rows, outcomes).predictions("sale").values()
    total = {name: sum(each.get(name) or 0.0 for each in days) for name in PREDICTION_COLUMNS}
    (tn, fp), (fn, tp) = confusion_matrix(labels, scores >= 0.5).tolist()
    n, negatives = total["scored"], total["scored"] - total["positives"]
    assert (n, total["positives"], total["selected"], total["true_positives"]) == (60, tp + fn, tp + fp, tp)
    assert (negatives, total["selected"] - total["true_positives"]) == (tn + fp, fp)
    assert total["scores"] == pytest.approx(scores.sum())
    assert total["residual"] == pytest.approx((labels - scores).sum())
    assert total["log_loss"] / n == pytest.approx(log_loss(labels, scores))
    assert total["squared_error"] / n == pytest.approx(brier_score_loss(labels, scores))


def test_scores_are_read_only_where_a_prediction_is_declared(spark: SparkSession, tmp_path: Path) -> None:
    frame(spark, [row(at(5), "r1", "a", variant="c")], LOG).write.parquet(f"{tmp_path}/log")
    rows = units.production(spark.read.parquet(f"{tmp_path}/log"), AS_OF)
    told = frame(spark, [outcome(at(6), "1", "sale", request="r1")], OUTCOMES)
    current = units.current_outcomes(told, units.corrected(told), AS_OF)
    exposed = units.exposures(units.candidates(rows, EXPERIMENT), EXPERIMENT)
    resolved = units.resolved(current, rows, EXPERIMENT)
    counting = units.counted_outcomes(current, resolved, exposed, EXPERIMENT)
    counted = units.counted(rows, exposed, EXPERIMENT)
    scans = []
    for columns in (COLUMNS, replace(COLUMNS, predictions={})):
        days = units.unit_days(counted, counting, EXPERIMENT, columns)
        plan = days._jdf.queryExecution().executedPlan().toString()
        scans.append(sum("FileScan" in line and "prediction_score#" in line for line in plan.splitlines()))
    assert scans == [2, 0]


def test_a_delay_is_the_days_from_the_row_or_from_the_units_first_exposure(spark: SparkSession) -> None:
    rows = [
        row(at(5, 6), "r1", "a", variant="c"),
        row(at(5, 12), "r2", "a", variant="c"),
        row(at(5, 12), "r2", "a", variant="c", item="i2"),
    ]
    outcomes = [
        outcome(at(6, 0), "1", "sale", 3.0, request="r2"),
        outcome(at(7, 12), "2", "sale", 3.0, request="r2", item="i2"),
        outcome(at(7, 18), "3", "sale", 0.0, unit="a"),
        outcome(at(8), "4", "click", request="r1"),
    ]
    built = Built(spark, rows, outcomes)
    assert {day: each["wait"] for (_, day), each in built.sums().items()} == {5: None, 6: 0.5, 7: 4.5, 8: None}


def test_a_metric_column_that_is_no_expression_on_a_record_is_a_conf_error(spark: SparkSession) -> None:
    rows = frame(spark, [], LOG)
    units.refuse_unknown(rows, COLUMNS)
    for value in ("latencyms", "latency_ms +"):
        with pytest.raises(ConfError, match="metric column 'x'"):
            units.refuse_unknown(rows, MetricColumns({"x": RequestColumn(value)}))


def test_a_trigger_that_is_no_condition_on_a_record_is_a_conf_error(spark: SparkSession) -> None:
    rows = frame(spark, [], LOG)
    units.refuse_unknown(rows, COLUMNS, "latency_ms > 100")
    for trigger in ("latencyms > 100", "latency_ms >", "experiments"):
        with pytest.raises(ConfError, match=r"trigger: .* cannot be read on a record"):
            units.refuse_unknown(rows, COLUMNS, trigger)


def test_a_request_as_unit_takes_only_outcomes_keyed_by_request(spark: SparkSession) -> None:
    rows = [row(at(5), "r1", "a", variant="c"), row(at(5), "r2", "a", variant="t")]
    outcomes = [outcome(at(6), "1", request="r2"), outcome(at(6), "2", unit="a")]
    built = Built(spark, rows, outcomes, replace(EXPERIMENT, unit="request"))
    assert {unit: variant for unit, (variant, _) in built.first().items()} == {"r1": "c", "r2": "t"}
    assert {key: each["clicks"] for key, each in built.sums().items()} == {
        ("r1", 5): None,
        ("r2", 5): None,
        ("r2", 6): 1.0,
    }


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
        outcome(at(6, 23), "1", request="r1"),  # the second and last day of its window
        outcome(at(8, 1), "2", "sale", 4.0, request="r1"),
        outcome(at(8, 2), "3", request="r3"),
    ]
    return Built(spark, rows, outcomes)


def test_a_window_counts_whole_days_the_exposure_day_first_and_needs_maturity(windowed: Built) -> None:
    clicked, mature = value_column(CLICKED, "clicks"), mature_column(CLICKED)
    found = {each["device"]: (each[mature], each[clicked]) for each in windowed.frame().collect()}
    assert found == {"ios": (True, 1.0), "(null)": (True, 0.0), "tv": (False, None)}


def test_a_click_after_the_window_does_not_count(spark: SparkSession) -> None:
    built = Built(spark, [row(at(5), "r1", "a", variant="c")], [outcome(at(7, 0), "1", request="r1")])
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
        outcome(at(4), "1", "sale", 5.0, request="r0"),
        outcome(at(3), "2", "sale", 3.0, unit="a"),
        outcome(at(6), "3", "sale", 7.0, unit="a"),
    ]
    experiment = replace(EXPERIMENT, pre_days=2, covariates=("latency",))
    built = Built(spark, rows, outcomes, experiment)
    everyone = units.everyone(experiment, date(2026, 10, 1))
    production, told = units.production(frame(spark, rows, LOG), AS_OF), frame(spark, outcomes, OUTCOMES)
    current = units.current_outcomes(told, units.corrected(told), AS_OF)
    counting = units.counted_outcomes(current, units.resolved(current, production, everyone), None, everyone)
    past = units.unit_days(units.counted(production, None, everyone), counting, everyone, COLUMNS)
    built.days = built.days.unionByName(past)
    found = {each["variant"]: each for each in built.frame().collect()}
    assert (found["c"]["past latency"], found["c"]["past money"], found["c"]["no past"]) == (6.0, 8.0, False)
    assert (found["t"]["past latency"], found["t"]["past money"], found["t"]["no past"]) == (0.0, 0.0, True)
    assert found["c"][value_column(SPEED, "latency")] == 16.0


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


def test_the_phase_is_that_of_the_first_exposure(spark: SparkSession) -> None:
    phases = {date(2026, 10, 5): {"c": 9.0, "t": 1.0}, date(2026, 10, 7): {"c": 1.0, "t": 1.0}}
    rows = [
        row(at(6), "r1", "a", variant="c"),
        row(at(8), "r2", "a", variant="c"),
        row(at(7, 0), "r3", "b", variant="t"),
    ]
    frame = Built(spark, rows, experiment=replace(EXPERIMENT, phases=phases)).frame().collect()
    assert {each["variant"]: each["phase"] for each in frame} == {"c": 0, "t": 1}
