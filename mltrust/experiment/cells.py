"""The states of an experiment by slice, arm and allocation phase: what Spark hands to checks and readout."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from itertools import accumulate, combinations
from operator import add
from typing import NamedTuple

from mltrust.experiment.spec import Experiment, Search
from mltrust.metrics import KINDS, Metric
from mltrust.slices import OVERALL, Slice, name_slice
from mltrust.states.moments import Moments, weighted
from mltrust.states.replicates import Replicates
from mltrust.stats.quantiles import OrderStatistics

#: The block that counts all units.
UNITS = "units"
#: The block of all units' sums before exposure.
PAST = "past"
#: Keys of a cell beside the slice attributes. `crossed`: whether its units were seen in more than one variant.
ARM_KEYS = ("variant", "phase", "crossed")
#: One key more where units are a sample: how many units each stands for.
WEIGHT = "weight"
#: The key of cells by the day of first exposure.
DAY = "exposure_day"
#: The key of cells by whether the trigger ever held for a unit, and by the half of units that a search takes.
TRIGGERED, HALF = "triggered", "half"
#: The value of a flag that holds, among keys of cells.
YES = "yes"
#: The key of cells by bucket, the value where a unit has none, and the block of those as the conf's hash gives them.
BUCKET, NO_BUCKET, AGREES = "bucket", "(none)", "agrees"
#: The variant of another experiment that a unit is not in.
NO_VARIANT = "(none)"
#: Blocks of all units: those answered by a model version that is not of their arm, and those with a failed request.
MISSERVED, FAILED = "misserved", "failed"
#: The columns of a value's change over the days since exposure, and of its sum over them.
TREND, WINDOW = "trend", "window"


class Arm(NamedTuple):
    """Units of a slice that are kept apart: of one variant, first exposed in one phase, crossed or not.

    Where units are a sample, each stands for `weight` units.
    """

    variant: str
    phase: int
    crossed: bool
    weight: float = 1.0

    @classmethod
    def of(cls, values: Mapping[str, str]) -> "Arm":
        """The arm of a cell by its values of `arm_keys`."""
        return cls(values["variant"], int(values["phase"]), values["crossed"] == YES, float(values.get(WEIGHT, "1")))


def arm_keys(experiment: Experiment) -> tuple[str, ...]:
    """The keys of a cell that say which arm it is of."""
    return ARM_KEYS if experiment.sample is None else (*ARM_KEYS, WEIGHT)


Blocks = Mapping[str, Moments]


#: Whether a unit has no day in the time before its exposure that covariates are summed over.
NO_PAST = "no past"


def past_column(column: str) -> str:
    """The name of a unit's sum of a metric column before its exposure."""
    return f"past {column}"


def past_names(columns: Collection[str]) -> tuple[str, ...]:
    """Covariates by their names in a block: the sums of columns before exposure, and whether there was nothing."""
    return (*map(past_column, columns), NO_PAST) if columns else ()


def mature_block(metric: Metric) -> str:
    """The block that counts the units whose window of the metric is over."""
    return f"mature {metric.window_days}"


def metric_block(metric: Metric) -> str:
    """The block of the metric's columns."""
    return f"metric {metric.name}"


def products_block(metric: Metric) -> str:
    """The block of the metric's columns and their products, from which its skewness comes."""
    return f"products {metric.name}"


def product(a: str, b: str) -> str:
    """The name of the column that holds the product of two."""
    return " x ".join(sorted((a, b)))


def capped_block(metric: Metric) -> str:
    """The block that counts the units whose sum was cut off."""
    return f"capped {metric.name}"


def trend_block(metric: Metric) -> str:
    """The block of how the metric's numerator changes over the days since exposure, and of its sum."""
    return f"trend {metric.name}"


def has_products(metric: Metric) -> bool:
    """Whether a metric is of unit sums, whose skewness is not known before they are read."""
    return KINDS[metric.kind].unit_value == "sum"


def has_trend(metric: Metric) -> bool:
    """Whether a metric is a sum over enough days for a change within them."""
    return metric.denominator is None and (metric.window_days or 0) > 1


