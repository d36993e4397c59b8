"""Notices: queued once, tried again with growing pauses, and never without the one that they are for."""

import json
from datetime import UTC, datetime, timedelta

from mltrust.monitor.incidents import Incident, IncidentPolicy, incidents
from mltrust.monitor.notices import attempted, newest, of_decisions, of_incidents, to_send, unknown_targets
from mltrust.monitor.rules import decide
from mltrust.monitor.spec import Monitor, RollbackRule, SeriesMetric, SeriesSpec, Target
from tests.unit.test_monitor_incidents import HOUR, START, finding
from tests.unit.test_monitor_rules import REGISTRY, incident, past

NOW = datetime(2026, 11, 2, 12, tzinfo=UTC)
MONITOR = Monitor(
    "m",
    "log",
    "m",
    series=SeriesSpec({"errors": SeriesMetric("share", value="x")}),
    rules=(RollbackRule("r", page=("pager",)),),
    notify={"all": Target("file", "all.jsonl"), "pager": Target("webhook", "http://pager", min_severity="critical")},
)


def told() -> list[Incident]:
    found = [finding(3), finding(4), finding(5, severity="critical")]
    return incidents(found, IncidentPolicy(), bucket=HOUR, upto=START + 20 * HOUR).revisions


def test_every_target_is_told_what_it_wants_to_know() -> None:
    queued = of_incidents(told(), MONITOR, NOW)
    kinds = [(each.target, json.loads(each.payload)["state"]) for each in queued]
    assert kinds == [
        ("all", "opened"),
        ("all", "open"),
        ("pager", "open"),
        ("all", "recovered"),
        ("pager", "recovered"),
    ]


def test_what_is_told_twice_is_one_notice() -> None:
    once, again = (of_incidents(told(), MONITOR, now) for now in (NOW, NOW + HOUR))
    assert len(newest([*once, *again])) == len(once) == len({each.notice_id for each in once})


def test_a_decision_is_told_to_those_whom_its_rule_pages() -> None:
    said = decide(MONITOR.rules[0], [incident()], past("1", "2"), REGISTRY, NOW)
    (queued,) = of_decisions(said, MONITOR, NOW)
    assert queued.target == "pager"
    assert json.loads(queued.payload)["state"] == "dry_run"


def test_what_failed_waits_longer_each_time_and_is_sent_once() -> None:
    (notice, *_) = of_incidents(told(), MONITOR, NOW)
    log, now, pauses = [notice], NOW, []
    for _ in range(9):
        (due,) = to_send(log, now)
        log.append(attempted(due, now=now, error="connection refused"))
        assert to_send(log, now) == []
        pauses.append(log[-1].next_attempt_at - now)
        now = log[-1].next_attempt_at
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (timedelta(seconds=5), timedelta(minutes=10))
    log.append(attempted(to_send(log, now)[0], now=now, error=None))
    assert to_send(log, now + timedelta(days=9)) == []
    assert [each.revision for each in log] == list(range(len(log)))


def test_what_never_arrives_is_given_up_and_said_so() -> None:
    (notice, *_) = of_incidents(told(), MONITOR, NOW)
    assert attempted(notice, now=NOW + timedelta(days=3), error="gone").state == "given_up"


def test_a_target_that_the_conf_lost_is_named() -> None:
    assert unknown_targets(of_incidents(told(), MONITOR, NOW), {"all": MONITOR.notify["all"]}) == ["pager"]
