"""One record in every format is one row, and what is damaged costs no more than itself."""

import base64
import gzip
import json
import math
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrust.contract import Contract, Domain, Feature, Reason, SchemaVersion
from mltrust.formats import avro, protobuf
from mltrust.formats.files import Read, Stream, WireReader, is_lines
from mltrust.formats.pieces import KEPT_BYTES
from mltrust.record import Rejected

CONTRACT = Contract(
    log="every_type",
    versions={"v02": SchemaVersion()},
    features={
        "f1": {"b": Feature("boolean"), "n": Feature("long"), "x": Feature("double"), "s": Feature("string")},
        "f2": {"s": Feature("string"), "t": Feature("timestamp"), "age": Feature("long", domain=Domain(0, 130))},
    },
    field_numbers={"b": 1, "n": 2, "x": 3, "s": 4, "t": 7, "age": 900},
)
WIRE: Mapping[Stream, WireReader] = {
    "records": WireReader(CONTRACT, "records"),
    "outcomes": WireReader(CONTRACT, "outcomes"),
}
CODEC = protobuf.Codec(CONTRACT, "Record")
SCHEMA = avro.record_schema(CONTRACT)

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
LONGS = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([-(2**63), 2**63 - 1, 2**53 + 1, 0])
DOUBLES = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(
    [5e-324, 1.7976931348623157e308, -0.0, 0.1]
)
# Microseconds in [2000, 2100), the range of event times.
MICROS = st.integers(946_684_800_000_000, 4_102_444_799_999_999)
FEATURES = st.fixed_dictionaries(
    {},
    optional={"b": st.booleans(), "n": LONGS, "x": DOUBLES, "s": TEXT, "t": MICROS, "age": st.integers(-5, 140)},
)
EXPERIMENTS = st.lists(
    st.fixed_dictionaries({"experiment_id": TEXT}, optional={"bucket_id": TEXT, "variant": TEXT}), max_size=3
)


def _without_empty(record: dict[str, object]) -> dict[str, object]:
    """Protobuf cannot tell an empty list or map from none, and neither can the table tell them apart."""
    return {name: value for name, value in record.items() if value not in ([], {})}


RECORDS = st.fixed_dictionaries(
    {
        "schema_version": st.just("v02"),
        "request_id": TEXT,
        "event_time": MICROS,
        "model_name": TEXT,
        "model_version": TEXT,
        "feature_version": st.sampled_from(["f1", "f2", "f3"]),
        "traffic": st.sampled_from(["production", "shadow", "else"]),
        "status": st.sampled_from(["ok", "error"]),
    },
    optional={
        "item_id": TEXT,
        "unit_id": TEXT,
        "experiments": EXPERIMENTS,
        "error_type": TEXT,
        "prediction_score": DOUBLES,
        "action": TEXT,
        "propensity": DOUBLES,
        "latency_ms": DOUBLES,
        "infra": st.dictionaries(TEXT, DOUBLES, max_size=3),
        "features": FEATURES,
    },
).map(_without_empty)
OUTCOMES = st.fixed_dictionaries(
    {"outcome_id": TEXT, "name": TEXT, "event_time": MICROS},
    optional={"revision": LONGS, "request_id": TEXT, "item_id": TEXT, "unit_id": TEXT, "value": DOUBLES},
)


def lines(records: Sequence[Mapping[str, object]]) -> bytes:
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)


def enveloped(messages: Sequence[bytes]) -> bytes:
    return lines([{"protobuf": base64.b64encode(message).decode()} for message in messages])


def found(name: str, content: bytes, stream: Stream = "records") -> list[object]:
    return [each.found for each in WIRE[stream].file(name, content)]


@settings(deadline=None, max_examples=200)
@given(st.lists(RECORDS, max_size=4))
def test_a_record_is_the_same_row_in_every_format(records: list[dict[str, object]]) -> None:
    expected = found("a.jsonl.gz", gzip.compress(lines(records)))
    assert len(expected) == len(records)
    messages = [CODEC.encode(record) for record in records]
    assert found("a.avro", avro.encode(records, SCHEMA)) == expected
    assert found("a.avro.gz", gzip.compress(avro.encode(records, SCHEMA, "snappy"))) == expected
    assert found("a.pb", protobuf.delimited(messages)) == expected
    assert found("a.pb.gz", gzip.compress(protobuf.delimited(messages))) == expected
    assert found("a.jsonl.gz", gzip.compress(enveloped(messages))) == expected


