"""The notebooks run on the suite's lakehouse and show what the tables hold."""

import os
from unittest import mock

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT
from tests.jobs.conftest import World


@pytest.mark.slow
def test_the_readout_notebook_shows_an_experiment_without_a_reversal(ranker: World) -> None:
    assert_the_notebook_shows_the_tables(ranker, "ranker_v2")


def test_the_readout_notebook_shows_the_verdicts_of_the_tables(world: World) -> None:
    assert_the_notebook_shows_the_tables(world, "free_shipping")


def assert_the_notebook_shows_the_tables(world: World, experiment_id: str) -> None:
    notebook = nbformat.read(ROOT / "notebooks/experiment_readout.ipynb", as_version=4)
    lakehouse = str(world.folder / ".lakehouse/recommendations")
    with mock.patch.dict(os.environ, {"MLTRUST_LAKEHOUSE": lakehouse, "MLTRUST_EXPERIMENT": experiment_id}):
        NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    shown = [output.get("data", {}) for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    n_effects = world.lake().read("experiment_effects", where={"experiment_id": experiment_id}).count()
    assert f"{experiment_id} as of 2026-11-02: {n_effects} effects" in shown[0]["text/plain"]
    assert ("Simpson" in shown[1]["text/html"]) == (experiment_id == "free_shipping")
    assert "image/png" in shown[-1]


def test_the_notebooks_are_kept_without_outputs() -> None:
    for path in ROOT.glob("notebooks/*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)
