"""The states of an experiment by slice, arm and allocation phase: what Spark hands to checks and readout."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mltrust.metrics import Metric
from mltrust.slices import OVERALL, Slice, name_slice
from mltrust.states.moments import Moments, merge

#: The block that counts all units.
UNITS = "units"
#: Keys of a cell beside the slice attributes.
ARM_KEYS = ("variant", "phase")

ArmPhase = tuple[str, int]
Blocks = Mapping[str, Moments]


def mature_block(metric: Metric) -> str:
    """The block that counts the units whose window of the metric is over."""
    return f"mature {metric.window_days}"


def metric_block(metric: Metric) -> str:
    """The block of the metric's columns."""
    return f"metric {metric.name}"


@dataclass(frozen=True, slots=True, eq=False)
class SliceStates:
    """One slice: the blocks of every arm and phase. What is absent had no units."""

    slice: Slice
    blocks: Mapping[ArmPhase, Blocks]

    def count(self, block: str, arm: str, phases: Collection[int] | None = None) -> int:
        """Units of an arm in a block, of some phases or of all."""
        return sum(blocks[block].n for blocks in self._of(arm, phases))

    def moments(self, metric: Metric, arm: str, phases: Collection[int] | None = None) -> Moments:
        """The state of a metric's columns in an arm, of some phases or of all."""
        block = metric_block(metric)
        return merge((blocks[block] for blocks in self._of(arm, phases)), metric.columns())

    def _of(self, arm: str, phases: Collection[int] | None) -> list[Blocks]:
        return [
            blocks
            for (its_arm, its_phase), blocks in sorted(self.blocks.items(), key=lambda item: item[0])
            if its_arm == arm and (phases is None or its_phase in phases)
        ]


@dataclass(frozen=True, slots=True, eq=False)
class ExperimentStates:
    """Overall, and the slices of every declared set of attributes, in the order of the conf.

    `note` says in words what the reduction left together, if anything.
    """

    overall: SliceStates
    sets: Mapping[tuple[str, ...], Sequence[SliceStates]]
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
    found: dict[Slice, dict[ArmPhase, dict[str, Moments]]] = {}
    for values, blocks in cells:
        arms = found.setdefault(name_slice({name: values[name] for name in attributes}), {})
        total = arms.setdefault((values["variant"], int(values["phase"])), {})
        for name, state in blocks.items():
            total[name] = total[name] + state if name in total else state
    return [SliceStates(where, arms) for where, arms in sorted(found.items(), key=lambda item: item[0])]


def overall_of(cells: Iterable[tuple[Mapping[str, str], Blocks]]) -> SliceStates:
    """All cells as one slice; an empty one where there is no cell."""
    return next(iter(slices_of(cells, ())), SliceStates(Slice(*OVERALL), {}))
