"""Decisions: what a rollback rule does about an incident, given what the registry says and what was decided before.

A decision belongs to one rule and one incident, so that it is made once, whoever asks how often. Nothing here acts:
a decision that is `due` is carried out by the job, which then writes the revision that says how it went.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Literal, NamedTuple

from mltrust.monitor.incidents import Incident
from mltrust.monitor.spec import RollbackRule

Action = Literal["rollback", "stop", "observe"]
State = Literal["due", "done", "failed", "dry_run", "refused", "held", "observed"]
_RANK = {"warning": 0, "critical": 1}
_WAS_TO_DO = "; was to do: "
_PAUSE_AFTER_FAILURE = timedelta(minutes=1)


class Decision(NamedTuple):
    """A revision of a decision, as a row of decisions.

    `observe` rows keep which version the alias named before: they are the record that a rollback goes back to.
    """

    decision_id: str
    revision: int
    incident_id: str | None
    model_name: str
    model_version: str
    rollback_rule: str
    action: Action
    alias: str
    from_version: str | None
    to_version: str | None
    state: State
    dry_run: bool
    decided_at: datetime
    reason: str


def _nobody(version: str) -> frozenset[str]:
    """No version is known to have served beside another."""
    return frozenset()


class Seen(NamedTuple):
    """What a scan knows beside the registry: up to when was judged, by default now, and what metrics are by.

    `beside` says which other versions served in the last bucket in which a version did.
    """

    upto: datetime | None = None
    breakdowns: Mapping[str, str] = MappingProxyType({})
    beside: Callable[[str], frozenset[str]] = _nobody


_NOTHING = Seen()


class Registry(NamedTuple):
    """What the registry says of a model: the version that the alias names, all versions, and what persons say.

    `hold` is the text of a tag with which a person keeps rules from acting, None without one. `kept` are texts of
    tags by version, with which a person has that version serve whatever rules decided.
    """

    alias_version: str | None
    versions: frozenset[str]
    hold: str | None = None
    kept: Mapping[str, str] = MappingProxyType({})


def observed(
    past: Iterable[Decision], model_name: str, alias: str, registry: Registry, now: datetime
) -> list[Decision]:
    """A row where the alias names another version than when it was last looked at, else none."""
    own = [each for each in newest(past) if each.action == "observe" and _is_of(each, model_name, alias)]
    known = max(own, key=lambda each: each.revision, default=None)
    before = None if known is None else known.to_version
    if registry.alias_version == before:
        return []
    reason = f"{alias} moved from {before or 'nothing'} to {registry.alias_version or 'nothing'}"
    moved = _observation(model_name, alias, registry.alias_version, reason, now)
    return [moved._replace(revision=0 if known is None else known.revision + 1, from_version=before)]


def put_back(past: Sequence[Decision], model_name: str, registry: Registry, now: datetime) -> list[Decision]:
    """A row for every stopped version that a person has serve again; of no alias, and never the first of its kind."""
    found = []
    for version in sorted(stopped(past, model_name) & registry.kept.keys()):
        seen = _observation(model_name, "", version, f"a person put {version} back: {registry.kept[version]}", now)
        n = sum(each.decision_id == seen.decision_id for each in past)
        found.append(seen._replace(revision=n + 1))
    return found


def _observation(model_name: str, alias: str, version: str | None, reason: str, now: datetime) -> Decision:
    """That an alias, or a person without one, came to name a version; to be given its revision."""
    return Decision(
        decision_id=_hash("observe", model_name, alias) if alias else _hash("observe", model_name, "", version or ""),
        revision=0,
        incident_id=None,
        model_name=model_name,
        model_version=version or "",
        rollback_rule="",
        action="observe",
        alias=alias,
        from_version=None,
        to_version=version,
        state="observed",
        dry_run=False,
        decided_at=now,
        reason=reason,
    )


def decide(
    rule: RollbackRule,
    live: Sequence[Incident],
    past: Sequence[Decision],
    registry: Registry,
    now: datetime,
    seen: Seen = _NOTHING,
) -> list[Decision]:
    """New revisions that the rule makes for open incidents; none where all is said.

    `due` is to be carried out. `refused` and `held` are said once, and again only with another reason. Evidence that
    is too old is none.
    """
    found: list[Decision] = []
    for incident in live:
        if not applies(rule, incident, seen.breakdowns):
            continue
        known = _known(rule, incident, [*past, *found])
        if known is not None and _happened(known, registry):
            found.append(carried_out(known, now=now))
            continue
        if known is not None and (_is_settled(known, rule) or _rests(known, now)):
            continue
        judged = _too_old(rule, registry, now - (seen.upto or now)) or _judged(
            rule, incident, live, [*past, *found], registry, now, seen
        )
        said = _revision(rule, incident, known, judged, now)
        if known is None or _says_more(said, known):
            found.append(said)
    return found


def applies(rule: RollbackRule, incident: Incident, breakdowns: Mapping[str, str]) -> bool:
    """Whether an incident is of the rule's metrics and slices, grave enough, and has lasted long enough."""
    return (
        rule.concerns(incident.metric, incident.slice, breakdowns)
        and _RANK[incident.severity] >= _RANK[rule.severity]
        and incident.n_buckets >= rule.persistence
    )


