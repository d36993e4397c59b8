"""The log to a replay set: selected, scrubbed, hashed, with what was left out counted."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from functools import reduce
from operator import and_
from typing import cast

import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from mltrust.replay import masking
from mltrust.replay.masking import Anonymity, Exported, Key, Plan
from mltrust.replay.spec import Replay, Sample, Selection
from mltrust.spark.logs import ArrowMap, arrow_type
from mltrust.spark.places import slice_value
from mltrust.spark.training import digest_sums, labelled, row_digest
from mltrust.training import content_hash

KEY = ("event_date", "request_id", "item_id")
_LOGGED = (*KEY, "model_name", "model_version", "event_time", "unit_id", "feature_version", "prediction_score",
           "action", "propensity", "latency_ms")  # fmt: skip
#: Columns of a replay set beside its id and its stamp.
COLUMNS = (*_LOGGED, "label", "stratum", "weight", "features")
_HARD = "(hard)"
_ALL = "(all)"
_STOPPED = "stopped"
_PERSON = "person"


def selected(log: DataFrame, replay: Replay, version: str, as_of: datetime) -> DataFrame:
    """The champion's predictions in production that are asked for and did not fail, of whole days before as_of."""
    chosen = replay.the_selection()
    rows = served(log, replay.champion.name, version, "production", chosen.start, min(chosen.end, as_of.date()))
    return rows.where((F.col("status") == "ok") & is_selected(replay))


def served(log: DataFrame, model: str, version: str, traffic: str, start: date, end: date) -> DataFrame:
    """What a version answered in one kind of traffic in the days [start, end)."""
    rows = log.where((F.col("event_date") >= F.lit(start)) & (F.col("event_date") < F.lit(end)))
    rows = rows.where((F.col("traffic") == traffic) & (F.col("model_version") == version))
    return rows.where(F.col("model_name") == model)


def is_selected(replay: Replay) -> Column:
    """Whether a row of the log is what the selection asks for; null where it does not say."""
    return reduce(and_, _conditions(replay.the_selection(), replay))


def _conditions(chosen: Selection, replay: Replay) -> Iterator[Column]:
    yield F.col("event_date") >= F.lit(chosen.start)
    yield F.col("event_date") < F.lit(chosen.end)
    for name, values in chosen.where.items():
        yield slice_value(name, replay.slices).isin(list(values))
    since, until = chosen.bounds()
    if since is not None:
        yield F.col("event_time") >= F.lit(since)
    if until is not None:
        yield F.col("event_time") < F.lit(until)
    if chosen.request_ids is not None:
        yield F.col("request_id").isin(list(chosen.request_ids))
    if chosen.experiment is not None:
        yield F.exists("experiments", lambda each: _carries(each, chosen))


def _carries(each: Column, chosen: Selection) -> Column:
    own = each["experiment_id"] == F.lit(chosen.experiment)
    return own if chosen.variant is None else own & (each["variant"] == F.lit(chosen.variant))


def drawn(rows: DataFrame, replay: Replay) -> DataFrame:
    """The rows of the sample with their `stratum` and `weight`; without a sample all, each of weight 1.

    One Spark job with a sample, to count the strata.
    """
    chosen = replay.the_selection()
    sample = chosen.sample
    by = () if sample is None else sample.by
    values = [slice_value(name, replay.slices) for name in by]
    stratum = F.concat_ws(" x ", *values) if values else F.lit(_ALL)
    if chosen.hard_within is not None:
        near = F.abs(F.col("prediction_score") - F.lit(replay.threshold)) <= chosen.hard_within
        stratum = F.when(near, _HARD).otherwise(stratum)
    rows = rows.withColumn("stratum", stratum)
    if sample is None:
        return rows.withColumn("weight", F.lit(1.0))
    rates = _rates({row["stratum"]: row["count"] for row in rows.groupBy("stratum").count().collect()}, sample)
    if not rates:
        return rows.withColumn("weight", F.lit(1.0))
    rate = F.create_map(*(F.lit(part) for pair in rates.items() for part in pair))[F.col("stratum")]
    draw = uniform(("stratum", "request_id", "item_id"), sample.seed)
    return rows.withColumn("rate", rate).where(draw < F.col("rate")).withColumn("weight", 1 / F.col("rate"))


def _rates(sizes: Mapping[str, int], sample: Sample) -> dict[str, float]:
    """At which rate each stratum is drawn: in proportion, at least so many of each, hard cases all."""
    total = sum(n for stratum, n in sizes.items() if stratum != _HARD)
    rates = {}
    for stratum, n in sorted(sizes.items()):
        # Not by way of the rows wanted of each: rates in proportion must be one number, to the last bit.
        rate = max(sample.rows / total if total else 0.0, sample.at_least / n)
        rates[stratum] = 1.0 if stratum == _HARD else min(1.0, rate)
    return rates


