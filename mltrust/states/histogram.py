"""Exact counts on a fixed support."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """How many observations have each value of a support, as exact integers.

    What is observed (units for a sample ratio, requests for drift) is the caller's to say.
    """

    support: tuple[str, ...]
    counts: NDArray[np.int64]

    def __post_init__(self) -> None:
        if len(set(self.support)) != len(self.support):
            raise ValueError(f"a support has distinct values, got {self.support}")
        if self.counts.shape != (len(self.support),) or self.counts.dtype != np.int64:
            raise ValueError(
                f"a support of {len(self.support)} values needs as many int64 counts, "
                f"got {self.counts.dtype} of shape {self.counts.shape}"
            )

    @classmethod
    def empty(cls, support: tuple[str, ...]) -> "Histogram":
        """No observations: the identity of `+`."""
        return cls(support, np.zeros(len(support), dtype=np.int64))

    @classmethod
    def of(cls, support: tuple[str, ...], sample: Iterable[str]) -> "Histogram":
        """The counts of a sample; ValueError where it has a value outside the support."""
        counted = Counter(sample)
        if unknown := counted.keys() - set(support):
            raise ValueError(f"values {sorted(unknown)} are not in the support {support}")
        return cls(support, np.array([counted[value] for value in support], dtype=np.int64))

    def __add__(self, other: "Histogram") -> "Histogram":
        """The counts of both sets of observations; ValueError if the supports differ."""
        if self.support != other.support:
            raise ValueError(f"cannot add histograms of supports {self.support} and {other.support}")
        return Histogram(self.support, self.counts + other.counts)

    @property
    def n(self) -> int:
        """The number of observations."""
        return int(self.counts.sum())
