"""Two large real logs whose outcomes come weeks and years later, from binary files to the numbers known of them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import mlflow
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from sklearn.metrics import roc_auc_score

from jobs import ingest_logs
from mltrust import conf as confs
from mltrust import runtime
from mltrust.conf import Conf
from mltrust.io.tables import Lakehouse
from mltrust.verdicts import Exit
from tests.real import employment, flusight
from tests.real.test_open_bandit import CONF

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("MLTRUST_DATA"), reason="MLTRUST_DATA is unset: it names the folder of the real data"
    ),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]
AS_OF = datetime(2026, 1, 1, tzinfo=UTC)


class RealLog:
    """A lakehouse of one of the logs."""

    def __init__(self, spark: SparkSession, name: str, folder: str, root: Path, files_a_batch: int) -> None:
        self.spark, self.root = spark, root
        self.data = Path(os.environ["MLTRUST_DATA"], folder)
        conf = confs.load(CONF / f"contracts/{name}.yaml", "local")
        tracking = replace(conf.settings.tracking, uri=f"sqlite:///{root}/mlflow.db", artifacts=str(root / "runs"))
        ingest = replace(conf.settings.ingest, max_files_per_batch=files_a_batch)
        settings = replace(conf.settings, root=str(root), tracking=tracking, ingest=ingest)
        self.conf: Conf = replace(conf, settings=settings)
        self.landing = root / "landing" / name

    @property
    def lake(self) -> Lakehouse:
        return runtime.lakehouse(self.spark, self.conf)

    def ingest(self) -> Exit:
        return ingest_logs.run(self.spark, self.conf, AS_OF)

    def books(self, kind: str) -> tuple[int, int]:
        """Records and accepted ones."""
        sums = self.lake.read("ingest_batches").where(F.col("kind") == kind)
        row = sums.agg(F.sum("records").alias("records"), F.sum("accepted").alias("accepted")).first()
        assert row is not None
        return row["records"], row["accepted"]

    def joined(self, on: list[str]) -> DataFrame:
        """Predictions with their outcomes' values."""
        outcomes = self.lake.read("outcomes").select(*on, "value")
        return self.lake.read("inference_log").join(outcomes, on)


@contextmanager
def tracking_kept() -> Iterator[None]:
    before = mlflow.get_tracking_uri()
    yield
    mlflow.set_tracking_uri(before)


def test_flusights_forecasts_and_what_came_true_give_the_published_errors(
    spark: SparkSession, tmp_path: Path
) -> None:
    log = RealLog(spark, flusight.LOG, "flusight_2021_22", tmp_path, files_a_batch=10)
    n_records = flusight.land_forecasts(log.data, log.landing, log.conf.contract)
    assert n_records == 2_834_014
    with tracking_kept():
        assert log.ingest() == Exit.PASS
        assert flusight.land_truth(log.data, log.landing) == 7_040
        assert log.ingest() == Exit.PASS
    assert log.books("inference_log") == (2_834_014, 2_834_014)
    assert log.books("outcomes") == (7_040, 7_040)
    truth = log.lake.read("outcomes").select("unit_id", F.col("event_time").alias("target_end"), "value")
    medians = log.lake.read("inference_log").where("features.quantile = 0.5")
    errors = (
        medians.withColumn("target_end", F.col("features.target_end"))
        .join(truth, ["unit_id", "target_end"])
        .groupBy("model_version")
        .agg(F.count("*").alias("n"), F.avg(F.abs(F.col("prediction_score") - F.col("value"))).alias("mae"))
    )
    found = {row["model_version"]: (row["n"], row["mae"]) for row in errors.collect()}
    # Half of the last digit given.
    assert found["Flusight-ensemble"] == (5184, pytest.approx(29.2185, abs=5e-5))
    assert found["Flusight-baseline"] == (5184, pytest.approx(32.6981, abs=5e-5))
    assert len(found) > 20


def test_employments_late_labels_give_the_known_auc_of_every_year(spark: SparkSession, tmp_path: Path) -> None:
    log = RealLog(spark, employment.LOG, "employment_ma", tmp_path, files_a_batch=2)
    n_records = employment.land_predictions(log.data, log.landing, log.conf.contract)
    assert n_records == 277_677
    with tracking_kept():
        assert log.ingest() == Exit.PASS
        assert employment.land_labels(log.data, log.landing, log.conf.contract) == 277_677
        assert log.ingest() == Exit.PASS
    assert log.books("inference_log") == (277_677, 277_677)
    assert log.books("outcomes") == (277_677, 277_677)
    joined = log.joined(["request_id"]).select("features.year", "prediction_score", "value").toPandas()
    auc = {year: roc_auc_score(part["value"], part["prediction_score"]) for year, part in joined.groupby("year")}
    # Half of the last digit given.
    known = {2015: 0.9034, 2016: 0.9020, 2017: 0.9051, 2018: 0.9057}
    assert auc == {year: pytest.approx(value, abs=5e-5) for year, value in known.items()}
