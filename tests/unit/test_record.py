"""Reading wire records: what is accepted, with which types, and why a record is refused."""

import base64
import json
import math
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mltrust import conf
from mltrust.contract import Contract, Feature, Reason, SchemaVersion
from mltrust.record import OutcomeReader, RecordReader, Rejected, Row, canonical, raw_text

CONTRACT, _ = conf.read(Contract, Path(__file__).parents[2] / "conf/contracts/recommendations.yaml")
READER = RecordReader(CONTRACT)

V01 = b"""{"Version": "v01", "model_version": "linear_regression_v2", "request_id": "rId1",
 "features": {"device": "mobile", "age": "25", "similarity_score": "0.10", "feature_version": "f01"},
 "prediction_score": 0.78, "experiment_id": "exp42", "bucketId": "bucket101", "timestamp": 1721887245}"""


def v02(**changes: object) -> dict[str, object]:
    record: dict[str, object] = {
        "schema_version": "v02",
        "request_id": "r1",
        "unit_id": "u1",
        "event_time": "2026-10-05T00:00:00Z",
        "model_name": "ranker",
        "model_version": "1",
        "feature_version": "f02",
        "experiments": [{"experiment_id": "e", "bucket_id": "b", "variant": "control"}],
        "traffic": "production",
        "status": "ok",
        "prediction_score": 0.5,
        "features": {"device": "mobile", "age": 31},
    }
    return {key: value for key, value in (record | changes).items() if value is not ...}


def read(record: object) -> Row | Rejected:
    return READER.read(json.dumps(record).encode())


def accepted(record: object) -> Row:
    row = read(record)
    assert isinstance(row, dict), row
    return row


def refused(raw: bytes) -> Rejected:
    found = READER.read(raw)
    assert isinstance(found, Rejected), found
    return found


def test_the_v01_record_is_read_exactly_with_typed_features() -> None:
    row = READER.read(V01)
    assert isinstance(row, dict)
    del row["content_hash"]
    assert row == {
        "schema_version": "v01",
        "request_id": "rId1",
        "item_id": "",
        "unit_id": None,
        "event_time": 1721887245 * 1_000_000,
        "event_date": (datetime(2024, 7, 25, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)).days,
        "model_name": "linear_regression",
        "model_version": "linear_regression_v2",
        "feature_version": "f01",
        "experiments": [{"experiment_id": "exp42", "bucket_id": "bucket101", "variant": None}],
        "traffic": "production",
        "status": "ok",
        "error_type": None,
        "prediction_score": 0.78,
        "action": None,
        "propensity": None,
        "latency_ms": None,
        "infra": None,
        "features": {
            "device": "mobile",
            "age": 25,
            "similarity_score": 0.1,
            "region": None,
            "tenure_days": None,
            "price": None,
        },
        "extra": None,
    }


