"""Incidents: findings that overlap in time, model and slice family, and what becomes of them.

Incidents are a function of the findings and of what could be judged, bucket after bucket: judging in pieces gives
the same revisions as judging at once, and what died half way and is done again comes to the same end.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import groupby
from math import isnan, nan, sqrt
from typing import Literal, NamedTuple, TypedDict

from mltrust.monitor.finding import OF_OTHERS, Finding, Severity
from mltrust.monitor.series import SeriesKey
from mltrust.monitor.spec import IncidentPolicy
from mltrust.slices import Slice, attributes_of

State = Literal["open", "recovered", "lapsed", "merged"]
#: Other jobs look once a day, and what they find on the next day, or the one after, goes on.
_OTHERS_LAPSE_AFTER = timedelta(days=3)
#: Whether a series could be judged in the bucket that begins then.
Judged = Callable[[SeriesKey, datetime], bool]
_RANK: dict[Severity, int] = {"warning": 0, "critical": 1}


class Incident(NamedTuple):
    """A revision of an incident, as a row of incidents; the first is 0, and every change is one more.

    Model version, arm, metric, slice and detector are those of the leading contributor: the guilty slice, not the
    ones that contain it. `blamed_version` is that of the first contributor of its metric which one version alone
    served. `value`, `expected` and band are of its worst bucket, `score` of the worst finding of all. `opened_at`
    is the start of the bucket in which it was found, `seen_until` the end of the last one with a finding,
    `changed_at` that of the bucket that made the revision. What lapsed did not recover: it cannot be judged any more.
    """

    incident_id: str
    revision: int
    model_name: str
    model_version: str
    blamed_version: str
    arm: str
    metric: str
    slice_key: str
    slice_value: str
    detector: str
    state: State
    severity: Severity
    opened_at: datetime
    seen_until: datetime
    recovered_at: datetime | None
    changed_at: datetime
    n_buckets: int
    n_findings: int
    value: float
    expected: float
    low: float
    high: float
    score: float
    contributors: str
    notify: bool
    reason: str

    @property
    def slice(self) -> Slice:
        return Slice(self.slice_key, self.slice_value)

    @property
    def is_open(self) -> bool:
        return self.state == "open"


class Told(NamedTuple):
    """All revisions in the order in which they came, and the open incidents as they are now.

    The latter have the number of their newest revision and the counts of this moment.
    """

    revisions: list[Incident]
    live: list[Incident]


class Contributor(TypedDict):
    """One of the series that an incident shows in, as in the column `contributors`."""

    metric: str
    slice: str
    model_version: str
    arm: str
    detector: str
    strength: float
    change: float | None
    n_buckets: int
    reason: str


@dataclass(slots=True)
class _Evidence:
    """What one series has told so far: by bucket its excess and the noise of that, once, whoever found it."""

    by_bucket: dict[datetime, tuple[float, float]] = field(default_factory=dict)
    peak: float = 0.0
    worst: Finding | None = None
    buckets: set[datetime] = field(default_factory=set)

    def add(self, found: Finding) -> None:
        self.buckets.add(found.bucket_start)
        if found.has_excess:
            self._count(found.bucket_start, (found.excess, found.noise))
        if self.worst is None or abs(found.score) > self.peak:
            self.peak, self.worst = abs(found.score), found

    def absorb(self, other: "_Evidence") -> None:
        self.buckets |= other.buckets
        for bucket, told in other.by_bucket.items():
            self._count(bucket, told)
        if self.worst is None or other.peak > self.peak:
            self.peak, self.worst = other.peak, other.worst

    def _count(self, bucket: datetime, told: tuple[float, float]) -> None:
        """Of what several detectors say of one bucket the most certain counts."""
        known = self.by_bucket.get(bucket, told)
        self.by_bucket[bucket] = max(known, told, key=lambda each: (abs(each[0]) / each[1], each))

    @property
    def strength(self) -> float:
        """Standard errors of counting between all that was seen and all that was expected.

        Of nested slices it is largest in the guilty one: those around it have the same excess and more noise, those
        inside it part of both. Where a finding has no excess, its score.
        """
        if not self.by_bucket:
            return self.peak
        excess = sum(excess for excess, _ in self.by_bucket.values())
        return abs(excess) / sqrt(sum(noise * noise for _, noise in self.by_bucket.values()))


@dataclass(slots=True)
class _Quiet:
    """How an incident's lead has been since its last finding: gone through up to `at`, judged in `n` buckets."""

    lead: SeriesKey
    at: datetime
    judged_at: datetime
    n: int = 0


