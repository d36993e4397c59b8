"""What a run says of drift: Markdown, the metrics of its MLflow run, and the rows of `drift_findings`."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from math import isnan, nan
from typing import NamedTuple

from mltrust.drift.alarm import Key
from mltrust.drift.cells import Cells
from mltrust.drift.families import Family
from mltrust.drift.findings import Finding
from mltrust.drift.noise import SHAPE
from mltrust.drift.profile import Profile
from mltrust.drift.quality import QualityFinding
from mltrust.drift.readout import Judged
from mltrust.drift.words import subject
from mltrust.slices import OVERALL, Slice
from mltrust.verdicts import Verdict

_SHOWN, _DRAWN = 8, 6
#: Databricks' name of a comparison with the window before; every other reference is a baseline.
_DRIFT_TYPES = {"previous": "CONSECUTIVE"}
#: The family of findings that are no tests of a distribution: volume, gaps, columns that stand still.
QUALITY = "quality"


def rows(judged: Sequence[Judged]) -> list[dict[str, object]]:
    """Rows of `drift_findings`, without the names of monitor and model and the stamp of the run."""
    return [
        finding._asdict() | {"contributions": list(finding.contributions)} | _whose(each.family)
        for each in judged
        for finding in (*each.findings, *map(_as_finding, each.quality))
    ]


def _whose(family: Family) -> dict[str, object]:
    """What a finding is of, and against what."""
    return family.population._asdict() | {
        **family.window.times("window"),
        "reference": family.reference,
        **family.reference_span.times("reference"),
        "drift_type": _DRIFT_TYPES.get(family.against.kind, "BASELINE"),
        "decides": family.against.decides,
    }


def _as_finding(check: QualityFinding) -> Finding:
    """A check of the quality of data among the findings; it belongs to no family of tests."""
    found = Finding(*OVERALL, check.column, QUALITY, check.check, check.verdict, check.reason)
    return found._replace(value=check.value, pvalue=check.pvalue)


def metrics(judged: Sequence[Judged]) -> dict[str, float | None]:
    """Metrics of the run: how many tests breached, and the divergence of every column of all rows."""
    named: dict[str, float | None] = {
        "drift/breaches": float(sum(len(each.breaches) + len(each.faults) for each in judged)),
        "drift/tests": float(sum(each.findings[0].n_family for each in judged if each.findings)),
    }
    for each, finding in _overall_shapes(judged):
        named[f"jsd/{_who(each)}/{finding.column}/{each.family.reference}"] = finding.value
    return named


def _overall_shapes(judged: Sequence[Judged]) -> Iterator[tuple[Judged, Finding]]:
    for each in judged:
        for finding in each.findings:
            if not finding.slice_key and finding.measure == SHAPE and not each.family.is_pooled:
                yield each, finding


def _who(judged: Judged) -> str:
    population = judged.family.population
    arm = "" if population.arm.startswith("(") else f" {population.arm}"
    shadow = " shadow" if population.traffic == "shadow" else ""
    return f"{population.model_version}{shadow}{arm}"


def markdown(
    judged: Sequence[Judged], model_name: str, of_models: Sequence[str], n_counted: int, n_windows: int
) -> str:
    """The drift of a window in one page, after its verdict: what breached, and what each comparison found.

    `of_models` are the parts on attributions and performance.
    """
    window = judged[0].family.window if judged else None
    breaching = [each for each in judged if each.breaches or each.faults]
    head = [f"`{model_name}`, {window if window else 'no window'}: {_headline(judged, breaching)}"]
    parts = [*head, *(part for each in breaching for part in _breaches(each)), *of_models]
    parts += ["### Comparisons", _comparisons(judged)] if judged else []
    parts.append(
        f"Every test is in `drift_findings`. {n_counted} of {n_windows} windows were counted by this run; "
        "the others were kept in `drift_profile`."
    )
    return "\n\n".join(parts)


def _headline(judged: Sequence[Judged], breaching: Sequence[Judged]) -> str:
    if not judged:
        return "no model version has rows in it"
    if not breaching:
        n_tests = sum(each.findings[0].n_family for each in judged if each.findings)
        return f"nothing drifted, by {n_tests:,} tests"
    columns = dict.fromkeys(subject(finding.column) for each in breaching for finding in each.breaches)
    faults = dict.fromkeys(finding.reason for each in breaching for finding in each.faults)
    return "; ".join([*([f"{', '.join(columns)} drifted"] if columns else []), *faults])


def _breaches(judged: Judged) -> list[str]:
    """What breached, the whole before its slices, the strongest first."""
    found = sorted(judged.breaches, key=lambda each: (bool(each.slice_key), each.qvalue, -abs(each.corrected)))
    more = [f"- and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    lines = [f"- {each.reason}" for each in judged.faults]
    lines += [f"- {each.reason} (q {each.qvalue:.2g})" for each in found[:_SHOWN]]
    return [f"### Version {_who(judged)} against {judged.family.reference}", "\n".join([*lines, *more])]


def _comparisons(judged: Sequence[Judged]) -> str:
    lines = ["| version | window | against | rows | tests | breaches | verdict |", "|---|---|---|--:|--:|--:|---|"]
    for each in judged:
        n_rows = max((finding.n_current for finding in each.findings if not finding.slice_key), default=0)
        tests = each.findings[0].n_family if each.findings else 0
        cells = (
            _who(each),
            str(each.family.window),
            each.family.reference + ("" if each.family.against.decides else " (does not decide)"),
            f"{n_rows:,}",
            f"{tests:,}",
            f"{len(each.breaches) + len(each.faults):,}",
            str(each.verdict),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def rehearsal(windows: Sequence[Sequence[Judged]]) -> str:
    """How often the alarm would have fired over past windows, the newest first, and why."""
    fired = [each for each in windows if any(one.breaches or one.faults for one in each)]
    said = sum(any(one.verdict is not Verdict.INCONCLUSIVE for one in each) for each in windows)
    said_words = f"{said} windows that say anything, of {len(windows)} looked at"
    table = ["| window | fires | why |", "|---|---|---|"]
    for each in windows:
        reasons = [why for one in each for why in one.reasons]
        said_here = "; ".join(dict.fromkeys(reasons[:3])).replace("|", "\\|")
        more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        window = each[0].family.window if each else "no rows"
        table.append(f"| {window} | {'yes' if reasons else 'no'} | {said_here}{more} |")
    return f"The alarm would have fired in {len(fired)} of {said_words}.\n\n" + "\n".join(table)


Cell = tuple[datetime, float, Verdict]


def heat(history: Sequence[Mapping[str, object]]) -> dict[tuple[str, str], list[Cell]]:
    """By version and column of past findings: the window's end, its divergence, and the worst of its verdicts."""
    values: dict[tuple[str, str, datetime], float] = {}
    seen: dict[tuple[str, str, datetime], set[str]] = {}
    for row in history:
        key = (str(row["model_version"]), str(row["column"]), _end(row))
        seen.setdefault(key, set()).add(str(row["verdict"]))
        if row["measure"] == SHAPE and isinstance(row["value"], float):
            values[key] = row["value"]
    found: dict[tuple[str, str], list[Cell]] = {}
    for version, column, end in sorted(seen):
        verdicts = seen[version, column, end]
        worst = next(each for each in (Verdict.BREACH, Verdict.PASS, Verdict.INCONCLUSIVE) if each in verdicts)
        found.setdefault((version, column), []).append((end, values.get((version, column, end), nan), worst))
    return found


