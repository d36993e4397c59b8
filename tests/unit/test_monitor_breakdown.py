"""Breakdowns: parts add up to the whole, are 0 where they did not occur, and name what an incident is about."""

import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest

from mltrust.monitor.breakdown import completed
from mltrust.monitor.cells import MAX_VALUES, Cells, Row, Values, breakdown, capped, rolled_up
from mltrust.monitor.guardrails import guardrails
from mltrust.monitor.incidents import IncidentPolicy, incidents
from mltrust.monitor.rules import Seen, decide, unconfirmed
from mltrust.monitor.scan import judged_in, scan
from mltrust.monitor.series import Panel, Point, SeriesKey
from mltrust.monitor.spec import Arms, Detection, Event, Monitor, RollbackRule, SeriesMetric, SeriesSpec
from mltrust.monitor.unmatched import unmatched
from mltrust.slices import OTHER, Slice, Slicing, name_slice, parted, within
from mltrust.spark.series import Rejects, Span, counted
from tests.unit.test_monitor_cells import BUCKET
from tests.unit.test_monitor_incidents import EVERYTHING
from tests.unit.test_monitor_rules import NOW, REGISTRY, incident, past

HOUR = timedelta(hours=1)
ERRORS = SeriesMetric("share", value="status = 'error'", worse="up", by="error_type")
METRICS = {"requests": SeriesMetric("count", by="error_type"), "errors": ERRORS}
SLICES = Slicing({"device": "features.device"})


def monitor(metrics: dict[str, SeriesMetric] | None = None, *, arms: Arms | None = None, **given: Any) -> Monitor:
    return Monitor("w", "log", "m", series=SeriesSpec(metrics or METRICS, slices=SLICES, arms=arms), **given)


def drawn(n: int = 3000) -> list[tuple[str, str, str, str | None]]:
    """Version, arm, device and error type (None: no error) of every request."""
    rng = np.random.default_rng(5)
    choices = (["1", "2"], ["c", "t"], ["ios", "web"], ["timeout", "oom", None, None])
    return list(zip(*(rng.choice(np.array(each, dtype=object), n).tolist() for each in choices), strict=True))


def celled(requests: list[tuple[str, str, str, str | None]]) -> Cells:
    labels = sorted(set(requests), key=str)
    n = np.array([float(requests.count(label)) for label in labels])
    columns = list(zip(*labels, strict=True))
    failed = np.array([float(label[3] is not None) for label in labels])
    return Cells(
        {
            "bucket": [BUCKET] * len(labels),
            "model_version": columns[0],
            "arm": columns[1],
            "device": columns[2],
            breakdown("errors"): columns[3],
            breakdown("requests"): ["(null)" if each is None else each for each in columns[3]],
        },
        {"requests": Values(n, np.ones_like(n), 0 * n), "errors": Values(n, failed, 0 * n)},
    )


def rows_of(arms: Arms | None = None) -> dict[SeriesKey, Row]:
    return {row.key: row for row in rolled_up(celled(drawn()), monitor(arms=arms), list(METRICS))}


@pytest.mark.parametrize("arms", [None, Arms("experiment", "e", "c")])
def test_parts_add_up_to_the_whole_in_every_version_arm_and_slice(arms: Arms | None) -> None:
    found, sums = rows_of(arms), dict[SeriesKey, float]()
    for key, row in found.items():
        if (part := parted(key.slice, "error_type")) is not None:
            whole = key._replace(slice_key=part[0].slice_key, slice_value=part[0].slice_value)
            sums[whole] = sums.get(whole, 0.0) + row.value
            if key.metric == "errors":
                assert row.n_requests == found[whole].n_requests
    assert {key.slice_key for key in sums} == {"", "device"}
    assert {key.arm for key in sums} == ({"", "c", "t"} if arms else {""})
    for key, total in sums.items():
        assert total == pytest.approx(found[key].value, rel=1e-12)


