"""What a replay's conf may say, and how mistakes are named."""

from pathlib import Path

import pytest

from mltrust import conf
from mltrust.errors import ConfError
from tests.unit.conftest import SHIPPED, edited

TEXT = """
replay_id: ranker
log: recommendations
champion: {name: recommender, alias: champion}
candidate: {name: recommender, alias: candidate}
threshold: 0.5
label: {outcome: purchase, aggregate: any, window_days: 7}
actions: [hide, show]
slices: {attributes: {device: features.device}}
select:
  start: 2026-10-05
  end: 2026-10-26
  since: 2026-10-06T14:00:00Z
  sample: {rows: 1000, by: [device], at_least: 100}
perturbations:
  - {kind: jitter, scale: 0.2}
  - {kind: swap, features: [age, price]}
gate: {rules: [{measure: churn, max: 0.1}]}
"""


@pytest.fixture
def config(folder: Path) -> Path:
    path = folder / "replays" / "ranker.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize("env", [path.stem for path in (SHIPPED / "env").glob("*.yaml")])
@pytest.mark.parametrize("config", [*SHIPPED.glob("replays/*")], ids=lambda path: path.stem)
def test_every_shipped_replay_is_valid(config: Path, env: str) -> None:
    assert conf.load(config, env).the_replay().replay_id == config.stem


def test_a_replay_is_read_whole(config: Path) -> None:
    replay = conf.load(config, "local").the_replay()
    types = {"age": "long", "device": "string", "price": "double"}
    names = [each.name for each in replay.expanded(types)]  # type: ignore[arg-type]
    assert names == ["jitter(age)", "jitter(price)", "swap(age+price)"]
    assert (replay.set_id, str(replay.candidate)) == ("ranker", "recommender@candidate")
    since, until = replay.the_selection().bounds()
    assert (str(since), until) == ("2026-10-06 14:00:00+00:00", None)


def test_the_conf_of_another_job_is_refused() -> None:
    with pytest.raises(ConfError, match="expected the conf of a replay"):
        conf.load(SHIPPED / "training_sets/conversion.yaml", "local").the_replay()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("measure: churn", "measure: chrun", "gate: 'chrun' is no measure; did you mean 'churn'?"),
        ("max: 0.1}", "max: 0.1, min: 0}", "expected min or max, and not both"),
        ("kind: jitter", "kind: shake", "perturbations.0.kind: Input should be 'missing', 'jitter'"),
        ("[age, price]", "[age, prize]", "'prize' is no feature of log 'recommendations'; did you mean 'price'?"),
        ("kind: swap, features: [age", "kind: unseen, features: [age", "unseen is for string, age is a long"),
        ("device: features.device", "device: features.divice", "is no column of log 'recommendations'; did you mean"),
        ("by: [device]", "by: [region]", "select: 'region' is no slice attribute"),
        ("alias: champion}", "alias: champion, version: '1'}", "expected a version or an alias, and not both"),
        ("2026-10-06T14:00:00Z", "2026-10-06T14:00:00", "expected a time with its offset"),
        ("end: 2026-10-26", "end: 2026-10-05", "expected a day after start"),
        ("select:", "set_of: other\nselect:", "expected select, or set_of with the replay whose set is used"),
        ("threshold: 0.5", "", "threshold: missing; actions and hard_within are of a decision by a threshold"),
        ("label: {outcome: purchase, aggregate: any, window_days: 7}", "", "label: missing; actions are valued by"),
        ("replay_id: ranker", "replay_id: a/b", "replay_id is 'a/b', expected letters, digits"),
        ("rules: [{measure: churn, max: 0.1}]", "rules: []", "rules is empty: a gate without rules would pass"),
        ("threshold: 0.5", "threshold: 0.5\nbatch_rows: 0", "batch_rows is 0, expected 1 or more"),
        ("scale: 0.2", "scale: -1", "scale is -1.0, expected a number of standard deviations above 0"),
    ],
)
def test_nonsense_is_refused_with_file_field_given_and_expected(
    config: Path, old: str, new: str, expected: str
) -> None:
    edited(config, old, new)
    with pytest.raises(ConfError) as caught:
        conf.load(config, "local")
    assert expected in str(caught.value)
    assert str(config) in str(caught.value)
