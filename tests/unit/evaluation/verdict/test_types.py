"""Tests of the first sentence of a verdict."""

from dataclasses import replace
from typing import Any

import pytest

from tailorbird.evaluation.gates.base import Gate, State
from tailorbird.evaluation.verdict.decide import decide
from tailorbird.evaluation.verdict.rules import Outcome
from tailorbird.evaluation.verdict.types import Verdict
from tests.unit.evaluation.simulated import Simulation, inputs_of_tables, protocol_of, tables_of
from tests.unit.evaluation.verdict.test_decide import inputs_of, models, protocol_for, verdict_of

PROVEN, SMALL, WORSE, UNCLEAR, EQUAL = (
    (1300, 290, 120, 441), (9000, 120, 60, 820), (700, 20, 120, 160), (200, 30, 25, 45), (9000, 100, 100, 800),
)  # fmt: skip


def sentence(verdict: Verdict, **changes: Any) -> str:
    return verdict.model_copy(update=changes).sentence()


def test_a_fine_tuned_model_that_is_better_is_recommended() -> None:
    assert verdict_of(*PROVEN).sentence() == (
        "Use the fine-tuned model (73.9%). It is better than the pretrained model with a linear head (66.0%): "
        "+7.9 points (interval +6.1 to +9.7)."
    )


@pytest.mark.parametrize("kind", ["lora_bag", "full_bag"])
def test_a_mixed_model_is_named_plainly(kind: str) -> None:
    text = sentence(verdict_of(*PROVEN), candidate_kind=kind)
    assert text.startswith("Use the fine-tuned model with a bag of words (73.9%). It is better than the pretrained")


@pytest.mark.parametrize(
    ("table", "text"),
    [
        (
            EQUAL,
            "Keep the pretrained model with a bag of words (91.0%). The fine-tuned model has not been shown to be",
        ),
        (WORSE, "Keep the pretrained model with a bag of words (82.0%). The fine-tuned model is worse: -10.0"),
        (SMALL, "The fine-tuned model is better, but the measured gain is below the minimum gain: +0.6"),
        (
            UNCLEAR,
            "Keep the pretrained model with a bag of words (75.0%) for now. The fine-tuned model has not been shown",
        ),
    ],
)
def test_another_verdict_keeps_the_incumbent_and_states_why(table: tuple[int, ...], text: str) -> None:
    assert text in sentence(verdict_of(*table), incumbent_kind="probe_bag")


def test_a_leak_and_gates_are_named() -> None:
    assert "the test is not valid: +" in verdict_of(*PROVEN, leaks=("a leak",)).sentence()
    failed = (Gate("groups", State.FAILS, (), ""), Gate("cost", State.FAILS, (), ""))
    stay = sentence(verdict_of(*EQUAL), rule=5, gates=failed)
    assert stay.startswith(
        "Keep the pretrained model with a linear head (91.0%): the fine-tuned model (91.0%) is better,"
    )
    assert "but fails the groups and the cost gate: " in stay


def test_a_required_gate_that_cannot_be_assessed_is_the_reason_to_wait() -> None:
    text = sentence(verdict_of(*PROVEN), rule=6, outcome=Outcome.INSUFFICIENT_EVIDENCE)
    assert "for now. The fine-tuned model is better, but a required gate cannot be assessed: +7.9" in text


def test_the_numbers_of_a_further_access_to_the_test_rows_state_its_level() -> None:
    first = verdict_of(*PROVEN)
    inputs = replace(inputs_of(*models(*PROVEN)), access_number=2, num_rows_seen=200, alpha_share=1 / 6)
    later = decide(inputs, protocol=protocol_for(sum(PROVEN)))
    assert "access" not in first.numbers()
    assert later.numbers().endswith("; access 2 to these rows: alpha 0.0083 instead of 0.05")
    assert "99.17% interval" in later.numbers()


def test_two_fine_tuned_models_are_named_current_and_new() -> None:
    text = sentence(verdict_of(*EQUAL), incumbent_kind="lora")
    assert text.startswith("Keep the current fine-tuned model (91.0%). The new fine-tuned model has not been shown")


def test_a_metric_that_is_not_a_share_of_rows_is_named() -> None:
    simulation = replace(Simulation(chat=True, gates=False), candidate=0.9)
    verdict = decide(inputs_of_tables(simulation, tables_of(simulation)), protocol=protocol_of(simulation))
    assert "(token F1 0." in verdict.sentence()


def test_a_cheaper_model_is_recommended_for_its_cost() -> None:
    assert "It costs less to serve than the pretrained model with a linear head" in sentence(verdict_of(*SMALL), rule=7)
