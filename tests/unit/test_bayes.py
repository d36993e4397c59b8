from itertools import pairwise
from math import inf, isnan, nan, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats

from mltrust.stats.bayes import Beta, Normal, Posterior, beta_binomial, normal_normal, share_posterior
from mltrust.stats.means import Arm, proportion, welch

UNIFORM = Beta(1, 1)


def share(successes: int, n: int) -> Arm:
    return Arm(n, successes / n, nan)


COUNTS = st.integers(1, 100_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
EFFECTS = st.floats(-100, 100)
ERRORS = st.floats(0.01, 100)


@given(EFFECTS, ERRORS, st.booleans())
def test_a_flat_prior_gives_the_one_sided_p_value_and_the_interval(
    effect: float, std_error: float, increase_is_good: bool
) -> None:
    result = normal_normal(effect=effect, std_error=std_error, increase_is_good=increase_is_good, alpha=0.1)
    law = stats.norm(effect, std_error)
    assert (result.effect, result.sd) == pytest.approx((effect, std_error), rel=1e-12)
    assert result.chance_to_beat == pytest.approx(law.sf(0) if increase_is_good else law.cdf(0), rel=1e-9, abs=0)
    assert (result.ci_low, result.ci_high) == pytest.approx(law.interval(0.9), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("effect", "std_error"), [(0.0, 1.0), (1.5, 2.0), (-3.0, 1.0), (2.0, 0.3)])
def test_expected_losses_are_the_means_of_the_shortfalls(effect: float, std_error: float) -> None:
    result = normal_normal(effect=effect, std_error=std_error, increase_is_good=True)
    density = stats.norm(effect, std_error).pdf
    far = 15 * std_error + abs(effect)
    gain = integrate.quad(lambda d: d * density(d), 0, far, epsabs=1e-15)[0]
    loss = integrate.quad(lambda d: -d * density(d), -far, 0, epsabs=1e-15)[0]
    assert (result.loss_control, result.loss_treatment) == pytest.approx((gain, loss), rel=1e-8, abs=1e-14)


def test_a_prior_draws_the_effect_as_more_units_would() -> None:
    prior = Normal(1.0, 0.5)
    result = normal_normal(effect=3.0, std_error=0.25, increase_is_good=True, prior=prior)
    assert result.effect == pytest.approx((3.0 * 16 + 1.0 * 4) / 20)
    assert result.sd == pytest.approx(sqrt(1 / 20))
    twice = normal_normal(effect=2.0, std_error=0.5, increase_is_good=True, prior=Normal(result.effect, result.sd))
    both = normal_normal(effect=2.8, std_error=sqrt(1 / 20), increase_is_good=True, prior=prior)
    assert twice == pytest.approx(both, rel=1e-12)


@given(EFFECTS, ERRORS)
def test_the_losses_differ_by_the_effect(effect: float, std_error: float) -> None:
    result = normal_normal(effect=effect, std_error=std_error, increase_is_good=True)
    assert min(result.loss_control, result.loss_treatment) >= 0
    assert result.loss_control - result.loss_treatment == pytest.approx(effect, rel=1e-12, abs=1e-14 * std_error)


@pytest.mark.parametrize("std_error", [nan, 0.0, -1.0])
def test_an_effect_without_standard_error_has_no_posterior(std_error: float) -> None:
    result = normal_normal(effect=1.0, std_error=std_error, increase_is_good=True, prior=Normal(0, 1))
    assert result.effect == 1
    assert all(isnan(each) for each in result[1:])


def test_an_effect_of_nan_has_no_posterior() -> None:
    result = normal_normal(effect=nan, std_error=1.0, increase_is_good=True)
    assert isnan(result.chance_to_beat)
    assert isnan(result.loss_treatment)


@pytest.mark.parametrize(("mean", "sd"), [(0, 0), (0, -1), (0, nan), (nan, 1), (inf, 1)])
def test_a_normal_prior_has_a_mean_and_a_positive_sd(mean: float, sd: float) -> None:
    with pytest.raises(ValueError, match="normal"):
        Normal(mean, sd)


@pytest.mark.parametrize(("a", "b"), [(0, 1), (1, 0), (0.05, 1), (inf, 1), (nan, 1)])
def test_a_beta_prior_has_finite_parameters_that_floating_point_can_hold(a: float, b: float) -> None:
    with pytest.raises(ValueError, match="beta"):
        Beta(a, b)


def closed_form(control: Beta, treatment: Beta) -> float:
    """P(treatment > control) for a whole a of the treatment: a sum of products of beta functions (Miller 2015)."""
    i = np.arange(int(treatment.a))
    logs = special.betaln(control.a + i, control.b + treatment.b) - np.log(treatment.b + i)
    logs -= special.betaln(1 + i, treatment.b) + special.betaln(control.a, control.b)
    return float(np.exp(logs).sum())


@pytest.mark.parametrize(
    ("control", "treatment"),
    [
        ((0, 1), (0, 1)),
        ((2, 8), (4, 7)),
        ((0, 99), (0, 99)),
        ((49, 998), (119, 1018)),
        ((0, 40_000), (2, 30_000)),
        ((999, 1000), (2, 3)),
        ((1, 3), (4_990, 10_000)),
    ],
)
def test_the_chance_to_beat_is_the_closed_sum(control: tuple[int, int], treatment: tuple[int, int]) -> None:
    c, t = share(*control), share(*treatment)
    result = beta_binomial(control=c, treatment=t, increase_is_good=True, prior=UNIFORM)
    exact = closed_form(share_posterior(c, UNIFORM), share_posterior(t, UNIFORM))
    # 1e-10: what the logarithms of beta functions of 40,000 units leave of the sum.
    assert result.chance_to_beat == pytest.approx(exact, rel=1e-10, abs=1e-14)
    worse = beta_binomial(control=c, treatment=t, increase_is_good=False, prior=UNIFORM)
    assert worse.chance_to_beat == pytest.approx(1 - exact, rel=0, abs=1e-10)


@settings(max_examples=10)
@given(COUNTS, COUNTS)
def test_swapping_the_arms_and_the_direction_swaps_the_result(c: tuple[int, int], t: tuple[int, int]) -> None:
    result = beta_binomial(control=share(*c), treatment=share(*t), increase_is_good=True)
    swapped = beta_binomial(control=share(*t), treatment=share(*c), increase_is_good=True)
    size = 1e-12
    assert swapped.effect == pytest.approx(-result.effect, abs=size)
    assert swapped.chance_to_beat == pytest.approx(1 - result.chance_to_beat, abs=size)
    assert (swapped.loss_treatment, swapped.loss_control) == pytest.approx(result[3:5], rel=1e-9, abs=size)
    assert (-swapped.ci_high, -swapped.ci_low) == pytest.approx(result[5:], rel=1e-9, abs=size)
    reverse = beta_binomial(control=share(*c), treatment=share(*t), increase_is_good=False)
    assert reverse.chance_to_beat == swapped.chance_to_beat
    assert (reverse.loss_control, reverse.loss_treatment) == (result.loss_treatment, result.loss_control)


@settings(deadline=None, max_examples=30)
@given(COUNTS, COUNTS)
@pytest.mark.slow
def test_the_losses_of_shares_differ_by_their_difference(c: tuple[int, int], t: tuple[int, int]) -> None:
    result = beta_binomial(control=share(*c), treatment=share(*t), increase_is_good=True)
    assert min(result.loss_control, result.loss_treatment) >= 0
    assert result.ci_low < result.effect < result.ci_high
    assert result.loss_control - result.loss_treatment == pytest.approx(result.effect, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("control", "treatment"), [((3, 20), (9, 25)), ((400, 1000), (450, 1001)), ((2, 4), (700, 1000))]
)
def test_losses_and_limits_are_those_of_two_dimensional_sums(
    control: tuple[int, int], treatment: tuple[int, int]
) -> None:
    result = beta_binomial(control=share(*control), treatment=share(*treatment), increase_is_good=True, alpha=0.1)
    # The middles of 2,000 parts of equal probability: an error of about 1 / 2,000 of a tail's loss.
    u = (np.arange(2000) + 0.5) / 2000
    c, t = (stats.beta(x + 0.5, n - x + 0.5).ppf(u) for x, n in (control, treatment))
    difference = np.subtract.outer(t, c)
    losses = np.maximum(difference, 0).mean(), np.maximum(-difference, 0).mean()
    assert (result.loss_control, result.loss_treatment) == pytest.approx(losses, rel=1e-2, abs=1e-3 * result.sd)
    limits = np.quantile(difference, [0.05, 0.95])
    assert (result.ci_low, result.ci_high) == pytest.approx(tuple(limits), abs=2e-3 * result.sd)
    assert result.sd == pytest.approx(difference.std(), rel=2e-3)


def below(control: Beta, treatment: Beta, limit: float) -> float:
    """P(treatment - control <= limit) by adaptive quadrature over the control."""
    c, t = stats.beta(control.a, control.b), stats.beta(treatment.a, treatment.b)
    inner = [*c.ppf([1e-9, 0.01, 0.5, 0.99]), -limit, 1 - limit]
    edges = [0, *sorted(x for x in inner if 0 < x < 1), 1]
    # In the square root of the share the density at 0 is finite.
    return sum(
        integrate.quad(lambda s: 2 * s * c.pdf(s * s) * t.cdf(s * s + limit), sqrt(low), sqrt(high))[0]
        for low, high in pairwise(edges)
    )


@pytest.mark.parametrize(
    ("control", "treatment", "tolerance"),
    [
        ((40, 140), (300, 1100), 1e-8),
        ((0, 10), (0, 12), 5e-4),
        ((0, 1000), (0, 1100), 5e-4),
        ((0, 10), (300, 600), 5e-4),
    ],
    ids=["shares inside", "no success in few", "no success in many", "one of them"],
)
def test_limits_hold_the_probability_they_say(
    control: tuple[int, int], treatment: tuple[int, int], tolerance: float
) -> None:
    c, t = share(*control), share(*treatment)
    result = beta_binomial(control=c, treatment=t, increase_is_good=True)
    shares = share_posterior(c), share_posterior(t)
    assert below(*shares, result.ci_low) == pytest.approx(0.025, abs=tolerance)
    assert below(*shares, result.ci_high) == pytest.approx(0.975, abs=tolerance)


def test_what_is_lost_by_the_right_choice_is_nothing_and_never_less() -> None:
    for n in (10, 1000, 10**5, 10**6):
        result = beta_binomial(control=share(n // 10, n), treatment=share(n - n // 10, n), increase_is_good=True)
        assert 0 <= result.loss_treatment < 1e-4
        assert result.loss_control == pytest.approx(result.effect, rel=1e-4)


def test_a_billion_units_agree_with_the_normal_law() -> None:
    n = 10**9
    c, t = share(500_000_000, n), share(500_040_000, n)
    result = beta_binomial(control=c, treatment=t, increase_is_good=True)
    plain = proportion(control=c, treatment=t)
    normal = normal_normal(effect=plain.effect, std_error=plain.std_error, increase_is_good=True)
    assert result == pytest.approx(normal, rel=1e-6, abs=1e-12)


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(COUNTS, COUNTS)
def test_a_fall_of_failures_is_a_rise_of_successes(c: tuple[int, int], t: tuple[int, int]) -> None:
    rise = beta_binomial(control=share(*c), treatment=share(*t), increase_is_good=True)
    failures = [share(n - x, n) for x, n in (c, t)]
    fall = beta_binomial(control=failures[0], treatment=failures[1], increase_is_good=False)
    assert fall.chance_to_beat == pytest.approx(rise.chance_to_beat, rel=1e-9, abs=1e-12)
    assert (fall.loss_control, fall.loss_treatment) == pytest.approx(rise[3:5], rel=1e-9, abs=1e-12)
    assert (-fall.ci_high, -fall.ci_low) == pytest.approx(rise[5:], rel=1e-9, abs=1e-12 + 1e-8 * rise.sd)


def test_rare_events_keep_their_digits() -> None:
    # Shares so small are gamma: P(gamma(30.5)/2 > gamma(9.5)) with both rates per 1e9.
    result = beta_binomial(control=share(9, 10**9), treatment=share(30, 2 * 10**9), increase_is_good=True)
    expected = stats.beta(30.5, 9.5).sf(2 / 3)
    assert result.chance_to_beat == pytest.approx(expected, rel=1e-7)


def test_the_smallest_prior_is_held_by_floating_point() -> None:
    prior = Beta(0.1, 0.1)
    for n in (1, 10**6):
        for successes in (0, n):
            same = beta_binomial(
                control=share(successes, n), treatment=share(successes, n), increase_is_good=True, prior=prior
            )
            assert same.chance_to_beat == pytest.approx(0.5, rel=1e-12)
            assert same.ci_low < 0 < same.ci_high


def test_an_arm_without_units_has_no_posterior_whatever_the_prior() -> None:
    some = share(3, 10)
    for control, treatment in ((Arm(0, nan, nan), some), (some, Arm(0, nan, nan))):
        result = beta_binomial(control=control, treatment=treatment, increase_is_good=True, prior=Beta(20, 80))
        assert all(isnan(each) for each in result)


@pytest.mark.parametrize("arm", [Arm(10, 1.2, nan), Arm(10, -0.1, nan), Arm(10, nan, nan), Arm(0, 0.5, nan)])
def test_what_is_no_share_is_refused(arm: Arm) -> None:
    with pytest.raises(ValueError, match="share"):
        share_posterior(arm)


def test_a_prior_counts_as_units_seen() -> None:
    assert share_posterior(share(3, 10)) == Beta(3.5, 7.5)
    assert share_posterior(share(3, 10), Beta(2, 5)) == share_posterior(share(4, 15), UNIFORM)


def test_jeffreys_interval_is_that_of_scipy() -> None:
    posterior = share_posterior(share(3, 10))
    law = stats.beta(3.5, 7.5)
    assert posterior.interval(0.1) == pytest.approx(law.interval(0.9), rel=1e-12)
    assert (posterior.mean, posterior.variance) == pytest.approx((law.mean(), law.var()), rel=1e-12)


def test_many_units_leave_the_frequentist_interval_of_a_mean() -> None:
    test = welch(control=Arm(4000, 10.0, 9.0), treatment=Arm(5000, 10.2, 9.0), df=inf)
    result: Posterior = normal_normal(effect=test.effect, std_error=test.std_error, increase_is_good=True)
    assert (result.ci_low, result.ci_high) == pytest.approx((test.ci_low, test.ci_high), rel=1e-12)
    assert 2 * (1 - result.chance_to_beat) == pytest.approx(test.pvalue, rel=1e-9)
