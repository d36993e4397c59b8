"""What a finding says to a person: what changed, from what to what, and how sure one is of nothing."""

from math import isnan

import numpy as np

from mltrust.drift.alarm import Judged
from mltrust.drift.cells import ABOVE, BELOW, MISSING, OTHER, UNSEEN, Cells, OrderedCells, number
from mltrust.drift.noise import LOCATION, SHAPE, Measured, Sides
from mltrust.drift.profile import Profile
from mltrust.states.moments import FloatArray
from mltrust.verdicts import Verdict

#: Cells that a reason names.
_NAMED = 2
#: Where the record keeps features; nobody wants to read it.
_FEATURES = "features."


def reason(judged: Judged, sides: Sides, contributions: FloatArray, detectable: float) -> str:
    """The finding in words: of a breach what changed, of a pass how much would have been found."""
    name, test = subject(judged.key.column, judged.key.slice_key, judged.key.slice_value), judged.test
    if test.problem:
        return f"{name}: {test.problem}"
    if judged.verdict is Verdict.PASS:
        smallest = "" if isnan(detectable) else f"; {_size(test, detectable)} would be found in 8 of 10 windows"
        return f"{name}: {_found(test)}{smallest}"
    if test.measure == SHAPE:
        left = f"{test.value:.2g} bits from the reference, {test.corrected:.2g} after noise"
        return f"{name}: {left}; {moved(sides, contributions)}"
    if test.measure == LOCATION:
        way = "up" if test.value > 0 else "down"
        means = f"mean {test.current_value:.4g} against the reference's {test.reference_value:.4g}"
        return f"{name}: {means}, {abs(test.value):.2g} of its standard deviations {way}"
    shares = f"{share(test.current_value)} {where(sides.cells, test.measure)}"
    return f"{name}: {shares}; {share(test.reference_value)} in the reference"


def where(cells: Cells, kind: str) -> str:
    """A structural cell after a share of the rows: "0.75 % above the reference's maximum 94"."""
    if isinstance(cells, OrderedCells):
        below, above = f"minimum {number(cells.minimum)}", f"maximum {number(cells.maximum)}"
        limits = {BELOW: f"below the reference's {below}", ABOVE: f"above the reference's {above}"}
        return limits.get(kind, MISSING)
    return {
        MISSING: "missing",
        UNSEEN: "of a value that the reference never has",
        OTHER: f"of none of the {cells.n_ordinary} most frequent values",
    }[kind]


def moved(sides: Sides, contributions: FloatArray) -> str:
    """The cells that contribute most, with their shares: "most in 16 (17.4 % -> 26.6 %) and 21 (18.4 % -> 9.1 %)"."""
    before, after = (_shares(each) for each in (sides.reference, sides.current))
    most = np.argsort(-contributions, kind="stable")[:_NAMED].tolist()
    named = [
        f"{sides.cells.names[at]} ({share(before[at])} -> {share(after[at])})" for at in most if contributions[at]
    ]
    return f"most of it in {' and '.join(named)}" if named else "no cell changed"


def subject(column: str, slice_key: str = "", slice_value: str = "") -> str:
    """A column and the slice it is read in, as a reason begins."""
    short = column.removeprefix(_FEATURES)
    return f"{short} ({slice_key} {slice_value})" if slice_key else short


def share(value: float) -> str:
    """A share in per cent, as short as it is distinct."""
    if isnan(value):
        return "–"
    if not value:
        return "0"
    return f"{100 * value:.2f} %" if value < 0.01 else f"{100 * value:.1f} %"


def _found(test: Measured) -> str:
    """What a test that passes has measured."""
    if test.measure == SHAPE:
        return f"{max(test.corrected, 0):.2g} bits after noise"
    if test.measure == LOCATION:
        return f"mean {_size(test, abs(test.value))} from the reference's"
    return f"{share(test.current_value)} {test.measure}, {share(test.reference_value)} in the reference"


def _size(test: Measured, value: float) -> str:
    if test.measure == SHAPE:
        return f"{value:.2g} bits"
    return f"{value:.2g} standard deviations" if test.measure == LOCATION else f"{share(value)} more"


def _shares(profile: Profile) -> list[float]:
    total = max(profile.n_rows, 1)
    return [n / total for n in profile.by_cell.tolist()]
