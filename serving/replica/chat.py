"""A replica of a chat model: OpenAI's completions over the version that it holds, whole or streamed."""

import asyncio
import logging
import os
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import Any, NamedTuple

from serving.batch_jobs.routes import BatchRoutes
from serving.engines.base_chat import ChatEngine, Sampling
from serving.engines.stop_sequences import visible_text
from serving.engines.transformers_engine import TransformersEngine
from serving.http.asgi import HTML, ASGIApp, Events, Route, caller
from serving.http.chat_schemas import (
    CHAT,
    COMPLETION,
    LAST_EVENT,
    AnswerFormat,
    ChatRequest,
    CompletionRequest,
    PromptRequest,
    Usage,
    event,
    parse_chat,
    parse_completion,
    usage_event,
)
from serving.http.metrics import TOKENS, record_failure, record_version
from serving.http.schemas import RequestError
from serving.pages.render import render_page
from serving.replica.base import Replica
from serving.replica.experiment import Arm
from serving.request_log.schema import LogEntry
from serving.request_log.writer import utc_now
from serving.version_checks import require_digest, require_shipped_code
from tailorbird.config.serving import ServingConfig
from tailorbird.data.chat_template import prompt_tokens
from tailorbird.data.rows import DataError

RETRY_AFTER_S = 2
BEFORE = 5
"""Tokens of a prompt that the text which follows is decoded behind: at the beginning of a text some tokenizers leave
out a space."""

_log = logging.getLogger("ray.serve")


class GenerationRequest(NamedTuple):
    """A request that is to be answered."""

    engine: ChatEngine
    prompt: list[int]
    max_new_tokens: int
    sampling: Sampling
    stops: tuple[str, ...]
    continues: bool = False
    """Whether the answer is the text that follows the prompt's, white space and all; a turn of a conversation is
    written as it was evaluated, without any at its ends."""


Told = Callable[["PartialAnswer"], None]
"""Hears the last of an answer, whole or as far as it came."""


class RequestContext(NamedTuple):
    """A request as it came."""

    request_id: str
    begun: float
    """`time.perf_counter()`."""
    text: str
    """What is asked."""
    arm: Arm | None
    """Of a trial, where it takes part in one."""


class PartialAnswer(NamedTuple):
    """An answer so far."""

    text: str
    num_tokens: int
    finish_reason: str | None


