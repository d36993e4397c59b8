"""Inputs changed on purpose: what a perturbation does to the columns of some rows.

Chance comes from a hash of each row's key alone, so that a row is changed in the same way whatever batch, part or
cluster it is scored in.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from mltrust.contract import FeatureType
from mltrust.replay.spec import Kind, Perturbation

Column = NDArray[np.generic]
Columns = Mapping[str, Column]
#: A category that no log has.
UNSEEN = "(unseen)"


class Spread(NamedTuple):
    """Standard deviation and extremes of a number in the set; nan where it has no values."""

    sd: float
    low: float
    high: float


class Context(NamedTuple):
    """What a set lends to its perturbations.

    `donors` are whole rows of the set, by column: what is swapped in comes from one row. Text and missing values are
    objects, numbers float64 with nan.
    """

    types: Mapping[str, FeatureType]
    spreads: Mapping[str, Spread]
    donors: Columns


class Perturbed(NamedTuple):
    """The changed columns, and for which rows the change is one (a row without a past has no stale value)."""

    columns: dict[str, Column]
    applies: NDArray[np.bool_]


def perturbed(
    each: Perturbation, columns: Columns, context: Context, draws: NDArray[np.uint64], previous: Columns
) -> Perturbed:
    """What a perturbation makes of rows.

    Parameters
    ----------
    columns, previous
        The features of the rows, and those of the request of the same unit before, (n,) each; `previous` also has
        `has_previous`. Only `stale` reads it.
    draws
        A hash of each row's key, (n,).
    """
    n = len(draws)
    if each.kind == "stale":
        has = np.asarray(previous["has_previous"], dtype=bool)
        return Perturbed({name: previous[name] for name in each.features}, has)
    if each.kind in ("swap", "invariant"):
        n_donors = len(next(iter(context.donors.values()))) if context.donors else 0
        if n_donors == 0:
            return Perturbed({name: columns[name] for name in each.features}, np.zeros(n, dtype=bool))
        at = np.minimum((uniforms(draws, each.name) * n_donors).astype(np.intp), n_donors - 1)
        return Perturbed({name: context.donors[name][at] for name in each.features}, np.ones(n, dtype=bool))
    change = _CHANGES[each.kind]
    changed = {name: change(each, name, columns[name], context, draws) for name in each.features}
    return Perturbed(changed, np.ones(n, dtype=bool))


def uniforms(draws: NDArray[np.uint64], purpose: str) -> NDArray[np.float64]:
    """Numbers in [0, 1), one per draw, independent between purposes (SplitMix64, Steele et al. 2014)."""
    salt = np.uint64(int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "big"))
    with np.errstate(over="ignore"):
        z = draws ^ salt
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53


_Change = Callable[[Perturbation, str, Column, Context, NDArray[np.uint64]], Column]


def _missing(_each: Perturbation, name: str, values: Column, context: Context, _draws: NDArray[np.uint64]) -> Column:
    if context.types[name] in ("long", "double"):
        return np.full(len(values), np.nan)
    return np.full(len(values), None, dtype=object)


def _unseen(_each: Perturbation, _name: str, values: Column, _context: Context, _draws: NDArray[np.uint64]) -> Column:
    return np.full(len(values), UNSEEN, dtype=object)


def _jitter(each: Perturbation, name: str, values: Column, context: Context, draws: NDArray[np.uint64]) -> Column:
    # Half a step away from 0 and 1, where the normal quantile is infinite.
    # The same noise for every feature of a group: they move together.
    noise = special.ndtri(uniforms(draws, each.name) + 2.0**-54)
    return _moved(name, values, noise * each.size * context.spreads[name].sd, context)


def _out_of_range(
    each: Perturbation, name: str, values: Column, context: Context, _draws: NDArray[np.uint64]
) -> Column:
    spread = context.spreads[name]
    beyond = spread.high + each.size * max(spread.sd, 1.0 if context.types[name] == "long" else spread.sd)
    return _moved(name, np.full(len(values), beyond), 0.0, context)


def _unit_change(
    each: Perturbation, name: str, values: Column, context: Context, _draws: NDArray[np.uint64]
) -> Column:
    numbers = np.asarray(values, dtype=np.float64)
    return _moved(name, numbers, numbers * (float(each.factor or 1.0) - 1), context)


def _increased(each: Perturbation, name: str, values: Column, context: Context, _draws: NDArray[np.uint64]) -> Column:
    step = each.size * context.spreads[name].sd
    if context.types[name] == "long":
        step = max(1.0, np.rint(step))
    return _moved(name, values, step, context)


def _moved(name: str, values: Column, by: NDArray[np.float64] | float, context: Context) -> Column:
    """Numbers moved; whole ones stay whole, missing ones missing."""
    moved = np.asarray(values, dtype=np.float64) + by
    return np.rint(moved) if context.types[name] == "long" else moved


_CHANGES: Mapping[Kind, _Change] = {
    "missing": _missing,
    "unseen": _unseen,
    "jitter": _jitter,
    "out_of_range": _out_of_range,
    "unit_change": _unit_change,
    "increasing": _increased,
    "decreasing": _increased,
}


def violations(each: Perturbation, before: Column, after: Column, tolerance: float) -> NDArray[np.bool_]:
    """Which rows break a promise by more than the tolerance; nan breaks none."""
    difference = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    wrong = {"increasing": -difference, "decreasing": difference}.get(each.kind, np.abs(difference))
    return wrong > tolerance
