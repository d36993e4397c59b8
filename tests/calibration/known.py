"""Bands that a test misses for a reason that is understood, and how far."""

from collections.abc import Callable
from math import sqrt

import numpy as np
from scipy import optimize, stats

from mltrust.experiment.oddities import THRESHOLD_OF_GUARDRAILS
from mltrust.states.moments import FloatArray
from mltrust.stats.means import Arm, non_inferiority
from mltrust.stats.srm import srm
from tests.calibration.bands import Row
from tests.calibration.grid import LEVELS, PLANTED, REGISTRY, SPLITS
from tests.calibration.laws import EVENTS, skew_of, with_rows
from tests.calibration.means import MARGIN
from tests.calibration.resampling import N_BUCKETS
from tests.calibration.slices import FACTORS, SHARES

_CHANCE = 0.999


def reason(row: Row) -> str:
    """Why a row misses its band; '' where that is not known, or it misses by more than the reason explains."""
    return next((found for explain in _REASONS.get(row.piece.test, ()) if (found := explain(row))), "")


def _explained(row: Row, *expected: float) -> bool:
    """Whether the counts at both levels are between what these levels and these rates make of so many runs."""
    counts = row.tally.rejected, row.tally.rejected_far
    levels = REGISTRY[row.piece.test].levels
    for count, level, rate in zip(counts, levels, expected, strict=True):
        (low, _), (_, high) = (stats.binom.interval(_CHANCE, row.tally.runs, at) for at in sorted((level, rate)))
        if not low <= count <= high:
            return False
    return not any("coverage" in name for name in row.broken)


def _discrete(row: Row) -> str:
    """The exact level of Pearson's test, from the law of the number of treated units."""
    n, share = row.piece.units, SPLITS[row.piece.split]
    treated = np.arange(n + 1)
    pvalues = np.array([srm((n - k, k), (1 - share, share)).pvalue for k in treated.tolist()])
    exact = [float(stats.binom.pmf(treated[pvalues <= level], n, share).sum()) for level in LEVELS]
    if not _explained(row, *exact):
        return ""
    return (
        f"Counts are discrete: of {n:,} units split {row.piece.split} Pearson's test rejects in "
        f"exactly {exact[0]:.2%} at 0.05 and {exact[1]:.3%} at 0.001, the level of the check."
    )


def _one_sided(row: Row) -> str:
    """The first term of Edgeworth's expansion, which two-sided tests do not have."""
    levels = REGISTRY[row.piece.test].levels
    terms = [row.size.g * (2 * z * z + 1) * stats.norm.pdf(z) / 6 for z in map(stats.norm.isf, levels)]
    # A fifth more for what follows the first term.
    expected = [max(0.0, level - 1.2 * term) for level, term in zip(levels, terms, strict=True)]
    if row.size.g == 0 or not _explained(row, *expected):
        return ""
    return (
        "One-sided tests feel the skewness of the smaller arm in first order, where the two tails of a two-sided "
        "test make up for each other: the rate is off by g·(2z² + 1)·φ(z)/6, a tenth of 5 % at g = 0.05. That is why "
        f"the readout flags guardrails from g = {THRESHOLD_OF_GUARDRAILS} on; the chance to beat is no test, and no "
        "guardrail."
    )


def _small_ratio(row: Row) -> str:
    """What the delta method's variance lacks, from the moments of what a unit adds to the ratio.

    The ratio is estimated from the same units: with e = y - R·d, 2E[e²d]/(d̄·E[e²]) - 1 - Var(d)/d̄² parts of sum(e²)
    are lost, where the variance makes up for one; given the arm's own z it is z² times as much of the rest. Kurtosis
    is as in `_heavy_tails`, of either arm with its share w of the effect's variance.
    """
    e, d = _parts(row, "y", "d"), with_rows(row.piece.law).column("d")
    lost = 2 * (e * e * d).mean() / ((e * e).mean() * d.mean()) - 1 - d.var() / d.mean() ** 2
    n = np.array(row.piece.arms)
    w, bias = (1 / n) / (1 / n).sum(), (lost - 1) / (n - 1)
    z = stats.norm.isf(np.array(LEVELS) / 2)[:, None]
    by_bias = (z * stats.norm.pdf(z) * w * bias * (1 + w * (z * z - 1))).sum(axis=1)
    by_tails = (2 * z * (z * z - 3) * stats.norm.pdf(z) * stats.kurtosis(e) * w * w / n / 12).sum(axis=1)
    expected = np.maximum(0.0, np.array(LEVELS) + by_bias - by_tails).tolist()
    if row.tally.rejected < LEVELS[0] * row.tally.runs or not _explained(row, *expected):
        return ""
    return (
        f"With {n.min()} units in the smaller arm the delta method's variance of a ratio is {bias.max():.1%} too "
        f"small on average, as the ratio is estimated from the same units, and smaller still where that is far off: "
        f"{expected[0]:.2%} are expected at 0.05 and {expected[1]:.3%} at 0.001. The bias falls with 1/n."
    )


def _parts(row: Row, numerator: str, denominator: str) -> FloatArray:
    """What a unit of the law adds to a ratio: y - R·d."""
    y, d = (with_rows(row.piece.law).column(name) for name in (numerator, denominator))
    return y - y.mean() / d.mean() * d


