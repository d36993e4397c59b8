"""Live traffic, and the process that takes it in and watches it, for tests and by hand."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

import mlflow
import pandas as pd
import yaml
from deltalake import DeltaTable
from sklearn.tree import DecisionTreeClassifier

from mltrust.io import models, tracking
from tests.conftest import ROOT
from tests.jobs.conftest import changed, copied_conf

Fault = Literal["errors", "scores"]

MONITOR = {
    "monitor_id": "live",
    "log": "recommendations",
    "model_name": "recommender",
    "series": {
        "bucket_seconds": 10,
        "lateness_seconds": 3,
        "history_days": 0.05,
        "metrics": {
            "requests": {"kind": "count"},
            "error_rate": {"kind": "share", "value": "status = 'error'", "worse": "up"},
            "score": {"kind": "mean", "value": "prediction_score"},
        },
        "slices": {"attributes": {"device": "features.device"}},
        "arms": {"by": "model_version"},
    },
    "detectors": [{"kind": "concurrent", "severity": "critical"}],
    "rules": [{"name": "candidate", "dry_run": False, "page": ["file"]}],
}
#: One request in ten is from tablets, the slice that the candidate hurts.
DEVICES = ["tablet"] + ["mobile"] * 6 + ["desktop"] * 3
HURT = "tablet"
_SCORE, _SCORE_SD = 0.4, 0.1


class Traffic:
    """So many records a second, one in ten by the candidate, given to `send` every second until it is stopped."""

    def __init__(self, send: Callable[[list[bytes]], object], per_second: int, seed: int = 1) -> None:
        self._send, self._per_second, self._random = send, per_second, random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.n = 0
        self.fault: Fault | None = None
        self.first_bad: datetime | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def history(self, minutes: int, per_second: int) -> None:
        """Sends the clean traffic of the last minutes at once."""
        now = datetime.now(UTC)
        for ago in range(minutes * 60, 0, -1):
            self._send([self._line(now - timedelta(seconds=ago)) for _ in range(per_second)])

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            self._send([self._line(datetime.now(UTC)) for _ in range(self._per_second)])
            due += 1
            self._stop.wait(max(0.0, due - time.monotonic()))

    def _line(self, at: datetime) -> bytes:
        self.n += 1
        device = self._random.choice(DEVICES)
        is_candidate = self._random.random() < 0.1
        fault = self.fault if is_candidate and device == HURT else None
        if fault and self.first_bad is None:
            self.first_bad = at
        fails = self._random.random() < (0.2 if fault == "errors" else 0.01)
        score = self._random.gauss(_SCORE + (_SCORE_SD if fault == "scores" else 0), _SCORE_SD)
        record = {
            "schema_version": "v02",
            "request_id": f"r{self.n}",
            "event_time": at.isoformat(),
            "model_name": "recommender",
            "model_version": "2" if is_candidate else "1",
            "feature_version": "f02",
            "traffic": "production",
            "status": "error" if fails else "ok",
            "unit_id": f"u{self.n % 5000}",
            "latency_ms": 20.0,
            "features": {"device": device, "age": 30, "similarity_score": 0.1, "region": "emea", "price": 1.0},
        }
        outcome = {"error_type": "timeout"} if fails else {"prediction_score": score}
        return json.dumps(record | outcome).encode()


class Place:
    """A lakehouse of its own with its conf, a registry with two versions, and the processes that work on it."""

    def __init__(self, folder: Path, ingest: dict[str, object] | None = None, **monitor: object) -> None:
        self.folder = folder
        confs = copied_conf(folder, n_units=10)
        self._env = confs / "env/local.yaml"
        self._runs = {"uri": f"sqlite:///{folder}/mlflow.db", "artifacts": str(folder / "artifacts")}
        self.tell(
            root=str(folder / "lake"),
            master="local[2]",
            tracking=self._runs,
            ingest=ingest or {},
            # A process of some minutes spends them on compiling what it never runs again.
            spark={"spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=256m"},
        )
        told = {"notify": {"file": {"kind": "file", "address": str(folder / "notices.jsonl")}}}
        self.config = confs / "monitors/live.yaml"
        self.config.write_text(yaml.safe_dump(MONITOR | told | monitor))
        self.landing = folder / "lake/landing/recommendations/records"
        self.landing.mkdir(parents=True)

    def tell(self, **settings: object) -> None:
        """Changes what stands in the conf of the environment."""
        with changed(self._env) as env:
            env |= settings

    def land(self, lines: list[bytes]) -> None:
        """Lines as a landing file."""
        name = f"{time.time_ns()}.jsonl"
        fresh = self.landing / f"_{name}"
        fresh.write_bytes(b"\n".join(lines) + b"\n")
        fresh.rename(self.landing / name)

    def register(self) -> None:
        """Two versions of the model, which give opposite answers; the first one is champion."""
        tracking.connect(tracking.Server(self._runs["uri"], self._runs["artifacts"], "mltrust"))
        example = pd.DataFrame({"x": [0.0, 1.0]})
        for classes in ([0, 1], [1, 0]):
            model = DecisionTreeClassifier().fit(example, classes)
            models.register(model, name="recommender", alias="champion", example=example)
        self.release("1")

    def release(self, version: str) -> None:
        self._client().set_registered_model_alias("recommender", "champion", version)

    def champion(self) -> str:
        """The version that the alias names."""
        return str(self._client().get_model_version_by_alias("recommender", "champion").version)

    def answers(self) -> list[float]:
        """What the model that is named champion says of 0 and 1."""
        mlflow.set_tracking_uri(self._runs["uri"])
        model = mlflow.sklearn.load_model("models:/recommender@champion")
        return [float(each) for each in model.predict(pd.DataFrame({"x": [0.0, 1.0]}))]

    def _client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(self._runs["uri"], self._runs["uri"])

    def job(self, name: str, *arguments: str) -> "Process":
        config = (
            self.config if name == "monitor_metrics" else self.config.parents[1] / "contracts/recommendations.yaml"
        )
        return Process([name, "--config", str(config), *arguments], self.folder, self.folder / f"{name}.log")

    def watching(self, trigger: int = 5) -> "Process":
        """The process that takes in and watches."""
        return self.job("monitor_metrics", "--continuous", "--ingest", "--trigger", str(trigger))

    def rows(self, table: str) -> list[dict[str, Any]]:
        """The rows of a table, none where it is not made yet."""
        path = self.folder / f"lake/recommendations/{table}"
        if not (path / f"_delta_log/{0:020}.json").exists():
            return []
        return list(DeltaTable(str(path)).to_pyarrow_table().to_pylist())

    def n_scans(self) -> int:
        """How often the series were written."""
        return int(DeltaTable(str(self.folder / "lake/recommendations/monitor_series")).version())

    def notices(self) -> list[dict[str, Any]]:
        path = self.folder / "notices.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Process:
    """A job as a program of its own, to be ended kindly or not."""

    def __init__(self, job: list[str], folder: Path, log: Path) -> None:
        self._log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"jobs.{job[0]}", *job[1:]],
                stdout=out,
                stderr=out,
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                start_new_session=True,
            )

    def kill(self) -> None:
        """Ends the process and all that it started, at once."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def terminate(self, seconds: float = 120) -> int:
        self._process.send_signal(signal.SIGTERM)
        return self.wait(seconds)

    def wait(self, seconds: float = 300) -> int:
        return self._process.wait(seconds)

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def said(self) -> str:
        """The end of what the process printed."""
        return self._log.read_text()[-4000:]


