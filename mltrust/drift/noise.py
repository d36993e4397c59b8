"""What chance does to counts that did not drift: the tests of shape, of structural cells and of location.

Where every row is a unit of its own the laws are those of independent rows. Where units have several rows, or both
sides have the same units, the jackknife over 64 hash buckets of the unit says how much more, or less, the differences
vary, the same bucket left out on both sides at once.
"""

from math import ceil, copysign, exp, inf, isnan, lgamma, log, log1p, nan, sqrt
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from mltrust.drift.cells import STEPS, UNSEEN, Cells, IntArray, OrderedCells, UnorderedCells
from mltrust.drift.measures import MEASURES
from mltrust.drift.profile import N_BUCKETS, Profile
from mltrust.states.moments import FloatArray
from mltrust.stats.means import Arm, welch

#: Below it chi-square is no approximation of Pearson's statistic, and a cell joins another (Cochran 1954).
SMALLEST_EXPECTED = 5
SHAPE, LOCATION = "jsd", "mean_shift"
#: Below it Pearson's p-value needs the likelihood ratio to agree.
_BOTH_AGREE = 0.01
# Units with a row in the cell instead, where rows are clustered: a variance from fewer is hardly one.
_SMALLEST_UNITS = 10
_NEAR_MEAN = 0.05


class Homogeneity(NamedTuple):
    """A test that two counts on the same cells have the same shares."""

    statistic: float
    df: float
    design_effect: float
    pvalue: float


class Sides(NamedTuple):
    """A column's reference and current profile on the same cells.

    `paired`: both sides are the same requests (a candidate against the champion, shadow against production), so that
    what they share is no difference.
    """

    cells: Cells
    reference: Profile
    current: Profile
    paired: bool = False

    @property
    def is_clustered(self) -> bool:
        """Whether rows must not be taken as independent."""
        return self.paired or self.reference.is_clustered or self.current.is_clustered


class Measured(NamedTuple):
    """One test of one column: what was measured, and how likely it is without drift.

    `n_reference` and `n_current` are the rows (or, of a structural cell where rows are clustered, the units) that it
    compares. `value` is the effect size as users know it, `corrected` what is left of it after noise, which is held
    against the floor. `std_error` is that of the value, `reference_value` and `current_value` the share of the rows
    in the cell or the mean in the column's unit, where there are such. Undefined is nan, and `problem` says why.
    """

    measure: str
    unit: str
    n_reference: int
    n_current: int
    value: float = nan
    corrected: float = nan
    std_error: float = nan
    statistic: float = nan
    df: float = nan
    design_effect: float = nan
    pvalue: float = nan
    reference_value: float = nan
    current_value: float = nan
    problem: str = ""


def shape_test(sides: Sides) -> Measured:
    """The homogeneity of the ordinary cells.

    `value` is the divergence of all cells, `corrected` that of ordinary ones after noise. `df` is that of the pooled
    cells; for clustered rows, of Rao and Scott's second order. Nan where fewer than two cells are left with 5
    expected rows, or 10 expected units, on the smaller side.
    """
    n_ordinary = sides.cells.n_ordinary
    a, b = (each.by_cell.astype(np.float64) for each in (sides.reference, sides.current))
    inner = a[:n_ordinary], b[:n_ordinary]
    m, n = (float(each.sum()) for each in inner)
    jsd = MEASURES[SHAPE]
    test = Measured(SHAPE, jsd.unit, int(m), int(n), jsd.value(a, b, sides.cells))
    if not (m and n):
        return test._replace(problem=f"no row with a value in the {'current' if m else 'reference'} window")
    if n_ordinary == 1:
        return test._replace(corrected=0.0, statistic=0.0, df=0.0, design_effect=1.0, pvalue=1.0)
    groups = _pooled_cells(sides, *inner)
    if len(groups) < 2:
        least = f"{_SMALLEST_UNITS} units" if sides.is_clustered else f"{SMALLEST_EXPECTED} rows"
        return test._replace(problem=f"fewer than two cells expect {least}")
    found = _clustered(sides, groups) if sides.is_clustered else _independent(*inner, groups)
    noise = jsd.noise(*inner, sides.cells, found.design_effect)
    return test._replace(
        corrected=jsd.value(*inner, sides.cells) - noise,
        statistic=found.statistic,
        df=found.df,
        design_effect=found.design_effect,
        pvalue=found.pvalue,
        problem="differences do not vary between units" if isnan(found.pvalue) else "",
    )


