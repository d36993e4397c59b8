"""Units, their requests, what became of them, and which model served them: expressions on hashes only."""

from collections.abc import Mapping
from datetime import UTC, datetime, time

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from mltrust.simulate.chance import Chance
from mltrust.simulate.population import ATTRIBUTES, BASE_LOG_ODDS, NUMBERS, SIMILARITY_SLOPE
from mltrust.simulate.spec import Simulation

#: What the models see, in the order of their input.
FEATURES = (*ATTRIBUTES, *NUMBERS)
CONTROL, TREATMENT = "control", "treatment"
#: Buckets that units are hashed to, as the confs of the demo declare them.
N_BUCKETS = 100
CHAMPION, CANDIDATE = "champion", "candidate"
#: The alias of a model that never serves.
OVERFIT = "overfit"
_UNIT, _REQUEST = ("id",), ("id", "index")
_LIVE, _PAST = "live", "past"  # seed spaces
_DAY_MS = 86_400_000


def live(spark: SparkSession, simulation: Simulation) -> DataFrame:
    """The requests of the simulated days, with assignments, planted effects, purchases and planted drift."""
    units = _assigned(_units(spark, simulation.seed, _LIVE, simulation.n_units), simulation)
    requests = _carried(_requests(units, simulation, _LIVE), simulation)
    return _drifted(_purchases(requests, simulation.seed, _LIVE), simulation)


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


def request_day(chance: Chance, simulation: Simulation, days_before: int = 0) -> Column:
    """When a request happens, in days after the start: any day alike, most often around noon."""
    noonish = (chance.uniform("time of day, one") + chance.uniform("time of day, two")) / 2
    return F.floor(chance.uniform("day") * (days_before + simulation.days)) - days_before + noonish


def age(chance: Chance) -> Column:
    return F.least(F.lit(90), F.greatest(F.lit(16), F.round(38 + 13 * chance.normal("age")))).cast("long")


def similarity(chance: Chance) -> Column:
    return F.round(F.tanh(0.3 + 0.5 * chance.normal("similarity")), 4)


def _units(spark: SparkSession, seed: int, space: str, n: int) -> DataFrame:
    chance = Chance(seed, _UNIT, space)
    return spark.range(n).select(
        "id",
        # Other units for another seed, as their assignments are hashes of their names alone.
        F.concat(F.lit("u"), F.substring(F.md5(F.concat_ws("/", F.lit(seed), "id")), 1, 12)).alias("unit_id"),
        *(chance.choice(name, shares).alias(name) for name, shares in ATTRIBUTES.items()),
        age(chance).alias("age"),
        F.floor(400 * chance.exponential("tenure")).alias("tenure_at_start"),
        (0.4 * chance.normal("liking")).alias("liking"),
    )


def _assigned(units: DataFrame, simulation: Simulation) -> DataFrame:
    """Adds `experiments` and `effect`, the sum of what the unit's treatments add to its log-odds.

    A unit's bucket is a hash of the experiment's name and the unit's, as the confs of the demo declare it.
    """
    chance = Chance(simulation.seed, _UNIT, _LIVE)
    assignments, effects = [], []
    for name, plant in simulation.experiments.items():
        bucket = _bucket(name)
        is_treated = bucket < F.round(_by_value(plant.treatment_share, plant.share_in) * N_BUCKETS)
        effects.append(F.when(is_treated, _by_value(plant.effect, plant.effect_in)).otherwise(0.0))
        assignments.append(
            F.struct(
                F.lit(name).alias("experiment_id"),
                F.format_string("b%02d", bucket).alias("bucket_id"),
                is_treated.alias("is_treated"),
                chance.happens(f"crossing of {name}", plant.crossed_share).alias("is_crossing"),
            )
        )
    return units.select("*", F.array(*assignments).alias("assigned"), sum(effects, F.lit(0.0)).alias("unit_effect"))


def _bucket(name: str) -> Column:
    return F.conv(F.substring(F.md5(F.concat(F.lit(f"{name}:"), "unit_id")), 1, 15), 16, 10).cast("long") % N_BUCKETS


def _carried(requests: DataFrame, simulation: Simulation) -> DataFrame:
    """Adds to requests the `experiments` that they carry and their `effect`: none before the start.

    Units that cross get the other variant in the second half of the days.
    """

    def variant(each: Column) -> Column:
        crossed = each["is_crossing"] & (F.col("day") >= simulation.days / 2)
        return F.when(each["is_treated"] != crossed, TREATMENT).otherwise(CONTROL)

    started = F.col("day") >= 0
    carried = F.transform(
        F.when(started, F.col("assigned")).otherwise(F.slice("assigned", 1, 0)),
        lambda each: F.struct(
            each["experiment_id"].alias("experiment_id"),
            each["bucket_id"].alias("bucket_id"),
            variant(each).alias("variant"),
        ),
    )
    effect = F.when(started, F.col("unit_effect")).otherwise(0.0)
    return requests.withColumns({"experiments": carried, "effect": effect}).drop("assigned", "unit_effect")


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
        # The first one is within the experiments, so that every unit takes part.
        F.when(F.col("index") == 0, request_day(chance, simulation))
        .otherwise(request_day(chance, simulation, simulation.days_before))
        .alias("day"),
        similarity(chance).alias("similarity_score"),
        F.round(F.exp(3.2 + 0.6 * chance.normal("price")), 2).alias("price"),
    ).withColumn("tenure_days", F.greatest(F.lit(0), F.col("tenure_at_start") + F.floor("day")))


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


def _drifted(requests: DataFrame, simulation: Simulation) -> DataFrame:
    """Requests with the features as models get them, which is not always what decides on a purchase."""
    chance = chance_of_request(simulation)
    for name, shift in simulation.drifts.items():
        given = F.col(shift.feature)
        wrong = F.lit(None) if shift.factor is None else F.round(given * shift.factor, 2)
        is_wrong = (F.col("day") >= shift.from_day) & chance.happens(f"drift {name}", shift.share)
        drifted = F.when(is_wrong, wrong.cast(requests.schema[shift.feature].dataType)).otherwise(given)
        requests = requests.withColumn(shift.feature, drifted)
    return requests


def _with_run_of(rows: DataFrame, simulation: Simulation) -> DataFrame:
    chance = Chance(simulation.seed, (*_REQUEST, "traffic"), _LIVE)
    fails, is_down = chance.happens("failure", simulation.error_share), F.lit(False)
    for name, outage in simulation.outages.items():
        ((attribute, value),) = outage.failing_in.items()
        own = (F.col("traffic") == "production") & (F.col("role") == outage.role) & (F.col(attribute) == value)
        is_down |= own & (F.col("day") * 24 >= outage.from_hour) & chance.happens(f"outage {name}", outage.share)
    failed = fails | is_down
    by_chance = chance.choice("kind of failure", {"timeout": 0.7, "upstream": 0.3})
    error = F.when(is_down, "timeout").otherwise(by_chance)
    return rows.select(
        "*",
        F.when(failed, "error").otherwise("ok").alias("status"),
        F.when(failed, error).alias("error_type"),
        F.round(F.exp(3.7 + 0.4 * chance.normal("latency")), 1).alias("latency_ms"),
        F.round(0.2 + 0.5 * chance.uniform("cpu"), 3).alias("cpu_load"),
    )
