"""Plans from a history whose truth is known: by hand, against statsmodels, and by experiments that are then run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from math import isnan, sqrt

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special, stats
from statsmodels.stats.power import NormalIndPower

from mltrust.experiment.cells import (
    ARM_KEYS,
    NO_PAST,
    UNITS,
    Arm,
    ExperimentStates,
    SliceStates,
    metric_block,
    overall_of,
    slices_of,
)
from mltrust.experiment.methods import Compared, at_every_look, fixed
from mltrust.experiment.plan import Plan
from mltrust.experiment.planning import Planned, Prospect, plan
from mltrust.experiment.spec import Experiment, Sample
from mltrust.experiment.trial import Arrivals, History, Trial, maturing_weeks, resized, unplannable
from mltrust.metrics import Metric
from mltrust.report.figures import detectable
from mltrust.report.plan import markdown, metrics
from mltrust.slices import Slice, Slicing
from mltrust.states.moments import Moments
from mltrust.stats.cuped import Quantity, cuped
from mltrust.stats.means import Margin
from mltrust.stats.power import sample_size
from mltrust.stats.sequential import Look, always_valid, best_rho, group_sequential
from mltrust.verdicts import Verdict

AS_OF, START = date(2026, 10, 5), date(2026, 10, 12)
WEEK = timedelta(days=7)
HISTORY = History(AS_OF - 20 * WEEK, AS_OF - timedelta(days=1))
Z = special.ndtri(0.975) + special.ndtri(0.8)

MONEY = Metric("money", "mean", "revenue", role="goal", window_days=7, smallest_effect=Margin(absolute=0.1))
BOUGHT = Metric("bought", "proportion", "bought", role="secondary", window_days=7)
RATE = Metric("rate", "ratio", "revenue", denominator="visits", role="secondary", window_days=7)
SLOW = Metric(
    "slow", "mean", "latency", role="guardrail", direction="decrease", margin=Margin(relative=0.1), window_days=7
)


def experiment(**changes: object) -> Experiment:
    spec: dict[str, object] = {
        "experiment_id": "e",
        "log": "log",
        "control": "c",
        "phases": {START: {"c": 1.0, "t": 1.0}},
        "metrics": (MONEY, BOUGHT, RATE, SLOW),
        "unit": "unit_id",
        "slices": Slicing({"device": "features.device"}),
    }
    return Experiment(**(spec | changes))  # type: ignore[arg-type]


@dataclass
class Units:
    """Units with what they do in a window, and what they did before; late ones do less."""

    week: NDArray[np.int64]
    values: dict[str, NDArray[np.float64]]
    device: NDArray[np.str_]

    @classmethod
    def drawn(cls, rng: np.random.Generator, arrivals: Sequence[int], *, late: float = 0.0) -> "Units":
        week = np.repeat(np.arange(len(arrivals)), arrivals)
        n = len(week)
        before = rng.normal(3.0, 1.0, n)
        values = {
            "revenue": 5.0 + before + rng.normal(0, 1.0, n) - late * week,
            "visits": rng.poisson(3, n) + 1.0,
            "latency": rng.normal(100, 40, n),
            "bought": (rng.random(n) < 0.2).astype(float),
            "past revenue": before,
            "past bought": before,
            "past visits": np.ones(n),
            "past latency": before,
            NO_PAST: np.zeros(n),
        }
        return cls(week, values, rng.choice(["ios", "tv"], n, p=[0.75, 0.25]))

    def state(self, columns: tuple[str, ...], mine: NDArray[np.bool_]) -> Moments:
        return Moments.of(
            columns, np.column_stack([self.values[name.partition("_upto_")[0]][mine] for name in columns])
        )

    def blocks(self, spec: Experiment, mine: NDArray[np.bool_]) -> dict[str, Moments]:
        found = {UNITS: Moments.of((), np.empty((mine.sum(), 0)))}
        for metric in spec.metrics:
            past = tuple(f"past {name}" for name in spec.past_columns(metric))
            columns = (*metric.columns(), *past, *([NO_PAST] if past else []))
            state = self.state(tuple(name.replace(_suffix(name), "") for name in columns), mine)
            found[metric_block(metric)] = replace(state, columns=columns)
        return found

    def trial(self, spec: Experiment, trial: Trial) -> ExperimentStates:
        cells = []
        for week in range(trial.weeks):
            for device in ("ios", "tv"):
                mine = (self.week == week) & (self.device == device)
                values = dict(zip((*ARM_KEYS, "device"), (spec.control, str(week), "no", device), strict=True))
                if mine.any():
                    cells.append((values, self.blocks(trial.experiment, mine)))
        return ExperimentStates(overall_of(cells), {("device",): slices_of(cells, ("device",))})

    def plan(self, spec: Experiment) -> Planned:
        trial = tried(spec)
        return plan(self.trial(spec, trial), spec, trial)


def _suffix(name: str) -> str:
    _, sign, week = name.partition("_upto_week_")
    return sign + week


def tried(spec: Experiment) -> Trial:
    return Trial.before(AS_OF, spec, HISTORY)


def two_weeks(**changes: object) -> Experiment:
    """Two weeks of new units, and one in which the last of them mature."""
    return experiment(**({"plan": Plan(history_weeks=2, max_weeks=6)} | changes))


def rows(found: Planned, metric: str, method: str = "fixed", slice_value: str = "") -> dict[int, Prospect]:
    """Prospects by weeks."""
    return {
        row.weeks: row
        for row in found.prospects
        if (row.metric, row.method, row.slice_value) == (metric, method, slice_value)
    }


@pytest.fixture(scope="module")
def units() -> Units:
    return Units.drawn(np.random.default_rng(1), [2000, 1000, 500])


def test_what_a_number_of_weeks_finds_is_that_of_its_units_by_hand(units: Units) -> None:
    found = rows(units.plan(two_weeks()), "money")
    assert list(found) == [2, 3, 4, 5, 6]  # the first week matures in the second
    for weeks, arrived in ((2, [0]), (3, [0, 1])):
        values = units.values["revenue"][np.isin(units.week, arrived)]
        std_error = sqrt(2 * values.var(ddof=1) / (len(values) / 2))
        # Half of the units are in each arm, so that their variance has half the degrees of freedom: 1e-3.
        assert found[weeks].mde == pytest.approx(Z * std_error, rel=1e-3)
        assert (found[weeks].n_control, found[weeks].n_treatment) == (len(values) / 2, len(values) / 2)
        assert found[weeks].mean_control == pytest.approx(values.mean(), rel=1e-12)
        assert found[weeks].rel_mde == pytest.approx(found[weeks].mde / values.mean(), rel=1e-12)
        assert found[weeks].power == pytest.approx(special.ndtr(0.1 / std_error - special.ndtri(0.975)), rel=1e-3)


def test_the_units_needed_are_those_of_statsmodels(units: Units) -> None:
    row = rows(units.plan(two_weeks()), "money")[3]
    sd = row.std_error * sqrt(row.n_control / 2)
    per_arm = NormalIndPower().solve_power(0.1 / sd, None, 0.05, 0.8)
    # One of an iterative solver, the other rounded up.
    assert row.n_needed == pytest.approx(2 * per_arm, abs=2)
    share = rows(
        units.plan(two_weeks(metrics=(MONEY, replace(BOUGHT, smallest_effect=Margin(absolute=0.02))))), "bought"
    )
    p = share[3].mean_control
    assert share[3].n_needed == pytest.approx(
        sample_size(effect=0.02, variance_control=p * (1 - p), variance_treatment=p * (1 - p)), abs=2
    )


def test_a_guardrail_is_planned_to_keep_its_margin_by_one_side(units: Units) -> None:
    row = rows(units.plan(two_weeks()), "slow")[3]
    values = units.values["latency"][units.week < 2]
    # latency is better low: treated units are held against 1.1 times the control.
    std_error = sqrt(values.var(ddof=1) * (1 + 1.1**2) / (len(values) / 2))
    assert row.claim == "non-inferiority"
    assert row.mde == pytest.approx((special.ndtri(0.95) + special.ndtri(0.8)) * std_error, rel=1e-3)
    assert row.target == pytest.approx(0.1 * values.mean(), rel=1e-12)
    assert row.verdict is Verdict.PASS


def test_the_past_takes_out_of_the_plan_what_cuped_takes_out_of_the_units(units: Units) -> None:
    found = units.plan(two_weeks(pre_days=14))
    plain, by_past = rows(found, "money")[3], rows(found, "money", "fixed, cuped")[3]
    y, x = (units.values[name][units.week < 2] for name in ("revenue", "past revenue"))
    left = 1 - np.corrcoef(y, x)[0, 1] ** 2
    assert by_past.variance_reduction == pytest.approx(1 - left, abs=1e-3)
    assert by_past.mde == pytest.approx(plain.mde * sqrt(left), rel=1e-3)
    assert by_past.n_needed == pytest.approx(plain.n_needed * left, rel=2e-3)
    assert (by_past.leads, by_past.decides, plain.leads) == (True, True, False)
    assert isnan(plain.variance_reduction)
    ratio = rows(found, "rate", "fixed, cuped")[3]
    columns = ("revenue", "visits", "past revenue", "past visits", NO_PAST)
    half = resized(units.state(columns, units.week < 2), 1500)
    covariates = [Quantity("past revenue", "past visits"), Quantity(NO_PAST)]
    expected = cuped(control=half, treatment=half, metric=Quantity("revenue", "visits"), covariates=covariates)
    # The plan resizes week by week, which moves the degrees of freedom by some units of 1500.
    assert ratio.std_error == pytest.approx(expected.comparison.std_error, rel=1e-3)


def test_later_weeks_have_fewer_new_units_and_say_that_they_are_extrapolated(units: Units) -> None:
    found = units.plan(two_weeks())
    assert found.arrivals == Arrivals((2000, 1000, 500), 0.5)
    of_weeks = rows(found, "money")
    # The third week has arrived within the trial, though its values are not known yet; later ones are guessed.
    assert [row.n_units for row in of_weeks.values()] == [2000, 3000, 3500, 3750, 3874]  # 62 of 62.5 an arm
    assert [row.is_extrapolated for row in of_weeks.values()] == [False, False, True, True, True]


def test_a_growing_log_is_not_expected_to_grow_on() -> None:
    growing = Units.drawn(np.random.default_rng(2), [1000, 1000, 1500]).plan(two_weeks())
    assert growing.arrivals.decline == 1
    assert growing.arrivals.new(5) == [1000, 1000, 1500, 1500, 1500]
    assert Arrivals((100, 50), 0.5).upto(4) == [100, 150, 175, 187.5]
    assert Arrivals((100, 50), 0.5).new(1) == [100]


def test_units_to_come_are_like_the_last_that_are_known() -> None:
    late = Units.drawn(np.random.default_rng(3), [2000, 1000, 500], late=2.0)
    found = rows(late.plan(two_weeks()), "money")
    means = [late.values["revenue"][late.week == week].mean() for week in (0, 1)]
    assert found[2].mean_control == pytest.approx(means[0], rel=1e-12)
    assert found[4].mean_control == pytest.approx((2000 * means[0] + 1500 * means[1]) / 3500, rel=1e-12)


def test_weights_and_the_share_of_traffic_size_the_arms(units: Units) -> None:
    spec = two_weeks(
        phases={START: {"c": 8.0, "t": 1.0, "u": 1.0}}, plan=Plan(history_weeks=2, max_weeks=3, traffic_share=0.5)
    )
    found = [row for row in units.plan(spec).prospects if row.overall and row.weeks == 3 and row.method == "fixed"]
    by_treatment = {(row.metric, row.treatment): row for row in found}
    money = by_treatment["money", "t"]
    assert (money.n_control, money.n_treatment, money.n_units) == (1200, 150, 1500)
    assert by_treatment["money", "u"].n_treatment == 150
    # At worst Holm leaves each of two treatments half of alpha, Benjamini-Hochberg each of four tests a quarter.
    assert [by_treatment[name, "t"].alpha for name in ("money", "bought", "slow")] == [0.025, 0.0125, 0.05]
    variance = units.values["revenue"][units.week < 2].var(ddof=1)
    z = special.ndtri(1 - 0.0125) + special.ndtri(0.8)
    # 150 units in one arm, as many units as two weeks give 3000 degrees of freedom for: half a per cent.
    assert money.mde == pytest.approx(z * sqrt(variance / 1200 + variance / 150), rel=5e-3)


def test_a_ramp_gives_each_week_the_weights_of_its_days(units: Units) -> None:
    ramp = {START: {"c": 9.0, "t": 1.0}, START + timedelta(days=10): {"c": 1.0, "t": 1.0}}
    row = rows(units.plan(two_weeks(phases=ramp)), "money")[3]
    # 2000 units of the first week and 3/7 of the 1000 of the second come at 1 to 9, the others at 1 to 1.
    early, late = 2000 + 1000 * 3 / 7, 1000 * 4 / 7
    assert row.n_treatment == pytest.approx(0.1 * early + 0.5 * late, abs=2)
    assert row.n_control == pytest.approx(0.9 * early + 0.5 * late, abs=2)
    variance = units.values["revenue"][units.week < 2].var(ddof=1)
    pooled = Z * sqrt(variance / row.n_control + variance / row.n_treatment)
    assert row.mde > 1.1 * pooled  # post-stratified by phase, as it will be read


def test_a_slice_has_its_own_units_and_shares_alpha_with_the_others(units: Units) -> None:
    row = rows(units.plan(two_weeks()), "money", slice_value="tv")[3]
    values = units.values["revenue"][(units.week < 2) & (units.device == "tv")]
    z = special.ndtri(1 - 0.025 / 2) + special.ndtri(0.8)
    assert (row.slice_key, row.n_family, row.alpha) == ("device", 2, 0.025)
    # Odd weeks leave a unit in neither arm.
    assert row.n_units == pytest.approx(len(values), abs=2)
    assert row.mde == pytest.approx(z * sqrt(4 * values.var(ddof=1) / len(values)), rel=5e-3)
    assert row.leads
    assert not row.decides


def test_looking_more_often_takes_more_units(units: Units) -> None:
    found = units.plan(two_weeks(inference="group_sequential"))
    once, weekly, daily = (rows(found, "money", name)[6] for name in ("fixed", "group-sequential", "always-valid"))
    assert once.mde < weekly.mde < daily.mde
    assert once.n_needed < weekly.n_needed < daily.n_needed
    assert (once.leads, weekly.leads, daily.leads) == (False, True, False)
    single = rows(found, "money", "group-sequential")[2]
    assert single.mde == pytest.approx(rows(found, "money")[2].mde, rel=1e-9)  # one look spends all


def test_a_guardrail_has_alpha_on_its_one_side_however_often_it_is_read(units: Units) -> None:
    weekly = rows(units.plan(two_weeks(inference="group_sequential")), "slow", "group-sequential")[4]
    doubled = rows(units.plan(two_weeks(inference="group_sequential", alpha=0.1)), "money", "group-sequential")[4]
    assert weekly.half_width / weekly.std_error == pytest.approx(doubled.half_width / doubled.std_error, rel=1e-9)
    daily = rows(units.plan(two_weeks(inference="always_valid")), "slow", "always-valid")[4]
    look = Look(0.0, daily.std_error, daily.n_control + daily.n_treatment)
    both = always_valid(look, alpha=0.1, rho=best_rho(alpha=0.05, horizon=daily.n_units)).half_width
    assert daily.half_width == pytest.approx(both, rel=1e-9)


def test_that_a_sample_is_planned_as_if_all_were_read_is_said(units: Units) -> None:
    plain, sample = (units.plan(two_weeks(sample=each)) for each in (None, Sample(0.1)))
    said = "the readout is to read a sample of 0.1 of the units; this is planned for all"
    assert sample.reasons == (*plain.reasons, said)


def test_five_even_looks_have_the_published_last_bound() -> None:
    spec = experiment(inference="group_sequential", plan=Plan(history_weeks=5, max_weeks=6))
    found = Units.drawn(np.random.default_rng(4), [500] * 6).plan(spec)
    row = rows(found, "money", "group-sequential")[6]
    # Lan-DeMets with the spending of O'Brien and Fleming, five looks: 2.0310 at the last.
    assert row.half_width / row.std_error == pytest.approx(2.0310, abs=1e-4)


def test_a_horizon_of_the_conf_is_the_one_that_is_planned_with(units: Units) -> None:
    wide, planned = (
        rows(units.plan(two_weeks(inference="always_valid", horizon=n)), "money", "always-valid")[3]
        for n in (10**6, None)
    )
    assert wide.mde > 1.1 * planned.mde


def test_a_metric_without_a_window_counts_to_the_end_of_each_week() -> None:
    speed = Metric("speed", "mean", "latency", role="guardrail", direction="decrease", margin=Margin(relative=0.1))
    spec = two_weeks(metrics=(MONEY, speed))
    trial = tried(spec)
    assert [metric.name for metric in trial.experiment.metrics[1:]] == [
        f"speed_upto_week_{week}" for week in (1, 2, 3)
    ]
    assert trial.copies() == {
        f"latency_upto_week_{week}": ("latency", trial.start + week * WEEK) for week in (1, 2, 3)
    }
    units = Units.drawn(np.random.default_rng(5), [2000, 1000, 500])
    found = rows(units.plan(spec), "speed")
    assert [row.n_units for row in found.values()] == [3000, 3500, 3750, 3874, 3936]  # nobody has to mature
    assert {row.method for row in units.plan(spec).prospects if row.metric == "speed"} == {"fixed"}


def test_too_few_units_are_not_planned_with() -> None:
    few = Units.drawn(np.random.default_rng(6), [80, 40, 40]).plan(
        two_weeks(inference="always_valid", plan=Plan(history_weeks=2, max_weeks=3))
    )
    assert rows(few, "money")[2].reason == "40 units in an arm, at least 50 needed"
    assert rows(few, "money", "always-valid")[3].reason == "too few units or events for a sequential test"
    assert {row.verdict for row in few.prospects if row.decides} == {Verdict.INCONCLUSIVE}


def test_a_metric_that_never_varies_is_not_planned_with(units: Units) -> None:
    flat = replace(units, values=units.values | {"revenue": np.ones(len(units.week))})
    row = rows(flat.plan(two_weeks()), "money")[3]
    assert (row.verdict, row.reason) == (Verdict.INCONCLUSIVE, "no test: nothing varies")
    assert isnan(row.mde)


def test_the_plan_is_the_fewest_weeks_in_which_all_that_decides_is_found(units: Units) -> None:
    sizes = {weeks: row.mde for weeks, row in rows(units.plan(two_weeks()), "money").items()}
    between = Margin(absolute=(sizes[3] + sizes[4]) / 2)
    spec = two_weeks(metrics=(replace(MONEY, smallest_effect=between), SLOW))
    found = units.plan(spec)
    assert (found.verdict, found.weeks) == (Verdict.PASS, 4)
    text = markdown(found, spec, tried(spec), _midnight())
    assert text.startswith(
        "**run for 4 weeks**, the last 1 for windows to mature: 2026-10-12 to 2026-11-09 (beyond 3"
    )
    assert "- write `planned_end: 2026-11-09` into the conf" in text
    assert "money (treatment" not in text
    assert f"money (t): an effect of {rows(found, 'money')[4].mde:.3g}" in text
    assert metrics(found)["weeks"] == 4


def test_a_goal_without_a_smallest_effect_or_too_small_a_one_has_no_duration(units: Units) -> None:
    silent = units.plan(spec := two_weeks(metrics=(replace(MONEY, smallest_effect=None), SLOW)))
    assert (silent.verdict, silent.weeks) == (Verdict.INCONCLUSIVE, None)
    assert "the conf says no smallest_effect" in silent.reasons[0]
    tiny = units.plan(two_weeks(metrics=(replace(MONEY, smallest_effect=Margin(absolute=1e-3)), SLOW)))
    assert tiny.weeks is None
    assert "units needed, 3,874 expected" in tiny.reasons[0]
    text = markdown(silent, spec, tried(spec), _midnight())
    assert text.startswith("**no duration up to 6 weeks is enough**")
    assert metrics(silent)["weeks"] is None


def test_the_figure_has_a_panel_for_each_metric_that_decides(units: Units) -> None:
    found = units.plan(two_weeks(pre_days=14))
    figure = detectable(found)
    assert [axis.get_title(loc="left") for axis in figure.axes] == [
        "money: smallest effect found, t",
        "slow: smallest margin kept, t",
    ]
    drawn = {
        line.get_label(): line.get_ydata()[1] for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 5
    }
    assert drawn["fixed, cuped (leads)"] == rows(found, "money", "fixed, cuped")[3].mde


@pytest.mark.parametrize(("days", "weeks"), [(None, 0), (1, 0), (2, 1), (8, 1), (9, 2), (28, 4)])
def test_windows_mature_in_whole_weeks(days: int | None, weeks: int) -> None:
    assert maturing_weeks(experiment(metrics=(replace(MONEY, window_days=days),))) == weeks


def test_a_trial_is_as_long_as_the_conf_asks_and_the_history_allows() -> None:
    spec = experiment(plan=Plan(history_weeks=4), pre_days=14)
    assert (tried(spec).start, tried(spec).weeks) == (AS_OF - 5 * WEEK, 5)
    short = Trial.before(AS_OF, spec, History(AS_OF - timedelta(days=40), AS_OF))
    assert (short.start, short.weeks) == (AS_OF - 3 * WEEK, 3)
    assert list(short.experiment.phases) == [AS_OF - week * WEEK for week in (3, 2, 1)]
    assert short.experiment.past_since == AS_OF - 3 * WEEK - timedelta(days=14)


@pytest.mark.parametrize(
    ("changes", "history", "words"),
    [
        ({"unit": None}, HISTORY, "the conf states no unit"),
        ({"unit": "bucket_id", "buckets": {"b": "c"}, "metrics": (MONEY,)}, HISTORY, "the units are buckets"),
        ({"plan": Plan(max_weeks=1)}, HISTORY, "and the longest window alone takes 1 more weeks"),
        ({}, History(None, None), "no unit was seen in production from 2026-08-31 to 2026-10-05"),
        ({}, History(AS_OF - 9 * WEEK, AS_OF - timedelta(days=8)), "no unit was seen in production after 2026-09-27"),
        ({}, History(AS_OF - timedelta(days=20), AS_OF), "since 2026-09-15; a plan as of 2026-10-05 needs them since "
         "2026-09-14: 2 weeks of new units, 1 for the longest window, 0 days"),
        ({"pre_days": 1}, History(AS_OF - timedelta(days=21), AS_OF), "1 days of the units' past"),
        ({}, History(AS_OF - timedelta(days=21), AS_OF), ""),
        ({"pre_days": 1}, History(AS_OF - timedelta(days=22), AS_OF - timedelta(days=7)), ""),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_says_why(changes: dict[str, object], history: History, words: str) -> None:
    found = unplannable(experiment(**changes), history, AS_OF)
    assert words in found
    assert bool(found) == bool(words)


@pytest.mark.parametrize(
    ("key", "value"), [("history_weeks", 1), ("max_weeks", 0), ("traffic_share", 0.0), ("traffic_share", 1.5)]
)
def test_nonsense_in_a_plan_is_refused(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{key} is {value}, expected"):
        Plan(**{key: value})  # type: ignore[arg-type]


def test_a_resized_state_keeps_the_mean_and_the_variance_of_a_unit() -> None:
    state = Moments.of(("a", "b"), np.random.default_rng(7).normal(size=(40, 2)))
    for n in (7, 4000):
        other = resized(state, n + 0.3)
        assert (other.n, other.mean.tolist()) == (n, state.mean.tolist())
        assert other.cov("a", "b") == pytest.approx(state.cov("a", "b"), rel=1e-12)
    assert resized(state, 0.4).n == resized(Moments.empty(("a",)), 9).n == 0


RUNS = 400


def run_once(
    rng: np.random.Generator, spec: Experiment, arrivals: Sequence[int], effect: dict[str, float]
) -> list[SliceStates]:
    """The states of an experiment after each week of arrivals, its treatment adding an effect."""
    units = Units.drawn(rng, arrivals)
    treated = rng.random(len(units.week)) < 0.5
    moved = {name: units.values[name] + size * treated for name, size in effect.items()}
    moved_units = replace(units, values=units.values | moved)
    return [
        SliceStates(
            Slice("", ""),
            {
                Arm(arm, 0, crossed=False): moved_units.blocks(spec, (treated == (arm == "t")) & (units.week <= week))
                for arm in "ct"
            },
        )
        for week in range(len(arrivals))
    ]


def assert_reached(found: list[bool], power: float, *, or_more: bool = False) -> None:
    low, high = stats.binom.interval(0.999, len(found), power)
    assert low <= sum(found)
    assert or_more or sum(found) <= high


@pytest.mark.slow
@pytest.mark.parametrize("by_past", [False, True])
def test_experiments_of_the_planned_weeks_find_the_planned_effects(by_past: bool) -> None:
    spec = two_weeks(metrics=(MONEY, SLOW), pre_days=14)
    arrivals, rng = [200, 100, 100], np.random.default_rng(8)
    # The history has a hundred times the units, so that its own chance does not count.
    found = Units.drawn(rng, [100 * n for n in arrivals]).plan(
        replace(spec, plan=replace(spec.plan, traffic_share=0.01))
    )
    method = "fixed, cuped" if by_past else "fixed"
    money, slow = rows(found, "money", method)[3], rows(found, "slow", method)[3]
    kept = replace(SLOW, margin=Margin(relative=slow.mde / slow.mean_control))
    runs = [run_once(rng, spec, arrivals[:2], {"revenue": money.mde})[-1] for _ in range(RUNS)]
    read = [fixed(states, spec, MONEY, "t", by_past=by_past).comparison for states in runs]
    assert_reached([each.pvalue <= 0.05 and each.effect > 0 for each in read], 0.8)
    # The margin is a little narrower than the one of the plan, whose standard error depends on it.
    excluded = [fixed(states, spec, kept, "t", by_past=by_past).non_inferiority for states in runs]
    assert_reached([pvalue <= 0.05 for pvalue in excluded], 0.8)


@pytest.mark.slow
def test_experiments_read_every_week_find_the_planned_effects_at_least_as_often() -> None:
    spec = two_weeks(metrics=(MONEY,))
    arrivals, rng = [600, 400, 300], np.random.default_rng(9)
    history = Units.drawn(rng, [100 * n for n in arrivals])
    found = history.plan(replace(spec, plan=replace(spec.plan, traffic_share=0.01)))
    weekly, always = (rows(found, "money", method)[4].mde for method in ("group-sequential", "always-valid"))
    information = np.cumsum(arrivals) / sum(arrivals)
    crossed, shown = [], []
    for _ in range(RUNS):
        states = run_once(rng, spec, arrivals, {"revenue": weekly})
        looks = [fixed(each, spec, MONEY, "t") for each in states]
        statistics = [each.comparison.statistic for each in looks]
        crossed.append(group_sequential(statistics, information.tolist(), alpha=0.05)[-1].has_crossed)
        # The same units with the larger effect that the always-valid test was planned for.
        larger = [_moved(each, always - weekly) for each in looks]
        shown.append(at_every_look(larger, MONEY, spec, sum(arrivals)).comparison.pvalue <= 0.05)
    for each in (crossed, shown):
        assert_reached(each, 0.8, or_more=True)
        assert sum(each) < 0.95 * RUNS


def _moved(found: Compared, size: float) -> Compared:
    return found._replace(comparison=found.comparison._replace(effect=found.comparison.effect + size))


def _midnight() -> datetime:
    return datetime(AS_OF.year, AS_OF.month, AS_OF.day, tzinfo=UTC)
