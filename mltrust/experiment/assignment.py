"""How units were assigned to buckets, as the conf declares it: a hash of salt and unit, modulo the buckets."""

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

_HASHES = ("md5", "sha256")
#: Hexadecimal digits of the hash that are read as a number: 60 bits, which every engine holds exactly.
HEX_DIGITS = 15


@dataclass(frozen=True, slots=True)
class Assignment:
    """Bucket = the first 60 bits of hash(key) modulo `n_buckets`, where `key` is made of {salt} and {unit}.

    `bucket` is the name of a bucket by its number, as printf writes it: `b%02d` is b07. `opened` are the first and
    the last number of the buckets that came into the experiment on one day, by default all: [[0, 9], [10, 99]] is a
    ramp from a tenth of the units to all of them.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    salt: str
    n_buckets: int
    hash: Literal["md5", "sha256"] = "md5"
    key: str = "{salt}:{unit}"
    bucket: str = "%d"
    opened: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.hash not in _HASHES:
            raise ValueError(f"hash is {self.hash!r}, expected one of {', '.join(_HASHES)}")
        if self.n_buckets < 2:
            raise ValueError(f"n_buckets is {self.n_buckets}, expected 2 or more")
        if self.key.count("{unit}") != 1 or self.key.count("{salt}") > 1:
            raise ValueError(f"key is {self.key!r}, expected {{unit}} once and {{salt}} at most once")
        if not re.fullmatch(r"[^%]*%(0?[1-9])?d[^%]*", self.bucket):
            raise ValueError(f"bucket is {self.bucket!r}, expected one %d in printf's format, as in 'b%02d'")

        ends = [-1, *(number for pair in self.opened for number in pair)]
        ordered = all(low < high if at % 2 == 0 else low <= high for at, (low, high) in enumerate(pairwise(ends)))
        if not ordered or ends[-1] >= self.n_buckets:
            raise ValueError(
                f"opened is {[list(pair) for pair in self.opened]}, expected pairs of a first and a last bucket, "
                f"rising and below n_buckets ({self.n_buckets})"
            )

    def opened_together(self) -> list[list[str]]:
        """The names of the buckets that came into the experiment on the same day."""
        return [
            [self.bucket % number for number in range(first, last + 1)]
            for first, last in self.opened or ((0, self.n_buckets - 1),)
        ]

    def around_unit(self) -> tuple[str, str]:
        """What stands before and after the unit in the hashed text."""
        before, after = (part.replace("{salt}", self.salt) for part in self.key.split("{unit}"))
        return before, after
