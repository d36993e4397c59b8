"""One scan of a monitor: what arrived becomes series, series findings, findings incidents, incidents decisions.

What is written comes in an order in which a scan that dies anywhere can be done again: findings, incidents, decisions
and notices are each written only where they are not there yet, and the series, whose commit says up to when was
judged, come last. One process at a time may run a monitor.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from math import nan
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pyspark.sql import Column
from pyspark.sql import functions as F

from mltrust.conf import Conf
from mltrust.errors import ConfError
from mltrust.io import models, notify
from mltrust.io.tables import Lakehouse, Versions
from mltrust.monitor import notices, rules
from mltrust.monitor.breakdown import part_of
from mltrust.monitor.cells import EVERY_VERSION, JUDGED, Row
from mltrust.monitor.finding import Finding
from mltrust.monitor.guardrails import guardrails, served_beside, serving_versions
from mltrust.monitor.incidents import Incident, Judged, current, incidents, replay_from, unwritten
from mltrust.monitor.notices import Notice
from mltrust.monitor.others import Candidate, nobody, origins
from mltrust.monitor.rules import Decision, Registry, Seen
from mltrust.monitor.scan import bands_of, candidate_of, judged_in, known_from, merged, scan
from mltrust.monitor.series import Panel, SeriesKey
from mltrust.monitor.spec import Monitor
from mltrust.report.monitor import View, incident_page, lead_of, live_page, words
from mltrust.spark import series
from mltrust.spark.series import Arrived, Sources, Span
from mltrust.verdicts import Verdict

log = logging.getLogger("mltrust")

READ = ("inference_log", "inference_log_rejects", "outcomes")
WRITTEN = ("monitor_series", "monitor_findings", "incidents", "decisions", "notifications")
_DAY = timedelta(days=1)
_SHOWN_BUCKETS, _SHOWN_SERIES = 336, 12
_TELL_AGAIN = _OTHERS_FROM = timedelta(days=7)
T = TypeVar("T", Finding, Incident, Decision, Notice)


class Known(NamedTuple):
    """Up to when a monitor has judged, at what versions of the tables; `series_hash` names what made its series.

    `n_judged` is how many tests the last scan could make.
    """

    upto: datetime
    versions: Versions
    series_hash: str
    n_judged: int = 0


class Scanned(NamedTuple):
    """What a scan came to."""

    verdict: Verdict
    view: View
    panel: Panel
    since: datetime
    n_new_findings: int
    waiting: int


def known_of(lake: Lakehouse, monitor: Monitor) -> Known | None:
    """What the last scan that was finished left, None before the first."""
    told = lake.metadata("monitor_series", monitor_id=monitor.monitor_id)
    if not told:
        return None
    versions, n_judged = told["versions"], told.get("n_judged", 0)
    assert isinstance(versions, dict)
    assert isinstance(n_judged, int)
    return Known(datetime.fromisoformat(str(told["upto"])), versions, str(told["series_hash"]), n_judged)


def scanned(
    lake: Lakehouse,
    conf: Conf,
    as_of: datetime | None,
    inputs: Versions,
    stamp: Mapping[str, object],
    *,
    since: datetime | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Scanned:
    """One scan up to `as_of`, less what is let arrive late, at the given versions of the tables.

    Without as_of it goes up to the latest event time that arrived, and with the clock once that stands still.
    The first scan judges from `since` on, by default the last day; every other from where the last one ended.
    """
    monitor, clock = conf.the_monitor(), now()
    if as_of is not None and as_of > clock:
        raise ConfError(
            f"--as-of {as_of:%Y-%m-%dT%H:%M:%SZ}: expected no later time than now, {clock:%Y-%m-%dT%H:%M:%SZ}"
        )
    last = known_of(lake, monitor)
    known = not_ahead(last, monitor, clock)
    late = _arrived(lake, monitor, known, inputs, clock, needed=as_of is None or known is not None)
    upto = as_of if as_of is not None else reached(monitor, known, late, clock)
    end = floor(upto - timedelta(seconds=monitor.series.lateness_seconds), monitor.series.bucket)
    if known is not None:
        end = max(end, known.upto)
    start = floor(end - timedelta(days=monitor.series.history_days), _DAY)
    is_new = known is None or known.series_hash != series_hash(monitor) or known.upto < start
    judged_from = floor(since or end - _DAY, monitor.series.bucket) if known is None else max(known.upto, start)
    again = None if is_new or late is None or known is None else [at for at in late.buckets if at < known.upto]
    made = _made(
        lake, conf, inputs, known.upto if known is not None and again is not None else start, again, start, end
    )
    stored = lake.read("monitor_series", where={"monitor_id": monitor.monitor_id})
    rows = [row for part in made for row in part.rows]
    panel = series.panel(stored.where(F.lit(not is_new)), rows, monitor, start=start, end=end)
    is_idle = end <= judged_from  # of the last bucket is then seen again whether it could be judged
    found = scan(panel, monitor, end - monitor.series.bucket if is_idle else judged_from)
    keeper = Keeper(lake, monitor, stamp)
    others = (
        [] if is_idle else of_others(lake, monitor, end, cache(partial(candidate_of, panel, monitor.series.arms)))
    )
    told, findings = keeper.findings([] if is_idle else found.findings, others, judged_from, end)
    revisions, live = keeper.incidents(findings, judged_in(panel, monitor), end)
    seen = Seen(end, monitor.series.breakdowns, partial(served_beside, panel, monitor))
    decisions, waiting = decided_and_told(keeper, revisions, live, seen, now)
    if last is None or last.upto != end or any(part.span.ranges for part in made):
        keeper.series(made, Known(end, inputs, series_hash(monitor), found.n_judged))
    view = View(
        monitor,
        end,
        now(),
        revisions,
        live,
        decisions,
        findings,
        bands_of(panel, monitor, _shown(panel, live), _SHOWN_BUCKETS),
        sorted({str(key.slice) for key in panel.keys if part_of(key, monitor.series.breakdowns) is None}),
        found.n_tests,
        found.n_judged,
        is_idle=is_idle,
        judged=found.judged,
        serving=serving_versions(panel, monitor, _DAY),
        aliases={alias: each.alias_version for alias, each in keeper.registries.items()},
        guardrails=guardrails(monitor, live, decisions, keeper.others, keeper.registries, clock),
    )
    return Scanned(_verdict(view), view, panel, judged_from, len(told), waiting)


def decided_and_told(
    keeper: "Keeper",
    revisions: Sequence[Incident],
    live: Sequence[Incident],
    seen: Seen,
    now: Callable[[], datetime],
) -> tuple[list[Decision], int]:
    """All decisions, and how many notices still wait: incidents are told before the registry is asked."""
    waiting = keeper.tell(revisions, (), now)
    decisions = keeper.decisions(live, seen, now())
    return decisions, keeper.tell((), decisions, now) if decisions else waiting


def floor(at: datetime, width: timedelta) -> datetime:
    """The start of the bucket that holds a moment; buckets are counted from 1970."""
    origin = datetime(1970, 1, 1, tzinfo=UTC)
    return origin + (at - origin) // width * width


def series_hash(monitor: Monitor) -> str:
    """Names what the series depend on; with another one they are made anew."""
    shaping = asdict(monitor.series) | {"model": monitor.model_name}
    return hashlib.sha256(json.dumps(shaping, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _verdict(view: View) -> Verdict:
    if view.live:
        return Verdict.BREACH
    return Verdict.PASS if view.n_judged else Verdict.INCONCLUSIVE


class Made(NamedTuple):
    """Series of some metrics that were made for a span."""

    metrics: list[str]
    span: Span
    rows: list[Row]


def _arrived(
    lake: Lakehouse, monitor: Monitor, known: Known | None, inputs: Versions, now: datetime, *, needed: bool
) -> Arrived | None:
    """What arrived in the log since the last scan, of everything before the first; None where that cannot be told.

    It cannot where rows were removed too: then the series are made anew.
    """
    if not needed:
        return None
    if known is None:
        return Arrived([], series.newest(lake.read("inference_log", inputs["inference_log"]), monitor, now))
    since = known.upto - timedelta(days=monitor.series.history_days) - _DAY
    rows = lake.arrived("inference_log", known.versions["inference_log"], inputs["inference_log"])
    return None if rows is None else series.arrived(rows, monitor, since, now)


def not_ahead(known: Known | None, monitor: Monitor, now: datetime) -> Known | None:
    """What is known, up to the clock at most: of what lies ahead of it nothing can have been judged."""
    if known is None:
        return None
    ended = floor(now - timedelta(seconds=monitor.series.lateness_seconds), monitor.series.bucket)
    return known._replace(upto=min(known.upto, ended))


def reached(monitor: Monitor, known: Known | None, late: Arrived | None, now: datetime) -> datetime:
    """The event time that was reached, never ahead of the clock; where live traffic has fallen silent, the clock."""
    lateness = timedelta(seconds=monitor.series.lateness_seconds)
    before = None if known is None else known.upto + lateness
    newest = max((each for each in (before, None if late is None else late.newest) if each is not None), default=now)
    silence = timedelta(seconds=monitor.series.silence_seconds)
    return now if silence < now - newest < _DAY else min(newest, now)


def _made(
    lake: Lakehouse,
    conf: Conf,
    inputs: Versions,
    since: datetime,
    late: Sequence[datetime] | None,
    start: datetime,
    end: datetime,
) -> list[Made]:
    """The series of [since, end), and of `late` buckets before it that something arrived for."""
    monitor, max_cells = conf.the_monitor(), conf.settings.limits.max_cells
    sources = Sources(*(lake.read(name, inputs[name]) for name in READ))
    found = []
    counted = series.names_of(monitor, "requests", "rejects")
    if counted:
        span = _span(monitor, since, end, [at for at in late or () if start <= at < since])
        rows = series.of_requests(sources, monitor, span, max_cells=max_cells) + series.of_rejects(
            sources, monitor, span
        )
        found.append(Made(counted, span, rows))
    for name in series.names_of(monitor, "outcomes"):
        matures = monitor.series.maturing(name)
        again = [at for at in late or () if start <= at < since - matures]
        span = _span(monitor, since - matures, end - matures, again)
        found.append(Made([name], span, series.of_outcomes(sources, monitor, name, span, max_cells=max_cells)))
    return found


def committed(made: Sequence[Made], model_name: str, upto: datetime) -> list[Made]:
    """What is to be written, last a part with a row: Delta leaves out a commit without any, and what it was to say.

    Where no part has a row, one marks up to when was judged.
    """
    parts = sorted((each for each in made if each.span.ranges), key=lambda each: bool(each.rows))
    if parts and parts[-1].rows:
        return parts
    mark = Row(SeriesKey(model_name, EVERY_VERSION, "", JUDGED, "", ""), upto, 0, 0.0, 0.0)
    return [*parts, Made([JUDGED], Span(()), [mark])]


def _span(monitor: Monitor, since: datetime, end: datetime, late: Sequence[datetime]) -> Span:
    width = monitor.series.bucket
    return Span.of([*late, *(since + at * width for at in range(int((end - since) / width)))], width)


def _shown(panel: Panel, live: Sequence[Incident]) -> list[SeriesKey]:
    """The series of the page: those that lead open incidents, then every metric over everything."""
    leading = [lead_of(each) for each in live]
    whole = [key for key in panel.keys if key.model_version == EVERY_VERSION and not key.arm and not key.slice_key]
    return list(dict.fromkeys([*leading, *whole]))[:_SHOWN_SERIES]


def of_others(lake: Lakehouse, monitor: Monitor, end: datetime, candidate: Candidate = nobody) -> list[Finding]:
    """What other jobs found of the monitor's model and experiment in runs of the last days."""
    found = []
    for origin in origins(monitor, candidate):
        if lake.exists(origin.table):
            breaches = lake.read(origin.table, where={**origin.where, "verdict": "breach"})
            recent = (F.col("as_of") > F.lit(end - _OTHERS_FROM)) & (F.col("as_of") <= F.lit(end))
            rows = breaches.where(F.col("decides") & recent).collect()
            found += [origin.finding(_in_utc(row.asDict())) for row in rows]
    return known_from(found, monitor)


