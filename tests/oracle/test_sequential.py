"""Sequential tests against values that were published or computed by others."""

from math import exp, sqrt

import numpy as np
import pytest
from scipy import stats

from mltrust.stats.sequential import (
    Look,
    PhaseLooks,
    Spending,
    always_valid,
    always_valid_pvalue,
    best_rho,
    crossing_probabilities,
    log_bayes_factor,
    log_e_value,
    sequential_srm,
    spending_bounds,
)
from tests.oracle.test_experiment import Z, arm, close, entry

FIVE_LOOKS = (0.2, 0.4, 0.6, 0.8, 1.0)


def test_the_marginal_likelihoods_of_single_units_are_those_of_ssrm() -> None:
    oracle = entry("srm_sequential", "ssrm_unit")
    counts = np.cumsum(oracle["data"], axis=0)
    expected = np.array(oracle["log_m1"]) - oracle["log_m0"]
    assert log_bayes_factor(counts, shares=oracle["p0"], prior=oracle["alpha"]) == close(expected)


def test_bayes_factor_pvalue_and_posterior_are_those_of_ssrm() -> None:
    oracle = entry("srm_sequential", "ssrm_regression")
    counts = np.cumsum(oracle["data"], axis=0).tolist()
    last = sequential_srm([PhaseLooks(oracle["p0"], counts)], concentration=oracle["concentration"])[-1]
    factor = exp(last.log_bayes_factor)
    assert (factor, last.pvalue, factor / (1 + factor)) == close((oracle["bf"], oracle["p"], oracle["post"]))


def test_the_interval_is_the_normal_mixture_of_confseq() -> None:
    oracle = entry("sequential_mean", "confseq_best_rho")
    tolerance, v = oracle["tol"], oracle["v_opt"]
    rho = best_rho(alpha=oracle["alpha"], horizon=v)
    # Its rho has the unit of the variance v, here that of v units of variance 1.
    assert 1 / rho**2 == pytest.approx(oracle["rho"], rel=0, abs=tolerance)
    look = Look(effect=10 / v, std_error=1 / sqrt(v), n=v)
    bound = v * always_valid(look, alpha=oracle["alpha"], rho=rho).half_width
    assert bound == pytest.approx(oracle["bound_v100"], rel=0, abs=tolerance)
    evidence = always_valid(look, alpha=oracle["alpha"], rho=rho).log_e_value
    assert evidence == pytest.approx(oracle["logmix_s10_v100"], rel=0, abs=tolerance)


def test_rho_is_that_of_growthbook() -> None:
    oracle = entry("sequential_mean", "gb_rho")
    assert best_rho(alpha=oracle["alpha"], horizon=oracle["Nstar"]) == close(oracle["rho"])


def test_the_interval_of_a_relative_effect_is_that_of_growthbook() -> None:
    oracle = entry("sequential_mean", "gb_seq")
    control, treatment = (arm(*oracle[each].values()) for each in "ab")
    effect = treatment.mean / control.mean - 1
    assert effect == close(oracle["rel"])
    look = Look(effect=effect, std_error=oracle["se"], n=control.n + treatment.n)
    result = always_valid(look, alpha=0.05, rho=best_rho(alpha=0.05, horizon=oracle["Nstar"]))
    assert (result.ci_low, result.ci_high, result.pvalue) == close((*oracle["ci"], oracle["p"]))


def test_the_e_value_is_the_mixture_likelihood_ratio_of_johari() -> None:
    oracle = entry("sequential_mean", "msprt")
    n, s2, tau2 = (oracle[each] for each in ("n_per_arm", "s2", "tau2"))
    # Its effects are drawn from N(0, tau²); ours from N(0, n·std_error²·rho²), over the units of both arms.
    std_error, units = sqrt(2 * s2 / n), 2 * n
    evidence = log_e_value(oracle["d"] / std_error, units, rho=sqrt(tau2 / units) / std_error)
    assert exp(evidence) == close(oracle["Lambda"])
    assert always_valid_pvalue([evidence])[0] == close(oracle["p"])


def naive_peeking(oracle: dict) -> dict[int, float]:
    return dict(zip(oracle["looks"], oracle["fpr"], strict=True))


def test_naive_peeking_errs_as_often_as_published() -> None:
    oracle = entry("sequential_mean", "armitage_peek")
    for n, rate in naive_peeking(oracle).items():
        chances = crossing_probabilities([Z] * n, [(look + 1) / n for look in range(n)])
        # Published with three decimals.
        assert sum(chances) == pytest.approx(rate, rel=0, abs=0.0005)


@pytest.mark.slow
def test_simulated_peeking_errs_as_often_as_published_and_always_valid_pvalues_do_not() -> None:
    oracle = entry("sequential_mean", "armitage_peek")
    runs, looks = 200_000, max(oracle["looks"])
    n = 1000.0 * np.arange(1, looks + 1)
    z = np.random.default_rng(1).standard_normal((runs, looks)).cumsum(axis=1) / np.sqrt(np.arange(1, looks + 1))
    rejected = np.logical_or.accumulate(np.abs(z) > Z, axis=1).mean(axis=0)
    for look, rate in naive_peeking(oracle).items():
        # The largest standard error of 200,000 runs is 0.001.
        assert rejected[look - 1] == pytest.approx(rate, rel=0, abs=oracle["tol_abs"])
    evidence = log_e_value(z, n, rho=best_rho(alpha=0.05, horizon=n[-1]))
    assert (always_valid_pvalue(evidence)[:, -1] <= 0.05).mean() < 0.05


@pytest.mark.parametrize(
    ("name", "key", "tolerance", "spending"),
    [
        ("lan_demets_obf_5", "bounds", "tol", "obrien_fleming"),
        ("lan_demets_pocock5", "z", "tol_abs", "pocock"),
    ],
)
def test_bounds_are_those_of_lan_and_demets(name: str, key: str, tolerance: str, spending: Spending) -> None:
    oracle = entry("sequential_mean", name)
    bounds = spending_bounds(FIVE_LOOKS, alpha=0.05, spending=spending)
    assert bounds == pytest.approx(tuple(oracle[key]), rel=0, abs=oracle[tolerance])


@pytest.mark.parametrize("information", [(0.3, 1.0), (0.1, 0.45, 1.2)])
def test_the_bounds_leave_out_alpha_of_the_multivariate_normal_law_of_the_looks(information: tuple) -> None:
    bounds = np.array(spending_bounds(information, alpha=0.05))
    correlation = [[sqrt(min(s, t) / max(s, t)) for s in information] for t in information]
    law = stats.multivariate_normal(cov=correlation, seed=1)
    # scipy integrates to an absolute 1e-5 by default.
    assert law.cdf(bounds, lower_limit=-bounds) == pytest.approx(0.95, rel=0, abs=1e-5)
