"""Seconds from the first bad record to the decision, live: `python -m tests.bench.live --runs 5`."""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.jobs import live

FAULTS: tuple[live.Fault, ...] = ("errors", "scores")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.live", description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--per-second", type=int, default=2000)
    given = parser.parse_args()
    sys.stdout.write(
        "| fault | decided | rolled back | recovered | slice named | incidents |\n|---|--:|--:|--:|---|--:|\n"
    )
    for at in range(given.runs):
        with TemporaryDirectory() as folder:
            place = live.Place(Path(folder) / "place")
            seen = live.run(place, place.land, FAULTS[at % 2], per_second=given.per_second, seed=at)
        numbers = (f"{each:.0f} s" if each is not None else "no" for each in seen[1:4])
        sys.stdout.write(
            f"| {seen.fault} | {' | '.join(numbers)} | {', '.join(seen.slices)} | {seen.n_incidents} |\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
