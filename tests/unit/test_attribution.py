"""Attribution drift on states of units: what it finds, what it ignores, and the published numbers."""

from math import isnan

import numpy as np
import pytest

from mltrust.drift.attribution import (
    AttributionRule,
    attribution_drift,
    jsd_bits,
    ndcg,
    ranking,
    shares,
    spearman,
)
from mltrust.drift.shifts import detectable
from mltrust.slices import Slice
from mltrust.states.moments import FloatArray
from mltrust.states.replicates import Replicates
from mltrust.verdicts import Verdict
from tests.unit.drift_states import hashes, jackknifed

# The oracle: two leading features change places.
BEFORE = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
AFTER = np.array([0.25, 0.4, 0.15, 0.1, 0.06, 0.04])
FEATURES = tuple("abcdef")
OVERALL = Slice("", "")
RULE = AttributionRule()


def drawn(means: FloatArray, n: int, seed: int, names: tuple[str, ...] = FEATURES) -> Replicates:
    """Units whose attributions are exponential about the means, each unit's with a level of its own."""
    rng = np.random.default_rng(seed)
    level = rng.gamma(4, 1 / 4, (n, 1))
    return jackknifed(names, level * rng.exponential(1, (n, len(means))) * means, hashes(n, seed))


def test_effect_sizes_are_those_of_the_oracle() -> None:
    assert jsd_bits(BEFORE, AFTER) == pytest.approx(0.0251962069, abs=5e-11)
    assert ndcg(relevance=BEFORE, order=AFTER) == pytest.approx(0.9223837424, abs=5e-11)
    assert spearman(BEFORE, AFTER) == pytest.approx(0.942857, abs=5e-7)


def test_effect_sizes_of_equal_shares_are_at_their_ends() -> None:
    assert jsd_bits(BEFORE, BEFORE) == 0
    assert ndcg(relevance=BEFORE, order=BEFORE) == 1
    assert spearman(BEFORE, BEFORE[::-1]) == pytest.approx(-1)
    assert isnan(spearman(np.ones(3), np.arange(3.0)))


def test_swapped_leaders_are_found_where_a_rule_on_ndcg_stays_silent() -> None:
    before, after = drawn(BEFORE, 3_000, 1), drawn(AFTER, 3_000, 2)
    found = attribution_drift({OVERALL: (before, after)}, RULE)
    assert {each.column for each in found if each.verdict is Verdict.BREACH} == {"a", "b"}
    seen = ranking(before, after)
    assert seen.ndcg_low > 0.9
    assert seen.jsd_low < 0.0252 < seen.jsd_high
    assert (seen.top_reference[:2], seen.top_current[:2]) == (("a", "b"), ("b", "a"))


def test_the_same_units_under_two_versions_are_compared_pair_by_pair() -> None:
    """A level per unit that both versions share leaves the difference: the standard error of pairs is that of d."""
    n, units, rng = 400, hashes(400, 3), np.random.default_rng(3)
    level = rng.gamma(0.5, 2, n)
    one, other = level * 1.0, level * 1.0 + rng.normal(0.02, 0.05, n)
    [found] = attribution_drift(
        {OVERALL: (jackknifed(("a",), one[:, None], units), jackknifed(("a",), other[:, None], units))}, RULE
    )
    d = other - one
    # The jackknife of 64 groups knows a standard error to about 1 / sqrt(2·63) = 9 %; unpaired it is 20 times that.
    assert found.std_error == pytest.approx(d.std(ddof=1) / np.sqrt(n), rel=0.3)
    assert found.value == pytest.approx(d.mean())
    assert found.qvalue < 1e-5


def test_versions_that_use_a_feature_in_the_same_way_or_not_at_all_pass() -> None:
    units, values = hashes(500, 4), np.random.default_rng(4).exponential(1, (500, 1)) * [1.0, 0.0]
    state = jackknifed(("used", "unused"), values, units)
    found = attribution_drift({OVERALL: (state, state)}, RULE)
    assert [(each.verdict, each.pvalue) for each in found] == [(Verdict.PASS, 1.0)] * 2
    assert found[0].reason.endswith("the same on both sides")


