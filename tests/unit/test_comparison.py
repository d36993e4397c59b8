"""What the demo says of drift: a column that drifts by surprise is not hidden, too little data hides nothing."""

import pytest

from mltrust.simulate.comparison import Found, compare
from mltrust.simulate.truth import Planted
from mltrust.verdicts import Verdict

PRICE = Planted("drift", "price in cents", verdict=Verdict.BREACH, model_name="m", column="features.price")
NOTHING_ELSE = Planted("no drift", "nothing else drifts", verdict=Verdict.PASS, model_name="m")


def finding(column: str, verdict: Verdict, model: str = "m") -> dict[str, object]:
    return {"model_name": model, "column": column, "verdict": verdict}


@pytest.mark.parametrize(
    ("others", "found"),
    [
        ([Verdict.PASS], "pass"),
        ([Verdict.PASS, Verdict.INCONCLUSIVE], "pass"),
        ([Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.BREACH], "breach"),
        ([Verdict.INCONCLUSIVE], "inconclusive"),
        ([], "nothing"),
    ],
)
def test_what_is_found_of_columns_in_which_nothing_was_planted(others: list[Verdict], found: str) -> None:
    drift = [finding("features.price", Verdict.BREACH), *(finding("features.age", each) for each in others)]
    price, rest = compare((PRICE, NOTHING_ELSE), Found((), (), drift, {}, {}))
    assert price.agrees
    assert rest.found == found


def test_another_model_says_nothing_of_this_one() -> None:
    price, _ = compare((PRICE, NOTHING_ELSE), Found((), (), [finding("features.price", Verdict.BREACH, "n")], {}, {}))
    assert price.found == "nothing"
