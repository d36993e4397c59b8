"""What a scan reaches, writes and survives, on tables in memory: no Spark."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession

from jobs import monitor_metrics
from mltrust import conf as confs
from mltrust.errors import ConfError
from mltrust.io import models, notify
from mltrust.io.tables import Lakehouse
from mltrust.keeping import Keeper, Known, Made, committed
from mltrust.monitor import rules
from mltrust.monitor.cells import EVERY_VERSION, JUDGED
from mltrust.monitor.cells import Row as CellRow
from mltrust.monitor.incidents import always
from mltrust.monitor.notices import Notice
from mltrust.monitor.rules import Seen, carried_out, decide
from mltrust.monitor.series import SeriesKey
from mltrust.monitor.spec import Monitor, RollbackRule, SeriesMetric, SeriesSpec, Target
from mltrust.spark import series
from mltrust.spark.series import Arrived, Span, problems
from mltrust.verdicts import Verdict
from mltrust.watch import (
    Stretch,
    decided_and_told,
    going_on,
    looked_at,
    not_ahead,
    reached,
    scanned,
    series_hash,
    standing,
)
from tests.unit.conftest import SHIPPED
from tests.unit.tables import Tables
from tests.unit.test_monitor_incidents import finding
from tests.unit.test_monitor_others import mismatch
from tests.unit.test_monitor_rules import BESIDE, STOP, incident, past
from tests.unit.test_monitor_rules import REGISTRY as NAMED

NOW = datetime(2026, 11, 29, 12, 0, 30, tzinfo=UTC)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
SERIES = SeriesSpec(
    {"errors": SeriesMetric("share", value="x")}, bucket_seconds=60, lateness_seconds=30, silence_seconds=300
)
RULE = RollbackRule("errors", dry_run=False)
MONITOR = Monitor("m", "log", "m", series=SERIES, rules=(RULE,))


class Registry:
    """A registry of one model with three versions; `is_down` where nobody answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.named, self.moves, self.is_down = "1", list[tuple[str, str]](), False
        self.kept: dict[str, str] = {}
        monkeypatch.setattr(models, "named", self._named)
        monkeypatch.setattr(models, "move_alias", self._move)

    def _named(self, name: str, alias: str) -> models.Named:
        if self.is_down:
            raise ConnectionError("the registry is down")
        return models.Named(self.named, frozenset("123"), None, self.kept)

    def _move(self, name: str, alias: str, *, expected: str, to: str) -> None:
        self.moves.append((expected, to))
        self.named = to


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    return Registry(monkeypatch)


def keeper(tables: Tables, monitor: Monitor = MONITOR) -> Keeper:
    return Keeper(cast(Lakehouse, tables), monitor, {})


def known(upto: datetime) -> Known:
    return Known(upto, {}, "")


def test_a_record_of_the_future_does_not_move_time_beyond_the_clock() -> None:
    ahead = Arrived([], NOW + 300 * DAY)
    assert reached(MONITOR, None, ahead, NOW) == NOW
    assert reached(MONITOR, known(NOW - MINUTE), ahead, NOW) == NOW
    assert reached(MONITOR, None, Arrived([], NOW - MINUTE), NOW) == NOW - MINUTE


def test_a_monitor_that_was_carried_ahead_of_the_clock_comes_back() -> None:
    carried = not_ahead(known(NOW + 300 * DAY), MONITOR, NOW)
    assert carried == known(datetime(2026, 11, 29, 12, 0, tzinfo=UTC))
    assert not_ahead(known(NOW - DAY), MONITOR, NOW) == known(NOW - DAY)
    assert not_ahead(None, MONITOR, NOW) is None


class Erasable(Tables):
    """A lakehouse whose log had rows removed since the last scan, or had not."""

    def __init__(self, *, had_rows_removed: bool) -> None:
        super().__init__()
        self._had_rows_removed = had_rows_removed

    def arrived(self, name: str, since: int, upto: int) -> str | None:
        return None if self._had_rows_removed else name


END = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)  # the minute that holds NOW, less what is let arrive late
START = datetime(2026, 10, 3, tzinfo=UTC)  # the day that is 57 days before
LATE = [END - 3 * DAY, END - 2 * MINUTE]


