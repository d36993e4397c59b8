"""Profiles of log rows: the same integers from Spark as from numpy, however the rows lie, in one pass."""

from datetime import date, datetime, timedelta
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import DataFrame, Row, SparkSession

from mltrust.contract import FeatureType
from mltrust.drift.cells import MAX_DISTINCT, OrderedCells, UnorderedCells
from mltrust.drift.profile import Profile
from mltrust.drift.spec import Window
from mltrust.experiment.spec import Experiment
from mltrust.metrics import Metric
from mltrust.slices import Slicing
from mltrust.spark import edges
from mltrust.spark.profiles import EVERY_ROW, SHADOWED, Survey, profiles
from tests.conftest import CountJobs

START = date(2026, 10, 5)
DAYS = (Window(START, START + timedelta(days=1)), Window(START + timedelta(days=1), START + timedelta(days=2)))
BOTH = Window(START, START + timedelta(days=2))
COLUMNS: dict[str, FeatureType] = {"features.age": "long", "features.price": "double", "features.device": "string"}
SLICING = Slicing({"device": "features.device", "region": "features.region"}, (("device",), ("device", "region")))
EXPERIMENT = Experiment(
    "e", "log", "c", {START: {"c": 1, "t": 1}}, (Metric("m", "mean", "n_requests", role="goal"),), unit="unit_id"
)
N = 4000


class Rows(NamedTuple):
    """What the log holds, by column."""

    unit: np.ndarray
    day: np.ndarray
    version: np.ndarray
    traffic: np.ndarray
    request: np.ndarray
    variant: np.ndarray
    age: np.ndarray
    price: np.ndarray
    device: np.ndarray
    region: np.ndarray


@pytest.fixture(scope="module")
def made() -> Rows:
    rng = np.random.default_rng(7)
    unit = rng.integers(0, 900, N)
    day = rng.integers(0, 2, N)
    shadow = rng.random(N) < 0.2
    answered = np.maximum(np.arange(N) - 1, 0)
    unit, day = (np.where(shadow, each[answered], each) for each in (unit, day))
    price = np.exp(rng.normal(3, 0.6, N))
    price[rng.random(N) < 0.05] = np.nan
    device = np.array(["phone", "tv", "tablet", "watch", None], dtype=object)[
        rng.choice(5, N, p=[0.5, 0.3, 0.1, 0.05, 0.05])
    ]
    return Rows(
        unit,
        day,
        np.where(shadow, "2", "1"),
        np.where(shadow, "shadow", "production"),
        # Most shadows answer the request of the row before them, a production row of the same unit.
        np.where(shadow, answered, np.arange(N)),
        np.where(unit % 3 == 0, None, np.where(unit % 2, "t", "c")),
        rng.integers(20, 30, N),
        price,
        device,
        rng.choice(["emea", "apac"], N),
    )


@pytest.fixture(scope="module")
def log(spark: SparkSession, made: Rows) -> DataFrame:
    experiments = [
        [] if v is None else [{"experiment_id": "e", "bucket_id": None, "variant": v}] for v in made.variant
    ]
    entry = pa.struct([(name, pa.string()) for name in ("experiment_id", "bucket_id", "variant")])
    features = pa.StructArray.from_arrays(
        [
            pa.array(made.age),
            pa.array(made.price),
            pa.array(made.device, pa.string()),
            pa.array(made.region, pa.string()),
        ],
        names=["age", "price", "device", "region"],
    )
    table = pa.table(
        {
            "unit_id": pa.array([f"u{each}" for each in made.unit]),
            "request_id": pa.array([f"r{each}" for each in made.request]),
            "event_date": pa.array([START + timedelta(days=int(each)) for each in made.day]),
            "model_version": pa.array(made.version.tolist()),
            "traffic": pa.array(made.traffic.tolist()),
            "experiments": pa.array(experiments, pa.list_(entry)),
            "features": features,
        }
    )
    return spark.createDataFrame(table)


@pytest.fixture(scope="module")
def survey(log: DataFrame) -> Survey:
    basis = edges.basis(log, COLUMNS, SLICING, n_cells=10, max_values=3, max_slices=2)
    return Survey(basis.cells, (*DAYS, BOTH), SLICING, basis.kept, (EXPERIMENT,), with_shadowed=True)


def _key(row: Row) -> tuple[object, ...]:
    names = ("model_version", "traffic", "arm", "window_start", "window_end", "slice_key", "slice_value", "column")
    return tuple(row[name] for name in names)


@pytest.fixture(scope="module")
def found(log: DataFrame, survey: Survey) -> dict[tuple[object, ...], Row]:
    return {_key(row): row for row in profiles(log, survey).collect()}


