"""Log, rejects and outcomes to the finest cells of a monitor's buckets, and the table of series to a panel.

A bucket is made anew as a whole whenever something arrived for it, so that the series are a function of what the log
holds, however often and in how many pieces they were made.
"""

from collections import defaultdict
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from functools import reduce
from itertools import product
from math import nan
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from mltrust.errors import ConfError
from mltrust.monitor.breakdown import completed
from mltrust.monitor.cells import EVERY_VERSION, MAX_VALUES, NO_ARM, Cells, Row, Values, breakdown, capped, rolled_up
from mltrust.monitor.series import Columns, Panel, SeriesKey
from mltrust.monitor.spec import Monitor, SeriesMetric
from mltrust.slices import MISSING, OTHER, OVERALL, Slice, name_slice
from mltrust.spark import outcome, places

_UNKNOWN, _WHOLE = "(unknown)", Slice(*OVERALL)
_LABELS = ("bucket", "model_version", "arm")


class Sources(NamedTuple):
    """The tables that series are made of."""

    log: DataFrame
    rejects: DataFrame
    outcomes: DataFrame


class Span(NamedTuple):
    """Whole buckets, as ranges [start, end) in ascending order that do not touch."""

    ranges: tuple[tuple[datetime, datetime], ...]

    @classmethod
    def of(cls, buckets: Sequence[datetime], width: timedelta) -> "Span":
        """The span of buckets by their starts."""
        ranges: list[tuple[datetime, datetime]] = []
        for at in sorted(buckets):
            if ranges and ranges[-1][1] == at:
                ranges[-1] = (ranges[-1][0], at + width)
            else:
                ranges.append((at, at + width))
        return cls(tuple(ranges))

    def buckets(self, width: timedelta) -> list[datetime]:
        return [start + at * width for start, end in self.ranges for at in range(int((end - start) / width))]

    def holds(self, column: str) -> Column:
        within = [(F.col(column) >= F.lit(start)) & (F.col(column) < F.lit(end)) for start, end in self.ranges]
        return reduce(lambda one, other: one | other, within)

    def dates(self, later: timedelta = timedelta()) -> list[date]:
        """The UTC days that the ranges touch, and those up to so much later."""
        ends = [(start.date(), (end + later).date()) for start, end in self.ranges]
        return sorted({first + timedelta(n) for first, last in ends for n in range((last - first).days + 1)})


def names_of(monitor: Monitor, *sources: str) -> list[str]:
    """The metrics that are made of these sources."""
    return [name for name, metric in monitor.series.metrics.items() if metric.source in sources]


class Arrived(NamedTuple):
    """What arrived of a model: the buckets of its event times, and the latest of these (None: nothing)."""

    buckets: list[datetime]
    newest: datetime | None


def arrived(rows: DataFrame, monitor: Monitor, since: datetime, now: datetime) -> Arrived:
    """What rows of the log with event times from `since` to `now` touch of the monitor's model; one Spark job."""
    mine = _until(rows, monitor, now).where(F.col("event_time") >= F.lit(since))
    bucket = _bucket("event_time", monitor.series.bucket_seconds).alias("bucket")
    found = mine.groupBy(bucket).agg(F.max("event_time").alias("newest")).toArrow()
    return Arrived(sorted(found["bucket"].to_pylist()), max(found["newest"].to_pylist(), default=None))


def newest(rows: DataFrame, monitor: Monitor, now: datetime) -> datetime | None:
    """The latest event time up to `now` of the monitor's model in rows of the log; one Spark job."""
    found: datetime | None = (
        _until(rows, monitor, now).agg(F.max("event_time").alias("newest")).toArrow()[0][0].as_py()
    )
    return found


def _until(rows: DataFrame, monitor: Monitor, now: datetime) -> DataFrame:
    """Rows of the model up to the clock: one ahead of it says nothing of how far time has come, and waits."""
    return rows.where((F.col("model_name") == monitor.model_name) & (F.col("event_time") <= F.lit(now)))


def of_requests(sources: Sources, monitor: Monitor, span: Span, *, max_cells: int) -> list[Row]:
    """The series of requests in the span. The observation is the request: of its rows any counts for a share."""
    names = names_of(monitor, "requests")
    if not span.ranges or not names:
        return []
    rows = _rows(sources.log, monitor, span)
    metrics = {name: monitor.series.metrics[name] for name in names}
    each = rows.groupBy(*_keys(monitor), "request_id").agg(
        *(_of_request(metric).alias(f"value{at}") for at, metric in enumerate(metrics.values())),
        *(_part_of_request(metric).alias(f"part{at}") for at, metric in enumerate(metrics.values()) if metric.by),
    )
    parts = [at for at, metric in enumerate(metrics.values()) if metric.by]
    reduced = each.groupBy(*_keys(monitor), *(f"part{at}" for at in parts)).agg(*_moments(len(names)))
    few = _commonest(reduced, _keys(monitor), parts, len(names)) if parts else reduced
    return rolled_up(_cells(few, monitor, names, max_cells), monitor, names)


