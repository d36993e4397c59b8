"""docs/calibration.md: the table and what it says, from the results that there are."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from math import isnan, sqrt
from typing import NamedTuple

from scipy import stats

from mltrust.experiment.oddities import THRESHOLD_OF_GUARDRAILS
from mltrust.stats.skew import THRESHOLD
from tests.calibration import resampling, ship
from tests.calibration.bands import MIN_EVENTS, Row, judge
from tests.calibration.grid import PLANTED, REGISTRY, Piece, Tally
from tests.calibration.jobs import Job, Numbers, again, all_jobs, done, result
from tests.calibration.known import reason

_CHANCE = 0.999


class Results(NamedTuple):
    """What there is of all parts, and which of them have all their runs."""

    jobs: Sequence[Job]
    numbers: Mapping[str, Numbers]
    complete: Collection[str] = ()

    def of(self, topic: str) -> list[tuple[Job, Numbers]]:
        return [(job, self.numbers[job.name]) for job in self.jobs if job.topic == topic and job.name in self.numbers]


def collected(scale: float) -> Results:
    """The results that are kept; of a part that does not have the runs of this scale, with those that it has."""
    jobs = all_jobs(scale)
    found = {job.name: numbers for job in jobs if (numbers := result(job)) is not None}
    return Results(jobs, found, {job.name for job in jobs if done(job)})


def rows_of(results: Results) -> list[Row]:
    """The rows of all tests that have run, in the order of the registry."""
    found = []
    for test in REGISTRY.values():
        kept = results.numbers
        found += [
            judge(test, piece, Tally(**{name: int(n) for name, n in kept[piece.name].items()}))
            for piece in test.pieces()
            if piece.name in kept
        ]
    return found


def unexplained(results: Results) -> list[Row]:
    """The rows that miss their band and are not known to."""
    return [row for row in rows_of(results) if row.broken and not reason(row)]


def second(row: Row) -> Row | None:
    """The row of the same piece run again; None where it was not."""
    numbers = result(again(row.piece, row.tally.runs))
    if numbers is None:
        return None
    return judge(REGISTRY[row.piece.test], row.piece, Tally(**{name: int(n) for name, n in numbers.items()}))


def broken(results: Results) -> list[str]:
    """What misses its band, is not known to, and does so again: a line each."""
    rows = [
        f"{row.piece.name}: {', '.join(row.broken)}"
        for row in unexplained(results)
        if (repeated := second(row)) is None or repeated.broken
    ]
    errors = [
        f"{job.name}: {method} {ratio:.3f}"
        for job, numbers in results.of("std_error")
        for method, ratio in numbers.items()
        if abs(ratio - 1) > error_band(method)
    ]
    decided = [
        f"ship, {scenario.name}, {inference}: {n_ship} of {n}"
        for scenario, inference, counts in shipped(results)
        if (n_ship := counts["ship"]) > stats.binom.ppf(_CHANCE, n := counts.total(), scenario.promised)
    ]
    return rows + errors + decided


def error_band(method: str) -> float:
    """How far the mean of the ratios of standard errors may be from 1: 99.9 % of what replicates leave to chance."""
    spread = 1 / sqrt(2 * (resampling.N_REPLICATES if method == "bootstrap" else resampling.N_BUCKETS) - 2)
    return float(stats.norm.isf((1 - _CHANCE) / 2)) * spread / sqrt(resampling.N_DATA_SETS)


def shipped(results: Results) -> list[tuple[ship.Scenario, str, Counter[str]]]:
    """Recommendations by scenario and inference."""
    total: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for job, numbers in results.of("ship"):
        name = job.name.removeprefix("ship, ").rsplit(", from", 1)[0]
        for key, n in numbers.items():
            inference, recommendation = key.split(": ")
            total[name, inference][recommendation] += int(n)
    return [
        (scenario, inference, total[scenario.name, inference])
        for scenario in ship.SCENARIOS
        for inference in ship.INFERENCES
        if total[scenario.name, inference]
    ]


def page(results: Results) -> str:
    """The whole page."""
    rows = rows_of(results)
    parts = [
        _introduction(results, rows),
        _promises(),
        _not_kept(rows),
        _of_ship(results),
        _of_errors(results),
        _of_flags(results),
        "## Tests",
        *(_of_test(name, [row for row in rows if row.piece.test == name]) for name in REGISTRY),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _introduction(results: Results, rows: Sequence[Row]) -> str:
    kept, not_kept = (sum(row.status == status for row in rows) for status in ("kept", "broken"))
    waiting = sorted({job.topic for job in results.jobs if job.name not in results.complete})
    unfinished = (
        f"\n\n**Not finished**: {len(results.complete):,} of {len(results.jobs):,} parts have all their runs. Others "
        f"have as many as their rows say, or are missing: {', '.join(waiting)}."
        if waiting
        else ""
    )
    return f"""# Calibration

