"""Logged predictions and what became of them to the rows of a training set, their summary and their content hash."""

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from math import nan

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DataType, DateType, DoubleType, StructType, TimestampType

from mltrust.spark import outcome
from mltrust.training import N_PARTS, Exported, Label, Split, TrainingSet, content_hash

_LOGGED = ("event_date", "request_id", "model_name", "model_version", "item_id", "event_time", "unit_id",
           "feature_version", "prediction_score", "action", "propensity")  # fmt: skip
#: Columns of a training set beside its id and its stamp.
COLUMNS = (*_LOGGED, "label", "n_outcomes", "fold", "features")
_DAY_MICROS = 86_400_000_000


def predictions(
    log: DataFrame, training_set: TrainingSet, chosen: Sequence[str], table: StructType, as_of: datetime
) -> DataFrame:
    """The set's predictions before as_of: production, status ok, of its days and models; with `fold` and `is_mature`.

    Their features are as they were logged, in the type that `table` has for them; those that are not `chosen`, and
    those that the log does not know yet, are null.
    """
    end = min(training_set.end, as_of.date())
    rows = log.where((F.col("event_date") >= F.lit(training_set.start)) & (F.col("event_date") < F.lit(end)))
    rows = rows.where((F.col("traffic") == "production") & (F.col("status") == "ok"))
    if training_set.model_name is not None:
        rows = rows.where(F.col("model_name") == training_set.model_name)
    if training_set.model_versions is not None:
        rows = rows.where(F.col("model_version").isin(list(training_set.model_versions)))
    last_mature = as_of - timedelta(days=training_set.label.window_days)
    return rows.select(
        *_LOGGED,
        _fold(training_set.split).alias("fold"),
        _features(_struct(log.schema), _struct(table), chosen).alias("features"),
        (F.col("event_time") <= F.lit(last_mature)).alias("is_mature"),
    )


def _struct(schema: StructType) -> StructType:
    features = schema["features"].dataType
    assert isinstance(features, StructType)
    return features


def _features(logged: StructType, table: StructType, chosen: Sequence[str]) -> Column:
    taken = set(chosen) & set(logged.names)
    return F.struct(
        *(
            (F.col(f"features.{each.name}") if each.name in taken else F.lit(None))
            .cast(each.dataType)
            .alias(each.name)
            for each in table
        )
    )


def _fold(split: Split | None) -> Column:
    """train or test, by the first 52 bits of a SHA-256 of the seed and the unit; null without a unit."""
    if split is None:
        return F.lit(None).cast("string")
    digits = F.substring(F.sha2(F.concat(F.lit(f"{split.seed}/"), F.col("unit_id")), 256), 1, 13)
    drawn = F.conv(digits, 16, 10).cast("double") / 2**52
    return F.when(F.col("unit_id").isNotNull(), F.when(drawn < split.test_share, "test").otherwise("train"))


def labelled(rows: DataFrame, outcomes: DataFrame, label: Label, as_of: datetime, since: date) -> DataFrame:
    """`rows` with their `label` and `n_outcomes`, the number of outcomes that it is of.

    An outcome counts in its highest revision among those with event times before as_of, at that revision's time,
    where that lies in [prediction, prediction + window); none of before `since` belongs to any. The label is null
    where it excludes what is missing, and by unit where the prediction names none.
    """
    key = "request_id" if label.by == "request" else "unit_id"
    before = outcomes.where(F.col("event_date") < F.lit(as_of.date()))
    later = before.where(F.col("event_date") >= F.lit(since))
    highest = outcome.highest_revisions(later, outcome.corrected(before))
    told = highest.where((F.col("name") == label.outcome) & F.col("value").isNotNull() & F.col(key).isNotNull())
    # Sorted, so that a sum does not depend on the order in which outcomes meet.
    sorted_of_key = F.array_sort(F.collect_list(F.struct("event_time", "outcome_id", "item_id", "value")))
    joined = rows.join(told.groupBy(key).agg(sorted_of_key.alias("told")), key, "left")
    own = joined.withColumn("own", F.filter(F.coalesce("told", F.array()), lambda each: _belongs(each, label)))
    n_outcomes = F.size("own").cast("bigint")
    missing = F.lit(0.0 if label.missing == "zero" else None).cast("double")
    value = F.when(n_outcomes > 0, _aggregated(label)).otherwise(missing)
    return own.withColumns({"label": F.when(F.col(key).isNotNull(), value), "n_outcomes": n_outcomes}).drop(
        "told", "own"
    )


