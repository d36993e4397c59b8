"""What exports, replays and shadows say of themselves: Markdown, JUnit XML, and metrics of their MLflow runs."""

from collections.abc import Iterable, Mapping, Sequence
from math import isnan
from xml.etree import ElementTree as ET

from mltrust.replay.compare import BOTH, CANDIDATE, MEASURES, TRIALS, Mismatch
from mltrust.replay.gate import EXTRA, Finding, Judged
from mltrust.replay.masking import Exported, Plan
from mltrust.replay.spec import Replay
from mltrust.report.numbers import number
from mltrust.verdicts import Verdict

_SHOWN = 20
#: `jitter(price)` as MLflow admits it.
_NAMES = str.maketrans({"(": " ", ")": None, "+": " "})


def words(measure: str) -> str:
    """What a measure is, in words."""
    known = MEASURES.get(measure) or TRIALS.get(measure)
    return known.words if known is not None else EXTRA[measure]


# Exports.


def export_verdict(found: Exported, replay: Replay, plan: Plan) -> tuple[Verdict, str]:
    """Whether the set may be written, and why not."""
    if found.n_drawn == 0:
        selection = replay.the_selection()
        version = replay.champion
        return Verdict.INCONCLUSIVE, (
            f"nothing selected: no production prediction of {version} from {selection.start} up to {selection.end} "
            "before as_of that meets the conf's conditions"
        )
    left_out = found.n_left_out / found.n_drawn
    if left_out > replay.max_left_out_share:
        kinds = ", ".join(f"{n:,} with {kind}" for kind, n in found.stopped.items())
        rare = f"{found.n_rare:,} in groups of fewer than {plan.k}" if found.n_rare else ""
        why = ", ".join(filter(None, (kinds, rare)))
        return Verdict.BREACH, (
            f"{left_out:.1%} of {found.n_drawn:,} rows may not leave the log ({why}), "
            f"expected at most {replay.max_left_out_share:.1%}; nothing was exported"
        )
    return Verdict.PASS, ""


def export_metrics(found: Exported) -> dict[str, float]:
    """Metrics of an export's run."""
    counts = {name: float(n) for name, n in found._asdict().items() if name.startswith("n_")}
    return counts | {"smallest_group": float(found.anonymity.smallest)}


def export_markdown(found: Exported, replay: Replay, plan: Plan, key_id: str | None, path: str, version: int) -> str:
    """A replay set in one page, after its verdict: rows, what stayed behind, how it was scrubbed, how to read it."""
    strata = [(name, f"{n:,}") for name, n in found.strata.items()]
    policies = [(name, each.policy) for name, each in plan.columns.items()]
    parts = [
        f"{found.n_rows:,} rows of `{replay.replay_id}`, content hash `{found.content_hash}`. {replay.description}",
        f"Of {found.n_drawn:,} drawn, {found.n_stopped:,} stayed in the log as their text holds personal data and "
        f"{found.n_rare:,} as fewer than {plan.k} share their quasi-identifiers. "
        f"{found.n_labelled:,} have a label.",
        _table(("text: kind", "rows"), [(kind, f"{n:,}") for kind, n in found.stopped.items()]),
        _anonymity(found, plan),
        _table(("stratum", "rows"), strata) if len(strata) > 1 else "",
        "### Scrubbing\n\n" + _table(("column", "policy"), policies),
        f"Pseudonyms are by the key `{key_id}` (its name, not the key)." if key_id else "",
        f"The rows are in `{path}` at version {version}, under `replay_id = '{replay.replay_id}'`.",
    ]
    return "\n\n".join(filter(None, parts))


def _anonymity(found: Exported, plan: Plan) -> str:
    if not plan.quasi_identifiers:
        return "No column is declared a quasi-identifier."
    names = ", ".join(plan.quasi_identifiers)
    groups = found.anonymity
    return (
        f"Quasi-identifiers {names}: {groups.n_groups:,} combinations, the rarest in {groups.smallest:,} rows. "
        f"Combinations in fewer than k = {plan.k} stayed behind."
    )


# Replays and shadows.


def metrics(findings: Iterable[Finding]) -> dict[str, float]:
    """Metrics of the run: every overall finding, those that decide first."""
    overall = sorted((each for each in findings if each.overall), key=lambda each: not each.decides)
    return {_metric(each): each.value for each in overall}


def _metric(each: Finding) -> str:
    whose = "" if each.role == "pair" else f"{each.role}/"
    under = each.perturbation.translate(_NAMES)
    return f"{whose}{each.measure}" + (f"/{under}" if under else "")


def lead(judged: Judged) -> str:
    """The verdict's reason in one line."""
    deciding = sum(each.decides for each in judged.findings)
    if not judged.reasons:
        return f"all {deciding} findings that decide are within their limits"
    more = len(judged.reasons) - 1
    return judged.reasons[0] + (f", and {more} more" if more else "")


def markdown(
    judged: Judged,
    replay: Replay,
    *,
    models: tuple[str, str],
    n_rows: int,
    mismatches: Sequence[Mismatch] = (),
    environment: Sequence[str] = (),
    notes: Sequence[str] = (),
    examples: Sequence[Mapping[str, object]] = (),
) -> str:
    """A comparison in one page, after its verdict: what decided, reproduction, measures, perturbations, slices."""
    champion, candidate = models
    overall = [each for each in judged.findings if each.overall]
    parts = [
        lead(judged),
        f"Candidate {candidate} against champion {champion} on {n_rows:,} requests. {replay.description}",
        _reasons(judged),
        "### What decided\n\n" + _decided(judged),
        *notes,
        _reproduction(overall, mismatches, environment),
        "### Both models\n\n" + _measures([each for each in overall if not each.perturbation and not each.decides]),
        _perturbations([each for each in overall if each.perturbation]),
        _slices([each for each in judged.findings if not each.overall and each.verdict is not None]),
        _examples(examples),
    ]
    return "\n\n".join(filter(None, parts))


