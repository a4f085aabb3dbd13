"""A replica of a chat model: OpenAI's chat completions, complete or streamed."""

import asyncio
from contextlib import aclosing
from functools import partial
from typing import Any, NamedTuple

from serving.endpoint.loading import load_chat
from serving.engines.base_chat import ChatEngine, GenerationRequest, PartialAnswer
from serving.engines.nearest_engine import NearestEngine
from serving.engines.transformers_engine import TransformersEngine
from serving.engines.vllm_engine import VllmPool
from serving.http.asgi import ASGIApp, Events, Route
from serving.http.chat_format import OBJECT, ROUTE, STREAM_OBJECT, answer_head, whole_response
from serving.http.chat_schemas import ChatRequest, parse_chat
from serving.http.metrics import TOKENS, Meter, record_version
from serving.http.schemas import RequestError
from serving.hybrid.chat_engine import HybridChatEngine
from serving.limits import FairSlots, admit, client_name
from serving.replica.base import Replica, RequestContext, configure_process
from serving.replica.config import CHALLENGER
from serving.replica.generation import (
    generation_request,
    partial_answers,
    stream_events,
    token_limit,
    usage_of,
    whole_answer,
)
from serving.replica.served_versions import ServedVersions
from serving.replica.shadow import ShadowRunner
from serving.version_checks import require_digest
from tailorbird.config.serving import ANSWER_TIMEOUT_S, ServingConfig
from tailorbird.data.conversations import context_json
from tailorbird.data.rows import DataError
from tailorbird.registry.versions import Hybrid, ModelVersion, read_parts, read_version

PROMPT_THREADS = 4  # prompts that are tokenized at the same time, outside of the event loop
SHADOW_ATTEMPTS = (
    3  # generations of a shadow answer that clients may interrupt, before the answer is dropped
)


