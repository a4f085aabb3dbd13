"""Beside data.encode, for chat: conversations to tokens by the model's own template, and packed without padding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data.read import Conversation, DataError, Message, Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PACKED_TOKENS, MAX_PADDING = 128, 0.03
"""Width that packed rows aim at, where attention still costs little beside the rest of a model, and the share of
padding that makes them wider and fewer instead."""
NAMED = 5


@dataclass(frozen=True)
class Tokens:
    """A conversation's token ids, and which of them the assistant said: what is learned, and scored."""

    ids: list[int]
    said: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Packed:
    """Conversations laid end to end in rows of one width [B, T], none of which sees another."""

    input_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    """Counted anew from each conversation's first token."""
    owners: NDArray[np.int64]
    """The conversation that a token belongs to, by its place among those given; -1 is padding."""
    places: NDArray[np.int64]
    """[N] flat places in [B, T] whose next token is one that the assistant said."""
    targets: NDArray[np.int64]
    """[N] these next tokens."""

    @property
    def target_owners(self) -> NDArray[np.int64]:
        """[N] the conversation of each target."""
        return np.asarray(self.owners.reshape(-1)[self.places])


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


def packed(rows: Sequence[Tokens], *, pad_id: int) -> Packed:
    """The conversations in rows of about `PACKED_TOKENS`, or in fewer that are evenly filled: `MAX_PADDING` at most."""
    lengths = [len(row) for row in rows]
    num_bins = max(1, min(len(rows), round(sum(lengths) / max(PACKED_TOKENS, *lengths))))
    bins, width = _evenly(lengths, num_bins=num_bins)
    while sum(lengths) < (1 - MAX_PADDING) * width * len(bins):  # a single row has none
        bins, width = _evenly(lengths, num_bins=len(bins) - 1)
    shape = len(bins), width
    input_ids, position_ids = np.full(shape, pad_id, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    owners, learned = np.full(shape, -1, dtype=np.int64), np.zeros(shape, dtype=np.bool_)
    for number, places in enumerate(bins):
        begin = 0
        for place in places:
            row, end = rows[place], begin + len(rows[place])
            input_ids[number, begin:end] = row.ids
            position_ids[number, begin:end] = np.arange(len(row))
            owners[number, begin:end] = place
            learned[number, begin : end - 1] = row.said[1:]
            begin = end
    places_flat = np.flatnonzero(learned.reshape(-1))
    return Packed(input_ids, position_ids, owners, places_flat, input_ids.reshape(-1)[places_flat + 1])


def _evenly(lengths: Sequence[int], *, num_bins: int) -> tuple[list[list[int]], int]:
    """Places of the conversations in each row, and the width of the fullest.

    Each goes, the longest first, into the row with the least in it. Graham, Bounds on multiprocessing timing (1969).
    """
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    filled = [0] * num_bins
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        least = filled.index(min(filled))
        bins[least].append(place)
        filled[least] += lengths[place]
    return bins, max(filled)


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
