"""Model performance over time, from counts alone: score cell x label x hash bucket of the unit.

    estimates(state)                                    AUC, log loss, Brier, calibration, with jackknife limits
    performance_drift({where: (reference, current)}, rule)   one family of tests, a Shift per slice and metric

A state holds the mature predictions of a version, arm, slice and window: exact integers, so that days, arms and
slices are added, and nothing depends on how rows were partitioned. Scores are probabilities; their cells are even
steps of log-odds, fine enough for four digits of the AUC wherever the scores lie. Labels are 0 or 1.

Label selection: outcomes may be known more often for some scores than for others (who is not shown an offer cannot
take it). Where labels are missing, what is labelled is weighted, by tenths of all mature predictions by score, by the
inverse of the share that is labelled there. That mends selection by score and by nothing else, and the reason names
the shares. A tenth without labels leaves the window without numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan, sqrt
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from mltrust.drift.shifts import FEWEST_UNITS, Shift, judged, shift
from mltrust.slices import Slice
from mltrust.states.moments import FloatArray
from mltrust.stats.bootstrap import Resampled, jackknife_covariance

IntArray = NDArray[np.int64]

#: Cells are even steps of log-odds from -_END to _END; scores beyond lie in the first and the last.
_END, STEPS = 10, 64
N_CELLS, N_BUCKETS = 2 * _END * STEPS, 64
#: What a prediction's label may be: no, yes, not known.
NEGATIVE, POSITIVE, UNLABELLED = range(3)
_TENTHS = 10
_ITERATIONS, _SETTLED = 12, 1e-9
AUC, LOG_LOSS, BRIER = "auc", "log_loss", "brier"
IN_THE_LARGE, SLOPE = "calibration_in_the_large", "calibration_slope"
METRICS = (AUC, LOG_LOSS, BRIER, IN_THE_LARGE, SLOPE)
# Which direction is harm: of calibration either.
_HARM: Mapping[str, int] = {AUC: -1, LOG_LOSS: 1, BRIER: 1, IN_THE_LARGE: 0, SLOPE: 0}


@dataclass(frozen=True, slots=True)
class PerformanceRule:
    """When a model's performance has changed: qvalue <= q, and by at least the floor of the metric.

    Floors of log loss and Brier score are shares of the reference's value. A fall of either, or a rise of AUC, is no
    breach. Calibration in the large is mean label - mean score; the slope is that of labels on the log-odds of the
    score, 1 where scores are neither too extreme (below 1) nor too timid. Each side needs `fewest_units` units, and
    `fewest_events` labels of either kind.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    q: float = 0.001
    auc: float = 0.02
    log_loss: float = 0.1
    brier: float = 0.1
    calibration_in_the_large: float = 0.02
    calibration_slope: float = 0.05
    fewest_units: int = FEWEST_UNITS
    fewest_events: int = 50

    def __post_init__(self) -> None:
        if not 0 < self.q < 1:
            raise ValueError(f"q is {self.q}, expected a number in (0, 1)")
        for name in METRICS:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")
        if self.fewest_units < FEWEST_UNITS:
            raise ValueError(f"fewest_units is {self.fewest_units}, expected {FEWEST_UNITS} or more")
        if self.fewest_events < 10:
            raise ValueError(f"fewest_events is {self.fewest_events}, expected 10 or more")

    def floor(self, metric: str, reference: float) -> float:
        """The smallest difference that counts."""
        size: float = getattr(self, metric)
        return size * reference if metric in (LOG_LOSS, BRIER) else size


@dataclass(frozen=True, slots=True, eq=False)
class ScoreLabels:
    """Mature predictions by label (negative, positive, unlabelled), score cell and hash bucket: (3, 1280, 64).

    `n_units` are the units with any prediction; units of two states are taken for others. `n_unusable` predictions
    have a score that is no probability, or a label that is neither 0 nor 1, and are not in the counts.
    """

    counts: IntArray
    n_units: int
    n_unusable: int = 0

    def __post_init__(self) -> None:
        if self.counts.shape != (3, N_CELLS, N_BUCKETS) or self.counts.dtype != np.int64:
            raise ValueError(
                f"counts are int64 of shape (3, {N_CELLS}, {N_BUCKETS}), got {self.counts.dtype} {self.counts.shape}"
            )

    @classmethod
    def empty(cls) -> "ScoreLabels":
        """No predictions: the identity of `+`."""
        return cls(np.zeros((3, N_CELLS, N_BUCKETS), dtype=np.int64), 0)

    @classmethod
    def of(cls, scores: FloatArray, labels: FloatArray, units: NDArray[np.int64]) -> "ScoreLabels":
        """The state of predictions: scores, labels (nan where not known), and hashes of their units."""
        usable = (scores >= 0) & (scores <= 1) & (np.isnan(labels) | np.isin(labels, (0, 1)))
        kind = np.where(np.isnan(labels), UNLABELLED, labels == 1)[usable].astype(np.int64)
        code = (kind * N_CELLS + cell_of(scores[usable])) * N_BUCKETS + np.mod(units[usable], N_BUCKETS)
        counts = np.bincount(code, minlength=3 * N_CELLS * N_BUCKETS).reshape(3, N_CELLS, N_BUCKETS)
        return cls(counts.astype(np.int64), len(np.unique(units)), int((~usable).sum()))

    def __add__(self, other: "ScoreLabels") -> "ScoreLabels":
        """The state of both sets of predictions."""
        return ScoreLabels(
            self.counts + other.counts, self.n_units + other.n_units, self.n_unusable + other.n_unusable
        )

    @property
    def n_predictions(self) -> int:
        return int(self.counts.sum())

    @property
    def n_labelled(self) -> int:
        return int(self.counts[:UNLABELLED].sum())

    @property
    def n_events(self) -> int:
        """How many labels the rarer kind has."""
        return int(self.counts[:UNLABELLED].sum(axis=(1, 2)).min())

    def replicates(self) -> FloatArray:
        """Counts (1 + 64, 3, 1280): of all units, then without each bucket."""
        total = self.counts.sum(axis=2)
        without = total[:, :, np.newaxis] - self.counts
        return np.concatenate([total[np.newaxis], np.moveaxis(without, 2, 0)]).astype(np.float64)


