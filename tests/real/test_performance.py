"""The census model's performance over four years, from counts: it did not change."""

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mltrust.drift.performance import PerformanceRule, ScoreLabels, estimates, performance_drift
from mltrust.slices import Slice
from mltrust.verdicts import Verdict
from tests.unit.drift_states import hashes

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif("MLTRUST_DATA" not in os.environ, reason="MLTRUST_DATA names no folder of real data"),
]
YEARS = (2015, 2016, 2017, 2018)
#: scikit-learn's roc_auc_score of the same rows, to four digits.
AUC = {2015: 0.9034, 2016: 0.9020, 2017: 0.9051, 2018: 0.9057}
OVERALL = Slice("", "")
Table = dict[str, np.ndarray]


def read(name: str, columns: list[str]) -> Table:
    table = pq.read_table(Path(os.environ["MLTRUST_DATA"]) / "employment_ma" / f"{name}.parquet", columns=columns)
    return {column: table[column].to_numpy() for column in columns}


@pytest.fixture(scope="module")
def rows() -> Table:
    columns = ["id", "year", "SEX", "RAC1P", "predicted_probability"]
    reference, analysis = read("reference", [*columns, "employed"]), read("analysis", columns)
    target = read("analysis_target", ["id", "employed"])
    of_id = np.argsort(target["id"])
    found = of_id[np.searchsorted(target["id"], analysis["id"], sorter=of_id)]
    analysis["employed"] = target["employed"][found]
    return {name: np.concatenate([reference[name], analysis[name]]) for name in (*columns, "employed")}


def state(rows: Table, where: np.ndarray) -> ScoreLabels:
    scores, labels = (rows[name][where].astype(float) for name in ("predicted_probability", "employed"))
    return ScoreLabels.of(scores, labels, hashes(len(rows["id"]))[where])


def test_the_auc_of_every_year_is_that_of_all_scores(rows: Table) -> None:
    for year, expected in AUC.items():
        [auc, *_] = estimates(state(rows, rows["year"] == year), PerformanceRule())
        assert round(auc.value, 4) == expected


def test_no_year_breaches_against_the_first_in_no_slice(rows: Table) -> None:
    for year in YEARS[1:]:
        states = {}
        for attribute in ("SEX", "RAC1P"):
            for value in np.unique(rows[attribute]):
                own = rows[attribute] == value
                sides = state(rows, own & (rows["year"] == 2015)), state(rows, own & (rows["year"] == year))
                states[Slice(attribute, str(value))] = sides
        states[OVERALL] = state(rows, rows["year"] == 2015), state(rows, rows["year"] == year)
        found = performance_drift(states, PerformanceRule())
        assert not [each for each in found if each.verdict is Verdict.BREACH]
        assert {each.verdict for each in found if each.slice == OVERALL} == {Verdict.PASS}
