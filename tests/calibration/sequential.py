"""Tests that are looked at more than once, and those of the numbers of units."""

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np

from mltrust.states.moments import FloatArray
from mltrust.stats.independence import independence
from mltrust.stats.means import Arm, normal_score, welch
from mltrust.stats.sequential import (
    always_valid_pvalue,
    best_rho,
    counts_as_look,
    log_bayes_factor,
    log_e_value,
    one_sided_log_e_value,
    spending_bounds,
    srm_concentration,
)
from mltrust.stats.srm import SRM, srm
from tests.calibration.grid import LEVELS, PLANTED, SPLITS, Piece, Size, Tally, calibrated, tally
from tests.calibration.laws import Drawn, draw, mean_of

LOOKS, PLANNED = 60, 5
SEQUENTIAL = (20_000, 20_000)

_counts = np.vectorize(lambda n_c, n_t, share: counts_as_look(n_control=n_c, n_treatment=n_t, share=share))


def so_far(piece: Piece, rng: np.random.Generator, runs: int, looks: int, factor: float = 1.0) -> list[Drawn]:
    """Both arms up to every look; the units come evenly."""
    by_look = [np.diff(np.round(np.linspace(0, n, looks + 1)).astype(int)) for n in piece.arms]
    return [
        draw(rng, piece.law, np.broadcast_to(n, (runs, looks)), each).so_far()
        for n, each in zip(by_look, (1.0, factor), strict=True)
    ]


def _z(control: Drawn, treatment: Drawn, truth: float = 0.0) -> FloatArray:
    """(effect - truth) / std_error, nan where nothing varies."""
    variance = control.variance / control.n + treatment.variance / treatment.n
    return (treatment.mean - control.mean - truth) / np.sqrt(np.where(variance > 0, variance, np.nan))


def _evidence(
    piece: Piece, control: Drawn, treatment: Drawn, truth: float = 0.0, of: Callable[..., FloatArray] = log_e_value
) -> FloatArray:
    n = control.n + treatment.n
    if piece.law == "bernoulli":
        told = _counts(control.n, treatment.n, (control.total + treatment.total) / n)
    else:
        told = [
            counts_as_look(n_control=n_c, n_treatment=n_t)
            for n_c, n_t in zip(control.n[0].tolist(), treatment.n[0].tolist(), strict=True)
        ]
    rho = best_rho(alpha=LEVELS[0], horizon=piece.units)
    return np.where(told, of(_z(control, treatment, truth), n, rho=rho), np.nan)


@calibrated("always-valid", kind="conservative", runs=SEQUENTIAL)
def run_always_valid(piece: Piece, rng: np.random.Generator, runs: int) -> Tally:
    """A mean looked at on 60 days: the smallest p-value of looks that count, and the intersection of intervals."""
    pvalues = always_valid_pvalue(_evidence(piece, *so_far(piece, rng, runs, LOOKS)))[:, -1]
    planted = so_far(piece, rng, runs, LOOKS, 1 + PLANTED)
    # An interval leaves out the truth where the test of it rejects.
    truths = always_valid_pvalue(_evidence(piece, *planted, PLANTED * mean_of(piece.law)))[:, -1]
    return tally(pvalues, held=(truths[~np.isnan(truths)] > LEVELS[0]).tolist())


def _of_one_side(sign: int) -> Callable[[Piece, np.random.Generator, int], Tally]:
    def run(piece: Piece, rng: np.random.Generator, runs: int) -> Tally:
        found = _evidence(piece, *so_far(piece, rng, runs, LOOKS), of=partial(_one_sided, sign=sign))
        return tally(always_valid_pvalue(found)[:, -1])

    which = "larger" if sign > 0 else "smaller"
    run.__doc__ = f"One-sided, as a guardrail is read on 60 days: calling a mean {which} that is the same."
    return run


def _one_sided(statistic: FloatArray, n: FloatArray, *, rho: float, sign: int) -> FloatArray:
    return one_sided_log_e_value(sign * statistic, n, rho=rho)


calibrated("always-valid, increase", kind="conservative", runs=SEQUENTIAL)(_of_one_side(1))
calibrated("always-valid, decrease", kind="conservative", runs=SEQUENTIAL)(_of_one_side(-1))


@calibrated("group sequential", runs=SEQUENTIAL)
def run_group_sequential(piece: Piece, rng: np.random.Generator, runs: int) -> Tally:
    """A mean at five planned looks, O'Brien-Fleming spending, normal scores of Welch's test."""
    information = [(look + 1) / PLANNED for look in range(PLANNED)]
    controls, treatments = (arm.arms() for arm in so_far(piece, rng, runs, PLANNED))
    sizes = np.abs(
        [[_score(*look) for look in zip(*run, strict=True)] for run in zip(controls, treatments, strict=True)]
    )
    crossed = [(sizes >= np.array(spending_bounds(information, alpha=alpha))).any(axis=1) for alpha in LEVELS]
    return tally(np.where(crossed[1], LEVELS[1], np.where(crossed[0], LEVELS[0], 1.0)).tolist())


def _score(control: Arm, treatment: Arm) -> float:
    found = welch(control=control, treatment=treatment)
    return normal_score(found.statistic, found.df)


def _counts_size(piece: Piece) -> Size:
    return Size(0.0, min(piece.arms))


@lru_cache(maxsize=200_000)
def _srm(counts: tuple[int, ...], weights: tuple[float, ...]) -> SRM:
    return srm(counts, weights)


@calibrated("sample ratio", kind="conservative", laws=(), size=_counts_size)
def run_srm(piece: Piece, rng: np.random.Generator, runs: int) -> Tally:
    """Pearson's test of the units per arm."""
    share = SPLITS[piece.split]
    treated = rng.binomial(piece.units, share, runs).tolist()
    return tally(_srm((piece.units - n, n), (1 - share, share)).pvalue for n in treated)


@calibrated("sample ratio, sequential", kind="conservative", laws=(), size=_counts_size, runs=SEQUENTIAL)
def run_sequential_srm(piece: Piece, rng: np.random.Generator, runs: int) -> Tally:
    """The units per arm on 60 days: the smallest p-value."""
    shares = np.array([1 - SPLITS[piece.split], SPLITS[piece.split]])
    by_day = np.diff(np.round(np.linspace(0, piece.units, LOOKS + 1)).astype(int))
    counts = rng.multinomial(np.broadcast_to(by_day, (runs, LOOKS)), shares).cumsum(axis=1)
    concentration = srm_concentration(piece.units)
    evidence = log_bayes_factor(counts, shares=shares, prior=concentration * shares)
    return tally(always_valid_pvalue(evidence)[:, -1])


@calibrated("independence", laws=(), size=_counts_size)
def run_independence(piece: Piece, rng: np.random.Generator, runs: int) -> Tally:
    """Pearson's test of arms by seven days, days with fewer than 5 expected joined."""
    tables = np.stack([rng.multinomial(n, np.full(7, 1 / 7), runs) for n in piece.arms], axis=2)
    return tally(independence(table, smallest_expected=5).pvalue for table in tables)
