"""The three verdicts, how they combine, and the exit codes that carry them."""

from collections.abc import Iterable
from enum import IntEnum, StrEnum


class Verdict(StrEnum):
    """What a test or a check says. An undefined number is `inconclusive`, never `pass`."""

    PASS = "pass"
    BREACH = "breach"
    INCONCLUSIVE = "inconclusive"


class Exit(IntEnum):
    """Exit code of a job. 1 is never used on purpose: it says that the job died."""

    PASS = 0
    INVALID = 2
    INCONCLUSIVE = 3
    BREACH = 4

    @classmethod
    def of(cls, verdict: Verdict) -> "Exit":
        return {Verdict.PASS: cls.PASS, Verdict.BREACH: cls.BREACH, Verdict.INCONCLUSIVE: cls.INCONCLUSIVE}[verdict]


def combine(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict of a decision set: breach if any is, else inconclusive if any is, else pass.

    An empty set has shown nothing and is inconclusive.
    """
    seen = set(verdicts)
    if Verdict.BREACH in seen:
        return Verdict.BREACH
    return Verdict.PASS if seen == {Verdict.PASS} else Verdict.INCONCLUSIVE
