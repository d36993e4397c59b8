"""Inputs changed on purpose: what changes, what does not, and that chance belongs to the row."""

import numpy as np
import pytest
from scipy import stats

from mltrust.contract import FeatureType
from mltrust.replay.perturb import UNSEEN, Context, Spread, perturbed, uniforms, violations
from mltrust.replay.spec import ADMITTED, PROMISES, Kind, Perturbation

N = 4000
TYPES: dict[str, FeatureType] = {"device": "string", "age": "long", "price": "double", "new": "boolean"}
RNG = np.random.default_rng(1)
COLUMNS = {
    "device": RNG.choice(np.array(["mobile", "tablet", None], dtype=object), N),
    "age": RNG.integers(16, 90, N).astype(np.float64),
    "price": np.where(RNG.random(N) < 0.1, np.nan, RNG.lognormal(3, 0.5, N)),
    "new": RNG.choice(np.array([True, False], dtype=object), N),
}
DONORS = {name: values[:100][::-1] for name, values in COLUMNS.items()}
CONTEXT = Context(TYPES, {"age": Spread(20.0, 16.0, 89.0), "price": Spread(12.0, 3.0, 90.0)}, DONORS)
DRAWS = RNG.integers(0, 2**64, N, dtype=np.uint64)
PREVIOUS = {name: np.roll(values, 1) for name, values in COLUMNS.items()} | {"has_previous": np.arange(N) % 2 == 0}


def of(kind: Kind, *features: str) -> Perturbation:
    return Perturbation(kind, features, factor=100.0 if kind == "unit_change" else None)


EVERY = [of(kind, name) for kind, types in ADMITTED.items() for name, type_ in TYPES.items() if type_ in types]


@pytest.mark.parametrize("each", EVERY, ids=lambda each: each.name)
def test_a_row_is_changed_alike_in_whatever_batch_it_comes(each: Perturbation) -> None:
    whole = perturbed(each, COLUMNS, CONTEXT, DRAWS, PREVIOUS)
    order = np.random.default_rng(2).permutation(N)[:70]
    part = perturbed(
        each,
        {name: values[order] for name, values in COLUMNS.items()},
        CONTEXT,
        DRAWS[order],
        {name: values[order] for name, values in PREVIOUS.items()},
    )
    np.testing.assert_array_equal(part.applies, whole.applies[order])
    for name, values in whole.columns.items():
        assert part.columns[name].tolist() == pytest.approx(values[order].tolist(), abs=0, nan_ok=True)


@pytest.mark.parametrize("each", EVERY, ids=lambda each: each.name)
def test_only_the_named_features_change_and_whole_numbers_stay_whole(each: Perturbation) -> None:
    found = perturbed(each, COLUMNS, CONTEXT, DRAWS, PREVIOUS).columns
    assert tuple(found) == each.features
    if each.features == ("age",) and each.kind != "missing":
        assert (found["age"] % 1 == 0).all()


def test_jitter_is_normal_noise_of_the_stated_share_of_the_spread() -> None:
    found = perturbed(Perturbation("jitter", ("price",), scale=0.5), COLUMNS, CONTEXT, DRAWS, PREVIOUS).columns[
        "price"
    ]
    there = ~np.isnan(COLUMNS["price"])
    assert (np.isnan(found) == ~there).all()
    noise = (found - COLUMNS["price"])[there] / (0.5 * 12)
    # A right sample has a smaller p-value once in a thousand; the seed is fixed.
    assert stats.kstest(noise, "norm").pvalue > 1e-3


def test_a_group_moves_together_and_is_swapped_from_one_row() -> None:
    moved = perturbed(of("jitter", "price", "age"), COLUMNS, CONTEXT, DRAWS, PREVIOUS).columns
    there = ~np.isnan(COLUMNS["price"])
    steps = ((moved["price"] - COLUMNS["price"]) / 12)[there], ((moved["age"] - COLUMNS["age"]) / 20)[there]
    assert np.corrcoef(*steps)[0, 1] > 0.95  # ages are rounded
    swapped = perturbed(of("swap", "device", "age"), COLUMNS, CONTEXT, DRAWS, PREVIOUS).columns
    donors = set(zip(DONORS["device"], DONORS["age"], strict=True))
    assert set(zip(swapped["device"], swapped["age"], strict=True)) <= donors


def test_kinds_do_what_their_names_say() -> None:
    def one(kind: Kind, name: str) -> np.ndarray:
        return perturbed(of(kind, name), COLUMNS, CONTEXT, DRAWS, PREVIOUS).columns[name]

    assert set(one("unseen", "device")) == {UNSEEN}
    assert np.isnan(one("missing", "age")).all()
    assert set(one("missing", "device")) == {None}
    assert set(one("out_of_range", "age")) == {109.0}
    assert set(one("out_of_range", "price")) == {102.0}
    np.testing.assert_allclose(one("unit_change", "price"), COLUMNS["price"] * 100, rtol=1e-12)
    assert set(one("increasing", "age") - COLUMNS["age"]) == {5.0}


def test_stale_values_apply_where_there_is_a_request_before() -> None:
    found = perturbed(of("stale", "age"), COLUMNS, CONTEXT, DRAWS, PREVIOUS)
    assert found.applies.tolist() == PREVIOUS["has_previous"].tolist()
    assert found.columns["age"].tolist() == np.roll(COLUMNS["age"], 1).tolist()


def test_uniforms_are_uniform_and_independent_between_purposes() -> None:
    sequential = np.arange(20_000, dtype=np.uint64)  # the worst hash there is
    a, b = uniforms(sequential, "a"), uniforms(sequential, "b")
    # Right ones have smaller p-values once in a thousand; correlations have the standard error 1 / sqrt(n).
    assert stats.kstest(a, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(20_000)
    assert abs(np.corrcoef(a[1:], a[:-1])[0, 1]) < 4 / np.sqrt(20_000)
    assert (a == uniforms(sequential, "a")).all()


def test_promises_are_broken_beyond_the_tolerance_only() -> None:
    before, after = np.array([0.5, 0.5, 0.5, np.nan]), np.array([0.6, 0.4, 0.5001, 0.3])
    broken = {kind: violations(of(kind, "age"), before, after, 0.001).tolist() for kind in PROMISES}
    assert broken == {
        "invariant": [True, True, False, False],
        "increasing": [False, True, False, False],
        "decreasing": [True, False, False, False],
    }


def test_without_features_a_kind_is_tried_on_every_one_it_is_for() -> None:
    names = [each.name for each in Perturbation("jitter").expanded(TYPES)]
    assert names == ["jitter(age)", "jitter(price)"]
    assert [each.name for each in Perturbation("unseen").expanded(TYPES)] == ["unseen(device)"]
    assert [each.name for each in of("swap", "age", "price").expanded(TYPES)] == ["swap(age+price)"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Perturbation("missing", ("age",), scale=1), "scale is for jitter"),
        (lambda: Perturbation("jitter", ("age",), scale=0), "scale is 0, expected a number of standard deviations"),
        (lambda: Perturbation("unit_change", ("age",)), "factor is None, expected a number with unit_change"),
        (lambda: Perturbation("swap", ("age", "age")), "age, age repeats one"),
        (lambda: Perturbation("invariant"), "invariant: expected the features that it is promised of"),
    ],
)
def test_nonsense_is_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()
