"""The contract of a log: which records it accepts, how wire names map, and what each feature may hold.

A contract is plain frozen values, so that a producer can check a record before it is written with the very
rules that ingest will apply. Reading a record by a contract is `mltrust.record`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from math import isnan
from typing import Any, ClassVar, Literal, get_args

FeatureType = Literal["boolean", "long", "double", "string", "timestamp"]
Sensitivity = Literal["public", "internal", "personal", "sensitive"]
Prediction = Literal["score", "action"]
Policy = Literal["keep", "drop", "null", "pseudonym", "truncate", "bucket"]
Scalar = bool | int | float | str

#: Columns of the record that the wire must give, or the contract's constants.
REQUIRED = (
    "schema_version",
    "request_id",
    "event_time",
    "model_name",
    "model_version",
    "feature_version",
    "traffic",
    "status",
)
OPTIONAL = (
    "item_id",
    "unit_id",
    "experiments",
    "error_type",
    "prediction_score",
    "action",
    "propensity",
    "latency_ms",
    "infra",
    "features",
)
EXPERIMENT_FIELDS = ("experiment_id", "bucket_id", "variant")
TRAFFIC = ("production", "shadow")
STATUS = ("ok", "error")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_WIRE_COLUMNS = frozenset((*REQUIRED, *OPTIONAL, *(f"experiments.{name}" for name in EXPERIMENT_FIELDS)))


class Reason(StrEnum):
    """Why a record was rejected: the code in the rejects tables."""

    UNREADABLE = "unreadable"
    UNPARSABLE = "unparsable"
    UNKNOWN_SCHEMA_VERSION = "unknown_schema_version"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    OUTSIDE_DOMAIN = "outside_domain"
    BAD_TIMESTAMP = "bad_timestamp"
    UNKNOWN_FEATURE_VERSION = "unknown_feature_version"
    INCONSISTENT = "inconsistent"
    CONFLICTING_DUPLICATE = "conflicting_duplicate"


@dataclass(frozen=True, slots=True)
class Domain:
    """Bounds (both inclusive) or the admitted values of a feature."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    min: float | None = None
    max: float | None = None
    values: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.values is not None and (self.min is not None or self.max is not None):
            raise ValueError("give either min and max or values, not both")
        if any(bound is not None and isnan(bound) for bound in (self.min, self.max)):
            raise ValueError("min and max: expected numbers, given nan")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")

    def holds(self, value: Scalar) -> bool:
        if self.values is not None:
            return value in self.values
        if isinstance(value, str):
            return True
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)

    def __str__(self) -> str:
        if self.values is not None:
            return "one of " + ", ".join(self.values)
        low = "-inf" if self.min is None else f"{self.min:g}"
        return f"[{low}, {'inf' if self.max is None else f'{self.max:g}'}]"


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature in one feature version.

    Outside `domain` a value is impossible and its record is rejected; outside `expected` it is kept, and
    drift's business.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    type: FeatureType
    sensitivity: Sensitivity = "internal"
    domain: Domain = field(default_factory=Domain)
    expected: Domain = field(default_factory=Domain)

    def __post_init__(self) -> None:
        for name, domain in (("domain", self.domain), ("expected", self.expected)):
            numeric = domain.min is not None or domain.max is not None
            if numeric and self.type not in ("long", "double"):
                raise ValueError(f"{name}: min and max are for long and double, this is a {self.type}")
            if domain.values is not None and self.type != "string":
                raise ValueError(f"{name}: values are for string, this is a {self.type}")


