"""A planned experiment tried on the log's past: units enter when they are first seen, and nobody is treated."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from itertools import accumulate
from typing import NamedTuple

from mltrust.experiment.cells import UNITS, Arm, Blocks, SliceStates, metric_block
from mltrust.experiment.plan import FEWEST_WEEKS
from mltrust.experiment.spec import Experiment
from mltrust.metrics import Metric
from mltrust.states.moments import Moments

_WEEK = timedelta(days=7)


class History(NamedTuple):
    """The first and the last UTC day before as_of on which units were seen; None without any."""

    first: date | None
    last: date | None


def maturing_weeks(experiment: Experiment) -> int:
    """Whole weeks after an arrival until every window is over; 0 where none is longer than a day."""
    longest = max(metric.window_days or 1 for metric in experiment.unit_metrics)
    return -(-(longest - 1) // _WEEK.days)


def wanted_since(experiment: Experiment, as_of: date) -> date:
    """The first day of the history that a plan would like to have, the units' past among it."""
    weeks = experiment.plan.history_weeks + maturing_weeks(experiment)
    return as_of - weeks * _WEEK - timedelta(days=experiment.pre_days or 0)


def _weeks_of(history: History, experiment: Experiment, as_of: date) -> int:
    """The whole weeks before as_of that can be tried."""
    if history.first is None:
        return 0
    since = max(history.first, wanted_since(experiment, as_of))
    return (as_of - since - timedelta(days=experiment.pre_days or 0)).days // _WEEK.days


def unplannable(experiment: Experiment, history: History, as_of: date) -> str:
    """Why nothing can be planned from this history; '' where something can."""
    maturing, past = maturing_weeks(experiment), experiment.pre_days or 0
    least = timedelta(days=past) + (FEWEST_WEEKS + maturing) * _WEEK
    if experiment.unit is None:
        return "the conf states no unit (unit_id or request)"
    if experiment.unit == "bucket_id":
        return (
            "the units are buckets: the log knows them only from the experiment's start on, so it has no past of them"
        )
    if experiment.plan.max_weeks <= maturing:
        return (
            f"plan.max_weeks is {experiment.plan.max_weeks}, and the longest window alone takes {maturing} more weeks"
        )
    if history.first is None or history.last is None:
        return f"no unit was seen in production from {wanted_since(experiment, as_of)} to {as_of}"
    if history.last < as_of - _WEEK:
        return f"no unit was seen in production after {history.last}: a week or more before {as_of} is silent"
    if history.first > as_of - least:
        return (
            f"units are in the log since {history.first}; a plan as of {as_of} needs them since {as_of - least}: "
            f"{FEWEST_WEEKS} weeks of new units, {maturing} for the longest window, {past} days of the units' past"
        )
    return ""


@dataclass(frozen=True, slots=True)
class Trial:
    """The last `weeks` whole weeks before as_of, of which the windows of arrivals need the last `maturing` ones.

    `experiment` is what they are read by: every unit is in its control, and its phases are the weeks. A metric
    without a window has a copy in it for each week, that counts to the end of that week.
    """

    start: date
    weeks: int
    maturing: int
    experiment: Experiment

    @classmethod
    def before(cls, as_of: date, experiment: Experiment, history: History) -> "Trial":
        """The longest trial that the conf asks for and the history has, see `unplannable`."""
        weeks = _weeks_of(history, experiment, as_of)
        start = as_of - weeks * _WEEK
        metrics = tuple(
            each
            for metric in experiment.unit_metrics
            for each in ([metric] if metric.window_days else [_upto(metric, week) for week in range(1, weeks + 1)])
        )
        tried = replace(
            experiment,
            phases={start + week * _WEEK: dict.fromkeys(experiment.arms, 1.0) for week in range(weeks)},
            metrics=metrics,
            buckets={},
            planned_end=None,
            horizon=None,
            inference="fixed",
            sample=None,
            resampling=None,
            replicates=None,
            fairness=None,
            search=None,
            salts=None,
            trigger=None,
            decision_set=tuple(metric.name for metric in metrics),
        )
        return cls(start, weeks, maturing_weeks(experiment), tried)

    def copies(self) -> dict[str, tuple[str, date]]:
        """Columns of the copies: the column that each is made of, and the day before which it counts."""
        growing = [metric for metric in self.experiment.unit_metrics if metric.window_days is None]
        names = {name for metric in growing for name in metric.columns()}
        parts = {name: name.rpartition(_UPTO) for name in sorted(names)}
        return {name: (of, self.start + int(week) * _WEEK) for name, (of, _, week) in parts.items()}

    def measured(self, metric: Metric, weeks: int) -> Metric:
        """The metric of the trial by which a metric of the experiment is known after some weeks."""
        return metric if metric.window_days else _upto(metric, min(weeks, self.weeks))

    def known_weeks(self, metric: Metric) -> int:
        """The weeks of arrivals whose values of the metric are known."""
        return self.weeks - self.maturing if metric.window_days else self.weeks

    def arrival_weeks(self, metric: Metric, weeks: int) -> int:
        """The weeks whose arrivals count where an experiment is read after some weeks."""
        return weeks - self.maturing if metric.window_days else weeks


