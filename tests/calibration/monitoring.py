"""How often a monitor errs, what it finds, by simulation: `python -m tests.calibration.monitoring` (12 minutes)."""

import sys
import time
from collections.abc import Iterable
from typing import NamedTuple

from tests.calibration import live, monitored


class Month(NamedTuple):
    """Thirty clean days of fifty metrics in forty slices."""

    seed: int
    n_incidents: int
    n_tests: int
    incidents: list[str]


class Planted(NamedTuple):
    """What became of one fault: its incidents, and whether the leading contributor of the first is the fault."""

    name: str
    n_incidents: int
    is_right: bool
    buckets: int | None
    lead: str


class Decided(NamedTuple):
    """A live run: buckets from the first bad record to the decision, and whether its slice was named first."""

    fault: str
    buckets: int | None
    is_right: bool


def clean_months(seeds: Iterable[int], n_metrics: int) -> list[Month]:
    found = []
    chosen = monitored.metrics(n_metrics)
    for seed in seeds:
        run = monitored.judged(monitored.simulated(seed, chosen), monitored.monitor(chosen))
        names = [f"{each.metric} {each.slice} {each.detector} {each.score:.1f}" for each in run.opened]
        found.append(Month(seed, len(run.opened), run.n_tests, names))
        print(f"clean month {seed}: {len(run.opened)} incidents {names}", file=sys.stderr, flush=True)
    return found


def planted(name: str, fault: monitored.Fault, n_metrics: int, seed: int = 77) -> Planted:
    chosen = monitored.metrics(n_metrics)
    if fault.metric not in {each.name for each in chosen}:
        chosen = [*chosen, *(each for each in monitored.metrics(50) if each.name == fault.metric)]
    # Arms treble the series; only the fault of an arm needs them.
    panel = monitored.simulated(seed, chosen, fault, arms=bool(fault.arm))
    run = monitored.judged(panel, monitored.monitor(chosen, arms=bool(fault.arm)))
    if not run.opened:
        return Planted(name, 0, False, None, "")
    last = next(each for each in reversed(run.incidents) if each.incident_id == run.opened[0].incident_id)
    is_right = (last.metric, last.slice, last.arm) == (fault.metric, fault.slice, fault.arm)
    late = panel.index(run.opened[0].changed_at) - fault.at
    return Planted(name, len(run.opened), is_right, late, f"{last.metric} {last.slice} {last.arm}".strip())


def live_runs(seeds: Iterable[int], n_buckets: int) -> list[Decided]:
    found = []
    kinds: tuple[live.FaultKind, ...] = ("errors", "scores")
    for fault in kinds:
        for seed in seeds:
            run = live.watched(live.simulated(seed, n_buckets, fault))
            is_right = bool(run.incidents) and run.incidents[0].slice == live.HURT
            acted = run.acted
            late = None if acted is None else int((acted.decided_at - live.START) / live.BUCKET) - live.CLEAN_BUCKETS
            found.append(Decided(fault, late, is_right))
    return found


def main() -> int:
    started = time.perf_counter()
    months = clean_months(range(20), 50)
    counts = [each.n_incidents for each in months]
    print(f"20 clean months, 50 metrics x 40 slices, {months[0].n_tests:,} tests a bucket: "
          f"{sum(counts)} incidents in all, {max(counts)} in the worst month")  # fmt: skip
    faults = [planted(name, fault, 50) for name, fault in monitored.ten_faults().items()]
    for each in faults:
        print(f"{each.name:34} incidents {each.n_incidents}, after {each.buckets} buckets, named {each.lead}")
    print(f"right top contributor in {sum(each.is_right for each in faults)} of {len(faults)}")
    decided = live_runs(range(100), live.CLEAN_BUCKETS + 7)
    in_time = [each for each in decided if each.buckets is not None and each.buckets <= 6]
    right = sum(each.is_right for each in decided)
    last = max((each.buckets for each in in_time if each.buckets is not None), default=0)
    print(f"live: {len(in_time)} of {len(decided)} decided within 6 buckets, the last of them after {last}, "
          f"the hurt slice first in {right}")  # fmt: skip
    clean = [bool(live.watched(live.simulated(5000 + seed, 720)).incidents) for seed in range(200)]
    print(f"live: {len(clean) - sum(clean)} of {len(clean)} clean runs of two hours without an incident")
    print(f"{time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
