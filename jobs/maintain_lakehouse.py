"""Looks after the tables of a log: compacts and vacuums files, audits keys, purges what was erased.

With --erase-unit it removes everything of one unit, on legal request, and leaves a record of that.
"""

import sys
from datetime import datetime

from pyspark.sql import SparkSession

from mltrust import erasure, runtime, upkeep
from mltrust.conf import Conf
from mltrust.errors import ConfError
from mltrust.verdicts import Exit


def run(spark: SparkSession, conf: Conf, as_of: datetime, *, erase_unit: str | None = None) -> Exit:
    """Maintains the tables that are there; breach where a key is held twice. Or erases one unit."""
    if erase_unit is not None and not erase_unit.strip():
        raise ConfError("--erase-unit: given nothing, expected the id of a unit")
    lake = runtime.lakehouse(spark, conf)
    lake.require("inference_log", made_by="ingest_logs")
    lake.ensure("erasures", "maintenance")
    with runtime.tracked("maintain_lakehouse", conf, as_of, lake, {}) as tracked:
        if erase_unit is not None:
            return erasure.erase(lake, conf, erase_unit, tracked)
        return upkeep.maintain(lake, conf, as_of, tracked, erasure.purge(lake, conf, tracked))


def main() -> int:
    """The job as a program; its exit code."""
    options = {"--erase-unit": "remove everything of the unit with this id, and nothing else"}
    return runtime.main(run, job="maintain_lakehouse", description=__doc__, options=options)


if __name__ == "__main__":
    sys.exit(main())