_UPTO = "_upto_week_"


def _upto(metric: Metric, week: int) -> Metric:
    denominator = None if metric.denominator is None else f"{metric.denominator}{_UPTO}{week}"
    return replace(
        metric,
        name=f"{metric.name}{_UPTO}{week}",
        numerator=f"{metric.numerator}{_UPTO}{week}",
        denominator=denominator,
    )


class Arrivals(NamedTuple):
    """Units first seen in each week of a trial; every later week has `decline` times the units of the one before."""

    observed: tuple[int, ...]
    decline: float

    def new(self, n_weeks: int) -> list[float]:
        """New units in each of the first weeks."""
        later = range(1, n_weeks - len(self.observed) + 1)
        return [*self.observed[:n_weeks], *(self.observed[-1] * self.decline**week for week in later)]

    def upto(self, n_weeks: int) -> list[float]:
        """Units at the end of each of the first weeks."""
        return list(accumulate(self.new(n_weeks)))


def arrivals(states: SliceStates, trial: Trial, decline: float | None = None) -> Arrivals:
    """The arrivals of a slice. Without a `decline` of others it is that from the last but one week to the last.

    It is never above 1: that a log grows is no reason to expect it to grow on.
    """
    observed = tuple(states.count(UNITS, trial.experiment.control, (week,)) for week in range(trial.weeks))
    own = min(1.0, observed[-1] / observed[-2]) if observed[-2] else 0.0
    return Arrivals(observed, own if decline is None else decline)


def expected(
    states: SliceStates, experiment: Experiment, trial: Trial, metric: Metric, coming: Arrivals, weeks: int
) -> SliceStates:
    """The states of the experiment's arms after some weeks, if units are like the trial's and nothing has an effect.

    Of the metric that `trial.measured` names. Units whose values the trial does not know are like those of the last
    week that it knows: as late, and so as rarely seen.
    """
    measured = trial.measured(metric, weeks)
    blocks: dict[Arm, Blocks] = {}
    for week, state in enumerate(_by_week(states, trial, metric, coming, weeks)):
        for phase, share in _phases_in(week, experiment):
            for arm, weight in _shares(phase, experiment).items():
                of_arm = resized(state, state.n * experiment.plan.traffic_share * share * weight)
                key = Arm(arm, phase, crossed=False)
                before = blocks.get(key, {}).get(metric_block(measured))
                blocks[key] = {metric_block(measured): of_arm if before is None else before + of_arm}
    return SliceStates(states.slice, blocks)


def _by_week(states: SliceStates, trial: Trial, metric: Metric, coming: Arrivals, weeks: int) -> Iterator[Moments]:
    """The state of each week of arrivals that counts."""
    n_known, n_weeks = trial.known_weeks(metric), trial.arrival_weeks(metric, weeks)
    new, measured = coming.new(n_weeks), trial.measured(metric, weeks)
    state = Moments.empty(measured.columns())
    for week in range(min(n_known, n_weeks)):
        state = states.moments(measured, trial.experiment.control, (week,))
        yield state
    for week in range(n_known, n_weeks):
        last = new[n_known - 1]
        yield resized(state, state.n * new[week] / last if last else 0)


def _phases_in(week: int, experiment: Experiment) -> list[tuple[int, float]]:
    """The allocation phases of a week of the experiment, with the share of its days in each."""
    starts: Sequence[date] = sorted(experiment.phases)[1:]
    days = (experiment.start + week * _WEEK + timedelta(days=day) for day in range(_WEEK.days))
    phases = Counter(sum(day >= start for start in starts) for day in days)
    return [(phase, n / _WEEK.days) for phase, n in sorted(phases.items())]


def _shares(phase: int, experiment: Experiment) -> dict[str, float]:
    weights = sorted(experiment.phases.items())[phase][1]
    return {arm: weight / sum(weights.values()) for arm, weight in weights.items() if weight > 0}


def resized(state: Moments, n: float) -> Moments:
    """The state of about n units with the same means and the same covariances of a unit."""
    n_units = round(n)
    if n_units < 1 or state.n < 1:
        return Moments.empty(state.columns)
    scale = (n_units - 1) / (state.n - 1) if state.n > 1 else 0.0
    return Moments(state.columns, n_units, state.mean, state.scatter * scale)
