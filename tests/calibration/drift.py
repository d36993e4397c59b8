"""How often the tests of drift err without any: `python -m tests.calibration.drift` writes the page of it.

Goes on where it was interrupted, from .calibration/drift.json; `--scale 0.01` does a hundredth of the draws and
prints the page instead, `--page-only` writes it from what has run.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import combinations_with_replacement
from math import sqrt
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from mltrust.drift import cusum
from mltrust.drift.cells import UnorderedCells
from mltrust.drift.noise import (
    SMALLEST_EXPECTED,
    Sides,
    expected_rows,
    homogeneity,
    hypergeometric_tail,
    mixture_tail,
    pooled_unordered,
    shape_test,
)
from mltrust.drift.profile import N_BUCKETS, Profile
from mltrust.states.moments import FloatArray
from tests.calibration.jobs import ROOT
from tests.calibration.laws import seeded

PAGE, KEPT = ROOT / "docs" / "drift-calibration.md", ROOT / ".calibration" / "drift.json"
DRAWS = 100_000
LEVELS = (0.05, 0.001)
#: What is promised of every cell of the table with as many draws.
BANDS = ((0.035, 0.055), (0.0002, 0.0016))
CELLS = (2, 5, 10, 20, 50)
ROWS = (50, 200, 1000, 10_000, 1_000_000)
SHARES: Mapping[str, Callable[[int], FloatArray]] = {
    "equal": lambda k: np.full(k, 1 / k),
    "Zipf": lambda k: (1 / np.arange(1, k + 1)) / (1 / np.arange(1, k + 1)).sum(),
}
#: Fewer draws with a test than this share say more of which draws had one than of the test.
FEW = 0.05
#: What misses its band because counts are discrete, beside two equal cells.
LATTICES = {
    "shape/equal/20/50/50": " Mostly one cell with 10 to 12 rows on both sides together is left beside all others: 8 "
    "of 10 on one side, a chance of 11 %, have a p-value below 5 %. An alarm needs 100 rows."
}
_BLOCK = 10_000
_TEN = UnorderedCells(tuple("abcdefghij"))


class Tally(NamedTuple):
    """Draws, those in which the test could be made, and how many of these it rejected at each level."""

    draws: int
    tested: int
    rejected: tuple[int, ...]

    def rates(self) -> tuple[float, ...]:
        return tuple(n / self.tested if self.tested else float("nan") for n in self.rejected)


def tallied(pvalues: FloatArray) -> Tally:
    tested = pvalues[~np.isnan(pvalues)]
    return Tally(len(pvalues), len(tested), tuple(int((tested <= level).sum()) for level in LEVELS))


def added(tallies: Iterator[Tally]) -> Tally:
    draws, tested, rejected = zip(*tallies, strict=True)
    return Tally(sum(draws), sum(tested), tuple(map(sum, zip(*rejected, strict=True))))


def shape(law: str, k: int, m: int, n: int, draws: int) -> Tally:
    """The test of shape on counts of independent rows."""
    rng, shares = seeded(f"drift {law} {k} {m} {n}"), SHARES[law](k)
    blocks = [_BLOCK] * (draws // _BLOCK) + [draws % _BLOCK] * (draws % _BLOCK > 0)
    return added(tallied(shapes(*(rng.multinomial(rows, shares, size) for rows in (m, n)))) for size in blocks)


def shapes(reference: FloatArray, current: FloatArray) -> FloatArray:
    """The p-values (draws,) of counts (draws, k): the product's test, and its pooling of unordered cells, at once.

    The first draws are also made one by one.
    """
    a, b = reference.astype(np.float64), current.astype(np.float64)
    m, n = a[0].sum(), b[0].sum()
    expected = min(n, m) / (n + m) * (a + b)
    small = expected < SMALLEST_EXPECTED
    rest_a, rest_b, rest = ((each * small).sum(axis=1) for each in (a, b, expected))
    smallest = np.where(small, np.inf, expected).argmin(axis=1)
    joins = (rest > 0) & (rest < SMALLEST_EXPECTED)
    at = np.arange(len(a)), smallest
    a, b = np.where(small, 0, a), np.where(small, 0, b)
    a[at] += np.where(joins, rest_a, 0)
    b[at] += np.where(joins, rest_b, 0)
    a, b = (np.column_stack([each, np.where(joins, 0, more)]) for each, more in ((a, rest_a), (b, rest_b)))
    df = (~small).sum(axis=1) + ((rest > 0) & ~joins) - 1
    pvalues = _homogeneity(a, b, m, n, df)
    pvalues[(df < 1) | (joins & small.all(axis=1))] = np.nan
    for i in range(min(20, len(a))):
        assert np.isclose(pvalues[i], _one(reference[i], current[i]), rtol=1e-9, atol=1e-300, equal_nan=True)
    return pvalues


def _homogeneity(a: FloatArray, b: FloatArray, m: float, n: float, df: FloatArray) -> FloatArray:
    both = a + b
    filled = np.where(both > 0, both, 1)
    pearson = n * m * ((a / m - b / n) ** 2 / filled).sum(axis=1)
    parts = special.rel_entr(a, m * both / (n + m)) + special.rel_entr(b, n * both / (n + m))
    df = np.maximum(df, 1)
    p, agreed = special.chdtrc(df, pearson), special.chdtrc(df, 2 * parts.sum(axis=1))
    return np.where(p < 0.01, np.maximum(p, np.minimum(0.01, agreed)), p)


def _one(reference: FloatArray, current: FloatArray) -> float:
    groups = pooled_unordered(expected_rows(reference, current))
    if len(groups) < 2:
        return float("nan")
    return homogeneity(
        *(np.array([each[group].sum() for group in groups], float) for each in (reference, current))
    ).pvalue


@cache
def population(kind: str) -> FloatArray:
    """Rows by category (units, 10) of 65,536 units with 10 rows each, which prefer some categories.

    Of a sticky one a fifth of the units have all rows in it, and the others none.
    """
    rng, units = seeded(f"population of {kind}"), 1 << 16
    counts = rng.multinomial(10, rng.dirichlet(np.full(10, 1.0), units))
    if kind == "one sticky cell":
        counts[:, 1] += counts[:, 0]
        counts[:, 0] = 0
        counts[rng.random(units) < 0.2] = [10, *[0] * 9]
    return counts


def clustered(kind: str, reference_units: int, draws: int) -> tuple[Tally, Tally]:
    """The test of shape, and the one that takes rows as independent, on 200 units with 10 rows each."""
    rng = seeded(f"clustered {kind} {reference_units}")
    size = _BLOCK * 200 // (5 * reference_units)
    found, naive = [], []
    for done in range(0, draws, size):
        sides = [_buckets(rng, population(kind), n, min(size, draws - done)) for n in (reference_units, 200)]
        pvalues, plain = _clustered_pvalues(*sides)
        for i in range(20 if done == 0 else 0):
            own = (_profile(each[i], n) for each, n in zip(sides, (reference_units, 200), strict=True))
            test = shape_test(Sides(_TEN, *own))
            assert np.isclose(test.pvalue, pvalues[i], rtol=1e-6) or min(test.pvalue, pvalues[i]) > LEVELS[0]
        found.append(pvalues)
        naive.append(plain)
    return tallied(np.concatenate(found)), tallied(np.concatenate(naive))


def _buckets(rng: np.random.Generator, population: FloatArray, n: int, draws: int) -> FloatArray:
    """Rows (draws, 64, 10) by hash bucket and category of n units each."""
    units = rng.integers(0, len(population), draws * n)
    at = np.repeat(np.arange(draws) * N_BUCKETS, n) + rng.integers(0, N_BUCKETS, draws * n)
    counts = [np.bincount(at, each[units], draws * N_BUCKETS) for each in population.T]
    return np.stack(counts, axis=1).reshape(draws, N_BUCKETS, -1)


def _clustered_pvalues(a: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The product's p-values of clustered rows, and those of Pearson's statistic as it is.

    Eigenvalues of all draws at once; the tail is only reckoned where the statistic is 1.5 times its mean, and 1 else.
    """
    (m, n), k = (each[0].sum() for each in (a, b)), a.shape[2]
    rows = a.sum(axis=1), b.sum(axis=1)
    both = rows[0] + rows[1]
    statistic = n * m * ((rows[0] / m - rows[1] / n) ** 2 / both).sum(axis=1)
    scaled = []
    for each, own, total in zip((a, b), rows, (m, n), strict=True):
        left = each.sum(axis=1, keepdims=True) - each
        without = left / left.sum(axis=2, keepdims=True)
        scaled.append((without - without.mean(axis=1, keepdims=True)) / np.sqrt(own / total)[:, np.newaxis])
    d = (scaled[1] - scaled[0]) * np.sqrt(n * m / (n + m))
    W = np.matmul(d.swapaxes(1, 2), d) * ((N_BUCKETS - 1) / N_BUCKETS)
    weights = np.linalg.eigvalsh(W)[:, 1:].clip(0)
    groups = ((a + b).sum(axis=2) > 0).sum(axis=1)
    pvalues = np.ones(len(a))
    for i in np.flatnonzero(statistic > 1.5 * weights.sum(axis=1)).tolist():
        pvalues[i] = mixture_tail(float(statistic[i]), weights[i], int(groups[i]) - 1)
    return pvalues, special.chdtrc(k - 1, statistic)


