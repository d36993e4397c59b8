"""What an experiment's conf says: units, arms, time, metrics, slices and what decides."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import ClassVar, Literal

from mltrust.experiment import inconsistency
from mltrust.experiment.assignment import Assignment
from mltrust.experiment.fairness import Fairness
from mltrust.experiment.plan import Plan
from mltrust.metrics import Metric, MetricColumns
from mltrust.slices import Slicing

#: How long an experiment without a planned end is taken to last.
_USUAL_DAYS = 28

UnitKind = Literal["unit_id", "request", "bucket_id"]


Inference = Literal["fixed", "always_valid", "group_sequential"]
Interference = Literal["none", "possible"]
Resampling = Literal["bootstrap", "jackknife"]
#: Replicates where the conf names none, and the fewest that it may name: a jackknife's are groups of units.
REPLICATES: dict[Resampling, int] = {"bootstrap": 1000, "jackknife": 64}
FEWEST_REPLICATES: dict[Resampling, int] = {"bootstrap": 200, "jackknife": 50}


@dataclass(frozen=True, slots=True)
class Rules:
    """What a ship waits for, beside its metrics: the planned end of a fixed horizon, and at least a whole week.

    `power` is the chance with which an effect must have been found for its absence to be believed.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    planned_end: bool = True
    whole_weeks: bool = True
    power: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.power < 1:
            raise ValueError(f"power is {self.power}, expected a chance in (0, 1)")


