"""Tests of the decision: which relations make a model serve, and properties of all decisions."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations

import pytest
from hypothesis import given
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
from tailorbird.evaluation.verdict.relation import Gain, Relate, Relation, relation_of
from tests.unit.evaluation.verdict.tables import protocol_for

FINE_TUNE, STAY, OPEN = Outcome.FINE_TUNE, Outcome.STAY, Outcome.INSUFFICIENT_EVIDENCE
PRICED = protocol_for(3000, cost=CostTerms(value_of_correct=1, requests_per_month=1))
BAG, PROBE = "bag_of_words", "probe"
ENTRIES = {
    INCUMBENT: Entry(INCUMBENT),
    CANDIDATE: Entry(CANDIDATE, is_fine_tuned=True),
    HYBRID: Entry(HYBRID, is_fine_tuned=True),
    BAG: Entry(BAG, may_replace=True),
    PROBE: Entry(PROBE),
}


@dataclass(frozen=True)
class Pair:
    """The interval of a gain around its estimate, and the ratio of costs; by default, neither is
    known well."""

    low: float = -0.02
    high: float = 0.02
    ratio: float | None = 1.0
    is_anchored: bool = True

    def reversed(self) -> "Pair":
        return replace(self, low=-self.high, high=-self.low, ratio=self.ratio and 1 / self.ratio)


BETTER, UNSURE, EQUAL, WORSE = Pair(0.01, 0.05), Pair(), Pair(-0.005, 0.005), Pair(-0.05, -0.01)
CHEAPER = replace(EQUAL, ratio=0.5)
Pairs = Mapping[tuple[str, str], Pair]


def gain_of(low: float, high: float, *, level: float = 0.05) -> Gain:
    gain = (low + high) / 2
    interval = (low, high)
    return Gain(gain, interval=interval, lowest=low, level=level, priced=(gain, interval))


def relate_by(pairs: Pairs) -> Relate:
    """Return the relations of these pairs and of their reverse; intervals are wider at a lower
    level."""

    def relate(first: str, second: str, share: int) -> Relation:
        pair = pairs.get((first, second)) or pairs.get((second, first), UNSURE).reversed()
        gain = (pair.low + pair.high) / 2
        half = (pair.high - pair.low) / 2 * (1 + (share - 1) / 4)
        ratio = None if pair.ratio is None else (pair.ratio,) * 3
        return relation_of(
            (first, second),
            gain_of(gain - half, gain + half, level=0.05 / share),
            cost=CostComparison(ratio),
            protocol=PRICED,
            is_anchored=pair.is_anchored,
        )

    return relate


def decision(pairs: Pairs, *entries: Entry) -> Decision:
    """Return the decision on the incumbent, the candidate and further entries; an entry replaces
    that of its role."""
    given_entries = {INCUMBENT: ENTRIES[INCUMBENT], CANDIDATE: ENTRIES[CANDIDATE]}
    given_entries |= {entry.role: entry for entry in entries}
    return decide(list(given_entries.values()), relate_by(pairs), protocol=PRICED)


def over(first: str, **pairs: Pair) -> dict[tuple[str, str], Pair]:
    return {(first, second): pair for second, pair in pairs.items()}


# A candidate is chosen if it dominates every model without fine-tuning that its gates do not stop.


@pytest.mark.parametrize("pair", [BETTER, CHEAPER])
def test_a_candidate_that_dominates_every_model_without_fine_tuning_is_chosen(pair: Pair) -> None:
    pairs = over(CANDIDATE, incumbent=pair, bag_of_words=BETTER, probe=CHEAPER)
    assert decision(pairs, ENTRIES[BAG], ENTRIES[PROBE]) == Decision(FINE_TUNE, CANDIDATE)


@pytest.mark.parametrize("role", [INCUMBENT, BAG, PROBE])
@pytest.mark.parametrize("pair", [UNSURE, EQUAL, WORSE])
def test_one_model_that_it_does_not_dominate_blocks_it(role: str, pair: Pair) -> None:
    pairs = over(CANDIDATE, incumbent=BETTER, bag_of_words=BETTER, probe=BETTER) | over(
        CANDIDATE, **{role: pair}
    )
    decided = decision(pairs, ENTRIES[BAG], ENTRIES[PROBE])
    assert decided.outcome is (OPEN if pair is UNSURE else STAY)
    assert decided.blocked_by == (role,)
    # What serves does not depend on it: the candidate dominates the incumbent, or else nothing
    # does.
    assert decided.selected == (INCUMBENT if role == INCUMBENT else CANDIDATE)


def test_a_model_that_its_gates_stop_neither_blocks_nor_serves_but_the_incumbent_counts() -> None:
    stopped = [replace(ENTRIES[role], passes=False, fails=True) for role in (INCUMBENT, BAG)]
    pairs = over(CANDIDATE, incumbent=BETTER, bag_of_words=WORSE) | over(BAG, incumbent=BETTER)
    assert decision(pairs, *stopped) == Decision(FINE_TUNE, CANDIDATE)
    assert decision(over(BAG, incumbent=BETTER), *stopped) == Decision(
        OPEN, INCUMBENT, (INCUMBENT,)
    )


def test_a_failed_gate_leads_to_stay_and_an_open_one_to_insufficient_evidence() -> None:
    pairs = over(CANDIDATE, incumbent=BETTER)
    stopped = replace(ENTRIES[CANDIDATE], passes=False)
    assert decision(pairs, replace(stopped, fails=True)) == Decision(STAY, INCUMBENT)
    assert decision(pairs, stopped) == Decision(OPEN, INCUMBENT)


@pytest.mark.parametrize(
    ("pair", "outcome"),
    [
        (Pair(-0.02, 0.0101), OPEN),
        (Pair(-0.02, 0.0099), STAY),
        (Pair(0.003, 0.0165), OPEN),  # a gain below the minimum that is not ruled out
        (Pair(-0.02, 0.0, 0.5), OPEN),  # a cheaper candidate needs no gain
        (Pair(-0.03, -0.0099, 0.5), OPEN),
        (Pair(-0.03, -0.0101, 0.5), STAY),
        (Pair(-0.01, 0.005, 0.5), OPEN),  # a loss of the margin is not ruled out
        (Pair(-0.0099, 0.005, 0.5), FINE_TUNE),
        (Pair(-0.0099, 0.005, 0.9), STAY),  # not below 0.9
        (Pair(-0.0099, 0.005, None), STAY),  # costs that cannot be compared
        (Pair(0.001, 0.019), FINE_TUNE),
        (Pair(0.0, 0.03), OPEN),
    ],
)
def test_the_interval_of_the_candidate_decides_the_outcome(pair: Pair, outcome: Outcome) -> None:
    assert decision(over(CANDIDATE, incumbent=pair)).outcome is outcome


# A hybrid must dominate the candidate, too.


def test_a_hybrid_that_dominates_all_other_models_precedes_the_candidate() -> None:
    pairs = over(CANDIDATE, incumbent=BETTER) | over(HYBRID, incumbent=BETTER, candidate=CHEAPER)
    assert decision(pairs, ENTRIES[HYBRID]) == Decision(Outcome.HYBRID, HYBRID)
    for role in (INCUMBENT, CANDIDATE):
        equal = pairs | over(HYBRID, **{role: EQUAL})
        assert decision(equal, ENTRIES[HYBRID]) == Decision(FINE_TUNE, CANDIDATE)
    assert decision(pairs, replace(ENTRIES[HYBRID], passes=False)) == Decision(FINE_TUNE, CANDIDATE)


def test_a_candidate_that_its_gates_stop_does_not_block_the_hybrid() -> None:
    pairs = over(HYBRID, incumbent=BETTER, candidate=WORSE)
    stopped = replace(ENTRIES[CANDIDATE], passes=False, fails=True)
    expected = Decision(Outcome.HYBRID, HYBRID, (INCUMBENT,))
    assert decision(pairs, ENTRIES[HYBRID], stopped) == expected


def test_a_hybrid_without_a_fine_tuned_part_is_a_contender_like_any_other() -> None:
    contender = Entry(HYBRID, may_replace=True)
    pairs = over(HYBRID, incumbent=BETTER, candidate=BETTER) | over(CANDIDATE, incumbent=BETTER)
    assert decision(pairs, contender) == Decision(STAY, HYBRID, (HYBRID,))
    worse = over(CANDIDATE, incumbent=BETTER, hybrid=BETTER)
    assert decision(worse, contender) == Decision(FINE_TUNE, CANDIDATE)


# Without an eligible fine-tuned model, one that dominates the incumbent may replace it.


CENTROID = Entry("centroid", may_replace=True)


def test_another_model_needs_its_dominance_at_alpha_divided_by_the_number_that_may_replace() -> (
    None
):
    near = over(BAG, incumbent=Pair(0.002, 0.04))  # at half of alpha, the interval starts below 0
    assert decision(near, ENTRIES[BAG]).selected == BAG
    assert decision(near, ENTRIES[BAG], CENTROID).selected == INCUMBENT
    assert decision(near, ENTRIES[BAG], ENTRIES[PROBE]).selected == BAG


@pytest.mark.parametrize(
    ("further", "selected"),
    [
        ({}, "centroid"),
        (over(BAG, centroid=replace(UNSURE, ratio=0.5)), BAG),
        (over(BAG, centroid=Pair(-0.03, -0.005, 0.5)), "centroid"),
        (over(BAG, centroid=CHEAPER), BAG),
        (over(CANDIDATE, incumbent=Pair(0.04, 0.08)), "centroid"),
        (over(CANDIDATE, incumbent=Pair(0.04, 0.08), bag_of_words=BETTER), "centroid"),
    ],
)
def test_models_without_fine_tuning_come_first_then_the_cheapest_that_may_gain_as_much(
    further: Pairs, selected: str
) -> None:
    pairs = over(BAG, incumbent=BETTER) | over("centroid", incumbent=Pair(0.03, 0.06))
    assert decision({**pairs, **further}, ENTRIES[BAG], CENTROID).selected == selected


def test_a_model_replaces_for_its_cost_only_if_it_is_not_inferior_to_the_anchor() -> None:
    for pair, expected in (
        (CHEAPER, Decision(OPEN, INCUMBENT, (INCUMBENT,))),
        (BETTER, Decision(FINE_TUNE, CANDIDATE)),
    ):
        assert decision(over(CANDIDATE, incumbent=replace(pair, is_anchored=False))) == expected


def test_a_gain_that_is_worth_less_than_its_cost_is_neither_better_nor_cheaper() -> None:
    gain = gain_of(0.01, 0.05)
    for saving, is_better in ((-0.02, True), (-0.04, False)):
        net = YearlyNet(1.0, training=0.0, saving=saving)
        cost = CostComparison((0.5,) * 3, net)
        relation = relation_of(("a", "b"), gain, cost=cost, protocol=PRICED)
        assert (relation.is_better, relation.is_cheaper, relation.dominates) == (is_better,) * 3
        assert relation.net == pytest.approx(0.03 + saving)
        assert relation.net_interval == pytest.approx((0.01 + saving, 0.05 + saving))
    unpriced = protocol_for(3000)
    relation = relation_of(("a", "b"), gain, cost=CostComparison((0.5,) * 3), protocol=unpriced)
    assert (relation.is_better, relation.is_cheaper) == (True, False)


@pytest.mark.parametrize(
    ("low", "high", "saving", "is_out_of_reach"),
    [
        # at -0.3 points, 3 is lost and 1 saved, but a gain is possible
        (-0.009, 0.003, 1.0, False),
        (-0.009, -0.002, 1.0, True),  # 2 or more is lost, and 1 is saved
        (-0.009, -0.002, 3.0, False),
        (0.012, 0.030, -25.0, False),  # at 2.1 points, 21 is gained and 25 paid, but 30 is possible
        (0.012, 0.024, -25.0, True),
    ],
)
def test_a_gain_that_does_not_pay_is_out_of_reach_only_if_the_whole_interval_does_not_pay(
    low: float, high: float, saving: float, is_out_of_reach: bool
) -> None:
    """A point is worth 10, and the first model saves an amount."""
    net = YearlyNet(value_of_one=1_000, training=0, saving=saving)
    cost = CostComparison(((0.5 if saving > 0 else 2.0),) * 3, net)
    relation = relation_of((CANDIDATE, INCUMBENT), gain_of(low, high), cost=cost, protocol=PRICED)
    assert relation.is_out_of_reach is is_out_of_reach
    assert relation.dominates is (relation.net is not None and relation.net > 0)


# The cases that the nine rules before this relation decided wrongly.


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        pytest.param(
            over(CANDIDATE, incumbent=BETTER, bag_of_words=EQUAL) | over(BAG, incumbent=BETTER),
            Decision(STAY, BAG, (BAG,)),
            id="a retrained baseline is as good as the candidate",
        ),
        pytest.param(
            over(CANDIDATE, incumbent=EQUAL)
            | over(HYBRID, incumbent=replace(EQUAL, ratio=67), candidate=CHEAPER),
            Decision(STAY, INCUMBENT, (INCUMBENT,)),
            id="an equal hybrid costs 67 times as much as the incumbent",
        ),
        pytest.param(
            over(CANDIDATE, incumbent=replace(EQUAL, ratio=0.01)),
            Decision(FINE_TUNE, CANDIDATE),
            id="an endpoint is as good at 100 times the cost",
        ),
    ],
)
def test_a_case_that_was_decided_wrongly(pairs: Pairs, expected: Decision) -> None:
    roles = {role for pair in pairs for role in pair}
    assert decision(pairs, *(ENTRIES[role] for role in ENTRIES if role in roles)) == expected


# Properties of all decisions.


@dataclass(frozen=True)
class World:
    """Models with scores, costs and gates; pairs have intervals of different widths."""

    entries: tuple[Entry, ...]
    scores: Mapping[str, float]
    costs: Mapping[str, float | None]
    halves: Mapping[tuple[str, str], float]

    def raised(self, *roles: str, by: float) -> "World":
        return replace(
            self, scores={role: score + by * (role in roles) for role, score in self.scores.items()}
        )

    @property
    def relate(self) -> Relate:
        pairs = {}
        for (first, second), half in self.halves.items():
            gain = self.scores[first] - self.scores[second]
            cost = self.costs[first]
            other = self.costs[second]
            ratio = None if cost is None or other is None else cost / other
            pairs[first, second] = Pair(gain - half, gain + half, ratio)
        return relate_by(pairs)

    def decide(self) -> Decision:
        return decide(self.entries, self.relate, protocol=PRICED)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    roles = [INCUMBENT, CANDIDATE]
    roles += draw(st.lists(st.sampled_from([HYBRID, BAG, PROBE, "centroid"]), unique=True))
    entries = []
    for role in roles:
        passes = draw(st.booleans())
        fails = not passes and draw(st.booleans())
        entries.append(replace(ENTRIES.get(role, CENTROID), passes=passes, fails=fails))
    scores = {role: draw(st.integers(-6, 6)) / 200 for role in roles}
    costs = {role: draw(st.sampled_from([1.0, 0.5, 2.0, None])) for role in roles}
    halves = {pair: draw(st.sampled_from([0.001, 0.008, 0.02])) for pair in combinations(roles, 2)}
    return World(tuple(entries), scores, costs, halves)


raises = st.integers(0, 8).map(lambda steps: steps / 200)
RANKS = {STAY: 0, OPEN: 1, FINE_TUNE: 2, Outcome.HYBRID: 2}


@given(worlds(), raises)
def test_more_evidence_for_the_fine_tuned_models_never_moves_the_outcome_away_from_them(
    world: World, by: float
) -> None:
    before = world.decide().outcome
    after = world.raised(CANDIDATE, HYBRID, by=by).decide().outcome
    assert RANKS[after] >= RANKS[before]
    alone = world.raised(CANDIDATE, by=by).decide().outcome
    # A hybrid may lose its dominance over a candidate that gains alone.
    assert RANKS[alone] >= RANKS[before] or before is Outcome.HYBRID


@given(worlds())
def test_what_is_selected_may_serve_and_no_model_that_may_replace_the_incumbent_dominates_it(
    world: World,
) -> None:
    decided = world.decide()
    selected = decided.selected
    if decided.outcome is Outcome.HYBRID:
        return  # it needs more than to dominate the incumbent
    num_replacing = sum(entry.may_replace for entry in world.entries)
    replacing = []
    for entry in world.entries:
        share = num_replacing if entry.may_replace else 1
        may_replace = entry.passes and (entry.may_replace or entry.role == CANDIDATE)
        if may_replace and world.relate(entry.role, INCUMBENT, share).dominates:
            replacing.append(entry.role)
    if not replacing:
        assert selected == INCUMBENT
        return
    assert selected in replacing

    def is_dominated(role: str) -> bool:
        return any(world.relate(by, role, 1).dominates for by in replacing if by != role)

    assert not is_dominated(selected) or all(map(is_dominated, replacing))


@given(worlds())
def test_the_outcome_is_a_fine_tuned_model_only_if_it_serves_and_dominates_the_others(
    world: World,
) -> None:
    decided = world.decide()
    if decided.outcome not in (FINE_TUNE, Outcome.HYBRID):
        return
    assert decided.selected == (CANDIDATE if decided.outcome is FINE_TUNE else HYBRID)
    blocking = [entry.role for entry in world.entries if not entry.is_fine_tuned and entry.passes]
    assert all(world.relate(decided.selected, role, 1).dominates for role in (INCUMBENT, *blocking))


# Without a candidate, because there was nothing to gain, no fine-tuned model can serve.


@pytest.mark.parametrize(
    ("pairs", "entries", "selected"),
    [
        ({}, [BAG, PROBE], INCUMBENT),
        (over(BAG, incumbent=BETTER), [BAG], BAG),
        (over(BAG, incumbent=CHEAPER), [BAG], BAG),
        (over(PROBE, incumbent=BETTER), [PROBE], INCUMBENT),  # it may not replace the incumbent
        (over(HYBRID, incumbent=CHEAPER), [HYBRID], HYBRID),
        ({}, [], INCUMBENT),
    ],
)
def test_without_a_candidate_the_outcome_is_stay_and_another_model_replaces_by_the_usual_rules(
    pairs: Pairs, entries: list[str], selected: str
) -> None:
    known = ENTRIES | {HYBRID: Entry(HYBRID, may_replace=True)}  # of models without fine-tuning
    decided = decide(
        [known[role] for role in (INCUMBENT, *entries)], relate_by(pairs), protocol=PRICED
    )
    assert decided == Decision(STAY, selected)
