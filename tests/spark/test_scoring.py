"""Models on rows: the scores of the models themselves, rows that fail, batches, and how often a model is loaded."""

import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from lightgbm import LGBMClassifier
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from mltrust.io import models as registry
from mltrust.replay import compare
from mltrust.replay.compare import CANDIDATE, CHAMPION, Role
from mltrust.replay.perturb import Context, Spread, perturbed
from mltrust.replay.spec import Perturbation
from mltrust.spark import scoring
from mltrust.spark.scoring import Input, Scorer, Task
from tests.spark.frames import frame
from tests.spark.registered import FRAME, LABELS, NUMBERS, log_lightgbm, log_python, log_sklearn

# MLflow warns of its own tables, requirements and type hints.
pytestmark = pytest.mark.filterwarnings("ignore")
FEATURES = "features STRUCT<age: BIGINT, price: DOUBLE, device: STRING>"
DDL = f"id STRING, logged DOUBLE, draw BIGINT, is_tried BOOLEAN, {FEATURES}"


class Place(NamedTuple):
    """A registry with the three models, and the file in which the plain one says that it was loaded."""

    loads: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder, before = tmp_path_factory.mktemp("registry"), mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.set_experiment(experiment_id=mlflow.create_experiment("tests", artifact_location=folder.as_uri()))
    place = Place(folder / "loads")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log_sklearn()
        log_lightgbm()
        log_python(place.loads)
    yield place
    mlflow.set_tracking_uri(before)


def scorer(role: Role, name: str) -> Scorer:
    found = registry.resolve(name, version="1", alias=None)
    return Scorer(role, found.loader, tuple(Input(*each) for each in found.inputs))


def rows(spark: SparkSession, data: pd.DataFrame, logged: list[float] | None = None) -> DataFrame:
    plain = [
        (f"r{at:05d}", None if logged is None else logged[at], at * 2**40, at % 2 == 0, tuple(values))
        for at, values in enumerate(data[["age", "price", "device"]].astype(object).to_numpy().tolist())
    ]
    return frame(
        spark, [(*row[:4], dict(zip(("age", "price", "device"), row[4], strict=True))) for row in plain], DDL
    )


def collected(scored: DataFrame) -> list[Row]:
    return sorted(scored.collect(), key=lambda row: row["id"])


def test_scores_are_those_of_the_models_bit_for_bit_in_one_pass(spark: SparkSession, place: Place) -> None:
    linear = registry.load("linear", "1").predict_proba(FRAME[NUMBERS])[:, 1]
    task = Task((scorer(CHAMPION, "linear"), scorer(CANDIDATE, "boosted")), batch_rows=400)
    found = collected(scoring.scored(rows(spark, FRAME, linear.tolist()).coalesce(1), task, ["id"]))
    boosted = LGBMClassifier(n_estimators=20, min_child_samples=5, num_threads=1, verbose=-1).fit(
        FRAME[NUMBERS], LABELS
    )
    assert [row["champion"] for row in found] == linear.tolist()
    assert [row["candidate"] for row in found] == boosted.predict_proba(FRAME[NUMBERS])[:, 1].tolist()
    assert {row["ulps"] for row in found} == {0}
    assert all(
        row["champion_ms"] > 0 and row["champion_error"] is None and row["champion_tried"] is None for row in found
    )


def test_a_row_that_fails_is_a_row_with_its_error_and_the_others_have_their_score(
    spark: SparkSession, place: Place
) -> None:
    data = FRAME.copy()
    data.loc[7, "device"] = "fridge"
    task = Task((scorer(CHAMPION, "plain"),), batch_rows=100)
    found = collected(scoring.scored(rows(spark, data), task, ["id"]))
    failed = {row["id"]: row["champion_error"] for row in found if row["champion_error"] is not None}
    assert failed.pop("r00007") == "ValueError: no device fridge"
    assert set(failed.values()) == {"ZeroDivisionError: age 13"}
    assert len(failed) == (data["age"] == 13).sum()
    for row, age in zip(found, data["age"], strict=True):
        assert (row["champion"] is None) == (row["champion_error"] is not None)
        assert row["champion"] is None or row["champion"] == age / 100


