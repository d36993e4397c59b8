"""The command `mltrust`: the demo, which holds found against planted, and what is done with contracts."""

import argparse
import os
import runpy
import secrets
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from pyspark.sql import functions as F

from mltrust import conf as confs
from mltrust import runtime
from mltrust.compatibility import MODES, Compatibility, incompatibilities
from mltrust.conf import Conf
from mltrust.contract import Contract
from mltrust.errors import ConfError, DataError, MltrustError
from mltrust.formats.generated import files
from mltrust.simulate.comparison import Compared, Found, compare, unplanted, verdict_of
from mltrust.simulate.spec import Simulation
from mltrust.simulate.truth import BETTER, OVERFIT, Planted, planted
from mltrust.verdicts import Exit

#: What a demo leaves in its root.
_DEMO_FILES = ("artifacts", "landing", "mlflow.db", "recommendations", "truth", "warehouse")
AS_OF = "2026-11-02T00:00Z"
#: The experiment that begins when the simulated days are over.
_PLANNED = "ranker_v3"
#: Tables of the records and of the outcomes, by the name that the simulation has for them.
_STREAMS = {"records": "inference_log", "outcomes": "outcomes"}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mltrust", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo_parser = commands.add_parser("demo", help="simulate, run every job, compare planted with found")
    demo_parser.add_argument("--conf", type=Path, default=Path("conf"), help="conf folder (default: conf)")
    _contract_parsers(commands.add_parser("contract", help="generate files from a contract, compare two"))
    given = parser.parse_args(argv)
    try:
        if given.command == "demo":
            return demo(given.conf)
        if given.action == "generate":
            return generate(given.contract, check=given.check)
        return compare_contracts(given.old, given.new, given.mode)
    except MltrustError as error:
        print(f"mltrust: {error}", file=sys.stderr)
        return Exit.INVALID


def _contract_parsers(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True)
    words = "write <log>.json, <log>.avsc, <log>.proto and outcomes.avsc beside the contract"
    generating = actions.add_parser("generate", help=words, description=words)
    generating.add_argument("contract", type=Path, help="conf/contracts/<log>.yaml")
    generating.add_argument("--check", action="store_true", help="write nothing; 4 where a file is not up to date")
    words = "4 where the new contract breaks readers, with the field, the rule and what to do instead"
    comparing = actions.add_parser("compare", help=words, description=words)
    comparing.add_argument("old", type=Path, help="the contract that is in use")
    comparing.add_argument("new", type=Path, help="the contract that shall take its place")
    comparing.add_argument("--mode", choices=MODES, default="backward", help="default: backward")


def generate(path: Path, *, check: bool) -> int:
    """Writes what is made from a contract, or says which files differ from it."""
    contract, _ = confs.read(Contract, path)
    if contract.log != path.stem:
        raise ConfError(
            f"{path}: log is {contract.log!r}, expected {path.stem!r} as the file: its files bear that name"
        )
    stale = []
    for name, text in files(contract).items():
        file = path.with_name(name)
        try:
            if check and (not file.is_file() or file.read_bytes() != text.encode()):
                stale.append(file)
            elif not check:
                file.write_text(text, encoding="utf-8")
                print(f"wrote {file}")
        except OSError as error:
            raise ConfError(f"{file}: cannot be {'read' if check else 'written'}: {error.strerror}") from None
    proto = path.with_suffix(".proto")
    if proto.name not in files(contract) and proto.exists():
        stale.append(proto)
    for file in stale:
        print(f"{file}: not what {path} says; run mltrust contract generate {path}", file=sys.stderr)
    return Exit.BREACH if stale else Exit.PASS


def compare_contracts(old: Path, new: Path, mode: Compatibility) -> int:
    """Names every change that breaks readers; 4 where there is one."""
    found = incompatibilities(confs.read(Contract, old)[0], confs.read(Contract, new)[0], mode)
    for each in found:
        print(f"{new}: {each}", file=sys.stderr)
    print(f"{new}: {'not ' if found else ''}{mode} compatible with {old}")
    return Exit.BREACH if found else Exit.PASS


class _Step(NamedTuple):
    job: str
    config: Path
    expected: Exit
    as_of: str = AS_OF


def demo(folder: Path) -> int:
    """0 where every planted truth was found and nothing else; 4 where not; the exit code of a job that died."""
    simulated = folder / "simulations" / "demo.yaml"
    conf = confs.load(simulated, "local")
    simulation, _ = confs.read(Simulation, simulated)
    _begin_anew(Path(conf.settings.root))
    # A secret of this demo alone: nobody needs its pseudonyms afterwards.
    os.environ.setdefault("MLTRUST_SCRUB_KEY", secrets.token_hex(32))
    truths, started = planted(simulation), time.monotonic()
    # Every table of a demo is young and read whole: choosing files by their statistics, 0.4 s a query, saves nothing.
    runtime.session(conf.settings).conf.set("spark.databricks.delta.stats.skipping", "false")
    for step in _steps(folder, simulated, simulation, truths):
        exit_code = _run(step)
        if exit_code in (1, Exit.INVALID):
            return exit_code
        if exit_code != step.expected:
            print(f"    expected exit {step.expected:d}; the table below says why")
    compared = compare(truths, found := _read(conf))
    alarms = unplanted(truths, found)
    _print_table(compared)
    _print_end(compared, alarms, time.monotonic() - started)
    return Exit.PASS if all(each.agrees for each in compared) and not alarms else Exit.BREACH


