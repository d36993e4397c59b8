"""Detectors against the series' own past: seasonal band, level shift, gaps, flat line; and an operator's limits."""

import numpy as np
from scipy import special

from mltrust.monitor.counting import by_counting
from mltrust.monitor.detectors import Scored, Sight, detector
from mltrust.monitor.residuals import MAD_EFFICIENCY, restored
from mltrust.monitor.series import Panel
from mltrust.monitor.spec import Detection
from mltrust.states.moments import FloatArray

#: What a score must reach beside its p-value: real series have fatter tails than any law says.
MIN_SCORE = 5.0
_SHIFT_BUCKETS, _CLIP = 24, 3.0
_RUN_BUCKETS, _MOST_REPEATS = 6, 0.05
_GAP_DAYS, _FEWEST_GAP_DAYS = 7, 3
_SCALE_DAYS = 28
_CERTAIN = 1e-300


@detector("seasonal", kinds=("count", "share", "mean"), words="outside the band of the same hour of earlier weeks")
def seasonal(sight: Sight, how: Detection, alpha: float) -> Scored:
    """Scores of residuals against the robust seasonal band, two-sided p-values of Student's t.

    Outside the band the p-value is never below that of counting alone: where few events are expected, a bucket may
    lie outside the band and still be chance.
    """
    panel, first = sight.panel, sight.first
    z, centre, std_error, df, centre_noise = (each[:, first:] for each in sight.residuals)
    pvalue = two_sided(z, df)
    floor = MIN_SCORE if how.min_score is None else how.min_score
    threshold = np.maximum(floor, -special.stdtrit(df, alpha / 2))
    later = _later(panel, first)
    expected, low, high = (
        restored(scaled, later) for scaled in (centre, centre - threshold * std_error, centre + threshold * std_error)
    )
    with np.errstate(invalid="ignore"):
        outside = np.abs(z) >= threshold
    pvalue = np.maximum(pvalue, by_counting(later, expected, centre_noise, outside))
    return Scored(z, pvalue, expected, low, high, threshold, *_excess(later, expected))


@detector("level_shift", kinds=("count", "share", "mean"), words="shifted for longer than chance does")
def level_shift(sight: Sight, how: Detection, alpha: float) -> Scored:
    """Scores of the mean residual over a window, 24 buckets by default, against those of the last four weeks.

    Residuals count as 3 standard errors at most, so that what lasted for an hour does not shift a day. The scale of
    the means comes from their own past, as neighbouring residuals are alike; few of its windows are independent,
    which the degrees of freedom of Student's t pay for.
    """
    panel, first = sight.panel, sight.first
    width = how.buckets or _SHIFT_BUCKETS
    clipped = np.clip(np.where(sight.forgotten, np.nan, sight.residuals.z), -_CLIP, _CLIP)
    means = _rolling_mean(clipped, width) * np.sqrt(width)
    window = _SCALE_DAYS * panel.per_day
    scale, df = _past_scale(means, window, width, first, panel.per_day)
    z = means[:, first:] / scale
    pvalue = two_sided(z, df)
    floor = MIN_SCORE if how.min_score is None else how.min_score
    threshold = np.maximum(floor, -special.stdtrit(df, alpha / 2))
    later = _later(panel, first)
    centre, std_error = sight.residuals.centre[:, first:], sight.residuals.std_error[:, first:]
    reach = threshold * scale / np.sqrt(width) * std_error
    expected, low, high = (restored(scaled, later) for scaled in (centre, centre - reach, centre + reach))
    return Scored(z, pvalue, expected, low, high, threshold, *_excess(later, expected))


