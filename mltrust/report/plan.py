"""The plan of an experiment as people read it: Markdown, and the metrics of its MLflow run."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from math import isnan

from mltrust.experiment.planning import Planned, Prospect
from mltrust.experiment.spec import Experiment
from mltrust.experiment.trial import Trial
from mltrust.report.numbers import number
from mltrust.slices import Slice
from mltrust.verdicts import Verdict

_SHOWN = 20


def metrics(found: Planned) -> dict[str, float | None]:
    """Metrics of the run: the weeks, and `rel_mde/<metric>/<treatment>/<weeks>w` by the methods that lead."""
    of_rows = {
        f"rel_mde/{row.metric}/{row.treatment}/{row.weeks}w": row.rel_mde
        for row in found.prospects
        if row.overall and row.leads
    }
    return {"weeks": None if found.weeks is None else float(found.weeks)} | of_rows


def markdown(found: Planned, experiment: Experiment, trial: Trial, as_of: datetime, note: str = "") -> str:
    """The plan in one page, after its verdict: how long and why, what each number of weeks finds, and slices."""
    shown = found.weeks or max((row.weeks for row in found.prospects), default=0)
    at_end = [row for row in found.prospects if row.weeks == shown]
    leading = [row for row in found.prospects if row.overall and row.leads]
    parts = [
        f"{_headline(found, experiment, trial)} `{experiment.experiment_id}` as of {as_of:%Y-%m-%d}. "
        f"{experiment.description}",
        "\n".join(f"- {reason}" for reason in (*found.reasons, *_to_write(found, experiment, at_end))),
        "### What each number of weeks finds",
        _over_weeks(leading, found, trial, experiment.plan.traffic_share),
        f"### After {shown} weeks, by every method",
        _methods([row for row in at_end if row.overall]),
    ]
    if slices := [row for row in at_end if not row.overall and row.leads and row.role in ("goal", "guardrail")]:
        parts += [f"### In slices, after {shown} weeks", _slices(slices, found.prospects)]
    if experiment.quantiles:
        names = ", ".join(metric.name for metric in experiment.quantiles)
        parts.append(f"Not planned: {names}. How far a quantile will be known does not follow from moments of units.")
    parts.append("\n".join(f"- {line}" for line in _basis(experiment, trial, as_of, note)))
    return "\n\n".join(parts)


def _headline(found: Planned, experiment: Experiment, trial: Trial) -> str:
    if found.weeks is None:
        return f"**no duration up to {experiment.plan.max_weeks} weeks is enough** —"
    maturing = f", the last {trial.maturing} for windows to mature" if trial.maturing else ""
    guessed = f" (beyond {trial.weeks} weeks extrapolated)" if found.weeks > trial.weeks else ""
    end = experiment.start + timedelta(weeks=found.weeks)
    return f"**run for {found.weeks} weeks**{maturing}: {experiment.start} to {end}{guessed} —"


def _to_write(found: Planned, experiment: Experiment, at_end: Sequence[Prospect]) -> list[str]:
    """What the conf has to say so that the readout is the one that was planned."""
    if found.weeks is None:
        return []
    end = experiment.start + timedelta(weeks=found.weeks)
    lines = [] if experiment.planned_end == end else [f"write `planned_end: {end}` into the conf"]
    sizes = [row.n_units for row in at_end if row.decides and row.claim == "effect"]
    if experiment.inference != "fixed" and experiment.horizon is None and sizes:
        lines.append(f"write `horizon: {max(sizes)}` into the conf: the units for which its test was planned")
    return lines


def _over_weeks(leading: Sequence[Prospect], found: Planned, trial: Trial, traffic_share: float) -> str:
    """A row for each number of weeks, a column for each metric and treatment."""
    columns = list(dict.fromkeys((row.metric, row.treatment) for row in leading))
    several = len({treatment for _, treatment in columns}) > 1
    names = [f"{metric} ({treatment})" if several else metric for metric, treatment in columns]
    by_key = {(row.metric, row.treatment, row.weeks): row for row in leading}
    lines = [f"| weeks | new units | {' | '.join(names)} |", f"|--:|--:|{'--:|' * len(names)}"]
    for weeks in sorted({row.weeks for row in leading}):
        n_units = found.arrivals.upto(weeks)[-1] * traffic_share
        cells = (_found(by_key[metric, treatment, weeks]) for metric, treatment in columns)
        guessed = " *" if weeks > trial.weeks else ""
        lines.append(f"| {weeks}{guessed} | {n_units:,.0f} | {' | '.join(cells)} |")
    words = (
        "The smallest effect that is found, of a guardrail the smallest margin that is kept, as a share of the mean; "
        "bold where that is enough."
    )
    if any(row.is_extrapolated for row in leading):
        words += f" * extrapolated: each week has {found.arrivals.decline:.0%} of the new units of the one before."
    return "\n".join([*lines, "", words])


def _found(row: Prospect) -> str:
    size = number(row.mde) if isnan(row.rel_mde) else f"{row.rel_mde:.2%}"
    return f"**{size}**" if row.verdict is Verdict.PASS else size


def _methods(rows: Sequence[Prospect]) -> str:
    lines = [
        "| metric | role | treatment | method | mean | units per arm | finds | asked | power | units needed | says |",
        "|---|---|---|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        method = row.method
        if not isnan(row.variance_reduction):
            method += f" ({-row.variance_reduction:+.0%} variance)"
        cells = (
            row.metric,
            row.role,
            row.treatment,
            f"**{method}**" if row.leads else method,
            number(row.mean_control),
            f"{row.n_control:,} / {row.n_treatment:,}",
            f"{number(row.mde)} ({_share(row.rel_mde)})",
            number(row.target),
            _share(row.power),
            _count(row.n_needed),
            str(row.verdict),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "Bold is the method that the conf leads with."])


def _slices(rows: Sequence[Prospect], prospects: Sequence[Prospect]) -> str:
    """Goals and guardrails in each slice, the ones with most units first, and the weeks after which they would do."""
    enough: dict[tuple[str, ...], int] = {}
    for row in prospects:
        if row.leads and row.verdict is Verdict.PASS:
            enough.setdefault((row.metric, row.treatment, row.slice_key, row.slice_value), row.weeks)
    lines = [
        "| slice | metric | treatment | units per arm | finds | asked | enough after |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    largest = sorted(rows, key=lambda row: -row.n_units)
    for row in largest[:_SHOWN]:
        weeks = enough.get((row.metric, row.treatment, row.slice_key, row.slice_value))
        cells = (
            str(Slice(row.slice_key, row.slice_value)),
            row.metric,
            row.treatment,
            f"{row.n_control:,} / {row.n_treatment:,}",
            f"{number(row.mde)} ({_share(row.rel_mde)})",
            number(row.target),
            "–" if weeks is None else f"{weeks} weeks",
        )
        lines.append("| " + " | ".join(cells) + " |")
    more = f"The {_SHOWN} largest of {len(rows)}; all are in `experiment_plans`." if len(rows) > _SHOWN else ""
    return "\n".join([*lines, "", more])


def _basis(experiment: Experiment, trial: Trial, as_of: datetime, note: str) -> list[str]:
    """What the numbers rest on."""
    each = f"with {experiment.rules.power:.0%} power at alpha {experiment.alpha:g}"
    lines = [
        f"From {trial.weeks} weeks of the log, {trial.start} to {as_of:%Y-%m-%d}, with every unit "
        f"({experiment.unit}) in it from the day on which it is first seen; {each}.",
        f"{experiment.plan.traffic_share:.0%} of the units are in the experiment"
        + ("." if experiment.plan.where is None else f", exposed by rows with `{experiment.plan.where}`."),
    ]
    if growing := [metric.name for metric in experiment.metrics if metric.window_days is None]:
        lines.append(
            f"{', '.join(growing)}: without a window, so counted until the end, at most {trial.weeks} weeks."
        )
    wanted = experiment.plan.history_weeks + trial.maturing
    if trial.weeks < wanted:
        lines.append(f"The conf asks for {wanted} weeks of history; the log has {trial.weeks}.")
    if experiment.start < as_of.date():
        lines.append(f"The experiment has begun on {experiment.start}: what it changed is in this history.")
    return [*lines, *([f"Reduction: {note}."] if note else [])]


def _share(value: float) -> str:
    return "–" if isnan(value) else f"{value:.2%}"


def _count(value: float) -> str:
    return "–" if isnan(value) else f"{value:,.0f}"
