"""Which profiles are held against which: the comparisons of one window, each of them one family of tests."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import NamedTuple

from mltrust.drift.alarm import Key, Profiles, pooled_profiles
from mltrust.drift.profile import Profile
from mltrust.drift.spec import Against, Drift, Window

#: The arm of all rows of a model version, and that of its production rows that a shadow answered too.
EVERY_ROW, SHADOWED = "(all)", "(shadowed)"
#: Stands for the model version where the rows of an arm are of any.
ANY_VERSION = "(all)"
_PRODUCTION, _SHADOW = "production", "shadow"
#: Windows whose slow shifts are added up, at most.
_ADDED_UP = 30
_FEWEST_POOLED = 2


class Population(NamedTuple):
    """Whose rows were counted."""

    model_version: str
    traffic: str
    arm: str


class Slot(NamedTuple):
    """Whose rows were counted, and when."""

    population: Population
    window: Window


#: The profiles of everyone whose rows were counted, by column and slice.
Surveyed = Mapping[Slot, Profiles]


class Arms(NamedTuple):
    """The arms of an experiment, as drift names them."""

    control: str
    treatments: tuple[str, ...]


def arm_name(experiment_id: str, variant: str) -> str:
    """How the arm of an experiment is named beside those of others."""
    return f"{experiment_id}/{variant}"


class Family(NamedTuple):
    """A window of a population and what it is held against, in words; tests of it all are one family.

    `reference_span` is from the first to the last of the reference's days, `reference_days` are those whose rows it
    adds up, `n_windows` the windows that are pooled. `since` are the windows since the fixed reference, this last.
    """

    population: Population
    window: Window
    reference: str
    against: Against
    current: Profiles
    baseline: Profiles
    reference_span: Window
    reference_days: int
    paired: bool = False
    n_windows: int = 1
    since: tuple[Profiles, ...] = ()

    @property
    def is_pooled(self) -> bool:
        return self.n_windows > 1


def needed(drift: Drift, as_of: date, back: int = 0) -> tuple[Window, ...]:
    """The windows whose profiles are needed to judge the windows that end at as_of and up to `back` before it."""
    own = [drift.window(as_of, at) for at in range(back + drift.alarm.pooled_windows)]
    judged = own[: back + 1]
    earlier = [window.before(days) for window in judged for each in drift.against for days in _days_back(each, drift)]
    return tuple(sorted({drift.reference.window, *own, *earlier, *since_reference(drift, as_of, back)}))


def since_reference(drift: Drift, as_of: date, back: int = 0) -> list[Window]:
    """The windows after the fixed reference up to one, the oldest first: those whose slow shifts are added up."""
    if not any(each.kind == "fixed" for each in drift.against):
        return []
    windows = [drift.window(as_of, back + at) for at in range(_ADDED_UP)]
    return [window for window in reversed(windows) if window.start >= drift.reference.end]


def _days_back(against: Against, drift: Drift) -> tuple[int, ...]:
    """How many days before a window those lie that it is held against; none where they are the same or fixed."""
    if against.kind == "previous":
        return (drift.window_days,)
    return tuple(7 * week for week in range(1, against.weeks + 1)) if against.kind == "same_weekdays" else ()


def families(drift: Drift, surveyed: Surveyed, arms: Mapping[str, Arms], as_of: date, back: int = 0) -> list[Family]:
    """The comparisons of the window that ends `back` windows before as_of, and of the last windows pooled."""
    window = drift.window(as_of, back)
    recent = tuple(drift.window(as_of, back + at) for at in range(drift.alarm.pooled_windows))
    windows = [(window,)] + ([recent] if len(recent) > 1 else [])
    found = [
        family
        for each in windows
        for against in drift.against
        for family in _families(drift, surveyed, arms, against, each)
    ]
    since = since_reference(drift, as_of, back)
    return [_with_past(each, surveyed, since) if _is_of_one_window(each) else each for each in found]


def _is_of_one_window(family: Family) -> bool:
    return family.against.kind == "fixed" and not family.is_pooled


def _with_past(family: Family, surveyed: Surveyed, since: Sequence[Window]) -> Family:
    past = (_of_window(surveyed, family.population, window, family.against.columns) for window in since)
    return family._replace(since=tuple(past))


def _families(
    drift: Drift, surveyed: Surveyed, arms: Mapping[str, Arms], against: Against, windows: Sequence[Window]
) -> Iterator[Family]:
    if len(windows) > 1:
        windows = _to_pool(drift, against, windows)
        if len(windows) < _FEWEST_POOLED:
            return
    for population in _currents(surveyed, arms, against, windows[0]):
        current = _added(surveyed, population, windows, drift, against)
        others, when, paired = _baseline(drift, arms, against, population, windows)
        baseline = _added(surveyed, others, when, drift, against)
        span = Window(windows[-1].start, windows[0].end)
        words = f"{against}{f', {len(windows)} windows' if len(windows) > 1 else ''}"
        since, days = Window(min(when).start, max(when).end), sum(each.days for each in when)
        yield Family(population, span, words, against, current, baseline, since, days, paired, len(windows))


def _to_pool(drift: Drift, against: Against, windows: Sequence[Window]) -> Sequence[Window]:
    """The windows that may be pooled: of the fixed reference only those after it, of a moving one none."""
    if against.kind in ("previous", "same_weekdays"):
        return ()
    if against.kind == "fixed":
        return [window for window in windows if window.start >= drift.reference.end]
    return windows


def _currents(surveyed: Surveyed, arms: Mapping[str, Arms], against: Against, window: Window) -> list[Population]:
    """Whose window is held against something: versions with rows in it, or the treatments of an experiment."""
    if against.kind == "control":
        treatments = arms[str(against.experiment)].treatments
        return [Population(ANY_VERSION, _PRODUCTION, arm) for arm in treatments]
    traffic = _SHADOW if against.kind == "production" else _PRODUCTION
    here = {slot.population for slot in surveyed if slot.window == window}
    own = [each for each in here if (each.traffic, each.arm) == (traffic, EVERY_ROW)]
    return sorted(each for each in own if each.model_version != against.model_version)


def _baseline(
    drift: Drift, arms: Mapping[str, Arms], against: Against, population: Population, windows: Sequence[Window]
) -> tuple[Population, Sequence[Window], bool]:
    """Whose rows, of which windows, a population is held against, and whether they are of the same requests."""
    if against.kind == "fixed":
        version = drift.reference.model_version or population.model_version
        return population._replace(model_version=version), (drift.reference.window,), False
    if against.kind in ("previous", "same_weekdays"):
        return population, [windows[0].before(days) for days in _days_back(against, drift)], False
    if against.kind == "control":
        return population._replace(arm=arms[str(against.experiment)].control), windows, False
    version = str(against.model_version)
    if against.kind == "version":
        return population._replace(model_version=version), windows, False
    return Population(version, _PRODUCTION, SHADOWED), windows, True


def _added(
    surveyed: Surveyed, population: Population, windows: Sequence[Window], drift: Drift, against: Against
) -> Profiles:
    """The profiles of a population over windows, in each of which a unit may have rows again."""
    of_windows = [_of_window(surveyed, population, window, against.columns) for window in windows]
    return pooled_profiles(of_windows, recurring=drift.unit == "unit_id")


def _of_window(surveyed: Surveyed, population: Population, window: Window, columns: Sequence[str] | None) -> Profiles:
    """The profiles of a population in a window; of any version, those of all, whose units are not the same."""
    total: dict[Key, Profile] = {}
    for slot, profiles in surveyed.items():
        if slot.window != window or not _is_of(slot.population, population):
            continue
        for key, profile in profiles.items():
            if columns is None or key.column in columns:
                total[key] = total[key] + profile if key in total else profile
    return total


def _is_of(one: Population, wanted: Population) -> bool:
    return one == wanted or (
        wanted.model_version == ANY_VERSION and one._replace(model_version=ANY_VERSION) == wanted
    )
