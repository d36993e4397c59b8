"""Metric columns of a log, metrics of an experiment, and the registry of metric kinds.

A kind says which columns of a unit it needs, how they become an arm, and how two arms are compared. Adding one
is one decorated function: conf validation, the Spark reduction and the readout pick it up.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import ClassVar, Literal, NamedTuple, Protocol

import numpy as np

from mltrust.states.moments import FloatArray, Moments
from mltrust.stats.means import Arm, Comparison, Margin, mean_arm, proportion, welch
from mltrust.stats.ratios import ratio_arm

Role = Literal["goal", "guardrail", "secondary", "diagnostic"]
Direction = Literal["increase", "decrease"]


@dataclass(frozen=True, slots=True)
class RequestColumn:
    """A column summed over a unit's requests: of the SQL expression `value`, or of how often it is not null."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    value: str
    aggregate: Literal["sum", "count"] = "sum"


@dataclass(frozen=True, slots=True)
class OutcomeColumn:
    """A column summed over a unit's outcomes named `outcome`: of their values, of how many there are, of delays.

    A delay is the time in days from the row that the outcome belongs to, or, where it is keyed by unit, from the
    unit's first exposure.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    outcome: str
    aggregate: Literal["sum", "count", "delay"] = "sum"


#: The columns of a declared prediction, each after its name and "_".
PREDICTION_COLUMNS = (
    "scored",
    "positives",
    "scores",
    "residual",
    "log_loss",
    "squared_error",
    "selected",
    "true_positives",
)


@dataclass(frozen=True, slots=True)
class PredictionColumns:
    """Columns of the logged score as the probability that an outcome named `outcome`, of a value above 0, follows.

    A row is `selected` from `threshold` on. Rows whose score is missing or outside [0, 1] are not scored.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    outcome: str
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}, expected a probability in [0, 1]")


def prediction_columns(name: str) -> tuple[str, ...]:
    """The metric columns that the prediction declared as `name` gives."""
    return tuple(f"{name}_{column}" for column in PREDICTION_COLUMNS)


@dataclass(frozen=True, slots=True)
class HistogramColumn:
    """A column that counts a unit's rows by the cells in which the SQL expression `value` lies, for quantiles.

    `n_cells` cells from `low` to `high`, of equal width, or with `scale: log` of equal ratio, and one on either side.
    A quantile is known as closely as a cell is wide. Rows without a value are not counted.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    value: str
    low: float
    high: float
    n_cells: int = 200
    scale: Literal["log", "linear"] = "log"

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low is {self.low}, expected below high, which is {self.high}")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"low is {self.low}, expected above 0 on the scale log; say linear otherwise")
        if not 2 <= self.n_cells <= 10_000:
            raise ValueError(f"n_cells is {self.n_cells}, expected 2 to 10,000")

    def edges(self) -> FloatArray:
        """The edges of all cells, ascending, from -inf to inf: cell i holds values in (edges[i], edges[i + 1]]."""
        space = np.geomspace if self.scale == "log" else np.linspace
        inner = space(self.low, self.high, self.n_cells + 1)
        return np.concatenate(([-np.inf], inner, [np.inf]))


RESERVED = frozenset(
    (
        "experiment_id",
        "unit_kind",
        "unit_id",
        "day",
        "n_requests",
        "n_predictions",
        "n_errors",
        "variant",
        "phase",
        "unit",
        "exposure_day",
    )
)


@dataclass(frozen=True, slots=True)
class MetricColumns:
    """Metric columns of one log, declared once for all its experiments.

    In unit_days they are one DOUBLE each, histograms a MAP from cells to numbers of rows.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    requests: dict[str, RequestColumn] = field(default_factory=dict)
    outcomes: dict[str, OutcomeColumn] = field(default_factory=dict)
    predictions: dict[str, PredictionColumns] = field(default_factory=dict)
    histograms: dict[str, HistogramColumn] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if twice := [name for name, n in Counter((*self.names(), *self.histograms)).items() if n > 1]:
            raise ValueError(
                f"{', '.join(sorted(twice))}: declared twice among requests, outcomes, histograms and the columns of "
                "predictions"
            )
        for name in (*self.names(), *self.predictions, *self.histograms):
            if not name.isidentifier() or name in RESERVED:
                raise ValueError(
                    f"column {name!r}: expected letters, digits and _, and none of {', '.join(sorted(RESERVED))}"
                )

    def names(self) -> tuple[str, ...]:
        """The columns that are sums."""
        of_predictions = (column for name in self.predictions for column in prediction_columns(name))
        return (*self.requests, *self.outcomes, *of_predictions)

    def delays(self) -> frozenset[str]:
        """The columns that are delays of outcomes."""
        return frozenset(name for name, each in self.outcomes.items() if each.aggregate == "delay")


#: What every experiment can use without declaring it.
BUILT_IN_COLUMNS = ("n_requests", "n_predictions", "n_errors")


