"""What monitoring promises, in simulated months: few false incidents, every planted fault once and by its name.

The whole of it is `python -m tests.calibration.monitoring`; its figures are in docs/monitoring.md.
"""

import pytest

from tests.calibration import live, monitored
from tests.calibration.monitoring import clean_months, live_runs, planted


def test_a_clean_month_has_no_incident() -> None:
    (run,) = clean_months(seeds=range(1), n_metrics=4)
    assert run.n_incidents <= 1


@pytest.mark.parametrize("name", ["errors in a leaf", "a country falls silent", "the treatment fails in a region"])
def test_a_planted_fault_is_one_incident_with_the_right_name(name: str) -> None:
    fault = monitored.ten_faults()[name]
    found = planted(name, fault, n_metrics=3)
    assert (found.n_incidents, found.is_right) == (1, True)


def test_a_candidate_that_fails_is_decided_within_a_minute_of_event_time() -> None:
    found = live_runs(seeds=range(6), n_buckets=live.CLEAN_BUCKETS + 7)
    assert all(each.buckets is not None and each.buckets <= 6 and each.is_right for each in found)


@pytest.mark.parametrize("fault", ["errors", "scores"])
def test_a_live_fault_that_ends_is_one_incident_that_recovers(fault: live.FaultKind) -> None:
    end = live.START + (live.CLEAN_BUCKETS + 20) * live.BUCKET
    for seed in range(8):
        told = live.watched(live.simulated(seed, 90, fault, lasts=20)).incidents
        assert sum(each.revision == 0 for each in told) == 1
        assert told[-1].state == "recovered"
        # Six quiet buckets are asked for; evidence of the fault may find two more.
        assert told[-1].changed_at <= end + 8 * live.BUCKET


def test_clean_live_traffic_is_left_alone() -> None:
    assert not any(live.watched(live.simulated(5000 + seed, 200)).incidents for seed in range(2))


@pytest.mark.slow
def test_twenty_clean_months_have_eight_incidents_at_most() -> None:
    counts = [each.n_incidents for each in clean_months(seeds=range(20), n_metrics=50)]
    assert sum(counts) <= 8
    assert max(counts) <= 2


@pytest.mark.slow
def test_ten_faults_of_ten_kinds_are_ten_incidents() -> None:
    found = [planted(name, fault, n_metrics=50) for name, fault in monitored.ten_faults().items()]
    assert [each.n_incidents for each in found] == [1] * 10
    assert sum(each.is_right for each in found) >= 9


@pytest.mark.slow
def test_live_faults_are_decided_and_clean_hours_are_not() -> None:
    found = live_runs(seeds=range(100), n_buckets=live.CLEAN_BUCKETS + 7)
    in_time = [each for each in found if each.buckets is not None and each.buckets <= 6]
    assert len(found) == 200
    assert len(in_time) >= 190
    clean = [live.watched(live.simulated(5000 + seed, 720)).incidents for seed in range(200)]
    assert sum(bool(each) for each in clean) <= 1
