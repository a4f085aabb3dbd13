"""The decision, a pure function: from two models' predictions on the same test rows to an outcome with its reasons."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from evaluation import reasons
from evaluation.metrics import Comparison, compare
from evaluation.power import Scenario, minimum_detectable_effect, rows_needed_for_rule, rule_holds, rule_power
from evaluation.predictions import Predictions, VerdictRefused, align
from evaluation.reasons import p_text, points

if TYPE_CHECKING:
    from recipes.schema import EvaluationSection

__all__ = ["Outcome", "Predictions", "Question", "Verdict", "VerdictRefused", "ask", "decide"]


class Outcome(StrEnum):
    """What to do."""

    FINE_TUNE = "FINE_TUNE"
    STAY = "STAY"
    INSUFFICIENT_EVIDENCE = "INSUFFICIENT_EVIDENCE"


# Rule 1 refuses: it raises VerdictRefused and gives no outcome.
OUTCOME_OF_RULE = {
    2: Outcome.INSUFFICIENT_EVIDENCE,
    3: Outcome.FINE_TUNE,
    8: Outcome.INSUFFICIENT_EVIDENCE,
    9: Outcome.STAY,
}


@dataclass(frozen=True)
class Question:
    """What is asked, fixed before anything is trained."""

    metric: str
    """`accuracy`."""
    minimum_gain: float
    """The smallest gain worth a change of model, as a share (0.01 is one point)."""
    expected_gain: float
    """The gain on which power and rows needed are computed."""
    alpha: float
    """Two-sided level of the test and of the interval."""
    test_sha256: str
    """Hash of the test rows."""
    num_test_rows: int
    """Number of test rows."""

    def __post_init__(self) -> None:
        bounds = {
            "metric": (self.metric == "accuracy", "accuracy"),
            "minimum_gain": (0 <= self.minimum_gain < 1, "0 <= minimum_gain < 1"),
            "expected_gain": (0 <= self.expected_gain < 1, "0 <= expected_gain < 1"),
            "alpha": (0 < self.alpha < 0.5, "0 < alpha < 0.5"),
            "num_test_rows": (self.num_test_rows >= 1, "at least 1"),
        }
        for name, (holds, allowed) in bounds.items():
            if not holds:
                raise ValueError(f"question: {name} is {getattr(self, name)!r}; allowed: {allowed}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        """Reads `to_dict`'s value; ValueError for fields that are missing or unknown."""
        _check_fields(cls, value)
        return cls(**value)


