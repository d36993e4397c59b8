"""What a simulation plants, and that its faults are what they are called."""

import json
import re
from collections import Counter
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from mltrust.conf import read
from mltrust.contract import Contract, Reason
from mltrust.errors import ConfError
from mltrust.record import OutcomeReader, RecordReader, Rejected
from mltrust.simulate import truth
from mltrust.simulate.faults import DUPLICATE, OUTCOME_FAULTS, RECORD_FAULTS, Edit
from mltrust.simulate.landing import Written
from mltrust.simulate.population import ATTRIBUTES
from mltrust.simulate.spec import Dirt, Outage, Plant, Simulation
from mltrust.simulate.truth import Planted, planted
from mltrust.verdicts import Verdict

CONF = Path(__file__).parents[2] / "conf"
DEMO, _ = read(Simulation, CONF / "simulations" / "demo.yaml")
CONTRACT, _ = read(Contract, CONF / "contracts" / "recommendations.yaml")

RECORD = (
    '{"schema_version":"v02","request_id":"u1-0","unit_id":"u1","event_time":"2026-10-05T08:00:00.000Z",'
    '"model_name":"recommender","model_version":"1","feature_version":"f02",'
    '"experiments":[{"experiment_id":"a","bucket_id":"b1","variant":"control"},'
    '{"experiment_id":"b","bucket_id":"b2","variant":"control"}],"traffic":"production",STATUS,'
    '"latency_ms":45.3,"infra":{"cpu_load":0.4},"features":{"device":"mobile","age":25,"price":9.5}}'
)
OF_EACH_STATUS = (
    RECORD.replace("STATUS", '"status":"ok","prediction_score":0.5'),
    RECORD.replace("STATUS", '"status":"error","error_type":"timeout"'),
)
RATING = (
    '{"outcome_id":"u1-0-rating","revision":0,"request_id":"u1-0","unit_id":"u1","name":"rating","value":4.0,'
    '"event_time":"2026-10-05T09:00:00.000Z"}'
)


def edited(line: str, edit: Edit) -> bytes:
    """The line as Spark's regexp_replace edits it."""
    return re.sub(edit.pattern, edit.replacement.replace("$", "\\"), line).encode()


@pytest.mark.parametrize("line", OF_EACH_STATUS, ids=["ok", "error"])
@pytest.mark.parametrize("fault", RECORD_FAULTS)
def test_a_faulty_record_is_refused_for_its_fault(fault: str, line: str) -> None:
    reader = RecordReader(CONTRACT)
    good, found = reader.read(line.encode()), reader.read(edited(line, RECORD_FAULTS[fault]))
    assert isinstance(good, dict)
    if isinstance(found, Rejected):
        assert found.reason_code == fault
    else:
        assert fault in (DUPLICATE, Reason.CONFLICTING_DUPLICATE)
        assert (found["content_hash"] == good["content_hash"]) == (fault == DUPLICATE)


@pytest.mark.parametrize("fault", OUTCOME_FAULTS)
def test_a_faulty_outcome_is_refused_for_its_fault(fault: str) -> None:
    good, found = (
        OutcomeReader().read(RATING.encode()),
        OutcomeReader().read(edited(RATING, OUTCOME_FAULTS[fault])),
    )
    assert isinstance(good, dict)
    if isinstance(found, Rejected):
        assert found.reason_code == fault
    else:
        assert fault in (DUPLICATE, Reason.CONFLICTING_DUPLICATE)
        assert (found["content_hash"] == good["content_hash"]) == (fault == DUPLICATE)


def test_records_can_have_every_fault_that_a_contract_names() -> None:
    # A file that cannot be read is no fault of a record.
    assert set(RECORD_FAULTS) - {DUPLICATE} == set(Reason) - {Reason.UNREADABLE}


def test_the_demo_plants_every_fault_and_nothing_in_the_a_a_test() -> None:
    assert set(DEMO.dirt.records) == set(RECORD_FAULTS)
    assert set(DEMO.dirt.outcomes) == set(OUTCOME_FAULTS)
    assert DEMO.experiments["button_color"] == Plant()


def test_the_demo_experiments_have_a_conf_each() -> None:
    planned = {"ranker_v3"}  # it begins when the simulated days are over
    assert set(DEMO.experiments) | planned == {path.stem for path in (CONF / "experiments").glob("*.yaml")}


def test_an_uneven_assignment_by_device_is_even_overall() -> None:
    plant = DEMO.experiments["free_shipping"]
    overall = sum(share * plant.share_in["device"][value] for value, share in ATTRIBUTES["device"].items())
    assert overall == pytest.approx(0.5, abs=1e-12)


def test_shares_of_attributes_add_up_to_one() -> None:
    for shares in ATTRIBUTES.values():
        assert sum(shares.values()) == pytest.approx(1, abs=1e-12)


def test_counts_of_faults_grow_with_the_simulation() -> None:
    of_size = {n: replace(DEMO, n_units=n).record_faults() for n in (3_000, 40_000)}
    assert of_size[3_000]["unparsable"] == 3
    assert of_size[40_000]["unparsable"] == 40
    assert of_size[40_000]["duplicate"] == 200


