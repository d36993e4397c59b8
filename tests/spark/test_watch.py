"""What a monitor reads of other jobs' tables."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from mltrust import conf
from mltrust.contract import Contract
from mltrust.experiment.check import Check
from mltrust.io.tables import Lakehouse
from mltrust.metrics import MetricColumns
from mltrust.monitor.spec import Arms, Monitor, SeriesMetric, SeriesSpec
from mltrust.verdicts import Verdict
from mltrust.watch import of_others
from tests.conftest import ROOT

CONTRACT, _ = conf.read(Contract, ROOT / "conf/contracts/recommendations.yaml")
AS_OF = datetime(2026, 11, 2, tzinfo=UTC)
DAY = timedelta(days=1)
SERIES = SeriesSpec({"requests": SeriesMetric("count")}, arms=Arms("experiment", "ranker", "control"))
MONITOR = Monitor("watch", "log", "recommender", series=SERIES)


def stamped(row: Mapping[str, object], as_of: datetime = AS_OF) -> dict[str, object]:
    return {**row, "run_id": "r", "conf_hash": "c", "as_of": as_of, "input_versions": {"t": 0}, "written_at": as_of}


@pytest.fixture(scope="module")
def lake(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Lakehouse:
    root: Path = tmp_path_factory.mktemp("lake")
    return Lakehouse(
        spark, CONTRACT, root=str(root), metric_columns=MetricColumns(), keep_days={"audit": 400, "rebuild": 30}
    )


def test_failed_sample_ratios_of_the_experiment_in_the_last_days_are_found(lake: Lakehouse) -> None:
    assert of_others(lake, MONITOR, AS_OF) == []  # nobody has analysed anything
    lake.ensure("experiment_checks")
    failed = Check("srm", "chi-square", 900, 0.001, Verdict.BREACH, "500 and 400", True, pvalue=1e-9, qvalue=1e-9)
    rows = [
        ("ranker", failed, AS_OF),
        ("ranker", failed._replace(method="sequential", slice_key="device", slice_value="tablet"), AS_OF - DAY),
        ("ranker", failed, AS_OF - 8 * DAY),  # long ago
        ("ranker", failed, AS_OF + DAY),  # not yet
        ("ranker", failed._replace(verdict=Verdict.PASS, decides=False, slice_key="device"), AS_OF),
        ("ranker", failed._replace(check="balance"), AS_OF),
        ("another", failed, AS_OF),
    ]
    lake.append([stamped(row._asdict() | {"experiment_id": of}, at) for of, row, at in rows], "experiment_checks")
    found = {(str(each.slice), each.detector): each for each in of_others(lake, MONITOR, AS_OF, "2")}
    assert set(found) == {("overall", "sample ratio (chi-square)"), ("device:tablet", "sample ratio (sequential)")}
    overall = found["overall", "sample ratio (chi-square)"]
    assert (overall.judged_at, overall.bucket_start) == (AS_OF, AS_OF - DAY)
    assert (overall.n_requests, overall.pvalue, overall.blamed_version) == (900, 1e-9, "2")
