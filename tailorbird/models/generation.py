"""Generate answers with a causal language model, and compute the likelihood of reference
answers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
)

from cluster.progress import counter, tracked
from tailorbird.data.chat_template import Tokens
from tailorbird.data.length_batches import length_batches, pass_cost
from tailorbird.data.packing import pack
from tailorbird.models.attention.continuous_batching_attention import register_request_attention
from tailorbird.models.attention.transformers_private import (
    fatal_error,
    set_logits_processor,
    workload_hints,
)
from tailorbird.models.causal_lm import ChatModel, as_tensors
from tailorbird.models.devices import is_divided
from tailorbird.models.grammar.compiler import FormatError, Grammar
from tailorbird.models.grammar.processor import GrammarLogits, GrammarProcessor
from tailorbird.models.pretrained import default_device

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
DIVIDED_ROWS = 16  # prompts that a model on several GPUs answers at the same time by default
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

    A model that is divided among GPUs uses `generate` instead, because continuous batching has its
    cache on one device. `max_requests` is the maximum number of prompts that are answered at the
    same time. By default, it suits the device. Raises RuntimeError if a prompt fails, and
    FormatError if the grammar is too slow or the tokenizer cannot follow it.
    """
    if is_divided(lm):
        return _divided_answers(
            lm,
            prompts,
            max_new_tokens=max_new_tokens,
            end_id=end_id,
            grammar=grammar,
            num_rows=max_requests or DIVIDED_ROWS,
        )
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
    with torch.no_grad():
        manager = lm.init_continuous_batching(
            generation_config=config,
            continuous_batching_config=batching_config(lm.device, return_logprobs=True, **options),
            workload_hints=workload_hints(prompts, max_new_tokens=config.max_new_tokens),
        )
        processor = None
        if grammar is not None:
            processor = GrammarProcessor(grammar)
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
    if len(outputs) < len(ids):
        error = fatal_error(manager)
        reason = error or "see the log for the error"
        raise RuntimeError(
            f"generation ended before all {len(ids)} prompts were answered: {reason}"
        ) from error
    return {request: outputs[request] for request in ids}


def _divided_answers(
    lm: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end_id: int,
    grammar: Grammar | None,
    num_rows: int,
) -> list[Answer]:
    """Return the answers of a model that is divided among GPUs; see `answer_prompts`."""
    count = counter(len(prompts), unit="answers")
    answers: dict[int, Answer] = {}
    for rows in length_batches([len(prompt) for prompt in prompts], max_rows=num_rows):
        constraint = None
        if grammar is not None:
            constraint = GrammarLogits(grammar, num_rows=len(rows))
        batch = [prompts[row] for row in rows]
        answered = answer_batch(
            lm, batch, max_new_tokens=max_new_tokens, end_id=end_id, constraint=constraint
        )
        if constraint is not None and (fault := constraint.format_fault()):
            raise FormatError(fault)
        answers |= zip(rows.tolist(), answered, strict=True)
        count(len(batch))
    return [answers[row] for row in range(len(prompts))]


class _LogProbabilities(LogitsProcessor):  # type: ignore[misc]
    """Records the log-probability of the most likely token of each row at each step."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        self.steps.append(torch.log_softmax(scores.float(), dim=-1).amax(dim=-1))
        return scores


def answer_batch(
    lm: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end_id: int,
    constraint: GrammarLogits | None,
    synced_gpus: bool = False,
) -> list[Answer]:
    """Decode greedily with `generate`, all prompts in one batch.

    With `synced_gpus`, every rank must call it, and all ranks run the same number of passes.
    """
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
        synced_gpus=synced_gpus,
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
    """Return the mean log-probability, in nats, of the assistant's tokens in each row: [N]."""
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
