"""Whether a log is whole: what a day and a window say, and which of them decide."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from datetime import date, timedelta
from math import inf, isnan, nan

import pytest

from mltrust.health import (
    UNKNOWN,
    Judged,
    Limits,
    LogDay,
    OutcomeDay,
    drop_share,
    judged,
    model_windows,
    outcome_windows,
    unmatched_share,
)
from mltrust.report.figures import volume
from mltrust.report.health import markdown, metrics, seconds
from mltrust.settings import Health
from mltrust.verdicts import Verdict

END = date(2026, 10, 8)
LAST = END - timedelta(days=1)
LIMITS = Limits(max_drop_share=0.01, max_reject_share=0.05)
NOTHING = LogDay("m", "1", LAST, 0, 0, 0, 0, 0, 0, {}, 0, 0, 0, 0, 0, [], [], nan, nan, nan)


def day(
    n_records: int = 0,
    rejects: Mapping[str, int] | None = None,
    *,
    logged: int = 0,
    dropped: int = 0,
    version: str = "1",
    name: str = "m",
    on: date = LAST,
    lag: float = nan,
) -> LogDay:
    refused = dict(rejects or {})
    return NOTHING._replace(
        model_name=name,
        model_version=version,
        day=on,
        n_records=n_records,
        n_rejected=sum(refused.values()),
        rejects=refused,
        n_logged=logged,
        n_dropped=dropped,
        lag_p95=lag,
    )


def verdicts(*days: LogDay) -> list[Verdict]:
    return [found.verdict for _, found in judged(days, LIMITS, END).days]


@pytest.mark.parametrize(
    ("row", "verdict", "words"),
    [
        (day(95, {"wrong_type": 5}), Verdict.PASS, "5.00% of 100 records rejected, no producer reports"),
        (day(94, {"wrong_type": 4, "unparsable": 2}), Verdict.BREACH, "6.00% of 100 records rejected (limit 5.00%)"),
        (day(99, logged=100, dropped=1), Verdict.PASS, "1.00% of 100 predictions dropped"),
        (day(98, logged=100, dropped=2), Verdict.BREACH, "2.00% of 100 predictions dropped (limit 1.00%)"),
        (day(logged=1000, dropped=1), Verdict.BREACH, "1 predictions dropped and none in the log"),
        (day(logged=0, dropped=1, n_records=5), Verdict.BREACH, "1 of no predictions dropped (limit"),
        (day(rejects={"wrong_type": 1}), Verdict.BREACH, "100.00% of 1 records rejected"),
        (day(logged=10), Verdict.INCONCLUSIVE, "10 predictions reported, none in the log"),
        (day(logged=10, name="(other)"), Verdict.PASS, "0.00% of 10 predictions dropped"),
        (day(logged=10, dropped=1, name="(other)"), Verdict.BREACH, "10.00% of 10 predictions dropped"),
    ],
)
def test_a_day_is_a_breach_above_a_limit_and_says_by_how_much(row: LogDay, verdict: Verdict, words: str) -> None:
    [(_, found)] = judged([row], LIMITS, END).days
    assert found.verdict is verdict
    assert found.reason.startswith(f"{row.model_name} 1: ")
    assert words in found.reason


def test_rejects_of_an_unknown_model_are_judged_by_their_share_in_the_whole_day() -> None:
    unreadable = day(rejects={"unparsable": 4}, name=UNKNOWN, version=UNKNOWN)
    without_version = day(rejects={"missing_field": 6}, version=UNKNOWN)
    other_day = day(1000, on=LAST - timedelta(days=1))
    assert verdicts(unreadable, without_version, day(90), other_day) == [
        Verdict.PASS,
        Verdict.BREACH,
        Verdict.PASS,
        Verdict.PASS,
    ]


def test_the_last_day_and_the_window_as_a_whole_decide() -> None:
    earlier = LAST - timedelta(days=1)
    bad = day(90, {"wrong_type": 10})
    assert judged([bad], LIMITS, END).verdict is Verdict.BREACH
    healed = [bad._replace(day=earlier), day(1000)]
    assert judged(healed, LIMITS, END)[2:] == (Verdict.PASS, [])
    found = judged([bad._replace(day=earlier), day(10)], LIMITS, END)
    assert found[2:] == (Verdict.BREACH, ["all days: m 1: 9.09% of 110 records rejected (limit 5.00%)"])


def test_a_log_that_is_empty_or_went_silent_is_inconclusive() -> None:
    for days in ([], [day(100, on=LAST - timedelta(days=1))]):
        found = judged(days, LIMITS, END)
        assert found[2:] == (Verdict.INCONCLUSIVE, ["2026-10-07: nothing was logged, refused or reported"])


def test_a_window_adds_days_and_has_the_lag_of_the_worst() -> None:
    rows = [
        day(10, {"a": 1}, logged=11, dropped=1, lag=5, on=LAST - timedelta(days=1))._replace(schema_versions=["v01"]),
        day(20, {"a": 1, "b": 2}, lag=3)._replace(schema_versions=["v01", "v02"], n_errors=4),
        day(500, version="2"),
    ]
    largest, window = model_windows(rows)
    assert (largest.model_version, largest.n_records) == ("2", 500)
    assert isnan(largest.lag_p95)
    assert window == ("m", "1", 30, 4, 4, {"a": 2, "b": 2}, 11, 1, ["v01", "v02"], [], 5)
    assert drop_share(window) == 1 / 11


def test_what_nobody_reports_has_no_share() -> None:
    assert isnan(drop_share(day(5)))
    assert drop_share(day(dropped=1)) == inf
    told = OutcomeDay("sale", LAST, 3, 1, 1, 0, 3, 0, 1.0, 2.0, 3.0)
    [window] = outcome_windows([told])
    assert isnan(unmatched_share(window))
    [window] = outcome_windows([told, told._replace(day=END, n_by_request=4, n_unmatched=1, lag_p95=9.0)])
    assert (window.n_outcomes, window.n_corrected, window.lag_p95) == (6, 2, 9.0)
    assert unmatched_share(window) == 0.25


def many(n: int) -> Judged:
    return judged([day(100 + at, {"wrong_type": 1}, version=str(at)) for at in range(n)], LIMITS, END)


def test_metrics_name_model_version_and_what_and_leave_out_nothing_that_is_defined() -> None:
    named = metrics(judged([day(98, {"a": 1}, logged=99, dropped=1, lag=4)], LIMITS, END))
    assert named == {
        "health/m/1/records": 98,
        "health/m/1/errors": 0,
        "health/m/1/rejected": 1,
        "health/m/1/dropped": 1,
        "health/m/1/reject_share": 1 / 99,
        "health/m/1/drop_share": 1 / 99,
        "health/m/1/lag_p95": 4,
    }
    assert next(iter(metrics(many(40)))) == "health/m/39/records"


def test_the_page_leads_with_what_decides_and_shows_the_largest_versions() -> None:
    told = OutcomeDay("sale|x", LAST, 8, 1, 2, 8, 0, 2, 1.0, 7200.0, 3.0)
    bad = judged([day(90, {"wrong_type": 9, "unparsable": 1}, lag=90)], LIMITS, END)
    page = markdown(bad, outcome_windows([told]), LAST, END, 3)
    assert page.startswith(
        "2026-10-07: m 1: 10.00% of 100 records rejected (limit 5.00%), and 1 more\n\n- 2026-10-07"
    )
    assert "\n- all days: m 1: 10.00% of 100 records rejected (limit 5.00%)\n\n90 records of 1 model" in page
    assert "| m | 1 | 90 | 0 | 10 | wrong_type 9, unparsable 1 | not reported |" in page
    assert "| sale\\|x | 8 | 1 | 2 | 25.00% of 8 | 2.0 h |" in page
    assert "3 metrics are in the tables only" in page
    assert "The 20 largest of 25" in markdown(many(25), [], LAST, END)
    assert "Model versions" not in markdown(judged([], LIMITS, END), [], LAST, END)


def test_lags_have_their_natural_unit() -> None:
    assert [seconds(lag) for lag in (nan, 0, 119, 120, 7200, 180_000, -90_000_000)] == [
        "–", "0 s", "119 s", "2.0 min", "2.0 h", "2.1 d", "-1,041.7 d",
    ]  # fmt: skip


@pytest.mark.parametrize(("n", "lines", "n_days"), [(0, 0, 3), (1, 1, 1), (10, 10, 3), (14, 11, 3)])
def test_the_figure_has_a_line_for_each_of_ten_versions_and_says_how_many_it_pools(
    n: int, lines: int, n_days: int
) -> None:
    days = [END - timedelta(days=age) for age in range(n_days, 0, -1)]
    rows = [day(100 + at, {"wrong_type": at}, dropped=at % 2, version=str(at)) for at in range(n)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = volume(rows, days)
        figure.canvas.draw()  # type: ignore[no-untyped-call]
    records = figure.axes[0]
    assert len(records.get_lines()) == lines
    assert sum(sum(map(float, line.get_ydata())) for line in records.get_lines()) == sum(
        row.n_records for row in rows
    )  # type: ignore[arg-type]
    if n > 10:
        assert records.get_lines()[-1].get_label() == f"{n - 10} others together"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"days": 0}, "days is 0, expected 1 or more"),
        ({"match_days": -1}, "match_days is -1, expected 0 or more"),
        ({"max_drop_share": 1.5}, "max_drop_share is 1.5, expected a share"),
    ],
)
def test_nonsense_in_the_settings_is_refused(changes: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(Health(), **changes)  # type: ignore[arg-type]
