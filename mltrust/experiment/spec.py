"""What an experiment's conf says: units, arms, time, metrics, slices and what decides."""

import difflib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import ClassVar, Literal

from mltrust.experiment.assignment import Assignment
from mltrust.experiment.fairness import Fairness
from mltrust.experiment.plan import Plan
from mltrust.metrics import BUILT_IN_COLUMNS, Metric, MetricColumns, unknown_columns
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
        if self.min_units < 0:
            raise ValueError(f"min_units is {self.min_units}, expected 0 or more")


@dataclass(frozen=True, slots=True)
class Experiment:
    """One experiment.

    `phases` maps the first UTC day of each allocation to the weights of the arms. `decision_set` names the
    metrics whose overall effects decide (default: goals and guardrails); failed checks always do.

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
        if not self.phases:
            raise ValueError("phases is empty; expected the first day with the weights of the arms")
        for day, weights in self.phases.items():
            if weights.keys() != self._weights().keys():
                raise ValueError(
                    f"phases.{day}: arms {sorted(weights)}, in the first phase {sorted(self._weights())}"
                )
            if min(weights.values()) < 0 or sum(weights.values()) <= 0:
                raise ValueError(
                    f"phases.{day}: weights {list(weights.values())}, expected none below 0 and one above"
                )
        if self.control not in self.arms:
            raise ValueError(f"control {self.control!r} is none of the arms {', '.join(self.arms)}")
        if len(self.arms) < 2:
            raise ValueError(f"arms: only {self.control!r}, expected a treatment beside it")
        if strange := set(self.buckets.values()) - set(self.arms):
            raise ValueError(f"buckets map to {', '.join(sorted(strange))}, which is none of the arms")
        if never := [arm for arm in self.treatments if not self.comparable_phases(arm)]:
            raise ValueError(f"phases: {', '.join(never)} and {self.control} never have weight in the same phase")
        if self.unit == "bucket_id" and not self.buckets:
            raise ValueError("buckets is empty; the unit bucket_id needs every bucket with its arm")
        for name, level in (("alpha", self.alpha), ("srm_alpha", self.srm_alpha)):
            if not 0 < level < 1:
                raise ValueError(f"{name} is {level}, expected a level in (0, 1)")
        if self.horizon is not None and self.horizon < 1:
            raise ValueError(f"horizon is {self.horizon} units, expected 1 or more")
        if self.replicates is not None and self.resampling is None:
            raise ValueError("replicates without resampling; say bootstrap or jackknife")
        if self.resampling is not None and self.n_replicates < FEWEST_REPLICATES[self.resampling]:
            raise ValueError(
                f"replicates is {self.replicates}, expected {FEWEST_REPLICATES[self.resampling]} or more for a "
                f"{self.resampling}"
            )
        if self.resampling == "jackknife" and self.unit == "bucket_id":
            raise ValueError("resampling jackknife: the units are buckets, too few to be left out in groups")
        if self.fairness is not None:
            if strange := set(self.fairness.attributes) - set(self.slices.attributes):
                raise ValueError(f"fairness: {', '.join(sorted(strange))} is no attribute of slices")
            if self.unit == "bucket_id":
                raise ValueError("fairness: the units are buckets, and slices vary within a bucket")
        if self.sample is not None:
            if strange := set(self.sample.by) - set(self.slices.attributes):
                raise ValueError(f"sample: {', '.join(sorted(strange))} is none of slices.attributes")
            no_weights = {
                "quantiles": self.quantiles,
                "resampling": self.resampling,
                "salts": self.salts,
                "fairness": self.fairness,
                f"inference {self.inference}": self.inference != "fixed",
                "the unit bucket_id": self.unit == "bucket_id",
                "a ratio of the arms that changes": any(map(self.ratio_changes, self.treatments)),
            }
            if together := [name for name, given in no_weights.items() if given]:
                raise ValueError(f"sample: {', '.join(together)} cannot be had from weighted units")
        if self.pre_days is not None and self.pre_days < 1:
            raise ValueError(f"pre_days is {self.pre_days}, expected 1 or more")
        if self.pre_days is None and self.covariates:
            raise ValueError("covariates without pre_days; say how many days before exposure they are summed over")
        if self.pre_days is not None and self.unit not in (None, "unit_id"):
            raise ValueError(f"pre_days: a {self.unit} has no past; only the unit unit_id has covariates")
        if not self.unit_metrics:
            raise ValueError("metrics has no metric of units; expected one beside quantiles, or any at all")
        if twice := [name for name, n in Counter(metric.name for metric in self.metrics).items() if n > 1]:
            raise ValueError(f"metrics: {', '.join(twice)} declared twice")
        if self.unit == "bucket_id" and (shares := [each.name for each in self.metrics if each.kind == "proportion"]):
            raise ValueError(f"metrics: {', '.join(shares)} is a share of units, and the units are buckets")
        deciding = self.decision_set
        if deciding is None:
            deciding = tuple(each.name for each in self.metrics if each.role in ("goal", "guardrail"))
        if not deciding:
            raise ValueError("no metric decides; expected a goal, a guardrail or a decision_set")
        if self.inference != "fixed":
            if self.unit == "bucket_id":
                raise ValueError(f"inference {self.inference}: the units are buckets, which all come at once")
            if growing := [each.name for each in self.metrics if each.name in deciding and not each.window_days]:
                raise ValueError(
                    f"inference {self.inference}: {', '.join(growing)} decides and has no window_days; a value that "
                    "still grows cannot be read at several looks"
                )
            if skipping := [each.name for each in self.quantiles if each.name in deciding]:
                raise ValueError(
                    f"inference {self.inference}: {', '.join(skipping)} decides and is a quantile, which has no test "
                    "for several looks"
                )
        if strange := set(self.served_by) - set(self.arms):
            raise ValueError(f"served_by names {', '.join(sorted(strange))}, which is none of the arms")
        if self.assignment is not None and self.unit not in (None, "unit_id"):
            raise ValueError(f"assignment: a {self.unit} is not hashed to a bucket; only the unit unit_id is")
        if self.salts is not None and self.salts < 100:
            raise ValueError(f"salts is {self.salts}, expected 100 or more A/A tests (1000 tell well)")
        searched = self.search.attributes if self.search is not None else ()
        if strange := set(searched) - set(self.slices.attributes):
            raise ValueError(f"search: {', '.join(sorted(strange))} is none of slices.attributes")
        if unknown := set(self.decision_set or ()) - {metric.name for metric in self.metrics}:
            raise ValueError(f"decision_set: {', '.join(sorted(unknown))} is none of the metrics")

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

    @property
    def start(self) -> date:
        return min(self.phases)

    @property
    def n_replicates(self) -> int:
        """Replicates of the units; 0 without resampling."""
        return 0 if self.resampling is None else self.replicates or REPLICATES[self.resampling]

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

    def problems(self, columns: MetricColumns, attributes: Collection[str]) -> list[str]:
        """What does not fit the metric columns of the log, or the columns that a slice attribute can be."""
        unknown_covariates = [name for name in self.covariates if name not in (*columns.names(), *BUILT_IN_COLUMNS)]
        none = "(none declared)"
        near = {
            name: difflib.get_close_matches(column, attributes, 1) for name, column in self.slices.attributes.items()
        }
        return (
            [
                f"slices.attributes.{name}: {column!r} is no column of log {self.log!r}"
                + (f"; did you mean {near[name][0]!r}?" if near[name] else "")
                for name, column in self.slices.attributes.items()
                if column not in attributes
            ]
            + [
                f"metrics.{metric.name}: {', '.join(unknown)} is no "
                f"{'histogram' if metric.of_rows else 'metric column'} of log {self.log!r}; "
                f"expected one of {', '.join(columns.histograms if metric.of_rows else columns.names()) or none}"
                for metric in self.metrics
                if (unknown := unknown_columns(metric, columns))
            ]
            + [
                f"covariates: {name} is no metric column of log {self.log!r}; "
                f"expected one of {', '.join((*columns.names(), *BUILT_IN_COLUMNS))}"
                for name in unknown_covariates
            ]
            + [
                f"fairness.predictions: {each.predictions!r} is no prediction of log {self.log!r}; "
                f"expected one of {', '.join(columns.predictions) or none}"
                for each in [self.fairness]
                if each is not None and each.predictions not in columns.predictions
            ]
        )
