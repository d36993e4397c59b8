"""Verdicts and exit codes."""

import pytest

from mltrust.verdicts import Exit, Verdict, combine

PASS, BREACH, INCONCLUSIVE = Verdict.PASS, Verdict.BREACH, Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([], INCONCLUSIVE),
        ([PASS, PASS], PASS),
        ([PASS, INCONCLUSIVE], INCONCLUSIVE),
        ([PASS, INCONCLUSIVE, BREACH], BREACH),
    ],
)
def test_the_worst_verdict_decides_and_nothing_is_never_a_pass(verdicts: list[Verdict], expected: Verdict) -> None:
    assert combine(verdicts) is expected
    assert combine(reversed(verdicts)) is expected


def test_exit_codes_are_the_documented_ones_and_never_1() -> None:
    assert {verdict: int(Exit.of(verdict)) for verdict in Verdict} == {PASS: 0, INCONCLUSIVE: 3, BREACH: 4}
    assert Exit.INVALID == 2
    assert 1 not in set(Exit)
