"""Rows of what a model is given and columns of what it gives back, whatever holds them.

Frames and arrays are known by what they can do, so that nothing here imports pandas or numpy.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, cast, runtime_checkable


@runtime_checkable
class _Frame(Protocol):
    """What is needed of a pandas DataFrame."""

    columns: Sequence[object]

    def to_dict(self, orient: str) -> object: ...


@runtime_checkable
class _Array(Protocol):
    """What is needed of a numpy array or a pandas Series."""

    def tolist(self) -> object: ...


def rows(given: object) -> list[Mapping[str, object]] | None:
    """A mapping of names to values per row; None where the input has no names, as an array has none.

    ValueError where columns differ in length.
    """
    if isinstance(given, _Frame):
        return cast(list[Mapping[str, object]], given.to_dict("records"))
    if isinstance(given, Mapping):
        columns = {str(name): _values(each) for name, each in given.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if isinstance(given, list) and all(isinstance(row, Mapping) for row in given):
        return list(given)
    return None


def column(output: object, where: str | int | None) -> list[object]:
    """One value per row: of the column `where`, by name or position, by default of the only or the first one.

    LookupError, ValueError or TypeError where the output has no such column.
    """
    if isinstance(output, _Frame):
        split = cast(dict[str, list[list[object]]], output.to_dict("split"))
        at = list(output.columns).index(where) if isinstance(where, str) else where or 0
        return [row[at] for row in split["data"]]
    if isinstance(output, Mapping):
        return _values(_named(output, where))
    return [_cell(row, where) for row in _values(output)]


def _values(given: object) -> list[object]:
    """The elements of an array or a sequence; a scalar alone."""
    plain = given.tolist() if isinstance(given, _Array) else given
    return list(plain) if isinstance(plain, list | tuple) else [plain]


def _cell(row: object, where: str | int | None) -> object:
    if isinstance(row, Mapping):
        return _named(row, where)
    if isinstance(row, list | tuple):
        return cast(Sequence[object], row)[cast(int, where or 0)]
    return row


def _named(values: Mapping[str, object], where: str | int | None) -> object:
    return values[where if isinstance(where, str) else list(values)[where or 0]]
