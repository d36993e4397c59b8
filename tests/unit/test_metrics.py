"""What a conf of metric columns may say."""

import re
from pathlib import Path

import numpy as np
import pytest

from mltrust import conf
from mltrust.errors import ConfError
from mltrust.experiment.readout import readout
from mltrust.experiment.spec import Experiment
from mltrust.metrics import KINDS, Metric, MetricColumns, OutcomeColumn, PredictionColumns, RequestColumn, kind
from mltrust.states.moments import Moments
from mltrust.stats.means import Arm, mean_arm
from mltrust.verdicts import Verdict
from tests.unit.conftest import edited
from tests.unit.drawn import START, arms, states


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


def test_a_new_kind_of_metric_is_one_decorated_function(tmp_path: Path) -> None:
    """From the conf to effects, slices and verdicts; other kinds are as they were."""
    before = dict(KINDS)

    @kind("second moment")
    def second_moment(state: Moments, metric: Metric) -> Arm:
        """Mean over units of the numerator's square, by the delta method."""
        own = mean_arm(state, metric.numerator)
        return Arm(own.n, own.mean**2 + own.variance, 4 * own.mean**2 * own.variance)

    try:
        (tmp_path / "spec.yaml").write_text(
            "{experiment_id: e, log: log, control: c, phases: {2026-10-05: {c: 1, t: 1}}, unit: unit_id,"
            " slices: {attributes: {device: features.device}},"
            " metrics: [{name: power, kind: second moment, numerator: volts, role: goal}]}"
        )
        spec, _ = conf.read(Experiment, tmp_path / "spec.yaml")
        rng, variant = np.random.default_rng(1), arms(2000)
        volts = rng.normal(10, 1, 4000) + (variant == "t")
        units = {"variant": variant, "device": rng.choice(["a", "b"], 4000), "volts": volts}
        found = readout(states(spec, units), spec, START.replace(day=26))
        leading = {row.slice_value: row for row in found.effects if row.role == "goal"}
        assert leading.keys() == {"", "a", "b"}
        squares = [float((volts[variant == arm] ** 2).mean()) for arm in "ct"]
        assert leading[""].effect == pytest.approx(squares[1] - squares[0], rel=1e-3)
        assert leading[""].verdict is Verdict.PASS
    finally:
        del KINDS["second moment"]
    assert before == KINDS
