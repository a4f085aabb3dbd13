"""Generate answers with a causal language model, and compute the likelihood of reference
answers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import ContinuousBatchingConfig, GenerationConfig

from cluster.progress import counter, tracked
from cluster.ranks.process_group import OtherRankFailed, current_group, on_first_rank
from tailorbird.data.chat_template import Tokens
from tailorbird.data.length_batches import length_batches, pass_cost
from tailorbird.data.packing import pack
from tailorbird.models.attention.continuous_batching_attention import register_request_attention
from tailorbird.models.attention.transformers_private import (
    fatal_error,
    set_logits_processor,
    stopped_by_other_rank,
    workload_hints,
)
from tailorbird.models.causal_lm import ChatModel, as_tensors
from tailorbird.models.grammar.compiler import Grammar
from tailorbird.models.grammar.matcher import MAX_MASK_S
from tailorbird.models.grammar.processor import GrammarProcessor

MAX_GPU_REQUESTS = 128
"""Requests in a forward pass on a GPU by default. Attention computes each request over the keys of
all requests, and masks those of the others, so its time increases with the square of their number.
"""
CACHE_TOKENS = 16384
PAGE_TOKENS = 32
BATCH_TOKENS = 512
"""Continuous batching on CPU: number of tokens in the key-value cache, in a page of it, and in a
forward pass.

By default, transformers allocates most of the machine's memory for the cache. On a GPU, it divides
the free memory into cache and forward passes of up to 8,192 tokens, which is what a GPU needs.
"""
SCORED_TOKENS = 4096  # maximum number of tokens in a forward pass of `log_likelihoods`


@dataclass(frozen=True)
class Answer:
    """A model's answer to one prompt."""

    tokens: list[int]  # without the end-of-turn token
    finished: bool  # false if it was truncated at `max_new_tokens`
    confidence: float  # exp of the mean log-probability of its tokens
    logprobs: tuple[float, ...]  # log-probability of each token, the end-of-turn token included


class GenerateAnswers(Protocol):
    """A function that generates the greedy answers of a language model to tokenized prompts."""

    def __call__(
        self,
        lm: Any,
        prompts: Sequence[Sequence[int]],
        /,
        *,
        max_new_tokens: int,
        end_id: int,
        grammar: Grammar | None = None,
    ) -> list[Answer]: ...


def answer_prompts(
    lm: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end_id: int,
    grammar: Grammar | None = None,
    max_requests: int | None = None,
) -> list[Answer]:
    """Decode greedily with the continuous batching of transformers, by the grammar if there is one.

    `max_requests` is the maximum number of prompts that are answered at the same time. By default,
    it suits the device. If ranks hold the model together, every rank must call it, and gets the
    answers to the prompts of the first one. Raises RuntimeError if a prompt fails, its subclass
    OtherRankFailed if another rank caused this, and FormatError if the grammar is too slow or the
    tokenizer cannot follow it.
    """
    register_request_attention()
    config = greedy(max_new_tokens=max_new_tokens, end_id=end_id)
    ids = [list(prompt) for prompt in prompts]
    options: dict[str, int] = {}
    if max_requests is not None:
        options["max_requests_per_batch"] = max_requests
    if not ids:
        return []
    outputs = _outputs(lm, ids, config=config, grammar=grammar, options=options)
    answers = []
    for index, output in enumerate(outputs.values()):
        if output.error is not None or not output.is_finished():
            raise RuntimeError(
                f"the model did not answer prompt {index}: "
                f"{output.error or 'generation did not finish'}"
            )
        tokens = list(output.generated_tokens)
        finished = tokens[-1:] == [end_id]
        if finished:
            tokens.pop()
        confidence = float(np.exp(np.mean(output.logprobs))) if output.logprobs else 0.0
        answers.append(Answer(tokens, finished, confidence, logprobs=tuple(output.logprobs)))
    return answers


def _outputs(
    lm: Any,
    prompts: list[list[int]],
    *,
    config: Any,
    grammar: Grammar | None,
    options: dict[str, int],
) -> dict[str, Any]:
    """Return what `generate_batch` returns, which neither reports its progress nor takes a logits
    processor."""
    if grammar is not None:
        options |= {"use_cuda_graph": False, "use_async_batching": False}
    # In inference mode, ranks could not change their tensors from the manager's thread.
    with torch.no_grad():
        manager = lm.init_continuous_batching(
            generation_config=config,
            continuous_batching_config=batching_config(lm.device, return_logprobs=True, **options),
            workload_hints=workload_hints(prompts, max_new_tokens=config.max_new_tokens),
        )
        processor = None
        if grammar is not None:
            limit = MAX_MASK_S if current_group().size == 1 else float("inf")
            processor = GrammarProcessor(grammar, max_mask_s=limit)
            set_logits_processor(manager, processor)
        with _running(manager):
            outputs = _finished_outputs(manager, prompts, max_new_tokens=config.max_new_tokens)
            if processor is not None:
                processor.require_usable()
            return outputs


