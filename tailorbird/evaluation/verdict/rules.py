"""The outcome table: from facts about candidate and hybrid to the one rule that decides."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from tailorbird.evaluation.gates.base import State

NOT_MUCH_WORSE = -0.01  # a cheaper candidate may replace the incumbent while its interval begins above this (rule 7)
CHEAPER_RATIO = 0.9
"""A candidate is cheaper when the upper end of its cost over the incumbent's lies under this (rule 7)."""
ROUTABLE = frozenset({"groups", "cost"})
"""Gates that a hybrid can pass where the candidate fails; the others are about the model itself."""


class Outcome(StrEnum):
    """The decision."""

    FINE_TUNE = "FINE_TUNE"
    STAY = "STAY"
    HYBRID = "HYBRID"
    INSUFFICIENT_EVIDENCE = "INSUFFICIENT_EVIDENCE"


# Rule 1 refuses: it raises VerdictRefused and gives no outcome.
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
    """Return the role that an outcome chooses: `candidate`, `hybrid` or `incumbent`."""
    return {Outcome.FINE_TUNE: "candidate", Outcome.HYBRID: "hybrid"}.get(outcome, "incumbent")


@dataclass(frozen=True)
class Facts:
    """Everything the rules read."""

    leaks: bool  # a value of `split_by`, or a text, is in two splits
    proven: bool  # the candidate's gain is proven
    low: float  # this and `high`: the gain's interval
    high: float
    minimum_gain: float
    regulated: bool = False
    gates: Mapping[str, State] = field(default_factory=dict)
    """States of the candidate's gates by name; those that the recipe does not have are left out."""
    hybrid_proven: bool = False  # a hybrid was fitted and its gain is proven, adjusted by Holm for candidate and hybrid
    hybrid_gates: Mapping[str, State] = field(default_factory=dict)
    cheaper: bool = False  # the candidate costs less to serve, by the whole interval


def select_rule(facts: Facts) -> int:
    """Return the first row of the outcome table that holds, 2 to 9."""
    failed = {name for name, state in facts.gates.items() if state is State.FAILS}
    hybrid_passes = facts.hybrid_proven and _pass(facts.hybrid_gates, facts)
    ranked = (
        (2, facts.leaks),
        (3, facts.proven and _pass(facts.gates, facts)),
        (4, facts.proven and bool(failed) and failed <= ROUTABLE and hybrid_passes),
        (5, facts.proven and bool(failed)),
        (6, facts.proven),  # what is left: a gate not assessable, in a regulated recipe
        (7, cheaper_and_not_worse(facts)),
        (8, facts.low <= 0 and facts.high >= facts.minimum_gain),
    )
    return next((rule for rule, holds in ranked if holds), 9)


def cheaper_and_not_worse(facts: Facts) -> bool:
    """Return True if the candidate is cheaper, not much worse, and no gate stops it."""
    return facts.cheaper and facts.low > NOT_MUCH_WORSE and _pass(facts.gates, facts)


def _pass(gates: Mapping[str, State], facts: Facts) -> bool:
    """Return True if every gate passes; one that is not assessable passes too unless the recipe is regulated."""
    allowed = {State.PASSES} if facts.regulated else {State.PASSES, State.NOT_ASSESSABLE}
    return set(gates.values()) <= allowed
