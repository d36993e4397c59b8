"""One MLflow run per job, with a description that leads with the verdict."""

import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from math import isnan
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import mlflow
import pandas as pd
from matplotlib.figure import Figure
from mlflow.data.delta_dataset_source import DeltaDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric, Param, RunTag

Scalar = bool | int | float | str | None
#: What MLflow's run page still shows well.
MAX_METRICS = 200
_FORBIDDEN = re.compile(r"[^\w\-. :/]", re.ASCII)
_MAX_PARAM, _MAX_TAG, _MAX_NAME, _MAX_BATCH = 6000, 8000, 250, 1000


class Server(NamedTuple):
    """A tracking server; None leaves the choice to the environment or the platform."""

    uri: str | None
    artifacts: str | None
    experiment: str


class Run:
    """An active MLflow run, written to by its id: the active run of MLflow is one of a thread.

    In another thread, as those of streaming queries are, MLflow would begin a run of its own.
    """

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id

    def params(self, values: Mapping[str, Scalar]) -> None:
        params = [Param(metric_name(name), str(value)[:_MAX_PARAM]) for name, value in values.items()]
        mlflow.MlflowClient().log_batch(self.run_id, params=params)

    def metrics(self, values: Mapping[str, float | None]) -> int:
        """Logs what is no nan, the first MAX_METRICS of it; returns how many were left out."""
        defined = {
            metric_name(name): value for name, value in values.items() if value is not None and not isnan(value)
        }
        now = round(time.time() * 1000)
        metrics = [Metric(name, value, now, 0) for name, value in list(defined.items())[:MAX_METRICS]]
        mlflow.MlflowClient().log_batch(self.run_id, metrics=metrics)
        return max(0, len(defined) - MAX_METRICS)

    def series(self, values: Mapping[str, Sequence[tuple[datetime, float]]]) -> None:
        """Logs series as metrics with a step and a time per bucket, the first MAX_METRICS of them."""
        metrics = [
            Metric(metric_name(name), value, round(at.timestamp() * 1000), round(at.timestamp()))
            for name, points in list(values.items())[:MAX_METRICS]
            for at, value in points
            if not isnan(value)
        ]
        for first in range(0, len(metrics), _MAX_BATCH):
            mlflow.MlflowClient().log_batch(self.run_id, metrics=metrics[first : first + _MAX_BATCH])

    def tags(self, values: Mapping[str, str]) -> None:
        tags = [RunTag(name, value[:_MAX_TAG]) for name, value in values.items()]
        mlflow.MlflowClient().log_batch(self.run_id, tags=tags)

    def rename(self, name: str) -> None:
        """The name in the list of runs."""
        mlflow.MlflowClient().update_run(self.run_id, name=name)

    def description(self, markdown: str) -> None:
        """Markdown at the top of the run's page."""
        self.tags({"mlflow.note.content": markdown})
        self.text(markdown, "report.md")

    def text(self, text: str, name: str) -> None:
        mlflow.MlflowClient().log_text(self.run_id, text, name)

    def figure(self, figure: Figure, name: str) -> None:
        mlflow.MlflowClient().log_figure(self.run_id, figure, name)
        plt.close(figure)

    def table(self, rows: Sequence[Mapping[str, object]], name: str) -> None:
        """Rows as a table of the run's page; none where there are no rows."""
        if rows:
            frame = pd.DataFrame([{key: _cell(value) for key, value in row.items()} for row in rows])
            mlflow.MlflowClient().log_table(self.run_id, frame, name)

    def dataset(self, path: str, version: int, name: str, digest: str | None = None) -> None:
        """Names a Delta table at a version as an input of the run; `digest` of its content, else by its version."""
        by_name = "/" not in path
        source = DeltaDatasetSource(
            path=None if by_name else path,
            delta_table_name=path if by_name else None,
            delta_table_version=version,
        )
        mlflow.log_input(_Table(source, name=name, digest=digest or f"v{version}"), context="input")


class _Table(MetaDataset):
    """A Delta table by name and version. MLflow's own Delta dataset reads the table to profile it."""

    @property
    def profile(self) -> None:
        return None


@contextmanager
def run(name: str, server: Server, tags: Mapping[str, str]) -> Iterator[Run]:
    """An MLflow run, marked failed with its error where the job dies."""
    connect(server)
    with mlflow.start_run(run_name=name) as active:
        current = Run(active.info.run_id)
        current.tags(tags)
        try:
            yield current
        except BaseException as error:
            current.tags({"verdict": "failed", "mlflow.note.content": f"**failed**: {error}"})
            raise


def impatient() -> None:
    """Lets a server that is down cost seconds and not minutes, unless the environment says otherwise."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")


def quiet() -> None:
    """Keeps bars that say how much of a model was read out of the logs, unless the environment says otherwise."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


def connect(server: Server) -> None:
    """Points MLflow at the server and its experiment, which is made where it is missing."""
    quiet()
    if server.uri is not None:
        _make_database(server.uri)
        mlflow.set_tracking_uri(server.uri)
    if mlflow.get_experiment_by_name(server.experiment) is None:
        artifacts = None if server.artifacts is None else Path(server.artifacts).absolute().as_uri()
        mlflow.create_experiment(server.experiment, artifact_location=artifacts)
    mlflow.set_experiment(server.experiment)


def _make_database(uri: str) -> None:
    """Makes a local database whole or not at all: one that was killed half way could never be opened again."""
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}-{os.getpid()}")
    mlflow.MlflowClient(f"sqlite:///{fresh}").search_experiments(max_results=1)
    with suppress(FileExistsError):  # another job was faster
        os.link(fresh, path)
    fresh.unlink()


def metric_name(name: str) -> str:
    """`name` as MLflow admits it; where that changes it, a hash keeps different names different."""
    parts = (part for part in _FORBIDDEN.sub("_", name).split("/") if part not in ("", ".", ".."))
    plain = "/".join(parts)
    if plain == name and len(name) <= _MAX_NAME:
        return name
    return f"{plain[: _MAX_NAME - 9]}.{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _cell(value: object) -> object:
    return value if isinstance(value, bool | int | float | str | None) else str(value)