@pytest.mark.slow
def test_a_model_is_loaded_once_per_worker_however_many_tasks_it_has(spark: SparkSession, place: Place) -> None:
    place.loads.write_text("")
    task = Task((scorer(CHAMPION, "plain"),), batch_rows=10)
    for _ in range(2):
        scoring.scored(rows(spark, FRAME.assign(age=20)).repartition(8), task, ["id"]).collect()
    workers = place.loads.read_text().split()
    assert len(workers) == len(set(workers)) <= 2


def test_whole_numbers_that_are_missing_are_given_as_missing(spark: SparkSession, place: Place) -> None:
    data = FRAME.head(20).astype({"age": object})
    data.loc[3, "age"] = None
    task = Task((scorer(CHAMPION, "plain"), scorer(CANDIDATE, "boosted")), batch_rows=20)
    found = collected(scoring.scored(rows(spark, data), task, ["id"]))
    assert found[3]["champion"] == -0.01
    assert found[3]["candidate"] is not None
    assert all(row["champion_error"] is None for row in found if row["id"] != "r00013")


@pytest.mark.slow
def test_perturbations_are_tried_on_their_rows_and_say_where_the_model_raised(
    spark: SparkSession, place: Place
) -> None:
    context = Context(
        {"age": "long", "price": "double", "device": "string"},
        {"age": Spread(17.0, 0.0, 59.0), "price": Spread(14.0, 1.0, 50.0)},
        {"age": np.array([40.0]), "price": np.array([9.0]), "device": np.array(["tv"], dtype=object)},
    )
    perturbations = (
        Perturbation("swap", ("age",)),
        Perturbation("unseen", ("device",)),
        Perturbation("jitter", ("price",)),
        Perturbation("missing", ("age",)),
    )
    task = Task((scorer(CHAMPION, "plain"), scorer(CANDIDATE, "linear")), perturbations, context, batch_rows=64)
    data = FRAME.assign(age=20)
    found = collected(scoring.scored(rows(spark, data), task, ["id"]))
    draws = np.arange(len(data), dtype=np.uint64) << np.uint64(40)
    prices = perturbed(perturbations[2], {"price": data["price"].to_numpy()}, context, draws, {}).columns
    jittered = registry.load("linear", "1").predict_proba(data.assign(**prices)[NUMBERS])[:, 1]
    for at, row in enumerate(found):
        if at % 2:
            assert (row["champion_tried"], row["champion_failed"]) == (None, None)
            continue
        # Jittered prices are nothing to the model that does not read them.
        assert row["champion_tried"] == [0.4, None, 0.2, -0.01]
        assert row["champion_failed"] == [1]
        assert row["candidate_tried"][0] == pytest.approx(
            registry.load("linear", "1").predict_proba(data.assign(age=40)[NUMBERS].iloc[[at]])[0, 1], rel=1e-12
        )
        assert row["candidate_tried"][1] == row["candidate"]
        assert row["candidate_tried"][2] == pytest.approx(jittered[at], rel=1e-9, abs=0)
    # Where a score is 0 or 1 to the last bit, a jitter does not move it.
    tried = [row for at, row in enumerate(found) if at % 2 == 0]
    assert sum(row["candidate_tried"][2] != row["candidate"] for row in tried) > len(tried) / 2


def test_noise_is_measured_on_the_first_batch_of_a_task(spark: SparkSession, place: Place) -> None:
    task = Task((scorer(CHAMPION, "boosted"),), batch_rows=100, noise=True)
    found = collected(scoring.scored(rows(spark, FRAME).coalesce(1), task, ["id"]))
    noise = [row["champion_noise"] for row in found]
    assert noise.count(None) == 300
    assert {each for each in noise if each is not None} == {0.0}  # trees do not depend on the batch


def test_batches_have_the_rows_that_they_are_asked_to_have() -> None:
    sizes = [3, 0, 10, 1, 1, 7]
    batches = [pa.record_batch({"x": pa.array(range(n), pa.int64())}) for n in sizes]
    whole = pa.Table.from_batches(batches)
    for n in (1, 4, 22, 100):
        found = list(scoring.rebatched(iter(batches), n))
        assert [each.num_rows for each in found[:-1]] == [n] * (len(found) - 1)
        assert 0 < found[-1].num_rows <= n
        assert pa.concat_tables(found).to_pydict() == whole.to_pydict()
    assert list(scoring.rebatched(iter([]), 5)) == []


