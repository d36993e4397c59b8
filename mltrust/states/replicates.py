"""Sums of units under many weightings: the Poisson bootstrap and the delete-a-group jackknife.

A weight depends on nothing but the seed, the replicate and the unit's hash, so that every batch of units can be
reduced where it is and the states of batches add up to the state of all units, in whatever order they were cut.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mltrust.states.moments import FloatArray

#: The first column of every state: the sum of the weights themselves.
UNITS = "units"
#: An unsigned hash of the unit, or a signed one such as Spark's xxhash64, of which the same bits are read.
UnitHashes = NDArray[np.uint64] | NDArray[np.int64]

_HashArray = NDArray[np.uint64]
# Hashes worked on at once, 256 KiB of them: numpy's steps over them stay in the cache. With 3 columns a weight
# takes 4 ns, that is 1,000 replicates of a million units 4 s.
_BLOCK = 1 << 15
_LANES = 4  # Weights read from one hash of 64 bits, 16 bits each.
# How many of the 2^16 values of a lane give the weights 0 to 8: the inverse of the Poisson(1) law, but that each is
# moved by up to 1.4 of 2^16·P(weight), so that mean and variance are 1 exactly and not to 1e-5. 9 would get 0.07.
_WEIGHT_COUNTS = (24109, 24109, 12056, 4018, 1005, 200, 33, 5, 1)
_WEIGHTS: FloatArray = np.repeat(np.arange(len(_WEIGHT_COUNTS), dtype=np.float64), _WEIGHT_COUNTS)
# What tells the hashes of one purpose from those of another with the same seed.
_POISSON, _BUCKETS, _ARMS = 0, 1, 2
_BITS = 64  # Weights of 0 or 1 that one hash gives.


@dataclass(frozen=True, slots=True, eq=False)
class Replicates:
    """Sums of k columns over n units, each unit counted with the weight that a replicate gives it.

    `sums` has shape (1 + B, k). Row 0 is the sample itself, every weight 1, and rows 1 to B are the replicates.
    The first column is `units`, the sum of the weights. States are added across disjoint units, and only where
    both come from the same replicates: the same function and seed.
    """

    columns: tuple[str, ...]
    n: int
    sums: FloatArray

    def __post_init__(self) -> None:
        if self.columns[:1] != (UNITS,) or len(set(self.columns)) != len(self.columns):
            raise ValueError(f"columns of replicates are {UNITS!r} and distinct others, got {self.columns}")
        if self.sums.ndim != 2 or self.sums.shape[0] < 2 or self.sums.shape[1] != len(self.columns):
            raise ValueError(
                f"replicates of the {len(self.columns)} columns {self.columns} need sums "
                f"(1 + replicates, {len(self.columns)}), got {self.sums.shape}"
            )

    @classmethod
    def empty(cls, columns: tuple[str, ...], n_replicates: int) -> "Replicates":
        """The state of no units: the identity of `+`. `columns` are those beside `units`."""
        return cls((UNITS, *columns), 0, np.zeros((1 + n_replicates, 1 + len(columns))))

    @classmethod
    def of(cls, columns: tuple[str, ...], sample: ArrayLike, weights: ArrayLike) -> "Replicates":
        """The state of a sample (n, k), one row per unit, under given weights (B, n).

        ValueError where a value is not finite: what to do with missing values is the caller's decision.
        """
        values = _with_units(columns, sample)
        given = np.asarray(weights, dtype=np.float64)
        if given.ndim != 2 or given.shape[1] != len(values):
            raise ValueError(f"weights of {len(values)} units need shape (B, {len(values)}), got {given.shape}")
        return cls((UNITS, *columns), len(values), np.vstack([values.sum(axis=0), given @ values]))

    def __add__(self, other: "Replicates") -> "Replicates":
        """The state of both sets of units; ValueError if columns or numbers of replicates differ."""
        if (self.columns, self.n_replicates) != (other.columns, other.n_replicates):
            raise ValueError(
                f"cannot add {self.n_replicates} replicates of columns {self.columns} "
                f"and {other.n_replicates} of columns {other.columns}"
            )
        return Replicates(self.columns, self.n + other.n, self.sums + other.sums)

    @property
    def n_replicates(self) -> int:
        """B, the number of rows without the sample's."""
        return len(self.sums) - 1

    def column(self, name: str) -> FloatArray:
        """The sums (1 + B,) of a column; ValueError if the state does not have it."""
        if name not in self.columns:
            raise ValueError(f"no column {name!r} in replicates of columns {self.columns}")
        return self.sums[:, self.columns.index(name)]


