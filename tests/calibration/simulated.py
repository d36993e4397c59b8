"""Whole simulated experiments read in memory: by the demo's truth, or clean ones, for consecutive seeds.

    python -m tests.calibration.simulated --clean 20     # no effect planted: what is claimed nevertheless
    python -m tests.calibration.simulated --demo 40 41   # the demo's plants for these seeds: what is missed or alarms

Ingest and tables are left out, as they are tested elsewhere: the same expressions make traffic, units, states and
readout as the jobs do.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from scipy import stats

from mltrust import conf, runtime
from mltrust.conf import Conf
from mltrust.experiment.readout import Readout, readout
from mltrust.simulate.comparison import Found, compare, unplanted
from mltrust.simulate.spec import Plant, Simulation
from mltrust.simulate.traffic import instant, live, purchases, served
from mltrust.simulate.truth import planted
from mltrust.simulate.wire import LATEST_OUTCOME_DAYS
from mltrust.spark import experiments, exposure, outcome, units
from mltrust.verdicts import Verdict

ROOT = Path(__file__).parents[2]
FEATURES = ("device", "region")


def log_of(rows: DataFrame, simulation: Simulation) -> DataFrame:
    """Served rows as the columns of the log that units are made of."""
    when = instant(F.col("day"), simulation)
    return rows.select(
        "request_id",
        F.lit("").alias("item_id"),
        "unit_id",
        when.alias("event_time"),
        F.to_date(when).alias("event_date"),
        F.lit("m").alias("model_name"),
        F.col("role").alias("model_version"),
        *("traffic", "status", "latency_ms", "experiments"),
        F.lit(0.5).alias("prediction_score"),
        F.struct(*FEATURES).alias("features"),
    )


def outcomes_of(rows: DataFrame, simulation: Simulation) -> DataFrame:
    """Purchases, as outcomes that follow their request at once."""
    when = instant(F.col("day") + F.lit(1e-3), simulation)
    return purchases(rows).select(
        F.concat_ws("-", "request_id", F.lit("purchase")).alias("outcome_id"),
        F.lit(0).cast("bigint").alias("revision"),
        "request_id",
        F.lit(None).cast("string").alias("item_id"),
        F.lit(None).cast("string").alias("unit_id"),
        F.lit("purchase").alias("name"),
        F.col("price").alias("value"),
        when.alias("event_time"),
        F.to_date(when).alias("event_date"),
    )


def readouts(spark: SparkSession, simulation: Simulation, confs: Sequence[Conf]) -> Iterator[tuple[str, Readout]]:
    """The readout of every experiment of a simulation, when the last outcome has come."""
    over = simulation.start + timedelta(days=simulation.days + LATEST_OUTCOME_DAYS)
    as_of = datetime.combine(over, time(), UTC)
    rows = served(live(spark, simulation), simulation).localCheckpoint()
    log, outcomes = log_of(rows, simulation), outcomes_of(rows, simulation)
    production = exposure.production(log, as_of)
    current = outcome.current(outcomes, outcome.corrected(outcomes), as_of)
    exposures = {
        each.the_experiment().experiment_id: exposure.found(
            exposure.candidates(production, each.the_experiment()), each.the_experiment()
        ).localCheckpoint()
        for each in confs
    }
    for each in confs:
        experiment, columns = each.the_experiment(), each.columns
        own = exposures[experiment.experiment_id]
        everyone = units.everyone(experiment, experiment.past_since)
        days = [
            units.unit_days(
                units.counted(production, exposed, of),
                outcome.counted(current, outcome.resolved(current, production, of), exposed, of),
                of,
                columns,
            )
            for exposed, of in ((own, experiment), (None, everyone))
        ]
        others = [frame for name, frame in exposures.items() if name != experiment.experiment_id]
        overlapping = others[0] if others else None
        for frame in others[1:]:
            overlapping = frame if overlapping is None else overlapping.unionByName(frame)
        limits = each.settings.limits
        states = experiments.states(
            own,
            days[0].unionByName(days[1]),
            experiment,
            as_of,
            max_cells=limits.max_cells,
            max_values=limits.max_values,
            others=overlapping,
            histograms=columns.histograms,
        )
        yield experiment.experiment_id, readout(states, experiment, as_of.date())


def main() -> int:
    """Prints what was claimed; 4 where a clean experiment has a failed check, or a demo misses or alarms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clean", type=int, default=0, help="number of clean simulations, of consecutive seeds")
    parser.add_argument("--demo", type=int, nargs="*", default=[], help="seeds of the demo")
    parser.add_argument("--first", type=int, default=1, help="the first seed of the clean ones")
    given = parser.parse_args()
    demo, _ = conf.read(Simulation, ROOT / "conf/simulations/demo.yaml")
    confs = [conf.load(ROOT / f"conf/experiments/{name}.yaml", "local") for name in demo.experiments]
    spark = runtime.session(confs[0].settings, "simulated")
    failed = sum(_demo(spark, replace(demo, seed=seed), confs) for seed in given.demo)
    if given.clean:
        failed += _clean(spark, demo, confs, range(given.first, given.first + given.clean))
    return 4 if failed else 0


