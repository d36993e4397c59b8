"""Rejection rates of the tests in simulated experiments where nothing is to be found."""

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from scipy import stats

from mltrust.states.moments import FloatArray
from mltrust.stats.means import Arm, Margin, non_inferiority, welch
from mltrust.stats.post_stratification import post_stratified
from mltrust.stats.srm import srm
from tests.calibration.bands import coverage_band, judge, rate_band
from tests.calibration.grid import REGISTRY, Calibration, Piece, Tally
from tests.calibration.jobs import again, all_jobs, simulate
from tests.calibration.known import reason
from tests.calibration.page import Results, broken, page, unexplained
from tests.calibration.ship import INFERENCES, SCENARIOS, Scenario, simulate_ship

RUNS = 20_000
SHORT = 1_000


def assert_level(pvalues: Iterable[float], level: float = 0.05) -> None:
    """As many p-values below the level as in 99.9 % of the times if each has that chance; 0.045 to 0.055 at 0.05."""
    assert_share([p < level for p in pvalues], level)


def assert_share(rejected: list[bool], level: float) -> None:
    low, high = stats.binom.interval(0.999, len(rejected), level)
    assert low <= sum(rejected) <= high


def normal_arms(rng: np.random.Generator, n: int, mean: float, sd: float) -> Iterator[Arm]:
    """Arms of n normal units: mean and variance are independent, normal and chi-square."""
    means = rng.normal(mean, sd / np.sqrt(n), RUNS)
    variances = sd**2 * rng.chisquare(n - 1, RUNS) / (n - 1)
    return (Arm(n, *each) for each in zip(means.tolist(), variances.tolist(), strict=True))


