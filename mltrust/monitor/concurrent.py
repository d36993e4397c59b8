"""Treatment against its concurrent control, bucket by bucket, by evidence that may be looked at in every one of them.

Both arms meet the same traffic at the same time, so that neither season nor history is needed. In every bucket the
evidence against "the arms are alike" is an e-value: its expectation is 1 at most where they are. For shares it is
conditional on how many of both arms' requests have the property: x of the treatment among m, of whose requests the
treatment has the share rho, gives psi^x / (1 + rho(psi - 1))^m for an odds ratio psi. Under a binomial law that is a
likelihood ratio; the true law, without replacement, is dominated by it for every convex function (Hoeffding 1963,
theorem 4), whatever the rate is and however it moves with time. For means it is
exp(lambda z - lambda²/2 - lambda⁴/(4 nu)), z the difference in standard errors and lambda what an effect of so many
standard deviations would give, 3 at most: beyond that the normal law of a mean of some hundred requests is not to be
relied on.

The changes that are looked for begin at an unknown moment: evidence is the Shiryaev-Roberts sum over all beginnings
of the products since (an e-detector). The chance that it exceeds c within N buckets is N/c at most, so that a budget
is kept by c = 1 / (error of one test).

References
----------
Hoeffding, W. (1963). Probability inequalities for sums of bounded random variables. JASA 58, 13-30.
Shin, J., Ramdas, A. and Rinaldo, A. (2024). E-detectors: a nonparametric framework for sequential change detection.
New England Journal of Statistics in Data Science 2, 229-260; definition 2.5 and theorem 2.4.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from mltrust.monitor.cells import EVERY_VERSION
from mltrust.monitor.detectors import Scored, Sight, detector
from mltrust.monitor.series import Panel, SeriesKey
from mltrust.monitor.spec import Arms, Detection, Direction
from mltrust.states.moments import FloatArray

_ODDS = (1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
_EFFECTS = (0.05, 0.1, 0.2, 0.5, 1.0)
_LARGEST_LAMBDA = 3.0
#: Above what a finding needs, evidence is not kept: it would take as long to forget as it took to gather.
_KEPT_BEYOND = 2.0
#: What a bucket's own score must reach beside all evidence so far, and below which evidence of a fault is forgotten.
_LEAST_SCORE, _OVER_SCORE = 2.0, 1.0
_MEDIAN_OF_SQUARE, _FEWEST_FOR_DISPERSION = 0.454936, 50


class Pairing(NamedTuple):
    """Which series is compared with which: rows of the panel; a control is the sum of its series."""

    treatment: int
    controls: tuple[int, ...]


class Difference(NamedTuple):
    """Arrays (pairs, buckets): what the treatment had beyond its control, summed, with the standard error of that.

    `noise` is the standard error that counting gives the treatment's own sum, were it like its control.
    """

    excess: FloatArray
    std_error: FloatArray
    noise: FloatArray
    expected: FloatArray
    judged: np.ndarray


@detector(
    "concurrent", kinds=("share", "mean"), words="differs from its concurrent control", of_arms=True
)  # fmt: skip
def concurrent(sight: Sight, how: Detection, alpha: float) -> Scored:
    """Scores of this bucket's difference, and p-values of all evidence so far; nan for the control itself."""
    panel, first = sight.panel, sight.first
    found = Scored.unjudged(panel, first)
    for kind in ("share", "mean"):
        pairs = [each for each in pairings(panel, sight.arms or Arms(), first) if panel.kinds[each.treatment] == kind]
        if not pairs:
            continue
        difference, evidence = _judged(panel, pairs, kind, how, sight)
        over = _is_over(difference, tuple(sight.worse[pair.treatment] for pair in pairs))
        log_total = shiryaev_roberts(evidence, log_threshold=-np.log(alpha), is_over=over)[:, first:]
        here = Difference(*(each[:, first:] for each in difference))
        rows = [pair.treatment for pair in pairs]
        n = np.maximum(panel.n[rows][:, first:], 1)
        score = np.divide(here.excess, here.std_error, out=np.full(n.shape, np.nan), where=here.judged)
        width = here.std_error / n
        values = (
            score,
            np.where(here.judged, np.exp(-np.maximum(log_total, 0)), np.nan),
            here.expected,
            here.expected - 3 * width,
            here.expected + 3 * width,
            np.full_like(score, _LEAST_SCORE if how.min_score is None else how.min_score),
            here.excess,
            here.noise,
        )
        for array, part in zip(found, values, strict=True):
            array[rows] = part
    return found


