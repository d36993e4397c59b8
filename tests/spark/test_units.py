"""What unit_days holds, small enough to check by hand."""

from dataclasses import replace
from math import log
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import SparkSession
from sklearn.metrics import brier_score_loss, confusion_matrix, log_loss

from mltrust.errors import ConfError
from mltrust.metrics import PREDICTION_COLUMNS, MetricColumns, RequestColumn
from mltrust.spark import exposure, outcome, units
from tests.spark.built import AS_OF, COLUMNS, EXPERIMENT, LOG, OUTCOMES, Built, an_outcome, at, row
from tests.spark.frames import frame


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


def test_a_prediction_counts_on_its_day_and_its_outcome_adds_the_difference_on_its_own(spark: SparkSession) -> None:
    rows = [
        row(at(5, 10), "r1", "a", variant="c", score=0.8),
        row(at(5, 11), "r2", "a", variant="c", score=0.3),
        row(at(5, 12), "r3", "a", variant="c", score=None, status="error"),
        row(at(6), "r4", "a", variant="c", score=0.5),
    ]
    outcomes = [
        an_outcome(at(7), "1", "sale", 9.0, request="r1"),
        an_outcome(at(7), "2", "sale", 0.0, request="r2"),  # an outcome of value 0 is none
        an_outcome(at(7), "3", "sale", 1.0, request="r3"),  # of a row without a score
        an_outcome(at(7), "4", "sale", 1.0, unit="a"),  # of no prediction
        an_outcome(at(7), "5", "click", 1.0, request="r2"),
        an_outcome(at(6, 13), "6", "sale", 1.0, request="r4"),
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
        an_outcome(at(8, 1), "1", "sale", 1.0, request="r1"),
        an_outcome(at(6, 13), "2", "sale", 1.0, request="sure"),
        an_outcome(at(7, 13), "3", "sale", 1.0, request="never"),
    ]
    found = Built(spark, rows, outcomes).predictions("sale")
    assert found.keys() == {("a", 6), ("a", 7)}
    assert found["a", 6]["log_loss"] == pytest.approx(0, abs=1e-12)
    assert found["a", 7]["log_loss"] == pytest.approx(-log(1e-15))


def test_the_columns_of_predictions_are_the_measures_of_the_rows(spark: SparkSession) -> None:
    """Against scikit-learn on the rows themselves, of outcomes that follow up to three days later."""
    rng = np.random.default_rng(5)
    scores, labels = rng.uniform(0.01, 0.99, 60), rng.random(60) < 0.4
    rows = [row(at(5, n % 24), f"r{n}", f"u{n % 7}", variant="c", score=float(x)) for n, x in enumerate(scores)]
    outcomes = [
        an_outcome(at(5 + n % 4, 23), f"o{n}", "sale", 2.0, request=f"r{n}")
        for n, label in enumerate(labels)
        if label
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
    rows = exposure.production(spark.read.parquet(f"{tmp_path}/log"), AS_OF)
    told = frame(spark, [an_outcome(at(6), "1", "sale", request="r1")], OUTCOMES)
    current = outcome.current(told, outcome.corrected(told), AS_OF)
    exposed = exposure.found(exposure.candidates(rows, EXPERIMENT), EXPERIMENT)
    resolved = outcome.resolved(current, rows, EXPERIMENT)
    counting = outcome.counted(current, resolved, exposed, EXPERIMENT)
    counted = units.counted(rows, exposed, EXPERIMENT)
    scans = []
    for columns in (COLUMNS, replace(COLUMNS, predictions={})):
        days = units.unit_days(counted, counting, EXPERIMENT, columns)
        plan = days._jdf.queryExecution().executedPlan().toString()
        scans.append(sum("FileScan" in line and "prediction_score#" in line for line in plan.splitlines()))
    assert scans == [2, 0]


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
