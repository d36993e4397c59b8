"""Champion against candidate on the same requests: what is known of a slice, and the measures of it.

The observation is the unit: rows of one unit are summed first, weighted where the set was drawn at several rates. A
measure is one function under `measure` or `trial`; the gate, the tables and the report pick it up.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import nan, sqrt
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from mltrust.states.moments import FloatArray, Moments
from mltrust.stats.ratios import ratio_arm

Role = Literal["pair", "champion", "candidate"]
CHAMPION: Role = "champion"
CANDIDATE: Role = "candidate"
PAIR: Role = "pair"
BOTH: tuple[Role, ...] = (CHAMPION, CANDIDATE)

WEIGHT = "weight"
#: Weights of rows with a decision: 0 without a threshold, so that nothing is said of decisions.
DECISIONS = "decisions"
#: Sums of a unit over the rows that both models scored, each times the row's weight.
PAIRED = (WEIGHT, DECISIONS, "agree", "difference", "abs_difference", "up", "down", "champion", "candidate", "top",
          "candidate_top", "both_top")  # fmt: skip
#: The same over rows with a label: whose decision was right where they differ, and squared errors of the scores.
LABELLED = (WEIGHT, DECISIONS, "win", "loss", "champion_squared", "candidate_squared")
#: Sums over all rows, unweighted: they are of the run and not of the traffic.
SCORED = ("rows", "champion_errors", "candidate_errors")
#: Sums over the rows of which it is known how long both models took, unweighted too.
TIMED = ("rows", "champion_ms", "candidate_ms")
#: Sums over the rows that the champion scored and the log holds a score of, unweighted.
REPRODUCED = ("rows", "reproduced", "exact")
#: Sums over the rows to which a perturbation applies: |f(x') - f(x)|, decisions flipped, promises broken, and where
#: the model raised. `scored` are the weights of rows on which it did not, which alone say something of changes, and
#: so are decisions; `promised` those of rows under a promise, which a model that raises has broken.
TRIED = (WEIGHT, "scored", DECISIONS, "promised", "shift", "flipped", "broken", "failed")


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Weights of rows by the quantile cells of both scores, (k, k) with the champion's first, and sums per cell.

    `labels` and `labelled` are sums of labels and of the weights of rows that have one.
    """

    weight: FloatArray
    champion: FloatArray
    candidate: FloatArray
    labelled: FloatArray
    labels: FloatArray

    @classmethod
    def empty(cls, k: int) -> "Grid":
        return cls(*(np.zeros((k, k)) for _ in range(5)))

    def __add__(self, other: "Grid") -> "Grid":
        """The state of both sets of rows."""
        names = ("weight", "champion", "candidate", "labelled", "labels")
        return Grid(*(getattr(self, name) + getattr(other, name) for name in names))


class Scale(NamedTuple):
    """Of the whole set: the spread of each model's scores, and the largest difference that is mere noise."""

    champion_sd: float
    candidate_sd: float
    noise_floor: float

    def sd(self, role: Role) -> float:
        return self.champion_sd if role == CHAMPION else self.candidate_sd


class Evidence(NamedTuple):
    """What is known of a slice. `one_row_each`: every unit has one row of weight 1, as exact tests ask for."""

    n_rows: int
    one_row_each: bool
    max_difference: float
    paired: Moments
    labelled: Moments
    scored: Moments
    timed: Moments
    reproduced: Moments
    grid: Grid
    tried: Mapping[tuple[Role, str], Moments]
    scale: Scale


class Mismatch(NamedTuple):
    """Rows whose logged score was not given again, by why, with the largest distance in ulps (nan of none)."""

    reason: str
    n_rows: int
    max_ulps: float
    example: str


class Estimate(NamedTuple):
    """A measure of a slice. `std_error` is nan where it is no estimate; `pvalue` is of the value being 0."""

    value: float
    std_error: float
    n_units: int
    pvalue: float = nan


