"""What a logged prediction costs the service that logs it, beside stdlib logging in the same run."""

import json
import logging
import threading
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from mltrust import conf
from mltrust.client import Block, Counts, Drop, Files, InferenceLogger
from mltrust.contract import Contract

ROOT = Path(__file__).parents[2]
N_THREADS = 4
PACED_PER_SECOND = 4000
FEATURES = {"device": "tv", "age": 31, "similarity_score": 0.1, "region": "emea", "price": 2.5}
EXPERIMENTS = [{"experiment_id": "ranker_v2", "variant": "control"}]

#: Logs the prediction of this number.
Log = Callable[[int], object]


class Run(NamedTuple):
    """Microseconds per call, seconds until the last record was in the file, and records that were dropped."""

    micros: list[float]
    seconds: float
    dropped: int


def timed(log: Log, done: Callable[[], int], n: int, per_second: float | None) -> Run:
    """Calls `log` n times from N_THREADS threads, at this total rate or as fast as it goes; then `done`."""
    taken = [array("q") for _ in range(N_THREADS)]
    started = time.perf_counter()
    threads = [
        threading.Thread(target=_serve, args=(log, range(at, n, N_THREADS), taken[at], per_second))
        for at in range(N_THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    dropped = done()
    seconds = time.perf_counter() - started
    return Run(sorted(each / 1000 for part in taken for each in part), seconds, dropped)


def _serve(log: Log, numbers: range, taken: "array[int]", per_second: float | None) -> None:
    pause = None if per_second is None else N_THREADS / per_second
    next_at = time.perf_counter()
    for number in numbers:
        if pause is not None:
            next_at += pause
            if (early := next_at - time.perf_counter()) > 0:
                time.sleep(early)
        before = time.perf_counter_ns()
        log(number)
        taken.append(time.perf_counter_ns() - before)


def with_client(folder: Path, policy: Drop | Block, n: int, per_second: float | None) -> Run:
    contract, _ = conf.read(Contract, ROOT / "conf/contracts/recommendations.yaml")
    logger = InferenceLogger(contract, Files(folder), when_full=policy)

    def log(number: int) -> bool:
        return logger.log(
            request_id=str(number), unit_id="u", model_name="ranker", model_version="1", feature_version="f02",
            features=FEATURES, prediction_score=0.5, experiments=EXPERIMENTS, latency_ms=3.5,
        )  # fmt: skip

    def done() -> int:
        logger.flush(600)
        counts: Counts = logger.close(600)
        assert counts.logged == n == counts.written + counts.dropped
        return counts.dropped

    return timed(log, done, n, per_second)


def with_logging(folder: Path, n: int, per_second: float | None) -> Run:
    """The rival: json.dumps of the same record in the call, and a FileHandler; no check, no rotation, no sync."""
    handler = logging.FileHandler(folder / "predictions.jsonl")
    logger = logging.getLogger("bench.client")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)

    def log(number: int) -> None:
        logger.info(
            json.dumps(
                {
                    "schema_version": "v02", "request_id": str(number), "unit_id": "u", "event_time": time.time(),
                    "model_name": "ranker", "model_version": "1", "feature_version": "f02", "features": FEATURES,
                    "experiments": EXPERIMENTS, "traffic": "production", "status": "ok", "prediction_score": 0.5,
                    "latency_ms": 3.5,
                }
            )
        )  # fmt: skip

    def done() -> int:
        logger.removeHandler(handler)
        handler.close()
        return 0

    return timed(log, done, n, per_second)


def show(name: str, ours: Run, rival: Run) -> None:
    for label, run in (("client", ours), ("logging + json.dumps", rival)):
        n = len(run.micros)
        median, p99, p999 = (run.micros[int(n * share)] for share in (0.5, 0.99, 0.999))
        print(
            f"{name:24} {label:22} median {median:7.1f} us  p99 {p99:9.1f} us  p99.9 {p999:9.1f} us  "
            f"{n / run.seconds:9,.0f} calls/s  {run.dropped:8,} dropped",
            flush=True,
        )
    ratios = [rival.micros[int(len(rival.micros) * q)] / ours.micros[int(len(ours.micros) * q)] for q in (0.5, 0.99)]
    print(f"{name:24} a call costs logging {ratios[0]:.2f} x at the median and {ratios[1]:.2f} x at p99", flush=True)


def client(n: int = 1_000_000) -> None:
    """Paced: 4 threads that log 4,000 predictions a second in all; saturated: as fast as they can.

    Paced, the policy is Drop, and there are 100,000 predictions at most. Saturated, Block(60 s) drops nothing and
    shows the writer's rate, which checks every record by the contract, as the rival does not; with Drop most calls
    are turned away by a full queue.
    """
    with TemporaryDirectory() as folder:
        paced = min(n, 100_000)
        show(
            f"{PACED_PER_SECOND:,} a second, Drop",
            with_client(Path(folder, "paced"), Drop(), paced, PACED_PER_SECOND),
            with_logging(Path(folder), paced, PACED_PER_SECOND),
        )
        rival = with_logging(Path(folder), n, None)
        show("saturated, Block(60 s)", with_client(Path(folder, "block"), Block(60_000), n, None), rival)
        show("saturated, Drop", with_client(Path(folder, "drop"), Drop(), n, None), rival)


if __name__ == "__main__":
    client()
