"""Random columns that depend on their key and purpose only: on no order, no partition, no other column."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import pi

from pyspark.sql import Column
from pyspark.sql import functions as F


@dataclass(frozen=True, slots=True)
class Chance:
    """Draws for each distinct value of the columns `key`: hashes of seed, purpose and key.

    Draws for two purposes, keys or seeds are independent; one asked for twice is the same.
    """

    seed: int
    key: tuple[str, ...]
    space: str

    def uniform(self, purpose: str) -> Column:
        """In [0, 1), of 53 random bits."""
        named = f"{self.space}/{','.join(self.key)}/{purpose}"
        hashed = F.xxhash64(F.lit(self.seed).cast("long"), F.lit(named), *map(F.col, self.key))
        return F.shiftrightunsigned(hashed, 11) * F.lit(2.0**-53)

    def happens(self, purpose: str, probability: Column | float) -> Column:
        return self.uniform(purpose) < probability

    def exponential(self, purpose: str) -> Column:
        """Of mean 1."""
        return -F.log1p(-self.uniform(purpose))

    def normal(self, purpose: str) -> Column:
        """Standard normal, by Box and Muller."""
        radius = F.sqrt(2 * self.exponential(f"{purpose}, radius"))
        return radius * F.cos(2 * pi * self.uniform(f"{purpose}, angle"))

    def choice(self, purpose: str, shares: Mapping[str, float]) -> Column:
        """One of the keys of `shares`, which add up to 1."""
        drawn = self.uniform(purpose)
        *names, last = shares
        chosen = F.lit(last)
        for name, end in reversed(list(zip(names, accumulate(shares.values()), strict=False))):
            chosen = F.when(drawn < end, name).otherwise(chosen)
        return chosen
