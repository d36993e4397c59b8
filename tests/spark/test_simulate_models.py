"""The simulation's models, in MLflow's registry and against what they learn from."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
from pyspark.sql import SparkSession
from sklearn.metrics import log_loss

from mltrust.conf import read
from mltrust.io import models as registry
from mltrust.simulate import models, traffic
from mltrust.simulate.models import Trained
from mltrust.simulate.spec import Simulation

DEMO, _ = read(Simulation, Path(__file__).parents[2] / "conf" / "simulations" / "demo.yaml")


@pytest.fixture(scope="module")
def trained(spark: SparkSession) -> Trained:
    return models.trained(traffic.past(spark, DEMO), DEMO.seed)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[None]:
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_experiment(experiment_id=mlflow.create_experiment("tests", artifact_location=tmp_path.as_uri()))
    yield
    mlflow.set_tracking_uri(before)


# MLflow warns of its own tables, requirements and type hints.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_registered_models_come_back_as_they_went_in(trained: Trained, server: None) -> None:
    for number, (alias, model) in enumerate([("champion", trained.champion), ("candidate", trained.candidate)], 1):
        version = registry.register(model, name="recommender", alias=alias, example=trained.example)
        assert version == str(number)
        assert mlflow.MlflowClient().get_model_version_by_alias("recommender", alias).version == number
        expected = model.predict_proba(trained.example)
        loaded = registry.load("recommender", version)
        assert loaded.predict_proba(trained.example).tolist() == expected.tolist()
        served = mlflow.pyfunc.load_model(f"models:/recommender@{alias}")
        assert served.metadata.signature.inputs.input_names() == list(traffic.FEATURES)
        assert np.asarray(served.predict(trained.example)).tolist() == expected.tolist()


def test_the_candidate_is_the_better_model_on_traffic_that_neither_has_seen(
    spark: SparkSession, trained: Trained
) -> None:
    fresh = replace(DEMO, seed=DEMO.seed + 1, training_units=3_000)
    rows = traffic.past(spark, fresh).toArrow().to_pandas()
    X, y = rows[list(traffic.FEATURES)], rows["is_purchase"]
    losses = [log_loss(y, model.predict_proba(X)[:, 1]) for model in (trained.champion, trained.candidate)]
    constant = log_loss(y, np.full(len(y), y.mean()))
    # On 9,000 requests; the difference of the two is three of its standard errors.
    assert losses[1] < losses[0] < constant