@settings(deadline=None)
@given(st.lists(OUTCOMES, max_size=4))
def test_an_outcome_is_the_same_row_in_every_format(outcomes: list[dict[str, object]]) -> None:
    expected = found("a.jsonl.gz", gzip.compress(lines(outcomes)), "outcomes")
    codec = protobuf.Codec(CONTRACT, "Outcome")
    messages = [codec.encode(outcome) for outcome in outcomes]
    assert found("a.avro", avro.encode(outcomes, avro.outcome_schema()), "outcomes") == expected
    assert found("a.pb", protobuf.delimited(messages), "outcomes") == expected


def record(at: int, **changes: object) -> dict[str, object]:
    made: dict[str, object] = {
        "schema_version": "v02",
        "request_id": f"r{at}",
        "event_time": 1_791_158_400_000_000 + at,
        "model_name": "m",
        "model_version": "1",
        "feature_version": "f1",
        "traffic": "production",
        "status": "ok",
        "prediction_score": at / 7,
        "features": {"s": "x" * 50, "n": at},
    }
    return made | changes


def ids(reads: Sequence[object]) -> list[object]:
    return [each["request_id"] for each in reads if isinstance(each, dict)]


def refused(reads: Sequence[object]) -> list[Rejected]:
    return [each for each in reads if isinstance(each, Rejected)]


def blocks_of(n_blocks: int, each: int) -> bytes:
    """A container of several blocks: files of one schema, headers cut off but the first."""
    parts = [avro.encode([record(each * at + i) for i in range(each)], SCHEMA) for at in range(n_blocks)]
    first, *others = (part.split(part[-16:]) for part in parts)
    sync = parts[0][-16:]
    return sync.join([*first[:-1], *(other[1] for other in others), b""])


def test_a_container_of_several_blocks_is_read_whole() -> None:
    assert ids(found("a.avro", blocks_of(5, 20))) == [f"r{at}" for at in range(100)]


@given(st.integers(0, 4), st.integers(0, 2**31), st.integers(1, 255))
def test_a_damaged_block_costs_itself_and_no_other(block: int, at: int, flip: int) -> None:
    content = bytearray(blocks_of(5, 20))
    sync = bytes(content[-16:])
    ends = [i + 16 for i in range(len(content)) if content.startswith(sync, i)]
    # The data of a block lies between its length and its marker; a deflated block has no byte to spare in front.
    start, end = ends[block] + 4, ends[block + 1] - 16
    content[start + at % (end - start)] ^= flip
    reads = found("a.avro", bytes(content))
    whole = [f"r{i}" for i in range(100) if i // 20 != block]
    assert [each for each in ids(reads) if each in whole] == whole
    assert len(refused(reads)) <= 20


def test_the_rest_of_a_cut_off_container_is_one_reject_with_what_was_left_of_it() -> None:
    content = blocks_of(3, 20)
    reads = list(WIRE["records"].file("a.avro", content[:-40]))
    assert ids([each.found for each in reads]) == [f"r{at}" for at in range(40)]
    [last] = [each for each in reads if isinstance(each.found, Rejected)]
    assert isinstance(last.found, Rejected)
    assert last.found.reason_code == Reason.UNREADABLE
    assert last.found.reason.startswith("the Avro block at byte ")
    assert content[:-40].endswith(base64.b64decode(last.raw))
    assert (last.position, last.raw_encoding) == (41, "base64")


def test_every_cut_of_a_container_is_noticed() -> None:
    content = blocks_of(2, 3)
    header = content.index(content[-16:]) + 16
    for end in range(1, len(content)):
        reads = found("a.avro", content[:end])
        at_a_boundary = end >= header and content[:end].endswith(content[-16:])
        assert len(refused(reads)) == (0 if at_a_boundary else 1), end


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(["a.avro", "a.pb", "a.jsonl.gz", "a.pb.gz", "a.zst", "a.avro.gz"]), st.binary(max_size=200))
def test_any_bytes_become_rejects_and_nothing_else(name: str, content: bytes) -> None:
    for each in WIRE["records"].file(name, content):
        assert isinstance(each.found, Rejected)
        assert each.raw_encoding in ("text", "base64", "json")


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_a_damaged_file_never_stops_the_reading(data: st.DataObject) -> None:
    name, content = data.draw(
        st.sampled_from(
            [
                ("a.avro", blocks_of(3, 5)),
                ("a.pb", protobuf.delimited([CODEC.encode(record(at)) for at in range(10)])),
                ("a.jsonl.gz", gzip.compress(lines([record(at) for at in range(10)]))),
            ]
        )
    )
    at = data.draw(st.integers(0, len(content) - 1))
    damaged = content[:at] + data.draw(st.binary(max_size=4)) + content[at + data.draw(st.integers(0, 4)) :]
    reads = list(WIRE["records"].file(name, damaged))
    assert len(reads) <= 40
    assert len({each.position for each in reads}) == len(reads)


