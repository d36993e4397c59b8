"""Whether a log is whole: what a model version logged, what was refused and what its producers dropped."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from math import inf, nan
from typing import NamedTuple

from mltrust.slices import OTHER
from mltrust.verdicts import Verdict, combine

#: The model name or version of a reject in which it cannot be read.
UNKNOWN = "(unknown)"


class LogDay(NamedTuple):
    """What is known of a model version on a UTC day; the observation is the row, or what the name says.

    Records and heartbeats are of the day of their event time, rejects of the day of their arrival, as they have no
    event time that can be trusted. `n_logged` and what follows is what producers say; without one (`n_producers` 0)
    the zeros say nothing. Lags are seconds from event to arrival, nan without records.
    """

    model_name: str
    model_version: str
    day: date
    n_records: int
    n_requests: int
    n_production: int
    n_shadow: int
    n_errors: int
    n_rejected: int
    rejects: Mapping[str, int]
    n_logged: int
    n_dropped: int
    n_invalid: int
    n_spilled: int
    n_producers: int
    schema_versions: Sequence[str]
    feature_versions: Sequence[str]
    lag_p50: float
    lag_p95: float
    lag_max: float


class OutcomeDay(NamedTuple):
    """What is known of the outcomes of a name on the UTC day of their event time; the observation is the outcome.

    Counted in their highest revisions: `n_outcomes` that hold, of which `n_corrected` are no first revision;
    `n_retracted` beside them. `n_unmatched` of the `n_by_request` follow no request of the log.
    """

    name: str
    day: date
    n_outcomes: int
    n_corrected: int
    n_retracted: int
    n_by_request: int
    n_by_unit: int
    n_unmatched: int
    lag_p50: float
    lag_p95: float
    lag_max: float


class ModelWindow(NamedTuple):
    """The days of a model version together. `lag_p95` is that of its worst day: percentiles do not add."""

    model_name: str
    model_version: str
    n_records: int
    n_errors: int
    n_rejected: int
    rejects: Mapping[str, int]
    n_logged: int
    n_dropped: int
    schema_versions: Sequence[str]
    feature_versions: Sequence[str]
    lag_p95: float


class OutcomeWindow(NamedTuple):
    """The days of an outcome's name together. `lag_p95` is that of its worst day."""

    name: str
    n_outcomes: int
    n_corrected: int
    n_retracted: int
    n_by_request: int
    n_unmatched: int
    lag_p95: float


class Limits(NamedTuple):
    """The largest shares that pass."""

    max_drop_share: float
    max_reject_share: float


class Judgement(NamedTuple):
    """A verdict with its reason in words."""

    verdict: Verdict
    reason: str


class Judged(NamedTuple):
    """The days and the windows of a log, each with its judgement, and the verdict of those that decide.

    `reasons` are why it is no pass.
    """

    days: Sequence[tuple[LogDay, Judgement]]
    windows: Sequence[tuple[ModelWindow, Judgement]]
    verdict: Verdict
    reasons: Sequence[str]


def judged(days: Sequence[LogDay], limits: Limits, end: date) -> Judged:
    """Judges every day and the window before `end`; the last day and the window decide.

    A last day of which nothing is known is inconclusive: a log that went silent must not pass.
    """
    each_day = [(row, judgement(row, limits, among=[each for each in days if each.day == row.day])) for row in days]
    windows = model_windows(days)
    each_window = [(row, judgement(row, limits, among=windows)) for row in windows]
    last = end - timedelta(days=1)
    deciding = [(str(last), found) for row, found in each_day if row.day == last]
    deciding = deciding or [(str(last), Judgement(Verdict.INCONCLUSIVE, "nothing was logged, refused or reported"))]
    deciding += [("all days", found) for _, found in each_window]
    verdict = combine(found.verdict for _, found in deciding)
    reasons = [f"{when}: {found.reason}" for when, found in deciding if found.verdict is not Verdict.PASS]
    return Judged(each_day, each_window, verdict, reasons)


def judgement(row: LogDay | ModelWindow, limits: Limits, *, among: Sequence[LogDay | ModelWindow]) -> Judgement:
    """The verdict on a model version; `among` is everything of the same days, itself included.

    Rejects of an unknown model are judged by their share in all of that. What a producer of very many models reports
    under `(other)` is dropped or not, and has no records of its own.
    """
    whole = among if is_unknown(row) else [row]
    name = f"{row.model_name} {row.model_version}"
    if breaches := _breaches(row, whole, limits):
        return Judgement(Verdict.BREACH, f"{name}: {', '.join(breaches)}")
    if row.n_logged and _is_absent(row):
        return Judgement(Verdict.INCONCLUSIVE, f"{name}: {row.n_logged:,} predictions reported, none in the log")
    return Judgement(Verdict.PASS, f"{name}: {_rejects(row, whole)}, {_drops(row)}")


