"""Multivariate drift: can a classifier tell the current window's rows from the reference's? (two-sample test)

    two_sample(columns, is_current, units)     rows of both sides -> TwoSample: how well they are told apart
    multivariate_drift({where: found}, rule)   a Shift per slice, judged as one family

Boosted trees learn from one half of the units which side a row is from and score the other half, and in turn: the AUC
is 0.5 where nothing differs, and above where anything does, in one column or in how columns go together. It says that
something moved and not what; where no column has drifted by itself, their dependence has. It sees what trees learn
from a sample of rows: a small shift of one among many columns is found sooner by the column's own test.

The observation is the unit: rows of one unit are learnt from or scored together, on both sides, and the standard
error leaves out a hash bucket of units at a time, without learning anew. What that hides is that the halves judge one
another: what chance put into both makes both AUCs high, or both low, so that at worst they are one number and not
two. The variance of their mean is therefore taken to be that of one: twice what the buckets say. The test is
one-sided, on the t law of 63 degrees of freedom (docs/drift-models.md has the simulation).

References
----------
Lopez-Paz, D. and Oquab, M. (2017). Revisiting classifier two-sample tests. ICLR. Obuchowski, N. A. (1997).
Nonparametric analysis of clustered ROC curve data. Biometrics 53, 567-578 (units with several rows).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan, sqrt
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits

from mltrust.drift.profile import N_BUCKETS, bucket_of
from mltrust.drift.shifts import FEWEST_UNITS, Shift, judged
from mltrust.slices import Slice
from mltrust.states.moments import FloatArray
from mltrust.stats.bootstrap import jackknife_covariance

MEASURE, COLUMN = "two_sample_auc", "(all)"
#: Texts beyond the most frequent ones are one category.
_MAX_VALUES = 50
#: A column of numbers (nan where missing), or of texts (None where missing).
Column = FloatArray | Sequence[str | None]


@dataclass(frozen=True, slots=True)
class MultivariateRule:
    """When windows are told apart: qvalue <= q, and an AUC of at least 0.5 + `floor`."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    q: float = 0.001
    floor: float = 0.03
    fewest_units: int = FEWEST_UNITS

    def __post_init__(self) -> None:
        if not 0 < self.q < 1:
            raise ValueError(f"q is {self.q}, expected a number in (0, 1)")
        if not 0 <= self.floor < 0.5:
            raise ValueError(f"floor is {self.floor}, expected a number in [0, 0.5)")
        if self.fewest_units < FEWEST_UNITS:
            raise ValueError(f"fewest_units is {self.fewest_units}, expected {FEWEST_UNITS} or more")


class TwoSample(NamedTuple):
    """How well the sides are told apart; the n are units. AUC and its standard error are nan of too few."""

    n_reference: int
    n_current: int
    auc: float
    std_error: float


def two_sample(columns: Sequence[Column], is_current: NDArray[np.bool_], units: NDArray[np.int64]) -> TwoSample:
    """The cross-fitted AUC of rows of both sides.

    Parameters
    ----------
    columns
        One value per row and column. The same rows in the same order give the same bits.
    is_current, units
        (n,) each: the side, and the hash of the unit, by whose bucket units are halved and left out.
    """
    undefined = TwoSample(len(np.unique(units[~is_current])), len(np.unique(units[is_current])), nan, nan)
    if min(undefined.n_reference, undefined.n_current) < 2:
        return undefined
    bucket = bucket_of(units)
    half, score = bucket % 2 == 1, np.full(len(units), nan)
    inputs, is_category = _encoded(columns)
    for scored in (half, ~half):
        learnt = ~scored
        if len(np.unique(is_current[learnt])) < 2 or not scored.any():
            return undefined
        with threadpool_limits(1):  # on a busy machine its threads wait for one another
            model = _classifier(is_category).fit(inputs[learnt], is_current[learnt])
            score[scored] = model.decision_function(inputs[scored])
    aucs = [aucs_without(score[own], is_current[own], bucket[own]) for own in (half, ~half)]
    auc, std_error = _combined(aucs)
    # Sides that are told apart without fail do not vary: then one unit more might be the first error.
    least = 0.5 / min(undefined.n_reference, undefined.n_current)
    return undefined._replace(auc=auc, std_error=std_error if auc == 0.5 else max(std_error, least))


def _classifier(is_category: list[bool]) -> HistGradientBoostingClassifier:
    return HistGradientBoostingClassifier(
        max_iter=40,
        learning_rate=0.1,
        max_leaf_nodes=8,
        min_samples_leaf=20,
        l2_regularization=1.0,
        max_bins=64,
        early_stopping=False,
        categorical_features=is_category,
        random_state=0,
    )


