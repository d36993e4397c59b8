"""Built again where something changed, the unit tables are what a full build makes of the same rows."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from mltrust import build as building
from mltrust import conf
from mltrust.conf import Conf
from mltrust.experiment.spec import Experiment
from mltrust.runtime import Built
from mltrust.slices import Slicing
from tests.conftest import ROOT
from tests.spark.built import COLUMNS, EXPERIMENT, LOG, OUTCOMES, SPEED, an_outcome, at, row
from tests.spark.frames import frame

Values = tuple[object, ...]
_KEYS = {"inference_log": (0, 2, 3, 5, 6, 7), "outcomes": (0, 2, 3)}
UNCANCELLED = {*COLUMNS.requests, *COLUMNS.outcomes}
_SCHEMAS = {"inference_log": LOG, "outcomes": OUTCOMES}


class MemoryLake:
    """The tables of a lakehouse as lists, with the version in which each row of the log arrived."""

    def __init__(self, spark: SparkSession) -> None:
        self.spark = spark
        self.arrivals: dict[str, list[list[Values]]] = {name: [[]] for name in _KEYS}
        self.built: dict[str, DataFrame] = {}
        self.read_days: set[date] = set()

    def insert(self, name: str, rows: Sequence[Values]) -> None:
        """A row whose key is there already is skipped, as ingest does."""
        known = {self._key(name, each) for arrival in self.arrivals[name] for each in arrival}
        new = {self._key(name, each): each for each in rows if self._key(name, each) not in known}
        self.arrivals[name].append(list(new.values()))

    def _key(self, name: str, values: Values) -> Values:
        return tuple(values[at] for at in _KEYS[name])

    def versions(self) -> dict[str, int]:
        return {name: len(arrivals) - 1 for name, arrivals in self.arrivals.items()}

    def version(self, name: str) -> int:
        return 0

    def _frame(self, name: str, arrivals: Sequence[Sequence[Values]]) -> DataFrame:
        return frame(self.spark, [each for arrival in arrivals for each in arrival], _SCHEMAS[name])

    def read(self, name: str, version: int | None = None, where: Mapping[str, str] | None = None) -> DataFrame:
        if name in self.built:
            return self.built[name]
        return self._frame(name, self.arrivals[name][: 1 + (version or 0)])

    def arrived(self, name: str, after: int, upto: int) -> DataFrame:
        return self._frame(name, self.arrivals[name][after + 1 : upto + 1])

    def replace(
        self,
        rows: DataFrame,
        name: str,
        where: Mapping[str, str],
        metadata: Mapping[str, object],
        days: Sequence[date] | None = None,
    ) -> None:
        found = rows.collect() if days is None else []
        if days is not None:
            found = rows.select(*self.built[name].columns).collect()
            assert {each["day"] for each in found} <= set(days)
            found += self.built[name].where(~F.col("day").isin(list(days))).collect()
        schema = self.built[name].schema if name in self.built else rows.schema
        self.built[name] = frame(self.spark, found, schema)

    def exposures(self) -> dict[str, object]:
        return {each["unit_id"]: each.asDict(recursive=True) for each in self.built["exposures"].collect()}

    def unit_days(self) -> dict[tuple[str, date], dict[str, object]]:
        rows = self.built["unit_days"].collect()
        found = {(each["unit_id"], each["day"]): each.asDict() for each in rows}
        assert len(found) == len(rows)
        return found


@pytest.fixture(scope="module")
def shipped() -> Conf:
    return conf.load(ROOT / "conf/experiments/ranker_v2.yaml", "local")


def of(shipped: Conf, experiment: Experiment) -> Conf:
    return replace(shipped, experiment=experiment, columns=COLUMNS)


def assert_same(changed: MemoryLake, full: MemoryLake) -> None:
    assert changed.exposures() == full.exposures()
    found, expected = changed.unit_days(), full.unit_days()
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        for name, value in values.items():
            # Sums of a day in another order: equal to 1e-12, and where they may cancel, to 1e-12 of terms up to 70.
            cancels = 0 if name in UNCANCELLED else 1e-10
            same = pytest.approx(value, rel=1e-12, abs=cancels) if isinstance(value, float) else value
            assert found[key][name] == same, (key, name)


def build(lake: MemoryLake, conf: Conf, before: Built | None, as_of: datetime) -> Built:
    inputs = lake.versions()
    if before is None:
        return building.build_all(lake, conf, as_of, inputs)  # type: ignore[arg-type]
    earlier = building.earlier_build(lake, before, inputs)  # type: ignore[arg-type]
    assert earlier is not None
    reach = max(as_of, before.as_of)
    return building.build_changed(lake, conf, reach, inputs, before, earlier)[0]  # type: ignore[arg-type]


def random_row(rng: random.Random) -> Values:
    unit = rng.choice(["a", "b", "c", "d", None])
    # Units keep their variant mostly; requests come again under other items, times and now and then units.
    variant = rng.choice([*("ct"["abcd".index(unit) % 2] if unit else "c") * 4, "t", None])
    return row(
        at(rng.randint(3, 9), rng.randint(0, 23)),
        f"r{rng.randint(0, 11)}",
        unit,
        variant=variant,
        bucket=rng.choice(["b1", "b2", "b2", None]),
        device=rng.choice(["ios", "web", None]),
        traffic=rng.choice([*["production"] * 6, "shadow"]),
        status=rng.choice(["ok", "ok", "error"]),
        item=rng.choice(["", "", "i"]),
        version=rng.choice("12"),
        carries=rng.choice(["e", "e", "other"]),
        latency=rng.choice([None, rng.uniform(0, 1e6)]),
        score=rng.choice([None, 0.0, 1.0, 1.5, rng.random(), rng.random(), rng.random()]),
    )


def random_outcome(rng: random.Random) -> Values:
    by_request = rng.random() < 0.7
    return an_outcome(
        at(rng.randint(5, 9), rng.randint(0, 23)),
        f"o{rng.randint(0, 14)}",
        rng.choice(["click", "sale"]),
        rng.choice([None, rng.uniform(-1e3, 1e9), 1.0]),
        request=f"r{rng.randint(0, 13)}" if by_request else None,
        item=rng.choice([None, "", "i"]) if by_request else None,
        unit=rng.choice("abcde"),
        revision=rng.choice([0, 0, 0, 1, 2]),
    )


def build_past(lake: MemoryLake, conf: Conf, before: Built | None, as_of: datetime) -> Built:
    inputs = lake.versions()
    if before is None:
        return building.build_past(lake, conf, as_of, inputs)  # type: ignore[arg-type]
    earlier = building.earlier_build(lake, before, inputs)  # type: ignore[arg-type]
    assert earlier is not None
    reach = max(as_of, before.as_of)
    return building.build_changed_past(lake, conf, reach, inputs, before, earlier)[0]  # type: ignore[arg-type]


def assert_same_past(changed: MemoryLake, full: MemoryLake) -> None:
    for lake in (changed, full):
        lake.built["exposures"] = lake.built["unit_days"].limit(0)  # everyone has none
    assert_same(changed, full)


def assert_increments_give_the_full_build(
    spark: SparkSession, shipped: Conf, seed: int, between: Sequence[int] = (6, 7, 8)
) -> None:
    """Rows and outcomes of five days arrive in any order, twice, late and corrected, between builds."""
    rng = random.Random(seed)
    unit = ("unit_id", "unit_id", "request", "bucket_id")[seed % 4]
    of_buckets = {"slices": Slicing(), "metrics": (SPEED,)} if unit == "bucket_id" else {}
    conf = of(shipped, replace(EXPERIMENT, unit=unit, **of_buckets))  # type: ignore[arg-type]
    lake, before = MemoryLake(spark), None
    rows = [random_row(rng) for _ in range(rng.randint(1, 50))]
    outcomes = [random_outcome(rng) for _ in range(rng.randint(0, 40))]
    for as_of in (7, *rng.sample(between, 1 if between else 0), 10):
        lake.insert("inference_log", rng.sample(rows, len(rows) // 3))
        lake.insert("outcomes", rng.sample(outcomes, len(outcomes) // 2))
        first, before = before is None, build(lake, conf, before, at(as_of, 0))
        if first:
            continue
        full = MemoryLake(spark)
        full.arrivals = lake.arrivals
        expected = build(full, conf, None, before.as_of)
        assert_same(lake, full)
        assert before.left_out == expected.left_out


def assert_increments_give_the_full_past(spark: SparkSession, shipped: Conf, seed: int) -> None:
    """As above, of everyone's days from the fourth on; some rows and outcomes lie before."""
    rng = random.Random(seed)
    conf = of(shipped, replace(EXPERIMENT, pre_days=1))
    lake, before = MemoryLake(spark), None
    rows, outcomes = [random_row(rng) for _ in range(40)], [random_outcome(rng) for _ in range(30)]
    for as_of in (7, 6, 10):
        lake.insert("inference_log", rng.sample(rows, len(rows) // 3))
        lake.insert("outcomes", rng.sample(outcomes, len(outcomes) // 2))
        first, before = before is None, build_past(lake, conf, before, at(as_of, 0))
        if first:
            continue
        full = MemoryLake(spark)
        full.arrivals = lake.arrivals
        build_past(full, conf, None, before.as_of)
        assert_same_past(lake, full)
        assert {day.day for _, day in lake.unit_days()} <= set(range(4, before.as_of.day))


@pytest.mark.slow
def test_increments_give_the_full_past_in_any_order_of_arrival(spark: SparkSession, shipped: Conf) -> None:
    assert_increments_give_the_full_past(spark, shipped, seed=1)


def test_an_increment_gives_the_full_build(spark: SparkSession, shipped: Conf) -> None:
    assert_increments_give_the_full_build(spark, shipped, seed=0, between=())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_increments_give_the_full_build_in_any_order_of_arrival(
    spark: SparkSession, shipped: Conf, seed: int
) -> None:
    assert_increments_give_the_full_build(spark, shipped, seed)


@pytest.mark.slow
def test_increments_give_the_full_build_in_many_orders_of_arrival(spark: SparkSession, shipped: Conf) -> None:
    for seed in range(100, 106):
        assert_increments_give_the_full_build(spark, shipped, seed)
        assert_increments_give_the_full_past(spark, shipped, seed)


class Grown:
    """A build of two days, of which each test adds something."""

    def __init__(self, spark: SparkSession, shipped: Conf) -> None:
        self.lake, self.conf = MemoryLake(spark), of(shipped, EXPERIMENT)
        self.lake.insert("inference_log", [row(at(5), "r1", "a", variant="c"), row(at(6), "r2", "b", variant="t")])
        self.lake.insert("outcomes", [an_outcome(at(6), "o1", "sale", 5.0, request="r1")])
        self.before = build(self.lake, self.conf, None, at(7, 0))

    def then(self, rows: Sequence[Values] = (), outcomes: Sequence[Values] = ()) -> dict[tuple[str, int], object]:
        self.lake.insert("inference_log", rows)
        self.lake.insert("outcomes", outcomes)
        build(self.lake, self.conf, self.before, at(8, 0))
        return {(unit, day.day): each["money"] for (unit, day), each in self.lake.unit_days().items()}


@pytest.fixture
def grown(spark: SparkSession, shipped: Conf) -> Grown:
    return Grown(spark, shipped)


def test_a_late_correction_replaces_what_was_counted(grown: Grown) -> None:
    found = grown.then(outcomes=[an_outcome(at(7), "o1", "sale", 2.0, request="r1", revision=1)])
    assert found == {("a", 5): None, ("a", 7): 2.0, ("b", 6): None}


def test_a_retraction_takes_back_a_day_that_held_nothing_else(grown: Grown) -> None:
    found = grown.then(outcomes=[an_outcome(at(6), "o1", "sale", None, request="r1", revision=3)])
    assert found == {("a", 5): None, ("b", 6): None}


@pytest.mark.slow
def test_a_late_row_exposes_its_unit_earlier_and_everything_since_counts(grown: Grown) -> None:
    found = grown.then(
        [row(at(5, 1), "r0", "b", variant="c")], [an_outcome(at(6, 1), "o2", "sale", 7.0, request="r0")]
    )
    assert found == {("a", 5): None, ("a", 6): 5.0, ("b", 5): None, ("b", 6): 7.0}
    exposed = grown.lake.exposures()["b"]
    assert isinstance(exposed, dict)
    assert (exposed["variant"], exposed["request_id"]) == ("c", "r0")


@pytest.mark.slow
def test_an_outcome_waits_for_its_request(grown: Grown) -> None:
    found = grown.then(outcomes=[an_outcome(at(6), "o2", "sale", 3.0, request="r9")])
    assert ("a", 6) in found
    grown.before = replace_as_of(grown)
    found = grown.then([row(at(6, 1), "r9", "a", variant="c")])
    assert found["a", 6] == 8.0


def replace_as_of(grown: Grown) -> Built:
    return grown.before._replace(as_of=at(8, 0), input_versions=grown.lake.versions())


@pytest.mark.slow
def test_a_late_row_that_exposes_nobody_is_counted_and_changes_no_day(grown: Grown) -> None:
    untouched = grown.lake.unit_days()
    grown.lake.insert("inference_log", [row(at(6), "r9", None)])
    again = build(grown.lake, grown.conf, grown.before, at(7, 0))
    assert again.left_out == {"without_unit": 1, "without_variant": 0}
    assert again.input_versions == grown.lake.versions()
    assert grown.lake.unit_days() == untouched


def test_without_anything_new_nothing_is_written(grown: Grown) -> None:
    untouched = grown.lake.built["unit_days"]
    again = build(grown.lake, grown.conf, grown.before, at(7, 0))
    assert again == grown.before
    assert grown.lake.built["unit_days"] is untouched
