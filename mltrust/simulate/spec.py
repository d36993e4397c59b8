"""What a simulation's conf says: how much traffic, which experiments with which truth, and how much dirt."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import ClassVar, Literal

from mltrust.bounds import one_or_more
from mltrust.simulate.faults import OUTCOME_FAULTS, RECORD_FAULTS, counts
from mltrust.simulate.population import ATTRIBUTES, NUMBERS


@dataclass(frozen=True, slots=True)
class Plant:
    """The truth of one experiment with the arms control and treatment.

    `effect` is what treatment adds to the log-odds that a request ends in a purchase, `treatment_share` the
    probability that a unit is treated, in hundredths. `effect_in` and `share_in` (attribute -> value -> number)
    replace them where the unit has that value; each may name one attribute. `crossed_share` of the units get the
    other variant in the second half of the days.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    effect: float = 0.0
    effect_in: dict[str, dict[str, float]] = field(default_factory=dict)
    treatment_share: float = 0.5
    share_in: dict[str, dict[str, float]] = field(default_factory=dict)
    crossed_share: float = 0.0

    def __post_init__(self) -> None:
        for name, by in (("effect_in", self.effect_in), ("share_in", self.share_in)):
            if len(by) > 1:
                raise ValueError(f"{name} names {' and '.join(by)}, expected one attribute")
            for attribute, values in by.items():
                _known(f"{name}: attribute", (attribute,), ATTRIBUTES)
                _known(f"{name}: {attribute}", values, ATTRIBUTES[attribute])
        for share in (self.treatment_share, *(s for by in self.share_in.values() for s in by.values())):
            if not 0 < share < 1 or abs(share * 100 - round(share * 100)) > 1e-9:
                raise ValueError(f"treatment_share is {share}, expected hundredths above 0 and below 1")
        if not 0 <= self.crossed_share <= 1:
            raise ValueError(f"crossed_share is {self.crossed_share}, expected a share in [0, 1]")


@dataclass(frozen=True, slots=True)
class Shift:
    """A feature that arrives otherwise in a `share` of the requests from a day on: multiplied, or missing.

    What becomes of these requests is not changed: it is the features that are wrong. `from_day` counts from the
    simulation's start.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    feature: str
    from_day: int
    share: float
    factor: float | None = None

    def __post_init__(self) -> None:
        _known("feature", (self.feature,), dict.fromkeys(NUMBERS))
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}, expected above 0 and at most 1")
        if self.factor is not None and not self.factor > 0:
            raise ValueError(f"factor is {self.factor}, expected above 0; leave it out for missing values")


@dataclass(frozen=True, slots=True)
class Outage:
    """Production requests that a model fails to answer: in one slice, a `share` of them, from an hour on.

    `failing_in` names one attribute and its value. `from_hour` counts from the simulation's start.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    role: Literal["champion", "candidate"]
    failing_in: dict[str, str]
    from_hour: int
    share: float

    def __post_init__(self) -> None:
        if len(self.failing_in) != 1:
            raise ValueError(f"failing_in names {len(self.failing_in)} attributes, expected one")
        for attribute, value in self.failing_in.items():
            _known("failing_in: attribute", (attribute,), ATTRIBUTES)
            _known(f"failing_in: {attribute}", (value,), ATTRIBUTES[attribute])
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}, expected above 0 and at most 1")


@dataclass(frozen=True, slots=True)
class Dirt:
    """How many units, as a share of all, have a faulty line beside their good ones, per fault."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    records: dict[str, float] = field(default_factory=dict)
    outcomes: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, shares, faults in (
            ("records", self.records, RECORD_FAULTS),
            ("outcomes", self.outcomes, OUTCOME_FAULTS),
        ):
            _known(name, shares, faults)
            if min(shares.values(), default=0) < 0 or sum(shares.values()) > 1:
                raise ValueError(f"{name}: shares of units, expected none below 0 and at most 1 together")


@dataclass(frozen=True, slots=True)
class Simulation:
    """Traffic of a recommendation service, seeded: the same simulation writes the same lines.

    Shares are of units (`rating_share`), of requests (`legacy_share`, `extra_share`), of the champion's
    requests (`shadow_share`) or of records (`error_share`). The treatment of the experiment `ranker` is
    served by the candidate, everybody else by the champion. `days_before` the start there is traffic without
    experiments, which their covariates are taken from.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    log: str
    seed: int
    n_units: int
    start: date
    days: int
    ranker: str
    experiments: dict[str, Plant]
    days_before: int = 0
    requests_per_unit: float = 3.0
    training_units: int = 6_000
    model_name: str = "recommender"
    shadow_share: float = 0.1
    legacy_share: float = 0.02
    extra_share: float = 0.01
    error_share: float = 0.01
    rating_share: float = 0.05
    drifts: dict[str, Shift] = field(default_factory=dict)
    outages: dict[str, Outage] = field(default_factory=dict)
    dirt: Dirt = field(default_factory=Dirt)
    n_files: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}, expected 0 or more and below 2^63")
        one_or_more(self, "n_units", "days", "training_units", "n_files")
        if self.days_before < 0:
            raise ValueError(f"days_before is {self.days_before}, expected 0 or more")
        if not 1 < self.requests_per_unit <= 100:
            raise ValueError(f"requests_per_unit is {self.requests_per_unit}, expected above 1 and at most 100")
        for name in ("shadow_share", "legacy_share", "extra_share", "error_share", "rating_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a share in [0, 1]")
        _known("ranker", (self.ranker,), self.experiments)
        if sum(self.outcome_faults().values()) > self.n_ratings:
            raise ValueError("dirt.outcomes: faulty outcomes are made of ratings, expected a larger rating_share")
        if sum(self.record_faults().values()) > self.n_units:
            raise ValueError("dirt.records: more faulty records than units")

    @property
    def n_ratings(self) -> int:
        """Units that rate their first request."""
        return round(self.rating_share * self.n_units)

    @property
    def n_legacy(self) -> int:
        """Records of an old producer in the v01 form."""
        return round(self.legacy_share * self.n_units * self.requests_per_unit)

    def record_faults(self) -> dict[str, int]:
        return counts(self.dirt.records, self.n_units)

    def outcome_faults(self) -> dict[str, int]:
        return counts(self.dirt.outcomes, self.n_units)


def _known(where: str, given: Mapping[str, object] | tuple[str, ...], known: Mapping[str, object]) -> None:
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{where}: unknown {', '.join(unknown)}; expected of {', '.join(sorted(known))}")
