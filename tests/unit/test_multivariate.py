"""The classifier two-sample test: against pairs counted one by one, and on planted changes."""

from math import isnan, nan

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from mltrust.drift.multivariate import MultivariateRule, TwoSample, aucs_without, multivariate_drift, two_sample
from mltrust.drift.profile import bucket_of
from mltrust.slices import Slice
from mltrust.states.moments import FloatArray
from mltrust.verdicts import Verdict
from tests.unit.drift_states import hashes

OVERALL = Slice("", "")
RULE = MultivariateRule()


def sides(reference: FloatArray, current: FloatArray, seed: int = 0) -> TwoSample:
    rows = np.vstack([reference, current])
    is_current = np.arange(len(rows)) >= len(reference)
    return two_sample(list(rows.T), is_current, hashes(len(rows), seed))


def verdict(found: TwoSample) -> Verdict:
    return multivariate_drift({OVERALL: found}, RULE)[0].verdict


def correlated(n: int, rho: float, seed: int) -> FloatArray:
    return np.random.default_rng(seed).multivariate_normal([0, 0], [[1, rho], [rho, 1]], n)


def test_auc_without_each_bucket_is_that_of_the_rows_of_the_others() -> None:
    rng = np.random.default_rng(1)
    n = 300
    score, side, units = rng.integers(0, 20, n).astype(float), rng.random(n) < 0.4, hashes(n)
    found = aucs_without(score, side, bucket_of(units))
    assert found[0] == pytest.approx(roc_auc_score(side, score), abs=1e-12)
    for bucket in range(64):
        left = bucket_of(units) != bucket
        assert found[1 + bucket] == pytest.approx(roc_auc_score(side[left], score[left]), abs=1e-12)


def test_a_reversed_correlation_is_found_though_no_column_has_moved() -> None:
    reference, current = correlated(1_500, 0.7, 2), correlated(1_500, -0.7, 3)
    assert all(stats.ks_2samp(*each).pvalue > 0.01 for each in zip(reference.T, current.T, strict=True))
    found = sides(reference, current)
    assert found.auc > 0.65
    assert verdict(found) is Verdict.BREACH


def test_a_changed_text_is_found_and_a_missing_value_is_one() -> None:
    rng = np.random.default_rng(4)
    texts = [*rng.choice(["a", "b"], 1_000), *rng.choice(["a", "c"], 1_000)]
    side = np.arange(2_000) >= 1_000
    assert verdict(two_sample([texts], side, hashes(2_000))) is Verdict.BREACH
    gaps: list[str | None] = ["a"] * 1_000 + [None if at % 2 else "a" for at in range(1_000)]
    assert verdict(two_sample([gaps], side, hashes(2_000))) is Verdict.BREACH
    numbers = np.where(side & (rng.random(2_000) < 0.3), nan, rng.normal(size=2_000))
    assert verdict(two_sample([numbers], side, hashes(2_000))) is Verdict.BREACH


def test_the_same_people_on_both_sides_are_no_drift() -> None:
    people = np.random.default_rng(5).normal(size=(800, 4))
    units = hashes(800)
    found = two_sample(list(np.vstack([people, people]).T), np.arange(1_600) >= 800, np.concatenate([units, units]))
    assert verdict(found) is not Verdict.BREACH
    assert found.auc == pytest.approx(0.5, abs=0.02)


def test_the_same_rows_in_the_same_order_give_the_same_bits() -> None:
    reference, current = correlated(500, 0, 6), correlated(500, 0.2, 7)
    assert sides(reference, current) == sides(reference, current)


def test_one_side_alone_and_too_few_units_are_inconclusive() -> None:
    few = sides(correlated(99, 0, 8), correlated(500, 0, 9))
    nobody = two_sample([np.zeros(50)], np.ones(50, dtype=bool), hashes(50))
    found = multivariate_drift({OVERALL: few, Slice("device", "tv"): nobody}, RULE)
    assert [each.verdict for each in found] == [Verdict.INCONCLUSIVE] * 2
    assert found[0].reason == "99 units in the reference, at least 100 needed"
    assert isnan(nobody.auc)


def test_columns_that_do_not_vary_tell_nothing_apart() -> None:
    found = sides(np.zeros((300, 2)), np.zeros((300, 2)))
    assert (found.auc, found.std_error) == (0.5, 0.0)
    assert verdict(found) is Verdict.PASS


def test_sides_that_are_told_apart_without_fail_breach() -> None:
    found = sides(np.zeros((200, 1)), np.ones((200, 1)))
    assert (found.auc, found.std_error) == (1.0, 0.5 / 200)
    assert verdict(found) is Verdict.BREACH


@pytest.mark.parametrize(("field", "value"), [("q", 1.0), ("floor", 0.5), ("fewest_units", 10)])
def test_a_rule_refuses_nonsense(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        MultivariateRule(**{field: value})


@pytest.mark.slow
def test_clean_windows_are_seldom_told_apart() -> None:
    """20 windows of 200 rows against 200 in 2 columns: p < 0.05 at most at the 99.9 % quantile."""
    rng = np.random.default_rng(10)
    found = [sides(rng.normal(size=(200, 2)), rng.normal(size=(200, 2)), at) for at in range(20)]
    rejected = sum(multivariate_drift({OVERALL: each}, RULE)[0].pvalue < 0.05 for each in found)
    assert rejected <= 5
