"""Looks after the tables of a log: compacts and vacuums files, audits keys, purges what was erased.

With --erase-unit it removes everything of one unit, on legal request, and leaves a record of that.
"""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from mltrust import build, runtime
from mltrust import conf as confs
from mltrust.conf import Conf
from mltrust.errors import ConfError
from mltrust.io.tables import Lakehouse
from mltrust.report import maintenance as report
from mltrust.report.maintenance import Kept
from mltrust.runtime import Tracked
from mltrust.spark import maintenance
from mltrust.verdicts import Exit, Verdict

# What is promised to be unique, and what should be on one date only.
AUDITED = {"inference_log": ("request_id", "model_name", "model_version", "traffic", "item_id"),
           "outcomes": ("outcome_id", "revision")}  # fmt: skip
_BY_DATE = "event_date"


def run(spark: SparkSession, conf: Conf, as_of: datetime, *, erase_unit: str | None = None) -> Exit:
    """Maintains the tables that are there; breach where a key is held twice. Or erases one unit."""
    if erase_unit is not None and not erase_unit.strip():
        raise ConfError("--erase-unit: given nothing, expected the id of a unit")
    lake = runtime.lakehouse(spark, conf)
    lake.require("inference_log", made_by="ingest_logs")
    lake.ensure("erasures", "maintenance")
    with runtime.tracked("maintain_lakehouse", conf, as_of, lake, {}) as tracked:
        return (
            _maintain(lake, conf, as_of, tracked) if erase_unit is None else _erase(lake, conf, erase_unit, tracked)
        )


def _maintain(lake: Lakehouse, conf: Conf, as_of: datetime, tracked: Tracked) -> Exit:
    purged = _purge(lake, conf, tracked)
    rows = [_kept(lake, conf, as_of, name, tracked) for name in lake.tables if lake.exists(name)]
    for row in rows:
        mine = {"table": row.table, "as_of": f"{as_of:%Y-%m-%d %H:%M:%S}"}
        lake.replace(lake.rows("maintenance", [row._asdict() | tracked.stamp]), "maintenance", mine)
    tracked.run.table([row._asdict() for row in rows], "maintenance.json")
    tracked.run.metrics({f"{row.table}/{name}": float(getattr(row, name)) for row in rows for name in _METRICS})
    verdict = Verdict.BREACH if any(row.verdict == Verdict.BREACH for row in rows) else Verdict.PASS
    return tracked.conclude(verdict, report.describe(rows, purged, conf.settings.maintenance.days))


_METRICS = ("n_rows", "n_files", "n_small_files", "n_bytes")


def _kept(lake: Lakehouse, conf: Conf, as_of: datetime, name: str, tracked: Tracked) -> Kept:
    """A table after its small files were joined and what no version needs was removed."""
    settings, table = conf.settings.maintenance, lake.tables[name]
    small = settings.small_file_mb * 2**20

    def recent() -> DataFrame:
        rows = lake.read(name)
        if table.subject != _BY_DATE:
            return rows
        first = as_of.date() - timedelta(days=settings.days)
        return rows.where((F.col(_BY_DATE) >= F.lit(first)) & (F.col(_BY_DATE) < F.lit(as_of.date())))

    loose = maintenance.files_of(recent(), small, table.subject).loose
    if loose:
        lake.compact(name, loose)
    lake.vacuum(name)
    repeated = several = None
    if name in AUDITED:
        repeated = maintenance.repeated_keys(recent(), table.key)
        several_dates = maintenance.on_several_dates(recent(), AUDITED[name])
        several = several_dates.count()
        tracked.run.table([_shown(row.asDict()) for row in several_dates.limit(100).collect()], f"{name}_dates.json")
    files = maintenance.files_of(lake.read(name), small, table.subject)
    return Kept(name, *files[:4], len(loose), repeated, several, *report.judged(repeated))


def _shown(row: dict[str, object]) -> dict[str, object]:
    dates = row["dates"]
    assert isinstance(dates, list)
    return row | {"dates": ", ".join(map(str, dates))}


def _erase(lake: Lakehouse, conf: Conf, unit_id: str, tracked: Tracked) -> Exit:
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


def _purge(lake: Lakehouse, conf: Conf, tracked: Tracked) -> list[str]:
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


def main() -> int:
    """The job as a program; its exit code."""
    options = {"--erase-unit": "remove everything of the unit with this id, and nothing else"}
    return runtime.main(run, job="maintain_lakehouse", description=__doc__, options=options)


if __name__ == "__main__":
    sys.exit(main())
