"""Comparison of token log-probabilities: another kernel of the same model passes, another model
does not."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch

from tailorbird.data.chat_template import prompt_tokens
from tailorbird.models.generation import answer_prompts
from tailorbird.release.probe_requests import ParityProbe, ServedAnswer, ServedToken
from tailorbird.release.token_parity import (
    TOKEN_TOLERANCE,
    TokenTolerance,
    compare_chats,
    compare_tokens,
)
from tests.small_chat import TEMPLATE, language_model, tokenizer

LIMIT = 0.1
TOKENIZER = tokenizer()
QUESTIONS = ("abc", "what is a dog", "zzzz zzzz zzzz")
NUM_TOKENS = 12


def served(*tokens: tuple[float, float]) -> tuple[ServedToken, ...]:
    return tuple(ServedToken(logprob, lead) for logprob, lead in tokens)


def test_the_same_text_matches_if_all_log_probabilities_are_within_the_limit() -> None:
    near = compare_tokens(
        (-0.5, -0.1), served((-0.55, 3.0), (-0.15, 4.0)), same_text=True, limit=LIMIT
    )
    assert (near.matches, near.tie, near.position) == (True, False, None)
    assert near.moves == pytest.approx((0.05, 0.05))
    far = compare_tokens(
        (-0.5, -0.1), served((-0.55, 3.0), (-0.25, 4.0)), same_text=True, limit=LIMIT
    )
    assert (far.matches, far.position) == (False, 1)


@pytest.mark.parametrize(
    ("tokens", "same_text", "position"),
    [
        ((), True, 0),
        (((-0.5, 3.0),), True, 1),
        (((-0.5, 3.0), (-0.1, 3.0), (-0.1, 3.0)), True, 2),
        (((-0.5, 3.0), (-0.1, 3.0)), False, 2),
        (((float("nan"), 0.0), (-0.1, 0.0)), True, 0),
        (((-1.5, 0.0), (-0.1, 0.0)), False, 0),
        (((-0.5, 0.0), (-0.4, 0.0)), True, 1),
    ],
    ids=[
        *(
            "no tokens",
            "too few",
            "too many",
            "another text",
            "not finite",
            "a tie with another probability",
        ),
        "the same text with another probability after a tie",
    ],
)
def test_other_answers_do_not_match(
    tokens: tuple[tuple[float, float], ...], same_text: bool, position: int
) -> None:
    result = compare_tokens((-0.5, -0.1), served(*tokens), same_text=same_text, limit=LIMIT)
    assert (result.matches, result.tie, result.position) == (False, False, position)


def test_answers_that_diverge_at_a_tie_match_up_to_it() -> None:
    evaluated = (-0.5, -0.7, -0.1, -0.1)
    tokens = served((-0.52, 3.0), (-0.69, LIMIT), (-2.5, 3.0))
    result = compare_tokens(evaluated, tokens, same_text=False, limit=LIMIT)
    assert (result.matches, result.tie) == (True, True)
    assert result.moves == pytest.approx((0.02, 0.01))
    later = served(
        (-0.52, 3.0), (-0.69, LIMIT + 0.01), (-2.5, 0.0)
    )  # the tie comes after the first difference
    assert not compare_tokens(evaluated, later, same_text=False, limit=LIMIT).matches


def probe(*logprobs: float, output: str = "a") -> ParityProbe:
    return ParityProbe("7", "Glaucoma", {}, output, None, logprobs)


def test_a_few_tokens_may_exceed_the_usual_difference_and_more_are_refused() -> None:
    tolerance = TokenTolerance(largest=0.5, usual=0.2)
    still, moved = (
        ServedAnswer("a", "a", tokens=served((-1.0 - move, 9.0))) for move in (0.0, 0.3)
    )
    for num_moved, num_still in ((2, 0), (3, 97)):
        answers = [moved] * num_moved + [still] * num_still
        parity, differing = compare_chats(
            [probe(-1.0)] * len(answers), answers, tolerance=tolerance
        )
        assert (parity.matching, parity.ties, differing) == (len(answers), 0, [])
        assert parity.mean_difference == pytest.approx(0.3 * num_moved / len(answers))
    for num_moved, num_still in ((3, 0), (3, 96)):
        answers = [moved] * num_moved + [still] * num_still
        parity, differing = compare_chats(
            [probe(-1.0)] * len(answers), answers, tolerance=tolerance
        )
        assert (parity.matching, differing) == (num_still, [(probe(-1.0), moved)] * num_moved)
    refused = ServedAnswer("", "refused with 404, no model")
    parity, differing = compare_chats([probe(-1.0)] * 2, [still, refused], tolerance=tolerance)
    assert (parity.matching, differing) == (1, [(probe(-1.0), refused)])


def sharp_model(*, dtype: torch.dtype = torch.float32, seed: int = 2) -> Any:
    """Return a small model whose most likely tokens are likely, as those of a trained model are."""
    lm = language_model()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in lm.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.3)
    return lm.to(dtype)


def prompts(*, system: str | None = "be brief", template: str = TEMPLATE) -> list[list[int]]:
    other = tokenizer(template)
    return [prompt_tokens((("user", text),), tokenizer=other, system=system) for text in QUESTIONS]


def answered(lm: Any, prompts: Sequence[list[int]], *, skipped: int = 0) -> list[ServedAnswer]:
    """Return greedy answers by forward passes over single answers; `skipped` positions precede the
    answer."""
    end_id, answers = int(TOKENIZER.eos_token_id), []
    for prompt in prompts:
        ids, tokens = list(prompt), list[ServedToken]()
        while len(tokens) < NUM_TOKENS and (not tokens or ids[-1] != end_id):
            positions = torch.arange(len(ids)) + skipped * (torch.arange(len(ids)) >= len(prompt))
            with torch.no_grad():
                logits = lm(
                    torch.tensor([ids]), position_ids=positions[None], use_cache=False
                ).logits[0, -1]
            likely = torch.log_softmax(logits.float(), dim=-1).topk(2)
            ids.append(int(likely.indices[0]))
            tokens.append(
                ServedToken(float(likely.values[0]), float(likely.values[0] - likely.values[1]))
            )
        output = str([token for token in ids[len(prompt) :] if token != end_id])
        answers.append(ServedAnswer(output, output, tokens=tuple(tokens)))
    return answers


@cache
def probes(dtype: str) -> list[ParityProbe]:
    """Return the answers of continuous batching of all questions, as in the evaluation."""
    lm, end_id = sharp_model(dtype=getattr(torch, dtype)), int(TOKENIZER.eos_token_id)
    evaluated = answer_prompts(lm, prompts(), max_new_tokens=NUM_TOKENS, end_id=end_id)
    return [
        ParityProbe("", "", {}, str(answer.tokens), None, answer.logprobs) for answer in evaluated
    ]


def num_refused(answers: Sequence[ServedAnswer], *, dtype: str = "float32") -> int:
    return len(compare_chats(probes(dtype), answers, tolerance=TOKEN_TOLERANCE[dtype])[1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_another_kernel_of_the_same_model_passes(dtype: str, attention: str) -> None:
    lm = sharp_model(dtype=getattr(torch, dtype))
    lm.set_attn_implementation(attention)
    assert num_refused(answered(lm, prompts()), dtype=dtype) == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fault", ["adapter", "system", "template", "position", "next token"])
def test_a_fault_is_refused(fault: str, dtype: str) -> None:
    lm = sharp_model(dtype=getattr(torch, dtype))
    if fault == "adapter":
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for layer in lm.model.layers:
                weight = layer.self_attn.q_proj.weight
                update = torch.randn(len(weight), 1, generator=generator) @ torch.randn(
                    1, 32, generator=generator
                )
                weight.add_((0.1 * update).to(weight.dtype))
        answers = answered(lm, prompts())
    elif fault == "system":
        answers = answered(lm, prompts(system=None))
    elif fault == "template":
        answers = answered(lm, prompts(template=TEMPLATE.replace("</s>", "</s> ")))
    elif fault == "position":
        answers = answered(lm, prompts(), skipped=1)
    else:
        same = answered(lm, prompts())
        answers = [
            answer._replace(tokens=(*answer.tokens[1:], answer.tokens[-1])) for answer in same
        ]
    assert num_refused(answers, dtype=dtype) > 0
