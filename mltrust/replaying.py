"""What replay_traffic and compare_shadow share: a set scored part by part, and a verdict written down everywhere.

Scores of a part are one commit under the hash of the plan that they belong to: a run that died is finished by the
next one, and scores of two plans never mix.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import nan
from pathlib import Path
from typing import NamedTuple, cast

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mltrust.conf import Conf, refuse
from mltrust.errors import DataError, PlatformError
from mltrust.io import models
from mltrust.io.models import Registered
from mltrust.io.tables import Lakehouse
from mltrust.replay import gate, masking
from mltrust.replay.compare import BOTH, CANDIDATE, PAIR, Estimate, Mismatch
from mltrust.replay.gate import Finding, Judged
from mltrust.replay.plan import plan_id, selection_id
from mltrust.replay.spec import Gate, Perturbation, Replay
from mltrust.report import replay as report
from mltrust.runtime import Tracked
from mltrust.spark import policy_values, replays
from mltrust.spark.logs import kept
from mltrust.spark.replay_sets import KEY
from mltrust.spark.replays import Frame
from mltrust.spark.scoring import Input, Scorer, Task, scored
from mltrust.stats import off_policy
from mltrust.verdicts import Exit

log = logging.getLogger("mltrust")
SETS, ROWS, FINDINGS = "replay_sets", "replay_rows", "replay_findings"
_EXAMPLES = 50
_TASKS = 64


class ReplaySet(NamedTuple):
    """The newest export of a set as its commit says, of which champion and how many rows; the table's version now."""

    version: int
    content_hash: str
    n_rows: int
    n_weights: int
    champion: str


def newest_set(lake: Lakehouse, conf: Conf) -> ReplaySet:
    """The set of a replay; DataError where it was never exported, or by a conf that selects other rows.

    The version is the newest of the table, in which units may have been erased since the export.
    """
    replay = conf.the_replay()
    lake.require(SETS, made_by="export_replay_set")
    said = lake.metadata(SETS, replay_id=replay.set_id)
    if not said:
        raise DataError(
            f"{SETS} holds no set {replay.set_id!r}; run export_replay_set with the conf of {replay.set_id!r}"
        )
    if replay.select is not None and said["selection"] != selection_id(replay, conf.contract.scrub):
        raise DataError(
            f"{SETS}: the set {replay.set_id!r} was exported with another select, label or scrub than {conf.path} "
            "has now; run export_replay_set again"
        )
    version = lake.versions(SETS)[SETS]
    n_rows, n_weights = (int(cast(int, said[name])) for name in ("n_rows", "n_weights"))
    return ReplaySet(version, str(said["content_hash"]), n_rows, n_weights, str(said["champion"]))


@dataclass(frozen=True, slots=True)
class Work:
    """One run on one pair of models."""

    conf: Conf
    lake: Lakehouse
    tracked: Tracked
    champion: Registered
    candidate: Registered
    kind: str = "replay"
    plan: str = ""
    perturbations: tuple[Perturbation, ...] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def replay(self) -> Replay:
        return self.conf.the_replay()

    def announce(self, verdict: str) -> None:
        """Says on the candidate's version in the registry how this replay stands; one that died stays `running`."""
        name = f"mltrust.{self.kind}.{self.replay.replay_id}"
        tags = {name: verdict, f"{name}.run_id": self.tracked.run.run_id}
        models.tag(self.candidate.name, self.candidate.version, tags)


def begin(conf: Conf, lake: Lakehouse, tracked: Tracked, kind: str = "replay") -> Work:
    """The models by the versions that they have now. ConfError where the log cannot give them what they read."""
    champion, candidate = pair = models.resolved(conf.the_replay())
    refuse(conf.path, models.mismatches(pair, conf.contract))
    work = Work(conf, lake, tracked, champion, candidate, kind)
    work.announce("running")
    tracked.run.params({"champion": str(champion), "candidate": str(candidate)})
    return work


