"""Guardrails: how every rule stands now and why, and which versions serve."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from mltrust.monitor.guardrails import Guardrail, guardrails, served_beside, serving_versions
from mltrust.monitor.incidents import Incident
from mltrust.monitor.rules import Decision, Registry, carried_out, decide, of_another
from mltrust.monitor.series import Panel, SeriesKey
from mltrust.monitor.spec import Monitor, RollbackRule, SeriesMetric, SeriesSpec
from mltrust.report.standing import guardrail_section, version_section
from tests.unit.test_monitor_incidents import HOUR, START
from tests.unit.test_monitor_rules import NOW, REGISTRY, RULE, incident, past, replace_alias, rolled_back

DAY = timedelta(days=1)
METRICS = {
    "requests": SeriesMetric("count"),
    "score": SeriesMetric("mean", value="s"),
    "rejects": SeriesMetric("count", source="rejects"),
    "purchases": SeriesMetric("share", source="outcomes", outcome="purchase"),
}
MONITOR = Monitor("m", "log", "m", series=SeriesSpec(METRICS))


def stands(
    rule: RollbackRule = RULE,
    live: tuple[Incident, ...] = (),
    decisions: list[Decision] | None = None,
    *,
    others: list[Decision] | None = None,
    registry: Registry | None = REGISTRY,
) -> Guardrail:
    registries = {} if registry is None else {rule.alias: registry}
    (found,) = guardrails(replace(MONITOR, rules=(rule,)), live, decisions or [], others or [], registries, NOW)
    return found


def test_without_an_incident_a_rule_is_quiet() -> None:
    assert stands()[1:] == ("quiet", "", None, None)


def test_a_rule_that_waits_for_a_graver_or_longer_incident_says_so() -> None:
    patient = replace(RULE, persistence=3)
    found = stands(patient, (incident(n_buckets=2),))
    assert (found.standing, found.reason) == (
        "not yet",
        "incident a has critical, 2 buckets with findings; needs critical, 3",
    )
    assert stands(patient, (incident(metric="latency", n_buckets=9),)).standing == "quiet"


@pytest.mark.parametrize(
    ("rule", "registry", "standing", "why"),
    [
        (replace(RULE, dry_run=True), REGISTRY, "would act", "would move champion from 2 to 1"),
        (RULE, REGISTRY, "due", "champion from 2 to 1"),
        (RULE, replace_alias("3"), "refused", "names 3, not 2"),
        (RULE, replace_alias("2", hold="Ada looks into it"), "held", "Ada looks into it"),
    ],
)
def test_a_rule_stands_as_it_decided(rule: RollbackRule, registry: Registry, standing: str, why: str) -> None:
    seen = past("1", "2")
    seen += decide(rule, [incident()], seen, registry, NOW)
    found = stands(rule, (incident(),), seen, registry=registry)
    assert found.standing == standing
    assert why in found.reason
    assert found.decided_at == NOW


def test_a_rule_that_acted_cools_down_and_is_quiet_once_its_incident_is_over() -> None:
    seen = rolled_back()
    until = NOW + timedelta(hours=RULE.cool_down_hours)
    found = stands(RULE, (incident(),), seen, registry=replace_alias("1"))
    assert (found.standing, found.cools_until) == ("acted", until)
    over = stands(RULE, (), seen, registry=replace_alias("1"))
    assert (over.standing, over.cools_until) == ("quiet", until)
    assert guardrails(replace(MONITOR, rules=(RULE,)), (), seen, [], {}, until)[0].cools_until is None


def test_what_another_monitor_did_cools_down_every_rule_of_the_alias() -> None:
    theirs = [of_another(each, "theirs") for each in rolled_back()]
    found = stands(RULE, (incident(),), [], others=theirs, registry=None)
    # Their decision on an incident of the same series is not one's own.
    assert (found.standing, found.cools_until) == ("waits", NOW + DAY)
    assert stands(replace(RULE, alias="other"), (), [], others=theirs).cools_until is None


def test_what_failed_is_no_deed() -> None:
    seen = past("1", "2")
    seen += decide(RULE, [incident()], seen, REGISTRY, NOW)
    seen.append(carried_out(seen[-1], now=NOW, error="registry is down"))
    found = stands(RULE, (incident(),), seen)
    assert (found.standing, found.cools_until) == ("failed", None)


def test_a_person_who_holds_the_model_is_seen_before_anything_happens() -> None:
    found = stands(registry=replace_alias("2", hold="release <freeze>"))
    assert (found.standing, found.reason) == ("held", "a person holds it: release <freeze>")
    assert "release &lt;freeze&gt;" in guardrail_section([found])


def traffic() -> Panel:
    """Version 1 serves 300 requests an hour, in the last one 150, version 2 then 50; scores are known of half."""
    of = {"1": [300.0] * 3 + [150.0], "2": [0.0] * 3 + [50.0]}
    keys, n = [], []
    for metric, known in (("requests", 1.0), ("score", 0.5), ("rejects", 9.0), ("purchases", 9.0)):
        for version, counts in {**of, "(all)": [9e9] * 4}.items():
            keys.append(SeriesKey("m", version, "", metric, "", ""))
            n.append([each * known for each in counts])
    keys.append(SeriesKey("m", "2", "", "requests", "device", "ios"))
    n.append([7e9] * 4)
    values = np.array(n)
    return Panel(tuple(keys), ("count",) * len(keys), START, HOUR, values, values, values)


def test_versions_serve_what_the_log_says_of_requests() -> None:
    first, second = serving_versions(traffic(), MONITOR, 2 * HOUR)
    assert first == ("1", 450, 0.9, 0.75)
    assert second == ("2", 50, 0.1, 0.25)
    assert serving_versions(traffic().before(START), MONITOR, DAY) == []
    # A window shorter than a bucket is one bucket.
    assert [each.n_requests for each in serving_versions(traffic(), MONITOR, HOUR / 4)] == [150, 50]


def test_who_served_beside_a_version_is_told_by_the_last_bucket_that_it_had() -> None:
    panel = traffic()
    assert served_beside(panel, MONITOR, "2") == {"1"}
    assert served_beside(panel, MONITOR, "1") == {"2"}
    assert served_beside(panel.before(START + 3 * HOUR), MONITOR, "1") == frozenset()  # 2 came later
    assert served_beside(panel, MONITOR, "9") == frozenset()
    switched = replace(panel, n=panel.n.copy())
    switched.n[[at for at, key in enumerate(panel.keys) if key.model_version == "1"], 3] = 0
    assert served_beside(switched, MONITOR, "2") == frozenset()
    assert served_beside(switched, MONITOR, "1") == frozenset()


def test_the_versions_say_what_the_aliases_name_and_what_was_decided_last() -> None:
    serving = serving_versions(traffic(), MONITOR, DAY)
    page = version_section(serving, {"champion": "1", "challenger": "7", "<old>": None}, rolled_back())
    assert page.count("rollback from 2 to 1: <b>done</b>") == 2  # of the version it left and of the one it took
    assert "<b>7</b> <span class='pill blue'>challenger</span>" in page
    assert "&lt;old&gt; names no version" in page
    assert "No version served" in version_section([], {}, [])


def test_a_rule_says_what_it_watches_and_whether_it_is_armed() -> None:
    armed = replace(RULE, slices=("device:*",), persistence=2)
    page = guardrail_section([stands(armed), stands(replace(RULE, name="try", dry_run=True, action="stop"))])
    assert "error* in device:*" in page
    assert "(critical, 2 buckets)" in page
    assert page.count("<b>armed</b>") == page.count("dry run") == 1
    assert "stops the version" in page
    assert "nothing is rolled back" in guardrail_section([])
