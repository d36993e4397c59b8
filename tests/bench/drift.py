"""Alarms of drift on the employment data, with and without drift: writes docs/drift-benchmarks.md.

`MLTRUST_DATA=... python -m tests.bench.drift`. What has run is kept in .calibration, and every table grows block by
block, so that it may be interrupted and goes on; `--page-only` writes the page of what there is. `--rival` gives the
first windows to another tool instead, which it installs in an environment of its own.
"""

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import partial
from math import nan, sqrt
from pathlib import Path

import numpy as np
from scipy import stats

from mltrust.drift.alarm import Alarm, Judged, Key, judge, measured, pooled_profiles, sides_of
from mltrust.drift.cells import OrderedCells
from mltrust.drift.noise import LOCATION, Sides
from mltrust.states.moments import FloatArray
from mltrust.verdicts import Verdict
from tests.bench.employment import FAULTS, YEARS, Rows, cells_of, halves, load, profiles_of
from tests.bench.rivals import RIVALS, Ask, asking
from tests.calibration.jobs import ROOT

PAGE, FOLDER = ROOT / "docs" / "drift-benchmarks.md", ROOT / ".calibration"
#: Where what has run is kept, of our own alarm and of each rival.
KEPT = {name: FOLDER / f"drift-{name}.json" for name in ("mltrust", *RIVALS)}
NO_FLOORS = Alarm(min_jsd=0, min_mean_shift=0, min_share=0)
LEVELS = (0.05, 0.01, 0.001)
CLEAN_SIZES = (50, 100, 200, 500, 1000)
FAULT_SIZES = (500, 1000, 5000)
POWER_SIZES = (500, 1000)


def judged(reference: Rows, windows: Sequence[Rows], alarm: Alarm, q: float) -> list[Judged]:
    """Every test of the windows together against the reference."""
    cells = cells_of(reference)
    current = [profiles_of(window, cells) for window in windows]
    pooled, before = pooled_profiles(current, recurring=False), profiles_of(reference, cells)
    # What has too few rows on a side is no member of the family.
    both = sides_of({key: each for key, each in before.items() if key in pooled}, pooled, cells)
    return judge([(key, test) for key, sides in both.items() for test in measured(sides, alarm)], alarm, q)


def breached(found: Iterable[Judged], q: float = 1.0) -> list[Judged]:
    return [each for each in found if each.verdict is Verdict.BREACH and each.qvalue <= q]


def generator(*name: object) -> np.random.Generator:
    return np.random.default_rng([ord(letter) for letter in "/".join(map(str, name))])


def clean_window(rows: Rows, size: int, at: int) -> tuple[Rows, Rows]:
    """A reference and a window of it without drift."""
    return halves(rows, size, generator("clean", size, at))


def faulty_window(rows: Rows, fault: str, size: int, at: int) -> tuple[Rows, Rows]:
    """A reference and a window of it with the fault."""
    rng = generator("fault", fault, size, at)
    reference, window = halves(rows, size, rng)
    return reference, FAULTS[fault].put(window, rng)


def clean(rows: Rows, size: int, windows: range) -> list[float]:
    """The smallest q-value of a breach in each window without drift, floors off; 2 where there is none."""
    found = []
    for at in windows:
        reference, window = clean_window(rows, size, at)
        hits = breached(judged(reference, [window], NO_FLOORS, max(LEVELS)))
        found.append(min((each.qvalue for each in hits), default=2.0))
    return found


def faulty(rows: Rows, fault: str, size: int, windows: range) -> list[tuple[bool, bool]]:
    """Of each window with the fault whether its column is breached, and whether another is, at default settings."""
    alarm, found = Alarm(), []
    for at in windows:
        reference, window = faulty_window(rows, fault, size, at)
        hits = breached(judged(reference, [window], alarm, alarm.level()))
        found.append(own_and_others(fault, {each.key.column for each in hits}))
    return found


