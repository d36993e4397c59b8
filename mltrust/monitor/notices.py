"""What people are told, and what is still to be sent: notices of incidents and decisions, each for one target."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from mltrust.monitor.incidents import Incident
from mltrust.monitor.rules import Decision
from mltrust.monitor.spec import Monitor, RollbackRule, Target

State = Literal["queued", "sent", "given_up"]
_RANK = {"warning": 0, "critical": 1}
_FIRST_PAUSE, _LONGEST_PAUSE = timedelta(seconds=5), timedelta(minutes=10)
_GIVE_UP_AFTER = timedelta(days=3)


class Notice(NamedTuple):
    """A revision of a notice, as a row of notifications; 0 is queued.

    Its id is made of what it tells and to whom, so that it is queued once; receivers get it as Idempotency-Key.
    """

    notice_id: str
    revision: int
    target: str
    model_name: str
    state: State
    attempts: int
    payload: str
    queued_at: datetime
    changed_at: datetime
    next_attempt_at: datetime
    reason: str


def of_incidents(revisions: Iterable[Incident], monitor: Monitor, now: datetime) -> list[Notice]:
    """Notices of the revisions that are to be told, for every target that wants their severity."""
    return [
        _queued(
            name, each.model_name, _of_incident(each, monitor), now, "incident", each.incident_id, str(each.revision)
        )
        for each in revisions
        if each.notify
        for name, target in monitor.notify.items()
        if _RANK[each.severity] >= _RANK[target.min_severity]
    ]


def of_decisions(decisions: Iterable[Decision], monitor: Monitor, now: datetime) -> list[Notice]:
    """Notices of decisions for those whom their rule pages. What is due is told when it is done."""
    pages: Mapping[str, RollbackRule] = {rule.name: rule for rule in monitor.rules}
    return [
        _queued(
            name, each.model_name, _of_decision(each, monitor), now, "decision", each.decision_id, str(each.revision)
        )
        for each in decisions
        if each.rollback_rule in pages and each.state != "due"
        for name in pages[each.rollback_rule].page
    ]


def _queued(target: str, model_name: str, payload: Mapping[str, object], now: datetime, *told: str) -> Notice:
    notice_id = hashlib.sha256("|".join((target, *told)).encode()).hexdigest()[:16]
    text = json.dumps({"notice_id": notice_id, **payload}, ensure_ascii=False, default=str, allow_nan=False)
    return Notice(notice_id, 0, target, model_name, "queued", 0, text, now, now, now, "")


def _of_incident(each: Incident, monitor: Monitor) -> dict[str, object]:
    return {
        "kind": "incident",
        "monitor_id": monitor.monitor_id,
        "incident_id": each.incident_id,
        "revision": each.revision,
        "state": "opened" if each.revision == 0 else each.state,
        "severity": each.severity,
        "model_name": each.model_name,
        "model_version": each.blamed_version or each.model_version,
        "metric": each.metric,
        "slice": str(each.slice),
        "opened_at": each.opened_at.isoformat(),
        "recovered_at": None if each.recovered_at is None else each.recovered_at.isoformat(),
        "text": f"{each.severity if each.is_open else each.state}: {each.reason}",
        "contributors": json.loads(each.contributors),
    }


def _of_decision(each: Decision, monitor: Monitor) -> dict[str, object]:
    return {
        "kind": "decision",
        "monitor_id": monitor.monitor_id,
        **each._asdict(),
        "decided_at": each.decided_at.isoformat(),
        "text": f"{each.rollback_rule}: {each.state}: {each.reason}",
    }


def newest(revisions: Iterable[Notice]) -> list[Notice]:
    """The newest revision of every notice, in the order in which they were queued."""
    found: dict[str, Notice] = {}
    for each in revisions:
        if each.notice_id not in found or each.revision > found[each.notice_id].revision:
            found[each.notice_id] = each
    return sorted(found.values(), key=lambda each: (each.queued_at, each.notice_id))


def to_send(revisions: Iterable[Notice], now: datetime) -> list[Notice]:
    """What is due to be sent."""
    return [each for each in newest(revisions) if each.state == "queued" and each.next_attempt_at <= now]


def attempted(notice: Notice, *, now: datetime, error: str | None) -> Notice:
    """The revision after an attempt: sent, or due again after a pause that doubles; given up after three days."""
    tried = notice._replace(revision=notice.revision + 1, attempts=notice.attempts + 1, changed_at=now)
    if error is None:
        return tried._replace(state="sent", reason="")
    if now - notice.queued_at >= _GIVE_UP_AFTER:
        return tried._replace(state="given_up", reason=error)
    pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(notice.attempts, 20))
    return tried._replace(next_attempt_at=now + pause, reason=error)


def unknown_targets(notices: Sequence[Notice], targets: Mapping[str, Target]) -> list[str]:
    """Targets that notices wait for and that the conf does not name any more."""
    return sorted({each.target for each in notices} - set(targets))
