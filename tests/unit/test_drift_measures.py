"""The claims of every registered measure, on counts of any two samples on the same cells."""

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mltrust.drift import measures
from mltrust.drift.cells import Cells, OrderedCells, UnorderedCells
from mltrust.drift.measures import MEASURES, Measure

ORDERED, UNORDERED = OrderedCells.of(range(100), n_cells=5), UnorderedCells.of("abcdef")
COUNTS = (
    st.lists(st.integers(0, 1000), min_size=8, max_size=8).filter(any).map(lambda each: np.array(each, dtype=float))
)
EACH = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)


def cells_for(measure: Measure) -> Cells:
    return ORDERED if measure.ordered_only else UNORDERED


@EACH
@given(a=COUNTS, b=COUNTS)
def test_values_keep_to_their_bounds_and_do_not_know_which_side_is_which(
    measure: Measure, a: np.ndarray, b: np.ndarray
) -> None:
    cells = cells_for(measure)
    value = measure.value(a, b, cells)
    assert 0 <= value <= measure.high * (1 + 1e-12)
    assert measure.value(b, a, cells) == pytest.approx(value, rel=1e-9, abs=1e-12)
    contributions = measure.contributions(a, b, cells)
    assert (contributions >= 0).all()
    assert value == pytest.approx(getattr(contributions, measure.total)())


@EACH
@given(a=COUNTS, times=st.integers(1, 50))
def test_the_same_shares_are_no_drift(measure: Measure, a: np.ndarray, times: int) -> None:
    # Shares of a/n and (times·a)/(times·n) differ by rounding: divergences by its square, the others by its size.
    assert measure.value(a, times * a, cells_for(measure)) == pytest.approx(0, abs=1e-9)


@EACH
def test_nothing_to_compare_is_undefined(measure: Measure) -> None:
    a, none = np.ones(8), np.zeros(8)
    assert np.isnan(measure.value(a, none, cells_for(measure)))
    assert np.isnan(measure.noise(none, a, cells_for(measure)))
    assert np.isnan(measure.value(a, a, UNORDERED)) == measure.ordered_only


@EACH
@pytest.mark.parametrize("sizes", [(300, 300), (400, 5000)])
def test_noise_is_the_mean_without_drift(measure: Measure, sizes: tuple[int, int]) -> None:
    rng, shares = np.random.default_rng(4), np.array([4, 3, 3, 2, 2, 1, 0, 0]) / 15
    cells = cells_for(measure)
    draws = [[rng.multinomial(n, shares).astype(float) for n in sizes] for _ in range(600)]
    seen = np.mean([measure.value(a, b, cells) for a, b in draws])
    noise = np.mean([measure.noise(a, b, cells) for a, b in draws])
    # On five cells the mean of Kolmogorov's law is that of an upper bound; elsewhere 600 draws leave 3 % of chance,
    # and the normal law of the largest of dependent differences 3 % more.
    assert seen == pytest.approx(noise, rel=0.07) or (measure.name == "ks" and seen < noise < 1.5 * seen)


def test_disjoint_samples_are_as_far_apart_as_can_be() -> None:
    a, b = np.array([3, 0, 5, 0, 0, 0, 0, 0.0]), np.array([0, 9, 0, 1, 0, 0, 0, 0.0])
    at_most = {name: each.value(a, b, cells_for(each)) for name, each in MEASURES.items() if each.high < inf}
    assert at_most == pytest.approx({"jsd": 1, "total_variation": 1, "l_infinity": 0.9, "ks": 0.525})


def test_an_empty_cell_has_half_a_row_added_to_both_counts_of_the_index() -> None:
    a, b = np.array([10.0, 0]), np.array([10.0, 5])
    assert measures.empty_on_one_side(a, b).tolist() == [0, 1]
    p, q = np.array([10, 0.5]) / 10.5, np.array([10, 5.5]) / 15.5
    assert MEASURES["psi"].value(a, b, UNORDERED) == pytest.approx(float(((q - p) * np.log(q / p)).sum()))


def test_what_is_missing_has_no_place_in_an_order() -> None:
    a, b = np.zeros(8), np.zeros(8)
    a[0], b[0], b[ORDERED.n_ordinary] = 10, 10, 90
    assert MEASURES["ks"].value(a, b, ORDERED) == MEASURES["wasserstein"].value(a, b, ORDERED) == 0
    assert MEASURES["total_variation"].value(a, b, ORDERED) == pytest.approx(0.9)


def test_a_measure_is_registered_once() -> None:
    with pytest.raises(ValueError, match="'jsd' is registered twice"):
        measures.measure("jsd", expected=lambda a, b, cells: 0.0)(measures.jsd)
