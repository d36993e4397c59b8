"""States of units as Spark would leave them, from values in numpy."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mltrust.states.replicates import Replicates, delete_a_bucket

N_BUCKETS = 64


def hashes(n: int, seed: int = 0) -> NDArray[np.int64]:
    """Hashes of n units; units of other seeds are others."""
    return np.random.default_rng([seed, n]).integers(-(2**63), 2**63, n, dtype=np.int64)


def jackknifed(columns: tuple[str, ...], sample: ArrayLike, units: NDArray[np.int64]) -> Replicates:
    return delete_a_bucket(columns, sample, units, seed=0, n_buckets=N_BUCKETS)
