"""Two arms shown to be the same but for a margin, which a p-value above alpha does not show."""

from typing import NamedTuple

import numpy as np

from mltrust.stats.means import Arm, Margin, non_inferiority, welch


class Equivalence(NamedTuple):
    """Two one-sided tests that the treatment's mean is within the margin of the control's.

    `pvalue_low` is against a loss of the margin or more, `pvalue_high` against such a gain, and `pvalue` is the
    larger one: both must be excluded. The intervals, of the effect and of the relative effect, have confidence
    1 - 2·alpha.
    """

    n_control: int
    n_treatment: int
    effect: float
    rel_effect: float
    pvalue_low: float
    pvalue_high: float
    pvalue: float
    ci_low: float
    ci_high: float
    rel_ci_low: float
    rel_ci_high: float


def equivalence(
    *, control: Arm, treatment: Arm, margin: Margin, alpha: float = 0.05, df: float | None = None
) -> Equivalence:
    """The tests of two means, or of two ratios, against the control made smaller and larger by the margin.

    Parameters
    ----------
    margin
        Absolute, or a share of the size of the control mean; the same on both sides.
    alpha
        Level of each of the two tests and of both together.
    df
        As in `welch`.

    Notes
    -----
    The p-value is below alpha exactly where the interval is within the margin: the absolute interval and an
    absolute margin, or the relative interval, where it is bounded, and a relative margin. The latter holds for
    given `df`; the approximation by Satterthwaite is not the same for both limits and the interval. A p-value of
    one side that is nan makes the whole nan.

    References
    ----------
    Schuirmann, D. J. (1987). A comparison of the two one-sided tests procedure and the power approach for
    assessing the equivalence of average bioavailability. Journal of Pharmacokinetics and Biopharmaceutics 15,
    657-680.
    """
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha of two one-sided tests is between 0 and 0.5, got {alpha}")
    compared = welch(control=control, treatment=treatment, alpha=2 * alpha, df=df)
    low, high = (
        non_inferiority(control=control, treatment=treatment, margin=margin, increase_is_good=side, df=df).pvalue
        for side in (True, False)
    )
    return Equivalence(
        n_control=compared.n_control,
        n_treatment=compared.n_treatment,
        effect=compared.effect,
        rel_effect=compared.rel_effect,
        pvalue_low=low,
        pvalue_high=high,
        pvalue=float(np.maximum(low, high)),  # max(0.1, nan) is 0.1
        ci_low=compared.ci_low,
        ci_high=compared.ci_high,
        rel_ci_low=compared.rel_ci_low,
        rel_ci_high=compared.rel_ci_high,
    )
