"""Checks, effects, verdicts and the recommendation, from states made by hand or drawn with a planted truth."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from math import isnan, nan

import numpy as np
import pytest
from scipy import stats

from mltrust.experiment.cells import (
    ARM_KEYS,
    UNITS,
    ExperimentStates,
    mature_block,
    metric_block,
    overall_of,
    slices_of,
)
from mltrust.experiment.check import Check
from mltrust.experiment.effects import Effect
from mltrust.experiment.paradox import paradoxes
from mltrust.experiment.readout import Readout, readout
from mltrust.experiment.spec import Experiment
from mltrust.metrics import KINDS, Metric
from mltrust.slices import Slicing
from mltrust.states.moments import Moments
from mltrust.stats.means import Margin
from mltrust.verdicts import Verdict

CLICKED = Metric("clicked", "proportion", "clicks", role="goal")
SPENT = Metric("spent", "mean", "revenue")
WAITED = Metric("waited", "mean", "latency", role="guardrail", direction="decrease", margin=Margin(relative=0.05))
PER_VISIT = Metric("per_visit", "ratio", "clicks", denominator="visits")
AS_OF = date(2026, 10, 26)
EVEN = {date(2026, 10, 5): {"control": 1.0, "treatment": 1.0}}


def experiment(**changes: object) -> Experiment:
    spec: dict[str, object] = {
        "experiment_id": "e",
        "log": "log",
        "control": "control",
        "phases": EVEN,
        "metrics": (CLICKED, SPENT, WAITED, PER_VISIT),
        "unit": "unit_id",
        "slices": Slicing({"device": "features.device"}),
        "interference": "none",
    }
    return Experiment(**(spec | changes))  # type: ignore[arg-type]


class Units:
    """Units of one cell: n of them, with the rates of an arm."""

    def __init__(
        self, n: int, *, rate: float = 0.2, latency: float = 100, device: str = "ios", phase: int = 0
    ) -> None:
        self.n, self.rate, self.latency, self.device, self.phase = n, rate, latency, device, phase


def states(
    spec: Experiment, arms: dict[str, Sequence[Units]], *, immature: int = 0, missing: int = 0, seed: int = 1
) -> ExperimentStates:
    """States of drawn units; the first ones of each cell are immature, the next ones lack every value."""
    rng = np.random.default_rng(seed)
    cells = []
    for arm, groups in arms.items():
        for group in groups:
            visits = rng.poisson(2, group.n) + 1
            clicks = rng.binomial(visits, group.rate)
            unit = {
                "visits": visits,
                "clicks": clicks,
                "revenue": clicks * rng.exponential(10, group.n),
                "latency": rng.normal(group.latency, 10, group.n),
            }
            blocks = {UNITS: Moments.of((), np.empty((group.n, 0)))}
            for metric in spec.metrics:
                first = immature if metric.window_days else 0
                columns = [unit[name][first + missing :] for name in metric.columns()]
                sample = np.column_stack(columns)
                if KINDS[metric.kind].unit_value == "any":
                    sample = sample > 0
                blocks[metric_block(metric)] = Moments.of(metric.columns(), sample)
                blocks[mature_block(metric)] = Moments.of((), np.empty((group.n - first, 0)))
            values = dict(zip(ARM_KEYS, (arm, str(group.phase), "no"), strict=True)) | {"device": group.device}
            cells.append((values, blocks))
    sets = {names: slices_of(cells, names) for names in spec.slices.declared()}
    return ExperimentStates(overall_of(cells), sets)


def read(arms: dict[str, Sequence[Units]], **changes: object) -> Readout:
    spec = experiment(**changes)
    return readout(states(spec, arms), spec, AS_OF)


def effect(found: Readout, metric: str, slice_value: str = "") -> Effect:
    [row] = [row for row in found.effects if (row.metric, row.slice_value) == (metric, slice_value)]
    return row


def check(found: Readout, name: str, slice_value: str = "") -> Check:
    [row] = [row for row in found.checks if (row.check, row.slice_value) == (name, slice_value)]
    return row


def test_a_gain_without_harm_ships() -> None:
    found = read({"control": [Units(5000)], "treatment": [Units(5000, rate=0.25)]})
    assert (found.verdict, found.recommendation) == (Verdict.PASS, "ship")
    assert effect(found, "clicked").verdict is Verdict.PASS
    assert effect(found, "waited").verdict is Verdict.PASS


def test_a_loss_of_the_goal_does_not_ship() -> None:
    found = read({"control": [Units(5000)], "treatment": [Units(5000, rate=0.15)]})
    assert (found.verdict, found.recommendation) == (Verdict.BREACH, "do not ship")
    assert found.reasons[0].startswith("twyman (clicked): check the data: -18.0%")
    assert found.reasons[1].startswith("clicked (treatment): worse by 0.")


def test_a_harmed_guardrail_does_not_ship_whatever_the_goal_gains() -> None:
    found = read({"control": [Units(5000)], "treatment": [Units(5000, rate=0.3, latency=110)]})
    assert effect(found, "waited").verdict is Verdict.BREACH
    assert found.recommendation == "do not ship"


def test_a_guardrail_that_loses_less_than_its_margin_passes() -> None:
    found = read({"control": [Units(5000)], "treatment": [Units(5000, rate=0.3, latency=103)]})
    row = effect(found, "waited")
    assert row.pvalue < 1e-6
    assert row.verdict is Verdict.PASS
    assert row.non_inferiority_pvalue < 1e-6


def test_no_effect_keeps_running() -> None:
    found = read({"control": [Units(5000)], "treatment": [Units(5000)]})
    assert (found.verdict, found.recommendation) == (Verdict.INCONCLUSIVE, "keep running")


def test_a_harmed_slice_is_found_and_does_not_decide() -> None:
    found = read(
        {
            "control": [Units(8000), Units(2000, device="tv", rate=0.3)],
            "treatment": [Units(8000, rate=0.25), Units(2000, device="tv", rate=0.2)],
        }
    )
    assert effect(found, "clicked", "tv").verdict is Verdict.BREACH
    assert effect(found, "clicked", "ios").verdict is Verdict.PASS
    assert found.recommendation == "ship"
    said = [reason for reason in found.reasons if reason.startswith("but ")]
    assert said[0].startswith("but clicked (treatment) in device:tv: worse by 0.")
    assert said[1].startswith("but heterogeneity (clicked) by device: the effect is not the same by device: ios +0.0")


def test_a_sample_ratio_mismatch_in_one_slice_only_makes_it_invalid() -> None:
    found = read(
        {
            "control": [Units(10_000), Units(1000, device="tv")],
            "treatment": [Units(10_000, rate=0.25), Units(1200, device="tv", rate=0.25)],
        }
    )
    assert check(found, "srm").verdict is Verdict.PASS
    row = check(found, "srm", "tv")
    assert row.verdict is Verdict.BREACH
    assert row.pvalue == pytest.approx(stats.chisquare([1000, 1200]).pvalue, rel=1e-9)
    assert row.qvalue == pytest.approx(2 * row.pvalue, rel=1e-9)
    assert row.n_family == 2
    assert (found.verdict, found.recommendation) == (Verdict.BREACH, "invalid")
    assert "srm in device:tv" in found.reasons[0]


def test_simpsons_paradox_is_named_and_makes_it_invalid() -> None:
    found = read(
        {
            "control": [Units(1000, rate=0.05), Units(4000, device="tv", rate=0.4)],
            "treatment": [Units(4000, rate=0.1), Units(1000, device="tv", rate=0.5)],
        }
    )
    named = [row for row in found.checks if row.check == "simpson" and row.metric == "clicked"]
    assert [(row.method, row.verdict) for row in named] == [("reversal", Verdict.BREACH)]
    assert "Simpson's paradox" in named[0].reason
    assert found.recommendation == "invalid"


def test_nobody_exposed_is_inconclusive() -> None:
    found = read({})
    assert found.verdict is Verdict.INCONCLUSIVE
    assert {row.verdict for row in found.effects} == {Verdict.INCONCLUSIVE}
    assert isnan(effect(found, "clicked").effect)


@pytest.mark.parametrize(("n", "rate", "words"), [(49, 0.5, "49 units in an arm"), (300, 0.003, "without the event")])
def test_a_slice_too_small_for_its_test_is_inconclusive(n: int, rate: float, words: str) -> None:
    found = read({"control": [Units(n, rate=rate)], "treatment": [Units(n, rate=rate)]})
    row = effect(found, "clicked")
    assert row.verdict is Verdict.INCONCLUSIVE
    assert words in row.reason


def test_immature_and_missing_units_are_counted_and_left_out() -> None:
    windowed = Metric("clicked", "proportion", "clicks", role="goal", window_days=7)
    spec = experiment(metrics=(windowed, SPENT))
    arms = {"control": [Units(500)], "treatment": [Units(600)]}
    found = readout(states(spec, arms, immature=40, missing=7), spec, AS_OF)
    rows = {row.metric: row for row in found.effects if row.overall}
    clicked, spent = rows["clicked"], rows["spent"]
    assert (clicked.n_control, clicked.n_treatment, clicked.n_immature, clicked.n_missing) == (453, 553, 80, 14)
    assert (spent.n_control, spent.n_immature, spent.n_missing) == (493, 0, 14)


def test_slices_of_one_metric_and_level_are_one_family() -> None:
    devices = [Units(500, device=name) for name in "abcd"]
    found = read({"control": devices, "treatment": devices})
    family = [row for row in found.effects if row.metric == "spent" and row.slice_key == "device"]
    assert {row.n_family for row in family} == {4}
    adjusted = stats.false_discovery_control([row.pvalue for row in family])
    assert [row.qvalue for row in family] == pytest.approx(list(adjusted), rel=1e-9)


def test_secondary_metrics_are_corrected_among_themselves_and_the_goal_is_not() -> None:
    found = read({"control": [Units(500)], "treatment": [Units(500)]})
    pair = [effect(found, name) for name in ("spent", "per_visit")]
    assert [row.qvalue for row in pair] == pytest.approx(
        list(stats.false_discovery_control([row.pvalue for row in pair])), rel=1e-9
    )
    assert effect(found, "clicked").qvalue == effect(found, "clicked").pvalue


def test_several_treatments_share_the_level_of_the_goal() -> None:
    phases = {date(2026, 10, 5): {"control": 1.0, "a": 1.0, "b": 1.0}}
    found = read({"control": [Units(500)], "a": [Units(500)], "b": [Units(500, rate=0.3)]}, phases=phases)
    rows = [row for row in found.effects if row.metric == "clicked" and row.overall]
    smaller, larger = sorted(row.pvalue for row in rows)
    assert sorted(row.qvalue for row in rows) == pytest.approx([2 * smaller, max(2 * smaller, larger)], rel=1e-9)


PHASES = {
    date(2026, 10, 5): {"control": 9.0, "treatment": 1.0},
    date(2026, 10, 12): {"control": 1.0, "treatment": 1.0},
}
RAMP_UP: dict[str, Sequence[Units]] = {
    "control": [Units(9000, rate=0.1), Units(5000, rate=0.3, phase=1)],
    "treatment": [Units(1000, rate=0.1), Units(5000, rate=0.3, phase=1)],
}


def test_a_changed_allocation_is_no_mismatch_and_no_effect() -> None:
    found = read(RAMP_UP, phases=PHASES, slices=Slicing({}))
    assert check(found, "srm").pvalue == pytest.approx(1)
    row = effect(found, "clicked")
    assert row.method == "post-stratified"
    assert row.pvalue > 0.01
    assert row.mean_control == pytest.approx(row.mean_treatment, abs=0.03)


def test_a_guardrail_is_tested_within_the_phases() -> None:
    """Weekend units are slower and more of them are treated: pooled, the treatment would look slow."""
    arms: dict[str, Sequence[Units]] = {
        "control": [Units(9000, latency=100), Units(5000, latency=140, phase=1)],
        "treatment": [Units(1000, latency=100), Units(5000, latency=140, phase=1)],
    }
    row = effect(read(arms, phases=PHASES, slices=Slicing({})), "waited")
    assert row.verdict is Verdict.PASS
    assert row.non_inferiority_pvalue < 1e-12
    pooled = read({arm: [Units(u.n, latency=u.latency) for u in units] for arm, units in arms.items()})
    assert effect(pooled, "waited").verdict is Verdict.BREACH


LATE_START = {
    date(2026, 10, 5): {"control": 1.0, "treatment": 0.0},
    date(2026, 10, 12): {"control": 1.0, "treatment": 1.0},
}


def test_a_phase_without_the_treatment_is_no_comparison() -> None:
    """Before the treatment starts, units convert less: those days must not become its control."""
    arms: dict[str, Sequence[Units]] = {
        "control": [Units(5000, rate=0.1), Units(5000, rate=0.3, phase=1)],
        "treatment": [Units(5000, rate=0.3, phase=1)],
    }
    found = read(arms, phases=LATE_START, slices=Slicing({}))
    row = effect(found, "clicked")
    assert (row.method, row.n_control, row.n_treatment, row.n_missing) == ("proportion", 5000, 5000, 0)
    assert row.pvalue > 0.01
    assert check(found, "srm").verdict is Verdict.PASS


def test_units_before_the_treatment_starts_are_no_part_of_a_reversal() -> None:
    """Early units are on another device and convert less: pooled with the control they would look like a paradox."""
    arms: dict[str, Sequence[Units]] = {
        "control": [Units(6000, rate=0.05), Units(2500, phase=1), Units(2500, device="tv", rate=0.4, phase=1)],
        "treatment": [Units(2500, phase=1), Units(2500, device="tv", rate=0.4, phase=1)],
    }
    named = [row for row in read(arms, phases=LATE_START).checks if row.check == "simpson"]
    assert {row.method for row in named} == {"none"}
    assert {row.n_units for row in named} == {10_000}


def test_units_in_an_arm_before_its_start_are_a_mismatch_by_themselves() -> None:
    arms: dict[str, Sequence[Units]] = {
        "control": [Units(5000), Units(5000, phase=1)],
        "treatment": [Units(60), Units(5000, phase=1)],
    }
    row = check(read(arms, phases=LATE_START, slices=Slicing({})), "srm")
    assert row.verdict is Verdict.BREACH
    assert "60 units in an arm of weight 0" in row.reason
    assert row.pvalue > 0.001


def test_a_correct_ramp_with_another_mix_in_each_phase_is_no_reversal() -> None:
    arms: dict[str, Sequence[Units]] = {
        "control": [Units(8000, rate=0.05), Units(1000, device="tv", rate=0.5),
                    Units(1000, rate=0.05, phase=1), Units(4000, device="tv", rate=0.5, phase=1)],
        "treatment": [Units(889, rate=0.06), Units(111, device="tv", rate=0.6),
                      Units(1000, rate=0.06, phase=1), Units(4000, device="tv", rate=0.6, phase=1)],
    }  # fmt: skip
    found = read(arms, phases=PHASES)
    assert {row.verdict for row in found.checks if row.check == "simpson"} == {Verdict.INCONCLUSIVE}
    assert found.recommendation == "ship"


def test_a_ratio_is_not_searched_for_a_reversal() -> None:
    found = read(
        {"control": [Units(500), Units(500, device="tv")], "treatment": [Units(500), Units(500, device="tv")]}
    )
    assert {row.metric for row in found.checks if row.check == "simpson"} == {"clicked", "spent", "waited"}


def test_pooling_over_a_changed_allocation_would_have_shown_an_effect() -> None:
    pooled = read({arm: [Units(u.n, rate=u.rate) for u in units] for arm, units in RAMP_UP.items()})
    assert effect(pooled, "clicked").pvalue < 1e-12


def test_buckets_are_read_by_t_with_buckets_minus_two_and_have_no_srm_and_no_slices() -> None:
    buckets = {f"b{i}": arm for i, arm in enumerate(["control", "treatment"] * 25)}
    spent = replace(SPENT, role="goal")
    metrics = (spent, PER_VISIT)
    found = read(
        {"control": [Units(25)], "treatment": [Units(25)]}, unit="bucket_id", buckets=buckets, metrics=metrics
    )
    assert {row.df for row in found.effects} == {48}
    assert {row.slice_key for row in found.effects} == {""}
    assert all(row.verdict is Verdict.INCONCLUSIVE and not row.decides for row in found.checks)
    few = read({"control": [Units(19)], "treatment": [Units(25)]}, unit="bucket_id", buckets=buckets, metrics=metrics)
    assert "19 units in an arm, at least 20" in few.effects[0].reason


def test_the_decision_set_of_the_conf_decides() -> None:
    arms: dict[str, Sequence[Units]] = {"control": [Units(5000)], "treatment": [Units(5000, rate=0.25)]}
    assert read(arms, decision_set=("clicked", "spent")).verdict is Verdict.PASS
    found = read(arms, decision_set=("waited",))
    assert [row.metric for row in found.effects if row.decides] == ["waited"]


THREE = {date(2026, 10, 5): {"control": 1.0, "b": 1.0, "c": 1.0}}


def test_every_treatment_has_its_own_advice_and_the_best_one_leads() -> None:
    arms = {"control": [Units(5000)], "b": [Units(5000, rate=0.15)], "c": [Units(5000, rate=0.25)]}
    found = read(arms, phases=THREE)
    assert [(each.treatment, each.recommendation) for each in found.advice] == [("c", "ship"), ("b", "do not ship")]
    assert (found.recommendation, found.verdict) == ("ship", Verdict.PASS)
    assert not any("(b)" in reason for reason in found.reasons)


def test_a_mismatch_of_all_arms_makes_every_treatment_invalid() -> None:
    arms = {"control": [Units(5000)], "b": [Units(4000)], "c": [Units(5000)]}
    assert {each.recommendation for each in read(arms, phases=THREE).advice} == {"invalid"}


def test_a_fixed_test_is_not_read_before_its_planned_end() -> None:
    end = date(2026, 11, 2)
    gain = read({"control": [Units(5000)], "treatment": [Units(5000, rate=0.25)]}, planned_end=end)
    assert (gain.recommendation, gain.verdict) == ("keep running", Verdict.INCONCLUSIVE)
    assert gain.reasons[1].startswith("the planned end is 2026-11-02")


@pytest.mark.parametrize(
    ("rate", "recommendation"),
    [(0.185, "keep running"), (0.15, "do not ship")],  # p = 0.014 and 1e-20
)
def test_before_the_planned_end_only_clear_harm_stops(rate: float, recommendation: str) -> None:
    arms = {"control": [Units(5000)], "treatment": [Units(5000, rate=rate)]}
    early, late = read(arms, planned_end=date(2026, 11, 2)), read(arms, planned_end=AS_OF)
    assert effect(early, "clicked").verdict is Verdict.BREACH
    assert (early.recommendation, late.recommendation) == (recommendation, "do not ship")
    assert early.verdict is (Verdict.BREACH if recommendation == "do not ship" else Verdict.INCONCLUSIVE)


def test_a_ship_without_a_planned_end_says_what_that_means() -> None:
    arms = {"control": [Units(5000)], "treatment": [Units(5000, rate=0.25)]}
    said = {end: read(arms, planned_end=end).reasons for end in (None, AS_OF)}
    assert [any("no planned_end" in reason for reason in reasons) for reasons in said.values()] == [True, False]


@pytest.mark.parametrize(
    ("kind", "margin", "n", "verdict"),
    [
        ("proportion", Margin(absolute=0.001), 5000, Verdict.PASS),  # 0.999^5000 = 0.0067
        ("proportion", Margin(absolute=0.001), 1000, Verdict.INCONCLUSIVE),  # 0.37
        ("proportion", Margin(relative=0.1), 5000, Verdict.INCONCLUSIVE),
        ("mean", Margin(absolute=0.001), 5000, Verdict.INCONCLUSIVE),
    ],
)
def test_a_guardrail_of_an_event_that_nobody_had(kind: str, margin: Margin, n: int, verdict: Verdict) -> None:
    crashed = Metric("crashed", kind, "clicks", role="guardrail", direction="decrease", margin=margin)
    found = read({"control": [Units(n, rate=0)], "treatment": [Units(n, rate=0)]}, metrics=(crashed,))
    row = effect(found, "crashed")
    assert row.verdict is verdict
    assert row.reason.startswith("every unit of both arms has the same value, 0")


def test_a_share_has_jeffreys_prior_and_a_mean_a_flat_one() -> None:
    found = read({"control": [Units(60)], "treatment": [Units(60, rate=0.3)]})
    row = effect(found, "clicked")
    k_c, k_t = (round(n * mean) for n, mean in ((60, row.mean_control), (60, row.mean_treatment)))
    rng = np.random.default_rng(3)
    control, treatment = (rng.beta(k + 0.5, 60 - k + 0.5, 1_000_000) for k in (k_c, k_t))
    assert row.chance_to_beat == pytest.approx(np.mean(treatment > control), abs=0.002)
    flat = effect(found, "spent")
    assert flat.chance_to_beat == pytest.approx(stats.norm.cdf(flat.effect / flat.std_error), abs=1e-12)


def test_the_mde_of_a_goal_is_that_at_the_level_of_its_family() -> None:
    arms = {"control": [Units(5000)], "b": [Units(5000)], "c": [Units(5000)]}
    for row in read(arms, phases=THREE).effects:
        if row.overall and row.metric in ("clicked", "waited"):
            level = 0.05 / (2 if row.metric == "clicked" else 1)
            expected = (stats.norm.ppf(1 - level / 2) + stats.norm.ppf(0.8)) * row.std_error
            assert row.mde == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("slower", "warned"), [(0.0, False), (8.0, True)])
def test_outcomes_that_come_later_in_one_arm_are_told(slower: float, warned: bool) -> None:
    waiting = Metric("delay", "ratio", "latency", denominator="visits", role="diagnostic", direction="decrease")
    spec = experiment(metrics=(CLICKED, waiting))
    arms = {"control": [Units(5000)], "treatment": [Units(5000, rate=0.25, latency=100 + slower)]}
    found = readout(states(spec, arms), spec, AS_OF, delays=("latency",))
    row = check(found, "outcome delay")
    assert (row.verdict is Verdict.INCONCLUSIVE, row.metric) == (warned, "delay")
    assert any(reason.startswith("but outcome delay (delay): outcomes after") for reason in found.reasons) == warned
    assert not [row for row in readout(states(spec, arms), spec, AS_OF).checks if row.check == "outcome delay"]


def test_a_clean_experiment_is_never_called_a_reversal() -> None:
    """Devices differ a lot in their rates, so that chance alone gives the arms slightly different mixes."""
    spec = experiment(metrics=(CLICKED,))
    rng = np.random.default_rng(7)
    alarms = 0
    for seed in range(300):
        sizes = [rng.binomial(n, 0.5, 1)[0] for n in (600, 300, 100)]
        rates, devices = (0.05, 0.3, 0.6), "abc"
        arms = {
            "control": [Units(n, rate=r, device=d) for n, r, d in zip(sizes, rates, devices, strict=True)],
            "treatment": [
                Units(n - m, rate=r, device=d)
                for n, m, r, d in zip((600, 300, 100), sizes, rates, devices, strict=True)
            ],
        }
        rows = paradoxes(states(spec, arms, seed=seed), spec)
        alarms += sum(row.verdict is Verdict.BREACH for row in rows)
    assert alarms <= 1  # 300 experiments, each with an SRM family and a gap test


def test_undefined_numbers_stay_nan() -> None:
    found = read({"control": [Units(500)]})
    assert isnan(effect(found, "clicked").pvalue)
    assert nan is not effect(found, "clicked").effect


def test_a_ship_names_other_metrics_that_are_worse() -> None:
    arms = {"control": [Units(5000)], "treatment": [Units(5000, rate=0.25, latency=120)]}
    found = read(arms, decision_set=("clicked",))
    assert (found.verdict, found.recommendation) == (Verdict.PASS, "ship")
    assert (effect(found, "waited").verdict, effect(found, "waited").decides) == (Verdict.BREACH, False)
    assert any(reason.startswith("but waited (treatment): worse by") for reason in found.reasons)
