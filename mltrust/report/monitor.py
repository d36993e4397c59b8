"""Pages of a monitor that open from disk: the live page and one per incident, which need nothing from elsewhere."""

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from html import escape
from itertools import groupby
from math import isnan, nan
from types import MappingProxyType
from typing import NamedTuple

from mltrust.monitor.cells import EVERY_VERSION
from mltrust.monitor.finding import OF_RATIO, Finding
from mltrust.monitor.guardrails import Guardrail, Serving
from mltrust.monitor.incidents import Contributor, Incident
from mltrust.monitor.revisions import current
from mltrust.monitor.rules import Decision, newest
from mltrust.monitor.scan import Band
from mltrust.monitor.series import SeriesKey
from mltrust.monitor.spec import Monitor
from mltrust.report.health import seconds
from mltrust.report.numbers import number
from mltrust.report.page import document, pill, section, table
from mltrust.report.standing import guardrail_section, plain, time_of, version_section, when

_WIDTH, _HEIGHT = 560, 150
_LEFT, _BOTTOM, _TOP = 84, 24, 8
_SHOWN_INCIDENTS, _SHOWN_DECISIONS, _SHOWN_SLICES = 30, 15, 40

_COLOURS = {"open": "bad", "recovered": "good", "merged": "good", "lapsed": "unknown"}


class View(NamedTuple):
    """What there is to see of a monitor at a moment: `revisions` of incidents and decisions, bands by series.

    `is_idle`: no bucket has ended since the last scan; `n_judged` and `judged`, by slice and metric, are then of the
    last one. `aliases` is what the registry said that the aliases of the rules name; empty where it was not reached.
    """

    monitor: Monitor
    upto: datetime
    written_at: datetime
    revisions: Sequence[Incident]
    live: Sequence[Incident]
    decisions: Sequence[Decision]
    findings: Sequence[Finding]
    bands: Mapping[SeriesKey, Band]
    slices: Sequence[str]
    n_tests: int
    n_judged: int
    refresh_seconds: int | None = None
    is_idle: bool = False
    judged: Collection[tuple[str, str]] = frozenset()
    serving: Sequence[Serving] = ()
    aliases: Mapping[str, str | None] = MappingProxyType({})
    guardrails: Sequence[Guardrail] = ()


def words(view: View) -> str:
    """The state of the model in one sentence."""
    if view.live:
        worst = max(view.live, key=lambda each: (each.severity == "critical", abs(each.score)))
        more = f", and {len(view.live) - 1} more" if len(view.live) > 1 else ""
        return f"{len(view.live)} open incident{'s' if len(view.live) > 1 else ''}: {worst.reason}{more}"
    if not view.n_judged:
        return "nothing could be judged: the series are too short or empty"
    if view.is_idle:
        return "no open incident; no bucket has ended since the last scan"
    return f"no open incident; {view.n_tests:,} tests in every bucket"


