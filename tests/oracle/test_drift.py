"""Measures of drift against values that were published or computed by others."""

import json
from functools import partial
from math import log, sqrt
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mltrust.drift.cells import OrderedCells, UnorderedCells
from mltrust.drift.measures import MEASURES
from mltrust.drift.profile import Profile

close = partial(pytest.approx, rel=1e-9, abs=0)
ORACLES = json.loads(Path(__file__).with_name("drift.json").read_text())
THOUSANDTHS = np.arange(1000) / 1000


def entry(key: str, name: str) -> dict:
    (found,) = (each for each in ORACLES[key] if each["id"] == name)
    return found


def value(measure: str, reference: list[float], current: list[float]) -> float:
    cells = UnorderedCells(tuple(map(str, range(len(reference)))))
    return MEASURES[measure].value(np.array(reference, dtype=float), np.array(current, dtype=float), cells)


def of_samples(measure: str, cells: OrderedCells, reference: object, current: object) -> float:
    a, b = (Profile.of(cells, each).by_cell.astype(float) for each in (reference, current))  # type: ignore[arg-type]
    return MEASURES[measure].value(a, b, cells)


def test_every_entry_names_its_source() -> None:
    for key, found in ORACLES.items():
        assert key.startswith("_") or all(each["src"] for each in found)


@pytest.mark.parametrize("name", ["tutorial", "scale_free", "disjoint", "reference_deciles_with_above"])
def test_the_divergence_is_the_published_one(name: str) -> None:
    oracle = entry("jsd", name)
    bits = value("jsd", oracle["p"], oracle["q"])
    assert bits == close(oracle["bits"] if "bits" in oracle else oracle["nats"] / log(2))
    assert bits * log(2) == close(oracle.get("nats", bits * log(2)))


def test_missing_values_are_a_category_of_their_own() -> None:
    oracle = entry("jsd", "missing_as_a_category")
    rows = [
        [None if name == "<missing>" else name for name, n in oracle[side].items() for _ in range(n)]
        for side in ("p_counts", "q_counts")
    ]
    cells = UnorderedCells.of(rows[0])
    a, b = (Profile.of(cells, each).by_cell.astype(float) for each in rows)  # type: ignore[arg-type]
    assert sqrt(MEASURES["jsd"].value(a, b, cells) * log(2)) == close(oracle["distance_nats"])


def test_a_shifted_column_is_cut_at_the_references_deciles() -> None:
    deciles, above = entry("jsd", "reference_deciles"), entry("jsd", "reference_deciles_with_above")
    cells = OrderedCells.of(THOUSANDTHS)
    current = Profile.of(cells, THOUSANDTHS + 0.1).by_cell
    # Deciles of numpy lie between the values, so that 0.1 is in the second cell of them.
    assert [*current[:9], current[9] + current[-1]] == json.loads(deciles["q_counts"])
    assert of_samples("jsd", cells, THOUSANDTHS, THOUSANDTHS + 0.1) == close(above["bits"])
    assert value("jsd", [100] * 10, json.loads(deciles["q_counts"])) == close(deciles["bits"])


@pytest.mark.parametrize("name", ["k3", "k10"])
def test_the_divergence_without_drift_has_the_known_mean(name: str) -> None:
    oracle = entry("null_law", name)
    k, n, m = (oracle[key] for key in ("k", "n", "m"))
    cells = UnorderedCells(tuple(map(str, range(k))))
    noise = MEASURES["jsd"].noise(np.full(k, m / k), np.full(k, n / k), cells)
    assert noise * log(2) == close(oracle["mean_nats"])
    rng = np.random.default_rng(1)
    draws = [[rng.multinomial(size, np.full(k, 1 / k)).astype(float) for size in (m, n)] for _ in range(4000)]
    mean = np.mean([MEASURES["jsd"].value(a, b, cells) for a, b in draws]) * log(2)
    # 4,000 draws of a chi-square of 2 have a mean within 1.6 % (one standard deviation); three of these.
    assert mean == pytest.approx(oracle["mean_nats"], rel=0.05)


def test_the_stability_index_is_the_published_one() -> None:
    oracle = entry("psi", "counts")
    assert value("psi", oracle["p_counts"], oracle["q_counts"]) == close(oracle["psi"])


def test_on_a_cell_for_each_value_ks_is_that_of_the_values() -> None:
    oracle, current = entry("ks", "shift"), THOUSANDTHS + 0.1
    both = np.unique(np.concatenate([THOUSANDTHS, current]))
    cells = OrderedCells.of_values(dict.fromkeys(both.tolist(), 1))
    found = of_samples("ks", cells, THOUSANDTHS, current)
    # The data are floats: 0.1 + 0.3 is not 0.4 (scipy has the same), so that ties fall apart by one row.
    assert found == close(stats.ks_2samp(THOUSANDTHS, current).statistic)
    assert found == pytest.approx(oracle["statistic"], abs=1e-3)


def test_on_a_cell_for_each_value_wasserstein_is_that_of_the_values() -> None:
    oracle = entry("wasserstein", "three")
    cells = OrderedCells.of_values(dict.fromkeys([*oracle["u"], *oracle["v"]], 1))
    assert of_samples("wasserstein", cells, oracle["u"], oracle["v"]) == close(oracle["w1"])
