"""Answers of a chat model to rows, for training, evaluation and the cost measurement."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from tailorbird.data.chat_template import Tokens, conversation_tokens
from tailorbird.data.rows import Conversation, Rows
from tailorbird.models.causal_lm import ChatModel
from tailorbird.models.generation import GenerateAnswers, answer_prompts
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
    prompt_of = partial(chat_prompt, tokenizer=tokenizer, prompting=prompting, index=index)
    prompts = [prompt_of(conversation).tokens for conversation in rows.turns]
    format = prompting.response_format
    if rows.suite is not None:
        format = None
        for prompt, start in zip(prompts, rows.suite.starts, strict=True):
            prompt += tokenizer(start, add_special_tokens=False)["input_ids"]
    generated = generate(
        model.lm,
        prompts,
        max_new_tokens=prompting.max_new_tokens,
        end_id=int(tokenizer.eos_token_id),
        grammar=grammar_for(format, lm=model.lm, tokenizer=tokenizer),
    )
    answers = []
    for answer in generated:
        text = str(tokenizer.decode(list(answer.tokens), skip_special_tokens=True)).strip()
        answers.append(Answer(text, answer.confidence, answer.logprobs))
    return answers


def answer_texts(
    loaded: LoadedChat[VersionConfig], rows: Rows, *, generate: GenerateAnswers = answer_prompts
) -> list[Answer]:
    """Return the answer of a chat version to each row; raise DataError if the chat template refuses
    a conversation."""
    if loaded.model is None:
        assert loaded.index is not None  # the kind `nearest`
        nearest = [nearest_answer(turns, index=loaded.index) for turns in rows.turns]
        return [Answer(answer.text, answer.similarity) for answer in nearest]
    return answer_rows(
        loaded.model,
        rows,
        tokenizer=loaded.tokenizer,
        prompting=loaded.prompting,
        index=loaded.index,
        generate=generate,
    )


def answer_tokens(
    loaded: LoadedChat[VersionConfig], turns: Conversation, *, answers: Sequence[str]
) -> list[Tokens]:
    """Return the tokens of a conversation with the prompt of a chat version, followed by each of
    the answers."""
    prompt = chat_prompt(
        turns, tokenizer=loaded.tokenizer, prompting=loaded.prompting, index=loaded.index
    )
    tokens_of = partial(
        conversation_tokens,
        tokenizer=loaded.tokenizer,
        system=loaded.prompting.system,
        shots=prompt.examples,
    )
    return [tokens_of(turns, answer) for answer in answers]
