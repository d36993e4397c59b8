"""Do slices differ in their effects, in which direction, and which of them differs from the rest?

The slices are disjoint: those of one set of attributes. An effect is a `Comparison`, of which effect and std_error
are read, so that whatever compares two arms can be asked. Slices too small for a normal effect are the caller's to
leave out; one without a standard error makes the tests over all slices nan.
"""

from collections.abc import Sequence
from math import nan, sqrt
from typing import NamedTuple

import numpy as np
from scipy import special

from mltrust.states.moments import FloatArray
from mltrust.stats.means import Comparison


class Heterogeneity(NamedTuple):
    """Cochran's Q over n units in n_slices: are all effects the same?

    `effect` is their mean weighted by 1 / variance, with its standard error: what they would have in common.
    """

    n: int
    n_slices: int
    effect: float
    std_error: float
    statistic: float
    df: int
    pvalue: float


class QualitativeInteraction(NamedTuple):
    """Gail and Simon's test over n units in n_slices: do some slices gain while others lose?

    `q_positive` and `q_negative` are sums of (effect / std_error)² over slices of that sign, `statistic` is the
    smaller of them.
    """

    n: int
    n_slices: int
    q_positive: float
    q_negative: float
    statistic: float
    pvalue: float


class AgainstRest(NamedTuple):
    """The effect in a slice of n units minus the effect in the n_rest units of all other slices."""

    n: int
    n_rest: int
    effect: float
    effect_rest: float
    difference: float
    std_error: float
    statistic: float
    pvalue: float


def heterogeneity(slices: Sequence[Comparison]) -> Heterogeneity:
    """The test that all slices have the same effect, on chi-square with slices - 1 degrees of freedom.

    Q = sum (effect_k - mean)² / V_k. Nan for fewer than 2 slices and where a slice has no standard error.

    References
    ----------
    Cochran, W. G. (1954). The combination of estimates from different experiments. Biometrics 10, 101-129.
    """
    effects, variances = _effects(slices)
    precision = float((1 / variances).sum())
    df = len(slices) - 1
    if df < 1 or np.isnan(precision):
        return Heterogeneity(_n(slices), len(slices), nan, nan, nan, df, nan)
    mean = float((effects / variances).sum()) / precision
    statistic = float(((effects - mean) ** 2 / variances).sum())
    pvalue = float(special.chdtrc(df, statistic))
    return Heterogeneity(_n(slices), len(slices), mean, sqrt(1 / precision), statistic, df, pvalue)


def qualitative_interaction(slices: Sequence[Comparison]) -> QualitativeInteraction:
    """The test that no two slices have effects of opposite signs.

    With Q+ and Q- the sums of effect_k² / V_k over positive and negative effects, p is the sum over h = 1 to K - 1
    of Binom(h; K - 1, 1/2)·P(chi²_h > min(Q+, Q-)): the law where one effect is far from 0 and the others are 0,
    and no other law without opposite signs rejects more often. The p-value is at most 1 - 2^-(K - 1), where all
    effects have one sign. Nan for fewer than 2 slices and where a slice has no standard error.

    References
    ----------
    Gail, M. and Simon, R. (1985). Testing for qualitative interactions between treatment effects and patient
    subsets. Biometrics 41, 361-372.
    """
    effects, variances = _effects(slices)
    K, squares = len(slices), effects**2 / variances
    if K < 2 or np.isnan(squares).any():
        return QualitativeInteraction(_n(slices), K, nan, nan, nan, nan)
    q_positive, q_negative = float(squares[effects > 0].sum()), float(squares[effects < 0].sum())
    statistic = min(q_positive, q_negative)
    h = np.arange(1, K)
    # Not binom(K - 1, h) / 2^(K - 1): that overflows from some thousand slices on.
    chances = np.exp(special.gammaln(K) - special.gammaln(h + 1) - special.gammaln(K - h) - (K - 1) * np.log(2))
    pvalue = float((chances * special.chdtrc(h, statistic)).sum())
    return QualitativeInteraction(_n(slices), K, q_positive, q_negative, statistic, pvalue)


def shrunken(own: Comparison, slices: Sequence[Comparison]) -> float:
    """The effect in a slice, drawn to the mean of its `slices`, of which it is one, by as much as chance explains.

    effect·B + mean·(1 - B) with B = tau² / (tau² + V), tau² the moment estimate of how much true effects vary. Of one
    slice its own effect.

    References
    ----------
    DerSimonian, R. and Laird, N. (1986). Meta-analysis in clinical trials. Controlled Clinical Trials 7, 177-188,
    for tau². Efron, B. and Morris, C. (1975). Data analysis using Stein's estimator and its generalizations. Journal
    of the American Statistical Association 70, 311-319.
    """
    found = heterogeneity(slices)
    if np.isnan(found.statistic):
        return own.effect
    precisions = 1 / _effects(slices)[1]
    spread = float(precisions.sum() - (precisions**2).sum() / precisions.sum())
    tau = max(0.0, (found.statistic - found.df) / spread)
    weight = tau / (tau + own.std_error**2)
    return weight * own.effect + (1 - weight) * found.effect


def against_rest(*, own: Comparison, rest: Comparison) -> AgainstRest:
    """The normal test of a slice's effect against that in all other slices: z = difference / sqrt(V_own + V_rest).

    Both are compared in the same way. Of two slices the tests of both say the same.
    """
    difference = own.effect - rest.effect
    std_error = sqrt(own.std_error**2 + rest.std_error**2)
    statistic = difference / std_error
    return AgainstRest(
        n=own.n_control + own.n_treatment,
        n_rest=rest.n_control + rest.n_treatment,
        effect=own.effect,
        effect_rest=rest.effect,
        difference=difference,
        std_error=std_error,
        statistic=statistic,
        pvalue=2 * float(special.ndtr(-abs(statistic))),
    )


def _effects(slices: Sequence[Comparison]) -> tuple[FloatArray, FloatArray]:
    """Effects and their variances."""
    effects = np.array([each.effect for each in slices], dtype=np.float64)
    return effects, np.array([each.std_error for each in slices], dtype=np.float64) ** 2


def _n(slices: Sequence[Comparison]) -> int:
    return sum(each.n_control + each.n_treatment for each in slices)
