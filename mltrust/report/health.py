"""What a run says of the health of a log: Markdown, and the metrics of its MLflow run."""

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from math import isnan

from mltrust.health import (
    Judged,
    Judgement,
    ModelWindow,
    OutcomeWindow,
    drop_share,
    reject_share,
    unmatched_share,
)

_SHOWN, _REASONS = 20, 10


def metrics(judged: Judged) -> dict[str, float | None]:
    """Metrics of the run, `health/<model_name>/<version>/<what>`, those of the largest model versions first."""
    return {
        f"health/{row.model_name}/{row.model_version}/{name}": value
        for row, _ in judged.windows
        for name, value in _numbers(row).items()
    }


def _numbers(row: ModelWindow) -> dict[str, float]:
    return {
        "records": float(row.n_records),
        "errors": float(row.n_errors),
        "rejected": float(row.n_rejected),
        "dropped": float(row.n_dropped),
        "reject_share": reject_share(row.n_rejected, [row]),
        "drop_share": drop_share(row),
        "lag_p95": row.lag_p95,
    }


def markdown(
    judged: Judged, outcomes: Sequence[OutcomeWindow], start: date, end: date, n_metrics_left_out: int = 0
) -> str:
    """The health of [start, end) in one page, after its verdict: what decided, model versions, outcomes."""
    n_records = sum(row.n_records for row, _ in judged.windows)
    days = f"{start} to {end - timedelta(days=1)}"
    parts = [f"{n_records:,} records of {len(judged.windows)} model versions, {days}"]
    if judged.reasons:
        more = len(judged.reasons) - 1
        parts = [judged.reasons[0] + (f", and {more} more" if more else ""), _list(judged.reasons), *parts]
    if judged.windows:
        parts += [f"### Model versions, {days}", _models(judged.windows)]
    if outcomes:
        parts += ["### Outcomes", _outcomes(outcomes)]
    parts.append(
        "Lags are from event to arrival, the 95th percentile of the worst day. Days are in `log_health` and "
        "`outcome_health`."
    )
    if n_metrics_left_out:
        parts.append(f"{n_metrics_left_out} metrics are in the tables only: a run shows its first 200.")
    return "\n\n".join(parts)


def _list(reasons: Sequence[str]) -> str:
    more = [f"and {len(reasons) - _REASONS} more"] if len(reasons) > _REASONS else []
    return "\n".join(f"- {reason}" for reason in [*reasons[:_REASONS], *more])


def _models(windows: Sequence[tuple[ModelWindow, Judgement]]) -> str:
    lines = [
        "| model | version | records | errors | rejected | reasons | dropped | schema | features | lag p95 "
        "| verdict |",
        "|---|---|--:|--:|--:|---|--:|---|---|--:|---|",
    ]
    for row, found in windows[:_SHOWN]:
        cells = (
            _text(row.model_name),
            _text(row.model_version),
            f"{row.n_records:,}",
            f"{row.n_errors:,}",
            f"{row.n_rejected:,}",
            _reasons(row.rejects),
            f"{row.n_dropped:,} of {row.n_logged:,}" if row.n_logged or row.n_dropped else "not reported",
            ", ".join(map(_text, row.schema_versions)),
            ", ".join(map(_text, row.feature_versions)),
            seconds(row.lag_p95),
            str(found.verdict),
        )
        lines.append("| " + " | ".join(cells) + " |")
    if len(windows) > _SHOWN:
        lines.append(f"\nThe {_SHOWN} largest of {len(windows)}; all are in `log_health`.")
    return "\n".join(lines)


def _outcomes(windows: Sequence[OutcomeWindow]) -> str:
    lines = ["| outcome | n | corrected | retracted | unmatched | lag p95 |", "|---|--:|--:|--:|--:|--:|"]
    for row in windows[:_SHOWN]:
        share = unmatched_share(row)
        of = "none by request" if isnan(share) else f"{share:.2%} of {row.n_by_request:,}"
        lines.append(
            f"| {_text(row.name)} | {row.n_outcomes:,} | {row.n_corrected:,} | {row.n_retracted:,} | {of} "
            f"| {seconds(row.lag_p95)} |"
        )
    if len(windows) > _SHOWN:
        lines.append(f"\nThe first {_SHOWN} of {len(windows)}; all are in `outcome_health`.")
    return "\n".join(lines)


def _reasons(rejects: Mapping[str, int]) -> str:
    ordered = sorted(rejects.items(), key=lambda item: -item[1])
    return ", ".join(f"{_text(reason)} {n:,}" for reason, n in ordered)


def _text(text: str) -> str:
    """Text that a table cell shows as it is."""
    return text.replace("|", "\\|").replace("\n", " ")


def seconds(lag: float) -> str:
    """A lag in its natural unit, or a dash for what is undefined."""
    if isnan(lag):
        return "–"
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if abs(lag) >= 2 * length:
            return f"{lag / length:,.1f} {unit}"
    return f"{lag:,.0f} s"
