"""SHAP values of a model's score, per input feature: how much each moved this row's score from the mean score.

    explain(model, background, scale=common_scale([model, other]))(frame)   ->   (n, features), rows in their order

Attributions are interventional (features that are left out come from the rows of `background`, not from what tends to
go with the others), so that for one background they are a fixed function of the row: their means move only if the
rows do, or the model. Per row they add up to score - mean score of the background.

- **Linear models** exactly: coefficient times distance from the background's mean. Of a classifier that is on the
  scale of log-odds (`margin`); two versions are compared on it only where both are linear.
- **Trees** (scikit-learn's forests, boosting and single trees, LightGBM, XGBoost) by shap's TreeExplainer, on the
  scale of the score: exactly of forests; of boosting, whose trees add up in log-odds, shap spreads each background
  row's difference in score in proportion to the log-odds. A row whose values do not add up is sampled instead: with
  shap 0.51 these are 1 % of the rows of HistGradientBoosting, off by up to 0.15 of a probability.
- **Anything else** that gives a score, on its scale, by sampled orders of the features (Štrumbelj & Kononenko): fixed
  orders and background rows, so that a row's attributions depend neither on its batch nor on luck.

A scikit-learn Pipeline whose encoder makes one or several columns of each feature is explained behind the encoder,
and the columns of a feature are added up. Where a column is of several features (PCA, products), the whole pipeline
is sampled.
"""

import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import is_classifier
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline

from mltrust.states.moments import FloatArray

#: A fitted model with `predict_proba`, or a `predict` that gives its score.
Model = Any
Scale = Literal["score", "margin"]
Score = Callable[[pd.DataFrame], FloatArray]
Explain = Callable[[pd.DataFrame], FloatArray]

#: Background rows from which sampled orders start, each in one order and in its reverse.
_STARTS = 32
_SEED = 20261129
# Rows that a sampled explanation scores at once, and that shap explains: beyond some seconds it draws a progress bar.
_ROWS_AT_ONCE, _TREE_ROWS = 200_000, 200
# shap sums in single precision in places: 1e-8 of a forest's probability, so this is not to be told from rounding.
_ADDS_UP = 1e-5
_TREES = ("sklearn.ensemble._forest", "sklearn.ensemble._gb", "sklearn.ensemble._hist_gradient_boosting",
          "sklearn.tree", "lightgbm", "xgboost")  # fmt: skip


def common_scale(models: Sequence[Model]) -> Scale:
    """The scale on which models are compared: that of the score, unless all are linear classifiers."""
    linear = [_is_linear(final) and is_classifier(final) for final in map(_final, models)]
    return "margin" if all(linear) else "score"


def explain(model: Model, background: pd.DataFrame, *, scale: Scale) -> Explain:
    """What gives the SHAP values (n, features) of a frame with the background's columns, in their order.

    The quickest exact way that fits, else sampling: `method_of` says which it is.
    """
    return _chosen(model, background, scale)[1]


def method_of(model: Model, background: pd.DataFrame, *, scale: Scale) -> str:
    """linear, tree or sampled: how `explain` explains the model."""
    return _chosen(model, background, scale)[0]


def score_of(model: Model, scale: Scale = "score") -> Score:
    """The model's score (n,) of a frame: the probability of the second of two classes, or the predicted value.

    ValueError where a prediction has more than two columns: there is no one score to explain.
    """
    if scale == "margin":
        predict = model.decision_function
    else:
        predict = model.predict_proba if hasattr(model, "predict_proba") else model.predict

    def score(frame: pd.DataFrame) -> FloatArray:
        found = np.asarray(predict(frame), dtype=np.float64)
        if found.ndim == 1:
            return found
        if found.shape[1] > 2:
            raise ValueError(f"a model of {found.shape[1]} classes has no one score to attribute to features")
        return found[:, -1]

    return score


def _chosen(model: Model, background: pd.DataFrame, scale: Scale) -> tuple[str, Explain]:
    owners = _owners(model, list(background.columns))
    if owners is not None and (exact := _exact(model, background, owners, scale)) is not None:
        return exact
    return "sampled", _sampled(score_of(model, scale), background)