@dataclass(frozen=True, slots=True)
class Search:
    """A search for the slice that loses most: among crossings of up to `depth` of the `attributes`.

    `min_units` per arm on the half of the units that slices are found on, and again on the half that confirms them.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    attributes: tuple[str, ...]
    depth: int = 3
    min_units: int = 100

    def __post_init__(self) -> None:
        if not self.attributes or len(set(self.attributes)) < len(self.attributes):
            raise ValueError(f"attributes: {list(self.attributes)} is empty or repeats one")
        if not 1 <= self.depth <= 3:
            raise ValueError(f"depth is {self.depth}, expected 1 to 3 attributes crossed")
        if self.depth > len(self.attributes):
            raise ValueError(f"depth is {self.depth}, and there are {len(self.attributes)} attributes to cross")
        if self.min_units < 2:
            raise ValueError(f"min_units is {self.min_units}, expected 2 or more")


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample of the units, for a cheaper analysis: of every stratum the share `rate`, and at least `min_units`.

    Strata are the units of each combination of values of the slice attributes `by`. A unit stands for as many as
    there are for each that is drawn from its stratum.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    rate: float
    by: tuple[str, ...] = ()
    min_units: int = 1000

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"rate is {self.rate}, expected a share of the units above 0 and below 1")
        if len(set(self.by)) < len(self.by):
            raise ValueError(f"by: {list(self.by)} names an attribute twice")
        if self.min_units < 0:
            raise ValueError(f"min_units is {self.min_units}, expected 0 or more")


@dataclass(frozen=True, slots=True)
class Experiment:
    """One experiment.

    `phases` maps the first UTC day of each allocation to the weights of the arms. From the UTC day `planned_end` on
    no unit enters any more, and metrics without a window do not count on. `decision_set` names the metrics whose
    overall effects decide (default: goals and guardrails); failed checks always do.

    With `pre_days` effects are adjusted by CUPED: the covariates of a metric are its own columns, and the metric
    columns in `covariates`, summed over the unit's whole production traffic of that many days before its exposure
    day. `inference` says whether metrics are decided once, or at every look: `always_valid` on every exposure day,
    `group_sequential` after every week; both need windows. `horizon` is the number of units, of all arms, for which
    sequential tests are sharpest. With `resampling` the overall effects are given by that method too, from
    `replicates` of the units. With `fairness` predictions are compared over slices.

    With `sample` not all units are read, and those that are have weights.

    `trigger` is a SQL expression on a record: units for which it ever held, in any arm, are also read alone.
    `served_by` names the model versions that may answer each arm, `assignment` how units came to their buckets,
    `interference` whether a unit's variant may act on other units. `salts` is the number of A/A tests in which the
    control's units are assigned anew.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    experiment_id: str
    log: str
    control: str
    phases: dict[date, dict[str, float]]
    metrics: tuple[Metric, ...]
    unit: UnitKind | None = None
    buckets: dict[str, str] = field(default_factory=dict)
    slices: Slicing = field(default_factory=Slicing)
    planned_end: date | None = None
    pre_days: int | None = None
    covariates: tuple[str, ...] = ()
    inference: Inference = "fixed"
    horizon: int | None = None
    resampling: Resampling | None = None
    replicates: int | None = None
    fairness: Fairness | None = None
    sample: Sample | None = None
    rules: Rules = field(default_factory=Rules)
    trigger: str | None = None
    served_by: dict[str, tuple[str, ...]] = field(default_factory=dict)
    assignment: Assignment | None = None
    search: Search | None = None
    salts: int | None = None
    interference: Interference | None = None
    plan: Plan = field(default_factory=Plan)
    alpha: float = 0.05
    srm_alpha: float = 0.001
    decision_set: tuple[str, ...] | None = None
    description: str = ""

    def __post_init__(self) -> None:
        # What the arms are comes first: the rest asks for them.
        if problems := list(inconsistency.of_arms(self)) or list(inconsistency.of_the_rest(self)):
            raise ValueError("; ".join(problems))

    def _weights(self) -> dict[str, float]:
        return next(iter(self.phases.values()))

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(self._weights())

    @property
    def treatments(self) -> tuple[str, ...]:
        return tuple(arm for arm in self.arms if arm != self.control)

    @property
    def unit_metrics(self) -> tuple[Metric, ...]:
        """The metrics of a value that each unit has: all but quantiles, which are of rows."""
        return tuple(metric for metric in self.metrics if not metric.of_rows)

    @property
    def quantiles(self) -> tuple[Metric, ...]:
        return tuple(metric for metric in self.metrics if metric.of_rows)

    def decides(self, metric: Metric) -> bool:
        """Whether the verdict rests on the overall effect on a metric."""
        if self.decision_set is None:
            return metric.role in ("goal", "guardrail")
        return metric.name in self.decision_set

    def until(self, as_of: date) -> date:
        """The first day that is not read any more: that of as_of, or the planned end before it."""
        return as_of if self.planned_end is None else min(as_of, self.planned_end)

    @property
    def start(self) -> date:
        return min(self.phases)

    @property
    def n_replicates(self) -> int:
        """Replicates of the units; 0 without resampling."""
        return 0 if self.resampling is None else self.replicates or REPLICATES[self.resampling]

    @property
    def fewest_replicates(self) -> int:
        """The fewest replicates that tell an error; 0 without resampling."""
        return 0 if self.resampling is None else FEWEST_REPLICATES[self.resampling]

    @property
    def past_since(self) -> date:
        """The first day on which a unit's past may matter; the start without covariates."""
        return self.start - timedelta(days=self.pre_days or 0)

    def past_columns(self, metric: Metric) -> tuple[str, ...]:
        """The metric columns whose sums before exposure adjust a metric; none without `pre_days`."""
        if self.pre_days is None:
            return ()
        return tuple(dict.fromkeys((*metric.columns(), *self.covariates)))

    def expected_units(self, n_first_day: int) -> float:
        """Units of all arms at the planned end: the horizon of the conf, else as on the first day on every day."""
        if self.horizon is not None:
            return self.horizon
        n_days = (self.planned_end - self.start).days if self.planned_end is not None else _USUAL_DAYS
        return float(n_first_day * max(1, n_days))

    def share_of_arms(self, treatment: str) -> float:
        """The share of all units that the control and a treatment have together, in the last of their phases."""
        weights = [each for _, each in sorted(self.phases.items())][self.comparable_phases(treatment)[-1]]
        return (weights[self.control] + weights[treatment]) / sum(weights.values())

    def all_past_columns(self) -> tuple[str, ...]:
        """`past_columns` of every metric."""
        return tuple(dict.fromkeys(column for metric in self.unit_metrics for column in self.past_columns(metric)))

    def comparable_phases(self, treatment: str) -> list[int]:
        """The phases (by date) in which both the treatment and the control had units to compare."""
        ordered = [weights for _, weights in sorted(self.phases.items())]
        return [at for at, weights in enumerate(ordered) if weights[self.control] > 0 and weights[treatment] > 0]

    def ratio_changes(self, treatment: str) -> bool:
        """Whether the treatment's share beside the control differs between their comparable phases."""
        ordered = [weights for _, weights in sorted(self.phases.items())]
        ratios = [ordered[at][treatment] / ordered[at][self.control] for at in self.comparable_phases(treatment)]
        return any(ratio != ratios[0] for ratio in ratios)

    def has_weight(self, arm: str, phase: int) -> bool:
        return sorted(self.phases.items())[phase][1][arm] > 0

    def expected_counts(self, n_by_phase: Sequence[int]) -> list[float]:
        """Units that each arm should have of those exposed in each phase (phases by date)."""
        expected = dict.fromkeys(self.arms, 0.0)
        for n, (_, weights) in zip(n_by_phase, sorted(self.phases.items()), strict=True):
            for arm in self.arms:
                expected[arm] += n * weights[arm] / sum(weights.values())
        return list(expected.values())

    def problems(self, columns: MetricColumns, attributes: Collection[str], texts: Collection[str] = ()) -> list[str]:
        """What does not fit the metric columns of the log, or the columns that a slice attribute can be.

        `texts` are those of them that are no numbers.
        """
        return list(inconsistency.with_log(self, columns, attributes, texts))
