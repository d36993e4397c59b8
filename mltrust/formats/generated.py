"""The files that are made from a contract, for producers in any language."""

import json
from collections.abc import Mapping

from mltrust.contract import Contract
from mltrust.formats import avro, protobuf


def files(contract: Contract) -> Mapping[str, str]:
    """File name -> text: the compiled contract, its Avro schemas, and its `.proto` where features have numbers."""
    found = {
        f"{contract.log}.json": contract.to_json(),
        f"{contract.log}.avsc": _json(avro.record_schema(contract)),
        "outcomes.avsc": _json(avro.outcome_schema()),
    }
    if contract.field_numbers:
        found[f"{contract.log}.proto"] = protobuf.proto(contract)
    return found


def _json(schema: Mapping[str, object]) -> str:
    return json.dumps(schema, indent=1) + "\n"
