"""What the conf of a monitor says of drift: which columns and slices, against what, in which windows."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from difflib import get_close_matches
from typing import ClassVar, Literal, NamedTuple

from mltrust.bounds import one_or_more
from mltrust.contract import FeatureType
from mltrust.drift.alarm import Alarm
from mltrust.drift.attribution import AttributionRule
from mltrust.drift.multivariate import MultivariateRule
from mltrust.drift.performance import PerformanceRule
from mltrust.drift.quality import Quality
from mltrust.drift.relation import RelationRule
from mltrust.slices import Slicing

AgainstKind = Literal["fixed", "previous", "same_weekdays", "control", "version", "production"]
#: Columns of a record that are profiled beside its features.
SCORE, LATENCY = "prediction_score", "latency_ms"
_PROFILED: tuple[FeatureType, ...] = ("boolean", "long", "double", "string")


class Window(NamedTuple):
    """UTC days [start, end)."""

    start: date
    end: date

    def __str__(self) -> str:
        last = self.end - timedelta(days=1)
        return str(self.start) if last == self.start else f"{self.start} to {last}"

    @property
    def days(self) -> int:
        return (self.end - self.start).days

    @property
    def start_time(self) -> datetime:
        return datetime.combine(self.start, time(), UTC)

    @property
    def end_time(self) -> datetime:
        return datetime.combine(self.end, time(), UTC)

    def times(self, name: str) -> dict[str, datetime]:
        """Both ends as the columns `<name>_start` and `<name>_end` of a table."""
        return {f"{name}_start": self.start_time, f"{name}_end": self.end_time}

    def before(self, days: int) -> "Window":
        """The window as long, so many days earlier."""
        back = timedelta(days=days)
        return Window(self.start - back, self.end - back)


@dataclass(frozen=True, slots=True)
class Reference:
    """The days [start, end) whose production rows fix the cells of every column, and are the fixed reference.

    With `model_version` every version is held against that one's rows; else each against its own.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    start: date
    end: date
    model_version: str | None = None

    def __post_init__(self) -> None:
        if self.end <= self.start:
            raise ValueError(f"end is {self.end}, expected a day after start {self.start}: days are [start, end)")

    @property
    def window(self) -> Window:
        return Window(self.start, self.end)


@dataclass(frozen=True, slots=True)
class Against:
    """What a window of a model version is held against.

    - `fixed`: the days of the conf's `reference`;
    - `previous`: the window before;
    - `same_weekdays`: the same days of the `weeks` before, whose rows are added up (window_days up to 7);
    - `control`: of an `experiment`, each treatment against its control in the same window;
    - `version`: another `model_version`'s production rows of the same window;
    - `production`: the version's shadow rows against `model_version`'s production rows of the same requests.

    With `columns` only these are compared: scores of two models differ, whatever they read. The job's verdict rests
    on it where it `decides`.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: AgainstKind
    experiment: str | None = None
    model_version: str | None = None
    weeks: int = 4
    columns: tuple[str, ...] | None = None
    decides: bool = True

    def __post_init__(self) -> None:
        if self.columns is not None and not self.columns:
            raise ValueError("columns is empty; leave it out to compare all")
        needs = {"control": "experiment", "version": "model_version", "production": "model_version"}.get(self.kind)
        for name in ("experiment", "model_version"):
            if (getattr(self, name) is not None) != (name == needs):
                words = f"expected {name}" if name == needs else f"{name} does not belong to it"
                raise ValueError(f"against {self.kind}: {words}")
        one_or_more(self, "weeks")

    def __str__(self) -> str:
        return _WORDS[self.kind].format(self)


_WORDS: Mapping[AgainstKind, str] = {
    "fixed": "fixed",
    "previous": "previous",
    "same_weekdays": "same weekdays of {0.weeks} weeks",
    "control": "control of {0.experiment}",
    "version": "version {0.model_version}",
    "production": "production of version {0.model_version}",
}


@dataclass(frozen=True, slots=True)
class Attribution:
    """How attributions are compared: of `n_units` units of a slice and window, at most `rows_per_unit` rows each."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    n_units: int = 2_000
    rows_per_unit: int = 5
    rule: AttributionRule = field(default_factory=AttributionRule)

    def __post_init__(self) -> None:
        one_or_more(self, "n_units", "rows_per_unit")


