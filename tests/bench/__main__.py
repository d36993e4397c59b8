"""Benchmarks, each against its rival in the same run: ratios, as seconds belong to the machine."""

import gzip
import json
import sys
import time
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from tempfile import TemporaryDirectory

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mltrust import conf, runtime
from mltrust.contract import Contract
from mltrust.formats import avro, protobuf
from mltrust.formats.files import WireReader
from mltrust.record import RecordReader
from mltrust.settings import Settings
from mltrust.spark.moments import Block, CellSet, cells
from tests.bench.client import client

ROOT = Path(__file__).parents[2]
RECORD = {
    "schema_version": "v02", "request_id": "r", "unit_id": "u", "event_time": "2026-10-05T00:00:00Z",
    "model_name": "m", "model_version": "1", "feature_version": "f02", "traffic": "production", "status": "ok",
    "prediction_score": 0.5, "experiments": [{"experiment_id": str(at), "variant": "control"} for at in range(4)],
    "features": {"device": "tv", "age": 31, "similarity_score": 0.1, "region": "emea", "price": 2.5},
}  # fmt: skip


def seconds(work: Callable[[], object], repeats: int = 2) -> float:
    """The fastest of a few runs."""
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)


def report(name: str, ours: float, rival: float, rival_name: str, n: int) -> None:
    print(f"{name:44} {n / ours:12,.0f} rows/s   {rival / ours:6.2f} x {rival_name}", flush=True)


def reading(n: int = 20_000) -> None:
    contract, _ = conf.read(Contract, ROOT / "conf/contracts/recommendations.yaml")
    raw, reader = json.dumps(RECORD).encode(), RecordReader(contract)
    ours = seconds(lambda: [reader.read(raw) for _ in range(n)])
    rival = seconds(lambda: [json.loads(raw) for _ in range(n)])
    report("read, check and hash a v02 record", ours, rival, "json.loads alone", n)


def formats(n: int = 20_000) -> None:
    contract, _ = conf.read(Contract, ROOT / "conf/contracts/recommendations.yaml")
    reader, codec = WireReader(contract, "records"), protobuf.Codec(contract, "Record")
    records = [RECORD | {"request_id": f"r{at}", "event_time": 1_791_158_400_000_000 + at} for at in range(n)]
    files = {
        "a.avro": avro.encode(records, avro.record_schema(contract)),
        "a.pb": protobuf.delimited([codec.encode(record) for record in records]),
        "a.jsonl.gz": gzip.compress(b"\n".join(json.dumps(record).encode() for record in records)),
    }
    rival = seconds(lambda: list(reader.file("a.jsonl.gz", files["a.jsonl.gz"])))
    for name, content in files.items():
        ours = seconds(lambda name=name, content=content: list(reader.file(name, content)))  # type: ignore[misc]
        report(f"{len(content) / n:.0f} bytes a record: {name}", ours, rival, "the same as JSON, gzip", n)


def reducing(n: int, n_metrics: int) -> None:
    names = [f"m{at}" for at in range(2 * n_metrics)]
    with TemporaryDirectory() as folder:
        spark = runtime.session(Settings(root=folder, master="local[*]"), "bench")
        pairs = list(zip(names[::2], names[1::2], strict=True))
        frame = spark.range(n).select(
            (F.col("id") % 200).cast("string").alias("cell"),
            *(F.randn(at).alias(name) for at, name in enumerate(names)),
        )
        path = f"{folder}/units"
        frame.write.parquet(path)
        units = spark.read.parquet(path)
        blocks = [Block(f"{a} {b}", (a, b), (a, b)) for a, b in pairs]
        ours = seconds(lambda: cells(units, [CellSet(("cell",), tuple(blocks))]))
        report(
            f"moments of {n_metrics} ratio metrics, 200 cells",
            ours,
            seconds(lambda: built_in(units, pairs)),
            "built-in covar_pop",
            n,
        )
        one_by_one = seconds(lambda: [cells(units, [CellSet(("cell",), (block,))]) for block in blocks])
        report("the same", ours, one_by_one, "metric by metric", n)


def built_in(units: DataFrame, pairs: list[tuple[str, str]]) -> object:
    columns = reduce(
        lambda found, pair: (
            found + [F.avg(each) for each in pair] + [F.var_pop(each) for each in pair] + [F.covar_pop(*pair)]
        ),
        pairs,
        [F.count("*")],
    )
    return units.groupBy("cell").agg(*columns).collect()


if __name__ == "__main__":
    reading()
    formats()
    client()
    reducing(1_000_000, n_metrics=5)
    reducing(500_000, n_metrics=40)
    sys.exit(0)
