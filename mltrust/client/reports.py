"""What the operator of a service is told, each trouble once and not once per record."""

import logging
import time
from collections.abc import Mapping
from contextlib import suppress

from mltrust.client.counts import Model, Tally
from mltrust.record import Rejected

log = logging.getLogger("mltrust.client")
_MOST_REASONS = 100


class Reports:
    """Warnings of one logger. A logging handler that raises stops nothing."""

    def __init__(self) -> None:
        self._failing_since: dict[str, float] = {}
        self._reasons: set[tuple[str, str]] = set()

    def failing(self, what: str, error: Exception) -> None:
        """`what` failed; said once until it works again."""
        if what not in self._failing_since:
            self._failing_since[what] = time.monotonic()
            self.warn("%s fails and is tried again: %s: %s", what, type(error).__name__, error)

    def works(self, what: str) -> None:
        since = self._failing_since.pop(what, None)
        if since is not None:
            self.warn("%s works again after %.1f s", what, time.monotonic() - since)

    def invalid(self, rejected: Rejected) -> None:
        """A record breaks the contract; said once per reason and field."""
        reason = (rejected.reason_code.value, rejected.reason.partition(" is ")[0])
        if reason not in self._reasons and len(self._reasons) < _MOST_REASONS:
            self._reasons.add(reason)
            self.warn("ingest will reject a record, as it was written: %s: %s", rejected.reason_code, rejected.reason)

    def dropped(self, tallies: Mapping[Model, Tally]) -> None:
        for (model_name, model_version), tally in tallies.items():
            if tally.dropped:
                self.warn(
                    "dropped %d of %d predictions of %s %s since the last heartbeat",
                    tally.dropped,
                    tally.logged,
                    model_name,
                    model_version,
                )

    def warn(self, message: str, *values: object) -> None:
        with suppress(Exception):
            log.warning(message, *values)
