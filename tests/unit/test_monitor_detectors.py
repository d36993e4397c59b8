"""Laws that every registered detector keeps, and what each of them finds."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from scipy import stats

from mltrust.monitor import bands, concurrent  # noqa: F401 - registers the detectors
from mltrust.monitor.cells import EVERY_VERSION
from mltrust.monitor.concurrent import shiryaev_roberts
from mltrust.monitor.counting import of_counts, of_shares
from mltrust.monitor.detectors import DETECTORS, Detector, Sight, problems
from mltrust.monitor.scan import judged_in, scan
from mltrust.monitor.series import Kind, Panel, Point, SeriesKey
from mltrust.monitor.spec import Arms, Detection, Event, Monitor, SeriesMetric, SeriesSpec

START = datetime(2026, 8, 3, tzinfo=UTC)
HOUR = timedelta(hours=1)
WEEKS = 6
FIRST = 5 * 168
ARMS = Arms(by="experiment", experiment_id="e", control="control")


def options(known: Detector) -> Detection:
    return Detection(known.name, above=1e9) if known.needs else Detection(known.name)


def panel_of(kind: Kind, *, seed: int = 1, arms: bool = False, n_series: int = 4, weeks: int = WEEKS) -> Panel:
    """Series of six weeks with a season: counts about 2,000, shares about 5 %, means about 0.3."""
    rng = np.random.default_rng((seed, len(kind)))
    names = ["control", "treatment"] if arms else [""]
    shape = (n_series * len(names), weeks * 168)
    season = 1 + 0.3 * np.sin(2 * np.pi * np.arange(shape[1]) / 24)
    n = rng.poisson(2000 * season * np.ones(shape)).astype(float)
    if kind == "count":
        value, std_error = n.copy(), np.sqrt(n)
    elif kind == "share":
        value = rng.binomial(n.astype(int), 0.05 * season) / n
        std_error = np.sqrt(value * (1 - value) / n)
    else:
        value, std_error = rng.normal(0.3 * season, 0.1 / np.sqrt(n)), 0.1 / np.sqrt(n)
    keys = [
        SeriesKey("m", EVERY_VERSION, name, "metric", "device", f"d{at}") for at in range(n_series) for name in names
    ]
    return Panel(tuple(keys), (kind,) * len(keys), START, HOUR, n, value, std_error)


def cases() -> list[tuple[Detector, Kind]]:
    return [(known, kind) for known in DETECTORS.values() for kind in sorted(known.kinds)]


def scored(known: Detector, panel: Panel, *, first: int = FIRST, alpha: float = 1e-6) -> list[np.ndarray]:
    return list(known.judge(Sight(panel, first, arms=ARMS), options(known), alpha))


every = pytest.mark.parametrize(("known", "kind"), cases(), ids=lambda each: getattr(each, "name", each))


@every
def test_a_detector_looks_at_no_bucket_after_the_one_it_judges(known: Detector, kind: Kind) -> None:
    whole = panel_of(kind, arms=known.of_arms)
    cut = whole.before(whole.time(whole.n_buckets - 50))
    changed = replace(whole, value=whole.value.copy(), n=whole.n.copy())
    changed.value[:, -50:], changed.n[:, -50:] = 0.0, 7.0
    expected = scored(known, cut)
    for given in (whole, changed):
        for before, after in zip(expected, scored(known, given), strict=True):
            np.testing.assert_array_equal(before, after[:, :-50])


@every
def test_a_detector_says_the_same_of_a_series_wherever_it_stands(known: Detector, kind: Kind) -> None:
    whole = panel_of(kind, arms=known.of_arms)
    order = np.random.default_rng(3).permutation(len(whole.keys))
    for straight, shuffled in zip(scored(known, whole), scored(known, whole.rows(order)), strict=True):
        np.testing.assert_array_equal(straight[order], shuffled)


@every
def test_a_p_value_is_a_chance_and_stands_with_its_score(known: Detector, kind: Kind) -> None:
    found = known.judge(Sight(panel_of(kind, arms=known.of_arms), FIRST, arms=ARMS), options(known), 1e-6)
    judged = ~np.isnan(found.pvalue)
    assert judged.any()
    assert ((found.pvalue[judged] >= 0) & (found.pvalue[judged] <= 1)).all()
    np.testing.assert_array_equal(judged, ~np.isnan(found.score))


@every
def test_too_few_requests_are_not_judged(known: Detector, kind: Kind) -> None:
    whole = panel_of(kind, arms=known.of_arms)
    few = replace(
        whole, n=np.full_like(whole.n, 3.0), value=np.full_like(whole.n, 3.0) if kind == "count" else whole.value
    )
    found = scored(known, few)
    if known.spends:
        assert np.isnan(found[1]).all()


@every
def test_what_is_not_known_is_never_found(known: Detector, kind: Kind) -> None:
    whole = panel_of(kind, arms=known.of_arms)
    whole.value[:, FIRST + 10 : FIRST + 20] = np.nan
    if known.of_arms:
        whole.n[:, FIRST + 10 : FIRST + 20] = 0
    found = known.judge(Sight(whole, FIRST, arms=ARMS), options(known), 1e-6)
    assert not (found.pvalue[:, 10:20] <= 0.5).any() or known.name == "level_shift"


@every
def test_a_clean_series_is_left_alone(known: Detector, kind: Kind) -> None:
    for seed in range(2):
        found = known.judge(
            Sight(panel_of(kind, seed=seed, arms=known.of_arms), FIRST, arms=ARMS), options(known), 1e-6
        )
        with np.errstate(invalid="ignore"):
            assert not ((found.pvalue <= 1e-6) & (np.abs(found.score) >= found.threshold)).any()


def test_residuals_one_step_ahead_spend_the_error_that_they_are_given() -> None:
    found, n = 0, 0
    for seed in range(8):
        whole = panel_of("share", seed=seed, n_series=20)
        pvalue = DETECTORS["seasonal"].judge(Sight(whole, FIRST), Detection("seasonal"), 0.01).pvalue
        found, n = found + int((pvalue <= 0.01).sum()), n + int((~np.isnan(pvalue)).sum())
    # The scale is never below counting noise, nor below what the tail asks for, so that it errs to the safe side.
    assert 0.002 < found / n < 0.013


@pytest.mark.parametrize(("n", "p"), [(600, 0.02), (600, 0.98), (30, 0.5), (10_000, 0.002)])
def test_few_events_spend_no_more_than_the_error_that_they_are_given(n: int, p: float) -> None:
    alpha, pasts = 4.6e-8, 10  # of 6,000 tests by the hour within a budget of 0.2
    chance = stats.binom.pmf(np.arange(n + 1), n, p)
    events = np.flatnonzero(chance > alpha / 1e4)
    before = np.random.default_rng(5).binomial(n, p, (pasts, 8 * 168 + 24))
    x = np.tile(before, (len(events), 1)).astype(float)
    x[:, -24:] = np.repeat(events, pasts)[:, None]
    keys = tuple(SeriesKey("m", EVERY_VERSION, "", "metric", "", str(at)) for at in range(len(x)))
    panel = Panel(
        keys, ("share",) * len(x), START, HOUR, np.full(x.shape, float(n)), x / n, np.sqrt(x / n * (1 - x / n) / n)
    )
    said = DETECTORS["seasonal"].judge(Sight(panel, 8 * 168), Detection("seasonal"), alpha)
    found = (said.pvalue <= alpha) & (np.abs(said.score) >= said.threshold)
    assert found.any()
    assert chance[events] @ found.reshape(len(events), -1).mean(axis=1) <= alpha


def test_counting_is_judged_as_by_the_exact_tests() -> None:
    count = stats.binomtest(3, 3 + 100, 1 / 6, alternative="less").pvalue
    share = stats.fisher_exact([[3, 597], [100, 2900]], alternative="less").pvalue
    one = np.ones(1)
    np.testing.assert_allclose(of_counts(3 * one, 20 * one, 5 * one), 2 * count)
    np.testing.assert_allclose(of_shares(3 * one, 600 * one, one / 30, 3000 * one), 2 * share)


def test_a_band_of_four_weeks_is_not_there_before_them() -> None:
    pvalue = DETECTORS["seasonal"].judge(Sight(panel_of("mean"), 0), Detection("seasonal"), 1e-6).pvalue
    known = np.flatnonzero(~np.isnan(pvalue[0]))
    assert known[0] == 4 * 168


def test_a_small_shift_that_lasts_is_found_by_the_level_only() -> None:
    whole = panel_of("mean", weeks=9)
    first = 8 * 168
    whole.value[1, first:] += 3 * whole.std_error[1, first:]
    for name, is_found in (("seasonal", False), ("level_shift", True)):
        found = DETECTORS[name].judge(Sight(whole, first), Detection(name, min_score=6), 1e-6)
        with np.errstate(invalid="ignore"):
            hits = (found.pvalue <= 1e-6) & (np.abs(found.score) >= found.threshold)
        assert hits[1, :24].any() == is_found
        assert not hits[[0, 2, 3]].any()


def test_a_single_spike_is_no_shift_of_level() -> None:
    whole = panel_of("mean")
    whole.value[1, FIRST : FIRST + 2] += 50 * whole.std_error[1, FIRST : FIRST + 2]
    found = DETECTORS["level_shift"].judge(Sight(whole, FIRST), Detection("level_shift"), 1e-6)
    with np.errstate(invalid="ignore"):
        assert not ((found.pvalue <= 1e-6) & (np.abs(found.score) >= found.threshold)).any()


def test_a_stuck_value_is_found_and_a_share_that_is_mostly_zero_is_not() -> None:
    whole = panel_of("share")
    whole.value[1, FIRST : FIRST + 20] = whole.value[1, FIRST]
    whole.value[2] = 0.0
    found = DETECTORS["flat_line"].judge(Sight(whole, FIRST), Detection("flat_line"), 1e-6)
    hits = found.pvalue <= 1e-6
    assert hits[1, 5:20].all()
    assert not hits[[0, 2, 3]].any()


def test_silence_is_a_gap_where_there_was_always_something() -> None:
    whole = panel_of("count")
    whole.value[:, FIRST + 3], whole.n[:, FIRST + 3] = 0, 0
    whole.value[2, ::5] = 0  # often silent anyway
    hits = DETECTORS["gap"].judge(Sight(whole, FIRST), Detection("gap"), 1e-6).pvalue <= 1e-6
    assert hits[[0, 1, 3], 3].all()
    assert hits.sum() == 3


def test_an_outage_of_days_does_not_become_usual() -> None:
    whole = panel_of("count")
    whole.value[1, FIRST : FIRST + 5 * 24], whole.n[1, FIRST : FIRST + 5 * 24] = 0, 0
    found = DETECTORS["gap"].judge(Sight(whole, FIRST), Detection("gap"), 1e-6)
    assert (found.pvalue[1, : 5 * 24] <= 1e-6).all()
    assert not (found.pvalue[[0, 2, 3]] <= 1e-6).any()


def test_only_what_could_be_judged_tells_of_a_recovery() -> None:
    whole = panel_of("share", arms=True)
    treated = whole.keys.index(SeriesKey("m", EVERY_VERSION, "treatment", "metric", "device", "d1"))
    control = whole.keys.index(SeriesKey("m", EVERY_VERSION, "control", "metric", "device", "d1"))
    whole.n[treated, FIRST], whole.n[control, FIRST + 1], whole.value[treated, FIRST + 2] = 3, 3, np.nan
    monitor = watching("share", detectors=(Detection("concurrent"),), arms=ARMS)
    could = judged_in(whole, monitor)
    assert [could(whole.keys[treated], whole.time(FIRST + at)) for at in range(4)] == [False, False, False, True]
    assert not could(whole.keys[treated], whole.time(whole.n_buckets))
    assert not could(whole.keys[treated]._replace(metric="other"), whole.time(FIRST))
    requests = panel_of("count")
    requests.n[0, FIRST], requests.value[0, FIRST] = 0, 0
    could = judged_in(requests, watching("count"))
    assert [could(requests.keys[0], requests.time(FIRST + at)) for at in range(2)] == [False, True]


def test_a_limit_must_be_passed_for_as_many_buckets_as_it_says() -> None:
    whole = panel_of("share")
    whole.value[1, FIRST : FIRST + 2] = 0.5
    whole.value[2, FIRST : FIRST + 4] = 0.5
    how = Detection("threshold", above=0.4, buckets=3)
    hits = DETECTORS["threshold"].judge(Sight(whole, FIRST), how, 1e-6).pvalue <= 1e-6
    assert np.argwhere(hits).tolist() == [[2, 2], [2, 3]]


def test_evidence_is_an_e_value_whatever_the_rate_is() -> None:
    # The expectation of psi^x / (1 + rho (psi - 1))^m under the law without replacement is 1 at most.
    for n_t, n_c, m in ((50, 450, 3), (50, 450, 250), (300, 300, 590), (10, 40, 25)):
        x = np.arange(0, min(n_t, m) + 1)
        chance = stats.hypergeom.pmf(x, n_t + n_c, m, n_t)
        rho = n_t / (n_t + n_c)
        for psi in (0.1, 0.5, 2.0, 10.0):
            log_e = x * np.log(psi) - m * np.log1p(rho * (psi - 1))
            assert (chance * np.exp(log_e)).sum() <= 1 + 1e-9


def test_the_sum_over_beginnings_is_that_of_its_recursion() -> None:
    rng = np.random.default_rng(5)
    evidence = rng.normal(-0.5, 1, (3, 4, 30))
    found = shiryaev_roberts(evidence, log_threshold=1e9)
    last = evidence[:, :, ::-1].cumsum(axis=2)  # of every beginning the product up to the last bucket
    direct = np.log(np.exp(last).sum(axis=2).mean(axis=1))
    np.testing.assert_allclose(found[:, -1], direct, rtol=1e-12)


def test_evidence_that_begins_anew_is_never_more() -> None:
    rng = np.random.default_rng(6)
    evidence, is_over = rng.normal(0, 1, (5, 4, 200)), rng.random((5, 200)) < 0.5
    whole = shiryaev_roberts(evidence, log_threshold=2.0)
    anew = shiryaev_roberts(evidence, log_threshold=2.0, is_over=is_over)
    assert (anew <= whole + 1e-12).all()
    assert (anew < whole - 1).any()


def test_evidence_alone_finds_nothing_where_the_bucket_is_as_it_should_be() -> None:
    whole = panel_of("share", arms=True)
    treated = whole.keys.index(SeriesKey("m", EVERY_VERSION, "treatment", "metric", "device", "d1"))
    whole.value[treated, FIRST : FIRST + 5] = 0.15
    for least, n in ((None, 5), (99.0, 0)):
        monitor = watching("share", detectors=(Detection("concurrent", min_score=least),), arms=ARMS)
        found = scan(whole, monitor, whole.time(FIRST)).findings
        assert [each.bucket_start for each in found] == [whole.time(FIRST + at) for at in range(n)]


def test_an_arm_that_fails_is_found_at_once_and_named() -> None:
    whole = panel_of("share", arms=True)
    at = whole.keys.index(SeriesKey("m", EVERY_VERSION, "treatment", "metric", "device", "d2"))
    whole.value[at, FIRST + 5 :] = 0.15
    monitor = watching("share", detectors=(Detection("concurrent", severity="critical"),), arms=ARMS)
    found = scan(whole, monitor, whole.time(FIRST)).findings
    assert {(each.arm, each.slice_value) for each in found} == {("treatment", "d2")}
    assert found[0].bucket_start == whole.time(FIRST + 5)


def test_a_change_for_the_better_is_no_finding_where_only_one_way_is_worse() -> None:
    whole = panel_of("share", arms=True)
    whole.value[1::2, FIRST:] = 0.005
    for worse, is_found in (("down", True), ("up", False)):
        monitor = watching("share", detectors=(Detection("concurrent"),), arms=ARMS)
        metric = replace(monitor.series.metrics["metric"], worse=worse)
        one_way = replace(monitor, series=replace(monitor.series, metrics={"metric": metric}))
        assert bool(scan(whole, one_way, whole.time(FIRST)).findings) == is_found


def watching(
    kind: Kind, *, detectors: tuple[Detection, ...] = (), arms: Arms | None = None, events: tuple[Event, ...] = ()
) -> Monitor:
    metric = SeriesMetric(kind, value=None if kind == "count" else "x")
    return Monitor(
        "m", "log", "m", series=SeriesSpec({"metric": metric}, arms=arms), detectors=detectors, events=events
    )


def test_a_known_event_is_no_finding_and_no_history() -> None:
    whole = panel_of("count")
    holiday = Event("holiday", whole.time(FIRST + 10), whole.time(FIRST + 20))
    whole.value[:, FIRST + 10 : FIRST + 20] *= 0.5
    assert scan(whole, watching("count"), whole.time(FIRST)).findings
    assert not scan(whole, watching("count", events=(holiday,)), whole.time(FIRST)).findings


@pytest.mark.parametrize("kind", ["level_shift", "concurrent"])
def test_a_known_event_is_no_evidence_of_what_comes_after_it(kind: str) -> None:
    arms = ARMS if DETECTORS[kind].of_arms else None
    whole = panel_of("share", arms=arms is not None, weeks=9)
    first = 8 * 168
    hurt = [at for at, key in enumerate(whole.keys) if key.arm != "control"]
    whole.value[hurt, first : first + 30] *= 1.6 if arms is None else 1.2
    event = Event("sale", whole.time(first), whole.time(first + 30))
    how = (Detection(kind, min_score=0.0),)
    assert scan(whole, watching("share", detectors=how, arms=arms), whole.time(first)).findings
    later = scan(whole, watching("share", detectors=how, arms=arms, events=(event,)), whole.time(first))
    assert later.findings == []
    assert later.n_judged


def test_the_budget_is_split_over_tests_and_buckets() -> None:
    whole = panel_of("mean")
    found = scan(whole, watching("mean"), whole.time(FIRST))
    assert found.n_tests == 4 * 3  # seasonal, level shift, flat line
    assert found.alpha == pytest.approx(0.2 / (12 * 30 * 24))
    limits = (Detection("threshold", above=9.0), Detection("seasonal"))
    assert scan(whole, watching("mean", detectors=limits), whole.time(FIRST)).n_tests == 4


def test_what_was_judged_is_told_by_slice_and_metric() -> None:
    whole = panel_of("mean")
    whole.n[1, FIRST:] = 3
    found = scan(whole, watching("mean"), whole.time(whole.n_buckets - 1))
    assert found.judged == {(f"device:d{at}", "metric") for at in (0, 2, 3)}
    assert scan(whole.rows([1]), watching("mean"), whole.time(whole.n_buckets - 1)).n_judged == 0


def test_a_bucket_without_a_row_had_no_requests() -> None:
    key = SeriesKey("m", "1", "", "requests", "", "")
    share = key._replace(metric="errors")
    rows = [Point(START + 2 * HOUR, 5, 5.0, 2.0), Point(START + 4 * HOUR, 7, 7.0, 2.0)]
    made = Panel.of(
        {key: rows, share: rows[:1]},
        {"requests": "count", "errors": "share"},
        start=START,
        end=START + 6 * HOUR,
        bucket=HOUR,
    )
    of_share, of_count = made.value
    np.testing.assert_array_equal(of_count, [np.nan, np.nan, 5, 0, 7, 0])
    np.testing.assert_array_equal(of_share, [np.nan, np.nan, 5, np.nan, np.nan, np.nan])


def test_a_detector_that_cannot_work_is_a_problem_of_the_conf() -> None:
    told = problems(
        (Detection("seasonnal"), Detection("threshold"), Detection("gap"), Detection("seasonal")), {"score": "mean"}
    )
    assert [line.split(":")[0].split(" is")[0] for line in told] == ["detectors.0.kind", "detectors.1", "detectors.2"]
