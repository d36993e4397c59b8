"""What a service passes, as ingest reads it: every value as it was, and nothing that breaks the log."""

import json
import math
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PurePosixPath
from typing import NamedTuple
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mltrust.client import InferenceLogger
from mltrust.contract import Reason
from mltrust.record import OutcomeReader, Rejected, Row
from tests.unit.test_client import CONTRACT, PATIENCE, READER, Memory, predict
from tests.unit.test_record import json_values, names, texts


class Wire:
    """A logger whose last line can be read."""

    def __init__(self) -> None:
        self.sink = Memory()
        self.logger = InferenceLogger(CONTRACT, self.sink, heartbeat_seconds=3600)

    def line(self, **changes: object) -> bytes:
        """The line of a prediction with these changes; checks that it is counted as ingest will see it."""
        before = self.logger.counts().invalid
        assert predict(self.logger, **changes) is True  # type: ignore[arg-type]
        counts = self.logger.flush(PATIENCE)
        line = self.sink.lines["records"][-1]
        assert isinstance(READER.read(line), Rejected) == (counts.invalid > before), line
        assert b"\n" not in line
        return line

    def read(self, **changes: object) -> Row | Rejected:
        return READER.read(self.line(**changes))

    def features(self, **features: object) -> dict[str, object]:
        row = self.read(features=features)
        assert isinstance(row, dict), row
        assert isinstance(row["features"], dict)
        return {name: row["features"][name] for name in features}

    def refused(self, **changes: object) -> Rejected:
        found = self.read(**changes)
        assert isinstance(found, Rejected), found
        return found


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.logger.close()


finite = st.floats(allow_nan=False, allow_infinity=False)
moments = st.datetimes(datetime(2000, 1, 2), datetime(2099, 12, 30), timezones=st.sampled_from(
    [UTC, timezone(timedelta(hours=5, minutes=30)), timezone(-timedelta(hours=12))]
))  # fmt: skip
experiments = st.lists(
    st.fixed_dictionaries(
        {"experiment_id": names}, optional={"bucket_id": texts, "variant": texts}
    ),
    max_size=3,
    unique_by=lambda each: each["experiment_id"],
)  # fmt: skip


@given(
    request_id=names,
    score=finite,
    device=texts,
    age=st.integers(0, 130),
    price=finite,
    member=st.booleans(),
    since=moments,
    event_time=moments,
    experiments=experiments,
    extra=st.dictionaries(names, json_values, max_size=2),
)
def test_every_value_survives_from_the_call_to_the_row(
    wire: Wire,
    request_id: str,
    score: float,
    device: str,
    age: int,
    price: float,
    member: bool,
    since: datetime,
    event_time: datetime,
    experiments: list[dict[str, str]],
    extra: dict[str, object],
) -> None:
    row = wire.read(
        request_id=request_id,
        prediction_score=score,
        features={"device": device, "age": age, "price": price, "member": member, "since": since},
        event_time=event_time,
        experiments=experiments,
    )
    assert isinstance(row, dict), row
    assert (row["request_id"], row["prediction_score"]) == (request_id, score)
    assert row["event_time"] == micros(event_time)
    assert row["features"] == {"device": device, "age": age, "price": price, "member": member, "since": micros(since)}
    blank = {"bucket_id": None, "variant": None}
    assert row["experiments"] == [blank | each for each in experiments]
    with_extra = wire.line(extra=extra)
    assert isinstance(READER.read(with_extra), dict | Rejected)


def micros(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no text")

    __str__ = __repr__


class Hostile:
    """Raises at whatever is asked of it."""

    def __getattr__(self, name: str) -> object:
        raise RuntimeError(name)

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    __hash__ = None  # type: ignore[assignment]


class HostileMapping(dict[str, object]):
    def keys(self) -> object:  # type: ignore[override]
        raise RuntimeError("no keys")

    __iter__ = keys  # type: ignore[assignment]
    items = keys  # type: ignore[assignment]


class Scalar:
    """As numpy's scalars are."""

    def __init__(self, value: object) -> None:
        self.value = value

    def tolist(self) -> object:
        return self.value

    def item(self) -> object:
        return self.value


class NAType:
    """As pandas' missing value, which compares to nothing."""

    def __eq__(self, other: object) -> bool:
        return self  # type: ignore[return-value]

    def __bool__(self) -> bool:
        raise TypeError("boolean value of NA is ambiguous")

    __hash__ = None  # type: ignore[assignment]


class Device(Enum):
    MOBILE = "mobile"


def circular() -> list[object]:
    made: list[object] = []
    made.append(made)
    return made


def deep() -> list[object]:
    made: list[object] = []
    for _ in range(5 * sys.getrecursionlimit()):
        made = [made]
    return made


ODD: list[object] = [
    object(), Unprintable(), Hostile(), HostileMapping(a=1), circular(), deep(), NAType(), Scalar(3), True, None,
    math.nan, math.inf, -math.inf, 10**5000, Fraction(1, 3), 1j, b"bytes", "\ud800", {"\udfff": 1}, {1: 2, None: 3},
    Scalar(object()), {"a": math.nan}, {(1, 2): 3}, {1, 2}, (1, 2), [object()], iter([1]), Device.MOBILE,
    Decimal("NaN"), lambda: 1,
    datetime(2026, 1, 1), datetime.max.replace(tzinfo=timezone(-timedelta(hours=1))), date(2026, 1, 1), "",
]  # fmt: skip
FIELDS = (
    "request_id", "model_name", "model_version", "feature_version", "features", "prediction_score", "unit_id",
    "item_id", "event_time", "experiments", "traffic", "status", "error_type", "action", "propensity", "latency_ms",
    "infra", "extra",
)  # fmt: skip


@pytest.mark.parametrize("value", ODD, ids=[f"{at}-{type(value).__name__}" for at, value in enumerate(ODD)])
def test_no_value_in_any_field_raises_or_breaks_a_line(wire: Wire, value: object) -> None:
    for field in FIELDS:
        for each in (value, [value], {"device": value}, {"unknown": value}):
            wire.line(**{field: each})


class Odd(NamedTuple):
    """One of the odd values, by its place, as hypothesis prints what it draws."""

    at: int


def made(drawn: object) -> object:
    if isinstance(drawn, Odd):
        return ODD[drawn.at]
    if isinstance(drawn, dict):
        return {name: made(each) for name, each in drawn.items()}
    return [made(each) for each in drawn] if isinstance(drawn, list) else drawn


odd_values = st.recursive(
    st.builds(Odd, st.integers(0, len(ODD) - 1)) | json_values,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(FIELDS), odd_values, max_size=4))
