"""Methods that stand beside the leading one: within slices, of triggered units, whatever is missing."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from mltrust.experiment.effects import Effect
from mltrust.experiment.methods import value_limits
from mltrust.experiment.readout import readout
from mltrust.experiment.spec import Experiment
from mltrust.metrics import Cap, Metric
from mltrust.slices import Slicing
from mltrust.stats.means import Margin
from mltrust.verdicts import Verdict
from tests.unit.drawn import START, Units, arms, experiment, states

MONEY = Metric("money", "mean", "revenue", role="goal")
BOUGHT = Metric("bought", "proportion", "revenue", role="goal", missing="exclude")


def effects(spec: Experiment, units: Units) -> dict[str, Effect]:
    """The effects of all units by method."""
    found = readout(states(spec, units), spec, START.replace(day=26)).effects
    return {row.method: row for row in found if row.overall}


def test_within_slices_that_differ_the_same_effect_is_found_with_less_noise() -> None:
    rng = np.random.default_rng(1)
    device = rng.choice(["ios", "tv"], 4000)
    variant = arms(2000)
    money = np.where(device == "tv", 30.0, 0.0) + rng.normal(0, 5, 4000) + (variant == "t")
    spec = experiment(MONEY, slices=Slicing({"device": "features.device"}))
    found = effects(spec, {"variant": variant, "device": device, "revenue": money})
    plain, within = found["welch"], found["post-stratified by device"]
    assert (plain.role, within.role, within.decides) == ("goal", "diagnostic", False)
    by_hand = sum(
        (device == each).mean()
        * (money[(device == each) & (variant == "t")].mean() - money[(device == each) & (variant == "c")].mean())
        for each in ("ios", "tv")
    )
    assert within.effect == pytest.approx(by_hand, rel=1e-12)
    assert within.variance_reduction == pytest.approx(1 - (within.std_error / plain.std_error) ** 2)
    assert within.variance_reduction > 0.8


def test_the_effect_on_triggered_units_is_diluted_over_all() -> None:
    rng = np.random.default_rng(2)
    variant, triggered = arms(5000), rng.choice(["yes", "no"], 10_000, p=[0.2, 0.8])
    money = rng.normal(10, 3, 10_000) + 1.0 * ((variant == "t") & (triggered == "yes"))
    spec = experiment(MONEY, trigger="features.price > 20")
    found = effects(spec, {"variant": variant, "triggered": triggered, "revenue": money})
    alone, spread = found["welch, triggered"], found["triggered, diluted"]
    mine = triggered == "yes"
    expected = stats.ttest_ind(money[mine & (variant == "t")], money[mine & (variant == "c")], equal_var=False)
    assert alone.pvalue == pytest.approx(expected.pvalue, rel=1e-9)
    assert spread.effect == pytest.approx(alone.effect * mine.mean(), rel=1e-12)
    assert spread.std_error < 0.6 * found["welch"].std_error
    assert abs(spread.effect - 0.2) < 4 * spread.std_error
    assert (spread.n_control, spread.rel_effect) == (5000, pytest.approx(spread.effect / spread.mean_control))


@pytest.mark.slow
def test_the_diluted_interval_holds_the_truth_as_often_as_it_says() -> None:
    spec, holds, n = experiment(MONEY, trigger="x"), 0, 400
    rng = np.random.default_rng(3)
    for _ in range(n):
        variant, triggered = arms(300), rng.choice(["yes", "no"], 600, p=[0.3, 0.7])
        money = rng.normal(5, 2, 600) + 2.0 * ((variant == "t") & (triggered == "yes"))
        row = effects(spec, {"variant": variant, "triggered": triggered, "revenue": money})["triggered, diluted"]
        holds += row.ci_low <= 0.6 <= row.ci_high
    low, high = stats.binom.interval(0.999, n, 0.95)
    assert low <= holds <= high


def test_bounds_hold_whatever_the_missing_units_would_have_done() -> None:
    variant = arms(1000)
    bought = (np.arange(2000) % 10 < np.where(variant == "t", 6, 4)).astype(float)
    bought[::50] = np.nan  # 40 control units
    found = effects(experiment(BOUGHT), {"variant": variant, "revenue": bought})
    row = found["bounds of what is missing"]
    control, treated = bought[variant == "c"], bought[variant == "t"]
    full, none = ((np.nansum(control) + filled) / 1000 for filled in (40, 0))
    middle = np.mean([treated.mean() - full, treated.mean() - none])
    assert row.effect == pytest.approx(middle, rel=1e-12)
    assert row.ci_low < treated.mean() - full < treated.mean() - none < row.ci_high
    assert row.verdict is Verdict.PASS
    assert row.n_missing == 0


def test_bounds_on_both_sides_of_0_show_nothing() -> None:
    variant = arms(1000)
    bought = (np.arange(2000) % 10 < np.where(variant == "t", 6, 4)).astype(float)
    bought[::4] = np.nan  # half of the control units
    row = effects(experiment(BOUGHT), {"variant": variant, "revenue": bought})["bounds of what is missing"]
    assert (row.pvalue, row.verdict) == (1.0, Verdict.INCONCLUSIVE)
    assert row.ci_low < 0 < row.ci_high


def test_only_values_with_limits_have_bounds() -> None:
    assert value_limits(MONEY) is None
    assert value_limits(BOUGHT) == (0, 1)
    assert value_limits(Metric("m", "mean", "revenue", cap=Cap(at=9.0))) == (0, 9)
    assert value_limits(Metric("m", "mean", "revenue", cap=Cap(quantile=0.9))) is None


def test_a_prior_draws_the_chance_to_beat_towards_a_half() -> None:
    rng = np.random.default_rng(5)
    variant = arms(500)
    units = {"variant": variant, "revenue": rng.normal(10, 3, 1000) + 0.4 * (variant == "t")}
    flat = effects(experiment(MONEY), units)["welch"]
    sceptic = Metric("money", "mean", "revenue", role="goal", prior_sd=Margin(relative=0.01))
    drawn = effects(experiment(sceptic), units)["welch"]
    assert flat.chance_to_beat == pytest.approx(stats.norm.cdf(flat.effect / flat.std_error), rel=1e-12)
    assert 0.5 < drawn.chance_to_beat < flat.chance_to_beat
    assert flat.expected_loss > 0


@pytest.mark.parametrize("kind", ["mean", "proportion"])
def test_a_prior_that_is_a_share_of_nothing_says_nothing(kind: str) -> None:
    """Slices of which no control unit did anything, or which have no control unit, have no chance to beat."""
    device = np.repeat(["some", "none", "no control"], 400)
    variant = np.where(device == "no control", "t", arms(600))
    money = (device == "some") * (np.arange(1200) // 2 % 4 == 0) + (device == "none") * (variant == "t")
    metric = Metric("money", kind, "revenue", role="goal", prior_sd=Margin(relative=0.05))
    spec = experiment(metric, slices=Slicing({"device": "features.device"}))
    found = readout(states(spec, {"variant": variant, "device": device, "revenue": money * 1.0}), spec, START)
    chances = {row.slice_value: row.chance_to_beat for row in found.effects if row.slice_key}
    assert chances["some"] == pytest.approx(0.5, abs=0.1)
    assert np.isnan([chances["none"], chances["no control"]]).all()


def test_slices_too_small_for_a_verdict_are_no_members_of_the_family() -> None:
    rng = np.random.default_rng(8)
    device = np.concatenate([np.repeat(["a", "b"], 2000), [f"small {at}" for at in range(40) for _ in range(4)]])
    variant = arms(len(device) // 2)
    money = rng.normal(10, 3, len(device)) + 0.45 * (variant == "t")
    spec = experiment(MONEY, slices=Slicing({"device": "features.device"}))
    found = readout(states(spec, {"variant": variant, "device": device, "revenue": money}), spec, START)
    slices = {row.slice_value: row for row in found.effects if row.slice_key}
    assert len(slices) == 42
    assert {row.n_family for row in slices.values()} == {2}
    pvalues = [slices[name].pvalue for name in "ab"]
    expected = stats.false_discovery_control(pvalues)
    assert [slices[name].qvalue for name in "ab"] == pytest.approx(expected)
    assert np.isnan(slices["small 1"].qvalue)
    assert slices["small 1"].reason.startswith("2 units in an arm, at least 50 needed")
    assert np.isnan(slices["small 1"].against_rest)


def test_small_slices_that_were_taken_together_are_counted_beside_the_effect() -> None:
    rng = np.random.default_rng(9)
    device = np.concatenate([np.repeat(["a", "b"], 2000), [f"small {at}" for at in range(4) for _ in range(4)]])
    spec = experiment(MONEY, slices=Slicing({"device": "features.device"}))
    units = {"variant": arms(len(device) // 2), "device": device, "revenue": rng.normal(10, 3, len(device))}
    row = effects(spec, units)["post-stratified by device"]
    assert row.reason.endswith("; 4 slices taken together for want of units")


def test_arms_that_are_the_same_within_a_margin_are_not_worth_shipping() -> None:
    rng = np.random.default_rng(6)
    variant = arms(5000)
    units = {"variant": variant, "revenue": rng.normal(10, 3, 10_000)}
    metric = Metric("money", "mean", "revenue", role="goal", equivalence=Margin(relative=0.05))
    spec = experiment(metric)
    found = readout(states(spec, units), spec, START.replace(day=26))
    assert found.effects[0].equivalence_pvalue < 0.001
    assert found.recommendation == "do not ship"
    assert "the same in both arms within its margin" in found.reasons[0]


def test_a_slice_is_told_against_the_rest_of_its_set() -> None:
    rng = np.random.default_rng(7)
    device = rng.choice(["a", "b", "d"], 9000)
    variant = arms(4500)
    money = rng.normal(10, 2, 9000) + np.where(device == "b", -1.0, 0.5) * (variant == "t")
    spec = experiment(MONEY, slices=Slicing({"device": "features.device"}))
    rows = readout(states(spec, {"variant": variant, "device": device, "revenue": money}), spec, START).effects
    [worst] = [row for row in rows if row.slice_value == "b"]
    others = device != "b"
    rest = money[others & (variant == "t")].mean() - money[others & (variant == "c")].mean()
    assert worst.against_rest == pytest.approx(worst.effect - rest, rel=1e-9)
    assert worst.against_rest_qvalue < 1e-6


def test_of_two_slices_only_the_first_is_tested_against_the_other() -> None:
    rng = np.random.default_rng(8)
    device, variant = rng.choice(["a", "b"], 4000), arms(2000)
    spec = experiment(MONEY, slices=Slicing({"device": "features.device"}))
    units = {"variant": variant, "device": device, "revenue": rng.normal(10, 2, 4000)}
    rows = [row for row in readout(states(spec, units), spec, START).effects if row.slice_key == "device"]
    assert [np.isnan(row.against_rest_pvalue) for row in rows] == [False, True]


def test_a_ship_names_a_cap_that_hides_a_part_and_a_mix_shift() -> None:
    rng = np.random.default_rng(3)
    variant = arms(4000)
    device = np.where(rng.random(8000) < np.where(variant == "t", 0.56, 0.5), "ios", "tv")
    money = rng.normal(5, 1, 8000) + 0.2 * (variant == "t") + 3.0 * (device == "ios")
    spec = experiment(replace(MONEY, cap=Cap(at=9.5)), slices=Slicing({"device": "features.device"}), srm_alpha=1e-15)
    units = {"variant": variant, "device": device, "revenue": money, "capped": money > 9.5}
    found = readout(states(spec, units), spec, START.replace(day=26))
    assert found.recommendation == "ship"
    assert any(reason.startswith("but simpson (money) in device:(all): mix shift") for reason in found.reasons)
    # The unequal caps are none at that level: without slices nothing else fails at the usual one.
    plain = replace(spec, slices=Slicing(), srm_alpha=0.001)
    found = readout(states(plain, units), plain, START.replace(day=26))
    assert found.recommendation == "ship"
    assert any(reason.startswith("but capping (money): the cap hides a part") for reason in found.reasons)
