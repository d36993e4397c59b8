"""One record as it goes over the wire: plain JSON values, checked by the contract, in one line.

Nothing here raises for what a service passes. What JSON cannot say becomes an object that ingest refuses with
its reason, never something that it could take for a value.
"""

import json
import math
import re
import reprlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import NamedTuple
from uuid import UUID

from mltrust.coercion import EPOCH, RecordError, to_timestamp
from mltrust.contract import OPTIONAL, REQUIRED, Contract, Reason
from mltrust.record import HEARTBEAT, OutcomeReader, RecordReader, Rejected, Row

SCHEMA_VERSION = "v02"
#: Inside the object that stands for a value that JSON cannot say.
UNSERIALISABLE = "unserialisable"

Check = Callable[[dict[str, object]], Row | Rejected]

_COLUMNS = (*REQUIRED, *OPTIONAL)
_RESERVED = frozenset((*_COLUMNS, "extra", HEARTBEAT))
_DEEPEST = 32
_MOST_BITS = 10_000  # Python writes no integer of more than 4300 digits
_ENCODE = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_ENCODE_ASCII = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode
_REFUSAL = re.compile(r"(\S+) is (.*?)(?:, expected (.*))?\Z", re.DOTALL)


class ContractError(ValueError):
    """A record breaks its contract: the field by its wire name, what was given and what was expected."""

    def __init__(self, rejected: Rejected) -> None:
        super().__init__(f"{rejected.reason_code}: {rejected.reason}")
        found = _REFUSAL.match(rejected.reason)
        named = (word for word in rejected.reason.split() if word in _COLUMNS)
        self.field: str = found[1] if found else next(named, "")
        self.given: str = found[2] if found else rejected.reason
        self.expected: str = (found[3] if found else None) or "what the contract says"


class Line(NamedTuple):
    """Compact JSON without a newline, and why ingest will refuse it, if it will."""

    text: bytes
    rejected: Rejected | None


class Press:
    """Makes lines of the records and outcomes of one log."""

    def __init__(self, contract: Contract) -> None:
        layout = contract.versions.get(SCHEMA_VERSION)
        if layout is None or layout.wire or layout.constants:
            raise ValueError(
                f"the contract of {contract.log} has versions {', '.join(contract.versions)}; expected "
                f"{SCHEMA_VERSION} without wire names or constants of its own, as this client writes nothing else"
            )
        self._records, self._outcomes = RecordReader(contract), OutcomeReader()

    def record(self, given: dict[str, object]) -> Line:
        return _line(given, self._records.typed)

    def outcome(self, given: dict[str, object]) -> Line:
        return _line(given, self._outcomes.read_object)


def encoded(record: Mapping[str, object]) -> bytes:
    """The line of an object that holds nothing but JSON values; half a surrogate pair becomes its escape."""
    try:
        return _ENCODE(record).encode()
    except UnicodeEncodeError:
        return _ENCODE_ASCII(record).encode()


def iso(micros: int) -> str:
    """ISO 8601 in UTC with microseconds."""
    return (EPOCH + timedelta(microseconds=micros)).isoformat(timespec="microseconds")


def _line(given: dict[str, object], check: Check) -> Line:
    try:
        wired = _wired(given)
        return _line_as_it_stands(wired, check) or _plain_line(_plain_record(wired), check)
    except Exception as error:  # nothing is known to come here; a service must not find out
        return _plain_line({"schema_version": SCHEMA_VERSION, **_foreign(error)}, check)


def _line_as_it_stands(record: dict[str, object], check: Check) -> Line | None:
    """The line of what the contract accepts and JSON can say without conversion: all but a few records."""
    with suppress(Exception):
        if not isinstance(check(record), Rejected):
            return Line(_ENCODE(record).encode(), None)
    return None


def _plain_line(record: dict[str, object], check: Check) -> Line:
    found = check(record)
    rejected = found if isinstance(found, Rejected) else None
    try:
        return Line(_ENCODE(record).encode(), rejected)
    except UnicodeEncodeError:
        rejected = Rejected(Reason.UNPARSABLE, "a string holds half of a surrogate pair")
        return Line(_ENCODE_ASCII(record).encode(), rejected)


def _wired(given: dict[str, object]) -> dict[str, object]:
    wired = {name: value for name, value in given.items() if value is not None}
    wired["event_time"] = _moment(wired.get("event_time"))
    extra = wired.pop("extra", None)
    return wired if extra is None else _with_extra(wired, extra)


def _with_extra(wired: dict[str, object], extra: object) -> dict[str, object]:
    """The caller's own fields beside the columns; those that bear a column's name stand inside `extra`."""
    extra = extra if type(extra) is dict else plain(extra)
    if not isinstance(extra, dict):
        return wired | {"extra": extra}
    clashing = {name: value for name, value in extra.items() if name in _RESERVED}
    free = {name: value for name, value in extra.items() if name not in _RESERVED}
    return wired | free | ({"extra": clashing} if clashing else {})


def _moment(given: object) -> object:
    """A time as ISO 8601 in UTC with microseconds; what is none, or has no offset, stays for ingest to refuse."""
    if isinstance(given, datetime) and given.tzinfo is not None:
        with suppress(OverflowError):
            return given.astimezone(UTC).isoformat(timespec="microseconds")
    if isinstance(given, int):
        with suppress(RecordError):
            return iso(to_timestamp("event_time", given))
    return given


def _plain_record(record: dict[str, object]) -> dict[str, object]:
    shown = {_key(name): plain(value) for name, value in record.items() if name != "features"}
    features = record.get("features")
    if isinstance(features, dict):
        # Undefined is nan in Python and NULL in tables.
        shown["features"] = {_key(name): None if _missing(each) else plain(each) for name, each in features.items()}
    elif "features" in record:
        shown["features"] = plain(features)
    return shown


def _missing(value: object) -> bool:
    if type(value).__name__ in ("NAType", "NaTType"):  # pandas has missing values that are no nan
        return True
    with suppress(Exception):
        return bool(value != value)
    return False


def plain(value: object, depth: int = 0) -> object:
    """`value` in JSON's own types; what they cannot say as `{"unserialisable": its type and text}`."""
    with suppress(Exception):
        if depth <= _DEEPEST:
            return _plain(value, depth)
    return _foreign(value)


def _plain(value: object, depth: int) -> object:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= _MOST_BITS else _foreign(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else _foreign(value)
    if isinstance(value, Mapping):
        return {_key(name): plain(each, depth + 1) for name, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each, depth + 1) for each in value]
    return _converted(value, depth)


def _converted(value: object, depth: int) -> object:
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Enum):
        return plain(value.value, depth + 1)
    if isinstance(value, Decimal | UUID | PurePath):
        return str(value)
    if callable(tolist := getattr(value, "tolist", None)):  # numpy's scalars and arrays, pandas' series
        return plain(tolist(), depth + 1)
    return _foreign(value)


def _foreign(value: object) -> dict[str, object]:
    shown = "of no text"
    with suppress(Exception):
        shown = reprlib.repr(value)
    return {UNSERIALISABLE: f"{type(value).__name__} {shown}"}


def _key(name: object) -> str:
    with suppress(Exception):
        return name if isinstance(name, str) else str(name)
    return type(name).__name__