def own_and_others(fault: str, columns: Set[str]) -> tuple[bool, bool]:
    """Whether the column with the fault is among the breached ones, and whether another is."""
    own = FAULTS[fault].column
    return own in columns, bool(columns - {own})


def clean_of(ask: Ask, rows: Rows, size: int, windows: range) -> list[bool]:
    """Of each window without drift whether another tool alarms."""
    return [bool(ask(*clean_window(rows, size, at))) for at in windows]


def faulty_of(ask: Ask, rows: Rows, fault: str, size: int, windows: range) -> list[tuple[bool, bool]]:
    """Of each window with the fault whether another tool alarms on its column, and on another."""
    return [own_and_others(fault, set(ask(*faulty_window(rows, fault, size, at)))) for at in windows]


def years(rows: Rows) -> list[tuple[str, ...]]:
    """What breaches in 2016 to 2018 against 2015 at default settings, as the cells of a table."""
    reference, alarm = rows.take(np.flatnonzero(rows.year == YEARS[0])), Alarm()
    found = []
    for year in YEARS[1:]:
        window = rows.take(np.flatnonzero(rows.year == year))
        for key, test, qvalue, _, _ in breached(judged(reference, [window], alarm, alarm.level())):
            numbers = f"{test.value:.4f}", f"{test.corrected:.4f}", f"{qvalue:.1e}"
            found.append((str(year), key.column, str(key.slice), test.measure, *numbers))
    return found


def power(rows: Rows, size: int, windows: range, alpha: float = 0.001) -> list[tuple[bool, bool, bool]]:
    """Of windows of min(AGEP + 3, 94) whether the location, any test of AGEP, and the z-test reject at alpha."""
    ages, found = rows.only(("AGEP",)), []
    for at in windows:
        rng = generator("power", size, at)
        reference, window = halves(ages, size, rng)
        window = FAULTS["min(AGEP + 3, 94)"].put(window, rng)
        cells = {"AGEP": OrderedCells.of(reference.numbers["AGEP"])}
        sides = Sides(
            cells["AGEP"], *(profiles_of(each, cells, ("AGEP",))[Key("AGEP")] for each in (reference, window))
        )
        pvalues = {test.measure: test.pvalue for test in measured(sides, Alarm())}
        plain = z_test(reference.numbers["AGEP"], window.numbers["AGEP"])
        found.append((pvalues[LOCATION] <= alpha, min(pvalues.values()) <= alpha, plain <= alpha))
    return found


def z_test(reference: FloatArray, current: FloatArray) -> float:
    """The p-value of the difference of the means, winsorised at the reference's range."""
    cut = current.clip(reference.min(), reference.max())
    se = sqrt(reference.var(ddof=1) / len(reference) + cut.var(ddof=1) / len(cut))
    return float(2 * stats.norm.sf(abs(cut.mean() - reference.mean()) / se))


def five_windows(rows: Rows, size: int, runs: range) -> list[tuple[bool, bool]]:
    """Of each run whether AGEP breaches in the first of five windows, and in the five pooled."""
    alarm, planted, found = Alarm(), FAULTS["min(AGEP + 3, 94)"], []
    for at in runs:
        rng = generator("five", size, at)
        reference, together = halves(rows, 5 * size, rng)
        windows = [planted.put(together.take(np.arange(part, 5 * size, 5)), rng) for part in range(5)]
        hits = [breached(judged(reference, each, alarm, alarm.level())) for each in (windows[:1], windows)]
        first, pooled = ("AGEP" in {each.key.column for each in hit} for hit in hits)
        found.append((first, pooled))
    return found


def interval(count: int, n: int) -> str:
    """A share with its exact interval at 95 %."""
    low, high = stats.binomtest(count, n).proportion_ci(0.95) if n else (nan, nan)
    return f"{count / n:.3f} ({low:.3f} to {high:.3f})"


Work = Callable[[], list[object]]


