"""Buckets and other experiments: what speaks against an assignment by chance."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from mltrust.experiment.assignment import Assignment
from mltrust.experiment.cells import Bucket
from mltrust.experiment.check import Check
from mltrust.experiment.randomisation import randomisations
from mltrust.experiment.spec import Experiment
from mltrust.metrics import Metric
from mltrust.verdicts import Verdict
from tests.unit.drawn import arms, experiment, states

MONEY = Metric("money", "mean", "revenue", role="goal")
SPEC = experiment(MONEY, assignment=Assignment("e", 4, bucket="b%d"))


def found(buckets: dict[str, Bucket], spec: Experiment = SPEC) -> dict[str, Check]:
    empty = states(spec, {"variant": arms(10), "revenue": np.zeros(20)})
    return {row.metric: row for row in randomisations(replace(empty, buckets=buckets), spec)}


def test_an_arm_that_meets_another_experiment_more_often_is_no_mismatch() -> None:
    rng = np.random.default_rng(5)
    variant = arms(4000)
    banner = np.where(rng.random(len(variant)) < np.where(variant == "t", 0.6, 0.3), "in", "(none)")
    banner = np.where(banner == "in", rng.choice(["control", "treatment"], len(variant)), banner)
    assert overlap(banner, variant).verdict is Verdict.PASS


def test_even_buckets_as_the_hash_gives_them_pass() -> None:
    rows = found({f"b{at}": Bucket(n, n) for at, n in enumerate((250, 260, 240, 250))})
    assert {name: row.verdict for name, row in rows.items()} == {"hash": Verdict.PASS, "evenness": Verdict.PASS}
    assert rows["evenness"].pvalue == pytest.approx(stats.chisquare([250, 260, 240, 250]).pvalue)


def test_one_unit_in_another_bucket_than_its_hash_fails() -> None:
    rows = found({f"b{at}": Bucket(250, 250 - (at == 2)) for at in range(4)})
    assert (rows["hash"].verdict, rows["hash"].decides) == (Verdict.BREACH, True)
    assert rows["hash"].reason == "1 of 1,000 units are in another bucket than md5 of salt 'e' and unit gives"


def test_buckets_that_are_not_even_fail_and_one_that_is_empty_counts() -> None:
    rows = found({f"b{at}": Bucket(250, 250) for at in range(3)})
    assert (rows["evenness"].verdict, rows["evenness"].decides) == (Verdict.BREACH, True)
    assert rows["evenness"].pvalue == pytest.approx(stats.chisquare([250, 250, 250, 0]).pvalue)


def test_units_in_no_declared_bucket_fail() -> None:
    rows = found({f"b{at}": Bucket(250, 250) for at in range(4)} | {"(none)": Bucket(5, 0)})
    assert rows["buckets"].reason == "5 of 1,005 units are in no bucket of the declared ones"
    assert rows["buckets"].verdict is Verdict.BREACH


def test_nobody_says_nothing() -> None:
    assert {row.verdict for row in found({}).values()} == {Verdict.INCONCLUSIVE}


def test_buckets_that_were_opened_later_have_had_less_time_and_those_never_opened_have_no_units() -> None:
    ramp = replace(SPEC, assignment=Assignment("e", 8, bucket="b%d", opened=((0, 1), (2, 3))))
    buckets = {f"b{at}": Bucket(n, n) for at, n in enumerate((510, 490, 105, 95))}
    early, late = (stats.chisquare(counts).statistic for counts in ((510, 490), (105, 95)))
    row = found(buckets, ramp)["evenness"]
    assert (row.verdict, row.df) == (Verdict.PASS, 2)
    assert row.pvalue == pytest.approx(stats.chi2.sf(early + late, 2))
    assert found(buckets)["evenness"].verdict is Verdict.BREACH
    strange = found(buckets | {"b7": Bucket(1, 1)}, ramp)["buckets"]
    assert strange.reason == "1 of 1,201 units are in no bucket that was opened"
    thin = found({f"b{at}": Bucket(n, n) for at, n in enumerate((510, 490, 4, 2))}, ramp)["evenness"]
    assert thin.reason == "1,000 units in 2 buckets (2 have too few units to be tested)"
    assert thin.pvalue == pytest.approx(stats.chisquare((510, 490)).pvalue)


def test_an_experiment_that_shares_no_unit_is_not_held_against_this_one() -> None:
    assert overlaps(np.full(200, "(none)"), arms(100)) == []
    nobody = replace(states(experiment(MONEY), {"variant": arms(1), "revenue": np.zeros(2)}), overlaps={"banner": {}})
    assert randomisations(nobody, experiment(MONEY)) == []


def test_buckets_as_units_are_in_every_experiment_and_meet_none() -> None:
    buckets = {f"b{at}": "ct"[at % 2] for at in range(100)}
    spec = experiment(MONEY, unit="bucket_id", buckets=buckets)
    banner = np.where(np.arange(100) < 50, "control", "treatment")
    units = {"variant": arms(50), "revenue": np.zeros(100), "banner": np.where(arms(50) == "t", banner, "control")}
    assert randomisations(states(spec, units, ("banner",)), spec) == []


def overlaps(banner: np.ndarray, variant: np.ndarray) -> list[Check]:
    units = {"variant": variant, "revenue": np.zeros(len(variant)), "banner": banner}
    return randomisations(states(experiment(MONEY), units, ("banner",)), experiment(MONEY))


def overlap(banner: np.ndarray, variant: np.ndarray) -> Check:
    [row] = overlaps(banner, variant)
    return row


def test_arms_that_meet_another_experiment_alike_pass_with_their_shares() -> None:
    rng = np.random.default_rng(1)
    row = overlap(rng.choice(["control", "treatment", "(none)"], 4000, p=[0.3, 0.3, 0.4]), arms(2000))
    assert (row.check, row.metric, row.verdict) == ("overlap", "banner", Verdict.PASS)
    assert row.reason.startswith("units shared with banner: c 6")


def test_one_salt_for_two_experiments_fails() -> None:
    variant = arms(2000)
    row = overlap(np.where(variant == "t", "treatment", "control"), variant)
    assert (row.verdict, row.decides) == (Verdict.BREACH, True)
    assert row.reason.startswith("the arms do not meet the variants of banner alike")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_buckets": 1}, "n_buckets is 1"),
        ({"key": "{salt}"}, "{unit} once"),
        ({"key": "{unit}{unit}"}, "{unit} once"),
        ({"bucket": "b"}, "printf"),
        ({"bucket": "%q"}, "printf"),
        ({"bucket": "%u"}, "printf"),
        ({"hash": "crc"}, "expected one of md5, sha256"),
        ({"opened": ((0, 4),)}, "below n_buckets .4."),
        ({"opened": ((1, 2), (2, 3))}, "rising"),
        ({"opened": ((2, 1),)}, "rising"),
    ],
)
def test_nonsense_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("{", r"\{").replace("}", r"\}")):
        Assignment(**({"salt": "e", "n_buckets": 4} | changes))  # type: ignore[arg-type]


def test_the_key_is_cut_around_the_unit() -> None:
    assert Assignment("s", 2, key="{salt}/{unit}/x").around_unit() == ("s/", "/x")
    assert Assignment("s{unit}", 2, key="{unit}:{salt}").around_unit() == ("", ":s{unit}")
