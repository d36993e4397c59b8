"""The log's past as an experiment: who enters when, with which slice, and what counts to which week."""

from dataclasses import replace
from datetime import date, timedelta

import pytest
from pyspark.sql import DataFrame, SparkSession

from mltrust.errors import ConfError
from mltrust.experiment.cells import UNITS
from mltrust.experiment.plan import Plan
from mltrust.experiment.spec import Experiment
from mltrust.experiment.trial import History, Trial
from mltrust.metrics import Metric
from mltrust.spark import experiments, exposure, outcome, plans, units
from tests.spark.built import AS_OF as MIDNIGHT
from tests.spark.built import COLUMNS, EXPERIMENT, LOG, OUTCOMES, an_outcome, at, row
from tests.spark.frames import frame

AS_OF = MIDNIGHT.replace(day=26)
PLANNED = replace(
    EXPERIMENT,
    phases={date(2026, 11, 2): {"c": 1.0, "t": 1.0}},
    buckets={},
    metrics=(
        Metric("clicked", "proportion", "clicks", role="goal", window_days=2),
        Metric("speed", "ratio", "latency", denominator="n_predictions", role="goal"),
    ),
    pre_days=3,
    plan=Plan(history_weeks=2),
)


@pytest.fixture(scope="module")
def log(spark: SparkSession) -> DataFrame:
    rows = [
        row(at(1), "r0", "a", carries="x"),
        row(at(4), "r1", "a", latency=100.0, carries="x"),
        row(at(6), "r2", "a", device="tv", latency=10.0, carries="x"),
        row(at(6, 13), "r3", "a", device="ios", latency=20.0, carries="e", variant="t"),
        row(at(13), "r4", "a", latency=30.0, carries="x"),
        row(at(14), "r5", "b", latency=40.0, version="2", carries="x"),
        row(at(20), "r6", "c", latency=50.0, carries="x"),
        row(at(20), "r7", None, carries="x"),
    ]
    return frame(spark, rows, LOG)


@pytest.fixture(scope="module")
def clicks(spark: SparkSession) -> DataFrame:
    told = [
        an_outcome(at(4), "o1", request="r1"),
        an_outcome(at(6, 11), "o2", request="r1"),  # of a request before the trial
        an_outcome(at(7), "o3", request="r2"),
        an_outcome(at(16), "o4", request="r5"),  # the window of two days is over
    ]
    return frame(spark, told, OUTCOMES)


def trial_of(experiment: Experiment) -> Trial:
    return Trial.before(AS_OF.date(), experiment, History(date(2026, 9, 1), date(2026, 10, 25)))


def test_the_history_is_that_of_units_on_rows_that_expose(log: DataFrame) -> None:
    assert plans.history(log, PLANNED) == History(date(2026, 10, 1), date(2026, 10, 20))
    newer = replace(PLANNED, plan=Plan(where="model_version = '2'"))
    assert plans.history(log, newer) == History(date(2026, 10, 14), date(2026, 10, 14))
    nobody = replace(PLANNED, plan=Plan(where="traffic = 'shadow'"))
    assert plans.history(log, nobody) == History(None, None)


def test_a_condition_that_cannot_be_read_on_a_record_is_a_conf_error(log: DataFrame) -> None:
    with pytest.raises(ConfError, match=r"plan.where: 'modl = 2' cannot be read on a record: .*modl"):
        plans.exposing(log, replace(PLANNED, plan=Plan(where="modl = 2")))


def test_units_enter_when_first_seen_with_what_was_known_then(log: DataFrame) -> None:
    trial = trial_of(PLANNED)
    assert (trial.start, trial.weeks) == (date(2026, 10, 5), 3)
    candidates = exposure.candidates(plans.carrying(log, trial.experiment), trial.experiment)
    found = {
        row["unit_id"]: (row["first_exposure"].date(), row["variant"], row["slice_values"]["device"])
        for row in exposure.found(candidates, trial.experiment).collect()
    }
    assert found == {
        "a": (date(2026, 10, 6), "c", "tv"),
        "b": (date(2026, 10, 14), "c", "ios"),
        "c": (date(2026, 10, 20), "c", "ios"),
    }


def test_weeks_are_phases_and_values_count_as_the_experiment_will_count_them(
    log: DataFrame, clicks: DataFrame
) -> None:
    trial = trial_of(PLANNED)
    tried = trial.experiment
    exposed = exposure.found(exposure.candidates(plans.carrying(log, tried), tried), tried)
    current = outcome.current(clicks, outcome.corrected(clicks), AS_OF)
    resolved = outcome.resolved(current, log, tried)
    everyone = units.everyone(tried, tried.past_since)
    days = units.unit_days(
        units.counted(log, exposed, tried), outcome.counted(current, resolved, exposed, tried), tried, COLUMNS
    ).unionByName(
        units.unit_days(
            units.counted(log, None, everyone),
            outcome.counted(current, resolved, None, everyone),
            everyone,
            COLUMNS,
        )
    )
    states = experiments.states(
        exposed, plans.with_copies(days, trial), tried, AS_OF, max_cells=20_000, max_values=50
    ).overall
    assert [states.count(UNITS, "c", (week,)) for week in range(3)] == [1, 1, 1]
    assert states.count(UNITS, "t") == 0
    clicked, *speed = tried.metrics
    # Of the unit a the click of r2 counts; r1 was before the trial, and its click on the first day too.
    of_clicks = [states.moments(clicked, "c", (week,)) for week in range(3)]
    assert [state.mean[0] for state in of_clicks] == [1, 0, 0]
    assert of_clicks[0].mean[of_clicks[0].index("past clicks")] == 1
    # Latency of a up to the ends of the three weeks: r2 and r3, then r4 too.
    of_a = [states.moments(metric, "c", (0,)) for metric in speed]
    assert [state.mean[:2].tolist() for state in of_a] == [[30, 2], [60, 3], [60, 3]]
    assert of_a[0].mean[of_a[0].index("past latency_upto_week_1")] == 100
    assert states.moments(speed[2], "c", (2,)).mean[:2].tolist() == [50, 1]


def test_copies_count_before_the_end_of_their_week(spark: SparkSession) -> None:
    trial = trial_of(PLANNED)
    first = trial.start
    days = frame(spark, [(first + timedelta(days=n), 1.0, 2) for n in (-1, 6, 7, 14)],
                 "day DATE, latency DOUBLE, n_predictions BIGINT")  # fmt: skip
    found = plans.with_copies(days, trial).orderBy("day").collect()
    assert [[row[f"latency_upto_week_{week}"] for row in found] for week in (1, 2, 3)] == [
        [1, 1, None, None],
        [1, 1, 1, None],
        [1, 1, 1, 1],
    ]
    assert found[0]["n_predictions_upto_week_1"] == 2


def test_the_trial_of_requests_has_a_unit_for_each(log: DataFrame) -> None:
    requests = replace(PLANNED, unit="request", pre_days=None)
    tried = trial_of(requests).experiment
    exposed = exposure.found(exposure.candidates(plans.carrying(log, tried), tried), tried)
    assert {row["unit_id"] for row in exposed.collect()} == {"r2", "r3", "r4", "r5", "r6", "r7"}
