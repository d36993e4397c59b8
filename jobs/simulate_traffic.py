"""Writes the landing files of a simulated service, registers its models, and says what is planted."""

import logging
import sys
from datetime import datetime

from pyspark.sql import SparkSession

from mltrust import conf as confs
from mltrust import runtime
from mltrust.conf import Conf
from mltrust.io import models as registry
from mltrust.simulate import landing, models, traffic, truth
from mltrust.simulate.models import Served, Trained
from mltrust.simulate.spec import Simulation
from mltrust.verdicts import Exit, Verdict

log = logging.getLogger("mltrust")


def run(spark: SparkSession, conf: Conf, as_of: datetime) -> Exit:
    """Simulates what conf/simulations/<name>.yaml says; the truth goes to `<root>/truth/<name>.json`."""
    simulation, _ = confs.read(Simulation, conf.path)
    folders, truth_file = (
        landing.folders(conf.settings, conf.log),
        truth.file(conf.settings.root, conf.path.stem),
    )
    landing.refuse_used(spark, folders)
    lake = runtime.lakehouse(spark, conf)
    with runtime.tracked("simulate_traffic", conf, as_of, lake, {}) as tracked:
        log.info("training on past requests of %d units", simulation.training_units)
        trained = models.trained(traffic.past(spark, simulation), simulation.seed)
        served = _registered(trained, simulation.model_name)
        log.info("writing the requests of %d units to %s", simulation.n_units, folders["records"])
        written = landing.write(spark, simulation, served, folders)
        truth.save(truth_file, simulation, written)
        tracked.run.metrics(
            {f"{stream}.{kind}": n for stream, kinds in written._asdict().items() for kind, n in kinds.items()}
        )
        tracked.run.table([row._asdict() for row in truth.planted(simulation)], "planted.json")
        n_records, n_outcomes = (sum(kinds.values()) for kinds in written)
        return tracked.conclude(Verdict.PASS, f"{n_records:,} lines of records, {n_outcomes:,} of outcomes")


def _registered(trained: Trained, name: str) -> dict[str, Served]:
    """The serving models under new versions, which the log names: an earlier one is never mistaken for them.

    The third one is registered too, for a replay to refuse it.
    """
    roles = {traffic.CHAMPION: trained.champion, traffic.CANDIDATE: trained.candidate}
    served = {
        role: Served(model, registry.register(model, name=name, alias=role, example=trained.example))
        for role, model in roles.items()
    }
    registry.register(trained.overfit, name=name, alias=traffic.OVERFIT, example=trained.example)
    return served


def main() -> int:
    """The job as a program; its exit code."""
    return runtime.main(run, job="simulate_traffic", description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
