"""What the registry says of a model: aliases, versions, and the tags by which persons overrule rules."""

import mlflow
import pytest
from mlflow.entities.model_registry import ModelVersion, RegisteredModel, RegisteredModelAlias, RegisteredModelTag

from mltrust.io import models


class Client:
    """Stands in for MLflow's client of a registry with one model of two versions."""

    tags: list[RegisteredModelTag] = []  # noqa: RUF012 - of all instances, as the server is

    def get_registered_model(self, name: str) -> RegisteredModel:
        return RegisteredModel(name, tags=self.tags, aliases=[RegisteredModelAlias("champion", "2")])

    def search_model_versions(self, filter_string: str) -> list[ModelVersion]:
        return [ModelVersion("ranker", version, 0) for version in ("1", "2")]


def test_the_registry_says_what_an_alias_names_and_what_persons_want(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow, "MlflowClient", Client)
    monkeypatch.setattr(Client, "tags", [RegisteredModelTag("owner", "Ada")])
    assert models.named("ranker", "champion") == models.Named("2", frozenset("12"), None)
    said = {"mltrust.hold": "release", "mltrust.serve.1": "mended"}
    monkeypatch.setattr(Client, "tags", [RegisteredModelTag(*each) for each in said.items()])
    assert models.named("ranker", "champion") == models.Named("2", frozenset("12"), "release", {"1": "mended"})