@pytest.mark.parametrize(
    ("last", "options", "expected"),
    [
        (None, {}, Stretch(START, END, END - DAY, START)),
        (None, {"since": END - 3 * DAY}, Stretch(START, END, END - 3 * DAY, START)),
        (END - 5 * MINUTE, {}, Stretch(START, END, END - 5 * MINUTE, END - 5 * MINUTE, LATE[:1])),
        (END - MINUTE, {"as_of": NOW - DAY}, Stretch(START, END - MINUTE, END - MINUTE, END - MINUTE, LATE)),
        (END - MINUTE, {"is_another": True}, Stretch(START, END, END - MINUTE, START)),
        (END - MINUTE, {"had_rows_removed": True}, Stretch(START, END - MINUTE, END - MINUTE, START)),
        (START - DAY, {}, Stretch(START, END, START, START)),
    ],
    ids=["first", "since", "what arrived", "nothing new", "other metrics", "removed rows", "long ago"],
)
def test_what_a_scan_looks_at_hangs_on_what_the_last_one_left(
    monkeypatch: pytest.MonkeyPatch, last: datetime | None, options: dict[str, Any], expected: Stretch
) -> None:
    monkeypatch.setattr(series, "newest", lambda *_: NOW)
    monkeypatch.setattr(series, "arrived", lambda *_: Arrived(LATE, NOW))
    lake, versions = Erasable(had_rows_removed=bool(options.get("had_rows_removed"))), {"inference_log": 7}
    hashed = "another" if options.get("is_another") else series_hash(MONITOR)
    left = None if last is None else Known(last, versions, hashed)
    times = {"as_of": options.get("as_of"), "since": options.get("since"), "clock": NOW}
    found = looked_at(cast(Lakehouse, lake), MONITOR, left, versions, **times)
    assert found == expected
    assert found.is_anew == (expected.made_from == START)


def test_an_as_of_that_is_yet_to_come_is_refused() -> None:
    conf = confs.load(SHIPPED / "monitors/recommender.yaml", "local")
    with pytest.raises(ConfError, match="no later time than now"):
        scanned(Lakehouse.__new__(Lakehouse), conf, NOW + MINUTE, {}, {}, now=lambda: NOW)


def test_a_rollback_is_seen_by_the_other_monitors_of_the_model(registry: Registry) -> None:
    tables, other = Tables(), replace(MONITOR, monitor_id="other")
    for version in ("1", "2"):
        registry.named = version
        keeper(tables).decisions([], Seen(NOW), NOW - DAY)
    keeper(tables).decisions([incident()], Seen(NOW), NOW)
    assert registry.moves == [("2", "1")]
    keeper(tables).decisions([], Seen(NOW), NOW + DAY)
    registry.named = "2"  # a person put it back
    said = keeper(tables, other).decisions([incident("b")], Seen(NOW + 2 * DAY), NOW + 2 * DAY)
    assert [(each.action, each.state) for each in said] == [("observe", "observed"), ("rollback", "held")]
    assert registry.moves == [("2", "1")]


def test_what_a_run_that_died_left_due_is_done_only_if_it_is_judged_again(registry: Registry) -> None:
    for live, monitor, state in (
        ([incident()], MONITOR, "done"),
        ([], MONITOR, "held"),
        ([incident()], replace(MONITOR, rules=(replace(RULE, dry_run=True),)), "dry_run"),
        ([incident()], replace(MONITOR, rules=(replace(RULE, metrics=("latency",)),)), "held"),
        ([incident()], replace(MONITOR, rules=()), "held"),
    ):
        tables, registry.moves, registry.named = Tables(), [], "2"
        left = [*past("1", "2"), *decide(RULE, [incident()], past("1", "2"), NAMED, NOW - MINUTE)]
        tables.append([each._asdict() | {"monitor_id": "m"} for each in left], "decisions")
        said = keeper(tables, monitor).decisions(live, Seen(NOW), NOW)
        assert said[-1].state == state
        assert registry.moves == ([("2", "1")] if state == "done" else [])


def test_a_version_that_a_person_tags_may_serve_again_at_the_next_scan(registry: Registry) -> None:
    tables, monitor = Tables(), replace(MONITOR, rules=(STOP, replace(STOP, name="second", alias="challenger")))
    done = keeper(tables, monitor).decisions([incident()], BESIDE, NOW)
    assert rules.stopped(done, "m") == {"2"}
    registry.kept = {"2": "mended"}
    for at in (1, 2):
        done = keeper(tables, monitor).decisions([incident()], BESIDE, NOW + at * MINUTE)
        assert rules.stopped(done, "m") == frozenset()
    assert [each.reason for each in done if each.alias == ""] == ["a person put 2 back: mended"]


