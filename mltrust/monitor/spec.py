"""What a monitor's conf says: series, detectors, budget, known events, rollback rules and who is told."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

from mltrust.bounds import one_or_more
from mltrust.monitor.finding import OF_OTHERS, Severity
from mltrust.monitor.series import Kind
from mltrust.slices import Slice, Slicing, parted

Direction = Literal["up", "down", "both"]
Source = Literal["requests", "rejects", "outcomes"]
_DAY_SECONDS = 86_400
_PERIOD_DAYS = 30
_ID = re.compile(r"[A-Za-z0-9_.-]+\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class SeriesMetric:
    """A metric per bucket: a count, a share or a mean over requests.

    `value` is an SQL expression on a record: for a share a condition, for a mean a number. Of `rejects` a count is
    by `reason_code` (all without one). Of `outcomes` a share is that of requests with an outcome named `outcome` of
    a value above 0, a mean that of the outcomes' sums per request; a bucket is known `maturity_hours` after its end.
    `worse` says in which direction a change is harm. `by` breaks a count or a share down, by `reason_code` for
    rejects, else by an SQL expression on a record: the series are then there per value as well, as slices.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: Kind
    value: str | None = None
    source: Source = "requests"
    reason_code: str | None = None
    outcome: str | None = None
    maturity_hours: float = 0.0
    worse: Direction = "both"
    by: str | None = None

    def __post_init__(self) -> None:
        if self.source == "requests" and self.kind != "count" and self.value is None:
            raise ValueError(f"value: missing; a {self.kind} over requests needs an expression")
        if self.source == "rejects" and self.kind != "count":
            raise ValueError(f"kind is {self.kind!r}, expected 'count': rejects have no requests to divide by")
        if (self.source == "outcomes") != (self.outcome is not None):
            raise ValueError("outcome: expected with source: outcomes, and only there")
        if self.source == "outcomes" and self.kind == "count":
            raise ValueError("kind is 'count', expected 'share' or 'mean': outcomes are counted per request")
        if self.source != "requests" and self.value is not None:
            raise ValueError(f"value: expected only with source: requests, given with {self.source}")
        if self.maturity_hours < 0:
            raise ValueError(f"maturity_hours is {self.maturity_hours}, expected 0 or more")
        if self.by is not None:
            self._check_breakdown(self.by)

    def _check_breakdown(self, by: str) -> None:
        if self.source == "outcomes" or self.kind == "mean":
            raise ValueError("by: expected with a count or share of requests, or with rejects: their parts add up")
        if self.source == "rejects" and (by != "reason_code" or self.reason_code is not None):
            raise ValueError(
                f"by is {by!r}, expected 'reason_code' with source: rejects, and no reason_code beside it"
            )
        if not by.strip() or " x " in by or "\\" in by:
            raise ValueError(
                f"by is {by!r}, expected an SQL expression without ' x ' and backslashes: it names slices"
            )


