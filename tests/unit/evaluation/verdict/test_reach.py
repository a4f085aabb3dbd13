"""Tests of verdicts from predictions: what is compared, and which rows, costs and parts count."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.evaluation.gates.cost import TrainingUsage
from tailorbird.evaluation.verdict import power
from tailorbird.evaluation.verdict.decide import Outcome
from tailorbird.evaluation.verdict.inputs import Anchor
from tailorbird.evaluation.verdict.reach import reach_verdict
from tailorbird.evaluation.verdict.types import Verdict
from tailorbird.registry.test_set_ledger import RowUse
from tests.unit.evaluation.simulated import on_cpu
from tests.unit.evaluation.verdict.tables import (
    CASCADE,
    CHEAP,
    FROZEN,
    HEADROOM,
    PRICED,
    PROTOCOL,
    ROW,
    SURE,
    N,
    cascade,
    decision_of,
    inputs_of,
    inputs_of_right,
    measured,
    models,
    predictions,
    protocol_for,
    right,
    without_candidate,
)


def verdict_of(*table: int, **changes: object) -> Verdict:
    return reach_verdict(inputs_of(*models(*table)), protocol=protocol_for(sum(table), **changes))


@contextmanager
def few_simulated_tests() -> Iterator[None]:
    """Compute the power, which no decision reads, from few simulated tests."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(power, "NUM_TESTS", 20)
        patched.setattr(power, "MAX_ROWS", 10_000)
        yield


def test_the_compared_models_their_scores_and_relations_are_in_the_verdict() -> None:
    verdict = reach_verdict(
        inputs_of_right(
            incumbent=right(1300),
            candidate=right(1400),
            bag_of_words=right(1310),
            centroid=right(1000),
        ),
        protocol=PROTOCOL,
    )
    assert (verdict.outcome, verdict.selected, verdict.blocked_by) == (
        Outcome.FINE_TUNE,
        "candidate",
        (),
    )
    assert [(model.role, model.kind, model.score) for model in verdict.models] == [
        ("incumbent", "probe", 0.65),
        ("candidate", "full", 0.7),
        ("bag_of_words", "bag_of_words", 0.655),
        ("centroid", "centroid", 0.5),
    ]
    assert [model.may_replace for model in verdict.models] == [False, False, True, True]
    assert list(verdict.model("candidate").scores) == ["accuracy", "macro_f1"]
    pairs = {(relation.first, relation.second): relation for relation in verdict.relations}
    assert pairs.keys() >= {
        ("candidate", other) for other in ("incumbent", "bag_of_words", "centroid")
    }
    # Only a model that may replace the incumbent is compared with it at a part of alpha.
    assert pairs["candidate", "incumbent"].level == 0.05
    assert (
        pairs["bag_of_words", "incumbent"].level == pairs["centroid", "incumbent"].level == 0.05 / 2
    )
    assert pairs["candidate", "bag_of_words"].only_first_right == 90
    assert verdict.closest == pairs["candidate", "bag_of_words"]
    assert verdict.numbers() == (
        "FINE_TUNE: candidate minus bag_of_words +4.50 points (95% interval +3.59 to +5.42, n = "
        "2,000)"
    )


def test_a_retrained_baseline_that_is_as_good_as_the_candidate_replaces_the_champion() -> None:
    inputs = inputs_of_right(incumbent=right(1480), candidate=right(1540), bag_of_words=right(1540))
    verdict = reach_verdict(inputs, protocol=PROTOCOL)
    assert (verdict.outcome, verdict.selected, verdict.blocked_by) == (
        Outcome.STAY,
        "bag_of_words",
        ("bag_of_words",),
    )
    assert not verdict.replaces_for_cost
    blocks_only = reach_verdict(replace(inputs, replacing=()), protocol=PROTOCOL)
    assert (blocks_only.outcome, blocks_only.selected) == (Outcome.STAY, "candidate")


