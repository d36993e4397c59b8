"""What of a monitor's conf could never match anything: a rule that waits for it would wait for ever."""

import re
from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase

from mltrust.monitor.detectors import DETECTORS
from mltrust.monitor.finding import OF_DRIFT, OF_RATIO, Severity
from mltrust.monitor.spec import Detection, Event, Monitor, RollbackRule, SeriesSpec

_RANK: dict[Severity, int] = {"warning": 0, "critical": 1}
_WILD = re.compile(r"[*?\[]")


def unmatched(monitor: Monitor, detections: tuple[Detection, ...]) -> Iterator[str]:
    """Patterns that match no metric or slice, detectors without arms, rules that no finding is grave enough for."""
    metrics, keys = list(monitor.series.metrics), _keys(monitor.series)
    for at, each in enumerate(monitor.detectors):
        yield from _of_metrics(f"detectors.{at}", each.metrics, metrics)
        yield from _of_slices(f"detectors.{at}", each.slices, keys)
        if each.kind in DETECTORS and DETECTORS[each.kind].of_arms and monitor.series.arms is None:
            yield f"detectors.{at}: {each.kind} needs series.arms, which says what is compared"
    others = _of_others(monitor)
    for event in monitor.events:
        elsewhere = [each for each in event.metrics if any(_begins_alike(name, each) for name in others)]
        yield from _of_both(f"events.{event.name}", event, elsewhere, metrics, keys)
    for rule in monitor.rules:
        elsewhere = [each for name in others for each in rule.naming(name) if _begins_alike(name, each)]
        yield from _of_both(f"rules.{rule.name}", rule, elsewhere, metrics, keys)
        yield from _too_mild(rule, detections, metrics)


def _of_both(
    where: str, of: Event | RollbackRule, elsewhere: Collection[str], metrics: Collection[str], keys: Collection[str]
) -> Iterator[str]:
    """Patterns without a metric or slice; `elsewhere` are those that match what other jobs find."""
    yield from _of_metrics(where, [each for each in of.metrics if each not in elsewhere], metrics)
    if not elsewhere:  # which is found in slices of its own
        yield from _of_slices(where, of.slices, keys)


def _of_others(monitor: Monitor) -> tuple[str, ...]:
    """What metrics begin with that other jobs may find."""
    arms = monitor.series.arms
    return (OF_DRIFT,) if arms is None or arms.experiment_id is None else (OF_DRIFT, OF_RATIO)


def _of_metrics(where: str, patterns: Collection[str], metrics: Collection[str]) -> Iterator[str]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in metrics):
            yield f"{where}.metrics: {pattern!r} matches no metric; expected of {', '.join(metrics)}"


def _of_slices(where: str, patterns: Collection[str], keys: Collection[str]) -> Iterator[str]:
    for pattern in patterns:
        if not fnmatchcase("overall", pattern) and not any(_begins_alike(key, pattern) for key in keys):
            yield f"{where}.slices: {pattern!r} matches no declared slice; expected overall, {', '.join(keys)}..."


def _begins_alike(beginning: str, pattern: str) -> bool:
    """Whether some name that begins so may match the pattern."""
    literal = _WILD.split(pattern, maxsplit=1)[0]
    return literal.startswith(beginning) or (literal != pattern and beginning.startswith(literal))


def _keys(series: SeriesSpec) -> list[str]:
    """What names of slices begin with; rejects are broken down over everything only."""
    declared = [*series.slices.declared()]
    for name, by in series.breakdowns.items():
        inside = [()] if series.metrics[name].source == "rejects" else [(), *series.slices.declared()]
        declared += [tuple(sorted((*names, by))) for names in inside]
    return [f"{' x '.join(names)}:" for names in dict.fromkeys(declared)]


def _too_mild(rule: RollbackRule, detections: tuple[Detection, ...], metrics: Collection[str]) -> Iterator[str]:
    for pattern in rule.naming(OF_DRIFT):
        is_of_drift = _begins_alike(OF_DRIFT, pattern) and not any(fnmatchcase(name, pattern) for name in metrics)
        if is_of_drift and _RANK[rule.severity] > _RANK["warning"]:
            yield (
                f"rules.{rule.name}: {pattern!r} with severity {rule.severity} never acts, as drift is a warning; "
                "give the rule severity: warning"
            )
    mine = [name for name in metrics if any(fnmatchcase(name, pattern) for pattern in rule.metrics)]
    grave = [each for each in detections if _RANK[each.severity] >= _RANK[rule.severity]]
    if mine and not any(each.concerns_metric(name) for each in grave for name in mine):
        yield (
            f"rules.{rule.name}: no detector of {', '.join(mine)} has severity {rule.severity}, so that it "
            "never acts; give one that severity, or the rule another"
        )