How often the tests say something where there is nothing, by simulation with fixed seeds. `make calibrate` \
writes this page (within 2 hours on 2 cores); it goes on where it was interrupted, from `.calibration/`. `make \
calibrate OPTIONS="--only Welch"` does one test, `OPTIONS="--scale 0.01"` a hundredth of the runs, into a page \
that is printed and not written here. It ends with exit code 4 where a promise is broken that is not explained \
below.

{len(rows):,} rows: {kept:,} keep what was promised, {not_kept:,} do not, {len(rows) - kept - not_kept:,} had no \
promise. One in a thousand promised rates is outside of its band by chance alone.{unfinished}"""


def _promises() -> str:
    return f"""## What is promised

Rows have a promise where the skew criterion g is at most {THRESHOLD} (of guardrails, which are tests of one side, \
{THRESHOLD_OF_GUARDRAILS}) and every arm (or slice that is compared) \
has at least {MIN_EVENTS} units with and {MIN_EVENTS} without the event; tests over slices where slices have the \
50 units an arm from which they are compared. g is the law's own, of the values that are compared. `flagged: \
skewed`: g is above; the rate is printed without a promise.

- Rejections without an effect: at most 5.23 % at 0.05 and 0.14 % at 0.001; asymptotically exact tests on \
normal, Bernoulli and Poisson values also at least 4.77 % and 0.07 %, on lognormal ones and spenders at least \
4.5 % and 0.04 %. Conservative tests (exact, always-valid, discrete, families) have no lower end. \
The one-sided chance to beat has levels of 0.025 and 0.0005 and by the same reckoning 2.34 to 2.66 % (from 2.25 %) \
and 0.026 to 0.075 % (from 0.02 %).
- Intervals at 95 % hold the truth in 94.5 to 95.5 %, of heavy tails up to 96 %, of conservative tests in at \
least 94.5 %, of quantiles in 92.5 to 96 %. The truth is an effect of +{PLANTED:.0%}, absolute and relative \
(Fieller, where bounded).
- These limits are for 100,000 runs; for fewer they lie as much farther out as the band that holds 99.9 % of \
binomial counts is wider.

Units are split 50/50 or 90/10 in fixed numbers. Values: normal (1, sd 1), Bernoulli 5 %, Poisson (mean 1), \
lognormal (sd 1 of the logarithm), spenders (5 % of units have such a lognormal value, the others 0). Units with \
rows or covariates are drawn from 65,536 units that the law made once."""


def _not_kept(rows: Sequence[Row]) -> str:
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.broken:
            repeated = None if reason(row) else second(row)
            within = repeated is not None and not repeated.broken
            found[reason(row) or (_WITHIN if within else "**Not explained**")].append(_missed(row, repeated))
    if not found:
        return ""
    parts = ["## What does not keep its promise"]
    for why, lines in found.items():
        parts += [why, "\n".join(lines)]
    return "\n\n".join(parts)


_WITHIN = (
    "Within the band when run again: what misses and is not explained is run four times as often with another seed. "
    "A rate that is a little off its level is near the edge of its band, and now and then beyond it."
)


def _missed(row: Row, repeated: Row | None) -> str:
    rates = ", ".join(f"{_value(row, name)} ({name})" for name in row.broken)
    if repeated is None:
        return f"- {row.piece.name}: {rates}"
    others = ", ".join(_value(repeated, name) for name in row.broken)
    return f"- {row.piece.name}: {rates}; {others} of {repeated.tally.runs:,} other runs"


def _value(row: Row, name: str) -> str:
    if name.startswith("rate"):
        levels = REGISTRY[row.piece.test].levels
        return _percent(row.rate if name.endswith(f"{levels[0]:g}") else row.rate_far)
    return _percent(row.coverage if name == "coverage" else row.rel_coverage)


def _of_ship(results: Results) -> str:
    found = shipped(results)
    if not found:
        return ""
    lines = []
    for scenario, inference, counts in found:
        n = counts.total()
        low, high = stats.binomtest(counts["ship"], n).proportion_ci(method="exact")
        shares = [f"{counts[each] / n:.2%}" for each in ("ship", "do not ship", "keep running", "invalid")]
        interval = f"{low:.2%} to {high:.2%}"
        lines.append(
            [scenario.name, inference, shares[0], interval, f"{scenario.promised:.1%}", *shares[1:], f"{n:,}"]
        )
    header = [
        "truth",
        "inference",
        "P(ship)",
        "95 % interval",
        "at most",
        "do not ship",
        "keep running",
        "invalid",
        "runs",
    ]
    return f"""## The ship rule's own error

