"""What is wrong with data whatever their distribution: volume, gaps, columns that stand still.

Missing, unseen and out-of-range values are tests of the alarm's family. These here are of counts that it does not
have; each gives at most one finding, in words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isnan, log, nan
from typing import ClassVar, NamedTuple

from scipy import special

from mltrust.drift.cells import MISSING, Cells
from mltrust.drift.noise import Sides, hypergeometric_tail
from mltrust.drift.profile import Profile
from mltrust.drift.words import share, subject
from mltrust.verdicts import Verdict

#: Names of the checks, in the place of a measure.
VOLUME, GAP, CONSTANT, STALE = "volume", "gap", "constant", "stale"


@dataclass(frozen=True, slots=True)
class Quality:
    """When data are worth an alarm.

    The rows of a window may be `max_volume_ratio` times as many as the reference's rate has them, or as many times
    fewer. A gap are hours without a row where the reference's rate leaves that a chance of `alpha` in the whole
    window; the other checks are tests at `alpha` too. A feature is stale where it changes `min_change_ratio` times as
    often as in the reference, or less, from `min_units` units on.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    max_volume_ratio: float = 1.5
    min_change_ratio: float = 0.1
    min_rows: int = 100
    min_units: int = 100
    alpha: float = 0.001

    def __post_init__(self) -> None:
        if not self.max_volume_ratio > 1:
            raise ValueError(f"max_volume_ratio is {self.max_volume_ratio}, expected above 1")
        for name in ("min_change_ratio", "alpha"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected between 0 and 1")


class QualityFinding(NamedTuple):
    """What a check says: `value` against `reference_value`, as shares, rows an hour or hours, and why.

    The p-value is nan where what was seen needs no test.
    """

    column: str
    check: str
    value: float
    reference_value: float
    pvalue: float
    verdict: Verdict
    reason: str


def volume(
    *, n_current: int, hours: float, n_reference: int, reference_hours: float, limits: Quality
) -> QualityFinding:
    """Whether the window has the rows an hour that the reference has, of a whole model and not of its slices.

    Rows an hour vary far more than counts of independent events, so that a limit of their ratio and not the test
    decides; the test only keeps a few rows from doing so.
    """
    rates = _rate(n_current, hours), _rate(n_reference, reference_hours)
    expected = rates[1] * hours
    if isnan(expected) or max(expected, n_current) < limits.min_rows:
        why = f"fewer than {limits.min_rows:,} rows, and as few expected" if expected >= 0 else "no reference"
        return QualityFinding("", VOLUME, rates[0], rates[1], nan, Verdict.INCONCLUSIVE, f"volume: {why}")
    ratio = rates[0] / rates[1] if rates[1] else inf
    at_rate = hours / (hours + reference_hours)
    pvalue = min(1.0, 2 * _binomial_tail(n_current, n_current + n_reference, at_rate))
    outside = not 1 / limits.max_volume_ratio <= ratio <= limits.max_volume_ratio
    breach = outside and pvalue <= limits.alpha
    reason = f"volume: {n_current:,} rows, {ratio:.2g} times the {expected:,.0f} that the reference's rate has"
    return QualityFinding("", VOLUME, rates[0], rates[1], pvalue, _verdict(breach), reason)


def gap(rows_by_hour: Sequence[int], *, reference_rows_per_hour: Sequence[float], limits: Quality) -> QualityFinding:
    """The longest time without a row, in whole hours of the window, against the reference's rate in the same hours.

    Rows are expected at the reference's rate times what the window has of it overall, so that halved traffic, which
    has a finding of its own, makes no gap.
    """
    expected = sum(reference_rows_per_hour)
    if len(rows_by_hour) != len(reference_rows_per_hour):
        raise ValueError(f"{len(rows_by_hour)} hours need as many rates, got {len(reference_rows_per_hour)}")
    if not expected or sum(rows_by_hour) < limits.min_rows:
        return QualityFinding("", GAP, nan, nan, nan, Verdict.INCONCLUSIVE, "gaps: too few rows to have any")
    scale = min(1.0, sum(rows_by_hour) / expected)
    runs = _empty_runs(rows_by_hour)
    lost = {(start, end): scale * sum(reference_rows_per_hour[start:end]) for start, end in runs}
    if not lost:
        return QualityFinding("", GAP, 0.0, 0.0, nan, Verdict.PASS, "gaps: every hour has rows")
    (start, end), rows = max(lost.items(), key=lambda each: each[1])
    # exp(-rows) is the chance of no event; as many gaps could begin as there are hours.
    enough = rows >= log(len(rows_by_hour) / limits.alpha)
    reason = (
        f"gaps: no row in {end - start} hours from hour {start} of the window on, where {rows:,.0f} were expected"
    )
    return QualityFinding("", GAP, float(end - start), rows, nan, _verdict(enough), reason)


def constant(column: str, sides: Sides, limits: Quality) -> QualityFinding:
    """Whether a column that varies in the reference has one value in the window."""
    name = subject(column)
    if min(sides.current.n_rows, sides.reference.n_rows) < limits.min_rows:
        return QualityFinding(column, CONSTANT, nan, nan, nan, Verdict.INCONCLUSIVE, f"{name}: too few rows")
    before, now = (_varies(each, sides.cells) for each in (sides.reference, sides.current))
    breach = before and not now
    values = sides.current.by_cell
    only = sides.cells.names[int(values.argmax())]
    reason = f"{name}: " + (f"all {sides.current.n_rows:,} rows are {_said(only)}" if breach else "varies as it did")
    return QualityFinding(column, CONSTANT, float(now), float(before), nan, _verdict(breach), reason)


def stale(
    column: str,
    *,
    n_units: int,
    n_changed: int,
    n_reference_units: int,
    n_reference_changed: int,
    limits: Quality,
) -> QualityFinding:
    """Whether a feature has stopped changing: of units with several rows, how many have several values of it.

    The exact lower tail of the hypergeometric law.
    """
    name = subject(column)
    if min(n_units, n_reference_units) < limits.min_units:
        why = f"{name}: fewer than {limits.min_units} units have several rows"
        return QualityFinding(column, STALE, nan, nan, nan, Verdict.INCONCLUSIVE, why)
    now, before = n_changed / n_units, n_reference_changed / n_reference_units
    changed = n_changed + n_reference_changed
    tail = hypergeometric_tail(n_changed, changed, n_units, n_units + n_reference_units)
    pvalue = tail if now < before else 1.0
    breach = pvalue <= limits.alpha and now <= limits.min_change_ratio * before
    reason = (
        f"{name}: changes within {share(now)} of the units that have several rows; {share(before)} in the reference"
    )
    return QualityFinding(column, STALE, now, before, pvalue, _verdict(breach), reason)


def _verdict(breach: bool) -> Verdict:
    return Verdict.BREACH if breach else Verdict.PASS


def _rate(n: int, hours: float) -> float:
    return n / hours if hours > 0 else nan


def _binomial_tail(x: int, n: int, p: float) -> float:
    """The tail of x on its side of the mean, of n events that each fall in the window with chance p."""
    if x > n * p:
        return float(special.bdtrc(x - 1, n, p)) if x else 1.0
    return float(special.bdtr(x, n, p))


def _empty_runs(rows: Sequence[int]) -> list[tuple[int, int]]:
    """[start, end) of every run of hours without a row."""
    empty = [at for at, n in enumerate(rows) if not n]
    starts = [at for at in empty if at == 0 or rows[at - 1]]
    ends = [at + 1 for at in empty if at + 1 == len(rows) or rows[at + 1]]
    return list(zip(starts, ends, strict=True))


def _varies(profile: Profile, cells: Cells) -> bool:
    """Whether rows have more than one value, missing being one."""
    if (profile.by_cell > 0).sum() > 1:
        return True
    if not cells.is_ordered or not profile.by_cell[: cells.n_ordinary].any():
        return False
    rows, steps, squares = profile.located(cells.n_ordinary)
    return bool(int(rows.sum()) * sum(squares) > int(steps.sum()) ** 2)


def _said(cell: str) -> str:
    return MISSING if cell == MISSING else f"in {cell}" if cell[0] in "([" else cell