def scores(work: Work, made: ReplaySet) -> tuple[Work, DataFrame]:
    """The set's rows with both models' scores, after those that are missing were made; with the plan they are of.

    Raises DataError where the set is of another champion, or after all parts a row has no scores.
    """
    replay = work.replay
    if str(work.champion) != made.champion:
        raise DataError(
            f"the set {replay.set_id!r} is of {made.champion}, the champion is {work.champion}; export again"
        )
    types = work.conf.contract.feature_types()
    read = {name for each in (work.champion, work.candidate) for name, *_ in each.inputs}
    perturbations = tuple(replay.expanded({name: kind for name, kind in types.items() if name in read}))
    n_tasks = _n_tasks(work)
    plan = plan_id(
        replay, set_hash=made.content_hash, champion=str(work.champion), candidate=str(work.candidate),
        perturbations=perturbations, environment=(*work.champion.packages, *work.candidate.packages), n_tasks=n_tasks,
    )  # fmt: skip
    work = replace(work, plan=plan, perturbations=perturbations)
    work.tracked.run.params({"plan": plan})
    rows = work.lake.read(SETS, made.version, {"replay_id": replay.set_id})
    if (n := rows.count()) != made.n_rows:
        raise DataError(
            f"{SETS} holds {n:,} of the {made.n_rows:,} rows of {replay.set_id!r}, as after an erasure; export again"
        )
    _score(work, rows, n_tasks)
    # At one version: another run under the same id may write beside this one.
    mine = work.lake.read(ROWS, work.lake.versions(ROWS)[ROWS], {"replay_id": replay.replay_id, "plan": plan})
    whole = replays.joined(mine, rows)
    if (n := whole.count()) != made.n_rows:
        raise DataError(
            f"{ROWS} holds {n:,} of the {made.n_rows:,} rows of {replay.set_id!r}; export and replay it again"
        )
    return work, whole


def _n_tasks(work: Work) -> int:
    """Into how many tasks a part is cut; where the platform leaves that open, a number of our own."""
    given = work.lake.spark.conf.get("spark.sql.shuffle.partitions", "") or ""
    return int(given) if given.isdigit() else _TASKS


def _score(work: Work, rows: DataFrame, n_tasks: int) -> None:
    """Makes the parts that are not there yet, each in one commit."""
    replay, mine = work.replay, {"replay_id": work.replay.replay_id}
    there = work.lake.read(ROWS, where=mine | {"plan": work.plan}).select("part").distinct().collect()
    done = {row["part"] for row in there}
    todo = [name for name in replays.part_names(replay) if name not in done]
    if done and todo:
        log.info("%d of %d parts are there already; going on", len(done), replay.parts)
    work.tracked.run.metrics({"parts_scored": float(len(todo)), "parts_found": float(len(done))})
    if not todo:
        return
    if not done:
        _forget(work)
    for model in (work.champion, work.candidate):
        models.loadable(model)
    task = _task(work, rows)
    for part in todo:
        own = replays.to_score(rows, replay, part, work.perturbations, n_tasks)
        made = scored(own, task, [*KEY, "logged"]).withColumns(
            {"replay_id": F.lit(replay.replay_id), "plan": F.lit(work.plan), "part": F.lit(part)}
        )
        # The first part of a plan takes the place of everything that an earlier plan left.
        where = mine | ({"part": part} if done else {})
        work.lake.replace(work.tracked.stamped(made), ROWS, where, {**mine, "plan": work.plan, "part": part})
        done.add(part)
        log.info("part %s scored", part)


def _forget(work: Work) -> None:
    """Removes the findings of an earlier plan: they say nothing of this one, which may never be finished."""
    mine = {"replay_id": work.replay.replay_id, "kind": work.kind}
    work.lake.replace(work.lake.rows(FINDINGS, []), FINDINGS, mine)


def _task(work: Work, rows: DataFrame) -> Task:
    scorers = [
        Scorer(role, each.loader, tuple(Input(*one) for one in each.inputs))
        for role, each in zip(BOTH, (work.champion, work.candidate), strict=True)
    ]
    context = replays.context(rows, work.conf.contract.feature_types())
    return Task(tuple(scorers), work.perturbations, context, work.replay.batch_rows, noise=True)


class Compared(NamedTuple):
    """What a comparison found, before it is judged, and the rows that it shows."""

    findings: Sequence[Finding]
    mismatches: Sequence[Mismatch]
    examples: Sequence[Mapping[str, object]]
    n_rows: int


