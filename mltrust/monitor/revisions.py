"""Revisions of incidents beside those that are written already: how they stand, which are missing, where to go on."""

from collections.abc import Iterable
from datetime import datetime

from mltrust.monitor.incidents import Incident, Told


def current(revisions: Iterable[Incident]) -> list[Incident]:
    """The newest revision of every incident, in order of opening."""
    newest: dict[str, Incident] = {}
    for each in revisions:
        known = newest.get(each.incident_id)
        if known is None or each.revision > known.revision:
            newest[each.incident_id] = each
    return sorted(newest.values(), key=lambda each: (each.opened_at, each.incident_id))


def unwritten(known: Iterable[Incident], told: Told, at: datetime) -> list[Incident]:
    """Revisions that are to be written beside those known, with the numbers that follow these.

    What was gone through again is known already, unless another policy makes something else of it: then what became
    of the incident is one more revision.
    """
    known = list(known)
    newest = {each.incident_id: each for each in current(known)}
    by_incident: dict[str, list[Incident]] = {}
    for each in told.revisions:
        by_incident.setdefault(each.incident_id, []).append(each)
    found: list[Incident] = []
    for incident_id, rows in by_incident.items():
        last = newest.get(incident_id)
        if last is None:
            found += rows
            continue
        later = [each for each in rows if each.changed_at > last.changed_at]
        if not later and rows[-1].state != last.state:
            later = [rows[-1]._replace(changed_at=last.changed_at)]
        found += [each._replace(revision=last.revision + n) for n, each in enumerate(later, 1)]
    return found + vanished(known, told, at)


def vanished(known: Iterable[Incident], told: Told, at: datetime) -> list[Incident]:
    """Last revisions of incidents that were open and are not found any more, as what was judged turned out otherwise.

    It happens where a run died before it had written all, and more had arrived when it was done again.
    """
    still = {each.incident_id for each in told.revisions}
    return [
        each._replace(
            revision=each.revision + 1,
            state="recovered",
            recovered_at=each.seen_until,
            changed_at=at,
            notify=True,
            reason="not found again with what arrived since",
        )
        for each in current(known)
        if each.is_open and each.incident_id not in still
    ]


def replay_from(known: Iterable[Incident]) -> datetime | None:
    """After when findings must be gone through again, so that every incident that is not over is whole.

    The opening of the earliest open incident, or of one that was not over then; None where none is open.
    """
    newest = current(known)
    start = min((each.opened_at for each in newest if each.is_open), default=None)
    while start is not None:
        earlier = min((each.opened_at for each in newest if each.changed_at >= start), default=start)
        if earlier >= start:
            return start
        start = earlier
    return None