BAD: list[tuple[Reason, bytes, str]] = [
    (Reason.UNPARSABLE, b'{"schema_version": "v02", "request_id": "r1"', "no JSON"),
    (Reason.UNPARSABLE, b'{"a": 1} {"b": 2}', "Extra data"),
    (Reason.UNPARSABLE, b'{"request_id": "\xff"}', "no UTF-8"),
    (Reason.UNPARSABLE, b"[1, 2]", "expected a JSON object"),
    (Reason.UNPARSABLE, b'{"prediction_score": NaN}', "NaN is no JSON number"),
    (Reason.UNPARSABLE, b'{"request_id": "a", "request_id": "b"}', "'request_id' is given twice"),
    (Reason.UNPARSABLE, b'{"request_id": "\\ud800"}', "surrogate"),
    (Reason.UNPARSABLE, b"[" * 100_000, "no JSON"),
    (Reason.UNKNOWN_SCHEMA_VERSION, V01.replace(b'"v01"', b'"v00"'), 'is "v00", expected one of v01, v02'),
    (Reason.UNKNOWN_SCHEMA_VERSION, b'{"request_id": "r1"}', "is null, expected one of v01, v02"),
    (Reason.MISSING_FIELD, V01.replace(b'"request_id": "rId1",', b""), "request_id is missing"),
    (Reason.MISSING_FIELD, V01.replace(b'"rId1"', b'""'), "request_id is missing"),
    (Reason.MISSING_FIELD, V01.replace(b', "timestamp": 1721887245', b""), "timestamp is missing"),
    (Reason.MISSING_FIELD, V01.replace(b', "feature_version": "f01"', b""), "features.feature_version is missing"),
    (Reason.MISSING_FIELD, V01.replace(b'"prediction_score": 0.78,', b""), "prediction_score is missing"),
    (Reason.MISSING_FIELD, V01.replace(b'"experiment_id": "exp42",', b""), "experiment_id is missing"),
    (Reason.WRONG_TYPE, V01.replace(b'"25"', b'"25 years"'), 'features.age is "25 years", expected a 64-bit integer'),
    (Reason.WRONG_TYPE, V01.replace(b'"25"', b"25.5"), "features.age is 25.5"),
    (Reason.WRONG_TYPE, V01.replace(b'"25"', b"true"), "features.age is true"),
    (Reason.WRONG_TYPE, V01.replace(b'"25"', b"9223372036854775808"), "64-bit"),
    (Reason.WRONG_TYPE, V01.replace(b"0.78", b'"high"'), 'prediction_score is "high", expected a finite number'),
    (Reason.WRONG_TYPE, V01.replace(b"0.78", b"1e999"), "finite"),
    (Reason.WRONG_TYPE, V01.replace(b'"mobile"', b'{"os": 1}'), "features.device"),
    (Reason.WRONG_TYPE, V01.replace(b'"rId1"', b"1.5"), "request_id is 1.5, expected a string"),
    (Reason.OUTSIDE_DOMAIN, V01.replace(b'"25"', b'"-3"'), 'features.age is "-3", expected [0, 130]'),
    (Reason.OUTSIDE_DOMAIN, V01.replace(b'"0.10"', b"1.01"), "features.similarity_score is 1.01, expected [-1, 1]"),
    (Reason.BAD_TIMESTAMP, V01.replace(b"1721887245", b"17218872"), "timestamp is 17218872"),
    (Reason.BAD_TIMESTAMP, V01.replace(b"1721887245", b'"yesterday"'), "ISO 8601"),
    (Reason.BAD_TIMESTAMP, V01.replace(b"1721887245", b'"2024-07-25T06:00:45"'), "UTC offset"),
    (Reason.BAD_TIMESTAMP, V01.replace(b"1721887245", b'"0001-01-01T00:00:00+14:00"'), "2000 to 2100"),
    (Reason.UNKNOWN_FEATURE_VERSION, V01.replace(b'"f01"', b'"f99"'), 'is "f99", expected one of f01, f02'),
]


@pytest.mark.parametrize(("code", "raw", "words"), BAD, ids=[f"{code}-{at}" for at, (code, _, _) in enumerate(BAD)])
def test_a_bad_record_is_refused_with_its_reason(code: Reason, raw: bytes, words: str) -> None:
    found = refused(raw)
    assert found.reason_code is code
    assert words in found.reason


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"traffic": "test"}, Reason.OUTSIDE_DOMAIN, 'traffic is "test", expected one of production, shadow'),
        ({"status": "ok", "prediction_score": ...}, Reason.MISSING_FIELD, "prediction_score is missing"),
        ({"status": "error"}, Reason.INCONSISTENT, "prediction_score is given although status is error"),
        ({"propensity": 0}, Reason.OUTSIDE_DOMAIN, "propensity is 0, expected (0, 1]"),
        ({"latency_ms": -1}, Reason.OUTSIDE_DOMAIN, "latency_ms is -1, expected 0 or more"),
        ({"infra": {"cpu": "busy"}}, Reason.WRONG_TYPE, "infra.cpu"),
        ({"features": [1]}, Reason.WRONG_TYPE, "features is [1], expected an object"),
        ({"experiments": {"e": 1}}, Reason.WRONG_TYPE, "expected an array of objects"),
        ({"experiments": [{"variant": "control"}]}, Reason.MISSING_FIELD, "experiment_id is missing"),
        ({"experiments": [{"experiment_id": "e"}] * 2}, Reason.INCONSISTENT, "names one experiment_id twice"),
    ],
)
def test_a_v02_record_that_breaks_a_rule_is_refused(changes: dict[str, object], code: Reason, words: str) -> None:
    found = read(v02(**changes))
    assert isinstance(found, Rejected)
    assert (found.reason_code, words in found.reason) == (code, True), found.reason


