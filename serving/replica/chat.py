"""A replica of a chat model: OpenAI's chat and text completions, complete or streamed."""

import asyncio
import time
from functools import partial
from typing import Any

from serving.endpoint.loading import load_chat
from serving.engines.base_chat import ChatEngine, EngineInput, GenerationRequest, PartialAnswer
from serving.engines.fair_slots import FairSlots
from serving.engines.nearest_engine import NearestEngine
from serving.engines.transformers_engine import TransformersEngine
from serving.engines.vllm_engine import VllmPool
from serving.http.admission import admit, client_name
from serving.http.asgi import ASGIApp, Events, Route
from serving.http.chat_format import CHAT, COMPLETION, AnswerFormat
from serving.http.chat_schemas import ChatRequest, CompletionRequest, PromptRequest, parse_chat, parse_completion
from serving.http.metrics import TOKENS, Meter, record_version
from serving.http.schemas import RequestError
from serving.hybrid.chat_engine import HybridChatEngine
from serving.replica.base import Replica, RequestContext, configure_process
from serving.replica.generation import generation_request, stream_events, token_limit, usage_of, whole_answer
from serving.replica.served_versions import ServedVersions
from serving.version_checks import require_digest
from tailorbird.config.serving import ServingConfig
from tailorbird.data.conversations import context_json
from tailorbird.data.rows import Conversation, DataError
from tailorbird.registry.draws import draw_secret
from tailorbird.registry.versions import Hybrid, ModelVersion, read_parts, read_version

PROMPT_THREADS = 4  # prompts that are tokenized at the same time, outside of the event loop


class Chat:
    """Serve deployment of chat models; `config` is a ServingConfig as JSON, `user_config` a ReplicaConfig."""

    def __init__(self, task_uri: str, config: str) -> None:
        self._config = configure_process(config)
        meter = Meter()
        load, read_secret = _Loader(self._config, meter=meter).load, partial(draw_secret, task_uri)
        versions = ServedVersions(load, read_secret=read_secret, unload=ChatEngine.unload)
        self._replica = Replica(versions, task_uri=task_uri, config=self._config, meter=meter)
        self._prompts = FairSlots(PROMPT_THREADS)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        routes = {
            "/v1/chat/completions": Route("POST", self._chat, watched=True, scopes=("answer",)),
            "/v1/completions": Route("POST", self._complete, watched=True, scopes=("answer",)),
        }
        return self._replica.asgi_app(routes, page="chat")

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load a configuration (see `Replica.reconfigure`). The former version finishes the answers that it started."""
        await self._replica.reconfigure(user_config)

    async def check_health(self) -> None:
        """Raise if the champion's engine has stopped, so that Serve replaces the replica."""
        if not self._replica.versions.champion.can_answer:
            raise RuntimeError("the model's engine has stopped; see the replica's log")

    async def _chat(self, body: bytes, request_id: str) -> tuple[int, bytes | Events]:
        context = self._replica.begin(CHAT.route, request_id)
        return await self._answer(parse_chat(body), context, format=CHAT, num_bytes=len(body))

    async def _complete(self, body: bytes, request_id: str) -> tuple[int, bytes | Events]:
        context = self._replica.begin(COMPLETION.route, request_id)
        return await self._answer(parse_completion(body), context, format=COMPLETION, num_bytes=len(body))

    async def _answer(
        self,
        request: ChatRequest | CompletionRequest,
        context: RequestContext,
        *,
        format: AnswerFormat,
        num_bytes: int,
    ) -> tuple[int, bytes | Events]:
        engine, context = self._assign(request, context)
        limit = token_limit(request, engine=engine, max_new_tokens=self._config.max_new_tokens)
        if isinstance(request, ChatRequest):
            param, turns = "messages", request.conversation
            prompt_of = partial(_chat_prompt, request, engine=engine, max_new_tokens=limit)
        else:
            param, turns, prompt_of = "prompt", (("user", request.text),), partial(engine.text_prompt, request.text)
        self._replica.charge(texts=1)  # also for a prompt that is refused because of its length
        with engine.in_use():
            # A thread keeps the event loop free for streams: tokenizing a prompt of 1 MB takes a second.
            prompt = await self._prompts.run(prompt_of, client=client_name(), cost=num_bytes)
        generation = generation_request(request, prompt, engine=engine, param=param, max_new_tokens=limit)
        admit(tokens=engine.num_tokens(prompt, max_new_tokens=limit))
        self._replica.charge(tokens=len(prompt))
        logged = await self._replica.loggable([content for _, content in turns])
        record = partial(self._record, generation, context=context, turns=turns, logged=logged)
        # For a client that disconnects before the answer: how much was generated is not known.
        charge_limit = partial(self._replica.charge, tokens=limit or 0)
        version = engine.version
        object, created = format.chunk if request.stream else format.object, int(time.time())
        head = format.head(
            object, request_id=context.request_id, created=created, model=version.name, version=version.version
        )
        if request.stream:
            options = request.stream_options
            with_usage = bool(options and options.include_usage)
            events = stream_events(
                generation,
                format=format,
                head=head,
                with_usage=with_usage,
                on_finish=record,
                on_cancel=charge_limit,
            )
            return 200, events
        try:
            answer = await whole_answer(generation)
        except asyncio.CancelledError:
            charge_limit()
            raise
        record(answer)
        return 200, format.whole(head, answer, usage=usage_of(generation, answer))

    def _assign(self, request: PromptRequest, context: RequestContext) -> tuple[ChatEngine, RequestContext]:
        """Return the engine that answers, and the context with its arm."""
        engine, context = self._replica.assign(context, model=request.model, subject=request.subject)
        if context.arm == "canary" and not engine.can_answer:
            engine, context = self._replica.versions.champion, context._replace(arm="champion")
        record_version(engine.version)
        return engine, context

    def _record(
        self,
        generation: GenerationRequest,
        answer: PartialAnswer,
        *,
        context: RequestContext,
        turns: Conversation,
        logged: list[str | None],
    ) -> None:
        """Count and charge the answer's tokens, and log the answer with the contents of the turns as in `loggable`."""
        usage = usage_of(generation, answer)
        num_estimated = len(generation.prompt)  # charged before the answer
        self._replica.charge(tokens=usage.completion_tokens + max(0, usage.prompt_tokens - num_estimated))
        log, meter, version = self._replica.log, self._replica.meter, generation.engine.version
        meter.count(TOKENS, version.name, version.version, "prompt", by=usage.prompt_tokens)
        meter.count(TOKENS, version.name, version.version, "completion", by=usage.completion_tokens)
        meter.count_part(version, answer.answered_by, is_fallback=answer.is_fallback)
        if log is None:
            return
        entry = context.log_entry(version)(
            row=0,
            score=answer.confidence,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            text_chars=len(turns[-1][1]),
            text=logged[-1],
            context=_context(turns, logged=logged),
            answer=log.loggable(answer.text),
            finish_reason=answer.finish_reason,
            answered_by=answer.answered_by,
            fallback=None if answer.answered_by is None else answer.is_fallback,
            reported_model=answer.reported_model,
        )
        log.answers.add([entry])


