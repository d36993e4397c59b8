"""The same units read as they are, by their past, and at every look; what leads, and what a ship waits for."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta
from math import isnan

import numpy as np
import pytest

from mltrust.experiment.cells import (
    ARM_KEYS,
    DAY,
    NO_PAST,
    PAST,
    UNITS,
    ExperimentStates,
    by_day,
    mature_block,
    metric_block,
    overall_of,
    slices_by_day,
    slices_of,
)
from mltrust.experiment.check import Check
from mltrust.experiment.effects import Effect
from mltrust.experiment.readout import Readout, readout
from mltrust.experiment.spec import Experiment, Rules
from mltrust.metrics import KINDS, Metric
from mltrust.slices import Slicing
from mltrust.states.moments import Moments
from mltrust.stats.cuped import Quantity, cuped
from mltrust.stats.means import Arm, Margin, welch
from mltrust.stats.sequential import spending_bounds
from mltrust.verdicts import Verdict

START = date(2026, 10, 5)
MONEY = Metric("money", "mean", "revenue", role="goal", window_days=7)
BOUGHT = Metric("bought", "proportion", "revenue", role="secondary", window_days=7)
PER_VISIT = Metric("per_visit", "ratio", "revenue", denominator="visits", role="secondary", window_days=7)
SLOW = Metric(
    "slow", "mean", "latency", role="guardrail", direction="decrease", margin=Margin(relative=0.1), window_days=7
)
METRICS = (MONEY, BOUGHT, PER_VISIT, SLOW)
COLUMNS = ("revenue", "visits", "latency")


def experiment(**changes: object) -> Experiment:
    spec: dict[str, object] = {
        "experiment_id": "e",
        "log": "log",
        "control": "c",
        "phases": {START: {"c": 1.0, "t": 1.0}},
        "metrics": METRICS,
        "unit": "unit_id",
        "interference": "none",
        "slices": Slicing({"device": "features.device"}),
    }
    return Experiment(**(spec | changes))  # type: ignore[arg-type]


class World:
    """n units an arm and day; what they did before says something of what they do."""

    def __init__(
        self, *, n: int = 200, days: int = 21, effect: float = 0.0, past: float = 3.0, crossed: int = 0,
        share: float = 0.5, seed: int = 1,
    ) -> None:  # fmt: skip
        rng = np.random.default_rng(seed)
        self.arm = np.where(rng.random(2 * n * days) < share, "t", "c")
        self.day = np.repeat(np.arange(days), 2 * n)
        self.device = rng.choice(["ios", "tv"], len(self.arm))
        self.crossed = np.arange(len(self.arm)) < crossed
        before = np.maximum(0, rng.normal(3, 1, len(self.arm)))
        self.none = rng.random(len(self.arm)) < 0.1
        self.before = np.where(self.none, 0, before)
        base = past * before + rng.normal(0, 1.5, len(self.arm)) + effect * (self.arm == "t")
        visits = rng.poisson(2, len(self.arm)) + 1.0
        self.values = {
            "revenue": np.maximum(0, base - np.median(base) + 2),
            "visits": visits,
            "latency": rng.normal(100, 10, len(self.arm)),
        }

    def states(self, spec: Experiment) -> ExperimentStates:
        cells = [
            self._cell(spec, arm, day, device, crossed)
            for arm in "ct"
            for day in np.unique(self.day)
            for device in ("ios", "tv")
            for crossed in (False, True)
        ]
        told = [cell for cell in cells if cell[1][UNITS].n]
        return ExperimentStates(
            overall_of(told), {("device",): slices_of(told, ("device",))}, by_day(told), slices_by_day(told, "device")
        )

    def _cell(
        self, spec: Experiment, arm: str, day: int, device: str, crossed: bool
    ) -> tuple[dict[str, str], dict[str, Moments]]:
        mine = (self.arm == arm) & (self.day == day) & (self.device == device) & (self.crossed == crossed)
        past = self.past(mine)
        blocks = {UNITS: Moments.of((), np.empty((mine.sum(), 0)))}
        blocks[PAST] = Moments.of(("past revenue", NO_PAST), past[:, [0, 2]])
        for metric in spec.metrics:
            sample = np.column_stack([self.values[name][mine] for name in metric.columns()])
            if KINDS[metric.kind].unit_value == "any":
                sample = sample > 0
            columns = metric.columns()
            if spec.pre_days is not None:
                names = tuple(f"past {name}" for name in spec.past_columns(metric))
                picked = [past[:, 1] if name == "past visits" else past[:, 0] for name in names]
                sample = np.column_stack([sample, *picked, past[:, 2]])
                columns = (*columns, *names, NO_PAST)
            blocks[metric_block(metric)] = Moments.of(columns, sample)
            blocks[mature_block(metric)] = Moments.of((), np.empty((mine.sum(), 0)))
        values = (arm, "0", "yes" if crossed else "no", (START + timedelta(days=int(day))).isoformat(), device)
        return dict(zip((*ARM_KEYS, DAY, "device"), values, strict=True)), blocks

    def past(self, mine: np.ndarray) -> np.ndarray:
        visits = np.where(self.none[mine], 0, 1 + self.before[mine])
        return np.column_stack([self.before[mine], visits, self.none[mine]])

    def read(self, as_of: date = START + timedelta(days=28), **changes: object) -> Readout:
        spec = experiment(**changes)
        return readout(self.states(spec), spec, as_of)


def rows(found: Readout, metric: str, slice_value: str = "") -> list[Effect]:
    own = [row for row in found.effects if (row.metric, row.slice_value) == (metric, slice_value)]
    return [row for row in own if not row.method.startswith("post-stratified by")]


def checks(found: Readout, name: str, method: str = "") -> list[Check]:
    return [row for row in found.checks if row.check == name and method in ("", row.method)]


def test_the_past_leads_and_the_plain_test_stands_beside_it() -> None:
    world = World(effect=0.15)
    found = world.read(pre_days=14)
    led, plain = rows(found, "money")
    assert (led.method, led.role, led.decides) == ("cuped", "goal", True)
    assert (plain.method, plain.role, plain.decides) == ("welch", "diagnostic", False)
    assert led.variance_reduction == pytest.approx(1 - (led.std_error / plain.std_error) ** 2, rel=1e-12)
    assert led.variance_reduction > 0.4
    assert led.mde < plain.mde
    assert isnan(plain.variance_reduction)


def test_the_past_takes_out_what_cuped_takes_out_of_the_units() -> None:
    world = World(effect=0.15)
    arms = []
    for arm in "ct":
        mine, of = world.arm == arm, ("revenue", "visits", "past", "past visits", "none")
        own = [world.values["revenue"][mine], world.values["visits"][mine]]
        arms.append(Moments.of(of, np.column_stack([*own, world.past(mine)])))
    control, treatment = arms
    money = cuped(
        control=control,
        treatment=treatment,
        metric=Quantity("revenue"),
        covariates=[Quantity("past"), Quantity("none")],
    ).comparison
    per_visit = cuped(
        control=control,
        treatment=treatment,
        metric=Quantity("revenue", "visits"),
        covariates=[Quantity("past", "past visits"), Quantity("none")],
    ).comparison
    found = world.read(pre_days=14)
    for row, expected in ((rows(found, "money")[0], money), (rows(found, "per_visit")[0], per_visit)):
        assert (row.effect, row.std_error) == pytest.approx((expected.effect, expected.std_error), rel=1e-9)
        assert (row.rel_ci_low, row.rel_ci_high) == pytest.approx((expected.rel_ci_low, expected.rel_ci_high))


@pytest.mark.parametrize("n_known", [0, 1])
def test_a_slice_without_a_past_in_an_arm_is_read_without_it(n_known: int) -> None:
    world = World(effect=0.3)
    new = (world.device == "tv") & (world.arm == "c")
    new[np.flatnonzero(new)[:n_known]] = False
    world.none |= new
    world.before = np.where(new, 0, world.before)
    found = world.read(pre_days=14)
    [row] = rows(found, "per_visit", "tv")
    mine = world.device == "tv"
    arms = [[world.values[name][mine & (world.arm == arm)] for name in ("revenue", "visits")] for arm in "ct"]
    control, treated = (money.sum() / visits.sum() for money, visits in arms)
    # All of the control are units without a past, so that nothing is left to adjust by between the arms.
    assert row.effect == pytest.approx(treated - control, abs=0.3 * row.std_error)
    assert row.pvalue == row.pvalue
    assert rows(found, "per_visit", "ios")[0].variance_reduction > 0.1


def test_a_past_that_explains_nothing_is_said_to() -> None:
    found = World(past=0.0, n=20).read(pre_days=14)
    reductions = {row.metric: row.variance_reduction for row in found.effects if row.method == "cuped"}
    assert max(map(abs, reductions.values())) < 0.05
    said = [row for row in found.effects if row.reason.endswith("the units' past explains no more than chance would")]
    assert {row.metric for row in said if row.overall} == set(reductions)
    assert {row.method for row in said} == {"cuped"}
    more = World(n=200).read(pre_days=14)
    assert not any(
        "no more than chance" in row.reason for row in more.effects if row.overall and row.metric == "money"
    )


def test_another_method_that_takes_no_variance_away_is_said_to() -> None:
    for row in World(past=0.0, n=20).read(pre_days=14).effects:
        if row.method.startswith("post-stratified"):
            assert row.reason.endswith("; it takes no variance away") == (row.variance_reduction <= 0)


def test_slices_are_read_by_the_past_too() -> None:
    found = World(effect=0.3).read(pre_days=14)
    assert {row.method for row in found.effects if row.slice_key} == {"cuped"}


def test_at_every_look_the_interval_is_wider_and_the_fixed_test_stands_beside_it() -> None:
    found = World(effect=0.5).read(inference="always_valid", horizon=8000)
    led, fixed = rows(found, "money")
    assert (led.method, led.decides, fixed.method, fixed.role) == ("always-valid", True, "welch", "diagnostic")
    assert (led.effect, led.std_error) == pytest.approx((fixed.effect, fixed.std_error), rel=1e-12)
    assert led.ci_low < fixed.ci_low < fixed.ci_high < led.ci_high
    assert led.verdict is Verdict.PASS
    assert led.mde > fixed.mde
    assert led.rel_ci_low < fixed.rel_ci_low
    assert rows(found, "slow")[0].verdict is Verdict.PASS
    assert found.recommendation == "ship"


def test_at_every_look_the_smallest_p_value_of_all_looks_is_kept() -> None:
    led, fixed = rows(turned(1.5, -1.5, 3).read(inference="always_valid", horizon=8000), "money")
    assert fixed.effect < 0
    assert led.pvalue < 1e-6
    assert isnan(led.ci_low)  # no effect is the same at all looks
    assert isnan(led.rel_ci_low)
    assert led.verdict is Verdict.INCONCLUSIVE
    assert led.reason.startswith("shown at an earlier look")


def turned(first: float, then: float, weeks: int) -> World:
    """An effect in the first week, and another one after it."""
    early, late = World(effect=first, days=7, seed=2), World(effect=then, days=7 * weeks - 7, seed=3)
    world = World(days=7 * weeks)
    for name in ("arm", "day", "device", "crossed", "before", "none"):
        setattr(world, name, np.concatenate([getattr(early, name), getattr(late, name)]))
    world.day[len(early.day) :] += 7
    for name in COLUMNS:
        world.values[name] = np.concatenate([early.values[name], late.values[name]])
    return world


@pytest.mark.parametrize("inference", ["always_valid", "group_sequential"])
@pytest.mark.parametrize(("first", "then"), [(-1.2, 0.75), (1.2, -0.75)])
def test_what_an_earlier_look_has_shown_and_the_last_one_contradicts_is_no_verdict(
    inference: str, first: float, then: float
) -> None:
    """Harm that was shown does not ship by a later gain, nor the other way round."""
    found = turned(first, then, 3).read(inference=inference, horizon=16_000, rules=Rules(whole_weeks=False))
    led, *_ = rows(found, "money")
    assert led.pvalue < 0.01
    assert led.effect * first < 0
    assert led.verdict is Verdict.INCONCLUSIVE
    assert led.reason.startswith("shown at an earlier look")
    assert found.recommendation == "keep running"


@pytest.mark.parametrize("inference", ["always_valid", "group_sequential"])
@pytest.mark.parametrize(("first", "then", "verdict"), [(1.5, 0.5, Verdict.PASS), (-0.5, -1.5, Verdict.BREACH)])
def test_an_effect_that_changes_its_size_and_not_its_sign_is_shown(
    inference: str, first: float, then: float, verdict: Verdict
) -> None:
    led, *_ = rows(turned(first, then, 3).read(inference=inference, horizon=8400), "money")
    assert led.verdict is verdict


def test_what_a_contradicted_goal_would_have_found_is_no_reason_to_stop() -> None:
    worth = replace(MONEY, smallest_effect=Margin(absolute=5.0))
    found = turned(-1.2, 0.75, 3).read(inference="always_valid", horizon=16_000, metrics=(worth, SLOW))
    assert rows(found, "money")[0].mde < 5
    assert found.recommendation == "keep running"


def slowed(*by_week: float) -> World:
    """Latencies of the treatment that are longer by so much in each week; the margin is a tenth, of 100."""
    world = World(effect=0.5, days=7 * len(by_week))
    world.values["latency"] = world.values["latency"] + (world.arm == "t") * np.array(by_week)[world.day // 7]
    return world


@pytest.mark.parametrize("inference", ["always_valid", "group_sequential"])
@pytest.mark.parametrize(
    ("by_week", "verdict", "words"),
    [
        ((-3.0, 1.0, 3.0), Verdict.PASS, "a loss of the margin is excluded"),  # better first, then within the margin
        ((0.0, 25.0, 25.0), Verdict.BREACH, "worse by"),
        ((-8.0, 25.0, 25.0), Verdict.BREACH, "worse by"),  # by the last look itself
    ],
)
def test_a_margin_is_excluded_where_the_last_look_is_within_it(
    inference: str, by_week: Sequence[float], verdict: Verdict, words: str
) -> None:
    found = slowed(*by_week).read(inference=inference, horizon=8400)
    row = rows(found, "slow")[0]
    assert (row.verdict, row.reason[: len(words)]) == (verdict, words)


@pytest.mark.parametrize("inference", ["always_valid", "group_sequential"])
def test_a_margin_that_was_excluded_and_that_the_last_look_is_beyond_is_not_passed(inference: str) -> None:
    narrow = replace(SLOW, margin=Margin(absolute=0.05))
    row = rows(slowed(-2.0, 1.45, 1.45).read(inference=inference, horizon=8400, metrics=(MONEY, narrow)), "slow")[0]
    assert (row.effect > 0.05, row.non_inferiority_pvalue < 0.05) == (True, True)
    assert row.verdict is Verdict.INCONCLUSIVE
    assert row.reason.startswith("a loss of the margin was excluded at an earlier look")


def test_a_planned_look_excludes_a_margin_by_one_side_of_alpha() -> None:
    bound, passed = spending_bounds([2800 / 8400, 5600 / 8400], alpha=0.1)[-1], []
    for loss in (9.0, 9.2, 9.4, 9.6, 9.8):
        world = slowed(loss, loss)
        led, fixed, *_ = rows(
            world.read(START + timedelta(days=21), inference="group_sequential", horizon=8400), "slow"
        )
        control, treatment = (Arm(n, m, v) for n, m, v in arms_of(world))
        test = welch(control=Margin(relative=0.1).limit(control, increase_is_good=False), treatment=treatment)
        assert fixed.n_control + fixed.n_treatment == 5600
        assert (led.verdict is Verdict.PASS) == (-test.statistic >= bound)
        passed.append(led.verdict is Verdict.PASS)
    assert set(passed) == {True, False}


def arms_of(world: World) -> list[tuple[int, float, float]]:
    values = [world.values["latency"][world.arm == arm] for arm in "ct"]
    return [(len(each), float(each.mean()), float(each.var(ddof=1))) for each in values]


def test_looks_that_add_next_to_nothing_are_no_looks() -> None:
    """A week of few units, after which the traffic comes, and weeks after it has stopped."""
    world = World(effect=0.5, days=42)
    few = np.isin(world.day // 7, (0, 4, 5)) & (np.arange(len(world.day)) % 700 > 0)
    for name in ("arm", "day", "device", "crossed", "before", "none"):
        setattr(world, name, getattr(world, name)[~few])
    for name in COLUMNS:
        world.values[name] = world.values[name][~few]
    end = START + timedelta(days=56)
    led, fixed = rows(world.read(end, inference="group_sequential", horizon=20_000), "money")
    assert (led.method, led.verdict) == ("group-sequential", Verdict.PASS)
    n_read = led.n_control + led.n_treatment
    assert 0 < fixed.n_control + fixed.n_treatment - n_read < 20
    assert led.n_missing == 0
    assert led.n_immature == fixed.n_control + fixed.n_treatment - n_read


def test_the_past_and_every_look_go_together() -> None:
    found = World(effect=0.5).read(inference="always_valid", horizon=8000, pre_days=14)
    assert [row.method for row in rows(found, "money")] == ["always-valid", "cuped", "welch"]
    assert rows(found, "money")[0].variance_reduction > 0.4


def test_planned_looks_are_whole_weeks_whose_windows_are_over() -> None:
    world = World(effect=0.5)
    led = {
        weeks: rows(
            world.read(START + timedelta(days=7 * weeks), inference="group_sequential", horizon=8400), "money"
        )
        for weeks in (1, 2, 3, 4)
    }
    # No week is over: the fixed test stands beside, and decides nothing.
    assert (led[1][0].method, led[1][0].verdict) == ("group-sequential", Verdict.INCONCLUSIVE)
    assert led[1][0].reason.startswith("no planned look yet")
    assert [(row.method, row.decides) for row in led[1]] == [("group-sequential", True), ("welch", False)]
    by_week = [led[weeks][0] for weeks in (2, 3, 4)]
    assert {row.method for row in by_week} == {"group-sequential"}
    assert [row.n_control + row.n_treatment for row in by_week] == [2800, 5600, 8400]
    widths = [row.ci_high - row.ci_low for row in by_week]
    assert widths[0] > widths[1] > widths[2]


@pytest.mark.slow
def test_the_looks_of_a_readout_are_those_that_the_plan_counts() -> None:
    """A unit of the last day of a week is mature when window - 1 more days are over."""
    world, end = World(effect=0.5), START + timedelta(days=21)
    for window, n_weeks in ((1, 3), (8, 2), (15, 1)):
        metrics = tuple(replace(metric, window_days=window) for metric in METRICS)
        [led, *_] = rows(world.read(end, inference="group_sequential", horizon=8400, metrics=metrics), "money")
        assert led.n_control + led.n_treatment == 2800 * n_weeks


def test_planned_looks_without_a_horizon_or_beyond_it_say_so() -> None:
    world = World(effect=0.0)
    [led, *_] = rows(world.read(START + timedelta(days=21), inference="group_sequential"), "money")
    assert led.verdict is Verdict.INCONCLUSIVE
    assert "plan_experiment says how many units" in led.reason
    [led, *_] = rows(world.read(START + timedelta(days=21), inference="group_sequential", horizon=2000), "money")
    assert led.verdict is Verdict.INCONCLUSIVE
    assert "no alpha to spend" in led.reason


def test_a_fixed_horizon_waits_for_its_end_and_an_open_one_does_not() -> None:
    world, end = World(effect=0.5), START + timedelta(days=21)
    before = world.read(end - timedelta(days=1), planned_end=end)
    assert before.recommendation == "keep running"
    assert before.reasons[0].startswith("the planned end is 2026-10-26")
    assert world.read(end, planned_end=end).recommendation == "ship"
    assert (
        world.read(end - timedelta(days=1), planned_end=end, rules=Rules(planned_end=False)).recommendation == "ship"
    )
    open_end = {"planned_end": end, "inference": "always_valid", "horizon": 8000}
    assert world.read(end - timedelta(days=1), **open_end).recommendation == "ship"


def test_harm_does_not_wait() -> None:
    found = World(effect=-0.5).read(START + timedelta(days=3), planned_end=START + timedelta(days=21))
    assert found.recommendation == "do not ship"


def test_less_than_a_week_waits_and_broken_weeks_are_named() -> None:
    world = World(effect=0.5)
    assert world.read(START + timedelta(days=6)).recommendation == "keep running"
    assert world.read(START + timedelta(days=6), rules=Rules(whole_weeks=False)).recommendation == "ship"
    found = world.read(START + timedelta(days=10))
    assert found.reasons[-1] == "but units were exposed for 10 days, which are no whole weeks"
    assert "whole weeks" not in " ".join(world.read(START + timedelta(days=14)).reasons)


def test_no_effect_is_believed_only_where_one_worth_finding_would_have_been_found() -> None:
    world = World()
    worth = {at: Metric("money", "mean", "revenue", role="goal", window_days=7, smallest_effect=Margin(absolute=at))
             for at in (0.05, 1.0)}  # fmt: skip
    assert world.read(metrics=(worth[0.05], SLOW)).recommendation == "keep running"
    found = world.read(metrics=(worth[1.0], SLOW))
    assert found.recommendation == "do not ship"
    assert "no effect: one of" in found.reasons[0]


def test_crossed_units_are_left_out_beside_and_mentioned_by_a_ship() -> None:
    found = World(effect=0.5, crossed=200).read()
    led, beside = rows(found, "money")
    assert beside.method == "welch, without crossed units"
    assert led.n_control + led.n_treatment - beside.n_control - beside.n_treatment == 200
    assert (beside.role, beside.decides) == ("diagnostic", False)
    assert found.recommendation == "ship"
    assert any(reason.startswith("but contamination: ") for reason in found.reasons)


def test_a_mismatch_is_found_at_a_look_and_in_each_slice() -> None:
    found = World(share=0.46).read(horizon=8400)
    overall, *slices = checks(found, "srm", "sequential")
    assert (overall.verdict, overall.decides, overall.slice_key) == (Verdict.BREACH, True, "")
    assert "since 2026-10-" in overall.reason
    assert {row.slice_value for row in slices} == {"ios", "tv"}
    assert {row.verdict for row in checks(World().read(), "srm")} == {Verdict.PASS}
    assert {row.check for row in found.checks[:2]} == {"srm"}
    assert found.recommendation == "invalid"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"covariates": ("visits",)}, "covariates without pre_days"),
        ({"pre_days": 0}, "pre_days is 0"),
        ({"pre_days": 7, "unit": "request"}, "a request has no past"),
        ({"horizon": 0}, "horizon is 0 units"),
        ({"inference": "always_valid", "metrics": (Metric("m", "mean", "y", role="goal"),)}, "m decides and has no"),
    ],
)
def test_what_cannot_be_read_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        experiment(**changes)


def test_rules_refuse_a_power_that_is_no_chance() -> None:
    with pytest.raises(ValueError, match="power is 1"):
        Rules(power=1.0)


def claims(found: Sequence[Effect]) -> int:
    return sum(row.verdict is not Verdict.INCONCLUSIVE for row in found if row.decides and row.role == "goal")


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"pre_days": 14}, {"inference": "always_valid", "horizon": 2000}])
def test_without_an_effect_a_goal_is_seldom_claimed(changes: dict[str, object]) -> None:
    spec = {"metrics": (MONEY, SLOW), **changes}
    found = [claims(World(n=40, days=7, seed=seed).read(**spec).effects) for seed in range(200)]
    assert sum(found) <= 22  # the 99.9 % bound of 200 tests at 0.05


@pytest.mark.parametrize("n", [0, 1, 40])
def test_every_number_has_the_type_of_its_column(n: int) -> None:
    found = (
        World(n=n, days=7).read(pre_days=14, inference="always_valid")
        if n
        else readout(ExperimentStates(overall_of([]), {}), experiment(), START + timedelta(days=28))
    )
    for row in (*found.effects, *found.checks):
        for name, kind in type(row).__annotations__.items():
            assert isinstance(getattr(row, name), kind), (row, name)
