"""The shipped conf, to be read and to be spoilt."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT

SHIPPED = ROOT / "conf"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(SHIPPED, tmp_path / "conf")


def edited(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path