def of_rejects(sources: Sources, monitor: Monitor, span: Span) -> list[Row]:
    """The series of rejects, on the buckets in which they arrived: a reject has no event time that can be trusted.

    Over all versions also of buckets without any, as none is known as well as some.
    """
    names = names_of(monitor, "rejects")
    if not span.ranges or not names:
        return []
    version = F.coalesce(F.nullif("model_version", F.lit("")), F.lit(_UNKNOWN)).alias("version")
    mine = F.col("model_name").isNull() | (F.col("model_name") == monitor.model_name)
    bucket = _bucket("ingested_at", monitor.series.bucket_seconds).alias("bucket")
    rows = sources.rejects.where(mine & span.holds("ingested_at"))
    found = rows.groupBy(bucket, version, "reason_code").agg(F.count("*").alias("n")).toArrow()
    return counted(Rejects(*(found[name].to_pylist() for name in found.column_names)), monitor, names, span)


class Rejects(NamedTuple):
    """How many were rejected, by bucket, version and reason code."""

    buckets: list[datetime]
    versions: list[str]
    codes: list[str]
    counts: list[int]


def counted(rejects: Rejects, monitor: Monitor, names: Sequence[str], span: Span) -> list[Row]:
    """The series of rejects: of all versions and each, and of the parts of what is broken down by reason code."""
    total: dict[tuple[str, str, Slice, datetime], int] = defaultdict(int)
    for name, at in product(names, span.buckets(monitor.series.bucket)):
        total[EVERY_VERSION, name, _WHOLE, at] = 0
    parts = capped(rejects.buckets, rejects.codes, np.array(rejects.counts, dtype=float))
    for (at, version, code, n), part in zip(zip(*rejects, strict=True), parts, strict=True):
        for name, of in product(names, (version, EVERY_VERSION)):
            metric = monitor.series.metrics[name]
            total[of, name, _WHOLE, at] += n if metric.reason_code in (None, code) else 0
            if metric.by is not None:
                total[of, name, name_slice({metric.by: str(part)}), at] += n
    return [
        Row(SeriesKey(monitor.model_name, version, "", name, *of), at, n, float(n), n**0.5)
        for (version, name, of, at), n in total.items()
    ]


def of_outcomes(sources: Sources, monitor: Monitor, name: str, span: Span, *, max_cells: int) -> list[Row]:
    """The series of one outcome metric: what the requests of the buckets, all mature, were followed by in time.

    An outcome counts that came within `maturity_hours` of its request, in its highest revision.
    """
    metric = monitor.series.metrics[name]
    if not span.ranges:
        return []
    matures = F.expr(f"INTERVAL {round(metric.maturity_hours * 3600)} SECONDS")
    rows = _rows(sources.log, monitor, span)
    days = span.dates(timedelta(hours=metric.maturity_hours))
    told = sources.outcomes.where((F.col("name") == metric.outcome) & F.col("event_date").isin(days))
    held = outcome.highest_revisions(told, outcome.corrected(sources.outcomes)).where(F.col("value").isNotNull())
    in_time = outcome.follows() & (F.col("o.event_time") <= F.col("r.event_time") + matures)
    keys = [F.col(f"r.{key}") for key in (*_keys(monitor), "request_id")]
    followed = (
        rows.alias("r")
        .join(held.where(F.col("request_id").isNotNull()).alias("o"), in_time, "left")
        .select(*keys, F.col("o.outcome_id"), F.col("o.value"))
        .distinct()
        .groupBy(*_keys(monitor), "request_id")
        .agg(F.coalesce(F.sum("value"), F.lit(0.0)).alias("total"))
    )
    value = (F.col("total") > 0).cast("double") if metric.kind == "share" else F.col("total")
    each = followed.withColumn("value0", value)
    cells = _cells(each.groupBy(*_keys(monitor)).agg(*_moments(1)), monitor, [name], max_cells)
    return rolled_up(cells, monitor, [name])


def problems(log: DataFrame, monitor: Monitor) -> list[str]:
    """The metrics whose expression Spark does not take of the log, each as one line; no row is read."""
    found = []
    for name, metric in monitor.series.metrics.items():
        given = {"value": metric.value, "by": metric.by if metric.source == "requests" else None}
        for field, text in given.items():
            try:
                if text is not None:
                    log.selectExpr(f"({text}) AS value").schema  # noqa: B018 - which asks Spark
            except PySparkException as error:
                why = (error.getMessage() or "").partition("\n")[0]
                found.append(f"series.metrics.{name}.{field} is {text!r}, expected an expression on a record: {why}")
    return found


