"""Findings of a panel: every detector on the series that it judges, within one budget of false incidents."""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

import numpy as np

from mltrust.monitor import bands, concurrent  # noqa: F401 - registers the detectors
from mltrust.monitor.breakdown import part_of
from mltrust.monitor.cells import EVERY_VERSION
from mltrust.monitor.concurrent import label_of, pairings
from mltrust.monitor.detectors import DETECTORS, Detector, Scored, Sight
from mltrust.monitor.detectors import problems as detector_problems
from mltrust.monitor.finding import Finding
from mltrust.monitor.incidents import Judged
from mltrust.monitor.series import Panel, SeriesKey
from mltrust.monitor.spec import Arms, Detection, Monitor
from mltrust.monitor.unmatched import unmatched

#: The share of a bucket's requests from which one version is taken to be all of it.
_ALONE = 0.95


class Scan(NamedTuple):
    """What was found, in order of time, of how many tests per bucket; `alpha` is the error of one of them.

    `n_judged` tests of all buckets could be made, of the slices and metrics in `judged`: 0 says that nothing is
    known, not that all is well.
    """

    findings: list[Finding]
    n_tests: int
    alpha: float
    n_judged: int
    judged: frozenset[tuple[str, str]]


def problems(monitor: Monitor, columns: Collection[str]) -> list[str]:
    """What is wrong with a monitor of a log with these columns, each as one line; empty where nothing is."""
    sliced = monitor.series.slices.attributes
    found = [
        f"series.slices.attributes.{name} is {column!r}, expected a column of the log: {', '.join(sorted(columns))}"
        for name, column in sliced.items()
        if column not in columns
    ]
    found += detector_problems(monitor.detectors, monitor.series.kinds)
    return found + (list(unmatched(monitor, detections(monitor))) if monitor.series.metrics else [])


class _Look(NamedTuple):
    detection: Detection
    detector: Detector
    rows: list[int]


def scan(panel: Panel, monitor: Monitor, since: datetime) -> Scan:
    """Judges the buckets of the panel from `since` on; what lies before is history only.

    A series whose outcomes mature stands in the panel at the buckets in which it was known.
    """
    first = max(0, panel.index(since))
    looks = [_look(panel, monitor, each, first) for each in detections(monitor)]
    n_tests = sum(_n_tests(panel, look, monitor.series.arms, first) for look in looks if look.detector.spends)
    alpha = monitor.budget / max(1.0, n_tests * monitor.buckets_in_period)
    found: list[Finding] = []
    n_judged, cells = 0, set[tuple[str, str]]()
    if first < panel.n_buckets:
        sights: dict[tuple[object, ...], Sight] = {}  # of the same series residuals are the same
        for look in (each for each in looks if each.rows):
            seen = (tuple(look.rows), look.detection.min_requests)
            sight = sights.setdefault(seen, _sight(panel, monitor, look, first))
            mine, judged = _findings(panel, sight, look, alpha)
            found, n_judged = found + mine, n_judged + int(judged.sum())
            cells |= {
                (str(sight.panel.keys[row].slice), sight.panel.keys[row].metric) for row in np.nonzero(judged)[0]
            }
    return Scan(sorted(found, key=_in_time), n_tests, alpha, n_judged, frozenset(cells))


def _in_time(found: Finding) -> tuple[object, ...]:
    return (found.bucket_start, *found.series, found.detector)


def detections(monitor: Monitor) -> tuple[Detection, ...]:
    """The detectors of the conf; where it names none, all that need no limit."""
    return monitor.detectors or tuple(Detection(kind=name) for name, each in DETECTORS.items() if each.is_default)


def _look(panel: Panel, monitor: Monitor, detection: Detection, first: int) -> _Look:
    known = DETECTORS[detection.kind]
    arms = monitor.series.arms
    rows = [
        at
        for at, key in enumerate(panel.keys)
        if panel.kinds[at] in known.kinds
        and detection.concerns(key.metric, str(key.slice))
        and _is_for(known, key.model_version, key.arm, arms, bool(arms and label_of(key, arms)))
    ]
    return _Look(detection, known, rows)


def _is_for(known: Detector, model_version: str, arm: str, arms: Arms | None, has_label: bool) -> bool:
    if known.of_arms:
        return arms is not None and has_label
    return not known.spends or (model_version == EVERY_VERSION and not arm)


