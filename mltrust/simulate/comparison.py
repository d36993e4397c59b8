"""Planted against found: holds what the jobs found in a simulated lakehouse against its planted truth."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from mltrust.monitor.finding import OF_DRIFT
from mltrust.simulate.truth import Planted
from mltrust.verdicts import Verdict, combine

Row = Mapping[str, object]


class Found(NamedTuple):
    """Rows of the result tables, as dicts, and the rejects and duplicates counted from them.

    `drift` are findings of features of a model in its last window, against its past; `incidents` as they stand.
    """

    effects: Sequence[Row]
    checks: Sequence[Row]
    drift: Sequence[Row]
    rejects: Mapping[tuple[str, str], int]
    duplicates: Mapping[str, int]
    replays: Sequence[Row] = ()
    incidents: Sequence[Row] = ()
    decisions: Sequence[Row] = ()


class Compared(NamedTuple):
    """One planted truth with what was found of it."""

    planted: Planted
    found: str

    @property
    def agrees(self) -> bool:
        return self.found == self.planted.expected


def compare(planted: Sequence[Planted], found: Found) -> list[Compared]:
    """What was found of every planted truth; 'nothing' where there is no such row."""
    return [Compared(row, _found(row, planted, found)) for row in planted]


def _found(row: Planted, planted: Sequence[Planted], found: Found) -> str:
    if row.kind == "rejects":
        return str(found.rejects.get((str(row.stream), str(row.reason_code)), 0))
    if row.kind == "duplicates":
        return str(found.duplicates.get(str(row.stream), 0))
    if row.kind in ("drift", "no drift"):
        return _drifted(row, planted, found.drift)
    if row.kind in ("replay", "shadow"):
        return _of_replay(row, found.replays)
    if row.kind == "incident":
        return _of_incident(row, found.incidents)
    if row.kind == "decision":
        done = [each for each in found.decisions if (each["action"], each["state"]) == ("stop", "done")]
        return str(sum(each["model_name"] == row.model_name for each in done))
    where: dict[str, object] = {"experiment_id": row.experiment_id, "slice_key": row.slice_key}
    if row.kind == "simpson":
        rows, where = found.checks, where | {"check": "simpson", "metric": row.metric}
    elif row.kind in ("contamination", "assignment", "pre-exposure bias"):
        rows, where = found.checks, where | {"check": row.kind} | ({"metric": row.metric} if row.metric else {})
    elif row.kind == "srm":
        of_all = {"check": "srm", "method": "chi-square", "slice_value": row.slice_value}
        rows, where = found.checks, where | of_all
    else:
        rows = [each for each in found.effects if each["role"] != "diagnostic"]
        where |= {"metric": row.metric, "slice_value": row.slice_value}
    verdicts = {str(each["verdict"]) for each in rows if where.items() <= each.items()}
    return " and ".join(sorted(verdicts)) or "nothing"


def _drifted(row: Planted, planted: Sequence[Planted], findings: Sequence[Row]) -> str:
    """Breach where any test of the column did; of `no drift`, of any column that nothing was planted in.

    What too little data could not say hides nothing that another test of the column says.
    """
    known = {each.column for each in planted if each.kind == "drift"}
    own = [each for each in findings if each["model_name"] == row.model_name]
    verdicts = {str(each["verdict"]) for each in own if _is_looked_at(row, str(each["column"]), known)}
    return next(
        (str(each) for each in (Verdict.BREACH, Verdict.PASS, Verdict.INCONCLUSIVE) if each in verdicts), "nothing"
    )


def _is_looked_at(row: Planted, column: str, known: Collection[str | None]) -> bool:
    return column == row.column if row.kind == "drift" else column not in known


def _of_replay(row: Planted, findings: Sequence[Row]) -> str:
    """The verdict of what decides; a breach counts only where all in breach changes the feature that is planted."""
    own = [
        each for each in findings if (each["replay_id"], each["kind"]) == (row.stream, row.kind) and each["decides"]
    ]
    own = [each for each in own if row.metric is None or each["measure"] == row.metric]
    if not own:
        return "nothing"
    wrong = [str(each["perturbation"]) for each in own if each["verdict"] == Verdict.BREACH]
    if row.slice_value and wrong and not all(f"({row.slice_value})" in name for name in wrong):
        return f"breach under {', '.join(wrong)}"
    return str(combine(Verdict(str(each["verdict"])) for each in own))


def _of_incident(row: Planted, incidents: Sequence[Row]) -> str:
    """Breach where the model has one incident beside those of drift and it is named as planted, else their names."""
    own = [each for each in incidents if each["model_name"] == row.model_name and not _is_of_drift(each)]
    names = [(each["metric"], each["slice_key"], each["slice_value"]) for each in own]
    if names == [(row.metric, row.slice_key, row.slice_value)]:
        return str(Verdict.BREACH)
    return " and ".join(f"{metric} in {key or 'all'}:{value}" for metric, key, value in names) or "nothing"


def _is_of_drift(incident: Row) -> bool:
    return str(incident["metric"]).startswith(OF_DRIFT)


def unplanted(planted: Sequence[Planted], found: Found) -> list[str]:
    """Failed checks and decision-set breaches that no planted truth explains, in words.

    A mismatch or a reversal planted in an attribute also shows in the crossings with that attribute.
    """
    alarms = [row for row in (*found.effects, *found.checks) if row["decides"] and row["verdict"] == Verdict.BREACH]
    strange = [row for row in found.incidents if not any(_is_behind(truth, row) for truth in planted)]
    return [
        *(_words(row) for row in alarms if not any(_explains(truth, row) for truth in planted)),
        *(f"{row['model_name']}: incident of {row['metric']} in {row['slice_value'] or 'all'}" for row in strange),
    ]


def _is_behind(truth: Planted, incident: Row) -> bool:
    """Whether an incident is what was planted: an outage in this metric, or drift of this column."""
    if truth.kind == "incident":
        return truth.metric == incident["metric"]
    return truth.kind == "drift" and _is_of_drift(incident) and str(truth.column) in str(incident["metric"])


def _explains(truth: Planted, row: Row) -> bool:
    if truth.verdict is not Verdict.BREACH or truth.experiment_id != row["experiment_id"]:
        return False
    if "check" not in row:
        return truth.kind == "effect" and truth.metric == row["metric"]
    here = dict(zip(*(str(row[name]).split(" x ") for name in ("slice_key", "slice_value")), strict=False))
    if row["check"] == "pre-exposure bias":
        return truth.kind == row["check"]
    if row["check"] == "simpson":
        return truth.kind == "simpson" and truth.slice_key in here
    return truth.kind == "srm" and here.get(truth.slice_key) == truth.slice_value


def _words(row: Row) -> str:
    where = f" in {row['slice_key']}:{row['slice_value']}" if row["slice_key"] else ""
    what = " ".join(str(row[name]) for name in ("check", "metric") if row.get(name))
    return f"{row['experiment_id']}: {what}{where}: {row['reason']}"


def verdict_of(experiment_id: str, planted: Sequence[Planted]) -> Verdict:
    """The verdict that analyze_experiment should reach: of what decides, the overall effect and any breach."""
    own = [row for row in planted if row.experiment_id == experiment_id and row.verdict is not None]
    deciding = [
        row for row in own if row.kind in ("effect", "clean") or (row.kind != "slice_effect" and _breach(row))
    ]
    return combine(row.verdict for row in deciding if row.verdict is not None)


def _breach(row: Planted) -> bool:
    return row.verdict is Verdict.BREACH
