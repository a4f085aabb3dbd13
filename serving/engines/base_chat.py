"""The interface of a chat engine."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tailorbird.registry.versions import ModelVersion, Prompting


class Sampling(NamedTuple):
    """How a request's tokens are chosen; temperature 0 takes the most likely one each time."""

    temperature: float
    top_p: float
    seed: int


class ChatEngine(ABC):
    """Generates answers with one chat version.

    Lives in one event loop. A request is answered by one version, whatever is swapped meanwhile: the engine ends once
    it is unloaded and the last request that uses it is over.
    """

    max_length: int
    """Most tokens that a prompt and its answer may have together."""

    def __init__(
        self, *, version: "ModelVersion", tokenizer: "PreTrainedTokenizerBase", prompting: "Prompting"
    ) -> None:
        self.version = version
        self.tokenizer = tokenizer
        self.prompting = prompting
        self.end_id = int(tokenizer.eos_token_id)
        self.num_active = 0
        self._unloaded = False
        self._ending: asyncio.Future[None] | None = None

    @property
    @abstractmethod
    def running(self) -> bool:
        """Return True while it answers; an error outside of a single request ends it."""

    @abstractmethod
    def generate(
        self, prompt: list[int], *, max_new_tokens: int, sampling: Sampling, streaming: bool
    ) -> AsyncGenerator[tuple[list[int], bool], None]:
        """Yield all tokens so far and whether the answer is complete; if not `streaming`, only the complete answer.

        The end-of-turn token is included. Closing the generator cancels the request. Raises RequestError if the engine
        fails.
        """

    @abstractmethod
    def end(self) -> None:
        """Release the engine's resources; blocks."""

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the engine running during the block, and during work that the block starts without awaiting."""
        self.num_active += 1
        try:
            yield
        finally:
            self.num_active -= 1
            asyncio.get_running_loop().call_soon(self._end_if_unused)

    def unload(self) -> None:
        """End the engine once its requests are over."""
        self._unloaded = True
        self._end_if_unused()

    def _end_if_unused(self) -> None:
        if self._unloaded and self.num_active == 0 and self._ending is None:
            self._ending = asyncio.get_running_loop().run_in_executor(None, self.end)