@dataclass(frozen=True)
class Verdict:
    """An outcome with everything that led to it; gains and intervals are candidate minus the other, as shares."""

    outcome: Outcome
    rule: int
    """The row of the outcome table that decided: the first that held."""
    reasons: tuple[str, ...]
    n: int
    alpha: float
    minimum_gain: float
    expected_gain: float
    incumbent_accuracy: float
    candidate_accuracy: float
    gain: float
    interval: tuple[float, float]
    """Newcombe's, two-sided at level 1 - alpha."""
    p_value: float
    """McNemar's mid-p, two-sided."""
    p_exact: float
    """McNemar's exact p, two-sided, for the record: no rule reads it."""
    only_incumbent_right: int
    only_candidate_right: int
    reference_accuracy: float
    reference_gain: float
    reference_interval: tuple[float, float]
    reference_p_value: float
    minimum_detectable_effect: float
    """True gain found with 80 % power on n rows of the observed discordance, by the plain formula."""
    power_at_expected_gain: float
    """Of the whole rule, at the expected gain and the observed discordance."""
    rows_needed: int | None
    """For 80 % power of the whole rule at the expected gain; None where no number does."""
    proven: bool
    """p < alpha, interval above 0, gain at least minimum_gain, and the interval against the reference above 0."""

    def __post_init__(self) -> None:
        if OUTCOME_OF_RULE.get(self.rule) is not self.outcome:
            raise ValueError(f"rule {self.rule} does not give {self.outcome}; allowed: {OUTCOME_OF_RULE}")
        if self.n < 1 or not self.reasons:
            raise ValueError(f"a verdict needs rows and reasons, not n = {self.n} and {self.reasons!r}")
        for gain, (low, high) in ((self.gain, self.interval), (self.reference_gain, self.reference_interval)):
            if not low <= gain <= high:
                raise ValueError(f"the interval {low} to {high} does not hold the gain {gain}")

    def sentence(self) -> str:
        """One line: outcome, gain in points, interval, p, n, rule."""
        low, high = self.interval
        return (
            f"{self.outcome}: {points(self.gain)} points "
            f"({100 * (1 - self.alpha):g} % interval {points(low)} to {points(high)}, "
            f"{p_text(self.p_value)}, n = {self.n:,}), by rule {self.rule}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; `from_dict` reads it back."""
        value = asdict(self)
        value["outcome"] = str(self.outcome)
        for name in ("reasons", "interval", "reference_interval"):
            value[name] = list(value[name])
        return value

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        """Reads `to_dict`'s value; ValueError for fields that are missing or unknown, or a verdict that cannot be."""
        _check_fields(cls, value)
        given = dict(value)
        given["outcome"] = Outcome(given["outcome"])
        for name in ("reasons", "interval", "reference_interval"):
            given[name] = tuple(given[name])
        return cls(**given)


def ask(section: EvaluationSection, *, test_sha256: str, num_test_rows: int) -> Question:
    """A recipe's question about these test rows; expected_gain defaults to twice minimum_gain."""
    expected = section.expected_gain
    return Question(
        metric=section.metric,
        minimum_gain=section.minimum_gain,
        expected_gain=min(2 * section.minimum_gain, 0.99) if expected is None else expected,
        alpha=section.alpha,
        test_sha256=test_sha256,
        num_test_rows=num_test_rows,
    )


def decide(
    *,
    incumbent: Predictions,
    candidate: Predictions,
    reference: Predictions | None,
    question: Question,
    leaks: tuple[str, ...],
    test_sha256: str,
) -> Verdict:
    """The verdict on replacing the incumbent by the candidate; `reference` is the TF-IDF model, on the same rows.

    Rules in their order, the first that holds: 1 refused, 2 leak, 3 proven, 8 could still be worth it, 9 stay.
    Raises VerdictRefused (rule 1) where test rows changed, or predictions are misaligned or not finite; ValueError
    where a classification comes without its reference.
    """
    if reference is None:
        raise ValueError("a classification's verdict needs the TF-IDF reference; give its predictions on the test rows")
    _refuse_unless_same_rows(question, test_sha256=test_sha256, models=(incumbent, candidate, reference))
    main = compare(candidate.scores, other=incumbent.scores, alpha=question.alpha)
    beside = compare(candidate.scores, other=reference.scores, alpha=question.alpha)
    gained = rule_holds(np.array(main.counts.cells), minimum_gain=question.minimum_gain, alpha=question.alpha)
    proven = bool(gained) and beside.interval[0] > 0
    scenario = Scenario(question.expected_gain, main.counts.discordance, main.other_accuracy)
    needed = rows_needed_for_rule(scenario, minimum_gain=question.minimum_gain, alpha=question.alpha)
    rule, why = 9, reasons.stay(main, reference=beside, question=question)
    if leaks:
        rule, why = 2, tuple(f"leak: {leak}" for leak in leaks)
    elif proven:
        rule, why = 3, reasons.proven(main, reference=beside, question=question)
    elif main.interval[0] <= 0 and main.interval[1] >= question.minimum_gain:
        rule, why = 8, reasons.insufficient(main, needed=needed, question=question)
    return Verdict(
        outcome=OUTCOME_OF_RULE[rule],
        rule=rule,
        reasons=why,
        proven=proven,
        rows_needed=needed.rows,
        **_figures(main, reference=beside, question=question, scenario=scenario),
    )


def _figures(main: Comparison, *, reference: Comparison, question: Question, scenario: Scenario) -> dict[str, Any]:
    n, discordance = main.counts.n, main.counts.discordance
    return {
        "n": n,
        "alpha": question.alpha,
        "minimum_gain": question.minimum_gain,
        "expected_gain": question.expected_gain,
        "incumbent_accuracy": main.other_accuracy,
        "candidate_accuracy": main.candidate_accuracy,
        "gain": main.gain,
        "interval": main.interval,
        "p_value": main.p_value,
        "p_exact": main.p_exact,
        "only_incumbent_right": main.counts.only_other_right,
        "only_candidate_right": main.counts.only_candidate_right,
        "reference_accuracy": reference.other_accuracy,
        "reference_gain": reference.gain,
        "reference_interval": reference.interval,
        "reference_p_value": reference.p_value,
        # No discordant row seen is no proof that there is none: reckon with one.
        "minimum_detectable_effect": minimum_detectable_effect(
            n, discordance=max(discordance, 1 / n), alpha=question.alpha
        ),
        "power_at_expected_gain": rule_power(
            n, scenario=scenario, minimum_gain=question.minimum_gain, alpha=question.alpha
        ),
    }


def _refuse_unless_same_rows(question: Question, *, test_sha256: str, models: tuple[Predictions, ...]) -> None:
    if test_sha256 != question.test_sha256:
        raise VerdictRefused(
            f"the test rows changed: their sha256 is {test_sha256}, the question asks about {question.test_sha256}; "
            "restore the test rows, or ask a new question in a new run"
        )
    align(*models)
    if len(models[0]) != question.num_test_rows:
        raise VerdictRefused(
            f"{len(models[0])} rows were predicted, the question asks about {question.num_test_rows}; predict them all"
        )
    for model in models:
        right = np.array([label == output for label, output in zip(model.labels, model.outputs, strict=True)])
        wrong = np.flatnonzero(model.scores != right)
        if wrong.size:
            raise VerdictRefused(
                f"{model.model} has the score {model.scores[wrong[0]]} at row {model.row_ids[wrong[0]]!r}; for "
                "accuracy it must be 1 where the output is the label, else 0"
            )


def _check_fields(kind: type[Any], value: dict[str, Any]) -> None:
    names = {field.name for field in fields(kind)}
    if set(value) != names:
        raise ValueError(
            f"not a {kind.__name__}: missing {sorted(names - set(value))}, unknown {sorted(set(value) - names)}"
        )
    numbers = [item for item in value.values() if isinstance(item, float)]
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"not a {kind.__name__}: a number in it is not finite")
