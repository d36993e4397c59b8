"""A served MLflow model answers as the model in it does, and logs every prediction."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

from mltrust.contract import Contract, Feature, SchemaVersion
from mltrust.record import HEARTBEAT, RecordReader, Row
from tests.unit.test_client import until

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow warns of its own type hints when it is imported
    from mltrust.client.pyfunc import FOLDER, LoggedModel, Serving, logged_model

FEATURES = {"age": Feature("long"), "device": Feature("string")}
CONTRACT = Contract("recommendations", {"v02": SchemaVersion()}, {"f02": FEATURES})
INNER = '''
import mlflow, pandas as pd

class Inner(mlflow.pyfunc.PythonModel):
    """Scores by age; raises for a negative one; changes its input and says what it saw."""

    def predict(self, context, model_input: pd.DataFrame, params=None):
        if isinstance(model_input, pd.DataFrame):
            ages = model_input["age"].tolist()
            model_input["age"] = -7
            if min(ages) < 0:
                raise ValueError("negative age")
            saw = ",".join(sorted(model_input.columns)) + "".join(sorted(params or {}))
            return pd.DataFrame({"score": [age / 100 for age in ages], "label": ["show"] * len(ages), "saw": saw})
        return model_input.sum(axis=1)

mlflow.models.set_model(Inner())
'''
COLUMNS = Schema([ColSpec("long", "age"), ColSpec("string", "device", required=False)])
TEMPERATURE = ParamSchema([ParamSpec("temperature", "double", 1.0)])


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An MLflow of its own with a model `ranker`, version 1, alias champion."""
    folder, before, cwd = tmp_path_factory.mktemp("mlflow"), mlflow.get_tracking_uri(), Path.cwd()
    sigterm = signal.getsignal(signal.SIGTERM)
    os.chdir(folder)
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    register("ranker", folder, ModelSignature(COLUMNS, None, TEMPERATURE))
    mlflow.MlflowClient().set_registered_model_alias("ranker", "champion", "1")
    yield folder
    signal.signal(signal.SIGTERM, sigterm)
    mlflow.set_tracking_uri(before)
    del os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"]
    os.chdir(cwd)


def register(name: str, folder: Path, signature: ModelSignature | None) -> str:
    """The URI of the inner model, registered under `name`."""
    code = folder / "inner.py"
    code.write_text(INNER)
    mlflow.pyfunc.log_model(
        name=name,
        python_model=str(code),
        signature=signature,
        registered_model_name=name,
        pip_requirements=["mlflow"],
    )
    return f"models:/{name}/1"


class Served:
    """A loaded model that logs, and what it logged."""

    def __init__(self, uri: str, serving: Serving, **config: str) -> None:
        self.uri = logged_model(uri, serving, name="served").model_uri
        self.model = mlflow.pyfunc.load_model(self.uri, model_config=config or None)
        self.inner: LoggedModel = self.model.unwrap_python_model()

    def predict(self, given: pd.DataFrame, **params: object) -> pd.DataFrame:
        answer = self.model.predict(given, params=params)
        assert isinstance(answer, pd.DataFrame)
        return answer

    def rows(self, folder: Path) -> list[Row]:
        """The records of the landing folder, which must all be accepted."""
        self.inner.logger.close()
        paths = sorted((folder / "records").glob("[!_]*"))
        lines = [
            line for path in paths for line in path.read_bytes().splitlines() if HEARTBEAT not in json.loads(line)
        ]
        rows = [RecordReader(CONTRACT).read(line) for line in lines]
        found = [row for row in rows if isinstance(row, dict)]
        assert len(found) == len(rows), rows
        return found


@pytest.fixture
def served(registry: Path, tmp_path: Path) -> Served:
    return Served("models:/ranker/1", Serving(CONTRACT, str(tmp_path), "f02"))


def frame(**columns: list[object]) -> pd.DataFrame:
    return pd.DataFrame(columns)


def test_answers_are_the_model_s_and_every_row_is_logged(served: Served, tmp_path: Path) -> None:
    given = frame(age=[31, 40], device=["tv", None], request_id=["a", "b"], unit_id=["u1", None])
    alone = mlflow.pyfunc.load_model("models:/ranker/1").predict(given[["age", "device"]])
    assert isinstance(alone, pd.DataFrame)
    pd.testing.assert_frame_equal(served.predict(given), alone)
    first, second = served.rows(tmp_path)
    assert (first["request_id"], first["item_id"], first["unit_id"]) == ("a", "", "u1")
    assert (first["model_name"], first["model_version"], first["feature_version"]) == ("ranker", "1", "f02")
    assert (first["prediction_score"], first["traffic"], first["status"]) == (0.31, "production", "ok")
    assert first["features"] == {"age": 31, "device": "tv"}, "as they were before the model changed them"
    assert (second["request_id"], second["unit_id"], second["prediction_score"]) == ("b", None, 0.4)
    assert second["features"] == {"age": 40, "device": None}
    assert first["event_time"] == second["event_time"]
    assert first["latency_ms"] == second["latency_ms"]


