"""The looks of a sequential analysis: states that grow with the days of first exposure, recomputed at every run."""

from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from itertools import accumulate
from operator import add
from typing import NamedTuple

from mltrust.experiment.cells import UNITS, ExperimentStates, SliceStates
from mltrust.experiment.spec import Experiment
from mltrust.metrics import Metric

_WEEK = timedelta(days=7)
_SMALLEST_RISE = 1e-3


class Looks(NamedTuple):
    """All units first exposed up to each day, by that day, and how many are expected in the end."""

    upto: dict[date, SliceStates]
    horizon: float

    def every_day(self) -> list[SliceStates]:
        return list(self.upto.values())

    def every_week(self, metric: Metric, start: date, as_of: date) -> list[SliceStates]:
        """Weeks of exposures whose windows are all over before as_of; a week without new units is no look.

        The last day of a week is followed by one day less than the window has.
        """
        found: list[SliceStates] = []
        for end in _ends(start, as_of - timedelta(days=(metric.window_days or 1) - 1)):
            seen = [states for day, states in self.upto.items() if day < end]
            if seen and (not found or found[-1] is not seen[-1]):
                found.append(seen[-1])
        return found


def looks(states: ExperimentStates, experiment: Experiment) -> Looks:
    """The looks of an experiment; without any units none."""
    upto = dict(zip(states.by_day, accumulate(states.by_day.values(), add), strict=True))
    first = next(iter(states.by_day.values()), None)
    n_first = sum(first.count(UNITS, arm) for arm in experiment.arms) if first is not None else 0
    return Looks(upto, experiment.expected_units(n_first))


def rising(information: Sequence[float]) -> list[int]:
    """Which looks of a share of the planned information add to it: each at least 0.001 beyond the one before it."""
    found: list[int] = []
    for at, share in enumerate(information):
        if share - (information[found[-1]] if found else 0.0) >= _SMALLEST_RISE:
            found.append(at)
    return found


def _ends(start: date, last: date) -> Iterator[date]:
    end = start + _WEEK
    while end <= last:
        yield end
        end += _WEEK
