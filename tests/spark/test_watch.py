"""What a monitor reads of other jobs' tables, and what services and dashboards read of its own."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from mltrust import conf
from mltrust.contract import Contract
from mltrust.experiment.check import Check
from mltrust.io.tables import Lakehouse
from mltrust.io.views import VIEWS
from mltrust.metrics import MetricColumns
from mltrust.monitor import rules
from mltrust.monitor.rules import Decision
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

    def served(at: datetime) -> str:
        return "2" if at == AS_OF else "1"

    found = {(str(each.slice), each.detector): each for each in of_others(lake, MONITOR, AS_OF, served)}
    assert set(found) == {("overall", "sample ratio (chi-square)"), ("device:tablet", "sample ratio (sequential)")}
    overall = found["overall", "sample ratio (chi-square)"]
    assert (overall.judged_at, overall.bucket_start) == (AS_OF, AS_OF - DAY)
    assert (overall.n_requests, overall.pvalue, overall.blamed_version) == (900, 1e-9, "2")
    assert found["device:tablet", "sample ratio (sequential)"].blamed_version == "1"  # of the day before


def stopped(version: str, *, monitor_id: str = "watch", at: datetime = AS_OF, **changed: object) -> dict[str, object]:
    """A decision that a version stops serving, done unless it is changed."""
    row: dict[str, object] = {
        "monitor_id": monitor_id,
        "decision_id": f"{monitor_id} stops {version}",
        "revision": 1,
        "incident_id": "i",
        "model_name": "recommender",
        "model_version": version,
        "rollback_rule": "errors",
        "action": "stop",
        "alias": "champion",
        "from_version": version,
        "to_version": None,
        "state": "done",
        "dry_run": False,
        "decided_at": at,
        "reason": f"stop {version}",
    }
    return stamped(row | changed)


def moved(version: str | None, revision: int, *, at: datetime, **changed: object) -> dict[str, object]:
    """A scan that saw the alias name a version."""
    named = {"action": "observe", "from_version": None, "to_version": version, "state": "observed"}
    return stopped(version or "", at=at, decision_id="alias", revision=revision, **named, **changed)


DECISIONS = [
    stopped("1"),
    stopped("2", action="rollback", to_version="1"),
    stopped("2", action="rollback", to_version="1", monitor_id="other", at=AS_OF - DAY),
    # It was named in the scan that rolled it back: no person put it there since.
    moved("2", 3, at=AS_OF),
    moved("1", 4, at=AS_OF - DAY),
    # A person promoted 3 after it was stopped, and somebody looked at an alias for the first time.
    stopped("3"),
    moved("3", 5, at=AS_OF + DAY),
    stopped("4"),
    moved("4", 0, at=AS_OF + DAY, alias="challenger"),
    # What was put back may be stopped again.
    stopped("5"),
    moved("5", 6, at=AS_OF + DAY),
    stopped("5", at=AS_OF + 2 * DAY, decision_id="again", incident_id="j"),
    # What was not done keeps nothing from serving.
    *(stopped(f"not {state}", state=state) for state in ("due", "failed", "dry_run", "refused", "held")),
    # A person put it back without an alias.
    stopped("7"),
    moved("7", 1, at=AS_OF + DAY, alias=""),
    stopped("6", model_name="another"),
    moved(None, 7, at=AS_OF + 3 * DAY),
]
STOPPED = {("recommender", each) for each in "1245"} | {("another", "6")}


def test_versions_that_were_stopped_and_not_put_back_must_not_serve(lake: Lakehouse) -> None:
    lake.ensure("decisions")
    lake.append(DECISIONS, "decisions")
    rows = lake.view("stopped_versions").collect()
    assert {(row["model_name"], row["model_version"]) for row in rows} == STOPPED
    assert len(rows) == len(STOPPED)
    past = [Decision(*(row[name] for name in Decision._fields)) for row in DECISIONS if row["state"] != "due"]
    assert {(model, each) for model in ("recommender", "another") for each in rules.stopped(past, model)} == STOPPED
    (second,) = [row for row in rows if row["model_version"] == "2"]
    assert (second["action"], second["monitor_id"], second["reason"]) == ("rollback", "watch", "stop 2")
    (fifth,) = [row for row in rows if row["model_version"] == "5"]
    assert fifth["incident_id"] == "j"


def test_a_view_of_a_catalog_has_the_same_rows(lake: Lakehouse) -> None:
    lake.ensure("decisions", "drift_findings")
    for name in VIEWS:
        in_sql, rows = lake.spark.sql(lake.view_sql(name)), lake.view(name)
        assert in_sql.columns == rows.columns
        assert sorted(in_sql.collect()) == sorted(rows.collect())


def test_the_sql_of_the_documentation_runs_and_says_the_same(lake: Lakehouse) -> None:
    names = ("monitor_series", "monitor_findings", "incidents", "decisions")
    lake.ensure(*names)
    for name in names:
        lake.read(name).createOrReplaceTempView(name)
    lake.view("stopped_versions").createOrReplaceTempView("stopped_versions")
    text = (ROOT / "docs/monitoring.md").read_text(encoding="utf-8")
    found = {}
    for block in re.findall(r"```sql\n(.*?)```", text, re.DOTALL):
        for statement in filter(str.strip, block.split(";")):
            title = statement.strip().partition("\n")[0]
            found[title] = lake.spark.sql(statement).collect()
    assert len(found) >= 8
    (routing,) = [rows for title, rows in found.items() if "must not serve" in title]
    told = {(row["model_name"], row["model_version"]) for row in routing}
    assert told == {("recommender", each) for each in "1245"}