def test_lines_before_the_end_of_a_cut_off_gzip_are_kept() -> None:
    whole = gzip.compress(lines([record(at) for at in range(2000)]))
    reads = found("a.jsonl.gz", whole[: len(whole) // 2])
    kept = ids(reads)
    assert 500 < len(kept) < 1500
    assert kept == [f"r{at}" for at in range(len(kept))]
    [last] = refused(reads)
    assert last == reads[-1]
    assert (last.reason_code, "cut off" in last.reason) == (Reason.UNREADABLE, True)


def test_every_member_of_a_gzip_file_is_read() -> None:
    members = b"".join(gzip.compress(lines([record(at)])) for at in range(3))
    assert ids(found("a.jsonl.gz", members + b"\0" * 8)) == ["r0", "r1", "r2"]


def test_a_broken_message_costs_itself_and_a_broken_length_the_rest() -> None:
    messages = [CODEC.encode(record(at)) for at in range(3)]
    messages[1] = b"\xff" * 30
    reads = found("a.pb", protobuf.delimited(messages) + b"\x7f")
    assert ids(reads) == ["r0", "r2"]
    assert [each.reason.split(":")[0][:10] for each in refused(reads)] == ["message at", "the length"]
    assert {each.reason_code for each in refused(reads)} == {Reason.UNREADABLE}


def test_of_a_large_unreadable_file_the_first_bytes_are_kept_and_the_rest_is_said() -> None:
    [only] = WIRE["records"].file("a.avro", b"x" * 100_000)
    assert base64.b64decode(only.raw) == b"x" * KEPT_BYTES
    assert isinstance(only.found, Rejected)
    assert only.found.reason.endswith("(the first 65,536 of 100,000 bytes are kept)")


def test_what_a_newer_writer_knows_is_kept_in_extra() -> None:
    fields = [*SCHEMA["fields"], {"name": "shard", "type": "int"}, {"name": "blob", "type": "bytes"}]  # type: ignore[misc]
    [row] = found("a.avro", avro.encode([record(1) | {"shard": 3, "blob": b"\x00"}], SCHEMA | {"fields": fields}))
    assert isinstance(row, dict)
    assert json.loads(str(row["extra"])) == {"blob": "AA==", "shard": 3}
    newer = CODEC.encode(record(1)) + b"\xf8\x07\x05" + b"\xfa\x07\x01z"
    [row] = found("a.pb", protobuf.delimited([newer]))
    assert isinstance(row, dict)
    assert json.loads(str(row["extra"])) == {"unknown_fields": {"127": [5, "eg=="]}}


def test_an_older_writers_types_are_read_by_the_contract() -> None:
    fields = [
        {"name": name, "type": kind}
        for name, kind in {
            "schema_version": {"type": "enum", "name": "V", "symbols": ["v02"]},
            "request_id": "string",
            "event_time": {"type": "long", "logicalType": "timestamp-millis"},
            "model_name": "string",
            "model_version": "int",
            "feature_version": "string",
            "traffic": "string",
            "status": "string",
            "prediction_score": "float",
            "features": {"type": "map", "values": "string"},
        }.items()
    ]
    given = record(1, event_time=1_791_158_400_000, model_version=7, prediction_score=0.5, features={"n": "25"})
    [row] = found("a.avro", avro.encode([given], {"type": "record", "name": "Old", "fields": fields}))
    assert isinstance(row, dict), row
    assert (row["event_time"], row["model_version"], row["features"]["n"]) == (1_791_158_400_000_000, "7", 25)  # type: ignore[index]


def test_a_refused_object_of_a_binary_file_is_kept_as_json() -> None:
    bad = record(1, feature_version="f2", features={"age": 200})
    for name, content in (
        ("a.avro", avro.encode([bad], SCHEMA)),
        ("a.pb", protobuf.delimited([CODEC.encode(bad)])),
    ):
        [only] = WIRE["records"].file(name, content)
        assert isinstance(only.found, Rejected)
        assert only.found.reason == "features.age is 200, expected [0, 130]"
        assert (json.loads(only.raw)["features"], only.raw_encoding) == ({"age": 200}, "json")


def test_a_number_that_is_none_is_refused_as_a_record_and_not_as_a_file() -> None:
    records = [record(1), record(2, prediction_score=math.nan), record(3)]
    reads = found("a.avro", avro.encode(records, SCHEMA))
    assert ids(reads) == ["r1", "r3"]
    assert [each.reason_code for each in refused(reads)] == [Reason.WRONG_TYPE]


def test_an_instant_out_of_range_is_one_bad_record() -> None:
    reads = found("a.avro", avro.encode([record(1), record(2, event_time=2**62)], SCHEMA))
    assert ids(reads) == ["r1"]
    assert [each.reason_code for each in refused(reads)] == [Reason.BAD_TIMESTAMP]


def test_protobuf_needs_field_numbers_and_says_so() -> None:
    reader = WireReader(Contract("plain", {"v02": SchemaVersion()}, {"f1": {"x": Feature("double")}}), "records")
    [file] = reader.file("a.pb", b"\x01a")
    line = reader.line(1, b'{"protobuf": "AA=="}')
    assert line is not None
    for read in (file, line):
        assert isinstance(read.found, Rejected)
        assert "has no field_numbers" in read.found.reason


@pytest.mark.parametrize("line", [b'{"protobuf": "?"}', b'{"protobuf": 5}', b'{"protobuf": "/////w=="}'])
def test_a_line_that_holds_no_message_is_unparsable(line: bytes) -> None:
    read = WIRE["records"].line(1, line)
    assert isinstance(read, Read)
    assert isinstance(read.found, Rejected)
    assert read.found.reason_code == Reason.UNPARSABLE


def test_only_plain_json_is_read_in_parts() -> None:
    assert [is_lines(name) for name in ("a.jsonl", "part-0", "A.AVRO", "a.pb", "a.json.gz", "a.json.zst")] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize("line", [b'{"heartbeat": %s}', b'{"schema_version": %s}', b'{"x": %s}'])
def test_a_line_nested_too_deeply_is_a_reject_wherever_it_is_noticed(line: bytes) -> None:
    for depth in (*range(900, 1100, 7), 100_000):
        read = WIRE["records"].line(1, line % (b"[" * depth + b"]" * depth))
        assert read is not None
        assert isinstance(read.found, Rejected)


def test_a_block_cannot_say_that_it_holds_more_records_than_bytes() -> None:
    empty = avro.encode([{}], {"type": "record", "name": "Nothing", "fields": []}, codec="null")
    sync = empty[-16:]
    content = empty[: empty.index(sync) + 16] + b"\x80\x89\x7a\x00" + sync
    [only] = found("a.avro", content)
    assert isinstance(only, Rejected)
    assert "1,000,000 records and has 0 bytes" in only.reason


@pytest.mark.parametrize("name", ["logged", "dropped", "sequence"])
def test_a_heartbeat_counts_from_zero(name: str) -> None:
    beat = dict.fromkeys(("logged", "written", "dropped", "invalid", "spilled", "sequence"), 1) | {
        "producer_id": "p",
        "model_name": "m",
        "model_version": "1",
        "window_start": 1_791_158_400_000_000,
        "event_time": 1_791_158_400_000_000,
    }
    for count, accepted in ((0, True), (-1, False)):
        read = WIRE["records"].line(1, json.dumps({"heartbeat": beat | {name: count}}).encode())
        assert read is not None
        assert isinstance(read.found, Rejected) is not accepted