def _rows(log: DataFrame, monitor: Monitor, span: Span) -> DataFrame:
    """The production rows of the model in the span, with their bucket, arm and slice attributes."""
    mine = (F.col("model_name") == monitor.model_name) & (F.col("traffic") == "production")
    rows = log.where(mine & F.col("event_date").isin(span.dates()) & span.holds("event_time"))
    slicing = monitor.series.slices
    added = {
        "bucket": _bucket("event_time", monitor.series.bucket_seconds),
        "arm": _arm(monitor),
        **{f"slice_{name}": places.slice_value(name, slicing) for name in slicing.attributes},
    }
    return rows.withColumns(added)


def _keys(monitor: Monitor) -> list[str]:
    return [*_LABELS, *(f"slice_{name}" for name in monitor.series.slices.attributes)]


def _arm(monitor: Monitor) -> Column:
    arms = monitor.series.arms
    if arms is None or arms.experiment_id is None:
        return F.lit(NO_ARM)
    mine = F.filter("experiments", lambda each: each["experiment_id"].eqNullSafe(F.lit(arms.experiment_id)))
    return F.coalesce(F.try_element_at(mine, F.lit(1))["variant"], F.lit(NO_ARM))


def _of_request(metric: SeriesMetric) -> Column:
    """What a metric takes of a request's rows; null where it says nothing of it.

    A condition that is NULL is not met: `error_type = 'timeout'` of a request without an error.
    """
    if metric.kind == "count":
        return F.lit(1.0)
    value = F.expr(metric.value or "")
    if metric.kind == "mean":
        return F.avg(value.cast("double"))
    return F.max(F.coalesce(value.cast("boolean"), F.lit(False)).cast("int")).cast("double")


def _part_of_request(metric: SeriesMetric) -> Column:
    """The value that a request counts under; null where it does not count. Of several rows the first by name."""
    value = F.coalesce(F.expr(metric.by or "").cast("string"), F.lit(MISSING))
    return F.min(value if metric.kind == "count" else F.when(F.expr(metric.value or "").cast("boolean"), value))


def _moments(n: int) -> list[Column]:
    return [
        column
        for at in range(n)
        for column in (
            F.count(f"value{at}").alias(f"n{at}"),
            F.avg(f"value{at}").alias(f"mean{at}"),
            (F.var_pop(f"value{at}") * F.count(f"value{at}")).alias(f"squares{at}"),
        )
    ]


def _commonest(cells: DataFrame, keys: Sequence[str], parts: Sequence[int], n: int) -> DataFrame:
    """Cells that have only the commonest values of their bucket, the others added up as `(other)`.

    Here and not on the driver: a burst of error types that are all distinct makes as many cells as requests.
    """
    sizes, ranks, kept = dict[str, Column](), dict[str, Column](), dict[str, Column]()
    for at in parts:
        part = F.col(f"part{at}")
        size = F.sum(f"n{at}").over(Window.partitionBy("bucket", part))
        sizes[f"size{at}"] = F.when(part != OTHER, size)
        order = F.desc_nulls_last(f"size{at}"), part
        ranks[f"rank{at}"] = F.dense_rank().over(Window.partitionBy("bucket").orderBy(*order))
        kept[f"part{at}"] = F.when(part.isNull() | (F.col(f"rank{at}") <= MAX_VALUES), part).otherwise(OTHER)
    return _added(cells.withColumns(sizes).withColumns(ranks).withColumns(kept), [*keys, *kept], n)


def _added(cells: DataFrame, group: Sequence[str], n: int) -> DataFrame:
    """Cells of one group added up (Chan et al. 1983): counts, means weighted by them, squares about the new mean."""
    whole = Window.partitionBy(*group)
    totals = {f"total{at}": F.sum(F.col(f"n{at}") * F.col(f"mean{at}")).over(whole) for at in range(n)}
    means = {f"whole{at}": F.col(f"total{at}") / F.nullif(F.sum(f"n{at}").over(whole), F.lit(0)) for at in range(n)}
    apart = [F.col(f"n{at}") * F.pow(F.col(f"mean{at}") - F.col(f"whole{at}"), F.lit(2)) for at in range(n)]
    return (
        cells.withColumns(totals)
        .withColumns(means)
        .groupBy(*group)
        .agg(
            *(F.sum(f"n{at}").alias(f"n{at}") for at in range(n)),
            *(F.max(f"whole{at}").alias(f"mean{at}") for at in range(n)),
            *(F.sum(F.col(f"squares{at}") + apart[at]).alias(f"squares{at}") for at in range(n)),
        )
    )