def test_a_part_is_what_the_requests_say() -> None:
    requests = drawn()
    mine = [each for each in requests if each[2] == "web"]
    row = rows_of()[SeriesKey("m", "(all)", "", "errors", *name_slice({"device": "web", "error_type": "oom"}))]
    share = sum(each[3] == "oom" for each in mine) / len(mine)
    assert (row.n_requests, row.value) == (len(mine), pytest.approx(share, rel=1e-12))
    assert row.std_error == pytest.approx(np.sqrt(share * (1 - share) / len(mine)), rel=1e-12)


def test_values_beyond_the_commonest_of_a_bucket_are_together() -> None:
    values = [f"e{at:02}" for at in range(MAX_VALUES + 3)] + [None]
    sizes = np.array([*([5.0] * MAX_VALUES), 5.0, 9.0, 1.0, 99.0])
    found = capped(["b"] * len(values), values, sizes)
    # Of those with 5 the last two by name go; what occurred without the condition has no value.
    assert [value for value, kept in zip(values, found, strict=True) if kept == OTHER] == ["e19", "e20", "e22"]
    assert found[-1] is None
    assert capped(["b"] * len(values), values[::-1], sizes[::-1]) == found[::-1]
    assert capped(["another"], ["e22"], np.array([1.0])) == ["e22"]


def test_a_slice_is_parted_and_put_together_again() -> None:
    whole = name_slice({"a": "1 x 2", "z": "3"})
    part = name_slice({"a": "1 x 2", "m": "v", "z": "3"})
    assert parted(part, "m") == (whole, "v")
    assert within(whole, "m", "v") == part
    assert parted(whole, "m") is None


def points(value: float, n: int = 1000, at: range = range(6)) -> list[Point]:
    return [Point(BUCKET + i * HOUR, n, value, 0.01) for i in at]


def key_of(metric: str, of: Slice = EVERYTHING, *, arm: str = "") -> SeriesKey:
    return SeriesKey("m", "(all)", arm, metric, *of)


def of_type(value: str) -> Slice:
    return Slice("error_type", value)


def panel_of(rows: dict[SeriesKey, list[Point]], series: SeriesSpec, n: int = 6) -> Panel:
    end: datetime = BUCKET + n * HOUR
    return completed(Panel.of(rows, series.kinds, start=BUCKET, end=end, bucket=HOUR), series)


def test_a_part_that_did_not_occur_was_zero_of_all_requests_where_these_are_known() -> None:
    series = monitor().series
    rows = {
        key_of("errors"): points(0.02, at=range(1, 6)),
        key_of("errors", of_type("oom")): points(0.01, at=range(4, 6)),
    }
    panel = panel_of(rows, series)
    at = panel.keys.index(key_of("errors", of_type("oom")))
    np.testing.assert_array_equal(panel.value[at], [np.nan, 0, 0, 0, 0.01, 0.01])
    np.testing.assert_array_equal(panel.n[at], [0, 1000, 1000, 1000, 1000, 1000])
    assert panel.std_error[at, 1] == 0


def test_a_part_that_one_arm_never_had_is_zero_in_it() -> None:
    series = monitor(arms=Arms("experiment", "e", "c")).series
    rows = {key_of("errors", arm=arm): points(0.02) for arm in ("", "c", "t")}
    rows |= {key_of("errors", of_type("oom"), arm=arm): points(0.01) for arm in ("", "t")}
    panel = panel_of(rows, series)
    assert panel.value[panel.keys.index(key_of("errors", of_type("oom"), arm="c"))].tolist() == [0.0] * 6
    assert panel.value[panel.keys.index(key_of("errors", of_type("oom"), arm="t"))].tolist() == [0.01] * 6


def test_over_all_buckets_the_commonest_have_series_of_their_own_and_the_others_one() -> None:
    series = monitor().series
    rows = {key_of("errors"): points(0.5)}
    shares = {f"e{at:02}": 0.01 + at / 1000 for at in range(MAX_VALUES + 2)}
    rows |= {key_of("errors", of_type(name)): points(share) for name, share in shares.items()}
    panel = panel_of(rows, series)
    values = {str(key.slice): panel.value[at] for at, key in enumerate(panel.keys)}
    assert len(values) == 1 + MAX_VALUES + 1
    np.testing.assert_allclose(values[f"error_type:{OTHER}"], shares["e00"] + shares["e01"], rtol=1e-12)


