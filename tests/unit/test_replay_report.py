"""What exports and replays say of themselves: JUnit XML that CI reads, pages that lead with why, secrets unsaid."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from math import nan
from xml.etree import ElementTree as ET

import pytest

from mltrust.contract import Scrub, Scrubbing
from mltrust.errors import ConfError
from mltrust.io.secrets import scrub_key
from mltrust.replay import plan
from mltrust.replay.compare import CANDIDATE, CHAMPION, PAIR, Estimate, Mismatch, Role
from mltrust.replay.gate import Finding, Judged, extra, known_measures
from mltrust.replay.masking import Anonymity, Exported, Plan
from mltrust.replay.spec import Gate, ModelRef, Perturbation, Replay, Rule, Selection
from mltrust.report.replay import export_markdown, export_verdict, junit, lead, markdown, metrics, words
from mltrust.slices import Slicing
from mltrust.training import Label
from mltrust.verdicts import Verdict

REPLAY = Replay(
    "ranker", "shop", ModelRef("r", version="1"), ModelRef("r", alias="next"), Gate((Rule("churn", max=0.1),)),
    Selection(date(2026, 10, 5), date(2026, 10, 6)), description="Trees",
)  # fmt: skip
SCRUBBING = Plan({"unit_id": Scrub("pseudonym"), "features.x": Scrub("keep")}, ("features.x",), 5)


def finding(measure: str, verdict: Verdict | None, reason: str = "", role: Role = PAIR, **more: object) -> Finding:
    found = extra(measure, role, 100, Estimate(0.25, 0.01, 100), reason)
    return found._replace(verdict=verdict, decides=verdict is not None, threshold=0.1, **more)  # type: ignore[arg-type]


FINDINGS = (
    finding("churn", Verdict.BREACH, "0.25 ± 0.01, expected at most 0.1", slice_key="device", slice_value="a<b|c"),
    finding("win_balance", Verdict.INCONCLUSIVE, "no row has a label"),
    finding("reproduced", Verdict.PASS, role=CHAMPION),
    finding("instability", None, role=CANDIDATE, perturbation="jitter(price)"),
)
JUDGED = Judged(
    FINDINGS, Verdict.BREACH, ["churn in device:a<b|c: 0.25, expected at most 0.1", "win_balance: no label"]
)


def test_a_breach_is_a_failure_and_what_cannot_be_said_an_error_in_junit() -> None:
    suite = ET.fromstring(junit(JUDGED, "ranker"))
    assert suite.attrib == {"name": "mltrust replay ranker", "tests": "3", "failures": "1", "errors": "1"}
    cases = {case.attrib["name"]: [child.tag for child in case] for case in suite}
    assert cases == {
        "churn in device:a<b|c": ["failure"],
        "win_balance": ["error"],
        "reproduced of the champion": [],
    }
    [failure] = suite.iter("failure")
    assert failure.attrib["message"] == "0.25 ± 0.01, expected at most 0.1"


def page(judged: Judged = JUDGED, mismatches: Sequence[Mismatch] = ()) -> str:
    return markdown(judged, REPLAY, models=("r 1", "r 2"), n_rows=1000, mismatches=mismatches,
                    environment=["scikit-learn 1.8.0, here 1.9.1"])  # fmt: skip


def test_the_page_leads_with_the_reason_and_shows_what_decided_and_why_scores_differ() -> None:
    found = page(mismatches=[Mismatch("price is missing", 12, 4.0, "r17")])
    assert found.startswith("churn in device:a<b|c: 0.25, expected at most 0.1, and 1 more\n\n")
    assert "Candidate r 2 against champion r 1 on 1,000 requests. Trees" in found
    assert r"| ✗ | churn in device:a<b\|c | 0.25 ± 0.01 | 0.1 | 100 | breach |" in found
    assert "| price is missing | 12 | 4 | r17 |" in found
    assert "scikit-learn 1.8.0, here 1.9.1" in found
    assert "| jitter(price) |" in found


def test_a_pass_says_how_much_was_within_its_limits() -> None:
    assert lead(Judged(FINDINGS[2:3], Verdict.PASS, [])) == "all 1 findings that decide are within their limits"


def test_metrics_are_overall_ones_by_role_and_perturbation() -> None:
    assert metrics(FINDINGS) == {
        "win_balance": 0.25,
        "champion/reproduced": 0.25,
        "candidate/instability/jitter price": 0.25,
    }


def test_every_measure_has_words() -> None:
    assert all(words(name) for name in known_measures())


EXPORTED = Exported(
    1000, 960, 30, 10, 900, 1, {"features.x: e-mail": 30}, {"(all)": 960}, Anonymity(5, 40, 2, 10), "ab" * 16
)


def test_an_export_passes_breaches_and_is_inconclusive_with_words() -> None:
    assert export_verdict(EXPORTED, REPLAY, SCRUBBING) == (Verdict.PASS, "")
    verdict, why = export_verdict(EXPORTED, replace(REPLAY, max_left_out_share=0.01), SCRUBBING)
    assert verdict is Verdict.BREACH
    assert why.startswith(
        "4.0% of 1,000 rows may not leave the log (30 with features.x: e-mail, 10 in groups of fewer"
    )
    verdict, why = export_verdict(EXPORTED._replace(n_drawn=0), REPLAY, SCRUBBING)
    assert verdict is Verdict.INCONCLUSIVE
    assert why.startswith("nothing selected: no production prediction of r 1 from 2026-10-05 up to 2026-10-06")


def test_an_export_says_what_stayed_behind_and_how_rows_were_scrubbed() -> None:
    found = export_markdown(EXPORTED, REPLAY, SCRUBBING, "0123456789abcdef", "/lake/replay_sets", 3)
    for part in (
        "960 rows of `ranker`",
        "| features.x: e-mail | 30 |",
        "| unit_id | pseudonym |",
        "40 combinations, the rarest in 2 rows",
        "by the key `0123456789abcdef`",
        "at version 3",
    ):
        assert part in found


def test_the_key_comes_from_the_environment_and_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "0123456789abcdef")
    assert len(scrub_key("env:A_KEY").key_id) == 16
    monkeypatch.delenv("A_KEY")
    monkeypatch.setitem(sys.modules, "databricks.sdk.runtime", None)
    for where, message in (
        ("env:A_KEY", "A_KEY is not set in the environment"),
        ("databricks:scope/name", "there is no Databricks here"),
        ("plain text", "expected env:<variable> or databricks:<scope>/<name>"),
    ):
        with pytest.raises(ConfError, match=message):
            scrub_key(where)


def test_a_plan_changes_with_everything_that_scores_depend_on_and_with_nothing_else() -> None:
    def of(replay: Replay = REPLAY, set_hash: str = "h", candidate: str = "r 2", scale: float = 0.1) -> str:
        jitter = [Perturbation("jitter", ("x",), scale=scale)]
        return plan.plan_id(replay, set_hash=set_hash, champion="r 1", candidate=candidate, perturbations=jitter)

    changed = [
        of(set_hash="i"), of(candidate="r 3"), of(scale=0.2), of(replace(REPLAY, batch_rows=5)),
        of(replace(REPLAY, parts=3)), of(replace(REPLAY, champion=ModelRef("r", version="1", output="0"))),
    ]  # fmt: skip
    given = {"set_hash": "h", "champion": "r 1", "candidate": "r 2"}
    changed += [
        plan.plan_id(REPLAY, perturbations=[Perturbation("jitter", ("x",), scale=0.1)], **given, **more)
        for more in ({"environment": ["numpy 2"]}, {"environment": ["numpy 3"]}, {"n_tasks": 3})
    ]
    assert len({of(), *changed}) == 10
    assert of(replace(REPLAY, gate=Gate((Rule("churn", max=0.2),)), description="other", ulps=2)) == of()


def test_a_selection_is_named_by_what_it_takes_and_by_nothing_else() -> None:
    chosen = Selection(date(2026, 10, 5), date(2026, 10, 6), where={"device": ("tv",)})
    slices = Slicing({"device": "features.device", "region": "features.region"})
    replay, scrub = replace(REPLAY, select=chosen, set_of=None, slices=slices), Scrubbing({}, 3)
    same = replace(replay, slices=replace(slices, attributes={"device": "features.device"}), description="other")
    assert plan.selection_id(same, scrub) == plan.selection_id(replay, scrub)
    other = {
        plan.selection_id(each, scrub)
        for each in (
            replace(replay, select=replace(chosen, end=date(2026, 10, 7))),
            replace(replay, slices=replace(slices, attributes={"device": "features.kind"})),
            replace(replay, label=Label("purchase", "any", 3)),
        )
    } | {plan.selection_id(replay, None), plan.selection_id(replay, Scrubbing({}, 4))}
    assert len({plan.selection_id(replay, scrub), *other}) == 6


def test_a_signature_that_the_log_cannot_serve_is_named() -> None:
    features = {"age": "long", "price": "double", "device": "string"}
    fine = [("age", "double", True), ("price", "float", True), ("gone", "double", False), ("device", "string", True)]
    assert plan.mismatches("r 1", fine, features) == []  # type: ignore[arg-type]
    found = plan.mismatches(
        "r 1", [("zip", "string", True), ("price", "long", True), ("device", "double", True)], features
    )  # type: ignore[arg-type]
    assert found == [
        "r 1 reads 'zip' (string), which is no feature of the log; known: age, price, device",
        "r 1 reads 'price' as long; the log has a double, which fits double or float",
        "r 1 reads 'device' as double; the log has a string, which fits string",
    ]


def test_an_undefined_number_is_a_dash() -> None:
    undefined = FINDINGS[1]._replace(value=nan, std_error=nan)
    found = page(Judged([undefined], Verdict.INCONCLUSIVE, ["x"]))
    assert "| ? | win_balance | – | 0.1 | 100 | inconclusive |" in found
