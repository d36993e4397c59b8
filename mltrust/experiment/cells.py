"""The states of an experiment by slice, arm and allocation phase: what Spark hands to checks and readout."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import NamedTuple

from mltrust.metrics import Metric
from mltrust.slices import OVERALL, Slice, name_slice
from mltrust.states.moments import Moments, merge
from mltrust.states.replicates import Replicates

#: The block that counts all units.
UNITS = "units"
#: The block of all units' sums before exposure.
PAST = "past"
#: Keys of a cell beside the slice attributes. `crossed`: whether its units were seen in more than one variant.
ARM_KEYS = ("variant", "phase", "crossed")
CROSSED = "yes"
#: The key of cells by the day of first exposure.
DAY = "exposure_day"


class Arm(NamedTuple):
    """Units of a slice that are kept apart: of one variant, first exposed in one phase, crossed or not."""

    variant: str
    phase: int
    crossed: bool

    @classmethod
    def of(cls, values: Mapping[str, str]) -> "Arm":
        """The arm of a cell by its values of ARM_KEYS."""
        return cls(values["variant"], int(values["phase"]), values["crossed"] == CROSSED)


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
        return sum(blocks[block].n for blocks in self._of(arm, phases))

    def moments(self, metric: Metric, arm: str, phases: Collection[int] | None = None) -> Moments:
        """The state of a metric's columns and covariates in an arm, of some phases or of all."""
        return self._merged(metric_block(metric), metric.columns(), arm, phases)

    def past(self, arm: str, phases: Collection[int] | None = None) -> Moments:
        """The state of all units' sums before exposure."""
        return self._merged(PAST, (), arm, phases)

    def _merged(self, block: str, columns: tuple[str, ...], arm: str, phases: Collection[int] | None) -> Moments:
        found = [blocks[block] for blocks in self._of(arm, phases) if block in blocks]
        return merge(found, found[0].columns if found else columns)

    def _of(self, arm: str, phases: Collection[int] | None) -> list[Blocks]:
        return [
            blocks
            for its, blocks in sorted(self.blocks.items(), key=lambda item: item[0])
            if its.variant == arm and (phases is None or its.phase in phases)
        ]


@dataclass(frozen=True, slots=True, eq=False)
class ExperimentStates:
    """Overall, and the slices of every declared set of attributes, in the order of the conf.

    `by_day` holds all units by the day of their first exposure, `counts_by_day` the number of units by day and slice
    of each attribute alone. `replicates` holds the metrics' blocks of all units where the conf asks for resampling.
    `fairness` holds, per slice of its attributes, the columns of predictions by variant and phase.
    `note` says in words what the reduction left together, if anything.
    """

    overall: SliceStates
    sets: Mapping[tuple[str, ...], Sequence[SliceStates]]
    by_day: Mapping[date, SliceStates] = field(default_factory=dict)
    counts_by_day: Mapping[Slice, Mapping[date, SliceStates]] = field(default_factory=dict)
    replicates: Mapping[Arm, Mapping[str, Replicates]] = field(default_factory=dict)
    fairness: Mapping[Slice, Mapping[tuple[str, int], Replicates]] = field(default_factory=dict)
    note: str = ""

    def levels(self) -> list[list[SliceStates]]:
        """Overall, then the slices of each nesting level: the families within which p-values are corrected."""
        depths = sorted({len(names) for names in self.sets})
        return [[self.overall]] + [
            [each for names, slices in self.sets.items() if len(names) == depth for each in slices]
            for depth in depths
        ]

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
    days: dict[date, list[tuple[Mapping[str, str], Blocks]]] = {}
    for values, blocks in cells:
        days.setdefault(date.fromisoformat(values[DAY]), []).append((values, blocks))
    return {day: overall_of(days[day]) for day in sorted(days)}


def slices_by_day(
    cells: Sequence[tuple[Mapping[str, str], Blocks]], attribute: str
) -> dict[Slice, dict[date, SliceStates]]:
    """Cells that have an exposure day, by the slices of an attribute and by that day."""
    values = sorted({cell[attribute] for cell, _ in cells})
    return {
        name_slice({attribute: value}): by_day(each for each in cells if each[0][attribute] == value)
        for value in values
    }


def _add(total: dict[str, Moments], blocks: Blocks) -> None:
    for name, state in blocks.items():
        total[name] = total[name] + state if name in total else state