def pairings(panel: Panel, arms: Arms, first: int) -> list[Pairing]:
    """Every series of a treatment with the series of its control: same model, metric and slice."""
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for at, key in enumerate(panel.keys):
        if label_of(key, arms):
            groups[key.model_name, key.metric, key.slice_key, key.slice_value].append(at)
    control = arms.control or _largest(panel, arms, first)
    found = []
    for members in groups.values():
        controls = tuple(at for at in members if label_of(panel.keys[at], arms) == control)
        found += [Pairing(at, controls) for at in members if controls and at not in controls]
    return found


def label_of(key: SeriesKey, arms: Arms) -> str:
    """The arm of a series, '' where it is of no arm."""
    if arms.by == "experiment":
        return key.arm
    return "" if key.arm or key.model_version == EVERY_VERSION else key.model_version


def _largest(panel: Panel, arms: Arms, first: int) -> str:
    """The arm with the most requests up to the first judged bucket."""
    sizes: dict[str, float] = defaultdict(float)
    for at, key in enumerate(panel.keys):
        sizes[label_of(key, arms)] += float(panel.n[at, : first + 1].sum())
    sizes.pop("", None)
    return max(sorted(sizes), key=sizes.__getitem__, default="")


def _judged(
    panel: Panel, pairs: Sequence[Pairing], kind: str, how: Detection, sight: Sight
) -> tuple[Difference, FloatArray]:
    worse = tuple(sight.worse[pair.treatment] for pair in pairs)
    sums = _of_shares if kind == "share" else _of_means
    usual = replace(panel, n=np.where(sight.forgotten, 0.0, panel.n))  # a known event is no evidence
    difference, evidence = sums(usual, pairs, worse, how.min_requests)
    dispersion = _dispersion(difference, sight.first)
    return difference, evidence / dispersion[:, None, None]


def _of_shares(
    panel: Panel, pairs: Sequence[Pairing], worse: Sequence[Direction], min_requests: int
) -> tuple[Difference, FloatArray]:
    """The difference, and ln of the e-values (pairs, alternatives, buckets) of shares."""
    n_t, n_c = _sums(panel, pairs, panel.n)
    x_t, x_c = _sums(panel, pairs, np.rint(panel.value * panel.n))
    judged = (n_t >= min_requests) & (n_c >= min_requests)
    total = n_t + n_c
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = (x_t + x_c) / total
        expected = x_c / n_c
        std_error = np.sqrt(n_t * np.maximum(rate * (1 - rate), 0.5 / (total + 1)) * (1 + n_t / n_c))
        noise = np.sqrt(n_t * np.maximum(expected * (1 - expected), 0.5 / (n_t + 1)))
    flipped = rate > 0.5  # Of what is common the absence is counted: fewer, and the bound is closer.
    x = np.where(flipped, n_t - x_t, x_t)
    m = np.where(flipped, total - x_t - x_c, x_t + x_c)
    rho = np.where(judged, n_t / np.maximum(total, 1), 0.5)
    ratios = [1 / psi for psi in _ODDS] + list(_ODDS)
    evidence = np.zeros((len(pairs), len(ratios), panel.n_buckets))
    for at, ratio in enumerate(ratios):
        psi = np.where(flipped, 1 / ratio, ratio)
        evidence[:, at] = np.where(judged, x * np.log(psi) - m * np.log1p(rho * (psi - 1)), 0.0)
    return Difference(x_t - n_t * expected, std_error, noise, expected, judged), _in_direction(evidence, worse)


