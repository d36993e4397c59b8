"""What the variant should not change: found where it is planted, silent where it is not."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta
from math import isnan

import numpy as np
import pytest
from scipy import stats

from mltrust.experiment.balance import imbalances
from mltrust.experiment.cells import (
    ARM_KEYS,
    DAY,
    FAILED,
    MISSERVED,
    NO_PAST,
    PAST,
    UNITS,
    ExperimentStates,
    by_day,
    mature_block,
    metric_block,
    overall_of,
)
from mltrust.experiment.check import Check
from mltrust.experiment.spec import Experiment
from mltrust.metrics import Metric
from mltrust.states.moments import Moments
from mltrust.verdicts import Verdict

MONEY = Metric("money", "mean", "revenue", role="goal", window_days=7, missing="exclude")
START = date(2026, 10, 5)


def experiment(**changes: object) -> Experiment:
    spec: dict[str, object] = {
        "experiment_id": "e",
        "log": "log",
        "control": "c",
        "phases": {START: {"c": 1.0, "t": 1.0}},
        "metrics": (MONEY,),
        "unit": "unit_id",
    }
    return Experiment(**(spec | changes))  # type: ignore[arg-type]


class Group:
    """n units of an arm, first exposed on a day, of which some are crossed, immature, or without a value."""

    def __init__(
        self, arm: str, n: int, *, day: int = 0, crossed: bool = False, immature: int = 0, missing: int = 0,
        past: float = 0.0, phase: int = 0, failed: int = 20, misserved: int = 0, seed: int = 1,
    ) -> None:  # fmt: skip
        rng = np.random.default_rng([seed, ord(arm), day])
        values = (arm, str(phase), "yes" if crossed else "no", (START + timedelta(days=day)).isoformat())
        self.values = dict(zip((*ARM_KEYS, DAY), values, strict=True))
        before = np.column_stack([rng.normal(past, 1, n), rng.random(n) < 0.1])
        self.blocks = {
            UNITS: counted(n),
            FAILED: counted(failed),
            MISSERVED: counted(misserved),
            mature_block(MONEY): counted(n - immature),
            metric_block(MONEY): Moments.of(("revenue",), rng.normal(5, 1, (n - immature - missing, 1))),
            PAST: Moments.of(("past revenue", NO_PAST), before),
        }


def counted(n: int) -> Moments:
    return Moments.of((), np.empty((n, 0)))


def found(groups: Sequence[Group], **changes: object) -> dict[str, Check]:
    cells = [(group.values, group.blocks) for group in groups]
    spec = experiment(**changes)
    whole = overall_of(cells)
    rows = imbalances(ExperimentStates(whole, {}, by_day(cells), whole=whole), spec)
    return {f"{row.check} {row.metric}".strip(): row for row in rows}


def test_arms_that_differ_in_nothing_pass_every_check() -> None:
    rows = found([Group(arm, 1000, immature=100, missing=50, day=day) for arm in "ct" for day in (0, 1)])
    assert {row.verdict for row in rows.values()} == {Verdict.PASS}
    assert set(rows) == {
        "contamination", "exposure timing", "immaturity 7 days", "missingness money", "errors", "rejects",
        "pre-exposure bias past revenue", "pre-exposure bias no past",
    }  # fmt: skip


def test_a_ramp_whose_later_units_are_immature_and_had_less_time_to_fail_is_no_imbalance() -> None:
    phases = {START: {"c": 19.0, "t": 1.0}, START + timedelta(days=7): {"c": 1.0, "t": 1.0}}
    groups = [
        Group("c", 9500, failed=950, missing=475),
        Group("t", 500, failed=50, missing=25),
        Group("c", 5000, day=14, phase=1, immature=2500, failed=100, missing=25),
        Group("t", 5000, day=14, phase=1, immature=2500, failed=100, missing=25),
    ]
    rows = found(groups, phases=phases)
    shares = {name: row for name, row in rows.items() if name.split()[0] in ("immaturity", "missingness", "errors")}
    assert {row.verdict for row in shares.values()} == {Verdict.PASS}
    assert shares["immaturity 7 days"].reason.endswith("c 2,500 of 14,500 (17.24%), t 2,500 of 5,500 (45.45%)")
    groups[3] = Group("t", 5000, day=14, phase=1, immature=2900, failed=100, missing=25)
    assert found(groups, phases=phases)["immaturity 7 days"].verdict is Verdict.BREACH


def test_more_missing_values_in_an_arm_fail_with_both_shares() -> None:
    rows = found([Group("c", 1000, missing=50), Group("t", 1000, missing=120)])
    row = rows["missingness money"]
    assert (row.verdict, row.decides) == (Verdict.BREACH, True)
    assert "c 50 of 1,000 (5.00%), t 120 of 1,000 (12.00%)" in row.reason
    expected = stats.chi2_contingency([[50, 120], [950, 880]], correction=False)
    assert row.pvalue == pytest.approx(expected.pvalue, rel=1e-9)


def test_more_units_with_failed_requests_in_an_arm_fail() -> None:
    row = found([Group("c", 1000, failed=20), Group("t", 1000, failed=70)])["errors"]
    assert (row.verdict, row.decides) == (Verdict.BREACH, True)
    assert row.reason.startswith("the arms differ in units with a failed request: c 20 of 1,000 (2.00%), t 70 of")


def test_an_arm_that_lost_more_records_to_the_rejects_fails() -> None:
    cells = [(each.values, each.blocks) for each in (Group("c", 1000), Group("t", 1000))]
    states = ExperimentStates(overall_of(cells), {}, by_day(cells), whole=overall_of(cells))
    rejects = {"none": {}, "few": {"c": 3}, "alike": {"c": 40, "t": 45}, "unequal": {"c": 40, "t": 120}}
    rows = {
        name: next(row for row in imbalances(replace(states, rejects=lost), experiment()) if row.check == "rejects")
        for name, lost in rejects.items()
    }
    assert {name: row.verdict for name, row in rows.items()} == {
        "none": Verdict.PASS, "few": Verdict.INCONCLUSIVE, "alike": Verdict.PASS, "unequal": Verdict.BREACH,
    }  # fmt: skip
    assert rows["unequal"].pvalue == pytest.approx(stats.chisquare([40, 120]).pvalue)


def test_control_units_answered_by_the_candidate_fail_whatever_their_share() -> None:
    groups = [Group("c", 1000, misserved=1), Group("t", 1000)]
    rows = found(groups, served_by={"c": ("1", "2"), "t": ("3",)})
    row = rows["served by c"]
    assert (row.verdict, row.decides, row.value) == (Verdict.BREACH, True, 0.001)
    assert row.reason == "c 1 of 1,000 (0.10%) were answered by a model version other than 1, 2"
    assert rows["served by t"].verdict is Verdict.PASS
    assert not [name for name in found(groups) if name.startswith("served by")]


def test_an_arm_that_came_later_fails_timing_and_immaturity() -> None:
    early, late = Group("c", 1000, immature=100), Group("t", 1000, immature=400, day=1)
    rows = found([early, late, Group("c", 500, day=1), Group("t", 500)])
    assert rows["exposure timing"].verdict is Verdict.BREACH
    assert rows["immaturity 7 days"].verdict is Verdict.BREACH
    assert rows["missingness money"].verdict is Verdict.PASS


def test_timing_is_compared_within_phases_of_the_allocation() -> None:
    ramp = {START: {"c": 9.0, "t": 1.0}, START + timedelta(days=1): {"c": 1.0, "t": 1.0}}
    first = [Group("c", 900), Group("t", 100)]
    ramped, flat = ([Group(arm, 500, day=1, phase=phase) for arm in "ct"] for phase in (1, 0))
    assert found([*first, *ramped], phases=ramp)["exposure timing"].verdict is Verdict.PASS
    assert found([*first, *flat])["exposure timing"].verdict is Verdict.BREACH


def test_crossed_units_are_a_warning_from_one_per_cent_on_and_decide_nothing() -> None:
    rows = found([Group("c", 1980), Group("t", 1980), Group("c", 20, crossed=True), Group("t", 20, crossed=True)])
    row = rows["contamination"]
    assert (row.verdict, row.value, row.decides) == (Verdict.INCONCLUSIVE, 0.01, False)
    assert "c 20 of 2,000 (1.00%), t 20 of 2,000 (1.00%)" in row.reason
    fewer = found([Group("c", 1982), Group("t", 1980), Group("c", 19, crossed=True), Group("t", 19, crossed=True)])
    assert fewer["contamination"].verdict is Verdict.PASS
    few = found([Group("c", 95), Group("t", 96), Group("c", 5, crossed=True), Group("t", 4, crossed=True)])
    assert few["contamination"].verdict is Verdict.PASS


def test_units_of_one_variant_only_are_held_against_the_allocation_too() -> None:
    """More units of the treatment were seen in the control later: all are as allocated, the others are not."""
    groups = [Group("c", 1995), Group("t", 1700), Group("c", 5, crossed=True), Group("t", 300, crossed=True)]
    row = found(groups)["uncrossed"]
    assert (row.verdict, row.decides) == (Verdict.INCONCLUSIVE, False)
    assert row.pvalue == pytest.approx(stats.chisquare([1995, 1700]).pvalue)
    assert row.reason.endswith("c 1,995, t 1,700")
    alike = [Group("c", 1700), Group("t", 1700), Group("c", 300, crossed=True), Group("t", 300, crossed=True)]
    assert found(alike)["uncrossed"].verdict is Verdict.PASS
    assert "uncrossed" not in found([Group("c", 1000), Group("t", 1000)])


def test_arms_whose_ratio_changed_are_compared_before_exposure_within_phases() -> None:
    ramp = {START: {"c": 9.0, "t": 1.0}, START + timedelta(days=1): {"c": 1.0, "t": 1.0}}

    def of(later: float) -> dict[str, Check]:
        early = [Group("c", 9000), Group("t", 1000)]
        return found(
            [*early, Group("c", 5000, day=1, phase=1, past=1.0), Group("t", 5000, day=1, phase=1, past=later)],
            phases=ramp,
        )

    # Units that came later had done more, and more of them are treated.
    assert of(1.0)["pre-exposure bias past revenue"].verdict is Verdict.PASS
    assert of(1.3)["pre-exposure bias past revenue"].verdict is Verdict.BREACH
    few = [Group("c", 9, failed=0), Group("t", 1, failed=0)]
    thin = [*few, Group("c", 5000, day=1, phase=1), Group("t", 5000, day=1, phase=1)]
    assert found(thin, phases=ramp)["pre-exposure bias past revenue"].verdict is Verdict.PASS


def test_arms_that_differed_before_exposure_fail() -> None:
    rows = found([Group("c", 1000), Group("t", 1000, past=0.3)])
    assert rows["pre-exposure bias past revenue"].verdict is Verdict.BREACH
    assert rows["pre-exposure bias no past"].verdict is Verdict.PASS


def test_few_missing_values_are_not_tested_and_do_not_fail() -> None:
    row = found([Group("c", 1000, missing=6), Group("t", 1000)])["missingness money"]
    assert (row.verdict, isnan(row.pvalue), row.decides) == (Verdict.INCONCLUSIVE, True, False)


def test_nobody_and_buckets_have_nothing_that_fails() -> None:
    assert {row.verdict for row in found([]).values()} == {Verdict.INCONCLUSIVE}
    assert found([Group("c", 30), Group("t", 30)], unit="bucket_id", buckets={"1": "c", "2": "t"}) == {}


@pytest.mark.slow
def test_balanced_arms_fail_as_rarely_as_promised() -> None:
    rng = np.random.default_rng(11)
    failed = 0
    for _ in range(400):
        groups = [
            Group(arm, 500, day=day, immature=rng.binomial(500, 0.2), missing=rng.binomial(300, 0.1), seed=seed)
            for seed in [int(rng.integers(1 << 30))]
            for arm in "ct"
            for day in (0, 1)
        ]
        failed += any(row.verdict is Verdict.BREACH for row in found(groups).values())
    # Four families, each of which errs one time in a thousand: the 99.9 % bound of how many then fail.
    assert failed <= stats.binom.ppf(0.999, 400, 0.004)
