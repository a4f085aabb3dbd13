"""Tests of the decision: which relations make a model serve, and properties of all decisions."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tailorbird.evaluation.gates.prices import CostComparison, CostTerms, YearlyNet
from tailorbird.evaluation.verdict.decide import (
    CANDIDATE,
    HYBRID,
    INCUMBENT,
    Decision,
    Entry,
    Outcome,
    decide,
)
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.evaluation.verdict.relation import Gain, Relate, Relation, relation_of
from tests.unit.evaluation.verdict.tables import protocol_for

FINE_TUNE = Outcome.FINE_TUNE
STAY = Outcome.STAY
OPEN = Outcome.INSUFFICIENT_EVIDENCE
UNPRICED = protocol_for(3000)
PRICED = protocol_for(3000, cost=CostTerms(value_of_correct=1, requests_per_month=1))
BAG = "bag_of_words"
PROBE = "probe"


def gain_of(low: float, high: float, *, level: float = 0.05) -> Gain:
    gain = (low + high) / 2
    interval = (low, high)
    return Gain(gain, interval=interval, lowest=low, level=level, priced=(gain, interval))


# How intervals, costs and prices make a relation.


@pytest.mark.parametrize(
    ("low", "high", "ratio", "outcome"),
    [
        (-0.02, 0.0101, 1.0, OPEN),
        (-0.02, 0.0099, 1.0, STAY),
        (0.003, 0.0165, 1.0, OPEN),  # a gain below the minimum that is not ruled out
        (-0.02, 0.0, 0.5, OPEN),  # a cheaper candidate needs no gain
        (-0.03, -0.0099, 0.5, OPEN),
        (-0.03, -0.0101, 0.5, STAY),
        (-0.01, 0.005, 0.5, OPEN),  # a loss of the margin is not ruled out
        (-0.0099, 0.005, 0.5, FINE_TUNE),
        (-0.0099, 0.005, 0.9, STAY),  # not below 0.9
        (-0.0099, 0.005, None, STAY),  # costs that cannot be compared
        (0.001, 0.019, 1.0, FINE_TUNE),
        (0.0, 0.03, 1.0, OPEN),
    ],
)
def test_the_interval_of_the_candidate_decides_the_outcome(
    low: float, high: float, ratio: float | None, outcome: Outcome
) -> None:
    half = (high - low) / 2
    scores = {CANDIDATE: (low + high) / 2, INCUMBENT: 0.0}
    costs = {CANDIDATE: ratio, INCUMBENT: 1.0}
    entries = (Entry(INCUMBENT), Entry(CANDIDATE, is_fine_tuned=True))
    world = World(entries, scores, costs, {(CANDIDATE, INCUMBENT): half})
    assert world.decide().outcome is outcome


def test_a_gain_that_is_worth_less_than_its_cost_is_neither_better_nor_cheaper() -> None:
    gain = gain_of(0.01, 0.05)
    for saving, is_better in ((-0.02, True), (-0.04, False)):
        net = YearlyNet(1.0, training=0.0, saving=saving)
        cost = CostComparison((0.5,) * 3, net)
        relation = relation_of(("a", "b"), gain, cost=cost, protocol=PRICED)
        assert (relation.is_better, relation.is_cheaper, relation.dominates) == (is_better,) * 3
        assert relation.net == pytest.approx(0.03 + saving)
        assert relation.net_interval == pytest.approx((0.01 + saving, 0.05 + saving))
    # A net of 0 does not pay: at the gain, and at the upper end of its interval.
    for saving, is_out_of_reach in ((-0.5, False), (-0.75, True)):
        cost = CostComparison((2.0,) * 3, YearlyNet(1.0, training=0.0, saving=saving))
        relation = relation_of(("a", "b"), gain_of(0.25, 0.75), cost=cost, protocol=PRICED)
        assert (relation.is_better, relation.is_out_of_reach) == (False, is_out_of_reach)


# Properties of all decisions.


@dataclass(frozen=True)
class World:
    """Models with scores, costs and gates; pairs have intervals of different widths."""

    entries: tuple[Entry, ...]
    scores: Mapping[str, float]
    costs: Mapping[str, float | None]
    halves: Mapping[tuple[str, str], float]
    protocol: TestProtocol = PRICED

    def raised(self, *roles: str, by: float) -> "World":
        scores = {role: score + by * (role in roles) for role, score in self.scores.items()}
        return replace(self, scores=scores)

    @property
    def relate(self) -> Relate:
        """Intervals are wider at a lower level."""

        def relate(first: str, second: str, share: int) -> Relation:
            pair = (first, second) if (first, second) in self.halves else (second, first)
            half = self.halves[pair] * (1 + (share - 1) / 4)
            gain = self.scores[first] - self.scores[second]
            cost = self.costs[first]
            other = self.costs[second]
            ratio = None if cost is None or other is None else (cost / other,) * 3
            return relation_of(
                (first, second),
                gain_of(gain - half, gain + half, level=0.05 / share),
                cost=CostComparison(ratio),
                protocol=self.protocol,
            )

        return relate

    def decide(self) -> Decision:
        return decide(self.entries, self.relate, protocol=self.protocol)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    roles = [INCUMBENT]
    roles += draw(
        st.lists(st.sampled_from([CANDIDATE, HYBRID, BAG, PROBE, "centroid"]), unique=True)
    )
    entries = []
    for role in roles:
        passes = draw(st.sampled_from([True, True, False]))
        # A hybrid without a fine-tuned part is a contender like any other.
        is_tuned = role == CANDIDATE or (
            role == HYBRID and CANDIDATE in roles and draw(st.booleans())
        )
        may_replace = role in (BAG, "centroid") or (role == HYBRID and not is_tuned)
        fails = not passes and draw(st.booleans())
        entries.append(
            Entry(
                role,
                is_fine_tuned=is_tuned,
                may_replace=may_replace,
                passes=passes,
                is_opponent=not (fails and draw(st.booleans())),
                fails=fails,
            )
        )
    scores = {role: draw(st.integers(-6, 6)) / 200 for role in roles}
    costs = {role: draw(st.sampled_from([1.0, 0.5, 2.0, None])) for role in roles}
    halves = {pair: draw(st.sampled_from([0.001, 0.008, 0.02])) for pair in combinations(roles, 2)}
    protocol = draw(st.sampled_from([PRICED, UNPRICED]))
    return World(tuple(entries), scores, costs, halves, protocol)


def expected_of(world: World) -> Decision:
    """Return the decision by the table of docs/verdict.md."""
    entries = {entry.role: entry for entry in world.entries}
    relate = world.relate
    passing = [entry for entry in world.entries if entry.passes or entry.role == INCUMBENT]
    opponents = [entry for entry in world.entries if entry.is_opponent or entry.role == INCUMBENT]
    plain = [entry.role for entry in opponents if not entry.is_fine_tuned]
    blocked_by: tuple[str, ...] = ()
    outcome = STAY
    if CANDIDATE in entries:
        blocked_by = tuple(role for role in plain if not relate(CANDIDATE, role, 1).dominates)
        candidate = entries[CANDIDATE]
        to_beat = [entry.role for entry in opponents if entry.role != HYBRID or HYBRID in plain]
        is_hybrid = any(entry.role == HYBRID and entry.is_fine_tuned for entry in passing)
        if is_hybrid and all(relate(HYBRID, role, 1).dominates for role in to_beat):
            return Decision(Outcome.HYBRID, HYBRID, blocked_by)
        if candidate.passes and not blocked_by:
            return Decision(FINE_TUNE, CANDIDATE)
        is_hopeless = any(relate(CANDIDATE, role, 1).is_out_of_reach for role in plain)
        outcome = STAY if candidate.fails or is_hopeless else OPEN

    # Without an eligible fine-tuned model, one that dominates the incumbent replaces it.
    num_replacing = sum(entry.may_replace for entry in world.entries)
    gains = {}
    for entry in passing:
        if entry.may_replace or entry.role == CANDIDATE:
            relation = relate(entry.role, INCUMBENT, num_replacing if entry.may_replace else 1)
            if relation.dominates:
                gains[entry.role] = relation.gain
    best = [
        role
        for role in gains
        if not any(relate(other, role, 1).dominates for other in gains if other != role)
    ]
    best = best or list(gains)
    without_tuning = [role for role in best if role != CANDIDATE]
    best = without_tuning or best
    if not best:
        return Decision(outcome, INCUMBENT, blocked_by)
    most = max(best, key=gains.__getitem__)
    cheapest = most
    lowest = 1.0
    for role in best:
        if role == most or world.protocol is UNPRICED:
            continue
        relation = relate(role, most, 1)
        if relation.interval[1] < 0 or relation.cost_ratio is None:
            continue
        if relation.cost_ratio[0] < lowest:
            lowest = relation.cost_ratio[0]
            cheapest = role
    return Decision(outcome, cheapest, blocked_by)


@settings(max_examples=1000)
@given(worlds())
def test_the_decision_is_that_of_the_table_of_the_specification(world: World) -> None:
    decided = world.decide()
    event(f"{decided.outcome}, selected {decided.selected}")
    assert decided == expected_of(world)


raises = st.integers(0, 8).map(lambda steps: steps / 200)
RANKS = {STAY: 0, OPEN: 1, FINE_TUNE: 2, Outcome.HYBRID: 2}


@settings(max_examples=300)
@given(worlds(), raises)
def test_more_evidence_for_the_fine_tuned_models_never_moves_the_outcome_away_from_them(
    world: World, by: float
) -> None:
    tuned = [entry.role for entry in world.entries if entry.is_fine_tuned]
    before = world.decide().outcome
    after = world.raised(*tuned, by=by).decide().outcome
    assert RANKS[after] >= RANKS[before]
    alone = world.raised(CANDIDATE, by=by).decide().outcome
    # A hybrid may lose its dominance over a candidate that gains alone.
    assert RANKS[alone] >= RANKS[before] or before is Outcome.HYBRID
