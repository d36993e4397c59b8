"""Measures of slices against scikit-learn on the rows, minima, gaps with a planted truth, and what they decide."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from math import isnan
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, log_loss

from mltrust.experiment.cells import ExperimentStates, SliceStates
from mltrust.experiment.disparities import GAP, GAP_DIFFERENCE, Disparity, disparities, fairness_checks
from mltrust.experiment.fairness import BUCKETS, COLUMNS, MEASURES, Fairness
from mltrust.experiment.readout import Readout, readout
from mltrust.experiment.spec import Experiment
from mltrust.metrics import Metric, MetricColumns, PredictionColumns
from mltrust.report.fairness import fairness as as_markdown
from mltrust.slices import Slice, Slicing
from mltrust.states.moments import FloatArray
from mltrust.states.replicates import Replicates, delete_a_bucket
from mltrust.verdicts import Verdict

SPEC = Fairness("purchase", ("region",), 7)
EVEN = {date(2026, 10, 5): {"c": 1.0, "t": 1.0}}
RAMPED = {date(2026, 10, 5): {"c": 9.0, "t": 1.0}, date(2026, 10, 12): {"c": 1.0, "t": 1.0}}
EXPERIMENT = Experiment(
    experiment_id="e",
    log="l",
    control="c",
    phases=EVEN,
    metrics=(Metric("bought", "proportion", "purchases", role="goal"),),
    unit="unit_id",
    slices=Slicing({"region": "features.region"}),
    fairness=SPEC,
)


class Rows(NamedTuple):
    """Predictions: the unit of each, its score, and whether the outcome followed."""

    units: NDArray[np.int64]
    scores: FloatArray
    labels: NDArray[np.bool_]


def drawn(rng: np.random.Generator, n: int, *, tilt: float = 0.0, spread: float = 0.15) -> Rows:
    """One to four predictions of each of n units, alike within a unit; scores are too high by `tilt`."""
    units = np.repeat(np.arange(n), rng.integers(1, 5, n))
    p = np.clip(rng.beta(3, 3, n)[units] + rng.normal(0, spread, len(units)), 0.02, 0.98)
    return Rows(units, np.clip(p + tilt, 0.01, 0.99), rng.random(len(units)) < p)


def state(rows: Rows, first: int = 0) -> Replicates:
    """The columns of a prediction per unit, reduced."""
    p, y, selected = rows.scores, rows.labels.astype(float), rows.scores >= 0.5
    of_rows = {
        "scored": np.ones(len(p)),
        "positives": y,
        "residual": y - p,
        "log_loss": -np.log(np.where(rows.labels, p, 1 - p)),
        "selected": selected,
        "true_positives": selected * y,
    }
    sample = np.column_stack([np.bincount(rows.units, of_rows[name]) for name in COLUMNS])
    hashes = first + np.arange(len(sample), dtype=np.uint64)
    return delete_a_bucket(COLUMNS, sample, hashes, seed=1, n_buckets=BUCKETS)


def states(by_slice: Mapping[str, Mapping[tuple[str, int], Rows]]) -> ExperimentStates:
    found = {
        Slice("region", value): {
            arm: state(rows, first=1_000_000 * (17 * at + into)) for into, (arm, rows) in enumerate(arms.items())
        }
        for at, (value, arms) in enumerate(by_slice.items())
    }
    return ExperimentStates(SliceStates.empty(), {}, fairness=found)


def limited(**max_gap: float) -> Experiment:
    return replace(EXPERIMENT, fairness=replace(SPEC, max_gap=max_gap))


def row(rows: Sequence[Disparity], measure: str, variant: str, slice_value: str) -> Disparity:
    [found] = [
        each for each in rows if (each.measure, each.variant, each.slice_value) == (measure, variant, slice_value)
    ]
    return found


def test_measures_of_slices_are_those_of_the_rows() -> None:
    rng = np.random.default_rng(1)
    rows = {value: {("c", 0): drawn(rng, 300), ("t", 0): drawn(rng, 300, tilt=0.1)} for value in ("north", "south")}
    found = disparities(states(rows), EXPERIMENT)
    for value, arms in rows.items():
        for (arm, _), (units, scores, labels) in arms.items():
            (tn, fp), (fn, tp) = confusion_matrix(labels, scores >= 0.5).tolist()
            n = tn + fp + fn + tp
            expected = {
                "selection_rate": ((tp + fp) / n, n),
                "tpr": (tp / (tp + fn), tp + fn),
                "fpr": (fp / (tn + fp), tn + fp),
                "error_rate": ((fp + fn) / n, n),
                "calibration_error": (labels.mean() - scores.mean(), n),
                "log_loss": (log_loss(labels, scores), n),
            }
            assert expected.keys() == MEASURES.keys()
            for measure, (number, of) in expected.items():
                told = row(found, measure, arm, value)
                assert told.value == pytest.approx(number, rel=1e-9)
                assert (told.n_predictions, told.n_units) == (of, units.max() + 1)


def test_the_standard_error_is_that_of_units_and_not_of_rows() -> None:
    """Within a unit labels are alike. 64 groups know a standard error to 9 %; rows would give little over half."""
    rng = np.random.default_rng(2)
    units = np.repeat(np.arange(2000), 4)
    rows = Rows(units, np.full(len(units), 0.4), rng.random(2000)[units] < 0.3)
    told = row(disparities(states({"north": {("c", 0): rows}}), EXPERIMENT), "calibration_error", "c", "north")
    assert told.std_error == pytest.approx((0.3 * 0.7 / 2000) ** 0.5, rel=0.25)


def test_every_slice_is_listed_and_small_ones_are_inconclusive_and_in_no_gap() -> None:
    rng = np.random.default_rng(3)
    big = {("c", 0): drawn(rng, 400), ("t", 0): drawn(rng, 400)}
    few = {("c", 0): drawn(rng, 400), ("t", 0): drawn(rng, 20, tilt=0.4)}
    found = disparities(
        states({"north": big, "south": big, "tiny": few, "gone": {("c", 0): drawn(rng, 400)}}), EXPERIMENT
    )
    assert len(found) == len(MEASURES) * (2 * 4 + 2 + 1)
    tiny, gone = (row(found, "tpr", "t", value) for value in ("tiny", "gone"))
    assert (tiny.verdict, tiny.reason) == (Verdict.INCONCLUSIVE, "20 units, at least 100 needed")
    assert isnan(tiny.pvalue)
    assert (gone.n_units, gone.reason) == (0, "0 units, at least 100 needed")
    gap = row(found, "tpr", "t", GAP)
    assert gap.n_units == 800
    assert gap.reason.endswith("2 slices with too few are not in it")
    assert "tiny" not in gap.reason
    change = row(found, "tpr", "t", GAP_DIFFERENCE)
    assert change.n_units == 1600  # of the two slices that are large enough in both arms


def test_a_rate_needs_enough_of_what_it_divides_by() -> None:
    rng = np.random.default_rng(4)
    rare = drawn(rng, 400)
    rare = rare._replace(labels=np.arange(len(rare.units)) < 30)
    found = disparities(states({"north": {("c", 0): rare}, "south": {("c", 0): drawn(rng, 400)}}), EXPERIMENT)
    assert row(found, "tpr", "c", "north").reason == "30 positives, at least 50 needed"
    assert not isnan(row(found, "fpr", "c", "north").pvalue)
    assert row(found, "tpr", "c", GAP).reason == "1 of 2 slices are large enough; a gap needs two"


def test_a_slice_that_is_never_selected_has_a_gap_all_the_same() -> None:
    """Nothing varies in it, and its gap would otherwise be hidden."""
    rng = np.random.default_rng(5)
    never = drawn(rng, 400)
    never = never._replace(scores=np.minimum(never.scores, 0.49))
    found = disparities(
        states({"north": {("t", 0): never}, "south": {("t", 0): drawn(rng, 400)}}), limited(selection_rate=0.1)
    )
    told = row(found, "selection_rate", "t", "north")
    assert told.value == 0
    assert told.std_error == pytest.approx((2 / 404 * 402 / 404 / 404) ** 0.5)
    assert row(found, "selection_rate", "t", GAP).verdict is Verdict.BREACH


@pytest.mark.parametrize(
    ("tilt", "limit", "verdict"),
    [(0.25, 0.1, Verdict.BREACH), (0.0, 0.25, Verdict.PASS), (0.05, 0.1, Verdict.INCONCLUSIVE)],
)
def test_a_check_is_what_is_shown_of_the_limit(tilt: float, limit: float, verdict: Verdict) -> None:
    rng = np.random.default_rng(6)
    by_slice = {
        value: {("c", 0): drawn(rng, 600), ("t", 0): drawn(rng, 600, tilt=tilt if value == "south" else 0)}
        for value in ("north", "south")
    }
    spec = limited(selection_rate=limit)
    found = disparities(states(by_slice), spec)
    [check] = fairness_checks(found, spec)
    assert (check.treatment, check.metric, check.slice_key, check.decides) == (
        *("t", "purchase_selection_rate", "region", True),
    )
    assert check.verdict is verdict
    assert (check.threshold, check.n_units) == (limit, 1200)
    if verdict is Verdict.BREACH:
        assert "wider" in row(found, "selection_rate", "t", GAP_DIFFERENCE).reason
        assert row(found, "selection_rate", "t", "south").verdict is Verdict.BREACH


def test_without_a_limit_nothing_is_checked_and_nothing_passes() -> None:
    rng = np.random.default_rng(7)
    found = disparities(states({value: {("t", 0): drawn(rng, 400)} for value in ("north", "south")}), EXPERIMENT)
    assert fairness_checks(found, EXPERIMENT) == []
    assert {each.verdict for each in found} == {Verdict.INCONCLUSIVE}


def test_without_units_there_are_gaps_to_say_so_and_without_a_conf_there_is_nothing() -> None:
    found = disparities(states({}), limited(tpr=0.1))
    assert {each.reason for each in found if each.slice_value == GAP} == {
        "0 of 0 slices are large enough; a gap needs two"
    }
    [check] = fairness_checks(found, limited(tpr=0.1))
    assert check.verdict is Verdict.INCONCLUSIVE
    assert disparities(states({}), replace(EXPERIMENT, fairness=None)) == []


def read(by_slice: Mapping[str, Mapping[tuple[str, int], Rows]], **max_gap: float) -> Readout:
    return readout(states(by_slice), limited(**max_gap), date(2026, 11, 2))


def test_an_unfair_treatment_does_not_ship_and_the_experiment_is_no_less_valid() -> None:
    rng = np.random.default_rng(8)
    unfair = {"north": {("t", 0): drawn(rng, 600)}, "south": {("t", 0): drawn(rng, 600, tilt=0.3)}}
    found = read(unfair, selection_rate=0.05)
    assert (found.recommendation, found.verdict) == ("do not ship", Verdict.BREACH)
    assert any("fairness purchase_selection_rate" in f"{each.check} {each.metric}" for each in found.checks)
    assert "a gap of" in found.reasons[0]
    text = as_markdown(found.disparities, 0.05)
    assert "Worst gaps" in text
    assert "Slices unlike the others" in text
    # Of an arm that is there already nothing is decided.
    control = {value: {("c", 0): rows["t", 0]} for value, rows in unfair.items()}
    assert read(control, selection_rate=0.05).recommendation == "keep running"


def test_before_the_planned_end_of_a_fixed_horizon_a_gap_is_told_and_stops_nothing() -> None:
    rng = np.random.default_rng(8)
    unfair = {"north": {("t", 0): drawn(rng, 600)}, "south": {("t", 0): drawn(rng, 600, tilt=0.3)}}
    spec = replace(limited(selection_rate=0.05), planned_end=date(2026, 11, 2))
    early = readout(states(unfair), spec, date(2026, 11, 1))
    assert early.recommendation == "keep running"
    assert any(reason.startswith("fairness (purchase_selection_rate)") for reason in early.reasons)
    assert readout(states(unfair), spec, date(2026, 11, 2)).recommendation == "do not ship"
    # A gap is tested once, whatever the effects are.
    daily = replace(spec, inference="always_valid", metrics=(replace(spec.metrics[0], window_days=1),))
    assert readout(states(unfair), daily, date(2026, 11, 1)).recommendation == "keep running"


def test_where_the_ratio_of_the_arms_changed_the_control_counts_as_the_treatment_was_exposed() -> None:
    """In both arms selection differs by slice only in the first phase, of which the treatment has little."""
    rng = np.random.default_rng(9)
    sizes = {("c", 0): 3600, ("t", 0): 400, ("c", 1): 2000, ("t", 1): 2000}
    by_slice = {
        value: {arm: drawn(rng, n, tilt=0.3 if value == "south" and arm[1] == 0 else 0) for arm, n in sizes.items()}
        for value in ("north", "south")
    }
    spec = replace(limited(), phases=RAMPED)
    found = disparities(states(by_slice), spec)
    gaps = {arm: row(found, "selection_rate", arm, GAP).value for arm in "ct"}
    assert gaps["c"] > gaps["t"] + 0.1
    change = row(found, "selection_rate", "t", GAP_DIFFERENCE)
    assert change.ci_low < 0 < change.ci_high
    assert abs(change.value) < 0.05


@pytest.mark.slow
def test_gaps_of_units_drawn_with_a_planted_truth_are_covered() -> None:
    """400 runs of three slices with rows within units; a coverage of 0.95 is found within 0.033."""
    held, of_difference, N = 0, 0, 400
    rng = np.random.default_rng(10)
    truth = {"c": selection_gap(0.0), "t": selection_gap(0.1)}
    for _ in range(N):
        by_slice = {
            value: {
                ("c", 0): drawn(rng, 250),
                ("t", 0): drawn(rng, 250, tilt=0.1 if value == "c" else 0),
            }
            for value in "abc"
        }
        found = disparities(states(by_slice), EXPERIMENT)
        gap, change = (row(found, "selection_rate", "t", name) for name in (GAP, GAP_DIFFERENCE))
        held += gap.ci_low <= truth["t"] <= gap.ci_high
        of_difference += change.ci_low <= truth["t"] - truth["c"] <= change.ci_high
    assert min(held, of_difference) / N > 0.92


def selection_gap(tilt: float) -> float:
    """How much a tilt adds to the share of selected predictions, from many of them."""
    many = drawn(np.random.default_rng(11), 400_000)
    return float(np.mean(many.scores + tilt >= 0.5) - np.mean(many.scores >= 0.5))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attributes": ()}, "is empty or names one twice"),
        ({"attributes": ("a", "a")}, "is empty or names one twice"),
        ({"window_days": 0}, "window_days is 0, expected 1 or more"),
        ({"min_units": 1}, "min_units is 1, expected 2 or more"),
        ({"max_gap": {"tpr": 0.0}}, "max_gap: tpr is 0.0"),
        ({"max_gap": {"accuracy": 0.1}}, "no measure; expected one of selection_rate"),
    ],
)
def test_a_conf_of_fairness_that_makes_no_sense_is_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(SPEC, **changes)  # type: ignore[arg-type]


def test_fairness_is_over_declared_attributes_and_predictions_of_units_that_have_slices() -> None:
    with pytest.raises(ValueError, match="age is none of slices.attributes"):
        replace(EXPERIMENT, fairness=replace(SPEC, attributes=("age",)))
    with pytest.raises(ValueError, match="units are buckets"):
        replace(EXPERIMENT, unit="bucket_id", buckets={"b": "c"}, metrics=(Metric("m", "mean", "x", role="goal"),))
    columns = MetricColumns(predictions={"click": PredictionColumns("click")})
    problems = EXPERIMENT.problems(columns, ("features.region",))
    assert "fairness.predictions: 'purchase' is no prediction of log 'l'; expected one of click" in problems
