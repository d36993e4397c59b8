"""Figures of the readout, of the plan and of the log's health."""

from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta
from math import isnan, nan

import matplotlib as mpl
from matplotlib.figure import Figure

from mltrust.experiment.effects import Effect
from mltrust.experiment.planning import Planned, Prospect
from mltrust.health import LogDay
from mltrust.slices import Slice, n_attributes
from mltrust.verdicts import Verdict

_COLOURS = {Verdict.PASS: "#1a7f4b", Verdict.BREACH: "#c0362c", Verdict.INCONCLUSIVE: "#6b7280"}
_MAX_ROWS = 24
_MAX_MODELS = 10
_POOLED = "#111827"


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


def volume(rows: Sequence[LogDay], days: Sequence[date]) -> Figure:
    """Records per day of each model version, and under them how many were rejected or dropped.

    The ten largest model versions have a line each; the others are pooled, and the legend says of how many.
    """
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    records, losses = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for (label, own), colour in zip(_models(rows).items(), (*mpl.color_sequences["tab10"], _POOLED), strict=False):
        line = {"linewidth": 1.6, "marker": ".", "linestyle": "--" if colour == _POOLED else "-"}
        records.plot(days, _daily(own, "n_records", days), color=colour, label=label, **line)
        for name, marker in _LOSSES.items():
            lost = [(day, n) for day, n in zip(days, _daily(own, name, days), strict=True) if n]
            losses.scatter(
                [day for day, _ in lost], [n for _, n in lost], color=colour, marker=marker, s=34, zorder=3
            )
    half = timedelta(hours=12)
    records.set_title("Records in the log", loc="left", fontsize=11)
    losses.set_title("Rejected (x, by day of arrival) and dropped by producers (v)", loc="left", fontsize=11)
    losses.set_yscale("symlog", linthresh=1)
    if rows:
        records.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    for axis in (records, losses):
        axis.set_ylim(bottom=0)
        axis.xaxis_date()
        axis.set_xlim(datetime.combine(days[0], time()) - half, datetime.combine(days[-1], time()) + half)
        axis.yaxis.set_major_formatter("{x:,.0f}")
        axis.grid(color="#e5e7eb", zorder=0)
        axis.spines[["top", "right"]].set_visible(False)
    losses.tick_params(axis="x", rotation=30)
    return figure


_LOSSES = {"n_rejected": "x", "n_dropped": "v"}


def _models(rows: Sequence[LogDay]) -> Mapping[str, Sequence[LogDay]]:
    """The rows of the largest model versions by their names, and of all others together."""
    sizes = dict.fromkeys((row[:2] for row in rows), 0)
    for row in rows:
        sizes[row[:2]] += row.n_records + row.n_rejected
    largest = sorted(sizes, key=lambda model: -sizes[model])
    own = {" ".join(model): [row for row in rows if row[:2] == model] for model in largest[:_MAX_MODELS]}
    others = set(largest[_MAX_MODELS:])
    pooled = [row for row in rows if row[:2] in others]
    return own | {f"{len(others)} others together": pooled} if others else own


def _daily(rows: Sequence[LogDay], name: str, days: Sequence[date]) -> list[int]:
    return [sum(getattr(row, name) for row in rows if row.day == day) for day in days]


def detectable(found: Planned) -> Figure:
    """What each number of weeks finds, per deciding metric (else per metric) and method; log scale.

    The dashed line is what the conf asks for, grey the weeks that are extrapolated, the upright one the plan.
    """
    overall = [row for row in found.prospects if row.overall]
    deciding = {(row.metric, row.treatment) for row in overall if row.decides}
    panels = list(dict.fromkeys((row.metric, row.treatment) for row in overall))
    panels = [panel for panel in panels if panel in deciding] or panels
    figure = Figure(figsize=(9, 0.4 + 2.6 * len(panels)), layout="constrained")
    for axis, panel in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
        _detectable_panel(axis, [row for row in overall if (row.metric, row.treatment) == panel], found)
    return figure


def _detectable_panel(axis: mpl.axes.Axes, rows: Sequence[Prospect], found: Planned) -> None:
    weeks = sorted({row.weeks for row in rows})
    methods = list(dict.fromkeys(row.method for row in rows))
    for method, colour in zip(methods, mpl.color_sequences["tab10"], strict=False):
        own = [row for row in rows if row.method == method]
        leads = any(row.leads for row in own)
        label = f"{method} (leads)" if leads else method
        width, marker = (2.4, "o") if leads else (1.2, ".")
        sizes = [row.mde for row in own]
        axis.plot([row.weeks for row in own], sizes, label=label, color=colour, linewidth=width, marker=marker)
    target = next((row.target for row in rows if row.leads), nan)
    if not isnan(target):
        axis.axhline(target, color="#111827", linewidth=1, linestyle="--")
    if guessed := [row.weeks for row in rows if row.is_extrapolated]:
        axis.axvspan(min(guessed) - 0.5, max(weeks) + 0.5, color="#f3f4f6", zorder=0)
    if found.weeks is not None:
        axis.axvline(found.weeks, color=_COLOURS[Verdict.PASS], linewidth=1.2)
    axis.set_yscale("log")
    axis.set_xlim(min(weeks) - 0.5, max(weeks) + 0.5)
    axis.set_xticks(weeks)
    axis.yaxis.set_major_formatter("{x:.3g}")
    axis.yaxis.set_minor_formatter("{x:.2g}")
    axis.tick_params(axis="y", which="both", labelsize=8)
    words = "margin kept" if rows[0].claim == "non-inferiority" else "effect found"
    axis.set_title(f"{rows[0].metric}: smallest {words}, {rows[0].treatment}", loc="left", fontsize=11)
    axis.set_xlabel("weeks; grey: extrapolated; dashed: what the conf asks for", fontsize=8)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    axis.grid(color="#e5e7eb", zorder=0)
    axis.spines[["top", "right"]].set_visible(False)
