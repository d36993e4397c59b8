"""What a run says of drift: what moved first, every comparison, and rows for the table."""

from datetime import UTC, date, datetime, timedelta
from math import nan

import numpy as np
import pytest

from mltrust.drift.alarm import Key
from mltrust.drift.cells import Cells, OrderedCells
from mltrust.drift.families import EVERY_ROW, Family, Population, Slot, families
from mltrust.drift.profile import Profile
from mltrust.drift.readout import Counted, Judged, judge, verdict
from mltrust.drift.spec import Against, Drift, Reference, Window
from mltrust.report import drift as report
from mltrust.report.drift_figures import distributions, heat_map
from mltrust.verdicts import Verdict

AS_OF = date(2026, 10, 26)
DRIFT = Drift(Reference(date(2026, 10, 1), date(2026, 10, 15)), against=(Against("fixed"),))
WINDOW, REFERENCE = DRIFT.window(AS_OF), DRIFT.reference.window
RNG = np.random.default_rng(4)
PAST = RNG.normal(50, 10, 14_000)
CELLS: dict[str, Cells] = {"features.age": OrderedCells.of(PAST)}
CHAMPION = Population("1", "production", EVERY_ROW)


def profile(values: np.ndarray) -> dict[Key, Profile]:
    hashes = np.arange(len(values), dtype=np.int64) * 104_729
    half = len(values) // 2
    return {
        Key("features.age"): Profile.of(CELLS["features.age"], values, hashes),
        Key("features.age", "device", "tv"): Profile.of(CELLS["features.age"], values[:half], hashes[:half]),
    }


def judged(now: np.ndarray, counted: dict[tuple[str, Window], Counted] | None = None) -> list[Judged]:
    surveyed = {Slot(CHAMPION, WINDOW): profile(now), Slot(CHAMPION, REFERENCE): profile(PAST)}
    return judge(families(DRIFT, surveyed, {}, AS_OF), CELLS, DRIFT, counted)


@pytest.fixture(scope="module")
def quiet() -> list[Judged]:
    return judged(RNG.normal(50, 10, 1000).clip(PAST.min(), PAST.max()))


@pytest.fixture(scope="module")
def moved() -> list[Judged]:
    return judged(RNG.normal(60, 10, 1000))


def test_a_page_leads_with_what_moved_the_whole_before_its_slices(moved: list[Judged]) -> None:
    page = report.markdown(moved, "recommender", [], 2, 3)
    assert page.splitlines()[0] == "`recommender`, 2026-10-25: age drifted"
    reasons = [line for line in page.splitlines() if line.startswith("- ")]
    assert reasons[0].startswith("- age: ")
    first_slice = next(at for at, line in enumerate(reasons) if "(device tv)" in line)
    assert all("(device tv)" not in line for line in reasons[:first_slice])
    assert "| 1 | 2026-10-25 | fixed | 1,000 |" in page
    assert "2 of 3 windows were counted by this run" in page


def test_a_quiet_page_says_by_how_many_tests(quiet: list[Judged]) -> None:
    page = report.markdown(quiet, "recommender", [], 0, 3)
    n_tests = quiet[0].findings[0].n_family
    assert n_tests == 10  # two slices, each of shape, location and three structural cells
    assert page.startswith("`recommender`, 2026-10-25: nothing drifted, by")
    assert verdict(quiet) is Verdict.PASS


def test_no_rows_at_all_are_said_and_inconclusive() -> None:
    assert "no model version has rows in it" in report.markdown([], "recommender", [], 0, 3)
    assert verdict([]) is Verdict.INCONCLUSIVE
    assert heat_map(report.heat([])).axes


def test_rows_of_the_table_name_window_reference_and_cells(moved: list[Judged]) -> None:
    rows = report.rows(moved)
    shape = next(row for row in rows if row["measure"] == "jsd" and row["slice_key"] == "")
    assert shape["window_start"] == datetime(2026, 10, 25, tzinfo=UTC)
    assert (shape["reference_start"], shape["reference_end"]) == (
        datetime(2026, 10, 1, tzinfo=UTC),
        datetime(2026, 10, 15, tzinfo=UTC),
    )
    assert (shape["model_version"], shape["reference"], shape["drift_type"]) == ("1", "fixed", "BASELINE")
    contributions = shape["contributions"]
    assert isinstance(contributions, list)
    assert sum(contributions) == pytest.approx(shape["value"])


