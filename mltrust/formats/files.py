"""A landing file, by the format that its name says, to typed rows and refusals."""

import base64
import binascii
import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from mltrust.coercion import RecordError
from mltrust.contract import Contract, Reason
from mltrust.formats import avro, protobuf
from mltrust.formats.pieces import Broken, Piece, broken
from mltrust.record import (
    HEARTBEAT,
    TOO_DEEP,
    HeartbeatReader,
    OutcomeReader,
    RecordReader,
    Rejected,
    Row,
    raw_text,
    read_line,
)

Stream = Literal["records", "outcomes"]
#: The one key of a JSON line that holds a Protobuf message in base64.
PROTOBUF = "protobuf"
_MESSAGES = {"records": "Record", "outcomes": "Outcome"}
_AVRO, _PROTOBUF, _GZIP = (".avro",), (".pb", ".binpb", ".protobuf"), ".gz"
_UNKNOWN_PACKING = (".bz2", ".lz4", ".lzo", ".snappy", ".xz", ".zip", ".zst", ".deflate")
_CHUNK = 1 << 16


class Read(NamedTuple):
    """What a piece of a file says, with what is kept of it where it is refused.

    `position` counts pieces (lines, records, what cannot be read) from 1. `raw_encoding`: text; base64 where the
    bytes are no text; json for an object out of a binary file.
    """

    position: int
    found: Row | Rejected
    raw: str
    raw_encoding: str


def is_lines(name: str) -> bool:
    """Whether a file is plain lines of JSON, which can be read in parts; any other is read whole."""
    return not name.lower().endswith((*_AVRO, *_PROTOBUF, _GZIP, *_UNKNOWN_PACKING))


class WireReader:
    """Reads what lands in one stream of a log, whatever its format. Not picklable."""

    def __init__(self, contract: Contract, stream: Stream) -> None:
        self._reader = RecordReader(contract) if stream == "records" else OutcomeReader()
        self._takes_heartbeats = stream == "records"
        numbered = contract.field_numbers or not contract.feature_types()
        self._codec = protobuf.Codec(contract, _MESSAGES[stream]) if numbered else None

    def file(self, name: str, content: bytes) -> Iterator[Read]:
        """What every piece of a file says, in order."""
        for position, piece in enumerate(self._pieces(name.lower(), content), 1):
            if piece.broken is not None:
                yield _unreadable(position, piece.broken)
            elif piece.record is not None:
                yield Read(position, self._object(dict(piece.record)), _json(piece.record), "json")
            elif piece.line is not None and (read := self.line(position, piece.line)):
                yield read

    def line(self, position: int, line: bytes) -> Read | None:
        """What a line of JSON says: a record, a heartbeat, or a Protobuf message in base64; None for a blank one."""
        line = line.rstrip(b"\r")
        return Read(position, read_line(line, self._line), *raw_text(line)) if line.strip() else None

    def _line(self, record: dict[str, object]) -> Row | Rejected:
        """What a line says; RecordError where it holds a message that cannot be read."""
        if record.keys() == {PROTOBUF}:
            record = self._message(record[PROTOBUF])
        return self._object(record)

    def _message(self, text: object) -> dict[str, object]:
        if self._codec is None:
            raise RecordError(Reason.UNPARSABLE, _NO_PROTOBUF)
        try:
            return self._codec.decode(base64.b64decode(str(text), validate=True))
        except (ValueError, binascii.Error) as error:
            raise RecordError(Reason.UNPARSABLE, f"{PROTOBUF}: {error}") from None

    def _object(self, record: dict[str, object]) -> Row | Rejected:
        try:
            if not self._takes_heartbeats or record.keys() != {HEARTBEAT}:
                return self._reader.read_object(record)
            found = HeartbeatReader().read_object(record)
        except RecursionError:  # a reader gave up in the midst of saying what is wrong
            return Rejected(Reason.UNPARSABLE, TOO_DEEP)
        return found if isinstance(found, Rejected) else {HEARTBEAT: found}

    def _pieces(self, name: str, content: bytes) -> Iterator[Piece]:
        if name.endswith(_UNKNOWN_PACKING):
            yield broken(f"{name.rpartition('.')[2]} is not read; expected plain files or .gz", content)
        elif not name.endswith(_GZIP):
            yield from self._unpacked(name, content)
        elif (inner := name.removesuffix(_GZIP)).endswith((*_AVRO, *_PROTOBUF)):
            try:
                whole = b"".join(_gunzipped(content))
            except ValueError as error:
                yield broken(str(error), content)
            else:
                yield from self._unpacked(inner, whole)
        else:
            yield from _gunzipped_lines(content)

    def _unpacked(self, name: str, content: bytes) -> Iterator[Piece]:
        if name.endswith(_AVRO):
            yield from avro.pieces(content)
        elif not name.endswith(_PROTOBUF):
            yield from (Piece(line=line) for line in content.split(b"\n"))
        elif self._codec is None:
            yield broken(_NO_PROTOBUF, content)
        else:
            yield from protobuf.pieces(content, self._codec)


_NO_PROTOBUF = "the contract has no field_numbers, and takes no Protobuf"


def _json(record: Mapping[str, object]) -> str:
    try:
        return json.dumps(record, ensure_ascii=False, default=str)
    except RecursionError:
        return json.dumps(TOO_DEEP)


def _unreadable(position: int, piece: Broken) -> Read:
    raw = base64.b64encode(piece.raw).decode("ascii")
    return Read(position, Rejected(Reason.UNREADABLE, piece.reason), raw, "base64")


def _gunzipped_lines(content: bytes) -> Iterator[Piece]:
    """The lines of a gzip file; where it is damaged, those before the damage and one broken piece."""
    rest = b""
    try:
        for part in _gunzipped(content):
            *lines, rest = (rest + part).split(b"\n")
            yield from (Piece(line=line) for line in lines)
    except ValueError as error:
        yield broken(str(error), content)
    else:
        yield Piece(line=rest)


def _gunzipped(content: bytes) -> Iterator[bytes]:
    """The content of all members of a gzip file, in parts; ValueError where it is damaged or cut off."""
    view, at = memoryview(content), 0
    while at < len(view):
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            if at >= len(view):
                raise ValueError("no sound gzip: it is cut off")
            # In chunks: what is left behind a member is copied, and there may be thousands of members.
            chunk = view[at : at + _CHUNK]
            try:
                part = member.decompress(chunk)
            except zlib.error as error:
                raise ValueError(f"no sound gzip: {error}") from None
            at += len(chunk) - len(member.unused_data)
            if part:
                yield part
        while at < len(view) and view[at] == 0:  # padding, as gzip itself takes it
            at += 1