OfSlice = Callable[[Evidence, Role], Estimate]
OfTrial = Callable[[Moments, float], Estimate]


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure by name, with what it claims of itself: its bounds, whose it is, and what it says in words.

    One that `is_fact` was counted on every row that there is; others estimate what holds of the traffic.
    """

    name: str
    words: str
    low: float
    high: float
    roles: tuple[Role, ...]
    is_fact: bool
    of: OfSlice


@dataclass(frozen=True, slots=True)
class Trial:
    """A measure of a model under one perturbation, with its bounds."""

    name: str
    words: str
    low: float
    high: float
    of: OfTrial


#: All measures by name.
MEASURES: dict[str, Measure] = {}
TRIALS: dict[str, Trial] = {}


def measure(
    words: str,
    *,
    low: float = -np.inf,
    high: float = np.inf,
    roles: tuple[Role, ...] = (PAIR,),
    is_fact: bool = False,
) -> Callable[[OfSlice], OfSlice]:
    """Registers a measure of slices under the function's name."""

    def register(of: OfSlice) -> OfSlice:
        name = of.__name__
        MEASURES[name] = Measure(name, words, low, high, roles, is_fact, of)
        return of

    return register


def trial(words: str, *, low: float = -np.inf, high: float = np.inf) -> Callable[[OfTrial], OfTrial]:
    """Registers a measure of perturbations under the function's name."""

    def register(of: OfTrial) -> OfTrial:
        TRIALS[of.__name__] = Trial(of.__name__, words, low, high, of)
        return of

    return register


def share(state: Moments, numerator: str, denominator: str = WEIGHT) -> Estimate:
    """sum(numerator) / sum(denominator) over units, with the delta method's standard error."""
    if state.n == 0:
        return Estimate(nan, nan, 0)
    arm = ratio_arm(state, numerator, denominator)
    return Estimate(arm.mean, sqrt(arm.mean_variance) if arm.n > 1 else nan, arm.n)


def _total(state: Moments, column: str) -> float:
    return float(state.mean[state.index(column)]) * state.n if state.n else 0.0


def _plain(value: float, n: int) -> Estimate:
    return Estimate(value, nan, n)


def _mean(state: Moments, numerator: str, denominator: str = WEIGHT) -> float:
    return share(state, numerator, denominator).value


@measure("share of logged scores that the logged version gives again", low=0, high=1, roles=(CHAMPION,), is_fact=True)
def reproduced(evidence: Evidence, _role: Role) -> Estimate:
    return _plain(_mean(evidence.reproduced, "reproduced", "rows"), evidence.reproduced.n)


@measure("share of logged scores given again bit for bit", low=0, high=1, roles=(CHAMPION,), is_fact=True)
def exact(evidence: Evidence, _role: Role) -> Estimate:
    return _plain(_mean(evidence.reproduced, "exact", "rows"), evidence.reproduced.n)


@measure("share of rows on which the model raised, or gave no number", low=0, high=1, roles=BOTH, is_fact=True)
def errors(evidence: Evidence, role: Role) -> Estimate:
    return _plain(_mean(evidence.scored, f"{role}_errors", "rows"), evidence.scored.n)


@measure("milliseconds of a row in a batch", low=0, roles=BOTH, is_fact=True)
def latency_ms(evidence: Evidence, role: Role) -> Estimate:
    return _plain(_mean(evidence.timed, f"{role}_ms", "rows"), evidence.timed.n)


@measure("latency of the candidate in that of the champion", low=0, is_fact=True)
def latency_ratio(evidence: Evidence, _role: Role) -> Estimate:
    champion = _mean(evidence.timed, "champion_ms", "rows")
    value = _mean(evidence.timed, "candidate_ms", "rows") / champion if champion > 0 else nan
    return _plain(value, evidence.timed.n)


@measure("mean score", roles=BOTH)
def mean_score(evidence: Evidence, role: Role) -> Estimate:
    return share(evidence.paired, role)


@measure("share of rows whose two scores differ by no more than noise", low=0, high=1)
def agreement(evidence: Evidence, _role: Role) -> Estimate:
    return share(evidence.paired, "agree")


@measure("mean of candidate minus champion")
def score_shift(evidence: Evidence, _role: Role) -> Estimate:
    return _tested(share(evidence.paired, "difference"))


@measure("mean size of the difference of scores", low=0)
def mean_difference(evidence: Evidence, _role: Role) -> Estimate:
    return share(evidence.paired, "abs_difference")


@measure("largest difference of scores", low=0, is_fact=True)
def max_difference(evidence: Evidence, _role: Role) -> Estimate:
    return _plain(evidence.max_difference, evidence.paired.n)


