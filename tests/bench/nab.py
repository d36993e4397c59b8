"""NAB's score on the New York taxi series: our seasonal detector, and NAB's Windowed Gaussian beside it.

`python -m tests.bench.nab` prints both; the data are named by MLTRUST_DATA (folder nab/). One record counts per
incident, at its start. The profile is NAB's standard one (A_TP 1, A_FP 0.11, A_FN 1), the probation 15 % of the first
5,000 rows, and the score is normalised on this file: 0 says nothing at all, 100 finds every window at once and no
more.

References
----------
Lavin, A. and Ahmad, S. (2015). Evaluating real-time anomaly detection algorithms: the Numenta Anomaly Benchmark.
ICMLA.
"""

import csv
import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from math import exp, inf
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import special

from mltrust.monitor.cells import EVERY_VERSION
from mltrust.monitor.incidents import incidents
from mltrust.monitor.scan import scan
from mltrust.monitor.series import Panel, SeriesKey
from mltrust.monitor.spec import Detection, Monitor, SeriesMetric, SeriesSpec

HALF_HOUR = timedelta(minutes=30)
PROBATION = 750
A_TP, A_FP, A_FN = 1.0, 0.11, 1.0
FILE = "realKnownCause/nyc_taxi.csv"


class Taxi(NamedTuple):
    """The series and the windows [first, last] of its labelled anomalies, as rows."""

    start: datetime
    values: np.ndarray
    windows: list[tuple[int, int]]


class Score(NamedTuple):
    """What records at these rows are worth."""

    found: int
    windows: int
    false_incidents: int
    score: float


def taxi(folder: Path) -> Taxi:
    with (folder / "nyc_taxi.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    times = [datetime.fromisoformat(row["timestamp"]).replace(tzinfo=UTC) for row in rows]
    assert all(time == times[0] + at * HALF_HOUR for at, time in enumerate(times))
    labelled = json.loads((folder / "nyc_taxi_windows.json").read_text(encoding="utf-8"))[FILE]
    ends = [[times.index(datetime.fromisoformat(end).replace(tzinfo=UTC)) for end in window] for window in labelled]
    return Taxi(times[0], np.array([float(row["value"]) for row in rows]), [(first, last) for first, last in ends])


def sigmoid(position: float) -> float:
    """NAB's scaled sigmoid: 1 well before the end of a window, 0 at it, -1 long after."""
    return 2 / (1 + exp(5 * position)) - 1 if position <= 3 else -1.0


def score(records: Sequence[int], data: Taxi) -> Score:
    """NAB's score: of a window its first record counts, by how early it is; every record outside costs."""
    counted = [at for at in records if at >= PROBATION]
    raw, found = 0.0, 0
    for first, last in data.windows:
        inside = [at for at in counted if first <= at <= last]
        if inside:
            found += 1
            raw += A_TP * sigmoid(-(last - min(inside) + 1) / (last - first + 1)) / sigmoid(-1)
        else:
            raw -= A_FN
    false = [at for at in counted if not any(first <= at <= last for first, last in data.windows)]
    raw += A_FP * sum(_cost(at, data.windows) for at in false)
    perfect, null = A_TP * len(data.windows), -A_FN * len(data.windows)
    return Score(found, len(data.windows), len(false), 100 * (raw - null) / (perfect - null))


def _cost(at: int, windows: Sequence[tuple[int, int]]) -> float:
    """-1 at most: how far the record lies after the window before it, in lengths of that window."""
    before = [(first, last) for first, last in windows if last < at]
    if not before:
        return -1.0
    first, last = max(before)
    return sigmoid((at - last) / (last - first))


def ours(data: Taxi, min_score: float | None = None) -> list[int]:
    """Rows at which our incidents begin, with defaults or with another least score."""
    how = Detection("seasonal") if min_score is None else Detection("seasonal", min_score=min_score)
    monitor = Monitor(
        monitor_id="taxi",
        log="taxi",
        model_name="demand",
        series=SeriesSpec(metrics={"passengers": SeriesMetric("count")}, bucket_seconds=1800),
        detectors=(how,),
    )
    n = data.values[None, :]
    key = SeriesKey("demand", EVERY_VERSION, "", "passengers", "", "")
    panel = Panel((key,), ("count",), data.start, HALF_HOUR, n, n.copy(), np.sqrt(n))
    found = scan(panel, monitor, data.start)
    told = incidents(found.findings, monitor.incidents, bucket=HALF_HOUR, upto=panel.time(panel.n_buckets))
    return [panel.index(each.opened_at) for each in told.revisions if each.revision == 0]


def windowed_gaussian(data: Taxi, *, window: int = 6400, step: int = 100) -> np.ndarray:
    """NAB's Windowed Gaussian: 1 - Q(z) of every value under mean and deviation of a window that moves by steps."""
    kept: list[float] = []
    waiting: list[float] = []
    found = np.zeros(len(data.values))
    mean, deviation = 0.0, 1.0
    for at, value in enumerate(data.values):
        if kept:
            z = (value - mean) / deviation
            found[at] = 1 - special.ndtr(-abs(z))
        if len(kept) < window:
            kept.append(value)
            mean, deviation = float(np.mean(kept)), float(np.std(kept)) or 1e-6
        else:
            waiting.append(value)
            if len(waiting) == step:
                kept, waiting = [*kept[step:], *waiting], []
                mean, deviation = float(np.mean(kept)), float(np.std(kept)) or 1e-6
    return found


def best_of(scores: np.ndarray, data: Taxi) -> tuple[float, Score]:
    """The threshold that gives NAB's best score on this very file, as NAB tunes it, and that score."""
    best, at = Score(0, len(data.windows), 0, -inf), inf
    for threshold in np.unique(np.round(scores[PROBATION:], 6))[-300:]:
        here = score(np.flatnonzero(scores >= threshold).tolist(), data)
        if here.score > best.score:
            best, at = here, float(threshold)
    return at, best


def main() -> int:
    folder = os.environ.get("MLTRUST_DATA")
    if folder is None:
        print("MLTRUST_DATA names no folder with nab/nyc_taxi.csv", file=sys.stderr)
        return 2
    data = taxi(Path(folder, "nab"))
    print(f"{'detector':34} {'windows':>8} {'false':>6} {'score':>7}")
    for name, floor in (
        ("seasonal, defaults", None),
        *((f"seasonal, least score {at:g}", at) for at in (5.0, 6.0, 8.0)),
    ):
        found = score(ours(data, floor), data)
        print(f"{name:34} {found.found:>4} of {found.windows} {found.false_incidents:>6} {found.score:7.1f}")
    threshold, found = best_of(windowed_gaussian(data), data)
    name = f"Windowed Gaussian, best ({threshold:.6f})"
    print(f"{name:34} {found.found:>4} of {found.windows} {found.false_incidents:>6} {found.score:7.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
