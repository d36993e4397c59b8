"""Which windows are held against which, and what their verdicts come to."""

from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import pytest

from mltrust.drift.alarm import Alarm, Key
from mltrust.drift.cells import Cells, OrderedCells
from mltrust.drift.families import ANY_VERSION, EVERY_ROW, SHADOWED, Arms, Family, Population, Slot, families, needed
from mltrust.drift.profile import Profile
from mltrust.drift.readout import judge, verdict
from mltrust.drift.spec import Against, Drift, Reference, Window
from mltrust.verdicts import Verdict

AS_OF = date(2026, 10, 26)
DRIFT = Drift(Reference(date(2026, 10, 1), date(2026, 10, 15)), alarm=Alarm(pooled_windows=1))
CELLS: dict[str, Cells] = {"x": OrderedCells.of(np.random.default_rng(1).normal(size=5000))}
ARMS = {"e": Arms("e/c", ("e/t",))}
CHAMPION = Population("1", "production", EVERY_ROW)
CANDIDATE = Population("2", "production", EVERY_ROW)
SHADOW = Population("2", "shadow", EVERY_ROW)


def day(n: int) -> Window:
    """The n-th day before as_of."""
    return Window(AS_OF - timedelta(days=n), AS_OF - timedelta(days=n - 1))


def profile(n: int = 400, shift: float = 0.0, seed: int = 2) -> dict[Key, Profile]:
    values = np.random.default_rng(seed).normal(shift, 1, n)
    return {Key("x"): Profile.of(CELLS["x"], values, np.arange(n, dtype=np.int64) * 977)}


def compared(against: Against, *slots: Slot) -> list[Family]:
    return families(replace(DRIFT, against=(against,)), {slot: profile() for slot in slots}, ARMS, AS_OF)


def n_rows(profiles: object) -> int:
    assert isinstance(profiles, dict)
    return sum(each.n_rows for each in profiles.values())


def test_a_window_is_held_against_the_fixed_reference_of_its_own_version() -> None:
    reference = DRIFT.reference.window
    found = compared(Against("fixed"), Slot(CHAMPION, day(1)), Slot(CHAMPION, reference), Slot(CANDIDATE, day(1)))
    assert [(each.population, each.window, each.reference) for each in found] == [
        (CHAMPION, day(1), "fixed"),
        (CANDIDATE, day(1), "fixed"),
    ]
    assert [n_rows(each.baseline) for each in found] == [400, 0]
    assert found[0].reference_days == 14


def test_a_reference_of_one_version_is_everyones() -> None:
    drift = replace(DRIFT, reference=replace(DRIFT.reference, model_version="1"))
    slots = {Slot(CANDIDATE, day(1)): profile(), Slot(CHAMPION, drift.reference.window): profile(300)}
    assert [n_rows(each.baseline) for each in families(drift, slots, ARMS, AS_OF)] == [300]


def test_same_weekdays_add_up() -> None:
    slots = [Slot(CHAMPION, day(n)) for n in (1, 8, 15, 2)]
    (found,) = compared(Against("same_weekdays", weeks=3), *slots)
    assert (n_rows(found.current), n_rows(found.baseline), found.reference_days) == (400, 800, 3)


def test_arms_are_of_any_version() -> None:
    slots = [Slot(Population(version, "production", arm), day(1)) for version in "12" for arm in ("e/c", "e/t")]
    (found,) = compared(Against("control", experiment="e"), *slots)
    assert found.population == Population(ANY_VERSION, "production", "e/t")
    assert (n_rows(found.current), n_rows(found.baseline)) == (800, 800)


def test_shadows_are_held_against_production_of_the_same_requests() -> None:
    shadowed = Population("1", "production", SHADOWED)
    slots = [Slot(each, day(1)) for each in (CHAMPION, SHADOW, shadowed)]
    (found,) = compared(Against("production", model_version="1"), *slots)
    assert (found.population, found.paired, n_rows(found.baseline)) == (SHADOW, True, 400)


def test_a_version_is_not_held_against_itself() -> None:
    slots = [Slot(each, day(1)) for each in (CHAMPION, CANDIDATE)]
    (found,) = compared(Against("version", model_version="1"), *slots)
    assert found.population == CANDIDATE


def test_the_last_windows_are_pooled_against_what_stays_and_against_what_is_of_the_same_windows() -> None:
    drift = replace(
        DRIFT, alarm=Alarm(pooled_windows=3), against=(Against("fixed"), Against("previous"), Against("control", "e"))
    )
    slots = {
        Slot(each, day(n)): profile() for n in (1, 2, 3) for each in (CHAMPION, Population("1", "production", "e/t"))
    }
    found = [each for each in families(drift, slots, ARMS, AS_OF) if each.is_pooled]
    assert [(each.reference, each.window, n_rows(each.current)) for each in found] == [
        ("fixed, 3 windows", Window(day(3).start, AS_OF), 1200),
        ("control of e, 3 windows", Window(day(3).start, AS_OF), 1200),
    ]


