"""Changes of a contract that break readers, each with its field, its rule and what to do instead."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mltrust import cli
from mltrust.compatibility import MODES, incompatibilities
from mltrust.contract import Contract, Domain, Feature, SchemaVersion, from_json
from tests.conftest import ROOT

AGE = Feature("long", domain=Domain(0, 130))
OLD = Contract(
    log="log",
    versions={"v01": SchemaVersion(), "v02": SchemaVersion()},
    features={"f1": {"age": AGE, "device": Feature("string", domain=Domain(values=("ios", "web")))}},
    field_numbers={"age": 1, "device": 2},
)


def with_age(feature: Feature) -> Contract:
    return replace(OLD, features={"f1": OLD.features["f1"] | {"age": feature}})


def with_devices(*values: str) -> Contract:
    devices = Feature("string", domain=Domain(values=values))
    return replace(OLD, features={"f1": OLD.features["f1"] | {"device": devices}})


NEWER = replace(OLD, features=OLD.features | {"f2": {"age": AGE}})
RETYPED = replace(OLD, features={"f1": {"age": Feature("double"), "device": OLD.features["f1"]["device"]}})
RENAMED = replace(
    OLD,
    features={"f1": OLD.features["f1"] | {"years": AGE}, "f0": OLD.features["f1"]},
    field_numbers={"age": 3, "device": 2, "years": 1},
)
#: What changed, what each direction says of it, by field.
CHANGES: dict[str, tuple[Contract, list[str], list[str]]] = {
    "nothing": (OLD, [], []),
    "another log": (replace(OLD, log="other"), ["log"], ["log"]),
    "a schema version less": (replace(OLD, versions={"v02": SchemaVersion()}), ["versions.v01"], []),
    "a schema version more": (
        replace(OLD, versions=OLD.versions | {"v03": SchemaVersion()}),
        [],
        ["versions.v03"],
    ),
    "another wire name": (
        replace(OLD, versions=OLD.versions | {"v02": SchemaVersion(wire={"unit_id": "user"})}),
        ["versions.v02"],
        ["versions.v02"],
    ),
    "a feature version more": (NEWER, [], ["features.f2"]),
    "a feature version less": (
        replace(NEWER, features={"f2": {"age": AGE}}, field_numbers={}),
        ["field_numbers", "features.f1"],
        ["field_numbers", "features.f2"],
    ),
    "a feature less": (
        replace(OLD, features={"f1": {"age": AGE}}, field_numbers={"age": 1}),
        ["features.f1.device"],
        ["features.f1.device"],
    ),
    "a feature more": (
        replace(OLD, features={"f1": OLD.features["f1"] | {"x": AGE}}, field_numbers={"age": 1, "device": 2, "x": 3}),
        ["features.f1.x"],
        [],
    ),
    "another type": (RETYPED, ["features.age"], ["features.age", "features.f1.age"]),
    "a narrower range": (with_age(Feature("long", domain=Domain(0, 100))), ["features.f1.age"], []),
    "a wider range": (with_age(Feature("long", domain=Domain(0))), [], ["features.f1.age"]),
    "a range on the other side": (with_age(Feature("long", domain=Domain(max=130))), [], ["features.f1.age"]),
    "a value less": (with_devices("ios"), ["features.f1.device"], []),
    "a value more": (with_devices("ios", "web", "tv"), [], ["features.f1.device"]),
    "another expected range": (with_age(replace(AGE, expected=Domain(18, 30))), [], []),
    "numbers moved and taken again": (
        RENAMED,
        ["field_numbers.age", "field_numbers.years", "features.f1.years"],
        ["field_numbers.age", "field_numbers.years", "features.f0"],
    ),
    "actions admitted": (replace(OLD, prediction="action"), [], ["prediction"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_breaks_the_readers_that_it_breaks(change: str) -> None:
    new, backward, forward = CHANGES[change]
    assert [each.field for each in incompatibilities(OLD, new, "backward")] == backward
    assert [each.field for each in incompatibilities(OLD, new, "forward")] == forward
    full = {each.field for each in incompatibilities(OLD, new, "full")}
    assert full == {*backward, *forward}


def test_requiring_a_score_again_refuses_what_had_only_an_action() -> None:
    action = replace(OLD, prediction="action")
    assert [each.field for each in incompatibilities(action, OLD, "backward")] == ["prediction"]
    assert incompatibilities(action, OLD, "forward") == []


@pytest.mark.parametrize("change", CHANGES)
def test_a_finding_names_the_field_the_rule_and_the_fix(change: str) -> None:
    for mode in MODES:
        for each in incompatibilities(OLD, CHANGES[change][0], mode):
            assert len(each.rule) > 10
            assert len(each.fix) > 10
            assert str(each) == f"{each.field}: {each.rule}; {each.fix}"


@pytest.fixture
def contract(tmp_path: Path) -> Path:
    return Path(shutil.copy(ROOT / "conf/contracts/recommendations.yaml", tmp_path))


def test_a_narrowed_domain_is_refused_by_the_command(contract: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = contract.with_name("new.yaml")
    new.write_text(contract.read_text().replace("domain: {min: 0, max: 130}", "domain: {min: 18, max: 130}"))
    assert cli.main(["contract", "compare", str(contract), str(new)]) == 4
    captured = capsys.readouterr()
    assert captured.err.splitlines()[0] == (
        f"{new}: features.f01.age: its domain was [0, 130], is [18, 130], which refuses what was accepted; "
        "narrow `expected` instead, or do it in a new feature version"
    )
    assert captured.out == f"{new}: not backward compatible with {contract}\n"
    assert cli.main(["contract", "compare", str(contract), str(new), "--mode", "forward"]) == 0


def test_a_contract_that_cannot_be_read_is_exit_code_2(contract: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contract.write_text(contract.read_text().replace("device: 1", "device: 2"))
    assert cli.main(["contract", "compare", str(contract), str(contract)]) == 2
    assert "field_numbers: 2 is both 'device' and 'age'; 7 is free" in capsys.readouterr().err


def test_generated_files_are_checked_against_their_contract(
    contract: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["contract", "generate", str(contract), "--check"]) == 4
    assert cli.main(["contract", "generate", str(contract)]) == 0
    assert cli.main(["contract", "generate", str(contract), "--check"]) == 0
    contract.write_text(contract.read_text().replace("price: 6", "price: 7"))
    capsys.readouterr()
    assert cli.main(["contract", "generate", str(contract), "--check"]) == 4
    stale = [Path(line.split(":")[0]).name for line in capsys.readouterr().err.splitlines()]
    assert stale == ["recommendations.json", "recommendations.proto"]


def test_the_shipped_files_are_what_their_contract_says() -> None:
    for path in (ROOT / "conf/contracts").glob("*.yaml"):
        assert cli.main(["contract", "generate", str(path), "--check"]) == 0
        assert from_json(path.with_suffix(".json").read_text()).log == path.stem


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"age": 1}, "none for feature 'device'; the next free one is 2"),
        ({"age": 1, "device": 19_500}, "without 19000s"),
        ({"age": 1, "device": 2, "height": 3}, "'height' is no feature"),
    ],
)
def test_numbers_that_protobuf_cannot_take_are_refused(numbers: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(OLD, field_numbers=numbers)


@pytest.mark.parametrize("text", ["{}", "[]", '{"log": "x", "versions": {"v": 1}}'])
def test_what_is_no_compiled_contract_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="mltrust contract generate"):
        from_json(text)


@pytest.mark.parametrize("names", [("größe",), ("Age", "age"), ("foo_bar", "fooBar"), ("x", "_x"), ("1st",)])
def test_names_that_a_table_or_a_message_cannot_tell_apart_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="ASCII letters|differ by case and underscores only"):
        Contract("log", {"v02": SchemaVersion()}, {"f1": dict.fromkeys(names, AGE)})


def test_generate_names_what_it_cannot_do(contract: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = contract.rename(contract.with_name("old.yaml"))
    assert cli.main(["contract", "generate", str(old)]) == 2
    assert "log is 'recommendations', expected 'old' as the file" in capsys.readouterr().err
    contract = old.rename(contract)
    contract.with_suffix(".avsc").mkdir()
    assert cli.main(["contract", "generate", str(contract)]) == 2
    assert "recommendations.avsc: cannot be written: Is a directory" in capsys.readouterr().err
    contract.with_suffix(".avsc").rmdir()
    contract.with_suffix(".json").write_bytes(b"\xff")
    assert cli.main(["contract", "generate", str(contract), "--check"]) == 4