def markdown(view: View) -> str:
    """The scan in one page of Markdown, after its verdict."""
    parts = [words(view), f"Judged up to {time_of(view.upto)}."]
    if view.live:
        head = "| incident | since | metric | slice | version | value | expected | severity |"
        head += "\n|---|---|---|---|---|--:|--:|---|"
        rows = [
            f"| {each.incident_id} | {time_of(each.opened_at)} | {each.metric} | {_cell(str(each.slice))} "
            f"| {_cell(each.blamed_version or each.model_version)} | {number(each.value)} | {number(each.expected)} "
            f"| {each.severity} |"
            for each in view.live
        ]
        parts.append("### Open incidents\n\n" + "\n".join([head, *rows]))
    said = [each for each in newest(view.decisions) if each.action != "observe"][-_SHOWN_DECISIONS:]
    if said:
        lines = [
            f"- {time_of(each.decided_at)} {each.rollback_rule}: **{each.state}**, {each.reason}" for each in said
        ]
        parts.append("### Decisions\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def metrics(view: View, n_waiting: int) -> dict[str, float | None]:
    """Metrics of the run."""
    return {
        "monitor/open_incidents": float(len(view.live)),
        "monitor/incidents": float(len({each.incident_id for each in view.revisions})),
        "monitor/tests_per_bucket": float(view.n_tests),
        "monitor/judged": float(view.n_judged),
        "monitor/waiting_notices": float(n_waiting),
    }


def series_of(view: View, since: datetime) -> dict[str, list[tuple[datetime, float]]]:
    """The series of the page from a moment on, `series/<metric>/<slice>`, for the run's charts."""
    return {
        f"series/{key.metric}/{key.slice}/{key.model_version}": [
            (at, value) for at, value in zip(band.times, band.value, strict=True) if at >= since
        ]
        for key, band in view.bands.items()
    }


def live_page(view: View) -> str:
    """The page that people leave open: versions, incidents, guardrails, decisions, and series with their bands."""
    monitor = view.monitor
    status, word = _status(view)
    header = (
        f"<header><p class='kicker'>mltrust monitor <b>{escape(monitor.monitor_id)}</b></p>"
        f"<h1>{escape(monitor.model_name)} {pill(status, word)}</h1><p>{escape(words(view))}.</p>"
        f"<p class='quiet'>Judged up to <time>{time_of(view.upto)}</time> UTC; written "
        f"{time_of(view.written_at)} UTC. Budget: {monitor.budget:g} false incidents in 30 days.</p></header>"
    )
    footer = (
        "<footer class='quiet'>Bands are those of the same hour of earlier weeks, red points are findings. Tables: "
        "<code>monitor_series</code>, <code>monitor_findings</code>, <code>incidents</code>, <code>decisions</code>, "
        "<code>notifications</code>.</footer>"
    )
    parts = [
        header,
        version_section(view.serving, view.aliases, view.decisions),
        _incident_table(view),
        guardrail_section(view.guardrails),
        _decision_table(view.decisions),
        _status_grid(view),
        _charts(view),
    ]
    return document(f"{monitor.model_name}: {word}", [*parts, footer], view.refresh_seconds)


def incident_page(view: View, incident_id: str) -> str:
    """Everything about one incident: what, since when, where it shows, what was done, and what to do."""
    revisions = [each for each in view.revisions if each.incident_id == incident_id]
    last = next((each for each in view.live if each.incident_id == incident_id), revisions[-1])
    decisions = [each for each in view.decisions if each.incident_id == incident_id]
    header = (
        f"<header><p class='kicker'><a href='index.html'>{escape(view.monitor.monitor_id)}</a> / incident "
        f"{escape(incident_id)}</p><h1>{escape(last.metric)} of {escape(str(last.slice))} "
        f"{pill(_COLOURS[last.state], last.state)}</h1><p>{escape(last.reason)}.</p></header>"
    )
    parts = [
        header,
        _facts(last),
        _band_section(view, lead_of(last)),
        _contributors(last),
        _timeline(revisions, decisions),
        _decision_table(decisions),
        _what_to_do(last, newest(decisions)),
    ]
    return document(f"Incident {incident_id}: {last.metric}", parts)


def lead_of(incident: Incident) -> SeriesKey:
    """The series that an incident is named by."""
    return SeriesKey(*(getattr(incident, name) for name in SeriesKey._fields))


def _status(view: View) -> tuple[str, str]:
    if any(each.severity == "critical" for each in view.live):
        return "bad", "critical"
    if view.live:
        return "warn", "incident"
    return ("unknown", "not judged") if not view.n_judged else ("good", "in order")


def _incident_table(view: View) -> str:
    live = {each.incident_id: each for each in view.live}
    shown = [live.get(each.incident_id, each) for each in reversed(current(view.revisions))][:_SHOWN_INCIDENTS]
    if not shown:
        return section("Incidents", "<p class='quiet'>None so far.</p>")
    head = ("state", "incident", "severity", "metric", "slice", "version", "value", "expected", "since", "last seen")
    return section("Incidents", table(head, [_incident_cells(each) for each in shown], numbers=(6, 7)))


def _incident_cells(each: Incident) -> list[str]:
    name = escape(each.incident_id)
    return [
        pill(_COLOURS[each.state], each.state),
        f"<a href='incident-{name}.html'>{name}</a>",
        escape(each.severity),
        escape(each.metric),
        escape(str(each.slice)),
        escape(each.blamed_version or each.model_version),
        number(each.value),
        number(each.expected),
        when(each.opened_at),
        when(each.seen_until),
    ]


def _decision_table(decisions: Sequence[Decision]) -> str:
    said = [each for each in newest(decisions) if each.action != "observe"]
    if not said:
        return section("Decisions", "<p class='quiet'>None.</p>")
    shown = sorted(said, key=lambda each: each.decided_at, reverse=True)[:_SHOWN_DECISIONS]
    rows = [
        [
            when(each.decided_at),
            escape(each.rollback_rule),
            escape(each.action),
            f"<b>{escape(plain(each.state))}</b>",
            f"{escape(each.from_version or '–')} → {escape(each.to_version or '–')}",
            escape(each.reason),
        ]
        for each in shown
    ]
    return section("Decisions", table(("when", "rule", "action", "state", "version", "why"), rows))


def _status_grid(view: View) -> str:
    """By slice and metric who is in an open incident, in words as well as in colour."""
    names = list(view.monitor.series.metrics)
    bad = {(told["slice"], told["metric"]) for each in view.live for told in _told(each)}
    slices = list(dict.fromkeys([*sorted(name for name, _ in bad), *view.slices]))
    rows = [
        [
            f"<b>{escape(name)}</b>",
            *(
                _mark((name, metric), bad, view.judged, "not judged" if name in view.slices else "–")
                for metric in names
            ),
        ]
        for name in slices[:_SHOWN_SLICES]
    ]
    more = f"<p class='quiet'>{len(slices) - _SHOWN_SLICES} slices more.</p>" if len(slices) > _SHOWN_SLICES else ""
    return section("Open incidents by slice and metric", table(("slice", *names), rows) + more)


def _mark(
    cell: tuple[str, str], bad: Collection[tuple[str, str]], judged: Collection[tuple[str, str]], otherwise: str
) -> str:
    """A part of a breakdown is no slice of other metrics, which therefore say nothing of it."""
    if cell in bad:
        return "<span class='bad'>✕ incident</span>"
    return f"<span class='quiet'>{'✓' if cell in judged else otherwise}</span>"


def _charts(view: View) -> str:
    if not view.bands:
        return ""
    charts = "".join(
        f"<figure><figcaption>{escape(key.metric)} <span class='quiet'>{escape(str(key.slice))}, "
        f"{escape(_of(key))}</span></figcaption>{_chart(key, band, view.findings)}</figure>"
        for key, band in view.bands.items()
    )
    return section("Series", f"<div class='charts'>{charts}</div>")


def _of(key: SeriesKey) -> str:
    version = "all versions" if key.model_version == EVERY_VERSION else f"version {key.model_version}"
    return f"{version}, arm {key.arm}" if key.arm else version


def _band_section(view: View, lead: SeriesKey) -> str:
    band = view.bands.get(lead)
    return "" if band is None else section("The series", f"<figure>{_chart(lead, band, view.findings)}</figure>")


def _chart(key: SeriesKey, band: Band, findings: Sequence[Finding]) -> str:
    """The series as SVG: value, band and findings, with its numbers in words for those who cannot see it."""
    numbers = [each for part in band[1:] for each in part if not isnan(each)]
    if not numbers:
        return "<p class='quiet'>no values yet</p>"
    hits = {each.bucket_start for each in findings if each.series == key}
    place = _Place(len(band.times), min(numbers), max(numbers))
    last = next((value for value in reversed(band.value) if not isnan(value)), nan)
    text = (
        f"{key.metric} of {key.slice} from {time_of(band.times[0])} to {time_of(band.times[-1])}: last value "
        f"{number(last)}, {len(hits)} findings"
    )
    marks = "".join(
        f"<circle cx='{place.x(at):.1f}' cy='{place.y(value):.1f}' r='3.5' class='hit'/>"
        for at, (time, value) in enumerate(zip(band.times, band.value, strict=True))
        if time in hits and not isnan(value)
    )
    return (
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' aria-label='{escape(text, quote=True)}'>"
        f"<path d='{place.area(band.low, band.high)}' class='band'/>"
        f"<path d='{place.line(band.expected)}' class='expected'/>"
        f"<path d='{place.line(band.value)}' class='value'/>{marks}"
        f"<text x='{_LEFT - 6}' y='{_TOP + 10}' text-anchor='end'>{number(place.high)}</text>"
        f"<text x='{_LEFT - 6}' y='{_HEIGHT - _BOTTOM}' text-anchor='end'>{number(place.low)}</text>"
        f"<text x='{_LEFT}' y='{_HEIGHT - 4}'>{time_of(band.times[0])}</text>"
        f"<text x='{_WIDTH - 6}' y='{_HEIGHT - 4}' text-anchor='end'>{time_of(band.times[-1])}</text></svg>"
    )


class _Place:
    """Where buckets and values lie in a chart, and SVG paths of them, broken where nothing is known."""

    def __init__(self, n: int, low: float, high: float) -> None:
        margin = 0.05 * (high - low) or 0.5
        self.low, self.high, self._n = low - margin, high + margin, max(1, n - 1)

    def x(self, at: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - 6) * at / self._n

    def y(self, value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (self.high - value) / (self.high - self.low)

    def line(self, values: Sequence[float]) -> str:
        parts, pen = [], "M"
        for at, value in enumerate(values):
            if not isnan(value):
                parts.append(f"{pen}{self.x(at):.1f} {self.y(value):.1f}")
            pen = "M" if isnan(value) else "L"
        return "".join(parts)

    def area(self, low: Sequence[float], high: Sequence[float]) -> str:
        known = [not isnan(bottom + top) for bottom, top in zip(low, high, strict=True)]
        pieces = [list(each) for is_known, each in groupby(range(len(known)), key=known.__getitem__) if is_known]
        return "".join(self._around(piece, low, high) for piece in pieces)

    def _around(self, piece: Sequence[int], low: Sequence[float], high: Sequence[float]) -> str:
        there = [f"{self.x(at):.1f} {self.y(high[at]):.1f}" for at in piece]
        back = [f"{self.x(at):.1f} {self.y(low[at]):.1f}" for at in reversed(piece)]
        return "M" + "L".join(there + back) + "Z"


def _facts(last: Incident) -> str:
    lasted = seconds((last.seen_until - last.opened_at).total_seconds())
    facts = {
        "version to blame": last.blamed_version or "none alone",
        "severity": last.severity,
        "since": time_of(last.opened_at),
        "last seen": f"{time_of(last.seen_until)}, after {lasted}",
        "worst value": f"{number(last.value)}, expected {number(last.expected)}",
        "found by": last.detector,
        "buckets, findings": f"{last.n_buckets}, {last.n_findings}",
    }
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f"<dl class='facts'>{rows}</dl>"


def _told(incident: Incident) -> list[Contributor]:
    told: list[Contributor] = json.loads(incident.contributors)
    return told


def _contributors(last: Incident) -> str:
    rows = [
        [
            *(escape(each[name]) for name in ("metric", "slice", "model_version")),
            escape(each["arm"] or "–"),
            f"{each['strength']:.1f}",
            "–" if each["change"] is None else f"{each['change']:+.1%}",
            escape(each["detector"]),
        ]
        for each in _told(last)
    ]
    head = ("metric", "slice", "version", "arm", "strength", "change", "detector")
    note = (
        "<p class='quiet'>Strength is in standard errors of counting, over the whole incident: of nested slices "
        "it is largest in the guilty one.</p>"
    )
    return section("Where it shows", table(head, rows, numbers=(4, 5)) + note)


def _timeline(revisions: Sequence[Incident], decisions: Sequence[Decision]) -> str:
    told = [
        (each.changed_at, f"{'opened' if each.revision == 0 else each.state}: {each.reason}") for each in revisions
    ]
    told += [(each.decided_at, f"{each.rollback_rule}: {each.state}, {each.reason}") for each in decisions]
    lines = "".join(
        f"<li><time>{time_of(at)}</time> {escape(text)}</li>" for at, text in sorted(told, key=lambda each: each[0])
    )
    return section("Timeline", f"<ol>{lines}</ol>")


#: What to look at where the arms have not the units that were allocated to them.
_OF_MISMATCH = (
    "Do not read the effects of the experiment before the cause is known: its arms are not what was randomised.",
    "Look at the checks: experiment_checks of that as_of says which slices are concerned and since which day.",
    "Usual causes: an arm that loses logs or crashes, redirects, bots, weights that were changed in the conf only.",
)


def _what_to_do(last: Incident, decisions: Sequence[Decision]) -> str:
    if last.metric.startswith(OF_RATIO):
        looks: Sequence[str] = _OF_MISMATCH
    else:
        looks = (
            f"Look at the requests: rows of inference_log of {last.slice} from {time_of(last.opened_at)} on.",
            "Compare with what the control served at the same time: season and traffic are the same.",
            "If it was expected, name it under events in the conf: its buckets are then no history.",
        )
    advice = [_what_was_done(decisions), *looks]
    return section("What to do", "<ol>" + "".join(f"<li>{escape(each)}</li>" for each in advice) + "</ol>")


def _what_was_done(decisions: Sequence[Decision]) -> str:
    done = next((each for each in decisions if each.state == "done" and each.action != "observe"), None)
    waiting = next((each for each in decisions if each.state in ("refused", "held", "failed", "dry_run")), None)
    if done is not None and done.action == "stop":
        return f"Version {done.from_version} is stopped. See that services do not route to it any more."
    if done is not None:
        return (
            f"{done.alias} names version {done.to_version} again. Do not put {done.from_version} back before the "
            "cause is known."
        )
    if waiting is not None:
        by_hand = "stop the version" if waiting.action == "stop" else "move the alias"
        return f"No rule acted: {waiting.reason}. Decide whether to {by_hand} by hand."
    return "No rule applies to it. Decide whether the version stays."


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
