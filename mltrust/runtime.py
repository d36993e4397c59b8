"""What a job runs in: its arguments, its session, its exit code."""

import argparse
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime
from functools import partial
from importlib import resources
from math import inf, nan
from pathlib import Path
from typing import Any, NamedTuple

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from mltrust import conf as confs
from mltrust.conf import Conf
from mltrust.errors import ConfError, DataError, MltrustError, PlatformError
from mltrust.io import tracking
from mltrust.io.tables import Lakehouse, Versions
from mltrust.settings import Settings
from mltrust.spark.units import EVERYONE
from mltrust.verdicts import Exit, Verdict

log = logging.getLogger("mltrust")

DELTA_PACKAGE = "io.delta:delta-spark_4.1_2.13:4.4.0"
KAFKA_PACKAGE = "org.apache.spark:spark-sql-kafka-0-10_2.13:4.1.1"
_DELTA = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
}
# What every result depends on, whoever made the session.
_SEMANTICS = {"spark.sql.session.timeZone": "UTC", "spark.sql.ansi.enabled": "true"}
# Delta's defaults are for large tables: CREATE took 51 s with them on one machine and 4 s with these.
_SMALL_TABLES = {
    "spark.databricks.delta.snapshotPartitions": "1",
    "spark.sql.shuffle.partitions": "4",
    "spark.sql.sources.parallelPartitionDiscovery.parallelism": "2",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.memory": "2g",
}

Run = Callable[..., Exit]


def session(settings: Settings, app: str = "mltrust") -> SparkSession:
    """The session to work in: the one that is there, else a local one with Delta where the environment has a master.

    Raises PlatformError where there is no session and no Java to start one.
    """
    given = SparkSession.getActiveSession()
    spark = given if given is not None else _new_session(settings, app)
    for key, value in _SEMANTICS.items():
        with suppress(Exception):  # some platforms fix these and refuse to set them; the check below decides
            spark.conf.set(key, value)
    _require_delta(spark)
    if (zone := spark.conf.get("spark.sql.session.timeZone")) not in ("UTC", "Etc/UTC"):
        raise PlatformError(f"spark.sql.session.timeZone is {zone!r}, expected UTC: every window is a UTC window")
    return spark


def _new_session(settings: Settings, app: str) -> SparkSession:
    builder = SparkSession.builder.appName(app)
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ  # spark-submit has started the JVM and chosen master and JARs
    if settings.master is None or submitted:
        for key, value in settings.spark.items():
            builder = builder.config(key, value)
        return builder.getOrCreate()
    _require_java()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    with resources.as_file(resources.files("mltrust") / "ivysettings.xml") as ivy:
        options = {
            **_DELTA,
            **_SEMANTICS,
            **_SMALL_TABLES,
            "spark.jars.packages": ",".join([DELTA_PACKAGE] + [KAFKA_PACKAGE] * (settings.ingest.kafka is not None)),
            "spark.jars.ivySettings": str(ivy),
            "spark.sql.warehouse.dir": str(Path(settings.root, "warehouse").absolute()),
            **settings.spark,
        }
        builder = builder.master(settings.master)
        for key, value in options.items():
            builder = builder.config(key, value)
        spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")  # our own local session is never a Connect one
    return spark


def _require_delta(spark: SparkSession) -> None:
    """Databricks has Delta of its own, and a Connect server does not tell; anyone else must have configured it."""
    if "DATABRICKS_RUNTIME_VERSION" in os.environ or "connect" in type(spark).__module__:
        return
    if "delta" not in (spark.conf.get("spark.sql.extensions", "") or "").lower():
        raise PlatformError(
            "this Spark session has no Delta; expected spark-submit --properties-file conf/spark-defaults.conf, "
            "or an environment with a master"
        )


def _require_java() -> None:
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home, "bin", "java")) if home else shutil.which("java")
    try:
        found = subprocess.run([java or "java", "-version"], capture_output=True, text=True, check=True).stderr
    except (OSError, subprocess.CalledProcessError):
        raise PlatformError("no Java found (JAVA_HOME or PATH); Spark needs Java 17 or 21") from None
    if not any(f'version "{major}' in found for major in ("17", "21")):
        raise PlatformError(f"Java is {found.splitlines()[0]}, expected Java 17 or 21")