def _exact(model: Model, background: pd.DataFrame, owners: Sequence[int], scale: Scale) -> tuple[str, Explain] | None:
    """The explanation behind the encoder, if the final model has one that adds up."""
    final, encode, n_features = _final(model), _encoder(model), background.shape[1]
    if _is_linear(final) and (scale == "margin" or not is_classifier(final)):
        method, made = "linear", _linear
    elif _is_tree(final) and scale == "score":
        method, made = "tree", _tree
    else:
        return None
    try:
        of_columns = made(final, encode(background))
    except ValueError:  # texts that a model encodes by itself
        return None

    def explain_features(frame: pd.DataFrame) -> FloatArray:
        return _summed(of_columns(encode(frame)), owners, n_features)

    return method, _mended(explain_features, score_of(model, scale), background)


def _mended(
    explain_features: Explain, score: Callable[[pd.DataFrame], FloatArray], background: pd.DataFrame
) -> Explain:
    """The explanation, by sampling where its values do not add up to score - mean score of the background."""
    of_background, otherwise = score(background), _sampled(score, background)
    tolerance = _ADDS_UP * max(1.0, float(np.ptp(of_background)))

    def explain_rows(frame: pd.DataFrame) -> FloatArray:
        found = explain_features(frame)
        missing = found.sum(axis=1) - (score(frame) - of_background.mean())
        if (off := ~(np.abs(missing) <= tolerance)).any():
            found[off] = otherwise(frame[off])
        return found

    return explain_rows


def _final(model: Model) -> Model:
    return model[-1] if isinstance(model, Pipeline) else model


def _is_linear(final: Model) -> bool:
    """Whether its score or margin is coefficients times columns; a few of scikit-learn's have another link."""
    coefficients = getattr(final, "coef_", None)
    ours = type(final).__module__.startswith(("sklearn.linear_model", "sklearn.svm._classes"))
    return (
        ours
        and coefficients is not None
        and np.asarray(coefficients).ravel().shape == (final.n_features_in_,)
        and not type(final).__name__.endswith(("PoissonRegressor", "GammaRegressor", "TweedieRegressor"))
    )


def _is_tree(final: Model) -> bool:
    return type(final).__module__.startswith(_TREES) and getattr(final, "n_classes_", 2) in (1, 2)


def _encoder(model: Model) -> Callable[[pd.DataFrame], FloatArray]:
    """What the final model is given, (n, columns)."""
    steps: Model = model[:-1] if isinstance(model, Pipeline) and len(model) > 1 else None

    def encode(frame: pd.DataFrame) -> FloatArray:
        columns: Any = frame if steps is None else steps.transform(frame)
        dense = columns.toarray() if hasattr(columns, "toarray") else columns  # one-hot codes are sparse
        return np.asarray(dense, dtype=np.float64)

    return encode


def _owners(model: Model, features: list[str]) -> list[int] | None:
    """For each column that the final model sees the position of the one feature it is made of; None if unclear."""
    if not isinstance(model, Pipeline) or len(model) < 2:
        return list(range(len(features)))
    try:
        names = model[:-1].get_feature_names_out(features)
    except (AttributeError, ValueError):  # an encoder without names
        return None
    prefixes = _prefixes(model[:-1])
    owners = [_owner(str(name), features, prefixes) for name in names]
    return [each for each in owners if each is not None] if None not in owners else None


def _prefixes(encoder: Pipeline) -> tuple[str, ...]:
    """What a ColumnTransformer writes before the names of its columns."""
    return tuple(
        f"{name}__"
        for _, step in encoder.steps
        if isinstance(step, ColumnTransformer) and step.verbose_feature_names_out
        for name, _, _ in step.transformers_
    )


def _owner(name: str, features: Sequence[str], prefixes: Sequence[str]) -> int | None:
    """The feature of a column named `<feature>` or `<feature>_<category>`; None if none or several would fit."""
    bare = next((name.removeprefix(each) for each in prefixes if name.startswith(each)), name)
    if bare in features:
        return features.index(bare)
    fitting = [at for at, feature in enumerate(features) if bare.startswith(f"{feature}_")]
    return fitting[0] if len(fitting) == 1 else None


def _summed(of_columns: FloatArray, owners: Sequence[int], n_features: int) -> FloatArray:
    found = np.zeros((len(of_columns), n_features))
    for column, owner in enumerate(owners):
        found[:, owner] += of_columns[:, column]
    return found


def _linear(final: Model, background: FloatArray) -> Callable[[FloatArray], FloatArray]:
    coefficients, centre = np.asarray(final.coef_, dtype=np.float64).ravel(), background.mean(axis=0)
    return lambda columns: coefficients * (columns - centre)