class Chat:
    """Serve deployment. `user_config` names the version: `{"version_uri": ..., "digest": ...}`."""

    def __init__(self, task_uri: str, config: dict[str, Any]) -> None:
        import torch

        require_shipped_code()
        self._home = task_uri
        self._section = ServingConfig.model_validate(config)
        torch.set_num_threads(self._section.cpus_per_replica)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._replica = Replica(partial(_load, config=self._section), config=self._section, unload=ChatEngine.unload)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        routes = {
            "/v1/chat/completions": Route("POST", self._chat, watched=True),
            "/v1/completions": Route("POST", self._complete, watched=True),
            "/": Route("GET", self._page, open=True, content_type=HTML),
        }
        batches = BatchRoutes(self._replica.engine_of, task_uri=self._home, config=self._section)
        return self._replica.asgi_app(routes | batches.routes(), on_startup=batches.resume)

    async def reconfigure(self, user_config: dict[str, str]) -> None:
        """As `Replica.reconfigure`; what is being answered is answered to its end by the former version."""
        await self._replica.reconfigure(user_config)

    async def check_health(self) -> None:
        """Raises where the engine has stopped, so that Serve replaces the replica."""
        if not self._replica.engine.running:
            raise RuntimeError("the model's engine has stopped; the log says why")

    async def _page(self, _body: bytes, _request_id: str) -> tuple[int, bytes]:
        return 200, render_page("chat.html")

    async def _chat(self, body: bytes, request_id: str) -> tuple[int, bytes | Events]:
        begun, _ = time.perf_counter(), self._replica.engine  # not ready is not the request's fault
        request = parse_chat(body)
        engine, arm = self._free_engine(request, request_id)
        prompt = await _in_thread(_chat_prompt, request, engine=engine)
        job = _job(request, prompt, engine=engine, param="messages", cap=self._section.max_new_tokens)
        text = request.conversation[-1][1]
        return await self._answered(request, job, shape=CHAT, asked=RequestContext(request_id, begun, text, arm))

    async def _complete(self, body: bytes, request_id: str) -> tuple[int, bytes | Events]:
        begun, _ = time.perf_counter(), self._replica.engine
        request = parse_completion(body)
        engine, arm = self._free_engine(request, request_id)
        prompt = await _in_thread(_text_prompt, request, engine=engine)
        job = _job(request, prompt, engine=engine, param="prompt", cap=self._section.max_new_tokens)
        return await self._answered(request, job, shape=COMPLETION, asked=RequestContext(request_id, begun, request.text, arm))

    def _free_engine(self, request: PromptRequest, request_id: str) -> tuple[ChatEngine, Arm | None]:
        """Who answers, and as which arm of a trial; RequestError 429 where it holds as many requests as it may."""
        engine, arm = self._replica.drawn(request.model, unit=request.subject or request_id)
        if arm == "canary" and not engine.running:  # the replica's log says why
            engine, arm = self._replica.engine, "champion"
        record_version(engine.version)
        limit = self._section.max_batch_size + self._section.max_queued_requests
        if engine.num_active >= limit:
            raise RequestError(
                429,
                "too_many_requests",
                f"{limit} requests are being answered or wait; ask again in {RETRY_AFTER_S} s",
                code="rate_limit_exceeded",
                headers={"retry-after": str(RETRY_AFTER_S)},
            )
        return engine, arm

    async def _answered(self, request: PromptRequest, job: GenerationRequest, *, shape: AnswerFormat, asked: RequestContext) -> tuple[int, bytes | Events]:
        version = job.engine.version
        head = partial(
            shape.head,
            request_id=asked.request_id,
            created=int(time.time()),
            model=version.name,
            version=version.version,
        )
        tell = partial(self._tell, request, job, shape=shape, asked=asked)
        if request.stream:
            options = request.stream_options
            with_usage = bool(options and options.include_usage)
            return 200, _events(job, shape=shape, head=head(shape.chunk), with_usage=with_usage, tell=tell)
        grown = await _whole(job)
        tell(grown)
        usage = Usage(len(job.prompt), grown.num_tokens)
        reason = str(grown.finish_reason)
        return 200, shape.whole(head(shape.object), text=grown.text, finish_reason=reason, usage=usage)

    def _tell(self, request: PromptRequest, job: GenerationRequest, grown: PartialAnswer, *, shape: AnswerFormat, asked: RequestContext) -> None:
        """Counts the answer's tokens and leaves its row in the log, whole or as far as it came."""
        log, meter, version = self._replica.log, self._replica.meter, job.engine.version
        meter.count(TOKENS, version.name, version.version, "prompt", by=len(job.prompt))
        meter.count(TOKENS, version.name, version.version, "completion", by=grown.num_tokens)
        if log is None:
            return
        entry = LogEntry(
            request_id=asked.request_id,
            at=utc_now(),
            model=version.name,
            version=version.version,
            digest=version.digest,
            row=0,
            latency_s=time.perf_counter() - asked.begun,
            subject=request.subject,
            prompt_tokens=len(job.prompt),
            completion_tokens=grown.num_tokens,
            text=log.kept(asked.text),
            answer=log.kept(grown.text),
            finish_reason=grown.finish_reason,
            route=shape.route,
            caller=caller.get(),
            arm=asked.arm,
        )
        log.answers.add([entry])


async def _in_thread(prompt_of: Callable[..., list[int]], request: PromptRequest, *, engine: ChatEngine) -> list[int]:
    """A prompt's tokens: those of a MB take a second, in which no stream would go on. The engine is held meanwhile."""
    with engine.in_use():
        return await asyncio.to_thread(prompt_of, request, engine=engine)


def _chat_prompt(request: ChatRequest, *, engine: ChatEngine) -> list[int]:
    """The conversation as it was evaluated; RequestError 400 where the model's template does not take it."""
    prompting, tokenizer = engine.prompting, engine.tokenizer
    try:
        return prompt_tokens(request.conversation, tokenizer=tokenizer, system=prompting.system, shots=prompting.shots)
    except DataError as error:
        raise RequestError(400, "invalid_request", f"messages: {error}", param="messages") from None


def _text_prompt(request: CompletionRequest, *, engine: ChatEngine) -> list[int]:
    """A text as it stands; what spells a special token is one, for whoever builds a prompt needs them."""
    prompt: list[int] = engine.tokenizer(request.text)["input_ids"]
    if not prompt:
        raise RequestError(400, "invalid_request", "prompt: give a text that is not empty", param="prompt")
    return prompt