def _encoded(columns: Sequence[Column]) -> tuple[FloatArray, list[bool]]:
    """The columns as numbers (n, k), texts as codes by descending frequency; nan is missing."""
    is_category = [not isinstance(each, np.ndarray) for each in columns]
    return np.column_stack([_codes(each) for each in columns]), is_category


def _codes(column: Column) -> FloatArray:
    if isinstance(column, np.ndarray):
        return np.where(np.isfinite(column), column, nan)
    by_rows = sorted(
        Counter(each for each in column if each is not None).items(), key=lambda each: (-each[1], each[0])
    )
    code: dict[str | None, float] = {value: float(at) for at, (value, _) in enumerate(by_rows[:_MAX_VALUES])}
    code[None] = nan
    return np.array([code.get(value, float(_MAX_VALUES)) for value in column])


def aucs_without(score: FloatArray, is_current: NDArray[np.bool_], bucket: NDArray[np.int64]) -> FloatArray:
    """The AUC (1 + 64,) of all rows and without each bucket; nan without rows of both sides.

    Pairs of a current and a reference row are counted once for all, then those of a bucket are taken away on either
    side, and those within it added again.
    """
    own, other = np.sort(score[~is_current]), score[is_current]
    of_current = (np.searchsorted(own, other, "left") + np.searchsorted(own, other, "right")) / 2
    ascending = np.sort(other)
    at = score[~is_current]
    of_reference = len(other) - (np.searchsorted(ascending, at, "left") + np.searchsorted(ascending, at, "right")) / 2
    current, reference = bucket[is_current], bucket[~is_current]
    taken = np.bincount(current, of_current, N_BUCKETS) + np.bincount(reference, of_reference, N_BUCKETS)
    within = np.array([_pairs(other[current == each], at[reference == each]) for each in range(N_BUCKETS)])
    n1, n0 = (np.bincount(each, minlength=N_BUCKETS) for each in (current, reference))
    pairs = np.concatenate([[of_current.sum()], of_current.sum() - taken + within])
    possible = np.concatenate([[len(other) * len(at)], (len(other) - n1) * (len(at) - n0)])
    aucs: FloatArray = np.divide(pairs, possible, out=np.full(len(pairs), nan), where=possible > 0)
    return aucs


def _pairs(current: FloatArray, reference: FloatArray) -> float:
    """Pairs in which the current row scores higher, ties counted half."""
    ascending = np.sort(reference)
    below = np.searchsorted(ascending, current, "left") + np.searchsorted(ascending, current, "right")
    return float(below.sum()) / 2


def _combined(aucs: Sequence[FloatArray]) -> tuple[float, float]:
    """The mean of both halves' AUCs, and its standard error as if they were one number."""
    mean = np.mean(aucs, axis=0)
    variance = float(jackknife_covariance(mean[1:, np.newaxis])[0, 0])
    return float(mean[0]), sqrt(2 * variance)


def multivariate_drift(states: Mapping[Slice, TwoSample], rule: MultivariateRule) -> list[Shift]:
    """Per slice whether the sides can be told apart, judged as one family."""
    return judged([_shift(where, found, rule) for where, found in states.items()], rule.q)


def _shift(where: Slice, found: TwoSample, rule: MultivariateRule) -> Shift:
    df, value = N_BUCKETS - 1, found.auc - 0.5
    statistic = value / found.std_error if found.std_error else 0.0
    half_width = float(special.stdtrit(df, 0.975)) * found.std_error
    why_not = _why_not(found, rule)
    return Shift(
        measure=MEASURE,
        column=COLUMN,
        slice_key=where.slice_key,
        slice_value=where.slice_value,
        n_reference=found.n_reference,
        n_current=found.n_current,
        reference=0.5,
        current=found.auc,
        value=value,
        std_error=found.std_error,
        df=df,
        statistic=statistic,
        pvalue=nan if why_not else float(stats.t.sf(statistic, df)),
        ci_low=value - half_width,
        ci_high=value + half_width,
        threshold=rule.floor,
        is_large=value >= rule.floor,
        reason=why_not or f"rows are told from the reference's with AUC {found.auc:.3f}",
    )


def _why_not(found: TwoSample, rule: MultivariateRule) -> str:
    for name, n in (("reference", found.n_reference), ("current window", found.n_current)):
        if n < rule.fewest_units:
            return f"{n} units in the {name}, at least {rule.fewest_units} needed"
    return "a half of the units has rows of one side only" if isnan(found.std_error) else ""
