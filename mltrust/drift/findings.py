"""The findings of a window: every test of a family with its effect sizes and its reason, a row each."""

from collections.abc import Mapping
from math import nan, sqrt
from typing import Literal, NamedTuple

import numpy as np
from scipy import special

from mltrust.drift.alarm import Alarm, Judged, Key, judge, measured
from mltrust.drift.detectable import detectable
from mltrust.drift.measures import MEASURES, empty_on_one_side
from mltrust.drift.noise import SHAPE, Sides
from mltrust.drift.words import reason
from mltrust.states.moments import FloatArray

#: The window by itself, or the last windows together.
Family = Literal["window", "pooled", "cusum"]
#: Databricks' names: against a reference that stays, or against the window before.
DriftType = Literal["BASELINE", "CONSECUTIVE"]


class Effects(NamedTuple):
    """Effect sizes of all cells as users know them from Databricks' table of drift metrics.

    `js_distance` is the root of the divergence in bits. `ks_pvalue` is asymptotic and, on cells, conservative; that
    of chi-square is the shape's. Nan where a measure needs an order that the cells have not.
    """

    js_distance: float = nan
    ks_statistic: float = nan
    ks_pvalue: float = nan
    wasserstein_distance: float = nan
    population_stability_index: float = nan
    chi_squared_statistic: float = nan
    chi_squared_pvalue: float = nan
    tv_distance: float = nan
    l_infinity_distance: float = nan


class Finding(NamedTuple):
    """One test of a window and what it says; field names are the columns of drift_findings.

    `n_reference` and `n_current` are the rows, or units, that the test compares, `value` its effect size in `unit`,
    `corrected` the same after noise, held against `floor`; `threshold` the q that `qvalue` is held against,
    `detectable` the drift that would be found with 80 % power. `contributions` are those of all cells to the
    divergence, on its rows only; `psi_corrected` says that the index has 0.5 added to the counts of some cell.
    """

    slice_key: str
    slice_value: str
    column: str
    family: str
    measure: str
    verdict: str
    reason: str
    edges_version: str = ""
    unit: str = ""
    n_reference: int = 0
    n_current: int = 0
    value: float = nan
    corrected: float = nan
    floor: float = nan
    std_error: float = nan
    statistic: float = nan
    df: float = nan
    design_effect: float = nan
    pvalue: float = nan
    qvalue: float = nan
    n_family: int = 0
    threshold: float = nan
    detectable: float = nan
    contributions: tuple[float, ...] = ()
    js_distance: float = nan
    ks_statistic: float = nan
    ks_pvalue: float = nan
    wasserstein_distance: float = nan
    population_stability_index: float = nan
    chi_squared_statistic: float = nan
    chi_squared_pvalue: float = nan
    tv_distance: float = nan
    l_infinity_distance: float = nan
    psi_corrected: bool = False


def findings(sides: Mapping[Key, Sides], alarm: Alarm, q: float, family: Family = "window") -> list[Finding]:
    """The findings of one window of one model version against one reference: one family.

    `sides` are of `alarm.sides_of`, `q` of `Alarm.level`. The windows pooled are a family of their own.
    """
    tests = [(key, test) for key, each in sides.items() for test in measured(each, alarm)]
    return [_finding(each, sides[each.key], alarm, q, family) for each in judge(tests, alarm, q)]


def effects(sides: Sides, chi_squared_pvalue: float = nan) -> Effects:
    """All measures of one column on all cells; nan where a side has no rows."""
    a, b = _counts(sides)
    size = {name: measure.value(a, b, sides.cells) for name, measure in MEASURES.items()}
    m, n = float(a.sum()), float(b.sum())
    rate = n * m / (n + m) if n and m else nan
    return Effects(
        js_distance=sqrt(size["jsd"]) if size["jsd"] >= 0 else nan,
        ks_statistic=size["ks"],
        ks_pvalue=float(special.kolmogorov(sqrt(rate) * size["ks"])) if size["ks"] >= 0 else nan,
        wasserstein_distance=size["wasserstein"],
        population_stability_index=size["psi"],
        chi_squared_statistic=rate * size["chi_square"],
        chi_squared_pvalue=chi_squared_pvalue,
        tv_distance=size["total_variation"],
        l_infinity_distance=size["l_infinity"],
    )


def _counts(sides: Sides) -> tuple[FloatArray, FloatArray]:
    return sides.reference.by_cell.astype(np.float64), sides.current.by_cell.astype(np.float64)


def _finding(judged: Judged, sides: Sides, alarm: Alarm, q: float, family: Family) -> Finding:
    key, test = judged.key, judged.test
    smallest = detectable(judged, alarm, q, len(sides.cells.structural))
    is_shape = test.measure == SHAPE and sides.reference.n_rows > 0 and sides.current.n_rows > 0
    contributions = MEASURES[SHAPE].contributions(*_counts(sides), sides.cells) if is_shape else np.zeros(0)
    found = Finding(
        slice_key=key.slice_key,
        slice_value=key.slice_value,
        column=key.column,
        edges_version=sides.cells.version,
        family=family,
        measure=test.measure,
        unit=test.unit,
        n_reference=test.n_reference,
        n_current=test.n_current,
        value=test.value,
        corrected=test.corrected,
        floor=alarm.floor(test.measure),
        std_error=test.std_error,
        statistic=test.statistic,
        df=test.df,
        design_effect=test.design_effect,
        pvalue=test.pvalue,
        qvalue=judged.qvalue,
        n_family=judged.n_family,
        threshold=q,
        detectable=smallest,
        verdict=judged.verdict,
        reason=reason(judged, sides, contributions, smallest),
    )
    if not is_shape:
        return found
    return found._replace(
        contributions=tuple(contributions.tolist()),
        psi_corrected=bool(empty_on_one_side(*_counts(sides)).any()),
        **effects(sides, test.pvalue)._asdict(),
    )
