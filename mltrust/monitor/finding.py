"""A finding: one bucket of one series that a detector does not believe to be chance."""

from datetime import datetime
from math import isnan, nan
from typing import Literal, NamedTuple

from mltrust.monitor.series import SeriesKey
from mltrust.slices import Slice

Severity = Literal["warning", "critical"]
#: What metrics of findings begin with that other jobs made: detect_drift, and analyze_experiment of sample ratios.
OF_OTHERS = OF_DRIFT, OF_RATIO = ("drift ", "srm ")


class Finding(NamedTuple):
    """A row of monitor_findings.

    `judged_at` is the end of the bucket, or, where outcomes had to mature, when they had. `score` is how far the
    value lies from what was expected, signed, in standard errors of everything that varies; for a test by evidence it
    is the normal score of its p-value. `excess` is what the bucket had too much or too little, summed over its
    requests, and `noise` the standard error that counting alone gives that sum: they add up over buckets, and tell
    the guilty slice from those that only contain it. Both are nan where they mean nothing. `blamed_version` is the
    version that served what was found, '' where several did.
    """

    model_name: str
    model_version: str
    arm: str
    metric: str
    slice_key: str
    slice_value: str
    detector: str
    bucket_start: datetime
    judged_at: datetime
    severity: Severity
    n_requests: int
    value: float
    expected: float
    low: float
    high: float
    score: float
    pvalue: float
    threshold: float
    excess: float = nan
    noise: float = nan
    blamed_version: str = ""
    reason: str = ""

    @property
    def series(self) -> SeriesKey:
        return SeriesKey(*self[:6])

    @property
    def key(self) -> tuple[object, ...]:
        """What a finding is in its table: there is one per series, detector and bucket."""
        return (*self.series, self.detector, self.bucket_start)

    @property
    def slice(self) -> Slice:
        return Slice(self.slice_key, self.slice_value)

    @property
    def subject(self) -> tuple[str, bool]:
        """Findings of one subject may be one incident: the arms' sample ratio is no fault of what a model served."""
        return (self.model_name, self.metric.startswith(OF_RATIO))

    @property
    def has_excess(self) -> bool:
        return not isnan(self.excess) and not isnan(self.noise) and self.noise > 0
