"""Convert records of the chat formats of OpenAI, ShareGPT and Alpaca to messages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from tailorbird.data.conversations import answer_fault, conversation_of

Message = dict[str, Any]  # role, content and, for some turns of the assistant, weight

ROLES = {"developer": "system", "human": "user", "gpt": "assistant"}
"""Roles that have another name in a Parquet file."""
TOOL_ROLES = ("tool", "function", "function_call", "observation")
TOOL_FIELDS = (
    "tools",
    "functions",
    "parallel_tool_calls",
    "tool_calls",
    "function_call",
    "tool_call_id",
)


@dataclass(frozen=True)
class ChatFormat:
    """A format of conversations."""

    name: str
    required: tuple[str, ...]  # fields that identify it
    texts: tuple[str, ...] = ()  # fields with a text that becomes a message
    turn: tuple[str, str] = ("role", "content")  # fields of a turn with its role and its text

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that become messages."""
        return (*self.required, *self.texts)


ALPACA = ChatFormat(
    "Alpaca", required=("instruction", "output"), texts=("instruction", "input", "output", "system")
)
CHAT_FORMATS = (
    ChatFormat("OpenAI", required=("messages",)),
    ChatFormat("ShareGPT", required=("conversations",), texts=("system",), turn=("from", "value")),
    ALPACA,
)


def chat_format_of(names: Sequence[str] | Mapping[str, object]) -> ChatFormat | None:
    """Return the chat format of a record with these fields; None if it is a row of a table."""
    return next(
        (known for known in CHAT_FORMATS if all(name in names for name in known.required)), None
    )


def messages_of(values: Mapping[str, object], *, chat_format: ChatFormat) -> list[Message]:
    """Return the conversation of a record; raise ValueError with the reason if it cannot be kept or
    has no answer."""
    _refuse_tools(values, where="the line")
    texts = {name: _text_field(values, name, chat_format=chat_format) for name in chat_format.texts}
    turns: object
    if chat_format is ALPACA:
        turns = _alpaca(texts)
    else:
        turns = values[chat_format.required[0]]
    if not isinstance(turns, list) or not turns:
        raise ValueError(
            f"{chat_format.required[0]!r} is not a list of turns; give a list with at least two"
        )
    messages = [
        _message(turn, position, names=chat_format.turn) for position, turn in enumerate(turns)
    ]
    if (fault := answer_fault(conversation_of(messages).turns)) is not None:
        raise ValueError(f"the conversation has no answer; {fault}")
    if texts.get("system"):
        messages.insert(0, {"role": "system", "content": texts["system"]})
    return messages


def _text_field(values: Mapping[str, object], name: str, *, chat_format: ChatFormat) -> str:
    value = values.get(name)
    if not value and name not in chat_format.required:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"the line has no text {name!r}; give a string")
    return value


def _alpaca(texts: Mapping[str, str]) -> list[Message]:
    """Return the instruction, followed by the input if there is one, and the output as its
    answer."""
    question = "\n\n".join(filter(None, (texts["instruction"], texts["input"])))
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": texts["output"]},
    ]


def _message(turn: object, position: int, *, names: tuple[str, str]) -> Message:
    """Return a turn as a message, whose role and content are not checked. Empty fields are
    ignored."""
    where = f"message {position}"
    if not isinstance(turn, dict):
        raise ValueError(f"{where} is not an object; give a role and a text")
    _refuse_tools(turn, where=where)
    role = turn.get(names[0])
    if role in TOOL_ROLES:
        _refuse_tool(where, str(role))
    for name, value in turn.items():
        if name not in (*names, "weight", *TOOL_FIELDS) and value not in (None, "", [], {}):
            raise ValueError(f"{where} has {name!r}, which is not kept; remove it")
    content = _joined(turn.get(names[1]), where=where)
    message = {"role": ROLES.get(str(role), role), "content": content}
    weight = turn.get("weight")
    if weight is not None:
        message["weight"] = int(weight) if weight in (0, 1) else weight
    return message


def _joined(content: object, *, where: str) -> object:
    """Return the text of a content that is a list of texts, as in requests to the service; any
    other unchanged."""
    if not isinstance(content, list) or not content:
        return content
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(
                f"{where} has a part of type {kind!r}; only texts are kept, so drop or change the "
                "line"
            )
        texts.append(part["text"])
    return "".join(texts)


def _refuse_tools(fields: Mapping[str, object], *, where: str) -> None:
    for name in TOOL_FIELDS:
        if fields.get(name):
            _refuse_tool(where, name)


def _refuse_tool(where: str, name: str) -> NoReturn:
    raise ValueError(f"{where} has {name!r}; calls of tools are not supported, so drop the line")