def test_the_model_sees_neither_columns_nor_params_of_the_log(served: Served) -> None:
    given = frame(age=[1], device=["tv"], request_id=["a"], unit_id=["u"], item_id=["i"], experiments=["[]"])
    answer = served.predict(given, request_id="p", temperature=0.5)
    assert answer["saw"].tolist() == ["age,devicetemperature"]
    served.inner.logger.close()


def test_rows_without_request_ids_are_items_of_one_request(served: Served, tmp_path: Path) -> None:
    served.predict(frame(age=[1, 2]))
    served.predict(frame(age=[3]))
    served.predict(frame(age=[4, 5]), request_id="r9", unit_id="u9")
    served.predict(frame(age=[6, 7], item_id=["x", "y"]), request_id="r10")
    rows = served.rows(tmp_path)
    assert [row["item_id"] for row in rows] == ["0", "1", "", "0", "1", "x", "y"]
    assert rows[0]["request_id"] == rows[1]["request_id"] != rows[2]["request_id"]
    assert [row["request_id"] for row in rows[3:]] == ["r9", "r9", "r10", "r10"]
    assert [row["unit_id"] for row in rows[3:]] == ["u9", "u9", None, None]


def test_rows_that_share_a_request_id_are_told_apart_and_a_missing_one_is_made(
    served: Served, tmp_path: Path
) -> None:
    served.predict(frame(age=[1, 2, 3, 4], request_id=["a", "b", "a", None]))
    rows = served.rows(tmp_path)
    assert [(row["request_id"], row["item_id"]) for row in rows[:3]] == [("a", "0"), ("b", ""), ("a", "1")]
    assert len(str(rows[3]["request_id"])) == 32


def test_experiments_come_as_json_by_column_or_param(served: Served, tmp_path: Path) -> None:
    one, two = '[{"experiment_id": "e", "variant": "control"}]', '[{"experiment_id": "f"}]'
    served.predict(frame(age=[1, 2], experiments=[one, None]), experiments=two)
    found = [row["experiments"] for row in served.rows(tmp_path)]
    assert found == [
        [{"experiment_id": "e", "bucket_id": None, "variant": "control"}],
        [{"experiment_id": "f", "bucket_id": None, "variant": None}],
    ]


def test_what_the_model_raises_is_logged_and_raised(served: Served, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="negative age"):
        served.predict(frame(age=[-1, 5], request_id=["a", "b"]))
    rows = served.rows(tmp_path)
    assert [(row["request_id"], row["status"], row["error_type"]) for row in rows] == [
        ("a", "error", "ValueError"),
        ("b", "error", "ValueError"),
    ]
    assert rows[0]["features"]["age"] == -1  # type: ignore[index]


def test_the_score_and_an_action_are_read_where_the_serving_says(registry: Path, tmp_path: Path) -> None:
    served = Served("models:/ranker/1", Serving(CONTRACT, str(tmp_path), "f02", score=0, action="label"))
    served.predict(frame(age=[10]))
    (row,) = served.rows(tmp_path)
    assert (row["prediction_score"], row["action"]) == (0.1, "show")


def test_an_output_without_the_score_changes_no_answer(registry: Path, tmp_path: Path) -> None:
    served = Served("models:/ranker/1", Serving(CONTRACT, str(tmp_path), "f02", score="nowhere"))
    assert served.predict(frame(age=[10]))["score"].tolist() == [0.1]
    assert served.inner.logger.close().invalid == 1


def test_a_log_that_breaks_changes_no_answer(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: object, **kwargs: object) -> bool:
        raise RuntimeError("broken")

    monkeypatch.setattr(served.inner.logger, "log", broken)
    monkeypatch.setattr("mltrust.client.pyfunc.tabular.rows", broken)
    assert served.predict(frame(age=[10]))["score"].tolist() == [0.1]
    assert "a call was not logged" in caplog.text
    served.inner.logger.close()


