"""From what is known of slices to findings, and from findings and rules to a verdict."""

from collections.abc import Mapping, Sequence
from math import isnan, nan
from typing import NamedTuple

from scipy import stats

from mltrust.replay.compare import BOTH, MEASURES, TRIALS, Estimate, Evidence, Role
from mltrust.replay.spec import Gate, Rule
from mltrust.slices import OVERALL, Slice
from mltrust.stats.multiplicity import benjamini_hochberg
from mltrust.verdicts import Verdict, combine


class Finding(NamedTuple):
    """A measure of a slice, as in the table; `role` is whose it is, `perturbation` under what.

    `pvalue` is of the limit where a rule names one and the measure is an estimate, else of the value being 0;
    `qvalue` and `n_family` are over the slices and perturbations of the rule or measure. `decides`: the verdict of
    the gate rests on it.
    """

    slice_key: str
    slice_value: str
    measure: str
    role: Role
    perturbation: str
    n_rows: int
    n_units: int
    value: float
    std_error: float
    pvalue: float
    qvalue: float
    n_family: int
    threshold: float
    verdict: Verdict | None
    reason: str
    decides: bool

    @property
    def overall(self) -> bool:
        return (self.slice_key, self.slice_value) == OVERALL

    @property
    def subject(self) -> str:
        """What was looked at, in words."""
        where = "" if self.overall else f" in {self.slice_key}:{self.slice_value}"
        under = f" under {self.perturbation}" if self.perturbation else ""
        whose = "" if self.role == "pair" else f" of the {self.role}"
        return f"{self.measure}{whose}{under}{where}"


class Judged(NamedTuple):
    """Findings with their verdicts, the gate's verdict, and why it is no pass."""

    findings: Sequence[Finding]
    verdict: Verdict
    reasons: Sequence[str]


def known_measures() -> list[str]:
    """Every measure that a rule may name."""
    return [*MEASURES, *TRIALS, *EXTRA]


#: Measures that are found beside the evidence of slices: of noise, of off-policy values, of shadow traffic.
EXTRA = {
    "noise_floor": "largest difference of a model from itself in other batches",
    "value_ipw": "mean reward of the candidate's decisions, by inverse probability weighting",
    "value_snipw": "the same, self-normalised",
    "value_dm": "the same, by a model of the reward",
    "value_dr": "the same, doubly robust",
    "unshadowed": "share of the expected shadows that are not there",
    "unmatched_shadow": "share of shadow rows without their production row",
    "late": "share of shadows that came later than allowed",
    "lag_seconds": "mean seconds from production to shadow",
    "features_differ": "share of pairs whose features differ",
}
#: What was counted or is a largest value, and so needs no number of units.
FACTS = {name for name, each in MEASURES.items() if each.is_fact} | {"noise_floor"}


def findings(evidence: Mapping[Slice, Evidence]) -> list[Finding]:
    """Every measure of every slice, undefined ones left out, with the p-value of being 0 where there is one."""
    found = [
        _finding(where, name, role, "", own.n_rows, each.of(own, role))
        for where, own in evidence.items()
        for name, each in MEASURES.items()
        for role in each.roles
    ]
    for where, own in evidence.items():
        for (role, perturbation), state in own.tried.items():
            for name, each in TRIALS.items():
                estimate = each.of(state, own.scale.sd(role))
                found.append(_finding(where, name, role, perturbation, own.n_rows, estimate))
                if where == OVERALL and state.n == 0:
                    found[-1] = found[-1]._replace(reason="the perturbation applied to no row")
    return corrected([each for each in found if not isnan(each.value) or each.reason])


def _finding(where: Slice, name: str, role: Role, perturbation: str, n_rows: int, found: Estimate) -> Finding:
    return Finding(
        *where, name, role, perturbation, n_rows, found.n_units, found.value, found.std_error, found.pvalue,
        nan, 0, nan, None, "", False,
    )  # fmt: skip


def extra(measure: str, role: Role, n: int, found: Estimate, reason: str = "") -> Finding:
    """A finding of the whole set that is no measure of slices; nan with its reason where nothing can be said."""
    return _finding(Slice(*OVERALL), measure, role, "", n, found)._replace(reason=reason)


def corrected(found: Sequence[Finding]) -> list[Finding]:
    """The findings with q-values: Benjamini-Hochberg within each measure and role over slices and perturbations."""
    families: dict[tuple[str, Role], list[int]] = {}
    for at, each in enumerate(found):
        if not isnan(each.pvalue):
            families.setdefault((each.measure, each.role), []).append(at)
    changed = list(found)
    for members in families.values():
        qvalues = benjamini_hochberg([found[at].pvalue for at in members])
        for at, qvalue in zip(members, qvalues, strict=True):
            changed[at] = changed[at]._replace(qvalue=qvalue, n_family=len(members))
    return changed


def judged(found: Sequence[Finding], gate: Gate) -> Judged:
    """The findings with the verdicts of the rules, and the verdict of the gate.

    A rule whose measure is not there at all is inconclusive: what was not measured must not pass. Of several rules
    on one measure the strictest verdict stands.
    """
    judged_rows = list(found)
    for rule in (*gate.rules, *_unsaid(gate)):
        own = [at for at, each in enumerate(found) if _is_meant(each, rule)]
        tested = [_against(found[at], rule, gate.min_units) for at in own]
        for at, each in zip(own, _decided(tested, rule), strict=True):
            judged_rows[at] = _stricter(judged_rows[at], each)
        if rule in gate.rules and not any(found[at].overall for at in own):
            judged_rows.append(_not_measured(rule))
    deciding = [each for each in judged_rows if each.decides]
    verdict = combine(each.verdict for each in deciding if each.verdict is not None)
    wrong = [each for each in deciding if each.verdict is not Verdict.PASS]
    wrong.sort(key=lambda each: (_severity(each), not each.overall, -_excess(each)))
    return Judged(judged_rows, verdict, [f"{each.subject}: {each.reason}" for each in wrong])


