"""Beside data.encode, for chat: conversations to tokens by the model's own template, and packed without padding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tailorbird.data.rows import Conversation, DataError, Message, Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


NAMED = 5


@dataclass(frozen=True)
class Tokens:
    """A conversation's token ids, and which of them the assistant said: what is learned, and scored."""

    ids: list[int]
    said: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)


def prompt_tokens(
    conversation: Conversation,
    *,
    tokenizer: "PreTrainedTokenizerBase",
    system: str | None,
    shots: Sequence[Message] = (),
) -> list[int]:
    """Token ids up to where the assistant is to answer; `shots` are turns put before the conversation's own.

    Raises DataError for a tokenizer without a chat template, a conversation that its template refuses, or a turn that
    spells one of the tokens by which a model tells turns apart.
    """
    turns = _whole(conversation, system=system, shots=shots)
    _refuse_forged(turns, tokenizer=tokenizer)
    return _rendered(turns, tokenizer=tokenizer, answering=True)


def conversation_tokens(
    conversation: Conversation,
    answer: str,
    *,
    tokenizer: "PreTrainedTokenizerBase",
    system: str | None,
    shots: Sequence[Message] = (),
) -> Tokens:
    """Token ids of a conversation with its answer, up to the answer's end-of-turn token; DataError as `prompt_tokens`.

    Said are every assistant's turn, its end-of-turn token included, and none of `shots`.
    """
    before = _whole(conversation, system=system, shots=shots)
    turns = (*before, ("assistant", answer))
    _refuse_forged(turns, tokenizer=tokenizer)
    ids = _rendered(turns, tokenizer=tokenizer, answering=False)
    said = np.zeros(len(ids), dtype=np.bool_)
    own = len(before) - len(conversation) + sum(role == "system" for role, _ in conversation)
    end = 0
    for place in range(own, len(turns)):
        if turns[place][0] != "assistant":
            continue
        asked = _rendered(turns[:place], tokenizer=tokenizer, answering=True)
        told = ids if place + 1 == len(turns) else _rendered(turns[: place + 1], tokenizer=tokenizer, answering=False)
        if ids[: len(asked)] != asked or ids[: len(told)] != told or len(told) <= len(asked):
            raise DataError(
                "the model's chat template does not tell a conversation turn by turn (what comes before an answer is "
                "written otherwise once the answer is there), so its answers cannot be told from the rest; give the "
                "model another template"
            )
        end = _end_of_turn(told, begin=len(asked), end_id=tokenizer.eos_token_id)
        said[len(asked) : end] = True
    return Tokens(ids[:end], said[:end])


def cut_to(tokens: Tokens, *, max_length: int) -> Tokens:
    """The first `max_length` tokens."""
    return Tokens(tokens.ids[:max_length], tokens.said[:max_length])


def training_tokens(
    rows: Rows, *, tokenizer: "PreTrainedTokenizerBase", system: str | None, max_length: int
) -> list[Tokens]:
    """Each conversation with its answer, cut at `max_length`.

    Raises DataError as `prompt_tokens`, with the row, and where a row is so long that nothing of an answer is left.
    """
    assert rows.conversations is not None
    tokens = []
    for row_id, conversation, answer in zip(rows.row_ids, rows.conversations, rows.labels, strict=True):
        try:
            whole = conversation_tokens(conversation, answer, tokenizer=tokenizer, system=system)
        except DataError as error:
            raise DataError(f"training row {row_id}: {error}") from None
        tokens.append(cut_to(whole, max_length=max_length))
    mute = [row_id for row_id, row in zip(rows.row_ids, tokens, strict=True) if not row.said.any()]
    if mute:
        raise DataError(
            f"of {len(mute)} training conversations nothing of an answer is left within data.max_length "
            f"{max_length} tokens (rows {', '.join(mute[:NAMED])}); raise it, or shorten or drop them"
        )
    return tokens


def _whole(conversation: Conversation, *, system: str | None, shots: Sequence[Message]) -> Conversation:
    """System message, shots, and the conversation's own turns; a system message of its own stands."""
    own = tuple(turn for turn in conversation if turn[0] == "system")
    first = own or ((("system", system),) if system is not None else ())
    return (*first, *shots, *(turn for turn in conversation if turn[0] != "system"))


def _refuse_forged(turns: Sequence[Message], *, tokenizer: "PreTrainedTokenizerBase") -> None:
    """What a turn says is text: spelt out in it, a special token would end the turn and begin another's."""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special} - {tokenizer.unk_token}
    for role, content in turns:
        found = next((token for token in sorted(special) if token in content), None)
        if found is not None:
            raise DataError(f"a turn of the {role} spells {found!r}, a token that tells turns apart; take it out")


def _rendered(turns: Sequence[Message], *, tokenizer: "PreTrainedTokenizerBase", answering: bool) -> list[int]:
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        raise DataError(
            "the base model's tokenizer has no chat template; name an instruction-tuned model for task: chat"
        )
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answering)
    except TemplateError as error:
        roles = ", ".join(role for role, _ in turns)
        raise DataError(
            f"the model's chat template refuses a conversation of the turns {roles}: {error}; shape the conversations "
            "as the model wants them, or leave data.system out if it takes none"
        ) from None
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _end_of_turn(ids: Sequence[int], *, begin: int, end_id: int | None) -> int:
    """One past the last end-of-turn token from `begin` on; a template without one ends where the text ends."""
    found = [place for place in range(begin, len(ids)) if ids[place] == end_id]
    return found[-1] + 1 if found else len(ids)
