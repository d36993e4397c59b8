"""Units, their requests, what became of them, and which model served them: expressions on hashes only."""

from collections.abc import Mapping
from datetime import UTC, datetime, time

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from mltrust.simulate.chance import Chance
from mltrust.simulate.population import ATTRIBUTES, BASE_LOG_ODDS, SIMILARITY_SLOPE
from mltrust.simulate.spec import Simulation

#: What the models see, in the order of their input.
FEATURES = ("device", "region", "age", "tenure_days", "similarity_score", "price")
CONTROL, TREATMENT = "control", "treatment"
CHAMPION, CANDIDATE = "champion", "candidate"
_UNIT, _REQUEST = ("id",), ("id", "index")
_LIVE, _PAST = "live", "past"  # seed spaces
_DAY_MS = 86_400_000


def live(spark: SparkSession, simulation: Simulation) -> DataFrame:
    """The requests of the simulated days, with assignments, planted effects and purchases."""
    units = _assigned(_units(spark, simulation.seed, _LIVE, simulation.n_units), simulation)
    return _purchases(_requests(units, simulation, _LIVE), simulation.seed, _LIVE)


def past(spark: SparkSession, simulation: Simulation) -> DataFrame:
    """Requests of other units, without experiments, to learn from: FEATURES and `is_purchase`."""
    units = _units(spark, simulation.seed, _PAST, simulation.training_units).withColumn("effect", F.lit(0.0))
    requests = _purchases(_requests(units, simulation, _PAST), simulation.seed, _PAST)
    return requests.select("id", "index", *FEATURES, "is_purchase")


def served(requests: DataFrame, simulation: Simulation) -> DataFrame:
    """One row per request and model that answered it: production, and for some of the champion's the shadow.

    Adds `traffic`, `role` (champion or candidate), `status`, `error_type`, `latency_ms` and `cpu_load`.
    """
    chance = chance_of_request(simulation)
    is_treated = F.exists(
        "experiments",
        lambda each: (each.experiment_id == simulation.ranker) & (each.variant == TREATMENT),
    )
    is_shadowed = ~is_treated & chance.happens("shadow", simulation.shadow_share)
    production = F.struct(
        F.lit("production").alias("traffic"),
        F.when(is_treated, CANDIDATE).otherwise(CHAMPION).alias("role"),
    )
    shadow = F.struct(F.lit("shadow").alias("traffic"), F.lit(CANDIDATE).alias("role"))
    answers = F.when(is_shadowed, F.array(production, shadow)).otherwise(F.array(production))
    rows = requests.withColumn("answer", F.explode(answers)).select("*", "answer.*").drop("answer")
    return _with_run_of(rows, simulation)


def purchases(rows: DataFrame) -> DataFrame:
    """The served rows that ended in a purchase; a failed request shows nothing to buy."""
    return rows.where((F.col("traffic") == "production") & (F.col("status") == "ok") & F.col("is_purchase"))


def chance_of_request(simulation: Simulation) -> Chance:
    """What is drawn once per request of the simulated days."""
    return Chance(simulation.seed, _REQUEST, _LIVE)


def instant(day: Column, simulation: Simulation) -> Column:
    """The UTC timestamp, in whole milliseconds, `day` days after the simulation's start."""
    start = int(datetime.combine(simulation.start, time(), UTC).timestamp() * 1000)
    return F.timestamp_millis(F.floor(day * _DAY_MS) + start)


def request_day(chance: Chance, simulation: Simulation) -> Column:
    """When a request happens, in days after the start: any day alike, most often around noon."""
    noonish = (chance.uniform("time of day, one") + chance.uniform("time of day, two")) / 2
    return F.floor(chance.uniform("day") * simulation.days) + noonish


def age(chance: Chance) -> Column:
    return F.least(F.lit(90), F.greatest(F.lit(16), F.round(38 + 13 * chance.normal("age")))).cast("long")


def similarity(chance: Chance) -> Column:
    return F.round(F.tanh(0.3 + 0.5 * chance.normal("similarity")), 4)


