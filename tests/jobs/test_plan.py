"""A plan from the simulated log, against units that are counted without Spark."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from math import sqrt
from typing import cast

import pandas as pd
import pytest
from deltalake import DeltaTable
from pyspark.sql import Row
from scipy import special

from jobs import plan_experiment
from mltrust import runtime
from mltrust.conf import Conf
from mltrust.verdicts import Exit
from tests.jobs.conftest import World
from tests.jobs.test_pipeline import newest_run
from tests.unit.conftest import edited

AS_OF = datetime(2026, 10, 12, tzinfo=UTC)
START, WEEK = date(2026, 9, 21), timedelta(days=7)  # the first day of the log


def with_plan(conf: Conf, **changes: object) -> Conf:
    experiment = conf.the_experiment()
    return replace(conf, experiment=replace(experiment, plan=replace(experiment.plan, **changes)))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def planned(world: World) -> list[Row]:
    """The rows of two plans of one as_of, of which the second has half of the traffic."""
    conf = world.load("experiments/ranker_v3.yaml")
    for share in (1.0, 0.5):
        exit_code = plan_experiment.run(world.spark, with_plan(conf, traffic_share=share, max_weeks=4), AS_OF)
    assert exit_code == Exit.INCONCLUSIVE  # 2,000 units are too few
    return world.lake().read("experiment_plans", where={"experiment_id": "ranker_v3"}).collect()


def arrivals(world: World) -> pd.DataFrame:
    """Units with the day on which they were first seen, their device then, and whether they bought within a week."""
    log, told = (
        cast(pd.DataFrame, DeltaTable(world.lake().path(name)).to_pandas()) for name in ("inference_log", "outcomes")
    )
    log = log[(log["traffic"] == "production") & log["unit_id"].notna() & (log["event_date"] >= START)]
    log = log.assign(device=[features["device"] for features in log["features"]]).sort_values("event_time")
    units = log.groupby("unit_id").agg(day=("event_date", "first"), device=("device", "first"))
    purchases = told.loc[told["name"] == "purchase", ["request_id", "event_date"]]
    bought = purchases.merge(log[["request_id", "unit_id"]].drop_duplicates(), on="request_id")
    first = bought["unit_id"].map(units["day"])
    within = bought[(bought["event_date"] < first + WEEK) & (bought["event_date"] < AS_OF.date())]
    return units.assign(bought=units.index.isin(within["unit_id"]).astype(float))


@pytest.mark.slow
def test_what_is_found_is_that_of_units_counted_by_hand(world: World, planned: list[Row]) -> None:
    units = arrivals(world)
    for where, mine, alpha in (
        (("", ""), units, 0.05),
        (("device", "tablet"), units[units["device"] == "tablet"], 0.05 / 7),  # of 3 devices and 4 regions
    ):
        z = special.ndtri(1 - alpha / 2) + special.ndtri(0.8)
        found = {
            row["weeks"]: row
            for row in planned
            if (row["metric"], row["method"], row["slice_key"], row["slice_value"]) == ("conversion", "fixed", *where)
        }
        assert sorted(found) == [2, 3, 4]
        for weeks in (2, 3):
            arrived = mine[mine["day"] < START + (weeks - 1) * WEEK]
            share = arrived["bought"].mean()
            assert found[weeks]["mean_control"] == pytest.approx(share, abs=1e-9 if weeks == 2 else 1e-3)
            # Half of the traffic; a unit in neither arm for each week.
            assert found[weeks]["n_units"] == pytest.approx(len(arrived) / 2, abs=4)
            std_error = sqrt(4 * share * (1 - share) / found[weeks]["n_units"])
            assert found[weeks]["mde"] == pytest.approx(z * std_error, rel=5e-3)


@pytest.mark.slow
def test_a_plan_done_again_replaces_its_rows_which_name_their_origin(world: World, planned: list[Row]) -> None:
    table = world.lake().tables["experiment_plans"]
    assert len({tuple(row[name] for name in table.key) for row in planned}) == len(planned)
    assert {row["run_id"] for row in planned} == {newest_run(world, "plan_experiment ranker_v3").info.run_id}
    assert {tuple(sorted(row["input_versions"])) for row in planned} == {("inference_log", "outcomes")}
    assert {row["slice_key"] for row in planned} == {"", "device", "region"}
    assert {row["method"] for row in planned} == {"fixed", "always-valid", "group-sequential"}
    assert {(row["weeks"], row["is_extrapolated"]) for row in planned} == {(2, False), (3, False), (4, True)}


@pytest.mark.slow
def test_the_run_leads_with_the_duration(world: World, planned: list[Row]) -> None:
    run = newest_run(world, "plan_experiment ranker_v3")
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith(
        "**inconclusive**: **no duration up to 4 weeks is enough** — `ranker_v3` as of 2026-10-12."
    )
    assert "The conf asks for 5 weeks of history; the log has 3." in note
    [row] = [row for row in planned if row["decides"] and row["metric"] == "conversion" and row["weeks"] == 4]
    assert row["method"] == "group-sequential"
    assert run.data.metrics["rel_mde/conversion/treatment/4w"] == row["rel_mde"]


def test_too_short_a_history_is_inconclusive_and_says_what_it_takes(world: World) -> None:
    conf = world.load("experiments/ranker_v3.yaml")
    assert plan_experiment.run(world.spark, conf, AS_OF - WEEK) == Exit.INCONCLUSIVE
    note = newest_run(world, "plan_experiment ranker_v3").data.tags["mlflow.note.content"]
    assert "units are in the log since 2026-09-21; a plan as of 2026-10-05 needs them since 2026-09-14" in note


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("plan: {max_week: 3}", "plan.max_week: unknown key; did you mean 'max_weeks'?"),
        ("plan: {history_weeks: 1}", "plan: history_weeks is 1, expected 2 or more"),
        ("plan: {where: 'device = 1'}", "plan.where: 'device = 1' cannot be read on a record"),
    ],
)
def test_mistakes_in_a_plan_end_with_code_2(
    world: World, text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = world.conf / "experiments/ranker_v3.yaml"
    before = path.read_text()
    try:
        edited(path, "control: control\n", f"control: control\n{text}\n")
        arguments = ["--config", str(path), "--as-of", "2026-10-26T00:00Z"]
        code = runtime.main(plan_experiment.run, job="plan_experiment", description="", argv=arguments)
    finally:
        path.write_text(before)
    assert code == Exit.INVALID
    assert words in capsys.readouterr().err
