"""Chat engine of the kind `nearest`: answers of training rows, without a language model."""

import sys
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from serving.engines.base_chat import (
    ChatEngine,
    EngineInput,
    GenerationRequest,
    PartialAnswer,
    StoredAnswer,
)
from serving.engines.stop_sequences import visible_text
from tailorbird.data.rows import Conversation
from tailorbird.models.retrieval.chat_prompt import nearest_answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tailorbird.models.loading import LoadedChat
    from tailorbird.registry.versions import ModelVersion


class NearestEngine(ChatEngine):
    """An engine that returns the stored answer of the training row nearest to a conversation.

    The base model's tokenizer only counts tokens and applies a request's `max_tokens`.
    """

    has_logprobs = has_formats = False

    def __init__(
        self, loaded: "LoadedChat[ModelVersion]", *, tokenizer: "PreTrainedTokenizerBase"
    ) -> None:
        super().__init__(version=loaded.version, prompting=loaded.prompting)
        assert loaded.index is not None  # `VersionConfig` requires it for this kind
        self.max_length = self.default_max_tokens = None
        self._index = loaded.index
        self._tokenizer = tokenizer

    @property
    def running(self) -> bool:
        return True

    def end(self) -> None:
        """Do nothing; the engine has no threads."""

    def chat_prompt(self, conversation: Conversation, *, max_new_tokens: int | None) -> EngineInput:  # noqa: ARG002
        text, similarity = nearest_answer(conversation, index=self._index)
        ends = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        contents = [content for _, content in conversation]
        tokens = self._tokenizer(contents, add_special_tokens=False)["input_ids"]
        return StoredAnswer(
            num_prompt_tokens=sum(map(len, tokens)),
            text=text,
            token_ends=tuple(int(end) for _, end in ends),
            similarity=similarity,
        )

    async def answers(
        self,
        request: GenerationRequest,
        *,
        streaming: bool,  # noqa: ARG002
    ) -> AsyncGenerator[PartialAnswer, None]:
        """Yield the answer once, complete or up to `max_new_tokens`. Sampling options have no
        effect."""
        stored = request.prompt
        assert isinstance(stored, StoredAnswer)
        num_tokens = min(len(stored.token_ends), request.max_new_tokens or sys.maxsize)
        truncated = num_tokens < len(stored.token_ends)
        if truncated:
            text = stored.text[: stored.token_ends[num_tokens - 1]]
        else:
            text = stored.text
        text, stopped = visible_text(text, stops=request.stops, ended=True)
        if stopped:
            num_tokens = sum(end <= len(text) for end in stored.token_ends)
        reason = "length" if truncated and not stopped else "stop"
        yield PartialAnswer(text, num_tokens, reason, confidence=stored.similarity)