def _demo(spark: SparkSession, simulation: Simulation, confs: Sequence[Conf]) -> int:
    """How many planted truths of experiments are missed, and how many alarms were not planted."""
    effects, checks = [], []
    for name, found in readouts(spark, simulation, confs):
        effects += [row._asdict() | {"experiment_id": name} for row in found.effects]
        checks += [row._asdict() | {"experiment_id": name} for row in found.checks]
    truth = [row for row in planted(simulation) if row.experiment_id is not None]
    results = Found(effects, checks, {}, {})
    missed = [row for row in compare(truth, results) if not row.agrees]
    alarms = unplanted(truth, results)
    print(
        f"seed {simulation.seed}: {len(truth) - len(missed)} of {len(truth)} found, {len(alarms)} alarms", flush=True
    )
    for row in missed:
        print(f"  missed: {row.planted.subject} {row.planted.what}: {row.planted.expected}, found {row.found}")
    for words in alarms:
        print(f"  alarm: {words}")
    return len(missed) + len(alarms)


def _clean(spark: SparkSession, demo: Simulation, confs: Sequence[Conf], seeds: range) -> int:
    """How many checks failed in clean experiments of the demo's size, of consecutive seeds."""
    failed: list[str] = []
    warned: list[str] = []
    claims = dict.fromkeys(("overall", "slices"), 0)
    n = dict.fromkeys(claims, 0)
    recommended: dict[str, int] = {}
    for seed in seeds:
        nothing = dict.fromkeys(demo.experiments, Plant())
        clean = replace(demo, seed=seed, experiments=nothing, outages={}, drifts={})
        for name, found in readouts(spark, clean, confs[:1]):
            recommended[found.recommendation] = recommended.get(found.recommendation, 0) + 1
            for row in found.checks:
                if row.verdict is Verdict.BREACH:
                    words = f"{row.check} {row.metric} {row.slice_key} {row.slice_value}: {row.reason}"
                    (failed if row.decides else warned).append(f"seed {seed}, {name}: {words}")
            for row in found.effects:
                if row.role != "diagnostic" and row.pvalue == row.pvalue:
                    which = "overall" if row.overall else "slices"
                    n[which] += 1
                    claims[which] += row.pvalue <= row.alpha
        print(f"seed {seed}: {len(failed)} failed checks so far", flush=True)
    print(f"{len(seeds)} clean experiments of {demo.n_units:,} units: {len(failed)} failed checks; {recommended}")
    print("\n".join(failed))
    print(f"{len(warned)} warnings that decide nothing", *warned, sep="\n")
    for which, total in n.items():
        # Metrics and slices of one experiment are not independent: the bound is that of independent tests.
        low, high = stats.binom.interval(0.999, total, 0.05)
        print(f"{which}: {claims[which]} of {total} effects with p <= 0.05, expected {low:.0f} to {high:.0f}")
    return len(failed)


if __name__ == "__main__":
    raise SystemExit(main())