def test_windows_of_the_reference_itself_are_not_pooled_against_it() -> None:
    drift = replace(DRIFT, alarm=Alarm(pooled_windows=5), reference=Reference(date(2026, 10, 1), day(2).start))
    slots = {Slot(CHAMPION, day(n)): profile() for n in range(1, 6)}
    (found,) = [each for each in families(drift, slots, ARMS, AS_OF) if each.is_pooled]
    assert (found.window, found.n_windows) == (Window(day(2).start, AS_OF), 2)


@pytest.mark.parametrize(
    ("against", "expected"),
    [
        (Against("fixed"), set(range(1, 12))),  # all since the reference, whose slow shifts are added up
        (Against("previous"), {1, 2}),
        (Against("same_weekdays", weeks=2), {1, 8, 15}),
        (Against("control", "e"), {1}),
    ],
)
def test_only_the_windows_that_are_compared_are_needed(against: Against, expected: set[int]) -> None:
    found = needed(replace(DRIFT, against=(against,)), AS_OF)
    assert set(found) == {day(n) for n in expected} | {DRIFT.reference.window}


def test_looking_back_needs_every_earlier_window() -> None:
    drift = replace(DRIFT, against=(Against("previous"),), alarm=Alarm(pooled_windows=2))
    assert set(needed(drift, AS_OF, back=2)) == {day(n) for n in (1, 2, 3, 4)} | {DRIFT.reference.window}


def judged(current: dict[Key, Profile], reference: dict[Key, Profile], against: Against) -> Verdict:
    drift = replace(DRIFT, against=(against,))
    slots = {Slot(CHAMPION, day(1)): current, Slot(CHAMPION, drift.reference.window): reference}
    return verdict(judge(families(drift, slots, ARMS, AS_OF), CELLS, drift))


def test_a_breach_of_what_decides_is_the_verdict() -> None:
    assert judged(profile(seed=3), profile(4000), Against("fixed")) is Verdict.PASS
    assert judged(profile(shift=1.0), profile(4000), Against("fixed")) is Verdict.BREACH
    assert judged(profile(shift=1.0), profile(4000), Against("fixed", decides=False)) is Verdict.INCONCLUSIVE


def test_too_few_rows_are_never_a_pass() -> None:
    assert judged(profile(40), profile(4000), Against("fixed")) is Verdict.INCONCLUSIVE
    assert verdict([]) is Verdict.INCONCLUSIVE


def test_a_small_slice_keeps_nobody_from_a_pass() -> None:
    small = profile(seed=3) | {Key("x", "device", "tv"): profile(20)[Key("x")]}
    assert judged(small, profile(4000), Against("fixed")) is Verdict.PASS


@pytest.mark.slow
def test_what_no_window_shows_adds_up_over_many() -> None:
    """Windows of 60 rows that are shifted by a third of a standard deviation, against a reference of 15,000.

    The sum starts anew after it has crossed, so that of the last windows one alarms and not all.
    """
    reference = Reference(date(2026, 9, 1), date(2026, 9, 20))
    drift = replace(DRIFT, reference=reference, alarm=Alarm(min_rows=50, min_units=50))
    said: dict[tuple[float, str], list[str]] = {}
    for shift in (0.0, 0.3):
        slots = {Slot(CHAMPION, day(n)): profile(60, shift, seed=n) for n in range(1, 31)}
        slots[Slot(CHAMPION, reference.window)] = profile(15_000, seed=99)
        for back in range(15):
            window = judge(families(drift, slots, ARMS, AS_OF, back), CELLS, drift)[0]
            for each in window.findings:
                said.setdefault((shift, each.measure), []).append(each.verdict)
    assert said[0.0, "cusum"].count(Verdict.BREACH) == 0
    assert said[0.3, "jsd"].count(Verdict.BREACH) <= 1, "a window alone seldom shows it"
    assert 1 <= said[0.3, "cusum"].count(Verdict.BREACH) <= 4


def test_slow_shifts_need_a_reference_that_is_much_larger_than_a_window() -> None:
    slots = {Slot(CHAMPION, day(n)): profile(400, seed=n) for n in (1, 2)}
    slots[Slot(CHAMPION, DRIFT.reference.window)] = profile(2000, seed=99)
    window = judge(families(DRIFT, slots, ARMS, AS_OF), CELLS, DRIFT)[0]
    (found,) = [each for each in window.findings if each.measure == "cusum"]
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "1/30 of the reference's rows" in found.reason
