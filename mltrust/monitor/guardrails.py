"""How things stand, for people to look at: which versions serve, and what every rollback rule would do now."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

import numpy as np

from mltrust.monitor.cells import EVERY_VERSION
from mltrust.monitor.incidents import Incident
from mltrust.monitor.rules import Decision, Registry, applies, last_deed, newest
from mltrust.monitor.series import Panel
from mltrust.monitor.spec import Monitor, RollbackRule
from mltrust.states.moments import FloatArray

Standing = Literal["quiet", "not yet", "waits", "would act", "due", "acted", "refused", "held", "failed"]
_OF_STATE: Mapping[str, Standing] = {
    "dry_run": "would act",
    "due": "due",
    "done": "acted",
    "refused": "refused",
    "held": "held",
    "failed": "failed",
}


class Serving(NamedTuple):
    """A version that served: its requests in a window up to now, its share of them, and that of the last bucket."""

    model_version: str
    n_requests: int
    share: float
    last_share: float


class Guardrail(NamedTuple):
    """A rule, how it stands now and why, and until when it does nothing because something was done."""

    rule: RollbackRule
    standing: Standing
    reason: str
    decided_at: datetime | None = None
    cools_until: datetime | None = None


def serving_versions(panel: Panel, monitor: Monitor, window: timedelta) -> list[Serving]:
    """The versions that served in the last buckets, those with the most requests first."""
    first = max(0, panel.n_buckets - max(1, window // panel.bucket))
    n = {version: own[first:] for version, own in _requests(panel, monitor).items()}
    total = sum(n.values(), np.zeros(panel.n_buckets - first))
    if not total.sum():
        return []
    last = max(1.0, float(total[-1]))
    found = [
        Serving(version, int(own.sum()), float(own.sum() / total.sum()), float(own[-1]) / last)
        for version, own in n.items()
        if own.sum()
    ]
    return sorted(found, key=lambda each: (-each.n_requests, each.model_version))


def served_beside(panel: Panel, monitor: Monitor, version: str) -> frozenset[str]:
    """The other versions that served in the last bucket in which this one did; none where it is not known to have."""
    n = _requests(panel, monitor)
    own = np.nonzero(n.get(version, np.zeros(0)))[0]
    return frozenset(other for other, of in n.items() if own.size and other != version and of[own[-1]] > 0)


def _requests(panel: Panel, monitor: Monitor) -> dict[str, FloatArray]:
    """The requests of every version, bucket by bucket: the most that a metric knows of."""
    n: dict[str, FloatArray] = {}
    for row, key in enumerate(panel.keys):
        is_whole = not key.slice_key and not key.arm and key.model_version != EVERY_VERSION
        if is_whole and monitor.series.metrics[key.metric].source == "requests":
            n[key.model_version] = np.maximum(n.get(key.model_version, 0.0), panel.n[row])
    return n


def guardrails(
    monitor: Monitor,
    live: Sequence[Incident],
    decisions: Sequence[Decision],
    others: Sequence[Decision],
    registries: Mapping[str, Registry],
    now: datetime,
) -> list[Guardrail]:
    """Every rule of a monitor as it stands, given its open incidents and decisions, and the decisions of others."""
    return [
        _guardrail(rule, monitor, live, decisions, others, registries.get(rule.alias), now) for rule in monitor.rules
    ]


def _guardrail(
    rule: RollbackRule,
    monitor: Monitor,
    live: Sequence[Incident],
    decisions: Sequence[Decision],
    others: Sequence[Decision],
    registry: Registry | None,
    now: datetime,
) -> Guardrail:
    deed = last_deed([*decisions, *others], rule.alias)
    until = None if deed is None else deed.decided_at + timedelta(hours=rule.cool_down_hours)
    cools_until = until if until is not None and until > now else None
    breakdowns = monitor.series.breakdowns
    near = [each for each in live if rule.concerns(each.metric, each.slice, breakdowns)]
    mine = {each.incident_id for each in near if applies(rule, each, breakdowns)}
    said = [each for each in newest(decisions) if each.rollback_rule == rule.name and each.incident_id in mine]
    if said:
        last = max(said, key=lambda each: (each.decided_at, each.decision_id))
        return Guardrail(rule, _OF_STATE[last.state], last.reason, last.decided_at, cools_until)
    standing, reason = _without_decision(rule, near, bool(mine), registry)
    return Guardrail(rule, standing, reason, None, cools_until)


def _without_decision(
    rule: RollbackRule, near: Sequence[Incident], concerns: bool, registry: Registry | None
) -> tuple[Standing, str]:
    if concerns:
        return "waits", "an incident concerns it; the registry was not reached yet"
    if registry is not None and registry.hold is not None:
        return "held", f"a person holds it: {registry.hold}"
    if near:
        most = max(near, key=lambda each: each.n_buckets)
        has = f"{most.severity}, {most.n_buckets} bucket{'s' if most.n_buckets > 1 else ''} with findings"
        return "not yet", f"incident {most.incident_id} has {has}; needs {rule.severity}, {rule.persistence}"
    return "quiet", ""