def _of_means(
    panel: Panel, pairs: Sequence[Pairing], worse: Sequence[Direction], min_requests: int
) -> tuple[Difference, FloatArray]:
    """The difference, and ln of the e-values (pairs, alternatives, buckets) of means."""
    n_t, n_c = _sums(panel, pairs, panel.n)
    sum_t, sum_c = _sums(panel, pairs, panel.value * panel.n)
    var_t, var_c = _sums(panel, pairs, (panel.std_error * panel.n) ** 2)  # of sums; between controls it is left out
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = sum_c / n_c
        difference = sum_t / n_t - expected
        std_error = np.sqrt(var_t / n_t**2 + var_c / n_c**2)
        judged = (n_t >= min_requests) & (n_c >= min_requests) & (std_error > 0)
        z = np.where(judged, difference / std_error, 0.0)
        per_sd = 1 / np.sqrt(1 / np.maximum(n_t, 1) + 1 / np.maximum(n_c, 1))
    nu = np.maximum(np.minimum(n_t, n_c) - 1, 1)
    evidence = np.zeros((len(pairs), 2 * len(_EFFECTS), panel.n_buckets))
    for at, effect in enumerate([-each for each in _EFFECTS] + list(_EFFECTS)):
        lam = np.sign(effect) * np.minimum(abs(effect) * per_sd, _LARGEST_LAMBDA)
        evidence[:, at] = np.where(judged, lam * z - lam**2 / 2 - lam**4 / (4 * nu), 0.0)
    return Difference(difference * n_t, std_error * n_t, np.sqrt(var_t), expected, judged), _in_direction(
        evidence, worse
    )


def _in_direction(evidence: FloatArray, worse: Sequence[Direction]) -> FloatArray:
    """Evidence of the harmful half of the alternatives only, where one is; the other half says nothing."""
    half = evidence.shape[1] // 2
    halves: Mapping[Direction, slice] = {"up": slice(0, half), "down": slice(half, None)}
    for at, direction in enumerate(worse):
        if direction != "both":
            evidence[at, halves[direction]] = -np.inf
    return evidence


def _is_over(difference: Difference, worse: Sequence[Direction]) -> np.ndarray:
    """Whether a bucket's own difference says that there is no fault (any more)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        score = np.where(difference.judged, difference.excess / difference.std_error, np.nan)
        signs = np.array([{"up": 1, "down": -1, "both": 0}[each] for each in worse])[:, None]
        return np.asarray(np.where(signs == 0, np.abs(score), signs * score) < _OVER_SCORE)


def shiryaev_roberts(evidence: FloatArray, *, log_threshold: float, is_over: np.ndarray | None = None) -> FloatArray:
    """ln of the e-detector (pairs, buckets) over alternatives (pairs, alternatives, buckets), equally weighted.

    M(t) = (1 + M(t - 1))·L(t) per alternative. It is kept from growing far beyond the threshold, and begins anew once
    it was there and a bucket says that `is_over`: of small slices it would take hundreds of clean buckets to go. Both
    only make it smaller, so that false findings get no more frequent.
    """
    n_pairs, n_alternatives, n_buckets = evidence.shape
    weights = np.isfinite(evidence[:, :, 0]) if n_buckets else np.ones((n_pairs, n_alternatives), bool)
    log_n = np.log(np.maximum(weights.sum(axis=1), 1))
    total = np.full((n_pairs, n_alternatives), -np.inf)
    found, was_there = np.empty((n_pairs, n_buckets)), np.zeros(n_pairs, dtype=bool)
    for at in range(n_buckets):
        total = np.logaddexp(0.0, total) + evidence[:, :, at]
        found[:, at] = np.logaddexp.reduce(total, axis=1) - log_n
        total = np.minimum(total, log_threshold + log_n[:, None] + _KEPT_BEYOND)
        if is_over is not None:
            was_there |= found[:, at] >= log_threshold
            ends = was_there & is_over[:, at]
            total[ends], was_there[ends] = -np.inf, False
    return found


def _dispersion(difference: Difference, first: int) -> FloatArray:
    """How much more than counting says differences varied before `first` (1 at least, and where too little is known).

    Requests of one unit fail together. An e-value to the power 1/d, d >= 1, still has an expectation of 1 at most.
    """
    past = difference.judged[:, :first]
    with np.errstate(invalid="ignore", divide="ignore"):
        squares = np.where(past, (difference.excess[:, :first] / difference.std_error[:, :first]) ** 2, np.nan)
    found = np.ones(len(squares))
    enough = past.sum(axis=1) >= _FEWEST_FOR_DISPERSION
    if enough.any():
        found[enough] = np.maximum(1.0, np.nanmedian(squares[enough], axis=1) / _MEDIAN_OF_SQUARE)
    return found


def _sums(panel: Panel, pairs: Sequence[Pairing], values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """`values` of every pair's treatment, and the sum of its controls; nothing known counts as 0."""
    known = np.nan_to_num(values)
    treatment = known[[pair.treatment for pair in pairs]]
    return treatment, np.stack([known[list(pair.controls)].sum(axis=0) for pair in pairs])
