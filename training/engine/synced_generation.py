"""Generate answers with a language model whose parameters are partitioned among the ranks (ZeRO
stage 3)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from transformers import LogitsProcessor, LogitsProcessorList

from tailorbird.models.generation import Answer, greedy
from tailorbird.models.grammar.compiler import FormatError, Grammar
from tailorbird.models.grammar.processor import GrammarLogits
from tailorbird.models.pretrained import default_device
from training.engine.memory_estimate import answered_rows
from training.ranks import any_rank


class _LogProbabilities(LogitsProcessor):  # type: ignore[misc]
    """Records the log-probability of the most likely token of each row at each step."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        self.steps.append(torch.log_softmax(scores.float(), dim=-1).amax(dim=-1))
        return scores


def synced_answers(
    lm: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end_id: int,
    grammar: Grammar | None = None,
) -> list[Answer]:
    """Return the greedy answer to each prompt of this rank. Every rank must call it, also without
    prompts.

    Each forward pass gathers the parameters layer by layer, so all ranks run the same number of
    passes: the longest prompt of any rank determines how many prompts each of them answers at a
    time. Raises FormatError on every rank if an answer of one ended because of its format.
    """
    most = torch.tensor([len(prompts), max(map(len, prompts), default=1)], device=default_device())
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    num_prompts, longest = most.tolist()
    num_rows = answered_rows(longest + max_new_tokens)
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    answers: dict[int, Answer] = {}
    fault: str | None = None
    for start in range(0, num_prompts, num_rows):
        rows = order[start : start + num_rows]
        batch = [prompts[index] for index in rows]
        if not batch:
            batch = [[end_id]]  # the answer to this prompt is discarded
        constraint = None
        if grammar is not None:
            constraint = GrammarLogits(grammar, num_rows=len(batch))
        answered = _answer_batch(
            lm, batch, max_new_tokens=max_new_tokens, end_id=end_id, constraint=constraint
        )
        if constraint is not None:
            fault = fault or constraint.format_fault()
        answers |= zip(rows, answered, strict=False)
    if any_rank(fault is not None):
        raise FormatError(
            fault
            or "another rank could not generate an answer in the format; its log has the cause"
        )
    return [answers[index] for index in range(len(prompts))]


def _answer_batch(
    lm: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end_id: int,
    constraint: GrammarLogits | None,
) -> list[Answer]:
    width = max(map(len, prompts))
    input_ids = torch.tensor(
        [[end_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    )
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    recorded = _LogProbabilities()
    processors = [recorded] if constraint is None else [constraint, recorded]
    output = lm.generate(
        input_ids=input_ids.to(default_device()),
        attention_mask=mask.to(default_device()),
        generation_config=greedy(max_new_tokens=max_new_tokens, end_id=end_id),
        logits_processor=LogitsProcessorList(processors),
        synced_gpus=True,
    )
    log_probabilities = torch.stack(recorded.steps, dim=1).cpu()
    return [
        _answer(tokens, row, end_id=end_id)
        for tokens, row in zip(output[:, width:].tolist(), log_probabilities, strict=True)
    ]


def _answer(tokens: list[int], log_probabilities: torch.Tensor, *, end_id: int) -> Answer:
    """Return the answer of a row, whose tokens after the end of turn are padding."""
    is_finished = end_id in tokens
    num_generated = len(tokens)
    if is_finished:
        num_generated = tokens.index(end_id) + 1  # with the end of turn
        tokens = tokens[: num_generated - 1]
    values = log_probabilities[:num_generated].double()
    confidence = float(values.mean().exp())
    return Answer(tokens, is_finished, confidence=confidence, logprobs=tuple(values.tolist()))
