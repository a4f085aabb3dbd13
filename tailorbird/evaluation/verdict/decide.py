"""Decide whether a fine-tuned model deserves to serve, and which model serves: one relation,
*dominates*.

- The candidate must dominate every model without fine-tuning. The hybrid must dominate the
  candidate, too. Without a candidate, because there was nothing to gain, the outcome is STAY.
- Another model without fine-tuning may replace the incumbent if it dominates it.
- A model whose gates do not pass is not selected. It is still an opponent, unless it fails a
  limit that the recipe writes. The incumbent always counts.

Read next `relation.py` (what *dominates* means), `reach.py` (what is compared) and `explain.py`
(the sentences).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.evaluation.verdict.relation import Relate

INCUMBENT = "incumbent"
CANDIDATE = "candidate"
HYBRID = "hybrid"
ANCHOR = "anchor"


class Outcome(StrEnum):
    """Whether a fine-tuned model deserves to serve."""

    FINE_TUNE = "FINE_TUNE"
    STAY = "STAY"
    HYBRID = "HYBRID"
    INSUFFICIENT_EVIDENCE = "INSUFFICIENT_EVIDENCE"


@dataclass(frozen=True)
class Entry:
    """A model of the comparison, and what its gates allow."""

    role: str
    is_fine_tuned: bool = False  # by this run: the candidate, or a hybrid with it
    may_replace: bool = False  # a model without fine-tuning that may replace the incumbent
    passes: bool = True  # no gate stops it
    is_opponent: bool = True  # it fails no limit that the recipe writes
    fails: bool = False  # a gate fails, so more rows do not help


@dataclass(frozen=True)
class Decision:
    """The two answers, and the models without fine-tuning that the candidate does not dominate."""

    outcome: Outcome
    selected: str
    blocked_by: tuple[str, ...] = ()


def decide(entries: Sequence[Entry], relate: Relate, *, protocol: TestProtocol) -> Decision:
    """Return the outcome and the role of the model that serves."""
    by_role = {entry.role: entry for entry in entries}
    candidate = by_role.get(CANDIDATE)
    if candidate is None:
        return Decision(Outcome.STAY, _without_proof_over_all(entries, relate, protocol=protocol))
    blocking = blocking_roles(entries)
    blocked_by = tuple(role for role in blocking if not relate(CANDIDATE, role, 1).dominates)

    hybrid = by_role.get(HYBRID, candidate)
    if hybrid.is_fine_tuned and hybrid.passes and hybrid is not candidate:
        required = [*blocking, CANDIDATE] if candidate.is_opponent else blocking
        if all(relate(HYBRID, role, 1).dominates for role in required):
            return Decision(Outcome.HYBRID, HYBRID, blocked_by)

    if candidate.passes and not blocked_by:
        return Decision(Outcome.FINE_TUNE, CANDIDATE)

    outcome = Outcome.INSUFFICIENT_EVIDENCE
    if candidate.fails or any(relate(CANDIDATE, role, 1).is_out_of_reach for role in blocking):
        outcome = Outcome.STAY
    return Decision(
        outcome, _without_proof_over_all(entries, relate, protocol=protocol), blocked_by
    )


def blocking_roles(entries: Sequence[Entry]) -> list[str]:
    """Return the roles of the models without fine-tuning that the candidate must dominate."""
    return [
        entry.role
        for entry in entries
        if not entry.is_fine_tuned and (entry.is_opponent or entry.role == INCUMBENT)
    ]


def alpha_divisor(entry: Entry, entries: Sequence[Entry]) -> int:
    """Return by which number alpha is divided where a model is compared with the incumbent."""
    if entry.may_replace:
        return sum(each.may_replace for each in entries)
    return 1


def _without_proof_over_all(
    entries: Sequence[Entry], relate: Relate, *, protocol: TestProtocol
) -> str:
    """Return the model to serve if no fine-tuned model is eligible: one that dominates the
    incumbent, or else it.

    The candidate may replace it, but a hybrid with the candidate only as an eligible model.

    Models without fine-tuning come first, then the cheapest of those that are not shown to gain
    less than the best.
    """
    gains: dict[str, float] = {}
    for entry in entries:
        if not entry.passes or not (entry.may_replace or entry.role == CANDIDATE):
            continue
        relation = relate(entry.role, INCUMBENT, alpha_divisor(entry, entries))
        if relation.dominates:
            gains[entry.role] = relation.gain
    if not gains:
        return INCUMBENT

    def is_dominated(role: str) -> bool:
        return any(relate(other, role, 1).dominates for other in gains if other != role)

    undominated = [role for role in gains if not is_dominated(role)] or list(gains)
    allowed = [role for role in undominated if role != CANDIDATE] or undominated
    best = max(allowed, key=lambda role: gains[role])
    if protocol.cost is None:
        return best

    costs = {best: 1.0}
    for role in allowed:
        to_best = relate(role, best, 1) if role != best else None
        if to_best is not None and to_best.cost_ratio is not None and to_best.interval[1] >= 0:
            costs[role] = to_best.cost_ratio[0]
    return min(costs, key=lambda role: costs[role])
