"""The interface of a chat engine."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from serving.engines.ref_counted import RefCounted
from serving.http.schemas import RequestError
from serving.limits import FairSlots
from tailorbird.config.formats.response_format import ResponseFormat, StructuredFormat, TextFormat
from tailorbird.data.rows import Conversation
from tailorbird.registry.hybrid_routing import PartName

if TYPE_CHECKING:
    from tailorbird.models.grammar.compiler import Grammar
    from tailorbird.registry.versions import ModelVersion, Prompting


class Sampling(NamedTuple):
    """Sampling options of a request. Temperature 0 is greedy decoding."""

    temperature: float
    top_p: float
    seed: int


@dataclass(frozen=True)
class StoredAnswer:
    """The input of an engine of the kind `nearest`: the stored answer to a conversation, instead of
    a prompt."""

    num_prompt_tokens: int
    text: str
    token_ends: tuple[int, ...]  # end of each token, in characters of the text
    similarity: float

    def __len__(self) -> int:
        return self.num_prompt_tokens


@dataclass(frozen=True)
class EndpointPrompt:
    """The input of an engine of an endpoint kind: the messages that are sent to the endpoint."""

    messages: Conversation
    num_tokens: int  # estimated, because the endpoint's tokenizer is not known

    def __len__(self) -> int:
        return self.num_tokens


@dataclass(frozen=True)
class HybridInput:
    """The inputs of a hybrid's parts; None for a part that does not answer or cannot."""

    first: "EngineInput | None"
    second: "EngineInput | None"

    def __len__(self) -> int:
        return max(len(prompt) for prompt in (self.first, self.second) if prompt is not None)


EngineInput = list[int] | StoredAnswer | EndpointPrompt | HybridInput
"""Token ids of the prompt, a stored answer, messages, or the inputs of a hybrid. The length is the
number of tokens of the prompt; for a hybrid, of the longer one."""


class LikelyToken(NamedTuple):
    """A token and its log-probability, in nats, after the response format, and before temperature
    and top_p."""

    token: str
    logprob: float


class TokenLogprobs(NamedTuple):
    """The log-probability of a generated token, and those of the most likely tokens at its
    position."""

    generated: LikelyToken
    most_likely: tuple[LikelyToken, ...] = ()


class GenerationRequest(NamedTuple):
    """The engine, the prompt and the options of one answer."""

    engine: "ChatEngine"
    prompt: EngineInput
    max_new_tokens: int | None  # None for no limit (stored answers only)
    sampling: Sampling
    stops: tuple[str, ...]
    num_likely: int | None = None
    """Number of most likely tokens at each position whose log-probabilities are returned with that
    of the generated token; None for no log-probabilities."""
    seed: int | None = None
    """The seed in the request; None if it has none, and `sampling.seed` is random."""
    format: ResponseFormat | None = None
    """The response format in the request; None for that of the version."""
    grammar: "Grammar | None" = None
    """The grammar of the answer's format, which `ChatEngine.prepared` sets."""


class PartialAnswer(NamedTuple):
    """The part of an answer that is available."""

    text: str
    num_tokens: int
    finish_reason: str | None
    """`stop`, `length` or, from an endpoint, `content_filter`; None before the end."""
    confidence: float | None = None
    """Similarity of a stored answer's training row, 0 to 1; None for generated answers."""
    logprobs: tuple[TokenLogprobs, ...] | None = None
    """Log-probabilities of all generated tokens, the end-of-turn token included; only in the last
    item, on request."""
    num_prompt_tokens: int | None = None
    """Tokens of the prompt by the endpoint's count, or of the part of a hybrid that answered; None
    if the length of the `EngineInput` is exact."""
    reported_model: str | None = None
    """The model that the endpoint reported; None for models of this service."""
    answered_by: PartName | None = None
    """The part of a hybrid that answered; None for other versions."""
    is_fallback: bool = False
    """True if the other part of the hybrid should have answered, but failed."""


