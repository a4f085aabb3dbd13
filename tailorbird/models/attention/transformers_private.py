"""All uses of private parts of transformers, written for `TRANSFORMERS_VERSION`."""

import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn
from transformers import LogitsProcessorList, PreTrainedModel
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor as ContinuousBatchingLogitsProcessor,
)
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.continuous_batching.requests import RequestStatus as RequestStatus
from transformers.generation.continuous_batching.scheduler import (
    SCHEDULER_MAPPING as SCHEDULER_MAPPING,
)
from transformers.generation.continuous_batching.scheduler import FIFOScheduler as FIFOScheduler
from transformers.generation.continuous_batching.utils import WorkloadHints
from transformers.integrations.sdpa_attention import (
    sdpa_attention_forward as sdpa_attention_forward,
)
from transformers.masking_utils import create_causal_mask as create_causal_mask
from transformers.masking_utils import (
    packed_sequence_mask_function as packed_sequence_mask_function,
)
from transformers.masking_utils import sdpa_mask as sdpa_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

TRANSFORMERS_VERSION = "5.24"  # checked by tests/unit/models/test_transformers_private.py

Bounds = tuple[
    int, ...
]  # start of each request's tokens in a packed pass, and end of the last request's tokens


def has_causal_model(model_type: str) -> bool:
    """Return True if transformers has a causal language model of this type."""
    return model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def workload_hints(prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> WorkloadHints:
    """Return the hints with which `generate_batch` sizes the cache of continuous batching."""
    longest = max(len(prompt) for prompt in prompts)
    return WorkloadHints(
        max_prompt_length=longest, max_generated_length=max_new_tokens, num_requests=len(prompts)
    )


def attention_implementation(config: Any) -> str | None:
    """Return the name of a loaded model's attention implementation."""
    name: str | None = config._attn_implementation
    return name


def can_set_attention_implementation(lm: Any) -> bool:
    """Return True if a loaded model has no fixed attention."""
    return bool(lm._can_set_attn_implementation())


def flash_restriction(lm: Any, *, max_head_size: int) -> str | None:
    """Return the reason why this model cannot be trained with a plain flash attention kernel, or
    None."""
    config = lm.config.get_text_config()
    kind = lm.config.model_type
    if not (
        lm._supports_flash_attn
        and lm._supports_attention_backend
        and can_set_attention_implementation(lm)
    ):
        return f"models of type {kind} do not support flash attention"
    if getattr(lm, "_compatible_flash_implementations", None):  # attention sinks
        return f"models of type {kind} need a kernel of their own"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return f"models of type {kind} cap the attention scores"
    num_heads = getattr(config, "num_attention_heads", 1)
    head_size = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    if getattr(config, "v_head_dim", head_size) != head_size or head_size > max_head_size:
        return f"models of type {kind} have a head size that it does not support"
    return None


def transformers_model(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model in a model, without a PEFT adapter around it."""
    return next(module for module in model.modules() if isinstance(module, PreTrainedModel))


def transformer_layers(model: nn.Module) -> list[nn.Module]:
    """Return the attention and MLP blocks of the transformers model in a model; empty for an
    unknown architecture."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def request_bounds(options: Mapping[str, Any]) -> tuple[Bounds, Bounds] | None:
    """Return the bounds of queries and keys in a pass of continuous batching, from the attention's
    keyword arguments.

    Return None outside continuous batching, for a layer that uses another layer's keys, and with a
    position bias.
    """
    keys = options.get("cu_seq_lens_k")
    if (
        "write_index" not in options
        or not isinstance(keys, torch.Tensor)
        or options.get("position_bias") is not None
    ):
        return None
    return tuple(options["cu_seq_lens_q"].tolist()), tuple(keys.tolist())


def request_id(request: Any) -> str:
    """Return the id of a request in a pass of continuous batching."""
    return str(request.state.request_id)


def request_progress(request: Any) -> tuple[Mapping[str, Any], int]:
    """Return the arguments of a request's logits processor, and the position of its next token."""
    state = request.state
    return state.logit_processor_kwargs, len(state.initial_tokens) + len(state.generated_tokens)


def tokens_from(request: Any, position: int) -> list[int]:
    """Return the tokens of a request from a position on, of its prompt and its answer so far."""
    state = request.state
    num_initial = len(
        state.initial_tokens
    )  # with the first tokens of the answer, after an eviction from the cache
    if position >= num_initial:
        return list(state.generated_tokens[position - num_initial :])
    return [*state.initial_tokens[position:], *state.generated_tokens]


def set_logits_processor(manager: Any, processor: ContinuousBatchingLogitsProcessor) -> None:
    """Set the only logits processor of a continuous batching manager that has not started."""
    manager.logit_processor = ContinuousBatchingLogitsProcessorList(
        LogitsProcessorList([processor])
    )
    manager.logit_processor.tensors_required = 1


def cache_size(manager: Any) -> int:
    """Return the size of a continuous batching manager's key-value cache, in tokens."""
    config = manager.continuous_batching_config
    return int(config.num_blocks * config.page_size)


def fatal_error(manager: Any) -> Exception | None:
    """Return the error that ended the thread of a continuous batching manager, or None."""
    error: Exception | None = manager.background_thread_status.fatal_error
    return error


def discard_unrouted_outputs(manager: Any) -> None:
    """Discard the outputs of requests without a result handler."""
    with suppress(queue.Empty):
        while True:
            manager.output_router.output_queue.get_nowait()


def remove_result_handler(manager: Any, request_id: str) -> None:
    """Remove the result handler of a cancelled request, if it still exists."""
    manager.output_router.result_handlers.pop(request_id, None)


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace a module's forward function within the block. Its hooks, such as those of DeepSpeed,
    still run."""
    replaced = vars(module).get("forward")  # a kernel's, if any
    module.forward = forward
    try:
        yield
    finally:
        if replaced is None:
            del module.forward
        else:
            module.forward = replaced


def needs_all_logits(causal: Any) -> bool:
    """Return True if the loss of a transformers model cannot be computed in chunks of its head's
    output.

    Some models scale or cap the output of the head; also true if this cannot be found out without
    the other layers. A loss in chunks would return the gradients of a weight and a bias in another
    order, and DeepSpeed reduces gradients in their order, which must be the same on ranks with few
    targets.
    """
    base = causal.base_model
    head = causal.get_output_embeddings()
    if base is causal or type(head) is not nn.Linear or head.bias is not None:
        return True
    output = torch.zeros(1, 1, 1)
    states = MoeModelOutputWithPast(last_hidden_state=output)
    try:
        with (
            replaced_forward(base, lambda *_, **__: states),
            replaced_forward(head, lambda _: output),
        ):
            return (
                causal.forward(input_ids=torch.zeros(1, 1, dtype=torch.int64)).logits is not output
            )
    except Exception:  # models need various other outputs of their layers
        return True