def structural_tests(sides: Sides) -> list[Measured]:
    """Every structural cell against its share in the reference, exactly: twice the smaller tail, times their number.

    Where rows are clustered, units with a row in the cell are counted instead of rows. Of a longer window, in which
    units have more rows, more of them have such a row by chance: their number is held against the numbers of rows and
    against those of units, of which it follows the first where rows of a unit are independent and the second where
    they are alike, and the less certain of both is believed.
    """
    kinds = sides.cells.structural
    clustered = sides.is_clustered
    (m, a), (n, b) = (_counted(each, clustered) for each in (sides.reference, sides.current))
    rows = [(each.n_rows, each.by_cell) for each in (sides.reference, sides.current)]
    found = []
    for at, kind in enumerate(kinds, sides.cells.n_ordinary):
        if not (m and n):
            side = "current" if m else "reference"
            found.append(Measured(kind, "share", m, n, problem=f"no row in the {side} window"))
            continue
        marked = int(a[at]) + _unseen_without_drift(sides, kind) + int(b[at])
        p = _less_certain(int(b[at]), marked, {(n, m), (rows[1][0], rows[0][0])})
        before, now = (int(counts[at]) / total for total, counts in rows)
        test = Measured(
            kind,
            "share",
            m,
            n,
            value=now - before,
            corrected=now - before,
            std_error=sqrt(now * (1 - now) / n + before * (1 - before) / m),
            design_effect=1.0,
            pvalue=min(1.0, 2 * len(kinds) * p),
            reference_value=before,
            current_value=now,
        )
        found.append(test)
    return found


def location_test(sides: Sides) -> Measured | None:
    """Welch's test of the winsorised mean, in the reference's standard deviations; None without order or spread.

    `corrected` takes the squared standard error off the squared shift. Clustered rows: the jackknife's standard error
    on the t law of the groups less 1.
    """
    cells = sides.cells
    if not isinstance(cells, OrderedCells):
        return None
    reference, current = (_arm(each, cells.n_ordinary) for each in (sides.reference, sides.current))
    test = Measured(LOCATION, "sd of the reference", reference.n, current.n)
    if min(reference.n, current.n) < 2:
        side = "current" if reference.n > 1 else "reference"
        return test._replace(problem=f"fewer than 2 rows with a value in the {side} window")
    if not reference.variance > 0:
        return None
    result = welch(control=reference, treatment=current)
    se, df, deff, sd = result.std_error, result.df, 1.0, sqrt(reference.variance)
    if sides.is_clustered:
        jackknifed, groups = _mean_error(sides)
        se, df, deff = jackknifed, float(groups - 1), (jackknifed / se) ** 2
    # Without any difference there is nothing to test, even where paired sides leave no variance either.
    statistic = 0.0 if result.effect == 0 else (result.effect / se if se > 0 else nan)
    shift, error = result.effect / sd, se / sd
    return test._replace(
        value=shift,
        corrected=sqrt(max(0.0, shift * shift - error * error)),
        std_error=error,
        statistic=statistic,
        df=df,
        design_effect=deff,
        pvalue=2 * float(special.stdtr(df, -abs(statistic))),
        reference_value=cells.center + reference.mean / STEPS * cells.scale,
        current_value=cells.center + current.mean / STEPS * cells.scale,
        problem="" if se > 0 or result.effect == 0 else "the difference of the means does not vary between units",
    )


