"""Relation drift on residuals by cell: what it finds, what it leaves to other measures."""

import numpy as np
import pytest
from scipy import special

from mltrust.drift.cells import Cells, OrderedCells, UnorderedCells
from mltrust.drift.relation import STEPS, RelationRule, Residuals, relation_drift
from mltrust.drift.shifts import Shift
from mltrust.slices import Slice
from mltrust.states.moments import FloatArray
from mltrust.verdicts import Verdict
from tests.unit.drift_states import hashes

OVERALL = Slice("", "")
RULE = RelationRule()
CELLS = OrderedCells.of(np.random.default_rng(0).normal(size=5_000))


def drawn(n: int, seed: int, *, effect: float = 0.5) -> tuple[FloatArray, FloatArray]:
    """A feature, and label - score where the model takes the feature's effect to be 0.5."""
    rng = np.random.default_rng(seed)
    x, other = rng.normal(size=(2, n))
    label = rng.random(n) < special.expit(other + effect * x)
    return x, label - special.expit(other + 0.5 * x)


def state(n: int, seed: int, *, effect: float = 0.5) -> Residuals:
    return Residuals.of(CELLS, *drawn(n, seed, effect=effect), hashes(n, seed))


def drift(reference: Residuals, current: Residuals, cells: Cells = CELLS, rule: RelationRule = RULE) -> Shift:
    [found] = relation_drift({OVERALL: {"x": (cells, reference, current)}}, rule)
    return found


def test_cells_hold_the_means_of_their_rows() -> None:
    x, residual = drawn(2_000, 1)
    found, index = Residuals.of(CELLS, x, residual, hashes(2_000)), CELLS.index(x)
    for cell in range(CELLS.n_ordinary):
        assert found.mean(cell).value == pytest.approx(residual[index == cell].mean(), abs=1 / STEPS)
    assert np.isnan(found.mean(CELLS.n_ordinary).value)


def test_states_add_up_whatever_the_order() -> None:
    x, residual = drawn(3_000, 2)
    units = hashes(3_000)
    whole = Residuals.of(CELLS, x, residual, units)
    parts = [Residuals.of(CELLS, x[at::3], residual[at::3], units[at::3]) for at in (2, 0, 1)]
    total = sum(parts, Residuals.empty(CELLS))
    assert total.counts.tolist() == whole.counts.tolist()
    assert total.totals.tolist() == whole.totals.tolist()


def test_a_flipped_effect_is_found_and_says_where() -> None:
    found = drift(state(20_000, 3), state(5_000, 4, effect=-0.5))
    assert found.verdict is Verdict.BREACH
    assert found.n_family == CELLS.n_ordinary
    assert found.reason.startswith("label - score where ")
    assert "more cells" in found.reason


def test_other_inputs_with_the_same_relation_are_no_relation_drift() -> None:
    x, residual = drawn(20_000, 5)
    high = x > 0.5
    moved = Residuals.of(CELLS, x[high], residual[high], hashes(20_000, 5)[high])
    assert drift(state(20_000, 6), moved).verdict is Verdict.PASS


def test_a_change_below_the_floor_is_no_breach_however_certain() -> None:
    """The same rows, moved by 0.015 and a little noise: to 0.0007 in every cell."""
    x, residual = drawn(20_000, 7)
    noise = np.random.default_rng(70).normal(0.015, 0.03, len(x))
    moved = Residuals.of(CELLS, x, residual + noise, hashes(20_000, 7))
    found = drift(state(20_000, 7), moved)
    assert found.qvalue < 1e-9
    assert found.verdict is Verdict.PASS


def test_rows_of_a_few_units_are_not_tested() -> None:
    x, residual = drawn(5_000, 9)
    sticky = Residuals.of(CELLS, x, residual, hashes(5_000, 9)[np.arange(5_000) % 110])
    one_unit = Residuals.of(CELLS, x, residual, hashes(5_000, 9)[np.arange(5_000) % 20])
    assert drift(state(5_000, 10), sticky).verdict is Verdict.PASS
    found = drift(state(5_000, 10), one_unit)
    assert (found.verdict, found.reason) == (Verdict.INCONCLUSIVE, "no cell has enough labelled rows")


def test_a_window_without_rows_is_inconclusive() -> None:
    assert drift(state(5_000, 11), Residuals.empty(CELLS)).verdict is Verdict.INCONCLUSIVE
    assert drift(Residuals.empty(CELLS), state(5_000, 11)).verdict is Verdict.INCONCLUSIVE


def test_categories_have_cells_too() -> None:
    rng = np.random.default_rng(12)
    texts = rng.choice(["a", "b"], 4_000).tolist()
    cells, residual = UnorderedCells.of(texts), rng.normal(0, 0.3, 4_000)
    before = Residuals.of(cells, texts, residual, hashes(4_000, 12))
    after = Residuals.of(cells, texts, residual + 0.1 * (np.array(texts) == "b"), hashes(4_000, 13))
    found = drift(before, after, cells)
    assert found.verdict is Verdict.BREACH
    assert found.reason.startswith("label - score where b: ")


def test_residuals_of_other_cells_are_not_added() -> None:
    with pytest.raises(ValueError, match="cannot add residuals"):
        Residuals.empty(CELLS) + Residuals.empty(UnorderedCells(("a",)))
    with pytest.raises(ValueError, match="rows and sums"):
        Residuals(np.zeros((3, 2), dtype=np.int64), np.zeros((3, 2), dtype=np.int64), 0)


@pytest.mark.parametrize(("field", "value"), [("q", 0.0), ("floor", -1.0), ("fewest_rows", 10), ("fewest_units", 10)])
def test_a_rule_refuses_nonsense(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        RelationRule(**{field: value})


@pytest.mark.slow
def test_clean_windows_seldom_breach() -> None:
    """150 windows of 2,000 rows in 10 cells, q = 0.05 without floor: at most the 99.9 % quantile."""
    rule = RelationRule(q=0.05, floor=0)
    breached = sum(
        drift(state(6_000, 100 + at), state(2_000, 1_000 + at), rule=rule).verdict is Verdict.BREACH
        for at in range(150)
    )
    assert breached <= 17
