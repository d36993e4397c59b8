"""What a careful reader doubts: found where it is planted, silent where it is not."""

from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from mltrust.experiment.check import Check
from mltrust.experiment.interaction import interactions
from mltrust.experiment.readout import Readout, readout
from mltrust.experiment.search import worst_slices
from mltrust.experiment.spec import Experiment, Search
from mltrust.metrics import Cap, Metric
from mltrust.slices import Slice, Slicing
from mltrust.stats.means import Margin
from mltrust.verdicts import Verdict
from tests.unit.drawn import START, Units, arms, experiment, states

MONEY = Metric("money", "mean", "revenue", role="goal")
DEVICE = Slicing({"device": "features.device"})


def read(spec: Experiment, units: Units) -> Readout:
    return readout(states(spec, units), spec, START.replace(day=26))


def checks(rows: Sequence[Check], name: str) -> list[Check]:
    return [row for row in rows if row.check == name]


def normal(seed: int, n: int = 2000, effect: float = 0.0) -> dict[str, np.ndarray]:
    variant = arms(n)
    return {
        "variant": variant,
        "revenue": np.random.default_rng(seed).normal(10, 2, 2 * n) + effect * (variant == "t"),
    }


def test_an_effect_too_good_to_be_true_leads_a_ship_with_check_the_data() -> None:
    found = read(experiment(MONEY), normal(1, effect=4.0))
    assert found.recommendation == "ship"
    assert found.reasons[0].startswith("twyman (money): check the data: +40")
    [row] = checks(found.checks, "twyman")
    assert (row.verdict, row.decides) == (Verdict.INCONCLUSIVE, False)


def test_a_modest_effect_is_not_doubted() -> None:
    found = read(experiment(MONEY), normal(1, effect=0.3))
    assert checks(found.checks, "twyman")[0].verdict is Verdict.PASS
    assert not [reason for reason in found.reasons if "check the data" in reason]


def test_skewed_sums_in_unequal_arms_are_named_with_their_third_moment() -> None:
    rng = np.random.default_rng(2)
    variant = np.where(np.arange(4000) % 10 == 0, "t", "c")
    money = np.exp(rng.normal(0, 1.5, 4000)) * (rng.random(4000) < 0.2)
    uneven = {START: {"c": 9.0, "t": 1.0}}
    found = read(experiment(MONEY, phases=uneven), {"variant": variant, "revenue": money})
    [row] = checks(found.checks, "skew")
    within = np.concatenate([money[variant == arm] - money[variant == arm].mean() for arm in "ct"])
    g = abs(stats.skew(within)) * abs(400**-2 - 3600**-2) / (1 / 400 + 1 / 3600) ** 1.5
    assert row.value == pytest.approx(g, rel=0.01)
    assert (row.verdict, row.decides) == (Verdict.INCONCLUSIVE, False)
    assert "believe a capped metric instead" in row.reason
    assert checks(read(experiment(MONEY), normal(3)).checks, "skew")[0].verdict is Verdict.PASS


UNEVEN = {START: {"c": 9.0, "t": 1.0}}


def test_rare_shares_in_unequal_arms_are_skewed_as_bernoulli_values_are() -> None:
    bought = Metric("bought", "proportion", "revenue", role="goal")
    variant = np.where(np.arange(4000) % 10 == 0, "t", "c")
    units = {"variant": variant, "revenue": (np.random.default_rng(3).random(4000) < 0.05).astype(float)}
    [row] = checks(read(experiment(bought, phases=UNEVEN), units).checks, "skew")
    g = abs(stats.skew(units["revenue"])) * abs(400**-2 - 3600**-2) / (1 / 400 + 1 / 3600) ** 1.5
    assert row.value == pytest.approx(g, rel=1e-9)
    assert (row.verdict, row.decides) == (Verdict.INCONCLUSIVE, False)
    assert "capped" not in row.reason
    even = {"variant": arms(2000), "revenue": units["revenue"]}
    assert checks(read(experiment(bought), even).checks, "skew")[0].verdict is Verdict.PASS


def test_the_skewness_of_a_ratio_is_that_of_its_linearisation() -> None:
    per_visit = Metric("per_visit", "ratio", "revenue", denominator="visits", role="goal")
    rng = np.random.default_rng(4)
    variant = np.where(np.arange(4000) % 10 == 0, "t", "c")
    visits = 1.0 + rng.poisson(2, 4000)
    units = {"variant": variant, "visits": visits, "revenue": visits * rng.lognormal(0, 1, 4000)}
    [row] = checks(read(experiment(per_visit, phases=UNEVEN), units).checks, "skew")
    parts = [
        (money - money.sum() / of.sum() * of)
        for money, of in ([units[name][variant == arm] for name in ("revenue", "visits")] for arm in "ct")
    ]
    g = abs(stats.skew(np.concatenate(parts))) * abs(400**-2 - 3600**-2) / (1 / 400 + 1 / 3600) ** 1.5
    assert row.value == pytest.approx(g, rel=1e-9)
    assert row.verdict is Verdict.INCONCLUSIVE


