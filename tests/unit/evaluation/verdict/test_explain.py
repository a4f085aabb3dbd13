"""Tests of the sentences that explain a verdict, in every state that they describe."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest

from tailorbird.config.evaluation import CalibrationGateConfig
from tailorbird.evaluation.gates.base import Bound, Gate, State
from tailorbird.evaluation.gates.cost import ServingUsage, Tokens, TrainingUsage
from tailorbird.evaluation.verdict.decide import Outcome
from tailorbird.evaluation.verdict.explain import open_gates
from tailorbird.evaluation.verdict.formatting import points
from tailorbird.evaluation.verdict.inputs import Anchor, TrainedRows, VerdictInputs
from tailorbird.evaluation.verdict.protocol import NO_GATES, TestProtocol
from tailorbird.evaluation.verdict.reach import reach_verdict
from tailorbird.evaluation.verdict.relation import Relation
from tailorbird.evaluation.verdict.types import Verdict
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
OTHERS = {"bag_of_words": right(1540), "centroid": right(900)}
BLOCKED = inputs_of_right(incumbent=right(1480), candidate=right(1540), **OTHERS)
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


def counted(*table: int, **changes: object) -> Case:
    return inputs_of(*models(*table)), protocol_for(sum(table), **changes)


def simulated(simulation: Simulation) -> Case:
    return inputs_of_tables(simulation, tables_of(simulation)), protocol_of(simulation)


def with_endpoint(count: int, *, seconds: float | None = None) -> Case:
    """Return an endpoint that is right on `count` rows, by default at an unknown price."""
    inputs = inputs_of_right(
        incumbent=right(1300), candidate=right(1400), endpoint_zero_shot=right(count)
    )
    inputs = measured(inputs, endpoint_zero_shot=seconds or 1.0)
    tokens = Tokens("m at https://host/v1", (1000.0,) * 5, (100.0,) * 5)
    unpriced = {} if seconds else {"endpoint_zero_shot": ServingUsage((0.1,) * 5, tokens=tokens)}
    return replace(inputs, costs={**(inputs.costs or {}), **unpriced}), PRICED


STATES: dict[str, Callable[[], Case]] = {
    "proven": lambda: counted(1300, 290, 120, 441),
    "proven, perhaps by less than the minimum": lambda: counted(1400, 130, 90, 531),
    "below the minimum": lambda: counted(9000, 120, 60, 820),
    "below the minimum, which is not ruled out": lambda: counted(9000, 150, 60, 790),
    "worse": lambda: counted(700, 20, 120, 160),
    "unsure": lambda: counted(200, 30, 25, 45),
    "no rows are enough": lambda: counted(200, 30, 25, 45, expected_gain=0.01),
    "equal": lambda: counted(9000, 100, 100, 800),
    "one row": lambda: counted(0, 1, 0, 0),
    "cheaper": lambda: (CHEAPER, PRICED),
    "cheaper, perhaps inferior": lambda: (
        measured(inputs_of(*models(1200, 60, 80, 660)), candidate=1.0),
        PRICED,
    ),
    "cheaper, inferior to the anchor": lambda: (
        replace(CHEAPER, anchor=Anchor(predictions("lora", right(1330)))),
        PRICED,
    ),
    "worth less than its cost": lambda: (
        replace(measured(BETTER), training=TrainingUsage(cpu_s=260.0)),
        PRICED,
    ),
    "the cost gate fails": lambda: (
        replace(measured(BETTER), training=TrainingUsage(cpu_s=400.0)),
        PRICED,
    ),
    "a baseline replaces": lambda: (BLOCKED, PROTOCOL),
    "out of reach over one of two": lambda: (TWO_OPPONENTS, PROTOCOL),
    "a baseline only blocks": lambda: (replace(BLOCKED, replacing=()), PROTOCOL),
    "a cheaper baseline replaces": lambda: (EQUAL, PRICED),
    "a baseline needs less": lambda: (EQUAL, PROTOCOL),
    "unknown costs": lambda: with_endpoint(1400),
    "a gate stops a contender": lambda: with_endpoint(1500, seconds=1000.0),
    "a gate is open": lambda: simulated(Simulation(num_rows=500, candidate=0.82)),
    "a gate is open in a regulated recipe": lambda: simulated(
        Simulation(num_rows=500, candidate=0.82, evaluation={"regulated": True})
    ),
    "a gate fails": lambda: counted(1300, 290, 120, 441, gates=CALIBRATED),
    "hybrid": lambda: (
        cascade(candidate=ROW % 10 < 8, cheap=(ROW % 10 < 8) & (SURE > 0.5), frozen=PART),
        CASCADE,
    ),
    "hybrid of contenders": lambda: (cascade(), CASCADE),
    "second look": lambda: (
        replace(
            counted(1400, 130, 90, 531)[0],
            look=RowUse(number=2, num_rows=2151, num_seen=900, alpha_share=0.5),
        ),
        protocol_for(2151),
    ),
    "training rows": lambda: (
        replace(BETTER, trained_rows=TrainedRows({"incumbent": tuple("123"), "candidate": None})),
        PROTOCOL,
    ),
    "documents": lambda: (inputs_of(*models_in_documents(60, size=20)), protocol_for(1200)),
    "few documents": lambda: (inputs_of(*models_in_documents(5, size=20)), protocol_for(100)),
    "macro-F1": lambda: simulated(
        Simulation(num_rows=600, candidate=0.79, evaluation={"metric": "macro_f1"})
    ),
    "chat": lambda: simulated(Simulation(num_rows=600, chat=True)),
}


@cache
def verdict_of(state: str) -> Verdict:
    inputs, protocol = STATES[state]()
    return reach_verdict(inputs, protocol=protocol)


def closest_of(verdict: Verdict) -> Relation:
    closest = verdict.closest
    assert closest is not None
    return closest


def text_of(state: str) -> str:
    return " ".join(verdict_of(state).sentences)


@pytest.mark.parametrize("state", STATES)
def test_a_verdict_has_at_most_eight_sentences_with_the_answers_the_models_and_the_comparison(
    state: str,
) -> None:
    verdict = verdict_of(state)
    assert 4 <= len(verdict.sentences) <= 8
    answer, compared, deciding, *_, change = verdict.sentences
    assert all(
        not sentence[0].islower() and sentence.endswith(".") for sentence in verdict.sentences
    )
    assert all(re.search(r"\d", sentence) for sentence in (answer, compared, deciding))

    kept = verdict.selected == "incumbent"
    expected = {
        Outcome.FINE_TUNE: "Fine-tuning pays: use the candidate",
        Outcome.HYBRID: "pays: use the hybrid",
        Outcome.STAY: f"Fine-tuning does not pay: {'keep' if kept else 'replace'} the incumbent",
        Outcome.INSUFFICIENT_EVIDENCE: f"for now, {'keep' if kept else 'replace'} the incumbent",
    }[verdict.outcome]
    if verdict.selected == "candidate" and verdict.outcome is not Outcome.FINE_TUNE:
        expected = "but not every other model without fine-tuning: replace the incumbent"
    assert expected in answer

    assert f"{verdict.n:,} test rows" in compared
    assert all(model.role in compared for model in verdict.models)
    closest = closest_of(verdict)
    assert closest.first in deciding
    assert closest.second in deciding
    low, high = closest.interval
    figures = (
        f"{points(closest.gain)} points ({100 * (1 - closest.level):.4g}% interval {points(low)} "
        f"to {points(high)})"
    )
    assert figures in deciding
    failed = [gate.name for gate in verdict.gates if gate.state is State.FAILS]
    if failed:
        assert change.startswith(f"A candidate that passes {failed[0]}")
    else:
        assert re.search(
            r"A later run replaces .* 1 point|\d+% of such tests .* would choose a candidate",
            change,
        )

    # No sentence says more than the intervals of its comparison.
    gain, least, margin = closest.gain, verdict.minimum_gain, verdict.non_inferiority_margin
    claims = {
        "is proven better than": low > 0 and gain >= least,
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
    assert [claim for claim in made if not claims[claim]] == []
    if verdict.outcome in (Outcome.FINE_TUNE, Outcome.HYBRID):
        assert "does not dominate" not in deciding


@pytest.mark.parametrize(
    ("state", "part"),
    [
        (
            "below the minimum",
            "the gain is above 0, but measured below the minimum gain of 1 point",
        ),
        ("cheaper", "costs less than the incumbent and is non-inferior: -0.15 points"),
        (
            "cheaper, perhaps inferior",
            "it costs less, but a loss beyond -1.00 points is not ruled out (lowest -2.16)",
        ),
        (
            "cheaper, inferior to the anchor",
            "but this is not shown for the last champion that was proven better",
        ),
        ("worth less than its cost", "the gain is worth less than its further cost (net -0.01)"),
        (
            "out of reach over one of two",
            "The candidate does not dominate the incumbent: +0.10 points",
        ),
        (
            "a baseline only blocks",
            "because the candidate is proven better than the incumbent: +3.00 points (95% interval",
        ),
        (
            "a cheaper baseline replaces",
            "because centroid costs less than the incumbent and is non-inferior: -0.05 points",
        ),
        (
            "a baseline needs less",
            "; centroid is at most 0.21 points below the incumbent and needs 10% of its "
            "CPU-seconds per row; set evaluation.cost to let the cost count.",
        ),
        ("a gate stops a contender", "endpoint_zero_shot (75.0%, stopped by its gates)"),
        (
            "a gate is open",
            "calibration gate cannot be assessed on these rows: the debiased ECE is 0.00 points",
        ),
        ("a gate is open in a regulated recipe", "but a regulated recipe requires it to pass"),
        (
            "a gate fails",
            "The candidate's calibration gate fails: the debiased ECE is 23.93 points",
        ),
        ("hybrid", "use the hybrid of nearest and the candidate (80.0%)"),
        (
            "second look",
            "900 of 2,151 different test rows are known from earlier tests, so alpha is 0.025 "
            "instead of 0.05",
        ),
        ("training rows", "the training rows of the candidate are unknown"),
        ("documents", "The 1,200 rows are 60 independent documents or groups of near copies"),
        ("few documents", "come from 5 documents or texts, but an interval needs at least 6"),
        (
            "no rows are enough",
            "no number of rows gives 80%, because expected_gain is not above minimum_gain",
        ),
        ("macro-F1", "the fine-tuned model (macro-F1 0."),
        ("chat", "the fine-tuned model (token F1 0."),
    ],
)
def test_what_decided_is_named_with_its_figure(state: str, part: str) -> None:
    assert part in text_of(state)


def test_the_sentences_of_a_verdict() -> None:
    assert verdict_of("unsure").sentences == (
        "These rows do not decide whether fine-tuning pays: for now, keep the incumbent, the "
        "pretrained model with a linear head (75.0%).",
        "Compared on the same 300 test rows: the incumbent, the pretrained model with a linear "
        "head (75.0%); the candidate, the fine-tuned model (76.7%).",
        "The candidate does not dominate the incumbent: +1.67 points (95% interval -3.23 to "
        "+6.57); both 0 and the minimum gain of 1 point are possible.",
        "A candidate that dominates the incumbent would be chosen; 14% of such tests of 300 rows "
        "would choose a candidate that is 2 points better than the incumbent; about 3,701 test "
        "rows would do so in 80% of tests.",
    )


def test_each_group_that_cannot_be_assessed_is_named_with_the_rows_needed() -> None:
    bounds = (
        Bound(
            "change for sex = female", -0.01, (-0.05, 0.03), -0.03, 200, State.NOT_ASSESSABLE, 1300
        ),
        Bound("change for sex = male", 0.02, (-0.01, 0.05), -0.03, 900, State.PASSES),
        Bound(
            "change for sex = unstated", -0.02, (-0.2, 0.16), -0.03, 20, State.NOT_ASSESSABLE, 5000
        ),
    )
    [reason] = open_gates((Gate("groups", State.NOT_ASSESSABLE, bounds),), regulated=True)
    assert reason == (
        "the groups gate does not rule out a loss in sex = female (200 of about 1,300 test rows "
        "needed) and sex = unstated (20 of about 5,000 test rows needed), but a regulated recipe "
        "requires it to pass"
    )


def test_a_gate_without_bounds_is_explained_by_its_note() -> None:
    [reason] = open_gates(
        (Gate("cost", State.NOT_ASSESSABLE, (), "the serving cost is not measured"),)
    )
    assert (
        reason == "the cost gate cannot be assessed on these rows: the serving cost is not measured"
    )


NOTHING = without_candidate(
    inputs_of_right(incumbent=right(1998), candidate=right(0), bag_of_words=right(1996))
)
CHEAP_BAG = measured(NOTHING, bag_of_words=0.7)


def sentences_of(inputs: VerdictInputs, protocol: TestProtocol) -> tuple[str, ...]:
    return reach_verdict(inputs, protocol=protocol).sentences


def test_without_a_candidate_the_first_sentences_say_that_there_is_nothing_to_gain() -> None:
    assert sentences_of(CHEAP_BAG, PROTOCOL) == (
        "Fine-tuning has nothing to gain: keep the incumbent, the pretrained model with a linear "
        "head (99.9%).",
        "No training was started: the incumbent scores 99.9% on 3,000 validation rows, so at "
        "most 0.26 points can be gained (95% bound), below the minimum gain of 1 point.",
        "Compared on the same 2,000 test rows: the incumbent, the pretrained model with a linear "
        "head (99.9%), and bag_of_words (99.8%).",
        "Bag_of_words does not dominate the incumbent: -0.10 points (95% interval -0.38 to "
        "+0.12); a gain of 1 point is ruled out.",
        "Bag_of_words is at most 0.39 points below the incumbent and needs 7% of its "
        "CPU-seconds per row; set evaluation.cost to let the cost count.",
        "A training starts with a lower minimum gain.",
    )


def test_without_a_candidate_a_model_that_replaces_the_incumbent_for_its_cost_is_explained() -> (
    None
):
    answer, why, _, replaced, cost, gates, change = sentences_of(CHEAP_BAG, PRICED)
    assert answer.startswith("Fine-tuning has nothing to gain: replace the incumbent")
    assert why.startswith("No training was started")
    assert replaced.startswith(
        "The incumbent is replaced, because bag_of_words costs less than the incumbent and is"
    )
    assert cost.startswith(
        "To serve, bag_of_words costs 0.07 (0.07 to 0.07) times what the incumbent costs"
    )
    assert "evaluation.cost" not in cost
    assert gates == "Bag_of_words passes cost."
    assert change.startswith("A training starts with a lower minimum gain")


def test_a_cheaper_model_that_is_proven_worse_by_less_than_the_margin_is_named_with_its_loss() -> (
    None
):
    inputs = measured(
        inputs_of_right(incumbent=right(1999), candidate=right(0), centroid=right(1989)),
        centroid=0.5,
    )
    cost = next(
        sentence for sentence in sentences_of(inputs, PROTOCOL) if "evaluation.cost" in sentence
    )
    assert (
        "; centroid is at most 0.93 points below the incumbent and needs 5% of its CPU-seconds "
        "per row" in cost
    )
