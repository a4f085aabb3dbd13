"""A chat engine without a model, and generations of chat requests."""

import asyncio
import json
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

from serving.engines.base_chat import ChatEngine, GenerationRequest
from serving.engines.language_model import Generation, LanguageModelEngine, Likelihood
from serving.http.chat_schemas import parse_chat
from serving.http.schemas import RequestError
from serving.replica.generation import generation_request, token_limit
from tailorbird.models.grammar.compiler import GrammarCompiler
from tailorbird.registry.versions import Prompting
from tests.small_chat import tokenizer

TOKENIZER = tokenizer()
PROMPTING = Prompting(system="own", shots=(("user", "q"), ("assistant", "a")), max_new_tokens=8)


class FakeEngine(LanguageModelEngine):
    """An engine that generates a fixed text, `at_once` tokens at a time, each with the same
    log-probability. It can fail after some tokens, or never answer while `hangs` is True."""

    running = True

    def __init__(
        self,
        text: str,
        *,
        at_once: int = 1,
        fails_after: int | None = None,
        hangs: bool = False,
        logprob: float = -0.1,
        prompting: Prompting = PROMPTING,
        index: Any = None,
    ) -> None:
        version = SimpleNamespace(name="task", version="v", digest="d", task="chat")
        loaded: Any = SimpleNamespace(
            version=version, tokenizer=TOKENIZER, prompting=prompting, index=index
        )
        end_id = int(TOKENIZER.eos_token_id)
        compiler = GrammarCompiler(TOKENIZER, vocab_size=len(TOKENIZER), end_id=end_id)
        super().__init__(loaded, compiler=compiler)
        self.tokens = TOKENIZER(text, add_special_tokens=False)["input_ids"]
        self.at_once, self.fails_after = at_once, fails_after
        self.hangs, self.logprob = hangs, logprob
        self.max_length = 64
        self.num_calls = self.num_generated = 0
        self.started = asyncio.Event()
        self.ended = False

    def end(self) -> None:
        self.ended = True

    async def generate(
        self, generation: Generation
    ) -> AsyncGenerator[tuple[list[int], bool], None]:
        self.num_calls += 1
        self.started.set()
        if self.hangs:
            await asyncio.Event().wait()
        for end in range(self.at_once, len(self.tokens) + self.at_once, self.at_once):
            if self.fails_after is not None and end > self.fails_after:
                raise RequestError(500, "engine_failed", "it gave up")
            self.num_generated = min(end, len(self.tokens))
            tokens = self.tokens[end - self.at_once : end]
            if generation.likelihoods is not None:
                generation.likelihoods.add(Likelihood(each, self.logprob, ()) for each in tokens)
            yield tokens, end >= len(self.tokens)


def generation_of(
    engine: ChatEngine, text: str, *, max_new_tokens: int | None = None, **fields: Any
) -> GenerationRequest:
    """Return the generation of a chat request with this text, under the limit of a recipe."""
    body = {"messages": [{"role": "user", "content": text}]} | fields
    request = parse_chat(json.dumps(body).encode())
    limit = token_limit(request, engine=engine, max_new_tokens=max_new_tokens)
    prompt = engine.chat_prompt(request.conversation, max_new_tokens=limit)
    return generation_request(request, prompt, engine=engine, max_new_tokens=limit)