class Chat:
    """Serve deployment of chat models; `config` is a ServingConfig as JSON, `user_config` a
    ReplicaConfig."""

    def __init__(self, task_uri: str, config: str) -> None:
        self._config = configure_process(config)
        meter = Meter()
        load = _Loader(self._config, meter=meter).load
        versions = ServedVersions(load, unload=ChatEngine.unload)
        self._replica = Replica(
            versions, task="chat", task_uri=task_uri, config=self._config, meter=meter
        )
        self._prompts = FairSlots(PROMPT_THREADS)
        self._shadows = ShadowRunner(self._is_quiet)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        routes = {
            "/v1/chat/completions": Route("POST", self._chat, watched=True, scopes=("answer",))
        }
        return self._replica.asgi_app(routes, page="chat")

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load a configuration. The previous version finishes the answers that it has started."""
        await self._replica.reconfigure(user_config)

    async def check_health(self) -> None:
        """Raise if the champion's engine has stopped, so that Serve replaces the replica."""
        if not self._replica.versions.champion.can_answer:
            raise RuntimeError("the model's engine has stopped; see the replica's log")

    async def _chat(self, body: bytes, request_id: str) -> tuple[int, bytes | Events]:
        context = self._replica.begin(ROUTE, request_id)
        request = parse_chat(body)
        engine, context = self._assign(request, context)
        limit = token_limit(request, engine=engine, max_new_tokens=self._config.max_new_tokens)
        self._replica.charge(texts=1)  # also for a prompt that is refused because of its length
        generation = await self._generation(
            request, engine=engine, limit=limit, num_bytes=len(body)
        )
        admit(tokens=engine.num_tokens(generation.prompt, max_new_tokens=limit))
        self._replica.charge(tokens=len(generation.prompt))
        received = _Received(
            request,
            context=context,
            num_bytes=len(body),
            log_fields=await self._log_fields(request),
        )

        def record(answer: PartialAnswer) -> None:
            self._count(generation, answer)
            self._log(generation, answer, received)
            if answer.finish_reason is not None:
                self._mirror(received)

        # For a client that disconnects before the answer: how much was generated is not known.
        charge_limit = partial(self._replica.charge, tokens=limit or 0)
        kind = STREAM_OBJECT if request.stream else OBJECT
        version = engine.version
        head = answer_head(kind, request_id=request_id, model=version.name, version=version.version)
        if request.stream:
            options = request.stream_options
            with_usage = bool(options and options.include_usage)
            return 200, stream_events(
                generation,
                head=head,
                with_usage=with_usage,
                on_finish=record,
                on_cancel=charge_limit,
            )
        try:
            answer = await whole_answer(generation)
        except asyncio.CancelledError:
            charge_limit()
            raise
        record(answer)
        return 200, whole_response(head, answer, usage=usage_of(generation, answer))

    async def _generation(
        self, request: ChatRequest, *, engine: ChatEngine, limit: int | None, num_bytes: int
    ) -> GenerationRequest:
        """Return the request for one answer of the engine; raise RequestError 400 if the prompt
        cannot be used."""
        tokenize = partial(engine.chat_prompt, request.conversation, max_new_tokens=limit)
        with engine.in_use():
            # A thread keeps the event loop free for streams: tokenizing a prompt of 1 MB takes a
            # second.
            try:
                prompt = await self._prompts.run(tokenize, client=client_name(), cost=num_bytes)
            except DataError as error:  # the model's chat template rejects the conversation
                raise RequestError(
                    400, "invalid_request", f"messages: {error}", param="messages"
                ) from None
        return generation_request(request, prompt, engine=engine, max_new_tokens=limit)

    async def _log_fields(self, request: ChatRequest) -> dict[str, Any]:
        """Return the fields of the prompt in the request log, without texts if it does not store
        them."""
        turns = request.conversation
        contents = await self._replica.loggable([content for _, content in turns])
        context = [
            (role, text)
            for (role, _), text in zip(turns[:-1], contents, strict=False)
            if text is not None
        ]
        return {
            "text_chars": len(turns[-1][1]),
            "text": contents[-1],
            "context": context_json(tuple(context)),
            "attributes": request.attributes,
        }

    def _mirror(self, received: "_Received") -> None:
        """Queue a request that the champion has answered for the shadow."""
        shadow = self._replica.shadow(received.context)
        if shadow is not None:
            engine, context = shadow
            run = partial(self._run_shadow, received._replace(context=context), engine=engine)
            self._shadows.add(run, num_bytes=received.num_bytes, caller=context.caller)

    async def _run_shadow(self, received: "_Received", *, engine: ChatEngine) -> None:
        """Log the challenger's answer or, if there is none, the reason.

        Long answers are interrupted more often, so `watch` must know how many answers are missing.
        """
        try:
            answered = await self._shadow_answer(received, engine=engine)
        except Exception:
            self._add_to_log(received, engine=engine, failure="failed")
            raise
        if not answered and self._replica.versions.is_challenger(engine):
            self._add_to_log(received, engine=engine, failure="interrupted")

    async def _shadow_answer(self, received: "_Received", *, engine: ChatEngine) -> bool:
        """Log the challenger's answer. If a client sends a request meanwhile, stop, and start again
        when it is quiet.

        A client therefore waits for one step of the generation at most. Return False if there is no
        answer.
        """
        request = received.request
        limit = token_limit(request, engine=engine, max_new_tokens=self._config.max_new_tokens)
        for _ in range(SHADOW_ATTEMPTS):
            await self._shadows.quiet()
            if not self._replica.versions.is_challenger(engine):
                return False
            generation = await self._generation(
                request, engine=engine, limit=limit, num_bytes=received.num_bytes
            )
            async with aclosing(partial_answers(generation, streaming=True)) as answers:
                async for answer in answers:
                    if answer.finish_reason is not None:
                        self._log(generation, answer, received)
                        return True
                    if not self._is_quiet():
                        break
        return False

    def _is_quiet(self) -> bool:
        """Return True if no engine except the challenger's answers a request."""
        challenger = self._replica.versions.engines.get(CHALLENGER)
        return all(
            engine.num_active == 0
            for engine in self._replica.versions.engines.values()
            if engine is not challenger
        )

    def _assign(
        self, request: ChatRequest, context: RequestContext
    ) -> tuple[ChatEngine, RequestContext]:
        """Return the engine that answers, and the context with its arm."""
        engine, context = self._replica.assign(context, model=request.model)
        record_version(engine.version)
        return engine, context

    def _count(self, generation: GenerationRequest, answer: PartialAnswer) -> None:
        """Count the answer's tokens, and charge them to the API key."""
        usage = usage_of(generation, answer)
        num_estimated = len(generation.prompt)  # charged before the answer
        self._replica.charge(
            tokens=usage.completion_tokens + max(0, usage.prompt_tokens - num_estimated)
        )
        meter = self._replica.meter
        version = generation.engine.version
        meter.count(TOKENS, version.name, version.version, "prompt", by=usage.prompt_tokens)
        meter.count(TOKENS, version.name, version.version, "completion", by=usage.completion_tokens)
        meter.count_part(version, answer.answered_by, is_fallback=answer.is_fallback)

    def _log(
        self, generation: GenerationRequest, answer: PartialAnswer, received: "_Received"
    ) -> None:
        log = self._replica.log
        if log is None:
            return
        usage = usage_of(generation, answer)
        self._add_to_log(
            received,
            engine=generation.engine,
            score=answer.confidence,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            answer=log.loggable(answer.text),
            finish_reason=answer.finish_reason,
            answered_by=answer.answered_by,
            fallback=None if answer.answered_by is None else answer.is_fallback,
            reported_model=answer.reported_model,
        )

    def _add_to_log(self, received: "_Received", *, engine: ChatEngine, **fields: Any) -> None:
        if self._replica.log is not None:
            entry = received.context.log_entry(engine.version)
            self._replica.log.answers.add([entry(row=0, **received.log_fields, **fields)])


