"""Measures of a slice against numbers computed from the rows, and the rules of the gate."""

from dataclasses import fields
from math import inf, isnan, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mltrust.replay import compare
from mltrust.replay.compare import (
    LABELLED,
    MEASURES,
    PAIRED,
    REPRODUCED,
    SCORED,
    TIMED,
    TRIALS,
    TRIED,
    Estimate,
    Evidence,
    Grid,
    Scale,
    mcnemar,
    spearman,
    ulps,
)
from mltrust.replay.gate import EXTRA, extra, findings, judged, known_measures
from mltrust.replay.spec import Gate, Rule
from mltrust.slices import OVERALL, Slice
from mltrust.states.moments import Moments
from mltrust.verdicts import Verdict

ALL = Slice(*OVERALL)
K = 50


def evidence(
    champion: np.ndarray,
    candidate: np.ndarray,
    labels: np.ndarray,
    *,
    units: np.ndarray | None = None,
    floor: float = 0.0,
    decided: bool = True,
) -> Evidence:
    """The evidence of rows, with decisions at 0.5 and the top tenth by the champion's own quantile."""
    n, own = len(champion), np.arange(len(champion)) if units is None else units
    one = np.ones(n)
    yes = champion >= 0.5, candidate >= 0.5
    top = champion >= np.quantile(champion, 0.9), candidate >= np.quantile(candidate, 0.9)
    difference, right = candidate - champion, (yes[0] == labels, yes[1] == labels)

    def of(columns: tuple[str, ...], *values: np.ndarray) -> Moments:
        sums = [np.bincount(own, each.astype(float)) for each in values]
        return Moments.of(columns, np.column_stack(sums)[np.bincount(own) > 0])

    cells = [
        np.searchsorted(np.quantile(each, np.arange(1, K) / K), each, side="right") for each in (champion, candidate)
    ]

    def grid(values: np.ndarray) -> np.ndarray:
        return np.bincount(cells[0] * K + cells[1], values, K * K).reshape(K, K)

    return Evidence(
        n_rows=n,
        one_row_each=units is None,
        max_difference=float(abs(difference).max()),
        paired=of(
            PAIRED, one, decided * one, abs(difference) <= floor, difference, abs(difference),
            ~yes[0] & yes[1], yes[0] & ~yes[1], champion, candidate, top[0], top[1],
            top[0] & top[1],
        ),
        labelled=of(LABELLED, one, decided * one, right[1] & ~right[0], right[0] & ~right[1],
                    (champion - labels) ** 2, (candidate - labels) ** 2),
        scored=of(SCORED, one, 0 * one, 0 * one),
        timed=of(TIMED, one, 0.01 * one, 0.02 * one),
        reproduced=of(REPRODUCED, one, one, one),
        grid=Grid(grid(one), grid(champion), grid(candidate), grid(one), grid(labels)),
        tried={("candidate", "jitter(age)"): of(TRIED, one, one, decided * one, one, abs(difference),
                                                     yes[0] != yes[1], 0 * one, 0 * one)},
        scale=Scale(float(champion.std(ddof=1)), float(candidate.std(ddof=1)), floor),
    )  # fmt: skip


def drawn(n: int = 3000, noise: float = 0.05) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    champion = rng.random(n)
    candidate = np.clip(champion + rng.normal(0, noise, n), 0, 1)
    return champion, candidate, (rng.random(n) < champion).astype(float)


def value(name: str, own: Evidence, role: compare.Role = "pair") -> float:
    return MEASURES[name].of(own, role).value