def test_a_model_that_fails_everywhere_is_not_tried_on_every_row_alone() -> None:
    calls = []

    def broken(data: pd.DataFrame) -> np.ndarray:
        calls.append(len(data))
        raise OSError("no file")

    budget = scoring._Budget(20)
    found = scoring.predicted(broken, pd.DataFrame({"x": range(5000)}), budget)
    assert np.isnan(found.scores).all()
    assert len(found.scores) == len(found.errors or ()) == 5000
    assert all(error and "OSError: no file" in error for error in found.errors or ())
    assert len(calls) < 100


def test_a_row_that_fails_leaves_the_scores_beside_it_what_they_are() -> None:
    def single(data: pd.DataFrame) -> np.ndarray:
        if (data["x"] == 3).any():
            raise ValueError("three")
        return (data["x"] / 10).to_numpy(np.float32)

    found = scoring.predicted(single, pd.DataFrame({"x": range(5)}), scoring._Budget(10))
    assert found.scores.dtype == np.float32
    assert np.isnan(found.scores).tolist() == [False, False, False, True, False]
    assert compare.ulps([0.0, 0.1, 0.2, 0.3, 0.4], found.scores).tolist() == [0, 0, 0, -1, 0]


def test_what_perturbations_spend_is_not_missing_for_the_model_s_own_errors() -> None:
    budgets = scoring.Budgets()
    budgets.perturbed.left = 0
    assert budgets.plain.left > 0


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (np.array([1.0, np.inf]), "the model gave inf"),
        (np.zeros((2, 1)), "ValueError: the model gave an array of shape (2, 1) for 2 rows, expected (2,)"),
    ],
)
def test_what_is_no_number_is_an_error(output: np.ndarray, words: str) -> None:
    def model(data: pd.DataFrame, given: np.ndarray) -> np.ndarray:
        return given[: len(data)]

    found = scoring.predicted(partial(model, given=output), pd.DataFrame({"x": [1, 2]}), scoring._Budget(0))
    assert found.errors is not None
    assert any(error and error.endswith(words) for error in found.errors)


def test_inputs_have_the_types_of_the_signature() -> None:
    columns = {
        "n": np.array([1, 2]),
        "m": np.array([1.0, np.nan]),
        "t": np.array(["a", None], dtype=object),
        "b": np.array([True, None], dtype=object),
    }
    wanted = {"double": "n", "float": "n", "integer": "n", "long": "m", "string": "t", "boolean": "b"}
    found = [str(scoring.typed(columns[name], kind).dtype) for kind, name in wanted.items()]
    assert found == ["float64", "float32", "int32", "float64", "object", "object"]
    large = np.array([1, 3_000_000_000])
    assert scoring.typed(large, "integer").tolist() == large.tolist()
    made = scoring.inputs(columns, [Input("n", "long"), Input("gone", "double"), Input("t", "string")], 2)
    assert list(made.columns) == ["n", "gone", "t"]
    assert made["gone"].isna().all()


@pytest.mark.parametrize(
    ("output", "column", "expected"),
    [
        (np.array([0.1, 0.2]), None, [0.1, 0.2]),
        (np.array([[0.9, 0.1], [0.8, 0.2]]), None, [0.1, 0.2]),
        (np.array([[0.9, 0.1], [0.8, 0.2]]), "0", [0.9, 0.8]),
        (pd.DataFrame({"a": [1, 2], "b": [3, 4], "c": [5, 6]}), "b", [3, 4]),
        ([0.1, 0.2], None, [0.1, 0.2]),
    ],
)
def test_the_score_is_the_column_that_is_meant(output: object, column: str | None, expected: list[float]) -> None:
    assert registry.scores_in(output, column).tolist() == expected


def test_an_output_without_the_column_is_refused() -> None:
    with pytest.raises(ValueError, match="the model gives columns 0, 1, 2; expected output to name one of them"):
        registry.scores_in(np.zeros((2, 3)), None)


def test_nan_never_leaves_a_worker(spark: SparkSession, place: Place) -> None:
    task = Task((scorer(CHAMPION, "plain"),), batch_rows=50)
    found = scoring.scored(rows(spark, FRAME), task, ["id"])
    assert found.where(F.isnan("champion") | F.isnan("champion_noise")).count() == 0
