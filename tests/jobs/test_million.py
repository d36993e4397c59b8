"""A million records in three formats, to one and the same table."""

import gzip
import json
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from mltrust.contract import Contract
from mltrust.formats import avro, protobuf
from mltrust.verdicts import Exit
from tests.jobs.test_ingest import Log

N, FILES = 1_000_000, 10
_MICROS = 1_791_158_400_000_000
Record = dict[str, object]


def records(start: int, stop: int) -> Iterator[Record]:
    """Records of two days, with text of any kind, extremes, absent fields and now and then what is refused."""
    for at in range(start, stop):
        record: Record = {
            "schema_version": "v02",
            "request_id": f"r{at % 900_000}",
            "item_id": "" if at < 900_000 else f"i{at}",
            "event_time": _MICROS + at * 100_003,
            "model_name": "ranker",
            "model_version": f"{at % 3}",
            "feature_version": "f02",
            "experiments": [{"experiment_id": "e", "bucket_id": f"b{at % 100}", "variant": "control"}],
            "traffic": "production" if at % 7 else "shadow",
            "status": "ok",
            "prediction_score": (-1.0) ** at * at / 7 * 10.0 ** (at % 300 - 150),
            "latency_ms": at / 3,
            "infra": {"cpu": at / 11, "größe": 0.1},
            "features": {"device": f"дев {at % 50}", "age": at % 131, "price": at / 13, "tenure_days": at},
        }
        if at % 2:
            record["unit_id"] = f"u{at % 5000}\u2028\U0001f600"
        if at % 10_000 == 17:
            record["features"] = {"age": 131}
        yield record


def json_lines(part: list[Record], contract: Contract) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in part)


def avro_file(part: list[Record], contract: Contract) -> bytes:
    return avro.encode(part, avro.record_schema(contract))


def messages(part: Sequence[Record], contract: Contract) -> bytes:
    codec = protobuf.Codec(contract, "Record")
    return protobuf.delimited([codec.encode(each) for each in part])


def enveloped(part: list[Record], contract: Contract) -> bytes:
    codec = protobuf.Codec(contract, "Record")
    lines = (json.dumps({"protobuf": b64encode(codec.encode(each)).decode()}) for each in part)
    return gzip.compress("\n".join(lines).encode(), compresslevel=1)


FORMATS: dict[str, Callable[[list[Record], Contract], bytes]] = {
    "jsonl": json_lines,
    "avro": avro_file,
    "pb": messages,
}


@pytest.mark.slow
def test_a_million_records_are_the_same_table_in_every_format(spark: SparkSession, tmp_path: Path) -> None:
    logs = {name: Log(spark, tmp_path / name) for name in FORMATS}
    for at in range(FILES):
        part = list(records(at * N // FILES, (at + 1) * N // FILES))
        for name, encoded in FORMATS.items():
            logs[name].write(f"{at}.{name}", encoded(part, logs[name].conf.contract))
        # The last file once more, in the fourth way to write it: a hundred thousand duplicates.
    for log in logs.values():
        log.write("again.jsonl.gz", enveloped(part, log.conf.contract))
        assert log.ingest() == Exit.PASS
    found = {name: fingerprint(log) for name, log in logs.items()}
    assert found["avro"] == found["jsonl"]
    assert found["pb"] == found["jsonl"]
    rows, rejected = N - N // 10_000, N // 10_000 + N // FILES // 10_000
    assert found["jsonl"][0] == rows
    for log in logs.values():
        books = log.books().values()
        totals = [sum(column) for column in zip(*books, strict=True)]
        assert totals == [N + N // FILES, rows, rejected, N + N // FILES - rows - rejected]
        reasons = log.lake.read("inference_log_rejects").select("reason").distinct().collect()
        assert [row["reason"] for row in reasons] == ["features.age is 131, expected [0, 130]"]


def fingerprint(log: Log) -> tuple[int, object]:
    """Rows, and a sum of their hashes over every column but those of the arrival."""
    rows = log.lake.read("inference_log").drop("ingested_at", "source", "ingest_batch")
    # Hashes of maps depend on the order of entries, JSON of structs does not.
    hashed = F.xxhash64(F.to_json(F.struct(*rows.columns))).cast("decimal(20, 0)")
    row = rows.agg(F.count("*").alias("n"), F.sum(hashed).alias("sum")).first()
    assert row is not None
    return row["n"], row["sum"]
