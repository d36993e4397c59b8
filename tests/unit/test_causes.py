"""What a metric's move is made of: sums that must hold, and planted moves of mix and of rate."""

from math import nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mltrust.drift.causes import FEATURE, MIX, RATE, Drifted, Totals, causes, decomposed, totals_of
from mltrust.drift.performance import ScoreLabels
from mltrust.slices import Slice

DEVICES = ("mobile", "desktop", "tablet")


def totals(n: int, shares: dict[str, float], rates: dict[str, float], seed: int) -> Totals:
    """Rows of n units by device, and their conversions."""
    rng = np.random.default_rng(seed)
    rows, sums = {}, {}
    for name, share in shares.items():
        where = Slice("device", name)
        rows[where] = rng.multinomial(round(n * share), np.full(64, 1 / 64)).astype(float)
        sums[where] = rng.binomial(rows[where].astype(int), rates[name]).astype(float)
    return Totals.of(rows, sums)


RATES = {"mobile": 0.06, "desktop": 0.10, "tablet": 0.02}
BEFORE = {"mobile": 0.5, "desktop": 0.4, "tablet": 0.1}
AFTER = {"mobile": 0.4, "desktop": 0.3, "tablet": 0.3}


def test_a_moved_mix_is_named_and_holds_the_whole_move() -> None:
    found = causes("conversion", totals(100_000, BEFORE, RATES, 1), totals(100_000, AFTER, RATES, 2))
    assert found.mix == pytest.approx(-0.012, abs=0.001)
    # Of 100,000 rows at about 7 % a rate is known to 0.0011 on each side.
    assert abs(found.rate) < 0.004
    assert (found.causes[0].kind, found.causes[0].name) == (MIX, "device:tablet")
    assert found.causes[0].ci_high < 0
    assert found.sentence.startswith("conversion fell 1.")
    assert "from tablet's share 10% -> 30%" in found.sentence
    assert found.at_reference_mix == pytest.approx(found.reference, abs=0.004)


def test_a_moved_rate_is_named_where_it_is() -> None:
    found = causes(
        "conversion", totals(100_000, BEFORE, RATES, 3), totals(100_000, BEFORE, RATES | {"desktop": 0.05}, 4)
    )
    assert (found.causes[0].kind, found.causes[0].name) == (RATE, "device:desktop")
    assert found.causes[0].contribution == pytest.approx(-0.02, abs=0.004)
    assert "within desktop (9.9% -> 4.9%)" in found.sentence
    assert found.at_reference_mix == pytest.approx(found.current, abs=0.001)


Counts = st.lists(st.integers(0, 50), min_size=3, max_size=3)


@settings(max_examples=60, deadline=None)
@given(Counts, Counts, st.lists(st.floats(0, 1), min_size=6, max_size=6))
def test_parts_add_up_to_the_move(before: list[int], after: list[int], rates: list[float]) -> None:
    n0, n1 = np.array([before], dtype=float), np.array([after], dtype=float)
    if not n0.sum() or not n1.sum():
        return
    t0, t1 = n0 * rates[:3], n1 * rates[3:]
    mix, rate = decomposed(n0, t0, n1, t1)
    move = t1.sum() / n1.sum() - t0.sum() / n0.sum()
    assert mix.sum() + rate.sum() == pytest.approx(move, abs=1e-12)
    back = decomposed(n1, t1, n0, t0)
    np.testing.assert_allclose([mix, rate], [-back[0], -back[1]], atol=1e-12)


def one_slice(rows: float) -> NDArray[np.float64]:
    return np.full(64, rows / 64)


def test_a_slice_that_comes_is_a_matter_of_mix() -> None:
    known, new = Slice("device", "mobile"), Slice("device", "watch")
    before = Totals.of({known: one_slice(640)}, {known: one_slice(64)})
    after = Totals.of({known: one_slice(320), new: one_slice(320)}, {known: one_slice(32), new: one_slice(0)})
    found = causes("conversion", before, after)
    assert found.rate == pytest.approx(0)
    assert found.mix == pytest.approx(-0.05)
    assert "from watch's share 0% -> 50%" in found.sentence


def test_features_are_ranked_by_drift_times_attribution() -> None:
    sides = totals(10_000, BEFORE, RATES, 5), totals(10_000, AFTER, RATES, 6)
    drifted = [
        Drifted("age", 0.10, 0.05),
        Drifted("price", 0.04, 0.5),
        Drifted("new", 0.5, nan),
        Drifted("flat", 0.0, 0.4),
    ]
    found = causes("conversion", *sides, drifted)
    assert [each.name for each in found.causes if each.kind == FEATURE] == ["price", "age", "new"]
    assert found.sentence.endswith("price drifted by 0.04 bits, 50% of the model's attribution")


def test_a_metric_in_another_unit_is_told_in_it() -> None:
    where = Slice("device", "mobile")
    before = Totals.of({where: one_slice(64)}, {where: one_slice(640)})
    after = Totals.of({where: one_slice(64)}, {where: one_slice(704)})
    assert causes("spend", before, after, unit="EUR").sentence == "spend rose 1 EUR: +1 EUR within mobile (10 -> 11)"


def test_states_of_performance_give_totals_of_labels_and_of_scores() -> None:
    scores, labels = np.array([0.2, 0.6, 0.9]), np.array([0.0, 1.0, nan])
    state = ScoreLabels.of(scores, labels, np.arange(3))
    states = {Slice("", ""): state, Slice("device", "tv"): state}
    of_labels, of_scores = totals_of(states, "device", "label"), totals_of(states, "device", "score")
    assert of_labels.slices == of_scores.slices == (Slice("device", "tv"),)
    assert (of_labels.rows.sum(), of_labels.totals.sum()) == (2, 1)
    assert of_scores.rows.sum() == 3
    # A cell is 1/64 wide in log-odds.
    assert of_scores.totals.sum() == pytest.approx(1.7, abs=0.01)
    assert causes("conversion", totals_of({}, "device", "label"), of_labels).sentence.endswith("no rows on one side")


def test_nothing_and_no_move_say_so() -> None:
    where = Slice("device", "mobile")
    some = Totals.of({where: one_slice(64)}, {where: one_slice(6)})
    none = Totals.of({where: one_slice(0)}, {where: one_slice(0)})
    assert causes("conversion", some, some).sentence == "conversion did not move"
    assert causes("conversion", some, none).sentence == "conversion: no rows on one side"
    with pytest.raises(ValueError, match="rows and totals"):
        Totals((where,), np.zeros((2, 64)), np.zeros((1, 64)))