def uniform(columns: Sequence[str], seed: int) -> Column:
    """A number in [0, 1) by a hash of the columns."""
    hashed = F.xxhash64(F.lit(seed).cast("long"), *(F.col(name) for name in columns))
    return F.shiftrightunsigned(hashed, 11) * F.lit(2.0**-53)


def with_label(rows: DataFrame, outcomes: DataFrame | None, replay: Replay, as_of: datetime) -> DataFrame:
    """`rows` with their `label`, as a training set has it; null without one, and where its window is not over."""
    if replay.label is None or outcomes is None:
        return rows.withColumn("label", F.lit(None).cast("double"))
    told = labelled(rows, outcomes, replay.label, as_of, since=replay.the_selection().start)
    is_mature = F.unix_micros("event_time") + replay.label.window_days * 86_400_000_000 <= F.unix_micros(F.lit(as_of))
    return told.withColumn("label", F.when(is_mature, F.col("label"))).drop("n_outcomes")


def scrubbed(rows: DataFrame, plan: Plan, key: Key | None, table: StructType) -> DataFrame:
    """The columns of a set after scrubbing, with `stopped`: what was found in text that is kept, as `column: kind`.

    Columns that the log does not know yet are null. Values and key never stand in a plan or a log: they travel in
    the function alone.
    """
    present = {each.name for each in _features(rows.schema)}
    columns = {
        each.name: F.col(f"features.{each.name}") if each.name in present else F.lit(None)
        for each in _features(table)
    }
    features = F.struct(*(columns[each.name].cast(each.dataType).alias(each.name) for each in _features(table)))
    # People are told apart before their ids are gone.
    person = F.xxhash64(F.coalesce("unit_id", "request_id")).alias(_PERSON)
    flat = rows.withColumn("features", features).select(*COLUMNS, person)
    schema = StructType([*flat.schema, *_ddl(f"{_STOPPED} ARRAY<STRING>")])
    return flat.mapInArrow(_scrubber(plan, key, schema), schema)


def _features(schema: StructType) -> StructType:
    features = schema["features"].dataType
    assert isinstance(features, StructType)
    return features


def _ddl(columns: str) -> StructType:
    parsed = StructType.fromDDL(columns)
    assert isinstance(parsed, StructType)
    return parsed


_Change = Callable[[str, object], object]


