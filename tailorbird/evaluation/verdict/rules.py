"""The outcome table: select the rule that decides from facts about the candidate and the hybrid."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from tailorbird.evaluation.gates.base import State

NOT_MUCH_WORSE = -0.01
"""A cheaper candidate may replace the incumbent if the interval of its gain starts above this share (rule 7)."""
CHEAPER_RATIO = 0.9
"""A candidate is cheaper if the interval of its cost divided by the incumbent's ends below this (rule 7)."""
ROUTABLE = frozenset({"groups", "cost"})
"""Gates that a hybrid can pass when the candidate fails them; the other gates concern the model itself."""


class Outcome(StrEnum):
    """The outcome of a verdict."""

    FINE_TUNE = "FINE_TUNE"
    STAY = "STAY"
    HYBRID = "HYBRID"
    INSUFFICIENT_EVIDENCE = "INSUFFICIENT_EVIDENCE"


# Rule 1 has no outcome: it raises VerdictRefused.
OUTCOME_OF_RULE = {
    2: Outcome.INSUFFICIENT_EVIDENCE,
    3: Outcome.FINE_TUNE,
    4: Outcome.HYBRID,
    5: Outcome.STAY,
    6: Outcome.INSUFFICIENT_EVIDENCE,
    7: Outcome.FINE_TUNE,
    8: Outcome.INSUFFICIENT_EVIDENCE,
    9: Outcome.STAY,
}


def winner(outcome: Outcome) -> str:
    """Return the role that an outcome selects: `candidate`, `hybrid` or `incumbent`."""
    return {Outcome.FINE_TUNE: "candidate", Outcome.HYBRID: "hybrid"}.get(outcome, "incumbent")


@dataclass(frozen=True)
class Facts:
    """The facts that the rules read."""

    leaks: bool  # a value of `split_by`, or a text, is in two splits
    proven: bool  # the candidate's gain is proven
    low: float  # lower end of the gain's interval
    high: float  # upper end of the gain's interval
    minimum_gain: float
    regulated: bool = False
    gates: Mapping[str, State] = field(default_factory=dict)
    """States of the candidate's gates by name; only gates of the recipe."""
    hybrid_proven: bool = False  # a hybrid exists and its Holm-adjusted gain is proven
    hybrid_gates: Mapping[str, State] = field(default_factory=dict)
    cheaper: bool = False  # the whole interval of the cost ratio is below `CHEAPER_RATIO`


def select_rule(facts: Facts) -> int:
    """Return the number of the first rule that holds, from 2 to 9."""
    failed = {name for name, state in facts.gates.items() if state is State.FAILS}
    hybrid_passes = facts.hybrid_proven and _pass(facts.hybrid_gates, facts)
    ranked = (
        (2, facts.leaks),
        (3, facts.proven and _pass(facts.gates, facts)),
        (4, facts.proven and bool(failed) and failed <= ROUTABLE and hybrid_passes),
        (5, facts.proven and bool(failed)),
        (6, facts.proven),  # the remaining case: a gate is not assessable and the recipe is regulated
        (7, cheaper_and_not_worse(facts)),
        (8, facts.low <= 0 and facts.high >= facts.minimum_gain),
    )
    return next((rule for rule, holds in ranked if holds), 9)


def cheaper_and_not_worse(facts: Facts) -> bool:
    """Return True if the candidate is cheaper and not much worse, and its gates pass."""
    return facts.cheaper and facts.low > NOT_MUCH_WORSE and _pass(facts.gates, facts)


def _pass(gates: Mapping[str, State], facts: Facts) -> bool:
    """Return True if no gate stops the change; a gate that is not assessable stops it if the recipe is regulated."""
    allowed = {State.PASSES, State.NOT_APPLICABLE} | (set() if facts.regulated else {State.NOT_ASSESSABLE})
    return set(gates.values()) <= allowed
