"""An MLflow model that logs what it predicts: a wrapper of any other; needs mlflow (extra `serve`)."""

import json
import os
import re
import signal
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import NamedTuple, cast

import mlflow
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.pyfunc import PyFuncModel
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

import mltrust
from mltrust.client import tabular
from mltrust.client.files import Files
from mltrust.client.heartbeats import now_micros
from mltrust.client.logger import InferenceLogger
from mltrust.client.reports import log
from mltrust.contract import Contract, from_json

#: The environment variable that moves the log of a served model to another landing folder.
FOLDER = "MLTRUST_LANDING"
_REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>.+))")
# MLflow keeps this text with the model: no pickle, so that whoever loads the model runs no other code.
_CODE = "import mlflow\nfrom mltrust.client.pyfunc import LoggedModel\n\nmlflow.models.set_model(LoggedModel())\n"

Row = Mapping[str, object]
#: Score and action of a row.
Prediction = tuple[object, object]


@dataclass(frozen=True, slots=True)
class Serving:
    """How the predictions of a served model are logged.

    `folder` is the landing folder of the log. `request_id`, `item_id`, `unit_id` and `experiments` (JSON) name
    columns of the input, or params of the call, that are the log's and that the model does not see unless its own
    signature has them. `score` and `action` say where an output holds these: a column by name or position; without
    them the first column is the score, or in a log of actions the action. Without names the model is logged by the
    name and version under which it is registered.
    """

    contract: Contract
    folder: str
    feature_version: str
    model_name: str | None = None
    model_version: str | None = None
    request_id: str = "request_id"
    item_id: str = "item_id"
    unit_id: str = "unit_id"
    experiments: str = "experiments"
    score: str | int | None = None
    action: str | int | None = None

    def __post_init__(self) -> None:
        if self.feature_version not in self.contract.features:
            known = ", ".join(self.contract.features)
            raise ValueError(f"feature_version is {self.feature_version!r}, expected one of {known}")

    @property
    def own(self) -> tuple[str, ...]:
        """Names of the columns and params that are the log's."""
        return self.request_id, self.item_id, self.unit_id, self.experiments

    def to_json(self) -> str:
        plain = {name: value for name, value in asdict(self).items() if name != "contract"}
        return json.dumps(plain | {"contract": json.loads(self.contract.to_json())})


def serving_from_json(text: str) -> Serving:
    """The serving in what `Serving.to_json` wrote."""
    plain = json.loads(text)
    return Serving(**plain | {"contract": from_json(json.dumps(plain["contract"]))})


class _Asked(NamedTuple):
    """One row of a call, as the log has it."""

    request_id: str
    item_id: str
    unit_id: str | None
    experiments: Sequence[Row]
    features: Row


class _Said(NamedTuple):
    """What the model gave back, or raised."""

    latency_ms: float
    output: object = None
    error: Exception | None = None

    def predictions(self, serving: Serving) -> list[Prediction]:
        """Score and action of every row; what is not found in the output is None, for ingest to refuse."""
        if self.error is not None:
            return []
        acts = serving.contract.prediction == "action" or serving.action is not None
        scores = serving.contract.prediction == "score" or serving.score is not None
        return list(
            zip_longest(
                _column(self.output, serving.score) if scores else (),
                _column(self.output, serving.action) if acts else (),
            )
        )


def _exit_on_sigterm() -> None:
    """Lets SIGTERM end the process as sys.exit does, where nobody handles it, so that the log is closed.

    uvicorn, in which MLflow serves, ends itself by the signal's default when it has shut down.
    """
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def _column(output: object, where: str | int | None) -> list[object]:
    with suppress(LookupError, ValueError, TypeError):
        return tabular.column(output, where)
    return []


