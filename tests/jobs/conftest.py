"""One small lakehouse, simulated, ingested and analysed once for all job tests."""

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from pyspark.sql import SparkSession
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from jobs import analyze_experiment, build_units, ingest_logs, simulate_traffic
from mltrust import conf, runtime
from mltrust.conf import Conf, read
from mltrust.io.tables import Lakehouse
from mltrust.simulate.spec import Simulation
from mltrust.verdicts import Exit
from tests.conftest import ROOT
from tests.jobs.broker import Broker

AS_OF = datetime(2026, 11, 2, tzinfo=UTC)


@cache
def scope(file: str) -> str:
    """What one worker takes whole: all files that read the shared lakehouse, or a file."""
    return "world" if ": World" in (ROOT / file).read_text() else file


class ByLakehouse(LoadFileScheduling):
    """One worker builds the lakehouse and has all files that read it; the others have the rest, by file."""

    def _split_scope(self, nodeid: str) -> str:
        return scope(super()._split_scope(nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByLakehouse | None:
    return ByLakehouse(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # MLflow warns of its own database, of type hints and of integers in signatures.
    for item in items:
        if "tests/jobs" in str(item.path):
            item.add_marker(pytest.mark.filterwarnings("ignore"))


def copied_conf(folder: Path, *, n_units: int) -> Path:
    """The shipped conf in `folder`, with a smaller simulation."""
    copy = shutil.copytree(ROOT / "conf", folder / "conf")
    with changed(copy / "simulations/demo.yaml") as demo:
        # So few units show the planted reversal with some seeds only.
        demo |= {"n_units": n_units, "training_units": 500, "seed": 43}
        # A week of drift, and weeks as windows: so few units have too few rows on a day.
        demo["drifts"]["price_in_cents"]["from_day"] = 14
    with changed(copy / "monitors/recommender.yaml") as monitor:
        monitor["drift"]["window_days"] = 7
    return copy


@contextmanager
def changed(path: Path) -> Iterator[dict[str, Any]]:
    """What a YAML file holds, written back with what the block changes of it."""
    plain = yaml.safe_load(path.read_text())
    yield plain
    path.write_text(yaml.safe_dump(plain, sort_keys=False))


class World(NamedTuple):
    """The lakehouse of the suite."""

    spark: SparkSession
    folder: Path
    conf: Path
    exits: dict[str, Exit]

    def load(self, config: str) -> Conf:
        return conf.load(self.conf / config, "local")

    def simulation(self) -> Simulation:
        return read(Simulation, self.conf / "simulations/demo.yaml")[0]

    def lake(self) -> Lakehouse:
        return runtime.lakehouse(self.spark, self.load("contracts/recommendations.yaml"))


@pytest.fixture(scope="session")
def world(spark: SparkSession, workplace: Path) -> World:
    made = World(spark, workplace, copied_conf(workplace, n_units=2000), {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, job, config in (
            ("simulate", simulate_traffic, "simulations/demo.yaml"),
            ("ingest", ingest_logs, "contracts/recommendations.yaml"),
            ("build free_shipping", build_units, "experiments/free_shipping.yaml"),
            ("analyze free_shipping", analyze_experiment, "experiments/free_shipping.yaml"),
        ):
            made.exits[name] = job.run(spark, made.load(config), AS_OF)
    return made


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A Kafka broker that runs."""
    found = Broker(tmp_path_factory.mktemp("kafka") / "broker")
    found.start()
    yield found
    found.stop()


@pytest.fixture(scope="session")
def ranker(world: World) -> World:
    """The lakehouse with a second experiment, for the slow tests."""
    for name, job in (("build ranker_v2", build_units), ("analyze ranker_v2", analyze_experiment)):
        world.exits[name] = job.run(world.spark, world.load("experiments/ranker_v2.yaml"), AS_OF)
    return world