def _n_tests(panel: Panel, look: _Look, arms: Arms | None, first: int) -> int:
    if look.detector.of_arms:
        return len(pairings(panel.rows(look.rows), arms or Arms(), first))
    return len(look.rows)


def _sight(panel: Panel, monitor: Monitor, look: _Look, first: int) -> Sight:
    own = panel.rows(look.rows)
    return Sight(
        own,
        first,
        worse=tuple(monitor.series.metrics[key.metric].worse for key in own.keys),
        arms=monitor.series.arms,
        forgotten=_forgotten(own, monitor),
        min_requests=look.detection.min_requests,
        maturing=tuple(monitor.series.maturing(key.metric) for key in own.keys),
    )


def _findings(panel: Panel, sight: Sight, look: _Look, alpha: float) -> tuple[list[Finding], np.ndarray]:
    """What was found, and of every series in how many buckets it was judged."""
    scored = look.detector.judge(sight, look.detection, alpha)
    with np.errstate(invalid="ignore"):
        found = (scored.pvalue <= alpha) & (np.abs(scored.score) >= scored.threshold)
        if look.detector.spends:  # An operator's limit says by itself what is harm.
            harmful = np.array([_SIGNS[each] for each in sight.worse])[:, None]
            found &= (harmful == 0) | (np.sign(scored.score) == harmful)
    found &= ~sight.forgotten[:, sight.first :]
    where = zip(*(each.tolist() for each in np.nonzero(found)), strict=True)
    findings = [_finding(panel, sight, look, scored, row, at) for row, at in where]
    return findings, (~np.isnan(scored.pvalue)).sum(axis=1)


def judged_in(panel: Panel, monitor: Monitor) -> Judged:
    """Of which series and buckets a detector had enough to judge by: it tells a recovery from mere silence.

    It is told by the requests, for every bucket of the panel alike. A count of no requests says nothing of them.
    """
    known = np.zeros(panel.n.shape, dtype=bool)
    for detection in detections(monitor):
        look = _look(panel, monitor, detection, 0)
        if look.rows:
            known[look.rows] |= _had_enough(panel, monitor, look)
    row_of = {key: at for at, key in enumerate(panel.keys)}

    def judged(series: SeriesKey, start: datetime) -> bool:
        row, at = row_of.get(series), panel.index(start)
        return row is not None and 0 <= at < panel.n_buckets and bool(known[row, at])

    return judged


def _had_enough(panel: Panel, monitor: Monitor, look: _Look) -> np.ndarray:
    own, least = panel.rows(look.rows), look.detection.min_requests
    # Of a part is known that it did not occur: it has no value where its whole has no requests.
    metrics, by_metric = monitor.series.metrics, monitor.series.breakdowns
    counts_requests = np.array(
        [metrics[key.metric].source == "requests" and part_of(key, by_metric) is None for key in own.keys]
    )
    is_count = np.array([kind == "count" for kind in own.kinds])[:, None]
    enough = np.where(is_count, (own.n > 0) | ~counts_requests[:, None], own.n >= least)
    if look.detector.of_arms:
        compared = np.zeros(own.n.shape, dtype=bool)
        for pair in pairings(own, monitor.series.arms or Arms(), own.n_buckets - 1):
            compared[pair.treatment] = own.n[list(pair.controls)].sum(axis=0) >= least
        enough &= compared
    return np.asarray(enough & ~np.isnan(own.value) & ~_forgotten(own, monitor))


_SIGNS = {"up": 1, "down": -1, "both": 0}