def counted(rows_an_hour: int) -> dict[tuple[str, Window], Counted]:
    return {
        ("1", WINDOW): Counted([rows_an_hour] * 24, 200, {"features.age": 80}),
        ("1", REFERENCE): Counted([40] * 24 * 14, 2000, {"features.age": 800}),
    }


def test_halved_traffic_is_one_finding_and_no_drift() -> None:
    now = RNG.normal(50, 10, 480).clip(PAST.min(), PAST.max())
    found = judged(now, counted(20))
    assert [each.check for each in found[0].faults] == ["volume"]
    assert not found[0].breaches
    assert verdict(found) is Verdict.BREACH
    page = report.markdown(found, "recommender", [], 0, 3)
    assert "volume: 480 rows, 0.5 times the 960" in page.splitlines()[0]
    row = next(row for row in report.rows(found) if row["measure"] == "volume")
    assert (row["family"], row["verdict"]) == (report.QUALITY, Verdict.BREACH)


def test_an_empty_hour_and_a_column_that_stands_still_are_found() -> None:
    still = counted(40)
    still["1", WINDOW] = Counted([40] * 10 + [0] * 4 + [40] * 10, 200, {"features.age": 0})
    found = judged(np.full(1000, 50.0), still)
    assert {each.check for each in found[0].faults} == {"gap", "constant", "stale"}


def test_the_usual_traffic_is_no_finding(quiet: list[Judged]) -> None:
    found = judged(RNG.normal(50, 10, 1000).clip(PAST.min(), PAST.max()), counted(41))
    assert found[0].quality
    assert found[0].faults == ()


def test_a_rehearsal_counts_the_windows_that_would_have_alarmed(quiet: list[Judged], moved: list[Judged]) -> None:
    words = report.rehearsal([moved, quiet, []])
    assert words.startswith("The alarm would have fired in 1 of 2 windows that say anything, of 3 looked at.")
    assert "| 2026-10-25 | yes | age" in words
    assert "| no rows | no |" in words


def history(n: int) -> list[dict[str, object]]:
    ends = [datetime(2026, 10, 20, tzinfo=UTC) + timedelta(days=at) for at in range(n)]
    return [
        {
            "model_version": "1",
            "column": "features.age",
            "as_of": end,
            "measure": measure,
            "value": value,
            "verdict": said,
        }
        for at, end in enumerate(ends)
        for measure, value, said in (
            ("jsd", nan if at == 0 else 0.001 * at, "inconclusive" if at == 0 else "pass"),
            ("above", 0.1, "breach" if at == n - 1 else "pass" if at else "inconclusive"),
        )
    ]


def test_a_window_of_the_heat_map_has_the_worst_verdict_of_its_tests() -> None:
    (row,) = report.heat(history(4)).values()
    assert [said for _, _, said in row] == ["inconclusive", "pass", "pass", "breach"]
    assert [len(points) for points in report.series(history(4)).values()] == [3], "undefined is left out"
    figure = heat_map(report.heat(history(4)))
    assert len(figure.axes[0].patches) == 1, "one frame for the breach"


def test_the_cells_of_what_moved_are_drawn_once_a_column_and_slice(moved: list[Judged], quiet: list[Judged]) -> None:
    drawn = report.moved(moved, CELLS)
    assert [each.title for each in drawn] == [
        "age: version 1 against fixed",
        "age in device:tv: version 1 against fixed",
    ]
    assert sum(drawn[0].after) == pytest.approx(1)
    assert len(distributions(drawn).axes) == 2
    assert report.moved(quiet, CELLS) == []


def test_a_family_of_several_windows_says_so(moved: list[Judged]) -> None:
    pooled = [each.family for each in moved if each.family.is_pooled]
    assert isinstance(pooled[0], Family)
    assert pooled[0].reference == "fixed, 5 windows"