def _is_settled(known: Decision, rule: RollbackRule) -> bool:
    """Whether the rule has nothing more to say. What it only would have done it does once it is told to act."""
    return known.state == "done" or (known.state == "dry_run" and rule.dry_run)


def _happened(known: Decision, registry: Registry) -> bool:
    """Whether it was done although nobody says so: its writer died, or an error came after the deed."""
    return known.state in ("due", "failed") and registry.alias_version == known.to_version is not None


def _rests(known: Decision, now: datetime) -> bool:
    return known.state == "failed" and now < known.decided_at + _PAUSE_AFTER_FAILURE


def to_carry_out(revisions: Iterable[Decision]) -> list[Decision]:
    """The decisions that are due: made now, or by a run that died before it acted and judged again since."""
    return [each for each in newest(revisions) if each.state == "due"]


def unconfirmed(
    own: Iterable[Decision],
    rules: Iterable[RollbackRule],
    live: Sequence[Incident],
    registries: Mapping[str, Registry],
    now: datetime,
    seen: Seen = _NOTHING,
) -> list[Decision]:
    """What a run that died left due and no rule would do any more, held with the reason; done where it happened."""
    by_name = {rule.name: rule for rule in rules}
    found = []
    for due in to_carry_out(own):
        rule, registry = by_name.get(due.rollback_rule), registries.get(due.alias)
        against = _against_due(due, rule, live, seen)
        if registry is not None and _happened(due, registry):
            found.append(carried_out(due, now=now))
        elif against:
            found.append(due._replace(revision=due.revision + 1, state="held", decided_at=now, reason=against))
    return found


def _against_due(due: Decision, rule: RollbackRule | None, live: Sequence[Incident], seen: Seen) -> str:
    """Why what is due is not to be done any more, '' where it is."""
    if rule is None:
        return f"the conf has no rule {due.rollback_rule} any more"
    mine = next((each for each in live if each.incident_id == due.incident_id), None)
    if mine is None:
        return "its incident was over before anything was done"
    return "" if applies(rule, mine, seen.breakdowns) else f"rule {rule.name} does not apply to its incident any more"


def _says_more(said: Decision, known: Decision) -> bool:
    """Whether a revision tells something new. What is due stays due until it went one way or the other."""
    return (said.state, said.to_version, said.reason) != (known.state, known.to_version, known.reason)


class _Judged(NamedTuple):
    state: State
    from_version: str | None
    to_version: str | None
    reason: str


def _too_old(rule: RollbackRule, registry: Registry, age: timedelta) -> _Judged | None:
    if age <= timedelta(hours=rule.evidence_hours):
        return None
    reason = f"what was judged ended more than {rule.evidence_hours:g} h ago, and may be over"
    return _Judged("refused", registry.alias_version, None, reason)


