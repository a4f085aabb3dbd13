"""Tokenize conversations with the model's own chat template."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tailorbird.data.rows import Conversation, DataError, Rows, messages_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_LISTED = 5


@dataclass(frozen=True)
class Tokens:
    """Token ids of a conversation, and the mask of the tokens that are trained on."""

    ids: list[int]
    assistant_mask: NDArray[np.bool_]  # True for tokens of the assistant

    def __len__(self) -> int:
        return len(self.ids)


class Prompt(NamedTuple):
    """The tokens of a prompt and the example turns in it."""

    tokens: list[int]
    examples: Conversation


def example_turns(
    conversation: Conversation, answer: str, *, untrained: Sequence[int] = ()
) -> Conversation:
    """Return a conversation with its answer as an example for other prompts; empty without a turn
    of the user.

    An example starts with the first turn of the user, because it follows the answer of another
    example, and many chat templates reject two turns of the assistant in a row. It starts after the
    last turn of the assistant at the positions `untrained`: a turn with weight 0 may be wrong, or
    the answer to a test row. System messages are omitted.
    """
    turns = [turn for turn in conversation[max(untrained, default=-1) + 1 :] if turn[0] != "system"]
    first = next((position for position, (role, _) in enumerate(turns) if role == "user"), None)
    if first is None:
        return ()
    return (*turns[first:], ("assistant", answer))


def examples_of(rows: Rows) -> list[Conversation]:
    """Return each row as an example; see `example_turns`."""
    columns = zip(rows.turns, rows.labels, rows.untrained, strict=True)
    return [
        example_turns(turns, answer, untrained=untrained) for turns, answer, untrained in columns
    ]


def prompt_tokens(
    conversation: Conversation,
    *,
    tokenizer: "PreTrainedTokenizerBase",
    system: str | None,
    shots: Conversation = (),
) -> list[int]:
    """Return the token ids of a conversation up to the start of the assistant's answer.

    `shots` are example turns that precede those of the conversation. Raises DataError for a
    tokenizer without a chat template, a conversation that the template rejects, or a turn that
    contains a special token.
    """
    turns = with_system(conversation, system=system, shots=shots)
    _refuse_special_tokens(turns, tokenizer=tokenizer)
    return _rendered(turns, tokenizer=tokenizer, answering=True)


def conversation_tokens(
    conversation: Conversation,
    answer: str,
    *,
    tokenizer: "PreTrainedTokenizerBase",
    system: str | None,
    shots: Conversation = (),
    untrained: Sequence[int] = (),
) -> Tokens:
    """Tokenize a conversation with its answer, including the answer's end-of-turn token.

    The assistant mask covers every assistant turn with its end-of-turn token, but neither `shots`
    nor the turns at the positions `untrained` of the conversation. Raises DataError like
    `prompt_tokens`.
    """
    prompt_turns = with_system(conversation, system=system, shots=shots)
    turns = (*prompt_turns, ("assistant", answer))
    _refuse_special_tokens(turns, tokenizer=tokenizer)
    ids = _rendered(turns, tokenizer=tokenizer, answering=False)
    assistant_mask = np.zeros(len(ids), dtype=np.bool_)

    # The turns of the conversation without its system messages are the last ones of `turns`.
    have_loss = [
        role == "assistant" and position not in untrained
        for position, (role, _) in enumerate(conversation)
        if role != "system"
    ]
    end = 0
    first = len(prompt_turns) - len(have_loss)
    for index, has_loss in enumerate((*have_loss, True), start=first):
        if not has_loss:
            continue
        before = _rendered(turns[:index], tokenizer=tokenizer, answering=True)
        after = ids  # of the answer, the last turn
        if index + 1 < len(turns):
            after = _rendered(turns[: index + 1], tokenizer=tokenizer, answering=False)
        if ids[: len(before)] != before or ids[: len(after)] != after or len(after) <= len(before):
            raise DataError(
                "the model's chat template changes earlier turns when an answer is added, so the "
                "tokens of answers cannot be identified; use a model with another chat template"
            )
        end = len(after)
        turn = after[len(before) :]
        if tokenizer.eos_token_id in turn:  # without what the template adds after it
            end -= turn[::-1].index(tokenizer.eos_token_id)
        assistant_mask[len(before) : end] = True
    return Tokens(ids[:end], assistant_mask[:end])


def training_tokens(
    rows: Rows,
    *,
    tokenizer: "PreTrainedTokenizerBase",
    system: str | None,
    max_length: int,
) -> list[Tokens]:
    """Tokenize each conversation with its answer, truncated to `max_length`.

    Raises DataError like `prompt_tokens`, with the row id, and if truncation removes all tokens of
    the assistant.
    """
    tokens = []
    unanswered = []
    parts = zip(rows.row_ids, rows.turns, rows.labels, rows.untrained, strict=True)
    for row_id, turns, answer, untrained in parts:
        try:
            row = conversation_tokens(
                turns, answer, tokenizer=tokenizer, system=system, untrained=untrained
            )
        except DataError as error:
            raise DataError(f"training row {row_id}: {error}") from None
        tokens.append(Tokens(row.ids[:max_length], row.assistant_mask[:max_length]))
        if not tokens[-1].assistant_mask.any():
            unanswered.append(row_id)
    if unanswered:
        raise DataError(
            f"{len(unanswered)} training conversations have no answer within data.max_length "
            f"{max_length} tokens (rows {', '.join(unanswered[:MAX_LISTED])}); raise "
            "data.max_length, or shorten or drop these rows"
        )
    return tokens


def with_system(
    conversation: Conversation, *, system: str | None, shots: Conversation
) -> Conversation:
    """Return the system message, the shots and the turns. A system message in the conversation
    takes precedence."""
    system_turns = tuple(turn for turn in conversation if turn[0] == "system")
    first = system_turns or ((("system", system),) if system is not None else ())
    return (*first, *shots, *(turn for turn in conversation if turn[0] != "system"))


def _refuse_special_tokens(turns: Conversation, *, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise DataError for content that contains a special token, which could end the turn and start
    another."""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special} - {
        tokenizer.unk_token
    }
    for role, content in turns:
        contained = next((token for token in sorted(special) if token in content), None)
        if contained is not None:
            raise DataError(
                f"a turn of the {role} contains the special token {contained!r}; remove it"
            )


def _rendered(
    turns: Conversation, *, tokenizer: "PreTrainedTokenizerBase", answering: bool
) -> list[int]:
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        raise DataError(
            "the model's tokenizer has no chat template; use an instruction-tuned base model for "
            "`task: chat`"
        )
    try:
        text = tokenizer.apply_chat_template(
            messages_of(turns), tokenize=False, add_generation_prompt=answering
        )
    except TemplateError as error:
        roles = ", ".join(role for role, _ in turns)
        raise DataError(
            f"the model's chat template rejects a conversation with the turns {roles}: {error}; "
            "change the order of the turns, or unset data.system if the template does not support "
            "system messages"
        ) from None
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