def _tree(final: Model, background: FloatArray) -> Callable[[FloatArray], FloatArray]:
    shap = _shap()
    explainer = shap.TreeExplainer(
        final,
        data=background,
        feature_perturbation="interventional",
        model_output="probability" if is_classifier(final) else "raw",
    )

    def values(columns: FloatArray) -> FloatArray:
        parts = [
            np.asarray(explainer.shap_values(columns[at : at + _TREE_ROWS], check_additivity=False))
            for at in range(0, len(columns), _TREE_ROWS)
        ]
        found: FloatArray = np.concatenate(parts) if parts else np.zeros((0, columns.shape[1]))
        return found[..., -1] if found.ndim == 3 else found

    return values


def _shap() -> Any:
    """The module: it takes seconds to import, and only workers that explain trees need it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it asks of Matplotlib and Numba is deprecated there
        return importlib.import_module("shap")


def _sampled(score: Score, background: pd.DataFrame) -> Explain:
    """Shapley values over some orders of the features, each walked from a row of the background and in reverse.

    Per order a row's features replace those of the background row one after the other, and what each adds is its
    own. Whatever the orders, the values add up to score - mean score of the background rows used.

    References
    ----------
    Štrumbelj, E. and Kononenko, I. (2014). Explaining prediction models and individual predictions with feature
    contributions. Knowledge and Information Systems 41, 647-665, algorithm 1; reversed orders as in Mitchell, R.,
    Cooper, J., Frank, E. and Holmes, G. (2022). Sampling permutations for Shapley value estimation. JMLR 23, 4.1.
    """
    starts, k = background.iloc[:_STARTS], background.shape[1]
    rng = np.random.default_rng(_SEED)
    drawn = [(start, rng.permutation(k)) for start in range(len(starts))]
    walks = [(start, order) for start, forth in drawn for order in (forth, forth[::-1])]

    def values(frame: pd.DataFrame) -> FloatArray:
        n, found = len(frame), np.zeros((len(frame), k))
        if not n:
            return found
        at_once = max(1, _ROWS_AT_ONCE // (n * (k + 1)))
        remaining = iter(walks)
        while some := list(islice(remaining, at_once)):
            scores = score(_mixed(frame, starts, some)).reshape(len(some), k + 1, n)
            for (_, order), steps in zip(some, np.diff(scores, axis=1), strict=True):
                found[:, order] += steps.T
        return found / len(walks)

    return values


def _mixed(frame: pd.DataFrame, starts: pd.DataFrame, walks: Sequence[tuple[int, NDArray[np.int64]]]) -> pd.DataFrame:
    """Per walk k + 1 blocks of the frame's rows: in the i-th the first i features of the order are their own."""
    n, k = len(frame), frame.shape[1]
    taken = np.empty((len(walks), k + 1, k, n), dtype=np.intp)
    for at, (start, order) in enumerate(walks):
        taken[at] = n + start
        for step, feature in enumerate(order):
            taken[at, step + 1 :, feature] = np.arange(n)
    columns = {}
    for at, name in enumerate(frame.columns):
        both = pd.concat([frame[name], starts[name]], ignore_index=True)
        columns[name] = both.take(taken[:, :, at].ravel()).reset_index(drop=True)
    return pd.DataFrame(columns)


#: What MLflow's signatures call the types of columns, and how pandas holds them.
_NUMBERS = {"double": "float64", "float": "float32", "long": "int64", "integer": "int32"}


def typed(columns: Mapping[str, pd.Series], types: Mapping[str, str]) -> pd.DataFrame:
    """The model's input, with the columns and types of its signature; missing numbers are nan, other values None.

    Integers with a missing value are doubles, as pandas reads them; an unknown type keeps the column as it is.
    """
    return pd.DataFrame({name: _typed(columns[name], kind) for name, kind in types.items()})


def _typed(column: pd.Series, kind: str) -> pd.Series:
    is_missing = column.isna()
    if kind in _NUMBERS:
        return column.astype(np.dtype("float64" if is_missing.any() else _NUMBERS[kind]))
    if kind == "boolean" and not is_missing.any():
        return column.astype(np.dtype("bool"))
    if kind in ("string", "boolean"):
        values = column.astype(np.dtype("object")).to_numpy()
        values[is_missing.to_numpy()] = None
        return pd.Series(values, index=column.index, dtype="object")
    return column
