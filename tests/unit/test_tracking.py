"""Names that MLflow admits."""

from hypothesis import given
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name

from mltrust.io.tracking import metric_name

names = st.text(st.sampled_from("aé中/. :()x"), min_size=1, max_size=12).map(lambda text: f"effect/m/{text}")


def test_a_plain_name_stays_itself() -> None:
    assert metric_name("effect/ctr/device:ios") == "effect/ctr/device:ios"


@given(names, names)
def test_any_name_becomes_one_that_mlflow_admits_and_no_two_become_one(first: str, second: str) -> None:
    for name in (first, second, first * 40):
        _validate_metric_name(metric_name(name))
        assert len(metric_name(name)) <= 250
    assert (metric_name(first) == metric_name(second)) == (first == second)