def test_no_reject_is_known_and_no_request_is_not() -> None:
    metrics = {"rejects": SeriesMetric("count", source="rejects", by="reason_code"), "requests": METRICS["requests"]}
    series = monitor(metrics).series
    silent = [Point(BUCKET + at * HOUR, 0, 0.0, 0.0) for at in range(6)]
    rows = {key_of("rejects"): silent, key_of("rejects", Slice("reason_code", "domain")): points(40, 40, range(1))}
    rows |= {
        key_of("requests"): points(100, 100, range(3)),
        key_of("requests", of_type("oom")): points(5, 5, range(1)),
    }
    panel = panel_of(rows, series)
    found = {key.metric: panel.value[at].tolist() for at, key in enumerate(panel.keys) if key.slice_key}
    assert found["rejects"] == [40, 0, 0, 0, 0, 0]
    np.testing.assert_array_equal(found["requests"], [5, 0, 0, np.nan, np.nan, np.nan])
    known = judged_in(panel, replace(monitor(metrics), detectors=(Detection("threshold", above=1.0),)))
    part = key_of("requests", of_type("oom"))
    assert [known(part, BUCKET + at * HOUR) for at in (1, 4)] == [True, False]


def test_a_new_kind_of_error_is_the_incident_and_not_errors_as_such() -> None:
    rng = np.random.default_rng(2)
    series, n_buckets, n = monitor({"errors": ERRORS}).series, 35 * 24, 5000
    of = {name: rng.binomial(n, 0.01, n_buckets) / n for name in ("timeout", "oom")}
    of["schema"] = np.where(np.arange(n_buckets) >= n_buckets - 2, 0.012, 0.0)
    whole = sum(of.values())
    named = {key_of("errors"): whole} | {key_of("errors", of_type(name)): values for name, values in of.items()}
    rows = {
        key: [
            Point(BUCKET + at * HOUR, n, float(v), float(np.sqrt(v * (1 - v) / n)))
            for at, v in enumerate(values)
            if v or not key.slice_key
        ]
        for key, values in named.items()
    }
    panel = panel_of(rows, series, n_buckets)
    watching = replace(monitor({"errors": ERRORS}), detectors=(Detection("seasonal"),))
    found = scan(panel, watching, panel.time(n_buckets - 2)).findings
    (live,) = incidents(found, IncidentPolicy(), bucket=HOUR, upto=panel.time(n_buckets)).live
    assert str(live.slice) == "error_type:schema"
    assert {each["slice"] for each in json.loads(live.contributors)} >= {"error_type:schema", "overall"}
    assert "error_type:timeout" not in live.contributors


def test_rejects_are_counted_by_reason_and_none_is_known_too() -> None:
    metrics = {
        "rejects": SeriesMetric("count", source="rejects", by="reason_code"),
        "late": SeriesMetric("count", source="rejects", reason_code="late"),
    }
    span = Span(((BUCKET, BUCKET + 2 * HOUR),))
    rejects = Rejects([BUCKET, BUCKET, BUCKET], ["1", "1", "2"], ["late", "domain", "domain"], [3, 4, 5])
    found = {row.key: row for row in counted(rejects, monitor(metrics), list(metrics), span)}
    values = {(key.metric, key.model_version, str(key.slice)): row.value for key, row in found.items()}
    assert values["rejects", "(all)", "reason_code:domain"] == 9
    assert values["rejects", "2", "reason_code:domain"] == 5
    assert ("rejects", "2", "reason_code:late") not in values
    assert [row.value for row in counted(rejects, monitor(metrics), ["late"], span)] == [3, 0, 3, 0]
    assert values["late", "2", "overall"] == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "mean", "value": "x", "by": "y"}, "expected with a count or share of requests"),
        ({"kind": "share", "source": "outcomes", "outcome": "o", "by": "y"}, "expected with a count or share"),
        ({"kind": "count", "source": "rejects", "by": "error_type"}, "expected 'reason_code'"),
        ({"kind": "count", "source": "rejects", "by": "reason_code", "reason_code": "late"}, "no reason_code beside"),
        ({"kind": "count", "by": " "}, "expected an SQL expression"),
        ({"kind": "count", "by": "concat(a, ' x ', b)"}, "it names slices"),
    ],
)
def test_a_breakdown_that_makes_no_sense_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SeriesMetric(**given)


