"""What other jobs found becomes findings: sample ratios in an incident of their own, which no rule takes unasked."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import isnan
from typing import Any

import numpy as np
import pytest

from mltrust.monitor.finding import Finding
from mltrust.monitor.incidents import IncidentPolicy, incidents
from mltrust.monitor.others import of_drift, of_ratio, origins
from mltrust.monitor.rules import Registry, decide
from mltrust.monitor.scan import candidate_of, scan, serving
from mltrust.monitor.series import Panel, SeriesKey
from mltrust.monitor.spec import Arms, Detection, Event, Monitor, RollbackRule, SeriesMetric, SeriesSpec
from mltrust.monitor.unmatched import unmatched
from mltrust.slices import Slice, name_slice
from tests.unit.test_monitor_incidents import EVERYTHING, HOUR, START, finding
from tests.unit.test_monitor_rules import BESIDE

AS_OF = START + timedelta(days=1)
TABLET = name_slice({"device": "tablet"})
OF_EXPERIMENT = Arms("experiment", "ranker", "control")
METRICS = {"requests": SeriesMetric("count"), "errors": SeriesMetric("share", value="x", worse="up")}


def check(of: Slice = EVERYTHING, *, method: str = "chi-square", pvalue: float | None = 1e-6) -> dict[str, Any]:
    """A failed row of experiment_checks, as it is read."""
    return {
        "experiment_id": "ranker",
        "method": method,
        "slice_key": of.slice_key,
        "slice_value": of.slice_value,
        "as_of": AS_OF,
        "n_units": 900,
        "qvalue": pvalue,
        "pvalue": pvalue,
        "threshold": 0.001,
        "reason": "the arms do not have the units that were allocated (control 500, treatment 400)",
    }


def mismatch(of: Slice = EVERYTHING, **given: Any) -> Finding:
    return of_ratio(check(of, **given), model_name="m", candidate=lambda at: "2")._replace(judged_at=START + 4 * HOUR)


def monitor(arms: Arms | None = OF_EXPERIMENT, **given: Any) -> Monitor:
    return Monitor("watch", "log", "m", series=SeriesSpec(METRICS, arms=arms), **given)


def test_sample_ratios_are_asked_of_the_experiment_whose_arms_are_compared() -> None:
    assert [each.table for each in origins(monitor(None))] == ["drift_findings"]
    assert [each.table for each in origins(monitor(Arms()))] == ["drift_findings"]
    drift, ratio = origins(monitor())
    assert drift.where == {"monitor_id": "watch"}
    assert (ratio.table, ratio.where) == ("experiment_checks", {"experiment_id": "ranker", "check": "srm"})
    assert ratio.finding(check()).metric == "srm ranker"


def test_a_breach_of_drift_is_a_warning_of_the_version_that_drifted() -> None:
    row = check() | {
        "model_name": "m",
        "model_version": "2",
        "arm": "",
        "measure": "psi",
        "column": "age",
        "reference": "fixed",
        "family": "features",
        "window_start": START,
        "n_current": 900,
        "value": None,
    }
    found = of_drift(row)
    assert (found.metric, found.severity, found.blamed_version) == ("drift psi of age", "warning", "2")
    assert isnan(found.value)


def test_a_mismatch_is_critical_and_says_where_and_how_many() -> None:
    found = mismatch(TABLET)
    assert (found.severity, found.metric, found.slice) == ("critical", "srm ranker", TABLET)
    assert "sample ratio mismatch in ranker, device:tablet" in found.reason
    assert "control 500, treatment 400" in found.reason


@pytest.mark.parametrize(("pvalue", "score"), [(0.0, 37), (1e-6, 4.7), (None, 0.0)])
def test_the_score_of_a_mismatch_is_a_number_whatever_its_p_value(pvalue: float | None, score: float) -> None:
    assert mismatch(pvalue=pvalue).score == pytest.approx(score, abs=0.1)


def test_a_mismatch_is_an_incident_of_its_own_named_by_the_slice_with_the_most_evidence() -> None:
    found = [
        finding(3, excess=80.0, noise=4.0),
        mismatch(pvalue=1e-5),
        mismatch(TABLET, pvalue=1e-20),
        mismatch(TABLET, pvalue=1e-9, method="sequential"),
    ]
    live = incidents(found, IncidentPolicy(), bucket=HOUR, upto=START + 4 * HOUR).live
    errors, ratio = sorted(live, key=lambda each: each.metric)
    assert (errors.metric, errors.severity) == ("errors", "warning")
    assert (ratio.metric, ratio.slice, ratio.severity, ratio.n_findings) == ("srm ranker", TABLET, "critical", 3)


def test_a_mismatch_that_is_not_found_again_for_three_days_has_lapsed() -> None:
    upto = START + timedelta(days=4)
    told = incidents([mismatch()], IncidentPolicy(), bucket=HOUR, upto=upto, judged=lambda series, at: False)
    assert [each.state for each in told.revisions] == ["open", "lapsed"]
    assert told.revisions[-1].reason.endswith("; it was not found again")


@pytest.mark.parametrize("metrics", [("*",), ("s*",), ("errors",)])
def test_a_rule_that_does_not_name_it_leaves_a_mismatch_alone(metrics: tuple[str, ...]) -> None:
    assert not RollbackRule("r", metrics=metrics).concerns("srm ranker", EVERYTHING, {})


def test_a_rule_that_names_it_stops_the_candidate() -> None:
    live = incidents([mismatch()], IncidentPolicy(), bucket=HOUR, upto=START + 4 * HOUR).live
    now = datetime(2026, 11, 3, tzinfo=UTC)
    rule = RollbackRule("ratio", metrics=("srm *",), action="stop", dry_run=False)
    (due,) = decide(rule, live, [], Registry("1", frozenset("12")), now, BESIDE)
    assert (due.state, due.action, due.from_version) == ("due", "stop", "2")
    assert decide(replace(rule, metrics=("*",)), live, [], Registry("1", frozenset("12")), now) == []


def test_a_rule_on_sample_ratios_needs_arms_of_an_experiment() -> None:
    rules = (RollbackRule("ratio", metrics=("srm *",), action="stop"),)
    assert list(unmatched(monitor(rules=rules), ())) == []
    (told,) = unmatched(monitor(Arms(), rules=rules), ())
    assert "rules.ratio.metrics: 'srm *' matches no metric" in told


@pytest.mark.parametrize("pattern", ["dri*", "d*", "s*"])
def test_a_rule_that_does_not_name_what_others_find_needs_a_metric_of_its_own(pattern: str) -> None:
    rule = RollbackRule("r", metrics=(pattern,), severity="warning")
    (told,) = unmatched(monitor(rules=(rule,)), (Detection("seasonal"),))
    assert told.startswith(f"rules.r.metrics: {pattern!r} matches no metric")
    # An event means whatever it matches.
    event = Event("e", START, START + HOUR, metrics=(pattern,), slices=("devise:*",))
    assert list(unmatched(monitor(events=(event,)), ())) == []


def test_a_rule_on_every_metric_is_held_to_the_declared_slices() -> None:
    rule = RollbackRule("r", slices=("devise:*",), severity="warning")
    (told,) = unmatched(monitor(rules=(rule,)), (Detection("seasonal"),))
    assert told.startswith("rules.r.slices: 'devise:*' matches no declared slice")


@pytest.mark.parametrize("pattern", ["drift *", "drift*", "drift psi of age"])
def test_a_critical_rule_on_drift_is_refused_as_drift_is_a_warning(pattern: str) -> None:
    mild = RollbackRule("r", metrics=(pattern,), severity="warning")
    assert list(unmatched(monitor(rules=(mild,)), ())) == []
    (told,) = unmatched(monitor(rules=(replace(mild, severity="critical"),)), ())
    assert told.startswith(f"rules.r: {pattern!r} with severity critical never acts, as drift is a warning")


def panel_of_arms(treated: str = "2") -> Panel:
    """Version 1 serves the control and version `treated` the treatment, a twentieth of the traffic, which fails."""
    sizes = {("control", "1"): 1900.0, ("treatment", treated): 100.0, ("", "1"): 1900.0, ("", treated): 100.0}
    keys = [SeriesKey("m", version, arm, "requests", "", "") for arm, version in sizes]
    keys += [SeriesKey("m", "(all)", arm, "errors", "", "") for arm in ("control", "treatment")]
    counts = [*sizes.values(), sizes["control", "1"], sizes["treatment", treated]]
    n = np.repeat(np.array(counts)[:, None], 5, axis=1)
    value = n.copy()
    value[-2], value[-1] = 0.01, 0.5
    kinds = ("count",) * len(sizes) + ("share",) * 2
    return Panel(tuple(keys), kinds, START, HOUR, n, value, np.sqrt(value * (1 - np.minimum(value, 1)) / n))


def test_the_version_that_alone_served_an_arm_is_to_blame_for_it() -> None:
    detectors = (Detection("concurrent", metrics=("errors",), severity="critical"),)
    found = scan(panel_of_arms(), monitor(detectors=detectors), START + HOUR).findings
    assert {(each.arm, each.blamed_version) for each in found} == {("treatment", "2")}


def test_the_candidate_is_the_version_that_the_control_does_not_have() -> None:
    panel, end = panel_of_arms(), START + 5 * HOUR
    assert [serving(panel, "m", 4, arm) for arm in ("control", "treatment")] == ["1", "2"]
    assert candidate_of(panel, OF_EXPERIMENT, end) == "2"
    assert candidate_of(panel_of_arms("1"), OF_EXPERIMENT, end) == ""
    assert candidate_of(panel, Arms("experiment", "ranker"), end) == ""
    assert candidate_of(panel, None, end) == ""


def test_to_blame_for_a_mismatch_is_who_served_then_and_not_who_serves_now() -> None:
    panel = panel_of_arms()
    keys = [key._replace(model_version="3") for key in panel.keys if key.model_version == "2"]
    added = panel.n[[1, 3]].copy()
    added[:, :3] = 0  # version 3 came in the fourth bucket, and 2 went
    panel.n[[1, 3], 3:] = 0
    n = np.vstack([panel.n, added])
    both = Panel((*panel.keys, *keys), (*panel.kinds, "count", "count"), START, HOUR, n, n, n)
    said = [candidate_of(both, OF_EXPERIMENT, START + at * HOUR) for at in (0, 1, 3, 4, 5, 6)]
    assert said == ["", "2", "2", "3", "3", ""]  # before and after the panel nobody knows


def test_the_candidate_is_asked_for_only_where_a_sample_ratio_failed() -> None:
    asked: list[datetime] = []
    _, ratio = origins(monitor(), lambda at: asked.append(at) or "2")  # type: ignore[func-returns-value]
    assert asked == []
    assert ratio.finding(check()).blamed_version == "2"
    assert asked == [AS_OF]


def test_every_arm_is_asked_once_for_who_served_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("mltrust.monitor.scan.serving", lambda panel, name, at, arm: asked.append(arm) or arm)
    panel = panel_of_arms()
    many = panel.rows([*range(len(panel.keys))] * 50)
    candidate_of(many, OF_EXPERIMENT, START + HOUR)
    assert sorted(asked) == ["control", "treatment"]
