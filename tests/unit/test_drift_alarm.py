from dataclasses import replace
from math import inf, isnan, nan

import numpy as np
import pytest
from scipy import stats

from mltrust.drift.alarm import Alarm, Key, judge, measured, pooled_profiles, sides_of, too_few
from mltrust.drift.cells import OrderedCells, UnorderedCells
from mltrust.drift.cusum import cusum, run_length, score, threshold
from mltrust.drift.findings import Finding, findings
from mltrust.drift.noise import SHAPE, Measured, Sides
from mltrust.drift.profile import Profile
from mltrust.verdicts import Verdict

ALARM = Alarm()
AGES, LETTERS = OrderedCells.of(np.arange(95)), UnorderedCells.of("abcde")
CELLS = {"features.age": AGES, "letter": LETTERS}
AGE, LETTER = Key("features.age"), Key("letter")


def window(seed: int, n: int = 2000, *, shift: float = 0.0, cap: float = inf) -> dict[Key, Profile]:
    rng = np.random.default_rng(seed)
    ages = (rng.integers(0, 95, n) + shift).clip(max=cap)
    return {AGE: Profile.of(AGES, ages), LETTER: Profile.of(LETTERS, rng.choice(list("abcde"), n))}


REFERENCE = window(0, 20_000)


def read(current: dict[Key, Profile], alarm: Alarm = ALARM) -> list[Finding]:
    return findings(sides_of(REFERENCE, current, CELLS), alarm, alarm.level())


def breaches(found: list[Finding]) -> list[tuple[str, str]]:
    return [(each.column, each.measure) for each in found if each.verdict == Verdict.BREACH]


def test_a_window_like_the_reference_passes_and_says_what_it_would_have_found() -> None:
    found = read(window(1))
    assert {each.verdict for each in found} == {Verdict.PASS}
    assert {each.n_family for each in found} == {8}
    assert all(each.detectable >= each.floor for each in found)
    reasons = {(each.column, each.measure): each.reason for each in found}
    assert reasons["letter", "unseen"].startswith("letter: 0 unseen, 0 in the reference; 0.")


def test_a_breach_says_in_words_what_changed() -> None:
    rng = np.random.default_rng(3)
    ages = rng.integers(0, 95, 2000).astype(float)
    ages[:15], ages[100:300] = 97, nan
    letters = np.where(rng.random(2000) < 0.3, "a", rng.choice(list("abcde"), 2000))
    letters[:40] = "new"
    reasons = {
        each.measure: each.reason
        for each in read({AGE: Profile.of(AGES, ages), LETTER: Profile.of(LETTERS, letters)})
        if each.verdict == Verdict.BREACH
    }
    assert reasons["above"] == "age: 0.75 % above the reference's maximum 94; 0 in the reference"
    assert reasons["missing"] == "age: 10.0 % missing; 0 in the reference"
    assert reasons["unseen"] == "letter: 2.0 % of a value that the reference never has; 0 in the reference"
    assert "after noise; most of it in a (" in reasons["jsd"]


def test_a_shifted_mean_is_told_in_the_columns_unit() -> None:
    found = next(each for each in read(window(4, shift=6)) if each.measure == "mean_shift")
    assert found.verdict == Verdict.BREACH
    assert found.reason.startswith("age: mean 5")
    assert found.reason.endswith("of its standard deviations up")


def test_what_is_sure_but_smaller_than_the_floor_is_no_alarm() -> None:
    def shifted(floor: float) -> Finding:
        found = read(window(5, shift=6), Alarm(min_mean_shift=floor))
        return next(each for each in found if each.measure == "mean_shift")

    assert shifted(0.1).qvalue == shifted(0.5).qvalue < 1e-6
    assert (shifted(0.1).verdict, shifted(0.5).verdict) == (Verdict.BREACH, Verdict.PASS)


def test_a_small_window_says_nothing_and_is_no_member_of_the_family() -> None:
    small = {**window(6), AGE: window(6, 50)[AGE]}
    found = read(small)
    assert {each.verdict for each in found if each.column == "features.age"} == {Verdict.INCONCLUSIVE}
    assert {each.n_family for each in found} == {3}
    assert {each.reason for each in found if each.column == "features.age"} == {
        "age: 50 rows in the current window, 100 are needed"
    }
    assert all(isnan(each.pvalue) and isnan(each.qvalue) for each in found if each.column == "features.age")


