"""How often the readout's skew flag is up, next to the skewness that the law has."""

import numpy as np

from mltrust.states.moments import Moments
from mltrust.stats.skew import skew
from tests.calibration.grid import Piece
from tests.calibration.laws import seeded, with_past

RUNS = 500
_COLUMNS = ("y", "squares")


def flagged(piece: Piece, runs: int) -> dict[str, float]:
    """In how many runs the flag was up."""
    rng, population, n = seeded(piece.name), with_past(piece.law), 0
    for _ in range(runs):
        arms = []
        for size in piece.arms:
            y = population.units(rng, size)[:, 0]
            arms.append(Moments.of(_COLUMNS, np.column_stack([y, y * y])))
        n += skew(control=arms[0], treatment=arms[1], column="y", squares="squares").kind == "skewed"
    return {"runs": runs, "flagged": n}