def _cells(reduced: DataFrame, monitor: Monitor, names: Sequence[str], max_cells: int) -> Cells:
    """The cells on the driver; ConfError where one bucket has more than `max_cells`."""
    table = reduced.toArrow()
    labels = {name: table[name].to_pylist() for name in _LABELS}
    for name in monitor.series.slices.attributes:
        labels[name] = table[f"slice_{name}"].to_pylist()
    broken = {name: f"part{at}" for at, name in enumerate(names) if name in monitor.series.breakdowns}
    labels |= {breakdown(name): table[column].to_pylist() for name, column in broken.items()}
    _, counts = np.unique(np.array([each.timestamp() for each in labels["bucket"]]), return_counts=True)
    if counts.max(initial=0) > max_cells:
        of = [*monitor.series.slices.attributes, *(monitor.series.breakdowns[name] for name in broken)]
        raise ConfError(
            f"series.slices: a bucket has {counts.max():,} cells of {', '.join(of)}, "
            f"expected {max_cells:,} at most; give attributes with fewer values, or edges"
        )
    values = {
        name: Values(*(_floats(table[f"{part}{at}"]) for part in ("n", "mean", "squares")))
        for at, name in enumerate(names)
    }
    return Cells(labels, values)


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return np.array([nan if each is None else float(each) for each in column.to_pylist()])


def _bucket(time: str, seconds: int) -> Column:
    """The start of the bucket; buckets divide a UTC day, so that counting from 1970 gives the same."""
    width = seconds * 1_000_000
    return F.timestamp_micros(F.unix_micros(time) - F.pmod(F.unix_micros(time), F.lit(width)))


def panel(stored: DataFrame, made: Sequence[Row], monitor: Monitor, *, start: datetime, end: datetime) -> Panel:
    """The panel of [start, end) in which series are known: of the table, and over it what was made just now."""
    bucket = monitor.series.bucket
    keys: dict[SeriesKey, int] = {}
    longest = max((monitor.series.maturing(name) for name in monitor.series.metrics), default=timedelta())
    parts = [
        _columns(_stored(stored, start - longest, end), keys, monitor, start),
        _columns([(*row.key, *row[1:]) for row in made], keys, monitor, start),
    ]
    columns = Columns(*(np.concatenate(each) for each in zip(*parts, strict=True)))
    found = Panel.of_columns(list(keys), monitor.series.kinds, columns, start=start, end=end, bucket=bucket)
    return completed(found, monitor.series)


_STORED = (*SeriesKey._fields, "bucket_start", "n_requests", "value", "std_error")


def _stored(table: DataFrame, start: datetime, end: datetime) -> list[tuple[object, ...]]:
    inside = (F.col("bucket_start") >= F.lit(start)) & (F.col("bucket_start") < F.lit(end))
    found = table.where(inside).select(*_STORED).toArrow()
    return list(zip(*(column.to_pylist() for column in found), strict=True)) if found.num_rows else []


def _columns(
    rows: Sequence[tuple[object, ...]], keys: dict[SeriesKey, int], monitor: Monitor, start: datetime
) -> Columns:
    bucket = monitor.series.bucket
    maturing = {name: monitor.series.maturing(name) // bucket for name in monitor.series.metrics}
    known = [row for row in rows if row[3] in maturing]
    row_of = [keys.setdefault(SeriesKey(*map(str, row[:6])), len(keys)) for row in known]
    at = [(row[6] - start) // bucket + maturing[str(row[3])] for row in known]  # type: ignore[operator]
    values = ([nan if row[i] is None else float(row[i]) for row in known] for i in (7, 8, 9))  # type: ignore[arg-type]
    return Columns(
        np.array(row_of, dtype=int), np.array(at, dtype=int), *(np.array(each, dtype=float) for each in values)
    )


def frame(spark: SparkSession, rows: Sequence[Row]) -> DataFrame:
    """Series as a frame: the columns of monitor_series without the monitor and the stamp of the run."""
    names = [*SeriesKey._fields, "bucket_start", "n_requests", "value", "std_error"]
    columns = list(zip(*((*row.key, *row[1:]) for row in rows), strict=True)) if rows else [()] * len(names)
    kinds = [*[pa.string()] * 6, pa.timestamp("us", tz="UTC"), pa.int64(), pa.float64(), pa.float64()]
    arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    return spark.createDataFrame(pa.Table.from_arrays(arrays, names=names))
