"""A lakehouse in memory for the driver side of a scan, which needs little of one."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

Record = dict[str, Any]


class Row(Record):
    """A row as Spark collects it."""

    def asDict(self) -> Record:  # noqa: N802 - the name that Spark gives it
        return dict(self)


class Rows:
    """What is read of a table."""

    def __init__(self, rows: Sequence[Record]) -> None:
        self._rows = rows

    def select(self, *names: str) -> "Rows":
        return Rows([{name: row[name] for name in names} for row in self._rows])

    def collect(self) -> list[Row]:
        return [Row(row) for row in self._rows]


class Tables:
    """Stands in for a Lakehouse."""

    def __init__(self) -> None:
        self.told: dict[str, object] = {}
        self.rows_of: dict[str, list[Record]] = defaultdict(list)

    def read(self, name: str, version: int | None = None, where: Mapping[str, str] | None = None) -> Rows:
        wanted = (where or {}).items()
        return Rows([row for row in self.rows_of[name] if wanted <= row.items()])

    def append(self, rows: Sequence[Mapping[str, object]], name: str) -> None:
        self.rows_of[name] += [dict(row) for row in rows]

    def rows(self, name: str, rows: Sequence[Mapping[str, object]]) -> list[Record]:
        return [dict(row) for row in rows]

    def replace(
        self,
        rows: Sequence[Record],
        name: str,
        where: Mapping[str, str],
        within: Mapping[str, Sequence[tuple[Any, Any]]],
    ) -> None:
        def is_replaced(row: Record) -> bool:
            inside = (any(low <= row[column] < high for low, high in spans) for column, spans in within.items())
            return where.items() <= row.items() and all(inside)

        self.rows_of[name] = [row for row in self.rows_of[name] if not is_replaced(row)] + list(rows)

    def metadata(self, name: str, **wanted: str) -> dict[str, object]:
        return self.told
