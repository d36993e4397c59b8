"""Exports a replay set: past requests of the champion, scrubbed, with a content hash; or why they may not leave."""

import sys
from datetime import datetime

from pyspark.sql import SparkSession

from mltrust import runtime
from mltrust.conf import Conf, refuse
from mltrust.errors import ConfError
from mltrust.io import models, secrets
from mltrust.replay import masking
from mltrust.replay.plan import selection_id
from mltrust.report.replay import export_markdown, export_metrics, export_verdict
from mltrust.spark import replay_sets
from mltrust.spark.logs import kept
from mltrust.verdicts import Exit, Verdict

TABLE = "replay_sets"


def run(spark: SparkSession, conf: Conf, as_of: datetime) -> Exit:
    """Replaces the rows of this set; nothing is replaced where nothing is selected, or too much may not leave."""
    replay, lake = conf.the_replay(), runtime.lakehouse(spark, conf)
    if replay.select is None:
        raise ConfError(f"{conf.path}: its set is that of replay {replay.set_of!r}; export that")
    scrubbing, mine = masking.plan(conf.contract), {"replay_id": replay.replay_id}
    key = secrets.scrub_key(conf.settings.scrub_key) if scrubbing.of("pseudonym") else None
    key_id = None if key is None else key.key_id
    tables = ("inference_log", "outcomes") if replay.label is not None else ("inference_log",)
    lake.require(*tables, made_by="ingest_logs")
    lake.ensure(TABLE)
    inputs = lake.versions(*tables)
    with runtime.tracked("export_replay_set", conf, as_of, lake, inputs) as tracked:
        pair = models.resolved(replay)
        reads = {str(each): [name for name, *_ in each.inputs] for each in pair}
        by = replay.select.sample.by if replay.select.sample is not None else ()
        of_names = masking.by_scrubbed(scrubbing, replay.slices.attributes, by, "sample.by")
        refuse(conf.path, models.mismatches(pair, conf.contract) + masking.problems(scrubbing, reads) + of_names)
        read = {name: lake.read(name, version) for name, version in inputs.items()}
        rows = replay_sets.selected(read["inference_log"], replay, pair[0].version, as_of)
        rows = replay_sets.with_label(replay_sets.drawn(rows, replay), read.get("outcomes"), replay, as_of)
        scrubbed = replay_sets.scrubbed(rows, scrubbing, key, lake.read(TABLE).schema)
        with kept(scrubbed) as once:
            sized = replay_sets.with_group_size(once, scrubbing)
            found = replay_sets.summary(sized, scrubbing)
            tracked.run.metrics(export_metrics(found))
            verdict, words = export_verdict(found, replay, scrubbing)
            if verdict is not Verdict.PASS:
                return tracked.conclude(verdict, words)
            said = {
                **mine, "run_id": tracked.run.run_id, "as_of": as_of.isoformat(), "input_versions": inputs,
                "content_hash": found.content_hash, "n_rows": found.n_rows, "n_weights": found.n_weights,
                "key_id": key_id, "champion": str(pair[0]),
                "selection": selection_id(replay, conf.contract.scrub),
            }  # fmt: skip
            rows = replay_sets.exported(sized, scrubbing).withColumns(replay_sets.named(replay.replay_id))
            lake.replace(tracked.stamped(rows), TABLE, mine, said)
        version = lake.version_with(TABLE, run_id=tracked.run.run_id)
        tracked.run.tags({"content_hash": found.content_hash} | ({"key_id": key_id} if key_id else {}))
        tracked.run.dataset(lake.path(TABLE), version, replay.replay_id, found.content_hash)
        page = export_markdown(found, replay, scrubbing, key_id, lake.path(TABLE), version)
        return tracked.conclude(Verdict.PASS, page)


def main() -> int:
    """The job as a program; its exit code."""
    return runtime.main(run, job="export_replay_set", description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