def test_no_combination_of_values_raises_and_the_count_of_invalid_is_what_ingest_will_see(
    wire: Wire, changes: dict[str, object]
) -> None:
    wire.line(**{name: made(value) for name, value in changes.items()})


@given(
    st.dictionaries(
        st.sampled_from(["outcome_id", "name", "value", "request_id", "revision", "event_time", "extra"]), odd_values
    )
)
def test_outcomes_take_any_value_too(wire: Wire, changes: dict[str, object]) -> None:
    given: dict[str, object] = {"outcome_id": "o", "name": "click", "value": 1.0, "request_id": "r"}
    before = wire.logger.counts("outcomes").invalid
    odd = {name: made(value) for name, value in changes.items()}
    assert wire.logger.outcome(**given | odd)  # type: ignore[arg-type]
    wire.logger.flush(PATIENCE)
    found = OutcomeReader().read(wire.sink.lines["outcomes"][-1])
    assert isinstance(found, Rejected) == (wire.logger.counts("outcomes").invalid > before)


def test_scalars_of_other_libraries_become_their_plain_values(wire: Wire) -> None:
    assert wire.features(age=Scalar(31), price=Scalar(0.5), device=Device.MOBILE, member=Scalar(True)) == {
        "age": 31,
        "price": 0.5,
        "device": "mobile",
        "member": True,
    }
    assert wire.features(price=Decimal("2.50"), device=PurePosixPath("/a")) == {"price": 2.5, "device": "/a"}
    assert wire.features(device=UUID(int=1))["device"] == str(UUID(int=1))
    row = wire.read(prediction_score=Scalar(0.25))
    assert isinstance(row, dict)
    assert row["prediction_score"] == 0.25


def test_an_undefined_feature_is_null_and_an_undefined_score_is_refused(wire: Wire) -> None:
    assert wire.features(price=math.nan, age=NAType()) == {"price": None, "age": None}
    found = wire.refused(prediction_score=math.nan)
    assert found.reason_code is Reason.WRONG_TYPE
    assert "float nan" in found.reason


def test_what_json_cannot_say_is_never_taken_for_a_string(wire: Wire) -> None:
    for value in (object(), b"mobile", 1j, math.inf, {1, 2}, lambda: 1, circular()):
        found = wire.refused(features={"device": value})
        assert found.reason_code is Reason.WRONG_TYPE
        assert "features.device" in found.reason


def test_half_a_surrogate_pair_is_kept_as_its_escape_and_refused(wire: Wire) -> None:
    line = wire.line(request_id="r\ud800", features={"device": "möbile"})
    assert b"r\\ud800" in line
    found = READER.read(line)
    assert isinstance(found, Rejected)
    assert found.reason_code is Reason.UNPARSABLE


def test_text_is_utf8_and_not_escaped(wire: Wire) -> None:
    assert "möbile 📱".encode() in wire.line(features={"device": "möbile 📱"})


def test_a_naive_time_is_refused_and_microseconds_are_taken(wire: Wire) -> None:
    assert wire.refused(event_time=datetime(2026, 10, 5)).reason_code is Reason.BAD_TIMESTAMP
    assert wire.refused(event_time=-1).reason_code is Reason.BAD_TIMESTAMP
    row = wire.read(event_time=1791158400_000001)
    assert isinstance(row, dict)
    assert row["event_time"] == 1791158400_000001


def test_fields_of_the_callers_own_are_kept_and_never_take_the_place_of_a_column(wire: Wire) -> None:
    row = wire.read(extra={"region": "emea", "status": "error", "heartbeat": {}})
    assert isinstance(row, dict)
    assert row["status"] == "ok"
    assert json.loads(str(row["extra"])) == {"region": "emea", "extra": {"status": "error", "heartbeat": {}}}
    as_text = wire.read(extra="note")
    assert isinstance(as_text, dict)
    assert json.loads(str(as_text["extra"])) == {"extra": "note"}


def test_features_are_copied_when_they_are_logged(wire: Wire) -> None:
    features = {"age": 31}
    wire.sink.gate.clear()
    predict(wire.logger, features=features)
    features["age"] = 99
    wire.sink.gate.set()
    wire.logger.flush(PATIENCE)
    assert json.loads(wire.sink.lines["records"][-1])["features"] == {"age": 31}
