"""Shadow calls: the champion's answers stay what they are, whatever the candidate does."""

import sys
import threading
from collections.abc import Callable, Iterator, Mapping

import pytest

from mltrust.client import ContractError, InferenceLogger
from mltrust.client.shadow import Features, Model, Shadow, ShadowCounts, shadow
from mltrust.record import Row
from tests.unit.test_client import CONTRACT, PATIENCE, READER, Memory

Predict = Callable[[Features], float]


class World:
    """A champion that says the age, a candidate of the test's own, and what was logged of both."""

    def __init__(self) -> None:
        self.sink = Memory()
        self.logger = InferenceLogger(CONTRACT, self.sink)

    def serve(self, candidate: Predict, champion: Predict = lambda given: float(str(given["age"]))) -> Shadow[float]:
        return shadow(
            Model("ranker", "1", champion),
            Model("ranker", "2", candidate),
            self.logger,
            feature_version="f02",
            capacity=3,
        )

    def rows(self) -> list[Row]:
        self.logger.flush(PATIENCE)
        rows = [READER.read(line) for line in self.sink.records()]
        assert all(isinstance(row, dict) for row in rows), rows
        return sorted(rows, key=lambda row: str(row["traffic"]))  # type: ignore[arg-type]


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.logger.close()


def test_both_are_logged_under_one_request(world: World) -> None:
    serve = world.serve(lambda given: 0.25)
    assert serve({"age": 31}, unit_id="u1", item_id="i", experiments=[{"experiment_id": "e"}]) == 31
    assert serve.wait(PATIENCE)
    production, shadowed = world.rows()
    assert (production["traffic"], production["model_version"], production["prediction_score"]) == (
        "production",
        "1",
        31,
    )
    assert (shadowed["traffic"], shadowed["model_version"], shadowed["prediction_score"]) == ("shadow", "2", 0.25)
    for name in ("request_id", "item_id", "unit_id", "event_time", "experiments", "features", "feature_version"):
        assert production[name] == shadowed[name], name
    assert production["latency_ms"] is not None
    assert serve.counts() == ShadowCounts(served=1, shadowed=1, skipped=0, failed=0)


def test_a_given_request_id_is_kept(world: World) -> None:
    serve = world.serve(lambda given: 0.25)
    serve({"age": 31}, request_id="r7")
    assert serve.wait(PATIENCE)
    assert [row["request_id"] for row in world.rows()] == ["r7", "r7"]


def raises(given: Mapping[str, object]) -> float:
    raise RuntimeError("broken")


def exits(given: Mapping[str, object]) -> float:
    sys.exit(1)


def mutates(given: Mapping[str, object]) -> float:
    given["nested"]["list"].append(2)  # type: ignore[index]
    given["age"] = -1  # type: ignore[index]
    return 0.0


@pytest.mark.parametrize(("candidate", "error_type"), [(raises, "RuntimeError"), (exits, "SystemExit")])
def test_what_a_candidate_raises_is_logged_and_touches_nobody(
    world: World, candidate: Predict, error_type: str
) -> None:
    serve = world.serve(candidate)
    assert [serve({"age": 1}), serve({"age": 2})] == [1, 2]
    assert serve.wait(PATIENCE)
    failed = [row for row in world.rows() if row["traffic"] == "shadow"]
    assert [(row["status"], row["error_type"], row["prediction_score"]) for row in failed] == [
        ("error", error_type, None)
    ] * 2
    assert serve.counts() == ShadowCounts(served=2, shadowed=0, skipped=0, failed=2)


def test_a_candidate_that_changes_its_input_changes_nothing_else(world: World) -> None:
    features: dict[str, object] = {"age": 31, "nested": {"list": [1]}}
    serve = world.serve(mutates)
    assert serve(features) == 31
    assert serve.wait(PATIENCE)
    assert features == {"age": 31, "nested": {"list": [1]}}
    assert [row["features"]["age"] for row in world.rows()] == [31, 31]  # type: ignore[index]
    assert {row["extra"] for row in world.rows()} == {'{"features": {"nested": {"list": [1]}}}'}


def test_a_champion_that_changes_its_input_is_logged_with_what_it_was_given(world: World) -> None:
    seen: list[object] = []

    def candidate(given: Features) -> float:
        seen.append(given["age"])
        return 0.0

    features: dict[str, object] = {"age": 31, "nested": {"list": [1]}}
    serve = world.serve(candidate, champion=mutates)
    serve(features)
    assert serve.wait(PATIENCE)
    assert features["age"] == -1, "the champion gets the caller's own object, as without a shadow"
    assert seen == [31]
    assert [row["features"]["age"] for row in world.rows()] == [31, 31]  # type: ignore[index]


def test_a_candidate_that_hangs_delays_nobody_and_the_rest_is_skipped_and_counted(world: World) -> None:
    gate, entered = threading.Event(), threading.Event()

    def hangs(given: Features) -> float:
        entered.set()
        return float(gate.wait(PATIENCE))

    serve = world.serve(hangs)
    serve({"age": 0})
    assert entered.wait(PATIENCE), "the thread has the first request, and the queue has room for three"
    assert [serve({"age": at}) for at in range(1, 10)] == list(range(1, 10))
    assert serve.counts() == ShadowCounts(served=10, shadowed=0, skipped=6, failed=0)
    assert not serve.wait(0.01)
    gate.set()
    assert serve.wait(PATIENCE)
    assert serve.counts().shadowed == 4


def test_what_the_champion_raises_is_logged_raised_and_still_shadowed(world: World) -> None:
    serve = world.serve(lambda given: 0.5, champion=raises)
    with pytest.raises(RuntimeError, match="broken"):
        serve({"age": 31})
    assert serve.wait(PATIENCE)
    production, shadowed = world.rows()
    assert (production["status"], production["error_type"]) == ("error", "RuntimeError")
    assert shadowed["prediction_score"] == 0.5


def test_features_that_cannot_be_copied_are_served_and_not_shadowed(world: World) -> None:
    serve = world.serve(lambda given: 0.5)
    assert serve({"age": 31, "lock": threading.Lock()}) == 31
    assert serve.counts() == ShadowCounts(served=1, shadowed=0, skipped=1, failed=0)


def test_score_and_action_are_read_from_answers_and_a_broken_reader_breaks_no_answer(world: World) -> None:
    def action(answer: tuple[str, float]) -> str:
        return answer[0]

    def score(answer: tuple[str, float]) -> float:
        return answer[1] if answer[0] == "show" else answer[7]  # type: ignore[misc]

    serve = shadow(
        Model("ranker", "1", lambda given: ("show", 0.75)),
        Model("ranker", "2", lambda given: ("hide", 0.25)),
        world.logger,
        feature_version="f02",
        score=score,
        action=action,
    )
    assert serve({"age": 31}) == ("show", 0.75)
    assert serve.wait(PATIENCE)
    assert world.logger.flush(PATIENCE).invalid == 1
    production = READER.read(world.sink.records()[0])
    assert isinstance(production, dict)
    assert (production["action"], production["prediction_score"]) == ("show", 0.75)


def test_a_strict_logger_speaks_up(world: World) -> None:
    with InferenceLogger(CONTRACT, Memory(), strict=True) as strict:
        model = Model("ranker", "1", lambda given: 0.5)
        serve = shadow(model, model, strict, feature_version="f02")
        with pytest.raises(ContractError, match=r"features\.age"):
            serve({"age": "old"})
