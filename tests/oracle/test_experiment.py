"""Statistics of experiments against values that were published or computed by others."""

import json
from functools import partial
from math import inf
from pathlib import Path

import numpy as np
import pytest

from mltrust.experiment.readout import readout
from mltrust.metrics import Metric
from mltrust.slices import Slicing
from mltrust.states.moments import Moments, merge
from mltrust.stats.means import Arm, Comparison, fieller, mean_arm, welch
from mltrust.stats.multiplicity import benjamini_hochberg, holm
from mltrust.stats.post_stratification import post_stratified
from mltrust.stats.ratios import ratio_arm
from mltrust.stats.simpson import pooled_gap
from mltrust.stats.srm import srm
from tests.unit.drawn import START, experiment, states

# Other programs sum in another order; entries with fewer digits bring half the last one as absolute tolerance. The
# default absolute tolerance of 1e-12 would accept any tiny p-value.
close = partial(pytest.approx, rel=1e-9, abs=0)
Z = 1.959963984540054
ORACLES = json.loads(Path(__file__).with_name("experiment.json").read_text())


def entry(key: str, name: str) -> dict:
    (found,) = (each for each in ORACLES[key] if each["id"] == name)
    return found


def entries(key: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("oracle", ORACLES[key], ids=lambda each: each["id"])


def arm(n: int, total: float, squares: float) -> Arm:
    return Arm(n, total / n, (squares - total * total / n) / (n - 1))


def share(successes: int, n: int) -> Arm:
    p = successes / n
    return Arm(n, p, p * (1 - p))


def slices(oracle: dict) -> list[tuple[Arm, Arm]]:
    pairs = zip(oracle["control"], oracle["treatment"], strict=True)
    return [(share(*control), share(*treatment)) for control, treatment in pairs]


def test_every_entry_names_its_source() -> None:
    for key, found in ORACLES.items():
        assert key.startswith("_") or all(each["src"] for each in found)


@entries("srm_fixed")
def test_srm_is_the_published_one(oracle: dict) -> None:
    result = srm(oracle["obs"], oracle["w"])
    assert result.pvalue == close(oracle["p"], rel=oracle.get("tol", 1e-9))
    if "chi2" in oracle:
        assert result.statistic == close(oracle["chi2"])


def test_welch_is_that_of_growthbook() -> None:
    oracle = entry("mean", "gb_ttest")
    result = welch(control=arm(*oracle["a"].values()), treatment=arm(*oracle["b"].values()))
    expected = oracle["abs"]
    assert (result.effect, result.std_error, result.pvalue) == close((expected["est"], expected["se"], expected["p"]))
    assert (result.ci_low, result.ci_high) == close(expected["ci"])
    assert result.rel_effect == close(oracle["rel_effect"])


def test_the_relative_interval_agrees_with_the_test_where_the_linear_one_of_growthbook_does_not() -> None:
    oracle = entry("mean", "gb_ttest")
    result = welch(control=arm(*oracle["a"].values()), treatment=arm(*oracle["b"].values()))
    assert result.pvalue < 0.05 < oracle["rel_linear_p"]
    assert result.rel_ci_low > 0


def test_fieller_is_the_published_formula() -> None:
    oracle = entry("mean", "gb_ttest")
    control, treatment = (arm(*oracle[each].values()) for each in "ab")
    low, high, g = fieller(
        effect=treatment.mean - control.mean,
        effect_variance=control.mean_variance + treatment.mean_variance,
        mean=control.mean,
        mean_variance=control.mean_variance,
        critical=Z,
    )
    assert (low, high) == close(oracle["rel_fieller"]["ci"])
    assert g == close(oracle["rel_fieller"]["g"])


def test_welch_is_that_of_r() -> None:
    oracle = entry("mean", "R_sleep_welch")
    x, y = (mean_arm(Moments.of(("y",), [[value] for value in oracle[each]]), "y") for each in "xy")
    result = welch(control=y, treatment=x)
    assert (result.statistic, result.df, result.pvalue) == close((oracle["t"], oracle["df"], oracle["p"]))
    assert (result.ci_low, result.ci_high) == close(oracle["ci"])


COLUMNS = ("sessions", "orders", "revenue")


def moments(sums: dict) -> Moments:
    n, total = sums["n"], np.array([sums["sum"][column] for column in COLUMNS])
    products = sums["sumprod"]
    raw = [[products.get(f"{a}*{b}", products.get(f"{b}*{a}")) for b in COLUMNS] for a in COLUMNS]
    return Moments(COLUMNS, n, total / n, np.array(raw) - np.outer(total, total) / n)


def assert_is_tea_tasting(result: Comparison, expected: dict) -> None:
    assert (result.effect, result.rel_effect, result.pvalue) == close(
        (expected["eff"], expected["rel"], expected["p"])
    )
    if "ci" in expected:
        assert (result.ci_low, result.ci_high) == close(expected["ci"])


def test_means_and_ratios_are_those_of_the_guide_of_tea_tasting() -> None:
    oracle = entry("tea_user_guide", "tea_user_guide")
    control, treatment = (moments(oracle["arms"][each]) for each in "01")
    revenue = welch(control=mean_arm(control, "revenue"), treatment=mean_arm(treatment, "revenue"))
    assert_is_tea_tasting(revenue, oracle["revenue"])
    ratio = welch(
        control=ratio_arm(control, "orders", "sessions"), treatment=ratio_arm(treatment, "orders", "sessions")
    )
    assert_is_tea_tasting(ratio, oracle["orders_per_session"])


@pytest.mark.parametrize(("fixed_weights", "key"), [(False, "se_superpop"), (True, "se_fixed_weights")])
def test_post_stratification_is_that_of_growthbook(fixed_weights: bool, key: str) -> None:
    oracle = entry("post_strat", "gb_post_strat")
    pairs = [(arm(*a), arm(*b)) for a, b in zip(oracle["cells_a"], oracle["cells_b"], strict=True)]
    result = post_stratified(pairs, fixed_weights=fixed_weights)
    assert result.effect == close(oracle["abs"]["est"])
    assert result.std_error == close(oracle["abs"][key])
    assert result.rel_effect == close(oracle["rel"]["est"])


def test_the_relative_interval_of_post_stratification_has_the_delta_methods_width_of_growthbook() -> None:
    oracle = entry("post_strat", "gb_post_strat")
    pairs = [(arm(*a), arm(*b)) for a, b in zip(oracle["cells_a"], oracle["cells_b"], strict=True)]
    # Fieller's half width over its critical value c tends to the delta method's standard error as c goes to 0,
    # here c = 0.00125, with an error of the order of c² times the squared coefficient of variation, 1e-10.
    result = post_stratified(pairs, alpha=0.999, df=inf)
    critical = (result.ci_high - result.effect) / result.std_error
    std_error = (result.rel_ci_high - result.rel_ci_low) / 2 / critical
    assert std_error == close(oracle["rel"]["se"])


def test_the_arms_without_their_slices_compare_as_in_growthbook() -> None:
    oracle = entry("post_strat", "gb_post_strat")
    cells = ([moments_of_cell(*cell) for cell in oracle[each]] for each in ("cells_a", "cells_b"))
    control, treatment = (mean_arm(merge(each, ("y",)), "y") for each in cells)
    result = welch(control=control, treatment=treatment)
    expected = oracle["unadjusted_abs"]
    assert (result.effect, result.std_error) == close((expected["est"], expected["se"]))


def moments_of_cell(n: int, total: float, squares: float) -> Moments:
    return Moments(("y",), n, np.array([total / n]), np.array([[squares - total * total / n]]))


@entries("simpson")
def test_simpsons_tables_have_their_effects_gaps_and_names(oracle: dict) -> None:
    gap = pooled_gap(slices(oracle))
    tolerance = oracle["tol_abs"]
    assert gap.pooled == close(oracle["pooled"])
    assert gap.post_stratified == close(oracle["post_stratified"], abs=tolerance.get("post_stratified", 0))
    assert gap.gap == close(gap.pooled - gap.post_stratified)
    assert gap.statistic == pytest.approx(oracle["gap_z"], rel=0, abs=tolerance["gap_z"])
    assert gap.mix_pvalue < 1e-40
    assert gap.kind == oracle["kind"]


@entries("simpson")
def test_simpsons_tables_have_their_post_stratified_effects(oracle: dict) -> None:
    tolerance = oracle["tol_abs"]
    for key, fixed_weights in (("se_fixed", True), ("se_superpopulation", False)):
        result = post_stratified(slices(oracle), df=inf, fixed_weights=fixed_weights)
        if key in oracle:
            assert result.std_error == close(oracle[key], abs=tolerance.get(key, 0))
        if fixed_weights and "p_fixed" in oracle:
            assert result.pvalue == close(oracle["p_fixed"])


@entries("simpson")
def test_only_the_sample_ratio_of_the_slices_finds_what_is_wrong(oracle: dict) -> None:
    pairs = slices(oracle)
    if "slice_srm_p" in oracle:
        pvalues = [srm([c.n, t.n], [1, 1]).pvalue for c, t in pairs]
        assert pvalues == close(oracle["slice_srm_p"])
    if "overall_srm_p" in oracle:
        overall = srm([sum(c.n for c, _ in pairs), sum(t.n for _, t in pairs)], [1, 1])
        assert overall.pvalue == oracle["overall_srm_p"]


@entries("simpson")
def test_the_readout_of_simpsons_tables_names_them_behind_the_mismatch_of_their_slices(oracle: dict) -> None:
    spec = experiment(
        Metric("share", "proportion", "success", role="goal"), slices=Slicing({"slice": "features.slice"})
    )
    cells = [
        (arm, where, successes, n)
        for arm, name in (("c", "control"), ("t", "treatment"))
        for where, (successes, n) in zip(oracle["slices"], oracle[name], strict=True)
    ]
    units = {
        "variant": np.concatenate([np.full(n, arm) for arm, _, _, n in cells]),
        "slice": np.concatenate([np.full(n, where) for _, where, _, n in cells]),
        "success": np.concatenate([np.arange(n) < successes for *_, successes, n in cells]).astype(float),
    }
    found = readout(states(spec, units), spec, START.replace(day=26))
    assert found.recommendation == "invalid"
    [row] = [row for row in found.checks if row.check == "simpson"]
    assert (row.method, row.decides) == (oracle["kind"], oracle["kind"] == "reversal")
    mismatches = {row.slice_value: row for row in found.checks if row.check == "srm" and row.method == "chi-square"}
    if "slice_srm_p" in oracle:
        assert [mismatches[where].pvalue for where in oracle["slices"]] == close(oracle["slice_srm_p"])
    if "overall_srm_p" in oracle:
        assert mismatches[""].pvalue == oracle["overall_srm_p"]
        assert found.reasons[0].startswith("srm in slice:")


@entries("multiplicity")
def test_adjusted_pvalues_reject_as_published(oracle: dict) -> None:
    adjusted = benjamini_hochberg(oracle["p"])
    first = oracle["bh_adj_first9"]
    assert adjusted[: len(first)] == pytest.approx(tuple(first), rel=0, abs=oracle["tol_abs"])
    rejections = {"bh": adjusted, "holm": holm(oracle["p"])}
    assert {name: sum(p <= 0.05 for p in family) for name, family in rejections.items()} == oracle["rejects_at_0.05"]


@entries("numerics")
def test_a_large_offset_leaves_the_variance_where_sums_of_squares_lose_it(oracle: dict) -> None:
    values = [[value + oracle["offset"]] for value in oracle["x"]]
    parts = merge((Moments.of(("y",), [value]) for value in values), ("y",))
    for state in (Moments.of(("y",), values), parts):
        assert state.var("y") == close(oracle["variance"])
