"""Answer rows with a chat model; training, evaluation and cost measurement share this code."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from tailorbird.data.chat_template import conversation_tokens, prompt_tokens
from tailorbird.data.rows import Conversation, Rows
from tailorbird.models.causal_lm import ChatModel
from tailorbird.models.generation import answer_prompts, log_likelihoods
from tailorbird.registry.versions import Prompting

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Answer(NamedTuple):
    """The answer to a row."""

    text: str
    confidence: float
    """exp of the mean log-probability of the tokens."""


def answer_rows(
    model: ChatModel, rows: Rows, *, tokenizer: "PreTrainedTokenizerBase", prompting: Prompting
) -> list[Answer]:
    """Return the greedy answer to each row; raise DataError if the chat template refuses a conversation."""
    prompts = [
        prompt_tokens(conversation, tokenizer=tokenizer, system=prompting.system, shots=prompting.shots)
        for conversation in conversations(rows)
    ]
    end_id = int(tokenizer.eos_token_id)
    answers = answer_prompts(model.lm, prompts, max_new_tokens=prompting.max_new_tokens, end_id=end_id)
    texts = [str(tokenizer.decode(list(answer.tokens), skip_special_tokens=True)).strip() for answer in answers]
    return [Answer(text, answer.confidence) for text, answer in zip(texts, answers, strict=True)]


def reference_likelihoods(
    model: ChatModel, rows: Rows, *, tokenizer: "PreTrainedTokenizerBase", prompting: Prompting
) -> list[float]:
    """Return the mean log-probability of each row's reference answer, in nats per token."""
    tokens = [
        conversation_tokens(turns, answer, tokenizer=tokenizer, system=prompting.system, shots=prompting.shots)
        for turns, answer in zip(conversations(rows), rows.labels, strict=True)
    ]
    return log_likelihoods(model, tokens, pad_id=int(tokenizer.pad_token_id)).tolist()  # type: ignore[no-any-return]


def conversations(rows: Rows) -> Sequence[Conversation]:
    """Return the conversations of a chat task's rows."""
    assert rows.conversations is not None
    return rows.conversations
