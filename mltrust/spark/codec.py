"""States to rows and back: a list of moments as two arrays, for Arrow and for tables."""

from collections.abc import Sequence

import numpy as np

from mltrust.states.moments import Moments


def pack(states: Sequence[Moments]) -> tuple[list[int], list[float]]:
    """The n of the states, and their means and scatters one after the other."""
    parts = [part for state in states for part in (state.mean, state.scatter.ravel())]
    return [state.n for state in states], np.concatenate(parts).tolist() if parts else []


def unpack(columns: Sequence[tuple[str, ...]], n: Sequence[int], values: Sequence[float]) -> list[Moments]:
    """The states that `pack` was given, whose columns are `columns`."""
    numbers = np.asarray(values, dtype=np.float64)
    states, at = [], 0
    for names, count in zip(columns, n, strict=True):
        k = len(names)
        mean, scatter = numbers[at : at + k], numbers[at + k : at + k + k * k]
        states.append(Moments(names, count, mean, scatter.reshape(k, k)))
        at += k + k * k
    return states
