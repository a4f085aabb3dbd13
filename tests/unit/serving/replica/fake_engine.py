"""A chat engine without a model."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

from serving.http.schemas import RequestError
from tailorbird.registry.versions import Prompting
from tests.small_chat import tokenizer

TOKENIZER = tokenizer()


class FakeEngine:
    """An engine that generates a fixed text, `at_once` tokens at a time."""

    def __init__(self, text: str, *, at_once: int = 1, fails_after: int | None = None, most: int | None = None) -> None:
        self.tokens = TOKENIZER(text, add_special_tokens=False)["input_ids"][:most]
        self.at_once, self.fails_after = at_once, fails_after
        self.end_id = TOKENIZER.eos_token_id
        self.max_length = 64
        self.tokenizer = TOKENIZER
        self.prompting = Prompting(system="own", shots=(("user", "q"), ("assistant", "a")), max_new_tokens=8)
        self.num_generated = 0
        self.num_active = 0

    @contextmanager
    def in_use(self) -> Iterator[None]:
        self.num_active += 1
        yield
        self.num_active -= 1

    async def generate(self, _prompt: list[int], **_options: Any) -> AsyncGenerator[tuple[list[int], bool], None]:
        for end in range(self.at_once, len(self.tokens) + self.at_once, self.at_once):
            if self.fails_after is not None and end > self.fails_after:
                raise RequestError(500, "engine_failed", "it gave up")
            self.num_generated = min(end, len(self.tokens))
            yield self.tokens[:end], end >= len(self.tokens)