def _belongs(told: Column, label: Label) -> Column:
    """Whether an outcome of the request or unit falls into the prediction's window, and is of its item."""
    micros, start = F.unix_micros(told["event_time"]), F.unix_micros("event_time")
    within = (micros >= start) & (micros < start + label.window_days * _DAY_MICROS)
    if label.by == "unit":
        return within
    return within & (told["item_id"].isNull() | (told["item_id"] == F.col("item_id")))


def _aggregated(label: Label) -> Column:
    """The label from `own`, the outcomes by time, of which there is at least one."""
    if label.aggregate == "any":
        return F.lit(1.0)
    if label.aggregate == "count":
        return F.size("own").cast("double")
    if label.aggregate == "last":
        return F.try_element_at("own", F.lit(-1))["value"]
    return F.aggregate("own", F.lit(0.0), lambda total, each: total + each["value"])


def _is_exported() -> Column:
    return F.col("is_mature") & F.col("label").isNotNull()


def exported(labelled_rows: DataFrame, training_set: TrainingSet) -> DataFrame:
    """The rows of the table, without their stamp."""
    rows = labelled_rows.where(_is_exported()).select(*COLUMNS)
    return rows.withColumn("training_set_id", F.lit(training_set.training_set_id))


def summary(labelled_rows: DataFrame, chosen: Sequence[str]) -> Exported:
    """The counts of an export and the hash of its content, in one pass."""
    is_exported, label = _is_exported(), F.col("label")
    counts = {
        "n_rows": is_exported,
        "n_immature": ~F.col("is_mature"),
        "n_missing": F.col("is_mature") & label.isNull(),
        "n_followed": is_exported & (F.col("n_outcomes") > 0),
        "n_positive": is_exported & (label > 0),
        "n_train": is_exported & (F.col("fold") == "train"),
        "n_test": is_exported & (F.col("fold") == "test"),
        "n_no_fold": is_exported & F.col("fold").isNull(),
    }
    found = (
        labelled_rows.withColumn("digest", F.when(is_exported, row_digest(labelled_rows.schema, COLUMNS)))
        .agg(
            *(F.count_if(condition).alias(name) for name, condition in counts.items()),
            F.coalesce(F.avg(F.when(is_exported, label)), F.lit(nan)).alias("label_mean"),
            F.array(*(F.count_if(is_exported & F.col(f"features.{name}").isNull()) for name in chosen)).alias(
                "nulls"
            ),
            digest_sums("digest").alias("sums"),
        )
        .collect()[0]
    )
    n = found["n_rows"]
    return Exported(
        **{name: found[name] for name in counts},
        label_mean=found["label_mean"],
        null_shares={name: nulls / n if n else nan for name, nulls in zip(chosen, found["nulls"], strict=True)},
        content_hash=content_hash(n, found["sums"]),
    )


def row_digest(schema: StructType, columns: Sequence[str]) -> Column:
    """SHA-256 of a row's `columns` as JSON by name, without nulls: times in microseconds, dates in days since 1970.

    A double stands by the xxhash64 of its bits, as its text is not the same in every Java (JDK-4511638).
    """
    kinds = {each.name: each.dataType for each in schema}
    return F.sha2(F.to_json(F.struct(*(_canonical(name, kinds[name]).alias(name) for name in columns))), 256)


def digest_sums(digest: str) -> Column:
    """The sums of the parts of the digests of rows, of which `content_hash` is made."""
    return F.array(*(F.coalesce(F.sum(_part(digest, at)), F.lit(0)) for at in range(N_PARTS)))


def _canonical(column: str, kind: DataType) -> Column:
    if isinstance(kind, StructType):
        return F.struct(*(_canonical(f"{column}.{each.name}", each.dataType).alias(each.name) for each in kind))
    value = F.col(column)
    if isinstance(kind, DoubleType):
        return F.when(value.isNotNull(), F.xxhash64(value))
    if isinstance(kind, TimestampType):
        return F.unix_micros(value)
    return F.unix_date(value) if isinstance(kind, DateType) else value


def _part(digest: str, at: int) -> Column:
    return F.conv(F.substring(digest, 8 * at + 1, 8), 16, 10).cast("bigint")
