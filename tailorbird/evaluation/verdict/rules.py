"""The outcome table: select the rule that decides from facts about the compared models."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from tailorbird.evaluation.gates.base import State

CHEAPER_RATIO = 0.9
"""A model is cheaper if the interval of its cost divided by the other model's ends below this (rule 7)."""


class Outcome(StrEnum):
    """The outcome of a verdict."""

    FINE_TUNE = "FINE_TUNE"
    STAY = "STAY"
    HYBRID = "HYBRID"
    INSUFFICIENT_EVIDENCE = "INSUFFICIENT_EVIDENCE"


# Rule 1 has no outcome: it raises VerdictRefused.
OUTCOME_OF_RULE = {
    2: Outcome.INSUFFICIENT_EVIDENCE,
    3: Outcome.HYBRID,
    4: Outcome.FINE_TUNE,
    5: Outcome.STAY,
    6: Outcome.INSUFFICIENT_EVIDENCE,
    7: Outcome.FINE_TUNE,
    8: Outcome.INSUFFICIENT_EVIDENCE,
    9: Outcome.STAY,
}


@dataclass(frozen=True)
class Facts:
    """The facts that the rules read."""

    leaks: bool  # a value of `split_by`, or a text, is in two splits
    proven: bool  # the candidate's gain is proven
    low: float  # lower end of the gain's interval
    high: float  # upper end of the gain's interval
    minimum_gain: float
    margin: float  # non-inferiority margin
    regulated: bool = False
    gates: Mapping[str, State] = field(default_factory=dict)
    """States of the candidate's gates by name; only gates of the recipe."""
    hybrid_holds: bool = False
    """A hybrid is non-inferior to the incumbent and its parts, and costs less than the best part or is proven better.

    No other model that may replace the incumbent is better than it.
    """
    hybrid_gates: Mapping[str, State] = field(default_factory=dict)
    cautious_low: float | None = None
    """Lower end of the gain in the test of non-inferiority, if it is not `low`."""
    cheaper: bool = False
    """The candidate is cheaper than the incumbent and than each other contender that is not proven worse than it."""
    accepted_loss: float = 0.0  # losses accepted for cost since the last proven champion, with this candidate's
    other_proven: bool = False  # a further contender is proven better than the incumbent and passes its gates
    surpassed: bool = False  # a further contender that may replace the incumbent is also better than the candidate

    @property
    def lowest(self) -> float:
        """The lower end of the gain in the test of non-inferiority."""
        return self.low if self.cautious_low is None else self.cautious_low

    @property
    def not_inferior(self) -> bool:
        return self.lowest > -self.margin


def select_rule(facts: Facts) -> int:
    """Return the number of the first rule that holds, from 2 to 9."""
    passes = gates_pass(facts.gates, regulated=facts.regulated)
    hybrid = facts.hybrid_holds and gates_pass(facts.hybrid_gates, regulated=facts.regulated)
    unclear = facts.low <= 0 and facts.high >= facts.minimum_gain
    ranked = (
        (2, facts.leaks),
        (3, hybrid),
        (4, facts.proven and passes and not facts.surpassed),
        (5, facts.proven and State.FAILS in facts.gates.values()),
        (6, facts.proven and not passes and not facts.other_proven),  # a gate is not assessable, the recipe regulated
        (7, not facts.proven and cheaper_and_not_inferior(facts) and not facts.surpassed),
        (8, unclear and not facts.other_proven),
    )
    return next((rule for rule, holds in ranked if holds), 9)


def cheaper_and_not_inferior(facts: Facts) -> bool:
    """Return True if the candidate is cheaper and non-inferior, its gates pass, and the accepted losses stay small."""
    affordable = is_affordable(facts.accepted_loss, minimum_gain=facts.minimum_gain)
    passes = gates_pass(facts.gates, regulated=facts.regulated)
    return facts.cheaper and facts.not_inferior and affordable and passes


def is_affordable(accepted_loss: float, *, minimum_gain: float) -> bool:
    """Return True if the losses accepted for cost sum to less than the minimum gain, or to 0."""
    return accepted_loss < minimum_gain or accepted_loss == 0


def gates_pass(gates: Mapping[str, State], *, regulated: bool) -> bool:
    """Return True if no gate stops a change; a gate that is not assessable stops it if the recipe is regulated."""
    allowed = {State.PASSES, State.NOT_APPLICABLE} | (set() if regulated else {State.NOT_ASSESSABLE})
    return set(gates.values()) <= allowed
