"""Performance states by Spark against the same in numpy."""

from math import nan

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from mltrust.drift.performance import ScoreLabels
from mltrust.slices import Slice
from mltrust.spark.performance import score_labels
from mltrust.states.moments import FloatArray
from tests.spark.frames import frame

N = 400
RNG = np.random.default_rng(4)
UNITS = [f"u{at // 2}" for at in range(N)]
DEVICES = RNG.choice(["mobile", "tv"], N).tolist()
SCORES: FloatArray = np.concatenate([[0.0, 1.0, 1.5, nan], RNG.random(N - 4)])
LABELS = RNG.choice([0.0, 1.0, nan], N)
MATURE = RNG.random(N) < 0.9
OVERALL = Slice("", "")


@pytest.fixture(scope="module")
def labelled(spark: SparkSession) -> DataFrame:
    rows = [
        (
            unit,
            f"r{at}",
            device,
            "w",
            None if np.isnan(score) else float(score),
            None if np.isnan(label) else float(label),
            bool(is_mature),
        )
        for at, (unit, device, score, label, is_mature) in enumerate(
            zip(UNITS, DEVICES, SCORES, LABELS, MATURE, strict=True)
        )
    ]
    ddl = "unit_id STRING, request_id STRING, device STRING, window STRING, prediction_score DOUBLE, label DOUBLE"
    return frame(spark, rows, f"{ddl}, is_mature BOOLEAN")


def same(found: ScoreLabels, expected: ScoreLabels) -> None:
    assert found.counts.tolist() == expected.counts.tolist()
    assert (found.n_units, found.n_unusable) == (expected.n_units, expected.n_unusable)


def test_states_are_those_of_the_mature_rows_in_numpy(spark: SparkSession, labelled: DataFrame) -> None:
    hashed = labelled.select("unit_id", F.xxhash64("unit_id").alias("hash")).distinct().toPandas()
    of_unit = dict(hashed.itertuples(index=False))
    hashes = np.array([of_unit[unit] for unit in UNITS])
    found = score_labels(labelled, sets=[(), ("device",)], keys=("window",))[("w",)]
    assert set(found) == {OVERALL, Slice("device", "mobile"), Slice("device", "tv")}
    counted = MATURE & ~np.isnan(SCORES)
    for where, state in found.items():
        own = counted & ((where == OVERALL) | (np.array(DEVICES) == where.slice_value))
        same(state, ScoreLabels.of(SCORES[own], LABELS[own], hashes[own]))
    assert found[OVERALL].n_unusable == int(MATURE[2])
    again = score_labels(labelled.repartition(5, "request_id"), sets=[()], keys=("window",))[("w",)]
    same(again[OVERALL], found[OVERALL])


def test_a_label_that_is_neither_0_nor_1_is_not_usable(labelled: DataFrame) -> None:
    counts = labelled.withColumn("label", F.lit(2.0)).withColumn("is_mature", F.lit(True))
    state = score_labels(counts, sets=[()])[()][OVERALL]
    assert state.n_predictions == 0
    assert state.n_unusable == N - 1
