"""Another kernel of the same model passes a comparison with the evaluation; another model does
not."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch

from tailorbird.data.chat_template import prompt_tokens
from tailorbird.models.generation import answer_prompts
from tailorbird.release.comparison import (
    TOKEN_TOLERANCE,
    TokenTolerance,
    Tolerance,
    compare_chats,
    compare_label,
    compare_labels,
    compare_tokens,
)
from tailorbird.release.probe_requests import ParityProbe, ProbePair, ServedAnswer, ServedToken
from tests.small_chat import TEMPLATE, language_model, tokenizer

ROW = 0.02
LIMIT = 0.1
TOKENIZER = tokenizer()
QUESTIONS = ("abc", "what is a dog", "zzzz zzzz zzzz")
NUM_TOKENS = 12
REFUSED = ServedAnswer("", "refused with 404, no model")


def label_probe(confidence: float | None = 0.6) -> ParityProbe:
    return ParityProbe("7", "Glaucoma", {"input": "a"}, "eye", confidence)


def label(output: str, **scores: float) -> ServedAnswer:
    return ServedAnswer(output, output, scores)


@pytest.mark.parametrize(
    ("answer", "matches", "is_tie"),
    [
        (label("eye", eye=0.6 + ROW / 2, bone=0.3), True, False),
        (label("eye", eye=0.6 + 2 * ROW, bone=0.3), False, False),
        (label("bone", eye=0.6, bone=0.6 + ROW / 2), True, True),
        (label("bone", eye=0.6 - ROW / 2, bone=0.6 + ROW), False, False),
        (label("bone", eye=0.475, bone=0.485), False, True),  # the probability differs
        (REFUSED, False, False),
    ],
)
def test_a_label_matches_within_the_row_tolerance_or_in_a_tie(
    answer: ServedAnswer, matches: bool, is_tie: bool
) -> None:
    result = compare_label(label_probe(), answer, limit=ROW)
    assert (result.matches, result.is_tie) == (matches, is_tie)
    # Without a probability, the output must be equal.
    has_same_label = answer.output == "eye"
    assert compare_label(label_probe(None), answer, limit=ROW).matches is has_same_label


def test_large_differences_are_tolerated_in_few_rows_only() -> None:
    tolerance = Tolerance(row=0.2, mean=0.01)
    still = (label_probe(), label("eye", eye=0.6))
    moved = (label_probe(), label("eye", eye=0.72))
    drifted = (label_probe(), label("eye", eye=0.61 + 1e-6))
    refused = (label_probe(), REFUSED)
    parity, differing = compare_labels([*[still] * 12, moved], tolerance=tolerance)
    assert (parity.rows, parity.matching, differing) == (13, 13, [])
    assert compare_labels([*[still] * 10, moved], tolerance=tolerance)[1] == [moved]
    # A refused row does not count towards the mean of the others.
    pairs = [moved, *[still] * 10, refused]
    assert compare_labels(pairs, tolerance=tolerance)[1] == [moved, refused]
    pairs = [moved, *[still] * 12, refused]
    assert compare_labels(pairs, tolerance=tolerance)[1] == [refused]
    assert len(compare_labels([drifted] * 64, tolerance=tolerance)[1]) == 64


def tokens(*pairs: tuple[float, float]) -> tuple[ServedToken, ...]:
    return tuple(ServedToken(logprob, lead) for logprob, lead in pairs)


@pytest.mark.parametrize(
    ("served", "text", "matches", "is_tie"),
    [
        (((-0.55, 3.0), (-0.15, 4.0)), "a", True, False),
        (((-0.5, 3.0),), "a", False, False),
        (((float("nan"), 0.0), (-0.1, 0.0)), "a", False, False),
        (((-1.5, 0.0),), "b", False, False),  # a tie with another probability
        (((-0.5, 0.0), (-0.4, 0.0)), "a", False, False),  # another probability after a tie
        (((-0.52, 3.0), (-0.09, LIMIT), (-2.5, 3.0)), "b", True, True),
        (((-0.52, 3.0), (-0.09, LIMIT + 0.01), (-2.5, 0.0)), "b", False, False),
    ],
)
def test_an_answer_matches_token_by_token_up_to_a_tie(
    served: tuple[tuple[float, float], ...], text: str, matches: bool, is_tie: bool
) -> None:
    answer = ServedAnswer(text, text, tokens=tokens(*served))
    result = compare_tokens(probe(-0.5, -0.1), answer, limit=LIMIT)
    assert (result.matches, result.is_tie) == (matches, is_tie)
    if is_tie:
        assert result.moves == pytest.approx([0.02, 0.01])


def probe(*logprobs: float) -> ParityProbe:
    return ParityProbe("7", "Glaucoma", {}, "a", None, logprobs)


@pytest.mark.parametrize(
    ("num_moved", "num_still", "is_refused"),
    [(2, 0, False), (3, 97, False), (3, 0, True), (3, 96, True)],
)
def test_a_few_tokens_may_exceed_the_usual_difference_and_more_are_refused(
    num_moved: int, num_still: int, is_refused: bool
) -> None:
    still = (probe(-1.0), ServedAnswer("a", "a", tokens=tokens((-1.0, 9.0))))
    moved = (probe(-1.0), ServedAnswer("a", "a", tokens=tokens((-1.3, 9.0))))
    pairs = [moved] * num_moved + [still] * num_still
    parity, differing = compare_chats(pairs, tolerance=TokenTolerance(largest=0.5, usual=0.2))
    assert differing == ([moved] * num_moved if is_refused else [])
    assert parity.matching == len(pairs) - len(differing)
    assert parity.mean_difference == pytest.approx(0.3 * num_moved / len(pairs))


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
    end_id = int(TOKENIZER.eos_token_id)
    answers = []
    for prompt in prompts:
        ids = list(prompt)
        tokens: list[ServedToken] = []
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
    pairs: list[ProbePair] = list(zip(probes(dtype), answers, strict=True))
    return len(compare_chats(pairs, tolerance=TOKEN_TOLERANCE[dtype])[1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_kernel_of_the_same_model_passes(dtype: str) -> None:
    lm = sharp_model(dtype=getattr(torch, dtype))
    lm.set_attn_implementation("eager")
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
