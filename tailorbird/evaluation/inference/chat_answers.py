"""Answers of a chat model to rows, for training, evaluation and the cost measurement."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from tailorbird.data.chat_template import Tokens, conversation_tokens
from tailorbird.data.rows import Conversation, Rows
from tailorbird.models.causal_lm import ChatModel
from tailorbird.models.generation import GenerateAnswers, answer_prompts, log_likelihoods
from tailorbird.models.grammar.compiler import grammar_for
from tailorbird.models.loading import LoadedChat
from tailorbird.models.retrieval.chat_prompt import chat_prompt, nearest_answer
from tailorbird.registry.versions import Prompting, VersionConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tailorbird.models.retrieval.index import RetrievalIndex


class Answer(NamedTuple):
    """The answer to a row."""

    text: str
    confidence: float
    """exp of the mean log-probability of the tokens; for the kind `nearest`, the similarity."""
    logprobs: tuple[float, ...] = ()
    """Log-probability of each token, the end-of-turn token included; empty for the kind
    `nearest`."""


def answer_rows(
    model: ChatModel,
    rows: Rows,
    *,
    tokenizer: "PreTrainedTokenizerBase",
    prompting: Prompting,
    index: "RetrievalIndex | None" = None,
    generate: GenerateAnswers = answer_prompts,
) -> list[Answer]:
    """Return the greedy answer to each row, in the format of the prompting.

    A row of a suite may have the start of its answer. The model then generates the rest, which is
    returned. Answers to suites are free texts, because suites ask other questions. Raises DataError
    if the chat template refuses a conversation, and FormatError for a format that cannot be
    generated.
    """
    prompts = [
        chat_prompt(conversation, tokenizer=tokenizer, prompting=prompting, index=index).tokens
        for conversation in rows.turns
    ]
    if rows.suite is not None:
        starts = (
            tokenizer(start, add_special_tokens=False)["input_ids"] for start in rows.suite.starts
        )
        prompts = [[*prompt, *start] for prompt, start in zip(prompts, starts, strict=True)]
    end_id = int(tokenizer.eos_token_id)
    format = None if rows.suite is not None else prompting.response_format
    grammar = grammar_for(format, lm=model.lm, tokenizer=tokenizer)
    limit = prompting.max_new_tokens
    answers = generate(model.lm, prompts, max_new_tokens=limit, end_id=end_id, grammar=grammar)
    texts = [
        str(tokenizer.decode(list(answer.tokens), skip_special_tokens=True)).strip()
        for answer in answers
    ]
    return [
        Answer(text, answer.confidence, answer.logprobs)
        for text, answer in zip(texts, answers, strict=True)
    ]


def answer_texts(
    loaded: LoadedChat[VersionConfig], rows: Rows, *, generate: GenerateAnswers = answer_prompts
) -> list[Answer]:
    """Return the answer of a chat version to each row; raise DataError if the chat template refuses
    a conversation."""
    if loaded.model is None:
        assert loaded.index is not None  # the kind `nearest`
        return [
            Answer(*nearest_answer(conversation, index=loaded.index)) for conversation in rows.turns
        ]
    return answer_rows(
        loaded.model,
        rows,
        tokenizer=loaded.tokenizer,
        prompting=loaded.prompting,
        index=loaded.index,
        generate=generate,
    )


def reference_likelihoods(loaded: LoadedChat[VersionConfig], rows: Rows) -> list[float]:
    """Return the mean log-probability of each row's reference answer, in nats per token."""
    assert loaded.model is not None
    tokens = []
    for turns, answer in zip(rows.turns, rows.labels, strict=True):
        tokens += answer_tokens(loaded, turns, answers=(answer,))
    return log_likelihoods(loaded.model, tokens, pad_id=int(loaded.tokenizer.pad_token_id)).tolist()  # type: ignore[no-any-return]


def answer_tokens(
    loaded: LoadedChat[VersionConfig], turns: Conversation, *, answers: Sequence[str]
) -> list[Tokens]:
    """Return the tokens of a conversation with the prompt of a chat version, followed by each of
    the answers."""
    tokenizer = loaded.tokenizer
    system = loaded.prompting.system
    shots = chat_prompt(
        turns, tokenizer=tokenizer, prompting=loaded.prompting, index=loaded.index
    ).examples
    return [
        conversation_tokens(turns, answer, tokenizer=tokenizer, system=system, shots=shots)
        for answer in answers
    ]