def test_a_gate_that_fails_for_a_contender_removes_it_from_the_decision() -> None:
    inputs = inputs_of_right(
        incumbent=right(1300), candidate=right(1400), endpoint_zero_shot=right(1500)
    )
    priced = measured(inputs, endpoint_zero_shot=1000.0)
    verdict = reach_verdict(priced, protocol=PRICED)
    assert [model.passes for model in verdict.models] == [True, True, False]
    assert (verdict.outcome, verdict.selected) == (Outcome.FINE_TUNE, "candidate")
    assert reach_verdict(inputs, protocol=PROTOCOL).blocked_by == ("endpoint_zero_shot",)


# Costs


def test_a_cheaper_candidate_is_chosen_if_it_is_not_inferior() -> None:
    inputs = inputs_of_right(incumbent=right(1300), candidate=right(1295))
    verdict = reach_verdict(measured(inputs, candidate=1.0), protocol=PRICED)
    assert (verdict.outcome, verdict.selected, verdict.replaces_for_cost) == (
        Outcome.FINE_TUNE,
        "candidate",
        True,
    )
    assert verdict.relation("candidate", "incumbent").cost_ratio == pytest.approx((0.1,) * 3)
    assert reach_verdict(measured(inputs, candidate=9.5), protocol=PRICED).outcome is Outcome.STAY
    # Without prices, nothing is chosen for its cost, but the ratio is reported.
    unpriced = reach_verdict(measured(inputs, candidate=1.0), protocol=PROTOCOL)
    assert (unpriced.outcome, unpriced.selected) == (Outcome.STAY, "incumbent")
    assert unpriced.relation("candidate", "incumbent").cost_ratio == pytest.approx((0.1,) * 3)
    assert (unpriced.cost_unit, unpriced.costs) == ("CPU-seconds", ())


def test_the_training_of_the_candidate_counts_in_its_yearly_net() -> None:
    inputs = measured(inputs_of_right(incumbent=right(1300), candidate=right(1400)))
    # A gain of 5 points is worth 0.25, with an interval of 0.2 to 0.3. A CPU-second costs 0.001.
    outcomes = {240: Outcome.FINE_TUNE, 260: Outcome.INSUFFICIENT_EVIDENCE, 400: Outcome.STAY}
    for seconds, outcome in outcomes.items():
        verdict = reach_verdict(
            replace(inputs, training=TrainingUsage(cpu_s=seconds)), protocol=PRICED
        )
        assert verdict.outcome is outcome
        assert verdict.relation("candidate", "incumbent").net == pytest.approx(
            0.25 - 0.001 * seconds
        )


def test_under_macro_f1_the_gain_in_right_answers_has_the_value() -> None:
    inputs = measured(inputs_of_right(incumbent=right(1300), candidate=right(1400)))
    verdict = reach_verdict(inputs, protocol=PRICED.model_copy(update={"metric": "macro_f1"}))
    relation = verdict.relation("candidate", "incumbent")
    [bound] = [bound for gate in verdict.gates if gate.name == "cost" for bound in gate.bounds]
    assert relation.gain < 0.04
    assert relation.net == pytest.approx(0.25)
    assert bound.estimate == relation.net


def test_the_cost_ratio_has_the_level_of_the_protocol() -> None:
    costs = on_cpu(
        {"incumbent": (10.0, 10.2, 9.9, 10.1, 10.0), "candidate": (8.0, 8.3, 7.9, 8.1, 8.2)}
    )
    inputs = replace(inputs_of(*models(50, 20, 10, 20)), costs=costs)
    ratios = []
    for alpha in (0.05, 0.01):
        relation = reach_verdict(inputs, protocol=protocol_for(100, alpha=alpha)).relation(
            "candidate", "incumbent"
        )
        assert relation.cost_ratio is not None
        ratios.append(relation.cost_ratio)
    assert ratios[0][0] == ratios[1][0]
    assert ratios[0][2] < ratios[1][2]