def homogeneity(reference: FloatArray, current: FloatArray) -> Homogeneity:
    """Pearson's X² = nm/(n + m) sum (p - q)²/r of independent rows on cells that all expect enough.

    Where many cells expect hardly more than 5 rows X² has too heavy a tail: at 0.001 it rejects 0.2 %, and far out,
    where families of hundreds of tests decide, many times too often. The likelihood ratio's tail is too light there;
    below 0.01 both must agree.

    References
    ----------
    Larntz, K. (1978). Small-sample comparisons of exact levels for chi-squared goodness-of-fit statistics. JASA 73,
    253-263.
    """
    m, n, df = float(reference.sum()), float(current.sum()), len(reference) - 1
    both = reference + current
    statistic = n * m * float(((reference / m - current / n) ** 2 / both).sum())
    pvalue = float(special.chdtrc(df, statistic))
    if pvalue < _BOTH_AGREE:
        expected = both / (n + m)
        ratio = special.rel_entr(reference, m * expected).sum() + special.rel_entr(current, n * expected).sum()
        pvalue = max(pvalue, min(_BOTH_AGREE, float(special.chdtrc(df, 2 * ratio))))
    return Homogeneity(statistic, float(df), 1.0, pvalue)


def hypergeometric_tail(x: int, marked: int, n: int, total: int) -> float:
    """The tail of x on its side of the mean: P(X >= x) or P(X <= x), X of the marked among n drawn out of `total`.

    1 where nothing is marked. The sum goes by ratios of neighbouring terms from x outwards.
    """
    if not marked or x * total == marked * n:
        return 1.0
    unmarked = total - marked
    log_term = _log_choose(marked, x) + _log_choose(unmarked, n - x) - _log_choose(total, n)
    deviation = sqrt(marked * (n / total) * (1 - n / total) + 1)
    length = int(40 * deviation) + 40
    if x * total > marked * n:
        at = np.arange(x, min(x + length, marked, n), dtype=np.float64)
        ratios = (marked - at) * (n - at) / ((at + 1) * (unmarked - n + at + 1))
    else:
        at = np.arange(x, max(x - length, 0, n - unmarked), -1, dtype=np.float64)
        ratios = at * (unmarked - n + at) / ((marked - at + 1) * (n - at + 1))
    return min(1.0, exp(log_term) * (1 + float(np.cumprod(ratios).sum())))


def _less_certain(x: int, marked: int, sizes: set[tuple[int, int]]) -> float:
    """The larger tail of x of the marked, n drawn out of n + m, of all sizes; 1 where x lies between their means."""
    if len({x * (n + m) > marked * n for n, m in sizes}) > 1:
        return 1.0
    return max(hypergeometric_tail(x, marked, n, n + m) for n, m in sizes)


def pooled_ordered(expected: FloatArray, smallest: float = SMALLEST_EXPECTED) -> list[list[int]]:
    """Groups of neighbouring cells that expect enough: the smallest below it joins its smaller neighbour, in turn."""
    groups = [[at] for at in range(len(expected))]
    sizes = expected.tolist()
    while len(groups) > 1 and min(sizes) < smallest:
        at = sizes.index(min(sizes))
        left, right = (sizes[i] if 0 <= i < len(sizes) else inf for i in (at - 1, at + 1))
        first = at - 1 if left <= right else at
        groups[first : first + 2] = [groups[first] + groups[first + 1]]
        sizes[first : first + 2] = [sizes[first] + sizes[first + 1]]
    return groups if sizes and min(sizes) >= smallest else []


def pooled_unordered(expected: FloatArray, smallest: float = SMALLEST_EXPECTED) -> list[list[int]]:
    """Groups of cells that expect enough: those that do not are collected, and join the smallest other if need be."""
    large = np.flatnonzero(expected >= smallest).tolist()
    rest = np.flatnonzero(expected < smallest).tolist()
    groups = [[at] for at in large]
    if not rest:
        return groups
    if expected[rest].sum() >= smallest:
        return [*groups, rest]
    if not groups:
        return []
    joined = min(range(len(groups)), key=lambda at: float(expected[groups[at][0]]))
    groups[joined] = groups[joined] + rest
    return groups


