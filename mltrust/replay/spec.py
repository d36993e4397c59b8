"""What the conf of a replay says: which past requests, which two models, how they are tried, and what passes."""

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from math import isfinite
from typing import ClassVar, Literal

from mltrust.contract import FeatureType
from mltrust.slices import Slicing
from mltrust.training import Label

_ID = re.compile(r"[A-Za-z0-9_.-]+\Z", re.ASCII)
Kind = Literal[
    "missing", "jitter", "swap", "unseen", "out_of_range", "stale", "unit_change",
    "invariant", "increasing", "decreasing",
]  # fmt: skip
_NUMBERS: tuple[FeatureType, ...] = ("long", "double")
_ANY: tuple[FeatureType, ...] = ("boolean", "long", "double", "string", "timestamp")
#: Which features a kind is for.
ADMITTED: Mapping[Kind, tuple[FeatureType, ...]] = {
    "missing": _ANY,
    "jitter": _NUMBERS,
    "swap": _ANY,
    "unseen": ("string",),
    "out_of_range": _NUMBERS,
    "stale": _ANY,
    "unit_change": _NUMBERS,
    "invariant": _ANY,
    "increasing": _NUMBERS,
    "decreasing": _NUMBERS,
}
#: Columns of a set by which it can be sliced, beside its features.
SET_COLUMNS = ("unit_id", "feature_version", "model_version", "action")
#: Kinds that state what a score must not do, and are counted by how often it does.
PROMISES: tuple[Kind, ...] = ("invariant", "increasing", "decreasing")
#: By how many standard deviations of the feature a kind moves it, where the conf does not say.
_SCALES: Mapping[Kind, float] = {"jitter": 0.1, "out_of_range": 1.0, "increasing": 0.25, "decreasing": 0.25}


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model of the registry by version or alias; `output` is the column or position of its score.

    Without `output` the score is the only column, or the last of two: the probability of a classifier's yes.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    version: str | None = None
    alias: str | None = None
    output: str | None = None

    def __post_init__(self) -> None:
        if (self.version is None) == (self.alias is None):
            raise ValueError(f"model {self.name!r}: expected a version or an alias, and not both")

    def __str__(self) -> str:
        return f"{self.name} {self.version}" if self.version is not None else f"{self.name}@{self.alias}"


