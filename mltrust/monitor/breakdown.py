"""Metrics broken down by an attribute: which values have series of their own, and where these are 0.

A part of a share is a share of all requests of its slice, so that parts add up to the whole. Tables have rows of what
occurred. In the panel a part that did not occur in a bucket whose whole is known was 0 in it, in every version and
arm that has the whole: what is new has a history, and what one arm never had is what the other is compared with.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from mltrust.monitor.cells import EVERY_VERSION, commonest
from mltrust.monitor.series import Panel, SeriesKey
from mltrust.monitor.spec import SeriesSpec
from mltrust.slices import OTHER, OVERALL, Slice, parted, within
from mltrust.states.moments import FloatArray


def completed(panel: Panel, series: SeriesSpec) -> Panel:
    """The panel with every part of what is broken down, 0 where it did not occur; beyond the commonest together."""
    by_metric = series.breakdowns
    found = {at: part_of(key, by_metric) for at, key in enumerate(panel.keys)}
    parts = {at: part for at, part in found.items() if part is not None}
    if not parts:
        return panel
    rows = [at for at in range(len(panel.keys)) if at not in parts]
    members = _members(panel, parts, by_metric)
    slices: dict[tuple[str, Slice], set[Slice]] = defaultdict(set)
    for key, own in members.items():
        slices[key.metric, parts[own[0]][0]].add(key.slice)
    made = [
        (_named(panel.keys[at], of), *_sum(panel, at, members.get(_named(panel.keys[at], of), []), series))
        for at in rows
        for of in sorted(slices.get((panel.keys[at].metric, panel.keys[at].slice), ()))
        if panel.keys[at].model_version == EVERY_VERSION or not panel.keys[at].arm
    ]
    whole, keys = panel.rows(rows), tuple(each[0] for each in made)
    kinds = tuple(series.kinds[key.metric] for key in keys)
    arrays = (
        np.vstack([getattr(whole, name), *(each[at] for each in made)])
        for at, name in enumerate(("n", "value", "std_error"), 1)
    )
    return Panel((*whole.keys, *keys), (*whole.kinds, *kinds), panel.start, panel.bucket, *arrays)


def part_of(key: SeriesKey, by_metric: Mapping[str, str]) -> tuple[Slice, str] | None:
    """The slice of the whole and the value of a part, None for other series; `by_metric` are the breakdowns."""
    return parted(key.slice, by_metric[key.metric]) if key.metric in by_metric else None


def _members(
    panel: Panel, parts: Mapping[int, tuple[Slice, str]], by_metric: Mapping[str, str]
) -> dict[SeriesKey, list[int]]:
    """The rows that every series of a part is the sum of: of `(other)` several."""
    sizes: dict[str, dict[str, float]] = defaultdict(dict)
    for at, (whole, value) in parts.items():
        key = panel.keys[at]
        if key.model_version == EVERY_VERSION and not key.arm and whole == OVERALL:
            weights = 1.0 if panel.kinds[at] == "count" else panel.n[at]
            sizes[key.metric][value] = float(np.nansum(panel.value[at] * weights))
    kept = {metric: commonest(of_values) for metric, of_values in sizes.items()}
    members: dict[SeriesKey, list[int]] = defaultdict(list)
    for at, (whole, value) in parts.items():
        key = panel.keys[at]
        named = value if value in kept.get(key.metric, ()) else OTHER
        members[_named(key, within(whole, by_metric[key.metric], named))].append(at)
    return members


def _named(key: SeriesKey, of: Slice) -> SeriesKey:
    return key._replace(slice_key=of.slice_key, slice_value=of.slice_value)


def _sum(
    panel: Panel, whole: int, rows: Sequence[int], series: SeriesSpec
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Requests, value and standard error of a part in every bucket; nan where its whole is not known."""
    is_count, value = panel.kinds[whole] == "count", np.nan_to_num(panel.value[list(rows)]).sum(axis=0)
    known = ~np.isnan(panel.value[whole])
    if series.metrics[panel.keys[whole].metric].source == "requests":
        known &= panel.n[whole] > 0  # of no request nothing is known, of no reject that there was none
    n = value if is_count else panel.n[whole]
    spread = value if is_count else value * (1 - np.minimum(value, 1)) / np.maximum(n, 1)
    return n, np.where(known, value, np.nan), np.where(known, np.sqrt(spread), np.nan)