def test_measures_are_those_of_the_rows() -> None:
    champion, candidate, labels = drawn()
    own = evidence(champion, candidate, labels)
    flipped = (champion >= 0.5) != (candidate >= 0.5)
    right = (candidate >= 0.5) == labels
    for name, expected in {
        "churn": flipped.mean(),
        "wins": (flipped & right).mean(),
        "losses": (flipped & ~right).mean(),
        "win_balance": (flipped & right).mean() - (flipped & ~right).mean(),
        "score_shift": (candidate - champion).mean(),
        "mean_difference": abs(candidate - champion).mean(),
        "max_difference": abs(candidate - champion).max(),
        "squared_error_change": ((candidate - labels) ** 2 - (champion - labels) ** 2).mean(),
        "latency_ratio": 2.0,
        "reproduced": 1.0,
    }.items():
        assert value(name, own) == pytest.approx(expected, rel=1e-9), name
    # 50 cells hold the ranks to 1 %; scipy has all of them.
    assert value("rank_correlation", own) == pytest.approx(stats.spearmanr(champion, candidate)[0], abs=2e-3)


def test_the_standard_error_over_units_is_that_of_the_paired_test() -> None:
    champion, candidate, labels = drawn()
    found = MEASURES["score_shift"].of(evidence(champion, candidate, labels), "pair")
    known = stats.ttest_1samp(candidate - champion, 0)
    assert (found.std_error, found.pvalue) == (
        pytest.approx(stats.sem(candidate - champion), rel=1e-9),
        pytest.approx(known.pvalue, rel=1e-9),
    )


def test_rows_of_one_unit_are_one_observation() -> None:
    champion, candidate, labels = drawn(400)
    once = MEASURES["churn"].of(evidence(champion, candidate, labels), "pair")
    tenfold = evidence(
        *(np.repeat(each, 10) for each in (champion, candidate, labels)), units=np.repeat(np.arange(400), 10)
    )
    again = MEASURES["churn"].of(tenfold, "pair")
    assert again.n_units == 400
    assert again.value == pytest.approx(once.value, rel=1e-12)
    assert again.std_error == pytest.approx(once.std_error, rel=1e-9)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("noise", [0.0, 0.05, 0.8])
def test_every_measure_keeps_its_bounds_and_is_nan_of_nothing(name: str, noise: float) -> None:
    each = MEASURES[name]
    for role in each.roles:
        found = each.of(evidence(*drawn(noise=noise)), role).value
        assert each.low <= found <= each.high
        assert isnan(each.of(EMPTY, role).value)


@pytest.mark.parametrize("name", TRIALS)
def test_every_measure_of_perturbations_keeps_its_bounds_and_is_nan_of_nothing(name: str) -> None:
    each = TRIALS[name]
    [state] = evidence(*drawn()).tried.values()
    assert each.low <= each.of(state, 0.3).value <= each.high
    assert isnan(each.of(Moments.empty(TRIED), 0.3).value)


EMPTY = Evidence(
    0, False, nan, Moments.empty(PAIRED), Moments.empty(LABELLED), Moments.empty(SCORED), Moments.empty(TIMED),
    Moments.empty(REPRODUCED), Grid.empty(K), {}, Scale(nan, nan, nan),
)  # fmt: skip


def test_the_same_model_agrees_with_itself_everywhere() -> None:
    champion, _, labels = drawn()
    own = evidence(champion, champion, labels)
    found = {
        name: value(name, own) for name in ("agreement", "top_overlap", "rank_correlation", "churn", "win_balance")
    }
    assert found.pop("rank_correlation") == pytest.approx(1, rel=1e-12)
    assert found == {"agreement": 1, "top_overlap": 1, "churn": 0, "win_balance": 0}
    assert isnan(MEASURES["win_balance"].of(own, "pair").pvalue)


def test_without_a_threshold_nothing_is_said_of_decisions_and_all_else_is() -> None:
    found = findings({ALL: evidence(*drawn(), decided=False)})
    names = {each.measure for each in found}
    assert not names & {"churn", "flip_balance", "win_balance", "wins", "losses", "perturbed_flips"}
    assert {"score_shift", "squared_error_change", "rank_correlation", "instability"} <= names
    verdict = judged(found, rule(max=0.1))
    assert (verdict.verdict, "expected threshold in the conf" in verdict.reasons[0]) == (Verdict.INCONCLUSIVE, True)


