"""Chat engines with a language model: prompts, and the text of generated tokens."""

from abc import abstractmethod
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from serving.engines.base_chat import (
    ChatEngine,
    GenerationRequest,
    LikelyToken,
    PartialAnswer,
    Sampling,
    TokenLogprobs,
)
from serving.engines.detokenizer import IncrementalDetokenizer
from serving.engines.stop_sequences import visible_text
from serving.http.schemas import RequestError
from serving.limits import FairSlots, client_name
from tailorbird.config.formats.response_format import format_key
from tailorbird.data.rows import Conversation
from tailorbird.models.grammar.compiler import FormatError, Grammar, GrammarCompiler
from tailorbird.models.retrieval.chat_prompt import chat_prompt

if TYPE_CHECKING:
    from tailorbird.models.loading import LoadedChat
    from tailorbird.registry.versions import ModelVersion


class Likelihood(NamedTuple):
    """The log-probability of a generated token, and the most likely tokens at its position; tokens
    are ids."""

    token: int
    logprob: float
    most_likely: tuple[tuple[int, float], ...]


@dataclass
class Likelihoods:
    """The log-probabilities of an answer, which the engine adds while it generates tokens."""

    num_likely: int  # number of most likely tokens at each position
    tokens: list[Likelihood] = field(default_factory=list)

    def add(self, tokens: Iterable[Likelihood]) -> None:
        """Add the log-probabilities of the next tokens, without those beyond the most likely
        `num_likely`."""
        for token in tokens:
            self.tokens.append(token._replace(most_likely=token.most_likely[: self.num_likely]))


class Generation(NamedTuple):
    """The tokens of one answer that an engine generates."""

    prompt: list[int]
    max_new_tokens: int
    sampling: Sampling
    streaming: bool = False  # if False, all tokens are yielded together at the end
    # has those of all tokens when the last tokens are yielded
    likelihoods: Likelihoods | None = None
    grammar: Grammar | None = None  # of the answer; None for any text


def refused_format(error: FormatError) -> RequestError:
    """Return the error for a client whose response format cannot be generated."""
    return RequestError(
        400, "invalid_request", f"response_format: {error}", param="response_format"
    )


def engine_failed() -> RequestError:
    """Return the error for a client whose answer failed. Raise it from the reason, which only the
    log contains."""
    return RequestError(500, "engine_failed", "the engine failed; see the replica's log")


def engine_stopped() -> RequestError:
    """Return the error for a client whose answer cannot be generated until Serve has replaced the
    replica."""
    return RequestError(
        503, "engine_stopped", "the model's engine has stopped; the replica is being replaced"
    )


class LanguageModelEngine(ChatEngine):
    """An engine with one language model and, if the version retrieves examples, its index."""

    max_length: int

    def __init__(self, loaded: "LoadedChat[ModelVersion]", *, compiler: GrammarCompiler) -> None:
        """Compile the format of the version. Raises FormatError."""
        super().__init__(version=loaded.version, prompting=loaded.prompting)
        self.default_max_tokens = loaded.prompting.max_new_tokens
        self.tokenizer = loaded.tokenizer
        self.end_id = int(loaded.tokenizer.eos_token_id)
        self._index = loaded.index
        self._naming = FairSlots(1)
        self._compiler = compiler
        self._compiling = FairSlots(1)  # it takes up to seconds in a thread; clients take turns
        format = loaded.prompting.response_format
        # The engine holds it, so that formats of clients cannot replace it.
        self._version_grammar = None if format is None else compiler.compile(format, keep=False)

    @abstractmethod
    def generate(self, generation: Generation) -> AsyncGenerator[tuple[list[int], bool], None]:
        """Yield the new tokens, and True if the answer is complete.

        The tokens include the end-of-turn token. Closing the generator cancels the request. Raises
        RequestError if the engine fails, and with status 400 for a format that turns out too slow.
        """

    def chat_prompt(self, conversation: Conversation, *, max_new_tokens: int | None) -> list[int]:
        prompting = self.prompting.within(
            self.max_length - (max_new_tokens or self.prompting.max_new_tokens)
        )
        return chat_prompt(
            conversation, tokenizer=self.tokenizer, prompting=prompting, index=self._index
        ).tokens

    async def prepared(self, request: GenerationRequest) -> GenerationRequest:
        format = self.format_of(request)
        if format is None or request.grammar is not None:
            return request
        if self._version_grammar is not None and format == self.prompting.response_format:
            return request._replace(grammar=self._version_grammar)
        try:
            grammar = self._compiler.known(format)
            if grammar is None:
                grammar = await self._compiling.run(
                    partial(self._compiler.compile, format),
                    client=client_name(),
                    cost=len(format_key(format)),
                )
            grammar.require_usable()
        except FormatError as error:
            raise refused_format(error) from None
        return request._replace(grammar=grammar)

    async def answers(
        self, request: GenerationRequest, *, streaming: bool
    ) -> AsyncGenerator[PartialAnswer, None]:
        prompt = request.prompt
        max_new_tokens = request.max_new_tokens
        assert isinstance(prompt, list)
        assert max_new_tokens is not None
        detokenizer = IncrementalDetokenizer(self.tokenizer)
        decoded = ""
        num_tokens = 0
        if request.num_likely is None:
            likelihoods = None
        else:
            likelihoods = Likelihoods(request.num_likely)
        generation = Generation(
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            sampling=request.sampling,
            streaming=streaming,
            likelihoods=likelihoods,
            grammar=(await self.prepared(request)).grammar,
        )
        async with aclosing(self.generate(generation)) as generating:
            async for tokens, ended in generating:
                num_tokens += len(tokens)
                finished = tokens[-1:] == [self.end_id]
                ended = ended or finished
                decoded += detokenizer.add(tokens[:-1] if finished else tokens, ended=ended)
                text, stopped = visible_text(decoded, stops=request.stops, ended=ended)
                if stopped or finished:
                    reason = "stop"
                elif ended:
                    reason = "length"
                else:
                    reason = None
                logprobs = None
                if likelihoods is not None and reason is not None:
                    # Decoding 21 tokens at each of 2,048 positions takes 0.4 s.
                    named = partial(self._logprobs, likelihoods.tokens[:num_tokens])
                    logprobs = await self._naming.run(named, client=client_name(), cost=num_tokens)
                yield PartialAnswer(text, num_tokens, reason, logprobs=logprobs)
                if reason is not None:
                    return

    def _logprobs(self, likelihoods: Iterable[Likelihood]) -> tuple[TokenLogprobs, ...]:
        """Return log-probabilities with the text of each token."""

        def named(token: int, logprob: float) -> LikelyToken:
            return LikelyToken(self.tokenizer.decode([token]), logprob)

        return tuple(
            TokenLogprobs(named(token, logprob), tuple(named(*likely) for likely in most_likely))
            for token, logprob, most_likely in likelihoods
        )
