"""What the move of an outcome's rate is made of, by slices, and which features may be behind it."""

from collections.abc import Mapping, Sequence
from math import isnan, nan
from typing import NamedTuple

from mltrust.drift.causes import Drifted, Explanation, Totals, causes, totals_of
from mltrust.drift.noise import SHAPE
from mltrust.drift.performance import ScoreLabels
from mltrust.drift.readout import Judged, ModelShifts, is_checked
from mltrust.slices import Slice
from mltrust.verdicts import Verdict


class Move(NamedTuple):
    """The move of an outcome's rate of one version, by the slices of one attribute (or attributes crossed)."""

    model_version: str
    slice_key: str
    explanation: Explanation

    @property
    def is_clear(self) -> bool:
        """Whether a part of it is not chance: its limits of confidence exclude 0."""
        return any(each.ci_low > 0 or each.ci_high < 0 for each in self.explanation.causes)


def moves_of(
    outcome: str, version: str, states: Mapping[Slice, tuple[ScoreLabels, ScoreLabels]], drifted: Sequence[Drifted]
) -> list[Move]:
    """For every attribute what the rate of `outcome` moved by; states are (reference, current)."""
    keys = dict.fromkeys(where.slice_key for where in states if where.slice_key)
    return [Move(version, key, causes(outcome, *_sides(states, key), drifted)) for key in keys]


def _sides(states: Mapping[Slice, tuple[ScoreLabels, ScoreLabels]], key: str) -> tuple[Totals, Totals]:
    reference, current = (
        totals_of({where: each[side] for where, each in states.items()}, key, "label") for side in (0, 1)
    )
    return reference, current


def drifted_features(version: str, judged: Sequence[Judged], attribution: Sequence[ModelShifts]) -> list[Drifted]:
    """The features of a version that breached against the fixed reference, with their share of all attribution."""
    shares = _shares(version, attribution)
    found: dict[str, float] = {}
    for each in judged:
        if not is_checked(each.family) or each.family.population.model_version != version:
            continue
        breached = {one.column for one in each.findings if one.verdict is Verdict.BREACH and not one.slice_key}
        for one in each.findings:
            if one.measure == SHAPE and not one.slice_key and one.column in breached and not isnan(one.value):
                found[one.column.removeprefix("features.")] = one.value
    return [Drifted(name, drift, shares.get(name, nan)) for name, drift in found.items()]


def _shares(version: str, attribution: Sequence[ModelShifts]) -> dict[str, float]:
    """Each feature's share of a version's attributions in the window."""
    own = [
        shift for each in attribution if each.model_version == version for shift in each.shifts if not shift.slice_key
    ]
    total = sum(shift.current for shift in own)
    return {shift.column: shift.current / total for shift in own} if total > 0 else {}
