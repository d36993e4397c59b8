"""Attributions of logged inputs by Spark against the same in numpy."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder

from mltrust.drift.attribution import AttributionRule, attribution_drift
from mltrust.slices import Slice
from mltrust.spark.attribution import N_BUCKETS, Attributions, Sampling, Version, attributions, background
from mltrust.spark.explainers import Model, explain
from mltrust.spark.replicates import SEED
from mltrust.states.replicates import delete_a_bucket
from mltrust.verdicts import Verdict
from tests.conftest import CountJobs
from tests.spark.frames import frame

TYPES = {"device": "string", "age": "long", "price": "double"}
SETS = [(), ("device",)]
OVERALL, TV = Slice("", ""), Slice("device", "tv")
N_UNITS = 300


def requests(seed: int = 0) -> pd.DataFrame:
    """Two requests of each unit; televisions are few."""
    rng = np.random.default_rng(seed)
    n = 2 * N_UNITS
    return pd.DataFrame(
        {
            "unit_id": [f"u{at // 2}" for at in range(n)],
            "request_id": [f"r{at}" for at in range(n)],
            "device": rng.choice(["mobile", "desktop", "tv"], N_UNITS, p=[0.6, 0.3, 0.1]).repeat(2),
            "age": rng.integers(16, 90, N_UNITS).repeat(2),
            "price": rng.exponential(1, n),
        }
    )


ROWS = requests()
LABEL = (ROWS["age"] - 50) / 15 + ROWS["price"] + np.random.default_rng(1).logistic(size=len(ROWS)) > 1


def fitted(model: Any) -> Pipeline:
    encode = ColumnTransformer([("codes", OneHotEncoder(), ["device"]), ("numbers", "passthrough", ["age", "price"])])
    return Pipeline([("encode", encode), ("model", model)]).fit(ROWS[list(TYPES)], LABEL)


def kept(model: Model) -> Model:
    return model


LINEAR = fitted(LogisticRegression(max_iter=1_000))
FOREST = fitted(RandomForestClassifier(10, max_depth=3, random_state=0))


def version(name: str, model: Model) -> Version:
    return Version(name, partial(kept, model), TYPES)


@pytest.fixture(scope="module")
def logged(spark: SparkSession) -> DataFrame:
    rows = [
        (unit, request, "", "w1" if at % 2 else "w2", device, (device, int(age), float(price)))
        for at, (unit, request, device, age, price) in enumerate(ROWS.itertuples(index=False))
    ]
    features = "features STRUCT<device: STRING, age: BIGINT, price: DOUBLE>"
    ddl = f"unit_id STRING, request_id STRING, item_id STRING, window STRING, device STRING, {features}"
    tuples = [(*row[:5], dict(zip(TYPES, row[5], strict=True))) for row in rows]
    return frame(spark, tuples, ddl)


def expected(logged: DataFrame, of: pd.DataFrame, model: Model, scale: Any, where: pd.Series) -> np.ndarray:
    """The sums of the state, from the values of all rows that `where` is true of."""
    chosen = ROWS[where]
    phi = np.abs(explain(model, of, scale=scale)(chosen[list(TYPES)]))
    units = pd.DataFrame(phi).groupby(chosen["unit_id"].to_numpy()).mean()
    hashed = logged.select("unit_id", F.xxhash64("unit_id").alias("hash")).distinct().toPandas().set_index("unit_id")
    return delete_a_bucket(
        tuple(TYPES), units.to_numpy(), hashed["hash"].loc[units.index].to_numpy(), seed=SEED, n_buckets=N_BUCKETS
    ).sums


def test_states_are_those_of_the_same_rows_in_numpy(logged: DataFrame, count_jobs: CountJobs) -> None:
    of = background(logged, TYPES, 20)
    assert len(of) == 20
    with count_jobs() as jobs:
        found = attributions(logged, [version("1", FOREST), version("2", LINEAR)], of=of, sets=SETS)
    # One counts units, one explains: with the map sides of their shuffles.
    assert jobs.n <= 7
    assert (found.scale, found.n_rows, found.n_refused) == ("score", len(ROWS), 0)
    assert found.methods == {"1": "tree", "2": "sampled"}
    [by_slice] = found.states.values()
    assert set(by_slice) == {OVERALL, TV, Slice("device", "mobile"), Slice("device", "desktop")}
    everybody = pd.Series(True, ROWS.index)
    for name, model in (("1", FOREST), ("2", LINEAR)):
        for where, rows in ((OVERALL, everybody), (TV, ROWS["device"] == "tv")):
            state = by_slice[where][name]
            assert state.columns == ("units", *TYPES)
            np.testing.assert_allclose(state.sums, expected(logged, of, model, "score", rows), rtol=1e-9)


def bits(found: Attributions) -> list[object]:
    return [
        (key, where, name, state.sums.tobytes())
        for key, by_slice in sorted(found.states.items())
        for where, by_version in sorted(by_slice.items())
        for name, state in by_version.items()
    ]


@pytest.mark.slow
def test_the_partitioning_of_the_rows_does_not_change_a_bit(logged: DataFrame) -> None:
    of = background(logged, TYPES, 20)
    sampling = Sampling(n_units=60, rows_per_unit=1)
    found = [
        attributions(rows, [version("1", LINEAR)], of=of, sets=SETS, keys=("window",), sampling=sampling)
        for rows in (logged, logged.repartition(5, "request_id"))
    ]
    assert found[0].scale == "margin"
    assert bits(found[0]) == bits(found[1])
    assert set(found[0].states) == {("w1",), ("w2",)}


def test_small_slices_are_taken_whole_and_large_ones_sampled(logged: DataFrame) -> None:
    of = background(logged, TYPES, 20)
    found = attributions(
        logged, [version("1", LINEAR)], of=of, sets=SETS, sampling=Sampling(n_units=60, rows_per_unit=1)
    )
    n = {where: states["1"].n for where, states in found.states[()].items()}
    n_tv = ROWS.loc[ROWS["device"] == "tv", "unit_id"].nunique()
    assert n[TV] == n_tv < 60
    # Binomial about 60, and the number of units is known to 5 %.
    assert 35 <= n[OVERALL] <= 85
    assert 35 <= n[Slice("device", "mobile")] <= 85
    assert found.n_rows == n[OVERALL]


def test_a_version_with_its_weights_swapped_is_found_on_the_same_inputs(logged: DataFrame) -> None:
    swapped = fitted(LogisticRegression(max_iter=1_000))
    coefficients = LINEAR[-1].coef_.copy()
    spread = LINEAR[:-1].transform(ROWS[list(TYPES)]).std(axis=0)
    coefficients[0, -1], coefficients[0, -2] = (
        coefficients[0, -2] * spread[-2] / spread[-1],
        coefficients[0, -1] * spread[-1] / spread[-2],
    )
    swapped[-1].coef_ = coefficients
    of = background(logged, TYPES, 20)
    found = attributions(logged, [version("1", LINEAR), version("2", swapped)], of=of, sets=[()])
    states = {where: (each["1"], each["2"]) for where, each in found.states[()].items()}
    verdicts = {each.column: each.verdict for each in attribution_drift(states, AttributionRule())}
    assert verdicts["age"] is verdicts["price"] is Verdict.BREACH
    assert verdicts["device"] is Verdict.PASS


class Picky:
    """A model that refuses ages that it does not know."""

    def predict(self, rows: pd.DataFrame) -> np.ndarray:
        if (rows["age"] > 85).any():
            raise ValueError("an age above 85")
        return rows["price"].to_numpy()


def test_rows_that_a_model_refuses_are_counted_and_left_out(logged: DataFrame) -> None:
    young = background(logged.where("features.age < 60"), TYPES, 8)
    found = attributions(logged, [version("1", Picky())], of=young, sets=[()])
    old = ROWS["age"] > 85
    assert found.n_refused == old.sum() > 0
    assert found.states[()][OVERALL]["1"].n == ROWS.loc[~old, "unit_id"].nunique()


def test_a_model_that_refuses_the_background_stops_before_any_work(logged: DataFrame) -> None:
    with pytest.raises(ValueError, match="above 85"):
        attributions(logged, [version("1", Picky())], of=background(logged, TYPES, 100), sets=[()])
