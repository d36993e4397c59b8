"""What a producer gets wrong: how a good line becomes one that its contract refuses, for each reason code."""

from collections.abc import Mapping
from typing import NamedTuple

from mltrust.contract import Reason

#: A line that is delivered a second time, unchanged.
DUPLICATE = "duplicate"


class Edit(NamedTuple):
    """How a line gets its fault: what `pattern` finds (as Spark reads it), replaced."""

    pattern: str
    replacement: str


_TRUNCATED = Edit(".{30}$", "")
_NO_SUCH_DAY = Edit('"event_time":"[^"]*"', '"event_time":"2026-13-45T08:00:00Z"')
_AS_IT_IS = Edit("^", "")

#: Faults of a v02 record of any status.
RECORD_FAULTS: Mapping[str, Edit] = {
    Reason.UNPARSABLE: _TRUNCATED,
    Reason.UNKNOWN_SCHEMA_VERSION: Edit('"schema_version":"v02"', '"schema_version":"v03"'),
    Reason.MISSING_FIELD: Edit('"model_version":"[^"]*",', ""),
    Reason.WRONG_TYPE: Edit('"age":[0-9]+', '"age":"forty"'),
    Reason.OUTSIDE_DOMAIN: Edit('"age":[0-9]+', '"age":212'),
    Reason.BAD_TIMESTAMP: _NO_SUCH_DAY,
    Reason.UNKNOWN_FEATURE_VERSION: Edit('"feature_version":"f02"', '"feature_version":"f99"'),
    Reason.INCONSISTENT: Edit('"experiments":\\[(\\{[^}]*\\})', '"experiments":[$1,$1'),
    # Whichever of the two is kept, no metric and no replay notices.
    Reason.CONFLICTING_DUPLICATE: Edit('"cpu_load":0', '"cpu_load":1'),
    DUPLICATE: _AS_IT_IS,
}

#: Faults of an outcome.
OUTCOME_FAULTS: Mapping[str, Edit] = {
    Reason.UNPARSABLE: _TRUNCATED,
    Reason.MISSING_FIELD: Edit('"name":"[^"]*",', ""),
    Reason.WRONG_TYPE: Edit('"value":[0-9.]+', '"value":"five"'),
    Reason.OUTSIDE_DOMAIN: Edit('"revision":0', '"revision":-1'),
    Reason.BAD_TIMESTAMP: _NO_SUCH_DAY,
    Reason.CONFLICTING_DUPLICATE: Edit('"value":[0-9.]+', '"value":0.5'),
    DUPLICATE: _AS_IT_IS,
}


def counts(shares: Mapping[str, float], n: int) -> dict[str, int]:
    """How many lines of each fault `n` units have: exactly, as each fault is given to a range of units."""
    return {fault: round(share * n) for fault, share in shares.items()}
