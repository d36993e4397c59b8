"""How units were assigned to buckets, as the conf declares it: a hash of salt and unit, modulo the buckets."""

from dataclasses import dataclass
from typing import ClassVar, Literal

_HASHES = ("md5", "sha256")
#: Hexadecimal digits of the hash that are read as a number: 60 bits, which every engine holds exactly.
HEX_DIGITS = 15


@dataclass(frozen=True, slots=True)
class Assignment:
    """Bucket = the first 60 bits of hash(key) modulo `n_buckets`, where `key` is made of {salt} and {unit}.

    `bucket` is the name of a bucket by its number, as printf writes it: `b%02d` is b07.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    salt: str
    n_buckets: int
    hash: Literal["md5", "sha256"] = "md5"
    key: str = "{salt}:{unit}"
    bucket: str = "%d"

    def __post_init__(self) -> None:
        if self.hash not in _HASHES:
            raise ValueError(f"hash is {self.hash!r}, expected one of {', '.join(_HASHES)}")
        if self.n_buckets < 2:
            raise ValueError(f"n_buckets is {self.n_buckets}, expected 2 or more")
        if self.key.count("{unit}") != 1 or self.key.count("{salt}") > 1:
            raise ValueError(f"key is {self.key!r}, expected {{unit}} once and {{salt}} at most once")
        try:
            distinct = {self.bucket % number for number in (0, 1)}
        except (TypeError, ValueError):
            distinct = set()
        if len(distinct) < 2:
            raise ValueError(f"bucket is {self.bucket!r}, expected the number in printf's format, as in 'b%02d'")

    def around_unit(self) -> tuple[str, str]:
        """What stands before and after the unit in the hashed text."""
        before, after = (part.replace("{salt}", self.salt) for part in self.key.split("{unit}"))
        return before, after