class LoggedModel(PythonModel):
    """Predicts as the model among its artifacts does, and logs a record per row; made by `logged_model`.

    What the log needs is read before the model is called, as that may change its input. Whatever goes wrong with
    the log is warned of and changes no answer. The rows of a call share its latency evenly, so that their
    latency_ms add up to it.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the model, and logs to the folder of the model config, else of the environment, else its own."""
        self.serving = serving_from_json(Path(context.artifacts["serving"]).read_text("utf-8"))
        self._model: PyFuncModel = mlflow.pyfunc.load_model(context.artifacts["model"])
        config = context.model_config or {}
        folder = config.get("folder") or os.environ.get(FOLDER) or self.serving.folder
        self.logger = InferenceLogger(self.serving.contract, Files(folder))
        _exit_on_sigterm()

    # MLflow warns of most annotations; arrays, dicts and lists come as well.
    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, object] | None = None
    ) -> object:
        event_time, asked = now_micros(), self._asked(model_input, params or {})
        own_input, own_params = self._of_the_model(model_input, params)
        started = perf_counter()
        try:
            output = self._model.predict(own_input, params=own_params)
        except Exception as error:
            self._log(asked, event_time, _Said(1000 * (perf_counter() - started), error=error))
            raise
        self._log(asked, event_time, _Said(1000 * (perf_counter() - started), output))
        return output

    def _of_the_model(
        self, model_input: pd.DataFrame, params: dict[str, object] | None
    ) -> tuple[pd.DataFrame, dict[str, object] | None]:
        """The input and the params without what is the log's alone."""
        signature = self._model.metadata.signature
        if isinstance(model_input, pd.DataFrame):
            kept = signature.inputs.input_names() if signature is not None and signature.inputs is not None else ()
            own = [each for each in self.serving.own if each not in kept and each in model_input.columns]
            model_input = model_input.drop(columns=own)
        known = signature.params.params if signature is not None and signature.params is not None else ()
        return model_input, {each.name: params[each.name] for each in known if params and each.name in params} or None

    def _asked(self, model_input: object, params: Row) -> list[_Asked]:
        try:
            found = tabular.rows(model_input)
            return list(_requests(self.serving, [{}] if found is None else found, params))
        except Exception:
            log.exception("a call was not logged")
            return []

    def _log(self, asked: list[_Asked], event_time: int, said: _Said) -> None:
        try:
            self._log_rows(asked, event_time, said)
        except Exception:
            log.exception("a call was not logged")

    def _log_rows(self, asked: list[_Asked], event_time: int, said: _Said) -> None:
        serving = self.serving
        for row, (score, action) in zip(*_paired(asked, said.predictions(serving)), strict=True):
            self.logger.log(
                request_id=row.request_id,
                item_id=row.item_id,
                unit_id=row.unit_id,
                experiments=row.experiments,
                features=row.features,
                event_time=event_time,
                model_name=serving.model_name or "",
                model_version=serving.model_version or "",
                feature_version=serving.feature_version,
                status="ok" if said.error is None else "error",
                error_type=None if said.error is None else type(said.error).__name__,
                prediction_score=cast(float | None, score),
                action=None if action is None else str(action),
                latency_ms=said.latency_ms / len(asked),
            )


def _paired(asked: list[_Asked], predictions: list[Prediction]) -> tuple[list[_Asked], list[Prediction]]:
    """Rows and predictions of one length. An input without names is one row for all that was predicted of it."""
    if len(asked) == 1 < len(predictions):
        asked = [asked[0]._replace(item_id=str(at)) for at in range(len(predictions))]
    missing: list[Prediction] = [(None, None)] * (len(asked) - len(predictions))
    return asked, (predictions + missing)[: len(asked)]


def _requests(serving: Serving, rows: Sequence[Row], params: Row) -> Iterator[_Asked]:
    """What the log takes of the rows of a call. Rows without a request_id of their own are one request."""
    shared = str(_given({}, serving.request_id, params) or uuid.uuid4().hex)
    ids = [_request_id(row, serving.request_id, params, shared) for row in rows]
    n_items, seen = Counter(ids), Counter[str]()
    for row, request_id in zip(rows, ids, strict=True):
        position = str(seen[request_id]) if n_items[request_id] > 1 else ""
        seen[request_id] += 1
        item_id, unit_id = _given(row, serving.item_id, params), _given(row, serving.unit_id, params)
        yield _Asked(
            request_id,
            position if item_id is None else str(item_id),
            None if unit_id is None else str(unit_id),
            _experiments(_given(row, serving.experiments, params)),
            {name: row[name] for name in serving.contract.features[serving.feature_version] if name in row},
        )