def test_a_refused_record_shows_the_model_and_experiments_that_could_be_read() -> None:
    of_v01 = {"experiment_id": "exp42", "bucket_id": "bucket101", "variant": None}
    seen = ("linear_regression", "linear_regression_v2", (of_v01,))
    assert refused(V01.replace(b'"25"', b'"x"'))[2:] == seen  # v01 has its model_name from the contract
    carried = [{"experiment_id": "e", "variant": "t"}, {"experiment_id": "f", "bucket_id": 7}, "g"]
    found = read(v02(prediction_score="x", experiments=carried))
    experiments = (
        {"experiment_id": "e", "bucket_id": None, "variant": "t"},
        {"experiment_id": "f", "bucket_id": None, "variant": None},
    )
    assert found[2:] == ("ranker", "1", experiments)  # type: ignore[comparison-overlap]
    assert refused(b"{")[2:] == (None, None, ())


def test_an_error_has_no_score_and_is_accepted() -> None:
    row = accepted(v02(status="error", error_type="timeout", prediction_score=...))
    assert (row["status"], row["error_type"], row["prediction_score"]) == ("error", "timeout", None)


@pytest.mark.parametrize(
    "event_time",
    [1791158400, 1791158400000, 1791158400000000, "1791158400", 1791158400.0, "2026-10-05T02:00:00+02:00"],
)
def test_seconds_milliseconds_microseconds_and_iso_are_told_apart(event_time: object) -> None:
    assert accepted(v02(event_time=event_time))["event_time"] == 1791158400 * 1_000_000


def test_fractions_of_a_second_are_kept_to_the_microsecond() -> None:
    assert accepted(v02(event_time="2026-10-05T00:00:00.123456Z"))["event_time"] == 1791158400_123456
    assert accepted(v02(event_time=1791158400.25))["event_time"] == 1791158400_250000


def test_the_event_date_is_the_utc_day() -> None:
    late = accepted(v02(event_time="2026-10-04T23:59:59.999999Z"))
    early = accepted(v02(event_time="2026-10-05T01:00:00+02:00"))
    assert late["event_date"] == early["event_date"] == accepted(v02())["event_date"] - 1  # type: ignore[operator]


def test_unknown_fields_are_kept_wherever_they_stand() -> None:
    row = accepted(
        v02(tag={"a": [1]}, features={"device": "tv", "new": 1}, experiments=[{"experiment_id": "e", "salt": "s"}])
    )
    assert json.loads(str(row["extra"])) == {
        "tag": {"a": [1]},
        "features": {"new": 1},
        "experiments": [{"salt": "s"}],
    }
    assert row["features"]["device"] == "tv"  # type: ignore[index]


def test_a_feature_of_another_feature_version_is_unknown() -> None:
    row = accepted(v02(feature_version="f01", features={"age": 3, "region": "emea"}))
    assert row["features"]["region"] is None  # type: ignore[index]
    assert json.loads(str(row["extra"])) == {"features": {"region": "emea"}}


def test_a_log_of_actions_needs_an_action_where_it_has_no_score() -> None:
    reader = RecordReader(Contract("acts", {"v02": SchemaVersion()}, {"f02": {}}, "action"))
    with_action = reader.read(json.dumps(v02(prediction_score=..., action="item7", features={})).encode())
    without = reader.read(json.dumps(v02(prediction_score=..., features={})).encode())
    assert isinstance(with_action, dict)
    assert with_action["action"] == "item7"
    assert isinstance(without, Rejected)
    assert without.reason_code is Reason.MISSING_FIELD


def test_the_hash_ignores_key_order_and_nulls_and_sees_every_value() -> None:
    record = v02()
    backwards = dict(reversed(record.items())) | {"action": None, "features": {"age": "31", "device": "mobile"}}
    assert accepted(record)["content_hash"] == accepted(backwards)["content_hash"]
    others = [v02(prediction_score=0.25), v02(note=1), v02(features={"device": "mobile"}), v02(experiments=[])]
    assert len({accepted(each)["content_hash"] for each in [record, *others]}) == 5


def test_the_canonical_json_can_be_made_by_anyone() -> None:
    row = accepted(v02())
    del row["content_hash"]
    assert json.loads(canonical(row)) == {
        key: value
        for key, value in (v02() | {"item_id": "", "event_date": "2026-10-05"}).items()
        if key != "event_time"
    } | {"event_time": "2026-10-05T00:00:00.000000+00:00"}


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
finite = st.floats(allow_nan=False, allow_infinity=False)


