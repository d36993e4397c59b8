"""How alike predictions serve slices, as people read it."""

from collections.abc import Sequence
from math import isnan

from mltrust.experiment.disparities import GAP, GAP_DIFFERENCE, Disparity
from mltrust.report.numbers import number
from mltrust.slices import Slice

_SHOWN = 15


def fairness(rows: Sequence[Disparity], alpha: float) -> str:
    """The worst gaps by arm, what the treatments change, the slices that differ most, and those with too few."""
    gaps = [row for row in rows if row.slice_value == GAP]
    changes = [row for row in rows if row.slice_value == GAP_DIFFERENCE]
    slices = [row for row in rows if row.slice_value not in (GAP, GAP_DIFFERENCE)]
    apart = sorted((row for row in slices if row.qvalue <= alpha), key=lambda row: row.qvalue)
    few = [row for row in slices if isnan(row.pvalue)]
    parts = ["Worst gaps between slices:", _table(gaps), "What the treatment changes of them:", _table(changes)]
    if apart:
        parts += ["Slices unlike the others of their attribute:", _table(apart[:_SHOWN])]
    if few:
        parts += ["Slices that cannot be compared:", _table(few[:_SHOWN])]
    parts.append(
        f"{len(slices)} measures of slices in all, {len(apart)} unlike the others, {len(few)} of too few units or "
        "predictions; see `experiment_fairness`."
    )
    return "\n\n".join(parts)


def _table(rows: Sequence[Disparity]) -> str:
    lines = [
        "| measure | arm | slice | value [interval] | units | verdict | what it says |",
        "|---|---|---|--:|--:|---|---|",
    ]
    for row in rows:
        where = (
            row.slice_key if row.slice_value in (GAP, GAP_DIFFERENCE) else str(Slice(row.slice_key, row.slice_value))
        )
        value = f"{number(row.value)} [{number(row.ci_low)}, {number(row.ci_high)}]"
        verdict = str(row.verdict) if row.slice_value != GAP_DIFFERENCE else "–"
        lines.append(
            f"| {row.measure} | {row.variant} | {where} | {value} | {row.n_units:,} | {verdict} | {row.reason} |"
        )
    return "\n".join(lines)