class Estimate(NamedTuple):
    """A metric of one window with its limits of confidence 0.95; nan where `reason` says why."""

    metric: str
    n_units: int
    n_predictions: int
    n_labelled: int
    value: float
    std_error: float
    ci_low: float
    ci_high: float
    reason: str


def cell_of(scores: FloatArray) -> IntArray:
    """The cell of every score in [0, 1]."""
    with np.errstate(divide="ignore"):
        step = np.floor((special.logit(scores) + _END) * STEPS)
    return step.clip(0, N_CELLS - 1).astype(np.int64)


#: The log-odds in the middle of every cell, and the score there.
LOG_ODDS: FloatArray = (np.arange(N_CELLS) + 0.5) / STEPS - _END
SCORES: FloatArray = special.expit(LOG_ODDS)


def estimates(state: ScoreLabels, rule: PerformanceRule) -> list[Estimate]:
    """Every metric of a window, whether or not there is a reference."""
    why_not, found = _why_not("", state, rule), _resampled(state)
    rows = []
    for metric in METRICS:
        arm = found[metric]
        std_error = sqrt(float(jackknife_covariance(arm.replicates[:, np.newaxis])[0, 0]))
        if why_not or not std_error > 0:
            std_error = nan
        half_width = float(special.stdtrit(N_BUCKETS - 1, 0.975)) * std_error
        value = nan if why_not else arm.value
        rows.append(
            Estimate(
                metric,
                state.n_units,
                state.n_predictions,
                state.n_labelled,
                value,
                std_error,
                value - half_width,
                value + half_width,
                why_not or selection(state),
            )
        )
    return rows


def performance_drift(states: Mapping[Slice, tuple[ScoreLabels, ScoreLabels]], rule: PerformanceRule) -> list[Shift]:
    """Per slice and metric the current window against the reference, judged as one family."""
    return judged([each for where, sides in states.items() for each in _shifts(where, *sides, rule=rule)], rule.q)


def _shifts(where: Slice, reference: ScoreLabels, current: ScoreLabels, *, rule: PerformanceRule) -> list[Shift]:
    why_not = _why_not("reference: ", reference, rule) or _why_not("", current, rule)
    before, after = _resampled(reference), _resampled(current)
    words = "; ".join(filter(None, (selection(current), selection(reference, "reference: "))))
    found = [
        shift(
            measure="performance",
            column=metric,
            where=where,
            reference=before[metric],
            current=after[metric],
            threshold=rule.floor(metric, before[metric].value),
            harm=_HARM[metric],
            fewest_units=rule.fewest_units,
            why_not=why_not,
        )
        for metric in METRICS
    ]
    return [each if why_not or not words else each._replace(reason=f"{each.reason} ({words})") for each in found]


def selection(state: ScoreLabels, before: str = "") -> str:
    """How many predictions are labelled, by tenths of the score, in words; '' where all are, or none is there."""
    total = state.counts.sum(axis=2).astype(np.float64)
    if not state.n_predictions or not total[UNLABELLED].any():
        return ""
    shares = _shares(total[np.newaxis], _tenths(total))[0]
    low, high = float(np.nanmin(shares)), float(np.nanmax(shares))
    return f"{before}{low:.0%} to {high:.0%} labelled, by tenths of the score, weighted"


def _why_not(side: str, state: ScoreLabels, rule: PerformanceRule) -> str:
    """Why a window has no performance."""
    if state.n_unusable:
        return f"{side}{state.n_unusable} scores are no probabilities, or labels neither 0 nor 1"
    if state.n_units < rule.fewest_units:
        return f"{side}{state.n_units} units, at least {rule.fewest_units} needed"
    if state.n_events < rule.fewest_events:
        return f"{side}{state.n_events} labels of the rarer kind, at least {rule.fewest_events} needed"
    total = state.counts.sum(axis=2).astype(np.float64)
    if (_shares(total[np.newaxis], _tenths(total)) == 0).any():
        return f"{side}a tenth of the scores has no label at all"
    return ""