def test_a_cheaper_model_must_not_be_inferior_to_the_anchor() -> None:
    inputs = measured(inputs_of_right(incumbent=right(1300), candidate=right(1297)), candidate=1.0)
    equal, better = (predictions("lora", right(count)) for count in (1300, 1330))
    for anchor, outcome in (
        (Anchor(equal), Outcome.FINE_TUNE),
        (Anchor(better), Outcome.INSUFFICIENT_EVIDENCE),
        (Anchor(None, "it has other classes"), Outcome.INSUFFICIENT_EVIDENCE),
    ):
        verdict = reach_verdict(replace(inputs, anchor=anchor), protocol=PRICED)
        assert verdict.outcome is outcome
        assert verdict.selected == ("candidate" if outcome is Outcome.FINE_TUNE else "incumbent")
        # The power counts the anchor, too: a candidate that gains 1 point is also chosen for its
        # cost, or it is not.
        assert verdict.power is not None
        assert (verdict.power.at_minimum_gain > 0.9) == (anchor.predictions is equal)
    proven = measured(inputs_of_right(incumbent=right(1300), candidate=right(1360)), candidate=1.0)
    assert (
        reach_verdict(replace(proven, anchor=anchor), protocol=PRICED).outcome is Outcome.FINE_TUNE
    )


# Rows


def test_a_further_look_has_its_share_of_alpha() -> None:
    inputs = inputs_of_right(incumbent=right(1300), candidate=right(1306))
    first = reach_verdict(inputs, protocol=PROTOCOL)
    later = reach_verdict(
        replace(inputs, look=RowUse(number=2, num_rows=N, num_seen=N, alpha_share=1 / 6)),
        protocol=PROTOCOL,
    )
    assert later.alpha == pytest.approx(first.alpha / 6)
    assert (
        later.relation("candidate", "incumbent").interval[0]
        < first.relation("candidate", "incumbent").interval[0]
    )


# Hybrids


def test_a_hybrid_without_a_fine_tuned_part_is_a_contender_like_any_other() -> None:
    verdict = reach_verdict(cascade(), protocol=CASCADE)
    assert (verdict.outcome, verdict.selected, verdict.replaces_for_cost) == (
        Outcome.STAY,
        "hybrid",
        True,
    )
    assert verdict.model("hybrid").may_replace
    assert (
        verdict.relation("hybrid", "incumbent").level == 0.05 / 2
    )  # the nearest rows may replace it, too
    assert "hybrid" in verdict.blocked_by
    hybrid = verdict.hybrid
    assert hybrid is not None
    assert (hybrid.first, hybrid.second, hybrid.share_to_second) == ("nearest", "incumbent", 0.5)
    # The cheap part answers all rows, the other one half of them. The training is not the hybrid's.
    ratio = verdict.relation("hybrid", "incumbent").cost_ratio
    assert ratio is not None
    assert ratio[0] == pytest.approx(0.6)
    trained = replace(cascade(), training=TrainingUsage(cpu_s=3600.0))
    costs = {cost.role: cost.training for cost in reach_verdict(trained, protocol=CASCADE).costs}
    assert costs == {"incumbent": 0, "candidate": pytest.approx(3.6), "hybrid": 0, "nearest": 0}


def test_a_hybrid_with_the_candidate_is_chosen_if_it_dominates_the_candidate_too() -> None:
    frozen = replace(FROZEN, second="candidate")
    candidate = ROW % 10 < 8
    inputs = cascade(candidate=candidate, cheap=candidate & (SURE > 0.5), frozen=frozen)
    verdict = reach_verdict(inputs, protocol=CASCADE)
    assert (verdict.outcome, verdict.selected) == (Outcome.HYBRID, "hybrid")
    assert {relation.first for relation in verdict.required} == {"hybrid"}
    # Without prices, it is only as good as the candidate.
    unpriced = CASCADE.model_copy(update={"cost": None})
    assert reach_verdict(inputs, protocol=unpriced).outcome is Outcome.FINE_TUNE


