"""What does the experiment say? Checks and effects, and what to do about every treatment that follows from them."""

from collections.abc import Collection
from datetime import date
from typing import NamedTuple

from mltrust.experiment.cells import ExperimentStates
from mltrust.experiment.check import Check
from mltrust.experiment.checks import checks
from mltrust.experiment.disparities import Disparity, disparities
from mltrust.experiment.effects import Effect, effects
from mltrust.experiment.recommendation import Advice, Recommendation, advice
from mltrust.experiment.spec import Experiment
from mltrust.verdicts import Verdict

_BEST_FIRST: tuple[Recommendation, ...] = ("ship", "keep running", "do not ship", "invalid")


class Readout(NamedTuple):
    """What to do about every treatment and why, the best one first, and all rows behind it."""

    advice: tuple[Advice, ...]
    effects: tuple[Effect, ...]
    checks: tuple[Check, ...]
    disparities: tuple[Disparity, ...] = ()

    @property
    def recommendation(self) -> Recommendation:
        """That of the best treatment: one that can ship does, whatever the others do."""
        return self.advice[0].recommendation

    @property
    def verdict(self) -> Verdict:
        return self.advice[0].verdict

    @property
    def reasons(self) -> tuple[str, ...]:
        return self.advice[0].reasons


def readout(states: ExperimentStates, experiment: Experiment, as_of: date, delays: Collection[str] = ()) -> Readout:
    """Reads an experiment's states as of a day: effects, what speaks against them, and what to do.

    `delays` are the metric columns of the log that are delays of outcomes.
    """
    found, unlike = effects(states, experiment, as_of), disparities(states, experiment)
    checked = checks(states, experiment, found, unlike, delays)
    advised = [advice(found, checked, experiment, as_of, treatment) for treatment in experiment.treatments]
    advised.sort(key=lambda each: _BEST_FIRST.index(each.recommendation))
    return Readout(tuple(advised), tuple(found), tuple(checked), tuple(unlike))
