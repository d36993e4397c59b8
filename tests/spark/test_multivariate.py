"""Two-sample tests by Spark against the same rows in numpy."""

import numpy as np
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from mltrust.drift.multivariate import two_sample
from mltrust.slices import Slice
from mltrust.spark.multivariate import two_samples
from tests.spark.frames import frame

N = 600
OVERALL, TV = Slice("", ""), Slice("device", "tv")


def test_windows_are_told_from_the_reference_as_in_numpy(spark: SparkSession) -> None:
    rng = np.random.default_rng(3)
    window = np.repeat(["reference", "clean", "drifted"], N // 3)
    device = rng.choice(["mobile", "tv"], N)
    age = rng.normal(size=N) + 2.0 * (window == "drifted")
    rows = [
        (
            f"u{at // 2}",
            f"r{at}",
            "",
            str(window[at]),
            str(device[at]),
            {"age": float(age[at]), "device": str(device[at])},
        )
        for at in range(N)
    ]
    features = "features STRUCT<age: DOUBLE, device: STRING>"
    ddl = f"unit_id STRING, request_id STRING, item_id STRING, window STRING, device STRING, {features}"
    log = frame(spark, rows, ddl)
    columns = {"features.age": "double", "features.device": "string"}
    found, again = (
        two_samples(
            each, columns, key="window", reference="reference", windows=["clean", "drifted"], sets=[(), ("device",)]
        )
        for each in (log, log.repartition(5, "request_id"))
    )
    assert found == again
    assert set(found["clean"]) == {OVERALL, TV, Slice("device", "mobile")}
    assert found["drifted"][OVERALL].auc > 0.85 > 0.6 > found["clean"][OVERALL].auc
    hashes = log.select(F.xxhash64("unit_id"), F.xxhash64("request_id", "item_id")).collect()
    unit, order = np.array(hashes, dtype=np.int64).T
    own = np.flatnonzero(window != "clean")
    ordered = own[np.lexsort((order[own], unit[own]))]
    expected = two_sample([age[ordered], device[ordered].tolist()], window[ordered] == "drifted", unit[ordered])
    assert found["drifted"][OVERALL] == pytest.approx(expected)
    sampled = two_samples(log, columns, key="window", reference="reference", windows=["clean"], sets=[()], n_rows=60)
    # About 60 rows of each side, of nearly as many units.
    assert all(35 < n < 85 for n in sampled["clean"][OVERALL][:2])
