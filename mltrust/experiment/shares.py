"""Shares of units that the variant should not change, held against one another by arm, within allocation phases."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from mltrust.experiment.spec import Experiment
from mltrust.stats.independence import Independence, independence, summed

_SMALLEST_EXPECTED = 5


class Share(NamedTuple):
    """Of the n units of an arm those that something is true of."""

    arm: str
    n_true: int
    n: int

    def __str__(self) -> str:
        return f"{self.arm} {self.n_true:,} of {self.n:,}" + (f" ({self.n_true / self.n:.2%})" if self.n else "")


#: The units of an arm in some phases that something is true of, and all of them.
Count = Callable[[str, tuple[int, ...]], tuple[int, int]]


class Shares(NamedTuple):
    """The share of every arm over all phases, and the test that they are the same within each phase."""

    arms: tuple[Share, ...]
    test: Independence

    @property
    def n(self) -> int:
        return sum(each.n for each in self.arms)

    def __str__(self) -> str:
        return ", ".join(map(str, self.arms))


def shares(experiment: Experiment, count: Count) -> Shares:
    """Within phases, as units of another phase are older and have had more time; arms without weight are left out.

    A phase in which few units are expected on either side is not tested.
    """
    phases = range(len(experiment.phases))
    tests = [
        _test([Share(arm, *count(arm, (at,))) for arm in experiment.arms if experiment.has_weight(arm, at)])
        for at in phases
    ]
    return Shares(tuple(Share(arm, *count(arm, tuple(phases))) for arm in experiment.arms), summed(tests))


def _test(found: Sequence[Share]) -> Independence:
    table = [[each.n_true for each in found], [each.n - each.n_true for each in found]]
    n = sum(each.n for each in found)
    smallest = min(sum(side) * each.n / n for side in table for each in found) if n else 0
    return independence([[0], [0]] if 0 < smallest < _SMALLEST_EXPECTED else table)
