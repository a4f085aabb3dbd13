"""Chat engine of the endpoint kinds: answers of an OpenAI-compatible server outside of this
service."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import JsonValue

from serving.endpoint.upstream import Upstream
from serving.engines.base_chat import (
    ChatEngine,
    EndpointPrompt,
    EngineInput,
    GenerationRequest,
    PartialAnswer,
)
from serving.engines.stop_sequences import visible_text
from serving.engines.text_rows import num_bytes
from serving.http.schemas import RequestError
from serving.limits import FairSlots
from tailorbird.config.formats.response_format import ChoiceFormat, ResponseFormat
from tailorbird.data.rows import Conversation
from tailorbird.models.endpoint.completion import NO_ANSWER, EndpointAnswer
from tailorbird.models.endpoint.prompts import BYTES_PER_TOKEN, chat_body, endpoint_messages

if TYPE_CHECKING:
    from tailorbird.models.retrieval.index import RetrievalIndex
    from tailorbird.registry.versions import ModelVersion

MAX_SEED = 1 << 63  # seeds of OpenAI's API are signed integers of 64 bits
FINISH_REASONS = ("stop", "length", "content_filter")
TURN_TOKENS = 4  # tokens that a chat template adds to a turn; an estimate


class EndpointChatEngine(ChatEngine):
    """An engine that sends conversations to the version's endpoint, with the prompt of the
    evaluation.

    The number of tokens of a prompt is estimated before the answer, and the endpoint's count is
    used after it.
    """

    has_stop_texts = True
    has_logprobs = False

    def __init__(
        self,
        version: "ModelVersion",
        *,
        upstream: Upstream,
        concurrency: int,
        index: "RetrievalIndex | None" = None,
    ) -> None:
        assert version.prompting is not None  # `VersionConfig` requires it for an endpoint
        super().__init__(version=version, prompting=version.prompting)
        self.max_length = None
        self.default_max_tokens = version.prompting.max_new_tokens
        self.slots = FairSlots(concurrency)
        self._upstream = upstream
        self._index = index

    @property
    def running(self) -> bool:
        return True

    def require_format(self, format: ResponseFormat) -> None:
        if isinstance(format, ChoiceFormat):
            message = "an endpoint has no format `choice`; use `json_schema` with an `enum`"
            raise RequestError(
                400, "invalid_request", f"response_format: {message}", param="response_format"
            )

    def end(self) -> None:
        self._upstream.start_close()

    def chat_prompt(self, conversation: Conversation, *, max_new_tokens: int | None) -> EngineInput:  # noqa: ARG002
        messages = endpoint_messages(conversation, prompting=self.prompting, index=self._index)
        return EndpointPrompt(
            messages, sum(_estimated_tokens(content) + TURN_TOKENS for _, content in messages)
        )

    async def answers(
        self, request: GenerationRequest, *, streaming: bool
    ) -> AsyncGenerator[PartialAnswer, None]:
        decoded = ""
        num_parts = 0
        last = NO_ANSWER
        chosen = () if request.format is None else ("response_format",)
        async with aclosing(
            self._upstream.parts(self._body(request), streaming=streaming, chosen=chosen)
        ) as parts:
            async for part in parts:
                last = _merged(last, part)
                if not part.text:
                    continue
                num_searched = len(decoded)
                decoded += part.text
                num_parts += 1
                if streaming:
                    text, stopped = visible_text(
                        decoded, stops=request.stops, ended=False, num_searched=num_searched
                    )
                    if stopped:  # the endpoint has ignored `stop`
                        break
                    yield PartialAnswer(text, num_parts, None)
        self._upstream.check_model(last.model)
        text, stopped = visible_text(decoded, stops=request.stops, ended=True)
        if last.output_tokens is None:
            num_tokens = max(num_parts, _estimated_tokens(text))
        else:
            num_tokens = last.output_tokens
        if stopped or last.finish_reason not in FINISH_REASONS:
            reason = "stop"
        else:
            reason = last.finish_reason
        reported = last.model or None
        yield PartialAnswer(
            text, num_tokens, reason, num_prompt_tokens=last.input_tokens, reported_model=reported
        )

    def _body(self, request: GenerationRequest) -> dict[str, JsonValue]:
        prompt = request.prompt
        sampling = request.sampling
        endpoint = self.version.endpoint
        assert isinstance(prompt, EndpointPrompt)
        assert endpoint is not None  # a version of an endpoint kind
        max_tokens = request.max_new_tokens or self.prompting.max_new_tokens
        body = chat_body(
            prompt.messages,
            model=endpoint.model,
            max_tokens=max_tokens,
            format=self.format_of(request),  # `require_format` has refused what an endpoint lacks
        )
        del body["logprobs"]  # they only serve the evaluation
        if request.stops:
            body["stop"] = list(request.stops)
        if sampling.temperature:
            body["temperature"] = sampling.temperature
            body |= {"top_p": sampling.top_p} if sampling.top_p < 1 else {}
            body |= {"seed": request.seed % MAX_SEED} if request.seed is not None else {}
        return body


def _estimated_tokens(text: str) -> int:
    return -(-num_bytes(text) // BYTES_PER_TOKEN)


def _merged(last: EndpointAnswer, part: EndpointAnswer) -> EndpointAnswer:
    """Return the facts of an answer's parts; those of a later part take precedence."""
    known = {name: value for name, value in vars(part).items() if value not in (None, "")}
    return replace(last, **known)
