"""Models in MLflow's registry: kept with their signature, named by version and alias.

The tracking server is the caller's choice.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from types import MappingProxyType
from typing import NamedTuple, cast

import mlflow
import mlflow.sklearn
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin

from mltrust.contract import Contract
from mltrust.errors import ConfError, DataError
from mltrust.io.tracking import quiet
from mltrust.replay import plan
from mltrust.replay.spec import Replay

# Models are kept by skops, which builds only what it is told to trust: whoever may write to the artifact
# store does not thereby run code in the jobs that load a model, as with pickle. skops knows scikit-learn's
# estimators; these hold the nodes of forests and of histogram boosting, and the names of a vote's members, no code.
_TRUSTED = [
    "sklearn.tree._tree.Tree",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.utils._bunch.Bunch",
]
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


class Named(NamedTuple):
    """What the registry says of a model: the version that an alias names, all versions, and what persons say.

    `hold` is a veto against all rules, `kept` has the versions that serve whatever a rule decided, and why.
    """

    alias_version: str | None
    versions: frozenset[str]
    hold: str | None
    kept: Mapping[str, str] = MappingProxyType({})


#: A tag of a registered model with which a person keeps rules from acting; its text says why.
HOLD_TAG = "mltrust.hold"
#: Tags of a registered model, with a version behind it, by which a person has this serve; their text says why.
SERVE_TAG = "mltrust.serve."


def named(name: str, alias: str) -> Named:
    """The versions of a registered model; none and no alias where the registry does not know it."""
    client = mlflow.MlflowClient()
    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return Named(None, frozenset(), None)
        raise
    versions = client.search_model_versions(f"name = '{name}'")
    version = model.aliases.get(alias)
    kept = {tag.removeprefix(SERVE_TAG): why for tag, why in model.tags.items() if tag.startswith(SERVE_TAG)}
    known = frozenset(str(each.version) for each in versions)
    return Named(None if version is None else str(version), known, model.tags.get(HOLD_TAG), kept)


def move_alias(name: str, alias: str, *, expected: str, to: str) -> None:
    """Points the alias from the expected version to another; DataError where it names neither.

    Done again it changes nothing.
    """
    now = named(name, alias).alias_version
    if now == to:
        return
    if now != expected:
        raise DataError(f"models:/{name}@{alias} is version {now}, expected {expected}: somebody moved it")
    mlflow.MlflowClient().set_registered_model_alias(name, alias, to)


def _signature(example: pd.DataFrame, *, n_classes: int) -> ModelSignature:
    # Not inferred: MLflow warns then of integers that may be missing later, whatever the sample.
    inputs = Schema([ColSpec(_COLUMN_TYPES[str(dtype)], str(name)) for name, dtype in example.dtypes.items()])
    outputs = Schema([TensorSpec(np.dtype("float64"), (-1, n_classes))])
    return ModelSignature(inputs, outputs)


class Registered(NamedTuple):
    """A version of the registry: what it reads (name, type, whether required), and how a worker loads it.

    `environment` names packages that are here in another version than the model was registered with, `packages` all
    that it asks for as they are installed here.
    """

    name: str
    version: str
    inputs: tuple[tuple[str, str, bool], ...]
    loader: "Loader"
    environment: tuple[str, ...]
    packages: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True, slots=True)
class Loader:
    """Loads a model from its artifacts: the registry was asked once, on the driver."""

    uri: str
    tracking_uri: str
    output: str | None = None

    def __call__(self) -> Callable[[pd.DataFrame], NDArray[np.generic]]:
        """From inputs, one row each, to a number each."""
        if mlflow.get_tracking_uri() != self.tracking_uri:
            mlflow.set_tracking_uri(self.tracking_uri)
        quiet()
        model = mlflow.pyfunc.load_model(self.uri)
        # Inputs come in the types of the signature. MLflow would check every batch, and refuse whole numbers with
        # missing ones, which pandas holds as floats.
        model.metadata.signature = None
        return lambda frame: scores_in(model.predict(frame), self.output)


def scores_in(output: object, column: str | None) -> NDArray[np.generic]:
    """One number per row in what a model gave: the only column, the last of two, or the one that is named.

    Raises ValueError where the output has no such column.
    """
    if isinstance(output, pd.DataFrame):
        names, values = [str(name) for name in output.columns], output.to_numpy()
    else:
        values = np.asarray(output)
        names = [str(at) for at in range(values.shape[1])] if values.ndim == 2 else []
    if values.ndim == 1:
        return values
    if values.ndim != 2 or not names:
        raise ValueError(f"the model gave an array of shape {values.shape}, expected a column or a table")
    if column is None and len(names) <= 2:
        return np.ascontiguousarray(values[:, -1])
    if column not in names:
        raise ValueError(f"the model gives columns {', '.join(names)}; expected output to name one of them")
    return np.ascontiguousarray(values[:, names.index(column)])


def resolve(name: str, *, version: str | None, alias: str | None, output: str | None = None) -> Registered:
    """The version that is named, or that the alias points to now.

    Raises ConfError where the registry has none, or the model has no signature of named columns.
    """
    client = mlflow.MlflowClient()
    try:
        found = (
            client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, version or "")
        )
    except MlflowException as error:
        raise ConfError(f"model {name!r}: {_known(client, name)}: {error.message}") from None
    uri = client.get_model_version_download_uri(name, found.version)
    try:
        info = mlflow.models.get_model_info(f"models:/{name}/{found.version}")
    except (MlflowException, OSError) as error:
        raise ConfError(f"model {name} {found.version}: its artifacts at {uri} cannot be read: {error}") from None
    schema = info.signature.inputs if info.signature is not None else None
    if schema is None or schema.is_tensor_spec():
        raise ConfError(f"model {name} {found.version} has no signature of named columns; log it with one")
    inputs = tuple((str(each.name), _type_name(each), bool(each.required)) for each in schema.inputs)
    loader = Loader(uri, mlflow.get_tracking_uri(), output)
    return Registered(name, str(found.version), inputs, loader, *_environment(uri))


def _type_name(column: ColSpec) -> str:
    return str(getattr(column.type, "name", column.type))


def _known(client: mlflow.MlflowClient, name: str) -> str:
    versions = sorted(int(each.version) for each in client.search_model_versions(f"name = '{name}'"))
    return f"the registry has versions {', '.join(map(str, versions))}" if versions else "the registry has none"


def loadable(model: Registered) -> None:
    """Loads a model here; DataError where it cannot be, before any worker tries."""
    try:
        model.loader()
    except Exception as error:  # whatever the model's own libraries raise
        raise DataError(f"model {model} cannot be loaded: {type(error).__name__}: {error}") from None


def _environment(uri: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Requirements `name==version` of the model that are installed in another version here, in words; and all."""
    try:
        lines = mlflow.artifacts.load_text(f"{uri}/requirements.txt").splitlines()
    except (MlflowException, OSError):
        return ("what it was registered with is not known",), ()
    different, all_here = [], []
    for name, _, wanted in (line.partition("==") for line in lines if "==" in line):
        package = name.partition("[")[0].strip()
        try:
            here = installed(package)
        except PackageNotFoundError:
            here = "none"
        all_here.append(f"{package} {here}")
        if here != wanted.strip():
            different.append(f"{package} {wanted.strip()}, here {here}")
    return tuple(different), tuple(all_here)


def tag(name: str, version: str, tags: Mapping[str, str]) -> None:
    """Sets tags on a version of the registry."""
    for key, value in tags.items():
        mlflow.MlflowClient().set_model_version_tag(name, version, key, value)


def resolved(replay: Replay) -> tuple[Registered, Registered]:
    """Champion and candidate of a replay."""
    refs = (replay.champion, replay.candidate)
    champion, candidate = (resolve(ref.name, version=ref.version, alias=ref.alias, output=ref.output) for ref in refs)
    return champion, candidate


def mismatches(pair: Iterable[Registered], contract: Contract) -> list[str]:
    """What the models of a replay read that the log cannot give them."""
    features = contract.feature_types()
    return [words for each in pair for words in plan.mismatches(str(each), each.inputs, features)]
