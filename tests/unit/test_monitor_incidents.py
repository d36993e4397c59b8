"""Incidents: one for what belongs together, named by the guilty slice, told once and again when much worse."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from math import nan, sqrt

import pytest

from mltrust.monitor.finding import Finding, Severity
from mltrust.monitor.incidents import Incident, families, incidents, related
from mltrust.monitor.revisions import current, replay_from, unwritten
from mltrust.monitor.series import SeriesKey
from mltrust.monitor.spec import IncidentPolicy
from mltrust.slices import OVERALL, Slice, name_slice

START = datetime(2026, 11, 2, tzinfo=UTC)
HOUR = timedelta(hours=1)
EVERYTHING = Slice(*OVERALL)
IOS, ANDROID = name_slice({"device": "ios"}), name_slice({"device": "android"})
GERMANY, GERMAN_IOS = name_slice({"country": "de"}), name_slice({"country": "de", "device": "ios"})


def finding(
    at: int,
    of: Slice = EVERYTHING,
    *,
    metric: str = "errors",
    score: float = 8.0,
    excess: float = nan,
    noise: float = nan,
    severity: Severity = "warning",
    model: str = "m",
    version: str = "2",
) -> Finding:
    start = START + at * HOUR
    return Finding(
        model, version, "", metric, *of, "seasonal", start, start + HOUR, severity, 1000, 0.2, 0.1, 0.05, 0.15, score,
        1e-9, 5.0, excess, noise, version, f"{metric} of {of}",
    )  # fmt: skip


def revisions(found: Iterable[Finding], upto: int = 48, policy: IncidentPolicy | None = None) -> list[Incident]:
    return incidents(found, policy or IncidentPolicy(), bucket=HOUR, upto=START + upto * HOUR).revisions


def test_findings_that_overlap_are_one_incident_that_opens_and_recovers() -> None:
    told = revisions([finding(at) for at in (3, 4, 6)])
    assert [(each.revision, each.state, each.notify) for each in told] == [
        (0, "open", True),
        (1, "open", False),
        (2, "open", False),
        (3, "recovered", True),
    ]
    last = told[-1]
    assert (last.opened_at, last.recovered_at) == (START + 3 * HOUR, START + 7 * HOUR)
    assert last.changed_at == START + 13 * HOUR  # six quiet buckets later
    assert (last.n_buckets, last.n_findings) == (3, 3)


def test_what_comes_back_after_it_recovered_is_a_new_incident() -> None:
    told = revisions([finding(3), finding(9), finding(20)])
    assert [each.opened_at for each in told if each.revision == 0] == [START + at * HOUR for at in (3, 20)]


def test_an_incident_is_open_until_enough_quiet_buckets_were_judged() -> None:
    assert [each.state for each in revisions([finding(3)], upto=9)] == ["open"]
    assert [each.state for each in revisions([finding(3)], upto=10)] == ["open", "recovered"]


def test_what_nobody_could_judge_neither_continues_nor_recovers_an_incident() -> None:
    def at_night(series: SeriesKey, start: datetime) -> bool:
        return not START + 5 * HOUR <= start < START + 15 * HOUR

    for upto, state in ((10, "open"), (19, "open"), (20, "recovered")):
        told = incidents(
            [finding(3)], IncidentPolicy(), bucket=HOUR, upto=START + upto * HOUR, judged=at_night
        ).revisions
        assert told[-1].state == state
    assert told[-1].changed_at == START + 20 * HOUR  # one quiet bucket before the night, five after


def test_what_cannot_be_judged_any_more_lapses_after_a_day_and_says_so() -> None:
    told = incidents(
        [finding(3)], IncidentPolicy(), bucket=HOUR, upto=START + 48 * HOUR, judged=lambda series, start: False
    ).revisions
    assert [(each.state, each.recovered_at) for each in told] == [("open", None), ("lapsed", None)]
    assert (told[-1].changed_at, told[-1].notify) == (START + 28 * HOUR, True)
    assert "could not be judged" in told[-1].reason


def test_the_guilty_slice_gives_the_name_and_not_those_around_or_inside_it() -> None:
    # 1,000 requests of ios have 80 errors too many; all that contains them has the same excess and more noise.
    n = {EVERYTHING: 10_000, IOS: 1_000, GERMANY: 4_000, GERMAN_IOS: 400}
    share = {EVERYTHING: 1.0, IOS: 1.0, GERMANY: 0.4, GERMAN_IOS: 0.4}
    found = [finding(3, of, score=9.0, excess=80 * share[of], noise=sqrt(n[of] * 0.01)) for of in n]
    (opened,) = revisions(found, upto=4)
    assert opened.slice == IOS
    assert [each["slice"] for each in json.loads(opened.contributors)][:2] == [str(IOS), str(GERMAN_IOS)]
    assert opened.n_findings == 4


def test_a_version_is_to_blame_for_the_leading_metric_only() -> None:
    of_several = finding(3, excess=80.0, noise=1.0)._replace(blamed_version="")
    of_one = finding(3, IOS, metric="latency", excess=9.0, noise=1.0, version="3")
    (opened,) = revisions([of_several, of_one], upto=4)
    assert (opened.metric, opened.blamed_version) == ("errors", "")
    (opened,) = revisions([of_several, of_one, finding(3, IOS, excess=40.0, noise=1.0)], upto=4)
    assert (opened.metric, opened.blamed_version) == ("errors", "2")


def test_an_excess_counts_once_however_many_detectors_find_it() -> None:
    once = finding(3, IOS, excess=30.0, noise=4.0)
    twice = finding(3, GERMANY, excess=25.0, noise=4.0)
    (opened,) = revisions([once, twice, twice._replace(detector="level_shift")], upto=4)
    assert opened.slice == IOS
    assert [each["strength"] for each in json.loads(opened.contributors)] == [7.5, 6.25]


def test_incidents_without_a_score_become_one_as_well() -> None:
    told = revisions([finding(3, IOS, score=0.0), finding(4, ANDROID, score=0.0), finding(5, score=0.0)], upto=6)
    assert "merged" in {each.state for each in told}


def test_slices_of_one_family_share_an_incident_and_others_do_not() -> None:
    assert related([IOS], [GERMANY])
    assert related([GERMAN_IOS], [EVERYTHING])
    assert not related([IOS], [ANDROID])
    assert not related([GERMAN_IOS], [ANDROID])
    assert [len(group) for group in families([finding(1, IOS), finding(1, ANDROID)])] == [1, 1]
    assert [len(group) for group in families([finding(1, IOS), finding(1, ANDROID), finding(1, GERMANY)])] == [3]
    assert len(families([finding(1), finding(1, model="other")])) == 2


def test_two_incidents_that_turn_out_to_be_one_become_the_older() -> None:
    told = revisions([finding(3, IOS), finding(4, ANDROID), finding(5, EVERYTHING), finding(6, ANDROID)])
    older, younger = (each.incident_id for each in told if each.revision == 0)
    states = {each.incident_id: each.state for each in current(told)}
    assert states == {older: "recovered", younger: "merged"}
    merged = next(each for each in told if each.state == "merged")
    assert older in merged.reason
    assert not merged.notify


def test_people_are_told_again_only_when_it_is_much_worse_or_graver() -> None:
    told = revisions([finding(3, score=6), finding(4, score=9), finding(5, score=12.5), finding(6, score=20)], upto=8)
    assert [each.changed_at for each in told if each.notify] == [START + 4 * HOUR, START + 6 * HOUR]
    graver = revisions([finding(3), finding(4, severity="critical"), finding(5, severity="critical")], upto=7)
    assert [(each.severity, each.changed_at) for each in graver if each.notify] == [
        ("warning", START + 4 * HOUR),
        ("critical", START + 5 * HOUR),
    ]


def test_drift_of_consecutive_days_is_one_incident_that_is_told_once() -> None:
    found = [finding(24 * day, metric="drift psi of age", score=0.0) for day in (0, 1, 3)]
    upto = START + 9 * 24 * HOUR
    told = incidents(found, IncidentPolicy(), bucket=HOUR, upto=upto, judged=lambda series, start: False).revisions
    assert [each.state for each in told if each.notify] == ["open", "lapsed"]
    assert len({each.incident_id for each in told}) == 1
    assert told[-1].changed_at == START + (3 * 24 + 1 + 72) * HOUR


def test_judging_in_pieces_gives_the_revisions_of_judging_at_once() -> None:
    found = [
        *(finding(at, IOS, score=6 + at) for at in (3, 4, 5, 9)),
        *(finding(at, ANDROID, score=7) for at in (4, 15, 16)),
        *(finding(at, GERMANY, severity="critical") for at in (6, 17)),
        *(finding(at, GERMAN_IOS, model="other") for at in (2, 30)),
    ]
    whole = revisions(found, upto=40)
    for step in (1, 3, 7):
        kept: list[Incident] = []
        for upto in range(step, 40 + step, step):
            # As a job does: only findings since the earliest incident that is not over are gone through again.
            end = START + min(upto, 40) * HOUR
            start = replay_from(kept)
            before = START + (upto - step) * HOUR
            seen = [each for each in found if each.judged_at <= end and each.judged_at > min(start or before, before)]
            kept += unwritten(kept, incidents(seen, IncidentPolicy(), bucket=HOUR, upto=end), end)
        assert sorted(kept) == sorted(whole), step


def test_another_policy_in_the_midst_of_an_incident_does_not_leave_it_open() -> None:
    found = [finding(at, score=6 * 2.0**at) for at in (3, 4, 5, 6)]
    known = revisions(found, upto=8)
    assert (len(known), known[-1].state) == (4, "open")
    calmer = IncidentPolicy(worse_factor=99.0, recover_after=1)
    for upto in (9, 10):
        end = START + upto * HOUR
        known += unwritten(known, incidents(found, calmer, bucket=HOUR, upto=end), end)
    assert [(each.revision, each.state) for each in known[3:]] == [(3, "open"), (4, "recovered")]
    assert known[-1].changed_at >= known[-2].changed_at


def test_going_through_it_again_begins_with_the_earliest_that_was_open_together() -> None:
    told = revisions([finding(1, IOS), finding(5, IOS), finding(8, ANDROID, model="other")], upto=9)
    assert replay_from(told) == START + HOUR
    assert replay_from(revisions([finding(1)])) is None


def test_open_incidents_are_known_as_they_are_now() -> None:
    told = incidents([finding(at) for at in range(3, 10)], IncidentPolicy(), bucket=HOUR, upto=START + 10 * HOUR)
    (live,) = told.live
    assert live.n_buckets == 7
    assert live.revision == told.revisions[-1].revision


def test_revisions_of_an_incident_are_numbered_without_gaps() -> None:
    told = revisions([finding(at, score=6 * 1.5**at) for at in range(3, 15)])
    assert all(after.revision == before.revision + 1 for before, after in pairwise(told))


def test_a_policy_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="worse_factor"):
        IncidentPolicy(worse_factor=1.0)