def compared(work: Work, rows: DataFrame, *, n_weights: int = 1) -> Compared:
    """The findings of rows with both models' scores, and the rows on which they differ most."""
    replay = work.replay
    with kept(rows) as once:
        frame = replays.prepared(once, replay, work.perturbations, max_values=work.conf.settings.limits.max_values)
        with kept(frame.rows) as exploded:
            evidence = replays.evidence(frame._replace(rows=exploded), work.perturbations)
        found = gate.findings(evidence) + _noise(frame) + _policy_values(work, once, n_weights)
        inputs = [name for name, *_ in work.champion.inputs]
        mismatches = replays.mismatched(once, replay, inputs)
        examples: Sequence[Mapping[str, object]] = replays.worst(once, replay, _EXAMPLES)
    if work.kind == "shadow":  # of the log itself, which nobody scrubbed
        scrubbing = masking.plan(work.conf.contract)
        examples = [masking.shown(each, scrubbing) for each in examples]
    return Compared(found, mismatches, examples, next((each.n_rows for each in evidence.values()), 0))


def _noise(frame: Frame) -> list[Finding]:
    if not frame.n_noise:
        return []
    return [gate.extra("noise_floor", PAIR, frame.n_noise, Estimate(frame.scale.noise_floor, nan, frame.n_noise))]


def _policy_values(work: Work, rows: DataFrame, n_weights: int) -> list[Finding]:
    """What the candidate's decisions would have earned by the log's propensities, or why that cannot be said."""
    if work.replay.actions is None or work.kind == "shadow":
        return []
    if n_weights > 1:
        words = "the set was drawn at several rates; expected a sample without at_least and hard_within"
        return _refused(words)
    reduced = policy_values.reduced(rows, work.replay)
    n = reduced.state.sums.n
    if n == 0:
        return _refused(", ".join(f"{count:,} rows: {why}" for why, count in reduced.left_out.items()) or "no rows")
    overlap = off_policy.overlap(reduced.state)
    left_out = ", ".join(f"{count:,} with {why}" for why, count in reduced.left_out.items())
    work.notes.append(
        f"### What its decisions would have earned\n\n{n:,} requests with a propensity"
        + (f" (left out: {left_out})" if left_out else "")
        + f"; effective sample size {overlap.ess:,.1f}, largest weight {overlap.max_weight:.4g} "
        f"({overlap.max_share:.2%} of all)." + (f" Warning: {overlap.warning}." if overlap.warning else "")
    )
    return [
        gate.extra(f"value_{each.estimator}", CANDIDATE, n, Estimate(each.value, each.std_error, n), each.refusal)
        for each in off_policy.estimates(reduced.state, with_model=True)
    ]


def _refused(words: str) -> list[Finding]:
    return [
        gate.extra(f"value_{name}", CANDIDATE, 0, Estimate(nan, nan, 0), words)
        for name in ("ipw", "snipw", "dm", "dr")
    ]


def conclude(work: Work, found: Compared, rules: Gate, files: Mapping[str, str]) -> Exit:
    """Judges, and says the verdict in the table, in the run, on the candidate's version and in files."""
    replay, run = work.replay, work.tracked.run
    judged = gate.judged(found.findings, rules)
    _save(work, judged)
    page = report.markdown(
        judged,
        replay,
        models=(str(work.champion), str(work.candidate)),
        n_rows=found.n_rows,
        mismatches=found.mismatches,
        environment=tuple(dict.fromkeys((*work.champion.environment, *work.candidate.environment))),
        notes=work.notes,
        examples=found.examples,
    )
    documents = {"junit": report.junit(judged, replay.replay_id), "summary": f"**{judged.verdict}**: {page}\n"}
    run.text(documents["junit"], "junit.xml")
    run.table([each._asdict() for each in judged.findings], "findings.json")
    run.table(found.examples, "differ_most.json")
    run.metrics(report.metrics(judged.findings))
    for name, path in files.items():
        _write(Path(path), documents[name])
    work.announce(str(judged.verdict))
    return work.tracked.conclude(judged.verdict, page)


def _save(work: Work, judged: Judged) -> None:
    mine = {"replay_id": work.replay.replay_id, "kind": work.kind}
    known = mine | {"plan": work.plan, "champion": str(work.champion), "candidate": str(work.candidate)}
    rows = [each._asdict() | known | work.tracked.stamp for each in judged.findings]
    work.lake.replace(work.lake.rows(FINDINGS, rows), FINDINGS, mine, {**known, "verdict": str(judged.verdict)})


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PlatformError(f"{path}: cannot be written: {error.strerror}") from None
