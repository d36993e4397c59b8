"""Avro: the schema that a contract asks for, and container files of any writer's schema.

A file is read by the schema in its header, and the contract reads what comes out (`mltrust.record`), by the same
rules as JSON: what a type cannot become is one rejected record instead of a refused file, and a field that the
contract does not know is kept in `extra`, which Avro's own schema resolution would drop.
"""

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID

import fastavro
from fastavro.types import Schema

from mltrust.contract import Contract
from mltrust.formats import shapes
from mltrust.formats.pieces import Piece, broken
from mltrust.formats.shapes import Field

_MAGIC = b"Obj\x01"
_SYNC_SIZE = 16
_TYPES: Mapping[str, object] = {
    "string": "string",
    "long": "long",
    "double": "double",
    "boolean": "boolean",
    "timestamp": {"type": "long", "logicalType": "timestamp-micros"},
}
# Read as the whole numbers they are: a time out of range is then one bad record, not an unreadable block.
_INSTANTS = ("timestamp-millis", "timestamp-micros", "timestamp-nanos")


def record_schema(contract: Contract) -> dict[str, object]:
    """The schema of v02 records of a log, features of all versions as nullable fields."""
    features = _record("Features", shapes.features(contract), {})
    experiment = _record("Experiment", shapes.EXPERIMENT, {})
    nested: dict[str, object] = {
        "experiments": {"type": "array", "items": experiment},
        "infra": {"type": "map", "values": "double"},
        "features": features,
    }
    return _record("Record", shapes.RECORD, nested) | {"namespace": f"mltrust.{contract.log}"}


def outcome_schema() -> dict[str, object]:
    """The schema of outcomes, which is that of every log."""
    return _record("Outcome", shapes.OUTCOME, {}) | {"namespace": "mltrust"}


def _record(name: str, fields: Sequence[Field], nested: Mapping[str, object]) -> dict[str, object]:
    listed = []
    for field in fields:
        kind = _TYPES.get(field.kind, nested.get(field.kind))
        of = {"type": kind} if field.required else {"type": ["null", kind], "default": None}
        listed.append({"name": field.name, **of})
    return {"type": "record", "name": name, "fields": listed}


def encode(records: Sequence[Mapping[str, object]], schema: Mapping[str, object], codec: str = "deflate") -> bytes:
    """A container file of records as `schema` types them; event times in microseconds since 1970."""
    file = io.BytesIO()
    fastavro.writer(file, dict(schema), records, codec=codec)
    return file.getvalue()


class _Header(NamedTuple):
    content: bytes
    schema: Schema

    @property
    def sync(self) -> bytes:
        return self.content[-_SYNC_SIZE:]


class _DamagedError(Exception):
    """The block at a byte cannot be read."""

    def __init__(self, at: int, why: str) -> None:
        super().__init__(f"the Avro block at byte {at} cannot be read: {why}")
        self.at = at


def pieces(content: bytes) -> Iterator[Piece]:
    """The records of a container file, and one broken piece for each block that cannot be read.

    Behind a damaged block reading goes on at the next sync marker.
    """
    try:
        header = _header(content)
    except Exception as error:  # whatever a library says about bytes that are no Avro
        yield broken(f"no Avro container: {_words(error)}", content)
        return
    at = len(header.content)
    while at < len(content):
        try:
            yield from _blocks(header, content, at)
            return
        except _DamagedError as damage:
            found = content.find(header.sync, damage.at)
            at = len(content) if found < 0 else found + _SYNC_SIZE
            yield broken(str(damage), content[damage.at : at])


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _header(content: bytes) -> _Header:
    if not content.startswith(_MAGIC):
        raise ValueError("it does not begin with Obj and 1")
    file = io.BytesIO(content)
    reader = fastavro.block_reader(file)
    schema: Schema = _without_instants(json.loads(reader.metadata["avro.schema"]))  # type: ignore[assignment]
    schema = fastavro.parse_schema(schema)
    return _Header(content[: file.tell()], schema)


def _blocks(header: _Header, content: bytes, at: int) -> Iterator[Piece]:
    """The records from the block at a byte on, a whole block or nothing of it."""
    reader = fastavro.block_reader(io.BytesIO(header.content + content[at:]))
    while True:
        try:
            block = next(reader, None)
            if block is None:
                break
            data = block.bytes_  # type: ignore[attr-defined] # the block's data, unpacked; the stubs lack it
            records = _records(data, block.num_records, header.schema)
        except Exception as error:
            raise _DamagedError(at, _words(error)) from None
        yield from (Piece(record=record) for record in records)
        at += block.size
    if at < len(content):
        raise _DamagedError(at, "it is cut off")


def _records(data: io.BytesIO, n_records: int, schema: Schema) -> list[dict[str, object]]:
    if n_records > len(data.getbuffer()):
        raise ValueError(f"it says {n_records:,} records and has {len(data.getbuffer()):,} bytes")
    records = [fastavro.schemaless_reader(data, schema, None) for _ in range(n_records)]
    if data.read(1):
        raise ValueError("it holds more than its records")
    return [_object(record) for record in records]


def _object(record: object) -> dict[str, object]:
    """The record as JSON would hold it; what is null is left out, as no producer of Avro can leave a field out."""
    found = _plain(record)
    return found if isinstance(found, dict) else {"record": found}


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return str(value) if isinstance(value, Decimal | UUID) else value


def _without_instants(schema: object) -> object:
    if isinstance(schema, dict):
        plain = {name: _without_instants(each) for name, each in schema.items()}
        return {name: each for name, each in plain.items() if name != "logicalType" or each not in _INSTANTS}
    return [_without_instants(each) for each in schema] if isinstance(schema, list) else schema