def _breaches(row: LogDay | ModelWindow, whole: Sequence[LogDay | ModelWindow], limits: Limits) -> list[str]:
    found = []
    if row.n_dropped and _is_absent(row):
        found.append(f"{row.n_dropped:,} predictions dropped and none in the log")
    elif drop_share(row) > limits.max_drop_share:
        found.append(f"{_drops(row)} (limit {limits.max_drop_share:.2%})")
    if reject_share(row.n_rejected, whole) > limits.max_reject_share:
        found.append(f"{_rejects(row, whole)} (limit {limits.max_reject_share:.2%})")
    return found


def _is_absent(row: LogDay | ModelWindow) -> bool:
    return row.n_records == 0 and row.model_name != OTHER


def _rejects(row: LogDay | ModelWindow, whole: Sequence[LogDay | ModelWindow]) -> str:
    n = sum(each.n_records + each.n_rejected for each in whole)
    return f"{row.n_rejected / n:.2%} of {n:,} records rejected" if n else "no records"


def _drops(row: LogDay | ModelWindow) -> str:
    if not row.n_logged:
        return f"{row.n_dropped:,} of no predictions dropped" if row.n_dropped else "no producer reports drops"
    return f"{drop_share(row):.2%} of {row.n_logged:,} predictions dropped"


def is_unknown(row: LogDay | ModelWindow) -> bool:
    """Whether the row holds rejects of which no model version is known."""
    return UNKNOWN in (row.model_name, row.model_version)


def drop_share(row: LogDay | ModelWindow) -> float:
    """Dropped of logged predictions; nan where nobody reports any."""
    if row.n_logged:
        return row.n_dropped / row.n_logged
    return inf if row.n_dropped else nan


def reject_share(n_rejected: int, whole: Sequence[LogDay | ModelWindow]) -> float:
    """`n_rejected` of all records and rejects of `whole`; nan where there are none."""
    n = sum(each.n_records + each.n_rejected for each in whole)
    return n_rejected / n if n else nan


def model_windows(days: Sequence[LogDay]) -> list[ModelWindow]:
    """The days of each model version together, the most records first."""
    models = dict.fromkeys((each.model_name, each.model_version) for each in days)
    found = [_model_window([each for each in days if each[:2] == model]) for model in models]
    return sorted(found, key=lambda row: (-row.n_records, row.model_name, row.model_version))


def _model_window(days: Sequence[LogDay]) -> ModelWindow:
    reasons = sorted({reason for each in days for reason in each.rejects})
    return ModelWindow(
        model_name=days[0].model_name,
        model_version=days[0].model_version,
        n_records=sum(each.n_records for each in days),
        n_errors=sum(each.n_errors for each in days),
        n_rejected=sum(each.n_rejected for each in days),
        rejects={reason: sum(each.rejects.get(reason, 0) for each in days) for reason in reasons},
        n_logged=sum(each.n_logged for each in days),
        n_dropped=sum(each.n_dropped for each in days),
        schema_versions=sorted({version for each in days for version in each.schema_versions}),
        feature_versions=sorted({version for each in days for version in each.feature_versions}),
        lag_p95=_worst(each.lag_p95 for each in days),
    )


def outcome_windows(days: Sequence[OutcomeDay]) -> list[OutcomeWindow]:
    """The days of each outcome's name together, by name."""
    names = sorted({each.name for each in days})
    return [_outcome_window([each for each in days if each.name == name]) for name in names]


def _outcome_window(days: Sequence[OutcomeDay]) -> OutcomeWindow:
    return OutcomeWindow(
        name=days[0].name,
        n_outcomes=sum(each.n_outcomes for each in days),
        n_corrected=sum(each.n_corrected for each in days),
        n_retracted=sum(each.n_retracted for each in days),
        n_by_request=sum(each.n_by_request for each in days),
        n_unmatched=sum(each.n_unmatched for each in days),
        lag_p95=_worst(each.lag_p95 for each in days),
    )


def unmatched_share(row: OutcomeWindow) -> float:
    """Of the outcomes keyed by request those that follow none; nan where there are none."""
    return row.n_unmatched / row.n_by_request if row.n_by_request else nan


def _worst(lags: Iterable[float]) -> float:
    defined = [lag for lag in lags if lag == lag]  # nan is not equal to itself
    return max(defined, default=nan)