def _scrubber(plan: Plan, key: Key | None, schema: StructType) -> ArrowMap:
    arrow = pa.schema([pa.field(each.name, arrow_type(each.dataType)) for each in schema])
    changes = {name: _change(name, plan, key) for name in plan.columns}
    texts = [
        name for name in plan.of("keep", "truncate")
        if _kind(arrow, name) is not None and pa.types.is_string(_kind(arrow, name))
    ]  # fmt: skip

    def scrub(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            columns = {field.name: batch.column(at) for at, field in enumerate(batch.schema)}
            struct = columns["features"]
            parts = {f"features.{field.name}": struct.field(at) for at, field in enumerate(struct.type)}
            values = {**columns, **parts}
            new = {name: _changed(values[name], name, change) for name, change in changes.items() if name in values}
            stopped = _personal({name: new[name] for name in texts}, batch.num_rows)
            fields = [new.get(name, array) for name, array in parts.items()]
            whole = pa.StructArray.from_arrays(fields, fields=list(struct.type))
            out: dict[str, pa.Array] = {**columns, **new, "features": whole, _STOPPED: stopped}
            yield pa.RecordBatch.from_arrays([out[field.name].cast(field.type) for field in arrow], schema=arrow)

    return scrub


def _kind(arrow: pa.Schema, name: str) -> pa.DataType | None:
    if name.startswith("features."):
        struct = arrow.field("features").type
        at = struct.get_field_index(name.removeprefix("features."))
        return struct.field(at).type if at >= 0 else None
    return arrow.field(name).type if name in arrow.names else None


def _change(name: str, plan: Plan, key: Key | None) -> _Change | None:
    """What is done with a value that is there; None where it stays."""
    scrub = plan.columns[name]
    if scrub.policy == "keep":
        return None
    if scrub.policy == "pseudonym":
        assert key is not None
        return lambda column, value: key.pseudonym(column, str(value))
    if scrub.policy == "truncate":
        return lambda _, value: masking.truncated(str(value), int(scrub.length or 0))
    if scrub.policy == "bucket":
        return lambda _, value: masking.bucketed(cast(float, value), scrub.width or 1)
    return lambda _, value: None


def _changed(array: pa.Array, name: str, change: _Change | None) -> pa.Array:
    if change is None:
        return array
    # Each distinct value once: text repeats.
    encoded = array.dictionary_encode()
    distinct = [None if value is None else change(name, value) for value in encoded.dictionary.to_pylist()]
    if all(value is None for value in distinct):
        return pa.nulls(len(array), array.type)
    if pa.types.is_integer(array.type):
        distinct = [None if value is None else int(cast(float, value)) for value in distinct]
    return pa.array(distinct, array.type).take(encoded.indices)


def _personal(texts: Mapping[str, pa.Array], n: int) -> pa.Array:
    """Per row the `column: kind` of personal data in its text, each distinct text read once."""
    found: list[list[str]] = [[] for _ in range(n)]
    for name, array in texts.items():
        encoded = array.dictionary_encode()
        kinds = [sorted(masking.found(text)) if text else [] for text in encoded.dictionary.to_pylist()]
        if any(kinds):
            for row, index in enumerate(encoded.indices.to_pylist()):
                if index is not None:
                    found[row] += [f"{name}: {kind}" for kind in kinds[index]]
    return pa.array(found, pa.list_(pa.string()))


def with_group_size(rows: DataFrame, plan: Plan) -> DataFrame:
    """`rows` with `group_size`: of how many units there are rows, not stopped, with the same quasi-identifiers."""
    names = plan.quasi_identifiers
    if not names:
        return rows.withColumn("group_size", F.lit(None).cast("bigint"))
    # Of few values: a join on a table of them. Null is a value as any other.
    of_group = F.sha2(F.to_json(F.struct(*(F.col(name).cast("string").alias(name) for name in names))), 256)
    rows = rows.withColumn("group", of_group)
    clean = rows.where(F.size(_STOPPED) == 0)
    sizes = clean.groupBy("group").agg(F.count_distinct(_PERSON).alias("group_size"))
    return rows.join(F.broadcast(sizes), "group", "left")


def exported(rows: DataFrame, plan: Plan) -> DataFrame:
    """The rows that may leave, without what was only needed to tell."""
    return rows.where(_may_leave(plan)).select(*COLUMNS)


def _may_leave(plan: Plan) -> Column:
    clean = F.size(_STOPPED) == 0
    return clean & (F.col("group_size") >= plan.k) if plan.quasi_identifiers else clean


def named(replay_id: str) -> dict[str, Column]:
    """The column that says whose rows they are."""
    return {"replay_id": F.lit(replay_id)}


def summary(rows: DataFrame, plan: Plan) -> Exported:
    """What of `rows` leaves and what stays behind, and the hash of what leaves; four Spark jobs."""
    leaves, clean = _may_leave(plan), F.size(_STOPPED) == 0
    digests = rows.withColumn("digest", F.when(leaves, row_digest(rows.schema, COLUMNS)))
    found = digests.agg(
        F.count("*").alias("n_drawn"),
        F.count_if(leaves).alias("n_rows"),
        F.count_if(~clean).alias("n_stopped"),
        F.count_if(clean & ~leaves).alias("n_rare"),
        F.count_if(leaves & F.col("label").isNotNull()).alias("n_labelled"),
        F.count_distinct(F.when(leaves, F.col("weight"))).alias("n_weights"),
        digest_sums("digest").alias("sums"),
    ).collect()[0]
    kinds = rows.select(F.explode(_STOPPED).alias("kind")).groupBy("kind").count().collect()
    by = rows.where(leaves).groupBy("stratum").agg(F.count("*").alias("n")).collect()
    return Exported(
        **{name: found[name] for name in ("n_drawn", "n_rows", "n_stopped", "n_rare", "n_labelled", "n_weights")},
        stopped={row["kind"]: row["count"] for row in sorted(kinds, key=lambda row: row["kind"])},
        strata={row["stratum"]: row["n"] for row in sorted(by, key=lambda row: row["stratum"])},
        anonymity=_anonymity(rows, plan),
        content_hash=content_hash(found["n_rows"], found["sums"]),
    )


def _anonymity(rows: DataFrame, plan: Plan) -> Anonymity:
    if not plan.quasi_identifiers:
        return masking.anonymity({}, plan.k)
    clean = rows.where(F.size(_STOPPED) == 0)
    groups = clean.groupBy("group_size").agg(F.count_distinct("group").alias("n")).collect()
    return masking.anonymity({row["group_size"]: row["n"] for row in groups}, plan.k)
