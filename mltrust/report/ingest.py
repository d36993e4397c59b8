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


def describe(books: Sequence[Mapping[str, object]], max_reject_share: float) -> Summary:
    """Sums up the rows of ingest_batches of one run; breach where more than `max_reject_share` was rejected."""
    total: Counter[str] = Counter()
    metrics: dict[str, float] = {}
    lines = [
        "| kind | files | records | accepted | rejected | duplicates | heartbeats |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for kind in sorted({str(book["kind"]) for book in books}):
        own = [book for book in books if book["kind"] == kind]
        sums = {name: sum(int(str(book[name])) for book in own) for name in _COUNTED}
        total.update(sums)
        metrics |= {f"{kind}/{name}": float(n) for name, n in sums.items()}
        lines.append(f"| {kind} | {len(own)} | " + " | ".join(f"{n:,}" for n in sums.values()) + " |")
    n_records = total["records"] - total["heartbeats"]
    share = total["rejected"] / n_records if n_records else 0.0
    verdict = Verdict.BREACH if share > max_reject_share else Verdict.PASS
    said = f"{share:.2%} of {n_records:,} records rejected (limit {max_reject_share:.2%})."
    if not books:
        said = "nothing new in the landing folders."
        lines = []
    return Summary(verdict, metrics | {"reject_share": share}, "\n".join([said, "", *lines]))