def test_the_reference_alone_fixes_the_cells(survey: Survey, made: Rows) -> None:
    age, price, device = survey.cells.values()
    assert isinstance(age, OrderedCells)
    assert age.edges == tuple(range(20, 30)), "few different values have a cell each"
    assert isinstance(price, OrderedCells)
    assert np.allclose(price.edges, np.nanquantile(made.price, np.arange(1, 11) / 10), rtol=1e-3)
    assert (price.minimum, price.maximum) == (np.nanmin(made.price), np.nanmax(made.price))
    assert isinstance(device, UnorderedCells)
    assert (device.values, device.complete) == (("phone", "tv", "tablet"), False)
    assert survey.kept == {"device": ("phone", "tv"), "region": ("emea", "apac")} or survey.kept["region"] == (
        "apac",
        "emea",
    )


def _expected(survey: Survey, made: Rows, mask: np.ndarray, column: str) -> Profile:
    values = {"features.age": made.age, "features.price": made.price, "features.device": made.device}[column]
    hashes = made.unit.astype(np.int64)
    return Profile.of(survey.cells[column], values[mask], hashes[mask])


@pytest.mark.parametrize("column", list(COLUMNS))
@pytest.mark.parametrize(
    ("version", "traffic", "arm", "window", "slice_"),
    [
        ("1", "production", EVERY_ROW, BOTH, ("", "")),
        ("1", "production", EVERY_ROW, DAYS[1], ("device", "phone")),
        ("1", "production", EVERY_ROW, DAYS[0], ("device", "(other)")),
        ("2", "shadow", EVERY_ROW, BOTH, ("device x region", "tv x apac")),
        ("1", "production", "e/t", BOTH, ("", "")),
        ("1", "production", SHADOWED, BOTH, ("", "")),
    ],
)
def test_the_counts_are_those_of_numpy(
    found: dict[tuple[object, ...], Row], survey: Survey, made: Rows, column: str, version: str, traffic: str,
    arm: str, window: Window, slice_: tuple[str, str],
) -> None:  # fmt: skip
    mask = (made.version == version) & (made.traffic == traffic)
    mask &= np.isin(made.day, range((window.start - START).days, (window.end - START).days))
    device = np.array([each if each in ("phone", "tv") else "(other)" for each in made.device])
    device[[each is None for each in made.device]] = "(other)"
    if slice_[0]:
        values = {
            "device": device,
            "device x region": np.char.add(np.char.add(device, " x "), made.region.astype(str)),
        }
        mask &= values[slice_[0]] == slice_[1]
    if arm == "e/t":
        mask &= made.variant == "t"
    if arm == SHADOWED:
        pairs = set(zip(made.unit[made.traffic == "shadow"], made.request[made.traffic == "shadow"], strict=True))
        mask &= np.array([(u, r) in pairs for u, r in zip(made.unit, made.request, strict=True)])
    expected = _expected(survey, made, mask, column)
    times = (datetime.combine(day, datetime.min.time()) for day in window)
    row = found[version, traffic, arm, *times, *slice_, column]
    assert mask.sum() > 0
    assert row["edges_version"] == survey.cells[column].version
    assert (row["n_units"], np.array(row["units"]).tolist()) == (expected.n_units, expected.units.tolist())
    # Buckets are of Spark's hash of the unit's name: another one than the test's, so that only their sums agree.
    assert np.array(row["counts"]).sum(axis=1).tolist() == expected.by_cell.tolist()
    location = np.array(row["location"], dtype=np.int64).reshape(-1, 64)
    assert location.sum(axis=1).tolist() == expected.location.sum(axis=1).tolist()


@pytest.mark.slow
def test_partitions_change_no_bit(log: DataFrame, survey: Survey, found: dict[tuple[object, ...], Row]) -> None:
    again = {_key(row): row for row in profiles(log.repartition(5, "request_id"), survey).collect()}
    assert again == found
    assert (
        edges.basis(log.repartition(7), COLUMNS, SLICING, n_cells=10, max_values=3, max_slices=2).cells
        == survey.cells
    )


@pytest.mark.slow
def test_columns_slices_and_windows_add_no_job(log: DataFrame, survey: Survey, count_jobs: CountJobs) -> None:
    one = Survey({"features.age": survey.cells["features.age"]}, DAYS[:1], Slicing(), {})
    with count_jobs() as few:
        profiles(log, one).collect()
    with count_jobs() as many:
        profiles(log, survey).collect()
    with count_jobs() as twice:
        for window in DAYS:
            profiles(log, one._replace(windows=(window,))).collect()
    assert many.n == few.n
    assert twice.n > few.n, "a pass more would be seen"


def test_numbers_of_many_values_are_cut_at_quantiles_and_columns_without_values_have_no_cells(
    spark: SparkSession,
) -> None:
    n = MAX_DISTINCT + 1
    frame = spark.range(n).selectExpr(
        "cast(id as string) request_id", "id age", "cast(null as double) price", "cast(null as string) device"
    ).selectExpr("request_id", "named_struct('age', age, 'price', price, 'device', device) features")  # fmt: skip
    found = edges.basis(frame, COLUMNS, Slicing(), n_cells=4, max_values=3, max_slices=2)
    assert list(found.cells) == ["features.age"]
    age = found.cells["features.age"]
    assert isinstance(age, OrderedCells)
    assert age.edges == (5, 10, 15, 20)
