"""Pieces of a monitor's live page: which versions serve, and what every rollback rule would do now."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape

from mltrust.monitor.guardrails import Guardrail, Serving
from mltrust.monitor.rules import Decision, newest
from mltrust.report.page import pill, section, table

_COLOURS = {
    "quiet": "good",
    "not yet": "warn",
    "waits": "warn",
    "would act": "warn",
    "due": "warn",
    "acted": "bad",
    "refused": "bad",
    "failed": "bad",
    "held": "unknown",
}


def time_of(at: datetime) -> str:
    """A time as people read it, with seconds where there are any."""
    return f"{at:%Y-%m-%d %H:%M}" if at.second == 0 else f"{at:%Y-%m-%d %H:%M:%S}"


def when(at: datetime) -> str:
    """A time in HTML, which is not broken into lines in a table."""
    return f"<time>{time_of(at)}</time>"


def version_section(
    serving: Sequence[Serving], aliases: Mapping[str, str | None], decisions: Sequence[Decision]
) -> str:
    """Every version that serves or that an alias names, with its traffic and what was decided about it last."""
    by_version = {each.model_version: each for each in serving}
    named = [version for version in aliases.values() if version is not None]
    versions = list(dict.fromkeys([*by_version, *sorted(named)]))
    nowhere = "".join(
        f"<p class='quiet'>{escape(alias)} names no version.</p>"
        for alias, of in sorted(aliases.items())
        if of is None
    )
    if not versions:
        return section("Versions", "<p class='quiet'>No version served in the last day.</p>" + nowhere)
    rows = [
        [
            f"<b>{escape(version)}</b> "
            + " ".join(pill("blue", alias) for alias, of in sorted(aliases.items()) if of == version),
            *_traffic(by_version.get(version)),
            _last_decision(version, decisions),
        ]
        for version in versions
    ]
    head = ("version", "share, last bucket", "share, last day", "requests, last day", "last decision")
    return section("Versions", table(head, rows, numbers=(1, 2, 3)) + nowhere)


def _traffic(of: Serving | None) -> tuple[str, str, str]:
    if of is None:
        return ("–", "–", "0")
    bar = f"<span class='bar'><span style='width:{of.share:.1%}'></span></span>"
    return (f"{of.last_share:.1%}", f"{bar} {of.share:.1%}", f"{of.n_requests:,}")


def _last_decision(version: str, decisions: Sequence[Decision]) -> str:
    about = [
        each
        for each in newest(decisions)
        if each.action != "observe"
        and (version == each.model_version or (each.state == "done" and each.to_version == version))
    ]
    if not about:
        return "<span class='quiet'>none</span>"
    last = max(about, key=lambda each: (each.decided_at, each.state == "done", each.decision_id))
    way = f" from {last.from_version} to {last.to_version}" if last.to_version else ""
    return (
        f"{escape(last.action)}{escape(way)}: <b>{escape(plain(last.state))}</b> "
        f"<span class='quiet'>{escape(last.rollback_rule)}, {when(last.decided_at)}</span>"
    )


def plain(state: str) -> str:
    """A state as people say it."""
    return state.replace("_", " ")


def guardrail_section(guardrails: Sequence[Guardrail]) -> str:
    """Every rule: what it watches and does, whether it is armed, and how it stands."""
    if not guardrails:
        return section("Guardrails", "<p class='quiet'>The conf has no rules: nothing is rolled back or stopped.</p>")
    head = ("state", "rule", "watches", "does", "mode", "why", "cools down until")
    return section("Guardrails", table(head, [_row(each) for each in guardrails]))


def _row(each: Guardrail) -> list[str]:
    rule = each.rule
    slices = "" if rule.slices == ("*",) else f" in {', '.join(rule.slices)}"
    asks = f"{rule.severity}, {rule.persistence} bucket{'s' if rule.persistence > 1 else ''}"
    metrics = "every metric" if rule.metrics == ("*",) else ", ".join(rule.metrics)
    deed = f"rolls {rule.alias} back" if rule.action == "rollback" else "stops the version"
    since = "" if each.decided_at is None else f" <span class='quiet'>{when(each.decided_at)}</span>"
    return [
        pill(_COLOURS[each.standing], each.standing),
        f"<b>{escape(rule.name)}</b>",
        f"{escape(metrics + slices)} <span class='quiet'>({escape(asks)})</span>",
        escape(deed),
        "dry run" if rule.dry_run else "<b>armed</b>",
        f"{escape(each.reason) or '<span class=quiet>no incident concerns it</span>'}{since}",
        "–" if each.cools_until is None else when(each.cools_until),
    ]
