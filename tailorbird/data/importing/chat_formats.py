"""Convert records of the chat formats of OpenAI, ShareGPT and Alpaca to messages."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from tailorbird.data.conversations import answer_fault, conversation_of

Message = dict[str, Any]  # role, content and, for some turns of the assistant, weight

SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
OPENAI_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
TOOL_ROLES = ("tool", "function", "function_call", "observation")
TOOL_FIELDS = ("tools", "functions", "parallel_tool_calls", "tool_calls", "function_call", "tool_call_id")


@dataclass(frozen=True)
class ChatFormat:
    """A format of conversations."""

    name: str
    required: tuple[str, ...]  # fields that identify it
    optional: tuple[str, ...]  # further fields that become messages
    convert: Callable[[Mapping[str, object]], list[Message]]


def chat_format_of(names: Sequence[str] | Mapping[str, object]) -> ChatFormat | None:
    """Return the chat format of a record with these fields; None if it is a row of a table."""
    return next((known for known in CHAT_FORMATS if all(name in names for name in known.required)), None)


def messages_of(values: Mapping[str, object], *, chat_format: ChatFormat) -> list[Message]:
    """Return the conversation of a record; raise ValueError with the reason if it cannot be kept or has no answer."""
    _refuse_tools(values, where="the line")
    messages = chat_format.convert(values)
    if (fault := answer_fault(conversation_of(messages).turns)) is not None:
        raise ValueError(f"the conversation has no answer; {fault}")
    return [{**message, "weight": int(message["weight"])} if "weight" in message else message for message in messages]


def _openai(values: Mapping[str, object]) -> list[Message]:
    return [_openai_message(message, position) for position, message in enumerate(_list_of(values, "messages"))]


def _openai_message(message: object, position: int) -> Message:
    where = f"message {position}"
    fields = _fields_of(message, where=where)
    role = _role_of(fields.get("role"), OPENAI_ROLES, where=where)
    _refuse_others(fields, ("role", "content", "weight"), where=where)
    return _with_weight({"role": role, "content": _text_of(fields.get("content"), where=where)}, fields)


def _text_of(content: object, *, where: str) -> str:
    """Return the content of a message: a string, or a list of parts with texts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise ValueError(f"{where} has no content; give a string")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"{where} has a part of type {kind!r}; only texts are kept, so drop or change the line")
        texts.append(part["text"])
    return "".join(texts)  # as in requests to the service


def _sharegpt(values: Mapping[str, object]) -> list[Message]:
    messages = _system_message(values)
    for position, turn in enumerate(_list_of(values, "conversations")):
        where = f"turn {position}"
        fields = _fields_of(turn, where=where)
        role = _role_of(fields.get("from"), SHAREGPT_ROLES, where=where)
        _refuse_others(fields, ("from", "value", "weight"), where=where)
        messages.append(_with_weight({"role": role, "content": _string(fields, "value", where=where)}, fields))
    return messages


def _alpaca(values: Mapping[str, object]) -> list[Message]:
    """Return the instruction, followed by the input if there is one, and the output as its answer."""
    texts = [_string(values, "instruction", where="the line")]
    if values.get("input"):
        texts.append(_string(values, "input", where="the line"))
    answer = _string(values, "output", where="the line")
    question = {"role": "user", "content": "\n\n".join(texts)}
    return [*_system_message(values), question, {"role": "assistant", "content": answer}]


CHAT_FORMATS = (
    ChatFormat("OpenAI", required=("messages",), optional=(), convert=_openai),
    ChatFormat("ShareGPT", required=("conversations",), optional=("system",), convert=_sharegpt),
    ChatFormat("Alpaca", required=("instruction", "output"), optional=("input", "system"), convert=_alpaca),
)


def _system_message(values: Mapping[str, object]) -> list[Message]:
    if not values.get("system"):
        return []
    return [{"role": "system", "content": _string(values, "system", where="the line")}]


def _with_weight(message: Message, fields: Mapping[str, object]) -> Message:
    return message if fields.get("weight") is None else message | {"weight": fields["weight"]}


def _list_of(values: Mapping[str, object], name: str) -> list[object]:
    value = values[name]
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name!r} is not a list of turns; give a list with at least two")
    return value


def _fields_of(turn: object, *, where: str) -> Mapping[str, object]:
    if not isinstance(turn, dict):
        raise ValueError(f"{where} is not an object; give a role and a text")
    _refuse_tools(turn, where=where)
    return turn


def _role_of(value: object, roles: Mapping[str, str], *, where: str) -> str:
    if isinstance(value, str) and value in roles:
        return roles[value]
    if value in TOOL_ROLES:
        _refuse_tool(where, str(value))
    raise ValueError(f"{where} has the role {value!r}; allowed: {', '.join(roles)}")


def _string(values: Mapping[str, object], name: str, *, where: str) -> str:
    value = values.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{where} has no text {name!r}; give a string")
    return value


def _refuse_tools(fields: Mapping[str, object], *, where: str) -> None:
    for name in TOOL_FIELDS:
        if fields.get(name):
            _refuse_tool(where, name)


def _refuse_tool(where: str, name: str) -> NoReturn:
    raise ValueError(f"{where} has {name!r}; calls of tools are not supported, so drop the line")


def _refuse_others(fields: Mapping[str, object], names: Sequence[str], *, where: str) -> None:
    """Raise ValueError for a field that would be lost. Empty fields are ignored."""
    for name, value in fields.items():
        if name not in names and name not in TOOL_FIELDS and value not in (None, "", [], {}):
            raise ValueError(f"{where} has {name!r}, which is not kept; remove it")