@dataclass(slots=True)
class _Open:
    """An incident that is not over, while findings are gone through."""

    incident_id: str
    subject: tuple[str, bool]
    opened_at: datetime
    last: Incident | None = None
    told_score: float = 0.0
    told_severity: Severity = "warning"
    seen_until: datetime | None = None
    by_series: dict[SeriesKey, _Evidence] = field(default_factory=dict)
    slices: set[Slice] = field(default_factory=set)
    buckets: set[datetime] = field(default_factory=set)
    n_findings: int = 0
    severity: Severity = "warning"
    quiet: _Quiet | None = None

    def take(self, found: Finding) -> None:
        self.by_series.setdefault(found.series, _Evidence()).add(found)
        self.slices.add(found.slice)
        self.buckets.add(found.bucket_start)
        self.n_findings += 1
        self.severity = max(self.severity, found.severity, key=_RANK.__getitem__)
        self.seen_until = max(self.seen_until or found.judged_at, found.judged_at)
        self.quiet = None

    def absorb(self, other: "_Open") -> None:
        for series, evidence in other.by_series.items():
            self.by_series.setdefault(series, _Evidence()).absorb(evidence)
        self.slices |= other.slices
        self.buckets |= other.buckets
        self.n_findings += other.n_findings
        self.severity = max(self.severity, other.severity, key=_RANK.__getitem__)
        self.seen_until = max(each.seen_until for each in (self, other) if each.seen_until is not None)
        self.quiet = None

    def ranked(self) -> list[tuple[SeriesKey, _Evidence]]:
        """Contributors, the strongest first; of equals the coarser slice, then by name."""
        return sorted(self.by_series.items(), key=lambda item: (-item[1].strength, len(item[0].slice_key), item[0]))


def always(series: SeriesKey, at: datetime) -> bool:
    """Of every bucket that it could be judged."""
    return True


def incidents(
    findings: Iterable[Finding],
    policy: IncidentPolicy,
    *,
    bucket: timedelta,
    upto: datetime,
    judged: Judged = always,
) -> Told:
    """The incidents that the findings make, judged up to a moment.

    An incident has recovered once its leading series could be judged in `recover_after` buckets after its last
    finding. Buckets in which it could not neither continue nor end it, until `lapse_hours` went by without any.
    """
    book = _Book(policy, bucket, judged)
    told = sorted((each for each in findings if each.judged_at <= upto), key=_by_end)
    for end, rows in groupby(told, key=lambda found: found.judged_at):
        book.recover(before=end)
        book.take(list(rows), end)
    book.recover(before=upto + bucket)
    return Told(book.revisions, book.live())


def _by_end(found: Finding) -> tuple[object, ...]:
    return (found.judged_at, *found.series, found.detector)


