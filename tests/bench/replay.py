"""Scoring by replay against mlflow's spark_udf and against the limit of the machine, all in one run.

The limit: an identity Arrow pass over the same columns, plus predicting all rows in one process divided by the cores.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from sklearn.base import ClassifierMixin
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from mltrust import runtime
from mltrust.io import models as registry
from mltrust.replay.compare import CANDIDATE, CHAMPION, Role
from mltrust.replay.perturb import Context, Spread
from mltrust.replay.spec import Perturbation
from mltrust.settings import Settings
from mltrust.spark.scoring import Input, Scorer, Task, scored
from tests.bench.__main__ import seconds

FEATURES = [f"x{at}" for at in range(12)]
CORES = 2
_SPREADS = {name: Spread(1.0, -4.0, 4.0) for name in FEATURES}


class Timed(NamedTuple):
    """Seconds of one model's rows."""

    ours: float
    udf: float
    identity: float
    in_process: float

    @property
    def limit(self) -> float:
        return self.identity + self.in_process / CORES


def trained(n: int = 20_000) -> dict[str, ClassifierMixin]:
    rng = np.random.default_rng(1)
    X = pd.DataFrame(rng.normal(size=(n, len(FEATURES))), columns=FEATURES)
    y = (X["x0"] + X["x1"] * X["x2"] + rng.normal(size=n) > 0).astype(int)
    return {
        "linear": LogisticRegression().fit(X, y),
        "boosting": HistGradientBoostingClassifier(max_iter=100, random_state=1).fit(X, y),
        "forest": RandomForestClassifier(60, max_depth=8, n_jobs=1, random_state=1).fit(X, y),
    }


def registered(name: str, model: ClassifierMixin) -> None:
    """Under MLflow's own predict of probabilities, as spark_udf and replay load it."""
    inputs = Schema([ColSpec("double", feature) for feature in FEATURES])
    mlflow.sklearn.log_model(
        model, name=name, registered_model_name=name, signature=ModelSignature(inputs),
        pyfunc_predict_fn="predict_proba", serialization_format="cloudpickle", pip_requirements=["scikit-learn"],
    )  # fmt: skip


def written(frame: DataFrame) -> Callable[[], object]:
    return lambda: frame.write.format("noop").mode("overwrite").save()


def scorer(role: Role, name: str) -> Scorer:
    found = registry.resolve(name, version="1", alias=None)
    return Scorer(role, found.loader, tuple(Input(*each) for each in found.inputs))


def udf(spark: SparkSession, name: str) -> Callable[..., Column]:
    return mlflow.pyfunc.spark_udf(spark, f"models:/{name}/1", result_type="double", env_manager="local")  # type: ignore[no-any-return]


def rows_of(spark: SparkSession, path: str) -> DataFrame:
    features = F.struct(*FEATURES).alias("features")
    return spark.read.parquet(path).select(
        "id", F.xxhash64("id").alias("draw"), F.lit(True).alias("is_tried"), features
    )


def one(spark: SparkSession, path: str, name: str, model: ClassifierMixin, data: pd.DataFrame) -> Timed:
    plain, predict = spark.read.parquet(path), udf(spark, name)
    task = Task((scorer(CHAMPION, name),))
    identity = plain.select(*FEATURES).mapInArrow(lambda batches: batches, plain.select(*FEATURES).schema)
    return Timed(
        ours=seconds(written(scored(rows_of(spark, path), task, ["id"]))),
        udf=seconds(written(plain.select("id", predict(F.struct(*FEATURES))))),
        identity=seconds(written(identity)),
        in_process=seconds(lambda: in_process(model, data)),
    )


def in_process(model: ClassifierMixin, data: pd.DataFrame) -> None:
    """By one thread, as each worker has: OpenMP would take both cores, and the limit be half of what it is."""
    with threadpool_limits(1):
        for part in chunks(data):
            model.predict_proba(part)


def chunks(data: pd.DataFrame, n: int = 10_000) -> list[pd.DataFrame]:
    return [data.iloc[start : start + n] for start in range(0, len(data), n)]


def ten(spark: SparkSession, path: str, name: str) -> tuple[float, float]:
    """Champion, candidate and eight perturbations in one pass, and ten columns of spark_udf that give the same."""
    perturbations = tuple(Perturbation("missing", (feature,)) for feature in FEATURES[:4]) + tuple(
        Perturbation("unit_change", (feature,), factor=10.0) for feature in FEATURES[4:8]
    )
    context = Context(dict.fromkeys(FEATURES, "double"), _SPREADS, {})
    champion = scorer(CHAMPION, name)._replace(is_tried=False)
    task = Task((champion, scorer(CANDIDATE, name)), perturbations, context)
    plain, predict = spark.read.parquet(path), udf(spark, name)
    ours = written(scored(rows_of(spark, path), task, ["id"]))

    def struct(change: dict[str, Column]) -> Column:
        return F.struct(*(change.get(feature, F.col(feature)).alias(feature) for feature in FEATURES))

    missing = [{feature: F.lit(float("nan"))} for feature in FEATURES[:4]]
    scaled = [{feature: F.col(feature) * 10} for feature in FEATURES[4:8]]
    columns = [predict(struct(change)).alias(f"c{at}") for at, change in enumerate([{}, {}, *missing, *scaled])]
    return seconds(ours), seconds(written(plain.select("id", *columns)))


def main(n: int) -> int:
    warnings.simplefilter("ignore")
    with TemporaryDirectory() as folder:
        os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.set_experiment(experiment_id=mlflow.create_experiment("bench", Path(folder, "runs").as_uri()))
        fitted = trained()
        for name, model in fitted.items():
            registered(name, model)
        spark = runtime.session(Settings(root=folder, master=f"local[{CORES}]"), "bench")
        path = f"{folder}/rows"
        columns = (F.randn(at).alias(name) for at, name in enumerate(FEATURES))
        spark.range(0, n, 1, 8).select("id", *columns).write.parquet(path)
        data = pd.read_parquet(path)[FEATURES]
        for name, model in fitted.items():
            found = one(spark, path, name, model, data)
            print(
                f"{name:9} {n / found.ours:10,.0f} rows/s   {found.ours / found.limit:5.2f} x the limit   "
                f"{found.udf / found.ours:5.2f} x spark_udf ({n / found.udf:,.0f} rows/s)   {found}",
                flush=True,
            )
        ours, rival = ten(spark, path, "boosting")
        print(
            f"boosting, ten scores a row: {rival / ours:5.2f} x ten spark_udf columns ({ours:.1f} s, {rival:.1f} s)"
        )
        spark.stop()
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    sys.exit(main(parser.parse_args().rows))
