"""What an experiment's conf says of its planning."""

from dataclasses import dataclass
from typing import ClassVar

from mltrust.bounds import one_or_more

#: Two weeks of arrivals are the least that tell how arrivals fall.
FEWEST_WEEKS = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """How the duration of an experiment is planned.

    `history_weeks` are the weeks of new units that are looked at, beside those in which the last of them mature;
    `max_weeks` is the longest duration that is considered. `traffic_share` is the share of the log's units that
    will be in the experiment, in any arm; `where`, a SQL condition on a record, says which of its rows expose.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    history_weeks: int = 4
    max_weeks: int = 8
    traffic_share: float = 1.0
    where: str | None = None

    def __post_init__(self) -> None:
        if self.history_weeks < FEWEST_WEEKS:
            raise ValueError(f"history_weeks is {self.history_weeks}, expected {FEWEST_WEEKS} or more")
        one_or_more(self, "max_weeks")
        if not 0 < self.traffic_share <= 1:
            raise ValueError(f"traffic_share is {self.traffic_share}, expected a share above 0 and at most 1")
