"""The readout of an experiment as people read it: Markdown, and the metrics of its MLflow run."""

from collections.abc import Sequence
from datetime import datetime
from math import isnan

from mltrust.experiment.check import Check
from mltrust.experiment.effects import Effect
from mltrust.experiment.readout import Readout
from mltrust.experiment.recommendation import Advice
from mltrust.experiment.spec import Experiment
from mltrust.report.fairness import fairness
from mltrust.report.numbers import number
from mltrust.slices import Slice
from mltrust.verdicts import Verdict

_SHOWN, _REASONS = 15, 8


def metrics(found: Readout) -> dict[str, float | None]:
    """Metrics of the run, overall ones first: `effect/<metric>/<slice>`, `pvalue/...` and `srm/<slice>`.

    With several treatments their names stand between metric and slice. Methods that do not lead are in the tables.
    """
    several = len({row.treatment for row in found.effects}) > 1
    named: dict[str, float | None] = {}
    for row in sorted(_leading(found.effects), key=lambda each: not each.overall):
        where = str(Slice(row.slice_key, row.slice_value))
        name = f"{row.metric}/{row.treatment}/{where}" if several else f"{row.metric}/{where}"
        named[f"effect/{name}"] = row.effect
        if row.overall:
            named[f"pvalue/{name}"] = row.pvalue
    tests = [row for row in found.checks if row.check == "srm" and row.method != "sequential"]
    srm = {f"srm/{Slice(row.slice_key, row.slice_value)}": row.pvalue for row in tests}
    overall = [name for name in named if name.endswith("/overall")]
    return {name: named[name] for name in overall} | srm | named


def markdown(
    found: Readout, experiment: Experiment, as_of: datetime, n_metrics_left_out: int = 0, note: str = ""
) -> str:
    """The readout in one page, after its verdict: what to do and why, checks, overall effects, notable slices."""
    parts = [
        f"**{found.recommendation}** — `{experiment.experiment_id}` as of {as_of:%Y-%m-%d}. {experiment.description}",
        *_advice(found.advice),
        "### Checks",
        _checks([row for row in found.checks if row.slice_key == "" or row.verdict is not Verdict.PASS][:_SHOWN]),
        f"{_count(found.checks)} checks in all; see `experiment_checks`.{_not_asked(experiment)}",
        "### Overall effects",
        _effects(leading := [row for row in _leading(found.effects) if row.overall]),
    ]
    if others := [row for row in found.effects if row.overall and row not in leading]:
        parts += ["### The same by other methods", _effects(others)]
    notable = [row for row in found.effects if not row.overall and row.verdict is Verdict.BREACH]
    if notable:
        parts += ["### Slices that lose", _effects(sorted(notable, key=lambda row: row.qvalue)[:_SHOWN])]
    if found.disparities:
        parts += ["### Fairness over slices", fairness(found.disparities, experiment.alpha)]
    parts.append(f"{_count(found.effects)} effects in all; see `experiment_effects`. Units are {experiment.unit}.")
    if n_metrics_left_out:
        parts.append(f"{n_metrics_left_out} metrics are in the tables only: a run shows its first 200.")
    if note:
        parts.append(f"Reduction: {note}.")
    return "\n\n".join(parts)


def _advice(advice: Sequence[Advice]) -> list[str]:
    """The reasons, of several treatments each after its name and what to do about it."""
    if len(advice) == 1:
        return [_reasons(advice[0].reasons)]
    return [f"**{each.treatment}: {each.recommendation}**\n\n{_reasons(each.reasons)}" for each in advice]


#: Parts of the conf without which something is not checked, and what that is.
_ASKED_FOR = {
    "assignment": "whether units are in the buckets that their hash gives",
    "served_by": "which model version answered which arm",
    "pre_days": "whether the arms were alike before exposure",
    "salts": "tests of the control against itself",
    "search": "slices that lose and nobody declared",
    "fairness": "whether predictions are alike over slices",
}


def _not_asked(experiment: Experiment) -> str:
    """What was not checked because the conf does not ask for it; '' where everything was."""
    missing = [f"{words} (`{name}`)" for name, words in _ASKED_FOR.items() if not getattr(experiment, name)]
    return f" Not checked, because the conf does not ask: {'; '.join(missing)}." if missing else ""


def _reasons(reasons: Sequence[str]) -> str:
    more = [f"and {len(reasons) - _REASONS} more"] if len(reasons) > _REASONS else []
    return "\n".join(f"- {reason}" for reason in [*reasons[:_REASONS], *more])


def _count(rows: Sequence[Effect | Check]) -> str:
    counts = {verdict: sum(row.verdict is verdict for row in rows) for verdict in Verdict}
    return f"{len(rows)} ({', '.join(f'{n} {verdict}' for verdict, n in counts.items())})"


def _checks(rows: Sequence[Check]) -> str:
    lines = ["| check | slice | verdict | p | what it says |", "|---|---|---|--:|---|"]
    for row in rows:
        name = " ".join(filter(None, (row.check, row.metric, row.treatment)))
        where = Slice(row.slice_key, row.slice_value)
        lines.append(f"| {name} | {where} | {row.verdict} | {number(row.pvalue)} | {row.reason} |")
    return "\n".join(lines)


def _leading(rows: Sequence[Effect]) -> list[Effect]:
    """One row per metric, treatment and slice: by the method that leads, which comes first."""
    first: dict[tuple[str, ...], Effect] = {}
    for row in rows:
        first.setdefault((row.metric, row.treatment, row.slice_key, row.slice_value), row)
    return list(first.values())


def _effects(rows: Sequence[Effect]) -> str:
    lines = [
        "| metric | role | treatment | slice | control | treatment | effect [interval] | relative | q | MDE | "
        "method | verdict |",
        "|---|---|---|---|--:|--:|--:|--:|--:|--:|---|---|",
    ]
    for row in rows:
        cells = (
            row.metric,
            row.role,
            row.treatment,
            str(Slice(row.slice_key, row.slice_value)),
            f"{number(row.mean_control)} (n {row.n_control:,})",
            f"{number(row.mean_treatment)} (n {row.n_treatment:,})",
            f"{number(row.effect)} [{number(row.ci_low)}, {number(row.ci_high)}]",
            relative(row),
            number(row.qvalue),
            number(row.mde),
            row.method
            if isnan(row.variance_reduction)
            else f"{row.method} ({-row.variance_reduction:+.0%} variance)",
            str(row.verdict),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def relative(row: Effect) -> str:
    """The relative effect in per cent with its interval, which may be unbounded."""
    if isnan(row.rel_effect):
        return "undefined"
    if isnan(row.rel_ci_low):
        return f"{row.rel_effect:+.1%} (no bounded interval)"
    return f"{row.rel_effect:+.1%} [{row.rel_ci_low:+.1%}, {row.rel_ci_high:+.1%}]"