class _Book:
    """The open incidents and all revisions so far."""

    def __init__(self, policy: IncidentPolicy, bucket: timedelta, judged: Judged) -> None:
        self._policy, self._bucket, self._judged = policy, bucket, judged
        self._lapse = timedelta(hours=policy.lapse_hours)
        self._open: list[_Open] = []
        self.revisions: list[Incident] = []

    def recover(self, before: datetime) -> None:
        """Closes what was judged and had nothing for long enough before the bucket that ends then."""
        for each in list(self._open):
            state = self._went_through(each, before)
            if state == "open" or each.quiet is None or each.last is None:
                continue
            self._open.remove(each)
            reason = None if state == "recovered" else f"{each.last.reason}; {_lapsed(each.quiet.lead)}"
            self._revise(
                each,
                each.quiet.at,
                state=state,
                recovered_at=each.seen_until if state == "recovered" else None,
                notify=True,
                reason=reason,
            )

    def _went_through(self, each: _Open, before: datetime) -> State:
        """What has become of an incident by the buckets that ended before a moment."""
        assert each.seen_until is not None
        if each.quiet is None:
            each.quiet = _Quiet(each.ranked()[0][0], each.seen_until, each.seen_until)
        quiet = each.quiet
        while quiet.at + self._bucket < before:
            is_judged = self._judged(quiet.lead, quiet.at)
            quiet.at += self._bucket
            if is_judged:
                quiet.n, quiet.judged_at = quiet.n + 1, quiet.at
            if quiet.n >= self._policy.recover_after:
                return "recovered"
            if quiet.at - quiet.judged_at >= self._lapses_after(quiet.lead):
                return "lapsed"
        return "open"

    def _lapses_after(self, lead: SeriesKey) -> timedelta:
        own = _OTHERS_LAPSE_AFTER if _is_of_others(lead) else self._policy.recover_after * self._bucket
        return max(self._lapse, own)

    def take(self, found: Sequence[Finding], at: datetime) -> None:
        """Gives the findings of a bucket to the incidents that they belong to."""
        touched: list[_Open] = []
        for group in families(found):
            slices = {each.slice for each in group}
            mine = [each for each in self._open if each.subject == group[0].subject and related(each.slices, slices)]
            if mine:
                home, *others = sorted(mine, key=lambda each: (each.opened_at, each.incident_id))
                for other in others:
                    self._merge(other, home, at)
            else:
                home = _Open(_incident_id(group), group[0].subject, at - self._bucket)
                self._open.append(home)
            for each in group:
                home.take(each)
            if home not in touched:
                touched.append(home)
        for home in touched:
            if home in self._open:
                self._update(home, at)

    def live(self) -> list[Incident]:
        """The open incidents as they are now."""
        found = []
        for each in self._open:
            assert each.last is not None
            assert each.seen_until is not None
            now = _revision(each, each.seen_until, "open", None, False, None, self._policy)
            found.append(now._replace(revision=each.last.revision, changed_at=each.last.changed_at))
        return found

    def _merge(self, other: _Open, home: _Open, at: datetime) -> None:
        self._open.remove(other)
        home.absorb(other)
        if other.last is not None:
            reason = f"one with incident {home.incident_id}"
            self._revise(other, at, state="merged", recovered_at=None, notify=False, reason=reason)

    def _update(self, each: _Open, at: datetime) -> None:
        """A new revision where there is something new: it opens, another leads, it is graver or much worse."""
        score = max(evidence.peak for evidence in each.by_series.values())
        graver = _RANK[each.severity] > _RANK[each.told_severity]
        worse = score > each.told_score and score >= self._policy.worse_factor * each.told_score
        notify = each.last is None or graver or worse
        lead = each.ranked()[0][0]
        if notify or each.last is None or lead != _lead(each.last) or len(each.buckets) in _MARKS:
            if notify:
                each.told_score, each.told_severity = score, each.severity
            self._revise(each, at, state="open", recovered_at=None, notify=notify)

    def _revise(
        self,
        each: _Open,
        at: datetime,
        *,
        state: State,
        recovered_at: datetime | None,
        notify: bool,
        reason: str | None = None,
    ) -> None:
        each.last = _revision(each, at, state, recovered_at, notify, reason, self._policy)
        self.revisions.append(each.last)


#: An open incident is written down again when it has lasted so many buckets with findings.
_MARKS = frozenset((2, 3, 5, 10, 20, 50, 100, 200, 500))