@dataclass(frozen=True, slots=True, eq=False)
class SliceStates:
    """One slice: the blocks of every arm. What is absent had no units."""

    slice: Slice
    blocks: Mapping[Arm, Blocks]

    @classmethod
    def empty(cls) -> "SliceStates":
        """All units, where there are none."""
        return cls(Slice(*OVERALL), {})

    def __add__(self, other: "SliceStates") -> "SliceStates":
        """The units of both; of the slice of the first."""
        total = {arm: dict(blocks) for arm, blocks in self.blocks.items()}
        for arm, blocks in other.blocks.items():
            _add(total.setdefault(arm, {}), blocks)
        return SliceStates(self.slice, total)

    def uncrossed(self) -> "SliceStates":
        """Without the units that were seen in more than one variant."""
        return SliceStates(self.slice, {arm: blocks for arm, blocks in self.blocks.items() if not arm.crossed})

    def crossed(self, variant: str) -> int:
        """Units of a variant that were seen in another one too."""
        return sum(blocks[UNITS].n for arm, blocks in self.blocks.items() if arm.variant == variant and arm.crossed)

    def count(self, block: str, arm: str, phases: Collection[int] | None = None) -> int:
        """Units of an arm in a block, of some phases or of all."""
        return sum(blocks[block].n for _, blocks in self._of(arm, phases))

    def moments(self, metric: Metric, arm: str, phases: Collection[int] | None = None) -> Moments:
        """The state of a metric's columns and covariates in an arm, of some phases or of all."""
        return self._merged(metric_block(metric), metric.columns(), arm, phases)

    def block(self, name: str, arm: str, phases: Collection[int] | None = None) -> Moments:
        """The state of a block in an arm, without columns where it had no units."""
        return self._merged(name, (), arm, phases)

    def _merged(self, block: str, columns: tuple[str, ...], arm: str, phases: Collection[int] | None) -> Moments:
        parts: dict[float, Moments] = {}
        for its, blocks in self._of(arm, phases):
            if block in blocks:
                known, state = parts.get(its.weight), blocks[block]
                parts[its.weight] = state if known is None else known + state
        return weighted(parts, next(iter(parts.values())).columns if parts else columns)

    def _of(self, arm: str, phases: Collection[int] | None) -> list[tuple[Arm, Blocks]]:
        return [
            (its, blocks)
            for its, blocks in sorted(self.blocks.items(), key=lambda item: item[0])
            if its.variant == arm and (phases is None or its.phase in phases)
        ]


class Resalted(NamedTuple):
    """The control's units under new salts: sums of a metric's columns about `centre`, and of their products."""

    replicates: Replicates
    centre: tuple[float, ...]


class RowStates(NamedTuple):
    """One slice for quantiles: over units the rows at or below the quantile of their arm, and all their rows.

    `order` holds the order statistics of all rows of an arm, by metric and variant.
    """

    units: SliceStates
    order: Mapping[tuple[str, str], OrderStatistics]


Crossings = Mapping[Slice, SliceStates]


class Triggered(NamedTuple):
    """The units for which the trigger held before as_of, and the others."""

    units: SliceStates
    complement: SliceStates


class Bucket(NamedTuple):
    """Units of a bucket, and how many of them the declared hash puts there."""

    n: int
    n_agreeing: int


