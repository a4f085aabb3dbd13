"""Chat engine of a cascade: the first part answers where it is confident, and the second part
otherwise."""

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from statistics import fmean
from typing import TYPE_CHECKING

from serving.engines.base_chat import (
    ChatEngine,
    EngineInput,
    GenerationRequest,
    HybridInput,
    PartialAnswer,
    StoredAnswer,
)
from serving.http.schemas import is_client_error, is_too_long, no_part_answers
from serving.hybrid.part_state import PartState
from serving.limits import client_name
from tailorbird.config.formats.response_format import ResponseFormat
from tailorbird.data.rows import Conversation, DataError
from tailorbird.registry.hybrid_routing import PARTS, PartName, Routing, routes_to_second

if TYPE_CHECKING:
    from tailorbird.registry.versions import ModelVersion


class HybridChatEngine(ChatEngine):
    """An engine that composes the engines of a hybrid's parts.

    If the first part is of the kind `nearest`, the part that answers is known before the first
    token. A first part with a language model answers completely before the decision. If a part
    fails, or the wait for its turn and its first output takes longer than `timeout_s`, the other
    part answers. After several time-outs in a row, a part is skipped for some time while the other
    part can answer. A part whose length the request exceeds does not answer. After the first output
    of the second part, its errors are raised.
    """

    def __init__(
        self,
        version: "ModelVersion",
        parts: tuple[ChatEngine, ChatEngine],
        *,
        max_new_tokens: int | None,
        timeout_s: float,
    ) -> None:
        """Compose two engines; `max_new_tokens` is the recipe's limit. The hybrid ends them."""
        assert version.prompting is not None  # a chat version
        assert version.hybrid is not None  # a hybrid
        super().__init__(version=version, prompting=version.prompting)
        self._parts: dict[PartName, ChatEngine] = dict(zip(PARTS, parts, strict=True))
        self.max_length = self.default_max_tokens = None  # those of the part apply
        self.has_logprobs = any(part.has_logprobs for part in parts)
        self._routing: Routing = version.hybrid.routing
        self._max_new_tokens = max_new_tokens
        self._timeout_s = timeout_s
        self._states = {name: PartState(name, version=version.version) for name in PARTS}

    @property
    def running(self) -> bool:
        return all(part.running for part in self._parts.values())

    @property
    def can_answer(self) -> bool:
        return any(part.can_answer for part in self._parts.values())

    def require_format(self, format: ResponseFormat) -> None:
        """Raise RequestError 400 if one part cannot have the format, because either can answer."""
        for part in self._parts.values():
            part.require_format(format)

    def end(self) -> None:
        for part in self._parts.values():
            part.end()

    def chat_prompt(self, conversation: Conversation, *, max_new_tokens: int | None) -> HybridInput:
        """Return the input of the parts that may answer; see `ChatEngine.chat_prompt`."""
        refusals: list[Exception] = []
        first = self._prompt(
            "first", conversation, max_new_tokens=max_new_tokens, refusals=refusals
        )
        if isinstance(first, StoredAnswer) and not self._is_routed(first.similarity):
            return HybridInput(first, None)
        second = self._prompt(
            "second", conversation, max_new_tokens=max_new_tokens, refusals=refusals
        )
        if first is None and second is None:
            raise refusals[-1] if refusals else no_part_answers()
        return HybridInput(first, second)

    def _prompt(
        self,
        name: PartName,
        conversation: Conversation,
        *,
        max_new_tokens: int | None,
        refusals: list[Exception],
    ) -> EngineInput | None:
        """Return the input of a part, or None if it fails or, as then added to `refusals`, the
        prompt and its answer exceed its length."""
        part = self._parts[name]
        limit = self._limit(part, max_new_tokens)
        try:
            prompt = part.chat_prompt(conversation, max_new_tokens=limit)
            part.require_room(prompt, max_new_tokens=limit)
        except DataError:
            raise
        except Exception as error:
            if is_too_long(error):
                refusals.append(error)
            elif is_client_error(error):
                raise
            else:
                self._states[name].failed(error)
            return None
        return prompt

    def _limit(self, part: ChatEngine, max_new_tokens: int | None) -> int | None:
        """Return the maximum tokens of a part's answer; `max_new_tokens` is None if the request
        sets none."""
        if max_new_tokens is not None or part.default_max_tokens is None:
            return max_new_tokens
        return min(part.default_max_tokens, self._max_new_tokens or part.default_max_tokens)

    def _is_routed(self, confidence: float) -> bool:
        return bool(routes_to_second(self._routing, confidences=[confidence])[0])

    def num_tokens(self, prompt: EngineInput, *, max_new_tokens: int | None) -> int:
        assert isinstance(prompt, HybridInput)
        prompts: dict[PartName, EngineInput | None] = {
            "first": prompt.first,
            "second": prompt.second,
        }
        totals = []
        for name, part_prompt in prompts.items():
            if part_prompt is not None:
                part = self._parts[name]
                limit = self._limit(part, max_new_tokens)
                totals.append(part.num_tokens(part_prompt, max_new_tokens=limit))
        return max(totals)

    async def answers(
        self, request: GenerationRequest, *, streaming: bool
    ) -> AsyncGenerator[PartialAnswer, None]:
        assert isinstance(request.prompt, HybridInput)
        first_prompt = request.prompt.first
        second_prompt = request.prompt.second
        second_is_away = second_prompt is None or self._states["second"].is_away
        first_answer = None
        if first_prompt is not None and (second_is_away or not self._states["first"].is_away):
            first_answer = await self._first_answer(request, first_prompt)
        if first_answer is not None and not self._is_routed(_confidence(first_answer)):
            yield _shown(first_answer, request)
            return
        if second_prompt is not None and (
            first_answer is None or not self._states["second"].is_away
        ):
            has_started = False
            try:
                answers = self._part_answers("second", request, second_prompt, streaming=streaming)
                async with aclosing(answers):
                    async for answer in answers:
                        if not has_started:
                            self._states["second"].answered()
                        has_started = True
                        yield answer._replace(is_fallback=first_answer is None)
                return
            except Exception as error:
                if has_started or (
                    is_client_error(error) and (first_answer is None or not is_too_long(error))
                ):
                    raise
                self._states["second"].failed(error)
        if first_answer is None:
            raise no_part_answers()
        yield _shown(first_answer, request)._replace(is_fallback=True)

    async def _first_answer(
        self, request: GenerationRequest, prompt: EngineInput
    ) -> PartialAnswer | None:
        """Return the complete answer of the first part with its log-probabilities, or None if it
        fails."""
        with_logprobs = request._replace(num_likely=request.num_likely or 0)
        last = None
        try:
            answers = self._part_answers(
                "first", with_logprobs, prompt, streaming=bool(request.stops)
            )
            async with aclosing(answers):
                async for answer in answers:
                    last = answer
        except Exception as error:
            if is_client_error(error) and not is_too_long(error):
                raise
            self._states["first"].failed(error)
            return None
        self._states["first"].answered()
        return last

    async def _part_answers(
        self, name: PartName, request: GenerationRequest, prompt: EngineInput, *, streaming: bool
    ) -> AsyncGenerator[PartialAnswer, None]:
        """Yield a part's answer as it grows.

        Raises TimeoutError if the wait for a grammar, a slot and the first output takes too long.
        """
        part = self._parts[name]
        limit = self._limit(part, request.max_new_tokens)
        part_request = request._replace(engine=part, prompt=prompt, max_new_tokens=limit)
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(self._timeout_s):
                part_request = await part.prepared(part_request)
                await stack.enter_async_context(part.slot(part_request, client=client_name()))
                answers = await stack.enter_async_context(
                    aclosing(part.answers(part_request, streaming=streaming))
                )
                answer = await anext(answers)
            yield _named_answer(answer, name=name, prompt=prompt)
            async for answer in answers:
                yield _named_answer(answer, name=name, prompt=prompt)


def _named_answer(answer: PartialAnswer, *, name: PartName, prompt: EngineInput) -> PartialAnswer:
    """Return the answer of a part, with the number of tokens of its prompt unless an endpoint has
    counted them."""
    if answer.num_prompt_tokens is None:
        num_tokens = len(prompt)
    else:
        num_tokens = answer.num_prompt_tokens
    return answer._replace(answered_by=name, num_prompt_tokens=num_tokens)


def _confidence(answer: PartialAnswer) -> float:
    """Return the confidence that the evaluation compares with the threshold."""
    if answer.confidence is not None:
        return answer.confidence
    logprobs = [token.generated.logprob for token in answer.logprobs or ()]
    if logprobs:
        return math.exp(fmean(logprobs))
    return 0.0


def _shown(answer: PartialAnswer, request: GenerationRequest) -> PartialAnswer:
    """Return the answer without log-probabilities that the request does not ask for."""
    if request.num_likely is not None:
        return answer
    return answer._replace(logprobs=None)