def test_planted_rows_say_what_each_experiment_holds() -> None:
    rows = planted(DEMO)
    found = {
        (row.kind, row.experiment_id, row.slice_key, row.slice_value): row.verdict
        for row in rows
        if row.experiment_id
    }
    assert found["effect", "ranker_v2", "", ""] == Verdict.PASS
    assert found["slice_effect", "ranker_v2", "device", "tablet"] == Verdict.BREACH
    assert found["srm", "checkout_banner", "", ""] == Verdict.PASS
    assert found["srm", "checkout_banner", "region", "latam"] == Verdict.BREACH
    assert found["simpson", "free_shipping", "device", ""] == Verdict.BREACH
    assert found["effect", "free_shipping", "", ""] == Verdict.BREACH
    assert found["slice_effect", "free_shipping", "device", "mobile"] == Verdict.PASS
    assert found["clean", "button_color", "", ""] == Verdict.INCONCLUSIVE
    assert len(found) == sum(row.experiment_id is not None for row in rows)


def test_planted_rows_count_the_dirt_of_each_stream() -> None:
    rows = [row for row in planted(DEMO) if row.kind in ("rejects", "duplicates")]
    assert Counter(row.stream for row in rows) == {"records": 10, "outcomes": 7}
    assert Planted("rejects", "wrong type", stream="outcomes", reason_code="wrong_type", n_lines=28) in rows
    assert Planted("duplicates", "the same line twice", stream="records", n_lines=140) in rows


def test_a_planted_row_reads_as_a_row_of_a_table() -> None:
    row = Planted("slice_effect", "loses", "ranker_v2", "conversion", "device", "tablet", Verdict.BREACH)
    assert (row.subject, row.what, row.expected) == ("ranker_v2", "conversion in device:tablet", "breach")
    row = Planted("duplicates", "twice", stream="records", n_lines=0)
    assert (row.subject, row.what, row.expected) == ("records", "duplicates", "0")


def test_the_truth_file_holds_what_was_planted_and_written(tmp_path: Path) -> None:
    path = truth.file(str(tmp_path), "demo")
    truth.save(path, DEMO, Written(records={"accepted": 7}, outcomes={}))
    document = json.loads(path.read_text(encoding="utf-8"))
    assert [Planted(**row) for row in document["planted"]] == list(planted(DEMO))
    assert document["written"]["records"] == {"accepted": 7}


def test_a_root_that_is_no_folder_is_refused() -> None:
    with pytest.raises(ConfError, match="s3://somewhere"):
        truth.file("s3://somewhere", "demo")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"n_units": 0}, "n_units is 0"),
        ({"days": 0}, "days is 0"),
        ({"n_files": 0}, "n_files is 0"),
        ({"requests_per_unit": 1.0}, "requests_per_unit is 1.0"),
        ({"shadow_share": 1.5}, "shadow_share is 1.5"),
        ({"ranker": "ranker_v3"}, "unknown ranker_v3"),
        ({"rating_share": 0.001}, "larger rating_share"),
    ],
)
def test_a_simulation_of_nonsense_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(DEMO, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        ({"treatment_share": 1.0}, "treatment_share is 1.0"),
        ({"share_in": {"device": {"mobile": 0.0}}}, "treatment_share is 0.0"),
        ({"share_in": {"colour": {"red": 0.5}}}, "unknown colour"),
        ({"effect_in": {"device": {"phone": 0.5}}}, "unknown phone"),
        ({"effect_in": {"device": {"mobile": 0.5}, "region": {"emea": 0.5}}}, "expected one attribute"),
    ],
)
def test_an_experiment_of_nonsense_is_refused(plant: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Plant(**plant)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"unreadable": 0.1}, "unknown unreadable"),
        ({"unparsable": -0.1}, "below 0"),
        ({"duplicate": 1.1}, "at most 1"),
    ],
)
def test_dirt_of_nonsense_is_refused(shares: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Dirt(records=shares)


def test_the_demo_is_mature_by_the_second_of_november() -> None:
    assert (date(2026, 11, 2) - DEMO.start).days >= DEMO.days + 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": 0.0}, "share is 0.0"),
        ({"failing_in": {}}, "names 0 attributes"),
        ({"failing_in": {"device": "phone"}}, "unknown phone"),
        ({"failing_in": {"colour": "red"}}, "unknown colour"),
    ],
)
def test_an_outage_of_nonsense_is_refused(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"role": "candidate", "failing_in": {"device": "tablet"}, "from_hour": 3, "share": 0.5}
    with pytest.raises(ValueError, match=re.escape(message)):
        Outage(**given | change)


def test_an_outage_is_planted_as_an_incident_and_a_decision() -> None:
    rows = [row for row in planted(DEMO) if row.kind in ("incident", "decision")]
    found = [(row.what, row.expected) for row in rows]
    assert found == [("error_rate in device:tablet", "breach"), ("decision", "1")]