def test_a_calibrated_score_has_a_small_calibration_error_and_a_distorted_one_a_large_one() -> None:
    champion, _, labels = drawn(20_000)
    own = evidence(champion, champion**2, labels)
    # The mean of |x² - x| for uniform x is 1/6; ten groups of 2,000 err by some 0.01.
    assert value("calibration_error", own, "champion") < 0.015
    assert value("calibration_error", own, "candidate") == pytest.approx(1 / 6, abs=0.015)
    assert value("calibration_shift", own) == pytest.approx(1 / 6, abs=0.005)


def test_mcnemars_exact_test_gives_known_numbers() -> None:
    # 2 * P(X <= 1 | 6, 1/2) = 14/64; Siegel and Castellan's table by hand: 2 * P(X <= 4 | 18) = 0.03088.
    assert mcnemar(1, 5) == pytest.approx(14 / 64, rel=1e-12)
    assert mcnemar(4, 14) == pytest.approx(0.030883789, rel=1e-6)
    assert isnan(mcnemar(0, 0))


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=5, max_size=60))
def test_spearman_of_cells_is_scipys_of_rows_with_ties(rows: list[tuple[int, int]]) -> None:
    weight = np.zeros((7, 7))
    for a, b in rows:
        weight[a, b] += 1
    a, b = np.array(rows).T
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert isnan(spearman(weight))
    else:
        assert spearman(weight) == pytest.approx(stats.spearmanr(a, b)[0], abs=1e-12)


def test_grids_add_up() -> None:
    grid = evidence(*drawn()).grid
    twice = grid + grid
    assert all((getattr(twice, each.name) == 2 * getattr(grid, each.name)).all() for each in fields(Grid))


def test_ulps_count_the_numbers_between() -> None:
    one = np.array([1.0, 1.0, -1.0, 0.0, np.nan, 5e-324, -5e-324])
    other = np.array([np.nextafter(1, 2), 1.0, np.nextafter(-1, 0), -0.0, 1.0, -5e-324, 0.0])
    assert ulps(one, other).tolist() == [1, 0, 1, 0, -1, 2, 1]
    assert ulps([-1.7e308], np.array([1.7e308])).tolist() == [2**63 - 1]


def test_a_float32_score_is_compared_as_float32() -> None:
    score = np.array([0.1, 0.7], dtype=np.float32)
    assert ulps(score.astype(np.float64), score).tolist() == [0, 0]
    assert ulps([0.1, 0.7], score).tolist() == [0, 0]
    assert ulps(np.nextafter(score, np.float32(1)), score).tolist() == [1, 1]


# The gate.


def rule(measure: str = "churn", **limits: object) -> Gate:
    return Gate((Rule(measure, **limits),))  # type: ignore[arg-type]


def test_within_the_limit_passes_beyond_it_breaches_and_what_is_not_shown_is_neither() -> None:
    own = findings({ALL: evidence(*drawn())})
    [churn] = [each.value for each in own if each.measure == "churn"]
    for limit, verdict in ((churn + 0.01, "pass"), (churn / 2, "breach"), (churn - 1e-4, "inconclusive")):
        found = judged(own, rule(max=limit))
        assert str(found.verdict) == verdict
        [mine] = [each for each in found.findings if each.decides and each.measure == "churn"]
        assert (mine.threshold, mine.overall) == (limit, True)
        assert bool(found.reasons) == (verdict != "pass")


def test_a_breach_in_one_slice_blocks_and_is_named_and_a_small_slice_does_not_hold_anything_up() -> None:
    champion, candidate, labels = drawn()
    wild = np.clip(champion + np.random.default_rng(2).normal(0, 0.6, len(champion)), 0, 1)
    slices = {
        ALL: evidence(champion, candidate, labels),
        Slice("device", "tablet"): evidence(champion, wild, labels),
        Slice("device", "tv"): evidence(champion[:20], wild[:20], labels[:20]),
    }
    found = judged(findings(slices), rule(max=0.1, slices=True))
    assert found.verdict is Verdict.BREACH
    [reason] = found.reasons
    assert reason.startswith("churn in device:tablet: 0.")
    assert "expected at most 0.1" in reason
    by = {each.slice_value: each for each in found.findings if each.measure == "churn"}
    assert (by["tv"].verdict, by["tv"].decides) == (Verdict.INCONCLUSIVE, False)
    assert "20 units, expected 100 or more" in by["tv"].reason
    assert judged(findings(slices), rule(max=0.1)).verdict is Verdict.PASS