def test_an_old_log_moves_no_alias_of_today(registry: Registry) -> None:
    tables, registry.named = Tables(), "2"
    tables.append([each._asdict() | {"monitor_id": "m"} for each in past("1", "2")], "decisions")
    for _ in range(2):
        said = keeper(tables).decisions([incident()], Seen(NOW - 2 * DAY), NOW)
    assert [(each.state, "24 h ago" in each.reason) for each in said if each.action == "rollback"] == [
        ("refused", True)
    ]
    assert registry.moves == []


def test_up_to_when_was_judged_is_committed_with_a_row() -> None:
    span = Span(((NOW, NOW + MINUTE),))
    row = CellRow(SeriesKey("m", EVERY_VERSION, "", "errors", "", ""), NOW, 5, 0.1, 0.01)
    full, empty, idle = Made(["errors"], span, [row]), Made(["score"], span, []), Made(["late"], Span(()), [])
    assert committed([full, empty, idle], "m", NOW) == [empty, full]
    for made in ([empty, idle], [], [idle]):
        *_, marked = committed(made, "m", NOW)
        assert [(each.key.metric, each.bucket_start) for each in marked.rows] == [(JUDGED, NOW)]
        assert marked.metrics == [JUDGED]


def test_a_process_that_is_killed_while_it_tells_repeats_one_notice_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    tables, told = Tables(), list[str]()

    def deliver(notice: Notice, target: Target) -> None:
        told.append(notice.notice_id)
        if len(told) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(notify, "deliver", deliver)
    monitor = replace(MONITOR, notify={"all": Target("file", "x")})
    opened = [incident(name) for name in "abcd"]
    with pytest.raises(KeyboardInterrupt):
        keeper(tables, monitor).tell(opened, [], lambda: NOW)
    assert keeper(tables, monitor).tell(opened, [], lambda: NOW) == 0
    assert len(told) == len(set(told)) + 1 == 5


def test_a_new_target_is_not_told_all_that_was_ever_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(notify, "deliver", lambda notice, target: told.append(notice.payload))
    rule = replace(RULE, page=("new",))
    monitor = replace(MONITOR, rules=(rule,), notify={"new": Target("file", "x")})
    (due,) = decide(rule, [incident()], past("1", "2"), NAMED, NOW)
    decisions = [carried_out(due, now=NOW - ago) for ago in (100 * DAY, DAY)]
    keeper(Tables(), monitor).tell([], [each._replace(revision=n) for n, each in enumerate(decisions)], lambda: NOW)
    assert len(told) == 1


def test_a_registry_that_is_down_is_asked_again_at_the_next_scan(registry: Registry) -> None:
    tables, registry.named = Tables(), "2"
    tables.append([each._asdict() | {"monitor_id": "m"} for each in past("1", "2")], "decisions")
    registry.is_down = True
    said = keeper(tables).decisions([incident()], Seen(NOW), NOW)
    assert {each.action for each in said} == {"observe"}
    registry.is_down = False
    assert keeper(tables).decisions([incident()], Seen(NOW), NOW)[-1].state == "done"


def test_what_the_registry_said_is_seen_as_it_is_after_a_rollback(registry: Registry) -> None:
    tables, registry.named = Tables(), "2"
    tables.append([each._asdict() | {"monitor_id": "theirs"} for each in past("1", "2")], "decisions")
    watching = keeper(tables)
    registry.is_down = True
    watching.decisions([incident()], Seen(NOW), NOW)
    assert (watching.registries, len(watching.others)) == ({}, 2)
    registry.is_down = False
    watching.decisions([incident()], Seen(NOW), NOW)
    assert registry.moves == [("2", "1")]
    assert watching.registries["champion"].alias_version == "1"


def test_what_a_scan_can_be_without_does_not_end_it(caplog: pytest.LogCaptureFixture) -> None:
    def down() -> None:
        raise ConnectionError("tracking is down")

    going_on("tracking", down)
    assert "ConnectionError: tracking is down" in caplog.text


