"""What a scan reaches, writes and survives, on tables in memory: no Spark."""

from datetime import UTC, datetime, timedelta

import pytest

from mltrust import conf as confs
from mltrust.errors import ConfError
from mltrust.io.tables import Lakehouse
from mltrust.monitor.spec import Monitor, SeriesMetric, SeriesSpec
from mltrust.spark.series import Arrived
from mltrust.watch import Known, not_ahead, reached, scanned
from tests.unit.conftest import SHIPPED

NOW = datetime(2026, 11, 29, 12, 0, 30, tzinfo=UTC)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
SERIES = SeriesSpec(
    {"errors": SeriesMetric("share", value="x")}, bucket_seconds=60, lateness_seconds=30, silence_seconds=300
)
MONITOR = Monitor("m", "log", "m", series=SERIES)


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


def test_an_as_of_that_is_yet_to_come_is_refused() -> None:
    conf = confs.load(SHIPPED / "monitors/recommender.yaml", "local")
    with pytest.raises(ConfError, match="no later time than now"):
        scanned(Lakehouse.__new__(Lakehouse), conf, NOW + MINUTE, {}, {}, now=lambda: NOW)
