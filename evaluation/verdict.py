"""The decision, a pure function: from two models' predictions on the same test rows to an outcome with its reasons."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, Self

from evaluation import reasons
from evaluation.asked import asked_gates, cost_ratio_of
from evaluation.case import Case, Side, hybrid_cpu, refuse_unless_same_rows, routed, share_to_candidate
from evaluation.gates import Gate
from evaluation.metrics import Comparison, compare, holm
from evaluation.power import sized
from evaluation.predictions import Predictions, VerdictRefused
from evaluation.question import Question, check_fields
from evaluation.reasons import p_text, points
from evaluation.rules import CHEAPER_RATIO, OUTCOME_OF_RULE, Facts, Outcome, rule_of

__all__ = ["Case", "Outcome", "Question", "Side", "Verdict", "VerdictRefused", "decide"]


SECOND_METRIC = {
    "accuracy": "macro_f1",
    "macro_f1": "accuracy",
    "exact_match": "token_f1",
    "token_f1": "exact_match",
    "rouge_l": "exact_match",
}
"""What is told beside each metric, for the record."""


@dataclass(frozen=True)
class HybridVerdict:
    """The hybrid frozen on validation, judged as the candidate is."""

    routing: dict[str, Any]
    """`models.decide.Routing` as JSON."""
    share_to_candidate: float
    """Of the test rows."""
    score: float
    gain: float
    interval: tuple[float, float]
    p_value: float
    p_holm: float
    """Adjusted for candidate and hybrid."""
    reference_interval: tuple[float, float]
    proven: bool
    gates: tuple[Gate, ...]


@dataclass(frozen=True)
class Verdict:
    """An outcome with everything that led to it; gains and intervals are candidate minus the other, as shares."""

    outcome: Outcome
    rule: int
    """The row of the outcome table that decided: the first that held."""
    reasons: tuple[str, ...]
    metric: str
    """What scores, gains and intervals are of."""
    n: int
    alpha: float
    minimum_gain: float
    expected_gain: float
    regulated: bool
    confirmatory: bool
    """Whether it was the recipe's first look at these test rows."""
    incumbent_score: float
    candidate_score: float
    gain: float
    interval: tuple[float, float]
    """Two-sided at level 1 - alpha, by the metric as in `metrics.Comparison`."""
    p_value: float
    """Two-sided, by the metric as in `metrics.Comparison`."""
    p_exact: float | None
    """McNemar's exact p, two-sided, for the record: no rule reads it."""
    only_incumbent_right: int
    only_candidate_right: int
    reference_score: float | None
    """This and the next three: None of a chat task, which has no bag-of-words reference."""
    reference_gain: float | None
    reference_interval: tuple[float, float] | None
    reference_p_value: float | None
    second_metric: dict[str, Any]
    """The metric the rules do not read, for the record: `{metric, incumbent, candidate, gain, interval, p_value}`."""
    minimum_detectable_effect: float
    """True gain found with 80 % power on n rows of the observed discordance, by the plain formula."""
    power_at_expected_gain: float
    """Of the whole rule, at the expected gain and the observed discordance."""
    rows_needed: int | None
    """For 80 % power of the whole rule at the expected gain; None where no number does."""
    proven: bool
    """p < alpha, interval above 0, gain at least minimum_gain, and the interval against a reference above 0."""
    gates: tuple[Gate, ...]
    """Of the candidate: those the recipe asks for, the cost among them."""
    cost_ratio: tuple[float, float, float] | None
    """CPU-seconds a row, candidate over incumbent: estimate and 1 - alpha interval; None where it was not measured."""
    hybrid: HybridVerdict | None

    def __post_init__(self) -> None:
        if OUTCOME_OF_RULE.get(self.rule) is not self.outcome:
            raise ValueError(f"rule {self.rule} does not give {self.outcome}; allowed: {OUTCOME_OF_RULE}")
        if self.n < 1 or not self.reasons:
            raise ValueError(f"a verdict needs rows and reasons, not n = {self.n} and {self.reasons!r}")

    def sentence(self) -> str:
        """One line: outcome, gain in points, interval, p, n, rule."""
        low, high = self.interval
        return (
            f"{self.outcome}: {points(self.gain)} points "
            f"({100 * (1 - self.alpha):g} % interval {points(low)} to {points(high)}, "
            f"{p_text(self.p_value)}, n = {self.n:,}), by rule {self.rule}"
            + ("" if self.confirmatory else "; not the first look at these test rows")
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; `from_dict` reads it back."""
        value: dict[str, Any] = _plain(asdict(self))
        value["gates"] = [gate.to_dict() for gate in self.gates]
        if self.hybrid is not None:
            value["hybrid"]["gates"] = [gate.to_dict() for gate in self.hybrid.gates]
        return value

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        """Reads `to_dict`'s value; ValueError for fields that are missing or unknown, or a verdict that cannot be."""
        check_fields(cls, value)
        given = _with_tuples(value, cls) | {"outcome": Outcome(value["outcome"])}
        if value["hybrid"] is not None:
            check_fields(HybridVerdict, value["hybrid"])
            given["hybrid"] = HybridVerdict(**_with_tuples(value["hybrid"], HybridVerdict))
        return cls(**given)


def decide(case: Case, *, question: Question) -> Verdict:
    """The verdict on replacing the incumbent by the candidate: the first rule of the outcome table that holds.

    Raises VerdictRefused (rule 1) where test rows changed, or predictions are misaligned or not finite; ValueError
    where the reference, or predictions or measurements that the question's gates need, are missing.
    """
    refuse_unless_same_rows(case, question=question)
    main, beside = _compared(case.candidate.clean, case=case, question=question)
    gates = asked_gates(case.candidate, incumbent=case.incumbent, case=case, question=question)
    proven = _gained(main, p_value=main.p_value, question=question) and _beaten(beside)
    hybrid = _hybrid(case, main=main, question=question)
    ratio = cost_ratio_of(case.cpu, alpha=question.alpha)
    facts = Facts(
        leaks=bool(case.leaks),
        proven=proven,
        low=main.interval[0],
        high=main.interval[1],
        minimum_gain=question.minimum_gain,
        regulated=question.regulated,
        gates={gate.name: gate.state for gate in gates},
        hybrid_proven=hybrid is not None and hybrid.proven,
        hybrid_gates={gate.name: gate.state for gate in hybrid.gates} if hybrid else {},
        cheaper=ratio is not None and ratio[2] < CHEAPER_RATIO,
    )
    rule = rule_of(facts)
    size = sized(main, expected_gain=question.expected_gain, minimum_gain=question.minimum_gain, alpha=question.alpha)
    told = reasons.Told(main, beside, question, gates, size.needed, hybrid, ratio, case.leaks)
    return Verdict(
        outcome=OUTCOME_OF_RULE[rule],
        rule=rule,
        reasons=reasons.of_rule(rule, told),
        confirmatory=case.look == 1,
        proven=proven,
        gates=gates,
        cost_ratio=ratio,
        hybrid=hybrid,
        minimum_detectable_effect=size.minimum_detectable_effect,
        power_at_expected_gain=size.power_at_expected_gain,
        rows_needed=size.needed.rows,
        second_metric=_second_metric(case, question=question),
        **_figures(main, reference=beside, question=question),
    )


def _compared(candidate: Predictions, *, case: Case, question: Question) -> tuple[Comparison, Comparison | None]:
    """Against the incumbent, and against the reference where there is one."""
    against = partial(compare, candidate, metric=question.metric, alpha=question.alpha)
    return against(other=case.incumbent.clean), None if case.reference is None else against(other=case.reference)


def _beaten(beside: Comparison | None) -> bool:
    return beside is None or beside.interval[0] > 0


def _gained(main: Comparison, *, p_value: float, question: Question) -> bool:
    return p_value < question.alpha and main.interval[0] > 0 and main.gain >= question.minimum_gain


def _hybrid(case: Case, *, main: Comparison, question: Question) -> HybridVerdict | None:
    if case.routing is None or question.hybrid is None:
        return None
    side = routed(case.routing, incumbent=case.incumbent, candidate=case.candidate)
    share = share_to_candidate(case.routing, case.incumbent.clean)
    against, beside = _compared(side.clean, case=case, question=question)
    assert beside is not None  # the schema keeps hybrids to classification
    _, adjusted = holm([main.p_value, against.p_value])
    cpu = hybrid_cpu(case.routing, cpu=case.cpu, share=share) if case.cpu else None
    as_case = Case(case.incumbent, side, case.reference, case.test_sha256, cpu=cpu, training_cpu_s=case.training_cpu_s)
    return HybridVerdict(
        routing=asdict(case.routing) | {"values": list(case.routing.values)},
        share_to_candidate=share,
        score=against.candidate_score,
        gain=against.gain,
        interval=against.interval,
        p_value=against.p_value,
        p_holm=adjusted,
        reference_interval=beside.interval,
        proven=_gained(against, p_value=adjusted, question=question) and _beaten(beside),
        gates=asked_gates(side, incumbent=case.incumbent, case=as_case, question=question),
    )


def _second_metric(case: Case, *, question: Question) -> dict[str, Any]:
    metric = SECOND_METRIC[question.metric]
    found = compare(case.candidate.clean, other=case.incumbent.clean, metric=metric, alpha=question.alpha)
    return {
        "metric": metric,
        "incumbent": found.other_score,
        "candidate": found.candidate_score,
        "gain": found.gain,
        "interval": list(found.interval),
        "p_value": found.p_value,
    }


def _figures(main: Comparison, *, reference: Comparison | None, question: Question) -> dict[str, Any]:
    return {
        "metric": question.metric,
        "n": main.counts.n,
        "alpha": question.alpha,
        "minimum_gain": question.minimum_gain,
        "expected_gain": question.expected_gain,
        "regulated": question.regulated,
        "incumbent_score": main.other_score,
        "candidate_score": main.candidate_score,
        "gain": main.gain,
        "interval": main.interval,
        "p_value": main.p_value,
        "p_exact": main.p_exact,
        "only_incumbent_right": main.counts.only_other_right,
        "only_candidate_right": main.counts.only_candidate_right,
        "reference_score": reference and reference.other_score,
        "reference_gain": reference and reference.gain,
        "reference_interval": reference and reference.interval,
        "reference_p_value": reference and reference.p_value,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Outcome) else value


def _with_tuples(value: dict[str, Any], kind: type[Any]) -> dict[str, Any]:
    """The mapping with lists as tuples and gates read, for the dataclass's fields that are so."""
    given = dict(value)
    for item in fields(kind):
        if item.name == "gates":
            given["gates"] = tuple(Gate.from_dict(gate) for gate in value["gates"])
        elif isinstance(value[item.name], list):
            given[item.name] = tuple(value[item.name])
    return given
