"""Generation in step of the ranks, for ZeRO stage 3."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from tailorbird.config.formats.response_format import ChoiceFormat, JsonObjectFormat
from tailorbird.models.generation import answer_prompts
from tailorbird.models.grammar.compiler import FormatError, grammar_for
from tailorbird.models.metadata import shape_of
from tests import small_chat
from tests.tracked_memory import TrackedMemory
from tests.unit import byte_level
from tests.unit.training.small import config_of
from training.engine import memory_estimate
from training.engine.memory_estimate import BatchShape, validation_bytes
from training.engine.synced_generation import synced_answers

PROMPTS = [[5, 6, 7], [8], [9, 10]]


def test_answers_in_a_format_are_those_of_the_evaluation() -> None:
    tokenizer, lm = byte_level.tokenizer(), byte_level.language_model()
    grammar = grammar_for(
        ChoiceFormat(type="choice", choice=("yes", "no")), lm=lm, tokenizer=tokenizer
    )
    end_id = int(tokenizer.eos_token_id)
    expected = answer_prompts(lm, PROMPTS, max_new_tokens=9, end_id=end_id, grammar=grammar)
    answers = synced_answers(lm, PROMPTS, max_new_tokens=9, end_id=end_id, grammar=grammar)
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in expected]


def batches_of(
    monkeypatch: pytest.MonkeyPatch, prompts: list[list[int]]
) -> tuple[list[int], list[list[int]]]:
    """Return the number of rows of each batch, and the answers."""
    lm, sizes = small_chat.language_model(), []
    generate = lm.generate

    def note(*, input_ids: torch.Tensor, **options: Any) -> Any:
        sizes.append(len(input_ids))
        return generate(input_ids=input_ids, **options)

    monkeypatch.setattr(lm, "generate", note)
    answers = synced_answers(lm, prompts, max_new_tokens=5, end_id=1)
    return sizes, [answer.tokens for answer in answers]


def test_short_prompts_are_answered_together_and_long_prompts_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    together = batches_of(monkeypatch, PROMPTS)
    monkeypatch.setattr(memory_estimate, "ANSWERED_TOKENS", 2 * (len(PROMPTS[0]) + 5))
    in_parts = batches_of(monkeypatch, PROMPTS)
    assert (together[0], in_parts[0]) == ([3], [2, 1])
    assert together[1] == in_parts[1]


def test_the_longest_prompt_of_any_rank_determines_the_rows_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def with_another_rank(tensor: torch.Tensor, *, op: object) -> None:
        if op == dist.ReduceOp.MAX and tensor.shape == (2,):
            # The other rank has four prompts of up to 100 tokens.
            tensor.copy_(torch.maximum(tensor, torch.tensor([4, 100])))

    monkeypatch.setattr(memory_estimate, "ANSWERED_TOKENS", 105)
    monkeypatch.setattr(dist, "all_reduce", with_another_rank)
    sizes, _ = batches_of(monkeypatch, PROMPTS)
    assert sizes == [1, 1, 1, 1]  # the last one is discarded


@pytest.mark.parametrize("autocast", [True, False])
def test_a_validation_needs_at_most_its_estimate_and_at_least_a_third_of_it(autocast: bool) -> None:
    lm = small_chat.language_model(width=128)
    prompts = [[5] * (60 - row % 2) for row in range(64)]
    with (
        TrackedMemory(lm) as memory,
        torch.no_grad(),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        synced_answers(lm, prompts, max_new_tokens=20, end_id=1)
    batch = BatchShape(60, max_new_tokens=20, packed=True, autocast=autocast)
    estimate = validation_bytes(config_of(zero_stage=3), shape=shape_of(lm), batch=batch)
    assert memory.peak <= estimate <= 3 * memory.peak


def test_a_format_that_the_model_cannot_write_is_an_error_and_no_empty_answer() -> None:
    tokenizer, lm = small_chat.tokenizer(), small_chat.language_model()
    grammar = grammar_for(JsonObjectFormat(type="json_object"), lm=lm, tokenizer=tokenizer)
    with pytest.raises(
        FormatError, match="has no token with which an answer in this format can continue"
    ):
        synced_answers(
            lm, PROMPTS, max_new_tokens=9, end_id=int(tokenizer.eos_token_id), grammar=grammar
        )
