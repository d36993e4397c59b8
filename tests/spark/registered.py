"""Models of three kinds in a registry of their own: scikit-learn, LightGBM and plain Python."""

import os
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from lightgbm import LGBMClassifier
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from sklearn.linear_model import LogisticRegression

from mltrust.io import models as registry

FRAME = pd.DataFrame(
    {
        "age": np.arange(400) % 60,
        "price": np.linspace(1, 50, 400),
        "device": np.where(np.arange(400) % 3, "tv", "web"),
    }
)
LABELS = (FRAME["age"] + FRAME["price"] > 55).astype(int)
NUMBERS = ["age", "price"]
_TYPES = {"age": "long", "price": "double", "device": "string"}


def signature(*names: str, optional: tuple[str, ...] = ()) -> ModelSignature:
    return ModelSignature(
        Schema([ColSpec(_TYPES.get(name, "double"), name, required=name not in optional) for name in names])
    )


def log_sklearn() -> str:
    """The version of a logistic regression on both numbers."""
    model = LogisticRegression().fit(FRAME[NUMBERS], LABELS)
    return registry.register(model, name="linear", alias="champion", example=FRAME[NUMBERS].head())


def log_lightgbm() -> None:
    booster = LGBMClassifier(n_estimators=20, min_child_samples=5, num_threads=1, verbose=-1).fit(
        FRAME[NUMBERS], LABELS
    )
    mlflow.lightgbm.log_model(
        booster.booster_, name="boosted", registered_model_name="boosted", signature=signature(*NUMBERS),
        pip_requirements=["lightgbm"],
    )  # fmt: skip


def log_python(loads: Path) -> None:
    """A model that says in a file that it was loaded, raises on devices that it does not know and on age 13."""

    class Plain(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        def load_context(self, context: object) -> None:
            with loads.open("a") as file:
                file.write(f"{os.getpid()}\n")

        def predict(self, context: object, model_input: pd.DataFrame, params: object = None) -> pd.Series:
            unknown = set(model_input["device"]) - {"tv", "web", None}
            if unknown:
                raise ValueError(f"no device {sorted(unknown)[0]}")
            if (model_input["age"] == 13).any():
                raise ZeroDivisionError("age 13")
            return model_input["age"].fillna(-1.0) / 100

    mlflow.pyfunc.log_model(
        name="plain", python_model=Plain(), registered_model_name="plain", signature=signature("age", "device"),
        pip_requirements=["pandas"],
    )  # fmt: skip
