"""One scan of a monitor: what arrived becomes series, series findings, findings incidents, incidents decisions.

What is written comes in an order in which a scan that dies anywhere can be done again: findings, incidents, decisions
and notices are each written only where they are not there yet, and the series, whose commit says up to when was
judged, come last. One process at a time may run a monitor.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mltrust import runtime
from mltrust.conf import Conf
from mltrust.errors import ConfError
from mltrust.io.tables import Lakehouse, Versions
from mltrust.keeping import Keeper, Known, Made, known_of, utc
from mltrust.monitor.breakdown import part_of
from mltrust.monitor.cells import EVERY_VERSION
from mltrust.monitor.finding import Finding
from mltrust.monitor.guardrails import guardrails, served_beside, serving_versions
from mltrust.monitor.incidents import Incident
from mltrust.monitor.others import Candidate, nobody, origins
from mltrust.monitor.revisions import current
from mltrust.monitor.rules import Decision, Seen
from mltrust.monitor.scan import bands_of, candidate_of, judged_in, known_from, scan
from mltrust.monitor.series import Panel, SeriesKey
from mltrust.monitor.spec import Monitor
from mltrust.report.monitor import View, incident_page, lead_of, live_page, metrics, series_of, words
from mltrust.runtime import Tracked
from mltrust.spark import series
from mltrust.spark.series import Arrived, Sources, Span
from mltrust.verdicts import Verdict

log = logging.getLogger("mltrust")

READ = ("inference_log", "inference_log_rejects", "outcomes")
WRITTEN = ("monitor_series", "monitor_findings", "incidents", "decisions", "notifications")
_DAY = timedelta(days=1)
_SHOWN_BUCKETS, _SHOWN_SERIES = 336, 12
_OTHERS_FROM = timedelta(days=7)


class Scanned(NamedTuple):
    """What a scan came to."""

    verdict: Verdict
    view: View
    panel: Panel
    since: datetime
    n_new_findings: int
    waiting: int


class Stretch(NamedTuple):
    """What a scan looks at: the series of [start, end), of which buckets from `judged_from` on are judged.

    Made are those from `made_from` on, and those before it that something arrived for, `late`.
    """

    start: datetime
    end: datetime
    judged_from: datetime
    made_from: datetime
    late: Sequence[datetime] = ()

    @property
    def is_anew(self) -> bool:
        """Whether all is made, so that nothing that is kept is looked at."""
        return self.made_from == self.start


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
    stretch = looked_at(lake, monitor, last, inputs, as_of=as_of, since=since, clock=clock)
    end = stretch.end
    made = _made(lake, conf, inputs, stretch)
    panel = _panel(lake, monitor, made, stretch)
    is_idle = end <= stretch.judged_from  # of the last bucket is then seen again whether it could be judged
    found = scan(panel, monitor, end - monitor.series.bucket if is_idle else stretch.judged_from)
    keeper = Keeper(lake, monitor, stamp)
    candidate = cache(partial(candidate_of, panel, monitor.series.arms))
    others = [] if is_idle else of_others(lake, monitor, end, candidate)
    told, findings = keeper.findings([] if is_idle else found.findings, others, stretch.judged_from, end)
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
    return Scanned(_verdict(view), view, panel, stretch.judged_from, len(told), waiting)


def looked_at(
    lake: Lakehouse,
    monitor: Monitor,
    last: Known | None,
    inputs: Versions,
    *,
    as_of: datetime | None,
    since: datetime | None,
    clock: datetime,
) -> Stretch:
    """What a scan looks at, by what the last one left.

    All is made anew by the first scan, where the series have changed their meaning, where the last scan ended before
    the stretch, and where rows were removed from the log, whose series must not stay.
    """
    known = not_ahead(last, monitor, clock)
    late = _arrived(lake, monitor, known, inputs, clock, needed=as_of is None or known is not None)
    upto = as_of if as_of is not None else reached(monitor, known, late, clock)
    end = floor(upto - timedelta(seconds=monitor.series.lateness_seconds), monitor.series.bucket)
    if known is not None:
        end = max(end, known.upto)
    start = floor(end - timedelta(days=monitor.series.history_days), _DAY)
    if known is None:
        first = floor(since or end - _DAY, monitor.series.bucket)
        return Stretch(start, end, judged_from=first, made_from=start)
    judged_from = max(known.upto, start)
    if known.series_hash != series_hash(monitor) or known.upto < start or late is None:
        return Stretch(start, end, judged_from, made_from=start)
    again = [at for at in late.buckets if at < known.upto]
    return Stretch(start, end, judged_from, made_from=known.upto, late=again)


def _panel(lake: Lakehouse, monitor: Monitor, made: Sequence[Made], stretch: Stretch) -> Panel:
    """The series of the stretch: those that are kept, with what was made."""
    kept = lake.read("monitor_series", where={"monitor_id": monitor.monitor_id})
    rows = [row for part in made for row in part.rows]
    return series.panel(kept.where(F.lit(not stretch.is_anew)), rows, monitor, start=stretch.start, end=stretch.end)


def decided_and_told(
    keeper: Keeper,
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


def _made(lake: Lakehouse, conf: Conf, inputs: Versions, stretch: Stretch) -> list[Made]:
    """The series that are made of what arrived, at the given versions of the tables."""
    monitor, max_cells = conf.the_monitor(), conf.settings.limits.max_cells
    sources = Sources(*(lake.read(name, inputs[name]) for name in READ))
    start, end, since, found = stretch.start, stretch.end, stretch.made_from, []
    counted = series.names_of(monitor, "requests", "rejects")
    if counted:
        span = _span(monitor, since, end, [at for at in stretch.late if start <= at < since])
        rows = series.of_requests(sources, monitor, span, max_cells=max_cells) + series.of_rejects(
            sources, monitor, span
        )
        found.append(Made(counted, span, rows))
    for name in series.names_of(monitor, "outcomes"):
        matures = monitor.series.maturing(name)
        again = [at for at in stretch.late if start <= at < since - matures]
        span = _span(monitor, since - matures, end - matures, again)
        found.append(Made([name], span, series.of_outcomes(sources, monitor, name, span, max_cells=max_cells)))
    return found


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
    return {name: utc(value) if isinstance(value, datetime) else value for name, value in row.items()}


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


def scan_again(
    tick: DataFrame, number: int, *, conf: Conf, tracked: Tracked, since: datetime | None, seconds: float
) -> None:
    """A scan of what arrived by now, up to the event time that it reaches."""
    lake = runtime.lakehouse(tick.sparkSession, conf)
    inputs = lake.versions(*READ)
    stamp = tracked.stamp | {"input_versions": inputs, "written_at": datetime.now(UTC)}
    found = scanned(lake, conf, None, inputs, stamp, since=since)
    view = found.view._replace(refresh_seconds=max(1, round(seconds)))
    written_pages(view, f"{lake.folder('monitor')}/{conf.the_monitor().monitor_id}")
    going_on("tracking", partial(chart, found, tracked))
    say(found, number)


def chart(found: Scanned, tracked: Tracked) -> None:
    """Logs the metrics and the series of the run."""
    tracked.run.metrics(metrics(found.view, found.waiting))
    tracked.run.series(series_of(found.view, found.since))


def going_on(what: str, work: Callable[[], None]) -> None:
    """Does what a scan can be without; an error of it is logged, and the next scan tries again."""
    try:
        work()
    except Exception as error:
        log.warning("%s: %s: %s", what, type(error).__name__, error)


def say(found: Scanned, number: int) -> None:
    """Logs one line of progress."""
    view = found.view
    delay = (view.written_at - view.upto).total_seconds()
    log.info("scan %d: judged up to %s (%.0f s ago): %s", number, f"{view.upto:%H:%M:%S}", delay, words(view))


def require_series(conf: Conf) -> Monitor:
    """The monitor of the conf; ConfError where it watches nothing."""
    monitor = conf.the_monitor()
    if not monitor.series.metrics:
        raise ConfError(f"{conf.path}: series.metrics: missing; expected what is watched")
    return monitor
