"""Runs what has not run yet and writes docs/calibration.md: `python -m tests.calibration --help`."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

from tests.calibration.jobs import ROOT, TOPICS, Job, again, all_jobs, do, done
from tests.calibration.page import broken, collected, page, unexplained

PAGE = ROOT / "docs" / "calibration.md"
BROKEN = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """4 where a promise is broken without a known reason, else 0."""
    parser = argparse.ArgumentParser(prog="python -m tests.calibration", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="times the number of runs (1: as promised)")
    parser.add_argument("--only", action="append", choices=TOPICS, metavar="TEST", help=f"of {', '.join(TOPICS)}")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--page-only", action="store_true", help="write the page from what has run")
    given = parser.parse_args(arguments)
    if not given.page_only:
        jobs = all_jobs(given.scale)
        topics = given.only or TOPICS
        waiting = [job for topic in topics for job in jobs if job.topic == topic and not done(job)]
        _do_all(waiting, given.processes)
        missed = [row for row in unexplained(collected(given.scale)) if row.piece.test in topics]
        repeated = [again(row.piece, row.tally.runs) for row in missed]
        _do_all([job for job in repeated if not done(job)], given.processes)
    results = collected(given.scale)
    if given.scale == 1:
        PAGE.write_text(page(results))
    else:
        print(page(results))
    found = broken(results)
    for line in found:
        print(f"promise broken: {line}", file=sys.stderr)
    return BROKEN if found else 0


def _do_all(jobs: Sequence[Job], processes: int) -> None:
    started = time.perf_counter()
    with ProcessPoolExecutor(processes) as pool:
        waiting = {pool.submit(do, job): job for job in jobs}
        for n, finished in enumerate(as_completed(waiting), 1):
            print(
                f"{time.perf_counter() - started:6.0f} s  {n:4} of {len(jobs)}  "
                f"{finished.result():6.1f} s  {waiting[finished].name}",
                flush=True,
            )


if __name__ == "__main__":
    # Matrices here are small: threads of BLAS would only stand in each other's way.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(main())
