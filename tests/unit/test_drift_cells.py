import json
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mltrust.drift.cells import Cells, OrderedCells, UnorderedCells, from_plain, n_cells

NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60)
VALUES = st.one_of(st.floats(-2e6, 2e6), st.sampled_from([nan, inf, -inf]))
AGES = OrderedCells.of(np.arange(95))


@given(NUMBERS, st.lists(VALUES, max_size=30), st.integers(2, 12))
def test_a_value_is_in_the_cell_whose_limits_hold_it(reference: list[float], values: list[float], k: int) -> None:
    cells = OrderedCells.of(reference, n_cells=k)
    lows = (-inf, *cells.edges[:-1])
    for value, at in zip(values, cells.index(values).tolist(), strict=True):
        if np.isnan(value):
            assert cells.names[at] == "missing"
        elif value < cells.minimum or value > cells.maximum:
            assert cells.structural[at - cells.n_ordinary] == ("below" if value < cells.minimum else "above")
        else:
            assert lows[at] < value <= cells.edges[at]


@given(NUMBERS)
def test_the_reference_itself_is_never_outside(reference: list[float]) -> None:
    cells = OrderedCells.of(reference)
    assert cells.index(reference).max() < cells.n_ordinary


@given(NUMBERS, st.lists(st.sampled_from("abcde"), min_size=1), st.integers(1, 6))
def test_cells_survive_json_and_keep_their_version(numbers: list[float], categories: list[str], kept: int) -> None:
    for cells in (OrderedCells.of(numbers), UnorderedCells.of(categories, kept)):
        again = from_plain(json.loads(json.dumps(cells.to_plain())))
        assert again == cells
        assert again.version == cells.version


def test_other_cells_have_another_version() -> None:
    versions = {OrderedCells.of(range(50)).version, OrderedCells.of(range(51)).version, AGES.version}
    assert len(versions) == 3


def test_cells_hold_equal_shares_of_the_reference() -> None:
    cells = OrderedCells.of(np.arange(1, 101))
    assert np.bincount(cells.index(np.arange(1, 101))).tolist() == [10] * 10
    assert cells.names[0] == "[1, 10.9]"


def test_few_different_values_have_a_cell_each() -> None:
    cells = OrderedCells.of([0, 0, 0, 3, 7])
    assert cells.names == ("0", "3", "7", "missing", "below 0", "above 7")
    assert cells.index([0, 3, 7, nan, -1, 8]).tolist() == list(range(6))
    assert cells == OrderedCells.of_values({0: 3, 3: 1, 7: 1})


def test_the_value_that_most_rows_have_gets_a_cell_of_its_own() -> None:
    spends = np.concatenate([np.zeros(900), np.arange(1, 101) / 7])
    cells = OrderedCells.of(spends)
    assert cells.names[0] == "0"
    assert np.bincount(cells.index(spends))[0] == 900


def test_names_tell_edges_apart() -> None:
    cells = OrderedCells.of([1.0000001, 1.0000002])
    assert len(set(cells.names)) == n_cells(cells)
    assert cells.names[-1] == "above 1.0000002"


def test_a_thousand_quantiles_give_the_cells_of_the_sample() -> None:
    sample = np.random.default_rng(1).gamma(2, size=100_000)
    exact = OrderedCells.of(sample)
    cells = OrderedCells.of_quantiles(np.quantile(sample, np.linspace(0, 1, 1001)).tolist())
    assert cells.edges == pytest.approx(exact.edges, rel=1e-12)
    assert (cells.minimum, cells.low, cells.high) == pytest.approx((exact.minimum, exact.low, exact.high))
    # A frame, not an estimate: 1,000 means of neighbours stand for the sample.
    assert (cells.center, cells.scale) == pytest.approx((exact.center, exact.scale), rel=0.02)


def test_an_outlier_of_the_reference_does_not_set_the_scale() -> None:
    ages = np.arange(1000) % 95
    assert OrderedCells.of([*ages, 1e6]).scale == pytest.approx(OrderedCells.of(ages).scale, rel=0.2)


@given(st.lists(VALUES, max_size=30))
def test_locations_are_integers_whose_squares_are_exact(values: list[float]) -> None:
    q, high, low = AGES.located(values).tolist()
    assert [each * each for each in q] == [(a << 20) + b for a, b in zip(high, low, strict=True)]
    for value, each in zip(values, q, strict=True):
        expected = 0 if np.isnan(value) else (min(max(value, 0), 94) - AGES.center) / AGES.scale
        assert each / 4096 == pytest.approx(expected, abs=0.5 / 4096)


def test_a_column_that_does_not_vary_has_no_spread() -> None:
    cells = OrderedCells.of([3, 3, nan])
    assert (cells.names, cells.scale) == (("3", "missing", "below 3", "above 3"), 1.0)
    assert cells.located([2, 3, 1e9, nan]).tolist() == [[0] * 4] * 3


def test_distances_between_cells_go_over_the_middles_of_intervals() -> None:
    cells = OrderedCells(0, (2, 6), low=0, high=6, center=3, scale=1)
    assert cells.widths.tolist() == [1, 3, 2]


def test_categories_beyond_the_most_frequent_are_counted_together() -> None:
    cells = UnorderedCells.of([*"aaabbc", None], max_values=2)
    assert cells.names == ("a", "b", "missing", "(other)")
    assert cells.index(["b", None, "c", "never seen"]).tolist() == [1, 2, 3, 3]


def test_a_category_that_the_reference_lacks_is_unseen_where_all_are_listed() -> None:
    cells = UnorderedCells.of([*"aaabbc", None])
    assert cells.names == ("a", "b", "c", "missing", "unseen")
    assert cells.index(["d"]).tolist() == [4]
    assert (cells.n_singletons, cells.n_rows) == (1, 6)


def test_the_most_frequent_values_of_a_long_list_say_that_there_are_more() -> None:
    counts = {"a": 50, "b": 20}
    assert UnorderedCells.of_counts(counts, n_rows=70, n_singletons=0).complete
    assert not UnorderedCells.of_counts(counts, n_rows=90, n_singletons=20).complete


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OrderedCells.of([nan, inf]), "without a finite value"),
        (lambda: OrderedCells.of([1, 2], n_cells=1), "2 cells or more"),
        (lambda: OrderedCells(0, (2, 2), 0, 2, 1, 1), "without duplicates"),
        (lambda: OrderedCells(3, (2,), 3, 2, 2, 1), "ascend from the minimum"),
        (lambda: OrderedCells(0, (2,), 0, 3, 1, 1), "low <= center"),
        (lambda: OrderedCells(0, (2,), 0, 2, 1, 0), "scale is 0"),
        (lambda: OrderedCells.of_quantiles([1, 0]), "ascending"),
        (lambda: OrderedCells.of_values({}), "finite values"),
        (lambda: UnorderedCells(("a", "a")), "distinct"),
    ],
)
def test_cells_that_are_none_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("cells", [AGES, UnorderedCells.of("ab")])
def test_structural_cells_come_last(cells: Cells) -> None:
    assert n_cells(cells) == len(cells.names) == cells.n_ordinary + len(cells.structural)
