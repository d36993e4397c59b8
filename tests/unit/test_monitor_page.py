"""The pages of a monitor: they say what is wrong in words, show it, and need nothing from elsewhere."""

from dataclasses import replace
from html.parser import HTMLParser

import pytest

from mltrust.monitor.guardrails import Serving, guardrails
from mltrust.monitor.rules import carried_out, decide
from mltrust.monitor.scan import bands_of, scan
from mltrust.monitor.spec import Monitor, SeriesMetric, SeriesSpec
from mltrust.report.monitor import View, incident_page, live_page, markdown, metrics, series_of, words
from tests.unit.test_monitor_detectors import FIRST, panel_of, watching
from tests.unit.test_monitor_incidents import HOUR, START, IncidentPolicy, incidents
from tests.unit.test_monitor_others import mismatch
from tests.unit.test_monitor_rules import BESIDE, REGISTRY, RULE, STOP, incident, past


def view(*, n_judged: int = 9, with_incident: bool = True) -> View:
    panel = panel_of("share")
    monitor = watching("share")
    panel.value[1, FIRST:] = 0.5
    found = scan(panel, monitor, panel.time(FIRST)).findings if with_incident else []
    told = incidents(found, IncidentPolicy(), bucket=HOUR, upto=panel.time(panel.n_buckets))
    made = decide(
        RULE, [incident(each.incident_id) for each in told.live], past("1", "2"), REGISTRY, panel.time(FIRST)
    )
    made += [carried_out(each, now=panel.time(FIRST)) for each in made]
    bands = bands_of(panel, monitor, panel.keys[:2], 48)
    end = panel.time(panel.n_buckets)
    return View(monitor, end, end, told.revisions, told.live, made, found, bands, ["overall", "<b>"], 12, n_judged)


class Reader(HTMLParser):
    """Tags that are open, and addresses that a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "path", "circle"):
            self.open.append(tag)
        self.fetched += [str(value) for name, value in attrs if name in ("src", "href") and "html" not in str(value)]

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "path", "circle"):
            assert self.open.pop() == tag


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


def test_the_live_page_is_whole_and_fetches_nothing() -> None:
    page = live_page(view()._replace(refresh_seconds=5))
    found = read(page)
    assert (found.open, found.fetched) == ([], [])
    assert "http-equiv='refresh' content='5'" in page
    assert "device:d1" in page
    assert "<b></b>" not in page  # a slice's name is text
    assert "&lt;b&gt;" in page


def test_the_live_page_has_the_versions_and_the_guardrails() -> None:
    seen = view()
    rules = guardrails(replace(seen.monitor, rules=(RULE,)), seen.live, seen.decisions, [], {}, seen.written_at)
    page = live_page(
        seen._replace(serving=[Serving("2", 900, 0.9, 0.8)], aliases={"champion": "1"}, guardrails=rules)
    )
    assert read(page).open == []
    assert "90.0%" in page
    assert "pill blue'>champion" in page
    assert "Guardrails" in page


def test_the_page_of_a_mismatch_says_what_is_not_to_be_read() -> None:
    told = incidents([mismatch()], IncidentPolicy(), bucket=HOUR, upto=START + 5 * HOUR)
    seen = view()._replace(revisions=told.revisions, live=told.live)
    page = incident_page(seen, told.live[0].incident_id)
    assert read(page).open == []
    assert "Do not read the effects" in page
    assert "inference_log" not in page


def test_the_page_of_a_stopped_version_says_so() -> None:
    seen = view()
    (due,) = decide(STOP, [incident(seen.live[0].incident_id)], [], REGISTRY, seen.upto, BESIDE)
    seen = seen._replace(decisions=[due, carried_out(due, now=seen.upto)])
    assert "Version 2 is stopped" in incident_page(seen, seen.live[0].incident_id)


def test_charts_say_in_words_what_they_show() -> None:
    assert "aria-label='metric of device:d1 from" in live_page(view())


def test_the_page_of_an_incident_says_what_was_done_and_what_to_do() -> None:
    seen = view()
    page = incident_page(seen, seen.live[0].incident_id)
    assert read(page).open == []
    assert "champion names version 1 again" in page
    assert "Timeline" in page


def test_nothing_judged_is_not_in_order() -> None:
    nothing = view(with_incident=False, n_judged=0)
    assert "nothing could be judged" in words(nothing)
    assert "not judged" in live_page(nothing)
    assert "not judged" in live_page(nothing._replace(is_idle=True))
    assert "in order" in live_page(view(with_incident=False))


def test_a_slice_that_nobody_judged_has_no_tick() -> None:
    seen = view(with_incident=False)
    assert "✓" not in live_page(seen)
    assert live_page(seen._replace(judged={("overall", "metric")})).count("✓") == 1


def test_the_run_has_the_open_incidents_and_the_series() -> None:
    seen = view()
    assert metrics(seen, 2)["monitor/open_incidents"] == len(seen.live) == 1
    points = series_of(seen, seen.upto - 10 * HOUR)
    assert {len(each) for each in points.values()} == {10}
    assert "### Open incidents" in markdown(seen)


def test_what_a_conf_must_not_say_is_refused() -> None:
    with pytest.raises(ValueError, match="divisor of a day"):
        SeriesSpec({}, bucket_seconds=7)
    with pytest.raises(ValueError, match="needs an expression"):
        SeriesMetric("share")
    with pytest.raises(ValueError, match="counted per request"):
        SeriesMetric("count", source="outcomes", outcome="purchase")
    with pytest.raises(ValueError, match="budget"):
        Monitor("m", "log", "m", budget=0)
