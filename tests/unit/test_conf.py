"""Conf files: what is read, and how mistakes are named."""

import re
from datetime import date
from pathlib import Path

import pytest
import yaml

from mltrust import conf
from mltrust.contract import Contract
from mltrust.errors import ConfError
from mltrust.experiment.spec import Experiment
from mltrust.settings import Settings
from tests.unit.conftest import SHIPPED, edited


@pytest.mark.parametrize("env", [path.stem for path in (SHIPPED / "env").glob("*.yaml")])
@pytest.mark.parametrize(
    "config",
    [path for kind in ("contracts", "experiments", "monitors") for path in SHIPPED.glob(f"{kind}/*.yaml")],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_every_shipped_conf_is_valid(config: Path, env: str) -> None:
    loaded = conf.load(config, env)
    assert loaded.contract.log == loaded.log
    assert (loaded.experiment is None) == (config.parent.name != "experiments")
    assert (loaded.monitor is None) == (config.parent.name != "monitors")


def test_an_environment_overrides_the_base_key_by_key(folder: Path) -> None:
    (folder / "env/local.yaml").write_text("root: here\nlimits: {max_cells: 7}\n")
    settings = conf.load(folder / "contracts/recommendations.yaml", "local").settings
    assert (settings.root, settings.limits.max_cells, settings.limits.max_values) == ("here", 7, 50)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"topics": {}}, "expected host:port, and a topic of records, of outcomes or of both"),
        ({"topics": {"records": ""}}, "expected host:port, and a topic of records, of outcomes or of both"),
        ({"servers": ""}, "expected host:port, and a topic of records, of outcomes or of both"),
        (
            {"topics": {"records": "t", "outcomes": "t"}},
            "topics: 't' is given twice, expected one of records, one of",
        ),
        ({"topics": {"rejects": "t"}}, "Input should be 'records' or 'outcomes'"),
        ({"max_messages_per_batch": 0}, "max_messages_per_batch is 0, expected 1 or more"),
        ({"options": {"FailOnDataLoss": "false"}}, "options: failondataloss cannot be given: what is read, and once"),
        (
            {"options": {"subscribePattern": ".*", "assign": "{}"}},
            "options: assign, subscribepattern cannot be given",
        ),
        ({"option": {}}, "unknown key; did you mean 'options'?"),
    ],
)
def test_what_ingest_cannot_take_from_kafka_by_is_refused(
    folder: Path, changes: dict[str, object], expected: str
) -> None:
    kafka: dict[str, object] = {"servers": "b:9092", "topics": {"records": "t"}}
    (folder / "env/local.yaml").write_text(yaml.safe_dump({"root": "x", "ingest": {"kafka": kafka | changes}}))
    with pytest.raises(ConfError, match=f"ingest.kafka.*{re.escape(expected)}"):
        conf.load(folder / "contracts/recommendations.yaml", "local")