def test_an_equal_hybrid_that_costs_more_than_the_incumbent_is_not_chosen() -> None:
    frozen = replace(FROZEN, first="incumbent", second="candidate")
    inputs = measured(replace(cascade(), hybrid=frozen), incumbent=1.0, candidate=100.0)
    verdict = reach_verdict(inputs, protocol=CASCADE)
    assert verdict.relation("hybrid", "candidate").is_cheaper
    assert (verdict.outcome, verdict.selected) == (Outcome.STAY, "incumbent")


@pytest.mark.parametrize(
    ("size", "selected", "lowest"), [(2, "hybrid", -0.0054), (8, "incumbent", -0.0184)]
)
def test_few_documents_do_not_exclude_rare_losses_of_a_cheaper_hybrid(
    size: int, selected: str, lowest: float
) -> None:
    inputs = cascade(cheap=CHEAP & (ROW % 1000 != 4))  # two rows are lost, in different documents
    documents = tuple(str(row // size) for row in ROW)
    clustered = {
        role: replace(model, clean=replace(model.clean, clusters=documents))
        for role, model in inputs.models.items()
    }
    verdict = reach_verdict(replace(inputs, models=clustered), protocol=CASCADE)
    assert verdict.num_units == N / size
    relation = verdict.relation("hybrid", "incumbent")
    assert relation.interval[0] > -0.01
    assert relation.lowest == pytest.approx(lowest, abs=1e-4)
    assert verdict.selected == selected


# Properties of all verdicts

counts = st.tuples(*[st.integers(0, 60)] * 4).filter(any)


@few_simulated_tests()
@given(counts, st.sampled_from([0.0, 0.01, 0.1]), st.randoms())
def test_every_valid_input_gets_a_consistent_verdict_in_any_row_order(
    table: tuple[int, int, int, int], minimum_gain: float, random: "np.random.Generator"
) -> None:
    n = sum(table)
    protocol = protocol_for(n, minimum_gain=minimum_gain, expected_gain=2 * minimum_gain)
    incumbent, candidate = models(*table)
    verdict = reach_verdict(inputs_of(incumbent, candidate), protocol=protocol)
    relation = verdict.relation("candidate", "incumbent")
    low, high = relation.interval
    assert low <= relation.gain <= high
    assert relation.is_better == (low > 0 and relation.gain >= minimum_gain)
    expected = Outcome.STAY if high < minimum_gain else Outcome.INSUFFICIENT_EVIDENCE
    assert verdict.outcome is (Outcome.FINE_TUNE if relation.is_better else expected)
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict

    order = list(range(n))
    random.shuffle(order)
    shuffled = reach_verdict(
        inputs_of(incumbent.take(order), candidate.take(order)), protocol=protocol
    )
    # Power changes the candidate on random rows, so it depends slightly on the order of the rows.
    same = {"power": verdict.power, "sentences": verdict.sentences}
    assert shuffled.model_copy(update=same) == verdict

    swapped = reach_verdict(inputs_of(candidate, incumbent), protocol=protocol).relation(
        "candidate", "incumbent"
    )
    assert swapped.gain == -relation.gain
    assert swapped.interval == pytest.approx((-high, -low), abs=1e-12)
    assert not (swapped.is_better and relation.is_better)


def test_equal_models_lead_to_fine_tune_at_a_rate_of_at_most_alpha() -> None:
    generator = np.random.default_rng(11)
    outcomes = []
    for _ in range(80):
        cells = generator.multinomial(400, [0.6, 0.08, 0.08, 0.24])
        tables = models(*(int(count) for count in cells))
        outcomes.append(decision_of(inputs_of(*tables), protocol=protocol_for(400)).outcome)
    # At a rate of alpha / 2 = 0.025, more than 8 of 80 have a probability of 1 in 5,000.
    assert outcomes.count(Outcome.FINE_TUNE) <= 8


def test_a_candidate_equal_to_a_baseline_that_beats_the_champion_is_seldom_chosen() -> None:
    generator = np.random.default_rng(5)
    chosen = 0
    for _ in range(60):
        shared = generator.random(N)
        right_of = {}
        for role, accuracy in (("incumbent", 0.74), ("candidate", 0.77), ("bag_of_words", 0.77)):
            own = generator.random(N)
            right_of[role] = np.where(generator.random(N) < 0.8, shared, own) < accuracy
        chosen += (
            decision_of(inputs_of_right(**right_of), protocol=PROTOCOL).outcome is Outcome.FINE_TUNE
        )
    # At a rate of 0.028, more than 7 of 60 have a probability below 1 in 3,000.
    assert chosen <= 7


def test_a_gain_of_exactly_the_minimum_is_enough() -> None:
    for n, minimum in [(2150, 0.02), (3000, 0.01), (700, 0.03), (10_000, 0.07)]:
        tables = models(n - round(n * minimum) - 10, round(n * minimum), 0, 10)
        decided = decision_of(inputs_of(*tables), protocol=protocol_for(n, minimum_gain=minimum))
        assert decided.outcome is Outcome.FINE_TUNE


# Records


def test_a_verdict_needs_rows_sentences_and_a_selected_model_that_was_compared() -> None:
    verdict = verdict_of(1300, 290, 120, 441)
    for change in ({"n": 0}, {"sentences": ()}, {"selected": "hybrid"}):
        with pytest.raises(
            ValueError, match="selects one of incumbent, candidate, and has at least one row"
        ):
            Verdict.model_validate(dict(verdict) | change)
    with pytest.raises(KeyError, match="candidate was not compared with hybrid"):
        verdict.relation("candidate", "hybrid")


def test_without_a_candidate_the_verdict_is_stay_with_the_headroom_and_without_power() -> None:
    inputs = without_candidate(
        inputs_of_right(incumbent=right(1990), candidate=right(1990), probe=right(1980))
    )
    verdict = reach_verdict(inputs, protocol=PROTOCOL)
    assert (verdict.outcome, verdict.selected, verdict.blocked_by) == (
        Outcome.STAY,
        "incumbent",
        (),
    )
    assert [model.role for model in verdict.models] == ["incumbent", "probe"]
    assert (verdict.candidate, verdict.gates, verdict.power, verdict.headroom) == (
        None,
        (),
        None,
        HEADROOM,
    )
    assert verdict.closest == verdict.relation("probe", "incumbent")
    assert verdict.numbers().startswith("STAY: probe minus incumbent -0.50 points")
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


def test_without_a_candidate_a_better_model_or_a_cheaper_one_with_prices_replaces_the_incumbent() -> (
    None
):
    better = without_candidate(
        inputs_of_right(incumbent=right(1900), candidate=right(0), probe=right(1960))
    )
    cheaper = measured(
        without_candidate(
            inputs_of_right(incumbent=right(1990), candidate=right(0), probe=right(1989))
        ),
        probe=1.0,
    )
    for inputs, protocol, selected in (
        (better, PROTOCOL, "probe"),
        (cheaper, PRICED, "probe"),
        (cheaper, PROTOCOL, ""),
    ):
        verdict = reach_verdict(inputs, protocol=protocol)
        assert (verdict.outcome, verdict.selected) == (Outcome.STAY, selected or "incumbent")


def test_a_cheaper_model_is_compared_with_the_selected_one() -> None:
    """Without prices, it is named; with prices, it is selected."""
    inputs = inputs_of_right(
        incumbent=right(1300), candidate=right(0), probe=right(1400), bag_of_words=right(1399)
    )
    for protocol, least in ((PROTOCOL, "bag_of_words"), (PRICED, None)):
        verdict = reach_verdict(measured(inputs, bag_of_words=1.0), protocol=protocol)
        assert verdict.selected == ("probe" if protocol is PROTOCOL else "bag_of_words")
        assert (verdict.cheaper.first if verdict.cheaper else None) == least
    # A model that costs about as much, or that may lose more than the margin, is not named.
    for seconds, count in ((9.5, 1399), (1.0, 1370)):
        changed = inputs_of_right(
            incumbent=right(1300), candidate=right(0), probe=right(1400), bag_of_words=right(count)
        )
        assert (
            reach_verdict(measured(changed, bag_of_words=seconds), protocol=PROTOCOL).cheaper
            is None
        )