def series(history: Sequence[Mapping[str, object]]) -> dict[str, list[tuple[datetime, float]]]:
    """The divergence of every version and column over past windows, for the run's charts."""
    return {
        f"jsd over time/{version}/{column}": [(end, value) for end, value, _ in cells if not isnan(value)]
        for (version, column), cells in heat(history).items()
    }


def _end(row: Mapping[str, object]) -> datetime:
    end = row["as_of"]
    assert isinstance(end, datetime)
    return end


class Moved(NamedTuple):
    """A column that breached, and the shares of its cells on both sides."""

    title: str
    names: tuple[str, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]


def moved(judged: Sequence[Judged], cells: Mapping[str, Cells]) -> list[Moved]:
    """The columns and slices that breached most surely, the whole before its slices, each once."""
    found = [(finding, each) for each in judged for finding in each.breaches if not each.family.is_pooled]
    found.sort(key=lambda pair: (bool(pair[0].slice_key), pair[0].qvalue))
    first: dict[tuple[str, str, str, str], Moved] = {}
    for finding, each in found:
        key = Key(finding.column, finding.slice_key, finding.slice_value)
        title = f"{where(finding)}: version {_who(each)} against {each.family.reference}"
        sides = (each.family.baseline, each.family.current)
        if key in sides[0] and key in sides[1] and (_who(each), *key) not in first:
            before, after = (tuple(_shares(side[key])) for side in sides)
            first[_who(each), *key] = Moved(title, cells[finding.column].names, before, after)
    return list(first.values())[:_DRAWN]


def _shares(profile: Profile) -> list[float]:
    shares: list[float] = (profile.by_cell / max(profile.n_rows, 1)).tolist()
    return shares


def where(finding: Finding) -> str:
    """The column and slice of a finding, as figures name it."""
    slice_ = Slice(finding.slice_key, finding.slice_value)
    return subject(finding.column) + (f" in {slice_}" if finding.slice_key else "")