def test_all_mistakes_are_named_at_once_with_file_path_and_the_nearest_name(folder: Path) -> None:
    path = edited(folder / "experiments/ranker_v2.yaml", "unit: unit_id", "unit: user\nanalpha: 0.1")
    edited(path, "role: goal", "rolle: goal")
    edited(path, "window_days: 7", "window_days: soon")
    with pytest.raises(ConfError) as error:
        conf.load(path, "local")
    lines = str(error.value).splitlines()
    assert all(line.startswith(str(path)) for line in lines)
    text = "\n".join(lines)
    assert "analpha: unknown key; did you mean 'alpha'?" in text
    assert "metrics.0.rolle: unknown key; did you mean 'role'?" in text
    assert "unit: Input should be 'unit_id', 'request' or 'bucket_id' (given \"user\")" in text
    assert "metrics.0.window_days: Input should be a valid integer" in text


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("control: control", "control: nobody", "control 'nobody' is none of the arms control, treatment"),
        ("{control: 1, treatment: 1}", "{control: 1}", "only 'control', expected a treatment"),
        ("{control: 1, treatment: 1}", "{control: 0, treatment: 0}", "expected none below 0 and one above"),
        ("kind: proportion", "kind: median", "kind is 'median', expected one of mean, proportion, quantile, ratio"),
        (", margin: {absolute: 0.01}", "", "metric 'error_rate': a guardrail without margin"),
        ("margin: {absolute: 0.01}", "margin: {absolute: -1}", "a margin is one positive number"),
        ("numerator: n_errors", "numerator: n_erors", "n_erors is no metric column of log 'recommendations'"),
        ("name: latency", "name: conversion", "conversion declared twice"),
        ("sets: [[device]", "sets: [[devise]", "devise is no declared attribute"),
        ("unit: unit_id", "unit: bucket_id", "buckets is empty"),
        ("unit: unit_id", "unit: unit_id\ndecision_set: []", "no metric decides"),
        (
            "features.device",
            "features.devcie",
            "'features.devcie' is no column of log 'recommendations'; did you mean",
        ),
        ("sets: [[device]", "sets: [[phase], [device]", "phase is no declared attribute"),
        (
            "attributes: {device",
            "attributes: {phase",
            "attribute 'phase': expected letters, digits and _, and none of",
        ),
        ("unit: unit_id", "unit: {{ unit }}", "no YAML"),
        ("experiment_id: ranker_v2", "experiment_id: a\nexperiment_id: b", "key 'experiment_id' is given twice"),
        ("log: recommendations", "log: orders", "log 'orders' has no"),
        ("experiment_id: ranker_v2", "experiment_id: (all)", "experiment_id is '(all)', expected letters"),
        ("planned_end: 2026-10-26", "planned_end: 2026-10-05", "a phase begins on 2026-10-05, when no unit enters"),
        ("{control: 1, treatment: 1}", "{control: 1, treatment: 1.0e+400}", "expected none below 0 and one above"),
        ("unit: unit_id", "unit: unit_id\nalpha: 0.6", "alpha is 0.6, expected a level above 0 and below 0.5"),
        ("unit: unit_id", "unit: unit_id\ndecision_set: [latency, latency]", "latency is named twice"),
        ("depth: 2}", "depth: 3}", "depth is 3, and there are 2 attributes to cross"),
        ("attributes: {device", "attributes: {half", "attribute 'half': expected letters, digits and _, and none of"),
        ("sets: [[device]", "edges: {device: [1, 2]}\n  sets: [[device]", "'features.device' is no number"),
        ("unit: unit_id", "unit: bucket_id", "search: the units are buckets"),
        ("name: conversion, kind", "name: ' ', kind", "name is empty"),
        ("role: goal,", "role: goal, cap: {at: 3},", "metric 'conversion': cap: a proportion has no sum"),
        (
            "margin: {absolute: 0.01}",
            "margin: {absolute: 0.01}, smallest_effect: {absolute: 0.01}",
            "smallest_effect: a guardrail",
        ),
        ("level: 0.9,", "level: 0.9, missing: exclude,", "metric 'latency_p90': missing: a quantile is of rows"),
    ],
)
def test_nonsense_in_an_experiment_is_refused(folder: Path, old: str, new: str, expected: str) -> None:
    path = edited(folder / "experiments/ranker_v2.yaml", old, new)
    with pytest.raises(ConfError, match="ranker_v2.yaml") as error:
        conf.load(path, "local")
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("prediction: score", "prediction: guess", "prediction: Input should be 'score' or 'action'"),
        ("schema_version: Version", "schema: Version", "'schema' is no column of the record"),
        ("traffic: production", "traffic: all", "constant traffic is 'all'"),
        ("type: long", "type: int", "Input should be 'boolean', 'long', 'double', 'string' or 'timestamp'"),
        ("domain: {min: 0, max: 130}", "domain: {min: 5, max: 1}", "min 5.0 is above max 1.0"),
        ("    device: *device", "    device: {type: double}", "a feature that changes its type takes a new name"),
    ],
)
def test_nonsense_in_a_contract_is_refused(folder: Path, old: str, new: str, expected: str) -> None:
    path = edited(folder / "contracts/recommendations.yaml", old, new)
    with pytest.raises(ConfError) as error:
        conf.load(path, "local")
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("config", "env", "expected"),
    [
        ("contracts/none.yaml", "local", "no such file"),
        ("contracts/recommendations.yaml", "moon", "expected one of dev, local, prod"),
    ],
)
def test_a_missing_file_is_named(folder: Path, config: str, env: str, expected: str) -> None:
    with pytest.raises(ConfError, match=expected):
        conf.load(folder / config, env)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("model_name: recommender", "model_name: ''", "expected the name of a model in the log"),
        ("end: 2026-10-19", "end: 2026-10-05", "drift: reference: end is 2026-10-05, expected a day after start"),
        ("weeks: 2", "weeks: 0", "drift: against.1: weeks is 0, expected 1 or more"),
        ("kind: fixed", "kind: version", "drift: against.0: against version: expected model_version"),
        ("kind: fixed", "kind: fixed, experiment: x", "against fixed: experiment does not belong to it"),
        ("kind: fixed", "kind: same_weekdays, weeks: 2", "against: same weekdays of 2 weeks given twice"),
        ("experiment: ranker_v2", "experiment: ranker_v9", "ranker_v9.yaml: cannot be read"),
        ("attributes: {device: features.dev", "attributes: {device: features.div", "is no column; did you mean"),
        ("  columns: [features.device", "  columns: [features.devise", "'features.devise' is no column; did you"),
        ("ranker_v2, columns: [features.device", "ranker_v2, columns: [features.tenure_days", "against.2.columns:"),
        ("severity: critical", "severity: warning", "rules.errors: no detector of error_rate has severity critical"),
        ("metrics: [error_rate]", "metrics: [eror_rate]", "rules.errors.metrics: 'eror_rate' matches no metric"),
        ("dry_run: false", "slices: ['devise:*']", "rules.errors.slices: 'devise:*' matches no declared slice"),
        ("{kind: gap}", "{kind: gap, metrics: [requests, reqests]}", "detectors.2.metrics: 'reqests' matches no"),
        ("{kind: gap}", "{kind: gap, slices: [overall, 'city:*']}", "detectors.2.slices: 'city:*' matches no"),
        ("  arms: {by: model_version}\n", "", "detectors.4: concurrent needs series.arms"),
        ("{by: model_version}", "{by: experiment, experiment_id: ranker_v2, control: kontrol}", "expected an arm of"),
    ],
)  # fmt: skip
def test_nonsense_in_a_monitor_is_refused(folder: Path, old: str, new: str, expected: str) -> None:
    path = edited(folder / "monitors/recommender.yaml", old, new)
    with pytest.raises(ConfError) as error:
        conf.load(path, "local")
    assert expected in str(error.value)
    assert str(path) in str(error.value) or "ranker_v9" in str(error.value)