@dataclass(frozen=True, slots=True)
class Scrub:
    """What becomes of a column when rows leave the log for a replay set.

    `keep`: text is searched for personal data, and a row in which some is found stays behind. `drop` and `null`: no
    value leaves. `pseudonym`: text becomes a keyed hash. `truncate`: the first `length` characters of text. `bucket`:
    a number becomes the lower end of its interval of `width`. A `quasi_identifier` tells people apart together with
    the others, so that its values must be shared by several rows.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    policy: Policy
    length: int | None = None
    width: float | None = None
    quasi_identifier: bool = False

    def __post_init__(self) -> None:
        for name, value, of in (("length", self.length, "truncate"), ("width", self.width, "bucket")):
            if (value is not None) != (self.policy == of):
                raise ValueError(f"{name} is {value}, expected a number with policy {of!r} and none with others")
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}, expected a number above 0")


@dataclass(frozen=True, slots=True)
class Scrubbing:
    """How rows are scrubbed when they leave the log: by column (`unit_id`, `features.device`).

    Text that is not listed does not leave at all, nor does a feature that is personal or sensitive. Each combination
    of quasi-identifiers must stand for `k` rows or more.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    columns: dict[str, Scrub]
    k: int = 1

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k is {self.k}, expected 1 or more")


@dataclass(frozen=True, slots=True)
class SchemaVersion:
    """How one version of the record looks on the wire.

    `wire` maps a column to its wire name where they differ (`features.x`: inside the features object;
    `experiments.x` as a column: the one experiment of a flat record); `constants` are the columns that this
    version does not carry.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    wire: dict[str, str] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for column in (*self.wire, *self.constants):
            if column not in _WIRE_COLUMNS:
                raise ValueError(
                    f"{column!r} is no column of the record; expected one of {', '.join(sorted(_WIRE_COLUMNS))}"
                )
        if both := self.wire.keys() & self.constants.keys():
            raise ValueError(f"{', '.join(sorted(both))}: both read from the wire and constant")
        for column, admitted in (("traffic", TRAFFIC), ("status", STATUS)):
            if self.constants.get(column, admitted[0]) not in admitted:
                raise ValueError(f"constant {column} is {self.constants[column]!r}; expected one of {admitted}")

    def wire_name(self, column: str) -> str:
        return self.wire.get(column, column)


@dataclass(frozen=True, slots=True)
class Contract:
    """The contract of one log; features are listed per feature version.

    `field_numbers` are the features' numbers in Protobuf, which a message carries instead of names: a number that
    was ever used for one feature can never be used for another. Without them the log takes no Protobuf.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    log: str
    versions: dict[str, SchemaVersion]
    features: dict[str, dict[str, Feature]]
    prediction: Prediction = "score"
    field_numbers: dict[str, int] = field(default_factory=dict)
    scrub: Scrubbing | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.log):
            raise ValueError(
                f"log {self.log!r}: expected ASCII letters, digits and _, as it names tables and folders"
            )
        if not self.versions:
            raise ValueError("versions is empty: a contract accepts at least one schema version")
        seen: dict[str, str] = {}
        for _, name, _ in self._each():
            if not _NAME.fullmatch(name):
                raise ValueError(f"feature {name!r}: expected ASCII letters, digits and _")
            # Spark tells columns apart without their case, Protobuf's JSON names without case and underscores.
            other = seen.setdefault(name.replace("_", "").casefold(), name)
            if other != name:
                raise ValueError(f"features {other!r} and {name!r} differ by case and underscores only")
        self.feature_types()
        self._check_numbers()
        self._check_scrub()

    def _check_scrub(self) -> None:
        types = self.scrubbed_types()
        for name, scrub in (self.scrub.columns if self.scrub is not None else {}).items():
            if name not in types:
                raise ValueError(f"scrub: {name!r} does not leave the log; expected of {', '.join(types)}")
            if name in ("request_id", "item_id") and scrub.policy not in ("keep", "pseudonym"):
                raise ValueError(
                    f"scrub: {name} is {scrub.policy}; expected keep or pseudonym, as it tells rows apart"
                )
            if scrub.policy in ("pseudonym", "truncate") and types[name] != "string":
                raise ValueError(f"scrub: {name}: {scrub.policy} is for string, this is a {types[name]}")
            if scrub.policy == "bucket" and types[name] not in ("long", "double"):
                raise ValueError(f"scrub: {name}: bucket is for long and double, this is a {types[name]}")

    def scrubbed_types(self) -> dict[str, FeatureType]:
        """The columns that a scrubbing may name, with their types: the keys of a record, and its features."""
        keys: dict[str, FeatureType] = dict.fromkeys(("request_id", "item_id", "unit_id", "action"), "string")
        return keys | {f"features.{name}": kind for name, kind in self.feature_types().items()}

    def sensitivities(self) -> dict[str, Sensitivity]:
        """Every feature with the highest sensitivity of any version."""
        levels = get_args(Sensitivity)
        found: dict[str, Sensitivity] = {}
        for _, name, feature in self._each():
            found[name] = max(found.get(name, levels[0]), feature.sensitivity, key=levels.index)
        return found

    def _check_numbers(self) -> None:
        numbers, types = self.field_numbers, self.feature_types()
        if not numbers:
            return
        free = max(numbers.values()) + 1
        if missing := [name for name in types if name not in numbers]:
            raise ValueError(f"field_numbers: none for feature {missing[0]!r}; the next free one is {free}")
        if unknown := [name for name in numbers if name not in types]:
            raise ValueError(
                f"field_numbers: {unknown[0]!r} is no feature; leave a retired one in the version that had it"
            )
        seen: dict[int, str] = {}
        for name, number in numbers.items():
            if not 1 <= number < 2**29 or 19_000 <= number < 20_000:
                raise ValueError(f"field_numbers: {name} is {number}; Protobuf takes 1 to 536870911 without 19000s")
            if number in seen:
                raise ValueError(f"field_numbers: {number} is both {seen[number]!r} and {name!r}; {free} is free")
            seen[number] = name

    def _each(self) -> Iterator[tuple[str, str, Feature]]:
        for version, features in self.features.items():
            for name, feature in features.items():
                yield version, name, feature

    def columns(self) -> tuple[str, ...]:
        """Columns by which a record can be sliced: plain ones of the record, and its features."""
        nested = ("experiments", "infra", "features")
        plain = (name for name in (*REQUIRED, *OPTIONAL) if name not in nested)
        return (*plain, *(f"features.{name}" for name in self.feature_types()))

    def feature_types(self) -> dict[str, FeatureType]:
        """Every feature of any version with its type, in the order of first appearance.

        Raises ValueError where a feature changes its type between versions: Delta widens no long to a double
        without a table feature that other readers lack, and a record sent again would get another hash.
        """
        types: dict[str, FeatureType] = {}
        for version, name, feature in self._each():
            known = types.setdefault(name, feature.type)
            if known != feature.type:
                raise ValueError(
                    f"feature {name!r} is {known} in an earlier feature version and {feature.type} in {version!r}: "
                    "a feature that changes its type takes a new name"
                )
        return types

    def to_json(self) -> str:
        """The contract as JSON, which a producer reads without YAML or pydantic (`from_json`).

        How rows are scrubbed that leave the log is no business of a producer and left out.
        """
        plain = asdict(self)
        del plain["scrub"]
        return json.dumps(_without_defaults(plain), indent=1, ensure_ascii=False) + "\n"


def _without_defaults(value: object) -> object:
    """`value` without what is null or an empty mapping inside it."""
    if isinstance(value, dict):
        kept = {name: _without_defaults(each) for name, each in value.items()}
        return {name: each for name, each in kept.items() if each is not None}
    return list(value) if isinstance(value, tuple) else value


def from_json(text: str) -> Contract:
    """The contract in what `Contract.to_json` wrote; ValueError where it is anything else."""
    try:
        plain = json.loads(text)
        return Contract(
            log=plain["log"],
            versions={name: SchemaVersion(**each) for name, each in plain["versions"].items()},
            features={
                version: {name: _feature(each) for name, each in features.items()}
                for version, features in plain["features"].items()
            },
            prediction=plain["prediction"],
            field_numbers=plain["field_numbers"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no compiled contract ({error!r}); `mltrust contract generate` makes one") from None


def _feature(plain: Mapping[str, Any]) -> Feature:
    domains = {name: _domain(plain[name]) for name in ("domain", "expected")}
    return Feature(plain["type"], plain["sensitivity"], **domains)


def _domain(plain: Mapping[str, Any]) -> Domain:
    values = plain.get("values")
    return Domain(plain.get("min"), plain.get("max"), None if values is None else tuple(values))