def _forgotten(panel: Panel, monitor: Monitor) -> np.ndarray:
    """Which buckets of which series lie in a known event."""
    found, by_metric = np.zeros(panel.n.shape, dtype=bool), monitor.series.breakdowns
    for event in monitor.events:
        rows = [at for at, key in enumerate(panel.keys) if event.concerns(key.metric, key.slice, by_metric)]
        for row in rows:
            later = monitor.series.maturing(panel.keys[row].metric)
            starts = max(0, panel.index(event.start + later))
            ends = max(0, -((panel.start - event.end - later) // panel.bucket))
            found[row, starts:ends] = True
    return found


def _finding(panel: Panel, sight: Sight, look: _Look, scored: Scored, row: int, at: int) -> Finding:
    own, where = sight.panel, sight.first + at
    key = own.keys[row]
    numbers = {name: float(getattr(scored, name)[row, at]) for name in Scored._fields}
    found = Finding(
        *key,
        detector=look.detection.kind,
        bucket_start=own.time(where) - sight.maturing[row],
        judged_at=own.time(where + 1),
        severity=look.detection.severity,
        n_requests=int(own.n[row, where]),
        value=float(own.value[row, where]),
        expected=numbers["expected"],
        low=numbers["low"],
        high=numbers["high"],
        score=numbers["score"],
        pvalue=numbers["pvalue"],
        threshold=numbers["threshold"],
        excess=numbers["excess"],
        noise=numbers["noise"],
    )
    return explained(found, look.detector.words, serving(panel, key.model_name, where, key.arm))


def explained(found: Finding, words: str, alone: str) -> Finding:
    """The finding in words; of all versions together the one that served alone is to blame."""
    expected = "" if found.expected != found.expected else f", expected {found.expected:.4g}"
    blamed = alone if found.model_version == EVERY_VERSION else found.model_version
    reason = f"{found.metric} of {found.slice} was {found.value:.4g}{expected}: {words}"
    return found._replace(reason=reason, blamed_version=blamed)


def serving(panel: Panel, model_name: str, at: int, arm: str = "") -> str:
    """The version that served (nearly) all requests of a bucket, or of an arm in it, '' where none is known to."""
    sizes: dict[str, float] = {}
    for row, key in enumerate(panel.keys):
        is_whole = key.model_name == model_name and key.arm == arm and not key.slice_key
        if is_whole and key.model_version != EVERY_VERSION:
            sizes[key.model_version] = max(sizes.get(key.model_version, 0.0), float(panel.n[row, at]))
    total = sum(sizes.values())
    return next((version for version, n in sizes.items() if total and n >= _ALONE * total), "")


def candidate_of(panel: Panel, arms: Arms | None, as_of: datetime) -> str:
    """The version that alone served all arms but the named control in the last bucket that was over at as_of.

    '' where several did, the control had it too, or the panel does not have that bucket.
    """
    last = panel.index(as_of) - 1
    if arms is None or arms.control is None or not 0 <= last < panel.n_buckets:
        return ""
    names = {(key.model_name, key.arm) for key in panel.keys if key.arm and not key.slice_key}
    served = {arm: serving(panel, model_name, last, arm) for model_name, arm in names}
    of_control = served.pop(arms.control, "")
    of_treatments = set(served.values())
    return of_treatments.pop() if len(of_treatments) == 1 and of_control not in of_treatments else ""


def known_from(rows: Iterable[Finding], monitor: Monitor) -> list[Finding]:
    """Findings that others made (drift, sample ratios), without those in a known event."""
    return [each for each in rows if not _in_event(each, monitor)]


def _in_event(found: Finding, monitor: Monitor) -> bool:
    return any(
        event.start < found.judged_at
        and found.bucket_start < event.end
        and event.concerns(found.metric, found.slice, monitor.series.breakdowns)
        for event in monitor.events
    )


def merged(*lists: Sequence[Finding]) -> list[Finding]:
    """Findings of several origins in order of time."""
    return sorted((each for rows in lists for each in rows), key=_in_time)


class Band(NamedTuple):
    """A series with what was expected of it, for people to look at; nan where nothing was."""

    times: list[datetime]
    value: list[float]
    expected: list[float]
    low: list[float]
    high: list[float]


def bands_of(panel: Panel, monitor: Monitor, keys: Collection[SeriesKey], n_buckets: int) -> dict[SeriesKey, Band]:
    """The last buckets of some series, with the seasonal band that a finding has to leave."""
    rows = [at for at, key in enumerate(panel.keys) if key in keys]
    if not rows:
        return {}
    own, first = panel.rows(rows), max(0, panel.n_buckets - n_buckets)
    sight = Sight(own, first, forgotten=_forgotten(own, monitor))
    scored = DETECTORS["seasonal"].judge(sight, Detection("seasonal"), 1e-6)
    times = [own.time(at) for at in range(first, own.n_buckets)]
    return {
        key: Band(
            [at - monitor.series.maturing(key.metric) for at in times],
            own.value[row, first:].tolist(),
            *(each[row].tolist() for each in (scored.expected, scored.low, scored.high)),
        )
        for row, key in enumerate(own.keys)
    }