def work(rows: Rows) -> Iterator[tuple[str, Work]]:
    """Blocks of all tables by name, each table's first blocks before the second ones of any."""
    first = rows.take(np.flatnonzero(rows.year == YEARS[0]))
    yield "years/0", partial(years, rows)
    for block in range(20):
        for size in CLEAN_SIZES[1:]:
            yield f"clean/{size}/{block}", partial(clean, first, size, range(50 * block, 50 * block + 50))
        for size in POWER_SIZES:
            yield f"power/{size}/{block}", partial(power, first, size, range(100 * block, 100 * block + 100))
        if block % 4 == 0:
            part = range(block // 4 * 10, block // 4 * 10 + 10)
            yield f"five/500/{block}", partial(five_windows, first, 500, part)
            for fault in FAULTS:
                for size in FAULT_SIZES:
                    yield f"fault/{fault}/{size}/{block}", partial(faulty, first, fault, size, part)


def work_of(rival: str, ask: Ask, rows: Rows) -> Iterator[tuple[str, Work]]:
    """The first 100 windows without drift of every size and the first 20 with every fault, for another tool."""
    first = rows.take(np.flatnonzero(rows.year == YEARS[0]))
    for block in range(20):
        for size in CLEAN_SIZES[1:]:
            part = range(5 * block, 5 * block + 5)
            yield f"{rival}/clean/{size}/{block}", partial(clean_of, ask, first, size, part)
        for fault in FAULTS:
            for size in FAULT_SIZES:
                part = range(block, block + 1)
                yield f"{rival}/fault/{fault}/{size}/{block}", partial(faulty_of, ask, first, fault, size, part)


def run(kept: Path, blocks: Iterable[tuple[str, Work]]) -> None:
    """Runs the blocks that the file does not hold yet, into it."""
    known: dict[str, list[object]] = json.loads(kept.read_text()) if kept.exists() else {}
    for name, block in blocks:
        if name not in known:
            known[name] = block()
            kept.parent.mkdir(exist_ok=True)
            kept.write_text(json.dumps(known, default=bool))
            print(name, file=sys.stderr, flush=True)


def results() -> dict[str, list[list[object]]]:
    """What has run, by table and column."""
    found: dict[str, list[list[object]]] = defaultdict(list)
    for kept in KEPT.values():
        for name, rows in json.loads(kept.read_text()).items() if kept.exists() else ():
            found[name.rsplit("/", 1)[0]] += rows
    return found


def table(heading: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    rows = [heading, ["---"] * len(heading), *lines]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def page(found: Mapping[str, Sequence]) -> str:
    """docs/drift-benchmarks.md: the tables of what has run."""
    return "\n\n".join([_INTRODUCTION, *(each(found) for each in (_clean, _years, _faults, _power, _five))]) + "\n"


_INTRODUCTION = """# Drift on real data

Alarms on the US census of Massachusetts, 2015 to 2018, with the probability of employment that a model gives each
person (NannyML's dataset, Apache-2.0): 17 columns, overall and in the slices of SEX and RAC1P, every row a unit.
`MLTRUST_DATA=... make bench-drift` writes this page, of as many windows (`n`) as have run of each line: a table
without lines has not run. References are random halves of 2015, a new one for every window, which is drawn from the
other half; seeds are fixed."""


def _clean(found: Mapping[str, Sequence]) -> str:
    lines = [
        (
            size,
            len(rows),
            *(_share(sum(each <= q for each in rows), len(rows)) for q in LEVELS),
            *(_of_clean(found.get(f"{rival}/clean/{size}", [])) for rival in RIVALS),
        )
        for size in CLEAN_SIZES
        if (rows := found.get(f"clean/{size}"))
    ]
    heading = ("rows", "n", *(f"q {q:g}" for q in LEVELS), *RIVALS)
    return f"""## No drift

Windows with any breach, floors off. Of 50 rows nothing is said. {_BESIDE} They are given the first windows, and these
overall only, without the slices.

{table(heading, lines)}"""


_BESIDE = (
    f"Beside it {' and '.join(RIVALS)} at their own defaults ({', '.join(each[0] for each in RIVALS.values())})."
)


def _years(found: Mapping[str, Sequence]) -> str:
    heading = ("year", "column", "slice", "measure", "value", "after noise", "q-value")
    return f"""## 2016 to 2018 against 2015, default settings

In 2017 the census moved the top code of AGEP from 94 to 95. What stands beside it is in slices of 2018, and real too:
ancestry (ANC) of RAC1P 6, and of RAC1P 8 the score and the household's relationships (RELP): people in group quarters
(16, 17) fell from 11 % of its rows to 6 %, for which scipy's chi2_contingency has a p-value of 6e-6 as well.

{table(heading, found.get("years", []))}"""


def _faults(found: Mapping[str, Sequence]) -> str:
    lines = [
        (fault, planted.column, *(_of_fault(found.get(f"fault/{fault}/{size}", [])) for size in FAULT_SIZES))
        for fault, planted in FAULTS.items()
    ]
    heading = ("fault", "column", *(f"{size} rows" for size in FAULT_SIZES))
    return f"""## Faults, default settings

Windows with the column breached / with another one breached, of n.

{table(heading, lines)}

{_faults_of_rivals(found)}"""


def _faults_of_rivals(found: Mapping[str, Sequence]) -> str:
    lines = [
        (rival, fault, *(_of_fault(found.get(f"{rival}/fault/{fault}/{size}", [])) for size in FAULT_SIZES))
        for fault in FAULTS
        for rival in RIVALS
    ]
    heading = ("tool", "fault", *(f"{size} rows" for size in FAULT_SIZES))
    return f"""The first of the same windows, overall only, given to other tools at their defaults:

{table(heading, lines)}"""


def _power(found: Mapping[str, Sequence]) -> str:
    lines = [
        (size, len(rows), *(interval(sum(each), len(rows)) for each in zip(*rows, strict=True)))
        for size in POWER_SIZES
        if (rows := found.get(f"power/{size}"))
    ]
    heading = ("rows", "n", "location test", "any test of AGEP", "winsorised z-test")
    return f"## Power: min(AGEP + 3, 94), each test at 0.001, intervals at 95 %\n\n{table(heading, lines)}"


def _five(found: Mapping[str, Sequence]) -> str:
    rows = found.get("five/500", [])
    lines = [(len(rows), *map(sum, zip(*rows, strict=True)))] if rows else []
    heading = ("n", "breached in the first window", "in the five pooled")
    return f"## Five windows of 500 rows, min(AGEP + 3, 94), default settings\n\n{table(heading, lines)}"


def _share(count: int, n: int) -> str:
    return f"{count} ({count / n:.1%})"


def _of_clean(rows: Sequence) -> str:
    return f"{_share(sum(rows), len(rows))} of {len(rows)}" if rows else "not run"


def _of_fault(rows: Sequence) -> str:
    if not rows:
        return "not run"
    own, other = (sum(each) for each in zip(*rows, strict=True))
    return f"{own} / {other} of {len(rows)}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.drift", description=__doc__)
    parser.add_argument("--page-only", action="store_true", help="write the page of what has run")
    parser.add_argument("--rival", choices=RIVALS, help="give the windows to another tool")
    given = parser.parse_args(arguments)
    data = os.environ.get("MLTRUST_DATA")
    if not (data or given.page_only):
        print("MLTRUST_DATA is unset: it names the folder of the real data", file=sys.stderr)
        return 2
    if not given.page_only:
        rows = load(Path(str(data)))
        if given.rival:
            with asking(given.rival, FOLDER / "rivals") as ask:
                run(KEPT[given.rival], work_of(given.rival, ask, rows))
        else:
            run(KEPT["mltrust"], work(rows))
    PAGE.write_text(page(results()))
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(main())
