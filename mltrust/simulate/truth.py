"""The truth that a simulation plants, as rows that can be held against what the jobs find."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from mltrust.contract import Reason
from mltrust.errors import ConfError, PlatformError
from mltrust.simulate.faults import DUPLICATE
from mltrust.simulate.landing import Written
from mltrust.simulate.population import ATTRIBUTES, UNSTABLE
from mltrust.simulate.spec import Plant, Simulation
from mltrust.slices import OVERALL
from mltrust.verdicts import Verdict

Kind = Literal[
    "effect",
    "slice_effect",
    "srm",
    "simpson",
    "clean",
    "contamination",
    "assignment",
    "pre-exposure bias",
    "rejects",
    "duplicates",
    "drift",
    "no drift",
    "replay",
    "shadow",
    "incident",
    "decision",
]
#: The metric that effects are planted in, by its name in the experiments' conf.
GOAL = "conversion"
#: The metric that an outage shows in, by its name in the monitor's conf.
ERROR_RATE = "error_rate"
#: The replays of the demo: of the candidate that serves, and of the model that must never do.
BETTER, OVERFIT = "better_ranker", "overfit_ranker"


class Planted(NamedTuple):
    """One planted truth.

    An experiment's has `experiment_id`, the `slice_key` and `slice_value` where it shows, and the `verdict`
    that the `metric`, or the check of this kind, should reach. `clean`: no metric has anything to be found;
    its verdict is `inconclusive`, as neither gain nor harm of the goal can be shown. `simpson`: `slice_key` is
    what explains the reversal.

    Drift has the `model_name` and the `column`, in which every version breaches against its past; `no drift` names
    the model whose other columns must not.

    An outage has the `model_name`, the `metric` and the slice that its only `incident` must be named by; of
    `decision` that stop the version there must be as many as `n_lines`.

    A replay's has its id as `stream`, and the `metric` is the measure that decides, None for the gate; of a breach
    `slice_value` names the feature that it must be pinned on.

    Dirt has the `stream` (records or outcomes), the `reason_code` of rejects, and the exact `n_lines`.
    """

    kind: Kind
    words: str
    experiment_id: str | None = None
    metric: str | None = None
    slice_key: str = ""
    slice_value: str = ""
    verdict: Verdict | None = None
    stream: str | None = None
    reason_code: str | None = None
    n_lines: int | None = None
    model_name: str | None = None
    column: str | None = None

    @property
    def subject(self) -> str:
        """Whose truth it is: the experiment, the stream, or the model."""
        return self.experiment_id or self.stream or self.model_name or ""

    @property
    def what(self) -> str:
        """What is looked at, in one cell of a table."""
        where = f" in {self.slice_key}:{self.slice_value}" if self.slice_key and self.slice_value else ""
        where = where or (f" under changes of {self.slice_value}" if self.slice_value else "")
        return (self.metric or self.reason_code or self.column or self.kind) + where

    @property
    def expected(self) -> str:
        return str(self.verdict if self.verdict is not None else self.n_lines)


def planted(simulation: Simulation) -> tuple[Planted, ...]:
    """Everything that the simulation plants, experiments first.

    Verdicts are those of a simulation large enough to show its effects, as conf/simulations/demo.yaml is;
    numbers of lines hold at any size.
    """
    experiments = simulation.experiments.items()
    return (
        *(row for name, plant in experiments for row in _of_experiment(name, plant)),
        *(row for name, plant in experiments if simulation.days_before for row in _of_past(name, plant)),
        *_of_drifts(simulation),
        *_of_outages(simulation),
        *_of_replays(simulation),
        *_of_dirt("records", simulation.record_faults()),
        *_of_dirt("outcomes", simulation.outcome_faults()),
    )


def file(root: str, simulation_id: str) -> Path:
    """Where the truth of a simulation is kept: beside the tables, away from the landing folders."""
    if "://" in root:
        raise ConfError(f"root is {root}, expected a folder of this machine or a mounted one to write the truth to")
    return Path(root, "truth", f"{simulation_id}.json")


def save(path: Path, simulation: Simulation, written: Written) -> None:
    """Writes the planted truth, and how many lines of each kind were written, as JSON."""
    document = {
        "seed": simulation.seed,
        "n_units": simulation.n_units,
        "written": written._asdict(),
        "planted": [row._asdict() for row in planted(simulation)],
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise PlatformError(f"{path}: the planted truth cannot be written: {error}") from None


def _of_experiment(name: str, plant: Plant) -> Iterator[Planted]:
    yield from _mismatches(name, plant)
    yield Planted("assignment", "buckets as hashed", name, None, *OVERALL, Verdict.PASS)
    crossed = "units that change their variant" if plant.crossed_share else "no unit changes its variant"
    yield Planted(
        "contamination",
        crossed,
        name,
        None,
        *OVERALL,
        Verdict.INCONCLUSIVE if plant.crossed_share else Verdict.PASS,
    )
    if plant.share_in and plant.effect:
        yield from _reversal(name, plant)
    elif plant.effect:
        words = "conversion gains" if plant.effect > 0 else "conversion loses"
        yield Planted("effect", words, name, GOAL, *OVERALL, _verdict(plant.effect))
    else:
        yield Planted("clean", "no effect", name, GOAL, *OVERALL, Verdict.INCONCLUSIVE)
    for attribute, values in plant.effect_in.items():
        for value, effect in values.items():
            words = f"{'gains' if effect > 0 else 'loses'} on {value}"
            yield Planted("slice_effect", words, name, GOAL, attribute, value, _verdict(effect))


def _of_past(name: str, plant: Plant) -> Iterator[Planted]:
    """Devices differ in what their units buy, so that arms with other devices differ before the experiment."""
    if "device" in plant.share_in:
        metric = "past purchases"
        yield Planted("pre-exposure bias", "arms bought unequally before", name, metric, verdict=Verdict.BREACH)


def _reversal(name: str, plant: Plant) -> Iterator[Planted]:
    (attribute,) = plant.share_in
    ahead, pooled = ("ahead", "behind") if plant.effect > 0 else ("behind", "ahead")
    words = f"{ahead} in every {attribute}, {pooled} pooled"
    yield Planted("simpson", words, name, GOAL, attribute, "", Verdict.BREACH)
    yield Planted("effect", f"pooled, {pooled} by Simpson's paradox", name, GOAL, *OVERALL, _verdict(-plant.effect))
    for value in ATTRIBUTES[attribute]:
        yield Planted("slice_effect", f"{ahead} on {value}", name, GOAL, attribute, value, _verdict(plant.effect))


def _mismatches(name: str, plant: Plant) -> Iterator[Planted]:
    yield Planted("srm", "arms as allocated", name, None, *OVERALL, Verdict.PASS)
    for attribute, shares in plant.share_in.items():
        for value, share in shares.items():
            if share != plant.treatment_share:
                words = f"{share:.0%} treated, not {plant.treatment_share:.0%}"
                yield Planted("srm", words, name, None, attribute, value, Verdict.BREACH)


def _of_drifts(simulation: Simulation) -> Iterator[Planted]:
    for shift in simulation.drifts.values():
        wrong = "missing" if shift.factor is None else f"multiplied by {shift.factor:g}"
        words = f"{shift.share:.0%} {wrong} from day {shift.from_day} on"
        column = f"features.{shift.feature}"
        yield Planted("drift", words, verdict=Verdict.BREACH, model_name=simulation.model_name, column=column)
    yield Planted("no drift", "nothing else drifts", verdict=Verdict.PASS, model_name=simulation.model_name)


def _of_outages(simulation: Simulation) -> Iterator[Planted]:
    name = simulation.model_name
    for outage in simulation.outages.values():
        words = f"{outage.share:.0%} of the {outage.role}'s requests time out"
        ((attribute, value),) = outage.failing_in.items()
        yield Planted("incident", words, None, ERROR_RATE, attribute, value, Verdict.BREACH, model_name=name)
        yield Planted("decision", f"the {outage.role} is stopped", model_name=name, n_lines=1)


def _of_replays(simulation: Simulation) -> Iterator[Planted]:
    again = "the champion's scores, bit for bit"
    yield Planted("replay", again, stream=BETTER, metric="reproduced", verdict=Verdict.PASS)
    yield Planted("replay", "a better model", stream=BETTER, verdict=Verdict.PASS)
    learnt = "learnt one feature by heart"
    yield Planted(
        "replay", learnt, stream=OVERFIT, metric="instability", slice_value=UNSTABLE, verdict=Verdict.BREACH
    )
    if simulation.shadow_share:
        yield Planted("shadow", "shadows of the same requests", stream=BETTER, verdict=Verdict.PASS)


def _of_dirt(stream: str, counts: Mapping[str, int]) -> Iterator[Planted]:
    for fault, n in counts.items():
        if fault == DUPLICATE:
            yield Planted("duplicates", "the same line twice", stream=stream, n_lines=n)
        else:
            reason = Reason(fault)
            yield Planted("rejects", str(reason).replace("_", " "), stream=stream, reason_code=reason, n_lines=n)


def _verdict(effect: float) -> Verdict:
    return Verdict.PASS if effect > 0 else Verdict.BREACH
