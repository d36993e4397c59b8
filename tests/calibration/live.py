"""Live traffic in event time, without a clock: a candidate of 10 % beside the champion, in buckets of ten seconds."""

from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

import numpy as np

from mltrust.monitor.incidents import Incident, incidents
from mltrust.monitor.rules import Decision, Registry, decide, observed
from mltrust.monitor.scan import scan
from mltrust.monitor.series import Kind, Panel, SeriesKey
from mltrust.monitor.spec import Arms, Detection, Monitor, RollbackRule, SeriesMetric, SeriesSpec
from mltrust.slices import OVERALL, Slice, name_slice

START = datetime(2026, 11, 2, 12, tzinfo=UTC)
BUCKET = timedelta(seconds=10)
REQUESTS_PER_BUCKET = 20_000
CANDIDATE_SHARE = 0.1
REGIONS = {"emea": 0.4, "amer": 0.3, "apac": 0.2, "latam": 0.1}
DEVICES = {"mobile": 0.6, "desktop": 0.4}
HURT = name_slice({"region": "latam"})
ERROR_RATE, HURT_ERROR_RATE = 0.01, 0.2
CLEAN_BUCKETS = 12  # two minutes
METRICS: dict[str, Kind] = {"error_rate": "share", "timeouts": "share", "score": "mean"}

FaultKind = Literal["errors", "scores"]


def monitor() -> Monitor:
    return Monitor(
        monitor_id="live",
        log="live",
        model_name="ranker",
        series=SeriesSpec(
            metrics={
                "error_rate": SeriesMetric("share", value="status = 'error'", worse="up"),
                "timeouts": SeriesMetric("share", value="error_type = 'timeout'", worse="up"),
                "score": SeriesMetric("mean", value="prediction_score"),
            },
            bucket_seconds=10,
            arms=Arms(by="model_version"),
        ),
        detectors=(Detection("concurrent", severity="critical"),),
        rules=(RollbackRule("candidate", dry_run=False),),
    )


def _slices() -> list[tuple[Slice, np.ndarray]]:
    """Slices with the cells (region, device) that they hold."""
    cells = [(region, device) for region in REGIONS for device in DEVICES]
    found = [(Slice(*OVERALL), np.ones(len(cells), bool))]
    found += [(name_slice({"region": each}), np.array([r == each for r, _ in cells])) for each in REGIONS]
    found += [(name_slice({"device": each}), np.array([d == each for _, d in cells])) for each in DEVICES]
    return found


def simulated(seed: int, n_buckets: int, fault: FaultKind | None = None, *, lasts: int | None = None) -> Panel:
    """Buckets of both versions; the fault begins after two minutes, somewhere within a bucket, and lasts so many."""
    rng = np.random.default_rng((seed, 10))
    shares = np.array([region * device for region in REGIONS.values() for device in DEVICES.values()])
    in_slice = _slices()
    members = np.array([cells for _, cells in in_slice], dtype=float)
    hurt = dict(in_slice)[HURT]
    begins = rng.random()
    strength = np.zeros(n_buckets)
    if fault is not None:
        strength[CLEAN_BUCKETS], strength[CLEAN_BUCKETS + 1 :] = 1 - begins, 1.0
        strength[CLEAN_BUCKETS + (n_buckets if lasts is None else lasts) :] = 0.0
    traffic = (
        REQUESTS_PER_BUCKET * (1 + 0.2 * np.sin(np.arange(n_buckets) / 50 + seed)) * rng.lognormal(0, 0.05, n_buckets)
    )
    rate = ERROR_RATE * rng.lognormal(0, 0.2, n_buckets)  # moves, for both versions at once
    level = 0.3 + 0.05 * np.sin(np.arange(n_buckets) / 100)
    keys: list[SeriesKey] = []
    kinds: list[Kind] = []
    n_all, values, errors = [], [], []
    for version, share in (("1", 1 - CANDIDATE_SHARE), ("2", CANDIDATE_SHARE)):
        n = rng.poisson(np.outer(shares, traffic) * share)
        bad = np.outer(hurt, strength) * (version == "2")
        p = rate + bad * (HURT_ERROR_RATE - ERROR_RATE) * (fault == "errors")
        failed = rng.binomial(n, p)
        timeouts = rng.binomial(failed, 0.5)
        scored = n - failed
        total, total2 = _scores(rng, scored, level + bad * 0.15 * (fault == "scores"))
        for metric, kind in METRICS.items():
            part = {"error_rate": failed, "timeouts": timeouts, "score": total}[metric]
            own = members @ (scored if kind == "mean" else n)
            value = members @ part / own
            spread = members @ total2 / own - value**2 if kind == "mean" else value * (1 - value)
            keys += [SeriesKey("ranker", version, "", metric, *name) for name, _ in in_slice]
            kinds += [kind] * len(in_slice)
            n_all.append(own)
            values.append(value)
            errors.append(np.sqrt(spread / own))
    arrays = (np.concatenate(each) for each in (n_all, values, errors))
    return Panel(tuple(keys), tuple(kinds), START, BUCKET, *arrays)


def _scores(rng: np.random.Generator, n: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums and sums of squares of n scores with sd 0.15 each."""
    sd = 0.15
    average = rng.normal(mean, sd / np.sqrt(np.maximum(n, 1)))
    variance = sd**2 * rng.chisquare(np.maximum(n - 1, 1)) / np.maximum(n - 1, 1)
    return n * average, n * (variance + average**2)


class Live(NamedTuple):
    """What came of a run: incidents, and the first decision that acts."""

    incidents: list[Incident]
    acted: Decision | None


def watched(panel: Panel) -> Live:
    """Every bucket judged as it closes: incidents and, when one is open, the rule's decision."""
    by = monitor()
    found = scan(panel, by, panel.start)
    registry = Registry("2", frozenset(("1", "2")))
    past = observed([], "ranker", "champion", Registry("1", registry.versions), START - BUCKET)
    past += observed(past, "ranker", "champion", registry, START)
    last = panel.time(panel.n_buckets)
    told = incidents(found.findings, by.incidents, bucket=BUCKET, upto=last)
    for end in sorted({each.judged_at for each in found.findings}):
        live = incidents(found.findings, by.incidents, bucket=BUCKET, upto=end).live
        for decision in decide(by.rules[0], live, past, registry, end):
            if decision.state == "due":
                return Live(told.revisions, decision)
    return Live(told.revisions, None)