def test_a_rule_may_be_of_drift_which_has_slices_of_its_own(folder: Path) -> None:
    path = edited(
        folder / "monitors/recommender.yaml", "[error_rate]", "['drift psi*'], slices: ['age:*'], severity: warning"
    )
    assert conf.load(path, "local").the_monitor().rules


def test_text_that_is_no_yaml_is_named(folder: Path) -> None:
    path = folder / "contracts/recommendations.yaml"
    path.write_text("log: [")
    with pytest.raises(ConfError, match="no YAML"):
        conf.load(path, "local")


def test_the_hash_follows_what_results_depend_on_and_not_where_they_are_kept(folder: Path) -> None:
    path = folder / "experiments/ranker_v2.yaml"
    first = conf.load(path, "local")
    assert conf.load(path, "dev").conf_hash == first.conf_hash
    edited(path, "planned_end: 2026-10-26", "planned_end: 2026-10-27")
    later = conf.load(path, "local")
    assert (later.conf_hash == first.conf_hash, later.units_hash == first.units_hash) == (False, True)
    edited(path, "device: features.device", "device: features.region")
    assert conf.load(path, "local").units_hash != first.units_hash


def test_a_feature_never_changes_its_type(folder: Path) -> None:
    path = edited(folder / "contracts/recommendations.yaml", "    age: *age", "    age: {type: double}")
    with pytest.raises(ConfError, match="feature 'age' is long in an earlier feature version and double in 'f02'"):
        conf.read(Contract, path)


def test_phases_expect_the_sum_over_their_units() -> None:
    experiment, _ = conf.read(Experiment, SHIPPED / "experiments/ranker_v2.yaml")
    assert experiment.expected_counts([10]) == [5, 5]
    assert not experiment.ratio_changes("treatment")
    assert experiment.start == date(2026, 10, 5)


def test_a_catalog_has_two_parts() -> None:
    with pytest.raises(ValueError, match="expected catalog.schema"):
        Settings(root=".", catalog="main")
