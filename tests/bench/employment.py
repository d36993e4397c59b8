"""The employment data as arrays: windows of rows, faults in them, and the profiles of every column and slice."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mltrust.drift.alarm import Alarm, Key
from mltrust.drift.cells import Cells, OrderedCells, UnorderedCells, n_cells
from mltrust.drift.profile import N_BUCKETS, Profile
from mltrust.states.moments import FloatArray

IntArray = NDArray[np.int64]

SCORE = "predicted_probability"
NUMBERS = ("AGEP", SCORE)
CATEGORIES = (
    *("SCHL", "MAR", "RELP", "DIS", "ESP", "CIT", "MIG", "MIL", "ANC"),
    *("NATIVITY", "DEAR", "DEYE", "DREM", "SEX", "RAC1P"),
)
COLUMNS = (*NUMBERS, *CATEGORIES)
SLICED_BY = ("SEX", "RAC1P")
YEARS = (2015, 2016, 2017, 2018)
UNSEEN_CODE = "99"
MIN_ROWS = Alarm().min_rows


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows of all columns: numbers with nan for missing, categories as codes of `names` with -1 for missing.

    `sex` and `race` are codes of the slices, which stay what they were when a column has a fault.
    """

    numbers: Mapping[str, FloatArray]
    codes: Mapping[str, NDArray[np.int16]]
    names: Mapping[str, tuple[str, ...]]
    sex: IntArray
    race: IntArray
    year: IntArray
    ids: IntArray

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, at: IntArray) -> "Rows":
        return replace(
            self,
            numbers={name: values[at] for name, values in self.numbers.items()},
            codes={name: values[at] for name, values in self.codes.items()},
            **{name: getattr(self, name)[at] for name in ("sex", "race", "year", "ids")},
        )

    def only(self, numbers: tuple[str, ...]) -> "Rows":
        """The rows with these numbers and no categories but the slices."""
        return replace(self, numbers={name: self.numbers[name] for name in numbers}, codes={})


def load(data: Path) -> Rows:
    """All rows of 2015 to 2018, in the order of the files."""
    tables = [pq.read_table(data / "employment_ma" / f"{part}.parquet") for part in ("reference", "analysis")]
    columns = {name: np.concatenate([_plain(table[name]) for table in tables]) for name in (*COLUMNS, "year", "id")}
    names = {name: (*np.unique(columns[name]).tolist(), UNSEEN_CODE) for name in CATEGORIES}
    codes = {name: np.searchsorted(np.array(names[name][:-1]), columns[name]).astype(np.int16) for name in CATEGORIES}
    return Rows(
        {name: columns[name].astype(np.float64) for name in NUMBERS},
        codes,
        names,
        codes["SEX"].astype(np.int64),
        codes["RAC1P"].astype(np.int64),
        columns["year"],
        columns["id"],
    )


def _plain(column: pa.ChunkedArray) -> NDArray[np.generic]:
    if pa.types.is_dictionary(column.type):
        column = column.cast(pa.string())
    values: NDArray[np.generic] = column.to_numpy()
    return values.astype(str) if values.dtype == object else values


def cells_of(reference: Rows) -> dict[str, Cells]:
    """The cells of every column, from the reference alone."""
    found: dict[str, Cells] = {name: OrderedCells.of(reference.numbers[name]) for name in NUMBERS}
    for name in CATEGORIES:
        names, codes = reference.names[name], reference.codes[name]
        counts = np.bincount(codes[codes >= 0], minlength=len(names)).tolist()
        found[name] = UnorderedCells.of_counts({value: n for value, n in zip(names, counts, strict=True) if n})
    return found


