"""The ship rule's own error: whole experiments through the readout, with nothing to find or with harm planted."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta
from typing import NamedTuple

import numpy as np

from mltrust.experiment.cells import (
    ARM_KEYS,
    DAY,
    UNITS,
    ExperimentStates,
    by_day,
    mature_block,
    metric_block,
    overall_of,
    slices_by_day,
    slices_of,
)
from mltrust.experiment.readout import readout
from mltrust.experiment.spec import Experiment, Inference
from mltrust.metrics import Metric
from mltrust.slices import Slicing
from mltrust.states.moments import Moments
from mltrust.stats.means import Margin
from tests.calibration.laws import seeded

RUNS, BLOCK = 2_000, 250
N_UNITS, N_DAYS = 6_000, 14
START = date(2026, 10, 5)
DEVICES, DEVICE_SHARES, DEVICE_RATES = ("ios", "android", "tv"), (0.5, 0.3, 0.2), np.array([0.09, 0.10, 0.125])
MARGIN = 0.05

# With a prior its posterior is normal, where beta ones would take most of the time; it decides nothing.
BOUGHT = Metric("bought", "proportion", "purchases", role="goal", window_days=1, prior_sd=Margin(relative=0.5))
SLOW = Metric(
    "latency", "ratio", "latency_ms", denominator="n_requests", role="guardrail", direction="decrease",
    margin=Margin(relative=MARGIN), window_days=1,
)  # fmt: skip
INFERENCES: tuple[Inference, ...] = ("fixed", "always_valid", "group_sequential")
#: Days after the start on which the experiment is read, until one of them says something else than to keep running.
READ_AFTER = (7, N_DAYS)
EXPERIMENT = Experiment(
    experiment_id="e",
    log="log",
    control="control",
    phases={START: {"control": 1.0, "treatment": 1.0}},
    metrics=(BOUGHT, SLOW),
    unit="unit_id",
    slices=Slicing({"device": "features.device"}),
    planned_end=START + timedelta(days=N_DAYS),
    horizon=N_UNITS,
)


Cell = tuple[dict[str, str], dict[str, Moments]]


class Scenario(NamedTuple):
    """What is true: the treatment's goal and guardrail as multiples of the control's; the largest P(ship) allowed."""

    name: str
    goal: float
    guardrail: float
    promised: float


SCENARIOS = (
    # A goal is shown by a two-sided test: half of alpha on the side that ships.
    Scenario("no effect", 1.0, 1.0, EXPERIMENT.alpha / 2),
    Scenario("harm at the margin, goal +50 %", 1.5, 1 + MARGIN, EXPERIMENT.alpha),
    Scenario("goal -20 %", 0.8, 1.0, EXPERIMENT.alpha / 2),
)


def simulate_ship(scenario: Scenario, first: int, runs: int) -> dict[str, int]:
    """How often each recommendation was given, as `<inference>: <recommendation>`; block `first` of the runs."""
    rng, found = seeded(f"ship {scenario.name} {first}"), Counter[str]()
    for _ in range(runs):
        cells = drawn_cells(rng, scenario)
        known = {day: _upto(cells, day) for day in (START + timedelta(days=after) for after in READ_AFTER)}
        for inference in INFERENCES:
            found[f"{inference}: {_ended(known, replace(EXPERIMENT, inference=inference))}"] += 1
    return dict(found)


def _ended(known: Mapping[date, ExperimentStates], experiment: Experiment) -> str:
    """What whoever reads the experiment on these days is told to do, the first time that it is not to wait."""
    told = ""
    for day, states in known.items():
        told = readout(states, experiment, day).recommendation
        if told != "keep running":
            break
    return told


def drawn_cells(rng: np.random.Generator, scenario: Scenario) -> list[Cell]:
    """Units of two arms, three devices and two weeks."""
    arm = rng.integers(0, 2, N_UNITS)
    device = rng.choice(len(DEVICES), N_UNITS, p=DEVICE_SHARES)
    day = rng.integers(0, N_DAYS, N_UNITS)
    bought = rng.random(N_UNITS) < DEVICE_RATES[device] * np.where(arm, scenario.goal, 1)
    requests = 1.0 + rng.poisson(2, N_UNITS)
    own = rng.gamma(16, 100 / 16, N_UNITS)  # a unit's own latency, around which those of its requests lie
    latency = own * rng.gamma(9 * requests, 1 / 9) * np.where(arm, scenario.guardrail, 1)
    values = {"purchases": bought, "latency_ms": latency, "n_requests": requests}
    shape = (2, N_DAYS, len(DEVICES))
    codes = np.ravel_multi_index((arm, day, device), shape)
    return _cells(codes, shape, {name: np.asarray(each, dtype=np.float64) for name, each in values.items()})


def _cells(codes: np.ndarray, shape: tuple[int, int, int], values: Mapping[str, np.ndarray]) -> list[Cell]:
    n_cells = int(np.prod(shape))

    def reduced(columns: Sequence[str]) -> list[Moments]:
        sample = np.column_stack([values[name] for name in columns]) if columns else np.empty((N_UNITS, 0))
        return Moments.by_group(tuple(columns), codes, n_cells, sample)

    blocks = {UNITS: reduced(()), mature_block(BOUGHT): reduced(())}
    blocks |= {metric_block(metric): reduced(metric.columns()) for metric in EXPERIMENT.metrics}
    cells = []
    for code in range(n_cells):
        arm, day, device = np.unravel_index(code, shape)
        names = (EXPERIMENT.arms[arm], "0", "no", (START + timedelta(days=int(day))).isoformat(), DEVICES[device])
        if blocks[UNITS][code].n:
            own = {name: states[code] for name, states in blocks.items()}
            cells.append((dict(zip((*ARM_KEYS, DAY, "device"), names, strict=True)), own))
    return cells


def _upto(cells: Sequence[Cell], as_of: date) -> ExperimentStates:
    """The states of the units of the days before as_of, whose windows of a day are over."""
    seen = [(values, blocks) for values, blocks in cells if values[DAY] < as_of.isoformat()]
    return ExperimentStates(
        overall_of(seen), {("device",): slices_of(seen, ("device",))}, by_day(seen), slices_by_day(seen, "device")
    )
