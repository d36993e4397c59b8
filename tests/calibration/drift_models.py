"""How often the tests of docs/drift-models.md reject without drift: `python -m tests.calibration.drift_models`.

Prints the table of that page. A run is one window against one reference, at single tests' p-values; floors and
families only lower what is seen here. `--runs` are those of the cheap tests, of the classifier there are a quarter.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from scipy import special

from mltrust.drift.attribution import AttributionRule, attribution_drift
from mltrust.drift.cells import OrderedCells
from mltrust.drift.multivariate import MultivariateRule, multivariate_drift, two_sample
from mltrust.drift.performance import PerformanceRule, ScoreLabels, performance_drift
from mltrust.drift.relation import RelationRule, Residuals, relation_drift
from mltrust.slices import Slice
from mltrust.states.moments import FloatArray
from mltrust.states.replicates import delete_a_bucket
from tests.calibration.laws import seeded

OVERALL = Slice("", "")
CELLS = OrderedCells.of(special.ndtri((np.arange(2_000) + 0.5) / 2_000))
Rng = np.random.Generator


class Clean(NamedTuple):
    """A way to draw p-values of single tests of a window without drift; `share` of the runs are made."""

    test: str
    units: str
    draw: Callable[[Rng], Iterator[float]]
    share: float = 1.0


def units(rng: Rng, n: int) -> np.ndarray:
    return rng.integers(-(2**63), 2**63, n, dtype=np.int64)


def attributed(rng: Rng, n: int, m: int, shared: bool = False) -> Iterator[float]:
    """Exponential attributions of a feature, of other units or of the same ones with a level that they keep."""
    level = rng.gamma(2, 1 / 2, max(n, m)) if shared else np.ones(max(n, m))
    of_units = units(rng, max(n, m))
    sides = []
    for size in (n, m):
        own = of_units[:size] if shared else units(rng, size)
        values = level[:size] * rng.exponential(1, size)
        sides.append(delete_a_bucket(("a",), values[:, np.newaxis], own, seed=0, n_buckets=64))
    for each in attribution_drift({OVERALL: (sides[0], sides[1])}, AttributionRule()):
        yield each.pvalue


def scored(rng: Rng, n: int, rows: int) -> tuple[FloatArray, FloatArray, np.ndarray]:
    """Log-odds, labels and units: `rows` of each unit, whose log-odds and fate it keeps in part."""
    keeps = rng.normal(0, 0.7, (2, n // rows)).repeat(rows, axis=1) if rows > 1 else np.zeros((2, n))
    odds = rng.normal(-0.5, 1.3, n) + keeps[0]
    label = (rng.random(n) < special.expit(odds + keeps[1])).astype(np.float64)
    return odds, label, units(rng, n // rows).repeat(rows)


def performing(rng: Rng, n: int, m: int, rows: int = 1) -> Iterator[float]:
    sides = [
        ScoreLabels.of(special.expit(odds), label, of) for odds, label, of in (scored(rng, k, rows) for k in (n, m))
    ]
    for each in performance_drift({OVERALL: (sides[0], sides[1])}, PerformanceRule()):
        yield each.pvalue


def related(rng: Rng, n: int, m: int, rows: int = 1) -> Iterator[float]:
    sides = [
        Residuals.of(CELLS, odds, label - special.expit(odds), of)
        for odds, label, of in (scored(rng, k, rows) for k in (n, m))
    ]
    rule = RelationRule(q=1 - 1e-12, floor=0)
    for each in relation_drift({OVERALL: {"x": (CELLS, sides[0], sides[1])}}, rule):
        # The smallest of some cells: as one test, by the number of cells (Bonferroni).
        yield min(1.0, each.pvalue * each.n_family)


def told_apart(rng: Rng, n: int, m: int, k: int, rows: int = 1) -> Iterator[float]:
    sides = [
        rng.normal(size=(size // rows, k)).repeat(rows, axis=0) + 0.3 * rng.normal(size=(size, k)) for size in (n, m)
    ]
    found = two_sample(list(np.vstack(sides).T), np.arange(n + m) >= n, units(rng, (n + m) // rows).repeat(rows))
    for each in multivariate_drift({OVERALL: found}, MultivariateRule()):
        yield each.pvalue


CLEAN = (
    Clean("attribution", "100 / 100", lambda rng: attributed(rng, 100, 100)),
    Clean("attribution", "5,000 / 100", lambda rng: attributed(rng, 5_000, 100)),
    Clean("attribution", "2,000 / 2,000", lambda rng: attributed(rng, 2_000, 2_000)),
    Clean("attribution", "500 of the same", lambda rng: attributed(rng, 500, 500, shared=True)),
    Clean("performance", "1,000 / 1,000", lambda rng: performing(rng, 1_000, 1_000), 0.5),
    Clean("performance", "10,000 / 1,000", lambda rng: performing(rng, 10_000, 1_000), 0.5),
    Clean("performance", "300 x 10 rows, twice", lambda rng: performing(rng, 3_000, 3_000, rows=10), 0.5),
    Clean("relation, 10 cells", "5,000 / 1,000", lambda rng: related(rng, 5_000, 1_000)),
    Clean("relation, 10 cells", "300 x 10 rows, twice", lambda rng: related(rng, 3_000, 3_000, rows=10)),
    Clean("two-sample, 1 column", "500 / 500", lambda rng: told_apart(rng, 500, 500, 1), 0.25),
    Clean("two-sample, 5 columns", "500 / 500", lambda rng: told_apart(rng, 500, 500, 5), 0.25),
    Clean("two-sample, 5 columns", "1,000 / 300", lambda rng: told_apart(rng, 1_000, 300, 5), 0.25),
    Clean("two-sample, 5 columns", "200 x 5 rows, twice", lambda rng: told_apart(rng, 1_000, 1_000, 5, rows=5), 0.25),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.calibration.drift_models", description=__doc__)
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--only", default="", help="tests whose name begins so")
    given = parser.parse_args()
    print(
        "| test | units, reference / window | tests | at 0.05 | at 0.01 | at 0.001 |\n|---|---|---|---|---|---|",
        flush=True,
    )
    for each in (clean for clean in CLEAN if clean.test.startswith(given.only)):
        rng = seeded(f"drift models: {each.test}, {each.units}")
        found = np.array([p for _ in range(round(given.runs * each.share)) for p in each.draw(rng)])
        found = found[~np.isnan(found)]
        rates = " | ".join(f"{(found < level).mean():.2%}" for level in (0.05, 0.01, 0.001))
        print(f"| {each.test} | {each.units} | {len(found):,} | {rates} |", flush=True)


if __name__ == "__main__":
    main()
