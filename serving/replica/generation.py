"""Generation of answers, which end at stop texts and are returned complete or as a stream of
events."""

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from serving.engines.base_chat import (
    ChatEngine,
    EngineInput,
    GenerationRequest,
    PartialAnswer,
    Sampling,
)
from serving.http.asgi import Events
from serving.http.chat_format import (
    LAST_EVENT,
    AnswerHead,
    Usage,
    event,
    first_event,
    last_event,
    text_event,
    usage_event,
)
from serving.http.chat_schemas import ChatRequest
from serving.http.metrics import record_failure
from serving.http.schemas import RequestError
from serving.limits import client_name

_log = logging.getLogger("ray.serve")


OnFinish = Callable[
    [PartialAnswer], None
]  # called with the answer, which is partial if the generation failed


def token_limit(
    request: ChatRequest, *, engine: ChatEngine, max_new_tokens: int | None
) -> int | None:
    """Return the maximum tokens of a request's answer; None for no maximum.

    `max_new_tokens` is the recipe's limit. Raises RequestError 400 if the request exceeds it.
    """
    limit = max_new_tokens or engine.prompting.max_new_tokens
    default = engine.default_max_tokens
    if request.limit is None:
        if default is None:
            return None
        return min(default, limit)
    if request.limit > limit:
        message = (
            f"must be at most {limit} (the recipe's serving.max_new_tokens), not {request.limit}"
        )
        raise RequestError(400, "invalid_request", f"max_tokens: {message}", param="max_tokens")
    return request.limit


def generation_request(
    request: ChatRequest, prompt: EngineInput, *, engine: ChatEngine, max_new_tokens: int | None
) -> GenerationRequest:
    """Return the GenerationRequest for a request.

    `max_new_tokens` is the result of `token_limit`. Raises RequestError 400 if the model's length
    is exceeded, or if the engine has no log-probabilities or cannot answer in the format of the
    request.
    """
    engine.require_room(prompt, max_new_tokens=max_new_tokens)
    if request.num_likely is not None and not engine.has_logprobs:
        message = f"answers of version {engine.version.version} have no log-probabilities; omit it"
        raise RequestError(400, "invalid_request", f"logprobs: {message}", param="logprobs")
    if request.response_format is not None:
        engine.require_format(request.response_format)
    sampling = Sampling(
        temperature=float(request.temperature or 0.0),
        top_p=1.0 if request.top_p is None else float(request.top_p),
        seed=secrets.randbits(64) if request.seed is None else request.seed % 2**64,
    )
    return GenerationRequest(
        engine=engine,
        prompt=prompt,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stops=request.stops,
        num_likely=request.num_likely,
        seed=request.seed,
        format=request.response_format,
    )


def usage_of(generation: GenerationRequest, answer: PartialAnswer) -> Usage:
    """Return the token counts of an answer and of its prompt: the endpoint's count, or that of the
    engine's input."""
    num_prompt_tokens = answer.num_prompt_tokens
    return Usage(
        len(generation.prompt) if num_prompt_tokens is None else num_prompt_tokens,
        answer.num_tokens,
    )


async def partial_answers(
    generation: GenerationRequest, *, streaming: bool
) -> AsyncGenerator[PartialAnswer, None]:
    """Yield the answer of the engine (see `ChatEngine.answers`), which runs until the end of the
    answer."""
    engine = generation.engine
    with engine.held():
        prepared = await engine.prepared(
            generation
        )  # a slow format keeps no slot, and does not stop a shadow
        with engine.in_use():
            async with (
                engine.slot(prepared, client=client_name()),
                aclosing(engine.answers(prepared, streaming=streaming)) as answers,
            ):
                async for answer in answers:
                    yield answer


async def whole_answer(generation: GenerationRequest) -> PartialAnswer:
    """Return the complete answer. With stop texts, generation ends at the first one."""
    last = PartialAnswer("", 0, None)
    streaming = bool(generation.stops) and not generation.engine.has_stop_texts
    async with aclosing(partial_answers(generation, streaming=streaming)) as answers:
        async for answer in answers:
            last = answer
    return last


async def stream_events(
    generation: GenerationRequest,
    *,
    head: AnswerHead,
    with_usage: bool,
    on_finish: OnFinish,
    on_cancel: Callable[[], None] = lambda: None,
) -> Events:
    """Yield the answer as OpenAI's events. An error before the first event is raised; a later one
    is the last event.

    `on_cancel` is called if the client disconnects before the first event.
    """
    last = PartialAnswer("", 0, None)
    started = False
    try:
        async with aclosing(partial_answers(generation, streaming=True)) as answers:
            async for answer in answers:
                if not started:
                    started = True
                    yield first_event(head)
                new = answer.text[len(last.text) :]
                last = answer
                if new:
                    yield text_event(head, text=new)
        yield last_event(head, last)
        if with_usage:
            yield usage_event(head, usage=usage_of(generation, last))
        yield LAST_EVENT
    except asyncio.CancelledError:
        if not started:
            on_cancel()
        raise
    except Exception as error:
        if not started:
            raise
        _log.exception("the stream of %s failed", head.id)
        message = "the generation failed; see the replica's log"
        if isinstance(error, RequestError):
            failure = error
        else:
            failure = RequestError(500, "internal_error", message)
        record_failure(failure.status)
        yield event(failure.body)
    finally:
        if started:  # a client that disconnected has received this part
            on_finish(last)
