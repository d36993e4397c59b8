"""The jobs as programs: arguments, exit codes, and spark-submit with executors of their own."""

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from unittest import mock

import pytest
from deltalake import DeltaTable

from mltrust import runtime
from tests.conftest import ROOT
from tests.jobs.conftest import copied_conf

JOBS = [path.stem for path in (ROOT / "jobs").glob("[a-z]*.py")]
CONFIG = str(ROOT / "conf/contracts/recommendations.yaml")


def run(*command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=500, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config", "nowhere.yaml"], "ingest_logs: nowhere.yaml: no such file; expected conf/contracts/<log>.yaml"),
        (["--config", CONFIG, "--env", "moon"], "expected one of dev, local, prod"),
        (["--config", CONFIG, "--as-of", "tomorrow"], "--as-of tomorrow: expected a UTC midnight"),
        (["--config", CONFIG, "--as-of", "2026-11-23T05:00Z"], "expected a UTC midnight"),
        (["--config", CONFIG, "--as-of", "2026-11-23T00:00"], "with its offset"),
        ([], "the following arguments are required: --config"),
    ],
)
def test_an_operators_mistake_is_one_message_and_exit_code_2(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = runtime.main(no_run, job="ingest_logs", description="", argv=arguments)
    except SystemExit as end:  # argparse's own
        code = end.code
    message = capsys.readouterr().err
    assert code == 2
    assert expected in message
    assert "Traceback" not in message


def no_run(*_: object) -> runtime.Exit:
    raise AssertionError("a job ran whose arguments are wrong")


def test_every_command_of_the_package_can_be_started(capsys: pytest.CaptureFixture[str]) -> None:
    commands = [each for each in entry_points(group="console_scripts") if each.value.startswith("mltrust")]
    assert {each.name for each in commands} == {"mltrust", *(f"mltrust-{name.replace('_', '-')}" for name in JOBS)}
    for each in commands:
        with mock.patch("sys.argv", [each.name, "--help"]), pytest.raises(SystemExit, match="0"):
            each.load()()
    assert "--as-of" in capsys.readouterr().out


def test_without_java_a_job_says_so(tmp_path: Path) -> None:
    found = run(
        sys.executable, "-m", "mltrust_jobs.ingest_logs", "--config", CONFIG, folder=tmp_path, JAVA_HOME="/none"
    )
    assert found.returncode == 2
    assert found.stderr.strip().endswith("no Java found (JAVA_HOME or PATH); Spark needs Java 17 or 21")


def test_without_java_make_says_so(tmp_path: Path) -> None:
    for target in ("demo", "test"):
        found = run("make", "-C", str(ROOT), target, folder=tmp_path, JAVA_HOME="/none")
        assert found.returncode == 2
        assert "mltrust needs Java 17 or 21 for Spark: no java found" in found.stderr


@pytest.mark.slow
def test_spark_submit_runs_the_zip_on_a_cluster_from_another_folder(tmp_path: Path) -> None:
    """Two executor processes; the zip stands before the installed package on their path."""
    archive = tmp_path / "mltrust.zip"
    subprocess.run([sys.executable, "-m", "zipfile", "-c", str(archive), "mltrust"], cwd=ROOT, check=True)
    conf = copied_conf(tmp_path, n_units=300)
    for job, config, expected in (
        ("simulate_traffic", "simulations/demo.yaml", 0),
        ("ingest_logs", "contracts/recommendations.yaml", 0),
        ("build_units", "experiments/button_color.yaml", 0),
        ("analyze_experiment", "experiments/button_color.yaml", 3),
    ):
        found = run(
            str(Path(sys.executable).with_name("spark-submit")),
            *("--master", "local-cluster[2,1,1536]", "--driver-memory", "1g"),
            *("--properties-file", str(ROOT / "conf/spark-defaults.conf")),
            *("--conf", "spark.executor.memory=1g", "--conf", "spark.sql.shuffle.partitions=2"),
            *("--conf", "spark.databricks.delta.snapshotPartitions=1"),
            *("--py-files", str(archive), str(ROOT / f"jobs/{job}.py")),
            *("--config", str(conf / config), "--env", "local", "--as-of", "2026-11-02T00:00Z"),
            folder=tmp_path,
            PYSPARK_PYTHON=sys.executable,
        )
        assert found.returncode == expected, found.stderr[-3000:]
    rows = DeltaTable(tmp_path / ".lakehouse/recommendations/experiment_effects").to_pyarrow_table()
    assert rows.num_rows > 0