def _severity(each: Finding) -> int:
    """0 of a breach; what no rule was on comes last."""
    return len(_ORDER) if each.verdict is None else _ORDER.index(each.verdict)


_ORDER = (Verdict.BREACH, Verdict.INCONCLUSIVE, Verdict.PASS)


def _stricter(one: Finding, other: Finding) -> Finding:
    return min(one, other, key=_severity)._replace(decides=one.decides or other.decides)


def _unsaid(gate: Gate) -> list[Rule]:
    """No errors, where the gate does not say how many: of the candidate, and under perturbations if it rules on any.

    What is measured on the rows that were scored says nothing of those that were not.
    """
    named = {rule.measure for rule in gate.rules}
    wanted = ["errors", *(["perturbed_errors"] if named & set(TRIALS) else [])]
    return [Rule(name, max=0.0) for name in wanted if name not in named]


def _excess(each: Finding) -> float:
    """By how much of the limit a finding is beyond it, for the order of reasons."""
    return 0.0 if isnan(each.value) else abs(each.value - each.threshold) / (abs(each.threshold) or 1.0)


def _is_meant(each: Finding, rule: Rule) -> bool:
    """Rules are on the candidate, on the pair, and on what only the champion has."""
    of_both = each.measure in TRIALS or (each.measure in MEASURES and MEASURES[each.measure].roles == BOTH)
    return (
        each.measure == rule.measure
        and (rule.slices or each.overall)
        and not (each.role == "champion" and of_both)
    )  # fmt: skip


def _against(each: Finding, rule: Rule, min_units: int) -> Finding:
    """The finding with its limit: its p-value is of lying within, nan where it does, or is no estimate."""
    each = each._replace(threshold=rule.limit, pvalue=nan, qvalue=nan, n_family=0)
    if isnan(each.value):
        return each._replace(verdict=Verdict.INCONCLUSIVE, reason=each.reason or "undefined")
    beyond = each.value - rule.limit if rule.max is not None else rule.limit - each.value
    if not _is_fact(each) and each.n_units < min_units:
        few = f"{each.n_units} units, expected {min_units} or more"
        return each._replace(verdict=Verdict.INCONCLUSIVE, reason=few)
    if beyond <= 0:
        return each._replace(verdict=Verdict.PASS, reason="")
    if not each.std_error > 0:
        return each._replace(verdict=Verdict.BREACH, reason=_words(each, rule))
    return each._replace(pvalue=float(stats.t.sf(beyond / each.std_error, each.n_units - 1)))


def _is_fact(each: Finding) -> bool:
    return each.measure in FACTS


def _decided(tested: Sequence[Finding], rule: Rule) -> list[Finding]:
    """Verdicts of the findings that lie beyond the limit, corrected over the family of all that were looked at."""
    # Those within the limit are members too: to look at them was a comparison.
    pvalues = [1.0 if each.verdict is Verdict.PASS and not isnan(each.std_error) else each.pvalue for each in tested]
    qvalues, n = benjamini_hochberg(pvalues), sum(not isnan(each) for each in pvalues)
    return [_concluded(each, rule, qvalue, n) for each, qvalue in zip(tested, qvalues, strict=True)]


def _concluded(each: Finding, rule: Rule, qvalue: float, n_family: int) -> Finding:
    if each.verdict is None:
        shown = qvalue <= rule.alpha
        each = each._replace(
            qvalue=qvalue,
            n_family=n_family,
            verdict=Verdict.BREACH if shown else Verdict.INCONCLUSIVE,
            reason=_words(each, rule) + ("" if shown else f", not shown at {rule.alpha:g} (q {qvalue:.2g})"),
        )
    # A slice may block, but one too small to tell does not hold up what is clear overall.
    return each._replace(decides=each.overall or each.verdict is Verdict.BREACH)


def _words(each: Finding, rule: Rule) -> str:
    side = "at most" if rule.max is not None else "at least"
    error = f" ± {each.std_error:.2g}" if each.std_error > 0 else ""
    return f"{each.value:.6g}{error}, expected {side} {rule.limit:g}"


def _not_measured(rule: Rule) -> Finding:
    missing = extra(rule.measure, "pair", 0, Estimate(nan, nan, 0), _WHY.get(rule.measure, "nothing was measured"))
    return missing._replace(threshold=rule.limit, verdict=Verdict.INCONCLUSIVE, decides=True)


_LABELS = "no row has a label; expected label in the conf, and outcomes of the requests"
_DECISIONS = "no decisions; expected threshold in the conf"
_WHY = {
    **dict.fromkeys(("win_balance", "wins", "losses"), f"{_DECISIONS}, and label"),
    **dict.fromkeys(("squared_error", "squared_error_change", "calibration_error"), _LABELS),
    **dict.fromkeys(("churn", "flip_balance", "perturbed_flips"), _DECISIONS),
    **dict.fromkeys((*TRIALS,), "no perturbation was tried; expected perturbations in the conf"),
    "reproduced": "the log holds no score of these rows",
}
