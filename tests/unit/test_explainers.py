"""SHAP values per input feature, against their definition: every subset of features, every background row."""

from itertools import combinations
from math import factorial
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from mltrust.spark.explainers import Scale, common_scale, explain, method_of, score_of, typed
from mltrust.states.moments import FloatArray

N = 600
RNG = np.random.default_rng(11)
FRAME = pd.DataFrame(
    {
        "device": RNG.choice(["mobile", "desktop", "tablet"], N),
        "age": RNG.integers(16, 90, N),
        "price": RNG.exponential(1, N),
    }
)
ODDS = (FRAME["device"] == "mobile") * (FRAME["price"] - 1) * 2 + (FRAME["age"] - 50) / 20
LABEL = (ODDS + RNG.logistic(size=N) > 0).astype(int)
BACKGROUND, ROWS = FRAME.iloc[:24], FRAME.iloc[100:104]


def by_definition(model: Any, scale: Scale = "score") -> FloatArray:
    """Shapley's value of each feature, whose subsets are scored with the rest from every row of the background."""
    names = list(FRAME.columns)
    subsets = [frozenset(each) for size in range(len(names) + 1) for each in combinations(names, size)]
    mixed = [
        BACKGROUND.assign(**{name: row[name] for name in subset}) for _, row in ROWS.iterrows() for subset in subsets
    ]
    scores = score_of(model, scale)(pd.concat(mixed)).reshape(len(ROWS), len(subsets), len(BACKGROUND)).mean(axis=2)
    value = {subset: scores[:, at] for at, subset in enumerate(subsets)}
    found = np.zeros((len(ROWS), len(names)))
    for at, name in enumerate(names):
        for subset in subsets:
            if name not in subset:
                weight = factorial(len(subset)) * factorial(len(names) - len(subset) - 1) / factorial(len(names))
                found[:, at] += weight * (value[subset | {name}] - value[subset])
    return found


def encoder(one_hot: bool = False) -> ColumnTransformer:
    codes = OneHotEncoder(sparse_output=False) if one_hot else OrdinalEncoder()
    return ColumnTransformer([("codes", codes, ["device"]), ("numbers", "passthrough", ["age", "price"])])


def fitted(model: Any, one_hot: bool = False) -> Pipeline:
    return Pipeline([("encode", encoder(one_hot)), ("model", model)]).fit(FRAME, LABEL)


FOREST = fitted(RandomForestClassifier(20, max_depth=4, random_state=0))
BOOSTING = fitted(HistGradientBoostingClassifier(max_iter=20, max_leaf_nodes=6, random_state=0))
LOGISTIC = fitted(LogisticRegression(max_iter=1_000), one_hot=True)


FORESTS = {"forest": FOREST, "regression": fitted(RandomForestRegressor(20, max_depth=4, random_state=0))}
GRADIENT = fitted(GradientBoostingClassifier(n_estimators=20, random_state=0))


@pytest.mark.parametrize("name", FORESTS)
def test_forests_are_explained_exactly_on_the_scale_of_the_score(name: str) -> None:
    assert method_of(FORESTS[name], BACKGROUND, scale="score") == "tree"
    found = explain(FORESTS[name], BACKGROUND, scale="score")(ROWS)
    # shap keeps some sums in single precision.
    np.testing.assert_allclose(found, by_definition(FORESTS[name]), atol=1e-6)


@pytest.mark.parametrize("model", [GRADIENT, BOOSTING], ids=["gradient", "by histograms"])
def test_boosting_is_explained_closely_and_adds_up(model: Pipeline) -> None:
    assert method_of(model, BACKGROUND, scale="score") == "tree"
    found = explain(model, BACKGROUND, scale="score")(ROWS)
    assert_adds_up(model, found, atol=1e-6)
    np.testing.assert_allclose(found, by_definition(model), atol=0.02)


def assert_adds_up(model: Any, found: FloatArray, *, atol: float, rows: pd.DataFrame = ROWS) -> None:
    score = score_of(model)
    np.testing.assert_allclose(found.sum(axis=1), score(rows) - score(BACKGROUND).mean(), atol=atol)


def test_rows_of_which_shap_gives_values_that_do_not_add_up_are_sampled() -> None:
    """Deep trees of boosting by histograms: shap 0.51 is off by more than 0.01 on some rows, whatever the reason."""
    numbers = pd.DataFrame(np.random.default_rng(0).normal(size=(3_000, 6)), columns=list("abcdef"))
    label = numbers["a"] * numbers["b"] + numbers["c"] > 0
    model = HistGradientBoostingClassifier(max_iter=20, max_leaf_nodes=12, random_state=0).fit(numbers, label)
    found = explain(model, numbers.iloc[:50], scale="score")(numbers.iloc[100:250])
    score = score_of(model)
    expected = score(numbers.iloc[100:250]) - score(numbers.iloc[:50]).mean()
    # A row that is sampled adds up to the mean score of the 32 background rows that it starts from.
    of_starts = score(numbers.iloc[100:250]) - score(numbers.iloc[:32]).mean()
    off = np.abs(found.sum(axis=1) - expected) > 1e-5
    np.testing.assert_allclose(found[off].sum(axis=1), of_starts[off], atol=1e-12)
    assert 0 < off.sum() < 30