def test_what_was_not_measured_is_inconclusive_with_its_reason() -> None:
    own = findings({ALL: evidence(*drawn())._replace(labelled=Moments.empty(LABELLED), tried={})})
    for name, why in (
        ("win_balance", "label"),
        ("instability", "no perturbation was tried"),
        ("value_ipw", "nothing"),
    ):
        found = judged(own, rule(name, min=0.0))
        assert found.verdict is Verdict.INCONCLUSIVE
        assert why in found.reasons[0]


def test_an_undefined_value_is_inconclusive_and_keeps_its_reason() -> None:
    refused = extra("value_ipw", "candidate", 10, Estimate(nan, nan, 10), "effective sample size 3")
    found = judged([refused], rule("value_ipw", min=0.0))
    assert (found.verdict, found.reasons) == (
        Verdict.INCONCLUSIVE,
        ["value_ipw of the candidate: effective sample size 3"],
    )


def test_a_number_that_is_no_estimate_breaches_without_a_test() -> None:
    own = evidence(*drawn())
    state = Moments.of(REPRODUCED, np.column_stack([np.ones(1000), np.arange(1000) > 0, np.arange(1000) > 0]))
    found = judged(findings({ALL: own._replace(reproduced=state)}), rule("reproduced", min=1.0))
    assert found.verdict is Verdict.BREACH
    assert found.reasons == ["reproduced of the champion: 0.999, expected at least 1"]


def test_limits_are_on_the_candidate_where_both_models_have_the_measure() -> None:
    own = evidence(*drawn())
    columns = np.column_stack([np.ones(1000), np.ones(1000), np.zeros(1000)])
    found = judged(findings({ALL: own._replace(scored=Moments.of(SCORED, columns))}), rule("errors", max=0.0))
    assert found.verdict is Verdict.PASS
    assert {each.role for each in found.findings if each.measure == "errors" and each.decides} == {"candidate"}


def test_many_comparisons_are_corrected_over_slices() -> None:
    """A slice that is beyond by chance alone, one of forty, is not shown to be."""
    champion, candidate, labels = drawn(400)
    base = evidence(champion, candidate, labels)
    churn = MEASURES["churn"].of(base, "pair")
    limit = churn.value - 2 * churn.std_error  # p about 0.02 by itself
    quiet = evidence(champion, champion, labels)
    slices = {ALL: quiet} | {Slice("k", str(at)): quiet for at in range(40)} | {Slice("k", "x"): base}
    found = judged(findings(slices), rule(max=limit, slices=True))
    [own] = [each for each in found.findings if each.slice_value == "x" and each.measure == "churn"]
    assert own.pvalue < 0.05 < own.qvalue
    assert (own.n_family, own.verdict, found.verdict) == (42, Verdict.INCONCLUSIVE, Verdict.PASS)


@pytest.mark.parametrize("shift", [0.2, -0.2, 0.0])
def test_two_rules_make_a_band_and_neither_undoes_the_other(shift: float) -> None:
    champion = drawn()[0]
    own = findings({ALL: evidence(champion, champion + shift, np.ones(len(champion)))})
    rules = Rule("score_shift", max=0.01), Rule("score_shift", min=-0.01)
    for order in (rules, rules[::-1]):
        assert judged(own, Gate(order)).verdict is (Verdict.BREACH if shift else Verdict.PASS)


def test_a_looser_rule_for_slices_does_not_undo_the_one_on_everything() -> None:
    own = findings({ALL: evidence(*drawn())})
    [churn] = [each.value for each in own if each.measure == "churn"]
    gate = Gate((Rule("churn", max=churn / 2), Rule("churn", max=2 * churn, slices=True)))
    found = judged(own, gate)
    assert found.verdict is Verdict.BREACH
    [reason] = found.reasons
    assert f"expected at most {churn / 2:g}" in reason