def _in_utc(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _utc(value) if isinstance(value, datetime) else value for name, value in row.items()}


class Keeper:
    """What is written of a scan, each thing once."""

    def __init__(self, lake: Lakehouse, monitor: Monitor, stamp: Mapping[str, object]) -> None:
        self._lake, self._monitor, self._stamp = lake, monitor, dict(stamp)
        self._mine = {"monitor_id": monitor.monitor_id}
        #: What the registry said of every alias, and what other monitors did, once decisions were made.
        self.registries: dict[str, Registry] = {}
        self.others: list[Decision] = []

    def _read(self, table: str, kind: type[T]) -> list[T]:
        rows = self._lake.read(table, where=self._mine)
        found = rows.select(*kind._fields).collect()
        return [_plain(kind, row.asDict()) for row in found]

    def _append(self, table: str, rows: Iterable[T]) -> None:
        listed = [row._asdict() | self._mine | self._stamp for row in rows]
        if listed:
            self._lake.append(listed, table)

    def findings(
        self, found: Sequence[Finding], others: Sequence[Finding], since: datetime, end: datetime
    ) -> tuple[list[Finding], list[Finding]]:
        """Those of this scan, and all: of the judged buckets what a scan that died had written is overwritten.

        So is what was judged of times ahead of the clock. Of `others`, which come when they come, those are taken
        that no scan took before, as judged in the first bucket of this one.
        """
        known = self._read("monitor_findings", Finding)
        before = [each for each in known if each.judged_at <= since]
        taken = {each.key for each in before}
        now = since + self._monitor.series.bucket
        late = {each.key: each._replace(judged_at=now) for each in others if each.key not in taken}
        told = merged(found, list(late.values()))
        if len(before) < len(known) or told:
            second = timedelta(microseconds=1)
            last = max([end, *(each.judged_at for each in known)])
            rows = self._lake.rows("monitor_findings", [row._asdict() | self._mine | self._stamp for row in told])
            within = {"judged_at": [(since + second, last + _DAY)]}
            self._lake.replace(rows, "monitor_findings", self._mine, within=within)
        return told, [*before, *told]

    def known_incidents(self) -> list[Incident]:
        """All revisions of the table."""
        return self._read("incidents", Incident)

    def incidents(
        self, findings: Sequence[Finding], judged: Judged, end: datetime
    ) -> tuple[list[Incident], list[Incident]]:
        """All revisions, and the open incidents as they are now."""
        policy, bucket = self._monitor.incidents, self._monitor.series.bucket
        known = self._read("incidents", Incident)
        start = replay_from(known)
        after = max(
            (each.changed_at for each in known if each.changed_at <= end), default=datetime.min.replace(tzinfo=UTC)
        )
        # Without an open incident only what nobody has gone through yet can make one.
        again = [each for each in findings if each.judged_at > (start if start is not None else after)]
        told = incidents(again, policy, bucket=bucket, upto=end, judged=judged)
        fresh = unwritten(known, told, end)
        self._append("incidents", fresh)
        numbers = {each.incident_id: each.revision for each in current([*known, *fresh])}
        live = [each._replace(revision=numbers[each.incident_id]) for each in told.live]
        return [*known, *fresh], live

    def decisions(self, live: Sequence[Incident], seen: Seen, now: datetime) -> list[Decision]:
        """All decisions, those of this scan made and carried out; none is made while the registry does not answer."""
        past, name = self._read("decisions", Decision), self._monitor.model_name
        aliases = {each.alias for each in self._monitor.rules}
        self.others = self._decisions_of_others()
        try:
            self.registries = {alias: Registry(*models.named(name, alias)) for alias in aliases}
        except Exception as error:
            # Whatever its client raises: watching and paging go on, and the next scan asks again.
            log.warning("registry: %s: %s", type(error).__name__, error)
            return past
        made = self._decided(live, past, seen, now)
        self._append("decisions", made)
        done = [self._carried_out(each, now) for each in rules.to_carry_out([*past, *made])]
        self._append("decisions", done)
        return [*past, *made, *done]

    def _decisions_of_others(self) -> list[Decision]:
        """What other monitors of the model saw and did: the alias is one."""
        rows = self._lake.read("decisions", where={"model_name": self._monitor.model_name})
        found = [row.asDict() for row in rows.select("monitor_id", *Decision._fields).collect()]
        others = [row for row in found if row["monitor_id"] != self._monitor.monitor_id]
        return [rules.of_another(_plain(Decision, row), row["monitor_id"]) for row in others]

    def _decided(
        self,
        live: Sequence[Incident],
        own: Sequence[Decision],
        seen: Seen,
        now: datetime,
    ) -> list[Decision]:
        name, made = self._monitor.model_name, list[Decision]()
        past, registries = [*own, *self.others], self.registries
        for alias, registry in registries.items():
            made += rules.observed([*past, *made], name, alias, registry, now)
            made += rules.put_back([*past, *made], name, registry, now)
        for rule in self._monitor.rules:
            made += rules.decide(rule, live, [*past, *made], registries[rule.alias], now, seen)
        return made + rules.unconfirmed([*own, *made], self._monitor.rules, live, registries, now, seen)

    def _carried_out(self, due: Decision, now: datetime) -> Decision:
        if due.action == "stop":
            return rules.carried_out(due, now=now)
        assert due.from_version is not None
        assert due.to_version is not None
        try:
            models.move_alias(due.model_name, due.alias, expected=due.from_version, to=due.to_version)
        except Exception as error:  # whatever the registry's client raises: it is written down and tried again
            log.warning("%s: %s", due.rollback_rule, error)
            return rules.carried_out(due, now=now, error=f"{type(error).__name__}: {error}")
        log.info("%s: %s", due.rollback_rule, due.reason)
        if due.alias in self.registries:
            self.registries[due.alias] = self.registries[due.alias]._replace(alias_version=due.to_version)
        return rules.carried_out(due, now=now)

    def tell(self, revisions: Sequence[Incident], decisions: Sequence[Decision], now: Callable[[], datetime]) -> int:
        """Queues what was not told yet and sends what is due; how many notices still wait."""
        if not self._monitor.notify:
            return 0
        known, since = self._read("notifications", Notice), now() - _TELL_AGAIN
        newest_change = max((each.changed_at for each in revisions), default=since)
        recent = [each for each in revisions if each.changed_at >= min(since, newest_change - _TELL_AGAIN)]
        decided = [each for each in decisions if each.decided_at >= since]
        wanted = notices.of_incidents(recent, self._monitor, now()) + notices.of_decisions(
            decided, self._monitor, now()
        )
        ids = {each.notice_id for each in known}
        queued = list({each.notice_id: each for each in wanted if each.notice_id not in ids}.values())
        self._append("notifications", queued)
        sent = []
        for each in notices.to_send([*known, *queued], now()):
            sent.append(self._sent(each, now))
            self._append("notifications", sent[-1:])  # one by one: a process that is killed repeats one at most
        return sum(each.state == "queued" for each in notices.newest([*known, *queued, *sent]))

    def _sent(self, notice: Notice, now: Callable[[], datetime]) -> Notice:
        target = self._monitor.notify.get(notice.target)
        error = "the conf names no such target any more" if target is None else notify.deliver(notice, target)
        if error is not None:
            log.warning("notify %s: %s", notice.target, error)
        return notices.attempted(notice, now=now(), error=error)

    def series(self, made: Sequence[Made], known: Known) -> None:
        """The series, and with the last of them up to when was judged."""
        metadata = {**self._mine, **known._asdict(), "upto": known.upto.isoformat()}
        parts = committed(made, self._monitor.model_name, known.upto)
        for each in parts:
            rows = series.frame(self._lake.spark, each.rows)
            stamped = rows.withColumns({name: F.lit(value) for name, value in self._mine.items()} | self._columns())
            self._lake.replace(
                stamped,
                "monitor_series",
                self._mine,
                metadata=metadata if each is parts[-1] else None,
                among={"metric": each.metrics},
                within={"bucket_start": each.span.ranges} if each.span.ranges else None,
            )

    def _columns(self) -> dict[str, Column]:
        versions = self._stamp["input_versions"]
        assert isinstance(versions, dict)
        pairs = [F.lit(part) for pair in versions.items() for part in pair]
        plain = {name: F.lit(value) for name, value in self._stamp.items() if name != "input_versions"}
        return plain | {"input_versions": F.create_map(*pairs)}


