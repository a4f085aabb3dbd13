"""Tokenize conversations with the model's own chat template."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tailorbird.data.rows import Conversation, DataError, Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_LISTED = 5


@dataclass(frozen=True)
class Tokens:
    """A conversation's token ids, and which of them are learned and scored."""

    ids: list[int]
    assistant_mask: NDArray[np.bool_]  # true for the tokens that the assistant wrote

    def __len__(self) -> int:
        return len(self.ids)


def prompt_tokens(
    conversation: Conversation, *, tokenizer: "PreTrainedTokenizerBase", system: str | None, shots: Conversation = ()
) -> list[int]:
    """Return the token ids up to where the assistant answers; `shots` are turns put before the conversation's own.

    Raises DataError for a tokenizer without a chat template, a conversation that its template refuses, or a turn that
    spells a special token.
    """
    turns = _with_system(conversation, system=system, shots=shots)
    _refuse_special_tokens(turns, tokenizer=tokenizer)
    return _rendered(turns, tokenizer=tokenizer, answering=True)


def conversation_tokens(
    conversation: Conversation,
    answer: str,
    *,
    tokenizer: "PreTrainedTokenizerBase",
    system: str | None,
    shots: Conversation = (),
) -> Tokens:
    """Tokenize a conversation with its answer, up to the answer's end-of-turn token; DataError as `prompt_tokens`.

    The assistant mask covers every assistant turn with its end-of-turn token, and none of `shots`.
    """
    prompt = _with_system(conversation, system=system, shots=shots)
    turns = (*prompt, ("assistant", answer))
    _refuse_special_tokens(turns, tokenizer=tokenizer)
    ids = _rendered(turns, tokenizer=tokenizer, answering=False)
    assistant_mask = np.zeros(len(ids), dtype=np.bool_)
    first_own = len(prompt) - len(conversation) + sum(role == "system" for role, _ in conversation)
    end = 0
    for index in range(first_own, len(turns)):
        if turns[index][0] != "assistant":
            continue
        before = _rendered(turns[:index], tokenizer=tokenizer, answering=True)
        after = ids if index + 1 == len(turns) else _rendered(turns[: index + 1], tokenizer=tokenizer, answering=False)
        if ids[: len(before)] != before or ids[: len(after)] != after or len(after) <= len(before):
            raise DataError(
                "the model's chat template does not write a conversation turn by turn: what comes before an answer "
                "changes once the answer is there, so answers cannot be masked; give the model another template"
            )
        ends = [position for position in range(len(before), len(after)) if ids[position] == tokenizer.eos_token_id]
        end = ends[-1] + 1 if ends else len(after)
        assistant_mask[len(before) : end] = True
    return Tokens(ids[:end], assistant_mask[:end])


def training_tokens(
    rows: Rows, *, tokenizer: "PreTrainedTokenizerBase", system: str | None, max_length: int
) -> list[Tokens]:
    """Tokenize each conversation with its answer, truncated to `max_length`.

    Raises DataError as `prompt_tokens`, with the row, and if truncation leaves no token of an answer.
    """
    assert rows.conversations is not None
    tokens = []
    for row_id, conversation, answer in zip(rows.row_ids, rows.conversations, rows.labels, strict=True):
        try:
            whole = conversation_tokens(conversation, answer, tokenizer=tokenizer, system=system)
        except DataError as error:
            raise DataError(f"training row {row_id}: {error}") from None
        tokens.append(Tokens(whole.ids[:max_length], whole.assistant_mask[:max_length]))
    unanswered = [row_id for row_id, row in zip(rows.row_ids, tokens, strict=True) if not row.assistant_mask.any()]
    if unanswered:
        raise DataError(
            f"of {len(unanswered)} training conversations nothing of an answer is left within data.max_length "
            f"{max_length} tokens (rows {', '.join(unanswered[:MAX_LISTED])}); raise it, or shorten or drop them"
        )
    return tokens


def _with_system(conversation: Conversation, *, system: str | None, shots: Conversation) -> Conversation:
    """Return system message, shots and turns; the conversation's own system message takes precedence."""
    own = tuple(turn for turn in conversation if turn[0] == "system")
    first = own or ((("system", system),) if system is not None else ())
    return (*first, *shots, *(turn for turn in conversation if turn[0] != "system"))


def _refuse_special_tokens(turns: Conversation, *, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise DataError for content that spells a special token, which would end the turn and begin another."""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special} - {tokenizer.unk_token}
    for role, content in turns:
        spelt = next((token for token in sorted(special) if token in content), None)
        if spelt is not None:
            raise DataError(f"a turn of the {role} spells {spelt!r}, a token that tells turns apart; take it out")


def _rendered(turns: Conversation, *, tokenizer: "PreTrainedTokenizerBase", answering: bool) -> list[int]:
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        raise DataError("the model's tokenizer has no chat template; name an instruction-tuned model for task: chat")
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