@measure("share of decisions that the candidate changes", low=0, high=1)
def churn(evidence: Evidence, _role: Role) -> Estimate:
    """Milani Fard et al. (2016), Launch and iterate: reducing prediction churn, eq. 1."""
    return share(_with(evidence.paired, "flips", {"up": 1, "down": 1}), "flips", DECISIONS)


@measure("decisions changed to yes minus those changed to no, as a share of all", low=-1, high=1)
def flip_balance(evidence: Evidence, _role: Role) -> Estimate:
    return _balance(evidence, evidence.paired, "up", "down")


@measure("changed decisions that were right minus those that were wrong, as a share of all", low=-1, high=1)
def win_balance(evidence: Evidence, _role: Role) -> Estimate:
    return _balance(evidence, evidence.labelled, "win", "loss")


@measure("share of decisions that the candidate changed for the better", low=0, high=1)
def wins(evidence: Evidence, _role: Role) -> Estimate:
    return share(evidence.labelled, "win", DECISIONS)


@measure("share of decisions that the candidate changed for the worse", low=0, high=1)
def losses(evidence: Evidence, _role: Role) -> Estimate:
    return share(evidence.labelled, "loss", DECISIONS)


@measure("squared error of the candidate's scores minus that of the champion's")
def squared_error_change(evidence: Evidence, _role: Role) -> Estimate:
    change = {"candidate_squared": 1, "champion_squared": -1}
    return _tested(share(_with(evidence.labelled, "change", change), "change"))


@measure("mean squared error of the scores", low=0, roles=BOTH)
def squared_error(evidence: Evidence, role: Role) -> Estimate:
    return share(evidence.labelled, f"{role}_squared")


@measure("Spearman's rank correlation of the two scores, on quantile cells", low=-1, high=1)
def rank_correlation(evidence: Evidence, _role: Role) -> Estimate:
    """Standard error by Bonett and Wright (2000), Psychometrika 65, eq. 4, over units."""
    rho, n = spearman(evidence.grid.weight), evidence.paired.n
    return Estimate(rho, (1 - rho * rho) * sqrt((1 + rho * rho / 2) / (n - 3)) if n > 3 else nan, n)


@measure("of the rows that a model ranks top, the share that the other does too", low=0, high=1)
def top_overlap(evidence: Evidence, _role: Role) -> Estimate:
    """Of the larger top: a model that gives many rows one score ranks them all top."""
    larger = max(("top", "candidate_top"), key=lambda name: _total(evidence.paired, name))
    return share(evidence.paired, "both_top", larger)


@measure("how far the candidate's mean lies from the champion's within groups of like scores", low=0)
def calibration_shift(evidence: Evidence, _role: Role) -> Estimate:
    grid = evidence.grid
    apart = _in_tenths(grid.candidate.sum(axis=1) - grid.champion.sum(axis=1))
    total = grid.weight.sum()
    return _plain(float(np.abs(apart).sum() / total) if total else nan, evidence.paired.n)


@measure("expected calibration error: how far labels lie from scores within groups of like scores", low=0, roles=BOTH)
def calibration_error(evidence: Evidence, role: Role) -> Estimate:
    grid, axis = evidence.grid, 1 if role == CHAMPION else 0
    labelled = grid.labelled.sum()
    # Sums of scores are over all rows: taken to the labelled ones by the cell's mean.
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.nan_to_num(getattr(grid, role).sum(axis=axis) / grid.weight.sum(axis=axis))
    apart = _in_tenths(grid.labels.sum(axis=axis) - means * grid.labelled.sum(axis=axis))
    return _plain(float(np.abs(apart).sum() / labelled) if labelled else nan, evidence.labelled.n)


@trial("mean |f(x') - f(x)| in standard deviations of f, where the model does not raise", low=0)
def instability(state: Moments, sd: float) -> Estimate:
    plain = share(state, "shift", "scored")
    return Estimate(plain.value / sd, plain.std_error / sd, plain.n_units) if sd > 0 else Estimate(nan, nan, state.n)


@trial("share of decisions that the perturbation flips", low=0, high=1)
def perturbed_flips(state: Moments, _sd: float) -> Estimate:
    return share(state, "flipped", DECISIONS)


