"""What the conf of a monitor says of what it watches."""

import re
from dataclasses import dataclass
from typing import ClassVar

_ID = re.compile(r"[A-Za-z0-9_.-]+\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Monitor:
    """One monitor watches the versions of one model of a log."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    monitor_id: str
    log: str
    model_name: str
    description: str = ""

    def __post_init__(self) -> None:
        if not _ID.match(self.monitor_id):
            raise ValueError(f"monitor_id is {self.monitor_id!r}, expected letters, digits, _, - and .")
        if not self.model_name:
            raise ValueError("model_name is '', expected the name of a model in the log")
