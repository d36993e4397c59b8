"""The drift of a window: its families judged, and one verdict."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mltrust.drift.alarm import Key, sides_of
from mltrust.drift.cells import Cells
from mltrust.drift.families import Family
from mltrust.drift.findings import Finding, findings
from mltrust.drift.noise import Sides
from mltrust.drift.performance import Estimate
from mltrust.drift.quality import QualityFinding, constant, gap, stale, volume
from mltrust.drift.shifts import Shift
from mltrust.drift.slow import slow_shift
from mltrust.drift.spec import Drift, Window
from mltrust.slices import Slice
from mltrust.verdicts import Verdict, combine

#: A single window is no slow shift.
_FEWEST_WINDOWS = 2


class Counted(NamedTuple):
    """Of a model version in a window: production rows by hour, and the units with several rows, of which by column so
    many have several values."""

    by_hour: Sequence[int]
    n_units: int
    n_changed: Mapping[str, int]


class Judged(NamedTuple):
    """A family and its findings, and of a window against the fixed reference those on the quality of data."""

    family: Family
    findings: tuple[Finding, ...]
    quality: tuple[QualityFinding, ...] = ()

    @property
    def breaches(self) -> tuple[Finding, ...]:
        return tuple(each for each in self.findings if each.verdict is Verdict.BREACH)

    @property
    def faults(self) -> tuple[QualityFinding, ...]:
        return tuple(each for each in self.quality if each.verdict is Verdict.BREACH)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is a breach."""
        return (*(each.reason for each in self.faults), *(each.reason for each in self.breaches))

    @property
    def verdict(self) -> Verdict:
        """Breach where any test is one; pass where of all rows together anything could be tested, else inconclusive.

        Slices that are too small to say anything keep nobody from a pass.
        """
        if self.breaches or self.faults:
            return Verdict.BREACH
        overall = (each for each in self.findings if not each.slice_key)
        tested = any(each.verdict is Verdict.PASS for each in overall)
        return Verdict.PASS if tested else Verdict.INCONCLUSIVE


class ModelShifts(NamedTuple):
    """What moved of a version in a window against the fixed reference, of one kind: attribution, performance, ...

    `estimates` are those of performance in the window, by slice.
    """

    kind: str
    model_version: str
    window: Window
    shifts: tuple[Shift, ...]
    estimates: tuple[tuple[Slice, Estimate], ...] = ()

    @property
    def breaches(self) -> tuple[Shift, ...]:
        return tuple(each for each in self.shifts if each.verdict is Verdict.BREACH)

    @property
    def verdict(self) -> Verdict:
        """Breach where any is one; pass where anything could be tested of all rows, else inconclusive."""
        if self.breaches:
            return Verdict.BREACH
        tested = any(each.verdict is Verdict.PASS for each in self.shifts if not each.slice_key)
        return Verdict.PASS if tested else Verdict.INCONCLUSIVE


def judge(
    families: Sequence[Family],
    cells: Mapping[str, Cells],
    drift: Drift,
    counted: Mapping[tuple[str, Window], Counted] | None = None,
) -> list[Judged]:
    """Every family with its findings; with `counted` also those on the quality of data."""
    q = drift.alarm.level(drift.window_days, len(drift.against))
    judged = []
    for each in families:
        sides = sides_of(each.baseline, each.current, cells, paired=each.paired)
        found = findings(sides, drift.alarm, q, "pooled" if each.is_pooled else "window")
        found += _slow_shifts(each, cells, drift, q)
        checks = quality(each, sides, counted, drift) if counted and is_checked(each) else []
        judged.append(Judged(each, tuple(found), tuple(checks)))
    return judged


def _slow_shifts(family: Family, cells: Mapping[str, Cells], drift: Drift, q: float) -> list[Finding]:
    """Of every column of all rows, where windows since the reference can be added up: at least two."""
    if len(family.since) < _FEWEST_WINDOWS:
        return []
    columns = sorted({key.column for key in family.current})
    return [
        slow_shift(name, cells[name], family.baseline, family.since, drift.alarm, len(columns) / q)
        for name in columns
    ]


def is_checked(family: Family) -> bool:
    """Whether the quality of data is looked at: of a window against the fixed reference."""
    return family.against.kind == "fixed" and not family.is_pooled


def quality(
    family: Family, sides: Mapping[Key, Sides], counted: Mapping[tuple[str, Window], Counted], drift: Drift
) -> list[QualityFinding]:
    """Volume and gaps of the version, and of every column whether it stands still."""
    version, limits, nothing = family.population.model_version, drift.quality, Counted((), 0, {})
    now = counted.get((version, family.window), nothing)
    before = counted.get((drift.reference.model_version or version, family.reference_span), nothing)
    hours, reference_hours = 24 * family.window.days, 24 * family.reference_days
    found = [
        volume(
            n_current=sum(now.by_hour), hours=hours,
            n_reference=sum(before.by_hour), reference_hours=reference_hours, limits=limits,
        )
    ]  # fmt: skip
    if now.by_hour and before.by_hour:
        usual = [sum(before.by_hour[at::24]) / family.reference_days for at in range(24)]
        found.append(gap(now.by_hour, reference_rows_per_hour=usual * family.window.days, limits=limits))
    for key, each in sides.items():
        if key.slice_key:
            continue
        changed, reference_changed = (side.n_changed.get(key.column, 0) for side in (now, before))
        found += [
            constant(key.column, each, limits),
            stale(
                key.column, n_units=now.n_units, n_changed=changed,
                n_reference_units=before.n_units, n_reference_changed=reference_changed, limits=limits,
            ),
        ]  # fmt: skip
    return found


def verdict(judged: Sequence[Judged], of_models: Sequence[ModelShifts] = ()) -> Verdict:
    """The verdict of the comparisons that decide; inconclusive without any.

    Windows that were pooled can only add a breach: they may reach back to before there were rows. So do attributions
    and performance, of which there may be too few units or outcomes.
    """
    deciding = [each for each in judged if each.family.against.decides]
    added = [each.verdict for each in deciding if each.family.is_pooled] + [each.verdict for each in of_models]
    of_window = [each.verdict for each in deciding if not each.family.is_pooled]
    return combine([*of_window, *(each for each in added if each is Verdict.BREACH)])