def _utc(at: datetime) -> datetime:
    """A collected timestamp, which PySpark gives in the local time of the process and without its zone."""
    return at.astimezone(UTC)


def _plain(kind: type[T], row: Mapping[str, object]) -> T:
    """A row of a table as the tuple that it was: NULL numbers are nan again, times are UTC."""
    return kind._make(_value(kind, name, row[name]) for name in kind._fields)


def _value(kind: type[T], name: str, value: object) -> object:
    if value is None and kind.__annotations__[name] is float:
        return nan
    return _utc(value) if isinstance(value, datetime) else value


def written_pages(view: View, folder: str) -> Path | None:
    """Writes the live page and those of incidents; None where the lakehouse is no folder of this machine."""
    if ":/" in folder and not folder.startswith("file:/"):
        return None
    place = Path(folder.removeprefix("file:"))
    place.mkdir(parents=True, exist_ok=True)
    for incident_id in dict.fromkeys(each.incident_id for each in view.revisions):
        _replaced(place / f"incident-{incident_id}.html", incident_page(view, incident_id))
    _replaced(place / "index.html", live_page(view))
    return place / "index.html"


def _replaced(path: Path, text: str) -> None:
    """Writes a file whole or not at all: a browser may be reading it."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def standing(lake: Lakehouse, monitor: Monitor) -> tuple[Verdict, str]:
    """The verdict of a monitor that was stopped, and words for it, by the incidents that are open in its table."""
    known = known_of(lake, monitor)
    if known is None:
        return Verdict.INCONCLUSIVE, "stopped before the first scan was finished"
    rows = Keeper(lake, monitor, {}).known_incidents()
    live = [each for each in current(rows) if each.is_open]
    words = "; ".join(each.reason for each in live)
    words = words or ("no open incident" if known.n_judged else "nothing could be judged")
    verdict = Verdict.BREACH if live else Verdict.PASS if known.n_judged else Verdict.INCONCLUSIVE
    return verdict, f"{words}; judged up to {known.upto:%Y-%m-%d %H:%M:%S}"


def going_on(what: str, work: Callable[[], None]) -> None:
    """Does what a scan can be without; an error of it is logged, and the next scan tries again."""
    try:
        work()
    except Exception as error:
        log.warning("%s: %s: %s", what, type(error).__name__, error)


def say(scanned: Scanned, number: int) -> None:
    """One line of progress."""
    view = scanned.view
    delay = (view.written_at - view.upto).total_seconds()
    log.info("scan %d: judged up to %s (%.0f s ago): %s", number, f"{view.upto:%H:%M:%S}", delay, words(view))


def require_series(conf: Conf) -> Monitor:
    """The monitor of the conf; ConfError where it watches nothing."""
    monitor = conf.the_monitor()
    if not monitor.series.metrics:
        raise ConfError(f"{conf.path}: series.metrics: missing; expected what is watched")
    return monitor
