"""What a conf of metric columns may say."""

import re
from pathlib import Path

import pytest

from mltrust import conf
from mltrust.errors import ConfError
from mltrust.metrics import MetricColumns, OutcomeColumn, PredictionColumns, RequestColumn
from tests.unit.conftest import edited


def test_one_prediction_declares_all_its_columns() -> None:
    columns = MetricColumns(predictions={"p": PredictionColumns("sale")})
    assert columns.names() == (
        *("p_scored", "p_positives", "p_scores", "p_residual"),
        *("p_log_loss", "p_squared_error", "p_selected", "p_true_positives"),
    )


@pytest.mark.parametrize(
    "columns",
    [
        {"requests": {"p_scored": RequestColumn("1")}},
        {"outcomes": {"p_log_loss": OutcomeColumn("sale")}},
    ],
)
def test_a_column_named_as_that_of_a_prediction_is_refused(columns: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="declared twice"):
        MetricColumns(**columns, predictions={"p": PredictionColumns("sale")})  # type: ignore[arg-type]


def test_a_column_of_requests_and_outcomes_is_refused() -> None:
    with pytest.raises(ValueError, match="^x: declared twice"):
        MetricColumns({"x": RequestColumn("1")}, {"x": OutcomeColumn("sale")})


def test_a_prediction_without_a_name_that_a_column_can_have_is_refused() -> None:
    for name in ("", "1", "a b"):
        with pytest.raises(ValueError, match="expected letters"):
            MetricColumns(predictions={name: PredictionColumns("sale")})


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_that_is_no_probability_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="expected a probability"):
        PredictionColumns("sale", threshold)


def test_mistakes_in_a_conf_name_their_place(folder: Path) -> None:
    edited(folder / "metrics/recommendations.yaml", "threshold: 0.5", "treshold: 0.5")
    with pytest.raises(ConfError, match=re.escape("treshold")) as raised:
        conf.load(folder / "experiments/ranker_v2.yaml", "local")
    assert "did you mean 'threshold'" in str(raised.value)