@dataclass(frozen=True, slots=True)
class Sample:
    """About `rows` rows by a hash of their key; each combination of `by` has `at_least` of them where it can.

    `by` names slice attributes. Rows of a combination that is drawn more often count for less: their weight is one
    over the rate at which they were drawn.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    rows: int
    by: tuple[str, ...] = ()
    at_least: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rows < 1 or self.at_least < 0:
            raise ValueError(f"rows is {self.rows}, at_least {self.at_least}; expected 1 or more, and 0 or more")


@dataclass(frozen=True, slots=True)
class Selection:
    """Production predictions of the champion in [start, end) that did not fail.

    Of these those in [since, until), with one of the values of each attribute of `where`, in the `experiment` (in one
    `variant` of it), or with one of `request_ids`: all that is given holds. `hard_within` keeps every row whose
    logged score is that near the decision's threshold, whatever the sample.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    start: date
    end: date
    since: datetime | None = None
    until: datetime | None = None
    where: dict[str, tuple[str, ...]] = field(default_factory=dict)
    experiment: str | None = None
    variant: str | None = None
    request_ids: tuple[str, ...] | None = None
    sample: Sample | None = None
    hard_within: float | None = None

    def __post_init__(self) -> None:
        if self.end <= self.start:
            raise ValueError(f"end is {self.end}, expected a day after start {self.start}: days are [start, end)")
        for name in ("since", "until"):
            moment = getattr(self, name)
            if moment is not None and moment.tzinfo is None:
                raise ValueError(f"{name} is {moment}, expected a time with its offset, as 2026-10-05T14:00Z")
        if self.since is not None and self.until is not None and self.until <= self.since:
            raise ValueError(f"until is {self.until}, expected a time after since {self.since}")
        if self.variant is not None and self.experiment is None:
            raise ValueError("variant is given without experiment; expected the experiment that it belongs to")
        if self.request_ids is not None and not self.request_ids:
            raise ValueError("request_ids is empty; leave it out to take all")
        if self.hard_within is not None and not self.hard_within > 0:
            raise ValueError(f"hard_within is {self.hard_within}, expected a distance above 0")

    def bounds(self) -> tuple[datetime | None, datetime | None]:
        """since and until in UTC."""
        return tuple(None if each is None else each.astimezone(UTC) for each in (self.since, self.until))  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Perturbation:
    """A way to change inputs, or a promise about what such a change does to a score.

    `missing`, `swap` (the value of another row), `unseen` category, `out_of_range` (beyond the largest value by
    `scale` standard deviations), `jitter` (by normal noise of `scale` standard deviations), `stale` (the value of the
    unit's request before), `unit_change` (times `factor`). With several features all change together, from one row:
    a correlated group. Without features: each feature alone that a model reads and the kind is for.

    Promises: the score is `invariant` under a swap, `increasing` or `decreasing` where the feature grows by `scale`
    standard deviations.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: Kind
    features: tuple[str, ...] = ()
    scale: float | None = None
    factor: float | None = None

    def __post_init__(self) -> None:
        if self.scale is not None and self.kind not in _SCALES:
            raise ValueError(f"scale is for {', '.join(_SCALES)}, this is {self.kind}")
        if self.scale is not None and not 0 < self.scale < float("inf"):
            raise ValueError(f"scale is {self.scale}, expected a number of standard deviations above 0")
        if (self.factor is not None) != (self.kind == "unit_change"):
            raise ValueError(f"factor is {self.factor}, expected a number with unit_change and none with {self.kind}")
        if self.factor is not None and not isfinite(self.factor):
            raise ValueError(f"factor is {self.factor}, expected a number")
        if len(set(self.features)) < len(self.features):
            raise ValueError(f"features: {', '.join(self.features)} repeats one")
        if self.kind in PROMISES and not self.features:
            raise ValueError(f"{self.kind}: expected the features that it is promised of")

    @property
    def name(self) -> str:
        """`jitter(price)`, as in the tables."""
        return f"{self.kind}({'+'.join(self.features)})"

    @property
    def size(self) -> float:
        """By how many standard deviations a number is moved."""
        return _SCALES.get(self.kind, 0.0) if self.scale is None else self.scale

    def expanded(self, read: Mapping[str, FeatureType]) -> Iterator["Perturbation"]:
        """Itself, or without features one for each feature that is `read` and that the kind is for."""
        if self.features:
            yield self
            return
        for name, kind in read.items():
            if kind in ADMITTED[self.kind]:
                yield Perturbation(self.kind, (name,), self.scale, self.factor)


@dataclass(frozen=True, slots=True)
class Rule:
    """A limit on a measure: `min` or `max`. With `slices` it also holds in every slice.

    Beyond the limit the gate breaches where that is shown at `alpha` (a false discovery rate over slices and
    perturbations), and is inconclusive where it is not. A measure that is no estimate breaches at once.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    measure: str
    min: float | None = None
    max: float | None = None
    slices: bool = False
    alpha: float = 0.05

    def __post_init__(self) -> None:
        if (self.min is None) == (self.max is None):
            raise ValueError(f"rule {self.measure!r}: expected min or max, and not both")
        if not isfinite(self.limit):
            raise ValueError(f"rule {self.measure!r}: limit is {self.limit}, expected a number")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha is {self.alpha}, expected a share in (0, 1)")

    @property
    def limit(self) -> float:
        return self.min if self.min is not None else float(self.max or 0.0)


@dataclass(frozen=True, slots=True)
class Gate:
    """The rules that decide, and the units below which an estimate says nothing."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    rules: tuple[Rule, ...]
    min_units: int = 100

    def __post_init__(self) -> None:
        if not self.rules:
            raise ValueError("rules is empty: a gate without rules would pass everything")
        if self.min_units < 2:
            raise ValueError(f"min_units is {self.min_units}, expected 2 or more")


@dataclass(frozen=True, slots=True)
class Shadow:
    """What compare_shadow expects of shadow traffic in [start, end) of the selection.

    `expected_share` of the champion's requests have a shadow; it may come `max_lag_seconds` after its production row.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    gate: Gate
    expected_share: float = 1.0
    max_lag_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not 0 < self.expected_share <= 1:
            raise ValueError(f"expected_share is {self.expected_share}, expected a share in (0, 1]")
        if self.max_lag_seconds < 0:
            raise ValueError(f"max_lag_seconds is {self.max_lag_seconds}, expected 0 or more")