@given(
    text=texts,
    name=names,
    whole=st.integers(-(2**63), 2**63 - 1),
    number=finite,
    flag=st.booleans(),
    moment=st.datetimes(datetime(2000, 1, 1), datetime(2099, 12, 31), timezones=st.just(UTC)),
)
def test_every_type_survives_the_wire(
    text: str, name: str, whole: int, number: float, flag: bool, moment: datetime
) -> None:
    kinds = {"a": "string", "b": "long", "c": "double", "d": "boolean", "e": "timestamp"}
    contract = Contract("log", {"v02": SchemaVersion()}, {"f02": {n: Feature(k) for n, k in kinds.items()}})  # type: ignore[arg-type]
    values = {"a": text, "b": whole, "c": number, "d": flag, "e": moment.isoformat()}
    record = v02(request_id=name, features=values, prediction_score=number)
    micros = (moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1_000_000
    for escaped in (True, False):
        row = RecordReader(contract).read(json.dumps(record, ensure_ascii=escaped).encode())
        assert isinstance(row, dict), row
        assert row["request_id"] == name
        assert row["features"] == values | {"e": pytest.approx(micros, abs=1)}
        assert row["prediction_score"] == number
    quoted = RecordReader(contract).read(json.dumps(v02(features={"b": str(whole), "c": repr(number)})).encode())
    assert isinstance(quoted, dict)
    assert quoted["features"] == {"a": None, "b": whole, "c": number, "d": None, "e": None}


@pytest.mark.parametrize("depth", range(300, 1500, 100))
def test_a_value_nested_too_deeply_is_refused_at_any_depth(depth: int) -> None:
    raw = json.dumps(v02(unit_id=...)).encode()[:-1] + b', "unit_id": ' + b"[" * depth + b"]" * depth + b"}"
    assert refused(raw).reason_code in (Reason.WRONG_TYPE, Reason.UNPARSABLE)


@given(st.binary(max_size=60))
def test_no_bytes_break_the_reader_and_all_can_be_kept(raw: bytes) -> None:
    for reader in (READER, OutcomeReader()):
        assert isinstance(reader.read(raw), Rejected)
    text, encoding = raw_text(raw)
    assert (text.encode() if encoding == "text" else base64.b64decode(text)) == raw


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(v02())), json_values)
def test_whatever_stands_in_a_field_it_is_accepted_or_refused_never_an_error(field: str, value: object) -> None:
    found = READER.read(json.dumps(v02(**{field: value})).encode())
    assert isinstance(found, dict | Rejected)
    if isinstance(found, dict) and found["prediction_score"] is not None:
        assert math.isfinite(found["prediction_score"])  # type: ignore[arg-type]


def outcome(**changes: object) -> Row | Rejected:
    record = {"outcome_id": "o1", "request_id": "r1", "name": "click", "value": 1, "event_time": 1791158400}
    kept = {key: value for key, value in (record | changes).items() if value is not ...}
    return OutcomeReader().read(json.dumps(kept).encode())


def test_an_outcome_is_read_with_its_defaults() -> None:
    row = outcome()
    assert isinstance(row, dict)
    assert {**row, "content_hash": ""} == {
        "outcome_id": "o1",
        "revision": 0,
        "request_id": "r1",
        "item_id": None,
        "unit_id": None,
        "name": "click",
        "value": 1.0,
        "event_time": 1791158400_000000,
        "event_date": 20731,
        "extra": None,
        "content_hash": "",
    }


def test_a_retraction_has_a_null_value_and_an_item_may_be_empty() -> None:
    row = outcome(value=None, revision=2, item_id="")
    assert isinstance(row, dict)
    assert (row["value"], row["revision"], row["item_id"]) == (None, 2, "")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"outcome_id": ...}, Reason.MISSING_FIELD),
        ({"request_id": ...}, Reason.MISSING_FIELD),
        ({"event_time": ...}, Reason.MISSING_FIELD),
        ({"revision": -1}, Reason.OUTSIDE_DOMAIN),
        ({"revision": "x"}, Reason.WRONG_TYPE),
        ({"value": "much"}, Reason.WRONG_TYPE),
        ({"event_time": "soon"}, Reason.BAD_TIMESTAMP),
    ],
)
def test_a_bad_outcome_is_refused(changes: dict[str, object], code: Reason) -> None:
    found = outcome(**changes)
    assert isinstance(found, Rejected)
    assert found.reason_code is code
