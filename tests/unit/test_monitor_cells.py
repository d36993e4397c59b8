"""Cells of a bucket add up to the series of every version, arm and slice, as if the rows had been there."""

from datetime import UTC, datetime

import numpy as np
import pytest

from mltrust.monitor.cells import NO_ARM, Cells, Row, Values, rolled_up
from mltrust.monitor.series import SeriesKey
from mltrust.monitor.spec import Arms, Monitor, SeriesMetric, SeriesSpec
from mltrust.slices import Slicing

BUCKET = datetime(2026, 11, 2, tzinfo=UTC)
METRICS = {
    "requests": SeriesMetric("count"),
    "errors": SeriesMetric("share", value="x"),
    "score": SeriesMetric("mean", value="y"),
}


def monitor(arms: Arms | None = None) -> Monitor:
    slices = Slicing({"device": "features.device", "region": "features.region"}, (("device",), ("device", "region")))
    return Monitor("m", "log", "m", series=SeriesSpec(METRICS, slices=slices, arms=arms))


def drawn(n: int = 4000) -> tuple[list[dict[str, str]], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    choices = {
        "model_version": ["1", "2"],
        "arm": ["c", "t", NO_ARM],
        "device": ["ios", "web"],
        "region": ["a", "b", "c"],
    }
    columns = [rng.choice(values, n).tolist() for values in choices.values()]
    labels = [dict(zip(choices, row, strict=True)) for row in zip(*columns, strict=True)]
    return labels, rng.random(n) < 0.1, rng.normal(1e6, 1, n)


def celled(labels: list[dict[str, str]], errors: np.ndarray, score: np.ndarray) -> Cells:
    groups: dict[tuple[str, ...], list[int]] = {}
    for at, label in enumerate(labels):
        groups.setdefault(tuple(label.values()), []).append(at)
    columns = {name: [key[at] for key in groups] for at, name in enumerate(labels[0])}
    values = {}
    for name, of in (("requests", np.ones(len(labels))), ("errors", errors.astype(float)), ("score", score)):
        parts = [of[rows] for rows in groups.values()]
        values[name] = Values(
            np.array([float(len(part)) for part in parts]),
            np.array([part.mean() for part in parts]),
            np.array([((part - part.mean()) ** 2).sum() for part in parts]),
        )
    return Cells({"bucket": [BUCKET] * len(groups), **columns}, values)


def rows_of(arms: Arms | None = None) -> dict[SeriesKey, Row]:
    return {row.key: row for row in rolled_up(celled(*drawn()), monitor(arms), list(METRICS))}


def test_cells_add_up_to_what_the_rows_say() -> None:
    labels, errors, score = drawn()
    found = rows_of()
    ios_a = np.array([label["device"] == "ios" and label["region"] == "a" for label in labels])
    of_two = np.array([label["model_version"] == "2" for label in labels])
    for version, key, value, mask in (
        ("(all)", "", "", np.ones(len(labels), bool)),
        ("(all)", "device x region", "ios x a", ios_a),
        ("2", "device x region", "ios x a", ios_a & of_two),
    ):
        share, mean = (found["m", version, "", name, key, value] for name in ("errors", "score"))  # type: ignore[index]
        assert share.n_requests == mask.sum()
        assert share.value == pytest.approx(errors[mask].mean(), rel=1e-12)
        assert mean.value == pytest.approx(score[mask].mean(), rel=1e-12)
        # Values of a million with a deviation of one: sums of squares would have lost it.
        assert mean.std_error == pytest.approx(score[mask].std(ddof=1) / np.sqrt(mask.sum()), rel=1e-9)


def test_declared_sets_of_slices_are_there_and_no_others() -> None:
    assert {key.slice_key for key in rows_of()} == {"", "device", "device x region"}


def test_arms_have_series_and_requests_without_an_arm_have_none() -> None:
    found = rows_of(Arms("experiment", "e"))
    assert {key.arm for key in found} == {"", "c", "t"}
    both = {key.metric for key in found if key.arm and key.model_version != "(all)"}
    assert both == {"requests"}


def test_no_cells_are_no_series() -> None:
    assert rolled_up(Cells({"bucket": []}, {}), monitor(), list(METRICS)) == []