def expected_rows(reference: FloatArray, current: FloatArray) -> FloatArray:
    """What each cell expects on the smaller side."""
    m, n = float(reference.sum()), float(current.sum())
    return min(n, m) / (n + m) * (reference + current)


def _pooled_cells(sides: Sides, reference: FloatArray, current: FloatArray) -> list[list[int]]:
    expected = expected_rows(reference, current)
    if sides.is_clustered:
        # Ten rows of one unit are no ten observations: what a cell expects is counted in units.
        expected *= min(each.n_units / each.n_rows for each in (sides.reference, sides.current))
    pool = pooled_ordered if sides.cells.is_ordered else pooled_unordered
    return pool(expected, _SMALLEST_UNITS if sides.is_clustered else SMALLEST_EXPECTED)


def _independent(reference: FloatArray, current: FloatArray, groups: list[list[int]]) -> Homogeneity:
    if len(groups) < len(reference):
        reference, current = (np.array([each[group].sum() for group in groups]) for each in (reference, current))
    return homogeneity(reference, current)


def _clustered(sides: Sides, groups: list[list[int]]) -> Homogeneity:
    """X² of groups of cells, on the law that the jackknife gives it."""
    a, b = (
        np.array([each.counts[group].sum(axis=0) for group in groups], dtype=np.float64)
        for each in (sides.reference, sides.current)
    )
    plain = homogeneity(a.sum(axis=1), b.sum(axis=1))
    if plain.statistic == 0:
        return plain._replace(design_effect=0.0, pvalue=1.0)
    weights = _eigenvalues(a, b)
    if not (total := float(weights.sum())) > 0:
        return Homogeneity(plain.statistic, plain.df, nan, nan)
    n_buckets = int(((a.sum(axis=0) + b.sum(axis=0)) > 0).sum())
    df = total * total / float((weights * weights).sum())
    pvalue = mixture_tail(plain.statistic, weights, n_buckets - 1)
    return Homogeneity(plain.statistic, df, total / plain.df, pvalue)


def _eigenvalues(a: FloatArray, b: FloatArray) -> FloatArray:
    """Those of W, the jackknife covariance (k, k) of the differences of shares over that of independent rows.

    X² is a sum of squares of normal variables times them (Rao and Scott). Each side's deviations are scaled by its
    own shares, since a cell that has few units by chance has a small variance by the same chance, and its design
    effect is what the groups know. Where it has none, that of the other side stands for it.

    References
    ----------
    Rao, J. N. K. and Scott, A. J. (1984). On chi-squared tests for multiway contingency tables with cell proportions
    estimated from survey data. Annals of Statistics 12, 46-60, section 3. Shao, J. and Tu, D. (1995). The jackknife
    and bootstrap, 6.2 (the delete-a-group jackknife). Springer.
    """
    left = [each.sum(axis=1, keepdims=True) - each for each in (a, b)]
    if min(each.sum(axis=0).min() for each in left) <= 0:
        return np.zeros(0)
    shares = [each.sum(axis=1) / each.sum() for each in (a, b)]
    scaled = [_scaled(each / each.sum(axis=0), own) for each, own in zip(left, shares, strict=True)]
    m, n = float(a.sum()), float(b.sum())
    d = scaled[1] - scaled[0]
    W = d @ d.T * (n * m / (n + m))
    alone = [(each * each).sum(axis=1) for each in scaled]
    W[np.diag_indices(len(a))] += np.where(shares[1] == 0, alone[0] * m * m, 0) / (n + m)
    W[np.diag_indices(len(a))] += np.where(shares[0] == 0, alone[1] * n * n, 0) / (n + m)
    # Shares add up to 1: one direction does not vary.
    eigenvalues: FloatArray = np.linalg.eigvalsh(W * ((N_BUCKETS - 1) / N_BUCKETS))[1:].clip(0)
    return eigenvalues