def test_a_breakdown_by_a_declared_attribute_is_refused() -> None:
    with pytest.raises(ValueError, match="metrics.errors.by is 'device', expected another name"):
        SeriesSpec({"errors": replace(ERRORS, by="device")}, slices=SLICES)


PART = name_slice({"device": "tablet", "error_type": "timeout"})


@pytest.mark.parametrize(
    ("pattern", "of", "is_concerned"),
    [
        ("device:*", PART, True),
        ("device:tablet", PART, True),
        ("device:ios", PART, False),
        ("device x error_type:*", PART, True),
        ("overall", PART, False),
        ("overall", of_type("timeout"), True),
        ("device:*", of_type("timeout"), False),
        # What the metric is not broken down by is no part.
        ("device:*", name_slice({"device": "tablet", "region": "emea"}), False),
    ],
)
def test_a_rule_or_event_of_a_slice_is_of_its_parts_too(pattern: str, of: Slice, is_concerned: bool) -> None:
    by_metric = {"errors": "error_type"}
    event = Event("e", BUCKET, BUCKET + HOUR, slices=(pattern,))
    for each in (RollbackRule("r", slices=(pattern,)), event):
        assert each.concerns("errors", of, by_metric) == is_concerned
        assert each.concerns("latency", of, by_metric) == (pattern == "device x error_type:*" and of == PART)


def test_a_rule_of_a_slice_acts_on_an_incident_that_a_part_leads() -> None:
    rule = RollbackRule("r", metrics=("errors",), slices=("device:*",), dry_run=False)
    led = incident(metric="errors")._replace(slice_key=PART.slice_key, slice_value=PART.slice_value)
    watching = monitor({"errors": ERRORS}, rules=(rule,))
    seen = Seen(breakdowns=watching.series.breakdowns)
    (due,) = decide(rule, [led], past("1", "2"), REGISTRY, NOW, seen)
    assert due.state == "due"
    assert unconfirmed([due], [rule], [led], {}, NOW, seen) == []
    (stands,) = guardrails(watching, [led], [], [], {}, NOW)
    assert stands.standing == "waits"
    assert decide(rule, [led], past("1", "2"), REGISTRY, NOW) == []


def test_the_parts_of_a_slice_in_a_known_event_are_no_finding() -> None:
    rows = {key_of("errors"): points(0.02), key_of("errors", of_type("oom")): points(0.01)}
    sale = Event("sale", BUCKET + 4 * HOUR, BUCKET + 5 * HOUR, slices=("overall",))
    limit = Detection("threshold", above=0.001)
    watching = monitor({"errors": ERRORS}, detectors=(limit,), events=(sale,))
    found = scan(panel_of(rows, watching.series), watching, BUCKET + 3 * HOUR).findings
    assert {each.bucket_start for each in found} == {BUCKET + 3 * HOUR, BUCKET + 5 * HOUR}


def test_patterns_may_name_parts() -> None:
    rules = tuple(
        RollbackRule(each, metrics=("errors",), slices=(each,), severity="warning")
        for each in ("error_type:timeout", "device x error_type:*")
    )
    assert list(unmatched(monitor(rules=rules), (Detection("seasonal"),))) == []
    (told,) = unmatched(monitor(rules=(replace(rules[0], slices=("reason_code:*",)),)), (Detection("seasonal"),))
    assert "matches no declared slice" in told
