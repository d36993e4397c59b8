"""What an ingest run says of itself."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mltrust.verdicts import Verdict

_COUNTED = ("records", "accepted", "rejected", "duplicates", "heartbeats")


class Summary(NamedTuple):
    """The verdict of a run with its numbers and its words (Markdown)."""

    verdict: Verdict
    metrics: dict[str, float]
    markdown: str


def describe(sums: Sequence[Mapping[str, object]], max_reject_share: float) -> Summary:
    """What a run took in, from its sums by kind; breach where more than `max_reject_share` was rejected."""
    total: Counter[str] = Counter()
    metrics: dict[str, float] = {}
    lines = [
        "| kind | files | records | accepted | rejected | duplicates | heartbeats |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in sums:
        kind, counts = str(row["kind"]), {name: int(str(row[name])) for name in _COUNTED}
        total.update(counts)
        metrics |= {f"{kind}/{name}": float(n) for name, n in counts.items()}
        lines.append(f"| {kind} | {row['files']} | " + " | ".join(f"{n:,}" for n in counts.values()) + " |")
    n_records = total["records"] - total["heartbeats"]
    share = total["rejected"] / n_records if n_records else 0.0
    verdict = Verdict.BREACH if share > max_reject_share else Verdict.PASS
    said = f"{share:.2%} of {n_records:,} records rejected (limit {max_reject_share:.2%})."
    if not sums:
        said = "nothing new."
        lines = []
    return Summary(verdict, metrics | {"reject_share": share}, "\n".join([said, "", *lines]))
