"""Generation of answers, which end at stop texts and are returned complete or as a stream of events."""

import logging
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import NamedTuple

from serving.engines.base_chat import ChatEngine, Sampling
from serving.engines.stop_sequences import visible_text
from serving.http.asgi import Events
from serving.http.chat_format import LAST_EVENT, AnswerFormat, AnswerHead, Usage, event, usage_event
from serving.http.chat_schemas import CompletionRequest, PromptRequest
from serving.http.metrics import record_failure
from serving.http.schemas import RequestError

NUM_CONTEXT_TOKENS = 5
"""Number of prompt tokens to decode together with a continuation. Some tokenizers drop a space at the beginning of a
text."""

_log = logging.getLogger("ray.serve")


class GenerationRequest(NamedTuple):
    """The engine, the prompt and the options of one generation."""

    engine: ChatEngine
    prompt: list[int]
    max_new_tokens: int
    sampling: Sampling
    stops: tuple[str, ...]
    continues: bool = False
    """True for a text completion, whose white space is kept. A chat answer is stripped, as in the evaluation."""


class PartialAnswer(NamedTuple):
    """The generated part of an answer."""

    text: str
    num_tokens: int
    finish_reason: str | None
    """`stop` or `length`; None before the end."""


OnFinish = Callable[[PartialAnswer], None]  # called with the answer, which is partial if the generation failed


def generation_request(
    request: PromptRequest, prompt: list[int], *, engine: ChatEngine, param: str, max_new_tokens: int | None
) -> GenerationRequest:
    """Return the GenerationRequest for a request; `param` names the request's field with the prompt.

    `max_new_tokens` is the recipe's limit. Raises RequestError 400 if the request exceeds it or the model's length.
    """
    evaluated = engine.prompting.max_new_tokens
    limit = max_new_tokens or evaluated
    requested = request.limit or min(evaluated, limit)
    if requested > limit:
        message = f"must be at most {limit} (the recipe's serving.max_new_tokens), not {requested}"
        raise RequestError(400, "invalid_request", f"max_tokens: {message}", param="max_tokens")
    if len(prompt) + requested > engine.max_length:
        message = (
            f"the prompt has {len(prompt)} tokens and the answer up to {requested}, but the model accepts "
            f"{engine.max_length} in total; shorten the {param} or lower max_tokens"
        )
        raise RequestError(400, "too_long", message, param=param, code="context_length_exceeded")
    sampling = Sampling(
        temperature=float(request.temperature or 0.0),
        top_p=1.0 if request.top_p is None else float(request.top_p),
        seed=secrets.randbits(64) if request.seed is None else request.seed % 2**64,
    )
    continues = isinstance(request, CompletionRequest)
    return GenerationRequest(engine, prompt, requested, sampling, request.stops, continues=continues)


async def partial_answers(generation: GenerationRequest, *, streaming: bool) -> AsyncGenerator[PartialAnswer, None]:
    """Yield the answer as it grows, or only the complete one without `streaming`. The last one has a finish reason."""
    engine = generation.engine
    decode = partial(engine.tokenizer.decode, skip_special_tokens=True)
    before = generation.prompt[-NUM_CONTEXT_TOKENS:] if generation.continues else []
    num_chars_before = len(decode(before)) if before else 0
    generating = engine.generate(
        generation.prompt, max_new_tokens=generation.max_new_tokens, sampling=generation.sampling, streaming=streaming
    )
    with engine.in_use():
        async with aclosing(generating):
            async for tokens, ended in generating:
                visible = tokens[:-1] if tokens[-1:] == [engine.end_id] else tokens
                text = decode(before + visible)[num_chars_before:]
                text, stopped = visible_text(
                    text, stops=generation.stops, ended=ended, stripped=not generation.continues
                )
                reason = "stop" if stopped or len(visible) < len(tokens) else "length" if ended else None
                yield PartialAnswer(text, len(tokens), reason)
                if reason is not None:
                    return


async def whole_answer(generation: GenerationRequest) -> PartialAnswer:
    """Return the complete answer. With stop texts, generation ends at the first one."""
    last = PartialAnswer("", 0, None)
    async with aclosing(partial_answers(generation, streaming=bool(generation.stops))) as answers:
        async for answer in answers:
            last = answer
    return last


async def stream_events(
    generation: GenerationRequest, *, format: AnswerFormat, head: AnswerHead, with_usage: bool, on_finish: OnFinish
) -> Events:
    """Yield the answer as OpenAI's events. An error before the first event is raised; a later one is the last event."""
    last = PartialAnswer("", 0, None)
    started = False
    try:
        async with aclosing(partial_answers(generation, streaming=True)) as answers:
            async for answer in answers:
                if not started:
                    started = True
                    for data in format.first(head):
                        yield data
                new, last = answer.text[len(last.text) :], answer
                if new:
                    yield format.piece(head, text=new)
        yield format.last(head, finish_reason=last.finish_reason)
        if with_usage:
            yield usage_event(head, usage=Usage(len(generation.prompt), last.num_tokens))
        yield LAST_EVENT
    except Exception as error:
        if not started:
            raise
        _log.exception("the stream of %s failed", head.id)
        message = "the generation failed; see the replica's log"
        failure = error if isinstance(error, RequestError) else RequestError(500, "internal_error", message)
        record_failure(failure.status)
        yield event(failure.body)
    finally:
        if started:  # a client that disconnected has received this part
            on_finish(last)
