"""CUPED on a real trial: seizures under progabide or placebo, with those counted before the treatment."""

import csv
import os
from collections import defaultdict
from pathlib import Path

import pytest

from mltrust.states.moments import Moments
from mltrust.stats.cuped import Quantity, cuped

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not os.environ.get("MLTRUST_DATA"), reason="MLTRUST_DATA is unset: it names the folder of the real data"
    ),
]

COLUMNS = ("seizures", "before")
SEIZURES, BEFORE = Quantity("seizures"), Quantity("before")


@pytest.fixture(scope="module")
def arms() -> tuple[Moments, Moments]:
    """Control and treatment: 59 patients, each with the sum of four periods and one count of before."""
    patients: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    with Path(os.environ["MLTRUST_DATA"], "classics", "epil.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            patient = patients[row["trt"], row["subject"]]
            patient[0], patient[1] = patient[0] + float(row["y"]), float(row["base"])
    control, treatment = (
        Moments.of(COLUMNS, [sums for (arm, _), sums in patients.items() if arm == name])
        for name in ("placebo", "progabide")
    )
    return control, treatment


def test_every_patient_is_a_unit(arms: tuple[Moments, Moments]) -> None:
    assert [arm.n for arm in arms] == [28, 31]


def test_the_plain_effect_is_lost_in_the_differences_between_patients(arms: tuple[Moments, Moments]) -> None:
    control, treatment = arms
    result = cuped(control=control, treatment=treatment, metric=SEIZURES, covariates=[]).comparison
    # Half of the last digit given, here and below.
    assert (result.effect, result.std_error) == pytest.approx((-2.554147, 11.736044), rel=0, abs=5e-7)


def test_seizures_of_before_take_two_thirds_of_the_variance(arms: tuple[Moments, Moments]) -> None:
    control, treatment = arms
    result = cuped(control=control, treatment=treatment, metric=SEIZURES, covariates=[BEFORE])
    # The effect of the least squares of seizures on arm and seizures before.
    assert result.comparison.effect == pytest.approx(-3.721575, rel=0, abs=5e-7)
    assert result.comparison.std_error == pytest.approx(6.587885, rel=0, abs=5e-7)
    assert result.variance_reduction == pytest.approx(0.685, abs=1e-3)


def test_with_the_theta_of_merged_arms_it_is_the_published_adjustment(arms: tuple[Moments, Moments]) -> None:
    control, treatment = arms
    both = control + treatment
    theta = both.cov("seizures", "before") / both.var("before")
    result = cuped(control=control, treatment=treatment, metric=SEIZURES, covariates=[BEFORE], theta=[theta])
    found = result.comparison.effect, result.comparison.std_error
    assert found == pytest.approx((-3.720681, 6.587631), rel=0, abs=5e-7)