def test_a_guardrail_which_is_a_test_of_one_side_is_skewed_sooner() -> None:
    variant = np.where(np.arange(40_000) % 10 == 0, "t", "c")
    units = {"variant": variant, "revenue": np.random.default_rng(5).gamma(1, 1, 40_000)}
    for role, verdict in (("goal", Verdict.PASS), ("guardrail", Verdict.INCONCLUSIVE)):
        metric = Metric("money", "mean", "revenue", role=role, margin=Margin(relative=0.1))  # type: ignore[arg-type]
        found = read(experiment(metric, phases=UNEVEN, decision_set=("money",)), units)
        [row] = checks(found.checks, "skew")
        assert 0.02 < row.value < 0.05
        assert row.verdict is verdict
        assert any("skew (money)" in reason for reason in found.reasons) == (role == "guardrail")


def test_a_cap_that_cuts_off_more_of_an_arm_is_named() -> None:
    metric = Metric("money", "mean", "revenue", role="goal", cap=Cap(at=12.0))
    units = normal(4, effect=0.5)
    units["capped"] = units["revenue"] > 12
    [row] = checks(read(experiment(metric), units | {"revenue": np.minimum(units["revenue"], 12)}).checks, "capping")
    n = [units["capped"][units["variant"] == arm].sum() for arm in "ct"]
    expected = stats.chi2_contingency([n, [2000 - n[0], 2000 - n[1]]], correction=False)
    assert row.pvalue == pytest.approx(expected.pvalue)
    assert (row.verdict, row.decides) == (Verdict.INCONCLUSIVE, False)


#: What a unit does on the days since its exposure: most on the first, without which it would not be exposed.
ACTIVE = np.array([3.0, 1, 1, 1, 1, 1, 1])


def by_days(lift: np.ndarray, seed: int = 5) -> dict[str, np.ndarray]:
    """Units whose treatment adds that share to what they do on each day."""
    variant = arms(4000)
    daily = np.random.default_rng(seed).poisson(ACTIVE * (1 + np.outer(variant == "t", lift)))
    return {"variant": variant, "revenue": daily.sum(axis=1), "trend money": daily @ SLOPE}


SLOPE = (np.arange(7) - 3.0) / 28
WEARS_OFF = np.linspace(0.6, 0.0, 7)


@pytest.mark.parametrize(
    ("lift", "verdict"), [(np.zeros(7), Verdict.PASS), (WEARS_OFF, Verdict.INCONCLUSIVE)], ids=["none", "wears off"]
)
def test_an_effect_that_wears_off_is_named(lift: np.ndarray, verdict: Verdict) -> None:
    metric = Metric("money", "mean", "revenue", role="goal", window_days=7)
    found = read(experiment(metric), by_days(lift))
    [row] = checks(found.checks, "trend")
    assert (row.verdict, row.decides) == (verdict, False)
    treated = ACTIVE * (1 + lift)
    expected = 7 * (treated @ SLOPE / treated.sum() - ACTIVE @ SLOPE / ACTIVE.sum())
    assert row.value == pytest.approx(expected, abs=4 * abs(row.value / row.statistic))
    assert any("what was measured is not what stays" in reason for reason in found.reasons) == lift.any()


def test_a_constant_effect_on_units_that_are_most_active_when_exposed_is_no_trend() -> None:
    metric = Metric("money", "mean", "revenue", role="goal", window_days=7)
    units = by_days(np.full(7, 0.3))
    [row] = checks(read(experiment(metric), units).checks, "trend")
    assert row.verdict is Verdict.PASS
    slopes = [units["trend money"][units["variant"] == arm] for arm in "ct"]
    assert stats.ttest_ind(*slopes).pvalue < 1e-9  # what the difference of slopes would have said


def test_a_trend_of_what_is_hardly_above_zero_is_not_tested() -> None:
    metric = Metric("money", "mean", "revenue", role="goal", window_days=7)
    units = normal(5)
    [row] = checks(read(experiment(metric), units | {"revenue": units["revenue"] - 10}).checks, "trend")
    assert (row.verdict, row.reason) == (
        Verdict.INCONCLUSIVE,
        "not tested, hardly above 0, or nothing varies: money by day",
    )


def test_untriggered_units_that_differ_and_unequal_triggering_make_an_experiment_invalid() -> None:
    rng = np.random.default_rng(7)
    spec, units = experiment(MONEY, trigger="x"), normal(8, n=4000)
    treated = units["variant"] == "t"
    alike = np.where(rng.random(8000) < 0.3, "yes", "no")
    clean = read(spec, units | {"triggered": alike})
    assert {row.verdict for row in checks(clean.checks, "trigger") + checks(clean.checks, "trigger complement")} == {
        Verdict.PASS
    }
    moved = units["revenue"] + 0.5 * (treated & (alike == "no"))
    [row] = checks(read(spec, units | {"triggered": alike, "revenue": moved}).checks, "trigger complement")
    assert (row.verdict, row.decides) == (Verdict.BREACH, True)
    unequal = np.where(rng.random(8000) < np.where(treated, 0.4, 0.3), "yes", "no")
    [row] = checks(read(spec, units | {"triggered": unequal}).checks, "trigger")
    assert (row.verdict, row.decides) == (Verdict.BREACH, True)


