"""What an experiment's conf says of fairness, and the measures that slices are compared by.

No conf can limit them all: where the base rates of two slices differ, scores that are calibrated in both cannot have
equal true and false positive rates (Kleinberg, Mullainathan and Raghavan 2016; Chouldechova 2017).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import ClassVar, NamedTuple

from mltrust.metrics import Metric
from mltrust.states.moments import FloatArray
from mltrust.states.replicates import Replicates

#: Columns of a prediction that the measures are made of.
COLUMNS = ("scored", "positives", "residual", "log_loss", "selected", "true_positives")
#: The block of those columns, over mature units with a scored prediction in the window.
BLOCK = "fairness"
#: Groups of units for the jackknife.
BUCKETS = 64

_Sum = Mapping[str, int]


class Measure(NamedTuple):
    """A sum over predictions divided by another one; `of` says what the latter counts.

    Both are sums of columns with factors. A `rate` lies in [0, 1].
    """

    numerator: _Sum
    denominator: _Sum
    of: str
    rate: bool = True


MEASURES: Mapping[str, Measure] = {
    "selection_rate": Measure({"selected": 1}, {"scored": 1}, "predictions"),
    "tpr": Measure({"true_positives": 1}, {"positives": 1}, "positives"),
    "fpr": Measure({"selected": 1, "true_positives": -1}, {"scored": 1, "positives": -1}, "negatives"),
    "error_rate": Measure({"selected": 1, "positives": 1, "true_positives": -2}, {"scored": 1}, "predictions"),
    "calibration_error": Measure({"residual": 1}, {"scored": 1}, "predictions", rate=False),
    "log_loss": Measure({"log_loss": 1}, {"scored": 1}, "predictions", rate=False),
}


def total(state: Replicates, columns: _Sum) -> FloatArray:
    """The sum (1 + B,) of columns with factors: of the sample, and of each replicate."""
    sums: FloatArray = sum((factor * state.column(name) for name, factor in columns.items()), 0 * state.sums[:, 0])
    return sums


@dataclass(frozen=True, slots=True)
class Fairness:
    """By which declared prediction and slice attributes the arms are compared, and which gaps are too large.

    A slice takes part with `min_units` units and `min_events` of what the measure counts: predictions, positives or
    negatives. `max_gap` limits the worst gap of the measures that it names, in their own units; the others are
    reported.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    predictions: str
    attributes: tuple[str, ...]
    window_days: int
    min_units: int = 100
    min_events: int = 50
    max_gap: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.attributes or len(set(self.attributes)) < len(self.attributes):
            raise ValueError(f"attributes: {list(self.attributes)} is empty or names one twice")
        for name, least in (("window_days", 1), ("min_units", 2), ("min_events", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected {least} or more")
        for measure, limit in self.max_gap.items():
            if measure not in MEASURES:
                raise ValueError(f"max_gap: {measure!r} is no measure; expected one of {', '.join(MEASURES)}")
            if not 0 < limit < inf:
                raise ValueError(f"max_gap: {measure} is {limit}, expected a number above 0")

    def metrics(self) -> tuple[Metric, ...]:
        """The columns as metrics, in their order; a unit without a scored prediction has no first one."""
        return tuple(
            Metric(
                f"{BLOCK} {column}",
                "mean",
                f"{self.predictions}_{column}",
                window_days=self.window_days,
                missing="exclude" if column == "scored" else "zero",
            )
            for column in COLUMNS
        )
