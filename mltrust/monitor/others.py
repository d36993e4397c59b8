"""What other jobs found, as findings of a scan: breaches of detect_drift, sample ratios of analyze_experiment."""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import partial
from math import isnan, nan
from typing import Any, NamedTuple

from scipy.stats import norm

from mltrust.monitor.cells import EVERY_VERSION
from mltrust.monitor.finding import OF_DRIFT, OF_RATIO, Finding
from mltrust.monitor.spec import Monitor
from mltrust.slices import Slice

_DAY = timedelta(days=1)
#: p-values below it are taken for it: their normal score would be infinite.
_LEAST_PVALUE = 1e-300


class Origin(NamedTuple):
    """A table of another job, which of its rows concern a monitor, and how a breach among them reads as a finding."""

    table: str
    where: Mapping[str, str]
    finding: Callable[[Mapping[str, Any]], Finding]


#: The version that alone served the treatments of an experiment at a time, '' where none is known to.
Candidate = Callable[[datetime], str]


def nobody(at: datetime) -> str:
    """No version is known to have served the treatments alone."""
    return ""


def origins(monitor: Monitor, candidate: Candidate = nobody) -> list[Origin]:
    """Where others may have found something; the candidate is asked for only where a sample ratio failed."""
    found = [Origin("drift_findings", {"monitor_id": monitor.monitor_id}, of_drift)]
    arms = monitor.series.arms
    if arms is not None and arms.experiment_id is not None:
        where = {"experiment_id": arms.experiment_id, "check": "srm"}
        of_mine = partial(of_ratio, model_name=monitor.model_name, candidate=candidate)
        found.append(Origin("experiment_checks", where, of_mine))
    return found


def of_drift(row: Mapping[str, Any]) -> Finding:
    """A breach of drift detection, judged at its as_of until a scan takes it."""
    threshold = _number(row["threshold"])
    return Finding(
        model_name=row["model_name"],
        model_version=row["model_version"],
        arm=row["arm"],
        metric=f"{OF_DRIFT}{row['measure']} of {row['column']}",
        slice_key=row["slice_key"],
        slice_value=row["slice_value"],
        detector=f"drift against {row['reference']} ({row['family']})",
        bucket_start=row["window_start"],
        judged_at=row["as_of"],
        severity="warning",
        n_requests=row["n_current"],
        value=_number(row["value"]),
        expected=nan,
        low=nan,
        high=threshold,
        score=0.0,
        pvalue=_number(row["pvalue"]),
        threshold=threshold,
        blamed_version=row["model_version"],
        reason=row["reason"],
    )


def of_ratio(row: Mapping[str, Any], *, model_name: str, candidate: Candidate = nobody) -> Finding:
    """A failed check of an experiment's sample ratio, of the day that ended at its as_of; its value is the q-value.

    Its score is the normal score of its p-value, so that the slice with the most evidence leads. To blame is who was
    the candidate then, and not a version that was released since.
    """
    pvalue, threshold = _number(row["pvalue"]), _number(row["threshold"])
    of = Slice(row["slice_key"], row["slice_value"])
    return Finding(
        model_name=model_name,
        model_version=EVERY_VERSION,
        arm="",
        metric=f"{OF_RATIO}{row['experiment_id']}",
        slice_key=of.slice_key,
        slice_value=of.slice_value,
        detector=f"sample ratio ({row['method']})",
        bucket_start=row["as_of"] - _DAY,
        judged_at=row["as_of"],
        severity="critical",
        n_requests=row["n_units"],
        value=_number(row["qvalue"]),
        expected=nan,
        low=threshold,
        high=nan,
        score=0.0 if isnan(pvalue) else float(norm.isf(max(pvalue, _LEAST_PVALUE))),
        pvalue=pvalue,
        threshold=threshold,
        blamed_version=candidate(row["as_of"]),
        reason=f"sample ratio mismatch in {row['experiment_id']}, {of}: {row['reason']}",
    )


def _number(value: float | None) -> float:
    return nan if value is None else value
