"""What the demo says of drift and of incidents: surprises are not hidden, too little data hides nothing."""

import pytest

from mltrust.simulate.comparison import Found, compare, unplanted
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


OUTAGE = Planted("incident", "timeouts", None, "error_rate", "device", "tablet", Verdict.BREACH, model_name="m")
STOPPED = Planted("decision", "stopped", model_name="m", n_lines=1)


def incident(metric: str, key: str = "", value: str = "") -> dict[str, object]:
    return {"model_name": "m", "metric": metric, "slice_key": key, "slice_value": value}


@pytest.mark.parametrize(
    ("incidents", "found", "alarms"),
    [
        ([("error_rate", "device", "tablet")], "breach", []),
        ([("error_rate", "device", "tablet"), ("drift jsd of features.price", "", "")], "breach", []),
        ([("error_rate", "device", "mobile")], "error_rate in device:mobile", []),
        ([("latency", "", "")], "latency in all:", ["m: incident of latency in all"]),
        (
            [("error_rate", "device", "tablet"), ("score", "region", "emea")],
            "error_rate in device:tablet and score in region:emea",
            ["m: incident of score in emea"],
        ),
        (
            [("error_rate", "device", "tablet"), ("drift jsd of features.age", "", "")],
            "breach",
            ["m: incident of drift jsd of features.age in all"],
        ),
        ([], "nothing", []),
    ],
)
def test_an_outage_is_one_incident_by_its_name_and_no_other_is_passed_over(
    incidents: list[tuple[str, str, str]], found: str, alarms: list[str]
) -> None:
    rows = Found((), (), (), {}, {}, incidents=[incident(*each) for each in incidents])
    outage, _ = compare((OUTAGE, PRICE), rows)
    assert outage.found == found
    assert unplanted((OUTAGE, PRICE), rows) == alarms


def test_only_a_stop_that_was_done_counts_as_a_decision() -> None:
    rows = [
        {"model_name": "m", "action": action, "state": state}
        for action, state in (("stop", "due"), ("stop", "done"), ("observe", "done"), ("rollback", "done"))
    ]
    (stopped,) = compare((STOPPED,), Found((), (), (), {}, {}, decisions=rows))
    assert stopped.agrees
