"""The verdict on a cascade, whose parts need not be members of the family."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tailorbird.config.evaluation import HybridConfig
from tailorbird.evaluation.gates.cost import ServingUsage
from tailorbird.evaluation.hybrid import FrozenHybrid
from tailorbird.evaluation.predictions import ModelPredictions, Predictions
from tailorbird.evaluation.verdict.assess import assess
from tailorbird.evaluation.verdict.decide import decide
from tailorbird.evaluation.verdict.inputs import VerdictInputs
from tailorbird.evaluation.verdict.protocol import NO_GATES, TestProtocol
from tailorbird.evaluation.verdict.rules import Outcome
from tailorbird.registry.routing import Routing

N = 1000
ROW = np.arange(N)
SURE = np.where(ROW % 2 == 0, 0.9, 0.1)  # confidence of the cheap part
RIGHT = ROW % 10 < 7  # rows on which the incumbent is right
CHEAP = RIGHT & (SURE > 0.5)  # as good as the incumbent where it is confident, always wrong elsewhere
PROTOCOL = TestProtocol(
    metric="accuracy", minimum_gain=0.01, expected_gain=0.03, non_inferiority_margin=0.01, alpha=0.05,
    test_sha256="simulated", num_test_rows=N, gates=NO_GATES, hybrid=HybridConfig(by="cascade"),
)  # fmt: skip
FROZEN = FrozenHybrid(
    Routing(by="cascade", threshold=0.5), "nearest", "incumbent", "incumbent", validation=0.7, share_to_second=0.5
)


def usage(seconds: float) -> ServingUsage:
    return ServingUsage(tuple(seconds * (1 + 0.01 * number) for number in range(5)))


COSTS = {"incumbent": usage(10), "candidate": usage(10), "bag_of_words": usage(1), "nearest": usage(1)}


def table(kind: str, right: NDArray[np.bool_]) -> ModelPredictions:
    ids = tuple(map(str, range(N)))
    outputs = tuple(np.where(right, "yes", "no").tolist())
    return ModelPredictions(Predictions(kind, ids, ("yes",) * N, outputs, right.astype(np.float64), SURE, SURE))


def inputs_of(
    *, candidate: NDArray[np.bool_] = RIGHT, cheap: NDArray[np.bool_] = CHEAP, measured: bool = True
) -> VerdictInputs:
    return VerdictInputs(
        table("zero_shot", RIGHT),
        table("full", candidate),
        "simulated",
        contenders={"bag_of_words": table("bag_of_words", ROW % 10 < 3)},
        hybrid=FROZEN,
        hybrid_parts={"nearest": table("nearest", cheap)},
        costs=COSTS if measured else None,
    )


def test_a_cascade_that_is_as_good_and_cheaper_is_the_outcome_and_its_parts_are_named() -> None:
    verdict = decide(inputs_of(), protocol=PROTOCOL)
    assert (verdict.outcome, verdict.rule, verdict.winner) == (Outcome.HYBRID, 3, "hybrid")
    hybrid = verdict.hybrid
    assert hybrid is not None
    assert [(part.role, part.kind, part.score) for part in hybrid.parts] == [
        ("nearest", "nearest", 0.4),
        ("incumbent", "zero_shot", 0.7),
    ]
    assert (hybrid.share_to_second, hybrid.validation_share_to_second, hybrid.gain) == (0.5, 0.5, 0.0)
    assert hybrid.cost_ratio is not None
    assert hybrid.cost_ratio[0] == pytest.approx(0.6)  # the cheap part answers all rows, the other one half of them
    assert verdict.hybrid_power == 1.0
    assert verdict.sentence().startswith("Use the answer of the nearest training row and the pretrained model together")
    assert "non-inferior to the incumbent and the contender nearest" in verdict.reasons[0]
    assert "the incumbent answers 50% of the test rows" in verdict.reasons
    assert verdict.family_size == 3  # `nearest` alone is not tested


def test_a_cascade_is_not_chosen_without_a_measured_cost_or_a_gain() -> None:
    assessment = assess(inputs_of(measured=False), protocol=PROTOCOL)
    assert (assessment.rule, assessment.facts.hybrid_holds) == (9, False)


def test_a_cascade_that_is_better_than_the_incumbent_and_its_parts_needs_no_lower_cost() -> None:
    better = CHEAP | ((SURE > 0.5) & (ROW % 20 < 10))
    assessment = assess(inputs_of(cheap=better, measured=False), protocol=PROTOCOL)
    assert assessment.rule == 3


def test_a_cascade_that_loses_where_its_cheap_part_answers_is_not_chosen() -> None:
    worse = CHEAP & (ROW % 100 != 4)
    assessment = assess(inputs_of(cheap=worse), protocol=PROTOCOL)
    assert assessment.hybrid is not None
    assert assessment.hybrid.lowest <= -PROTOCOL.non_inferiority_margin
    assert assessment.rule == 9
    reasons = decide(inputs_of(cheap=worse), protocol=PROTOCOL).reasons
    assert any("may be inferior to the incumbent or to one of its parts" in reason for reason in reasons)


@pytest.mark.parametrize(("size", "rule", "start"), [(2, 3, "-0.94"), (8, 8, "-3.11")])
def test_the_reason_for_a_cascade_over_documents_has_the_tested_value(size: int, rule: int, start: str) -> None:
    documents = tuple(str(row // size) for row in range(N))

    def clustered(model: ModelPredictions) -> ModelPredictions:
        return replace(model, clean=replace(model.clean, clusters=documents))

    inputs = inputs_of(cheap=CHEAP & (ROW % 500 != 4))  # two rows are lost, in different documents
    inputs = replace(
        inputs,
        incumbent=clustered(inputs.incumbent),
        candidate=clustered(inputs.candidate),
        contenders={role: clustered(model) for role, model in inputs.contenders.items()},
        hybrid_parts={role: clustered(model) for role, model in inputs.hybrid_parts.items()},
    )
    verdict = decide(inputs, protocol=PROTOCOL)
    assert verdict.rule == rule
    assert verdict.hybrid is not None
    assert verdict.hybrid.lowest > -PROTOCOL.non_inferiority_margin
    [reason] = [reason for reason in verdict.reasons if "inferior to the incumbent" in reason]
    assert f"at {start} points if rare large losses are considered" in reason


def test_a_cascade_is_not_chosen_if_a_candidate_that_is_no_part_is_proven_better() -> None:
    candidate = ROW % 10 < 8
    assessment = assess(inputs_of(candidate=candidate), protocol=PROTOCOL)
    assert (assessment.rule, assessment.facts.hybrid_holds) == (4, False)
    assert assessment.hybrid is not None
    assert assessment.hybrid.holds  # alone, it meets the conditions of rule 3
    of_candidate = replace(FROZEN, second="candidate", best_part="candidate")
    as_part = replace(inputs_of(candidate=candidate, cheap=candidate & CHEAP), hybrid=of_candidate)
    assert assess(as_part, protocol=PROTOCOL).rule == 3  # as good as the candidate, which is a part, and cheaper


def test_the_predictions_of_a_part_must_be_those_of_the_test_rows() -> None:
    inputs = inputs_of()
    nearest = inputs.hybrid_parts["nearest"]
    swapped = replace(nearest.clean, row_ids=nearest.clean.row_ids[::-1])
    with pytest.raises(ValueError, match="differ in their row ids"):
        decide(replace(inputs, hybrid_parts={"nearest": ModelPredictions(swapped)}), protocol=PROTOCOL)