def poisson(
    columns: tuple[str, ...], sample: ArrayLike, units: UnitHashes, *, seed: int, n_replicates: int = 1000
) -> Replicates:
    """The state under Poisson(1) weights, independent between units and between replicates.

    Parameters
    ----------
    sample, units
        One row per unit, (n, k), and the unit's hash, (n,). Rows of one unit would share its weights.
    seed
        The same for every batch, arm and slice that is to be added or compared.

    References
    ----------
    Chamandy, N., Muralidharan, O., Najmi, A. and Naidu, S. (2012). Estimating uncertainty for massive data
    streams. Technical report, Google.
    """
    values, hashes = _checked(columns, sample, units)
    drawn = _drawn(values, hashes, _poisson_keys(seed, n_replicates), _LANES, _poisson_lanes)
    return Replicates((UNITS, *columns), len(values), np.vstack([values.sum(axis=0), drawn[:n_replicates]]))


def resalted(
    columns: tuple[str, ...], sample: ArrayLike, units: UnitHashes, *, seed: int, n_replicates: int = 1000
) -> Replicates:
    """The state under weights 0 or 1: in each replicate the units that a new salt would put into one of two arms.

    Parameters
    ----------
    sample, units
        One row per unit, (n, k), and the hash, (n,), of what is assigned: rows of one hash are in one arm together.
    seed
        The same for every batch that is to be added.
    """
    values, hashes = _checked(columns, sample, units)
    keys = _keys(seed, _ARMS, -(-n_replicates // _BITS))
    drawn = _drawn(values, hashes, keys, _BITS, _bits)
    return Replicates((UNITS, *columns), len(values), np.vstack([values.sum(axis=0), drawn[:n_replicates]]))


def _drawn(
    values: FloatArray,
    hashes: _HashArray,
    keys: _HashArray,
    n_lanes: int,
    lanes_of: Callable[[_HashArray, _HashArray], FloatArray],
) -> FloatArray:
    """The sums (keys·lanes, k) of values under the weights (keys, n, lanes) that each key gives."""
    drawn = np.zeros((len(keys) * n_lanes, values.shape[1]))
    for part in _blocks(len(values), _BLOCK):
        for block in _blocks(len(keys), max(1, _BLOCK // (part.stop - part.start))):
            lanes = lanes_of(hashes[part], keys[block])
            products = np.matmul(lanes.swapaxes(1, 2), values[part])
            drawn[block.start * n_lanes : block.stop * n_lanes] += products.reshape(-1, values.shape[1])
    return drawn


def poisson_weights(units: UnitHashes, *, seed: int, n_replicates: int) -> FloatArray:
    """The weights (B, n) that `poisson` gives to units: large, and meant to be looked at."""
    lanes = _poisson_lanes(_unsigned(units), _poisson_keys(seed, n_replicates))
    weights: FloatArray = lanes.swapaxes(1, 2).reshape(len(lanes) * _LANES, len(units))
    return weights[:n_replicates]


def delete_a_bucket(
    columns: tuple[str, ...], sample: ArrayLike, units: UnitHashes, *, seed: int, n_buckets: int = 64
) -> Replicates:
    """The state under the weights of a delete-a-group jackknife: replicate g leaves out the units of bucket g.

    Parameters
    ----------
    sample, units
        One row per unit, (n, k), and the unit's hash, (n,), whose bucket a hash with the seed decides.
    seed, n_buckets
        The same for every batch, arm and slice that is to be added or compared.
    """
    values, hashes = _checked(columns, sample, units)
    codes = buckets(hashes, seed=seed, n_buckets=n_buckets)
    within = np.column_stack([np.bincount(codes, each, n_buckets) for each in values.T])
    total = within.sum(axis=0)
    return Replicates((UNITS, *columns), len(values), np.vstack([total, total - within]))


def buckets(units: UnitHashes, *, seed: int, n_buckets: int) -> NDArray[np.int64]:
    """The bucket (n,) of each unit, 0 to n_buckets - 1: independent of its Poisson weights, whatever the seed."""
    if n_buckets < 2:
        raise ValueError(f"a jackknife needs at least 2 buckets, got {n_buckets}")
    (key,) = _keys(seed, _BUCKETS, 1)
    # The remainder of 64 random bits prefers no bucket by more than n_buckets / 2^64.
    return (splitmix64(_unsigned(units) ^ key) % np.uint64(n_buckets)).astype(np.int64)


def splitmix64(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """z mixed in place: each bit of the result depends on every bit of z, and no two z give the same.

    References
    ----------
    Steele, G. L., Lea, D. and Flood, C. H. (2014). Fast splittable pseudorandom number generators. OOPSLA '14,
    453-472; the finalizer with the constants of Vigna's splitmix64.c.
    """
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def _poisson_keys(seed: int, n_replicates: int) -> _HashArray:
    if n_replicates < 1:
        raise ValueError(f"a bootstrap needs at least 1 replicate, got {n_replicates}")
    return _keys(seed, _POISSON, -(-n_replicates // _LANES))


def _poisson_lanes(hashes: _HashArray, keys: _HashArray) -> FloatArray:
    """Weights (keys, n, 4): those of replicate 4i + j are [i, :, j]."""
    # Little-endian by name, so that a lane is the same 16 bits on every machine.
    mixed = splitmix64(hashes ^ keys[:, np.newaxis]).astype("<u8", copy=False)
    weights: FloatArray = _WEIGHTS[mixed.view("<u2")].reshape(len(keys), len(hashes), _LANES)
    return weights


def _bits(hashes: _HashArray, keys: _HashArray) -> FloatArray:
    """Weights (keys, n, 64), each 0 or 1: the bits of the mixed hash."""
    mixed = splitmix64(hashes ^ keys[:, np.newaxis]).astype("<u8", copy=False)
    bits = np.unpackbits(mixed.view(np.uint8).reshape(len(keys), len(hashes), 8), axis=2)
    return bits.astype(np.float64)


def _keys(seed: int, purpose: int, n: int) -> _HashArray:
    """n random numbers, the first of them the same whatever n: the splitmix64 sequence from a hash of the seed."""
    start = splitmix64(splitmix64(np.array([seed % 2**64], dtype=np.uint64)) + np.uint64(purpose))
    return splitmix64(start + np.uint64(0x9E3779B97F4A7C15) * np.arange(1, n + 1, dtype=np.uint64))


def _checked(columns: tuple[str, ...], sample: ArrayLike, units: UnitHashes) -> tuple[FloatArray, _HashArray]:
    values, hashes = _with_units(columns, sample), _unsigned(units)
    if hashes.shape != (len(values),):
        raise ValueError(f"a sample of {len(values)} units needs as many hashes, got shape {hashes.shape}")
    return values, hashes


def _with_units(columns: tuple[str, ...], sample: ArrayLike) -> FloatArray:
    values = np.asarray(sample, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != len(columns):
        raise ValueError(f"a sample of columns {columns} needs shape (n, {len(columns)}), got {values.shape}")
    finite = np.isfinite(values)
    if not finite.all():
        bad = [column for i, column in enumerate(columns) if not finite[:, i].all()]
        raise ValueError(f"missing or infinite values in columns {bad}")
    return np.column_stack([np.ones(len(values)), values])


def _unsigned(units: UnitHashes) -> _HashArray:
    if units.dtype.kind not in "iu" or units.dtype.itemsize != 8:
        raise ValueError(f"hashes of units are integers of 64 bits, got {units.dtype}")
    return units.astype(np.uint64)


def _blocks(n: int, size: int) -> list[slice]:
    return [slice(at, min(at + size, n)) for at in range(0, n, size)]
