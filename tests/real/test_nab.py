"""New York's taxis (NAB): the seasonal detector with its defaults finds what people labelled."""

import os
from pathlib import Path

import pytest

from tests.bench.nab import PROBATION, Taxi, best_of, ours, score, sigmoid, taxi, windowed_gaussian

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def data() -> Taxi:
    folder = os.environ.get("MLTRUST_DATA")
    if folder is None:
        pytest.skip("MLTRUST_DATA is not set: no real data")
    return taxi(Path(folder, "nab"))


def test_the_score_is_0_for_nothing_and_nearly_100_for_everything_at_once(data: Taxi) -> None:
    assert score([], data).score == 0
    assert score([first for first, _ in data.windows], data).score == pytest.approx(100, abs=0.2)
    assert score([PROBATION + 1], data).score == pytest.approx(100 * -0.11 / 10)
    assert sigmoid(0) == 0


def test_defaults_find_the_labelled_windows_with_few_false_incidents(data: Taxi) -> None:
    found = score(ours(data), data)
    assert found.found >= 4
    assert found.false_incidents <= 5
    assert found.score >= 70


def test_it_scores_above_the_windowed_gaussian_tuned_on_this_very_file(data: Taxi) -> None:
    assert score(ours(data), data).score > best_of(windowed_gaussian(data), data)[1].score
