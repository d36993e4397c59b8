"""Do slices differ in their effects, in which direction, and which of them differs from the rest?

The slices are disjoint: those of one set of attributes. An effect is a `Comparison`, of which effect, std_error and
df are read, so that whatever compares two arms can be asked: standard errors of few units are not taken as known.
Slices too small for a normal effect are the caller's to leave out; one without a standard error makes the tests over
all slices nan.
"""

from collections.abc import Sequence
from itertools import accumulate
from math import inf, nan, sqrt
from operator import add
from typing import NamedTuple

import numpy as np
from scipy import special

from mltrust.states.moments import FloatArray, Moments
from mltrust.stats.means import Comparison, normal_score

Pair = tuple[Moments, Moments]


class Heterogeneity(NamedTuple):
    """Cochran's Q over n units in n_slices: are all effects the same?

    `effect` is their mean weighted by 1 / variance, with its standard error: what they would have in common.
    `df_error` is what the standard errors leave in degrees of freedom, nan where they are known.
    """

    n: int
    n_slices: int
    effect: float
    std_error: float
    statistic: float
    df: int
    pvalue: float
    df_error: float = nan


class QualitativeInteraction(NamedTuple):
    """Gail and Simon's test over n units in n_slices: do some slices gain while others lose?

    `q_positive` and `q_negative` are sums over slices of that sign of (effect / std_error)², by its normal score;
    `statistic` is the smaller of them.
    """

    n: int
    n_slices: int
    q_positive: float
    q_negative: float
    statistic: float
    pvalue: float


class AgainstRest(NamedTuple):
    """The effect in a slice of n units minus that in the n_rest units of all others; df nan for a normal law."""

    n: int
    n_rest: int
    effect: float
    effect_rest: float
    difference: float
    std_error: float
    statistic: float
    pvalue: float
    df: float = nan


def heterogeneity(slices: Sequence[Comparison]) -> Heterogeneity:
    """The test that all slices have the same effect, on the F law of Welch; chi-square where the effects are normal.

    Q = sum (effect_k - mean)² / V_k is chi-square with K - 1 degrees of freedom where the V_k are known. With df_k
    and L = sum (1 - w_k)² / df_k, w_k the weights 1 / V_k as shares, Q / (K - 1) / (1 + 2(K - 2)/(K² - 1)·L) has the
    F law of K - 1 and (K² - 1) / 3L degrees of freedom. With 50 to 200 treated units in four slices chi-square
    rejects one effect in 5.7 % at 0.05. Nan for fewer than 2 slices and where a slice has no standard error.

    References
    ----------
    Cochran, W. G. (1954). The combination of estimates from different experiments. Biometrics 10, 101-129.
    Welch, B. L. (1951). On the comparison of several mean values: an alternative approach. Biometrika 38, 330-336.
    """
    effects, variances = _effects(slices)
    K, precision = len(slices), float((1 / variances).sum())
    df = K - 1
    if df < 1 or np.isnan(precision):
        return Heterogeneity(_n(slices), K, nan, nan, nan, df, nan)
    mean = float((effects / variances).sum()) / precision
    statistic = float(((effects - mean) ** 2 / variances).sum())
    chance = float(((1 - 1 / variances / precision) ** 2 / _df(slices)).sum())
    df_error, pvalue = nan, float(special.chdtrc(df, statistic))
    if chance > 0:
        df_error = (K * K - 1) / (3 * chance)
        pvalue = float(special.fdtrc(df, df_error, statistic / df / (1 + 2 * (K - 2) / (K * K - 1) * chance)))
    return Heterogeneity(_n(slices), K, mean, sqrt(1 / precision), statistic, df, pvalue, df_error)


