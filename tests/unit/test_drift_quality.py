from math import isnan, nan

import numpy as np
import pytest

from mltrust.drift.cells import Cells, OrderedCells, UnorderedCells
from mltrust.drift.noise import Sides
from mltrust.drift.profile import Profile
from mltrust.drift.quality import Quality, QualityFinding, constant, gap, stale, volume
from mltrust.verdicts import Verdict

LIMITS = Quality()
DAY = [100] * 24
AGES, LETTERS = OrderedCells.of(np.arange(95)), UnorderedCells.of("abc")


def rows(n: int, reference: int = 70_000) -> QualityFinding:
    return volume(n_current=n, hours=24, n_reference=reference, reference_hours=168, limits=LIMITS)


def column(cells: Cells, current: object) -> QualityFinding:
    samples = (np.arange(500) % 95, current) if cells.is_ordered else (["a", "b", "c"] * 200, current)
    profiles = [Profile.of(cells, each) for each in samples]  # type: ignore[arg-type]
    return constant("features.x", Sides(cells, *profiles), LIMITS)


def test_halved_traffic_is_one_finding_of_volume_and_no_gap() -> None:
    found = rows(5_000)
    assert found.verdict == Verdict.BREACH
    assert found.reason == "volume: 5,000 rows, 0.5 times the 10,000 that the reference's rate has"
    assert gap([50] * 24, reference_rows_per_hour=[100.0] * 24, limits=LIMITS).verdict == Verdict.PASS


@pytest.mark.parametrize(("n", "verdict"), [(10_400, "pass"), (7_000, "pass"), (16_000, "breach"), (0, "breach")])
def test_volume_is_held_against_the_references_rate(n: int, verdict: str) -> None:
    assert rows(n).verdict == verdict


def test_a_few_rows_more_or_less_are_no_finding() -> None:
    assert rows(40, reference=280).verdict == Verdict.INCONCLUSIVE
    assert rows(120, reference=500).verdict == Verdict.BREACH
    assert volume(n_current=500, hours=24, n_reference=0, reference_hours=0, limits=LIMITS).verdict == "inconclusive"
    short = volume(n_current=110, hours=24, n_reference=70, reference_hours=24, limits=LIMITS)
    assert (short.value / short.reference_value > 1.5, short.pvalue < 0.01, short.verdict) == (True, True, "pass")


def test_hours_without_a_row_are_a_gap_where_rows_were_expected() -> None:
    found = gap([*DAY[:3], 0, 0, *DAY[:19]], reference_rows_per_hour=[100.0] * 24, limits=LIMITS)
    assert found.verdict == Verdict.BREACH
    assert found.reason == "gaps: no row in 2 hours from hour 3 of the window on, where 183 were expected"


def test_a_quiet_night_is_no_gap() -> None:
    nights = [2.0] * 6 + [100.0] * 18
    assert gap([0, 0, 1, 0, 0, 0, *DAY[:18]], reference_rows_per_hour=nights, limits=LIMITS).verdict == Verdict.PASS
    assert gap(DAY, reference_rows_per_hour=nights, limits=LIMITS).value == 0
    assert gap([0] * 24, reference_rows_per_hour=nights, limits=LIMITS).verdict == Verdict.INCONCLUSIVE
    with pytest.raises(ValueError, match="24 hours need as many rates"):
        gap(DAY, reference_rows_per_hour=[1.0], limits=LIMITS)


@pytest.mark.parametrize(
    ("cells", "current", "said"),
    [
        (LETTERS, ["b"] * 300, "x: all 300 rows are b"),
        (LETTERS, [None] * 300, "x: all 300 rows are missing"),
        (AGES, [41] * 300, "x: all 300 rows are in (37.6, 47]"),
        (AGES, [nan] * 300, "x: all 300 rows are missing"),
        (AGES, [41] * 299 + [42], None),
        (LETTERS, ["b"] * 299 + [None], None),
    ],
)
def test_a_column_that_has_one_value_only_is_found(cells: Cells, current: object, said: str | None) -> None:
    found = column(cells, current)
    assert (found.verdict, found.reason) == (
        (Verdict.BREACH, said) if said else (Verdict.PASS, "x: varies as it did")
    )


def test_what_never_varied_is_not_constant_all_of_a_sudden() -> None:
    cells = UnorderedCells.of("a")
    profile = Profile.of(cells, ["a"] * 300)
    assert constant("x", Sides(cells, profile, profile), LIMITS).verdict == Verdict.PASS


def test_a_feature_that_stops_changing_is_stale() -> None:
    def changed(n: int, of: int = 1000) -> QualityFinding:
        return stale(
            "features.x", n_units=of, n_changed=n, n_reference_units=5000, n_reference_changed=2000, limits=LIMITS
        )

    assert changed(0).reason == "x: changes within 0 of the units that have several rows; 40.0 % in the reference"
    assert [changed(n).verdict for n in (0, 30, 300, 400, 500)] == ["breach", "breach", "pass", "pass", "pass"]
    assert changed(0, of=50).verdict == Verdict.INCONCLUSIVE
    assert isnan(changed(0, of=50).pvalue)


@pytest.mark.parametrize("given", [{"max_volume_ratio": 1.0}, {"alpha": 0.0}, {"min_change_ratio": 1.0}])
def test_limits_that_make_no_sense_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(given))):
        Quality(**given)  # type: ignore[arg-type]
