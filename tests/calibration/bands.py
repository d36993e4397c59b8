"""What each test has promised, and whether a row of the table keeps it."""

from math import isnan, nan
from typing import NamedTuple

from scipy import stats

from mltrust.experiment.oddities import THRESHOLD_OF_GUARDRAILS
from mltrust.stats.skew import THRESHOLD
from tests.calibration.grid import Calibration, Piece, Size, Tally
from tests.calibration.laws import HEAVY

#: The limits below are for as many runs.
_RUNS = 100_000
_CHANCE = 0.999
# The chance to beat is one-sided: its levels are half of the others, and its limits follow from the same reckoning.
_LARGEST = {0.05: 0.0523, 0.001: 0.0014, 0.025: 0.0266, 0.0005: 0.00075}
_SMALLEST = {0.05: 0.0477, 0.001: 0.0007, 0.025: 0.0234, 0.0005: 0.00026}
_SMALLEST_HEAVY = {0.05: 0.045, 0.001: 0.0004, 0.025: 0.0225, 0.0005: 0.0002}
_COVERAGE = 0.95
_COVERED = {"exact": (0.945, 0.955), "conservative": (0.945, 1.0), "quantile": (0.925, 0.96)}
_MOST_COVERED_HEAVY = 0.96
#: Tests of one side, as guardrails are read.
_GUARDRAILS = ("non-inferiority", "always-valid, increase", "always-valid, decrease")
#: Events and non-events that every arm needs for a promise.
MIN_EVENTS = 25
#: More runs than this share without a p-value, and it is the test that is missing.
_UNDEFINED = 0.01


class Band(NamedTuple):
    low: float
    high: float

    def misses(self, share: float) -> bool:
        return not (isnan(share) or self.low <= share <= self.high)


class Row(NamedTuple):
    """A line of the table; shares are nan where nothing was counted. `broken` names what is outside its band."""

    piece: Piece
    size: Size
    tally: Tally
    rate: float
    rate_far: float
    coverage: float
    rel_coverage: float
    status: str
    broken: tuple[str, ...]


def judge(test: Calibration, piece: Piece, tally: Tally) -> Row:
    """The row of a piece: kept, broken, or why nothing was promised."""
    size = test.size(piece)
    shares = {
        f"rate at {test.levels[0]:g}": _share(tally.rejected, tally.runs),
        f"rate at {test.levels[1]:g}": _share(tally.rejected_far, tally.runs),
        "coverage": _share(tally.covered, tally.intervals),
        "relative coverage": _share(tally.rel_covered, tally.rel_intervals),
    }
    if test.kind == "quantile":
        bands = {"coverage": coverage_band(test, piece, tally.intervals)}
        bands["relative coverage"] = coverage_band(test, piece, tally.rel_intervals)
    else:
        numbers = (tally.runs, tally.runs, tally.intervals, tally.rel_intervals)
        of_level = [rate_band(test, piece, level, tally.runs) for level in test.levels]
        of_coverage = [coverage_band(test, piece, n) for n in numbers[2:]]
        bands = dict(zip(shares, [*of_level, *of_coverage], strict=True))
    none = _no_promise(test, size, tally)
    broken = () if none else tuple(name for name, band in bands.items() if band.misses(shares[name]))
    return Row(piece, size, tally, *shares.values(), none or ("broken" if broken else "kept"), broken)


def _no_promise(test: Calibration, size: Size, tally: Tally) -> str:
    if tally.undefined == tally.runs:
        return "no test"
    if size.g > (THRESHOLD_OF_GUARDRAILS if test.name.startswith(_GUARDRAILS) else THRESHOLD):
        return "flagged: skewed"
    if round(size.units, 6) < test.smallest:
        return f"no promise: {size.units:.3g} units"
    if round(size.events, 6) < MIN_EVENTS:
        return f"no promise: {size.events:.3g} events"
    if tally.undefined > _UNDEFINED * tally.runs:
        return f"no test in {tally.undefined / tally.runs:.0%}"
    return ""


def rate_band(test: Calibration, piece: Piece, level: float, runs: int) -> Band:
    """The band of a rejection rate: for 100,000 runs as promised, for fewer as much wider as chance is."""
    own, noise = _noise(level, _RUNS), _noise(level, runs)
    smallest = (_SMALLEST_HEAVY if piece.law in HEAVY else _SMALLEST)[level]
    low = smallest - (own.low - noise.low) if test.kind == "exact" and noise.low else 0.0
    return Band(low, _LARGEST[level] + noise.high - own.high)


def coverage_band(test: Calibration, piece: Piece, runs: int) -> Band:
    """The band of a share of intervals that hold the truth, widened likewise."""
    if not runs:
        return Band(0, 1)
    low, high = _COVERED[test.kind]
    if test.kind == "exact" and piece.law in HEAVY:
        high = _MOST_COVERED_HEAVY
    own, noise = _noise(_COVERAGE, _RUNS), _noise(_COVERAGE, runs)
    return Band(low - (own.low - noise.low), high + noise.high - own.high)


def _noise(share: float, runs: int) -> Band:
    """Where 99.9 % of the counted shares lie; more runs than 100,000 do not narrow what was promised."""
    n = min(runs, _RUNS)
    low, high = stats.binom.interval(_CHANCE, n, share)
    return Band(low / n, high / n)


def _share(count: int, of: int) -> float:
    return count / of if of else nan