@pytest.mark.parametrize("measure", ["churn", "calibration_shift", "rank_correlation"])
def test_one_unit_is_too_few_for_an_estimate_on_either_side_of_the_limit(measure: str) -> None:
    one = evidence(*(each[:3] for each in drawn()), units=np.zeros(3, dtype=int))
    own = [each for each in findings({ALL: evidence(*drawn()), Slice("k", "one"): one}) if each.slice_key]
    for limit in (-2.0, 2.0):
        found = judged(own, rule(measure, max=limit, slices=True))
        of_slice = [each.verdict for each in found.findings if each.measure == measure and each.slice_key]
        assert set(of_slice) <= {Verdict.INCONCLUSIVE}
        assert found.verdict is Verdict.INCONCLUSIVE


def test_a_gate_that_says_nothing_of_errors_admits_none() -> None:
    own = evidence(*drawn())
    failed = Moments.of(SCORED, np.column_stack([np.ones(1000), np.zeros(1000), np.arange(1000) < 900]))
    broken = findings({ALL: own._replace(scored=failed)})
    found = judged(broken, rule(max=1.0))
    assert (found.verdict, found.reasons) == (
        Verdict.BREACH,
        ["errors of the candidate: 0.9, expected at most 0"],
    )
    assert judged(broken, Gate((Rule("churn", max=1.0), Rule("errors", max=0.95)))).verdict is Verdict.PASS


def test_a_model_that_raises_under_a_perturbation_is_not_stable_under_it() -> None:
    own, n = evidence(*drawn()), 1000
    raises = np.arange(n) < 400
    columns = [np.ones(n), ~raises, ~raises, np.ones(n), 0.5 * ~raises, ~raises, raises, raises]
    state = Moments.of(TRIED, np.column_stack([each.astype(float) for each in columns]))
    found = findings({ALL: own._replace(tried={("candidate", "missing(x)"): state})})
    value_of = {each.measure: each.value for each in found if each.perturbation}
    assert value_of["instability"] == pytest.approx(0.5 / own.scale.candidate_sd)
    assert value_of["perturbed_flips"] == 1.0
    assert value_of["perturbed_errors"] == value_of["broken_promises"] == 0.4
    gate = judged(found, rule("instability", max=100.0))
    assert gate.verdict is Verdict.BREACH
    assert gate.reasons[0].startswith("perturbed_errors of the candidate under missing(x): 0.4")


def test_a_perturbation_that_applied_to_no_row_passes_nothing() -> None:
    own = evidence(*drawn())
    tried = {**own.tried, ("candidate", "stale(price)"): Moments.empty(TRIED)}
    found = judged(findings({ALL: own._replace(tried=tried)}), rule("instability", max=100.0))
    assert (found.verdict, found.reasons) == (
        Verdict.INCONCLUSIVE,
        [
            f"{name} of the candidate under stale(price): the perturbation applied to no row"
            for name in ("instability", "perturbed_errors")
        ],
    )


def test_a_model_of_one_score_ranks_everything_top_and_has_little_of_the_other_s() -> None:
    champion, _, labels = drawn()
    assert value("top_overlap", evidence(champion, np.full(len(champion), 0.3), labels)) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rule("churn"), "expected min or max"),
        (lambda: Rule("churn", min=0, max=1), "expected min or max"),
        (lambda: Rule("churn", max=inf), "limit is inf, expected a number"),
        (lambda: Rule("churn", max=0.1, alpha=0), r"alpha is 0, expected a share in \(0, 1\)"),
        (lambda: Gate(()), "rules is empty: a gate without rules would pass everything"),
    ],
)
def test_nonsense_is_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()


def test_every_measure_has_one_name_and_words() -> None:
    names = known_measures()
    assert len(set(names)) == len(names)
    assert all(each.words for each in (*MEASURES.values(), *TRIALS.values()))
    assert all(EXTRA.values())