def test_an_alias_is_logged_as_the_version_it_points_to(registry: Path, tmp_path: Path) -> None:
    served = Served("models:/ranker@champion", Serving(CONTRACT, str(tmp_path), "f02"))
    served.predict(frame(age=[10]))
    (row,) = served.rows(tmp_path)
    assert (row["model_name"], row["model_version"]) == ("ranker", "1")


def test_a_model_without_a_version_needs_names(registry: Path, tmp_path: Path) -> None:
    uri = mlflow.models.get_model_info("models:/ranker/1").model_uri
    with pytest.raises(ValueError, match="names no registered version"):
        logged_model(uri, Serving(CONTRACT, str(tmp_path), "f02"), name="served")
    served = Served(uri, Serving(CONTRACT, str(tmp_path), "f02", model_name="r", model_version="7"))
    served.predict(frame(age=[10]))
    assert [(row["model_name"], row["model_version"]) for row in served.rows(tmp_path)] == [("r", "7")]


def test_a_feature_version_that_the_contract_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="'f9', expected one of f02"):
        Serving(CONTRACT, "landing", "f9")


def test_arrays_have_no_features_and_are_logged_row_by_row(registry: Path, tmp_path: Path) -> None:
    signature = ModelSignature(Schema([TensorSpec(np.dtype("float64"), (-1, 2))]))
    served = Served(register("arrays", registry, signature), Serving(CONTRACT, str(tmp_path), "f02"))
    answer = served.model.predict(np.array([[1.0, 2.0], [3.0, 4.0]]), params={"request_id": "r1"})
    assert list(answer) == [3, 7]
    rows = served.rows(tmp_path)
    assert [(row["request_id"], row["item_id"], row["prediction_score"]) for row in rows] == [
        ("r1", "0", 3.0),
        ("r1", "1", 7.0),
    ]


def test_a_model_without_a_signature_is_served_too(registry: Path, tmp_path: Path) -> None:
    served = Served(register("bare", registry, None), Serving(CONTRACT, str(tmp_path), "f02"))
    answer = served.predict(frame(age=[10], request_id=["a"]))
    assert answer["saw"].tolist() == ["age"]
    assert [row["request_id"] for row in served.rows(tmp_path)] == ["a"]


def test_the_landing_folder_is_the_config_s_then_the_environment_s(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = Serving(CONTRACT, str(tmp_path / "own"), "f02")
    monkeypatch.setenv(FOLDER, str(tmp_path / "environment"))
    for served, folder in (
        (Served("models:/ranker/1", serving), "environment"),
        (Served("models:/ranker/1", serving, folder=str(tmp_path / "config")), "config"),
    ):
        served.predict(frame(age=[10]))
        assert len(served.rows(tmp_path / folder)) == 1


@pytest.mark.slow
def test_mlflow_models_serve_logs_what_it_answers(registry: Path, tmp_path: Path) -> None:
    uri = logged_model("models:/ranker/1", Serving(CONTRACT, "unused", "f02"), name="served").model_uri
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    local = mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path / "model"))
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", local, "--env-manager", "local"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where MLflow looks for uvicorn
    server = subprocess.Popen(
        [*command, "-p", str(port), "--host", "127.0.0.1"],
        env=os.environ | {FOLDER: str(tmp_path / "landing"), "PATH": path},
        start_new_session=True,
    )
    try:
        rows = {"columns": ["age", "device", "request_id"], "data": [[31, "tv", "a"], [40, None, "b"]]}
        answer = ask(port, {"dataframe_split": rows, "params": {"unit_id": "u1"}})
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)
    assert [each["score"] for each in answer["predictions"]] == [0.31, 0.4]
    until(lambda: len(list((tmp_path / "landing/records").glob("[!_]*"))) == 1)
    lines = [line for path in (tmp_path / "landing/records").glob("[!_]*") for line in path.read_bytes().splitlines()]
    found = [row for line in lines if isinstance(row := RecordReader(CONTRACT).read(line), dict)]
    assert [(row["request_id"], row["unit_id"], row["prediction_score"]) for row in found] == [
        ("a", "u1", 0.31),
        ("b", "u1", 0.4),
    ]


def ask(port: int, body: dict[str, object]) -> dict[str, list[dict[str, object]]]:
    """The answer of the server, once it is up."""
    until_up(port)
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        found: dict[str, list[dict[str, object]]] = json.load(response)
        return found


def until_up(port: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=60):
            return
        time.sleep(0.1)
    raise AssertionError("the server did not come up")
