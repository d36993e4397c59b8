"""Posteriors of effects against values that other programs give."""

from math import nan

import pytest

from mltrust.stats.bayes import JEFFREYS, Beta, beta_binomial, normal_normal, share_posterior
from mltrust.stats.means import Arm
from tests.oracle.test_experiment import close, entry


def share(successes: int, n: int) -> Arm:
    return Arm(n, successes / n, nan)


def test_chance_and_losses_of_a_relative_effect_are_those_of_growthbook() -> None:
    oracle = entry("bayes", "gb_binom")
    result = normal_normal(effect=oracle["rel"], std_error=oracle["se"], increase_is_good=True)
    assert result.chance_to_beat == close(oracle["ctw"])
    assert (result.loss_control, result.loss_treatment) == close(oracle["risk"])


def test_shares_are_those_of_spotify_confidence() -> None:
    oracle = entry("bayes", "beta_binom_exact")
    control, treatment = share(*oracle["control"]), share(*oracle["test"])
    assert Beta(oracle["jeffreys_prior"], oracle["jeffreys_prior"]) == JEFFREYS
    result = beta_binomial(control=control, treatment=treatment, increase_is_good=True)
    assert result.chance_to_beat == close(oracle["P"])
    assert result.effect == close(oracle["mean_diff"])
    # Half of the last digit given.
    assert share_posterior(control).interval() == pytest.approx(tuple(oracle["ci_control"]), rel=0, abs=5e-9)
