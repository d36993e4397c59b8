"""Performance from counts: against scikit-learn, statsmodels and laws of weights and additivity."""

from math import isnan

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import special
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from mltrust.drift.performance import (
    METRICS,
    N_CELLS,
    Estimate,
    PerformanceRule,
    ScoreLabels,
    estimates,
    performance_drift,
    selection,
)
from mltrust.drift.shifts import Shift
from mltrust.slices import Slice
from mltrust.states.moments import FloatArray
from mltrust.verdicts import Verdict
from tests.unit.drift_states import hashes

OVERALL = Slice("", "")
RULE = PerformanceRule()


def drawn(n: int, seed: int, *, slope: float = 1.0, shift: float = 0.0) -> tuple[FloatArray, FloatArray]:
    """Scores, and labels whose log-odds are shift + slope·log-odds of the score."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(-0.5, 1.5, n)
    return special.expit(odds), (rng.random(n) < special.expit(shift + slope * odds)).astype(float)


def state(scores: FloatArray, labels: FloatArray, seed: int = 0) -> ScoreLabels:
    return ScoreLabels.of(scores, labels, hashes(len(scores), seed))


def values(found: list[Estimate]) -> dict[str, float]:
    return {each.metric: each.value for each in found}


def verdicts(found: list[Shift]) -> dict[str, Verdict]:
    return {each.column: each.verdict for each in found}


def test_metrics_are_those_of_other_libraries() -> None:
    scores, labels = drawn(20_000, 1)
    found = values(estimates(state(scores, labels), RULE))
    # A cell is 1/64 wide in log-odds: what is read at its middle is off by less than 1e-4 of itself.
    assert found["auc"] == pytest.approx(roc_auc_score(labels, scores), abs=2e-5)
    assert found["log_loss"] == pytest.approx(log_loss(labels, scores), rel=1e-4)
    assert found["brier"] == pytest.approx(brier_score_loss(labels, scores), rel=1e-4)
    assert found["calibration_in_the_large"] == pytest.approx((labels - scores).mean(), abs=2e-5)
    fitted = sm.GLM(labels, sm.add_constant(special.logit(scores)), family=sm.families.Binomial()).fit()
    assert found["calibration_slope"] == pytest.approx(fitted.params[1], rel=1e-3)


@pytest.mark.slow
def test_standard_errors_are_those_between_samples() -> None:
    """40 samples of 2,000: their standard deviation is known to 1 / sqrt(2·39) = 11 %, the mean of theirs to 2 %."""
    found = [estimates(state(*drawn(2_000, seed), seed), RULE) for seed in range(40)]
    for at in range(len(METRICS)):
        between = np.std([each[at].value for each in found], ddof=1)
        within = np.mean([each[at].std_error for each in found])
        assert within == pytest.approx(between, rel=0.35)


def test_states_add_up() -> None:
    scores, labels = drawn(3_000, 2)
    units = hashes(3_000)
    whole = ScoreLabels.of(scores, labels, units)
    parts = [ScoreLabels.of(scores[at::3], labels[at::3], units[at::3]) for at in range(3)]
    total = parts[0] + parts[1] + parts[2] + ScoreLabels.empty()
    assert total.counts.tolist() == whole.counts.tolist()
    assert (total.n_units, total.n_predictions) == (whole.n_units, whole.n_predictions) == (3_000, 3_000)


def test_scores_of_0_and_1_lie_in_the_outer_cells() -> None:
    found = state(np.array([0.0, 1.0, 0.5]), np.array([0.0, 1.0, np.nan]))
    assert found.counts.sum(axis=2)[0, 0] == found.counts.sum(axis=2)[1, -1] == 1
    assert found.counts.sum(axis=2)[2, N_CELLS // 2] == 1


def test_a_worse_model_breaches_and_a_better_one_does_not() -> None:
    good, bad = state(*drawn(20_000, 3), 3), state(*drawn(20_000, 4, slope=0.6), 4)
    worse = verdicts(performance_drift({OVERALL: (good, bad)}, RULE))
    assert {name for name, each in worse.items() if each is Verdict.BREACH} == set(METRICS)
    better = verdicts(performance_drift({OVERALL: (bad, good)}, RULE))
    # Calibration may have changed for the better or the worse: either is drift.
    assert {name for name, each in better.items() if each is Verdict.BREACH} == set(METRICS[3:])


def test_a_shifted_rate_is_a_matter_of_calibration_in_the_large() -> None:
    before, after = state(*drawn(30_000, 5), 5), state(*drawn(30_000, 6, shift=0.25), 6)
    found = verdicts(performance_drift({OVERALL: (before, after)}, RULE))
    assert [name for name, each in found.items() if each is Verdict.BREACH] == ["calibration_in_the_large"]


def test_labels_that_are_missing_by_score_are_weighted() -> None:
    scores, labels = drawn(200_000, 7)
    truth = values(estimates(state(scores, labels), RULE))
    known = np.random.default_rng(7).random(len(scores)) < 0.05 + 0.9 * scores
    hidden = state(scores, np.where(known, labels, np.nan))
    found = estimates(hidden, RULE)
    for each in found:
        # Within 4.5 standard errors of what all labels say; the rate of the labelled alone is far off.
        assert abs(each.value - truth[each.metric]) < 4.5 * each.std_error
    assert hidden.n_labelled == known.sum()
    assert found[0].reason.endswith("labelled, by tenths of the score, weighted")
    naive = state(scores[known], labels[known])
    [_, loss, *_] = estimates(naive, RULE)
    assert abs(loss.value - truth["log_loss"]) > 10 * loss.std_error


def test_selection_is_named_beside_a_comparison() -> None:
    scores, labels = drawn(20_000, 8)
    known = np.random.default_rng(8).random(len(scores)) < 0.5
    found = performance_drift(
        {OVERALL: (state(scores, labels), state(scores, np.where(known, labels, np.nan)))}, RULE
    )
    assert "labelled, by tenths of the score, weighted" in found[0].reason
    assert selection(state(scores, labels)) == ""
    assert selection(ScoreLabels.empty()) == ""


def unlabelled_top() -> ScoreLabels:
    scores, labels = drawn(5_000, 9)
    return state(scores, np.where(scores > 0.5, np.nan, labels))


@pytest.mark.parametrize(
    ("current", "reason"),
    [
        (ScoreLabels.empty(), "0 units, at least 100 needed"),
        (state(*drawn(99, 10)), "99 units, at least 100 needed"),
        (state(drawn(500, 11)[0], np.zeros(500)), "0 labels of the rarer kind, at least 50 needed"),
        (unlabelled_top(), "a tenth of the scores has no label at all"),
        (state(np.array([1.5]), np.array([0.0])), "1 scores are no probabilities, or labels neither 0 nor 1"),
        (state(np.array([0.5]), np.array([3.0])), "1 scores are no probabilities, or labels neither 0 nor 1"),
    ],
)
def test_a_window_without_enough_is_inconclusive_and_says_why(current: ScoreLabels, reason: str) -> None:
    found = performance_drift({OVERALL: (state(*drawn(5_000, 12)), current)}, RULE)
    assert {(each.verdict, each.reason) for each in found} == {(Verdict.INCONCLUSIVE, reason)}
    assert all(isnan(each.value) and each.reason == reason for each in estimates(current, RULE))
    reverse = performance_drift({OVERALL: (current, state(*drawn(5_000, 12)))}, RULE)
    assert {each.reason for each in reverse} == {f"reference: {reason}"}


@pytest.mark.parametrize(("field", "value"), [("q", 0.0), ("auc", -1.0), ("fewest_units", 10), ("fewest_events", 9)])
def test_a_rule_refuses_nonsense(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        PerformanceRule(**{field: value})


@pytest.mark.slow
def test_clean_windows_seldom_breach() -> None:
    """80 windows of 1,000 predictions against 4,000, q = 0.05 without floors: at most the 99.9 % quantile."""
    rule = PerformanceRule(q=0.05, auc=0, log_loss=0, brier=0, calibration_in_the_large=0, calibration_slope=0)
    breached = 0
    for at in range(80):
        sides = state(*drawn(4_000, at), at), state(*drawn(1_000, 1_000 + at), at)
        breached += Verdict.BREACH in verdicts(performance_drift({OVERALL: sides}, rule)).values()
    assert breached <= 11