@detector("gap", kinds=("count",), words="nothing arrived where something always did")
def gap(sight: Sight, how: Detection, alpha: float) -> Scored:
    """The chance of no request at all, where the same time of the last seven days had at least `min_requests`.

    Poisson with half of the smallest of these counts as mean. It needs three days, the seasonal band four weeks.
    """
    panel, first = sight.panel, sight.first
    value, per_day = np.where(sight.forgotten, np.nan, panel.value), panel.per_day
    run = _runs(panel.value == 0)
    past = np.stack(
        [
            # The history ends before the silence began, or an outage would be usual after a day.
            np.where(run > day * per_day, np.nan, _lagged(value, day * per_day))
            for day in range(1, _GAP_DAYS + 1)
        ]
    )
    known = (~np.isnan(past)).sum(axis=0)
    smallest = np.where(known >= _FEWEST_GAP_DAYS, np.nan_to_num(past, nan=np.inf).min(axis=0), np.nan)[:, first:]
    value = panel.value[:, first:]
    judged = (smallest >= how.min_requests) & ~np.isnan(value)
    pvalue = np.where(judged, np.where(value == 0, np.exp(-smallest / 2), 1.0), np.nan)
    score = np.where(judged, np.where(value == 0, -score_of(pvalue), 0.0), np.nan)
    expected, low = np.where(judged, smallest, np.nan), np.where(judged, 0.0, np.nan)
    high = np.full_like(expected, np.nan)
    return Scored(score, pvalue, expected, low, high, _no_threshold(score), *_excess(_later(panel, first), expected))


