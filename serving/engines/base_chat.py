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
    """Sampling options of a request. Temperature 0 is greedy decoding."""

    temperature: float
    top_p: float
    seed: int


class ChatEngine(ABC):
    """A generator of answers with one chat version. Use it in one event loop.

    One version answers a request completely, even if versions are swapped during the answer. An unloaded engine ends
    after the last request that uses it.
    """

    max_length: int
    """Maximum number of tokens of a prompt and its answer."""

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
        """Return True until the engine stops. An error outside of a single request stops it."""

    @abstractmethod
    def generate(
        self, prompt: list[int], *, max_new_tokens: int, sampling: Sampling, streaming: bool
    ) -> AsyncGenerator[tuple[list[int], bool], None]:
        """Yield all tokens so far, and True if the answer is complete. If not `streaming`, yield only the last state.

        The tokens include the end-of-turn token. Closing the generator cancels the request. Raises RequestError if the
        engine fails.
        """

    @abstractmethod
    def end(self) -> None:
        """Release the engine's resources. This call blocks."""

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the engine running during the block, and until the next iteration of the event loop after it."""
        self.num_active += 1
        try:
            yield
        finally:
            self.num_active -= 1
            asyncio.get_running_loop().call_soon(self._end_if_unused)

    def unload(self) -> None:
        """End the engine after its last request."""
        self._unloaded = True
        self._end_if_unused()

    def _end_if_unused(self) -> None:
        if self._unloaded and self.num_active == 0 and self._ending is None:
            self._ending = asyncio.get_running_loop().run_in_executor(None, self.end)
