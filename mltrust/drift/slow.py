"""Shifts too slow for any window: what the windows since the reference add up to."""

from collections.abc import Sequence
from math import isnan, nan

from mltrust.drift.alarm import Alarm, Key, Profiles, too_few
from mltrust.drift.cells import Cells
from mltrust.drift.cusum import cusum, score, threshold
from mltrust.drift.findings import Finding
from mltrust.drift.noise import Sides, shape_test
from mltrust.drift.words import subject
from mltrust.slices import OVERALL
from mltrust.verdicts import Verdict

MEASURE = "cusum"


def slow_shift(
    column: str, cells: Cells, reference: Profiles, windows: Sequence[Profiles], alarm: Alarm, windows_between: float
) -> Finding:
    """The sum of a column's windows, the oldest first, against what chance crosses once in `windows_between`.

    Windows with too few rows add nothing. Inconclusive where the reference is not much larger than a window: its own
    noise, the same in every window, would add up.
    """
    key = Key(column)
    sides = [Sides(cells, reference[key], window[key]) for window in windows if key in window and key in reference]
    told = [each for each in sides if not too_few(each, alarm) and _is_small(each, alarm)]
    tests = [shape_test(each) for each in told]
    df = next((test.df for test in reversed(tests) if test.df > 0), nan)
    if isnan(df):
        why = f"no window has at most 1/{alarm.min_reference_ratio:g} of the reference's rows"
        return _finding(key, cells, Verdict.INCONCLUSIVE, f"{subject(column)}: {why}")
    limit = threshold(round(df), windows_between, alarm.slack)
    total = cusum((score(test) for test in tests), slack=alarm.slack, threshold=limit)
    reason = (
        f"{subject(column)}: {len(tests)} windows since the reference add up to {total:.1f}, {limit:.1f} is too much"
    )
    found = _finding(key, cells, Verdict.BREACH if total >= limit else Verdict.PASS, reason)
    n_reference, n_current = reference[key].n_rows, told[-1].current.n_rows
    return found._replace(value=total, statistic=total, floor=limit, n_reference=n_reference, n_current=n_current)


def _is_small(sides: Sides, alarm: Alarm) -> bool:
    return sides.reference.n_rows >= alarm.min_reference_ratio * sides.current.n_rows


def _finding(key: Key, cells: Cells, verdict: Verdict, reason: str) -> Finding:
    found = Finding(*OVERALL, key.column, MEASURE, MEASURE, verdict, reason, cells.version)
    return found._replace(unit="standard deviations")