@detector("flat_line", kinds=("share", "mean"), words="repeats one value bucket after bucket")
def flat_line(sight: Sight, how: Detection, alpha: float) -> Scored:
    """The chance of a run of one and the same value, by how often the last four weeks repeated a value at all.

    A series that repeats itself in more than one bucket of twenty is no candidate. A run has 6 buckets or more; of a
    share `min_requests` must have the property, and as many must not.
    """
    panel, first = sight.panel, sight.first
    is_share = np.array([kind == "share" for kind in panel.kinds])[:, None]
    # Of a rare event zero follows zero all night, by chance: it is the events that must be enough.
    n = np.where(is_share, panel.n * np.minimum(panel.value, 1 - panel.value), panel.n)
    value = np.where(n >= how.min_requests, panel.value, np.nan)
    before = _lagged(value, 1)
    both = ~np.isnan(value) & ~np.isnan(before)
    same = both & (value == before)
    run = _runs(same)
    window = _SCALE_DAYS * panel.per_day
    shortest = how.buckets or _RUN_BUCKETS
    # The history ends before the run began, or a stuck series would soon be used to be stuck.
    repeats, pairs = (_before_run(each & ~sight.forgotten, run, window) for each in (same, both))
    chance = (repeats + 1) / (pairs + 2)
    judged = (both & (pairs >= window // 4) & (chance <= _MOST_REPEATS))[:, first:]
    pvalue = np.where(
        judged, np.where(run >= shortest - 1, np.maximum(chance, _CERTAIN) ** run, 1.0)[:, first:], np.nan
    )
    score = np.where(judged, score_of(np.maximum(pvalue, _CERTAIN)), np.nan)
    nothing = np.full_like(score, np.nan)
    return Scored(score, pvalue, nothing, nothing, nothing, _no_threshold(score), nothing, nothing)


@detector(
    "threshold", kinds=("count", "share", "mean"), words="beyond the limit", spends=False, is_default=False,
    needs=("above", "below"),
)  # fmt: skip
def threshold(sight: Sight, how: Detection, alpha: float) -> Scored:
    """Certain where the value was beyond a limit for `buckets` buckets one after the other (1), else no finding."""
    panel, first = sight.panel, sight.first
    is_count = np.array([kind == "count" for kind in panel.kinds])[:, None]
    judged = ~np.isnan(panel.value) & (is_count | (panel.n >= how.min_requests))
    over = judged & (panel.value > (np.inf if how.above is None else how.above))
    under = judged & (panel.value < (-np.inf if how.below is None else how.below))
    lasting = (np.maximum(_runs(over), _runs(under)) >= (how.buckets or 1))[:, first:]
    limit = np.where(over, how.above if how.above is not None else np.nan, np.nan)
    limit = np.where(under, how.below if how.below is not None else np.nan, limit)[:, first:]
    later = _later(panel, first)
    excess, noise = _excess(later, limit)
    with np.errstate(invalid="ignore", divide="ignore"):
        score = np.where(noise > 0, excess / noise, np.sign(later.value - limit))
    ends = [np.full_like(limit, np.nan if each is None else each) for each in (how.below, how.above)]
    shown = judged[:, first:]
    return Scored(
        np.where(shown, np.where(lasting, score, 0.0), np.nan),
        np.where(shown, np.where(lasting, 0.0, 1.0), np.nan),
        limit,
        ends[0],
        ends[1],
        _no_threshold(score),
        excess,
        noise,
    )


def two_sided(z: FloatArray, df: FloatArray) -> FloatArray:
    """Two-sided p-values of Student's t."""
    return np.asarray(2 * special.stdtr(df, -np.abs(z)))


def score_of(pvalue: FloatArray) -> FloatArray:
    """The normal score of a p-value of one side."""
    return np.asarray(-special.ndtri(np.clip(pvalue, _CERTAIN, 1 - 1e-16)))


def _no_threshold(score: FloatArray) -> FloatArray:
    return np.zeros_like(score)


def _later(panel: Panel, first: int) -> Panel:
    arrays = (each[:, first:] for each in (panel.n, panel.value, panel.std_error))
    return Panel(panel.keys, panel.kinds, panel.time(first), panel.bucket, *arrays)


def _excess(panel: Panel, expected: FloatArray) -> tuple[FloatArray, FloatArray]:
    """What every bucket had beyond the expected value, summed over requests, and its standard error by counting."""
    kinds = np.array(panel.kinds)[:, None]
    is_count = kinds == "count"
    with np.errstate(invalid="ignore"):
        excess = np.where(is_count, panel.value - expected, panel.n * (panel.value - expected))
        share = np.clip(expected, 0, 1)
        # A share that was never seen still has noise: as if half a request more had it.
        of_share = np.sqrt(panel.n * np.maximum(share * (1 - share), 0.5 / (panel.n + 1)))
        noise = np.where(
            is_count,
            np.sqrt(np.maximum(expected, 1)),
            np.where(kinds == "share", of_share, panel.n * panel.std_error),
        )
    return excess, noise


def _lagged(values: FloatArray, lag: int) -> FloatArray:
    shifted = np.full(values.shape, np.nan)
    if lag < values.shape[1]:
        shifted[:, lag:] = values[:, :-lag]
    return shifted


def _rolling_mean(values: FloatArray, width: int) -> FloatArray:
    """Means of the last `width` buckets, of which at least half are known."""
    known = ~np.isnan(values)
    sums, n = (_rolling_sum(each, width) for each in (np.where(known, values, 0.0), known.astype(float)))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(n >= width / 2, sums / n, np.nan)


def _rolling_sum(values: FloatArray, width: int) -> FloatArray:
    total = np.cumsum(values, axis=1)
    total[:, width:] -= total[:, :-width].copy()
    return total


def _past_scale(
    means: FloatArray, window: int, width: int, first: int, per_day: int
) -> tuple[FloatArray, FloatArray]:
    """Of every judged bucket the robust scale of the `window` means before its window began, and its df.

    Taken anew once a day's worth of buckets, counted from the series' start.
    """
    scale = np.full((len(means), means.shape[1] - first), np.nan)
    df = scale.copy()
    start = first // per_day * per_day
    for at in range(start, means.shape[1], per_day):
        past = np.abs(means[:, max(0, at - width - window) : max(0, at - width)])
        n = (~np.isnan(past)).sum(axis=1)
        here = slice(max(0, at - first), at - first + per_day)
        enough = n >= window // 4
        if enough.any():
            middle = np.full(len(means), np.nan)
            middle[enough] = np.nanmedian(past[enough], axis=1)
            scale[:, here] = np.maximum(1.0, 1.4826 * middle)[:, None]
            df[:, here] = np.where(enough, np.maximum(1.0, 2 * MAD_EFFICIENCY * n / width), np.nan)[:, None]
    return scale, df


def _runs(same: np.ndarray) -> np.ndarray:
    """How many buckets up to each one are true without a break."""
    at = np.arange(1, same.shape[1] + 1)
    last_break = np.maximum.accumulate(np.where(same, 0, at), axis=1)
    return np.asarray(at - last_break)


def _before_run(flags: np.ndarray, run: np.ndarray, window: int) -> np.ndarray:
    """How many flags lie in the window that ends where the run of each bucket began."""
    total = np.concatenate([np.zeros((len(flags), 1), dtype=int), np.cumsum(flags, axis=1)], axis=1)
    end = np.arange(1, flags.shape[1] + 1) - np.maximum(run, 1)
    start = np.maximum(end - window, 0)
    return np.asarray(np.take_along_axis(total, end, axis=1) - np.take_along_axis(total, start, axis=1))
