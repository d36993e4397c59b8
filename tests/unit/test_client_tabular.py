"""Rows of inputs and columns of outputs, whatever holds them."""

import numpy as np
import pandas as pd
import pytest

from mltrust.client.tabular import column, rows

FRAME = pd.DataFrame({"a": [1, 2], "b": ["x", None]})


def test_rows_of_anything_with_names() -> None:
    expected = [{"a": 1, "b": "x"}, {"a": 2, "b": None}]
    assert rows(FRAME) == expected
    assert rows({"a": np.array([1, 2]), "b": ["x", None]}) == expected
    assert rows(expected) == expected
    assert rows({"a": 1, "b": "x"}) == expected[:1]
    assert rows(pd.DataFrame({"a": []})) == rows([]) == []


@pytest.mark.parametrize("nameless", [np.zeros((2, 2)), [1, 2], "text", None, 3.5])
def test_what_has_no_names_has_no_rows(nameless: object) -> None:
    assert rows(nameless) is None


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="longer"):
        rows({"a": [1], "b": [1, 2]})


@pytest.mark.parametrize(
    ("output", "where", "expected"),
    [
        (np.array([0.1, 0.9]), None, [0.1, 0.9]),
        (np.array([[0.1, 0.9], [0.2, 0.8]]), None, [0.1, 0.2]),
        (np.array([[0.1, 0.9], [0.2, 0.8]]), 1, [0.9, 0.8]),
        (np.array([[0.1, 0.9], [0.2, 0.8]]), -1, [0.9, 0.8]),
        (pd.Series([0.1, 0.9]), None, [0.1, 0.9]),
        (FRAME, None, [1, 2]),
        (FRAME, "b", ["x", None]),
        (FRAME, 1, ["x", None]),
        ([0.1, 0.9], None, [0.1, 0.9]),
        ([(0.1, "x"), (0.9, "y")], 1, ["x", "y"]),
        ([{"p": 0.1, "q": 1}, {"p": 0.9, "q": 2}], "q", [1, 2]),
        ([{"p": 0.1, "q": 1}, {"p": 0.9, "q": 2}], None, [0.1, 0.9]),
        ({"p": np.array([0.1, 0.9])}, "p", [0.1, 0.9]),
        ({"p": [0.1], "q": [2]}, 1, [2]),
        (0.5, None, [0.5]),
    ],
)
def test_columns_of_outputs(output: object, where: str | int | None, expected: list[object]) -> None:
    assert column(output, where) == expected


@pytest.mark.parametrize(
    ("output", "where"),
    [(FRAME, "c"), (FRAME, 7), (np.zeros((1, 2)), 7), (np.zeros((1, 2)), "a"), ({"p": [1]}, "q"), ([{"p": 1}], "q")],
)
def test_a_column_that_is_not_there_is_an_error(output: object, where: str | int) -> None:
    with pytest.raises((LookupError, ValueError, TypeError)):
        column(output, where)
