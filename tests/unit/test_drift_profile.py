from math import nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mltrust.drift.cells import OrderedCells, UnorderedCells
from mltrust.drift.profile import N_BUCKETS, Profile, bucket_of, pooled

CELLS = OrderedCells.of(np.arange(50))
VALUES = st.one_of(st.floats(-100, 100), st.just(nan))
ROWS = st.lists(st.tuples(VALUES, st.integers(-(2**63), 2**63 - 1)), max_size=40)


def profile(rows: list[tuple[float, int]]) -> Profile:
    return Profile.of(CELLS, [value for value, _ in rows], np.array([unit for _, unit in rows], dtype=np.int64))


def same(a: Profile, b: Profile) -> bool:
    pairs = ((a.counts, b.counts), (a.units, b.units), (a.location, b.location))
    return a.n_units == b.n_units and all(np.array_equal(*pair) for pair in pairs)


@given(ROWS, st.randoms(use_true_random=False), st.integers(0, 40))
def test_parts_of_the_units_in_any_order_add_up_to_the_whole_bit_for_bit(
    rows: list[tuple[float, int]], random: object, cut: int
) -> None:
    units = sorted({unit for _, unit in rows})
    random.shuffle(rows)  # type: ignore[attr-defined]
    first = set(units[:cut])
    parts = [[row for row in rows if (row[1] in first) == here] for here in (True, False)]
    assert same(profile(parts[0]) + profile(parts[1]), profile(rows))


@given(ROWS)
def test_no_rows_change_nothing(rows: list[tuple[float, int]]) -> None:
    assert same(Profile.empty(CELLS) + profile(rows), profile(rows))


def test_rows_and_units_are_counted_apart() -> None:
    found = profile([(1, 7), (1, 7), (1, 8), (nan, 7), (99, 8)])
    names = dict(zip(CELLS.names, zip(found.by_cell.tolist(), found.units.tolist(), strict=True), strict=True))
    assert names["[0, 4.9]"] == (3, 2)
    assert (names["missing"], names["above 49"]) == ((1, 1), (1, 1))
    assert (found.n_rows, found.n_units, found.is_clustered) == (5, 2, True)


def test_locations_are_those_of_the_rows_with_a_value() -> None:
    n, steps, squares = profile([(1, 64), (3, 64), (nan, 0), (99, 1)]).located(CELLS.n_ordinary)
    q = CELLS.located([1, 3, 99])[0]
    assert n[:2].tolist() == [2, 1]
    assert steps[:2].tolist() == [q[0] + q[1], q[2]]
    assert squares[:2] == [int(q[0] ** 2 + q[1] ** 2), int(q[2] ** 2)]


def test_without_units_every_row_is_one() -> None:
    found = Profile.of(UnorderedCells.of("ab"), ["a", "a", None, "c"])
    assert (found.n_units, found.is_clustered, found.by_cell.tolist()) == (4, False, [2, 0, 1, 1])
    assert found.location.shape == (0, N_BUCKETS)


def test_buckets_of_negative_hashes_are_those_of_their_bits() -> None:
    assert bucket_of(np.array([-1, 63, 64], dtype=np.int64)).tolist() == [63, 63, 0]


def test_units_of_pooled_windows_are_as_many_as_in_the_largest_where_they_may_recur() -> None:
    windows = [profile([(1, 7)]), profile([(1, 7), (2, 9)])]
    assert [pooled(windows, recurring=each).n_units for each in (False, True)] == [3, 2]
    assert [pooled(windows, recurring=each).n_rows for each in (False, True)] == [3, 3]
    assert [pooled(windows, recurring=each).is_clustered for each in (False, True)] == [False, True]


def test_profiles_of_other_cells_cannot_be_added() -> None:
    with pytest.raises(ValueError, match="cannot add profiles of 13 and 4 cells"):
        Profile.empty(CELLS) + Profile.empty(UnorderedCells.of("ab"))
    with pytest.raises(ValueError, match="int64"):
        Profile(np.zeros((2, 64)), np.zeros(2), 0, np.zeros((0, 64)))
    with pytest.raises(ValueError, match="as many hashes"):
        Profile.of(CELLS, [1, 2], np.array([1]))