def _scaled(without: FloatArray, shares: FloatArray) -> FloatArray:
    """Deviations (k, 64) of the shares without each group, over the root of the shares; 0 of an empty cell."""
    deviations = without - without.mean(axis=1, keepdims=True)
    root = np.sqrt(shares)[:, np.newaxis]
    scaled: FloatArray = np.divide(deviations, root, out=np.zeros_like(deviations), where=root > 0)
    return scaled


def mixture_tail(x: float, weights: FloatArray, df: int) -> float:
    """P(sum of weights·chi-square of 1 > x·(chi-square of df)/df), by the saddlepoint.

    The tail of X² where the weights are known from `df` + 1 groups: exactly F for one of them. On one chi-square of
    the same mean and variance (Satterthwaite) a cell that units have all their rows in rejects 0.3 to 0.4 % at
    0.1 %, as far out the largest weight alone decides.

    References
    ----------
    Kuonen, D. (1999). Saddlepoint approximations for distributions of quadratic forms in normal variables. Biometrika
    86, 929-935, eq. 3.
    """
    positive = weights[weights > 0]
    if len(positive) == 1:
        return float(special.fdtrc(1, df, x / positive[0]))

    def slope(t: float) -> float:
        return float((positive / (1 - 2 * positive * t)).sum()) - x / (1 + 2 * x * t / df)

    # The pole on either side; at 0 the slope is mean - x.
    low, high = -df / (2 * x), 1 / (2 * float(positive.max()))
    t = float(optimize.brentq(slope, low * (1 - 1e-10), high * (1 - 1e-10), xtol=1e-14, rtol=1e-12))
    logarithms = float(np.log1p(-2 * positive * t).sum()) + df * log1p(2 * x * t / df)
    r = copysign(sqrt(max(0.0, logarithms)), t)
    curvature = 2 * float(((positive / (1 - 2 * positive * t)) ** 2).sum()) + 2 * (x / (1 + 2 * x * t / df)) ** 2 / df
    if abs(r) < _NEAR_MEAN:  # The formula is 0/0 there, and nothing is decided there.
        equal = positive.sum() ** 2 / (positive * positive).sum()
        return float(special.fdtrc(equal, df, x / positive.sum()))
    return float(special.ndtr(-(r + log(t * sqrt(curvature) / r) / r)))


def _counted(profile: Profile, clustered: bool) -> tuple[int, IntArray]:
    """All units and those with a row in each cell, or all rows and those in each cell."""
    return (profile.n_units, profile.units) if clustered else (profile.n_rows, profile.by_cell)


def _unseen_without_drift(sides: Sides, kind: str) -> int:
    """How many of the reference's rows would have been unseen, had they been new: those with a value of their own.

    References
    ----------
    Good, I. J. (1953). The population frequencies of species and the estimation of population parameters.
    Biometrika 40, 237-264, eq. 9.
    """
    cells = sides.cells
    if kind != UNSEEN or not isinstance(cells, UnorderedCells) or not cells.n_singletons:
        return 0
    return ceil(cells.n_singletons * min(1.0, sides.reference.n_rows / cells.n_rows))


def _arm(profile: Profile, n_ordinary: int) -> Arm:
    """Rows with a value, and mean and variance of their location in steps, from exact integers."""
    rows, steps, squares = profile.located(n_ordinary)
    n, total, square = int(rows.sum()), int(steps.sum()), sum(squares)
    if n < 2:
        return Arm(n, nan, nan)
    return Arm(n, total / n, (n * square - total * total) / (n * (n - 1)))


def _mean_error(sides: Sides) -> tuple[float, int]:
    """The jackknife's standard error of the difference of the means in steps, and the buckets that have rows."""
    (m, a, _), (n, b, _) = (each.located(sides.cells.n_ordinary) for each in (sides.reference, sides.current))
    groups = int(((m + n) > 0).sum())
    left = [each.sum() - each for each in (m, n)]
    if min(each.min() for each in left) <= 0:
        return nan, groups
    without = (b.sum() - b) / left[1] - (a.sum() - a) / left[0]
    return sqrt(float(((without - without.mean()) ** 2).sum()) * (N_BUCKETS - 1) / N_BUCKETS), groups


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
