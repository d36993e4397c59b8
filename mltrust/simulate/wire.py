"""Rows of the simulation as the lines that a producer writes.

Lines are frames of `kind` (accepted, duplicate, or the reason code of their fault), `file` (the number of the
file that they go to), `day` (when, after the start) and `line`.
"""

from collections.abc import Mapping

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from mltrust.simulate.chance import Chance
from mltrust.simulate.faults import OUTCOME_FAULTS, RECORD_FAULTS, Edit
from mltrust.simulate.models import Served
from mltrust.simulate.population import ATTRIBUTES
from mltrust.simulate.spec import Simulation
from mltrust.simulate.traffic import (
    FEATURES,
    age,
    chance_of_request,
    instant,
    purchases,
    request_day,
    similarity,
)

ACCEPTED = "accepted"
#: Days after its request before which an outcome has happened.
LATEST_OUTCOME_DAYS = 7
_JSON = {"timestampFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSXXX", "timeZone": "UTC"}


def record_lines(rows: DataFrame, served: Mapping[str, Served], simulation: Simulation) -> DataFrame:
    """v02 lines of scored rows, with the faulty ones beside the first record of some units."""
    chance = chance_of_request(simulation)
    version = F.create_map(*(F.lit(text) for role, each in served.items() for text in (role, each.version)))
    line = F.to_json(
        F.struct(
            F.lit("v02").alias("schema_version"),
            "request_id",
            "unit_id",
            instant(F.col("day"), simulation).alias("event_time"),
            F.lit(simulation.model_name).alias("model_name"),
            version[F.col("role")].alias("model_version"),
            F.lit("f02").alias("feature_version"),
            "experiments",
            "traffic",
            "status",
            "error_type",
            F.when(F.col("status") == "ok", F.col("prediction_score")).alias("prediction_score"),
            "latency_ms",
            F.create_map(F.lit("cpu_load"), "cpu_load").alias("infra"),
            F.struct(*FEATURES).alias("features"),
            # A field that the contract does not know.
            F.when(chance.happens("extra", simulation.extra_share), "7.4.1").alias("client_build"),
        ),
        _JSON,
    )
    is_first = (F.col("index") == 0) & (F.col("traffic") == "production")
    fault = F.when(is_first, _fault(simulation.record_faults()))
    lines = rows.select(line.alias("line"), "day", fault.alias("fault"))
    return _delivered(_with_faulty(lines, RECORD_FAULTS), simulation, simulation.days)


def legacy_lines(spark: SparkSession, simulation: Simulation) -> DataFrame:
    """v01 lines of an old producer: no unit, one experiment of its own, numbers as text, times in seconds."""
    chance = Chance(simulation.seed, ("id",), "legacy")
    day, score = request_day(chance, simulation), similarity(chance)
    line = F.to_json(
        F.struct(
            F.lit("v01").alias("Version"),
            F.lit("linear_regression_v2").alias("model_version"),
            F.format_string("rId%d", F.col("id") + 1).alias("request_id"),
            F.struct(
                chance.choice("device", ATTRIBUTES["device"]).alias("device"),
                age(chance).cast("string").alias("age"),
                F.format_string("%.4f", score).alias("similarity_score"),
                F.lit("f01").alias("feature_version"),
            ).alias("features"),
            F.round(0.5 + 0.4 * score, 4).alias("prediction_score"),
            F.lit("exp42").alias("experiment_id"),
            F.format_string("bucket%d", 100 + F.floor(40 * chance.uniform("bucket"))).alias("bucketId"),
            F.unix_seconds(instant(day, simulation)).alias("timestamp"),
        )
    )
    lines = spark.range(simulation.n_legacy).select(
        F.lit(ACCEPTED).alias("kind"), day.alias("day"), line.alias("line")
    )
    return _delivered(lines, simulation, simulation.days)


def outcome_lines(rows: DataFrame, simulation: Simulation) -> DataFrame:
    """Lines of purchases and ratings, each after its request, with the faulty ones beside some ratings."""
    chance = chance_of_request(simulation)
    bought = purchases(rows).select("*", F.lit("purchase").alias("name"), F.col("price").alias("value"))
    is_rated = (F.col("index") == 0) & (F.col("traffic") == "production") & (F.col("id") < simulation.n_ratings)
    stars = (1 + F.floor(5 * chance.uniform("stars"))).cast("double")
    rated = rows.where(is_rated).select("*", F.lit("rating").alias("name"), stars.alias("value"))
    # Hours for most, days for some; never as long as the days after which all of them are counted on.
    delay = F.least(chance.exponential("delay"), F.lit(LATEST_OUTCOME_DAYS - 0.01))
    outcomes = bought.unionByName(rated).withColumn("day", F.col("day") + delay)
    line = F.to_json(
        F.struct(
            F.concat_ws("-", "request_id", "name").alias("outcome_id"),
            F.lit(0).alias("revision"),
            "request_id",
            "unit_id",
            "name",
            "value",
            instant(F.col("day"), simulation).alias("event_time"),
        ),
        _JSON,
    )
    fault = F.when(F.col("name") == "rating", _fault(simulation.outcome_faults()))
    lines = outcomes.select(line.alias("line"), "day", fault.alias("fault"))
    return _delivered(_with_faulty(lines, OUTCOME_FAULTS), simulation, simulation.days + LATEST_OUTCOME_DAYS)


def _fault(counts: Mapping[str, int]) -> Column:
    """The fault of a unit, null for most: each fault has its range of `id`, so that counts are exact."""
    fault, end = F.lit(None).cast("string"), sum(counts.values())
    for name, count in reversed(list(counts.items())):
        fault = F.when(F.col("id") < end, name).otherwise(fault)
        end -= count
    return fault


def _with_faulty(lines: DataFrame, faults: Mapping[str, Edit]) -> DataFrame:
    """Every line as it is, and once more with its fault where it has one."""
    faulty = F.lit(None).cast("string")
    for name, edit in faults.items():
        broken = F.regexp_replace("line", edit.pattern, edit.replacement)
        faulty = F.when(F.col("fault") == name, broken).otherwise(faulty)
    copies = F.array(
        F.struct(F.lit(ACCEPTED).alias("kind"), F.col("line"), F.col("day")),
        # Delivered again a day later, so that it may come in another file.
        F.struct(F.col("fault").alias("kind"), faulty.alias("line"), (F.col("day") + 1).alias("day")),
    )
    each = F.explode(F.filter(copies, lambda copy: copy.kind.isNotNull()))
    return lines.select(each.alias("copy")).select("copy.*")


def _delivered(lines: DataFrame, simulation: Simulation, days: int) -> DataFrame:
    """Lines in files by time, as a service writes them."""
    passed = (F.col("day") + simulation.days_before) / (days + simulation.days_before)
    file = F.least(F.floor(passed * simulation.n_files), F.lit(simulation.n_files - 1))
    return lines.select("kind", file.cast("int").alias("file"), "day", "line")