def _is_of_others(lead: SeriesKey) -> bool:
    return lead.metric.startswith(OF_OTHERS)


def _lapsed(lead: SeriesKey) -> str:
    return "it was not found again" if _is_of_others(lead) else "it could not be judged any more"


def _lead(last: Incident) -> SeriesKey:
    return SeriesKey(last.model_name, last.model_version, last.arm, last.metric, last.slice_key, last.slice_value)


def _incident_id(group: Sequence[Finding]) -> str:
    first = min(group, key=_by_end)
    text = "|".join((first.model_name, first.bucket_start.isoformat(), *first.series, first.detector))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _revision(
    each: _Open,
    at: datetime,
    state: State,
    recovered_at: datetime | None,
    notify: bool,
    reason: str | None,
    policy: IncidentPolicy,
) -> Incident:
    ranked = each.ranked()
    lead, evidence = ranked[0]
    worst = evidence.worst
    assert worst is not None
    assert each.seen_until is not None
    contributors = [_contributor(series, told) for series, told in ranked[: policy.contributors]]
    return Incident(
        incident_id=each.incident_id,
        revision=0 if each.last is None else each.last.revision + 1,
        model_name=lead.model_name,
        model_version=lead.model_version,
        blamed_version=_blamed(ranked),
        arm=lead.arm,
        metric=lead.metric,
        slice_key=lead.slice_key,
        slice_value=lead.slice_value,
        detector=worst.detector,
        state=state,
        severity=each.severity,
        opened_at=each.opened_at,
        seen_until=each.seen_until,
        recovered_at=recovered_at,
        changed_at=at,
        n_buckets=len(each.buckets),
        n_findings=each.n_findings,
        value=worst.value,
        expected=worst.expected,
        low=worst.low,
        high=worst.high,
        score=max((told.worst for _, told in ranked if told.worst), key=lambda found: abs(found.score)).score,
        contributors=json.dumps(contributors, ensure_ascii=False, allow_nan=False),
        notify=notify,
        reason=worst.reason if reason is None else reason,
    )


def _blamed(ranked: Sequence[tuple[SeriesKey, _Evidence]]) -> str:
    """The version that alone served the first contributor of the leading metric of which that is so, '' without one.

    Of another metric a version may be to blame for something else.
    """
    mine = (told.worst for series, told in ranked if series.metric == ranked[0][0].metric)
    return next((worst.blamed_version for worst in mine if worst is not None and worst.blamed_version), "")


def _contributor(series: SeriesKey, evidence: _Evidence) -> Contributor:
    worst = evidence.worst
    assert worst is not None
    change = (worst.value - worst.expected) / abs(worst.expected) if worst.expected else nan
    return Contributor(
        metric=series.metric,
        slice=str(series.slice),
        model_version=series.model_version,
        arm=series.arm,
        detector=worst.detector,
        strength=round(evidence.strength, 3),
        change=None if isnan(change) else round(change, 4),
        n_buckets=len(evidence.buckets),
        reason=worst.reason,
    )


def families(found: Sequence[Finding]) -> list[list[Finding]]:
    """The findings of one bucket by subject and slice family: those that share a member are one."""
    groups: list[list[Finding]] = []
    for each in found:
        mine = [
            group
            for group in groups
            if group[0].subject == each.subject and related({row.slice for row in group}, {each.slice})
        ]
        groups = [group for group in groups if group not in mine]
        groups.append([row for group in mine for row in group] + [each])
    return [sorted(group, key=_by_end) for group in groups]


def related(some: Iterable[Slice], others: Iterable[Slice]) -> bool:
    """Whether a slice of one side may share requests with one of the other: no attribute says otherwise."""
    theirs = [attributes_of(each) for each in others]
    return any(_agree(attributes_of(each), other) for each in some for other in theirs)


def _agree(one: dict[str, str], other: dict[str, str]) -> bool:
    return all(other.get(name, value) == value for name, value in one.items())
