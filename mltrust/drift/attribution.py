"""Attribution drift: does the model use its inputs differently? Mean |SHAP| per feature, over units.

The observation is the unit: the mean |SHAP| of its rows, per feature, in the unit of the model's output. What
`spark.attribution` leaves of a slice and window is a `Replicates` state with a column per feature, its sums and those
without each hash bucket of units, and everything here is read from that.

    attribution_drift({where: (reference, current), ...}, rule)   one family of tests, a Shift per slice and feature
    ranking(reference, current)                                   the effect sizes that other tools show

Two settings have one test. One version on two windows: has the joint distribution of its inputs moved so that it
leans on other features? Two versions on the same inputs: reference and current hold the same units, and what differs
is the model. It cannot see a change of the outcome given the inputs, which moves no attribution: that is
`drift.relation`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan, nan
from typing import ClassVar, NamedTuple

import numpy as np
from scipy import special, stats

from mltrust.drift.shifts import FEWEST_UNITS, Shift, judged, shift
from mltrust.slices import Slice
from mltrust.states.moments import FloatArray
from mltrust.states.replicates import UNITS, Replicates
from mltrust.stats.bootstrap import jackknife_covariance, resampled_mean

MEASURE = "attribution"
_TOP = 3


@dataclass(frozen=True, slots=True)
class AttributionRule:
    """When a feature's attribution has drifted.

    Its q-value is at most `q`, and it moved by at least `rel_floor` of what it was and by at least `share_floor` of
    the attributions of all features together: a feature that hardly counts may double unnoticed.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    q: float = 0.001
    rel_floor: float = 0.1
    share_floor: float = 0.005
    fewest_units: int = FEWEST_UNITS

    def __post_init__(self) -> None:
        if not 0 < self.q < 1:
            raise ValueError(f"q is {self.q}, expected a number in (0, 1)")
        for name in ("rel_floor", "share_floor"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")
        if self.fewest_units < FEWEST_UNITS:
            raise ValueError(f"fewest_units is {self.fewest_units}, expected {FEWEST_UNITS} or more")


class Ranking(NamedTuple):
    """How alike the attributions of two sides are, with jackknife limits of confidence 0.95; no verdict follows.

    `jsd` is the divergence in bits of the features' shares of all attribution, `spearman` the correlation of their
    ranks, `ndcg` that of ranking by current where reference is what counts. Limits of ranks are rough: where ranks
    do not change without any of the buckets, they do not vary. The n are units; the tops are up to three features.
    """

    n_reference: int
    n_current: int
    jsd: float
    jsd_low: float
    jsd_high: float
    spearman: float
    spearman_low: float
    spearman_high: float
    ndcg: float
    ndcg_low: float
    ndcg_high: float
    top_reference: tuple[str, ...]
    top_current: tuple[str, ...]


def attribution_drift(states: Mapping[Slice, tuple[Replicates, Replicates]], rule: AttributionRule) -> list[Shift]:
    """Per slice and feature the mean |SHAP| of current against reference, judged as one family.

    `states` hold (reference, current) with the same features. A slice that one side lacks is there with an empty
    state, and inconclusive.
    """
    return judged(
        [each for where, sides in states.items() for each in _shifts(where, *sides, rule=rule)],
        rule.q,
    )


def _shifts(where: Slice, reference: Replicates, current: Replicates, *, rule: AttributionRule) -> list[Shift]:
    if reference.columns != current.columns:
        raise ValueError(f"attributions of features {reference.columns[1:]} and {current.columns[1:]}")
    features = reference.columns[1:]
    total = sum(resampled_mean(reference, name).value for name in features)
    return [_shift(where, name, reference, current, total, rule) for name in features]


def _shift(
    where: Slice, name: str, reference: Replicates, current: Replicates, total: float, rule: AttributionRule
) -> Shift:
    before, after = resampled_mean(reference, name), resampled_mean(current, name)
    found = shift(
        measure=MEASURE,
        column=name,
        where=where,
        reference=before,
        current=after,
        threshold=max(rule.rel_floor * abs(before.value), rule.share_floor * total),
        fewest_units=rule.fewest_units,
        on_logs=before.value > 0 and after.value > 0,
    )
    relative = f"{found.value / before.value:+.0%}" if before.value else "from nothing"
    if isnan(found.pvalue):
        return found
    return found._replace(reason=f"mean |SHAP| {found.reason}, {relative}")


def ranking(reference: Replicates, current: Replicates) -> Ranking:
    """The effect sizes of two sides with the same features."""
    features = reference.columns[1:]
    p, q = shares(reference), shares(current)
    return Ranking(
        reference.n,
        current.n,
        *_limits(jsd_bits(p, q), 0.0, 1.0),
        *_limits(spearman(p, q), -1.0, 1.0),
        *_limits(ndcg(relevance=p, order=q), 0.0, 1.0),
        _top(features, p[0]),
        _top(features, q[0]),
    )


def shares(state: Replicates) -> FloatArray:
    """Each feature's share of all attribution, (1 + buckets, k): of all units, then without each bucket."""
    with np.errstate(divide="ignore", invalid="ignore"):
        means = state.sums[:, 1:] / state.column(UNITS)[:, np.newaxis]
        of_all: FloatArray = means / means.sum(axis=1, keepdims=True)
    return of_all


def jsd_bits(p: FloatArray, q: FloatArray) -> FloatArray:
    """Jensen-Shannon divergence in bits of shares along the last axis, in [0, 1].

    References
    ----------
    Lin, J. (1991). Divergence measures based on the Shannon entropy. IEEE Transactions on Information Theory 37,
    145-151, eq. 4.1.
    """
    mixture = (p + q) / 2
    nats = special.rel_entr(p, mixture).sum(axis=-1) + special.rel_entr(q, mixture).sum(axis=-1)
    bits: FloatArray = nats / (2 * np.log(2))
    return bits


def spearman(p: FloatArray, q: FloatArray) -> FloatArray:
    """Spearman's rank correlation along the last axis, ties at their mean rank; nan where all are tied."""
    a, b = (stats.rankdata(each, axis=-1, nan_policy="propagate") for each in (p, q))
    a, b = (each - each.mean(axis=-1, keepdims=True) for each in (a, b))
    with np.errstate(divide="ignore", invalid="ignore"):
        found: FloatArray = (a * b).sum(axis=-1) / np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
    return found


def ndcg(*, relevance: FloatArray, order: FloatArray) -> FloatArray:
    """Normalised discounted cumulative gain, along the last axis, of sorting by `order` what counts by `relevance`.

    For comparison only: it stays above 0.9 where the two leading features change places, as the discount of the
    first places is mild and the gains of both are large.

    References
    ----------
    Järvelin, K. and Kekäläinen, J. (2002). Cumulated gain-based evaluation of IR techniques. ACM Transactions on
    Information Systems 20, 422-446, with the discount 1 / log2(1 + rank) of every rank.
    """
    discount = 1 / np.log2(2 + np.arange(relevance.shape[-1]))
    by_order = np.take_along_axis(relevance, np.argsort(-order, axis=-1, kind="stable"), axis=-1)
    best = -np.sort(-relevance, axis=-1)
    gain: FloatArray = (by_order @ discount) / (best @ discount)
    return gain


def _limits(values: FloatArray, low: float, high: float) -> tuple[float, float, float]:
    """The value of all units, and its limits by the values without each bucket, within [low, high]."""
    value, without = float(values[0]), values[1:, np.newaxis]
    half_width = float(special.stdtrit(len(without) - 1, 0.975) * np.sqrt(jackknife_covariance(without)[0, 0]))
    if np.isnan(half_width):
        return value, nan, nan
    return value, max(low, value - half_width), min(high, value + half_width)


def _top(features: tuple[str, ...], of_all: FloatArray) -> tuple[str, ...]:
    if np.isnan(of_all).any():
        return ()
    return tuple(features[at] for at in np.argsort(-of_all, kind="stable")[:_TOP])