def lakehouse(spark: SparkSession, conf: Conf) -> Lakehouse:
    """The tables of the conf's log."""
    settings = conf.settings
    return Lakehouse(
        spark,
        conf.contract,
        root=settings.root,
        catalog=settings.catalog,
        metric_columns=conf.columns,
        keep_days={"audit": settings.retention.audit_days, "rebuild": settings.retention.rebuild_days},
    )


class Tracked:
    """A job's MLflow run, and what every result row says of its origin."""

    def __init__(self, run: tracking.Run, name: str, conf: Conf, as_of: datetime, inputs: Versions) -> None:
        self.run, self._name, self._inputs = run, name, inputs
        self.stamp: dict[str, object] = {
            "run_id": run.run_id,
            "conf_hash": conf.conf_hash,
            "as_of": as_of,
            "input_versions": inputs,
            "written_at": datetime.now(UTC),
        }

    def stamped(self, rows: DataFrame) -> DataFrame:
        """`rows` with the stamp in columns of its own, for results that the driver does not hold."""
        columns = {name: F.lit(value) for name, value in self.stamp.items() if name != "input_versions"}
        pairs = (F.lit(part) for pair in self._inputs.items() for part in pair)
        return rows.withColumns(columns | {"input_versions": F.create_map(*pairs)})

    def conclude(self, verdict: Verdict, words: str) -> Exit:
        """Says the verdict in the run's name and tags and first in its description; returns the exit code."""
        self.run.rename(f"{self._name}: {verdict}")
        self.run.tags({"verdict": verdict})
        self.run.description(f"**{verdict}**: {words}")
        log.info("%s: %s", verdict, words.splitlines()[0])
        return Exit.of(verdict)


@contextmanager
def tracked(job: str, conf: Conf, as_of: datetime, lake: Lakehouse, inputs: Versions) -> Iterator[Tracked]:
    """The job's MLflow run: what it was told and what it read; the job adds what it found."""
    to = conf.settings.tracking
    subject = conf.path.stem
    tags = {
        "job": job,
        "log": conf.log,
        "subject": subject,
        "conf_hash": conf.conf_hash,
        **({} if conf.experiment is None else {"experiment": conf.experiment.experiment_id}),
        **{f"version.{name}": str(version) for name, version in inputs.items()},
    }
    server = tracking.Server(to.uri, to.artifacts, to.experiment)
    name = f"{job} {subject}"
    with tracking.run(name, server, tags) as run:
        run.params({"config": conf.path.name, "env": conf.env, "as_of": as_of.isoformat()})
        run.text(conf.resolved, "conf.yaml")
        for table, version in inputs.items():
            run.dataset(lake.path(table), version, table)
        yield Tracked(run, name, conf, as_of, inputs)


class Built(NamedTuple):
    """What the unit tables hold of an experiment, or of everyone, as their commits say.

    The days from `since` on and before `as_of` are there; `units_hash` names the conf that shaped them.
    """

    experiment_id: str
    as_of: datetime
    units_hash: str
    input_versions: Versions
    since: date
    left_out: dict[str, int]

    def metadata(self) -> dict[str, object]:
        return self._asdict() | {"as_of": self.as_of.isoformat(), "since": self.since.isoformat()}


def built(lake: Lakehouse, conf: Conf) -> Built | None:
    """The last build of the experiment's unit tables, None where there is none that this conf could have made."""
    experiment_id = conf.the_experiment().experiment_id
    found = [lake.metadata(name, experiment_id=experiment_id) for name in ("unit_days", "exposures")]
    if not found[0] or found[0] != found[1] or found[0]["units_hash"] != conf.units_hash:
        return None
    return _built(found[0])


def built_past(lake: Lakehouse, conf: Conf) -> Built | None:
    """The last build of everyone's days, None where there is none that reaches back far enough for the experiment."""
    found = lake.metadata("unit_days", experiment_id=EVERYONE)
    if not found or found["units_hash"] != conf.columns_hash:
        return None
    last = _built(found)
    return last if last.since <= conf.the_experiment().past_since else None


def _built(metadata: Mapping[str, Any]) -> Built:
    times = {"as_of": datetime.fromisoformat(metadata["as_of"]), "since": date.fromisoformat(metadata["since"])}
    return Built(**{**metadata, **times})


