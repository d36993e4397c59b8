"""From a moved metric to its cause: which slices and features carry the move, as a short list that reads.

    before, after = (totals_of(states, "device", "label") for states in (reference_states, current_states))
    causes("conversion", before, after, drifted).sentence       the list that reads; `.causes` its parts, ranked

A metric is a total over rows (conversions, the sum of scores) per row. By the slices of one attribute its move is the
sum of two parts per slice: of **mix**, that the slice's share of the rows changed, and of **rate**, that the metric
changed within the slice. What the metric would be at the reference's mix stands beside it. Features are ranked by how
far they drifted times how much the model leans on them, which is no decomposition, and so carries no points of the
metric.

References
----------
Kitagawa, E. M. (1955). Components of a difference between two rates. Journal of the American Statistical Association
50, 1168-1194 (the two parts, each weighted by the mean of both sides, so that they add up to the move and do not
depend on which side is called the reference). Das Gupta, P. (1993). Standardization and decomposition of rates. US
Bureau of the Census, P23-186 (shares of a slice, about the overall rate, so that a slice's part is its own).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan, sqrt
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from mltrust.drift.performance import POSITIVE, SCORES, UNLABELLED, ScoreLabels
from mltrust.drift.profile import N_BUCKETS
from mltrust.slices import Slice
from mltrust.states.moments import FloatArray
from mltrust.stats.bootstrap import jackknife_covariance

MIX, RATE, FEATURE = "mix", "rate", "feature"
_LISTED = 5


@dataclass(frozen=True, slots=True, eq=False)
class Totals:
    """Rows and the total of a metric in the slices of one attribute, by hash bucket of the unit: (slices, 64)."""

    slices: tuple[Slice, ...]
    rows: FloatArray
    totals: FloatArray

    def __post_init__(self) -> None:
        expected = (len(self.slices), N_BUCKETS)
        if self.rows.shape != expected or self.totals.shape != expected:
            raise ValueError(f"rows and totals have shape {expected}, got {self.rows.shape} and {self.totals.shape}")

    @classmethod
    def of(cls, rows: Mapping[Slice, ArrayLike], totals: Mapping[Slice, ArrayLike]) -> "Totals":
        """The state of per-bucket rows and totals (64,) of the slices of one attribute."""
        slices = tuple(rows)
        both = (np.array([of[each] for each in slices], dtype=np.float64) for of in (rows, totals))
        return cls(slices, *(each.reshape(len(slices), N_BUCKETS) for each in both))

    def among(self, slices: Sequence[Slice]) -> "Totals":
        """The same of these slices, in their order; a slice that is not there has no rows."""
        at = {each: row for row, each in enumerate(self.slices)}
        nobody = np.zeros(N_BUCKETS)
        rows, totals = (
            np.array([of[at[each]] if each in at else nobody for each in slices]) for of in (self.rows, self.totals)
        )
        return Totals(tuple(slices), rows, totals)


def totals_of(states: Mapping[Slice, ScoreLabels], slice_key: str, of: Literal["label", "score"]) -> Totals:
    """Labelled predictions and their positive labels, or all predictions and the sum of their scores, by slice.

    `states` are those of `drift.performance`; taken are the slices of the attribute (or attributes) `slice_key`.
    """
    own = {where: state.counts for where, state in states.items() if where.slice_key == slice_key}
    if of == "score":
        by_cell = {where: counts.sum(axis=0) for where, counts in own.items()}
        return Totals.of(
            {where: counts.sum(axis=0) for where, counts in by_cell.items()},
            {where: SCORES @ counts for where, counts in by_cell.items()},
        )
    return Totals.of(
        {where: counts[:UNLABELLED].sum(axis=(0, 1)) for where, counts in own.items()},
        {where: counts[POSITIVE].sum(axis=0) for where, counts in own.items()},
    )


class Cause(NamedTuple):
    """One part of a move. `contribution` and its limits of confidence 0.95 are in the unit of the metric.

    Of a slice `before` and `after` are its shares of the rows (mix) or its rates (rate). Of a feature they are nan,
    `contribution` is nan, and `score` is its drift times its share of all attribution.
    """

    kind: str
    name: str
    contribution: float
    ci_low: float
    ci_high: float
    before: float
    after: float
    score: float
    words: str


class Explanation(NamedTuple):
    """A metric's move, what it would have been at the reference's mix, and what it is made of, largest first."""

    reference: float
    current: float
    at_reference_mix: float
    mix: float
    rate: float
    causes: tuple[Cause, ...]
    sentence: str


class Drifted(NamedTuple):
    """How far a feature drifted (JSD in bits, say), and its share of all attribution (nan where not known)."""

    feature: str
    drift: float
    share: float


def causes(
    metric: str, reference: Totals, current: Totals, drifted: Sequence[Drifted] = (), *, unit: str = "points"
) -> Explanation:
    """What the move of `metric` is made of. Slices are those of one attribute, and of either side.

    With `unit` points a metric is a share, and told in percent; with any other it is told in that unit as it is.
    """
    slices = tuple(dict.fromkeys((*reference.slices, *current.slices)))
    before, after = _without(reference.among(slices)), _without(current.among(slices))
    mix, rate = decomposed(*before, *after)
    shares, rates = [_shares(each[0])[0] for each in (before, after)], [_rates(*each)[0] for each in (before, after)]
    found = [
        _cause(kind, where, parts[:, at], levels[0][at], levels[1][at], unit)
        for kind, parts, levels in ((MIX, mix, shares), (RATE, rate, rates))
        for at, where in enumerate(slices)
    ]
    ranked = tuple(sorted(found, key=lambda each: -abs(each.contribution)))[:_LISTED]
    features = _of_features(drifted)
    overall = [float(each[1][0].sum() / each[0][0].sum()) if each[0][0].sum() else nan for each in (before, after)]
    counterfactual = float(np.nansum(shares[0] * rates[1]))
    parts = float(mix[0].sum()), float(rate[0].sum())
    sentence = _sentence(metric, overall[0], overall[1], ranked, features, unit)
    return Explanation(overall[0], overall[1], counterfactual, *parts, (*ranked, *features), sentence)


def decomposed(
    rows_before: FloatArray, totals_before: FloatArray, rows_after: FloatArray, totals_after: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """The parts of mix and of rate (B, slices), from rows and totals (B, slices) of both sides.

    Mix (w1 - w0)·(mean rate of the slice - mean overall rate), rate (mean share)·(r1 - r0); all parts together are
    the move. Where a slice has no rows on a side its rate is taken to be that of the other side: it comes or goes as
    a matter of mix.
    """
    w0, w1 = _shares(rows_before), _shares(rows_after)
    r0, r1 = _rates(rows_before, totals_before), _rates(rows_after, totals_after)
    r0, r1 = np.where(np.isnan(r0), r1, r0), np.where(np.isnan(r1), r0, r1)
    r0, r1 = np.nan_to_num(r0), np.nan_to_num(r1)
    overall = ((w0 * r0).sum(axis=1) + (w1 * r1).sum(axis=1)) / 2
    return (w1 - w0) * ((r0 + r1) / 2 - overall[:, np.newaxis]), (w0 + w1) / 2 * (r1 - r0)


def _without(totals: Totals) -> tuple[FloatArray, FloatArray]:
    """Rows and totals (1 + 64, slices) of all units, and without each bucket."""
    rows, sums = (np.vstack([each.sum(axis=1), each.sum(axis=1) - each.T]) for each in (totals.rows, totals.totals))
    return rows, sums


def _shares(rows: FloatArray) -> FloatArray:
    return _divided(rows, rows.sum(axis=1, keepdims=True))


def _rates(rows: FloatArray, totals: FloatArray) -> FloatArray:
    return _divided(totals, rows)


def _divided(a: FloatArray, b: FloatArray) -> FloatArray:
    ratio: FloatArray = np.divide(a, b, out=np.full(a.shape, nan), where=np.broadcast_to(b, a.shape) > 0)
    return ratio


def _cause(kind: str, where: Slice, parts: FloatArray, before: float, after: float, unit: str) -> Cause:
    variance = float(jackknife_covariance(parts[1:, np.newaxis])[0, 0])
    half_width = float(special.stdtrit(N_BUCKETS - 1, 0.975)) * sqrt(max(variance, 0.0))
    value, name = float(parts[0]), f"{where.slice_value}"
    if kind == MIX:
        words = f"{_told(value, unit)} from {name}'s share {before:.0%} -> {after:.0%}"
    else:
        words = f"{_told(value, unit)} within {name} ({_level(before, unit)} -> {_level(after, unit)})"
    return Cause(kind, str(where), value, value - half_width, value + half_width, before, after, nan, words)


def _of_features(drifted: Sequence[Drifted]) -> tuple[Cause, ...]:
    """Features by drift times attribution; those whose attribution is not known come last, by their drift."""
    known = [each for each in drifted if each.drift > 0]
    ranked = sorted(
        known, key=lambda each: (isnan(each.share), -each.drift * (1 if isnan(each.share) else each.share))
    )
    return tuple(
        Cause(FEATURE, each.feature, nan, nan, nan, nan, nan, each.drift * each.share, _feature_words(each))
        for each in ranked[:_LISTED]
    )


def _feature_words(each: Drifted) -> str:
    leans = "" if isnan(each.share) else f", {each.share:.0%} of the model's attribution"
    return f"{each.feature} drifted by {each.drift:.2g} bits{leans}"


def _sentence(
    metric: str, before: float, after: float, ranked: Sequence[Cause], features: Sequence[Cause], unit: str
) -> str:
    if isnan(before) or isnan(after):
        return f"{metric}: no rows on one side"
    move = after - before
    verb = "rose" if move > 0 else "fell"
    if move == 0:
        return f"{metric} did not move"
    head = f"{metric} {verb} {_told(abs(move), unit).lstrip('+')}"
    told = [each.words for each in ranked if abs(each.contribution) >= 0.1 * abs(move)]
    parts = f"{head}: {', '.join(told)}" if told else head
    return f"{parts}; {features[0].words}" if features else parts


def _told(value: float, unit: str) -> str:
    return f"{100 * value:+.1f} points" if unit == "points" else f"{value:+.3g} {unit}".rstrip()


def _level(value: float, unit: str) -> str:
    if isnan(value):
        return "none"
    return f"{value:.1%}" if unit == "points" else f"{value:.3g}"
