"""The value of a policy on published examples of the Open Bandit project (github.com/st-tech/zr-obp)."""

import csv
import gzip
import os
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from mltrust.stats import off_policy
from tests.unit.test_off_policy import values, weighed

# Rounding alone with the version that the figures were computed with again; forests differ a little elsewhere.
EXACT = version("scikit-learn") == "1.9.1"


def test_ipw_errs_on_digits_as_the_project_says() -> None:
    """Its README: the truth is the accuracy of a forest, the log that of a logistic regression in 82 of 100 cases."""
    X, y = load_digits(return_X_y=True)
    X_train, X_log, y_train, y_log = train_test_split(X, y, test_size=0.7, random_state=12345)
    n, at = len(y_log), np.arange(len(y_log))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the example stops at 100 iterations
        behaviour = LogisticRegression(random_state=12345).fit(X_train, y_train).predict(X_log)
    chosen = RandomForestClassifier(random_state=12345).fit(X_train, y_train).predict(X_log)
    propensities = np.full((n, 10), 0.02)
    propensities[at, behaviour] = 0.82
    rng = np.random.RandomState(12345)
    actions = np.array([rng.choice(10, p=row, replace=False) for row in propensities])
    rewards = (actions == y_log).astype(float)
    weights = (chosen == actions) / propensities[at, actions]
    truth = (chosen == y_log).mean()
    ipw = values(weighed(off_policy.sample(rewards=rewards, weights=weights)), with_model=False)["ipw"]
    tolerance = 1e-12 if EXACT else 1e-3
    assert truth == pytest.approx(0.9634340222575517, abs=tolerance)
    assert abs(ipw - truth) / truth == pytest.approx(0.01827255896321327, abs=tolerance)


@pytest.mark.real
@pytest.mark.skipif(not os.environ.get("MLTRUST_DATA"), reason="MLTRUST_DATA is unset: it names the real data")
def test_open_bandits_random_policy_is_valued_from_the_log_of_the_other() -> None:
    path = Path(os.environ["MLTRUST_DATA"], "open_bandit_men", "bts.csv.gz")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    n_items = Counter(row["item_id"] for row in rows)
    assert len(n_items) == 34
    weights = np.array([1 / len(n_items) / float(row["propensity_score"]) for row in rows])
    rewards = np.array([float(row["click"]) for row in rows])
    state = weighed(off_policy.sample(rewards=rewards, weights=weights))
    found, overlap = values(state, with_model=False), off_policy.overlap(state)
    # Half of the last digit given.
    assert found["ipw"] == pytest.approx(0.003009, abs=5e-7)
    assert found["snipw"] == pytest.approx(0.003189, abs=5e-7)
    assert overlap.ess == pytest.approx(655.7, abs=0.05)
    assert overlap.max_weight == pytest.approx(178.3, abs=0.05)
    assert overlap.refusal == ""
