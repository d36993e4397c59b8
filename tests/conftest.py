"""What the suites share: one Spark session, and a count of the jobs that a block of code starts."""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty working folder, away from the project."""
    before, folder = Path.cwd(), tmp_path_factory.mktemp("work")
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="session")
def spark(workplace: Path) -> Iterator["SparkSession"]:
    """A local session with Delta, as the jobs make it."""
    from mltrust import runtime
    from mltrust.conf import Settings

    tuned = {"spark.sql.shuffle.partitions": "2"}
    session = runtime.session(Settings(root=str(workplace / ".lakehouse"), master="local[2]", spark=tuned), "tests")
    yield session
    session.stop()


class Jobs:
    """How many Spark jobs a block started. With adaptive execution every shuffle's map side is one of them."""

    n = 0


CountJobs = Callable[[], AbstractContextManager[Jobs]]


@pytest.fixture
def count_jobs(spark: "SparkSession") -> CountJobs:
    context = spark.sparkContext

    @contextmanager
    def counting() -> Iterator[Jobs]:
        group, jobs = uuid.uuid4().hex, Jobs()
        context.setJobGroup(group, "counted")
        yield jobs
        jobs.n = len(context.statusTracker().getJobIdsForGroup(group))
        context.setLocalProperty("spark.jobGroup.id", "")

    return counting
