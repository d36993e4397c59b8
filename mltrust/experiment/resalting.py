"""A/A tests on the log itself: would new salts, which change nothing, find effects as often as they say?

The control's units are put into two arms again and again, by new hashes of their buckets (of themselves, where they
have none). If the unit and its variance are the right ones, the p-values of units assigned one by one are uniform. Of
few buckets they are not: all salts share the buckets' means, which differ a little more or less than units alone make
them; there the question is whether they differ by more than chance allows.
"""

from collections.abc import Iterator

import numpy as np
from scipy import stats

from mltrust.experiment.cells import ExperimentStates, Resalted, product
from mltrust.experiment.check import Check, Finding, judged
from mltrust.experiment.spec import Experiment
from mltrust.experiment.sufficiency import MIN_BUCKETS, too_small
from mltrust.metrics import KINDS, Metric
from mltrust.states.moments import Moments
from mltrust.states.replicates import UNITS
from mltrust.stats.means import Comparison, normal_score

#: Events and non-events of a share, in half of the units, below which p-values are too few different ones.
_FEWEST_EVENTS = 200


def resaltings(states: ExperimentStates, experiment: Experiment) -> list[Check]:
    """The test of the p-values of every metric, where the conf asks for it.

    Kolmogorov and Smirnov's where at least as many things are assigned as there are salts, below that the mean of the
    squared normal scores: 1 on average, with the variance that the means of so few buckets have by chance.
    """
    family = [
        _finding(metric, found, experiment)
        for metric in experiment.unit_metrics
        if (found := states.resalted.get(metric.name)) is not None
    ]
    return judged("A/A", "re-salting", family, level=experiment.srm_alpha)


def _finding(metric: Metric, found: Resalted, experiment: Experiment) -> Finding:
    n, compared = found.replicates.n, []
    if not _is_rare(metric, found):
        compared = [each for each in _comparisons(metric, found) if not too_small(metric, each, experiment)]
    pvalues = np.array([each.pvalue for each in compared])
    words = f"{len(pvalues):,} new salts of the control's units"
    if not len(pvalues) or np.isnan(pvalues).any():
        return _of(metric, n, words, np.nan, np.nan, np.nan)
    share = float((pvalues < experiment.alpha).mean())
    said = f"{words}: {share:.1%} of p-values below {experiment.alpha}"
    n_assigned = _n_assigned(found)
    if n_assigned >= len(pvalues):
        test = stats.kstest(pvalues, "uniform")
        return _of(metric, n, said, float(test.statistic), float(test.pvalue), share)
    squares = float(np.mean([normal_score(each.statistic, each.df) ** 2 for each in compared]))
    return _of(metric, n, said, squares, _pvalue_of_squares(squares, n_assigned, n, len(pvalues)), share)


def _n_assigned(found: Resalted) -> float:
    """How many things of equal size were assigned: n² over the sum of their squared numbers of units.

    Each is taken with chance 1/2, so that the number of units taken has a quarter of that sum as its variance.
    """
    whole, drawn = found.replicates.n, found.replicates.column(UNITS)[1:]
    spread = float(((drawn - whole / 2) ** 2).mean())
    return min(float(whole), whole**2 / (4 * spread)) if spread else 1.0


def _pvalue_of_squares(squares: float, n_assigned: float, n_units: int, n_salts: int) -> float:
    """Two-sided, on chi-square: the mean square between the assigned over that within all units, and chance of salts.

    Nan below 20 things assigned. Where every unit is assigned by itself the first is 1 whatever the units are.
    """
    if n_assigned < MIN_BUCKETS:
        return np.nan
    df = 1 / (1 / (n_assigned - 1) - 1 / (n_units - 1) + 1 / n_salts)
    return 2 * float(min(stats.chi2.cdf(df * squares, df), stats.chi2.sf(df * squares, df)))


def _of(metric: Metric, n: int, words: str, statistic: float, pvalue: float, share: float) -> Finding:
    return Finding(
        n=n,
        statistic=statistic,
        df=np.nan,
        pvalue=pvalue,
        words=words,
        alarm=f"{words}; the unit is not what was assigned, or its variance is not the right one",
        metric=metric.name,
        value=share,
    )


def _is_rare(metric: Metric, found: Resalted) -> bool:
    """Whether a share has so few events, or so few units without, that half of them may have none."""
    if KINDS[metric.kind].unit_value != "any":
        return False
    whole = _moments(metric, found.replicates.sums[0], found)
    share = float(whole.mean[0])
    return whole.n * min(share, 1 - share) < 2 * _FEWEST_EVENTS


def _comparisons(metric: Metric, found: Resalted) -> Iterator[Comparison]:
    """The test of every salt: the units that it chooses against the others."""
    whole, drawn = found.replicates.sums[0], found.replicates.sums[1:]
    kind = KINDS[metric.kind]
    for sums in drawn:
        treatment, control = (kind.arm(_moments(metric, part, found), metric) for part in (sums, whole - sums))
        yield kind.compare(control=control, treatment=treatment, alpha=0.05)


def _moments(metric: Metric, sums: np.ndarray, found: Resalted) -> Moments:
    """The state of the units that sums are of: sums of values about a centre, and of their products."""
    names = metric.columns()
    at = {name: i for i, name in enumerate(found.replicates.columns)}
    n = round(float(sums[at[UNITS]]))
    means = np.array([sums[at[name]] for name in names]) / (n or 1)
    products = np.array([[sums[at[product(a, b)]] for b in names] for a in names])
    return Moments(names, n, means + np.array(found.centre), products - n * np.outer(means, means))