def _units(spark: SparkSession, seed: int, space: str, n: int) -> DataFrame:
    chance = Chance(seed, _UNIT, space)
    return spark.range(n).select(
        "id",
        F.format_string("u%07d", "id").alias("unit_id"),
        *(chance.choice(name, shares).alias(name) for name, shares in ATTRIBUTES.items()),
        age(chance).alias("age"),
        F.floor(400 * chance.exponential("tenure")).alias("tenure_at_start"),
        (0.4 * chance.normal("liking")).alias("liking"),
    )


def _assigned(units: DataFrame, simulation: Simulation) -> DataFrame:
    """Adds `experiments` and `effect`, the sum of what the unit's treatments add to its log-odds."""
    chance = Chance(simulation.seed, _UNIT, _LIVE)
    assignments, effects = [], []
    for name, plant in simulation.experiments.items():
        drawn = chance.uniform(f"assignment of {name}")
        is_treated = drawn < _by_value(plant.treatment_share, plant.share_in)
        effects.append(F.when(is_treated, _by_value(plant.effect, plant.effect_in)).otherwise(0.0))
        assignments.append(
            F.struct(
                F.lit(name).alias("experiment_id"),
                F.format_string("b%02d", F.floor(drawn * 100)).alias("bucket_id"),
                F.when(is_treated, TREATMENT).otherwise(CONTROL).alias("variant"),
            )
        )
    return units.select("*", F.array(*assignments).alias("experiments"), sum(effects, F.lit(0.0)).alias("effect"))


def _by_value(default: float, by: Mapping[str, Mapping[str, float]]) -> Column:
    column = F.lit(default)
    for attribute, values in by.items():
        for value, number in values.items():
            column = F.when(F.col(attribute) == value, number).otherwise(column)
    return column


def _requests(units: DataFrame, simulation: Simulation, space: str) -> DataFrame:
    # 1 + geometric: the floor of an exponential of mean m has mean 1 / (exp(1 / m) - 1).
    extra = Chance(simulation.seed, _UNIT, space).exponential("requests")
    mean = -1 / F.log1p(F.lit(-1 / simulation.requests_per_unit))
    rows = units.withColumn("index", F.explode(F.sequence(F.lit(0), F.floor(extra * mean).cast("int"))))
    chance = Chance(simulation.seed, _REQUEST, space)
    return rows.select(
        "*",
        F.concat_ws("-", "unit_id", "index").alias("request_id"),
        request_day(chance, simulation).alias("day"),
        similarity(chance).alias("similarity_score"),
        F.round(F.exp(3.2 + 0.6 * chance.normal("price")), 2).alias("price"),
    ).withColumn("tenure_days", F.col("tenure_at_start") + F.floor("day"))


def _purchases(requests: DataFrame, seed: int, space: str) -> DataFrame:
    """Adds `is_purchase`, by features that a model can learn, a unit's liking that none can, and effects."""
    log_odds = (
        _by_value(0.0, {"device": BASE_LOG_ODDS})
        + F.col("similarity_score") * _by_value(0.0, {"device": SIMILARITY_SLOPE})
        - 0.6 * (F.ln("price") - 3.2)
        - 0.3 * F.pow((F.col("age") - 38) / 13, 2)
        + 0.3 * F.tanh(F.col("tenure_days") / 400)
        + F.col("liking")
        + F.col("effect")
    )
    is_purchase = Chance(seed, _REQUEST, space).happens("purchase", 1 / (1 + F.exp(-log_odds)))
    return requests.withColumn("is_purchase", is_purchase)


def _with_run_of(rows: DataFrame, simulation: Simulation) -> DataFrame:
    chance = Chance(simulation.seed, (*_REQUEST, "traffic"), _LIVE)
    failed = chance.happens("failure", simulation.error_share)
    error = chance.choice("kind of failure", {"timeout": 0.7, "upstream": 0.3})
    return rows.select(
        "*",
        F.when(failed, "error").otherwise("ok").alias("status"),
        F.when(failed, error).alias("error_type"),
        F.round(F.exp(3.7 + 0.4 * chance.normal("latency")), 1).alias("latency_ms"),
        F.round(0.2 + 0.5 * chance.uniform("cpu"), 3).alias("cpu_load"),
    )
