"""Exports a training set: logged features as they were, labels from what followed, nothing from after as_of."""

import sys
from datetime import datetime

from pyspark.sql import SparkSession

from mltrust import runtime
from mltrust.conf import Conf
from mltrust.report.training import markdown, metrics, why_not
from mltrust.spark import training
from mltrust.spark.logs import kept
from mltrust.verdicts import Exit, Verdict

TABLE = "training_sets"


def run(spark: SparkSession, conf: Conf, as_of: datetime) -> Exit:
    """Replaces the rows of this training set; inconclusive, and nothing replaced, where nothing can be learnt."""
    training_set, lake = conf.the_training_set(), runtime.lakehouse(spark, conf)
    mine = {"training_set_id": training_set.training_set_id}
    lake.require("inference_log", "outcomes", made_by="ingest_logs")
    lake.ensure(TABLE)
    inputs = lake.versions("inference_log", "outcomes")
    with runtime.tracked("export_training_set", conf, as_of, lake, inputs) as tracked:
        chosen = training_set.chosen(conf.contract.feature_types())
        log, outcomes = (lake.read(name, version) for name, version in inputs.items())
        rows = training.predictions(log, training_set, chosen, lake.read(TABLE).schema, as_of)
        with kept(training.labelled(rows, outcomes, training_set.label, as_of, since=training_set.start)) as labelled:
            found = training.summary(labelled, chosen)
            tracked.run.metrics(metrics(found))
            if (words := why_not(found, training_set, as_of)) is not None:
                return tracked.conclude(Verdict.INCONCLUSIVE, words)
            origin = {"run_id": tracked.run.run_id, "as_of": as_of.isoformat(), "input_versions": inputs}
            said = mine | origin | {"content_hash": found.content_hash, "n_rows": found.n_rows}
            lake.replace(tracked.stamped(training.exported(labelled, training_set)), TABLE, mine, said)
        version = lake.version_with(TABLE, run_id=tracked.run.run_id)
        tracked.run.tags({"content_hash": found.content_hash})
        tracked.run.params({"content_hash": found.content_hash, "training_sets_version": version})
        tracked.run.dataset(lake.path(TABLE), version, training_set.training_set_id, found.content_hash)
        return tracked.conclude(Verdict.PASS, markdown(found, training_set, as_of, lake.path(TABLE), version))


def main() -> int:
    """The job as a program; its exit code."""
    return runtime.main(run, job="export_training_set", description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