def test_a_difference_without_any_variation_is_not_tested() -> None:
    units = hashes(500, 4)
    sides = jackknifed(("a",), np.full((500, 1), 1.0), units), jackknifed(("a",), np.full((500, 1), 2.0), units)
    [found] = attribution_drift({OVERALL: sides}, RULE)
    assert (found.verdict, found.reason) == (Verdict.INCONCLUSIVE, "nothing varies between units")


def test_a_ratio_that_is_the_same_for_every_unit_is_tested_by_its_difference() -> None:
    """Of a linear model whose weight doubles: the logarithms differ by a constant, which does not vary."""
    values = np.random.default_rng(8).exponential(1, (400, 1))
    sides = jackknifed(("a",), values, hashes(400, 8)), jackknifed(("a",), 2 * values, hashes(400, 8))
    [found] = attribution_drift({OVERALL: sides}, RULE)
    assert found.verdict is Verdict.BREACH
    assert found.statistic == pytest.approx(found.value / found.std_error)


def test_a_change_below_both_floors_is_no_breach_however_certain() -> None:
    rng, units = np.random.default_rng(5), hashes(5_000, 5)
    base = rng.exponential(1, (5_000, 6)) * BEFORE
    # a: +5 % of itself. f: +10.5 % of itself, 0.42 % of all.
    moved = base * np.array([1.05, 1, 1, 1, 1, 1.105])
    found = {
        each.column: each
        for each in attribution_drift(
            {OVERALL: (jackknifed(FEATURES, base, units), jackknifed(FEATURES, moved, units))}, RULE
        )
    }
    for name in ("a", "f"):
        assert found[name].qvalue < 1e-6
        assert found[name].verdict is Verdict.PASS
    assert found["a"].threshold == pytest.approx(0.1 * found["a"].reference)


def test_too_few_units_and_a_missing_side_are_inconclusive() -> None:
    large, small = drawn(BEFORE, 2_000, 6), drawn(AFTER, 99, 7)
    nobody = Replicates.empty(FEATURES, 64)
    found = attribution_drift({OVERALL: (large, small), Slice("device", "tv"): (large, nobody)}, RULE)
    assert {each.verdict for each in found} == {Verdict.INCONCLUSIVE}
    assert {each.reason for each in found} == {
        "99 units in the current window, at least 100 needed",
        "0 units in the current window, at least 100 needed",
    }
    assert np.isnan(shares(nobody)).all()
    assert ranking(large, nobody).top_current == ()
    assert isnan(ranking(large, nobody).jsd)


def test_all_slices_are_one_family() -> None:
    states = {Slice("s", str(at)): (drawn(BEFORE, 300, 10 + at), drawn(BEFORE, 300, 20 + at)) for at in range(3)}
    found = attribution_drift(states, RULE)
    assert {each.n_family for each in found} == {18}
    assert {each.verdict for each in found} == {Verdict.PASS}
    assert found[0].mde == detectable(found[0].std_error, 63, 0.001 / 18)
    assert "would have been found" in found[0].reason


def test_attributions_of_other_features_are_not_compared() -> None:
    with pytest.raises(ValueError, match="attributions of features"):
        attribution_drift({OVERALL: (drawn(BEFORE, 200, 1), drawn(BEFORE[:2], 200, 1, ("a", "b")))}, RULE)


@pytest.mark.parametrize(
    ("field", "value"), [("q", 0.0), ("q", 1.0), ("rel_floor", -0.1), ("share_floor", -1.0), ("fewest_units", 20)]
)
def test_a_rule_refuses_nonsense(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        AttributionRule(**{field: value})


@pytest.mark.slow
def test_clean_windows_breach_as_often_as_q_says() -> None:
    """400 windows of 200 units against 800, q = 0.05 without floors: within 99.9 % of the binomial law."""
    rule = AttributionRule(q=0.05, rel_floor=0, share_floor=0)
    breached = [
        any(each.verdict is Verdict.BREACH for each in attribution_drift({OVERALL: sides}, rule))
        for at in range(400)
        for sides in [(drawn(BEFORE, 800, 10_000 + at), drawn(BEFORE, 200, 20_000 + at))]
    ]
    assert 7 <= sum(breached) <= 36
