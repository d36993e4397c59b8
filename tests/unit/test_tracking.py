"""Names that MLflow admits."""

import threading

import mlflow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name

from mltrust.io.tracking import Run, metric_name

names = st.text(st.sampled_from("aé中/. :()x"), min_size=1, max_size=12).map(lambda text: f"effect/m/{text}")


def test_a_plain_name_stays_itself() -> None:
    assert metric_name("effect/ctr/device:ios") == "effect/ctr/device:ios"


@given(names, names)
def test_any_name_becomes_one_that_mlflow_admits_and_no_two_become_one(first: str, second: str) -> None:
    for name in (first, second, first * 40):
        _validate_metric_name(metric_name(name))
        assert len(metric_name(name)) <= 250
    assert (metric_name(first) == metric_name(second)) == (first == second)


class Client:
    """Stands in for MLflow's client, and keeps which runs it was told to write to."""

    written: list[tuple[str, str]] = []  # noqa: RUF012 - of all instances, as the server is

    def __getattr__(self, name: str) -> object:
        return lambda run_id, *_, **__: self.written.append((name, run_id))


def test_a_run_is_written_to_from_any_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow, "MlflowClient", Client)
    run = Run("r1")

    def write() -> None:
        run.metrics({"a": 1.0, "b": None})
        run.params({"p": 1})
        run.tags({"t": "x"})
        run.text("text", "t.txt")
        run.table([{"a": 1}], "t.json")

    other = threading.Thread(target=write)
    other.start()
    other.join()
    names = ["log_batch", "log_batch", "log_batch", "log_text", "log_table"]
    assert Client.written == [(name, "r1") for name in names]