def _resampled(state: ScoreLabels) -> dict[str, Resampled]:
    """Every metric for all units and without each bucket."""
    rows = state.replicates()
    labelled = rows[:, :UNLABELLED] * _weights(rows)[:, np.newaxis]
    values = measured(labelled)
    return {
        metric: Resampled(state.n_units, float(each[0]), each[1:])
        for metric, each in zip(METRICS, values, strict=True)
    }


def _tenths(total: FloatArray) -> IntArray:
    """The tenth (cells,) in which a score cell lies, by all mature predictions (3, cells)."""
    rows = total.sum(axis=0)
    middle = np.cumsum(rows) - rows / 2
    tenths: IntArray = np.minimum(middle / max(rows.sum(), 1.0) * _TENTHS, _TENTHS - 1).astype(np.int64)
    return tenths


def _shares(rows: FloatArray, tenths: IntArray) -> FloatArray:
    """The share (B, 10) of the predictions of a tenth that are labelled, nan where there are none."""
    members = np.eye(_TENTHS)[tenths]
    all_rows, labelled = rows.sum(axis=1) @ members, rows[:, :UNLABELLED].sum(axis=1) @ members
    shares: FloatArray = np.divide(labelled, all_rows, out=np.full_like(labelled, nan), where=all_rows > 0)
    return shares


def _weights(rows: FloatArray) -> FloatArray:
    """The weight (B, cells) of a labelled prediction: 1 / share labelled in its tenth."""
    tenths = _tenths(rows[0])
    shares = _shares(rows, tenths)
    inverse = np.divide(1.0, shares, out=np.zeros_like(shares), where=shares > 0)
    return inverse[:, tenths]


def measured(labelled: FloatArray) -> tuple[FloatArray, ...]:
    """METRICS (B,) each, of labelled predictions (B, 2, cells) by label and score cell; nan without both labels.

    References
    ----------
    AUC with ties counted half: Hanley, J. A. and McNeil, B. J. (1982). The meaning and use of the area under a ROC
    curve. Radiology 143, 29-36. Brier, G. W. (1950). Monthly Weather Review 78, 1-3. Calibration in the large and
    slope: Cox, D. R. (1958). Two further applications of a model for binary regression. Biometrika 45, 562-565;
    Steyerberg, E. W. (2019). Clinical prediction models, 15.3. Springer.
    """
    negative, positive = labelled[:, NEGATIVE], labelled[:, POSITIVE]
    n0, n1 = negative.sum(axis=1), positive.sum(axis=1)
    n = n0 + n1
    with np.errstate(divide="ignore", invalid="ignore"):
        below = np.cumsum(negative, axis=1) - negative / 2
        auc = (positive * below).sum(axis=1) / (n0 * n1)
        log_loss = -(positive @ special.log_expit(LOG_ODDS) + negative @ special.log_expit(-LOG_ODDS)) / n
        brier = (positive @ (1 - SCORES) ** 2 + negative @ SCORES**2) / n
        in_the_large = (n1 - (positive + negative) @ SCORES) / n
    slope = calibration_slope(negative, positive)
    undefined = (n0 == 0) | (n1 == 0)
    return tuple(np.where(undefined, nan, each) for each in (auc, log_loss, brier, in_the_large, slope))


def calibration_slope(negative: FloatArray, positive: FloatArray) -> FloatArray:
    """The slope (B,) of the logistic regression of labels on the log-odds of the score, from counts (B, cells).

    Newton's steps, of the first row from intercept 0 and slope 1, of all rows from its result, as they differ by one
    bucket of units; nan where they do not settle, as where scores separate the labels.
    """
    used = (negative + positive).any(axis=0)
    x, no, yes = LOG_ODDS[used], negative[:, used], positive[:, used]
    start = _fitted(no[:1], yes[:1], x, np.array([[0.0], [1.0]]))
    slopes: FloatArray = _fitted(no, yes, x, np.repeat(start, len(no), axis=1))[1]
    return slopes


def _fitted(no: FloatArray, yes: FloatArray, x: FloatArray, start: FloatArray) -> FloatArray:
    """Intercepts and slopes (2, B) of logistic regressions on x of counts (B, cells); nan if they do not settle."""
    found, n, settled = start, no + yes, np.zeros(len(no), dtype=bool)
    for _ in range(_ITERATIONS):
        with np.errstate(all="ignore"):  # what does not settle runs away
            fitted = special.expit(found[0][:, np.newaxis] + found[1][:, np.newaxis] * x)
            residual, weight = yes - n * fitted, n * fitted * (1 - fitted)
            w0, w1, w2 = weight.sum(axis=1), weight @ x, weight @ x**2
            g0, g1 = residual.sum(axis=1), residual @ x
            step = np.array([w2 * g0 - w1 * g1, w0 * g1 - w1 * g0]) / (w0 * w2 - w1 * w1)
            found = found + step
            settled = np.abs(step[1]) < _SETTLED * np.maximum(1, np.abs(found[1]))
        if settled.all():
            break
    return np.where(settled, found, nan)
