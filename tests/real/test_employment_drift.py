"""Drift of four years of census data: what really changed is found, random halves of a year are not."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from mltrust.drift.alarm import Key
from mltrust.drift.findings import effects
from mltrust.drift.measures import MEASURES
from mltrust.drift.noise import Sides
from tests.bench import drift
from tests.bench.employment import FAULTS, Rows, cells_of, halves, load, profiles_of
from tests.conftest import ROOT

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not os.environ.get("MLTRUST_DATA"), reason="MLTRUST_DATA is unset: it names the folder of the real data"
    ),
]
ORACLES = {each["id"]: each for each in json.loads((ROOT / "tests/oracle/drift.json").read_text())["employment_ma"]}
#: What breaches in slices beside AGEP and is real: their sizes stand in docs/drift-benchmarks.md.
REAL = {
    ("2018", "ANC", "RAC1P:6", "jsd"),
    ("2018", "predicted_probability", "RAC1P:8", "jsd"),
    ("2018", "RELP", "RAC1P:8", "jsd"),
}


@pytest.fixture(scope="module")
def rows() -> Rows:
    return load(Path(os.environ["MLTRUST_DATA"]))


@pytest.fixture(scope="module")
def first(rows: Rows) -> Rows:
    return rows.take(np.flatnonzero(rows.year == 2015))


def sides(rows: Rows, first: Rows, column: str) -> Sides:
    cells, window = cells_of(first), rows.take(np.flatnonzero(rows.year == 2018))
    return Sides(cells[column], *(profiles_of(each, cells, (column,))[Key(column)] for each in (first, window)))


def test_the_divergences_of_2018_are_those_that_others_reckon(rows: Rows, first: Rows) -> None:
    age = sides(rows, first, "AGEP")
    a, b = (each.by_cell.astype(float) for each in (age.reference, age.current))
    deciles = age.cells.n_ordinary
    # The oracles have five or six digits.
    assert deciles == ORACLES["AGEP_deciles"]["k"]
    assert MEASURES["jsd"].value(a, b, age.cells) == pytest.approx(ORACLES["AGEP_all_cells"]["jsd_bits"], abs=5e-9)
    assert b[-1] / b.sum() == pytest.approx(ORACLES["AGEP_all_cells"]["share_above"], abs=5e-9)
    # The other's deciles are closed on the left, and hold what is above; ours are closed on the right.
    inner = np.array(age.cells.edges[:-1])  # type: ignore[union-attr]
    ages = (first.numbers["AGEP"], rows.numbers["AGEP"][rows.year == 2018])
    folded = [
        np.bincount(np.searchsorted(inner, each, side="right"), minlength=deciles).astype(float) for each in ages
    ]
    assert MEASURES["jsd"].value(*folded, age.cells) == pytest.approx(ORACLES["AGEP_deciles"]["jsd_bits"], abs=5e-9)
    sex = effects(sides(rows, first, "SEX"))
    assert sex.js_distance**2 == pytest.approx(ORACLES["SEX"]["jsd_bits"], rel=1e-5)


def test_the_new_top_code_of_ages_is_found_and_nothing_else_overall(rows: Rows) -> None:
    found = {tuple(each[:4]) for each in drift.years(rows)}
    assert {each for each in found if each[2] == "overall"} == {
        (year, "AGEP", "overall", "above") for year in ("2017", "2018")
    }
    ages = {each for each in found if each[1] == "AGEP"}
    assert {each[3] for each in ages} == {"above"}
    assert {each[2] for each in ages} == {"overall", "RAC1P:1", "SEX:2"}
    assert found - ages <= REAL


@pytest.mark.parametrize("size", [200, 500])
def test_random_halves_do_not_alarm(first: Rows, size: int) -> None:
    found = drift.clean(first, size, range(20))
    # Of 20 windows at a rate of 0.5 % two or more alarm in 0.5 % of seeds.
    assert sum(each <= 0.001 for each in found) <= 1


def test_fifty_rows_say_nothing(first: Rows) -> None:
    reference, window = halves(first, 50, drift.generator("fifty"))
    assert drift.judged(reference, [window], drift.NO_FLOORS, 0.05) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found_where_they_are(first: Rows, fault: str) -> None:
    found = drift.faulty(first, fault, FAULTS[fault].found_from, range(3))
    assert [own for own, _ in found] == [True] * 3
    assert sum(other for _, other in found) <= 1


def test_a_shift_within_the_range_is_found_in_five_windows_together(first: Rows) -> None:
    assert sum(pooled for _, pooled in drift.five_windows(first, 500, range(4))) >= 3


@pytest.mark.slow
@pytest.mark.parametrize(("size", "most"), [(100, 8), (200, 5), (500, 5), (1000, 5)])
def test_a_thousand_windows_alarm_no_more_than_promised(first: Rows, size: int, most: int) -> None:
    found = drift.clean(first, size, range(1000))
    assert sum(each <= 0.05 for each in found) <= 71
    assert sum(each <= 0.001 for each in found) <= most


@pytest.mark.slow
@pytest.mark.parametrize("size", drift.FAULT_SIZES)
@pytest.mark.parametrize("fault", FAULTS)
def test_fifty_windows_with_a_fault_are_found(first: Rows, fault: str, size: int) -> None:
    found = drift.faulty(first, fault, size, range(50))
    assert sum(own for own, _ in found) >= (48 if size >= FAULTS[fault].found_from else 0)
    assert sum(other for _, other in found) <= 5


@pytest.mark.slow
@pytest.mark.parametrize("size", drift.POWER_SIZES)
def test_the_location_test_has_the_power_of_the_winsorised_z_test(first: Rows, size: int) -> None:
    location, _, plain = (sum(each) for each in zip(*drift.power(first, size, range(2000)), strict=True))
    assert location >= 0.9 * plain


@pytest.mark.slow
def test_five_windows_of_a_shift_are_found_together(first: Rows) -> None:
    assert sum(pooled for _, pooled in drift.five_windows(first, 500, range(50))) >= 44