def _judged(
    rule: RollbackRule,
    incident: Incident,
    live: Sequence[Incident],
    past: Sequence[Decision],
    registry: Registry,
    now: datetime,
    seen: Seen,
) -> _Judged:
    """What is to be done: the first reason against it, else due."""
    blamed = incident.blamed_version
    named = f"{incident.metric} of {incident.slice}"
    why = incident.reason if incident.reason.startswith(named) else f"{named}: {incident.reason}"
    if not blamed:
        return _Judged(
            "refused", registry.alias_version, None, "several versions served it, and none is to blame alone"
        )
    own = [each for each in newest(past) if _is_of(each, incident.model_name, rule.alias)]
    mine = _hash(rule.name, incident.incident_id)
    acted = [each for each in own if _is_deed(each) and each.decision_id != mine]
    if registry.hold is not None:
        return _Judged("held", registry.alias_version, None, f"a person holds it: {registry.hold}")
    if blamed in registry.kept:
        return _Judged("held", blamed, None, f"a person has {blamed} serve: {registry.kept[blamed]}")
    if rule.action == "stop":
        against = _cooling(rule, acted, now) or _against_stop(incident, past, seen)
        state: State = "refused" if against else "due"
        return _Judged(state, blamed, None, against or f"stop {blamed}: {why}")
    if registry.alias_version != blamed:
        reason = f"{rule.alias} names {registry.alias_version or 'nothing'}, not {blamed}, which is to blame"
        return _Judged("refused", registry.alias_version, None, reason)
    if put_back := _put_back(acted, blamed):
        return _Judged("held", blamed, None, f"a person put {blamed} back after {put_back.decision_id} took it away")
    if against := _cooling(rule, acted, now):
        return _Judged("refused", blamed, None, against)
    target = previous_version(past, incident.model_name, rule.alias, blamed)
    if against := _against_target(rule, target, incident, live, acted, registry, now):
        return _Judged("refused", blamed, target, against)
    return _Judged("due", blamed, target, f"{rule.alias} from {blamed} to {target}: {why}")


def _against_stop(incident: Incident, past: Iterable[Decision], seen: Seen) -> str:
    """Why the version to blame must serve on, '' where another could take its requests."""
    blamed = incident.blamed_version
    if seen.beside(blamed) - stopped(past, incident.model_name):
        return ""
    return f"no other version that is not stopped served beside {blamed} in the last bucket that it had"


def stopped(past: Iterable[Decision], model_name: str) -> frozenset[str]:
    """The versions that must not serve, as in the view of that name, and those of which it is due.

    They were stopped or rolled back, and no alias was seen to come to name them since, nor a person to put them back.
    """
    rows = [each for each in past if each.model_name == model_name]
    moves = [each for each in rows if each.action == "observe" and each.revision > 0]
    deeds = [each for each in newest(rows) if _is_deed(each)]
    by_version: dict[str | None, Decision] = {}
    for each in sorted([*moves, *deeds], key=lambda each: (each.decided_at, each.action != "observe")):
        by_version[each.to_version if each.action == "observe" else each.from_version] = each
    return frozenset(version for version, last in by_version.items() if version and last.action != "observe")


def _put_back(acted: Sequence[Decision], blamed: str) -> Decision | None:
    """The rollback that took the blamed version away, if the alias names it again: a person's doing."""
    return next(
        (each for each in acted if (each.action, each.state, each.from_version) == ("rollback", "done", blamed)), None
    )


def _cooling(rule: RollbackRule, acted: Sequence[Decision], now: datetime) -> str:
    last = max((each.decided_at for each in acted), default=None)
    if last is None or now >= last + timedelta(hours=rule.cool_down_hours):
        return ""
    return f"acted at {last:%Y-%m-%d %H:%M:%S}, and cools down for {rule.cool_down_hours:g} h"


