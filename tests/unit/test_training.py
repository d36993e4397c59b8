"""What a training set's conf may say, how mistakes are named, and what an export says of itself."""

from dataclasses import replace
from datetime import UTC, date, datetime
from math import nan
from pathlib import Path

import pytest

from mltrust import conf
from mltrust.errors import ConfError
from mltrust.report.training import markdown, metrics, why_not
from mltrust.training import Exported, Label, Split, TrainingSet, content_hash
from tests.unit.conftest import SHIPPED, edited

AS_OF = datetime(2026, 11, 2, tzinfo=UTC)
LABEL = Label("purchase", "any", 7)
SET = TrainingSet("conversion", "recommendations", date(2026, 10, 5), date(2026, 10, 26), LABEL)
FOUND = Exported(200, 30, 5, 40, 38, 150, 45, 5, 0.19, {"device": 0.0, "age": 0.25}, "0" * 32)


@pytest.mark.parametrize("env", [path.stem for path in (SHIPPED / "env").glob("*.yaml")])
@pytest.mark.parametrize("config", [*SHIPPED.glob("training_sets/*")], ids=lambda path: path.stem)
def test_every_shipped_training_set_is_valid(config: Path, env: str) -> None:
    loaded = conf.load(config, env)
    assert loaded.the_training_set().training_set_id == config.stem
    assert loaded.experiment is None
    assert loaded.contract.log == loaded.the_training_set().log


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("aggregate: any", "aggregate: mean", "label.aggregate: Input should be 'any', 'sum', 'count' or 'last'"),
        ("outcome: purchase", "outcome: ''", "label: outcome is '', expected the name of an outcome"),
        ("window_days: 7", "window_days: 0", "label: window_days is 0, expected 1 or more"),
        ("window_days: 7, ", "", "label.window_days: missing"),
        ("missing: zero", "missing: exclude", "label: missing is 'exclude', expected 'zero'"),
        ("by: request", "by: session", "label.by: Input should be 'request' or 'unit' (given \"session\")"),
        ("test_share: 0.2", "test_share: 1", "split: test_share is 1.0, expected a share in (0, 1)"),
        ("by: unit, ", "by: request, ", "split.by: Input should be 'unit'"),
        ("seed: 1", "sede: 1", "split.sede: unknown key; did you mean 'seed'?"),
        ("training_set_id: conversion", "training_set_id: ''", "training_set_id is '', expected letters, digits"),
        ("end: 2026-10-26", "end: 2026-10-05", "end is 2026-10-05, expected a day after start 2026-10-05"),
        ("end: 2026-10-26", "end: soon", "end: "),
        ("model_name: recommender", "model_versions: ['1']", "model_versions are given without model_name"),
        ("model_name: recommender", "model_name: m\nmodel_versions: []", "model_versions is empty; leave it out"),
        ("model_name: recommender", "features: [age, age]", "features: age given twice"),
        (
            "model_name: recommender",
            "features: [age, devcie]",
            "features: 'devcie' is no feature of log 'recommendations'; did you mean 'device'?",
        ),
        ("model_name: recommender", "features: [zzz]", "expected some of device, age, similarity_score, region"),
        ("log: recommendations", "log: orders", "log 'orders' has no"),
    ],
)
def test_nonsense_is_refused_with_file_field_given_and_expected(
    folder: Path, old: str, new: str, expected: str
) -> None:
    path = edited(folder / "training_sets/conversion.yaml", old, new)
    with pytest.raises(ConfError) as error:
        conf.load(path, "local")
    assert str(error.value).startswith(str(path))
    assert expected in str(error.value)


def test_a_conf_of_something_else_is_no_training_set() -> None:
    loaded = conf.load(SHIPPED / "contracts/recommendations.yaml", "local")
    with pytest.raises(ConfError, match=r"recommendations.yaml: expected the conf of a training set"):
        loaded.the_training_set()


def test_health_settings_are_part_of_what_a_contracts_results_depend_on(folder: Path) -> None:
    names = ("contracts/recommendations.yaml", "training_sets/conversion.yaml")
    before = [conf.load(folder / name, "local").conf_hash for name in names]
    edited(folder / "base.yaml", "max_drop_share: 0.01", "max_drop_share: 0.02")
    after = [conf.load(folder / name, "local").conf_hash for name in names]
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, True]


def test_the_features_are_all_of_the_contract_or_those_chosen_in_its_order() -> None:
    assert SET.chosen(("a", "b", "c")) == ("a", "b", "c")
    assert replace(SET, features=("c", "a")).chosen(("a", "b", "c")) == ("a", "c")


def test_the_content_hash_sees_the_number_of_rows_and_every_sum() -> None:
    hashes = {content_hash(2, [1, 2]), content_hash(3, [1, 2]), content_hash(2, [2, 1]), content_hash(2, [12])}
    assert len(hashes) == 4
    assert all(len(each) == 32 for each in hashes)


def test_what_cannot_be_learnt_from_says_why() -> None:
    assert why_not(FOUND, SET, AS_OF) is None
    nothing = FOUND._replace(n_rows=0, n_missing=0)
    assert why_not(nothing, SET, AS_OF) == (
        "no mature prediction: 30 immature ones, whose 7 days are not over by 2026-11-02"
    )
    same = FOUND._replace(n_followed=0)
    assert why_not(same, SET, AS_OF) == "none of 205 mature predictions is followed by an outcome 'purchase'"


def test_the_page_says_rows_what_was_left_out_label_folds_nulls_and_how_to_read_it() -> None:
    split = replace(SET, split=Split(0.2, 3), model_name="m", model_versions=("1", "2"), description="Why.")
    page = markdown(FOUND, split, AS_OF, "/lake/training_sets", 7)
    for words in (
        f"200 rows of `conversion` as of 2026-11-02, content hash `{'0' * 32}`. Why.",
        "2026-10-05 up to, not including, 2026-10-26: of m, version 1, 2.",
        "30 immature",
        "5 without a label",
        "`any` of the outcomes `purchase` of its request within 7 days, none: zero",
        "Mean 0.19; 38 of 200 above 0 (19.00%); 40 have an outcome.",
        "Folds by unit (seed 3): 150 train, 45 test. 5 rows name no unit and have no fold.",
        "| age | 25.00% |",
        'option("versionAsOf", 7).load("/lake/training_sets")',
        "training_set_id = 'conversion'",
    ):
        assert words in page
    assert 'table("main.mltrust.x_training_sets")' in markdown(FOUND, SET, AS_OF, "main.mltrust.x_training_sets", 7)
    assert "Folds" not in markdown(FOUND, SET, AS_OF, "/lake", 7)


def test_metrics_name_counts_the_labels_mean_and_the_nulls_of_each_feature() -> None:
    named = metrics(FOUND._replace(label_mean=nan))
    assert named["n_immature"] == 30
    assert named["null_share/age"] == 0.25
    assert "label_mean" in named