def qualitative_interaction(slices: Sequence[Comparison]) -> QualitativeInteraction:
    """The test that no two slices have effects of opposite signs.

    With Q+ and Q- the sums of effect_k² / V_k (by normal scores) over positive and negative effects, p is the sum
    over h = 1 to K - 1 of Binom(h; K - 1, 1/2)·P(chi²_h > min(Q+, Q-)): the law where one effect is far from 0 and
    the others are 0, and no other law without opposite signs rejects more often. The p-value is at most
    1 - 2^-(K - 1), where all effects have one sign. Nan for fewer than 2 slices and where a slice has no standard
    error.

    References
    ----------
    Gail, M. and Simon, R. (1985). Testing for qualitative interactions between treatment effects and patient
    subsets. Biometrics 41, 361-372.
    """
    effects, variances = _effects(slices)
    scores = map(normal_score, (effects / np.sqrt(variances)).tolist(), _df(slices).tolist())
    K, squares = len(slices), np.array(list(scores)) ** 2
    if K < 2 or np.isnan(squares).any():
        return QualitativeInteraction(_n(slices), K, nan, nan, nan, nan)
    q_positive, q_negative = float(squares[effects > 0].sum()), float(squares[effects < 0].sum())
    statistic = min(q_positive, q_negative)
    h = np.arange(1, K)
    # Not binom(K - 1, h) / 2^(K - 1): that overflows from some thousand slices on.
    chances = np.exp(special.gammaln(K) - special.gammaln(h + 1) - special.gammaln(K - h) - (K - 1) * np.log(2))
    pvalue = float((chances * special.chdtrc(h, statistic)).sum())
    return QualitativeInteraction(_n(slices), K, q_positive, q_negative, statistic, pvalue)


def rests(pairs: Sequence[Pair]) -> list[Pair]:
    """For each (control, treatment) of a slice that of all other slices together; none for one slice.

    Where effects are taken within allocation phases, ask for the rests of each phase.
    """
    if len(pairs) < 2:
        return []
    # Sums from both ends: taking a slice out of the total again would cost digits.
    before = list(accumulate(pairs, _added))
    after = list(accumulate(reversed(pairs), _added))[::-1]
    within = [_added(before[k - 1], after[k + 1]) for k in range(1, len(pairs) - 1)]
    return [after[1], *within, before[-2]]


def against_rest(slices: Sequence[Comparison], rest: Sequence[Comparison]) -> list[AgainstRest]:
    """The tests of each slice's effect against that of its rest, in the order given.

    (effect_k - effect_rest) / sqrt(V_k + V_rest) on the t law of Satterthwaite's degrees of freedom. Of two slices
    only the first is tested, as the second says the same. Compared are the pairs of `rests` in the same way as those
    of the slices.
    """
    if len(slices) != len(rest):
        raise ValueError(f"each slice has one rest, got {len(slices)} slices and {len(rest)} rests")
    tested = 1 if len(slices) == 2 else len(slices)
    return [_against(*each) for each in zip(slices[:tested], rest[:tested], strict=True)]


def _against(own: Comparison, rest: Comparison) -> AgainstRest:
    difference = own.effect - rest.effect
    std_error = sqrt(own.std_error**2 + rest.std_error**2)
    statistic = difference / std_error
    chance = sum(
        (each.std_error / std_error) ** 4 / df for each, df in zip((own, rest), _df((own, rest)), strict=True)
    )
    df = 1 / float(chance) if chance > 0 else inf
    return AgainstRest(
        n=own.n_control + own.n_treatment,
        n_rest=rest.n_control + rest.n_treatment,
        effect=own.effect,
        effect_rest=rest.effect,
        difference=difference,
        std_error=std_error,
        statistic=statistic,
        pvalue=2 * float(special.stdtr(df, -abs(statistic))),
        df=df if df < inf else nan,
    )


def _effects(slices: Sequence[Comparison]) -> tuple[FloatArray, FloatArray]:
    """Effects and their variances."""
    effects = np.array([each.effect for each in slices], dtype=np.float64)
    return effects, np.array([each.std_error for each in slices], dtype=np.float64) ** 2


def _df(slices: Sequence[Comparison]) -> FloatArray:
    """Degrees of freedom of the standard errors, inf where the law is normal."""
    df = np.array([each.df for each in slices], dtype=np.float64)
    return np.where(np.isnan(df), inf, df)


def _n(slices: Sequence[Comparison]) -> int:
    return sum(each.n_control + each.n_treatment for each in slices)


def _added(a: Pair, b: Pair) -> Pair:
    control, treatment = map(add, a, b)
    return control, treatment
