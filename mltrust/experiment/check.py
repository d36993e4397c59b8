"""A row of what was checked of an experiment."""

from math import nan
from typing import NamedTuple

from mltrust.verdicts import Verdict


class Check(NamedTuple):
    """A row of experiment_checks. `treatment` and `metric` are '' where the check concerns all of them."""

    check: str
    method: str
    n_units: int
    threshold: float
    verdict: Verdict
    reason: str
    decides: bool
    treatment: str = ""
    metric: str = ""
    slice_key: str = ""
    slice_value: str = ""
    value: float = nan
    statistic: float = nan
    df: float = nan
    pvalue: float = nan
    qvalue: float = nan
    n_family: int = 1
