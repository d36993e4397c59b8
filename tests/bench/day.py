"""Seconds of a batch of live traffic by how many records its day holds already: `python -m tests.bench.day`.

A batch is matched with the keys of its days, so that no record is in the log twice: what that costs grows over a day.
"""

import argparse
import json
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from mltrust import conf as confs
from mltrust import landing, runtime
from mltrust.conf import Conf
from mltrust.io.tables import Lakehouse
from tests.bench.__main__ import RECORD, ROOT

BATCH = 10_000


def land(conf: Conf, n: int) -> None:
    """A landing file of so many new records of one day."""
    folder = Path(conf.settings.landing_folder(conf.log, "records"))
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(RECORD | {"request_id": str(uuid.uuid4())}) for _ in range(n))
    folder.joinpath(f"{time.time_ns()}.jsonl").write_text("\n".join(lines))


def batch(spark: SparkSession, conf: Conf) -> float:
    """Seconds of taking in a batch."""
    land(conf, BATCH)
    started = time.perf_counter()
    landing.ingest_table(spark, conf, "inference_log")
    return time.perf_counter() - started


def fill(lake: Lakehouse, n: int) -> None:
    """As many records more on the same day, each as long as a real one."""
    once = lake.read("inference_log").limit(BATCH)
    many = once.crossJoin(lake.spark.range(n // BATCH)).withColumn("request_id", F.expr("uuid()")).drop("id")
    lake.conform(many, "inference_log").write.format("delta").mode("append").save(lake.path("inference_log"))


def main(sizes: list[int]) -> int:
    with TemporaryDirectory() as folder:
        loaded = confs.load(ROOT / "conf/contracts/recommendations.yaml", "local")
        conf = replace(loaded, settings=replace(loaded.settings, root=folder, landing=None, master="local[2]"))
        spark = runtime.session(conf.settings, "bench")
        lake = runtime.lakehouse(spark, conf)
        lake.ensure(*landing.TABLES)
        batch(spark, conf)
        held = BATCH
        for size in sizes:
            fill(lake, size - held)
            batch(spark, conf)
            took = min(batch(spark, conf) for _ in range(3))
            held = lake.read("inference_log").count()
            print(f"{held:12,} records on the day: a batch of {BATCH:,} takes {took:5.1f} s", flush=True)
        spark.stop()
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.bench.day", description=__doc__)
    parser.add_argument("--records", type=int, nargs="+", default=[100_000, 1_000_000, 5_000_000, 20_000_000])
    sys.exit(main(parser.parse_args().records))