@dataclass(frozen=True, slots=True)
class Replay:
    """Champion and candidate on a set of past requests, and the gate that the candidate has to pass.

    The set is selected here, or is that of another conf (`set_of`: its replay_id). `threshold` turns scores into
    decisions; `actions` name the decisions below and from it on in the log, for off-policy values where the log has
    propensities. A logged score is reproduced where it is within `ulps` units in the last place.
    Perturbations are tried on `perturbed_share` of the units.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    replay_id: str
    log: str
    champion: ModelRef
    candidate: ModelRef
    gate: Gate
    select: Selection | None = None
    set_of: str | None = None
    description: str = ""
    threshold: float | None = None
    label: Label | None = None
    actions: tuple[str, str] | None = None
    slices: Slicing = field(default_factory=Slicing)
    perturbations: tuple[Perturbation, ...] = ()
    perturbed_share: float = 1.0
    ulps: int = 0
    tolerance: float = 0.0
    top_share: float = 0.1
    max_left_out_share: float = 0.05
    batch_rows: int = 10_000
    parts: int = 8
    shadow: Shadow | None = None

    def __post_init__(self) -> None:
        for name in ("replay_id", "set_of"):
            given = getattr(self, name)
            if given is not None and not _ID.match(given):
                raise ValueError(
                    f"{name} is {given!r}, expected letters, digits, _, - and ., as it names a partition"
                )
        if (self.select is None) == (self.set_of is None):
            raise ValueError("expected select, or set_of with the replay whose set is used, and not both")
        if self.set_of == self.replay_id:
            raise ValueError(f"set_of is {self.set_of!r}, expected another replay's id")
        for name, low in (("batch_rows", 1), ("parts", 1), ("ulps", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}, expected {low} or more")
        for name in ("perturbed_share", "top_share", "max_left_out_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a share in (0, 1]")
        if self.shadow is not None and self.select is None:
            raise ValueError("shadow: expected select with the days in which shadow traffic is compared")
        if self.tolerance < 0:
            raise ValueError(f"tolerance is {self.tolerance}, expected 0 or more")
        if self.threshold is None and (self.actions or (self.select and self.select.hard_within)):
            raise ValueError("threshold: missing; actions and hard_within are of a decision by a threshold")
        if self.actions is not None and self.label is None:
            raise ValueError("label: missing; actions are valued by what became of them")

    @property
    def set_id(self) -> str:
        """The replay set that is scored."""
        return self.set_of or self.replay_id

    def the_selection(self) -> Selection:
        """What is selected; ValueError where the set is another conf's."""
        if self.select is None:
            raise ValueError(f"replay {self.replay_id!r} has the set of {self.set_of!r}")
        return self.select

    def expanded(self, read: Mapping[str, FeatureType]) -> list[Perturbation]:
        """Every perturbation by itself, each once, of the features that the models read."""
        found = [one for each in self.perturbations for one in each.expanded(read)]
        return list({one.name: one for one in found}.values())

    def problems(
        self, features: Mapping[str, FeatureType], columns: Collection[str], measures: Sequence[str]
    ) -> list[str]:
        """What does not fit the log's contract, or names no measure."""
        attributes = self.slices.attributes
        found = [
            f"slices.attributes.{name}: {column!r} is no column of log {self.log!r}{_near(column, columns)}"
            for name, column in attributes.items()
            if column not in columns
        ]
        chosen = self.select
        named = () if chosen is None else (*chosen.where, *(chosen.sample.by if chosen.sample is not None else ()))
        found += [
            f"select: {name!r} is no slice attribute{_near(name, attributes)}"
            for name in named
            if name not in attributes
        ]
        for at, each in enumerate(self.perturbations):
            for name in each.features:
                if name not in features:
                    found.append(
                        f"perturbations.{at}: {name!r} is no feature of log {self.log!r}{_near(name, features)}"
                    )
                elif features[name] not in ADMITTED[each.kind]:
                    admitted = " and ".join(ADMITTED[each.kind])
                    found.append(f"perturbations.{at}: {each.kind} is for {admitted}, {name} is a {features[name]}")
        rules = [*self.gate.rules, *(self.shadow.gate.rules if self.shadow is not None else ())]
        found += [
            f"gate: {rule.measure!r} is no measure{_near(rule.measure, measures)}"
            for rule in rules
            if rule.measure not in measures
        ]
        return found


def _near(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; expected of {', '.join(known) or 'none'}"