def test_a_linear_classifier_is_explained_exactly_in_log_odds() -> None:
    assert common_scale([LOGISTIC]) == "margin"
    assert method_of(LOGISTIC, BACKGROUND, scale="margin") == "linear"
    found = explain(LOGISTIC, BACKGROUND, scale="margin")(ROWS)
    np.testing.assert_allclose(
        found.sum(axis=1), score_of(LOGISTIC, "margin")(ROWS) - score_of(LOGISTIC, "margin")(BACKGROUND).mean()
    )
    # The three columns of the device are as one player, as the model is additive.
    np.testing.assert_allclose(found, by_definition(LOGISTIC, "margin"), atol=1e-10)


def test_a_linear_regression_is_explained_exactly_in_its_own_unit() -> None:
    model = fitted(LinearRegression())
    assert common_scale([model]) == "score"
    assert method_of(model, BACKGROUND, scale="score") == "linear"
    np.testing.assert_allclose(explain(model, BACKGROUND, scale="score")(ROWS), by_definition(model), atol=1e-10)


def test_versions_of_two_kinds_are_compared_on_the_scale_of_the_score() -> None:
    assert common_scale([LOGISTIC, FOREST]) == "score"
    assert method_of(LOGISTIC, BACKGROUND, scale="score") == "sampled"


class Service:
    """A model that nobody knows anything about but its scores."""

    def __init__(self, model: Pipeline) -> None:
        self._model = model

    def predict(self, frame: pd.DataFrame) -> FloatArray:
        return np.asarray(self._model.predict_proba(frame)[:, 1])


@pytest.mark.parametrize("model", [Service(FOREST), LOGISTIC], ids=["unknown", "logistic"])
def test_anything_else_is_sampled_and_adds_up(model: Any) -> None:
    assert method_of(model, BACKGROUND, scale="score") == "sampled"
    found = explain(model, BACKGROUND, scale="score")(ROWS)
    assert_adds_up(model, found, atol=1e-12)
    # 24 starts, each in two orders out of 6: the error is that of 48 draws of what a feature adds.
    np.testing.assert_allclose(found, by_definition(model), atol=0.06)
    assert np.corrcoef(found.ravel(), by_definition(model).ravel())[0, 1] > 0.98


def test_the_values_of_a_row_do_not_depend_on_its_batch() -> None:
    for model in (FOREST, BOOSTING, Service(FOREST)):
        one = explain(model, BACKGROUND, scale="score")
        together = one(FRAME.iloc[100:120])
        apart = np.concatenate([one(FRAME.iloc[100:101]), one(FRAME.iloc[101:120])])
        assert together.tolist() == apart.tolist()


def test_an_encoder_that_mixes_features_leaves_the_pipeline_to_be_sampled() -> None:
    numbers = FRAME[["age", "price"]]
    mixing = make_pipeline(PCA(2), RandomForestClassifier(5, max_depth=3, random_state=0)).fit(numbers, LABEL)
    assert method_of(mixing, numbers.iloc[:24], scale="score") == "sampled"
    scaling = make_pipeline(StandardScaler(), RandomForestClassifier(5, max_depth=3, random_state=0))
    assert method_of(scaling.fit(numbers, LABEL), numbers.iloc[:24], scale="score") == "tree"


def test_a_column_whose_name_fits_two_features_belongs_to_neither() -> None:
    frame = pd.DataFrame({"a": FRAME["device"], "a_b": FRAME["device"], "z": FRAME["price"]})
    encode = ColumnTransformer([("codes", OneHotEncoder(), ["a", "a_b"]), ("numbers", "passthrough", ["z"])])
    model = Pipeline([("encode", encode), ("model", RandomForestClassifier(5, max_depth=3, random_state=0))])
    assert method_of(model.fit(frame, LABEL), frame.iloc[:24], scale="score") == "sampled"


def test_a_model_of_three_classes_has_no_one_score() -> None:
    model = RandomForestClassifier(5, random_state=0).fit(FRAME[["age"]], FRAME["device"])
    with pytest.raises(ValueError, match="3 classes"):
        explain(model, FRAME[["age"]].iloc[:5], scale="score")(FRAME[["age"]].iloc[:2])


def test_inputs_take_the_types_of_the_signature() -> None:
    columns = {
        "n": pd.Series([1.0, 2.0]),
        "gap": pd.Series([1.0, np.nan]),
        "text": pd.Series(["a", None]),
        "flag": pd.Series([True, None]),
        "yes": pd.Series([True, False], dtype="object"),
    }
    found = typed(columns, {"n": "long", "gap": "long", "text": "string", "flag": "boolean", "yes": "boolean"})
    assert [str(each) for each in found.dtypes] == ["int64", "float64", "object", "object", "bool"]
    assert found["text"].tolist() == ["a", None]
    assert found["flag"].tolist() == [True, None]
