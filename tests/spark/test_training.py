"""Training sets: labels by hand, nothing from the future or from outside the window, and the content hash."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from mltrust import conf
from mltrust.contract import Contract
from mltrust.io.tables import Lakehouse
from mltrust.spark import training
from mltrust.training import Exported, Label, Split, TrainingSet
from tests.conftest import ROOT, CountJobs
from tests.spark.frames import frame

FEATURES = "features STRUCT<device: STRING, price: DOUBLE, seen: TIMESTAMP>"
LOG = f"""event_date DATE, event_time TIMESTAMP, request_id STRING, item_id STRING, unit_id STRING, model_name STRING,
model_version STRING, traffic STRING, status STRING, feature_version STRING, prediction_score DOUBLE, action STRING,
propensity DOUBLE, {FEATURES}"""
OUTCOMES = """event_date DATE, event_time TIMESTAMP, outcome_id STRING, revision BIGINT, request_id STRING,
item_id STRING, unit_id STRING, name STRING, value DOUBLE"""
CHOSEN = ("device", "price", "seen")
ANY = Label("sale", "any", 2)
SET = TrainingSet("s", "log", date(2026, 10, 5), date(2026, 10, 8), ANY)
AS_OF = datetime(2026, 10, 12, tzinfo=UTC)
Values = tuple[object, ...]


def at(day: int, hour: int = 12, minute: int = 0) -> datetime:
    return datetime(2026, 10, day, hour, minute, tzinfo=UTC)


def row(
    when: datetime,
    request: str,
    *,
    item: str = "",
    unit: str | None = "u",
    name: str = "m",
    version: str = "1",
    traffic: str = "production",
    status: str = "ok",
    device: str | None = "ios",
    price: float | None = 1.5,
) -> Values:
    features = (device, price, at(1))
    logged = (when.date(), when, request, item, unit, name, version, traffic, status, "f1", 0.5, None, None)
    return (*logged, features)


def outcome(
    when: datetime,
    outcome_id: str,
    value: float | None = 1.0,
    *,
    request: str | None = "r1",
    item: str | None = None,
    unit: str | None = None,
    name: str = "sale",
    revision: int = 0,
) -> Values:
    return (when.date(), when, outcome_id, revision, request, item, unit, name, value)


class Export:
    """An export of rows and outcomes given by hand."""

    def __init__(
        self,
        spark: SparkSession,
        rows: Sequence[Values],
        outcomes: Sequence[Values] = (),
        training_set: TrainingSet = SET,
        as_of: datetime = AS_OF,
        chosen: Sequence[str] = CHOSEN,
    ) -> None:
        log, told = frame(spark, rows, LOG), frame(spark, outcomes, OUTCOMES)
        self.chosen, self.training_set = chosen, training_set
        taken = training.predictions(log, training_set, chosen, StructType.fromDDL(FEATURES), as_of)  # type: ignore[arg-type]
        self.labelled: DataFrame = training.labelled(taken, told, training_set.label, as_of, since=training_set.start)

    def summary(self) -> Exported:
        return training.summary(self.labelled, self.chosen)

    def labels(self) -> dict[tuple[str, str, int], float]:
        rows = training.exported(self.labelled, self.training_set).collect()
        return {(each["request_id"], each["item_id"], each["event_date"].day): each["label"] for each in rows}


def test_rows_are_the_production_predictions_of_the_days_that_did_not_fail(spark: SparkSession) -> None:
    rows = [
        row(at(4, 23, 59), "before"),
        row(at(5, 0), "first"),
        row(at(7, 23, 59), "last"),
        row(at(8, 0), "after"),
        row(at(5), "shadow", traffic="shadow"),
        row(at(5), "error", status="error"),
        row(at(5), "other model", name="n"),
        row(at(5), "other version", version="2"),
    ]
    assert {key[0] for key in Export(spark, rows).labels()} == {"first", "last", "other model", "other version"}
    of_model = replace(SET, model_name="m")
    assert {key[0] for key in Export(spark, rows, (), of_model).labels()} == {"first", "last", "other version"}
    of_version = replace(SET, model_name="m", model_versions=("1", "3"))
    assert {key[0] for key in Export(spark, rows, (), of_version).labels()} == {"first", "last"}


def test_features_are_as_logged_and_those_not_chosen_are_null(spark: SparkSession) -> None:
    export = Export(spark, [row(at(5), "r1", price=None)], chosen=("device", "price"))
    [found] = training.exported(export.labelled, SET).collect()
    assert found["features"].asDict() == {"device": "ios", "price": None, "seen": None}
    assert (found["training_set_id"], found["unit_id"], found["prediction_score"]) == ("s", "u", 0.5)
    assert export.summary().null_shares == {"device": 0, "price": 1}


@pytest.mark.parametrize(
    ("aggregate", "expected"), [("any", (1, 0)), ("count", (3, 0)), ("sum", (11, 0)), ("last", (2, 0))]
)
def test_a_label_is_of_the_outcomes_from_its_prediction_on_within_the_window(
    spark: SparkSession, aggregate: str, expected: tuple[float, float]
) -> None:
    outcomes = [
        outcome(at(5, 11, 59), "too early", 100.0),
        outcome(at(5, 12), "at once", 4.0),
        outcome(at(6), "later", 5.0),
        outcome(at(7, 11, 59), "last minute", 2.0),
        outcome(at(7, 12), "too late", 100.0),
        outcome(at(6), "another name", 100.0, name="rating"),
        outcome(at(6), "another request", 100.0, request="r3"),
    ]
    label = replace(ANY, aggregate=aggregate)
    rows = [row(at(5), "r1"), row(at(5), "r2")]
    labels = Export(spark, rows, outcomes, replace(SET, label=label)).labels()
    assert (labels["r1", "", 5], labels["r2", "", 5]) == expected


def test_the_item_decides_where_the_outcome_names_one(spark: SparkSession) -> None:
    rows = [row(at(5), "r1", item="a"), row(at(5), "r1", item="b")]
    outcomes = [outcome(at(6), "of all"), outcome(at(6), "of b", item="b"), outcome(at(6), "of none", item="")]
    labels = Export(spark, rows, outcomes, replace(SET, label=replace(ANY, aggregate="count"))).labels()
    assert labels == {("r1", "a", 5): 1, ("r1", "b", 5): 2}


def test_one_request_id_on_two_days_is_two_rows_each_with_its_own_window(spark: SparkSession) -> None:
    rows = [row(at(5), "r1"), row(at(7), "r1")]
    outcomes = [outcome(at(6), "1"), outcome(at(7, 11), "2"), outcome(at(8), "3")]
    labels = Export(spark, rows, outcomes, replace(SET, label=replace(ANY, aggregate="count"))).labels()
    assert labels == {("r1", "", 5): 2, ("r1", "", 7): 1}


def test_by_unit_every_outcome_that_names_the_unit_counts_and_rows_without_one_have_no_label(
    spark: SparkSession,
) -> None:
    rows = [row(at(5), "r1", unit="u"), row(at(5), "r2", unit="v"), row(at(5), "r3", unit=None)]
    outcomes = [
        outcome(at(6), "of unit", request=None, unit="u"),
        outcome(at(6), "of both", request="r9", unit="u"),
        outcome(at(6), "of request", request="r2", unit=None),
    ]
    label = Label("sale", "count", 2, by="unit")
    export = Export(spark, rows, outcomes, replace(SET, label=label))
    assert export.labels() == {("r1", "", 5): 2, ("r2", "", 5): 0}
    assert export.summary().n_missing == 1


def test_missing_is_zero_or_left_out_and_counted(spark: SparkSession) -> None:
    rows, outcomes = [row(at(5), "r1"), row(at(5), "r2")], [outcome(at(6), "1", 0.0)]
    exports = {
        missing: Export(spark, rows, outcomes, replace(SET, label=Label("sale", "sum", 2, missing=missing)))
        for missing in ("zero", "exclude")
    }
    found = {missing: export.summary() for missing, export in exports.items()}
    assert exports["zero"].labels() == {("r1", "", 5): 0, ("r2", "", 5): 0}
    assert exports["exclude"].labels() == {("r1", "", 5): 0}
    assert [(each.n_rows, each.n_missing, each.n_followed, each.n_positive) for each in found.values()] == [
        (2, 0, 1, 0),
        (1, 1, 1, 0),
    ]


def test_immature_rows_are_counted_and_left_out(spark: SparkSession) -> None:
    rows = [row(at(5, 23), "r1"), row(at(6, 0), "just mature"), row(at(6, 0, 1), "r3"), row(at(7), "r4")]
    export = Export(spark, rows, as_of=at(8, 0))
    assert {key[0] for key in export.labels()} == {"r1", "just mature"}
    found = export.summary()
    assert (found.n_rows, found.n_immature, found.n_missing) == (2, 2, 0)


def test_the_highest_revision_counts_at_its_own_time_and_a_null_value_retracts(spark: SparkSession) -> None:
    outcomes = [
        outcome(at(6), "corrected", 5.0),
        outcome(at(6), "corrected", 8.0, revision=2),
        outcome(at(6), "corrected", 6.0, revision=1),
        outcome(at(6), "retracted", 100.0),
        outcome(at(6), "retracted", None, revision=1),
        outcome(at(6), "moved out", 100.0),
        outcome(at(8), "moved out", 100.0, revision=1),
        outcome(at(6), "renamed", 100.0),
        outcome(at(6), "renamed", 100.0, revision=1, name="rating"),
    ]
    label = Label("sale", "sum", 2)
    assert Export(spark, [row(at(5), "r1")], outcomes, replace(SET, label=label)).labels() == {("r1", "", 5): 8}


ROWS = [row(at(5, hour), f"r{hour}", unit=f"u{hour % 5}", price=hour / 7) for hour in range(24)]
TOLD = [
    outcome(at(6, hour), f"o{hour}", hour / 3, request=f"r{hour}", unit=f"u{hour % 5}") for hour in range(0, 24, 3)
]
SUMS = replace(SET, label=Label("sale", "sum", 2), split=Split(0.5))
LEAKS: dict[str, tuple[list[Values], list[Values]]] = {
    "rows outside the days": ([row(at(4), "r1"), row(at(8, 0), "r2", unit="u1")], []),
    "rows after as_of": ([row(at(12, 0), "r1")], []),
    "outcomes after as_of": ([], [outcome(at(12, 0), "new", request="r1")]),
    "corrections after as_of": ([], [outcome(at(12, 0), "o3", 99.0, request="r3", revision=1)]),
    "retractions after as_of": ([], [outcome(at(13), "o3", None, request="r3", revision=1)]),
    "outcomes before the window": (
        [],
        [outcome(at(4), "new", request="r3"), outcome(at(5, 2, 59), "x", request="r3")],
    ),
    "outcomes after the window": ([], [outcome(at(7, 3), "new", request="r3")]),
    "shadow rows": ([row(at(5), "r3", traffic="shadow", version="9")], []),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_nothing_from_after_as_of_or_outside_the_window_changes_anything(spark: SparkSession, leak: str) -> None:
    rows, outcomes = LEAKS[leak]
    assert Export(spark, ROWS + rows, TOLD + outcomes, SUMS).summary() == export_of_all(spark)


def export_of_all(spark: SparkSession) -> Exported:
    found = Export(spark, ROWS, TOLD, SUMS).summary()
    assert (found.n_rows, found.n_followed, found.n_immature) == (24, 8, 0)
    return found


def test_a_set_that_ends_after_as_of_takes_what_is_mature_and_no_row_from_after_it(spark: SparkSession) -> None:
    longer = replace(SUMS, end=date(2026, 12, 1))
    late = [row(at(11), "immature"), row(at(12, 0), "after as_of")]
    found = Export(spark, ROWS + late, TOLD, longer).summary()
    assert (found.n_rows, found.n_immature) == (24, 1)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.randoms(use_true_random=False), st.integers(1, 6))
@pytest.mark.slow
def test_the_hash_does_not_depend_on_the_order_or_the_partitions(
    spark: SparkSession, random: st.random_module, n: int
) -> None:
    rows, outcomes = list(ROWS), list(TOLD)
    random.shuffle(rows)  # type: ignore[attr-defined]
    random.shuffle(outcomes)  # type: ignore[attr-defined]
    export = Export(spark, rows, outcomes, SUMS)
    export.labelled = export.labelled.repartition(n)
    assert export.summary().content_hash == export_of_all(spark).content_hash


CHANGES: dict[str, tuple[list[Values], list[Values], TrainingSet]] = {
    "a row less": (ROWS[1:], TOLD, SUMS),
    "a row twice": ([*ROWS, ROWS[0]], TOLD, SUMS),
    "another key": ([row(at(5, 0), "r0", unit="u0", price=0 / 7, version="2"), *ROWS[1:]], TOLD, SUMS),
    "another time": ([row(at(5, 0, 1), "r0", unit="u0", price=0 / 7), *ROWS[1:]], TOLD, SUMS),
    "a feature by one bit": ([*ROWS[:-1], row(at(5, 23), "r23", unit="u3", price=23 / 7 + 2**-50)], TOLD, SUMS),
    "a feature that is null": ([row(at(5, 0), "r0", unit="u0", price=None), *ROWS[1:]], TOLD, SUMS),
    "two features that changed rows": (
        [
            row(at(5, 0), "r0", unit="u0", price=1 / 7),
            row(at(5, 1), "r1", unit="u1", price=0 / 7),
            *ROWS[2:],
        ],
        TOLD,
        SUMS,
    ),
    "a label": (ROWS, [*TOLD[:-1], outcome(at(6, 21), "o21", 7.5, request="r21")], SUMS),
    "another seed": (ROWS, TOLD, replace(SUMS, split=Split(0.5, 1))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_gives_another_hash(spark: SparkSession, change: str) -> None:
    rows, outcomes, training_set = CHANGES[change]
    changed = Export(spark, rows, outcomes, training_set).summary()
    assert changed.content_hash != export_of_all(spark).content_hash


def test_the_hash_is_of_the_chosen_features_only(spark: SparkSession) -> None:
    whole = Export(spark, ROWS, TOLD, SUMS).summary().content_hash
    without = Export(spark, ROWS, TOLD, SUMS, chosen=("device",)).summary().content_hash
    others = [row(at(5, hour), f"r{hour}", unit=f"u{hour % 5}", price=9.0) for hour in range(24)]
    assert without != whole
    assert Export(spark, others, TOLD, SUMS, chosen=("device",)).summary().content_hash == without


def test_a_unit_is_in_one_fold_whatever_its_rows_and_the_share_is_as_asked(spark: SparkSession) -> None:
    # A share of 20 % of 500 units has a standard deviation of 1.8 %: four of them.
    rows = [row(at(5 + n % 3, n % 24), f"r{n}", unit=f"u{n % 500}") for n in range(1000)]
    split = replace(SET, split=Split(0.2, 7))
    folds = fold_by_unit(spark, rows, split)
    assert all(len(each) == 1 for each in folds.values())
    share = sum(each == {"test"} for each in folds.values()) / 500
    assert share == pytest.approx(0.2, abs=4 * 0.018)
    # In another set with the same seed a unit falls alike; with another seed not all do.
    assert fold_by_unit(spark, rows[:300], replace(split, training_set_id="other")).items() <= folds.items()
    assert fold_by_unit(spark, rows, replace(SET, split=Split(0.2, 8))) != folds


def fold_by_unit(spark: SparkSession, rows: Sequence[Values], training_set: TrainingSet) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for each in training.exported(Export(spark, rows, (), training_set).labelled, training_set).collect():
        found.setdefault(each["unit_id"], set()).add(each["fold"])
    return found


def test_a_row_without_a_unit_has_no_fold_and_is_counted(spark: SparkSession) -> None:
    export = Export(spark, [row(at(5), "r1", unit=None), row(at(5), "r2")], (), replace(SET, split=Split(0.5)))
    found = export.summary()
    assert (found.n_no_fold, found.n_train + found.n_test) == (1, 1)


def test_no_rows_have_a_summary(spark: SparkSession) -> None:
    found = Export(spark, []).summary()
    assert (found.n_rows, found.n_immature) == (0, 0)
    assert found.label_mean != found.label_mean


def test_a_summary_is_one_pass(spark: SparkSession, count_jobs: CountJobs) -> None:
    export = Export(spark, ROWS, TOLD, SUMS)
    with count_jobs() as jobs:
        export.summary()
    # Outcomes and rows that lie in the plan cost no job; corrections, how they meet, the sums, the result do.
    assert jobs.n == 4


@pytest.mark.slow
def test_what_arrives_after_the_versions_that_are_read_changes_nothing(spark: SparkSession, tmp_path: Path) -> None:
    contract, _ = conf.read(Contract, ROOT / "conf/contracts/recommendations.yaml")
    lake = Lakehouse(spark, contract, root=str(tmp_path), keep_days={"audit": 400, "rebuild": 30})
    lake.ensure("inference_log", "outcomes")
    arrival = {"content_hash": "h", "ingested_at": at(9), "source": "file", "ingest_batch": "b"}

    def told(revision: int, value: float | None) -> None:
        made = {"event_date": date(2026, 10, 6), "event_time": at(6), "outcome_id": "o", "revision": revision,
                "request_id": "r1", "item_id": None, "unit_id": None, "name": "sale", "value": value,
                "extra": None}  # fmt: skip
        lake.insert_new(lake.rows("outcomes", [made | arrival]), "outcomes", [date(2026, 10, 6)])

    def export(version: int) -> Exported:
        log = frame(spark, [row(at(5), "r1")], LOG)
        taken = training.predictions(log, SUMS, CHOSEN, log.schema, AS_OF)
        return training.summary(
            training.labelled(taken, lake.read("outcomes", version), SUMS.label, AS_OF, since=SUMS.start), CHOSEN
        )

    told(0, 5.0)
    pinned = lake.version("outcomes")
    before = export(pinned)
    told(1, 7.0)
    told(2, None)
    later = lake.version("outcomes")
    assert (before.label_mean, export(pinned), export(later).label_mean) == (5.0, before, 0.0)
    assert export(later - 1).label_mean == 7.0


def test_the_window_is_of_24_hours_a_day_to_the_microsecond(spark: SparkSession) -> None:
    when = at(5) + timedelta(microseconds=1)
    inside, outside = when + timedelta(days=2, microseconds=-1), when + timedelta(days=2)
    for moment, expected in ((inside, 1.0), (outside, 0.0), (when, 1.0), (when - timedelta(microseconds=1), 0.0)):
        assert Export(spark, [row(when, "r1")], [outcome(moment, "o")]).labels() == {("r1", "", 5): expected}
