"""Series of a service with weekly seasons and nested slices, clean or with one planted fault."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np

from mltrust.monitor.cells import EVERY_VERSION
from mltrust.monitor.finding import Finding
from mltrust.monitor.incidents import Incident, incidents
from mltrust.monitor.scan import judged_in, scan
from mltrust.monitor.series import Kind, Panel, SeriesKey
from mltrust.monitor.spec import Arms, Monitor, SeriesMetric, SeriesSpec
from mltrust.slices import OVERALL, Slice, name_slice

START = datetime(2026, 8, 3, tzinfo=UTC)
HOUR = timedelta(hours=1)
HISTORY, JUDGED = 8 * 168, 30 * 24
DEVICES = {"mobile": 0.55, "desktop": 0.30, "tablet": 0.15}
COUNTRIES = {"de": 0.25, "fr": 0.15, "us": 0.20, "ca": 0.08, "jp": 0.12, "in": 0.08, "br": 0.07, "mx": 0.05}
REGIONS = {
    "de": "emea",
    "fr": "emea",
    "us": "amer",
    "ca": "amer",
    "jp": "apac",
    "in": "apac",
    "br": "latam",
    "mx": "latam",
}
LEAVES = [(device, country) for device in DEVICES for country in COUNTRIES]
REQUESTS_PER_HOUR = 30_000.0
#: How much the series vary from hour to hour beside counting: of traffic, of a share's odds, of a mean in its sds.
TRAFFIC_NOISE, SHARE_NOISE, MEAN_NOISE = 0.04, 0.03, 0.01


class Metric(NamedTuple):
    """A metric of the simulation: its level, and how much the week moves it (of its level, or of its sd)."""

    name: str
    kind: Kind
    level: float
    season: float


def metrics(n: int) -> list[Metric]:
    """The first `n` metrics: the requests, then rejects, shares and means in turn."""
    levels = (0.01, 0.002, 0.3, 0.05, 0.02, 0.5, 0.1, 0.005)
    found = [Metric("requests", "count", 1.0, 0.5), Metric("rejects", "count", 0.004, 0.5)]
    for at in range(max(0, n - 2)):
        share = at % 2 == 0
        level = levels[at // 2 % len(levels)] if share else float(at)
        found.append(Metric(f"{'share' if share else 'mean'}_{at:02}", "share" if share else "mean", level, 0.1))
    return found[:n]


def slices() -> list[tuple[Slice, list[int]]]:
    """The forty slices with their leaves: overall, devices, regions, countries in them, devices by countries."""
    found: list[tuple[Slice, list[int]]] = [(Slice(*OVERALL), list(range(len(LEAVES))))]
    for name, of in (("device", lambda d, c: d), ("region", lambda d, c: REGIONS[c]), ("country", lambda d, c: c)):
        values = dict.fromkeys(of(*leaf) for leaf in LEAVES)
        found += [
            (name_slice({name: value}), [at for at, leaf in enumerate(LEAVES) if of(*leaf) == value])
            for value in values
        ]
    found += [(name_slice({"device": d, "country": c}), [at]) for at, (d, c) in enumerate(LEAVES)]
    return found


def monitor(chosen: Sequence[Metric], *, arms: bool = False, budget: float = 0.2) -> Monitor:
    return Monitor(
        monitor_id="simulated",
        log="simulated",
        model_name="ranker",
        series=SeriesSpec(
            metrics={
                each.name: SeriesMetric(each.kind, value=None if each.kind == "count" else "x") for each in chosen
            },
            arms=Arms(by="experiment", experiment_id="e", control="control") if arms else None,
        ),
        budget=budget,
    )


class Fault(NamedTuple):
    """What goes wrong: `size` standard errors of the slice's series for `buckets` buckets from `at` on.

    `stuck` repeats the value of bucket `at` instead, `silent` drops every request; with `arm` only that arm fails.
    """

    metric: str
    slice: Slice
    at: int
    buckets: int
    size: float = 0.0
    stuck: bool = False
    silent: bool = False
    arm: str = ""


def week(phase: float, size: float, n: int) -> np.ndarray:
    """A season of a week and of its days, with mean 1."""
    hours = np.arange(n)
    day, whole = 2 * np.pi * hours / 24, 2 * np.pi * hours / 168
    return 1 + size * (0.7 * np.sin(day + phase) + 0.3 * np.sin(whole + 2 * phase))


def simulated(seed: int, chosen: Sequence[Metric], fault: Fault | None = None, *, arms: bool = False) -> Panel:
    """Eight weeks and thirty days of hourly series of every metric in every slice, from leaves that add up."""
    rng = np.random.default_rng((seed, 8))
    n_buckets = HISTORY + JUDGED
    shares = np.array([DEVICES[d] * COUNTRIES[c] for d, c in LEAVES])
    members = np.array([[leaf in own for leaf in range(len(LEAVES))] for _, own in slices()], dtype=float)
    hit = np.zeros(len(LEAVES), dtype=bool)
    if fault is not None:
        hit[dict(slices())[fault.slice]] = True
    traffic = REQUESTS_PER_HOUR * week(0.3, 0.5, n_buckets) * np.exp(rng.normal(0, TRAFFIC_NOISE, n_buckets))
    rate = shares[:, None] * traffic
    rate = _changed_volume(rate, "requests", 1.0, fault, hit)
    n_leaf = rng.poisson(rate).astype(float)
    keys: list[SeriesKey] = []
    kinds: list[Kind] = []
    parts: dict[str, list[np.ndarray]] = {"n": [], "value": [], "std_error": []}
    for metric in chosen:
        names = ["", "control", "treatment"] if arms and metric.kind != "count" else [""]
        by_arm = _arms(rng, n_leaf, names)
        drawn = {
            name: _drawn(rng, metric, by_arm[name], traffic, fault, hit, name, n_leaf)
            for name in names
            if name or len(names) == 1
        }
        if len(names) > 1:
            drawn[""] = drawn["control"] + drawn["treatment"]
        for name in names:
            n, total = members @ by_arm[name], members @ drawn[name]
            value, std_error = _values(metric, n, total, rng)
            if fault is not None and fault.stuck and metric.name == fault.metric:
                at = [own for own, _ in slices()].index(fault.slice)
                value[at, fault.at : fault.at + fault.buckets] = value[at, fault.at]
            for part, array in zip(("n", "value", "std_error"), (n, value, std_error), strict=True):
                parts[part].append(array)
            keys += [SeriesKey("ranker", EVERY_VERSION, name, metric.name, *own) for own, _ in slices()]
            kinds += [metric.kind] * len(members)
    arrays = {name: np.concatenate(each) for name, each in parts.items()}
    return Panel(tuple(keys), tuple(kinds), START, HOUR, **arrays)


def _arms(rng: np.random.Generator, n_leaf: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    if len(names) == 1:
        return {"": n_leaf}
    treated = rng.binomial(n_leaf.astype(int), 0.1).astype(float)
    return {"": n_leaf, "treatment": treated, "control": n_leaf - treated}


def _during(fault: Fault, n_buckets: int) -> np.ndarray:
    at = np.arange(n_buckets)
    return (at >= fault.at) & (at < fault.at + fault.buckets)


def _changed_volume(
    rate: np.ndarray, name: str, per_request: float, fault: Fault | None, hit: np.ndarray
) -> np.ndarray:
    """The rates of a count with the fault in the slice: so many standard errors of its sum there."""
    if fault is None or fault.metric != name or fault.stuck or fault.arm:
        return rate
    own = rate[hit].sum(axis=0)
    std_error = np.sqrt(own + (TRAFFIC_NOISE * own) ** 2)
    factor = np.maximum(0, 1 + fault.size * 1.15 * std_error / own)  # 1.15: the median of eight weeks varies too
    changed = rate.copy()
    during = _during(fault, rate.shape[1])
    scale = np.zeros_like(own) if fault.silent else factor
    changed[np.ix_(hit, during)] *= scale[during]
    return changed


def _drawn(
    rng: np.random.Generator,
    metric: Metric,
    n: np.ndarray,
    traffic: np.ndarray,
    fault: Fault | None,
    hit: np.ndarray,
    arm: str,
    n_all: np.ndarray,
) -> np.ndarray:
    """The metric's sums per leaf and bucket."""
    n_buckets = n.shape[1]
    season = week(sum(map(ord, metric.name)) % 7, metric.season, n_buckets)
    mine = fault is not None and fault.metric == metric.name and not fault.stuck and fault.arm == arm
    if metric.name == "requests":
        return n
    if metric.kind == "count":
        rate = metric.level * n * np.exp(rng.normal(0, TRAFFIC_NOISE, n_buckets))
        return rng.poisson(_changed_volume(rate, metric.name, metric.level, fault, hit)).astype(float)
    noise = rng.normal(0, 1, n_buckets)
    if metric.kind == "share":
        p = np.clip(metric.level * season * np.exp(SHARE_NOISE * noise), 0, 0.95) * np.ones_like(n)
        if mine and fault is not None:
            p = _shifted(p, np.sqrt(p * (1 - p)), SHARE_NOISE * metric.level, n, fault, hit)
        return rng.binomial(n.astype(int), np.clip(p, 0, 1)).astype(float)
    mean = (metric.level + season + MEAN_NOISE * noise) * np.ones_like(n)
    if mine and fault is not None:
        mean = _shifted(mean, np.ones_like(n), MEAN_NOISE, n, fault, hit)
    return rng.normal(n * mean, np.sqrt(n))