def _reasons(judged: Judged) -> str:
    shown = judged.reasons[:_SHOWN]
    return "\n".join(f"- {reason}" for reason in shown) if len(shown) > 1 else ""


def _decided(judged: Judged) -> str:
    deciding = [each for each in judged.findings if each.decides]
    order = {Verdict.BREACH: 0, Verdict.INCONCLUSIVE: 1}
    deciding.sort(key=lambda each: order.get(each.verdict or Verdict.PASS, 2))
    shown = [_row(each) for each in deciding[: 2 * _SHOWN]]
    return _table(("", "what", "value", "limit", "units", "verdict"), shown) + _more(deciding, 2 * _SHOWN)


def _row(each: Finding) -> tuple[str, ...]:
    mark = {Verdict.PASS: "✓", Verdict.BREACH: "✗", Verdict.INCONCLUSIVE: "?"}[each.verdict or Verdict.INCONCLUSIVE]
    return mark, each.subject, _value(each), number(each.threshold), f"{each.n_units:,}", str(each.verdict)


def _value(each: Finding) -> str:
    return number(each.value) + (f" ± {each.std_error:.2g}" if each.std_error > 0 else "")


def _reproduction(overall: Sequence[Finding], mismatches: Sequence[Mismatch], environment: Sequence[str]) -> str:
    found = {each.measure: each for each in overall if each.role == "champion"}
    if "reproduced" not in found:
        return ""
    exact = f", {found['exact'].value:.6%} bit for bit" if "exact" in found else ""
    lines = [f"### Reproduction\n\n{found['reproduced'].value:.6%} of logged scores were given again{exact}."]
    rows = [(each.reason, f"{each.n_rows:,}", number(each.max_ulps), each.example) for each in mismatches]
    lines.append(_table(("why not", "rows", "largest distance (ulps)", "request"), rows))
    if environment:
        lines.append("The model was registered with " + "; ".join(environment) + ".")
    return "\n\n".join(filter(None, lines))


def _measures(found: Sequence[Finding]) -> str:
    rows = [(each.measure, "" if each.role == "pair" else each.role, _value(each),
             "" if isnan(each.qvalue) else f"{each.qvalue:.2g}", words(each.measure)) for each in found]  # fmt: skip
    return _table(("measure", "of", "value", "q of being 0", ""), rows)


def _perturbations(found: Sequence[Finding]) -> str:
    if not found:
        return ""
    names = list(dict.fromkeys(each.perturbation for each in found))
    by = {(each.perturbation, each.role, each.measure): each.value for each in found}
    rows = []
    for name in names:
        cells = []
        for measure in ("instability", "perturbed_flips", "perturbed_errors", "broken_promises"):
            pair = [number(by[key]) for role in BOTH if (key := (name, role, measure)) in by]
            cells.append(" → ".join(pair))
        rows.append((name, *cells))
    rows.sort(key=lambda row: -by.get((row[0], CANDIDATE, "instability"), 0.0))
    heads = ("perturbation", "instability", "decisions flipped", "errors", "promises broken")
    return "### Perturbed inputs, champion → candidate\n\n" + _table(heads, rows)


def _slices(found: Sequence[Finding]) -> str:
    if not found:
        return ""
    order = {Verdict.BREACH: 0, Verdict.INCONCLUSIVE: 1, Verdict.PASS: 2}
    shown = sorted(found, key=lambda each: order[each.verdict or Verdict.PASS])
    rows = [_row(each) for each in shown[:_SHOWN]]
    heads = ("", "what", "value", "limit", "units", "verdict")
    return "### Slices\n\n" + _table(heads, rows) + _more(found, _SHOWN)


def _examples(examples: Sequence[Mapping[str, object]]) -> str:
    if not examples:
        return ""
    rows = [
        (str(each["request_id"]), number(float(str(each["champion"]))), number(float(str(each["candidate"]))),
         "yes" if each["is_flipped"] else "", f"`{each['features']}`")
        for each in examples[:5]
    ]  # fmt: skip
    heads = ("request", "champion", "candidate", "decision changed", "features")
    return "### Where they differ most\n\n" + _table(heads, rows)


def _more(found: Sequence[object], shown: int) -> str:
    return f"\n\n{len(found) - shown:,} more are in `replay_findings`." if len(found) > shown else ""


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; empty without rows."""
    if not rows:
        return ""
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines)


def junit(judged: Judged, replay_id: str) -> str:
    """The findings that decide as a JUnit test suite: a breach is a failure, what is inconclusive an error."""
    deciding = [each for each in judged.findings if each.decides]
    counts = {verdict: sum(each.verdict is verdict for each in deciding) for verdict in Verdict}
    suite = ET.Element(
        "testsuite", name=f"mltrust replay {replay_id}", tests=str(len(deciding)),
        failures=str(counts[Verdict.BREACH]), errors=str(counts[Verdict.INCONCLUSIVE]),
    )  # fmt: skip
    for each in deciding:
        case = ET.SubElement(suite, "testcase", classname=f"{replay_id}.{each.measure}", name=each.subject)
        if each.verdict is Verdict.BREACH:
            ET.SubElement(case, "failure", message=each.reason, type="breach")
        elif each.verdict is Verdict.INCONCLUSIVE:
            ET.SubElement(case, "error", message=each.reason, type="inconclusive")
    ET.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(suite, encoding="unicode") + "\n"
