"""Answers of continuous batching and likelihoods of packed rows equal those of single forward
passes."""

import numpy as np
import pytest
import torch

from tailorbird.data.chat_template import prompt_tokens
from tailorbird.models.causal_lm import ChatModel
from tailorbird.models.generation import (
    answer_prompts,
    log_likelihoods,
)
from tests.unit.models.test_causal_lm import LM, QUESTIONS, TOKENIZER, rows

MODEL = ChatModel(LM).eval()


def test_likelihoods_equal_those_of_single_forward_passes() -> None:
    likelihoods = log_likelihoods(MODEL, rows(), pad_id=0)
    for row, value in zip(rows(), likelihoods, strict=True):
        with torch.no_grad():
            log_probabilities = torch.log_softmax(LM(torch.tensor([row.ids])).logits[0], dim=-1)
        expected = [
            float(log_probabilities[position - 1, row.ids[position]])
            for position in np.flatnonzero(row.assistant_mask)
        ]
        assert value == pytest.approx(np.mean(expected), abs=1e-5)


def prompts_of_questions() -> list[list[int]]:
    return [
        prompt_tokens((("user", text),), tokenizer=TOKENIZER, system=None) for text in QUESTIONS
    ]


def test_answers_in_a_batch_equal_the_answers_of_single_prompts() -> None:
    end_id = TOKENIZER.eos_token_id
    prompts = prompts_of_questions()
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