def _shifted(
    level: np.ndarray, sd: np.ndarray, common: float, n: np.ndarray, fault: Fault, hit: np.ndarray
) -> np.ndarray:
    """The level with the fault in the slice, in standard errors of the slice's own series there."""
    std_error = np.sqrt(sd[hit].mean() ** 2 / np.maximum(n[hit].sum(axis=0), 1) + common**2)
    changed = level.copy()
    during = _during(fault, level.shape[1])
    changed[np.ix_(hit, during)] += fault.size * 1.15 * std_error[during]
    return changed


def _values(
    metric: Metric, n: np.ndarray, total: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    if metric.kind == "count":
        return total, np.sqrt(total)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = total / n
        if metric.kind == "share":
            return value, np.sqrt(value * (1 - value) / n)
        return value, np.sqrt(rng.chisquare(np.maximum(n - 1, 1)) / np.maximum(n - 1, 1) / n)


class Run(NamedTuple):
    """What a monitor made of thirty days."""

    findings: list[Finding]
    incidents: list[Incident]
    n_tests: int

    @property
    def opened(self) -> list[Incident]:
        return [each for each in self.incidents if each.revision == 0]


def judged(panel: Panel, by: Monitor, first: int = HISTORY) -> Run:
    found = scan(panel, by, panel.time(first))
    upto, could = panel.time(panel.n_buckets), judged_in(panel, by)
    told = incidents(found.findings, by.incidents, bucket=panel.bucket, upto=upto, judged=could)
    return Run(found.findings, told.revisions, found.n_tests)


def ten_faults() -> Mapping[str, Fault]:
    """One of every kind, in slices of every nesting level."""
    at = HISTORY + 300
    leaf = name_slice({"device": "tablet", "country": "de"})
    return {
        "errors in a leaf": Fault("share_00", leaf, at, 4, 10.0),
        "errors on a device": Fault("share_02", name_slice({"device": "tablet"}), at + 5, 3, 9.0),
        "scores shift in a country": Fault("mean_01", name_slice({"country": "jp"}), at + 9, 5, 9.0),
        "latency in a region": Fault("mean_03", name_slice({"region": "latam"}), at + 2, 6, 9.0),
        "requests missing in a leaf": Fault(
            "requests", name_slice({"device": "mobile", "country": "fr"}), at + 11, 4, -9.0
        ),
        "a country falls silent": Fault("requests", name_slice({"country": "br"}), at + 7, 3, silent=True),
        "rejects surge everywhere": Fault("rejects", Slice(*OVERALL), at + 3, 4, 10.0),
        "infra everywhere": Fault("mean_05", Slice(*OVERALL), at + 1, 8, 9.0),
        "a value is stuck": Fault("mean_07", name_slice({"device": "desktop"}), at, 12, stuck=True),
        "the treatment fails in a region": Fault(
            "share_04", name_slice({"region": "emea"}), at + 4, 4, -9.0, arm="treatment"
        ),
    }
