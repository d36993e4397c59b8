"""What is written of a scan, each thing once, and read back: series, findings, incidents, decisions and notices."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from math import nan
from typing import NamedTuple, TypeVar

from pyspark.sql import Column
from pyspark.sql import functions as F

from mltrust.io import models, notify
from mltrust.io.tables import Lakehouse, Versions
from mltrust.monitor import notices, rules
from mltrust.monitor.cells import EVERY_VERSION, JUDGED, Row
from mltrust.monitor.finding import Finding
from mltrust.monitor.incidents import Incident, Judged, incidents
from mltrust.monitor.notices import Notice
from mltrust.monitor.revisions import current, replay_from, unwritten
from mltrust.monitor.rules import Decision, Registry, Seen
from mltrust.monitor.scan import merged
from mltrust.monitor.series import SeriesKey
from mltrust.monitor.spec import Monitor
from mltrust.spark import series
from mltrust.spark.series import Span

log = logging.getLogger("mltrust")

_DAY = timedelta(days=1)
_TELL_AGAIN = timedelta(days=7)
T = TypeVar("T", Finding, Incident, Decision, Notice)


class Known(NamedTuple):
    """Up to when a monitor has judged, at what versions of the tables; `series_hash` names what made its series.

    `n_judged` is how many tests the last scan could make.
    """

    upto: datetime
    versions: Versions
    series_hash: str
    n_judged: int = 0


def known_of(lake: Lakehouse, monitor: Monitor) -> Known | None:
    """What the last scan that was finished left, None before the first."""
    told = lake.metadata("monitor_series", monitor_id=monitor.monitor_id)
    if not told:
        return None
    versions, n_judged = told["versions"], told.get("n_judged", 0)
    assert isinstance(versions, dict)
    assert isinstance(n_judged, int)
    return Known(datetime.fromisoformat(str(told["upto"])), versions, str(told["series_hash"]), n_judged)


class Made(NamedTuple):
    """Series of some metrics that were made for a span."""

    metrics: list[str]
    span: Span
    rows: list[Row]


def committed(made: Sequence[Made], model_name: str, upto: datetime) -> list[Made]:
    """What is to be written, last a part with a row: Delta leaves out a commit without any, and what it was to say.

    Where no part has a row, one marks up to when was judged.
    """
    parts = sorted((each for each in made if each.span.ranges), key=lambda each: bool(each.rows))
    if parts and parts[-1].rows:
        return parts
    mark = Row(SeriesKey(model_name, EVERY_VERSION, "", JUDGED, "", ""), upto, 0, 0.0, 0.0)
    return [*parts, Made([JUDGED], Span(()), [mark])]


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


def utc(at: datetime) -> datetime:
    """A collected timestamp, which PySpark gives in the local time of the process and without its zone."""
    return at.astimezone(UTC)


def _plain(kind: type[T], row: Mapping[str, object]) -> T:
    """A row of a table as the tuple that it was: NULL numbers are nan again, times are UTC."""
    return kind._make(_value(kind, name, row[name]) for name in kind._fields)


def _value(kind: type[T], name: str, value: object) -> object:
    if value is None and kind.__annotations__[name] is float:
        return nan
    return utc(value) if isinstance(value, datetime) else value
