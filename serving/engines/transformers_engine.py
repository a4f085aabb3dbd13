"""Chat engine on transformers' continuous batching."""

import asyncio
import uuid
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from serving.engines.language_model import (
    Generation,
    LanguageModelEngine,
    engine_failed,
    engine_stopped,
    refused_format,
)
from serving.http.schemas import RequestError
from tailorbird.data.chat_template import prompt_tokens
from tailorbird.models.grammar.compiler import FormatError, compiler_for

if TYPE_CHECKING:
    from serving.engines.sampling import Sampler
    from tailorbird.models.grammar.matcher import AnswerMatcher
    from tailorbird.models.loading import LoadedChat
    from tailorbird.registry.versions import ModelVersion

WARM_UP_S = 120  # timeout of the first answer
CACHE_SHARE = 0.4
"""Share of a replica's free GPU memory for the cache of a version, so that another version fits
while it replaces this one. By default, transformers takes most of the GPU, also from other replicas
on it."""


class TransformersEngine(LanguageModelEngine):
    """An engine that runs forward passes over all active requests in a separate thread."""

    def __init__(
        self, loaded: "LoadedChat[ModelVersion]", *, max_batch_size: int, num_gpus: float = 0
    ) -> None:
        """Start the engine of a version. Raises FormatError for its format, and RuntimeError if it
        does not answer."""
        compiler = compiler_for(loaded.lm, tokenizer=loaded.tokenizer)
        super().__init__(loaded, compiler=compiler)
        from serving.engines.sampling import Sampler

        self._sampler = Sampler()
        options = {"max_requests_per_batch": max_batch_size, **cache_options(num_gpus)}
        self._manager = _start(loaded, sampler=self._sampler, end_id=self.end_id, options=options)
        self.max_length = _max_length(loaded.lm, self._manager)

    @property
    def running(self) -> bool:
        return bool(self._manager.is_running())

    def end(self) -> None:
        self._manager.destroy()

    async def generate(
        self, generation: Generation
    ) -> AsyncGenerator[tuple[list[int], bool], None]:
        from serving.engines.fair_scheduler import named_by_client
        from tailorbird.models.attention.transformers_private import (
            discard_unrouted_outputs,
            remove_result_handler,
        )
        from tailorbird.models.grammar.matcher import AnswerMatcher

        grammar = generation.grammar
        matcher = None if grammar is None else AnswerMatcher(grammar)
        request_id = named_by_client(uuid.uuid4().hex)
        updated = asyncio.Event()
        latest: list[Any] = []

        def on_output(output: Any) -> None:
            # Each output contains all tokens so far, so a slow reader misses none.
            latest[:] = [output]
            updated.set()

        # outputs of requests that were cancelled during a pass
        discard_unrouted_outputs(self._manager)
        self._manager.register_result_handler(request_id, on_output)
        if generation.likelihoods is not None:
            self._sampler.recorded[request_id] = generation.likelihoods
        if matcher is not None:
            self._sampler.matchers[request_id] = matcher
        accepted = self._manager.add_request(
            generation.prompt,
            request_id=request_id,
            max_new_tokens=generation.max_new_tokens,
            streaming=generation.streaming,
            **(generation.sampling._asdict() if generation.sampling.temperature else {}),
        )
        if accepted is None:
            raise engine_stopped()
        ended = False
        num_yielded = 0
        try:
            while not ended:
                await updated.wait()
                updated.clear()
                output = latest[0]
                ended = output.is_finished()
                if output.error is not None:
                    raise engine_failed() from RuntimeError(output.error)
                tokens = output.generated_tokens[num_yielded:]
                num_yielded += len(tokens)
                if ended and matcher is not None and grammar is not None:
                    _require_usable(matcher, is_version_format=grammar.is_version_format)
                yield tokens, ended
        finally:
            self._sampler.recorded.pop(request_id, None)
            self._sampler.matchers.pop(request_id, None)
            if not ended:
                self._manager.cancel_request(request_id)
                remove_result_handler(self._manager, request_id)


def _require_usable(matcher: "AnswerMatcher", *, is_version_format: bool) -> None:
    """Raise RequestError if the answer failed: 500 because of the model, and 400 because of the
    client's format."""
    try:
        matcher.require_usable()
    except FormatError as error:
        if not is_version_format:
            raise refused_format(error) from None
        message = f"the model cannot answer in the format of its version: {error}"
        raise RequestError(500, "engine_failed", message) from None
    except RuntimeError as error:
        raise engine_failed() from error


def cache_options(num_gpus: float) -> dict[str, float]:
    """Return the options for the size of the cache of a replica with this part of a GPU; none for a
    CPU."""
    if num_gpus:
        return {"max_memory_percent": CACHE_SHARE * min(num_gpus, 1)}
    return {}


def _start(
    loaded: "LoadedChat[ModelVersion]",
    *,
    sampler: "Sampler",
    end_id: int,
    options: dict[str, float],
) -> Any:
    """Return the running engine after a first answer, which prepares kernels; raise RuntimeError if
    it fails."""
    import torch

    from serving.engines.fair_scheduler import FAIR
    from tailorbird.models.attention.continuous_batching_attention import register_request_attention
    from tailorbird.models.attention.transformers_private import set_logits_processor
    from tailorbird.models.generation import batching_config, greedy

    register_request_attention()
    with torch.inference_mode():
        lm: Any = loaded.lm
        manager = lm.init_continuous_batching(
            generation_config=greedy(max_new_tokens=loaded.prompting.max_new_tokens, end_id=end_id),
            continuous_batching_config=batching_config(
                lm.device,
                scheduler_type=FAIR,
                use_cuda_graph=False,
                use_async_batching=False,
                **options,
            ),
        )
        set_logits_processor(manager, sampler)
        manager.start()
    prompting = loaded.prompting
    conversation = (("user", "the first pass prepares kernels"),)
    prompt = prompt_tokens(
        conversation, tokenizer=loaded.tokenizer, system=prompting.system, shots=prompting.shots
    )
    manager.add_request(prompt, max_new_tokens=2)
    output = manager.get_result(timeout=WARM_UP_S)
    if output is None or output.error is not None:
        manager.stop(hard_stop=True)
        manager.destroy()
        raise RuntimeError(
            f"the model does not answer: {output.error if output else 'the engine has stopped'}"
        )
    return manager


def _max_length(lm: Any, manager: Any) -> int:
    """Return the maximum number of tokens of a prompt and its answer: the model's context or, if
    smaller, the cache."""
    from tailorbird.models.attention.transformers_private import cache_size
    from tailorbird.models.generation import context_length

    cached: int = cache_size(manager)
    return min(cached, context_length(lm) or cached)
