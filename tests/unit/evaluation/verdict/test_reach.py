"""Tests of verdicts from predictions: what is compared, and which rows, costs and parts count."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tailorbird.evaluation.gates.cost import ServingUsage, TrainingUsage
from tailorbird.evaluation.verdict.decide import Outcome
from tailorbird.evaluation.verdict.inputs import Anchor
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.evaluation.verdict.reach import reach_verdict
from tailorbird.evaluation.verdict.types import Verdict
from tailorbird.registry.test_set_ledger import RowUse
from tests.unit.evaluation.verdict.tables import (
    CASCADE,
    PRICED,
    PROTOCOL,
    N,
    cascade,
    correlated,
    decision_of,
    inputs_of,
    inputs_of_right,
    measured,
    models,
    predictions,
    protocol_for,
    right,
)

FINE_TUNE = Outcome.FINE_TUNE
STAY = Outcome.STAY
OPEN = Outcome.INSUFFICIENT_EVIDENCE
Seconds = dict[str, float]


def decided(
    protocol: TestProtocol = PROTOCOL, *, seconds: Seconds | None = None, **right_rows: Any
) -> Verdict:
    """Return the verdict on models that are right on these rows, with these costs."""
    inputs = inputs_of_right(**right_rows)
    if seconds is not None:
        inputs = measured(inputs, **seconds)
    return reach_verdict(inputs, protocol=protocol)


def answers(verdict: Verdict) -> tuple[Outcome, str]:
    return verdict.outcome, verdict.selected


def test_the_compared_models_their_scores_and_relations_are_in_the_verdict() -> None:
    further: dict[str, Any] = {"bag_of_words": right(1310), "centroid": right(1000)}
    verdict = decided(incumbent=right(1300), candidate=right(1400), **further)
    assert (*answers(verdict), verdict.blocked_by) == (FINE_TUNE, "candidate", ())
    assert [
        (model.role, model.kind, model.score, model.may_replace) for model in verdict.models
    ] == [
        ("incumbent", "probe", 0.65, False),
        ("candidate", "full", 0.7, False),
        ("bag_of_words", "bag_of_words", 0.655, True),
        ("centroid", "centroid", 0.5, True),
    ]
    assert list(verdict.model("candidate").scores) == ["accuracy", "macro_f1"]
    # Only a model that may replace the incumbent is compared with it at a part of alpha.
    levels = {(each.first, each.second): each.level for each in verdict.relations}
    assert levels["candidate", "incumbent"] == levels["candidate", "centroid"] == 0.05
    assert levels["bag_of_words", "incumbent"] == levels["centroid", "incumbent"] == 0.05 / 2
    closest = verdict.relation("candidate", "bag_of_words")
    assert closest.only_first_right == 90
    assert verdict.closest == closest
    with pytest.raises(KeyError):
        verdict.relation("candidate", "hybrid")


# Costs


def test_a_cheaper_candidate_is_chosen_if_it_is_not_inferior() -> None:
    rows: dict[str, Any] = {"incumbent": right(1300), "candidate": right(1295)}
    verdict = decided(PRICED, seconds={"candidate": 1.0}, **rows)
    assert (*answers(verdict), verdict.replaces_for_cost) == (FINE_TUNE, "candidate", True)
    assert decided(PRICED, seconds={"candidate": 9.5}, **rows).outcome is STAY
    # Without prices, nothing is chosen for its cost, but the ratio is reported.
    unpriced = decided(seconds={"candidate": 1.0}, **rows)
    assert answers(unpriced) == (STAY, "incumbent")
    assert (unpriced.cost_unit, unpriced.costs) == ("CPU-seconds", ())
    for each in (verdict, unpriced):
        ratio = each.relation("candidate", "incumbent").cost_ratio
        assert ratio == pytest.approx((0.1,) * 3)


def test_under_macro_f1_the_gain_in_right_answers_has_the_value() -> None:
    protocol = PRICED.model_copy(update={"metric": "macro_f1"})
    verdict = decided(protocol, seconds={}, incumbent=right(1300), candidate=right(1400))
    relation = verdict.relation("candidate", "incumbent")
    [bound] = [bound for gate in verdict.gates if gate.name == "cost" for bound in gate.bounds]
    assert relation.gain < 0.04
    assert bound.estimate == relation.net == pytest.approx(0.25)


def test_a_cheaper_model_must_not_be_inferior_to_the_anchor() -> None:
    inputs = measured(inputs_of_right(incumbent=right(1300), candidate=right(1297)), candidate=1.0)
    equal, better = (predictions("lora", right(count)) for count in (1300, 1330))
    for anchor in (Anchor(equal), Anchor(better), Anchor(None, "it has other classes")):
        verdict = reach_verdict(replace(inputs, anchor=anchor), protocol=PRICED)
        is_anchored = anchor.predictions is equal
        expected = (FINE_TUNE, "candidate") if is_anchored else (OPEN, "incumbent")
        assert answers(verdict) == expected
        # The power counts the anchor, too: a candidate that gains 1 point is also chosen for its
        # cost, or it is not.
        assert verdict.power is not None
        assert (verdict.power.at_minimum_gain > 0.9) == is_anchored
    proven = measured(inputs_of_right(incumbent=right(1300), candidate=right(1360)), candidate=1.0)
    assert reach_verdict(replace(proven, anchor=anchor), protocol=PRICED).outcome is FINE_TUNE


def test_a_further_look_has_its_share_of_alpha() -> None:
    inputs = inputs_of_right(incumbent=right(1300), candidate=right(1306))
    look = RowUse(number=2, num_rows=N, num_seen=N, alpha_share=1 / 6)
    verdict = reach_verdict(replace(inputs, look=look), protocol=PROTOCOL)
    alone = reach_verdict(inputs, protocol=protocol_for(N, alpha=0.05 / 6))
    assert verdict.alpha == pytest.approx(0.05 / 6)
    assert verdict.relations == alone.relations


# Hybrids


def test_a_hybrid_without_a_fine_tuned_part_is_a_contender_like_any_other() -> None:
    inputs = replace(cascade(), training=TrainingUsage(cpu_s=3600.0))
    verdict = reach_verdict(inputs, protocol=CASCADE)
    assert (*answers(verdict), verdict.replaces_for_cost) == (STAY, "hybrid", True)
    assert verdict.model("hybrid").may_replace
    assert "hybrid" in verdict.blocked_by
    hybrid = verdict.hybrid
    assert hybrid is not None
    assert (hybrid.first, hybrid.second, hybrid.share_to_second) == ("nearest", "incumbent", 0.5)
    relation = verdict.relation("hybrid", "incumbent")
    assert relation.level == 0.05 / 2  # the nearest rows may replace it, too
    # The cheap part answers all rows, the other one half of them. The training is not the hybrid's.
    assert (relation.cost_ratio or (0.0,))[0] == pytest.approx(0.6)
    trainings = {cost.role: cost.training for cost in verdict.costs}
    expected = {"incumbent": 0, "candidate": pytest.approx(3.6), "hybrid": 0, "nearest": 0}
    assert trainings == expected


# Properties of all verdicts


def test_a_candidate_equal_to_a_baseline_that_beats_the_champion_is_seldom_chosen() -> None:
    generator = np.random.default_rng(5)
    accuracies = {"incumbent": 0.74, "candidate": 0.77, "bag_of_words": 0.77}
    outcomes = []
    for _ in range(60):
        inputs = inputs_of_right(**correlated(generator, N, **accuracies))
        outcomes.append(decision_of(inputs, protocol=PROTOCOL).outcome)
    # At a rate of 0.028, more than 7 of 60 have a probability below 1 in 3,000.
    assert outcomes.count(FINE_TUNE) <= 7


def test_a_gain_of_exactly_the_minimum_is_enough() -> None:
    for n, minimum in [(2150, 0.02), (3000, 0.01), (700, 0.03), (10_000, 0.07)]:
        gained = round(n * minimum)
        inputs = inputs_of(*models(n - gained - 10, gained, 0, 10))
        protocol = protocol_for(n, minimum_gain=minimum)
        assert decision_of(inputs, protocol=protocol).outcome is FINE_TUNE


# Without a candidate


@pytest.mark.parametrize(
    ("protocol", "seconds", "bag", "cheaper"),
    [
        (PROTOCOL, 1.0, 1399, "bag_of_words"),
        (PROTOCOL, 9.5, 1399, None),  # it costs about as much
        (PROTOCOL, 1.0, 1370, None),  # it may lose more than the margin
    ],
)
def test_a_cheaper_model_is_compared_with_the_selected_one(
    protocol: TestProtocol, seconds: float, bag: int, cheaper: str | None
) -> None:
    """Without prices, it is named; with prices, it is selected."""
    rows: dict[str, Any] = {"incumbent": right(1300), "candidate": right(0), "probe": right(1400)}
    verdict = decided(protocol, seconds={"bag_of_words": seconds}, **rows, bag_of_words=right(bag))
    assert verdict.selected == ("probe" if protocol is PROTOCOL else "bag_of_words")
    assert (verdict.cheaper.first if verdict.cheaper else None) == cheaper


def test_each_model_has_its_total_and_its_parts() -> None:
    inputs = measured(
        inputs_of_right(incumbent=right(1300), candidate=right(1400)), candidate=400.0
    )
    rounds = ServingUsage((500.0, 510.0, 490.0, 500.0, 500.0))
    costs = {**(inputs.costs or {}), "incumbent": rounds}
    training = TrainingUsage(cpu_s=3600.0)
    verdict = reach_verdict(replace(inputs, costs=costs, training=training), protocol=PRICED)
    # 10,000 rows at 0.001 a CPU-second; an hour of training, for the candidate only.
    incumbent, candidate = verdict.costs
    assert (incumbent.role, candidate.role) == ("incumbent", "candidate")
    assert incumbent.total == pytest.approx(5.0)
    half = 2.7764 * 0.0707107 / 5**0.5
    assert incumbent.interval == pytest.approx((5.0 - half, 5.0 + half), rel=1e-4)
    parts = (candidate.replicas, candidate.tokens, candidate.training)
    assert parts == pytest.approx((4.0, 0.0, 3.6))
    assert (candidate.total, *(candidate.interval or ())) == pytest.approx((7.6,) * 3)
