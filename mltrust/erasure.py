"""A unit is forgotten on legal request: from every table at once, and later from the disk."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mltrust import build, runtime
from mltrust import conf as confs
from mltrust.conf import Conf
from mltrust.io.tables import Lakehouse
from mltrust.report import maintenance as report
from mltrust.runtime import Tracked
from mltrust.spark import maintenance
from mltrust.verdicts import Exit, Verdict


def erase(lake: Lakehouse, conf: Conf, unit_id: str, tracked: Tracked) -> Exit:
    """Removes a unit. Done again after a crash it goes on by what the first attempt noted before it began.

    The log comes last, so that the unit's requests can still be found.
    """
    experiments = _experiments(conf)
    log = lake.read("inference_log")
    requests, own = maintenance.requests_of_unit(log, unit_id), log.where(F.col("unit_id") == unit_id)
    tables = sorted(filter(lake.exists, lake.tables), key=lambda name: name == "inference_log")
    matching = [(name, rows) for name in tables for rows in _matching(lake, name, unit_id, requests)]
    erasure, resumed = _begun(lake, conf, unit_id, tracked)
    sources = {source for name, rows in matching for source in _sources(lake, name, rows)}
    held_by = set(_values(own.select(F.explode("experiments.experiment_id").alias("id")), "id"))
    plan = erasure | {
        "sources": sorted(sources.union(erasure["sources"])),
        "experiments": sorted(held_by.union(erasure["experiments"])),
    }
    lake.append([plan | tracked.stamp], "erasures")
    # What an attempt that died has removed is not known: all its tables are purged.
    removed = dict.fromkeys(tables, 0) if resumed else {}
    for name, rows in matching:
        if not lake.read(name).join(rows, rows.columns, "left_semi").isEmpty():
            removed[name] = removed.get(name, 0) + lake.remove(name, rows)
    rebuilt = _built_again(lake, [each for each in experiments if each.log == conf.log], plan["experiments"])
    done = {"state": "erased", "removed": removed, "versions_after": lake.versions(*removed)}
    lake.append([plan | done | {"revision": plan["revision"] + 1} | tracked.stamp], "erasures")
    tracked.run.metrics({f"removed/{name}": float(n) for name, n in removed.items()})
    hours = conf.settings.retention.purge_hours
    return tracked.conclude(Verdict.PASS, report.erased(removed, plan["sources"], rebuilt, hours))


def _begun(lake: Lakehouse, conf: Conf, unit_id: str, tracked: Tracked) -> tuple[dict[str, Any], bool]:
    """The next revision of an erasure of the unit that did not end, or of a new one; and whether it did not end."""
    # The record must not hold what was erased; whoever knows the unit can find it.
    unit_hash = hashlib.sha256(f"{conf.log}/{unit_id}".encode()).hexdigest()
    rows = lake.read("erasures").where(F.col("unit_hash") == unit_hash).orderBy("revision").collect()
    last = {row["erasure_id"]: row.asDict() for row in rows}
    for row in last.values():
        if row["state"] == "begun":
            return row | {"revision": row["revision"] + 1}, True
    new = {"erasure_id": tracked.run.run_id, "revision": 0, "unit_hash": unit_hash, "state": "begun"}
    return new | {"removed": {}, "versions_after": {}, "sources": [], "experiments": []}, False


def _sources(lake: Lakehouse, name: str, matching: DataFrame) -> list[str]:
    rows = lake.read(name)
    if "source" not in rows.columns:
        return []
    return _values(rows.join(matching, matching.columns, "left_semi"), "source")


def _values(rows: DataFrame, column: str) -> list[str]:
    """The distinct values of one unit's rows, which are few."""
    return sorted(row[column] for row in rows.select(column).distinct().collect() if row[column] is not None)


def _matching(lake: Lakehouse, name: str, unit_id: str, requests: list[str]) -> Iterator[DataFrame]:
    """What the rows of a unit in a table equal: by its id, by its requests, or by its id in a raw text."""
    rows, spark = lake.read(name), lake.spark
    if name.endswith("_rejects"):
        yield maintenance.rejects_of_unit(rows, unit_id, requests)
    elif "unit_kind" in rows.columns:
        units = [("unit_id", unit_id), *(("request", request) for request in requests)]
        yield spark.createDataFrame(units, "unit_kind STRING, unit_id STRING")
    else:
        if "unit_id" in rows.columns:
            yield spark.createDataFrame([(unit_id,)], "unit_id STRING")
        if "request_id" in rows.columns and requests:
            yield spark.createDataFrame([(request,) for request in requests], "request_id STRING")


def _experiments(conf: Conf) -> list[Conf]:
    """The confs of all experiments, with the settings of this run."""
    paths = sorted(confs.conf_root(conf.path).glob("experiments/*.yaml"))
    return [replace(confs.load(path, conf.env), settings=conf.settings) for path in paths]


def _built_again(lake: Lakehouse, experiments: list[Conf], names: list[str]) -> list[str]:
    """Those of `names` that have a conf and were built, each built again in full."""
    rebuilt = []
    for own in experiments:
        if own.the_experiment().experiment_id in names and (built := runtime.built(lake, own)) is not None:
            build.build_all(lake, own, built.as_of, lake.versions("inference_log", "outcomes"))
            rebuilt.append(built.experiment_id)
    return rebuilt


def purge(lake: Lakehouse, conf: Conf, tracked: Tracked) -> list[str]:
    """Removes the files of units that were erased `purge_hours` ago or earlier; the erasures that end so."""
    hours = conf.settings.retention.purge_hours
    by_id = {row["erasure_id"]: row for row in lake.read("erasures").orderBy("revision").collect()}
    limit = datetime.now(UTC) - timedelta(hours=hours)
    due = [row for row in by_id.values() if row["state"] == "erased" and row["written_at"].astimezone(UTC) <= limit]
    for name in sorted({table for row in due for table in row["removed"]}):
        lake.purge(name, hours)
    for row in due:
        lake.append([row.asDict() | {"revision": row["revision"] + 1, "state": "purged"} | tracked.stamp], "erasures")
    return [row["erasure_id"] for row in due]
