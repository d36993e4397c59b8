"""The models of the simulated service: what they learn, and their scores on a frame of requests."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql.types import DoubleType, StructField, StructType
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier, VotingClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OrdinalEncoder
from sklearn.tree import DecisionTreeClassifier

from mltrust.simulate.population import ATTRIBUTES, UNSTABLE
from mltrust.simulate.traffic import FEATURES

Scores = npt.NDArray[np.float64]


class Classifier(Protocol):
    """Probabilities of no and yes, (n, 2), for each row of a frame of features."""

    def predict_proba(self, X: pd.DataFrame, /) -> Scores: ...


class Served(NamedTuple):
    """A registered model at work; `version` is what the log names it by."""

    model: Classifier
    version: str


class Trained(NamedTuple):
    """The two models that serve, one that must never do, and some rows of their input as an example."""

    champion: Pipeline
    candidate: Pipeline
    overfit: VotingClassifier
    example: pd.DataFrame


def trained(requests: DataFrame, seed: int) -> Trained:
    """The models, trained on the purchases of past `requests` (as `traffic.past` gives them)."""
    # Rows on the driver, as scikit-learn takes them: some thousand units, however many are simulated.
    # Sorted, as a forest depends on the order of its rows.
    rows = requests.orderBy("id", "index").toArrow().to_pandas()
    X, y = rows[list(FEATURES)], rows["is_purchase"]
    champion, candidate = _champion(seed % 2**32), _candidate(seed % 2**32)
    return Trained(champion.fit(X, y), candidate.fit(X, y), _overfit(seed % 2**32).fit(X, y), X.head(5))


def scored(rows: DataFrame, served: Mapping[str, Served]) -> DataFrame:
    """`rows` with `prediction_score` by the model of their `role`, one call per batch and model.

    The models travel in the closure, so that executors need no registry. They are trees, so that a row's
    score does not depend on the batch it is in.
    """
    models = {role: each.model for role, each in served.items()}
    schema = StructType([*rows.schema, StructField("prediction_score", DoubleType())])
    return rows.mapInArrow(_scorer(models), schema)


def _scorer(
    models: Mapping[str, Classifier],
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def score(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            features = batch.select(list(FEATURES)).to_pandas()
            roles = np.asarray(batch.column("role").to_pylist(), dtype=object)
            scores = np.full(batch.num_rows, np.nan)
            for role, model in models.items():
                if (own := roles == role).any():
                    scores[own] = model.predict_proba(features[own])[:, 1]
            yield batch.append_column("prediction_score", pa.array(scores))

    return score


def _champion(seed: int) -> Pipeline:
    # One thread: its sums then have one order, and a replay gives the same bits.
    forest = RandomForestClassifier(60, max_depth=5, min_samples_leaf=50, n_jobs=1, random_state=seed)
    return _pipeline(forest)


def _candidate(seed: int) -> Pipeline:
    boosting = HistGradientBoostingClassifier(
        max_iter=120, learning_rate=0.06, max_leaf_nodes=12, min_samples_leaf=40, random_state=seed
    )
    return _pipeline(boosting)


def _overfit(seed: int) -> VotingClassifier:
    """A good model that is spoilt: beside it votes a tree that learnt `UNSTABLE` by heart.

    On what it was trained on it looks better than both others; a change in the fourth digit of that feature moves its
    score.
    """
    only = ColumnTransformer([("only", "passthrough", [UNSTABLE])])
    tree = Pipeline([("only", only), ("model", DecisionTreeClassifier(random_state=seed))])
    return VotingClassifier([("good", _candidate(seed)), ("tree", tree)], voting="soft", weights=[0.6, 0.4], n_jobs=1)


def _pipeline(model: RandomForestClassifier | HistGradientBoostingClassifier) -> Pipeline:
    """Takes features by name and gives the trees one column each: attributions are those of features."""
    codes = OrdinalEncoder(
        categories=[sorted(shares) for shares in ATTRIBUTES.values()],
        handle_unknown="use_encoded_value",
        unknown_value=-1,
    )
    numbers = [name for name in FEATURES if name not in ATTRIBUTES]
    encode = ColumnTransformer([("codes", codes, list(ATTRIBUTES)), ("numbers", "passthrough", numbers)])
    return Pipeline([("encode", encode), ("model", model)])
