"""The shape of records and outcomes, of which their Avro and Protobuf schemas are made."""

from typing import Literal, NamedTuple

from mltrust.contract import EXPERIMENT_FIELDS, Contract, FeatureType

Kind = Literal["string", "long", "double", "timestamp", "boolean"]
Nested = Literal["experiments", "infra", "features"]


class Field(NamedTuple):
    """A field of the wire: its name, its number in Protobuf (given once, for ever), and whether it must be there."""

    name: str
    kind: Kind | Nested
    number: int
    required: bool = False


RECORD = (
    Field("schema_version", "string", 1, required=True),
    Field("request_id", "string", 2, required=True),
    Field("item_id", "string", 3),
    Field("unit_id", "string", 4),
    Field("event_time", "timestamp", 5, required=True),
    Field("model_name", "string", 6, required=True),
    Field("model_version", "string", 7, required=True),
    Field("feature_version", "string", 8, required=True),
    Field("experiments", "experiments", 9),
    Field("traffic", "string", 10, required=True),
    Field("status", "string", 11, required=True),
    Field("error_type", "string", 12),
    Field("prediction_score", "double", 13),
    Field("action", "string", 14),
    Field("propensity", "double", 15),
    Field("latency_ms", "double", 16),
    Field("infra", "infra", 17),
    Field("features", "features", 18),
)
OUTCOME = (
    Field("outcome_id", "string", 1, required=True),
    Field("revision", "long", 2),
    Field("request_id", "string", 3),
    Field("item_id", "string", 4),
    Field("unit_id", "string", 5),
    Field("name", "string", 6, required=True),
    Field("value", "double", 7),
    Field("event_time", "timestamp", 8, required=True),
)
EXPERIMENT = tuple(Field(name, "string", at) for at, name in enumerate(EXPERIMENT_FIELDS, 1))


def features(contract: Contract) -> tuple[Field, ...]:
    """A field per feature of any version; numbers are the contract's, 0 where it has none."""
    types: dict[str, FeatureType] = contract.feature_types()
    return tuple(Field(name, kind, contract.field_numbers.get(name, 0)) for name, kind in types.items())
