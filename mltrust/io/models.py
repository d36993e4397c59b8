"""Models in MLflow's registry: kept with their signature, named by version and alias.

The tracking server is the caller's choice.
"""

from importlib.metadata import version as installed
from typing import cast

import mlflow
import mlflow.sklearn
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec
from sklearn.base import ClassifierMixin

# Models are kept by skops, which builds only what it is told to trust: whoever may write to the artifact
# store does not thereby run code in the jobs that load a model, as with pickle. skops knows scikit-learn's
# estimators; these two hold the nodes of forests and of histogram boosting, and no code.
_TRUSTED = ["sklearn.tree._tree.Tree", "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"]
_COLUMN_TYPES = {"object": "string", "str": "string", "bool": "boolean", "int64": "long", "float64": "double"}


def register(model: ClassifierMixin, *, name: str, alias: str, example: pd.DataFrame) -> str:
    """The version under which the fitted classifier is registered as `name`; `alias` then points to it.

    Every call makes a new version. As a pyfunc the model gives probabilities, one column per class. The
    signature takes the names and types of `example`'s columns, which must have no missing values.
    """
    info = mlflow.sklearn.log_model(
        model,
        name=name,
        registered_model_name=name,
        signature=_signature(example, n_classes=model.predict_proba(example).shape[1]),
        input_example=example,
        pyfunc_predict_fn="predict_proba",
        serialization_format=mlflow.sklearn.SERIALIZATION_FORMAT_SKOPS,
        skops_trusted_types=_TRUSTED,
        # Named here, as MLflow would start a process to find them out.
        pip_requirements=[f"{each}=={installed(each)}" for each in ("scikit-learn", "skops", "numpy", "pandas")],
    )
    version = str(info.registered_model_version)
    mlflow.MlflowClient().set_registered_model_alias(name, alias, version)
    return version


def load(name: str, version: str) -> ClassifierMixin:
    """The classifier registered as this version of `name`."""
    return cast(ClassifierMixin, mlflow.sklearn.load_model(f"models:/{name}/{version}"))


def versions(name: str) -> list[str]:
    """The versions of a model that the registry has."""
    return [str(each.version) for each in mlflow.MlflowClient().search_model_versions(f"name = '{name}'")]


def inputs(name: str, version: str) -> dict[str, str]:
    """The inputs of a registered model and their types, in the order of its signature."""
    signature = mlflow.models.get_model_info(f"models:/{name}/{version}").signature
    return {str(each.name): str(each.type.name) for each in signature.inputs.inputs}


def _signature(example: pd.DataFrame, *, n_classes: int) -> ModelSignature:
    # Not inferred: MLflow warns then of integers that may be missing later, whatever the sample.
    inputs = Schema([ColSpec(_COLUMN_TYPES[str(dtype)], str(name)) for name, dtype in example.dtypes.items()])
    outputs = Schema([TensorSpec(np.dtype("float64"), (-1, n_classes))])
    return ModelSignature(inputs, outputs)
