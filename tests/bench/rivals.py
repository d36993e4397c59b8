"""The windows of tests.bench.drift given to Evidently and NannyML, each in an environment of its own."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.bench.employment import CATEGORIES, COLUMNS, NUMBERS, Rows

#: What is installed for each; their own newest versions on PyPI import with these of their dependencies only.
RIVALS = {
    "Evidently": ("evidently==0.7.23", "pandas==2.3.3", "numpy<2.4", "pyarrow"),
    "NannyML": ("nannyml==0.13.1", "pandas==2.3.3", "numpy<2.4", "statsmodels==0.15.0", "pyarrow"),
}
SCRIPT = Path(__file__).with_name("rival.py")

#: The columns that a tool alarms on, of a reference and a window.
Ask = Callable[[Rows, Rows], list[str]]


def python_of(name: str, folder: Path) -> Path:
    """The interpreter of a rival's environment, which is made once."""
    place = folder / name.lower()
    python = place / "bin" / "python"
    if not (place / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *RIVALS[name]], check=True)
        (place / "ready").touch()
    return python


@contextmanager
def asking(name: str, folder: Path) -> Iterator[Ask]:
    """A rival at work in a process of its own."""
    command = [str(python_of(name, folder)), str(SCRIPT), name.lower()]
    with (
        TemporaryDirectory() as place,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process,
    ):
        yield partial(_asked, process, Path(place))
        assert process.stdin is not None
        process.stdin.close()


def _asked(process: "subprocess.Popen[str]", place: Path, reference: Rows, window: Rows) -> list[str]:
    assert process.stdin is not None
    assert process.stdout is not None
    files = {"reference": reference, "window": window}
    for file, rows in files.items():
        pq.write_table(table(rows), place / file)
    process.stdin.write(json.dumps({file: str(place / file) for file in files}) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError(f"{process.args} ended with {process.wait()}")
    found: list[str] = json.loads(answer)
    return found


def table(rows: Rows) -> pa.Table:
    """The columns as a user would have them in a frame: numbers, and categories as text."""
    numbers = {name: pa.array(rows.numbers[name], from_pandas=True) for name in NUMBERS}
    texts = {name: pa.array(texts_of(rows.codes[name], rows.names[name])) for name in CATEGORIES}
    return pa.table({name: (numbers | texts)[name] for name in COLUMNS})


def texts_of(codes: np.ndarray, names: Sequence[str]) -> list[str | None]:
    return [None if code < 0 else names[code] for code in codes.tolist()]
