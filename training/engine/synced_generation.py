"""Generate answers with a language model whose parameters are partitioned among the ranks (ZeRO
stage 3)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from tailorbird.models.generation import Answer, answer_batch
from tailorbird.models.grammar.compiler import FormatError, Grammar
from tailorbird.models.grammar.processor import GrammarLogits
from tailorbird.models.pretrained import default_device
from training.engine.memory_estimate import answered_rows
from training.ranks import any_rank


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
        answered = answer_batch(
            lm,
            batch,
            max_new_tokens=max_new_tokens,
            end_id=end_id,
            constraint=constraint,
            synced_gpus=True,
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