def _request_id(row: Row, name: str, params: Row, shared: str) -> str:
    given = _given(row, name, params)
    return str(given) if given is not None else uuid.uuid4().hex if name in row else shared


def _given(row: Row, name: str, params: Row) -> object:
    """The value of a row, else of the call; None where neither has one."""
    found = (value for value in (row.get(name), params.get(name)) if value is not None and value != "")
    return next((value for value in found if value == value), None)


def _experiments(given: object) -> Sequence[Row]:
    """The experiments of a row; text that is no JSON stays for ingest to refuse."""
    with suppress(ValueError):
        return cast(Sequence[Row], json.loads(given) if isinstance(given, str) else given or ())
    return cast(Sequence[Row], given)


def logged_model(
    model_uri: str,
    serving: Serving,
    *,
    name: str,
    registered_model_name: str | None = None,
    pip_requirements: Sequence[str] | None = None,
) -> ModelInfo:
    """Logs a model to MLflow that predicts as `model_uri` does and logs what it predicts.

    It brings the package along, and needs what the model needs (`pip_requirements`, by default those that it was
    logged with). ValueError where the names under which to log are neither given nor those of a registered model.
    """
    named = _named(model_uri, serving)
    inner = mlflow.models.get_model_info(model_uri).signature
    with TemporaryDirectory() as folder:
        code, conf = Path(folder, "served_model.py"), Path(folder, "serving.json")
        code.write_text(_CODE, "utf-8")
        conf.write_text(named.to_json(), "utf-8")
        info: ModelInfo = mlflow.pyfunc.log_model(
            name=name,
            registered_model_name=registered_model_name,
            python_model=str(code),
            artifacts={"model": model_uri, "serving": str(conf)},
            model_config={"folder": None},  # MLflow lets only those keys be set later that are there
            signature=None if inner is None else _with_own(inner, named.own),
            pip_requirements=list(pip_requirements or _requirements(model_uri)),
            code_paths=[str(Path(mltrust.__file__).parent)],
        )
        return info


def _named(model_uri: str, serving: Serving) -> Serving:
    """The serving with the names by which the model is logged."""
    found = _REGISTERED.fullmatch(model_uri)
    name, version = (found["name"], found["version"]) if found else (None, None)
    if found and found["alias"]:
        version = mlflow.MlflowClient().get_model_version_by_alias(found["name"], found["alias"]).version
    named = replace(
        serving,
        model_name=serving.model_name or name,
        model_version=serving.model_version or (None if version is None else str(version)),
    )
    if named.model_name is None or named.model_version is None:
        raise ValueError(
            f"{model_uri} names no registered version (models:/<name>/<version> or models:/<name>@<alias>); "
            "give model_name and model_version"
        )
    return named


def _with_own(inner: ModelSignature, own: Sequence[str]) -> ModelSignature:
    """The model's signature with the log's columns and params, none of them required."""
    inputs, params = inner.inputs, list(inner.params.params) if inner.params is not None else []
    if inputs is not None and not inputs.is_tensor_spec() and inputs.has_input_names():
        known = inputs.input_names()
        optional = [ColSpec("string", each, required=False) for each in own if each not in known]
        inputs = Schema([*inputs.inputs, *optional])
    known = [each.name for each in params]
    params += [ParamSpec(each, "string", None) for each in own if each not in known]
    return ModelSignature(inputs, inner.outputs, ParamSchema(params))


def _requirements(model_uri: str) -> list[str]:
    lines = Path(mlflow.pyfunc.get_model_dependencies(model_uri)).read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]
