"""A/A tests on the control's own units: silent where units are what was assigned, loud where they are not."""

from collections.abc import Sequence
from datetime import date

import numpy as np
import pytest
from scipy import stats

from mltrust.experiment.cells import ExperimentStates, Resalted, SliceStates, product
from mltrust.experiment.check import Check
from mltrust.experiment.resalting import resaltings
from mltrust.experiment.spec import Experiment
from mltrust.metrics import Metric
from mltrust.states.moments import FloatArray
from mltrust.states.replicates import UNITS, resalted
from mltrust.verdicts import Verdict

MEAN = Metric("money", "mean", "revenue", role="goal")
SHARE = Metric("bought", "proportion", "revenue")
RATIO = Metric("speed", "ratio", "latency", denominator="requests")
EXPERIMENT = Experiment(
    experiment_id="e",
    log="log",
    control="c",
    phases={date(2026, 10, 5): {"c": 1.0, "t": 1.0}},
    metrics=(MEAN, SHARE, RATIO),
    unit="unit_id",
    salts=1000,
)


def hashes(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.integers(0, 2**63, n, dtype=np.uint64)


def state(metric: Metric, values: FloatArray, assigned: np.ndarray, centre: Sequence[float] = (0, 0)) -> Resalted:
    names, own = metric.columns(), tuple(centre[: len(metric.columns())])
    about = {name: values[:, i] - own[i] for i, name in enumerate(names)}
    columns = about | {product(a, b): about[a] * about[b] for a in names for b in names}
    drawn = resalted(tuple(columns), np.column_stack(list(columns.values())), assigned, seed=3, n_replicates=1000)
    return Resalted(drawn, own)


def check(metric: Metric, found: Resalted) -> Check:
    [row] = resaltings(ExperimentStates(SliceStates.empty(), {}, resalted={metric.name: found}), EXPERIMENT)
    return row


def test_a_salt_takes_about_half_of_what_is_assigned_and_all_rows_of_it_together() -> None:
    rng = np.random.default_rng(1)
    assigned = np.repeat(hashes(rng, 500), 2)
    found = resalted(("y",), np.ones((1000, 1)), assigned, seed=7, n_replicates=130)
    taken = found.column(UNITS)
    assert taken[0] == found.n == 1000
    assert (taken[1:] % 2 == 0).all()
    # The mean of 130 draws of 2·binomial(500, 1/2), with 4 standard errors.
    assert abs(taken[1:].mean() - 500) < 4 * 2 * np.sqrt(125 / 130)
    assert 0.6 < taken[1:].std() / np.sqrt(4 * 125) < 1.4


def test_states_of_parts_add_up_to_that_of_the_whole() -> None:
    rng = np.random.default_rng(2)
    sample, assigned = rng.normal(size=(100, 2)), hashes(rng, 100)
    parts = [
        resalted(("a", "b"), sample[at], assigned[at], seed=1, n_replicates=70) for at in (slice(40), slice(40, 100))
    ]
    whole = resalted(("a", "b"), sample, assigned, seed=1, n_replicates=70)
    np.testing.assert_allclose((parts[0] + parts[1]).sums, whole.sums, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1e9])
def test_units_that_were_assigned_have_uniform_p_values_whatever_their_offset(offset: float) -> None:
    rng = np.random.default_rng(4)
    values = rng.exponential(10, (2000, 1)) + offset
    row = check(MEAN, state(MEAN, values, hashes(rng, 2000), (float(values.mean()),)))
    assert (row.verdict, row.decides) == (Verdict.PASS, False)
    assert row.value == pytest.approx(0.05, abs=0.03)


def test_shares_and_ratios_pass_too() -> None:
    rng = np.random.default_rng(5)
    requests = rng.poisson(3, 2000) + 1.0
    latency = rng.gamma(2, 20, 2000) * requests
    ratio = state(RATIO, np.column_stack([latency, requests]), hashes(rng, 2000), (latency.mean(), requests.mean()))
    assert check(RATIO, ratio).verdict is Verdict.PASS
    bought = state(SHARE, (rng.random((5000, 1)) < 0.3).astype(float), hashes(rng, 5000), (0.3,))
    assert check(SHARE, bought).verdict is Verdict.PASS


def test_requests_of_assigned_users_as_units_are_found_out() -> None:
    rng = np.random.default_rng(6)
    users = np.repeat(np.arange(400), 5)
    values = (rng.normal(0, 1, 400)[users] + rng.normal(0, 1, 2000))[:, None]
    row = check(MEAN, state(MEAN, values, hashes(rng, 400)[users]))
    assert (row.verdict, row.decides) == (Verdict.BREACH, True)
    assert row.value > 0.1
    assert "the unit is not what was assigned" in row.reason


@pytest.mark.slow
def test_units_that_came_by_few_buckets_are_tested_at_their_level() -> None:
    """All salts share the means of the buckets, so that their p-values are not uniform for one log."""
    rng, n_salts, runs = np.random.default_rng(8), 200, 150
    buckets = np.repeat(hashes(rng, 60), 20)
    pvalues = []
    for run in range(runs):
        values = rng.exponential(1, (1200, 1))
        columns = ("revenue", product("revenue", "revenue"))
        drawn = resalted(
            columns, np.column_stack([values - 1, (values - 1) ** 2]), buckets, seed=run, n_replicates=n_salts
        )
        pvalues.append(check(MEAN, Resalted(drawn, (1.0,))).pvalue)
    for level in (0.05, 0.2):
        low, high = stats.binom.interval(0.999, runs, level)
        assert low <= (np.array(pvalues) < level).sum() <= high


def test_buckets_that_differ_by_more_than_their_units_are_found_out() -> None:
    rng = np.random.default_rng(9)
    buckets = np.repeat(np.arange(60), 50)
    values = (rng.normal(0, 0.5, 60)[buckets] + rng.normal(0, 1, 3000))[:, None]
    row = check(MEAN, state(MEAN, values, hashes(rng, 60)[buckets]))
    assert row.verdict is Verdict.BREACH
    assert row.statistic > 3  # the mean square of scores that should be 1


def test_rare_events_and_few_units_are_not_tested() -> None:
    rng = np.random.default_rng(7)
    rare = state(SHARE, (rng.random((5000, 1)) < 0.01).astype(float), hashes(rng, 5000))
    assert check(SHARE, rare).verdict is Verdict.INCONCLUSIVE
    few = state(MEAN, rng.normal(size=(60, 1)), hashes(rng, 60))
    assert check(MEAN, few).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("n_events", [1, 3, 1999])
def test_a_share_of_next_to_none_or_all_is_not_tested(n_events: int) -> None:
    values = (np.arange(2000) < n_events).astype(float)[:, None]
    row = check(SHARE, state(SHARE, values, hashes(np.random.default_rng(10), 2000), (float(values.mean()),)))
    assert row.verdict is Verdict.INCONCLUSIVE


def test_without_salts_nothing_is_said() -> None:
    assert resaltings(ExperimentStates(SliceStates.empty(), {}), EXPERIMENT) == []
