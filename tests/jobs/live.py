"""Live traffic into a landing folder, and the process that takes it in and watches it, for tests and by hand."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import yaml

from tests.conftest import ROOT

MONITOR = {
    "monitor_id": "live",
    "log": "recommendations",
    "model_name": "recommender",
    "series": {
        "bucket_seconds": 10,
        "lateness_seconds": 5,
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


def configured(folder: Path, confs: Path) -> Path:
    """The conf of a monitor of its own lakehouse in `folder`."""
    env = yaml.safe_load((confs / "env/local.yaml").read_text())
    env |= {
        "root": str(folder / "lake"),
        "master": "local[2]",
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db", "artifacts": str(folder / "artifacts")},
    }
    (confs / "env/local.yaml").write_text(yaml.safe_dump(env))
    told = {"notify": {"file": {"kind": "file", "address": str(folder / "notices.jsonl")}}}
    (confs / "monitors/live.yaml").write_text(yaml.safe_dump(MONITOR | told))
    return confs / "monitors/live.yaml"


class Traffic:
    """Writes a file a second of so many records, one in ten by the candidate, until it is stopped."""

    def __init__(self, landing: Path, per_second: int, seed: int = 1) -> None:
        self._landing, self._per_second, self._random = landing, per_second, random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.n = 0
        self.hurts = False
        self.first_bad: datetime | None = None
        landing.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            lines = "\n".join(json.dumps(self._record()) for _ in range(self._per_second)) + "\n"
            name = f"{time.time_ns()}.jsonl"
            fresh = self._landing / f"_{name}"
            fresh.write_text(lines)
            fresh.rename(self._landing / name)
            due += 1
            self._stop.wait(max(0.0, due - time.monotonic()))

    def _record(self) -> dict[str, object]:
        self.n += 1
        now = datetime.now(UTC)
        device = self._random.choice(DEVICES)
        is_candidate = self._random.random() < 0.1
        is_hurt = self.hurts and is_candidate and device == "tablet"
        fails = self._random.random() < (0.2 if is_hurt else 0.01)
        if is_hurt and self.first_bad is None:
            self.first_bad = now
        record = {
            "schema_version": "v02",
            "request_id": f"r{now.timestamp():.0f}-{self.n}",
            "event_time": now.isoformat(),
            "model_name": "recommender",
            "model_version": "2" if is_candidate else "1",
            "feature_version": "f02",
            "traffic": "production",
            "status": "error" if fails else "ok",
            "unit_id": f"u{self.n % 5000}",
            "latency_ms": 20.0,
            "features": {
                "device": device,
                "age": 30,
                "similarity_score": 0.1,
                "region": "emea",
                "tenure_days": 5,
                "price": 1.0,
            },
        }
        outcome = {"error_type": "timeout"} if fails else {"prediction_score": self._random.gauss(0.4, 0.1)}
        return record | outcome


class Process:
    """`monitor_metrics --continuous --ingest`, to be ended kindly or not."""

    def __init__(self, config: Path, log: Path, trigger: int = 5) -> None:
        command = [sys.executable, "-m", "jobs.monitor_metrics", "--config", str(config), "--continuous", "--ingest"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [*command, "--trigger", str(trigger)], stdout=out, stderr=out, cwd=config.parents[2], env=environment
            )

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def terminate(self, seconds: float = 120) -> int:
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(seconds)

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None
