"""The upkeep of tables: small files are joined, what no version needs is removed, keys are audited."""

from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mltrust.conf import Conf
from mltrust.io.tables import Lakehouse
from mltrust.report import maintenance as report
from mltrust.report.maintenance import Kept
from mltrust.runtime import Tracked
from mltrust.spark import maintenance
from mltrust.spark.maintenance import Files, Stored
from mltrust.verdicts import Exit, Verdict

# What is promised to be unique, and what should be on one date only.
AUDITED = {"inference_log": ("request_id", "model_name", "model_version", "traffic", "item_id"),
           "outcomes": ("outcome_id", "revision")}  # fmt: skip
_BY_DATE = "event_date"
_METRICS = ("n_rows", "n_files", "n_small_files", "n_bytes")


def maintain(lake: Lakehouse, conf: Conf, as_of: datetime, tracked: Tracked, purged: Sequence[str]) -> Exit:
    """Joins small files of the last `maintenance.days`, vacuums every table and audits its keys.

    Breach where a key is held twice. `purged` are the erasures that have just ended, for the report.
    """
    settings = conf.settings.maintenance
    names = [name for name in lake.tables if lake.exists(name)]
    before = _files(lake, conf, names)
    recent = as_of.date() - timedelta(days=settings.days), as_of.date()
    loose = {name: _loose(before[name], recent if _is_dated(lake, name) else None) for name in names}
    for name, partitions in loose.items():
        if partitions:
            lake.compact(name, partitions)
        lake.vacuum(name)
    files = before | _files(lake, conf, [name for name in names if loose[name]])
    rows = [_kept(lake, name, files[name], len(loose[name]), recent, tracked) for name in names]
    stamped = lake.rows("maintenance", [row._asdict() | tracked.stamp for row in rows])
    lake.replace(stamped, "maintenance", {"as_of": as_of}, among={"table": names})
    tracked.run.table([row._asdict() for row in rows], "maintenance.json")
    tracked.run.metrics({f"{row.table}/{name}": float(getattr(row, name)) for row in rows for name in _METRICS})
    verdict = Verdict.BREACH if any(row.verdict == Verdict.BREACH for row in rows) else Verdict.PASS
    return tracked.conclude(verdict, report.describe(rows, purged, settings.days))


def _is_dated(lake: Lakehouse, name: str) -> bool:
    return lake.tables[name].subject == _BY_DATE


def _files(lake: Lakehouse, conf: Conf, names: Sequence[str]) -> dict[str, dict[str, Files]]:
    small = conf.settings.maintenance.small_file_mb * 2**20
    return maintenance.files_of({name: Stored(lake.read(name), lake.tables[name].subject) for name in names}, small)


def _loose(files: Mapping[str, Files], days: tuple[date, date] | None) -> list[date | str]:
    """The partitions with several small files; of dates those in [first, end)."""
    loose = sorted(partition for partition, its in files.items() if its.n_small_files > 1)
    if days is None:
        return list(loose)
    dates = map(date.fromisoformat, loose)
    return [day for day in dates if days[0] <= day < days[1]]


def _kept(
    lake: Lakehouse,
    name: str,
    files: Mapping[str, Files],
    n_compacted: int,
    days: tuple[date, date],
    tracked: Tracked,
) -> Kept:
    repeated = several = None
    if name in AUDITED:
        rows = _of_days(lake.read(name), days)
        repeated = maintenance.repeated_keys(rows, lake.tables[name].key)
        several_dates = maintenance.on_several_dates(rows, AUDITED[name])
        several = several_dates.count()
        tracked.run.table([_shown(row.asDict()) for row in several_dates.limit(100).collect()], f"{name}_dates.json")
    return Kept(name, *maintenance.total(files), n_compacted, repeated, several, *report.judged(repeated))


def _of_days(rows: DataFrame, days: tuple[date, date]) -> DataFrame:
    return rows.where((F.col(_BY_DATE) >= F.lit(days[0])) & (F.col(_BY_DATE) < F.lit(days[1])))


def _shown(row: dict[str, object]) -> dict[str, object]:
    dates = row["dates"]
    assert isinstance(dates, list)
    return row | {"dates": ", ".join(map(str, dates))}
