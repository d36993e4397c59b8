"""What a maintenance run says of the tables."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mltrust.verdicts import Verdict


class Kept(NamedTuple):
    """A row of `maintenance`: the files of a table and whether its keys are what was promised.

    `n_repeated_keys` and `n_ids_on_several_dates` are None where nothing is promised of them.
    """

    table: str
    n_rows: int
    n_files: int
    n_small_files: int
    n_bytes: int
    n_compacted: int
    n_repeated_keys: int | None
    n_ids_on_several_dates: int | None
    verdict: Verdict
    reason: str


def judged(n_repeated_keys: int | None) -> tuple[Verdict, str]:
    """A key that two rows have is a breach: it was promised that there is none."""
    if n_repeated_keys:
        return Verdict.BREACH, f"{n_repeated_keys:,} keys are held by more than one row"
    return Verdict.PASS, ""


def describe(rows: Sequence[Kept], purged: Sequence[str], days: int) -> str:
    """The report of a run (Markdown), its one-line summary first."""
    repeated = sum(row.n_repeated_keys or 0 for row in rows)
    several = sum(row.n_ids_on_several_dates or 0 for row in rows)
    said = f"{repeated:,} repeated keys, {several:,} ids on several dates in the last {days} days."
    if purged:
        said += f" Purged the files of {len(purged)} erasures."
    lines = [
        "| table | rows | files | small | MB | partitions compacted | repeated keys | ids on several dates |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row.table} | {row.n_rows:,} | {row.n_files:,} | {row.n_small_files:,} | {row.n_bytes / 2**20:,.1f} "
        f"| {row.n_compacted} | {_or_none(row.n_repeated_keys)} | {_or_none(row.n_ids_on_several_dates)} |"
        for row in rows
    ]
    return "\n".join([said, "", *lines])


def _or_none(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def erased(removed: Mapping[str, int], sources: Sequence[str], rebuilt: Sequence[str], purge_hours: int) -> str:
    """The report of an erasure (Markdown)."""
    lines = [
        f"{sum(removed.values()):,} rows removed. Their files are removed by the first maintenance run after "
        f"{purge_hours} hours.",
        "",
        "| table | rows removed |",
        "|---|--:|",
        *(f"| {table} | {n:,} |" for table, n in removed.items()),
        "",
        f"Built again: {', '.join(rebuilt) or 'no experiment held the unit'}.",
    ]
    if sources:
        lines += ["", "Landing files that held the unit, for their owners to remove:", ""]
        lines += [f"- `{source}`" for source in sources]
    return "\n".join(lines)
