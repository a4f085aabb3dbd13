"""Generate answers and score given ones with a causal language model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tailorbird.data.chat_template import Tokens
from tailorbird.data.packing import packed
from tailorbird.models.causal_lm import ChatModel, as_tensors
from tailorbird.models.continuous_batching_attention import attend_apart

CACHE_TOKENS, PAGE_TOKENS, BATCH_TOKENS = 16384, 32, 512
"""Of continuous batching on CPU: tokens in the cache of keys and values, in one page of it, and in one forward pass.

Transformers would take most of the machine's memory for the cache.
"""
SCORED_TOKENS = 4096
"""Tokens whose likelihood is computed in one forward pass."""


@dataclass(frozen=True)
class Answer:
    """What a model said to one prompt."""

    tokens: list[int]
    """Without the token that ends the turn."""
    finished: bool
    """Whether it came to an end, or was cut at the most tokens allowed."""
    confidence: float
    """exp of the mean log-probability of its tokens."""


def answer_prompts(lm: Any, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, end_id: int) -> list[Answer]:
    """The most likely next token again and again, for many prompts at once by transformers' continuous batching.

    Raises RuntimeError where the engine gives up on a prompt.
    """
    attend_apart()
    found = lm.generate_batch(
        [list(prompt) for prompt in prompts],
        generation_config=greedy(max_new_tokens=max_new_tokens, end_id=end_id),
        continuous_batching_config=batching_config(return_logprobs=True),
        warmup=False,
    )
    answers = []
    for place, output in enumerate(found.values()):
        if output.error is not None or not output.is_finished():
            raise RuntimeError(
                f"the model gave no answer to prompt {place}: {output.error or 'it was left unfinished'}"
            )
        tokens = list(output.generated_tokens)
        finished = bool(tokens) and tokens[-1] == end_id
        confidence = float(np.exp(np.mean(output.logprobs))) if output.logprobs else 0.0
        answers.append(Answer(tokens[:-1] if finished else tokens, finished, confidence))
    if len(answers) != len(prompts):
        raise RuntimeError(f"the model answered {len(answers)} of {len(prompts)} prompts; see the log for its error")
    return answers


def greedy(*, max_new_tokens: int, end_id: int) -> Any:
    """The generation that is evaluated: the most likely token each time, up to the end of the turn."""
    from transformers import GenerationConfig

    return GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=end_id, pad_token_id=end_id)


def batching_config(**options: Any) -> Any:
    """Continuous batching with a cache that fits beside the model; on a GPU transformers sizes it."""
    from transformers import ContinuousBatchingConfig

    if not torch.cuda.is_available():
        sizes = {"num_blocks": CACHE_TOKENS // PAGE_TOKENS, "page_size": PAGE_TOKENS, "max_batch_tokens": BATCH_TOKENS}
        options = sizes | options
    return ContinuousBatchingConfig(**options)


def log_likelihoods(model: ChatModel, rows: Sequence[Tokens], *, pad_id: int) -> NDArray[np.float64]:
    """Mean log-probability, in nats, of what the assistant says in each row: [N]."""
    device = next(model.parameters()).device
    result = np.zeros(len(rows))
    with torch.inference_mode():
        for places in _parts(rows):
            some = packed([rows[place] for place in places], pad_id=pad_id)
            logits = model(*as_tensors(some, device=device))
            told = torch.log_softmax(logits, dim=-1).gather(1, torch.from_numpy(some.targets).to(device)[:, None])
            sums = np.bincount(some.target_owners, weights=told[:, 0].cpu().double().numpy(), minlength=len(places))
            result[places] = sums / np.maximum(np.bincount(some.target_owners, minlength=len(places)), 1)
    return result


def _parts(rows: Sequence[Tokens]) -> Iterator[NDArray[np.int64]]:
    """Places of rows of like length, as many as `SCORED_TOKENS` hold, at least one."""
    order = np.argsort([-len(row) for row in rows], kind="stable")
    begin = 0
    while begin < len(order):
        size = max(1, SCORED_TOKENS // len(rows[order[begin]]))
        yield order[begin : begin + size]
        begin += size