def _profile(by_bucket: FloatArray, n_units: int) -> Profile:
    counts = np.zeros((12, N_BUCKETS), dtype=np.int64)
    counts[:10] = by_bucket.T
    return Profile(counts, np.zeros(12, dtype=np.int64), n_units, np.zeros((0, N_BUCKETS), dtype=np.int64))


def structural(share: float, m: int, n: int, draws: int) -> Tally:
    """The exact test of a structural cell that holds a share of the rows of both sides."""
    rng = seeded(f"structural {share} {m} {n}")
    pvalues: dict[tuple[int, int], float] = {}
    for pair in zip(rng.binomial(m, share, draws).tolist(), rng.binomial(n, share, draws).tolist(), strict=True):
        if pair not in pvalues:
            pvalues[pair] = min(1.0, 2 * hypergeometric_tail(pair[1], sum(pair), n, n + m))
    drawn = seeded(f"structural {share} {m} {n}")
    pairs = zip(drawn.binomial(m, share, draws).tolist(), drawn.binomial(n, share, draws).tolist(), strict=True)
    return tallied(np.array([pvalues[pair] for pair in pairs]))


def run_lengths(df: float, windows_between: int, runs: int) -> tuple[float, float, float]:
    """The threshold of slow shifts, and mean and standard error of the windows until it is crossed without drift."""
    slack, rng = 0.7, seeded(f"cusum {df} {windows_between}")
    at = cusum.threshold(float(df), float(windows_between), slack)
    total, lengths = np.zeros(runs), np.zeros(runs)
    going = np.arange(runs)
    while len(going):
        scores = (rng.chisquare(df, len(going)) - df) / sqrt(2 * df)
        total[going] = np.maximum(0, total[going] + scores - slack)
        lengths[going] += 1
        going = going[total[going] < at]
    return at, float(lengths.mean()), float(lengths.std() / sqrt(runs))