def test_few_units_with_many_rows_are_a_small_window_too() -> None:
    one = Profile.of(LETTERS, list("ab") * 500, np.arange(1000) // 20)
    assert too_few(Sides(LETTERS, REFERENCE[LETTER], one), ALARM) == "50 units in the current window, 100 are needed"


def test_a_side_that_lacks_a_slice_or_a_column_is_inconclusive() -> None:
    only_here = {Key("letter", "country", "xx"): window(7)[LETTER]}
    assert {each.verdict for each in read(only_here)} == {Verdict.INCONCLUSIVE}
    gone = findings(sides_of(REFERENCE, {}, CELLS), ALARM, 0.001)
    assert {each.verdict for each in gone} == {Verdict.INCONCLUSIVE}
    assert all("0 rows in the current window" in each.reason for each in gone)


def test_windows_that_each_say_nothing_may_say_something_together() -> None:
    windows = [window(20 + at, 500, shift=4, cap=94) for at in range(5)]
    assert not any(breaches(read(each)) for each in windows)
    together = pooled_profiles(windows, recurring=False)
    assert ("features.age", "mean_shift") in breaches(read(together))


def test_users_know_the_effect_sizes_by_their_names() -> None:
    found = next(each for each in read(window(8, shift=6)) if each.measure == SHAPE and each.column == "features.age")
    assert found.js_distance**2 == pytest.approx(found.value) == pytest.approx(sum(found.contributions))
    assert found.chi_squared_pvalue == found.pvalue
    assert found.psi_corrected
    assert 0 < found.ks_statistic < found.tv_distance < 1
    assert found.wasserstein_distance == pytest.approx(6, abs=1.5)
    letter = next(each for each in read(window(8)) if each.measure == SHAPE and each.column == "letter")
    assert isnan(letter.ks_statistic)
    assert isnan(letter.wasserstein_distance)


def test_a_budget_of_false_alarms_is_shared_by_all_that_can_alarm() -> None:
    budget = Alarm(false_alarms_per_30_days=0.3)
    assert budget.level(window_days=1) == pytest.approx(0.3 / 60)
    assert budget.level(window_days=1, n_references=2) == pytest.approx(0.3 / 120)
    assert replace(budget, pooled_windows=1).level(window_days=5) == pytest.approx(0.3 / 6)
    assert (Alarm().level(), Alarm(q=0.01).level(7)) == (0.001, 0.01)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"q": 0.1, "false_alarms_per_30_days": 1.0}, "one of both"),
        ({"q": 1.5}, "q is 1.5"),
        ({"false_alarms_per_30_days": 0.0}, "above 0"),
        ({"min_share": -0.1}, "min_share is -0.1"),
        ({"min_rows": 1}, "min_rows is 1"),
    ],
)
def test_an_alarm_that_makes_no_sense_is_refused(given: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Alarm(**given)  # type: ignore[arg-type]


def test_undefined_tests_are_inconclusive_and_do_not_count() -> None:
    tests = [Measured(SHAPE, "bits", 500, 500, pvalue=p, corrected=0.1) for p in (1e-5, nan, 0.5)]
    judged = judge([(Key(str(at)), test) for at, test in enumerate(tests)], ALARM, 0.001)
    assert [each.verdict for each in judged] == ["breach", "inconclusive", "pass"]
    assert judged[0].qvalue == pytest.approx(2e-5)


def test_every_test_of_a_column_is_made_once() -> None:
    both = sides_of(REFERENCE, window(9), CELLS)
    assert [test.measure for test in measured(both[AGE], ALARM)] == ["jsd", "missing", "below", "above", "mean_shift"]
    assert [test.measure for test in measured(both[LETTER], ALARM)] == ["jsd", "missing", "unseen"]


@pytest.mark.slow
@pytest.mark.parametrize("df", [1, 9, 24.5])
def test_the_threshold_of_slow_shifts_is_crossed_as_rarely_as_stated(df: float) -> None:
    at = threshold(df, 200.0, 0.7)
    rng = np.random.default_rng(12)
    scores = (rng.chisquare(df, (400, 4000)) - df) / np.sqrt(2 * df)
    runs = [_crossed(each.tolist(), at) for each in scores]
    # The mean of 400 geometric numbers is known to 5 %; three of these, and the grid of states.
    assert np.mean(runs) == pytest.approx(200, rel=0.16)
    assert run_length(df, at, 0.7) == pytest.approx(200, rel=0.01)


def _crossed(scores: list[float], threshold: float) -> int:
    """The number of the window whose sum first reaches the threshold."""
    total = 0.0
    for n, each in enumerate(scores, 1):
        total = max(0.0, total + each - 0.7)
        if total >= threshold:
            return n
    return len(scores)


def test_slow_shifts_add_up_and_start_anew_after_an_alarm() -> None:
    assert cusum([1.7, 1.7, 1.7], slack=0.7, threshold=10) == pytest.approx(3)
    assert cusum([-5, 1.7], slack=0.7, threshold=10) == pytest.approx(1)
    assert cusum([11, 1.7], slack=0.7, threshold=10) == pytest.approx(1)


def test_the_score_of_a_window_is_that_of_its_pvalue() -> None:
    test = Measured(
        SHAPE, "bits", 500, 500, statistic=30.0, df=9.0, design_effect=1.0, pvalue=float(stats.chi2.sf(30, 9))
    )
    assert score(test) == pytest.approx((30 - 9) / np.sqrt(18))
    assert score(test._replace(pvalue=0.0)) == pytest.approx((30 - 9) / np.sqrt(18))
    assert score(test._replace(pvalue=nan)) == 0
