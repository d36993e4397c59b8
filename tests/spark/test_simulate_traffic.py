"""A small simulation, generated in Spark and read again line by line in plain Python."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, time
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from mltrust.conf import read
from mltrust.contract import Contract, Reason
from mltrust.errors import DataError
from mltrust.record import OutcomeReader, RecordReader, Rejected, Row
from mltrust.settings import Settings
from mltrust.simulate import landing, models, traffic
from mltrust.simulate.chance import Chance
from mltrust.simulate.faults import DUPLICATE
from mltrust.simulate.landing import Stream, Written
from mltrust.simulate.models import Served
from mltrust.simulate.population import ATTRIBUTES
from mltrust.simulate.spec import Dirt, Outage, Simulation

CONF = Path(__file__).parents[2] / "conf"
CONTRACT, _ = read(Contract, CONF / "contracts" / "recommendations.yaml")
DEMO, _ = read(Simulation, CONF / "simulations" / "demo.yaml")
SMALL = replace(
    DEMO,
    n_units=500,
    training_units=400,
    rating_share=0.2,
    error_share=0.05,
    dirt=Dirt(records=dict.fromkeys(DEMO.dirt.records, 0.008), outcomes=dict.fromkeys(DEMO.dirt.outcomes, 0.006)),
)
KEY = ("event_date", "request_id", "model_name", "model_version", "traffic", "item_id")
OUTCOME_KEY = ("event_date", "outcome_id", "revision")
# Five standard errors: a seed that fails is one of a million.
WIDE = 5.0


class Simulated(NamedTuple):
    """A simulation on disk, with what wrote it."""

    folders: dict[Stream, str]
    written: Written
    served: dict[str, Served]


@pytest.fixture(scope="module")
def simulated(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    trained = models.trained(traffic.past(spark, SMALL), SMALL.seed)
    served = {
        traffic.CHAMPION: Served(trained.champion, "1"),
        traffic.CANDIDATE: Served(trained.candidate, "2"),
    }
    root = tmp_path_factory.mktemp("simulated")
    folders = landing.folders(Settings(root=str(root)), SMALL.log)
    return Simulated(folders, landing.write(spark, SMALL, served, folders), served)


@pytest.fixture(scope="module")
def records(simulated: Simulated) -> list[Row | Rejected]:
    reader = RecordReader(CONTRACT)
    return [reader.read(line) for file in contents(simulated.folders["records"]) for line in file.splitlines()]


@pytest.fixture(scope="module")
def outcomes(simulated: Simulated) -> list[Row | Rejected]:
    reader = OutcomeReader()
    return [reader.read(line) for file in contents(simulated.folders["outcomes"]) for line in file.splitlines()]


@pytest.fixture(scope="module")
def log(records: list[Row | Rejected]) -> list[Row]:
    """The accepted v02 records of the log, each key once."""
    by_key = {key_of(row, KEY): row for row in records if isinstance(row, dict)}
    return [row for row in by_key.values() if row["schema_version"] == "v02"]


def contents(folder: str) -> list[bytes]:
    """What the files of a landing folder hold, in the order of their numbers."""
    return [path.read_bytes() for path in sorted(Path(folder).glob("part-*"))]


def key_of(row: Row, key: tuple[str, ...]) -> tuple[object, ...]:
    return tuple(row[name] for name in key)


def kinds(found: list[Row | Rejected], key: tuple[str, ...]) -> dict[str, int]:
    """How many of each kind ingest will find."""
    counts = Counter(str(each.reason_code) for each in found if isinstance(each, Rejected))
    rows = [row for row in found if isinstance(row, dict)]
    lines = Counter((key_of(row, key), row["content_hash"]) for row in rows)
    accepted = {where for where, _ in lines}
    counts["accepted"] = len(accepted)
    counts[DUPLICATE] = len(rows) - len(lines)
    counts[str(Reason.CONFLICTING_DUPLICATE)] = len(lines) - len(accepted)
    return dict(counts)


def test_records_read_as_they_were_planted(simulated: Simulated, records: list[Row | Rejected]) -> None:
    assert kinds(records, KEY) == simulated.written.records
    assert {fault: simulated.written.records[fault] for fault in SMALL.record_faults()} == SMALL.record_faults()


def test_outcomes_read_as_they_were_planted(simulated: Simulated, outcomes: list[Row | Rejected]) -> None:
    assert kinds(outcomes, OUTCOME_KEY) == simulated.written.outcomes
    assert {fault: simulated.written.outcomes[fault] for fault in SMALL.outcome_faults()} == SMALL.outcome_faults()


@pytest.mark.slow
def test_the_same_seed_writes_the_same_files_whatever_the_partitioning(
    spark: SparkSession, simulated: Simulated, other_partitions: None, tmp_path: Path
) -> None:
    # Trained anew as well: the models too must come out the same.
    trained = models.trained(traffic.past(spark, SMALL), SMALL.seed)
    served = {"champion": Served(trained.champion, "1"), "candidate": Served(trained.candidate, "2")}
    folders = landing.folders(Settings(root=str(tmp_path)), SMALL.log)
    assert landing.write(spark, SMALL, served, folders) == simulated.written
    for stream, folder in folders.items():
        assert contents(folder) == contents(simulated.folders[stream])


@pytest.fixture
def other_partitions(spark: SparkSession) -> Iterator[None]:
    settings = {"spark.sql.leafNodeDefaultParallelism": "5", "spark.sql.shuffle.partitions": "3"}
    before = {name: spark.conf.get(name, None) for name in settings}
    for name, value in settings.items():
        spark.conf.set(name, value)
    yield
    for name, given in before.items():
        spark.conf.unset(name) if given is None else spark.conf.set(name, given)


def test_a_landing_folder_with_files_is_refused(spark: SparkSession, simulated: Simulated, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has files already"):
        landing.refuse_used(spark, simulated.folders)
    landing.refuse_used(spark, {"records": str(tmp_path), "outcomes": str(tmp_path / "missing")})


def test_old_producers_write_one_experiment_of_their_own_and_no_unit(records: list[Row | Rejected]) -> None:
    legacy = [row for row in records if isinstance(row, dict) and row["schema_version"] == "v01"]
    assert len(legacy) == SMALL.n_legacy == 40
    for row in legacy:
        assert row["unit_id"] is None
        assert row["experiments"][0]["experiment_id"] == "exp42"  # type: ignore[index]
        assert row["extra"] is None


def test_every_unit_keeps_its_arms_and_the_ranker_decides_the_model(log: list[Row]) -> None:
    start = int(datetime.combine(SMALL.start, time(), UTC).timestamp()) * 1_000_000
    half = start + SMALL.days * 86_400_000_000 // 2
    arms: dict[object, object] = {}
    crossed, early = set(), 0
    for row in sorted(log, key=lambda each: each["event_time"]):  # type: ignore[arg-type,return-value]
        if row["event_time"] < start:  # type: ignore[operator]
            assert (row["experiments"], row["model_version"]) == ([], "1" if row["traffic"] == "production" else "2")
            early += 1
            continue
        variants = {each["experiment_id"]: each["variant"] for each in row["experiments"]}  # type: ignore[attr-defined]
        assert list(variants) == list(SMALL.experiments)
        kept = arms.setdefault(row["unit_id"], variants)
        if kept != variants:
            assert {name for name in variants if kept[name] != variants[name]} == {"checkout_banner"}  # type: ignore[index]
            assert row["event_time"] >= half  # type: ignore[operator]
            crossed.add(row["unit_id"])
        if row["traffic"] == "production":
            assert row["model_version"] == ("2" if variants[SMALL.ranker] == "treatment" else "1")
        else:
            assert (row["model_version"], variants[SMALL.ranker]) == ("2", "control")
    assert len(arms) == SMALL.n_units
    assert 0.15 < early / len(log) < 0.4  # three of four requests of a unit, on 14 of 35 days
    assert 0 < len(crossed) < 0.08 * SMALL.n_units


def test_shadow_traffic_answers_requests_of_the_champion(log: list[Row]) -> None:
    production = {row["request_id"]: row for row in log if row["traffic"] == "production"}
    shadows = [row for row in log if row["traffic"] == "shadow"]
    assert shadows
    for row in shadows:
        answered = production[row["request_id"]]
        assert answered["model_version"] == "1"
        assert answered["features"] == row["features"]
    champions = sum(row["model_version"] == "1" for row in production.values())
    assert near(len(shadows), champions, SMALL.shadow_share)


def test_scores_in_the_log_are_those_of_the_model_bit_for_bit(simulated: Simulated, log: list[Row]) -> None:
    for served in simulated.served.values():
        rows = [row for row in log if row["model_version"] == served.version and row["status"] == "ok"]
        features = pd.DataFrame([row["features"] for row in rows])[list(traffic.FEATURES)]
        logged = [row["prediction_score"] for row in rows]
        assert served.model.predict_proba(features)[:, 1].tolist() == logged
        assert served.model.predict_proba(features.head(1))[0, 1] == logged[0]


def test_shares_of_the_log_are_near_what_the_simulation_says(log: list[Row]) -> None:
    production = [row for row in log if row["traffic"] == "production"]
    assert near(sum(row["status"] == "error" for row in log), len(log), SMALL.error_share)
    assert near(sum(row["extra"] is not None for row in production), len(production), SMALL.extra_share)
    units = {row["unit_id"]: row["features"] for row in production}
    for attribute, shares in ATTRIBUTES.items():
        found = Counter(features[attribute] for features in units.values())  # type: ignore[index]
        for value, share in shares.items():
            assert near(found[value], len(units), share)
    # A geometric number of requests has the variance r·(r - 1).
    r = SMALL.requests_per_unit
    assert abs(len(production) / len(units) - r) < WIDE * math.sqrt(r * (r - 1) / len(units))


def near(n: int, of: int, share: float) -> bool:
    return abs(n - of * share) < WIDE * math.sqrt(of * share * (1 - share)) + 1


def test_outcomes_follow_their_request_within_a_week(outcomes: list[Row | Rejected], log: list[Row]) -> None:
    requested = {row["request_id"]: row for row in log if row["traffic"] == "production"}
    week, as_of = 7 * 86_400 * 10**6, int(datetime(2026, 11, 2, tzinfo=UTC).timestamp()) * 10**6
    found = [row for row in outcomes if isinstance(row, dict)]
    assert {row["name"] for row in found} == {"purchase", "rating"}
    for row in found:
        request = requested[row["request_id"]]
        assert request["event_time"] <= row["event_time"] < request["event_time"] + week  # type: ignore[operator]
        assert row["event_time"] < as_of  # type: ignore[operator]
        assert row["unit_id"] == request["unit_id"]
        assert row["name"] == "rating" or request["status"] == "ok"


def test_files_follow_one_another_in_time(simulated: Simulated) -> None:
    files = contents(simulated.folders["records"])
    assert len(files) == SMALL.n_files
    # The first good line: a faulty one may lack its end.
    firsts = [json.loads(next(line for line in file.splitlines() if line.endswith(b"}"))) for file in files]
    starts = [first.get("event_time") or first["timestamp"] for first in firsts]
    days = [datetime.fromtimestamp(s, UTC) if isinstance(s, int) else datetime.fromisoformat(s) for s in starts]
    assert days == sorted(days)


def test_draws_are_uniform_and_independent_of_purpose_key_and_seed(spark: SparkSession) -> None:
    n = 20_000
    draws = {
        "a": Chance(1, ("id",), "live").uniform("a"),
        "b": Chance(1, ("id",), "live").uniform("b"),
        "a of the past": Chance(1, ("id",), "past").uniform("a"),
        "a of the next seed": Chance(2, ("id",), "live").uniform("a"),
        "a of the next id": Chance(1, ("next",), "live").uniform("a"),
    }
    rows = spark.range(n).withColumn("next", F.col("id") + 1)
    found = rows.select(*(column.alias(name) for name, column in draws.items())).toArrow().to_pandas()
    # Correlations of independent columns have the standard error 1 / sqrt(n), and so has sqrt(12) times a mean.
    correlations = found.corr().to_numpy()
    assert abs(correlations - pd.DataFrame(correlations).map(round).to_numpy()).max() < WIDE / math.sqrt(n)
    assert (found.mean() - 0.5).abs().max() * math.sqrt(12) < WIDE / math.sqrt(n)
    # Kolmogorov's distance of a sample of a uniform is beyond 2.7 / sqrt(n) once in a million.
    for name in draws:
        distance = (found[name].sort_values(ignore_index=True) - (found.index + 0.5) / n).abs().max()
        assert distance < 2.7 / math.sqrt(n)


def test_draws_follow_the_law_they_are_named_for(spark: SparkSession) -> None:
    n = 20_000
    chance = Chance(3, ("id",), "live")
    found = (
        spark.range(n)
        .select(
            chance.normal("n").alias("normal"),
            chance.exponential("e").alias("exponential"),
            chance.choice("c", {"x": 0.2, "y": 0.5, "z": 0.3}).alias("choice"),
        )
        .toArrow()
        .to_pandas()
    )
    assert abs(found.normal.mean()) < WIDE / math.sqrt(n)
    assert abs(found.normal.var() - 1) < WIDE * math.sqrt(2 / n)
    assert abs((found.normal < -1.96).mean() - 0.025) < WIDE * math.sqrt(0.025 * 0.975 / n)
    assert abs(found.exponential.mean() - 1) < WIDE / math.sqrt(n)
    for value, share in {"x": 0.2, "y": 0.5, "z": 0.3}.items():
        assert near(int((found.choice == value).sum()), n, share)


@pytest.mark.slow
def test_the_share_of_treated_units_is_the_planted_one_in_every_slice(spark: SparkSession) -> None:
    simulation = replace(SMALL, n_units=20_000)
    units = traffic.live(spark, simulation).where("index = 0")
    arms = F.explode("experiments").alias("arm")
    counted = (
        units.select(*ATTRIBUTES, arms)
        .groupBy(*ATTRIBUTES, "arm.experiment_id")
        .agg(F.count_if(F.col("arm.variant") == "treatment").alias("treated"), F.count("*").alias("n"))
        .toArrow()
        .to_pylist()
    )
    assert sum(row["n"] for row in counted) == simulation.n_units * len(simulation.experiments)
    for row in counted:
        plant = simulation.experiments[row["experiment_id"]]
        shares = [values.get(row[name], plant.treatment_share) for name, values in plant.share_in.items()]
        assert near(row["treated"], row["n"], shares[0] if shares else plant.treatment_share)


def test_planted_effects_move_purchases_and_nothing_else(spark: SparkSession) -> None:
    simulation = replace(SMALL, n_units=20_000, error_share=0.0)
    requests = traffic.live(spark, simulation).where("day >= 0")
    arms = {name: F.col("experiments")[i].variant.alias(name) for i, name in enumerate(simulation.experiments)}
    found = (
        requests.groupBy("device", *arms.values())
        .agg(F.count("*").alias("n"), F.count_if("is_purchase").alias("purchases"))
        .toArrow()
        .to_pandas()
    )

    def z(experiment: str, device: str) -> float:
        """Difference of purchases per request in standard errors, as if requests were independent."""
        arm = found[found.device == device].groupby(experiment)[["n", "purchases"]].sum()
        p = arm.purchases / arm.n
        return float((p["treatment"] - p["control"]) / math.sqrt((p * (1 - p) / arm.n).sum()))

    for device in ATTRIBUTES["device"]:
        assert z("free_shipping", device) > 3
        assert (z("ranker_v2", device) > 3) == (device != "tablet")
        # Requests of a unit depend on one another, which widens the law of this z by about a tenth.
        assert abs(z("button_color", device)) < WIDE
        assert abs(z("checkout_banner", device)) < WIDE
    assert z("ranker_v2", "tablet") < -3


def test_an_outage_fails_requests_of_one_model_in_one_slice_from_its_hour_on(spark: SparkSession) -> None:
    outage = Outage("candidate", {"device": "tablet"}, from_hour=240, share=0.5)
    simulation = replace(SMALL, n_units=3000, error_share=0.0, outages={"tablets": outage})
    rows = traffic.served(traffic.live(spark, simulation), simulation).withColumns(
        {
            "is_hit": (F.col("day") >= 10) & (F.col("device") == "tablet") & (F.col("role") == "candidate"),
            "is_production": F.col("traffic") == "production",
        }
    )
    counted = rows.groupBy("is_hit", "is_production").agg(
        F.count("*").alias("n"),
        F.count_if(F.col("status") == "error").alias("failed"),
        F.count_if(F.col("error_type") == "timeout").alias("timeouts"),
    )
    for row in counted.collect():
        assert row["timeouts"] == row["failed"]
        if row["is_hit"] and row["is_production"]:
            assert near(row["failed"], row["n"], 0.5)
        else:
            assert row["failed"] == 0