@pytest.mark.parametrize(("n_judged", "verdict"), [(0, Verdict.INCONCLUSIVE), (5, Verdict.PASS)])
def test_a_monitor_that_was_stopped_passes_only_if_something_was_judged(n_judged: int, verdict: Verdict) -> None:
    tables = Tables()
    tables.told = Known(NOW, {}, "", n_judged)._asdict()
    assert standing(cast(Lakehouse, tables), MONITOR)[0] == verdict
    tables.append([incident()._asdict() | {"monitor_id": "m"}], "incidents")
    assert standing(cast(Lakehouse, tables), MONITOR)[0] == Verdict.BREACH


class Log:
    """A frame whose analyser knows one column."""

    def selectExpr(self, expression: str) -> "Log":  # noqa: N802 - the name that Spark gives it
        if "status" not in expression:
            raise AnalysisException(f"cannot resolve {expression}\nand more")
        return self

    schema = None


def test_an_expression_that_spark_does_not_take_is_a_problem_of_the_conf() -> None:
    metrics = {"errors": SeriesMetric("share", value="status = 'x'"), "score": SeriesMetric("mean", value="scor")}
    (told,) = problems(cast(DataFrame, Log()), replace(MONITOR, series=SeriesSpec(metrics)))
    assert told.startswith("series.metrics.score.value is 'scor', expected an expression on a record: ")
    assert told.endswith("cannot resolve (scor) AS value")


def test_ingest_without_continuous_is_refused() -> None:
    conf = confs.load(SHIPPED / "monitors/recommender.yaml", "local")
    with pytest.raises(ConfError, match="--ingest: expected with --continuous"):
        monitor_metrics.run(cast(SparkSession, None), conf, NOW, ingest=True)


def test_drift_that_is_found_late_is_taken_once() -> None:
    tables = Tables()
    late = finding(-48, metric="drift psi of age", score=0.0)
    for _ in range(2):  # the first scan dies before it says up to when it judged
        told, _ = keeper(tables).findings([], [late], NOW, NOW + 3 * MINUTE)
        assert told == [late._replace(judged_at=NOW + MINUTE)]
    told, known = keeper(tables).findings([], [late], NOW + 3 * MINUTE, NOW + 4 * MINUTE)
    assert (told, known) == ([], [late._replace(judged_at=NOW + MINUTE)])
    assert len(tables.rows_of["monitor_findings"]) == 1


def test_a_failed_sample_ratio_is_told_once_and_moves_no_alias(registry: Registry) -> None:
    tables, registry.named = Tables(), "2"
    tables.append([each._asdict() | {"monitor_id": "m"} for each in past("1", "2")], "decisions")
    monitor = replace(MONITOR, rules=(replace(RULE, evidence_hours=1e6),))
    for at in range(3):  # analyze_experiment has it in its table for days, beside what detectors find
        since = NOW + at * MINUTE
        _, findings = keeper(tables, monitor).findings([], [mismatch()], since, since + MINUTE)
        revisions, live = keeper(tables, monitor).incidents(findings, always, since + MINUTE)
        decisions = keeper(tables, monitor).decisions(live, Seen(since + MINUTE), NOW + DAY)
    assert [(each.metric, each.severity) for each in live] == [("srm ranker", "critical")]
    assert [each.state for each in revisions] == ["open"]
    assert len(tables.rows_of["monitor_findings"]) == 1
    assert {each.action for each in decisions} == {"observe"}
    assert registry.moves == []


def test_findings_ahead_of_the_clock_go() -> None:
    tables = Tables()
    ahead = finding(0)._replace(judged_at=NOW + 300 * DAY)
    tables.append([ahead._asdict() | {"monitor_id": "m"}], "monitor_findings")
    keeper(tables).findings([], [], NOW, NOW + MINUTE)
    assert tables.rows_of["monitor_findings"] == []


def test_incidents_are_told_before_the_registry_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(notify, "deliver", lambda notice, target: done.append("told"))
    monkeypatch.setattr(
        models, "named", lambda name, alias: done.append("asked") or models.Named(None, frozenset(), None)
    )
    watching = keeper(Tables(), replace(MONITOR, notify={"all": Target("file", "x")}))
    decisions, waiting = decided_and_told(watching, [incident()], [incident()], Seen(NOW), lambda: NOW)
    assert (done, waiting) == (["told", "asked"], 0)
    assert [each.state for each in decisions] == ["refused"]