Whole experiments through checks, effects and recommendation: {ship.N_UNITS:,} units of three devices over \
{ship.N_DAYS} days, a goal (proportion of 10 %) and a guardrail (ratio over clustered requests, margin \
{ship.MARGIN:.0%}), slices by device, read after {" and ".join(map(str, ship.READ_AFTER))} days until it is \
not to keep running. Without an effect a ship is a goal that errs on its good side, alpha/2; \
with harm exactly at the margin of the guardrail it is a guardrail that passes, alpha. `invalid` is a check that \
failed by chance.

{_table(header, lines)}"""


def _of_errors(results: Results) -> str:
    found = results.of("std_error")
    if not found:
        return ""
    lines = [
        [
            *job.name.removeprefix("std_error, ").split(", "),
            f"{numbers['bootstrap']:.3f}",
            f"{numbers['jackknife']:.3f}",
        ]
        for job, numbers in found
    ]
    return f"""## Standard errors by resampling

At 50,000 units, those of the mean of clustered rows over the delta method's: the mean over \
{resampling.N_DATA_SETS} data sets. 200 replicates leave ±{error_band("bootstrap"):.3f} to chance, 64 buckets \
±{error_band("jackknife"):.3f}.

{_table(["split", "values", "bootstrap", "jackknife"], lines)}"""


def _of_flags(results: Results) -> str:
    found = results.of("skew flag")
    if not found:
        return ""
    lines = []
    for job, numbers in found:
        _, split, law, *_ = job.name.split(", ")
        units = job.name.rsplit(", ", 1)[1].removesuffix(" units")
        piece = Piece("Welch", split, law, int(units.replace(",", "")))
        g = REGISTRY["Welch"].size(piece).g
        lines.append([split, law, units, f"{g:.3f}", f"{numbers['flagged'] / numbers['runs']:.0%}"])
    return f"""## The skew flag

g of the law, and the share of samples in which the flag (g above {THRESHOLD}, from the sample's skewness) is up.

{_table(["split", "values", "units", "g", "flag up"], lines)}"""


def _of_test(name: str, rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    test = REGISTRY[name]
    far, near = test.levels[1], test.levels[0]
    has_law, covers = bool(test.laws), any(row.tally.intervals for row in rows)
    relative = any(row.tally.rel_intervals for row in rows)
    header = ["split", *(["values"] if has_law else []), "units", *(["g"] if has_law else [])]
    header += [f"rate at {near:g}", f"rate at {far:g}"]
    header += (["coverage"] if covers else []) + (["relative"] if relative else []) + ["runs", "promise"]
    lines = []
    for row in rows:
        line = [row.piece.split, *([row.piece.law] if has_law else []), f"{row.piece.units:,}"]
        line += [f"{row.size.g:.3f}"] if has_law else []
        line += [_percent(row.rate), _percent(row.rate_far)]
        line += ([_percent(row.coverage)] if covers else []) + ([_percent(row.rel_coverage)] if relative else [])
        lines.append([*line, f"{row.tally.runs:,}", _status(row)])
    kinds = {"exact": "Asymptotically exact.", "conservative": "Conservative.", "quantile": "Promises coverage only."}
    return f"### {name}\n\n{test.says} {kinds[test.kind]}\n\n{_table(header, lines)}"


def _status(row: Row) -> str:
    return f"**not kept**: {', '.join(row.broken)}" if row.broken else row.status


def _percent(share: float) -> str:
    return "" if isnan(share) else f"{share:.3%}" if share < 0.005 else f"{share:.2%}"


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