def test_welch_rejects_a_smaller_and_more_variable_treatment_at_its_level() -> None:
    rng = np.random.default_rng(1)
    arms = normal_arms(rng, 50, 10.0, 1.0), normal_arms(rng, 20, 10.0, 3.0)
    assert_level(welch(control=c, treatment=t).pvalue for c, t in zip(*arms, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("margin", "mean", "increase_is_good"),
    [
        (Margin(absolute=0.5), 9.5, True),
        (Margin(absolute=0.5), 10.5, False),
        (Margin(relative=0.1), 9.0, True),
        (Margin(relative=0.1), 11.0, False),
    ],
)
def test_non_inferiority_passes_a_treatment_exactly_at_its_margin_at_its_level(
    margin: Margin, mean: float, increase_is_good: bool
) -> None:
    rng = np.random.default_rng(5)
    arms = normal_arms(rng, 60, 10.0, 5.0), normal_arms(rng, 400, mean, 3.0)
    assert_level(
        non_inferiority(control=c, treatment=t, margin=margin, increase_is_good=increase_is_good).pvalue
        for c, t in zip(*arms, strict=True)
    )


@pytest.mark.slow
def test_srm_of_four_arms_rejects_a_fair_split_at_its_level() -> None:
    rng, weights = np.random.default_rng(6), (50, 30, 15, 5)
    counts = rng.multinomial(10_001, np.array(weights) / sum(weights), RUNS).tolist()
    pvalues = [srm(each, weights).pvalue for each in counts]
    for level in (0.05, 0.001):
        assert_level(pvalues, level)


SHARES = np.array([0.4, 0.3, 0.2, 0.1])
BASE = np.array([5.0, 8.0, 12.0, 20.0])


def slices(rng: np.random.Generator, effects: FloatArray, *, runs: int = RUNS) -> Iterator[list[tuple[Arm, Arm]]]:
    """Experiments with 600 and 400 normal units, in four slices by chance."""
    arms = []
    for n_arm, means in ((600, BASE), (400, BASE + effects)):
        counts = rng.multinomial(n_arm, SHARES, runs)
        drawn = rng.normal(means, 2.0 / np.sqrt(counts))
        variances = 4.0 * rng.chisquare(counts - 1) / (counts - 1)
        arms.append(zip(counts.tolist(), drawn.tolist(), variances.tolist(), strict=True))
    for run in zip(*arms, strict=True):
        control, treatment = ([Arm(*each) for each in zip(*arm, strict=True)] for arm in run)
        yield list(zip(control, treatment, strict=True))


EFFECTS_OF_MEAN_ZERO = np.array([3.0, -2.0, -3.0, 0.0])  # 0.4·3 - 0.3·2 - 0.2·3 = 0


@pytest.mark.slow
def test_post_stratification_rejects_at_its_level_where_the_effects_of_slices_average_to_nothing() -> None:
    drawn = list(slices(np.random.default_rng(8), EFFECTS_OF_MEAN_ZERO, runs=8000))
    assert_level(post_stratified(pairs).pvalue for pairs in drawn)
    # Taking the shares that happened to come as known does not: the error from the shares is missing.
    known = [post_stratified(pairs, fixed_weights=True).pvalue < 0.05 for pairs in drawn[:1000]]
    assert np.mean(known) > 0.08


@pytest.mark.slow
def test_the_relative_interval_of_post_stratification_holds_the_truth_at_its_level() -> None:
    effects = EFFECTS_OF_MEAN_ZERO + 2.0
    truth = SHARES @ effects / (SHARES @ BASE)
    drawn = slices(np.random.default_rng(9), effects, runs=8000)
    results = [post_stratified(pairs) for pairs in drawn]
    assert_share([not result.rel_ci_low <= truth <= result.rel_ci_high for result in results], 0.05)


# The short form of `make calibrate`: some runs of every test where it promises most for the fewest units.


def first_promised(test: Calibration) -> Piece:
    return next(piece for piece in test.pieces() if judge(test, piece, Tally(1)).status in ("kept", "broken"))


@pytest.mark.parametrize("name", REGISTRY)
def test_a_few_runs_of_every_test_keep_what_it_promises(name: str) -> None:
    test = REGISTRY[name]
    piece = first_promised(test)
    assert judge(test, piece, simulate(piece, min(SHORT, test.n_runs(piece.units, 0.02)))).broken == ()


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.slow
def test_experiments_without_a_reason_to_ship_seldom_ship(scenario: Scenario) -> None:
    found, runs = simulate_ship(scenario, 0, 4), 4
    for inference in INFERENCES:
        assert found.get(f"{inference}: ship", 0) <= stats.binom.ppf(0.999, runs, scenario.promised)


WELCH = REGISTRY["Welch"]
EVEN = Piece("Welch", "50/50", "normal", 5_000)


def counted(rejected: int, far: int = 100, covered: int = 95_000) -> Tally:
    return Tally(100_000, 0, rejected, far, 100_000, covered, 100_000, covered)


@pytest.mark.parametrize(
    ("tally", "name"),
    [
        (counted(5_231), "rate at 0.05"),
        (counted(4_769), "rate at 0.05"),
        (counted(5_000, far=141), "rate at 0.001"),
        (counted(5_000, far=69), "rate at 0.001"),
        (counted(5_000, covered=95_501), "coverage"),
        (counted(5_000, covered=94_499), "coverage"),
    ],
)
def test_what_misses_a_promised_band_is_named(tally: Tally, name: str) -> None:
    assert judge(WELCH, EVEN, counted(5_000)).status == "kept"
    row = judge(WELCH, EVEN, tally)
    assert row.status == "broken"
    assert name in row.broken


def test_fewer_runs_widen_a_band_by_chance_alone_and_more_never_narrow_it() -> None:
    widths = [rate_band(WELCH, EVEN, 0.05, runs) for runs in (1_000, 20_000, 100_000, 10**6)]
    assert widths[3] == widths[2] == pytest.approx((0.0477, 0.0523))
    assert widths[1] == pytest.approx((0.0450, 0.0551), abs=2e-4)
    assert widths[0].low < widths[1].low
    assert coverage_band(WELCH, EVEN, 100_000) == pytest.approx((0.945, 0.955))


def test_nothing_is_promised_where_the_skew_flag_is_up_or_too_few_have_the_event() -> None:
    wrong = counted(9_000)
    assert judge(WELCH, Piece("Welch", "90/10", "spenders", 5_000), wrong).status == "flagged: skewed"
    assert judge(WELCH, Piece("Welch", "50/50", "spenders", 500), wrong).status.startswith("no promise: 12.5 events")
    no_test = wrong._replace(undefined=5_000)
    assert judge(WELCH, EVEN, no_test).status == "no test in 5%"
    assert judge(WELCH, EVEN, Tally(100, undefined=100)).status == "no test"


def test_a_broken_promise_is_on_the_page_and_fails_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    [job] = [each for each in all_jobs(1.0) if each.name == EVEN.name]
    monkeypatch.setattr("tests.calibration.page.result", lambda job: None)
    results = {rejected: Results([job], {job.name: counted(rejected)._asdict()}) for rejected in (5_000, 6_000)}
    assert broken(results[5_000]) == []
    assert broken(results[6_000]) == [f"{EVEN.name}: rate at 0.05"]
    assert "| 50/50 | normal | 5,000 | 0.000 | 6.00% |" in page(results[6_000])


@pytest.mark.parametrize(
    ("piece", "rejected", "far", "words"),
    [
        # 5.437 % is the exact level of Pearson's test of 500 units.
        (Piece("sample ratio", "50/50", "", 500), 5_437, 108, "exactly 5.44% at 0.05"),
        (Piece("sample ratio", "50/50", "", 500), 5_800, 108, ""),
        (Piece("non-inferiority, increase is good", "50/50", "bernoulli", 5_000), 4_670, 90, "exactly 4.81% at 0.05"),
        (Piece("chance to beat, flat prior", "90/10", "poisson", 5_000), 2_190, 40, "One-sided"),
        (Piece("chance to beat, flat prior", "90/10", "poisson", 5_000), 1_900, 40, ""),
        (Piece("chance to beat, flat prior", "90/10", "poisson", 5_000), 2_900, 40, ""),
        (
            Piece("ratio", "90/10", "normal", 500),
            5_300,
            129,
            "variance of a ratio is 1.1% too small",
        ),
        (Piece("ratio", "90/10", "normal", 500), 5_600, 129, ""),
        (Piece("ratio", "90/10", "normal", 5_000), 5_300, 129, ""),
        (Piece("CUPED of a ratio", "50/50", "spenders", 5_000), 4_450, 60, "4.13% at 0.05"),
        (Piece("CUPED of a ratio", "50/50", "spenders", 5_000), 3_900, 60, ""),
        (Piece("CUPED of a ratio", "50/50", "normal", 5_000), 4_450, 90, ""),
        (Piece("jackknife", "90/10", "normal", 500), 5_330, 160, "in some 35 of 64 buckets"),
        (Piece("jackknife", "90/10", "normal", 5_000), 5_330, 160, ""),
        (Piece("qualitative interaction", "90/10", "poisson", 50_000), 5_670, 138, "5.49% are expected"),
        (Piece("qualitative interaction", "90/10", "poisson", 50_000), 6_000, 138, ""),
        (Piece("Welch", "90/10", "poisson", 5_000), 5_430, 132, ""),
    ],
)
def test_a_reason_covers_what_it_predicts_and_no_more(piece: Piece, rejected: int, far: int, words: str) -> None:
    row = judge(REGISTRY[piece.test], piece, Tally(100_000, 0, rejected, far))
    assert row.broken
    assert words in reason(row)
    assert bool(reason(row)) == bool(words)


def test_a_guardrail_has_its_promise_up_to_the_skewness_from_which_the_readout_flags_it() -> None:
    name, tally = "non-inferiority, decrease is good", Tally(100_000, 0, 5_430, 132)
    found = {units: judge(REGISTRY[name], Piece(name, "90/10", "poisson", units), tally) for units in (5_000, 50_000)}
    assert [round(row.size.g, 3) for row in found.values()] == [0.038, 0.012]
    assert [row.status for row in found.values()] == ["flagged: skewed", "broken"]
    assert judge(REGISTRY["Welch"], Piece("Welch", "90/10", "poisson", 5_000), tally).status == "broken"


def test_what_misses_its_band_by_chance_alone_is_told_by_other_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    [job] = [each for each in all_jobs(1.0) if each.name == EVEN.name]
    results = Results([job], {job.name: counted(5_240)._asdict()})
    assert [row.piece for row in unexplained(results)] == [EVEN]
    repeated = again(EVEN, 100_000)
    assert (repeated.runs, repeated.name) == (400_000, f"{EVEN.name}, again")
    for rejected, told in ((20_400, "Within the band when run again"), (22_000, "**Not explained**")):
        tally = Tally(400_000, 0, rejected, 400)
        monkeypatch.setattr("tests.calibration.page.result", lambda job, tally=tally: tally._asdict())
        assert bool(broken(results)) == (rejected == 22_000)
        text = page(results)
        assert told in text
        assert f"5.24% (rate at 0.05); {rejected / 4000:.2f}% of 400,000 other runs" in text


def test_a_piece_gives_the_same_counts_again_and_others_by_another_name() -> None:
    assert simulate(EVEN, 300) == simulate(EVEN, 300)
    assert simulate(EVEN, 300) != simulate(EVEN, 300, "another")
