"""Logits of packed rows, loading of weights, answers and likelihoods, with a tiny language model
with random weights."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tailorbird.data.chat_template import Tokens, conversation_tokens, prompt_tokens
from tailorbird.data.packing import pack
from tailorbird.models.causal_lm import ChatModel, as_tensors
from tailorbird.models.errors import ModelError
from tailorbird.models.generation import answer_prompts, log_likelihoods
from tailorbird.models.loading import load_chat, load_chat_weights
from tailorbird.models.lora import add_adapter
from tailorbird.models.pretrained import cast_parameters, load_causal
from tailorbird.registry.kinds import Kind
from tests.small_chat import language_model, model_of, save, tokenizer

TOKENIZER, LM = tokenizer(), language_model()
QUESTIONS = ("abc", "what is a dog", "x", "zzzz zzzz zzzz", "one two three four five six")


def rows() -> list[Tokens]:
    return [
        conversation_tokens((("user", text),), text[::-1], tokenizer=TOKENIZER, system=None)
        for text in QUESTIONS
    ]


SCALED: dict[str, dict[str, Any]] = {
    "granite": {"logits_scaling": 8.0},
    "cohere": {"logit_scale": 0.1},
    "gemma2": {"final_logit_softcapping": 0.5},  # eager attention adds the mask to the scores
    "gpt_oss": {"num_local_experts": 4},
}


@pytest.mark.parametrize(
    ("kind", "attention"),
    [
        *product(("llama", "qwen2", "mistral", "gpt2"), ("sdpa", "eager")),
        *((kind, None) for kind in SCALED),
    ],
)
def test_packed_rows_have_the_logits_of_separate_rows(kind: str, attention: str | None) -> None:
    lm = model_of(kind, **SCALED.get(kind, {}))
    packed = [*rows(), *rows()[:2]]
    batch = pack(packed, pad_id=0, max_width=64)
    if attention is not None:
        lm.set_attn_implementation(attention)
    assert (batch.conversation_ids == -1).any()
    assert batch.position_ids.max(axis=1).min() > 0
    with torch.no_grad():
        logits = ChatModel(lm)(*as_tensors(batch, device="cpu"))
        for index, row in enumerate(packed):
            is_answer = torch.from_numpy(row.assistant_mask[1:])
            alone = lm(torch.tensor([row.ids])).logits[0, :-1][is_answer]
            together = logits[torch.from_numpy(batch.target_conversation_ids == index)]
            torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_full_weights_with_a_missing_weight_are_rejected(tmp_path: Path) -> None:
    state = {name: value.detach().clone() for name, value in LM.named_parameters()}
    state.pop("model.norm.weight")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ModelError):
        load_chat_weights(tmp_path, lm=language_model(), kind="full")


@pytest.mark.parametrize("kind", ["zero_shot", "lora", "full"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_loaded_in_their_stored_dtype_with_the_values_of_fp32(
    tmp_path: Path, kind: Kind, stored: torch.dtype, dtype: torch.dtype
) -> None:
    """A base model in bf16 that is loaded in fp32 would take twice the memory of the host."""
    save(tmp_path / "base", language_model().to(stored))
    if kind == "lora":
        adapted = add_adapter(language_model(), r=2, alpha=4, dropout=0.0)
        for parameter in adapted.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        adapted.save_pretrained(tmp_path / "adapter")  # type: ignore[operator]
    state = {name: 2 * value.detach().clone() for name, value in LM.named_parameters()}
    save_file(state, tmp_path / "model.safetensors")
    loaded = load_chat(tmp_path, base=tmp_path / "base", kind=kind, dtype=dtype)
    in_fp32 = load_chat_weights(tmp_path, lm=load_causal(tmp_path / "base"), kind=kind)
    expected = cast_parameters(in_fp32, dtype)
    for part, precision in (("named_parameters", dtype), ("named_buffers", torch.float32)):
        values = dict(getattr(loaded, part)())
        assert {value.dtype for value in values.values()} == {precision}
        torch.testing.assert_close(values, dict(getattr(expected, part)()), rtol=0, atol=0)


def test_likelihoods_equal_those_of_single_forward_passes() -> None:
    likelihoods = log_likelihoods(ChatModel(LM).eval(), rows(), pad_id=0)
    for row, value in zip(rows(), likelihoods, strict=True):
        with torch.no_grad():
            log_probabilities = torch.log_softmax(LM(torch.tensor([row.ids])).logits[0], dim=-1)
        expected = [
            float(log_probabilities[position - 1, row.ids[position]])
            for position in np.flatnonzero(row.assistant_mask)
        ]
        assert value == pytest.approx(np.mean(expected), abs=1e-5)


def test_answers_in_a_batch_equal_the_answers_of_single_prompts() -> None:
    end_id = TOKENIZER.eos_token_id
    prompts = [
        prompt_tokens((("user", text),), tokenizer=TOKENIZER, system=None) for text in QUESTIONS
    ]
    answers = answer_prompts(LM, prompts, max_new_tokens=12, end_id=end_id)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = list(prompt)
        answered = list[int]()
        while len(answered) < 12 and ids[-1] != end_id:
            with torch.no_grad():
                answered.append(int(LM(torch.tensor([ids])).logits[0, -1].argmax()))
            ids.append(answered[-1])
        assert answer.finished == (answered[-1] == end_id)
        assert answer.tokens == (answered[:-1] if answer.finished else answered)
        assert 0 < answer.confidence <= 1
    assert answer_prompts(LM, [], max_new_tokens=4, end_id=end_id) == []
