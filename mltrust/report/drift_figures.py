"""Figures of drift: divergence by column and window, and the cells of what breached."""

from collections.abc import Mapping, Sequence
from math import isnan

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from mltrust.drift.words import subject
from mltrust.report.drift import Cell, Moved
from mltrust.verdicts import Verdict

_MAX_ROWS, _MAX_CELLS = 40, 24
# Divergences in bits between which colours tell more from less: noise of some thousand rows, and another column.
_LEAST, _MOST = 1e-4, 0.3
_BREACH, _BEFORE, _AFTER = "#c0362c", "#9ca3af", "#1d4ed8"


def heat_map(cells: Mapping[tuple[str, str], Sequence[Cell]]) -> Figure:
    """Divergence in bits by version and column (rows) and window (columns); a red frame where any test breached.

    A window in which a column could not be judged is blank.
    """
    ends = sorted({end for row in cells.values() for end, _, _ in row})
    ordered = sorted(cells, key=lambda each: (each[0], _first_breach(cells[each]), each[1]))[:_MAX_ROWS]
    figure = Figure(
        figsize=(max(7.5, 2.6 + 0.42 * len(ends)), 1.3 + 0.3 * max(len(ordered), 2)), layout="constrained"
    )
    axis = figure.subplots()
    values = np.full((len(ordered), len(ends)), np.nan)
    for at, key in enumerate(ordered):
        for end, value, verdict in cells[key]:
            column = ends.index(end)
            if verdict is not Verdict.INCONCLUSIVE and not isnan(value):
                values[at, column] = max(value, _LEAST)
            if verdict is Verdict.BREACH:
                frame = mpl.patches.Rectangle(
                    (column - 0.5, at - 0.5), 1, 1, fill=False, edgecolor=_BREACH, linewidth=2
                )
                axis.add_patch(frame)
    if ordered:
        image = axis.imshow(values, aspect="auto", cmap="Blues", norm=LogNorm(_LEAST, _MOST))
        figure.colorbar(image, ax=axis, label="divergence, bits", pad=0.02)
    axis.set_yticks(
        range(len(ordered)), [f"{subject(column)}  (v{version})" for version, column in ordered], fontsize=8
    )
    axis.set_xticks(range(len(ends)), [f"{end:%m-%d}" for end in ends], rotation=60, fontsize=8)
    axis.set_title("Drift by column and end of the window; red frame: breach", loc="left", fontsize=11)
    axis.spines[:].set_visible(False)
    return figure


def _first_breach(row: Sequence[Cell]) -> int:
    """0 for a column that ever breached, so that it is not cut off."""
    return 0 if any(verdict is Verdict.BREACH for _, _, verdict in row) else 1


def distributions(moved: Sequence[Moved]) -> Figure:
    """Shares of the rows by cell, reference beside current, of what breached."""
    figure = Figure(figsize=(9, 2.9 * len(moved)), layout="constrained")
    for axis, each in zip(figure.subplots(len(moved), 1, squeeze=False)[:, 0], moved, strict=True):
        names, before, after = _largest(each)
        at = np.arange(len(names))
        axis.bar(at - 0.2, before, 0.4, color=_BEFORE, label="reference")
        axis.bar(at + 0.2, after, 0.4, color=_AFTER, label="current")
        axis.set_xticks(at, names, rotation=35, ha="right", fontsize=8)
        axis.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1, decimals=None))
        axis.set_title(each.title, loc="left", fontsize=10)
        axis.legend(fontsize=8, frameon=False)
        axis.grid(axis="y", color="#e5e7eb", zorder=0)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _largest(moved: Moved) -> tuple[list[str], list[float], list[float]]:
    """The cells in their order, of many those that have most rows on either side."""
    by_size = sorted(range(len(moved.names)), key=lambda at: -max(moved.before[at], moved.after[at]))
    kept = sorted(by_size[:_MAX_CELLS])
    return tuple([values[at] for at in kept] for values in (moved.names, moved.before, moved.after))  # type: ignore[return-value]
