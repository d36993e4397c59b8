"""Relation drift: do outcomes still follow the scores, whatever the inputs? Residuals by cell of each feature.

    relation_drift({where: {column: (cells, reference, current)}}, rule)     a Shift per slice and column

On matured outcomes, the mean of label - score in every cell of a feature against the same cell of the reference. It
moves where the outcome given the inputs has moved: the inputs' own distribution and the model's use of them do not
matter, which `drift.measures` and `drift.attribution` look at. All cells of all columns and slices are one family,
and a column breaches where a cell does. Where every column breaches alike, the rate of outcomes has moved as a whole:
`calibration_in_the_large` of `drift.performance` says so in one number.

The state of a column is integers: rows and summed residuals by cell and hash bucket of the unit, residuals in steps
of 2^-20 and cut off at a million. Standard errors leave out a bucket of units at a time, on both sides at once.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isnan
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mltrust.drift.cells import Cells, IntArray, n_cells
from mltrust.drift.profile import N_BUCKETS, bucket_of
from mltrust.drift.shifts import FEWEST_UNITS, Shift, judged, shift
from mltrust.slices import Slice
from mltrust.states.moments import FloatArray
from mltrust.stats.bootstrap import Resampled
from mltrust.verdicts import Verdict

MEASURE = "relation"
#: Residuals are summed in so many steps of 1, up to the farthest.
STEPS, FARTHEST = 1 << 20, 1 << 40
#: Of 100 units 51 of the 64 buckets hold some on average; rows of a few units fill fewer, and say nothing of others.
_FEWEST_BUCKETS = 40


@dataclass(frozen=True, slots=True)
class RelationRule:
    """When outcomes have left the scores of a feature's cell: qvalue <= q, and the mean residual moved by `floor`.

    The floor is in the unit of the label. Cells with fewer than `fewest_rows` on a side are not tested.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    q: float = 0.001
    floor: float = 0.02
    fewest_rows: int = 100
    fewest_units: int = FEWEST_UNITS

    def __post_init__(self) -> None:
        if not 0 < self.q < 1:
            raise ValueError(f"q is {self.q}, expected a number in (0, 1)")
        if self.floor < 0:
            raise ValueError(f"floor is {self.floor}, expected 0 or more")
        for name in ("fewest_rows", "fewest_units"):
            if getattr(self, name) < FEWEST_UNITS:
                raise ValueError(f"{name} is {getattr(self, name)}, expected {FEWEST_UNITS} or more")


@dataclass(frozen=True, slots=True, eq=False)
class Residuals:
    """Labelled rows by cell and hash bucket of their unit (cells, 64), and the sums of their residuals, in steps.

    `n_units` are the units with any labelled row; units of two states are taken for others.
    """

    counts: IntArray
    totals: IntArray
    n_units: int

    def __post_init__(self) -> None:
        if self.counts.shape != self.totals.shape or self.counts.shape[1:] != (N_BUCKETS,):
            raise ValueError(
                f"rows and sums have shape (cells, {N_BUCKETS}), got {self.counts.shape} and {self.totals.shape}"
            )

    @classmethod
    def empty(cls, cells: Cells) -> "Residuals":
        """No rows: the identity of `+`."""
        shape = n_cells(cells), N_BUCKETS
        return cls(np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64), 0)

    @classmethod
    def of(cls, cells: Cells, values: object, residuals: FloatArray, units: NDArray[np.int64]) -> "Residuals":
        """The state of a sample: a feature's values, label - score, and hashes of units, one each per row."""
        code = cells.index(values) * N_BUCKETS + bucket_of(units)  # type: ignore[arg-type]
        shape, size = (n_cells(cells), N_BUCKETS), n_cells(cells) * N_BUCKETS
        totals = np.zeros(size, dtype=np.int64)
        np.add.at(totals, code, steps_of(residuals))
        counts = np.bincount(code, minlength=size).astype(np.int64)
        return cls(counts.reshape(shape), totals.reshape(shape), len(np.unique(units)))

    def __add__(self, other: "Residuals") -> "Residuals":
        """The state of both sets of rows; ValueError if the cells differ."""
        if self.counts.shape != other.counts.shape:
            raise ValueError(f"cannot add residuals of {len(self.counts)} and {len(other.counts)} cells")
        return Residuals(self.counts + other.counts, self.totals + other.totals, self.n_units + other.n_units)

    def mean(self, cell: int) -> Resampled:
        """The mean residual of a cell, of all units and without each bucket; nan where no row is left."""
        n, total = self.counts[cell], self.totals[cell]
        rows = np.concatenate([[n.sum()], n.sum() - n])
        sums = np.concatenate([[total.sum()], total.sum() - total])
        means = np.divide(sums / STEPS, rows, out=np.full(len(rows), np.nan), where=rows > 0)
        return Resampled(self.n_units, float(means[0]), means[1:])

    def too_few(self, cell: int, rule: RelationRule) -> str:
        """Why a cell is not tested; '' where it is."""
        n = self.counts[cell]
        if n.sum() < rule.fewest_rows:
            return f"{n.sum()} labelled rows, at least {rule.fewest_rows} needed"
        if (n > 0).sum() < _FEWEST_BUCKETS:
            return "its rows are of too few units"
        return ""


def steps_of(residuals: FloatArray) -> IntArray:
    """Residuals in whole steps."""
    return np.rint(residuals * STEPS).clip(-FARTHEST, FARTHEST).astype(np.int64)


Columns = Mapping[str, tuple[Cells, Residuals, Residuals]]


def relation_drift(states: Mapping[Slice, Columns], rule: RelationRule) -> list[Shift]:
    """Per slice and column its cell with the clearest change of the mean residual; `reason` names cells that moved.

    `states` hold the cells and the residuals of reference and current. A column without a cell to test is
    inconclusive.
    """
    tested = [
        (where, column, name, each)
        for where, columns in states.items()
        for column, (cells, reference, current) in columns.items()
        for name, each in _of_cells(where, column, cells, reference, current, rule)
    ]
    verdicts = judged([each for *_, each in tested], rule.q)
    by_column: dict[tuple[Slice, str], list[tuple[str, Shift]]] = {}
    for (where, column, name, _), each in zip(tested, verdicts, strict=True):
        by_column.setdefault((where, column), []).append((name, each))
    return [_of_column(cells) for cells in by_column.values()]


def _of_cells(
    where: Slice, column: str, cells: Cells, reference: Residuals, current: Residuals, rule: RelationRule
) -> Iterator[tuple[str, Shift]]:
    for at, name in enumerate(cells.names):
        why_not = current.too_few(at, rule) or reference.too_few(at, rule)
        yield (
            name,
            shift(
                measure=MEASURE,
                column=column,
                where=where,
                reference=reference.mean(at),
                current=current.mean(at),
                threshold=rule.floor,
                fewest_units=rule.fewest_units,
                why_not=why_not,
            ),
        )


def _of_column(cells: list[tuple[str, Shift]]) -> Shift:
    """The cell with the smallest q-value, for the column; of those that breach if any does."""
    breached = [(name, each) for name, each in cells if each.verdict is Verdict.BREACH]
    tested = breached or [(name, each) for name, each in cells if not isnan(each.qvalue)]
    if not tested:
        return max(cells, key=lambda cell: cell[1].n_current)[1]._replace(reason="no cell has enough labelled rows")
    name, clearest = min(tested, key=lambda cell: cell[1].qvalue)
    others = f", and {len(breached) - 1} more cells" if len(breached) > 1 else ""
    return clearest._replace(reason=f"label - score where {name}: {clearest.reason}{others}")