def test_effects_that_differ_over_slices_warn_and_opposite_ones_are_said_to_be() -> None:
    rng = np.random.default_rng(9)
    units = normal(10, n=4000)
    units["device"] = rng.choice(["ios", "tv"], 8000)
    units["revenue"] = units["revenue"] + np.where(units["device"] == "tv", -0.8, 0.8) * (units["variant"] == "t")
    rows = interactions(states(spec := experiment(MONEY, slices=DEVICE), units), spec)
    by_method = {row.method: row for row in rows}
    assert {row.verdict for row in rows} == {Verdict.INCONCLUSIVE}
    assert "not the same by device" in by_method["Cochran's Q"].reason
    assert "some gain and others lose by device" in by_method["Gail-Simon"].reason
    assert not any(row.decides for row in rows)


def test_an_interaction_with_another_experiment_is_found_and_units_outside_it_are_left_out() -> None:
    rng = np.random.default_rng(11)
    units = normal(12, n=4000)
    units["banner"] = rng.choice(["control", "treatment", "(none)"], 8000)
    both = (units["banner"] == "treatment") & (units["variant"] == "t")
    spec = experiment(MONEY)
    clean = interactions(states(spec, units, ("banner",)), spec)
    assert {row.verdict for row in clean} == {Verdict.PASS}
    units["revenue"] = units["revenue"] - 1.0 * both
    found = interactions(states(spec, units, ("banner",)), spec)
    row = next(row for row in found if row.method == "Cochran's Q")
    assert (row.check, row.slice_key, row.verdict) == ("interaction", "experiment banner", Verdict.INCONCLUSIVE)
    assert row.n_units == (units["banner"] != "(none)").sum()


def crossed(seed: int, loss: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    n = 12_000
    units = normal(seed, n=n // 2)
    units["device"] = rng.choice(["ios", "tv", "pc"], n)
    units["region"] = rng.choice(["eu", "us"], n)
    units["half"] = rng.choice(["0", "1"], n)
    worst = (units["device"] == "tv") & (units["region"] == "us")
    units["revenue"] = units["revenue"] - loss * (worst & (units["variant"] == "t"))
    return units


SEARCHED = Slicing({"device": "features.device", "region": "features.region"}, ((("device",)),))


def test_the_worst_crossing_is_found_on_one_half_and_confirmed_on_the_other() -> None:
    spec = experiment(MONEY, slices=SEARCHED, search=Search(("device", "region"), depth=2))
    rows = worst_slices(states(spec, crossed(13, loss=1.5)), spec)
    row = rows[0]
    assert Slice(row.slice_key, row.slice_value) == ("device x region", "tv x us")
    assert (row.verdict, row.decides) == (Verdict.BREACH, False)
    assert row.value == pytest.approx(-1.5, abs=0.5)
    assert "loses, found and confirmed" in row.reason


def test_the_worst_crossing_of_a_share_is_confirmed_by_its_normal_law() -> None:
    bought = Metric("bought", "proportion", "bought", role="goal")
    spec = experiment(bought, slices=SEARCHED, search=Search(("device", "region"), depth=2))
    units, rng = crossed(1, loss=0.0), np.random.default_rng(2)
    worst = (units["variant"] == "t") & (units["device"] == "tv") & (units["region"] == "eu")
    units["bought"] = (rng.random(len(worst)) < np.where(worst, 0.1, 0.3)).astype(float)
    rows = worst_slices(states(spec, units), spec)
    assert all(row.pvalue == pytest.approx(stats.norm.cdf(row.statistic), rel=1e-12) for row in rows)
    assert (rows[0].slice_value, rows[0].verdict) == ("tv x eu", Verdict.BREACH)


@pytest.mark.slow
def test_a_search_without_a_loss_confirms_at_its_level() -> None:
    spec = experiment(MONEY, slices=SEARCHED, search=Search(("device", "region"), depth=2))
    n = 150
    alarms = sum(
        any(row.verdict is Verdict.BREACH for row in worst_slices(states(spec, crossed(seed, loss=0.0)), spec))
        for seed in range(n)
    )
    assert alarms <= stats.binom.ppf(0.999, n, 0.05)


def test_small_slices_are_not_searched() -> None:
    search = Search(("device", "region"), depth=2, min_units=100_000)
    spec = experiment(MONEY, slices=SEARCHED, search=search)
    assert worst_slices(states(spec, crossed(14, loss=1.5)), spec) == []