def profiles_of(rows: Rows, cells: Mapping[str, Cells], columns: tuple[str, ...] = COLUMNS) -> dict[Key, Profile]:
    """The profiles of every column, overall, by SEX and by RAC1P, where there are enough rows to say anything."""
    n_sex, n_race = (len(rows.names[name]) - 1 for name in SLICED_BY)
    finest = rows.race * n_sex + rows.sex
    sizes = np.bincount(finest, minlength=n_race * n_sex).reshape(n_race, n_sex)
    slices: list[tuple[tuple[str, str], tuple[int | slice, int | slice]]] = [(("", ""), (slice(None), slice(None)))]
    slices += [(("SEX", rows.names["SEX"][at]), (slice(None), at)) for at in range(n_sex)]
    slices += [(("RAC1P", rows.names["RAC1P"][at]), (at, slice(None))) for at in range(n_race)]
    slices = [(name, at) for name, at in slices if sizes[at].sum() >= MIN_ROWS]
    found: dict[Key, Profile] = {}
    for column in columns:
        own = cells[column]
        counts = np.bincount(finest * n_cells(own) + _index(rows, own, column), minlength=sizes.size * n_cells(own))
        counts = counts.reshape(n_race, n_sex, -1)
        parts = own.located(rows.numbers[column]) if isinstance(own, OrderedCells) else ()
        # Sums stay far below 2^53, so that floats hold them exactly.
        sums = [np.bincount(finest, part, minlength=sizes.size).reshape(n_race, n_sex) for part in parts]
        for name, at in slices:
            found[Key(column, *name)] = _profile(
                counts[at].reshape(-1, n_cells(own)).sum(axis=0), [int(each[at].sum()) for each in sums]
            )
    return found


def _index(rows: Rows, cells: Cells, column: str) -> IntArray:
    if isinstance(cells, OrderedCells):
        return cells.index(rows.numbers[column])
    # The last of the table is for -1, a missing value.
    return cells.index([*rows.names[column], None])[rows.codes[column]]


def _profile(counts: IntArray, location: list[int]) -> Profile:
    """Every row is a unit: which bucket it is in changes nothing, and all are in the first."""
    by_bucket = np.zeros((len(counts), N_BUCKETS), dtype=np.int64)
    by_bucket[:, 0] = counts
    located = np.zeros((len(location), N_BUCKETS), dtype=np.int64)
    located[:, 0] = location
    return Profile(by_bucket, counts.astype(np.int64), int(counts.sum()), located)


Fault = Callable[[Rows, np.random.Generator], Rows]


def _nulls(rows: Rows, rng: np.random.Generator) -> Rows:
    return _number(rows, np.where(rng.random(len(rows)) < 0.1, np.nan, rows.numbers["AGEP"]))


def _unseen(rows: Rows, rng: np.random.Generator) -> Rows:
    new = len(rows.names["RELP"]) - 1
    return _category(rows, "RELP", np.where(rng.random(len(rows)) < 0.02, new, rows.codes["RELP"]))


def _recoded(rows: Rows, rng: np.random.Generator) -> Rows:
    before, after = (rows.names["SCHL"].index(value) for value in ("21", "16"))
    codes = rows.codes["SCHL"]
    return _category(rows, "SCHL", np.where((codes == before) & (rng.random(len(rows)) < 0.5), after, codes))


def _shifted_and_capped(rows: Rows, _: np.random.Generator) -> Rows:
    return _number(rows, np.minimum(rows.numbers["AGEP"] + 3, 94))


def _shifted(rows: Rows, _: np.random.Generator) -> Rows:
    return _number(rows, rows.numbers["AGEP"] + 3)


def _shifted_with_outlier(rows: Rows, rng: np.random.Generator) -> Rows:
    shifted = rows.numbers["AGEP"] + 3
    shifted[rng.integers(len(shifted))] = 1e6
    return _number(rows, shifted)


def _number(rows: Rows, values: FloatArray) -> Rows:
    return replace(rows, numbers={**rows.numbers, "AGEP": values})


def _category(rows: Rows, column: str, codes: NDArray[np.int16]) -> Rows:
    return replace(rows, codes={**rows.codes, column: codes})


class Planted(NamedTuple):
    column: str
    put: Fault
    found_from: int


#: Faults, the column that has each, and the window from which on it must be found.
FAULTS: dict[str, Planted] = {
    "10 % nulls": Planted("AGEP", _nulls, 500),
    "unseen code, 2 %": Planted("RELP", _unseen, 500),
    "half of SCHL 21 recoded 16": Planted("SCHL", _recoded, 1000),
    "min(AGEP + 3, 94)": Planted("AGEP", _shifted_and_capped, 5000),
    "AGEP + 3": Planted("AGEP", _shifted, 5000),
    "AGEP + 3 and one 10^6": Planted("AGEP", _shifted_with_outlier, 5000),
}


def halves(rows: Rows, size: int, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """A random half of the rows as reference, and `size` rows of the other half as window."""
    order = rng.permutation(len(rows))
    half = len(rows) // 2
    # In the order of the file rows are read from memory several times faster.
    return rows.take(np.sort(order[:half])), rows.take(order[half : half + size])