def _chat_prompt(request: ChatRequest, *, engine: ChatEngine, max_new_tokens: int | None) -> EngineInput:
    """Return the prompt of the conversation; raise RequestError 400 if the model's chat template rejects it."""
    try:
        return engine.chat_prompt(request.conversation, max_new_tokens=max_new_tokens)
    except DataError as error:
        raise RequestError(400, "invalid_request", f"messages: {error}", param="messages") from None


def _context(turns: Conversation, *, logged: list[str | None]) -> str | None:
    """Return the turns before the last one with their logged contents; None if the log stores no texts."""
    contents = [(role, content) for (role, _), content in zip(turns[:-1], logged, strict=False) if content is not None]
    return context_json(tuple(contents))


class _Loader:
    """A loader of versions into engines, which share what they can."""

    def __init__(self, config: ServingConfig, *, meter: Meter) -> None:
        self._config = config
        self._meter = meter
        self._pool: VllmPool | None = None

    def load(self, uri: str, digest: str) -> ChatEngine:
        """Load a version. Make one call at a time."""
        from tailorbird.models.loading import LoadedChat, LoadedNearest, load_model

        version = read_version(uri)
        require_digest(version, digest=digest)
        if version.endpoint is not None:
            return load_chat(version, config=self._config, meter=self._meter)
        if version.hybrid is not None:
            return self._load_hybrid(version, version.hybrid)
        if version.kind == "nearest":
            from tailorbird.models.metadata import read_tokenizer

            nearest = load_model(uri, LoadedNearest)
            require_digest(nearest.version, digest=digest)
            return NearestEngine(nearest, tokenizer=read_tokenizer(version.base_model))
        if self._config.engine == "vllm":
            self._pool = self._pool or VllmPool(self._config)
            return self._pool.load(uri, digest)
        loaded = load_model(uri, LoadedChat)
        require_digest(loaded.version, digest=digest)
        config = self._config
        engine = TransformersEngine(loaded, max_batch_size=config.max_batch_size, num_gpus=config.gpus_per_replica)
        engine.slots = FairSlots(config.max_batch_size)
        return engine

    def _load_hybrid(self, version: ModelVersion, hybrid: Hybrid) -> ChatEngine:
        """Load both parts, each with an engine of its own, and compose them."""
        from tailorbird.models.loading import checked_copy

        checked_copy(version.pinned)
        read_parts(hybrid)  # before the first part is loaded
        first = self.load(hybrid.first.uri, hybrid.first.digest)
        try:
            second = self.load(hybrid.second.uri, hybrid.second.digest)
        except Exception:
            first.end()
            raise
        limit, timeout_s = self._config.max_new_tokens, self._config.fallback_timeout_s
        return HybridChatEngine(version, (first, second), max_new_tokens=limit, timeout_s=timeout_s)
