"""What a run says of attributions and performance: rows of the tables, and their part of the description."""

from collections.abc import Sequence
from math import isnan

from mltrust.drift.families import EVERY_ROW
from mltrust.drift.findings import Finding
from mltrust.drift.moves import Move
from mltrust.drift.readout import ModelShifts
from mltrust.drift.shifts import Shift
from mltrust.drift.spec import Drift
from mltrust.drift.words import subject
from mltrust.report.numbers import number
from mltrust.slices import Slice

_SHOWN = 10
_UNITS = {"attribution": "of the score", "multivariate": "AUC - 0.5", "relation": "of the label"}
_TITLES = {
    "attribution": "Attributions moved",
    "multivariate": "Features together moved",
    "performance": "Performance moved",
    "relation": "Outcomes given the inputs moved",
}


def finding_rows(moved: Sequence[ModelShifts], drift: Drift) -> list[dict[str, object]]:
    """Rows of `drift_findings`, without the names of monitor and model and the stamp of the run."""
    reference = drift.reference.window
    return [
        _finding(each, shift)._asdict()
        | {
            "contributions": [],
            "model_version": each.model_version,
            "traffic": "production",
            "arm": EVERY_ROW,
            **each.window.times("window"),
            **reference.times("reference"),
            "reference": "fixed",
            "drift_type": "BASELINE",
            "decides": True,
        }
        for each in moved
        for shift in each.shifts
    ]


def _finding(of: ModelShifts, shift: Shift) -> Finding:
    """A comparison as a finding; its family is what was compared."""
    column = shift.column if shift.column.startswith(("features.", "(")) else f"features.{shift.column}"
    found = Finding(*shift.slice, column, of.kind, shift.measure, shift.verdict, shift.reason)
    same = ("n_reference", "n_current", "value", "std_error", "statistic", "df", "pvalue", "qvalue", "n_family")
    return found._replace(
        unit=_UNITS[of.kind],
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
                | each.window.times("window")
                | {"model_version": each.model_version, "arm": EVERY_ROW, "reference": shift.reference}
                | {"difference": shift.value, "difference_std_error": shift.std_error}
                | {name: getattr(shift, name) for name in _OF_SHIFT}
            )
    return rows


_OF_SHIFT = ("pvalue", "qvalue", "n_family", "threshold", "mde", "verdict", "reason")


def metrics(performance: Sequence[ModelShifts]) -> dict[str, float | None]:
    """The performance of every version on all rows, for the run."""
    return {
        f"performance/{each.model_version}/{estimate.metric}": estimate.value
        for each in performance
        for where, estimate in each.estimates
        if where == Slice("", "")
    }


def markdown(found: Sequence[ModelShifts], moves: Sequence[Move]) -> list[str]:
    """What moved of each kind, what the outcome's moves are made of, and how versions perform; what was asked for."""
    parts, quiet = [], []
    for kind, title in _TITLES.items():
        own = [each for each in found if each.kind == kind]
        breaches = [(each, shift) for each in own for shift in each.breaches]
        if breaches:
            lines = [f"- version {each.model_version}: {_said(shift)}" for each, shift in breaches[:_SHOWN]]
            more = [f"- and {len(breaches) - _SHOWN} more"] if len(breaches) > _SHOWN else []
            parts += [f"### {title}", "\n".join([*lines, *more])]
        elif own:
            quiet.append(kind)
    if quiet:
        parts.append(f"As in the reference: {', '.join(quiet)}.")
    if clear := [each for each in moves if each.is_clear]:
        lines = [
            f"- version {each.model_version}, by {each.slice_key}: {each.explanation.sentence}" for each in clear
        ]
        parts += ["### What the outcome's moves are made of", "\n".join(lines[:_SHOWN])]
    if performance := [each for each in found if each.estimates]:
        parts += ["### Performance", _performance(performance)]
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
