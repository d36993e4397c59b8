"""Replicates and quantiles of clustered rows."""

from collections.abc import Callable
from math import exp, log, sqrt

import numpy as np
from scipy import special

from mltrust.metrics import HistogramColumn
from mltrust.states.moments import FloatArray, Moments
from mltrust.states.replicates import Replicates, delete_a_bucket, poisson
from mltrust.stats.bootstrap import bootstrap, jackknife, resampled_ratio
from mltrust.stats.means import Comparison, welch
from mltrust.stats.quantiles import MIN_UNITS, Quantile, clustered_quantile, compare_quantiles, of_cells
from mltrust.stats.ratios import ratio_arm
from tests.calibration.grid import PLANTED, UNITS, Interval, Piece, Size, Tally, calibrated, tally
from tests.calibration.laws import seeded, with_rows
from tests.calibration.means import held, ratio_size

COLUMNS = ("y", "d")
N_REPLICATES, N_BUCKETS, N_CELLS, LEVEL = 200, 64, 400, 0.9
#: Data sets on which the standard error is held against the one in closed form.
N_DATA_SETS = 20

Reduce = Callable[[FloatArray, np.ndarray], Replicates]
Compare = Callable[..., Comparison]


def _replicates(values: FloatArray, units: np.ndarray) -> Replicates:
    return poisson(COLUMNS, values, units, seed=1, n_replicates=N_REPLICATES)


def _without_buckets(values: FloatArray, units: np.ndarray) -> Replicates:
    return delete_a_bucket(COLUMNS, values, units, seed=1, n_buckets=N_BUCKETS)


def _samples(piece: Piece, rng: np.random.Generator) -> list[FloatArray]:
    return [with_rows(piece.law).units(rng, n)[:, :2] for n in piece.arms]


def _compared(samples: list[FloatArray], rng: np.random.Generator, reduce: Reduce, compare: Compare) -> Comparison:
    hashes = [rng.integers(0, 1 << 64, len(values), dtype=np.uint64) for values in samples]
    arms = [resampled_ratio(reduce(*each), *COLUMNS) for each in zip(samples, hashes, strict=True)]
    return compare(control=arms[0], treatment=arms[1])


def _run(piece: Piece, rng: np.random.Generator, runs: int, reduce: Reduce, compare: Compare) -> Tally:
    found, planted = [], []
    for _ in range(runs):
        samples = _samples(piece, rng)
        found.append(_compared(samples, rng, reduce, compare).pvalue)
        larger = samples[1] * np.array([1 + PLANTED, 1])
        planted.append(_compared([samples[0], larger], rng, reduce, compare))
    y, d, *_ = with_rows(piece.law).mean
    return tally(found, **held(planted, float(y / d)))


@calibrated("bootstrap", sizes=UNITS[:2], runs=(2_000, 2_000), size=ratio_size)
def run_bootstrap(piece: Piece, rng: np.random.Generator, runs: int) -> Tally:
    """The Poisson bootstrap of the mean of clustered rows, 200 replicates."""
    return _run(piece, rng, runs, _replicates, bootstrap)


@calibrated("jackknife", size=ratio_size)
def run_jackknife(piece: Piece, rng: np.random.Generator, runs: int) -> Tally:
    """The jackknife over 64 buckets of the mean of clustered rows."""
    return _run(piece, rng, runs, _without_buckets, jackknife)


def std_errors(law: str, split: str) -> tuple[float, float]:
    """The mean of the bootstrap's and of the jackknife's standard error over the delta method's, at 50,000 units."""
    piece = Piece("std_error", split, law, UNITS[-1])
    rng = seeded(piece.name)
    ratios = []
    for _ in range(N_DATA_SETS):
        samples = _samples(piece, rng)
        arms = [ratio_arm(Moments.of(COLUMNS, values), *COLUMNS) for values in samples]
        closed = welch(control=arms[0], treatment=arms[1]).std_error
        both = ((_replicates, bootstrap), (_without_buckets, jackknife))
        ratios.append([_compared(samples, rng, *each).std_error / closed for each in both])
    of_bootstrap, of_jackknife = np.mean(ratios, axis=0).tolist()
    return of_bootstrap, of_jackknife


def _quantile(rng: np.random.Generator, law: str, n: int) -> Quantile:
    """The 90th percentile of the rows of n units, with 1 to some 10 rows each that are alike."""
    rows = 1 + rng.poisson(2, n)
    codes = np.repeat(np.arange(n), rows)
    logs = sqrt(0.5) * (rng.standard_normal(n)[codes] + rng.standard_normal(len(codes)))
    # A cell in 400 of equal ratio, as a histogram of latencies would have it; of equal width where values can be 0.
    # In logs both are of equal width, and a division finds the cell of a row several times as fast as a search.
    by_ratio = law == "lognormal"
    low, high = (-6.0, 6.0) if by_ratio else (-8.0, 8.0)
    column = (
        HistogramColumn("", exp(low), exp(high), N_CELLS)
        if by_ratio
        else HistogramColumn("", 1 + low, 1 + high, N_CELLS, "linear")
    )
    cells = np.clip((logs - low) * (N_CELLS / (high - low)) + 1, 0, N_CELLS + 1).astype(np.intp)
    found = of_cells(np.bincount(cells, minlength=N_CELLS + 2), column.edges(), LEVEL)
    threshold = log(found.threshold) if by_ratio else found.threshold - 1
    below = rows - np.bincount(codes[logs > threshold], minlength=n)
    state = Moments.of(("below", "rows"), np.column_stack([below, rows]))
    return clustered_quantile(found, state, below="below", rows="rows")


@calibrated(
    "quantile",
    kind="quantile",
    laws=("normal", "lognormal"),
    size=lambda piece: Size(0.0, min(piece.arms)),
    smallest=MIN_UNITS,
)
def run_quantile(piece: Piece, rng: np.random.Generator, runs: int) -> Tally:
    """The 90th percentile of clustered rows. Laws with ties have no interval and no promise."""
    found, planted = [], []
    for _ in range(runs):
        control, treatment = (_quantile(rng, piece.law, n) for n in piece.arms)
        found.append(compare_quantiles(control=control, treatment=treatment).pvalue)
        by = 1 + PLANTED
        larger = treatment._replace(value=by * treatment.value, std_error=by * treatment.std_error)
        planted.append(compare_quantiles(control=control, treatment=larger))
    z = float(special.ndtri(LEVEL))
    told = [each for each in planted if Interval(each.ci_low, each.ci_high).is_bounded]
    return tally(found, **held(told, exp(z) if piece.law == "lognormal" else 1 + z))
