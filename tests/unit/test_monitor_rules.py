"""Rollback rules: they act once, never to and fro, never on what is blamed itself, and never against a person."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import nan

import pytest

from mltrust.monitor.finding import Severity
from mltrust.monitor.incidents import Incident
from mltrust.monitor.rules import (
    Decision,
    Registry,
    Seen,
    carried_out,
    decide,
    newest,
    observed,
    of_another,
    previous_version,
    put_back,
    stopped,
    to_carry_out,
)
from mltrust.monitor.spec import RollbackRule

NOW = datetime(2026, 11, 2, 12, tzinfo=UTC)
RULE = RollbackRule("errors", metrics=("error*",), dry_run=False)
STOP = replace(RULE, action="stop")
REGISTRY = Registry("2", frozenset(("1", "2", "3")))
#: Versions 1 and 2 serve at once.
BESIDE = Seen(beside=lambda version: frozenset("12") - {version})


def incident(
    name: str = "a",
    *,
    version: str = "2",
    metric: str = "error_rate",
    severity: Severity = "critical",
    n_buckets: int = 1,
) -> Incident:
    return Incident(
        name, 0, "m", version, version, "", metric, "", "", "concurrent", "open", severity, NOW, NOW, None, NOW,
        n_buckets, 1, 0.2, 0.01, nan, nan, 9.0, "[]", True, "errors",
    )  # fmt: skip


def past(*versions: str | None, at: datetime = NOW - timedelta(days=9)) -> list[Decision]:
    """The rows of scans that saw the alias move through these versions."""
    seen: list[Decision] = []
    for version in versions:
        seen += observed(seen, "m", "champion", replace_alias(version), at)
    return seen


def replace_alias(version: str | None, *, hold: str | None = None, gone: str = "") -> Registry:
    return Registry(version, REGISTRY.versions - {gone}, hold)


def test_the_alias_goes_back_to_the_version_that_it_named_before() -> None:
    (due,) = decide(RULE, [incident()], past("1", "2"), REGISTRY, NOW)
    assert (due.state, due.from_version, due.to_version) == ("due", "2", "1")
    assert to_carry_out([due]) == [due]


def test_a_second_look_does_nothing() -> None:
    seen = past("1", "2")
    seen += decide(RULE, [incident()], seen, REGISTRY, NOW)
    assert decide(RULE, [incident()], seen, REGISTRY, NOW) == []
    seen.append(carried_out(seen[-1], now=NOW))
    back = replace_alias("1")
    seen += observed(seen, "m", "champion", back, NOW)
    assert decide(RULE, [incident()], seen, back, NOW + timedelta(days=2)) == []


def test_a_run_that_died_after_the_deed_is_found_to_have_done_it() -> None:
    seen = past("1", "2")
    seen += decide(RULE, [incident()], seen, REGISTRY, NOW)
    (done,) = decide(RULE, [incident()], seen, replace_alias("1"), NOW)
    assert (done.state, done.revision) == ("done", 1)


def test_a_dry_run_says_what_it_would_do_and_leaves_it() -> None:
    (said,) = decide(replace(RULE, dry_run=True), [incident()], past("1", "2"), REGISTRY, NOW)
    assert said.state == "dry_run"
    assert said.reason.startswith("would move champion from 2 to 1")
    assert to_carry_out([said]) == []


def test_a_dry_run_does_not_keep_the_rule_from_acting_later() -> None:
    seen = past("1", "2")
    seen += decide(replace(RULE, dry_run=True), [incident()], seen, REGISTRY, NOW)
    assert decide(replace(RULE, dry_run=True), [incident()], seen, REGISTRY, NOW) == []
    (due,) = decide(RULE, [incident()], seen, REGISTRY, NOW)
    assert (due.state, due.revision) == ("due", 1)


@pytest.mark.parametrize(
    "not_enough", [incident(severity="warning"), incident(n_buckets=2), incident(metric="latency")], ids=str
)
def test_a_rule_waits_for_its_metric_severity_and_persistence(not_enough: Incident) -> None:
    patient = replace(RULE, persistence=3)
    assert decide(patient, [not_enough], past("1", "2"), REGISTRY, NOW) == []
    assert decide(patient, [incident(n_buckets=3)], past("1", "2"), REGISTRY, NOW)


@pytest.mark.parametrize(
    ("seen", "registry", "others", "why"),
    [
        (past("2"), REGISTRY, [], "no version is recorded"),
        (past("1", "2"), replace_alias("2", gone="1"), [], "not in the registry"),
        (past("1", "2"), REGISTRY, [incident("b", version="1")], "is to blame for incident b"),
        (past("1", "3"), replace_alias("3"), [], "names 3, not 2"),
    ],
)
def test_it_refuses_where_the_target_will_not_do(
    seen: list[Decision], registry: Registry, others: list[Incident], why: str
) -> None:
    said = decide(RULE, [incident(), *others], seen, registry, NOW)
    assert said[0].state == "refused"
    assert why in said[0].reason
    # Said once.
    assert decide(RULE, [incident(), *others], [*seen, *said], registry, NOW + timedelta(hours=1)) == []


def test_what_several_versions_did_blames_none() -> None:
    (said,) = decide(RULE, [incident(version="")], past("1", "2"), REGISTRY, NOW)
    assert said.state == "refused"


def rolled_back() -> list[Decision]:
    """From 2 to 1, done."""
    seen = past("1", "2")
    seen += decide(RULE, [incident()], seen, REGISTRY, NOW)
    seen.append(carried_out(seen[-1], now=NOW))
    return seen + observed(seen, "m", "champion", replace_alias("1"), NOW)


def test_it_cools_down_before_it_acts_again() -> None:
    seen = rolled_back()
    seen += observed(seen, "m", "champion", replace_alias("3"), NOW + timedelta(hours=1))
    (said,) = decide(RULE, [incident("b", version="3")], seen, replace_alias("3"), NOW + timedelta(hours=2))
    assert (said.state, "cools down" in said.reason) == ("refused", True)
    (later,) = decide(
        RULE, [incident("b", version="3")], [*seen, said], replace_alias("3"), NOW + timedelta(hours=25)
    )
    assert (later.state, later.revision, later.to_version) == ("due", 1, "1")


def test_it_never_goes_forward_to_what_it_took_away() -> None:
    # 1 -> 2 -> (rollback) 1: nothing was before 1.
    seen = rolled_back()
    assert previous_version(seen, "m", "champion", "1") is None
    (said,) = decide(RULE, [incident("b", version="1")], seen, replace_alias("1"), NOW + timedelta(days=40))
    assert (said.state, "no version is recorded" in said.reason) == ("refused", True)


@pytest.mark.parametrize(
    ("named", "before"),
    [
        (("0", "1", "2", "1"), "0"),
        (("0", "1", "2", "1", "3"), "1"),
        (("0", "1", "2", "0", "2"), "0"),
        (("1", None, "2"), None),
    ],
)
def test_a_way_back_is_no_way_forward(named: tuple[str | None, ...], before: str | None) -> None:
    assert previous_version(past(*named), "m", "champion", str(named[-1])) == before


def test_what_failed_and_yet_happened_is_done() -> None:
    seen = past("1", "2")
    seen += decide(RULE, [incident()], seen, REGISTRY, NOW)
    seen.append(carried_out(seen[-1], now=NOW, error="timed out"))
    (done,) = decide(RULE, [incident()], seen, replace_alias("1"), NOW + timedelta(seconds=5))
    assert (done.state, done.reason) == ("done", seen[-2].reason)


def test_two_monitors_of_a_model_see_what_the_other_did() -> None:
    theirs = [of_another(each, "theirs") for each in rolled_back()]
    back = REGISTRY  # a person put 2 back
    moved = observed(theirs, "m", "champion", back, NOW + timedelta(days=2))
    (said,) = decide(RULE, [incident()], [*theirs, *moved], back, NOW + timedelta(days=3))
    assert (said.state, said.revision) == ("held", 0)  # of the same incident, and a decision of one's own


def test_a_person_who_puts_the_version_back_is_respected() -> None:
    seen = rolled_back()
    seen += observed(seen, "m", "champion", REGISTRY, NOW + timedelta(days=2))
    (said,) = decide(RULE, [incident("b")], seen, REGISTRY, NOW + timedelta(days=3))
    assert said.state == "held"


def test_a_person_who_holds_the_model_is_respected_until_the_hold_is_lifted() -> None:
    held = replace_alias("2", hold="Ada looks into it")
    (said,) = decide(RULE, [incident()], past("1", "2"), held, NOW)
    assert (said.state, "Ada looks into it" in said.reason) == ("held", True)
    (due,) = decide(RULE, [incident()], [*past("1", "2"), said], REGISTRY, NOW)
    assert (due.state, due.revision) == ("due", 1)


def test_what_failed_is_tried_again_after_a_pause() -> None:
    seen = past("1", "2")
    seen += decide(RULE, [incident()], seen, REGISTRY, NOW)
    seen.append(carried_out(seen[-1], now=NOW, error="registry is down"))
    assert decide(RULE, [incident()], seen, REGISTRY, NOW + timedelta(seconds=30)) == []
    (again,) = decide(RULE, [incident()], seen, REGISTRY, NOW + timedelta(seconds=61))
    assert again.state == "due"


def test_two_incidents_of_one_version_move_the_alias_once() -> None:
    said = decide(RULE, [incident("a"), incident("b")], past("1", "2"), REGISTRY, NOW)
    seen = [*past("1", "2"), *said]
    assert len(to_carry_out(seen)) == 1


def test_stopping_a_candidate_needs_no_alias() -> None:
    (due,) = decide(STOP, [incident(version="3")], [], Registry("2", REGISTRY.versions), NOW, BESIDE)
    assert (due.state, due.from_version) == ("due", "3")


def test_the_only_version_that_serves_is_not_stopped() -> None:
    (said,) = decide(STOP, [incident(version="3")], [], REGISTRY, NOW, Seen(beside=lambda version: frozenset()))
    assert (said.state, "beside 3" in said.reason) == ("refused", True)
    assert decide(STOP, [incident(version="3")], [], REGISTRY, NOW)[0].state == "refused"  # nothing is known
    # Once another serves it is stopped.
    (due,) = decide(STOP, [incident(version="3")], [said], REGISTRY, NOW, BESIDE)
    assert (due.state, due.revision) == ("due", 1)


def test_a_version_beside_which_only_stopped_ones_serve_is_not_stopped() -> None:
    seen = decide(replace(STOP, name="another", alias="other"), [incident()], [], REGISTRY, NOW, BESIDE)
    for after in (seen, [*seen, carried_out(seen[0], now=NOW)]):  # due in the same scan, and done
        assert stopped(after, "m") == {"2"}
        (said,) = decide(STOP, [incident("b", version="1")], after, REGISTRY, NOW, BESIDE)
        assert said.state == "refused"
    # A person put it back.
    back = past("1", "2", at=NOW + timedelta(hours=1))
    assert stopped([*after, *back], "m") == frozenset()
    assert decide(STOP, [incident("b", version="1")], [*after, *back], REGISTRY, NOW, BESIDE)[0].state == "due"


def test_a_stopped_version_is_put_back_by_a_person_who_tags_it() -> None:
    kept = Registry("2", REGISTRY.versions, kept={"2": "Ada mended it", "3": "never stopped"})
    assert put_back([], "m", kept, NOW) == []
    seen = past("1", "2")
    seen += decide(STOP, [incident()], seen, REGISTRY, NOW, BESIDE)
    seen.append(carried_out(seen[-1], now=NOW))
    assert put_back(seen, "m", REGISTRY, NOW + timedelta(hours=1)) == []
    (back,) = put_back(seen, "m", kept, NOW + timedelta(hours=1))
    assert (back.to_version, back.revision, back.reason) == ("2", 1, "a person put 2 back: Ada mended it")
    seen.append(back)
    assert stopped(seen, "m") == frozenset()
    assert put_back(seen, "m", kept, NOW + timedelta(hours=2)) == []
    assert previous_version(seen, "m", "champion", "2") == "1"  # no alias moved
    # What is found anew does nothing while the tag is there, and again once it is gone.
    later = NOW + timedelta(days=2)
    (said,) = decide(STOP, [incident("b")], seen, kept, later, BESIDE)
    assert (said.state, "Ada mended it" in said.reason) == ("held", True)
    seen += decide(STOP, [incident("b")], [*seen, said], REGISTRY, later, BESIDE)
    assert seen[-1].state == "due"
    (again,) = put_back(seen, "m", kept, later + timedelta(hours=1))
    assert (again.decision_id, again.revision) == (back.decision_id, 2)


def test_two_versions_that_serve_are_not_both_stopped_in_one_scan() -> None:
    live = [incident("a", version="1"), incident("b", version="2")]
    impatient = replace(STOP, cool_down_hours=0)
    assert [each.state for each in decide(impatient, live, [], REGISTRY, NOW, BESIDE)] == ["due", "refused"]


def test_the_alias_is_written_down_when_it_moved_and_only_then() -> None:
    seen = past("1", "2", "2", "1")
    assert [(each.from_version, each.to_version) for each in seen] == [(None, "1"), ("1", "2"), ("2", "1")]
    assert [each.revision for each in newest(seen)] == [2]
    assert past(None) == []
