"""Tests of the sentences that explain a verdict, in every state that they describe."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tailorbird.config.evaluation import CalibrationGateConfig
from tailorbird.evaluation.gates.base import State
from tailorbird.evaluation.gates.cost import ServingUsage, Tokens, TrainingUsage
from tailorbird.evaluation.verdict.decide import Outcome
from tailorbird.evaluation.verdict.formatting import points
from tailorbird.evaluation.verdict.inputs import Anchor, TrainedRows, VerdictInputs
from tailorbird.evaluation.verdict.protocol import NO_GATES, TestProtocol
from tailorbird.evaluation.verdict.reach import reach_verdict
from tailorbird.registry.test_set_ledger import RowUse
from tests.unit.evaluation.simulated import Simulation, inputs_of_tables, protocol_of, tables_of
from tests.unit.evaluation.verdict.tables import (
    CASCADE,
    FROZEN,
    PRICED,
    PROTOCOL,
    ROW,
    SURE,
    cascade,
    inputs_of,
    inputs_of_right,
    measured,
    models,
    models_in_documents,
    predictions,
    protocol_for,
    right,
    without_candidate,
)

Case = tuple[VerdictInputs, TestProtocol]
BETTER = inputs_of_right(incumbent=right(1300), candidate=right(1400))
BLOCKED = inputs_of_right(
    incumbent=right(1480), candidate=right(1540), bag_of_words=right(1540), centroid=right(900)
)
TWO_OPPONENTS = inputs_of_right(
    incumbent=right(1300), candidate=right(1302), centroid=right(1610) & ~right(300)
)
CHEAPER = measured(inputs_of_right(incumbent=right(1300), candidate=right(1297)), candidate=1.0)
EQUAL = measured(
    inputs_of_right(incumbent=right(1300), candidate=right(1300), centroid=right(1299)),
    centroid=1.0,
)
CALIBRATED = NO_GATES.model_copy(update={"calibration": CalibrationGateConfig(max_ece=0.05)})
PART = replace(FROZEN, second="candidate")
GOOD = ROW % 10 < 8
SECOND = RowUse(number=2, num_rows=2151, num_seen=900, alpha_share=0.5)
TRAINED = TrainedRows({"incumbent": tuple("123"), "candidate": None})


def sentences_of(inputs: VerdictInputs, protocol: TestProtocol) -> tuple[str, ...]:
    return reach_verdict(inputs, protocol=protocol).sentences


def counted(*table: int, **changes: object) -> Case:
    return inputs_of(*models(*table)), protocol_for(sum(table), **changes)


def simulated(**fields: Any) -> Case:
    simulation = Simulation(**fields)
    return inputs_of_tables(simulation, tables_of(simulation)), protocol_of(simulation)


def trained(seconds: float) -> Case:
    return replace(measured(BETTER), training=TrainingUsage(cpu_s=seconds)), PRICED


def with_endpoint(count: int, *, seconds: float | None = None) -> Case:
    """Return an endpoint that is right on `count` rows, by default at an unknown price."""
    inputs = inputs_of_right(
        incumbent=right(1300), candidate=right(1400), endpoint_zero_shot=right(count)
    )
    inputs = measured(inputs, endpoint_zero_shot=seconds or 1.0)
    tokens = Tokens("m at https://host/v1", (1000.0,) * 5, (100.0,) * 5)
    unpriced = {} if seconds else {"endpoint_zero_shot": ServingUsage((0.1,) * 5, tokens=tokens)}
    return replace(inputs, costs={**(inputs.costs or {}), **unpriced}), PRICED


STATES: dict[str, tuple[Callable[[], Case], str]] = {
    "proven": (lambda: counted(1300, 290, 120, 441), "the gain at least 1 point"),
    "below the minimum": (
        lambda: counted(9000, 150, 60, 790),
        "the gain is above 0, but measured below the minimum gain of 1 point",
    ),
    "worse": (lambda: counted(700, 20, 120, 160), "it is worse"),
    "equal": (lambda: counted(9000, 100, 100, 800), "a gain of 1 point is ruled out"),
    "one row": (lambda: counted(0, 1, 0, 0), "both 0 and the minimum gain of 1 point are possible"),
    "no rows are enough": (
        lambda: counted(200, 30, 25, 45, expected_gain=0.01),
        "no number of rows gives 80%, because expected_gain is not above minimum_gain",
    ),
    "cheaper": (lambda: (CHEAPER, PRICED), "and is non-inferior: -0.15 points"),
    "cheaper, perhaps inferior": (
        lambda: (measured(inputs_of(*models(1200, 60, 80, 660)), candidate=1.0), PRICED),
        "it costs less, but a loss beyond -1.00 points is not ruled out (lowest -2.16)",
    ),
    "cheaper, inferior to the anchor": (
        lambda: (replace(CHEAPER, anchor=Anchor(predictions("lora", right(1330)))), PRICED),
        "but this is not shown for the last champion that was proven better",
    ),
    "worth less than its cost": (
        lambda: trained(260.0),
        "the gain is worth less than its further cost (net -0.01)",
    ),
    "the cost gate fails": (lambda: trained(400.0), "cost gate fails"),
    "a baseline replaces": (lambda: (BLOCKED, PROTOCOL), "replace the incumbent"),
    "out of reach over one of two": (
        lambda: (TWO_OPPONENTS, PROTOCOL),
        "The candidate does not dominate the incumbent: +0.10 points",
    ),
    "a baseline only blocks": (
        lambda: (replace(BLOCKED, replacing=()), PROTOCOL),
        "because the candidate is proven better than the incumbent: +3.00 points",
    ),
    "a cheaper baseline replaces": (
        lambda: (EQUAL, PRICED),
        "because centroid costs less than the incumbent and is non-inferior: -0.05 points",
    ),
    "a baseline needs less": (
        lambda: (EQUAL, PROTOCOL),
        "; centroid is at most 0.21 points below the incumbent and needs 10% of its CPU-seconds",
    ),
    "unknown costs": (lambda: with_endpoint(1400), "cannot be compared"),
    "a gate stops a contender": (
        lambda: with_endpoint(1500, seconds=1000.0),
        "endpoint_zero_shot (75.0%, stopped by its gates)",
    ),
    "a gate is open": (
        lambda: simulated(num_rows=500, candidate=0.82),
        "calibration gate cannot be assessed on these rows: the debiased ECE above the incumbent's",
    ),
    "a gate is open in a regulated recipe": (
        lambda: simulated(num_rows=500, candidate=0.82, evaluation={"regulated": True}),
        "More rows would settle the open gates (calibration); assuming that they pass, 14%",
    ),
    "a gate fails": (
        lambda: counted(1300, 290, 120, 441, gates=CALIBRATED),
        "the fine-tuned model is better by 7.9 points, but its calibration gate fails (debiased "
        "ECE 23.9 points, limit 5.0)",
    ),
    "a gate of a candidate that is not better fails": (
        lambda: counted(1300, 120, 120, 611, gates=CALIBRATED),
        "The candidate's calibration gate fails: the debiased ECE is",
    ),
    "hybrid": (
        lambda: (cascade(candidate=GOOD, cheap=GOOD & (SURE > 0.5), frozen=PART), CASCADE),
        "use the hybrid of nearest and the candidate (80.0%)",
    ),
    "hybrid of contenders": (lambda: (cascade(), CASCADE), "the hybrid"),
    "second look": (
        lambda: (replace(counted(1400, 130, 90, 531)[0], look=SECOND), protocol_for(2151)),
        "900 of 2,151 different test rows are known from earlier tests, so alpha is 0.025",
    ),
    "training rows": (
        lambda: (replace(BETTER, trained_rows=TRAINED), PROTOCOL),
        "the training rows of the candidate are unknown",
    ),
    "documents": (
        lambda: (inputs_of(*models_in_documents(60, size=20)), protocol_for(1200)),
        "The 1,200 rows are 60 independent documents or groups of near copies",
    ),
    "few documents": (
        lambda: (inputs_of(*models_in_documents(5, size=20)), protocol_for(100)),
        "come from 5 documents or texts, but an interval needs at least 6",
    ),
    "macro-F1": (
        lambda: simulated(num_rows=600, candidate=0.79, evaluation={"metric": "macro_f1"}),
        "the fine-tuned model (macro-F1 0.",
    ),
    "chat": (lambda: simulated(num_rows=600, chat=True), "the fine-tuned model (token F1 0."),
}


@pytest.mark.parametrize("state", STATES)
def test_a_verdict_has_at_most_eight_sentences_with_the_answers_the_models_and_the_comparison(
    state: str,
) -> None:
    case, part = STATES[state]
    inputs, protocol = case()
    verdict = reach_verdict(inputs, protocol=protocol)
    assert 4 <= len(verdict.sentences) <= 8
    assert part in " ".join(verdict.sentences)
    assert not any(each[0].islower() or each[-1] != "." for each in verdict.sentences)
    answer, compared, deciding, *_, change = verdict.sentences

    action = "keep" if verdict.selected == "incumbent" else "replace"
    expected = {
        Outcome.FINE_TUNE: "Fine-tuning pays: use the candidate",
        Outcome.HYBRID: "pays: use the hybrid",
        Outcome.STAY: f"Fine-tuning does not pay: {action} the incumbent",
        Outcome.INSUFFICIENT_EVIDENCE: f"for now, {action} the incumbent",
    }[verdict.outcome]
    if verdict.stopped_by:
        expected = f"{action.capitalize()} the incumbent"
        assert "Fine-tuning does not pay" not in answer
    if verdict.selected == "candidate" and verdict.outcome is not Outcome.FINE_TUNE:
        expected = "but not every other model without fine-tuning: replace the incumbent"
    assert expected in answer
    assert f"{verdict.n:,} test rows" in compared
    assert all(model.role in compared for model in verdict.models)
    failed = [gate.name for gate in verdict.gates if gate.state is State.FAILS]
    expected = r"A later run replaces .* 1 point|\d+% of such tests .* would choose a candidate"
    if verdict.stopped_by and failed:
        expected = "The fine-tuned model would be chosen if it passed its gates"
    elif failed:
        expected = f"A candidate that passes {failed[0]}"
    assert re.search(expected, change)

    # No sentence says more than the intervals of its comparison.
    closest = verdict.closest
    assert closest is not None
    assert closest.first in deciding
    assert closest.second in deciding
    assert f"{points(closest.gain)} points ({100 * (1 - closest.level):.4g}% interval" in deciding
    low, high = closest.interval
    least = verdict.minimum_gain
    margin = verdict.non_inferiority_margin
    claims = {
        "is proven better than": low > 0 and closest.gain >= least,
        "the interval is above 0": low > 0,
        "and is non-inferior": closest.lowest > -margin,
        "it is worse": high < 0,
        "is ruled out": high < least,
        "are possible": low <= 0 and high >= least,
        "not ruled out": closest.lowest <= -margin,
        "does not dominate": not closest.dominates,
        "it dominates": all(relation.dominates for relation in verdict.required),
    }
    made = [claim for claim in claims if claim in deciding]
    assert made
    assert all(claims[claim] for claim in made)
    if verdict.outcome in (Outcome.FINE_TUNE, Outcome.HYBRID):
        assert "does not dominate" not in deciding


NOTHING = without_candidate(
    inputs_of_right(incumbent=right(1998), candidate=right(0), bag_of_words=right(1996))
)
CHEAP_BAG = measured(NOTHING, bag_of_words=0.7)


def test_without_a_candidate_the_first_sentences_say_that_there_is_nothing_to_gain() -> None:
    answer, why, compared, deciding, cost, change = sentences_of(CHEAP_BAG, PROTOCOL)
    assert answer.startswith("Fine-tuning has nothing to gain: keep the incumbent")
    assert "99.9% on 3,000 validation rows, so at most 0.26 points can be gained (95% bound)" in why
    assert "(99.9%), and bag_of_words (99.8%)" in compared
    assert "Bag_of_words does not dominate the incumbent: -0.10 points (95% interval" in deciding
    assert cost.startswith("Bag_of_words is at most 0.39 points below the incumbent and needs 7%")
    assert "a lower minimum gain" in change


def test_without_a_candidate_a_model_that_replaces_the_incumbent_for_its_cost_is_explained() -> (
    None
):
    answer, _, _, replaced, cost, gates, _ = sentences_of(CHEAP_BAG, PRICED)
    assert answer.startswith("Fine-tuning has nothing to gain: replace the incumbent")
    assert "because bag_of_words costs less than the incumbent and is" in replaced
    assert "bag_of_words costs 0.07 (0.07 to 0.07) times what the incumbent costs" in cost
    assert "evaluation.cost" not in cost
    assert gates == "Bag_of_words passes cost."
