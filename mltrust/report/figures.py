"""Figures of the readout."""

from collections.abc import Sequence
from math import isnan

import matplotlib as mpl
from matplotlib.figure import Figure

from mltrust.experiment.readout import Effect
from mltrust.slices import Slice, n_attributes
from mltrust.verdicts import Verdict

_COLOURS = {Verdict.PASS: "#1a7f4b", Verdict.BREACH: "#c0362c", Verdict.INCONCLUSIVE: "#6b7280"}
_MAX_ROWS = 24


def forest(effects: Sequence[Effect]) -> Figure:
    """Effects of the goal metrics (else of all) by slice, with their intervals, coloured by verdict.

    Overall comes first, then single attributes, then crossed ones while there is room.
    """
    goals = [row for row in effects if row.role == "goal"] or list(effects)
    panels = list(dict.fromkeys((row.metric, row.treatment) for row in goals))
    figure = Figure(figsize=(9, 0.6 + sum(_height(_rows(goals, *panel)) for panel in panels)), layout="constrained")
    ratios = [_height(_rows(goals, *panel)) for panel in panels]
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=ratios)[:, 0]
    for axis, panel in zip(axes, panels, strict=True):
        _panel(axis, _rows(goals, *panel), f"{panel[0]}: {panel[1]} against {goals[0].control}")
    return figure


def _rows(effects: Sequence[Effect], metric: str, treatment: str) -> list[Effect]:
    own = [row for row in effects if (row.metric, row.treatment) == (metric, treatment)]
    return sorted(own, key=lambda row: (not row.overall, n_attributes(row.slice_key)))[:_MAX_ROWS]


def _height(rows: Sequence[Effect]) -> float:
    return 1.0 + 0.28 * len(rows)


def _panel(axis: mpl.axes.Axes, rows: Sequence[Effect], title: str) -> None:
    for at, row in enumerate(reversed(rows)):
        colour = _COLOURS[row.verdict]
        if not isnan(row.ci_low):
            axis.plot([row.ci_low, row.ci_high], [at, at], color=colour, linewidth=1.6, zorder=2)
        axis.plot(row.effect, at, marker="D" if row.overall else "o", color=colour, markersize=6, zorder=3)
        axis.annotate(
            f"n {row.n_control + row.n_treatment:,}", (1.01, at), xycoords=("axes fraction", "data"), va="center",
            fontsize=8, color="#6b7280",
        )  # fmt: skip
    axis.axvline(0, color="#111827", linewidth=0.8, zorder=1)
    axis.set_yticks(
        range(len(rows)), [str(Slice(row.slice_key, row.slice_value)) for row in reversed(rows)], fontsize=9
    )
    axis.set_ylim(-0.7, len(rows) - 0.3)
    axis.set_title(title, loc="left", fontsize=11)
    axis.set_xlabel(
        "effect (absolute) with interval; green: improvement shown, red: harm shown, grey: neither",
        fontsize=8,
    )
    axis.grid(axis="x", color="#e5e7eb", zorder=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