def waited(until: Callable[[], object], seconds: float, every: float = 0.5) -> bool:
    """Whether something comes about within so many seconds. To look often costs those that are watched."""
    end = time.monotonic() + seconds
    while not until():
        if time.monotonic() > end:
            return False
        time.sleep(every)
    return True


class Seen(NamedTuple):
    """What came of a run: seconds from the first bad record, None where it did not come to that.

    `slices` are those that incidents were named by, in order; `exit_code` is the process's at its end.
    """

    fault: Fault
    decided: float | None
    rolled_back: float | None
    recovered: float | None
    slices: list[str]
    n_incidents: int
    exit_code: int


def run(
    place: Place,
    send: Callable[[list[bytes]], object],
    fault: Fault,
    *,
    per_second: int = 2000,
    clean_seconds: float = 120,
    seed: int = 1,
) -> Seen:
    """A clean history, a release, clean traffic, a fault, and what is done about it."""
    traffic = Traffic(send, per_second, seed)
    place.register()
    traffic.history(minutes=30, per_second=50)
    for name in ("ingest_logs", "monitor_metrics"):
        loading = place.job(name)
        assert loading.wait(300) == 0, loading.said()
    place.release("2")
    before, process = place.n_scans(), place.watching()
    traffic.start()
    try:
        assert waited(lambda: place.n_scans() > before + 1, 300), process.said()
        time.sleep(clean_seconds)
        assert place.rows("incidents") == []
        traffic.fault = fault
        moved = waited(lambda: place.champion() == "1" or not process.is_running, 180, every=1)
        moved_at = datetime.now(UTC)
        traffic.fault = None  # the service follows the alias
        waited(lambda: any(each["state"] == "recovered" for each in place.notices()), 240 if moved else 0)
        recovered_at = datetime.now(UTC)
    finally:
        traffic.stop()
        exit_code = process.terminate() if process.is_running else process.wait()
    bad = traffic.first_bad
    assert bad is not None
    done = [row["decided_at"] for row in place.rows("decisions") if row["state"] == "done"]
    told = sorted(place.rows("incidents"), key=lambda row: (row["changed_at"], row["revision"]))
    return Seen(
        fault,
        (min(done) - bad).total_seconds() if done else None,
        (moved_at - bad).total_seconds() if moved else None,
        (recovered_at - bad).total_seconds() if any(row["state"] == "recovered" for row in told) else None,
        list(dict.fromkeys(f"{row['slice_key']}:{row['slice_value']}" for row in told)),
        len({row["incident_id"] for row in told}),
        exit_code,
    )
