"""The value of a policy from another's log: identities, coverage, and when nothing is said."""

from math import isnan

import numpy as np
import pytest

from mltrust.states.replicates import poisson
from mltrust.stats import off_policy
from mltrust.stats.off_policy import COLUMNS, Weighed

Draw = np.random.Generator


def weighed(columns: np.ndarray, n_replicates: int = 400) -> Weighed:
    hashes = np.random.default_rng(11).integers(0, 2**63, len(columns), dtype=np.int64)
    return Weighed(
        poisson(COLUMNS, columns, hashes, seed=1, n_replicates=n_replicates), float(columns[:, 0].max(initial=0.0))
    )


def values(state: Weighed, *, with_model: bool = True) -> dict[str, float]:
    return {each.estimator: each.value for each in off_policy.estimates(state, with_model=with_model)}


def test_the_same_policy_earns_what_was_earned() -> None:
    rewards = np.random.default_rng(1).random(1000)
    state = weighed(off_policy.sample(rewards=rewards, weights=np.ones(1000)))
    found = values(state, with_model=False)
    assert found == {
        "ipw": pytest.approx(rewards.mean(), rel=1e-12),
        "snipw": pytest.approx(rewards.mean(), rel=1e-12),
    }
    assert off_policy.overlap(state).ess == pytest.approx(1000, rel=1e-12)
    assert off_policy.overlap(state).warning == ""


def test_doubly_robust_with_a_model_that_says_zero_is_ipw() -> None:
    rng = np.random.default_rng(2)
    rewards, weights = rng.random(500), rng.choice([0.5, 1.5], 500)
    found = values(weighed(off_policy.sample(rewards=rewards, weights=weights)))
    assert found["dr"] == found["ipw"]
    assert found["dm"] == 0


def test_doubly_robust_with_a_perfect_model_is_the_direct_method() -> None:
    rng = np.random.default_rng(3)
    rewards, weights, expected = rng.random(500), rng.choice([0.5, 1.5], 500), rng.random(500)
    columns = off_policy.sample(rewards=rewards, weights=weights, expected=expected, expected_logged=rewards)
    found = values(weighed(columns))
    assert found["dr"] == pytest.approx(found["dm"], rel=1e-12) == pytest.approx(expected.mean(), rel=1e-12)


def test_self_normalising_does_not_feel_a_constant_factor_on_the_weights() -> None:
    rng = np.random.default_rng(4)
    rewards, weights = rng.random(800), rng.choice([0.2, 1.0, 1.8], 800)
    once, thrice = (
        values(weighed(off_policy.sample(rewards=rewards, weights=factor * weights)))["snipw"] for factor in (1, 3)
    )
    assert once == pytest.approx(thrice, rel=1e-12)


def test_states_of_two_halves_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(5)
    columns = off_policy.sample(rewards=rng.random(600), weights=rng.random(600) * 2)
    hashes = rng.integers(0, 2**63, 600, dtype=np.int64)
    parts = [
        Weighed(poisson(COLUMNS, columns[half], hashes[half], seed=1, n_replicates=50), columns[half, 0].max())
        for half in (slice(0, 200), slice(200, 600))
    ]
    whole = Weighed(poisson(COLUMNS, columns, hashes, seed=1, n_replicates=50), columns[:, 0].max())
    added = parts[0] + parts[1]
    assert added.max_weight == whole.max_weight
    np.testing.assert_allclose(added.sums.sums, whole.sums.sums, rtol=1e-12)


def logged(rng: Draw, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and weights of two actions: logged half and half, the new policy takes the better one in 80 %."""
    action = rng.integers(0, 2, n)
    rewards = (rng.random(n) < np.where(action == 1, 0.3, 0.1)).astype(float)
    return rewards, np.where(action == 1, 0.8, 0.2) / 0.5


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["ipw", "snipw"])
def test_intervals_cover_the_truth_as_often_as_they_say(estimator: str) -> None:
    truth, rng, n_runs = 0.8 * 0.3 + 0.2 * 0.1, np.random.default_rng(6), 200
    covered = 0
    for _ in range(n_runs):
        rewards, weights = logged(rng, 1000)
        state = weighed(off_policy.sample(rewards=rewards, weights=weights), n_replicates=200)
        [own] = [each for each in off_policy.estimates(state, with_model=False) if each.estimator == estimator]
        covered += own.ci_low <= truth <= own.ci_high
    # 95 % of 200 is 190 with a standard deviation of 3.1: four of them below.
    assert covered >= 178


def test_a_log_with_one_huge_weight_is_refused_by_name_of_what_is_wrong() -> None:
    rng = np.random.default_rng(7)
    rewards, weights = logged(rng, 5000)
    weights[17] = 400.0
    state = weighed(off_policy.sample(rewards=rewards, weights=weights))
    found = {each.estimator: each for each in off_policy.estimates(state, with_model=True)}
    assert off_policy.overlap(state).max_share == pytest.approx(400 / weights.sum())
    for name in ("ipw", "snipw", "dr"):
        assert isnan(found[name].value)
        assert isnan(found[name].ci_low)
        assert "of the weight, expected 5% or less" in found[name].refusal or "effective" in found[name].refusal
    assert not isnan(found["dm"].value)


def test_too_few_effective_requests_are_refused() -> None:
    rewards, weights = logged(np.random.default_rng(8), 150)
    [first, *_] = off_policy.estimates(weighed(off_policy.sample(rewards=rewards, weights=weights)), with_model=False)
    assert isnan(first.value)
    assert "effective sample size" in first.refusal
    assert "expected 200 or more" in first.refusal


def test_a_policy_that_the_log_never_followed_is_refused_and_not_worth_zero() -> None:
    state = weighed(off_policy.sample(rewards=np.ones(1000), weights=np.zeros(1000)))
    assert all(isnan(each.value) and each.refusal for each in off_policy.estimates(state, with_model=False))


def test_a_mean_weight_far_from_one_is_warned_of() -> None:
    rewards, weights = logged(np.random.default_rng(9), 5000)
    assert off_policy.overlap(weighed(off_policy.sample(rewards=rewards, weights=weights))).warning == ""
    off = off_policy.overlap(weighed(off_policy.sample(rewards=rewards, weights=weights * 0.8)))
    assert "expected 1: propensities are wrong" in off.warning


@pytest.mark.parametrize(
    ("rewards", "weights", "message"),
    [([1.0, np.nan], [1.0, 1.0], "must be finite"), ([1.0, 0.0], [1.0, -0.1], "expected 0 or more, got -0.1")],
)
def test_what_is_no_reward_or_no_weight_is_refused(rewards: list[float], weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        off_policy.sample(rewards=rewards, weights=weights)