def previous_version(past: Iterable[Decision], model_name: str, alias: str, now_named: str) -> str | None:
    """The version that the alias named before it came forward to this one, None where that was not seen.

    A move to a version that it came through is a way back, and what lay beyond was taken away: after 1, 2, 1 nothing
    is before 1.
    """
    own = [each for each in past if each.action == "observe" and _is_of(each, model_name, alias)]
    way: list[str | None] = []
    for each in sorted(own, key=lambda each: each.revision):
        if each.to_version in way:
            del way[way.index(each.to_version) :]
        way.append(each.to_version)
    at = way.index(now_named) if now_named in way else 0
    return way[at - 1] if at else None


def _against_target(
    rule: RollbackRule,
    target: str | None,
    incident: Incident,
    live: Sequence[Incident],
    acted: Sequence[Decision],
    registry: Registry,
    now: datetime,
) -> str:
    """Why the target will not do, '' where it will."""
    if target is None:
        return f"no version is recorded that {rule.alias} named before {incident.blamed_version}"
    if target not in registry.versions:
        return f"version {target}, which {rule.alias} named before, is not in the registry any more"
    since = now - timedelta(days=rule.blame_days)
    if any(each.from_version == target and each.decided_at >= since for each in acted):
        return f"version {target}, which {rule.alias} named before, was taken away itself"
    if accused := next((each for each in live if each.blamed_version == target and each != incident), None):
        return f"version {target}, which {rule.alias} named before, is to blame for incident {accused.incident_id}"
    return ""


def _known(rule: RollbackRule, incident: Incident, past: Iterable[Decision]) -> Decision | None:
    wanted = _hash(rule.name, incident.incident_id)
    return next((each for each in newest(past) if each.decision_id == wanted), None)


def _revision(
    rule: RollbackRule, incident: Incident, known: Decision | None, judged: _Judged, now: datetime
) -> Decision:
    is_dry = judged.state == "due" and rule.dry_run
    return Decision(
        decision_id=_hash(rule.name, incident.incident_id),
        revision=0 if known is None else known.revision + 1,
        incident_id=incident.incident_id,
        model_name=incident.model_name,
        model_version=incident.blamed_version,
        rollback_rule=rule.name,
        action=rule.action,
        alias=rule.alias,
        from_version=judged.from_version,
        to_version=judged.to_version,
        state="dry_run" if is_dry else judged.state,
        dry_run=rule.dry_run,
        decided_at=now,
        reason=f"would move {judged.reason}" if is_dry and rule.action == "rollback" else judged.reason,
    )


def carried_out(due: Decision, *, now: datetime, error: str | None = None) -> Decision:
    """The revision after the deed; `error` says why it failed. What failed is due again at the next look."""
    state: State = "done" if error is None else "failed"
    what = due.reason.rpartition(_WAS_TO_DO)[2]
    reason = what if error is None else f"{error}{_WAS_TO_DO}{what}"
    return due._replace(revision=due.revision + 1, state=state, decided_at=now, reason=reason)


def of_another(decision: Decision, monitor_id: str) -> Decision:
    """A deed of another monitor of the model, which no rule of one's own takes for its own; moves are everyone's."""
    if decision.action == "observe":
        return decision
    return decision._replace(decision_id=f"{monitor_id}/{decision.decision_id}")


def last_deed(decisions: Iterable[Decision], alias: str) -> Decision | None:
    """What was done last, or is due, to the model through an alias; None where nothing was."""
    deeds = [each for each in newest(decisions) if each.alias == alias and _is_deed(each)]
    return max(deeds, key=lambda each: each.decided_at, default=None)


def _is_deed(each: Decision) -> bool:
    return each.action in ("rollback", "stop") and each.state in ("done", "due")


def newest(revisions: Iterable[Decision]) -> list[Decision]:
    """The newest revision of every decision."""
    found: dict[str, Decision] = {}
    for each in revisions:
        if each.decision_id not in found or each.revision > found[each.decision_id].revision:
            found[each.decision_id] = each
    return list(found.values())


def _is_of(each: Decision, model_name: str, alias: str) -> bool:
    return (each.model_name, each.alias) == (model_name, alias)


def _hash(*parts: str) -> str:
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]