def _job(request: PromptRequest, prompt: list[int], *, engine: ChatEngine, param: str, cap: int | None) -> GenerationRequest:
    """The request as the engine takes it, `param` the field its prompt is from; RequestError 400 where its model cannot
    answer it."""
    own = engine.prompting.max_new_tokens
    most = cap or own
    asked = request.limit or min(own, most)
    if asked > most:
        raise RequestError(
            400,
            "invalid_request",
            f"max_tokens: {asked} are asked for, at most {most} are given (the recipe's serving.max_new_tokens)",
            param="max_tokens",
        )
    if len(prompt) + asked > engine.max_length:
        raise RequestError(
            400,
            "too_long",
            f"the prompt has {len(prompt)} tokens and its answer may have {asked}, together more than the "
            f"{engine.max_length} that this model takes; shorten the {param}, or ask for fewer max_tokens",
            param=param,
            code="context_length_exceeded",
        )
    seed = secrets.randbits(64) if request.seed is None else request.seed % 2**64
    sampling = Sampling(
        temperature=float(request.temperature or 0.0),
        top_p=1.0 if request.top_p is None else float(request.top_p),
        seed=seed,
    )
    return GenerationRequest(engine, prompt, asked, sampling, request.stops, continues=isinstance(request, CompletionRequest))


async def _grow(job: GenerationRequest, *, streaming: bool) -> AsyncGenerator[PartialAnswer, None]:
    """The answer as it grows (where not streaming, once it is whole); the last, and no other, has a finish reason."""
    engine = job.engine
    decode = partial(engine.tokenizer.decode, skip_special_tokens=True)
    before = job.prompt[-BEFORE:] if job.continues else []
    skipped = len(decode(before)) if before else 0
    generating = engine.generate(
        job.prompt, max_new_tokens=job.max_new_tokens, sampling=job.sampling, streaming=streaming
    )
    with engine.in_use():
        async with aclosing(generating):
            async for tokens, ended in generating:
                said = tokens[:-1] if tokens[-1] == engine.end_id else tokens
                text = decode(before + said)[skipped:]
                text, stopped = visible_text(text, stops=job.stops, ended=ended, stripped=not job.continues)
                reason = "stop" if stopped or len(said) < len(tokens) else "length" if ended else None
                yield PartialAnswer(text, len(tokens), reason)
                if reason is not None:
                    return


async def _whole(job: GenerationRequest) -> PartialAnswer:
    """The whole answer; stop texts are looked for while it grows."""
    last = PartialAnswer("", 0, None)
    async with aclosing(_grow(job, streaming=bool(job.stops))) as growing:
        async for grown in growing:
            last = grown
    return last


async def _events(job: GenerationRequest, *, shape: AnswerFormat, head: dict[str, Any], with_usage: bool, tell: Told) -> Events:
    """The answer as OpenAI's events. Before the first, errors are raised; after it, they are an event, the last."""
    last = PartialAnswer("", 0, None)
    begun = False
    try:
        async with aclosing(_grow(job, streaming=True)) as growing:
            async for grown in growing:
                if not begun:
                    begun = True
                    for one in shape.first(head):
                        yield one
                new, last = grown.text[len(last.text) :], grown
                if new:
                    yield shape.piece(head, text=new)
        yield shape.last(head, finish_reason=last.finish_reason)
        if with_usage:
            yield usage_event(head, usage=Usage(len(job.prompt), last.num_tokens))
        yield LAST_EVENT
    except Exception as error:
        if not begun:
            raise
        _log.exception("a stream of %s broke off", head["id"])
        told = error if isinstance(error, RequestError) else RequestError(500, "internal_error", "the log says why")
        record_failure(told.status)
        yield event(told.body)
    finally:
        if begun:  # a client that hung up was answered as far as this
            tell(last)


def _load(uri: str, digest: str, *, config: ServingConfig) -> ChatEngine:
    if config.engine == "vllm":
        from serving.engines.vllm_engine import load_engine

        return load_engine(uri, digest, max_batch_size=config.max_batch_size, num_gpus=config.gpus_per_replica)
    from tailorbird.models.loading import load_chat_version

    loaded = load_chat_version(uri)
    require_digest(loaded.version, digest=digest)
    return TransformersEngine(loaded, max_batch_size=config.max_batch_size)
