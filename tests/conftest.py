"""What the suites share: one Spark session, and a count of the jobs that a block of code starts."""

import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROOT = Path(__file__).parents[1]

# What a test takes belongs to the machine: beside other work a call of 0.2 ms took 0.5 s once, and failed the suite.
# Sixty examples each, other ones in every run, keep the suite to its minute.
settings.register_profile("any machine", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


# To choose files by their statistics takes 0.4 s a query, and tables here are read whole; partitions are chosen.
# Hundreds of different queries of a second each: the second compiler took a third of the processor for what never ran
# again. Without it Java keeps 48 MB of code, which were full after some minutes and then swept without end.
_SHORT_QUERIES = {
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=256m -XX:+UseParallelGC",
    "spark.driver.memory": "3g",
    "spark.databricks.delta.stats.skipping": "false",
}


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
    from mltrust.settings import Settings

    # Models of the tests are classes of theirs, which the workers must find from any folder.
    tuned = {"spark.sql.shuffle.partitions": "2", "spark.executorEnv.PYTHONPATH": str(ROOT), **_SHORT_QUERIES}
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


class FilesRead:
    """Data files that the scans of a block read: per table (the last folder of its path) the most of any scan."""

    def __init__(self) -> None:
        self.of: dict[str, int] = {}

    def add(self, table: str, n: int) -> None:
        self.of[table] = max(self.of.get(table, 0), n)


CountFiles = Callable[[], AbstractContextManager[FilesRead]]
_SCAN = re.compile(r"Location: \w+\(\d+ paths\)\[[^\]]*/(\w+)\]")


@pytest.fixture
def count_files(spark: "SparkSession") -> CountFiles:
    store = spark._jsparkSession.sharedState().statusStore()  # type: ignore[attr-defined]

    def of_execution(execution: int, files: FilesRead) -> None:
        values, nodes = store.executionMetrics(execution), store.planGraph(execution).allNodes()
        for node in (nodes.apply(at) for at in range(nodes.size())):
            table = _SCAN.search(node.desc())
            for metric in (node.metrics().apply(at) for at in range(node.metrics().size())):
                value = values.get(metric.accumulatorId())
                if table and metric.name() == "number of files read" and value.isDefined():
                    files.add(table[1], int(value.get().replace(",", "")))

    def ids() -> list[int]:
        executions = store.executionsList()
        return [executions.apply(at).executionId() for at in range(executions.size())]

    @contextmanager
    def counting() -> Iterator[FilesRead]:
        # By id: the list forgets its oldest ones.
        before, files = max(ids(), default=-1), FilesRead()
        spark.conf.set("spark.sql.maxMetadataStringLength", "1000")  # else long paths are cut
        yield files
        spark.conf.unset("spark.sql.maxMetadataStringLength")
        for execution in ids():
            if execution > before:
                of_execution(execution, files)

    return counting