class _Received(NamedTuple):
    """A request, with what its rows of the log and its shadow need."""

    request: ChatRequest
    context: RequestContext
    num_bytes: int  # of the body
    log_fields: dict[str, Any]


class _Loader:
    """A loader of versions into engines, which share what they can."""

    def __init__(self, config: ServingConfig, *, meter: Meter) -> None:
        self._config = config
        self._meter = meter
        self._pool: VllmPool | None = None

    def load(self, uri: str, digest: str) -> ChatEngine:
        """Load a version. Make one call at a time."""
        from tailorbird.models.loading import LoadedChat, load_version

        version = read_version(uri)
        require_digest(version, digest=digest)
        if version.endpoint is not None:
            return load_chat(version, config=self._config, meter=self._meter)
        if version.hybrid is not None:
            return self._load_hybrid(version, version.hybrid)
        if self._config.engine == "vllm" and version.spec.uses_base:
            self._pool = self._pool or VllmPool(self._config)
            return self._pool.load(version)
        # the GPUs of the replica belong to the engine's actors
        on_cpu = self._config.engine == "vllm"
        loaded = load_version(version, device="cpu" if on_cpu else None)
        assert isinstance(loaded, LoadedChat)
        if loaded.model is None:
            from tailorbird.models.metadata import read_tokenizer

            return NearestEngine(loaded, tokenizer=read_tokenizer(version.base_model))
        num_slots = self._config.batch_size("chat")
        engine = TransformersEngine(
            loaded, max_batch_size=num_slots, num_gpus=self._config.gpus_per_replica
        )
        engine.slots = FairSlots(num_slots)
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
        limit = self._config.max_new_tokens
        return HybridChatEngine(
            version, (first, second), max_new_tokens=limit, timeout_s=ANSWER_TIMEOUT_S
        )
