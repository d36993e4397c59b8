"""Protobuf: the messages that a contract asks for, as `.proto` text and as a codec, and length-delimited files."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from mltrust.contract import Contract
from mltrust.formats import shapes
from mltrust.formats.pieces import Piece, broken
from mltrust.formats.shapes import Field

_OF = descriptor_pb2.FieldDescriptorProto
_TYPES = {
    "string": (_OF.TYPE_STRING, "string"),
    "long": (_OF.TYPE_INT64, "int64"),
    "double": (_OF.TYPE_DOUBLE, "double"),
    "boolean": (_OF.TYPE_BOOL, "bool"),
    # Microseconds since 1970, as Avro's timestamp-micros and the tables have them.
    "timestamp": (_OF.TYPE_INT64, "int64"),
}
_MAX_VARINT_BYTES = 10


class _Declared(NamedTuple):
    """A message with its fields, of which a descriptor and a text are made."""

    name: str
    fields: Sequence[Field]


def _messages(contract: Contract) -> tuple[_Declared, ...]:
    return (
        _Declared("Record", shapes.RECORD),
        _Declared("Experiment", shapes.EXPERIMENT),
        _Declared("Features", shapes.features(contract)),
        _Declared("Outcome", shapes.OUTCOME),
    )


def _package(contract: Contract) -> str:
    return f"mltrust.{contract.log}"


def proto(contract: Contract) -> str:
    """The `.proto` file of a log. ValueError where its contract gives the features no numbers."""
    _require_numbers(contract)
    parts = [
        f"// Made by `mltrust contract generate` from {contract.log}.yaml; edit that.",
        'syntax = "proto3";',
        f"package {_package(contract)};",
    ]
    for message in _messages(contract):
        lines = "\n".join(f"  {_declaration(field)} = {field.number};" for field in message.fields)
        parts.append(f"message {message.name} {{\n{lines}\n}}")
    return "\n\n".join(parts) + "\n"


def _declaration(field: Field) -> str:
    nested = {
        "experiments": "repeated Experiment experiments",
        "infra": "map<string, double> infra",
        "features": "optional Features features",
    }
    return nested.get(field.kind) or f"optional {_TYPES[field.kind][1]} {field.name}"


def _require_numbers(contract: Contract) -> None:
    if not contract.field_numbers and contract.feature_types():
        raise ValueError(f"the contract of {contract.log} has no field_numbers, and takes no Protobuf")


def descriptor(contract: Contract) -> descriptor_pb2.FileDescriptorProto:
    """What protoc makes of `proto(contract)`."""
    _require_numbers(contract)
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{contract.log}.proto", package=_package(contract), syntax="proto3"
    )
    for declared in _messages(contract):
        message = file.message_type.add(name=declared.name)
        for field in declared.fields:
            _add(message, field, _package(contract))
        optional = [each for each in message.field if each.proto3_optional]
        for at, each in enumerate(optional):
            each.oneof_index = at
            message.oneof_decl.add(name=f"_{each.name}")
    return file


def _add(message: descriptor_pb2.DescriptorProto, field: Field, package: str) -> None:
    named = {"name": field.name, "number": field.number, "json_name": _json_name(field.name)}
    if field.kind in _TYPES:
        kind = _TYPES[field.kind][0]
        message.field.add(**named, type=kind, label=_OF.LABEL_OPTIONAL, proto3_optional=True)
    elif field.kind == "infra":
        entry = message.nested_type.add(name="InfraEntry")
        entry.options.map_entry = True
        for number, (name, kind) in enumerate((("key", _OF.TYPE_STRING), ("value", _OF.TYPE_DOUBLE)), 1):
            entry.field.add(name=name, number=number, type=kind, label=_OF.LABEL_OPTIONAL, json_name=name)
        of = f".{package}.{message.name}.InfraEntry"
        message.field.add(**named, type=_OF.TYPE_MESSAGE, type_name=of, label=_OF.LABEL_REPEATED)
    elif field.kind == "experiments":
        of = f".{package}.Experiment"
        message.field.add(**named, type=_OF.TYPE_MESSAGE, type_name=of, label=_OF.LABEL_REPEATED)
    else:
        of = f".{package}.Features"
        message.field.add(
            **named, type=_OF.TYPE_MESSAGE, type_name=of, label=_OF.LABEL_OPTIONAL, proto3_optional=True
        )


def _json_name(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in rest)


class Codec:
    """Messages of one kind, `Record` or `Outcome`, to and from objects. Not picklable."""

    def __init__(self, contract: Contract, message: str) -> None:
        pool = descriptor_pool.DescriptorPool()
        pool.Add(descriptor(contract))
        self._class = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_package(contract)}.{message}"))

    def decode(self, raw: bytes) -> dict[str, object]:
        """The object in a message, without the fields that are not set; ValueError where it is none."""
        message = self._class()
        try:
            message.ParseFromString(raw)
        except DecodeError as error:
            raise ValueError(f"no Protobuf message: {error}") from None
        return _object(message)

    def encode(self, record: Mapping[str, object]) -> bytes:
        """The message of an object whose fields have the types of the `.proto`."""
        return bytes(self._class(**record).SerializeToString(deterministic=True))


def _object(message: Message) -> dict[str, object]:
    found: dict[str, object] = {field.name: _value(field, value) for field, value in message.ListFields()}
    if unknown := _unknown(message):
        found["unknown_fields"] = unknown
    return found


def _value(field: FieldDescriptor, value: object) -> object:
    if field.message_type is None:
        return value
    if field.message_type.GetOptions().map_entry:
        assert isinstance(value, Mapping)
        return dict(value)
    if isinstance(value, Message):
        return _object(value)
    assert isinstance(value, Sequence)
    return [_object(each) for each in value]


def _unknown(message: Message) -> dict[str, list[object]]:
    """Fields of a newer schema, by number: numbers as they are, the rest in base64."""
    found: dict[str, list[object]] = {}
    for field in UnknownFieldSet(message):  # type: ignore[attr-defined] # the stubs lack its __iter__
        value = base64.b64encode(field.data).decode("ascii") if isinstance(field.data, bytes) else field.data
        found.setdefault(str(field.field_number), []).append(value if isinstance(value, int | str) else str(value))
    return found


def delimited(messages: Sequence[bytes]) -> bytes:
    """A length-delimited file: each message behind its length as a varint."""
    return b"".join(_varint(len(message)) + message for message in messages)


def _varint(number: int) -> bytes:
    if number < 128:
        return bytes([number])
    return bytes([number & 127 | 128]) + _varint(number >> 7)


def pieces(content: bytes, codec: Codec) -> Iterator[Piece]:
    """The records of a length-delimited file, and what of it cannot be read.

    A message that cannot be read is one broken piece; behind a broken length nothing can be found any more.
    """
    at = 0
    while at < len(content):
        start = _past_varint(content, at)
        end = len(content) + 1 if start is None else start + _length(content[at:start])
        if start is None or end > len(content):
            yield broken(f"the length at byte {at} goes beyond the end of the file", content[at:])
            return
        try:
            yield Piece(record=codec.decode(content[start:end]))
        except ValueError as error:
            yield broken(f"message at byte {at}: {error}", content[start:end])
        at = end


def _past_varint(content: bytes, at: int) -> int | None:
    """The byte behind the varint at a byte, None where it has no end."""
    ends = (i + 1 for i in range(at, min(at + _MAX_VARINT_BYTES, len(content))) if content[i] < 128)
    return next(ends, None)


def _length(varint: bytes) -> int:
    return sum((byte & 127) << (7 * at) for at, byte in enumerate(varint))