@dataclass(frozen=True, slots=True)
class Multivariate:
    """How a classifier is to tell windows apart: by about `n_rows` rows of every slice and side."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    n_rows: int = 5_000
    rule: MultivariateRule = field(default_factory=MultivariateRule)

    def __post_init__(self) -> None:
        if self.n_rows < 100:
            raise ValueError(f"n_rows is {self.n_rows}, expected 100 or more")


@dataclass(frozen=True, slots=True)
class Performance:
    """How well scores predict: the probability that an outcome named `outcome` follows within `window_days`.

    `missing`: a prediction without an outcome counts as no, or its label is not known. `relation` is the rule for
    residuals by feature.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    outcome: str
    window_days: int
    missing: Literal["zero", "exclude"] = "zero"
    rule: PerformanceRule = field(default_factory=PerformanceRule)
    relation: RelationRule = field(default_factory=RelationRule)

    def __post_init__(self) -> None:
        if not self.outcome:
            raise ValueError("outcome is '', expected the name of an outcome")
        one_or_more(self, "window_days")


@dataclass(frozen=True, slots=True)
class Drift:
    """How the drift of a model's inputs and predictions is looked for.

    A window is the `window_days` UTC days before as_of. `columns` are features, `prediction_score` and `latency_ms`:
    all of them by default. A row belongs to its `unit`, whose rows are not independent of one another. Numbers are
    cut at `n_cells` quantiles of the reference, texts have a cell for each of their `max_values` most frequent
    values. `slices` are of the row itself. With `attribution`, `multivariate` and `performance` these
    are held against the fixed reference too.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    reference: Reference
    window_days: int = 1
    against: tuple[Against, ...] = (Against("fixed"),)
    columns: tuple[str, ...] | None = None
    slices: Slicing = field(default_factory=Slicing)
    unit: Literal["unit_id", "request_id"] = "unit_id"
    n_cells: int = 10
    max_values: int = 50
    alarm: Alarm = field(default_factory=Alarm)
    quality: Quality = field(default_factory=Quality)
    attribution: Attribution | None = None
    multivariate: Multivariate | None = None
    performance: Performance | None = None

    def __post_init__(self) -> None:
        one_or_more(self, "window_days")
        if not 2 <= self.n_cells <= 100:
            raise ValueError(f"n_cells is {self.n_cells}, expected 2 to 100")
        if not 2 <= self.max_values <= 1000:
            raise ValueError(f"max_values is {self.max_values}, expected 2 to 1000")
        if not self.against:
            raise ValueError("against is empty, expected what a window is held against")
        for name, given in (("against", list(map(str, self.against))), ("columns", list(self.columns or ()))):
            if twice := [each for each, n in Counter(given).items() if n > 1]:
                raise ValueError(f"{name}: {', '.join(twice)} given twice")
        if self.window_days > 7 and any(each.kind == "same_weekdays" for each in self.against):
            raise ValueError(f"against same_weekdays: window_days is {self.window_days}, expected at most 7")

    @property
    def experiments(self) -> tuple[str, ...]:
        """The experiments whose arms are compared."""
        return tuple(dict.fromkeys(each.experiment for each in self.against if each.experiment is not None))

    def window(self, as_of: date, back: int = 0) -> Window:
        """The window that ends at as_of, or the one `back` windows earlier."""
        days = timedelta(days=self.window_days)
        return Window(as_of - days * (back + 1), as_of - days * back)

    def profiled(self, features: Mapping[str, FeatureType]) -> tuple[str, ...]:
        """The columns to profile, out of all of the contract's, in its order."""
        able = (*(f"features.{name}" for name, kind in features.items() if kind in _PROFILED), SCORE, LATENCY)
        return able if self.columns is None else tuple(column for column in able if column in self.columns)

    def problems(self, features: Mapping[str, FeatureType], attributes: Collection[str]) -> list[str]:
        """What does not fit the contract of the log: `attributes` are the columns that it can be sliced by."""
        able = (*(f"features.{name}" for name, kind in features.items() if kind in _PROFILED), SCORE, LATENCY)
        named: list[tuple[str, str, Collection[str]]] = [
            ("drift.columns", column, able) for column in self.columns or ()
        ]
        named += [
            (f"drift.against.{at}.columns", column, self.columns or able)
            for at, each in enumerate(self.against)
            for column in each.columns or ()
        ]
        named += [("drift.slices.attributes", column, attributes) for column in self.slices.attributes.values()]
        return [f"{where}: {_unknown(column, known)}" for where, column, known in named if column not in known]


def _unknown(column: str, known: Collection[str]) -> str:
    near = get_close_matches(column, list(known), 1)
    return f"{column!r} is no column; " + (
        f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
    )
