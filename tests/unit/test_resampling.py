"""Metrics compared by replicates: the same effect as in closed form, and nearly the same standard error."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import date

import numpy as np
import pytest

from mltrust.experiment.cells import UNITS, Arm, ExperimentStates, SliceStates, mature_block, metric_block
from mltrust.experiment.effects import Effect, effects
from mltrust.experiment.spec import Experiment, Resampling
from mltrust.metrics import Metric
from mltrust.slices import OVERALL, Slice
from mltrust.states.moments import Moments
from mltrust.states.replicates import Replicates, delete_a_bucket, poisson
from mltrust.stats.means import Margin

SPENT = Metric("spent", "mean", "revenue", role="goal")
CLICKED = Metric("clicked", "proportion", "clicks", role="secondary")
PER_VISIT = Metric(
    "per_visit", "ratio", "clicks", denominator="visits", role="guardrail", margin=Margin(relative=0.1)
)
METRICS = (SPENT, CLICKED, PER_VISIT)
EVEN = {date(2026, 10, 5): {"c": 1.0, "t": 1.0}}
RAMPED = {date(2026, 10, 5): {"c": 9.0, "t": 1.0}, date(2026, 10, 12): {"c": 1.0, "t": 1.0}}
AS_OF = date(2026, 10, 26)


def experiment(**changes: object) -> Experiment:
    spec: dict[str, object] = {"experiment_id": "e", "log": "l", "control": "c", "phases": EVEN, "unit": "unit_id"}
    return Experiment(**(spec | {"metrics": METRICS, "resampling": "bootstrap"} | changes))  # type: ignore[arg-type]


def drawn(sizes: Mapping[Arm, int], spec: Experiment, seed: int = 1) -> ExperimentStates:
    """Units who click more in the second phase, and in the treatment by a tenth."""
    rng = np.random.default_rng(seed)
    moments, replicates = {}, {}
    for arm, n in sizes.items():
        visits = 1 + rng.poisson(3, n)
        clicks = rng.binomial(visits, 0.2 * (1 + arm.phase) * (1.1 if arm.variant == "t" else 1))
        values = {"visits": visits, "clicks": clicks, "revenue": clicks * rng.exponential(10, n)}
        hashes = rng.integers(0, 2**64, n, dtype=np.uint64)
        moments[arm] = {UNITS: Moments.of((), np.empty((n, 0)))}
        replicates[arm] = {}
        for metric in spec.metrics:
            sample = np.column_stack([values[name] for name in metric.columns()]).astype(float)
            sample = sample > 0 if metric.kind == "proportion" else sample
            moments[arm] |= {
                mature_block(metric): moments[arm][UNITS],
                metric_block(metric): Moments.of(metric.columns(), sample),
            }
            replicates[arm][metric_block(metric)] = resample(spec, metric, sample, hashes)
    return ExperimentStates(SliceStates(Slice(*OVERALL), moments), {}, replicates=replicates)


def resample(spec: Experiment, metric: Metric, sample: np.ndarray, hashes: np.ndarray) -> Replicates:
    if spec.resampling == "jackknife":
        return delete_a_bucket(metric.columns(), sample, hashes, seed=1, n_buckets=spec.n_replicates)
    return poisson(metric.columns(), sample, hashes, seed=1, n_replicates=spec.n_replicates)


def rows(spec: Experiment, sizes: Mapping[Arm, int]) -> dict[tuple[str, bool], Effect]:
    """Effects by metric and whether they are by replicates; of the others the leading ones, which come first."""
    found: dict[tuple[str, bool], Effect] = {}
    for row in effects(drawn(sizes, spec), spec, AS_OF):
        found.setdefault((row.metric, row.method.startswith(("bootstrap", "jackknife"))), row)
    return found


@pytest.mark.parametrize(("method", "tolerance"), [("bootstrap", 0.08), ("jackknife", 0.3)])
def test_every_metric_has_a_row_beside_the_leading_one(method: Resampling, tolerance: float) -> None:
    """Standard errors from B replicates vary by 1 / sqrt(2B): 2 % of 1,000, and 9 % of 64 groups."""
    spec = experiment(resampling=method)
    found = rows(spec, {Arm("c", 0, False): 3000, Arm("t", 0, False): 2000, Arm("t", 0, True): 1000})
    for metric in METRICS:
        leading, row = found[metric.name, False], found[metric.name, True]
        assert (row.method, row.role, row.decides) == (method, "diagnostic", False)
        assert (row.n_control, row.n_treatment) == (3000, 3000)
        assert row.effect == pytest.approx(leading.effect, rel=1e-12)
        assert row.std_error == pytest.approx(leading.std_error, rel=tolerance)
        assert row.df == (5998 if method == "bootstrap" else 63)
    leading, row = found["per_visit", False], found["per_visit", True]
    assert row.non_inferiority_pvalue == pytest.approx(leading.non_inferiority_pvalue, rel=2)
    assert row.non_inferiority_pvalue < 1e-4 < spec.alpha


def test_where_the_ratio_of_the_arms_changed_phases_are_compared_apart() -> None:
    sizes = {Arm("c", 0, False): 4500, Arm("t", 0, False): 500, Arm("c", 1, False): 1000, Arm("t", 1, False): 1000}
    spec = experiment(phases=RAMPED)
    found = rows(spec, sizes)
    for metric in METRICS:
        leading, row = found[metric.name, False], found[metric.name, True]
        assert (leading.method, row.method) == ("post-stratified", "bootstrap, post-stratified")
        assert row.effect == pytest.approx(leading.effect, rel=1e-12)
        assert row.std_error == pytest.approx(leading.std_error, rel=0.08)


def test_an_arm_without_units_has_no_row() -> None:
    assert not [key for key in rows(experiment(), {Arm("c", 0, False): 100}) if key[1]]


def test_without_resampling_there_is_no_row() -> None:
    spec = experiment()
    states = drawn({Arm("c", 0, False): 100, Arm("t", 0, False): 100}, spec)
    assert not [row for row in effects(states, replace(spec, resampling=None), AS_OF) if row.role == "diagnostic"]


def test_replicates_are_those_of_the_conf_or_usual_ones() -> None:
    assert experiment().n_replicates == 1000
    assert experiment(resampling="jackknife").n_replicates == 64
    assert experiment(replicates=500).n_replicates == 500


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"resampling": None, "replicates": 100}, "replicates without resampling"),
        ({"replicates": 199}, "expected 200 or more for a bootstrap"),
        ({"resampling": "jackknife", "replicates": 49}, "expected 50 or more for a jackknife"),
        ({"resampling": "jackknife", "unit": "bucket_id", "buckets": {"b": "c"}, "metrics": (SPENT,)}, "too few"),
    ],
)
def test_a_conf_with_too_few_replicates_or_units_is_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        experiment(**changes)