@dataclass(frozen=True, slots=True)
class Arms:
    """What is compared with its concurrent control: the variants of an experiment, or the model versions.

    Without `control` it is the arm or version with the most requests.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    by: Literal["experiment", "model_version"] = "model_version"
    experiment_id: str | None = None
    control: str | None = None

    def __post_init__(self) -> None:
        if (self.by == "experiment") != (self.experiment_id is not None):
            raise ValueError("experiment_id: expected with by: experiment, and only there")


@dataclass(frozen=True, slots=True)
class SeriesSpec:
    """The series of a monitor: metrics by name, slices, arms and the grid of buckets.

    A bucket is judged once, `lateness_seconds` after its end; what comes later still corrects the series. Where live
    traffic stands still for `silence_seconds`, buckets are judged by the clock.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    metrics: dict[str, SeriesMetric] = field(default_factory=dict)
    bucket_seconds: int = 3600
    lateness_seconds: int = 0
    silence_seconds: int = 300
    history_days: float = 57
    slices: Slicing = field(default_factory=Slicing)
    arms: Arms | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.bucket_seconds <= _DAY_SECONDS or _DAY_SECONDS % self.bucket_seconds:
            raise ValueError(f"bucket_seconds is {self.bucket_seconds}, expected a divisor of a day's {_DAY_SECONDS}")
        if self.lateness_seconds < 0 or self.silence_seconds < 0:
            raise ValueError("lateness_seconds and silence_seconds: expected 0 or more")
        if self.history_days <= 0:
            raise ValueError(f"history_days is {self.history_days}, expected above 0")
        for name, by in self.breakdowns.items():
            if by in self.slices.attributes:
                raise ValueError(
                    f"metrics.{name}.by is {by!r}, expected another name than those of slices.attributes"
                )

    @property
    def bucket(self) -> timedelta:
        return timedelta(seconds=self.bucket_seconds)

    def maturing(self, metric: str) -> timedelta:
        """How long after its end a bucket of the metric is known, in whole buckets."""
        return -(-timedelta(hours=self.metrics[metric].maturity_hours) // self.bucket) * self.bucket

    @property
    def breakdowns(self) -> dict[str, str]:
        """What metrics are broken down by, of those that are."""
        return {name: metric.by for name, metric in self.metrics.items() if metric.by is not None}

    @property
    def kinds(self) -> dict[str, Kind]:
        return {name: metric.kind for name, metric in self.metrics.items()}


@dataclass(frozen=True, slots=True)
class Detection:
    """A detector at work: which kind, on which series, and how hard it is to convince.

    `metrics` and `slices` are patterns (`*`, `error*`, `device:*`, `overall`). A bucket with fewer than
    `min_requests`, counted or expected, is not judged. Beside its p-value, a finding's score must reach `min_score`.
    `above` and `below` are the limits of a threshold; `buckets` how many a window or a run has, or must be beyond.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: str
    metrics: tuple[str, ...] = ("*",)
    slices: tuple[str, ...] = ("*",)
    severity: Severity = "warning"
    min_requests: int = 30
    min_score: float | None = None
    above: float | None = None
    below: float | None = None
    buckets: int | None = None

    def __post_init__(self) -> None:
        one_or_more(self, "min_requests")
        if self.buckets is not None and self.buckets < 1:
            raise ValueError(f"buckets is {self.buckets}, expected 1 or more")
        if self.min_score is not None and self.min_score < 0:
            raise ValueError(f"min_score is {self.min_score}, expected 0 or more")

    def concerns_metric(self, metric: str) -> bool:
        return _matches(metric, self.metrics)

    def concerns(self, metric: str, slice_name: str) -> bool:
        return _matches(metric, self.metrics) and _matches(slice_name, self.slices)


def _matches(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _matches_part(metric: str, of: Slice, patterns: Collection[str], breakdowns: Mapping[str, str]) -> bool:
    """Whether a slice is named; of a part of what is broken down also by the slice of its whole."""
    part = parted(of, breakdowns[metric]) if metric in breakdowns else None
    return _matches(str(of), patterns) or (part is not None and _matches(str(part[0]), patterns))


@dataclass(frozen=True, slots=True)
class Event:
    """A known event: nothing found in [start, end) is told, and its buckets are no history."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    start: datetime
    end: datetime
    metrics: tuple[str, ...] = ("*",)
    slices: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        if self.start.tzinfo is None or self.end.tzinfo is None:
            raise ValueError("start and end: expected times with their offset, as 2026-11-27T00:00:00Z")
        if not self.start < self.end:
            raise ValueError(f"start is {self.start}, expected before end, which is {self.end}")

    def concerns(self, metric: str, of: Slice, breakdowns: Mapping[str, str]) -> bool:
        return _matches(metric, self.metrics) and _matches_part(metric, of, self.slices, breakdowns)


@dataclass(frozen=True, slots=True)
class IncidentPolicy:
    """When an incident is over (`recover_after` judged buckets without a finding), and when it is told again.

    What could not be judged for `lapse_hours` lapses: its version or its traffic is gone.
    Again is when its severity rises, or a finding's score is `worse_factor` times the one told last.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    recover_after: int = 6
    worse_factor: float = 2.0
    contributors: int = 5
    lapse_hours: float = 24.0

    def __post_init__(self) -> None:
        if self.recover_after < 1 or self.contributors < 1:
            raise ValueError("recover_after and contributors: expected 1 or more")
        if self.lapse_hours <= 0:
            raise ValueError(f"lapse_hours is {self.lapse_hours}, expected above 0")
        if self.worse_factor <= 1:
            raise ValueError(f"worse_factor is {self.worse_factor}, expected above 1")


@dataclass(frozen=True, slots=True)
class RollbackRule:
    """What is done about an incident that is led by one of `metrics` in one of `slices`.

    It must have lasted `persistence` buckets with findings and be of `severity` or worse. `rollback` moves the
    registry alias back to the version that it had before; `stop` only decides and tells `page` and the decisions
    table, from which services route. After an action nothing is done to the model for `cool_down_hours`; a version
    that was rolled back is no target for `blame_days`. What was judged up to more than `evidence_hours` ago is no
    reason to act: an old log must move no alias of today. A dry run says what it would do. What other jobs found
    (`drift *`, `srm *`) concerns a rule only where `metrics` names it.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    metrics: tuple[str, ...] = ("*",)
    slices: tuple[str, ...] = ("*",)
    severity: Severity = "critical"
    persistence: int = 1
    cool_down_hours: float = 24.0
    blame_days: float = 30.0
    evidence_hours: float = 24.0
    action: Literal["rollback", "stop"] = "rollback"
    alias: str = "champion"
    dry_run: bool = True
    page: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        one_or_more(self, "persistence")
        if min(self.cool_down_hours, self.blame_days, self.evidence_hours) < 0:
            raise ValueError("cool_down_hours, blame_days and evidence_hours: expected 0 or more")

    def naming(self, origin: str) -> list[str]:
        """The patterns that name what another job finds; `*` names it not."""
        return [each for each in self.metrics if each.startswith(origin.strip())]

    def concerns(self, metric: str, of: Slice, breakdowns: Mapping[str, str]) -> bool:
        origin = next((each for each in OF_OTHERS if metric.startswith(each)), "")
        return _matches(metric, self.naming(origin)) and _matches_part(metric, of, self.slices, breakdowns)


@dataclass(frozen=True, slots=True)
class Target:
    """Where people are told: a JSON webhook, a file of JSON lines, or anything that apprise knows.

    `address` is a URL or a path; `${NAME}` in it is taken from the environment, so that no secret is in the conf.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: Literal["webhook", "file", "apprise"]
    address: str
    min_severity: Severity = "warning"


@dataclass(frozen=True, slots=True)
class Monitor:
    """A monitor of the versions of one model. `budget` is the number of false incidents in 30 days that it may cost.

    Without `detectors` all run that need no limit of the operator's: the series decide which of them apply.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    monitor_id: str
    log: str
    model_name: str
    description: str = ""
    series: SeriesSpec = field(default_factory=SeriesSpec)
    detectors: tuple[Detection, ...] = ()
    budget: float = 0.2
    events: tuple[Event, ...] = ()
    incidents: IncidentPolicy = field(default_factory=IncidentPolicy)
    rules: tuple[RollbackRule, ...] = ()
    notify: dict[str, Target] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _ID.match(self.monitor_id):
            raise ValueError(f"monitor_id is {self.monitor_id!r}, expected letters, digits, _, - and .")
        if not self.model_name:
            raise ValueError("model_name is '', expected the name of a model in the log")
        if self.budget <= 0:
            raise ValueError(f"budget is {self.budget}, expected a number of false incidents per 30 days above 0")
        if len({rule.name for rule in self.rules}) < len(self.rules):
            raise ValueError("rules: a name is given twice")
        for rule in self.rules:
            if unknown := set(rule.page) - set(self.notify):
                raise ValueError(f"rules: {rule.name} pages {', '.join(sorted(unknown))}, which notify does not name")

    @property
    def buckets_in_period(self) -> float:
        """Buckets in the 30 days that the budget is for."""
        return _PERIOD_DAYS * _DAY_SECONDS / self.series.bucket_seconds
