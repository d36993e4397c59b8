"""Three planted changes, each of which one kind of drift sees and the others must not: every alarm is run on each.

(a) A new version with its two leading weights swapped, on the same inputs. (b) The correlation of two interacting
features reversed, their marginals kept. (c) The sign of one feature's effect on the outcome flipped.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from mltrust.drift.alarm import Alarm, Key
from mltrust.drift.attribution import AttributionRule, attribution_drift, ranking
from mltrust.drift.cells import OrderedCells
from mltrust.drift.findings import findings
from mltrust.drift.multivariate import MultivariateRule, multivariate_drift, two_sample
from mltrust.drift.noise import Sides
from mltrust.drift.performance import PerformanceRule, ScoreLabels, performance_drift
from mltrust.drift.profile import Profile
from mltrust.drift.relation import RelationRule, Residuals, relation_drift
from mltrust.drift.shifts import Shift
from mltrust.slices import Slice
from mltrust.spark.explainers import explain
from mltrust.states.moments import FloatArray
from mltrust.states.replicates import Replicates
from mltrust.verdicts import Verdict
from tests.unit.drift_states import hashes, jackknifed

OVERALL = Slice("", "")


class Logistic:
    """A model by the log-odds that it gives rows; nothing else is known of it."""

    def __init__(self, log_odds: Callable[[pd.DataFrame], FloatArray]) -> None:
        self._log_odds = log_odds

    def predict(self, rows: pd.DataFrame) -> FloatArray:
        return np.asarray(special.expit(self._log_odds(rows)))


class Side(NamedTuple):
    """A window: the inputs, the model that scores them, and what became of them by another (the world's own)."""

    inputs: pd.DataFrame
    model: Logistic
    labels: FloatArray
    units: NDArray[np.int64]


def side(inputs: pd.DataFrame, model: Logistic, world: Logistic, seed: int) -> Side:
    happens = np.random.default_rng([seed, 1]).random(len(inputs)) < world.predict(inputs)
    return Side(inputs, model, happens.astype(np.float64), hashes(len(inputs), seed))


def breached(found: list[Shift]) -> set[str]:
    assert Verdict.INCONCLUSIVE not in {each.verdict for each in found}
    return {each.column for each in found if each.verdict is Verdict.BREACH}


def marginals(reference: Side, current: Side, *, paired: bool = False) -> set[str]:
    values = [each.inputs.assign(prediction_score=each.model.predict(each.inputs)) for each in (reference, current)]
    sides = {}
    for name in values[0].columns:
        cells = OrderedCells.of(values[0][name])
        both = (Profile.of(cells, v[name], each.units) for v, each in zip(values, (reference, current), strict=True))
        sides[Key(str(name))] = Sides(cells, *both, paired)
    return {each.column for each in findings(sides, Alarm(), 0.001) if each.verdict == Verdict.BREACH}


def attributed(each: Side, background: pd.DataFrame) -> Replicates:
    """Of the first 1,500 rows, which is what a sample is for."""
    rows, units = each.inputs.iloc[:1_500], each.units[:1_500]
    phi = np.abs(explain(each.model, background, scale="score")(rows))
    return jackknifed(tuple(map(str, rows.columns)), phi, units)


def attributions(reference: Side, current: Side) -> tuple[Replicates, Replicates]:
    background = reference.inputs.iloc[-24:]
    return attributed(reference, background), attributed(current, background)


def multivariate(reference: Side, current: Side) -> set[str]:
    rows = pd.concat([reference.inputs.iloc[:2_000], current.inputs.iloc[:2_000]])
    units = np.concatenate([reference.units[:2_000], current.units[:2_000]])
    found = two_sample(list(rows.to_numpy().T), np.arange(len(rows)) >= 2_000, units)
    return breached(multivariate_drift({OVERALL: found}, MultivariateRule()))


def residuals(each: Side, name: str, cells: OrderedCells) -> Residuals:
    return Residuals.of(cells, each.inputs[name], each.labels - each.model.predict(each.inputs), each.units)


def relations(reference: Side, current: Side) -> set[str]:
    columns = {}
    for name in reference.inputs.columns:
        cells = OrderedCells.of(reference.inputs[name])
        both = (
            Residuals.of(
                cells, each.inputs[name].to_numpy(), each.labels - each.model.predict(each.inputs), each.units
            )
            for each in (reference, current)
        )
        columns[str(name)] = (cells, *both)
    return breached(relation_drift({OVERALL: columns}, RelationRule()))


def performance(reference: Side, current: Side) -> set[str]:
    states = [
        ScoreLabels.of(each.model.predict(each.inputs), each.labels, each.units) for each in (reference, current)
    ]
    return breached(performance_drift({OVERALL: (states[0], states[1])}, PerformanceRule()))


def normal(n: int, correlation: dict[tuple[int, int], float], names: str, seed: int) -> pd.DataFrame:
    covariance = np.eye(len(names))
    for (i, j), rho in correlation.items():
        covariance[i, j] = covariance[j, i] = rho
    drawn = np.random.default_rng([seed, 2]).multivariate_normal(np.zeros(len(names)), covariance, n)
    return pd.DataFrame(drawn, columns=list(names))


def linear(weights: dict[str, float]) -> Logistic:
    return Logistic(lambda rows: np.asarray(sum(weight * rows[name] for name, weight in weights.items())))


def test_swapped_leading_weights_are_seen_by_attribution_alone() -> None:
    """The two leading features go together (0.97), as where one is nearly a copy: scores hardly change."""
    weights = dict(zip("abcdef", (1.6, 1.0, 0.6, 0.4, 0.24, 0.16), strict=True))
    old, new = linear(weights), linear(weights | {"a": weights["b"], "b": weights["a"]})
    inputs = normal(10_000, {(0, 1): 0.97}, "abcdef", 1)
    before, after = side(inputs, old, old, 1), side(inputs, new, old, 1)
    states = attributions(before, after)
    found = attribution_drift({OVERALL: states}, AttributionRule())
    assert {each.column for each in found if each.verdict is Verdict.BREACH} == {"a", "b"}
    assert ranking(*states).ndcg_low > 0.9
    assert marginals(before, after, paired=True) == set()
    assert multivariate(before, after) == set()
    assert relations(before, after) == set()
    assert performance(before, after) == set()


def test_a_reversed_correlation_is_seen_by_attribution_and_the_two_sample_test() -> None:
    """What a·b does depends on the sign of c, so that scores have the same law before and after."""
    model = Logistic(lambda rows: np.asarray(rows["a"] * rows["b"] * np.sign(rows["c"]) + 0.8 * rows["d"]))
    before = side(normal(10_000, {(0, 1): 0.9}, "abcd", 3), model, model, 3)
    after = side(normal(10_000, {(0, 1): -0.9}, "abcd", 4), model, model, 4)
    found = breached(attribution_drift({OVERALL: attributions(before, after)}, AttributionRule()))
    assert found == {"a", "b", "c"}
    assert multivariate(before, after) == {"(all)"}
    assert marginals(before, after) == set()
    assert relations(before, after) == set()
    assert performance(before, after) == set()


def test_a_flipped_effect_is_seen_by_relation_and_calibration() -> None:
    """b is a minor feature: its flip costs the AUC 0.013, within the floor of 0.02, and the slope 0.07 of 1."""
    model, flipped = linear({"a": 2.0, "b": 0.25}), linear({"a": 2.0, "b": -0.25})
    before = side(normal(60_000, {}, "abc", 5), model, model, 5)
    after = side(normal(60_000, {}, "abc", 6), model, flipped, 6)
    assert relations(before, after) == {"b"}
    assert performance(before, after) == {"calibration_slope"}
    assert breached(attribution_drift({OVERALL: attributions(before, after)}, AttributionRule())) == set()
    assert multivariate(before, after) == set()
    assert marginals(before, after) == set()
