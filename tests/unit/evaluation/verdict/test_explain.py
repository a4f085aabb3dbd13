"""Tests of the sentences that explain a verdict."""

from dataclasses import replace

from tailorbird.evaluation.gates.base import Bound, Gate, State
from tailorbird.evaluation.verdict.decide import decide
from tailorbird.evaluation.verdict.explain import open_gates
from tailorbird.evaluation.verdict.types import Verdict
from tailorbird.registry.routing import Routing
from tests.unit.evaluation.simulated import Simulation, inputs_of_tables, on_cpu, protocol_of, tables_of
from tests.unit.evaluation.verdict.test_decide import inputs_of, models_in_documents, protocol_for

OPEN = State.NOT_ASSESSABLE
CHEAP = on_cpu({"incumbent": (10.0, 10.2, 9.9, 10.1, 10.0), "candidate": (5.0, 5.1, 5.0, 4.9, 5.0)})


def cheaper_in_documents(num_documents: int, *, size: int) -> Verdict:
    inputs = replace(inputs_of(*models_in_documents(num_documents, size=size)), costs=CHEAP)
    return decide(inputs, protocol=protocol_for(num_documents * size))


def test_each_group_that_cannot_be_assessed_is_named_with_the_rows_needed() -> None:
    bounds = (
        Bound("change for sex = female", -0.01, (-0.05, 0.03), -0.03, 200, OPEN, 1300),
        Bound("change for sex = male", 0.02, (-0.01, 0.05), -0.03, 900, State.PASSES),
        Bound("change for sex = unstated", -0.02, (-0.2, 0.16), -0.03, 20, OPEN, 5000),
    )
    [reason] = open_gates((Gate("groups", OPEN, bounds),), regulated=True)
    assert reason == (
        "the groups gate does not rule out a loss in these groups, but a regulated recipe requires it to pass: "
        "sex = female (n = 200, about 1,300 needed if nothing changed), sex = unstated (n = 20, about 5,000 needed if "
        "nothing changed)"
    )


def test_a_gate_without_bounds_is_explained_by_its_note() -> None:
    [reason] = open_gates((Gate("cost", OPEN, (), "the serving cost is not measured"),))
    assert reason == ("the cost gate cannot be assessed on these rows: the serving cost is not measured")


def test_a_hybrid_that_holds_is_not_chosen_if_a_contender_is_better_and_the_reason_says_so() -> None:
    simulation = Simulation(
        num_rows=4000,
        candidate=0.86,
        by_group={"female": 0.55},
        contenders={"bag_of_words": 0.93, "centroid": 0.6},
        evaluation={"hybrid": {"by": "group", "column": "sex"}},
        routing=Routing("group", "sex", ("male", "unstated"), None),
    )
    verdict = decide(inputs_of_tables(simulation, tables_of(simulation)), protocol=protocol_of(simulation))
    assert verdict.hybrid is not None
    assert verdict.hybrid.holds
    assert (verdict.winner, verdict.rule) == ("bag_of_words", 5)
    assert any("is also better than the hybrid" in reason for reason in verdict.reasons)
    assert "bag_of_words is one of 4 contenders that these rows compare" in verdict.reasons[1]


def test_a_cheaper_candidate_that_may_have_rare_losses_stays_with_a_reason() -> None:
    verdict = cheaper_in_documents(60, size=20)
    assert verdict.rule == 9
    assert verdict.interval[0] > -0.01
    [reason] = [reason for reason in verdict.reasons if "may be inferior" in reason]
    assert "starts at -6.05 points if rare large losses are considered" in reason
    assert reason.endswith("not above the limit of -1.00")


def test_the_reason_for_a_cheaper_candidate_over_documents_has_the_tested_value() -> None:
    verdict = cheaper_in_documents(500, size=4)
    assert verdict.rule == 7
    assert verdict.interval[0] > -0.005
    assert "the interval of the gain starts at -0.79 points if rare large losses are considered" in verdict.reasons[1]
    assert verdict.reasons[1].endswith("above the limit of -1.00")