def units_built(lake: Lakehouse, conf: Conf, as_of: datetime) -> Versions:
    """The versions of the unit tables of an experiment and of what they were built from.

    Raises DataError where they are missing, end before as_of, or were built by another conf.
    """
    experiment = conf.the_experiment()
    experiment_id = experiment.experiment_id
    metadata = lake.metadata("unit_days", experiment_id=experiment_id)
    again = f"run build_units --config {conf.path} --as-of {as_of:%Y-%m-%dT%H:%MZ}"
    if not metadata:
        raise DataError(f"unit_days holds nothing of experiment {experiment_id!r}; {again}")
    if lake.metadata("exposures", experiment_id=experiment_id) != metadata:
        raise DataError(f"exposures and unit_days of {experiment_id!r} are not of one build; {again}")
    last = _built(metadata)
    if last.as_of < as_of:
        raise DataError(f"unit_days of {experiment_id!r} ends at {last.as_of}, expected {as_of} or later; {again}")
    if last.units_hash != conf.units_hash:
        raise DataError(f"unit, phases, buckets, slices or metric columns changed since unit_days was built; {again}")
    if experiment.pre_days is not None:
        past = built_past(lake, conf)
        if past is None or past.as_of < as_of:
            raise DataError(
                f"the past of units is not in unit_days from {experiment.past_since} to {as_of:%Y-%m-%d}; {again}"
            )
    return {**lake.versions("exposures", "unit_days"), **last.input_versions}


def parse_as_of(text: str) -> datetime:
    """The UTC midnight in ISO 8601 that `text` names; ConfError for anything else."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfError(f"--as-of {text}: expected a UTC midnight, as 2026-11-23T00:00Z") from None
    if moment.tzinfo is None or moment.astimezone(UTC).time() != datetime.min.time():
        raise ConfError(f"--as-of {text}: expected a UTC midnight with its offset, as 2026-11-23T00:00Z")
    return moment.astimezone(UTC)


def parse_moment(option: str, text: str) -> datetime:
    """The UTC time in ISO 8601 that `text` names; ConfError for anything else."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfError(f"{option} {text}: expected a time, as 2026-11-23T10:30Z") from None
    if moment.tzinfo is None:
        raise ConfError(f"{option} {text}: expected a time with its offset, as 2026-11-23T10:30Z")
    return moment.astimezone(UTC)


def parse_seconds(option: str, text: str) -> float:
    """A positive number of seconds; ConfError for anything else."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = nan
    if not 0 < seconds < inf:
        raise ConfError(f"{option} {text}: expected a number of seconds above 0")
    return seconds


_COMMON = ("config", "env", "as_of")


def _arguments(
    job: str,
    description: str | None,
    argv: Sequence[str] | None,
    flags: Mapping[str, str],
    options: Mapping[str, str],
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=job, description=description)
    parser.add_argument("--config", required=True, type=Path, help="conf file of the job's subject")
    parser.add_argument("--env", default="local", help="name of a file in conf/env/ (default: local)")
    parser.add_argument("--as-of", default=None, help="UTC midnight, as 2026-11-23T00:00Z (default: today's)")
    for flag, words in flags.items():
        parser.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=words)
    for option, words in options.items():
        parser.add_argument(option, default=argparse.SUPPRESS, help=words)
    return parser.parse_args(argv)


def main(
    run: Run,
    *,
    job: str,
    description: str | None,
    argv: Sequence[str] | None = None,
    flags: Mapping[str, str] | None = None,
    options: Mapping[str, str] | None = None,
    any_moment: bool = False,
) -> int:
    """Runs a job as a program: arguments, conf, session, exit code. An operator's mistake is one message and 2.

    A flag or an option (with a value) that is given is given to `run` too, as a keyword. With `any_moment` as_of is
    any time, by default now.
    """
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    log.setLevel(logging.INFO)
    given = _arguments(job, description, argv, flags or {}, options or {})
    try:
        now = datetime.now(UTC)
        default = now if any_moment else now.replace(hour=0, minute=0, second=0, microsecond=0)
        parse = partial(parse_moment, "--as-of") if any_moment else parse_as_of
        as_of = default if given.as_of is None else parse(given.as_of)
        conf = confs.load(given.config, given.env)
        told = {name: value for name, value in vars(given).items() if name not in _COMMON}
        exit_code = run(session(conf.settings, job), conf, as_of, **told)
    except MltrustError as error:
        print(f"{job}: {error}", file=sys.stderr)  # noqa: T201 - the one message that an operator reads
        return Exit.INVALID
    log.info("%s: exit %d (%s)", job, exit_code, exit_code.name.lower())
    return exit_code
