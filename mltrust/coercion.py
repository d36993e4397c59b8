"""What a value on the wire becomes by its type, and the error of a record that breaks its contract."""

import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from mltrust.contract import FeatureType, Reason

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Event times lie in [2000, 2100) UTC: in this range seconds, milliseconds and microseconds cannot be confused.
_FIRST_SECOND, _END_SECOND = 946_684_800, 4_102_444_800
_INTEGER = re.compile(r"[+-]?\d{1,40}\Z", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\Z", re.ASCII)


class RecordError(ValueError):
    """A record breaks its contract: `code` is the reason code, the message the reason in words."""

    def __init__(self, code: Reason, message: str) -> None:
        super().__init__(message)
        self.code = code


def shown(value: object) -> str:
    """A value as a message shows it: JSON, cut off."""
    try:
        text = json.dumps(value, ensure_ascii=True, default=str)
    except RecursionError:
        return "nested too deeply to be shown"
    return text if len(text) <= 80 else text[:77] + "..."


def wrong_type(field: str, value: object, expected: str) -> RecordError:
    """The error of a value whose type is another than the field's."""
    return RecordError(Reason.WRONG_TYPE, f"{field} is {shown(value)}, expected {expected}")


def to_string(field: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise wrong_type(field, value, "a string")


def to_long(field: str, value: object) -> int:
    if isinstance(value, str) and _INTEGER.match(value):
        value = int(value)
    elif isinstance(value, str) and _NUMBER.match(value):
        value = float(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63:
        return value
    raise wrong_type(field, value, "a 64-bit integer")


def to_double(field: str, value: object) -> float:
    if (isinstance(value, int | float) and not isinstance(value, bool)) or (
        isinstance(value, str) and _NUMBER.match(value)
    ):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise wrong_type(field, value, "a finite number")


def to_boolean(field: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return value == "true"
    raise wrong_type(field, value, "true or false")


def to_timestamp(field: str, value: object) -> int:
    """Microseconds since the epoch, from seconds, milliseconds or microseconds, or ISO 8601 with its UTC offset."""
    if isinstance(value, str) and not _NUMBER.match(value):
        return _from_iso(field, value)
    if isinstance(value, str):
        value = int(value) if _INTEGER.match(value) else float(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        for per_second in (1, 1_000, 1_000_000):
            if _FIRST_SECOND * per_second <= value < _END_SECOND * per_second:
                return round(value * (1_000_000 // per_second))
    raise RecordError(
        Reason.BAD_TIMESTAMP,
        f"{field} is {shown(value)}, expected seconds, milliseconds or microseconds since 1970 within "
        "2000 to 2100, or ISO 8601 with its UTC offset",
    )


def _from_iso(field: str, value: str) -> int:
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise RecordError(
            Reason.BAD_TIMESTAMP,
            f"{field} is {shown(value)}, expected ISO 8601 with its UTC offset, as 2026-11-23T08:00:00Z",
        )
    try:
        micros = (moment - EPOCH) // timedelta(microseconds=1)
    except OverflowError:  # an offset may push the year 1 or 9999 over the edge
        micros = -1
    if not _FIRST_SECOND * 1_000_000 <= micros < _END_SECOND * 1_000_000:
        raise RecordError(Reason.BAD_TIMESTAMP, f"{field} is {shown(value)}, expected a time within 2000 to 2100")
    return micros


COERCE: Mapping[FeatureType, Callable[[str, object], object]] = {
    "boolean": to_boolean,
    "long": to_long,
    "double": to_double,
    "string": to_string,
    "timestamp": to_timestamp,
}