def _heavy_tails(row: Row) -> str:
    """The first term of Edgeworth's expansion of a t test of equal arms, whose skewness cancels: the kurtosis's.

    Hall, P. (1992). The bootstrap and Edgeworth expansion, 2.6: two-sided tests reject less by
    2z(z² - 3)φ(z)·kurtosis / (12n), n the units of both arms. What follows takes some of it back.
    """
    n_c, n_t = row.piece.arms
    left = _parts(row, "y", "d")
    if row.piece.test.startswith("CUPED"):
        past = _parts(row, "x", "e")
        left = left - (past @ left) / (past @ past) * past
    kurtosis = float(stats.kurtosis(left))
    z = stats.norm.isf(np.array(LEVELS) / 2)
    terms = 2 * z * (z * z - 3) * stats.norm.pdf(z) * kurtosis / (12 * (n_c + n_t))
    expected = np.maximum(0.0, np.array(LEVELS) - terms).tolist()
    if n_c != n_t or row.tally.rejected > LEVELS[0] * row.tally.runs or not _explained(row, *expected):
        return ""
    return (
        f"Heavy tails make the test conservative: with a kurtosis of {kurtosis:,.0f} and {n_c + n_t:,} units the "
        f"expansion's first term leaves {expected[0]:.2%} at 0.05, and what follows takes some of that back."
    )


def _few_in_buckets(row: Row) -> str:
    """The t law of as many buckets as have a unit of the smaller arm, where the test takes that of all buckets."""
    n = min(row.piece.arms)
    occupied = N_BUCKETS * (1 - (1 - 1 / N_BUCKETS) ** n)
    limits = stats.t.isf(np.array(LEVELS) / 2, N_BUCKETS - 1)
    expected = (2 * stats.t.sf(limits, occupied - 1)).tolist()
    if not _explained(row, *expected):
        return ""
    return (
        f"{n} units of the smaller arm are in some {occupied:.0f} of {N_BUCKETS} buckets, and their error is known "
        f"no better than by so many: {expected[0]:.2%} are expected at 0.05 and {expected[1]:.3%} at 0.001. The "
        "jackknife is a witness beside the test, and decides nothing."
    )


def _opposed(row: Row) -> str:
    """The first term of Edgeworth's expansion of a sum of squares of one side, over the slices without an effect."""
    n_c, n_t = row.piece.arms
    others = list(zip(SHARES[1:], FACTORS[1:], strict=True))
    g = np.array([skew_of(row.piece.law, n_c * share, n_t * share, factor) for share, factor in others])
    z = np.random.default_rng(1).standard_normal((1_000_000, len(g)))
    below = np.where(z < 0, z * z, 0).sum(axis=1)
    weight = np.prod(1 + g / 6 * (3 * z - 2 * z**3), axis=1)
    counts = np.arange(1, len(g) + 1)

    def pvalue(size: float) -> float:
        return float(stats.binom.pmf(counts, len(g), 0.5) @ stats.chi2.sf(size, counts))

    limits = [optimize.brentq(lambda size, at=level: pvalue(size) - at, 0, 100) for level in LEVELS]
    expected = [float(weight[below >= limit].sum() / len(z)) for limit in limits]
    if not _explained(row, *expected):
        return ""
    return (
        "Gail and Simon's test asks on which side of 0 effects lie, and feels skewness in first order as one-sided "
        f"tests do: {expected[0]:.2%} are expected at 0.05 and {expected[1]:.3%} at 0.001. It warns, at 0.01."
    )


def _few_units(row: Row) -> str:
    """What the t law of the smaller arm leaves beyond the limits of the normal one."""
    levels = REGISTRY[row.piece.test].levels
    expected = [float(stats.t.sf(stats.norm.isf(level), min(row.piece.arms) - 1)) for level in levels]
    if not _explained(row, *expected):
        return ""
    return (
        "The posterior is normal with the standard error taken as known: with "
        f"{min(row.piece.arms)} units in the smaller arm its tails are a little too light, as the t law has it. The "
        "test of the same effect is not concerned."
    )


def _enumerated(row: Row) -> str:
    """The exact level of a guardrail's test of shares, over all counts of events in both arms."""
    if row.piece.law != "bernoulli":
        return ""
    good = row.piece.test.endswith("increase is good")
    rate = EVENTS["bernoulli"]
    rates = rate, rate * (1 - PLANTED if good else 1 + PLANTED)
    (control, p_c), (treatment, p_t) = (_counts(n, each) for n, each in zip(row.piece.arms, rates, strict=True))
    pvalues = [
        [non_inferiority(control=c, treatment=t, margin=MARGIN, increase_is_good=good).pvalue for t in treatment]
        for c in control
    ]
    exact = [float(p_c @ (np.array(pvalues) <= level) @ p_t) for level in LEVELS]
    if not _explained(row, *exact):
        return ""
    return (
        f"Events are rare and discrete, and the arms at the margin do not have the same law: over all counts of "
        f"{row.piece.units:,} units split {row.piece.split} the test rejects in exactly {exact[0]:.2%} at 0.05 and "
        f"{exact[1]:.3%} at 0.001; the rest is chance."
    )


def _counts(n: int, rate: float) -> tuple[list[Arm], FloatArray]:
    """The arms of all numbers of events within 7 standard deviations, and their chances."""
    reach = 7 * sqrt(n * rate)
    events = np.arange(max(0, int(n * rate - reach)), int(n * rate + reach))
    arms = [Arm(n, x / n, x * (1 - x / n) / (n - 1)) for x in events.tolist()]
    return arms, stats.binom.pmf(events, n, rate)


_REASONS: dict[str, tuple[Callable[[Row], str], ...]] = {
    "sample ratio": (_discrete,),
    "non-inferiority, increase is good": (_enumerated,),
    "non-inferiority, decrease is good": (_enumerated,),
    "chance to beat, flat prior": (_one_sided, _few_units),
    "jackknife": (_few_in_buckets,),
    "ratio": (_small_ratio,),
    "CUPED of a ratio": (_small_ratio, _heavy_tails),
    "qualitative interaction": (_opposed,),
}