@dataclass(frozen=True, slots=True)
class Cap:
    """Where a unit's sum is cut off: `at` a number, or the `quantile` of the units of all arms together."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    at: float | None = None
    quantile: float | None = None

    def __post_init__(self) -> None:
        if (self.at is None) == (self.quantile is None):
            raise ValueError("a cap is a number (at) or a quantile, one of both")
        if self.at is not None and not 0 < self.at < inf:
            raise ValueError(f"a cap at {self.at}, expected a number above 0")
        if self.quantile is not None and not 0.5 < self.quantile < 1:
            raise ValueError(f"quantile of a cap is {self.quantile}, expected above 0.5 and below 1")


@dataclass(frozen=True, slots=True)
class Metric:
    """A quantity compared between variants; the observation is the unit.

    `direction` is the wanted one, `smallest_effect` the smallest one worth finding. Without `window_days` a metric
    counts to as_of. `margin` is the harm that a guardrail must exclude. `missing`: a unit without a value counts as
    zero, or is left out. Within `equivalence` of one another the arms count as the same. `prior_sd` is the standard
    deviation of the effects that one expects, about none, absolute or relative to the control; without it the prior
    is flat. `cap` cuts off the sums of single units, whose tail would drown everything else. `level` is that of a
    quantile, 0.9 for the 90th percentile.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    kind: str
    numerator: str
    denominator: str | None = None
    role: Role = "secondary"
    direction: Direction = "increase"
    window_days: int | None = None
    missing: Literal["zero", "exclude"] = "zero"
    margin: Margin | None = None
    smallest_effect: Margin | None = None
    equivalence: Margin | None = None
    prior_sd: Margin | None = None
    cap: Cap | None = None
    level: float | None = None

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError("name is empty")
        if problem := self._problem():
            raise ValueError(f"metric {self.name!r}: {problem}")

    def _problem(self) -> str:
        """What contradicts itself; '' where nothing does."""
        if self.kind not in KINDS:
            return f"kind is {self.kind!r}, expected one of {', '.join(sorted(KINDS))}"
        needs = KINDS[self.kind].needs
        if any((name in needs) != (getattr(self, name) is not None) for name in ("denominator", "level")):
            return f"a {self.kind} takes {' and '.join(needs)}"
        if self.level is not None and not 0 < self.level < 1:
            return f"level is {self.level}, expected between 0 and 1: 0.9 for the 90th percentile"
        if self.role == "guardrail" and self.margin is None:
            return "a guardrail without margin: say which harm it must exclude"
        if self.role == "guardrail" and self.smallest_effect is not None:
            return "smallest_effect: a guardrail is judged by its margin, not by an effect worth finding"
        if self.of_rows and self.missing != "zero":
            return "missing: a quantile is of rows, of which those without a value never count"
        if self.cap is not None and (self.denominator is not None or KINDS[self.kind].unit_value != "sum"):
            return f"cap: a {self.kind} has no sum of a unit to cut off; only a mean has"
        if self.window_days is not None and self.window_days < 1:
            return f"window_days is {self.window_days}, expected 1 or more"
        return ""

    def columns(self) -> tuple[str, ...]:
        """The metric columns that it reads."""
        return (self.numerator,) if self.denominator is None else (self.numerator, self.denominator)

    @property
    def of_rows(self) -> bool:
        """Whether it is of the rows of units, and not of a value that each unit has."""
        return KINDS[self.kind].unit_value == "rows"


UnitValue = Literal["sum", "any", "rows"]


class ToArm(Protocol):
    def __call__(self, state: Moments, metric: Metric, /) -> Arm: ...


class Compare(Protocol):
    def __call__(self, *, control: Arm, treatment: Arm, alpha: float) -> Comparison: ...


class Kind(NamedTuple):
    """A kind of metric. `unit_value`: whether a unit's sum is observed, only that it is above 0, or all its rows."""

    needs: tuple[str, ...]
    unit_value: UnitValue
    arm: ToArm
    compare: Compare


KINDS: dict[str, Kind] = {}


def kind(
    name: str,
    *,
    needs: tuple[str, ...] = ("numerator",),
    unit_value: UnitValue = "sum",
    compare: Compare = welch,
) -> Callable[[ToArm], ToArm]:
    """Registers a function from the moments of a metric's columns to an arm as the metric kind `name`."""

    def register(arm: ToArm) -> ToArm:
        if name in KINDS:
            raise ValueError(f"metric kind {name!r} is registered twice")
        KINDS[name] = Kind(needs, unit_value, arm, compare)
        return arm

    return register


@kind("mean")
def mean(state: Moments, metric: Metric) -> Arm:
    """Mean over units of the numerator's sum."""
    return mean_arm(state, metric.numerator)


@kind("proportion", unit_value="any", compare=proportion)
def share(state: Moments, metric: Metric) -> Arm:
    """Share of units whose numerator is above 0."""
    return mean_arm(state, metric.numerator)


@kind("ratio", needs=("numerator", "denominator"))
def ratio(state: Moments, metric: Metric) -> Arm:
    """Sum of the numerator over the sum of the denominator, with the delta method's variance per unit."""
    assert metric.denominator is not None
    return ratio_arm(state, metric.numerator, metric.denominator)


#: The columns of a unit of which the state of a quantile is: its rows at or below the arm's quantile, and all.
BELOW, ROWS = "below", "rows"


@kind("quantile", needs=("numerator", "level"), unit_value="rows")
def share_below(state: Moments, metric: Metric) -> Arm:
    """Share of the rows at or below a value, over units: how far a quantile is known follows from it."""
    return ratio_arm(state, BELOW, ROWS)


def unknown_columns(metric: Metric, columns: MetricColumns) -> list[str]:
    """Columns that the metric reads and nobody declared."""
    declared = columns.histograms if metric.of_rows else (*columns.names(), *BUILT_IN_COLUMNS)
    return [name for name in metric.columns() if name not in declared]
