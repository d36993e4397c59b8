"""Slices: subpopulations by attributes fixed at first exposure, and how they are named."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, NamedTuple

OVERALL = ("", "")
MISSING = "(null)"
OTHER = "(other)"
_JOIN = " x "
#: Names that the frame of units has for itself.
RESERVED = (
    *("variant", "phase", "crossed", "unit_id", "unit", "exposure_day", "triggered", "misserved"),
    *("failed", "bucket", "agrees", "half", "weight"),
)


class Slice(NamedTuple):
    """A slice by its text names, as in the tables; overall is `''` and `''`."""

    slice_key: str
    slice_value: str

    def __str__(self) -> str:
        return f"{self.slice_key}:{self.slice_value}" if self.slice_key else "overall"


@dataclass(frozen=True, slots=True)
class Slicing:
    """Which slices an experiment is read by.

    `attributes` names each attribute's column in the log (`features.device`, `model_version`); `sets` are the
    attributes crossed with one another, each attribute alone by default. `edges` cut an attribute that is a number
    into intervals [a, b), and those below the first and from the last edge on.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    attributes: dict[str, str] = field(default_factory=dict)
    sets: tuple[tuple[str, ...], ...] | None = None
    edges: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.attributes:
            if not name.isidentifier() or name in RESERVED:
                raise ValueError(
                    f"attribute {name!r}: expected letters, digits and _, and none of {', '.join(RESERVED)}"
                )
        for name, edges in self.edges.items():
            if name not in self.attributes:
                raise ValueError(f"edges: {name} is no declared attribute")
            if not edges or list(edges) != sorted(set(edges)):
                raise ValueError(f"edges: {name} has {list(edges)}, expected numbers in ascending order")
        for names in self.sets or ():
            if unknown := set(names) - set(self.attributes):
                raise ValueError(f"sets: {', '.join(sorted(unknown))} is no declared attribute")
            if not names or len(set(names)) < len(names):
                raise ValueError(f"sets: {list(names)} is empty or repeats an attribute")

    def declared(self) -> tuple[tuple[str, ...], ...]:
        """The declared sets, attributes sorted within each, none twice."""
        sets = self.sets if self.sets is not None else tuple((name,) for name in self.attributes)
        return tuple(dict.fromkeys(tuple(sorted(names)) for names in sets))


def interval_names(edges: Sequence[float]) -> list[str]:
    """The names of the intervals that edges cut numbers into: one more than there are edges."""
    ends = [f"{edge:g}" for edge in edges]
    between = [f"[{low}, {high})" for low, high in pairwise(ends)]
    return [f"< {ends[0]}", *between, f">= {ends[-1]}"]


def name_slice(values: Mapping[str, str]) -> Slice:
    """The slice of these attribute values: attributes sorted, joined by " x ", values escaped likewise."""
    names = sorted(values)
    return Slice(_JOIN.join(map(_escape, names)), _JOIN.join(_escape(values[name]) for name in names))


def n_attributes(slice_key: str) -> int:
    """How many attributes a slice crosses; 0 overall."""
    return len(slice_key.split(_JOIN)) if slice_key else 0


def attributes_of(of: Slice) -> dict[str, str]:
    """The attribute values of a slice by their text names, escaped as they are in them; none overall."""
    if not of.slice_key:
        return {}
    return dict(zip(of.slice_key.split(_JOIN), of.slice_value.split(_JOIN), strict=True))


def parted(of: Slice, attribute: str) -> tuple[Slice, str] | None:
    """The slice without one of its attributes, and the value of that; None where it has no such attribute."""
    names = attributes_of(of)
    if attribute not in names:
        return None
    value = names.pop(attribute)
    return Slice(_JOIN.join(names), _JOIN.join(names.values())), value


def within(of: Slice, attribute: str, value: str) -> Slice:
    """The part of a slice in which one more attribute has a value, which is escaped already."""
    names = dict(sorted((attributes_of(of) | {attribute: value}).items()))
    return Slice(_JOIN.join(names), _JOIN.join(names.values()))


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace(_JOIN, " \\x ")
