"""The work of a calibration in parts of some seconds to minutes, each kept in a file once it is done."""

import ast
import json
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import NamedTuple

from tests.calibration import means, resampling, sequential, ship, skewness, slices  # noqa: F401
from tests.calibration.grid import REGISTRY, SPLITS, UNITS, Piece, Tally
from tests.calibration.laws import LAWS, seeded

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".calibration"
#: Units in one draw: more of them leave the cache of the processor, fewer cost calls.
_CHUNK = 500_000
_AGAIN = 4
#: What can be asked for by `--only`; importing the modules of tests has filled the registry.
TOPICS = (*REGISTRY, "std_error", "skew flag", "ship")

Numbers = dict[str, float]


class Job(NamedTuple):
    """A part: what it is called, how many runs it makes, of which source its result is (see `code`), and the work."""

    name: str
    topic: str
    runs: int
    source: str
    work: Callable[[], Numbers]

    @property
    def path(self) -> Path:
        return CACHE / f"{self._stem}-{self.runs}.json"

    @property
    def every_path(self) -> list[Path]:
        """Results of any number of runs, those of the most first."""
        return sorted(CACHE.glob(f"{self._stem}-*.json"), key=lambda path: -int(path.stem.split("-")[1]))

    @property
    def _stem(self) -> str:
        return sha256(self.name.encode()).hexdigest()[:16]


def simulate(piece: Piece, runs: int, name: str = "") -> Tally:
    """The tally of a piece; the same numbers for the same number of runs, and others by another name."""
    rng, run, total = seeded(name or piece.name), REGISTRY[piece.test].run, Tally(0)
    size = max(1, min(10_000, _CHUNK // piece.units))
    for first in range(0, runs, size):
        total = total.plus(run(piece, rng, min(size, runs - first)))
    return total


def all_jobs(scale: float) -> list[Job]:
    """Every part, with `scale` times its runs."""
    return [*_of_pieces(scale), *_of_errors(), *_of_flags(scale), *_of_ship(scale)]


def _of_pieces(scale: float) -> Iterator[Job]:
    for test in REGISTRY.values():
        for piece in test.pieces():
            runs = test.n_runs(piece.units, scale)
            yield Job(piece.name, test.name, runs, code(test.run.__module__), partial(_tallied, piece, runs))


def again(piece: Piece, runs: int) -> Job:
    """A piece with other chance and four times the runs: whether what missed its band misses it again."""
    test, name = REGISTRY[piece.test], f"{piece.name}, again"
    work = partial(_tallied, piece, _AGAIN * runs, name)
    return Job(name, test.name, _AGAIN * runs, code(test.run.__module__), work)


def _tallied(piece: Piece, runs: int, name: str = "") -> Numbers:
    return simulate(piece, runs, name)._asdict()


def _of_errors() -> Iterator[Job]:
    for law, split in product(LAWS, SPLITS):
        name = f"std_error, {split}, {law}"
        yield Job(name, "std_error", resampling.N_DATA_SETS, code(resampling.__name__), partial(_errors, law, split))


def _errors(law: str, split: str) -> Numbers:
    of_bootstrap, of_jackknife = resampling.std_errors(law, split)
    return {"bootstrap": of_bootstrap, "jackknife": of_jackknife}


def _of_flags(scale: float) -> Iterator[Job]:
    for law, split, units in product(LAWS, SPLITS, UNITS):
        piece, runs = Piece("skew flag", split, law, units), max(20, round(skewness.RUNS * scale))
        yield Job(piece.name, "skew flag", runs, code(skewness.__name__), partial(skewness.flagged, piece, runs))


def _of_ship(scale: float) -> Iterator[Job]:
    runs = max(10, round(ship.RUNS * scale))
    for scenario in ship.SCENARIOS:
        for first in range(0, runs, ship.BLOCK):
            n = min(ship.BLOCK, runs - first)
            work = partial(ship.simulate_ship, scenario, first, n)
            yield Job(f"ship, {scenario.name}, from {first}", "ship", n, code(ship.__name__), work)


def done(job: Job) -> bool:
    """Whether the part has run, with as many runs and by this code."""
    return job.path.exists() and _kept(job, job.path) is not None


def result(job: Job) -> Numbers | None:
    """The result of a part with the most runs that this code has made of it."""
    return next((kept for path in job.every_path if (kept := _kept(job, path)) is not None), None)


def _kept(job: Job, path: Path) -> Numbers | None:
    kept = json.loads(path.read_text())
    return kept["numbers"] if kept["code"] == job.source else None


def do(job: Job) -> float:
    """Does a part and keeps its result; the seconds that it took."""
    started = time.perf_counter()
    numbers = job.work()
    seconds = time.perf_counter() - started
    CACHE.mkdir(exist_ok=True)
    kept = {"name": job.name, "runs": job.runs, "code": job.source, "seconds": seconds, "numbers": numbers}
    unfinished = job.path.with_suffix(".part")
    unfinished.write_text(json.dumps(kept))
    unfinished.replace(job.path)
    return seconds


@cache
def code(module: str) -> str:
    """A hash of the source of a module and of all of the project that it imports: whether a result is still its."""
    seen: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = ROOT / (name.replace(".", "/") + ".py")
        if name in seen or not path.exists():
            continue
        seen[name] = ast.dump(tree := ast.parse(path.read_text()))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
    return sha256(repr(sorted(seen.items())).encode()).hexdigest()[:16]