@dataclass(frozen=True, slots=True, eq=False)
class ExperimentStates:
    """Overall, and the slices of every declared set of attributes, in the order of the conf.

    `by_day` holds all units by the day of their first exposure, `counts_by_day` the number of units by day and slice
    of each attribute alone. `whole` holds the blocks that are kept of all units only, `triggered` the units for which
    the trigger held and those for which it never did, `overlaps` the units of another experiment by its variants,
    `buckets` the numbers of units in a bucket and of those that the declared hash puts there. `halves` are the slices
    of every crossing that a search looks at, found on the first half of the units and confirmed on the second.
    `quantiles` holds the states of quantiles, overall and of the declared sets.
    `rejects` counts records of each arm that ingest refused. `replicates` holds the metrics' blocks of all units if
    the conf asks for resampling, `fairness`, per slice of its attributes, the columns of predictions by variant and
    phase, `resalted` the A/A tests by metric, if the conf asks for them. `note` says in words what the reduction left
    together.
    """

    overall: SliceStates
    sets: Mapping[tuple[str, ...], Sequence[SliceStates]]
    by_day: Mapping[date, SliceStates] = field(default_factory=dict)
    counts_by_day: Mapping[Slice, Mapping[date, SliceStates]] = field(default_factory=dict)
    whole: SliceStates = field(default_factory=lambda: SliceStates.empty())
    triggered: Triggered | None = None
    overlaps: Mapping[str, Mapping[str, SliceStates]] = field(default_factory=dict)
    buckets: Mapping[str, Bucket] = field(default_factory=dict)
    halves: tuple[Crossings, Crossings] = field(default_factory=lambda: ({}, {}))
    quantiles: Mapping[Slice, RowStates] = field(default_factory=dict)
    rejects: Mapping[str, int] = field(default_factory=dict)
    resalted: Mapping[str, Resalted] = field(default_factory=dict)
    replicates: Mapping[Arm, Mapping[str, Replicates]] = field(default_factory=dict)
    fairness: Mapping[Slice, Mapping[tuple[str, int], Replicates]] = field(default_factory=dict)
    note: str = ""

    def nested(self) -> list[list[Sequence[SliceStates]]]:
        """The declared sets by their nesting level, the number of attributes crossed."""
        depths = sorted({len(names) for names in self.sets})
        return [[slices for names, slices in self.sets.items() if len(names) == depth] for depth in depths]

    def levels(self) -> list[list[SliceStates]]:
        """Overall, then the slices of each nesting level: the families within which p-values are corrected."""
        return [[self.overall]] + [[each for slices in sets for each in slices] for sets in self.nested()]

    def every_slice(self) -> list[SliceStates]:
        return [self.overall, *(each for slices in self.sets.values() for each in slices)]


def slices_of(cells: Iterable[tuple[Mapping[str, str], Blocks]], attributes: Sequence[str]) -> list[SliceStates]:
    """Adds cells up to the slices of `attributes`, sorted by value; cells in the order given."""
    found: dict[Slice, dict[Arm, dict[str, Moments]]] = {}
    for values, blocks in cells:
        arms = found.setdefault(name_slice({name: values[name] for name in attributes}), {})
        _add(arms.setdefault(Arm.of(values), {}), blocks)
    return [SliceStates(where, arms) for where, arms in sorted(found.items(), key=lambda item: item[0])]


def overall_of(cells: Iterable[tuple[Mapping[str, str], Blocks]]) -> SliceStates:
    """All cells as one slice; an empty one where there is no cell."""
    return next(iter(slices_of(cells, ())), SliceStates.empty())


def by_day(cells: Iterable[tuple[Mapping[str, str], Blocks]]) -> dict[date, SliceStates]:
    """Cells that have an exposure day, all slices together, by that day in order."""
    return {date.fromisoformat(day): states for day, states in by_value(cells, DAY).items()}


def slices_by_day(
    cells: Sequence[tuple[Mapping[str, str], Blocks]], attribute: str
) -> dict[Slice, dict[date, SliceStates]]:
    """Cells that have an exposure day, by the slices of an attribute and by that day."""
    values = sorted({cell[attribute] for cell, _ in cells})
    return {
        name_slice({attribute: value}): by_day(each for each in cells if each[0][attribute] == value)
        for value in values
    }


def rests_of(slices: Sequence[SliceStates]) -> list[SliceStates]:
    """For each slice of one set all others together; under its own name."""
    none = SliceStates.empty()
    # Sums from both ends: taking a slice out of the total would cost digits.
    before = [none, *accumulate(slices, add)]
    after = [none, *accumulate(reversed(slices), add)][::-1]
    return [replace(before[at] + after[at + 1], slice=each.slice) for at, each in enumerate(slices)]


def by_value(cells: Iterable[tuple[Mapping[str, str], Blocks]], key: str) -> dict[str, SliceStates]:
    """All slices together, by the values of one key of the cells."""
    found: dict[str, list[tuple[Mapping[str, str], Blocks]]] = {}
    for values, blocks in cells:
        found.setdefault(values[key], []).append((values, blocks))
    return {value: overall_of(found[value]) for value in sorted(found)}


def crossings(cells: Sequence[tuple[Mapping[str, str], Blocks]], search: Search) -> Crossings:
    """The slices of every crossing that a search looks at, of cells by all of its attributes."""
    names = [
        names for depth in range(1, search.depth + 1) for names in combinations(sorted(search.attributes), depth)
    ]
    return {each.slice: each for attributes in names for each in slices_of(cells, attributes)}


def _add(total: dict[str, Moments], blocks: Blocks) -> None:
    for name, state in blocks.items():
        total[name] = total[name] + state if name in total else state