def results(scale: float, *, run: bool = True) -> dict[str, object]:
    """All numbers, from the file where they are there already."""
    draws, known = round(DRAWS * scale), json.loads(KEPT.read_text()) if scale == 1 and KEPT.exists() else {}
    for name, work in _work(draws):
        if run and name not in known:
            known[name] = work()
            print(name, known[name], file=sys.stderr, flush=True)
            if scale == 1:
                KEPT.parent.mkdir(exist_ok=True)
                KEPT.write_text(json.dumps(known))
    return known


def _work(draws: int) -> Iterator[tuple[str, Callable[[], object]]]:
    for kind in ("units that differ", "one sticky cell"):
        for m in (200, 2000):
            yield f"clustered/{kind}/{m}", partial(clustered, kind, m, draws)
    for share in (0.0005, 0.02):
        for n, m in ((200, 1000), (1000, 50_000), (10_000, 10_000)):
            yield f"structural/{share}/{n}/{m}", partial(structural, share, m, n, draws)
    for df in (1, 4, 9, 24):
        yield f"cusum/{df}/1000", partial(run_lengths, df, 1000, max(20, draws // 50))
    for k in CELLS:
        for law in SHARES:
            for n, m in combinations_with_replacement(ROWS, 2):
                yield f"shape/{law}/{k}/{n}/{m}", partial(shape, law, k, m, n, draws)


def page(found: Mapping[str, object]) -> str:
    """docs/drift-calibration.md."""
    rows = [(name.split("/")[1:], Tally(*each)) for name, each in found.items() if name.startswith("shape/")]
    return (
        "\n\n".join([_introduction(rows), *map(_of_law(rows), SHARES), _clusters(found), _exact(found), _slow(found)])
        + "\n"
    )


Rows = Sequence[tuple[list[str], Tally]]


def outside(tally: Tally) -> bool:
    """Whether a promised rate is not in its band, which of fewer draws is as much wider as chance is."""
    if tally.tested < FEW * tally.draws:
        return False
    for count, (low, high) in zip(tally.rejected, BANDS, strict=True):
        n, full = tally.tested, tally.tested >= DRAWS / 2
        least, most = (
            (low * n, high * n) if full else (stats.binom.ppf(0.0005, n, low), stats.binom.ppf(0.9995, n, high))
        )
        if not least <= count <= most:
            return True
    return False


def lattice(n: int, m: int) -> float:
    """The exact level at 0.05 of two equal cells, by all counts of n rows, and those of m that are not absurd."""
    reach = 4 * sqrt(m)
    y = np.arange(max(0, int(m / 2 - reach)), min(m, int(m / 2 + reach)) + 1)
    chances, critical, total = stats.binom.pmf(y, m, 0.5), special.chdtri(1, LEVELS[0]), 0.0
    for x in range(n + 1):
        share = (x + y) / (n + m)
        variance = share * (1 - share)
        squares = (x / n - y / m) ** 2 * n * m / (n + m)
        total += stats.binom.pmf(x, n, 0.5) * chances[squares > critical * variance].sum()
    return float(total)


def _introduction(rows: Rows) -> str:
    tested = [(name, tally) for name, tally in rows if tally.tested >= FEW * tally.draws]
    missed = [(name, tally) for name, tally in tested if outside(tally)]
    named = "".join(
        f"\n- {law}, {k} cells, {int(n):,} and {int(m):,} rows: {tally.rates()[0]:.2%} at 0.05, "
        f"{tally.rates()[1]:.3%} at 0.001.{_lattice_note(law, int(k), int(n), int(m))}"
        for (law, k, n, m), tally in missed
    )
    return f"""# Calibration of drift

How often the tests of drift reject where nothing drifted, by simulation with fixed seeds: `make calibrate-drift` \
writes this page.{_short(rows)}

## Shape

Pearson's X² of two samples with the same shares, {max((each.draws for _, each in rows), default=DRAWS):,} draws \
each, cells pooled until each expects \
{SMALLEST_EXPECTED} rows on the smaller side. Promised wherever at least two cells are left: {BANDS[0][0]:.1%} to \
{BANDS[0][1]:.1%} at 0.05, {BANDS[1][0]:.2%} to {BANDS[1][1]:.2%} at 0.001. Where fewer than {FEW:.0%} of the draws \
leave two cells the rate says which draws these were, and stands in brackets. The test does not know which side is \
which.

{len(tested) - len(missed)} of {len(tested)} pairs of rates are within{"." if not missed else "; not:"}{named}"""


def _short(rows: Rows) -> str:
    most = max((each.draws for _, each in rows), default=0)
    if most >= DRAWS:
        return ""
    return (
        f" **This page is a short run** of {most:,} draws instead of {DRAWS:,} (`python -m tests.calibration.drift "
        f"--scale {most / DRAWS:g} --write`): bands are widened to what 99.9 % of counts of so few draws are."
    )


def _lattice_note(law: str, k: int, n: int, m: int) -> str:
    if f"shape/{law}/{k}/{n}/{m}" in LATTICES:
        return LATTICES[f"shape/{law}/{k}/{n}/{m}"]
    if law != "equal" or k != 2:
        return ""
    return (
        f" Counts of two equal cells are discrete: over all counts of {n:,} and {m:,} rows the exact level of "
        f"Pearson's test is {lattice(n, m):.2%}." + (" An alarm needs 100 rows." if n < 100 else "")
    )


def _of_law(rows: Rows) -> Callable[[str], str]:
    def table(law: str) -> str:
        cells = {(int(k), int(n), int(m)): tally for (own, k, n, m), tally in rows if own == law}
        lines = [
            f"| {n:,} | {m:,} | " + " | ".join(_rates(cells.get((k, n, m))) for k in CELLS) + " |"
            for n, m in combinations_with_replacement(ROWS, 2)
        ]
        heading = (
            "| rows | rows | " + " | ".join(f"{k} cells" for k in CELLS) + " |\n" + "|---:" * (2 + len(CELLS)) + "|"
        )
        return f"### {law} shares\n\nRates at 0.05 / at 0.001.\n\n{heading}\n" + "\n".join(lines)

    return table


def _rates(tally: Tally | None) -> str:
    if tally is None:
        return "not run"
    if not tally.tested:
        return "no test"
    text = "{:.2%} / {:.3%}".format(*tally.rates())
    return f"({text})" if tally.tested < FEW * tally.draws else text


def _clusters(found: Mapping[str, object]) -> str:
    lines = []
    for name, each in found.items():
        if name.startswith("clustered/"):
            _, kind, m = name.split("/")
            own, naive = (Tally(*tally) for tally in each)  # type: ignore[attr-defined]
            lines.append(f"| {kind} | {int(m):,} | {_rates(own)} | {_rates(naive)} |")
    return (
        "## Clustered rows\n\n200 units with 10 rows each on 10 cells, against so many units of the reference. "
        "Promised: at most 0.16 % at 0.001. Beside it the same statistic as if rows were independent.\n\n"
        "| units | of the reference | rates at 0.05 / 0.001 | rows taken as independent |\n|---|---:|---:|---:|\n"
        + "\n".join(lines)
    )


def _exact(found: Mapping[str, object]) -> str:
    lines = []
    for name, each in found.items():
        if name.startswith("structural/"):
            _, share, n, m = name.split("/")
            rates = _rates(Tally(*each))  # type: ignore[misc]
            lines.append(f"| {float(share):.2%} | {int(n):,} | {int(m):,} | {rates} |")
    return (
        "## Structural cells\n\nThe exact test of one cell, twice the smaller tail: at most the level, by as much "
        "less as counts are few.\n\n| share of the cell | rows | of the reference | rates at 0.05 / 0.001 |\n"
        "|---:|---:|---:|---:|\n" + "\n".join(lines)
    )


def _slow(found: Mapping[str, object]) -> str:
    lines = []
    for name, each in found.items():
        if name.startswith("cusum/"):
            _, df, between = name.split("/")
            at, mean, error = each  # type: ignore[misc]
            lines.append(f"| {df} | {int(between):,} | {at:.2f} | {mean:,.0f} ± {error:,.0f} |")
    return (
        "## Slow shifts\n\nWindows without drift until the sum crosses its threshold, slack 0.7: as asked for, and "
        "simulated (± one standard error).\n\n| df | asked for | threshold | simulated |\n|---:|---:|---:|---:|\n"
        + "\n".join(lines)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """4 where a promised rate is not in its band and counts are not discrete, else 0."""
    parser = argparse.ArgumentParser(prog="python -m tests.calibration.drift", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="times the number of draws (1: as promised)")
    parser.add_argument("--page-only", action="store_true", help="write the page from what has run")
    parser.add_argument("--write", action="store_true", help="write the page whatever the scale")
    given = parser.parse_args(arguments)
    found = results(given.scale, run=not given.page_only)
    if given.scale == 1 or given.write:
        PAGE.write_text(page(found))
    else:
        print(page(found))
    tallies = {name: Tally(*each) for name, each in found.items() if name.startswith("shape/")}  # type: ignore[misc]
    broken = [
        name
        for name, each in tallies.items()
        if outside(each) and not name.startswith("shape/equal/2/") and name not in LATTICES
    ]
    for name in broken:
        print(f"promise broken: {name} {tallies[name].rates()}", file=sys.stderr)
    return 4 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