@trial("share of rows on which the promise is broken", low=0, high=1)
def broken_promises(state: Moments, _sd: float) -> Estimate:
    return share(state, "broken", "promised")


@trial("share of rows on which the model raises under the perturbation and not without", low=0, high=1)
def perturbed_errors(state: Moments, _sd: float) -> Estimate:
    return share(state, "failed")


def _with(state: Moments, name: str, terms: Mapping[str, int]) -> Moments:
    """`state` with one column more, a sum of others."""
    row = np.zeros(len(state.columns))
    for column, factor in terms.items():
        row[state.index(column)] = factor
    mapping = np.vstack([np.eye(len(state.columns)), row])
    return Moments((*state.columns, name), state.n, mapping @ state.mean, mapping @ state.scatter @ mapping.T)


def _balance(evidence: Evidence, state: Moments, for_it: str, against: str) -> Estimate:
    """The difference of two shares; McNemar's exact test where units are rows, else the paired test over units."""
    found = share(_with(state, "balance", {for_it: 1, against: -1}), "balance", DECISIONS)
    if not evidence.one_row_each or found.value != found.value:  # nan is not equal to itself
        return _tested(found)
    return found._replace(pvalue=mcnemar(round(_total(state, for_it)), round(_total(state, against))))


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p-value that a changed decision is as likely a gain as a loss; nan without any.

    References
    ----------
    McNemar, Q. (1947). Note on the sampling error of the difference between correlated proportions or percentages.
    Psychometrika 12, 153-157; exact by the binomial law of the discordant pairs.
    """
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else nan


def _tested(found: Estimate) -> Estimate:
    """The estimate with the two-sided p-value of its being 0, by the t law over units; nan without variance."""
    if not found.std_error > 0:
        return found
    return found._replace(pvalue=float(2 * stats.t.sf(abs(found.value / found.std_error), found.n_units - 1)))


def spearman(weight: ArrayLike) -> float:
    """Rank correlation of grouped data, (k, k) weights of the cells, with mid-ranks; nan where one side is constant.

    References
    ----------
    Kendall, M. G. (1945). The treatment of ties in ranking problems. Biometrika 33, 239-251.
    """
    cells = np.asarray(weight, dtype=np.float64)
    total = cells.sum()
    if total <= 0:
        return nan
    sides = (cells.sum(axis=1), cells.sum(axis=0))
    ranks = [np.cumsum(side) - side / 2 - total / 2 for side in sides]
    spreads = [float((side * rank * rank).sum()) for side, rank in zip(sides, ranks, strict=True)]
    if min(spreads) <= 0:
        return nan
    return float(ranks[0] @ cells @ ranks[1]) / sqrt(spreads[0] * spreads[1])


def _in_tenths(cells: FloatArray) -> FloatArray:
    """Sums of ten neighbouring groups of cells."""
    return np.add.reduceat(cells, np.linspace(0, len(cells), 11).astype(np.intp)[:10]) if len(cells) >= 10 else cells


def ulps(logged: ArrayLike, replayed: FloatArray | NDArray[np.float32]) -> NDArray[np.int64]:
    """How many representable numbers the two lie apart, 0 where they are the same number; -1 where one is nan.

    Counted in the type of `replayed`: what a float32 model gave is compared as float32, however the log keeps it.
    """
    left, right = np.empty_like(replayed), replayed
    left[...] = logged
    whole = np.uint32 if replayed.dtype == np.float32 else np.uint64
    a, b = _ordered(left, whole), _ordered(right, whole)
    apart = np.maximum(a, b) - np.minimum(a, b)
    counted = np.minimum(apart, np.uint64(np.iinfo(np.int64).max)).astype(np.int64)
    return np.where(np.isnan(left) | np.isnan(right), np.int64(-1), counted)


def _ordered(
    values: FloatArray | NDArray[np.float32], whole: type[np.uint32] | type[np.uint64]
) -> NDArray[np.uint64]:
    """Unsigned numbers in the order of the floats, neighbours one apart, both zeros the same."""
    bits = values.view(whole).astype(np.uint64)
    top = np.uint64(1 << (8 * values.itemsize - 1))
    size = bits & (top - np.uint64(1))
    return np.where(bits >= top, top - size, top + size)
