"""When drift is worth an alarm: tests of one window as one family, floors, pooled windows and slow shifts.

The family are all tests of one window of one model version against one reference: per column and slice the shape,
every structural cell, and of numbers the location. A test that could not be made is no member. Windows are never
revised: each is judged once, at its own level.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import ClassVar, NamedTuple

from mltrust.drift.cells import Cells
from mltrust.drift.noise import LOCATION, SHAPE, Measured, Sides, location_test, shape_test, structural_tests
from mltrust.drift.profile import Profile, pooled
from mltrust.slices import Slice
from mltrust.stats.multiplicity import benjamini_hochberg
from mltrust.verdicts import Verdict


class Key(NamedTuple):
    """What a profile is of, within one window of one model version."""

    column: str
    slice_key: str = ""
    slice_value: str = ""

    @property
    def slice(self) -> Slice:
        return Slice(self.slice_key, self.slice_value)


Profiles = Mapping[Key, Profile]


@dataclass(frozen=True, slots=True)
class Alarm:
    """What makes a breach.

    `q` is the share of windows without any drift that may alarm, per reference; or `false_alarms_per_30_days` sets it
    from the number of windows. A breach also needs an effect, after noise is taken off it, of `min_jsd` bits,
    `min_mean_shift` standard deviations of the reference, or `min_share` of the rows in a structural cell; and
    `min_rows` and `min_units` on each side, below which nothing is said. The last `pooled_windows` windows together
    are tested again, as a family of their own (1: not). Slow shifts are summed up by CUSUM beyond a `slack`, where
    the reference has at least `min_reference_ratio` times the window's rows.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    q: float | None = None
    false_alarms_per_30_days: float | None = None
    min_jsd: float = 0.003
    min_mean_shift: float = 0.05
    min_share: float = 0.005
    min_rows: int = 100
    min_units: int = 100
    pooled_windows: int = 5
    slack: float = 0.7
    min_reference_ratio: float = 30.0

    def __post_init__(self) -> None:
        if self.q is not None and self.false_alarms_per_30_days is not None:
            raise ValueError("q and false_alarms_per_30_days are two ways to say the same, give one of both")
        if self.q is not None and not 0 < self.q < 1:
            raise ValueError(f"q is {self.q}, expected between 0 and 1")
        if self.false_alarms_per_30_days is not None and not self.false_alarms_per_30_days > 0:
            raise ValueError(f"false_alarms_per_30_days is {self.false_alarms_per_30_days}, expected above 0")
        for name in ("min_jsd", "min_mean_shift", "min_share", "slack"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")
        for name, least in (("min_rows", 2), ("min_units", 2), ("pooled_windows", 1), ("min_reference_ratio", 1)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected {least} or more")

    def level(self, window_days: float = 1.0, n_references: int = 1) -> float:
        """The q of one family of a window.

        The budget is shared by the windows of 30 days, the references that each is held against, and the two ways in.
        """
        if self.false_alarms_per_30_days is None:
            return 0.001 if self.q is None else self.q
        families = 30 / window_days * n_references * (2 if self.pooled_windows > 1 else 1)
        return min(self.false_alarms_per_30_days / families, 0.5)

    def floor(self, measure: str) -> float:
        """The smallest effect that is worth an alarm."""
        return {SHAPE: self.min_jsd, LOCATION: self.min_mean_shift}.get(measure, self.min_share)


class Judged(NamedTuple):
    """A test of a family and what it says: n_family tests were made together."""

    key: Key
    test: Measured
    qvalue: float
    n_family: int
    verdict: Verdict


def measured(sides: Sides, alarm: Alarm) -> list[Measured]:
    """All tests of one column and slice; with too few rows or units on a side, without p-values."""
    located = location_test(sides)
    found = [shape_test(sides), *structural_tests(sides), *([] if located is None else [located])]
    if not (problem := too_few(sides, alarm)):
        return found
    return [test._replace(pvalue=nan, problem=problem) for test in found]


def too_few(sides: Sides, alarm: Alarm) -> str:
    """Which side has too few rows or units to say anything; '' where both have enough."""
    for name, side in (("reference", sides.reference), ("current", sides.current)):
        for what, n, least in (("rows", side.n_rows, alarm.min_rows), ("units", side.n_units, alarm.min_units)):
            if n < least:
                return f"{n:,} {what} in the {name} window, {least:,} are needed"
    return ""


def judge(tests: Iterable[tuple[Key, Measured]], alarm: Alarm, q: float) -> list[Judged]:
    """Every test of one family with its q-value and verdict.

    A breach has qvalue <= q and an effect of at least the floor after noise is taken off it. A test without a p-value
    is inconclusive.
    """
    listed = list(tests)
    qvalues = benjamini_hochberg([test.pvalue for _, test in listed])
    n_family = sum(not isnan(test.pvalue) for _, test in listed)
    return [
        Judged(key, test, qvalue, n_family, _verdict(test, qvalue, alarm, q))
        for (key, test), qvalue in zip(listed, qvalues, strict=True)
    ]


def sides_of(
    reference: Profiles, current: Profiles, cells: Mapping[str, Cells], *, paired: bool = False
) -> dict[Key, Sides]:
    """Both sides of every column and slice that either has, in the order of their names; the other may be empty."""
    keys = sorted({*reference, *current})
    empty = {column: Profile.empty(cells[column]) for column in {key.column for key in keys}}
    return {
        key: Sides(
            cells[key.column],
            reference.get(key, empty[key.column]),
            current.get(key, empty[key.column]),
            paired,
        )
        for key in keys
    }


def pooled_profiles(windows: Sequence[Profiles], *, recurring: bool) -> dict[Key, Profile]:
    """The profiles of several windows together. `recurring`: a unit may have rows in several of them."""
    keys = sorted({key for window in windows for key in window})
    return {key: pooled([window[key] for window in windows if key in window], recurring=recurring) for key in keys}


def _verdict(test: Measured, qvalue: float, alarm: Alarm, q: float) -> Verdict:
    if isnan(qvalue):
        return Verdict.INCONCLUSIVE
    return Verdict.BREACH if qvalue <= q and abs(test.corrected) >= alarm.floor(test.measure) else Verdict.PASS
