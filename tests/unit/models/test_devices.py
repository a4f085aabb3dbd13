from typing import Any

import pytest
import torch

from tailorbird.config.formats.response_format import ChoiceFormat
from tailorbird.models import devices
from tailorbird.models.causal_lm import ChatModel
from tailorbird.models.generation import answer_prompts
from tailorbird.models.grammar.compiler import Grammar, grammar_for
from tests import small_chat
from tests.unit import byte_level

PROMPTS = [[5, 6, 7], [8], [9, 10]]


@pytest.mark.parametrize(
    ("num_gpus", "gpu_bytes_to_weights", "is_divided"),
    [(2, 1.1, True), (2, 1.3, False), (1, 1.1, False)],
)
def test_only_a_model_that_one_of_several_gpus_cannot_hold_is_divided(
    monkeypatch: pytest.MonkeyPatch,
    num_gpus: int,
    gpu_bytes_to_weights: float,
    is_divided: bool,
) -> None:
    model = ChatModel(small_chat.language_model())
    num_bytes = sum(weight.nbytes for weight in model.parameters())
    placed: list[str] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda: (0, int(gpu_bytes_to_weights * num_bytes))
    )
    monkeypatch.setattr(devices, "_divide", lambda _: placed.append("divided"))
    monkeypatch.setattr(model, "to", placed.append)
    devices.move_to_device(model, "cuda")
    assert placed == ["divided" if is_divided else "cuda"]


def test_a_model_that_accelerate_has_placed_has_the_same_logits_and_returns_to_the_host() -> None:
    model = ChatModel(small_chat.language_model()).eval()
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        expected = model.lm(ids).logits
        devices._divide(model.lm)  # this machine has one device, the CPU
        torch.testing.assert_close(model.lm(ids).logits, expected)
        assert not devices.is_divided(model.lm)
        devices.move_to_host(model)
        torch.testing.assert_close(model.lm(ids).logits, expected)


@pytest.mark.parametrize("has_format", [True, False])
def test_a_divided_model_gives_the_answers_of_continuous_batching(has_format: bool) -> None:
    tokenizer, lm = byte_level.tokenizer(), byte_level.language_model()
    grammar: Grammar | None = None
    if has_format:
        choice = ChoiceFormat(type="choice", choice=("yes", "no"))
        grammar = grammar_for(choice, lm=lm, tokenizer=tokenizer)
    options: dict[str, Any] = {"max_new_tokens": 9, "end_id": int(tokenizer.eos_token_id)}
    expected = answer_prompts(lm, PROMPTS, grammar=grammar, **options)
    lm.hf_device_map = {"model": 0, "lm_head": 1}
    answers = answer_prompts(lm, PROMPTS, grammar=grammar, max_requests=2, **options)
    assert [each.tokens for each in answers] == [each.tokens for each in expected]
    for answer, other in zip(answers, expected, strict=True):
        assert answer.finished == other.finished
        assert answer.logprobs == pytest.approx(other.logprobs, abs=1e-5)
