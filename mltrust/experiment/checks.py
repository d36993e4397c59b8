"""Is the experiment valid? Every check, the failed ones first."""

from collections.abc import Collection, Sequence
from math import isnan

from mltrust.experiment.balance import imbalances
from mltrust.experiment.cells import ExperimentStates
from mltrust.experiment.check import Check
from mltrust.experiment.disparities import Disparity, fairness_checks
from mltrust.experiment.effects import Effect
from mltrust.experiment.interaction import interactions
from mltrust.experiment.mismatch import mismatches
from mltrust.experiment.oddities import oddities
from mltrust.experiment.paradox import paradoxes
from mltrust.experiment.randomisation import randomisations
from mltrust.experiment.resalting import resaltings
from mltrust.experiment.search import worst_slices
from mltrust.experiment.spec import Experiment
from mltrust.slices import n_attributes
from mltrust.verdicts import Verdict


def checks(
    states: ExperimentStates,
    experiment: Experiment,
    effects: Sequence[Effect],
    disparities: Sequence[Disparity] = (),
    delays: Collection[str] = (),
) -> list[Check]:
    """Every check of the experiment: the failed ones first, then by how many attributes their slices cross."""
    found = [
        *mismatches(states, experiment),
        *randomisations(states, experiment),
        *imbalances(states, experiment),
        *paradoxes(states, experiment),
        *oddities(states, experiment, effects, delays),
        *resaltings(states, experiment),
        *interactions(states, experiment),
        *worst_slices(states, experiment),
        *fairness_checks(disparities, experiment),
    ]
    return sorted(found, key=_rank)


def _rank(row: Check) -> tuple[bool, int, float]:
    """Failed ones before others, all units before slices, and of slices those first that fail most clearly."""
    pvalue = row.pvalue if row.verdict is Verdict.BREACH and not isnan(row.pvalue) else 1.0
    return row.verdict is not Verdict.BREACH, n_attributes(row.slice_key), pvalue