@contextmanager
def _running(manager: Any) -> Iterator[None]:
    """Run a manager within the block."""
    manager.start()
    try:
        yield
    finally:
        manager.stop(block=True, timeout=5)
        if fatal_error(manager) is None or not manager.is_running():
            # waits for the manager's thread, which after an error can itself wait for another rank
            manager.destroy()


def _finished_outputs(
    manager: Any, prompts: list[list[int]], *, max_new_tokens: int
) -> dict[str, Any]:
    """Return the outputs of a running manager in the order of the prompts; see `answer_prompts` for
    errors.

    Reports the number of answers to `current_progress`.
    """
    ids = manager.add_requests(inputs=prompts, max_new_tokens=max_new_tokens)
    outputs: dict[str, Any] = {}
    count = counter(len(ids), unit="answers")
    while len(outputs) < len(ids):
        output = manager.get_result(timeout=1)
        if output is not None and output.is_finished():
            outputs[output.request_id] = output
            count(1)
        elif output is None and (fatal_error(manager) is not None or not manager.is_running()):
            break
    if stopped_by_other_rank(manager):
        raise OtherRankFailed(
            "another rank failed while it generated answers, which stopped this rank"
        )
    if len(outputs) < len(ids):
        error = fatal_error(manager)
        reason = error or "see the log for the error"
        raise RuntimeError(
            f"generation ended before all {len(ids)} prompts were answered: {reason}"
        ) from error
    return {request: outputs[request] for request in ids}


def greedy(*, max_new_tokens: int, end_id: int) -> Any:
    """Return the generation config of evaluation: greedy decoding up to the end-of-turn token."""
    return GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=end_id, pad_token_id=end_id
    )


def context_length(lm: Any) -> int | None:
    """Return the maximum number of tokens of a prompt and its answer; None if model and cache set
    no limit.

    The cache limits models on CPU only, because on a GPU it has most of the memory.
    """
    limits = [getattr(lm.config.get_text_config(), "max_position_embeddings", None)]
    if torch.device(lm.device).type == "cpu":
        limits.append(CACHE_TOKENS)
    return min(filter(None, limits), default=None)


def batching_config(device: torch.device | str, **options: Any) -> Any:
    """Return the continuous batching config for a model on a device; transformers sets the size of
    the cache on a GPU.

    The attention is not replaced by that of an installed package, which can load code of a hub.
    """
    if torch.device(device).type == "cpu":
        sizes = {
            "num_blocks": CACHE_TOKENS // PAGE_TOKENS,
            "page_size": PAGE_TOKENS,
            "max_batch_tokens": BATCH_TOKENS,
        }
    else:
        sizes = {"max_requests_per_batch": MAX_GPU_REQUESTS}
    return ContinuousBatchingConfig(auto_switch_to_flash=False, **(sizes | options))


def log_likelihoods(
    model: ChatModel, rows: Sequence[Tokens], *, pad_id: int
) -> NDArray[np.float64]:
    """Return the mean log-probability, in nats, of the assistant's tokens in each row: [N].

    If ranks hold the model together, they compute the rows of the first one, as `answer_prompts`
    does.
    """
    rows = on_first_rank(lambda: rows)
    device = next(model.parameters()).device
    result = np.zeros(len(rows))
    with torch.inference_mode():
        cost = pass_cost(max_tokens=SCORED_TOKENS)
        batches = length_batches([len(row) for row in rows], max_rows=SCORED_TOKENS, cost=cost)
        for indices in tracked(batches, total=len(rows)):
            batch = pack([rows[index] for index in indices], pad_id=pad_id)
            logits = model(*as_tensors(batch, device=device))
            targets = torch.from_numpy(batch.targets).to(device)
            scores = torch.log_softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0]
            ids = batch.target_conversation_ids
            weights = scores.cpu().double().numpy()
            sums = np.bincount(ids, weights=weights, minlength=len(indices))
            result[indices] = sums / np.maximum(np.bincount(ids, minlength=len(indices)), 1)
    return result