def _begin_anew(root: Path) -> None:
    """Removes what an earlier demo left, and nothing else."""
    if not root.exists() or not any(root.iterdir()):
        return
    strange = [each for each in root.iterdir() if each.name.partition("-")[0] not in _DEMO_FILES]
    strange += [each for each in (root / "landing").glob("*") if each.name not in _DEMO_FILES]
    if strange or not (root / "truth" / "demo.json").is_file():
        raise DataError(
            f"{root} holds more than a demo ({', '.join(map(str, strange)) or 'no truth/demo.json'}); move it away"
        )
    shutil.rmtree(root)


def _steps(folder: Path, simulated: Path, simulation: Simulation, truths: Sequence[Planted]) -> list[_Step]:
    contract = folder / "contracts" / f"{simulation.log}.yaml"
    # The health of the log is that of the day that is just over.
    over = f"{simulation.start + timedelta(days=simulation.days)}T00:00Z"
    steps = [
        _Step("simulate_traffic", simulated, Exit.PASS),
        _Step("ingest_logs", contract, Exit.PASS),
        _Step("report_log_health", contract, Exit.PASS, over),
        _Step("export_training_set", folder / "training_sets" / "conversion.yaml", Exit.PASS),
    ]
    for name in simulation.experiments:
        config = folder / "experiments" / f"{name}.yaml"
        steps.append(_Step("build_units", config, Exit.PASS))
        steps.append(_Step("analyze_experiment", config, Exit.of(verdict_of(name, truths))))
    steps.append(_Step("plan_experiment", folder / "experiments" / f"{_PLANNED}.yaml", Exit.PASS, over))
    drifts = Exit.BREACH if simulation.drifts else Exit.PASS
    watched = folder / "monitors" / "recommender.yaml"
    steps.append(_Step("detect_drift", watched, drifts, over))
    is_open = Exit.BREACH if simulation.drifts or simulation.outages else Exit.PASS
    # An hour later, when what detect_drift found has arrived.
    steps.append(_Step("monitor_metrics", watched, is_open, over.replace("T00:00Z", "T01:10Z")))
    better, overfit = (folder / "replays" / f"{name}.yaml" for name in (BETTER, OVERFIT))
    steps += [
        _Step("export_replay_set", better, Exit.PASS),
        _Step("replay_traffic", better, Exit.PASS),
        _Step("replay_traffic", overfit, Exit.BREACH),
        _Step("compare_shadow", better, Exit.PASS),
    ]
    return [*steps, _Step("maintain_lakehouse", contract, Exit.PASS)]


def _run(step: _Step) -> int:
    """Runs a job as its program runs, in this process, so that all share one Spark session."""
    arguments = ["--config", str(step.config), "--env", "local", "--as-of", step.as_of]
    print(f"$ python jobs/{step.job}.py {' '.join(arguments)}", flush=True)
    before, started, exit_code = sys.argv, time.monotonic(), 0
    sys.argv = [step.job, *arguments]
    try:
        runpy.run_module(f"mltrust_jobs.{step.job}", run_name="__main__")
    except SystemExit as end:
        exit_code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.argv = before
    print(f"    exit {exit_code:d} after {time.monotonic() - started:.1f} s", flush=True)
    return exit_code


def _read(conf: Conf) -> Found:
    lake = runtime.lakehouse(runtime.session(conf.settings), conf)
    rows = {
        name: [row.asDict() for row in lake.read(name).collect()]
        for name in ("experiment_effects", "experiment_checks", "replay_findings", "incidents", "decisions")
    }
    is_of_all = (F.col("slice_key") == "") & (F.col("reference") == "fixed") & F.col("column").startswith("features.")
    drift = [row.asDict() for row in lake.read("drift_findings").where(is_of_all).collect()]
    rejects: dict[tuple[str, str], int] = {}
    for stream, table in _STREAMS.items():
        for row in lake.read(f"{table}_rejects").groupBy("reason_code").count().collect():
            rejects[stream, row["reason_code"]] = row["count"]
    books = lake.read("ingest_batches").groupBy("kind").agg(F.sum("duplicates").alias("n")).collect()
    by_table = {row["kind"]: row["n"] for row in books}
    duplicates = {stream: by_table.get(table, 0) for stream, table in _STREAMS.items()}
    found = (rows["experiment_effects"], rows["experiment_checks"], drift, rejects, duplicates)
    newest = {row["incident_id"]: row for row in sorted(rows["incidents"], key=lambda row: row["revision"])}
    return Found(
        *found, replays=rows["replay_findings"], incidents=list(newest.values()), decisions=rows["decisions"]
    )


def _print_table(compared: Sequence[Compared]) -> None:
    rows = [("subject", "looked at", "planted", "expected", "found", "")]
    rows += [
        (row.subject, row.what, row.words, row.expected, found, "ok" if each.agrees else "MISSED")
        for each in compared
        for row, found in [each]
    ]
    widths = [max(len(row[at]) for row in rows) for at in range(6)]
    print()
    for number, row in enumerate(rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths).rstrip())


def _print_end(compared: Sequence[Compared], alarms: Sequence[str], seconds: float) -> None:
    missed = sum(not each.agrees for each in compared)
    print(f"\n{len(compared) - missed} of {len(compared)} planted truths found, {missed} missed; ", end="")
    print(f"{len(alarms)} alarms that were not planted; {seconds:.0f} s in all.")
    for alarm in alarms:
        print(f"  not planted: {alarm}")
    print(
        "\nWhere to look:\n"
        "  make ui                              the runs, at http://127.0.0.1:5000: verdict, readout, forest plot\n"
        "  notebooks/experiment_readout.ipynb   the same from the Delta tables\n"
        "  .lakehouse/recommendations/_monitor/recommender/index.html   the monitor's page\n"
        "  .lakehouse/recommendations/          the tables; .lakehouse/truth/demo.json what was planted"
    )


if __name__ == "__main__":
    sys.exit(main())
