"""The registry of detectors: what each claims, what it sees, and what it says of every bucket.

A detector is one decorated function of what it sees, how it is told to look, and the error that each of its tests may
spend. Conf validation, the split of the budget and the generic law tests pick it up.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import NamedTuple

import numpy as np

from mltrust.monitor.residuals import Residuals, residuals
from mltrust.monitor.series import Kind, Panel
from mltrust.monitor.spec import Arms, Detection, Direction
from mltrust.states.moments import FloatArray


class Sight:
    """The series that a detector judges from bucket `first` on; it may look at no bucket after the one it judges.

    `worse` is per series the direction of harm, `arms` what has a concurrent control. `forgotten` (series, buckets)
    are buckets of known events, which are no history; `maturing` is per series how long it takes to be known.
    """

    def __init__(
        self,
        panel: Panel,
        first: int,
        *,
        worse: tuple[Direction, ...] | None = None,
        arms: Arms | None = None,
        forgotten: np.ndarray | None = None,
        min_requests: int = 30,
        maturing: tuple[timedelta, ...] | None = None,
    ) -> None:
        self.panel, self.first, self.arms = panel, first, arms
        self.worse: tuple[Direction, ...] = worse if worse else tuple("both" for _ in panel.keys)
        self.forgotten = np.zeros(panel.n.shape, dtype=bool) if forgotten is None else forgotten
        self.maturing = maturing or (timedelta(),) * len(panel.keys)
        self._min_requests = min_requests

    @cached_property
    def residuals(self) -> Residuals:
        """Residuals against the same hour of earlier weeks."""
        return residuals(self.panel, self.first, self.forgotten, min_requests=self._min_requests)


class Scored(NamedTuple):
    """What a detector says of the buckets from `first` on: arrays (series, judged buckets); nan: not judged.

    A finding is where the p-value is at most the test's error and |score| at least `threshold`.
    """

    score: FloatArray
    pvalue: FloatArray
    expected: FloatArray
    low: FloatArray
    high: FloatArray
    threshold: FloatArray
    excess: FloatArray
    noise: FloatArray

    @classmethod
    def unjudged(cls, panel: Panel, first: int) -> "Scored":
        return cls(*(np.full((len(panel.keys), panel.n_buckets - first), np.nan) for _ in cls._fields))


Judge = Callable[[Sight, Detection, float], Scored]


@dataclass(frozen=True, slots=True)
class Detector:
    """A registered detector and its claims.

    `kinds` of metrics that it judges; `spends` whether its tests take part in the budget (an operator's limit does
    not); `is_default` whether it runs where the conf names none; `of_arms` whether it compares arms, else it judges
    the whole traffic of all versions; `needs` options without which it cannot work.
    """

    name: str
    judge: Judge
    kinds: frozenset[Kind]
    words: str
    spends: bool = True
    is_default: bool = True
    of_arms: bool = False
    needs: tuple[str, ...] = ()


DETECTORS: dict[str, Detector] = {}


def detector(
    name: str,
    *,
    kinds: tuple[Kind, ...],
    words: str,
    spends: bool = True,
    is_default: bool = True,
    of_arms: bool = False,
    needs: tuple[str, ...] = (),
) -> Callable[[Judge], Judge]:
    """Registers a detector under a name; `words` tell what a finding of it says."""

    def register(judge: Judge) -> Judge:
        if name in DETECTORS:
            raise ValueError(f"detector {name!r} is registered twice")
        DETECTORS[name] = Detector(name, judge, frozenset(kinds), words, spends, is_default, of_arms, needs)
        return judge

    return register


def problems(detections: tuple[Detection, ...], metrics: Mapping[str, Kind]) -> list[str]:
    """What is wrong with the detectors of a conf, each as one line; empty where nothing is."""
    found = []
    for at, each in enumerate(detections):
        known = DETECTORS.get(each.kind)
        if known is None:
            found.append(f"detectors.{at}.kind is {each.kind!r}, expected one of {', '.join(sorted(DETECTORS))}")
        elif known.needs and all(getattr(each, name) is None for name in known.needs):
            found.append(f"detectors.{at}: {each.kind} needs {' or '.join(known.needs)}")
        elif not any(kind in known.kinds and each.concerns_metric(name) for name, kind in metrics.items()):
            judged = ", ".join(sorted(known.kinds))
            found.append(f"detectors.{at}: {each.kind} judges metrics of kind {judged}, and finds none")
    return found
