"""Whether a changed contract still reads what was written, and whether what will be written can still be read."""

from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

from mltrust.contract import Contract, Domain

Compatibility = Literal["backward", "forward", "full"]
MODES: tuple[Compatibility, ...] = get_args(Compatibility)


class Incompatibility(NamedTuple):
    """A change that breaks readers: where, which rule, and what to do instead."""

    field: str
    rule: str
    fix: str

    def __str__(self) -> str:
        return f"{self.field}: {self.rule}; {self.fix}"


def incompatibilities(old: Contract, new: Contract, mode: Compatibility) -> list[Incompatibility]:
    """Every breaking change from `old` to `new`, none where the new contract may take its place.

    backward: what was accepted by the old contract is accepted by the new one, into the same columns.
    forward: readers that still have the old contract (jobs, producers' checks) accept what fits the new one.
    full: both.
    """
    found = [*_same(old, new)]
    if mode in ("backward", "full"):
        found += _backward(old, new)
    if mode in ("forward", "full"):
        found += _forward(old, new)
    return found


def _same(old: Contract, new: Contract) -> Iterator[Incompatibility]:
    """What no change may touch, in either direction."""
    if old.log != new.log:
        rule = f"was {old.log!r}, is {new.log!r}, which names other tables and folders"
        yield Incompatibility("log", rule, "a new log takes a new contract file")
    before, after = old.feature_types(), new.feature_types()
    for name in before:
        if name in after and before[name] != after[name]:
            rule = f"was {before[name]}, is {after[name]}; the type of a column never changes"
            yield Incompatibility(f"features.{name}", rule, "give the feature a new name in a new feature version")
    yield from _numbers(old.field_numbers, new.field_numbers)
    for version, layout in old.versions.items():
        if version in new.versions and layout != new.versions[version]:
            rule = "its wire names or constants changed, so that its fields are read otherwise than they were written"
            yield Incompatibility(f"versions.{version}", rule, "leave it as it was and add a schema version")


def _numbers(old: dict[str, int], new: dict[str, int]) -> Iterator[Incompatibility]:
    owners = {number: name for name, number in old.items()}
    for name, number in new.items():
        if name in old and old[name] != number:
            rule = f"was {old[name]}, is {number}; messages carry the number and not the name"
            yield Incompatibility(f"field_numbers.{name}", rule, f"give it {old[name]} again")
        elif name not in old and number in owners:
            rule = f"{number} was the number of {owners[number]!r}"
            free = max(*owners, *new.values()) + 1
            yield Incompatibility(f"field_numbers.{name}", rule, f"take a number that was never used, as {free}")
    if old and not new:
        yield Incompatibility("field_numbers", "Protobuf was taken and is no longer", "leave the numbers in")


def _backward(old: Contract, new: Contract) -> Iterator[Incompatibility]:
    still_written = "leave it in until no producer writes it and no landing file holds it"
    for version in (each for each in old.versions if each not in new.versions):
        yield Incompatibility(f"versions.{version}", "was accepted and is unknown now", still_written)
    for version, features in old.features.items():
        if version not in new.features:
            rule = "was accepted and is unknown now"
            yield Incompatibility(f"features.{version}", rule, still_written)
            continue
        for name, feature in features.items():
            where = f"features.{version}.{name}"
            if name not in new.features[version]:
                rule = "is gone, so that its values would leave their column and go to extra"
                yield Incompatibility(where, rule, "leave it in this version and drop it from a new one")
            elif not _admits(new.features[version][name].domain, feature.domain):
                now = new.features[version][name].domain
                rule = f"its domain was {feature.domain}, is {now}, which refuses what was accepted"
                yield Incompatibility(where, rule, "narrow `expected` instead, or do it in a new feature version")
        for name in (each for each in new.features[version] if each not in features):
            rule = "is new in this version, where values of any type under its name were accepted into extra"
            yield Incompatibility(f"features.{version}.{name}", rule, "add it in a new feature version")
    if (old.prediction, new.prediction) == ("action", "score"):
        rule = "was action, is score, which refuses records that have only an action"
        yield Incompatibility("prediction", rule, "leave it, or start a new log")


def _forward(old: Contract, new: Contract) -> Iterator[Incompatibility]:
    readers_first = "let every reader have the new contract before a producer writes it"
    for version in (each for each in new.versions if each not in old.versions):
        yield Incompatibility(f"versions.{version}", "is new: readers of the old contract reject it", readers_first)
    for version, features in new.features.items():
        if version not in old.features:
            rule = "is new: readers of the old contract reject it"
            yield Incompatibility(f"features.{version}", rule, readers_first)
            continue
        known = old.features[version]
        for name, feature in features.items():
            if name in known and not _admits(known[name].domain, feature.domain):
                rule = f"its domain was {known[name].domain}, is {feature.domain}: old readers reject what is new"
                yield Incompatibility(f"features.{version}.{name}", rule, readers_first)
        for name in (each for each in known if each not in features):
            rule = "is gone, so that values of any type may stand under its name: old readers reject some"
            yield Incompatibility(f"features.{version}.{name}", rule, "leave it in this version")
    if (old.prediction, new.prediction) == ("score", "action"):
        rule = "was score, is action: readers of the old contract reject records without a score"
        yield Incompatibility("prediction", rule, readers_first)


def _admits(wide: Domain, narrow: Domain) -> bool:
    """Whether every value in `narrow` is in `wide`."""
    if wide.values is not None:
        return narrow.values is not None and set(narrow.values) <= set(wide.values)
    low = wide.min is None or (narrow.min is not None and narrow.min >= wide.min)
    high = wide.max is None or (narrow.max is not None and narrow.max <= wide.max)
    return low and high
