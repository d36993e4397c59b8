"""What a run says of attributions and performance: rows of the tables, and their part of the description."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from math import isnan

from mltrust.drift.families import EVERY_ROW
from mltrust.drift.findings import Finding
from mltrust.drift.readout import ModelShifts
from mltrust.drift.shifts import Shift
from mltrust.drift.spec import Drift, Window
from mltrust.drift.words import subject
from mltrust.report.numbers import number
from mltrust.slices import Slice

_SHOWN = 10


def finding_rows(moved: Sequence[ModelShifts], drift: Drift) -> list[dict[str, object]]:
    """Rows of `drift_findings`, without the names of monitor and model and the stamp of the run."""
    reference = drift.reference.window
    return [
        _finding(shift)._asdict()
        | {"contributions": []}
        | {
            "model_version": each.model_version,
            "traffic": "production",
            "arm": EVERY_ROW,
            **_times("window", each.window),
            **_times("reference", reference),
            "reference": "fixed",
            "drift_type": "BASELINE",
            "decides": True,
        }
        for each in moved
        for shift in each.shifts
    ]


def _finding(shift: Shift) -> Finding:
    """A comparison of attributions as a finding; its family is its measure."""
    found = Finding(
        *shift.slice, f"features.{shift.column}", shift.measure, shift.measure, shift.verdict, shift.reason
    )
    same = ("n_reference", "n_current", "value", "std_error", "statistic", "df", "pvalue", "qvalue", "n_family")
    return found._replace(
        unit="of the score",
        corrected=shift.value,
        floor=shift.threshold,
        detectable=shift.mde,
        **{name: getattr(shift, name) for name in same},
    )


def performance_rows(moved: Sequence[ModelShifts]) -> list[dict[str, object]]:
    """Rows of `performance`, without the names of monitor and model and the stamp of the run."""
    rows = []
    for each in moved:
        shifts = {(shift.slice, shift.column): shift for shift in each.shifts}
        for where, estimate in each.estimates:
            shift = shifts[where, estimate.metric]
            rows.append(
                estimate._asdict()
                | where._asdict()
                | _times("window", each.window)
                | {"model_version": each.model_version, "arm": EVERY_ROW, "reference": shift.reference}
                | {"difference": shift.value, "difference_std_error": shift.std_error}
                | {name: getattr(shift, name) for name in _OF_SHIFT}
            )
    return rows


_OF_SHIFT = ("pvalue", "qvalue", "n_family", "threshold", "mde", "verdict", "reason")


def _times(name: str, window: Window) -> dict[str, datetime]:
    return {f"{name}_start": _midnight(window.start), f"{name}_end": _midnight(window.end)}


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def metrics(performance: Sequence[ModelShifts]) -> dict[str, float | None]:
    """The performance of every version on all rows, for the run."""
    return {
        f"performance/{each.model_version}/{estimate.metric}": estimate.value
        for each in performance
        for where, estimate in each.estimates
        if where == Slice("", "")
    }


def markdown(attribution: Sequence[ModelShifts], performance: Sequence[ModelShifts]) -> list[str]:
    """What moved of attributions and performance, and how versions perform; nothing where neither was asked for."""
    parts = []
    for title, moved in (("Attributions", attribution), ("Performance", performance)):
        breaches = [(each, shift) for each in moved for shift in each.breaches]
        if breaches:
            lines = [f"- version {each.model_version}: {_said(shift)}" for each, shift in breaches[:_SHOWN]]
            more = [f"- and {len(breaches) - _SHOWN} more"] if len(breaches) > _SHOWN else []
            parts += [f"### {title} moved", "\n".join([*lines, *more])]
    if performance:
        parts += ["### Performance", _performance(performance)]
    if attribution and not any(each.breaches for each in attribution):
        versions = ", ".join(each.model_version for each in attribution)
        parts.append(f"Attributions of version {versions} are as in the reference.")
    return parts


def _said(shift: Shift) -> str:
    name = subject(shift.column, shift.slice_key, shift.slice_value).replace("_", " ")
    return f"{name}: {shift.reason} (q {shift.qvalue:.2g})"


def _performance(moved: Sequence[ModelShifts]) -> str:
    lines = [
        "| version | predictions of | metric | value | in the reference | verdict |", "|---|---|---|--:|--:|---|",
    ]  # fmt: skip
    for each in moved:
        shifts = {shift.column: shift for shift in each.shifts if not shift.slice_key}
        for where, estimate in each.estimates:
            if where.slice_key:
                continue
            shift = shifts[estimate.metric]
            value = number(estimate.value) if not isnan(estimate.value) else estimate.reason
            cells = (each.model_version, str(each.window), estimate.metric.replace("_", " "), value)
            lines.append("| " + " | ".join((*cells, number(shift.reference), str(shift.verdict))) + " |")
    return "\n".join(lines)
