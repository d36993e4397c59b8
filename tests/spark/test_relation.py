"""Residuals by cell by Spark against the same in numpy."""

from math import nan

import numpy as np
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from mltrust.drift.cells import OrderedCells, UnorderedCells
from mltrust.drift.relation import Residuals
from mltrust.slices import Slice
from mltrust.spark.relation import residuals
from tests.spark.frames import frame

N = 500
RNG = np.random.default_rng(6)
AGES = np.where(RNG.random(N) < 0.1, nan, RNG.normal(40, 12, N))
DEVICES: list[str | None] = RNG.choice(["mobile", "tv", "watch"], N).tolist()
DEVICES[:5] = [None] * 5
SCORES, LABELS = RNG.random(N), RNG.choice([0.0, 1.0, nan], N)
MATURE = RNG.random(N) < 0.9
SLICES = RNG.choice(["emea", "amer"], N).tolist()
CELLS = {"features.age": OrderedCells.of(AGES[:200]), "features.device": UnorderedCells(("mobile", "tv"))}


def test_states_are_those_of_the_labelled_rows_in_numpy(spark: SparkSession) -> None:
    rows = [
        (
            f"u{at // 2}",
            f"r{at}",
            SLICES[at],
            float(SCORES[at]),
            None if np.isnan(LABELS[at]) else float(LABELS[at]),
            bool(MATURE[at]),
            {"age": None if np.isnan(AGES[at]) else float(AGES[at]), "device": DEVICES[at]},
        )
        for at in range(N)
    ]
    ddl = "unit_id STRING, request_id STRING, region STRING, prediction_score DOUBLE, label DOUBLE, is_mature BOOLEAN"
    labelled = frame(spark, rows, f"{ddl}, features STRUCT<age: DOUBLE, device: STRING>")
    hashed = labelled.select("unit_id", F.xxhash64("unit_id").alias("hash")).distinct().toPandas()
    of_unit = dict(hashed.itertuples(index=False))
    hashes = np.array([of_unit[f"u{at // 2}"] for at in range(N)])
    found = residuals(labelled, CELLS, sets=[(), ("region",)])[()]
    again = residuals(labelled.repartition(5, "request_id"), CELLS, sets=[(), ("region",)])[()]
    assert set(found) == {Slice("", ""), Slice("region", "emea"), Slice("region", "amer")}
    values = {"features.age": AGES, "features.device": np.array(DEVICES, dtype=object)}
    for where, columns in found.items():
        own = MATURE & ~np.isnan(LABELS) & ((where.slice_key == "") | (np.array(SLICES) == where.slice_value))
        for name, cells in CELLS.items():
            expected = Residuals.of(cells, values[name][own], (LABELS - SCORES)[own], hashes[own])
            for state in (columns[name], again[where][name]):
                assert state.counts.tolist() == expected.counts.tolist()
                assert state.totals.tolist() == expected.totals.tolist()
                assert state.n_units == expected.n_units