class ChatEngine(ABC):
    """An engine that answers conversations with one chat version. Use it in one event loop.

    One version answers a request completely, even if versions are swapped during the answer. An
    unloaded engine ends after the last request that uses it.
    """

    max_length: int | None
    """Maximum number of tokens of a prompt and its answer; None for no maximum."""
    default_max_tokens: int | None
    """Maximum number of tokens of an answer if the request sets none; None for no maximum."""
    has_stop_texts = False
    """True if a complete answer ends at the request's stop texts without a stream."""
    has_logprobs = True
    """False if answers have no log-probabilities."""
    has_formats = True
    """False if a request cannot set the format of its answer."""

    def __init__(self, *, version: "ModelVersion", prompting: "Prompting") -> None:
        self.version = version
        self.prompting = prompting
        self.num_active = 0
        """Number of answers that are generated or wait for their slot."""
        self.slots: FairSlots | None = None
        """Slots of answers that are generated at the same time; None for no limit."""
        self._uses = RefCounted(self._start_end)
        self._ending: asyncio.Future[None] | None = None

    @property
    @abstractmethod
    def running(self) -> bool:
        """True until the engine stops. An error outside of a single request stops it."""

    @property
    def can_answer(self) -> bool:
        """True while the engine can answer requests. A hybrid can while one of its parts runs."""
        return self.running

    @abstractmethod
    def chat_prompt(self, conversation: Conversation, *, max_new_tokens: int | None) -> EngineInput:
        """Return the prompt of a conversation, as in the evaluation. This call blocks and is
        thread-safe.

        Retrieved examples that leave no room for `max_new_tokens` are omitted. Raises DataError if
        the model's chat template rejects the conversation.
        """

    @abstractmethod
    def answers(
        self, request: GenerationRequest, *, streaming: bool
    ) -> AsyncGenerator[PartialAnswer, None]:
        """Yield the answer as it grows or, if not `streaming`, only when it is complete.

        The last item has a finish reason. Closing the generator cancels the request. Raises
        RequestError if the engine fails.
        """

    def format_of(self, request: GenerationRequest) -> StructuredFormat | None:
        """Return the format of an answer: that of the request or of the version; None for any
        text."""
        format = request.format or self.prompting.response_format
        if isinstance(format, TextFormat):
            return None
        return format

    def require_format(self, format: ResponseFormat) -> None:
        """Raise RequestError 400 if a request cannot set this format of its answer."""
        if not isinstance(format, TextFormat) and not self.has_formats:
            message = (
                f"version {self.version.version} returns stored answers, whose format cannot be "
                "set; omit it"
            )
            raise RequestError(
                400, "invalid_request", f"response_format: {message}", param="response_format"
            )

    async def prepared(self, request: GenerationRequest) -> GenerationRequest:
        """Return the request with the grammar of its answer, if the engine uses grammars.

        Compiling it can take seconds, so await this before `slot`. Raises RequestError 400 for a
        format that cannot be generated.
        """
        return request

    @abstractmethod
    def end(self) -> None:
        """Release the engine's resources. This call blocks."""

    def slot(self, request: GenerationRequest, *, client: str) -> AbstractAsyncContextManager[None]:
        """Wait for the client's turn to generate an answer, and hold a slot during the block."""
        if self.slots is None:
            return nullcontext()
        cost = self.num_tokens(request.prompt, max_new_tokens=request.max_new_tokens)
        return self.slots.held(client, cost=cost)

    def num_tokens(self, prompt: EngineInput, *, max_new_tokens: int | None) -> int:
        """Return the maximum number of tokens of a prompt and its answer; without a limit, those of
        the prompt."""
        return len(prompt) + (max_new_tokens or 0)

    def require_room(self, prompt: EngineInput, *, max_new_tokens: int | None) -> None:
        """Raise RequestError 400 if a prompt and its answer exceed the model's length."""
        requested = max_new_tokens or 0
        if self.max_length is not None and len(prompt) + requested > self.max_length:
            message = (
                f"the prompt has {len(prompt)} tokens and the answer up to {requested}, but the "
                f"model accepts {self.max_length} in total; shorten the messages or lower "
                "max_tokens"
            )
            raise RequestError(
                400, "too_long", message, param="messages", code="context_length_exceeded"
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the engine running during the block and until the next iteration of the event
        loop."""
        stack = ExitStack()
        stack.enter_context(self._uses.use())
        try:
            yield
        finally:
            asyncio.get_running_loop().call_soon(stack.close)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the engine running, as `held`, and count it as active, so that a shadow waits."""
        self.num_active += 1
        try:
            with self.held():
                yield
        finally:
            self.num_active -= 1

    def unload(self) -> None:
        """End the engine after its last request."""
        self._uses.unload()

    def _start_end(self) -> None:
        self._ending = asyncio.get_running_loop().run_in_executor(None, self.end)
