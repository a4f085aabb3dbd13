"""Requests to an endpoint: the messages of a conversation with examples, and the choice of a
label."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from pydantic import JsonValue

from tailorbird.config.formats.response_format import ChoiceFormat, StructuredFormat, openai_format
from tailorbird.config.prompt import LABELS, TEXT
from tailorbird.data.chat_template import with_system
from tailorbird.data.rows import Conversation, Rows, messages_of
from tailorbird.data.splits import normalise
from tailorbird.models.retrieval.chat_prompt import example_sets
from tailorbird.registry.versions import Prompting, VersionConfig

if TYPE_CHECKING:
    from tailorbird.models.retrieval.index import RetrievalIndex

BYTES_PER_TOKEN = 4
"""UTF-8 bytes that are counted as a token against `max_prompt_tokens`, because the endpoint's
tokenizer is unknown."""
LABEL = "label"  # key of the label in the JSON object of an answer
SYSTEM = "Classify the user's text."  # system message of a recipe without one
REQUEST = (
    f'Answer only with a JSON object of the form {{"{LABEL}": "..."}} whose value is exactly one '
    f"of these labels:\n{LABELS}"
)
"""Added to a system message if no part of the prompt lists the labels."""
MARGIN = 16  # tokens of a label's answer in addition to its bytes
_STRIPPED = " \t\n.,:;!\"'`*"  # characters around a label that are ignored


def endpoint_messages(
    conversation: Conversation, *, prompting: Prompting, index: "RetrievalIndex | None" = None
) -> Conversation:
    """Return the messages of a request: system message, examples, and the turns of the
    conversation, with each text of the user in the template.

    The examples are the first of `example_sets` with which the messages do not exceed
    `max_prompt_tokens` at `BYTES_PER_TOKEN`, or the last ones.
    """
    retrieval = prompting.retrieval
    for examples in example_sets(conversation, prompting=prompting, index=index):
        turns = with_system(conversation, system=prompting.system, shots=examples)
        messages = _in_template(turns, template=prompting.template)
        size = sum(len(content.encode("utf-8", "replace")) for _, content in messages)
        if retrieval is not None and size <= BYTES_PER_TOKEN * retrieval.max_prompt_tokens:
            break
    return messages


def chat_body(
    messages: Conversation,
    *,
    model: str,
    max_tokens: int,
    classes: tuple[str, ...] = (),
    format: StructuredFormat | None = None,
) -> dict[str, JsonValue]:
    """Return a request for the most probable answer with its log-probabilities; with classes, for
    one of them.

    Raises ValueError for the format `choice`, which OpenAI's API does not have.
    """
    body: dict[str, JsonValue] = {
        "model": model,
        "messages": messages_of(messages),
        "max_tokens": max_tokens,
        "temperature": 0,
        "logprobs": True,
    }
    if classes:
        body["response_format"] = label_format(classes)
    elif isinstance(format, ChoiceFormat):
        raise ValueError("an endpoint has no format `choice`; use `json_schema` with an `enum`")
    elif format is not None:
        body["response_format"] = openai_format(format)
    return body


def request_body(
    conversation: Conversation, *, version: VersionConfig, index: "RetrievalIndex | None" = None
) -> dict[str, JsonValue]:
    """Return the request of an endpoint version for a conversation. A text to classify is one turn
    of the user.

    For classification, the answer is constrained to a JSON object with one of the version's
    classes.
    """
    assert version.prompting is not None
    assert version.endpoint is not None  # `VersionConfig` requires both for the kinds of endpoints
    messages = endpoint_messages(conversation, prompting=version.prompting, index=index)
    return chat_body(
        messages,
        model=version.endpoint.model,
        max_tokens=version.prompting.max_new_tokens,
        classes=version.classes,
        format=version.prompting.response_format,
    )


def _in_template(turns: Conversation, *, template: str) -> Conversation:
    """Return turns with the content of each turn of the user in the template."""
    messages = []
    for role, content in turns:
        message = template.replace(TEXT, content) if role == "user" else content
        messages.append((role, message))
    return tuple(messages)


def label_prompting(
    classes: Sequence[str],
    *,
    system: str | None = None,
    template: str = TEXT,
    descriptions: Mapping[str, str] = MappingProxyType({}),
) -> Prompting:
    """Return the prompting of the zero-shot choice of a label, with the fields of a recipe.

    The list of labels, with their descriptions, replaces `LABELS`. If neither text has it,
    `REQUEST` follows the system message. An empty system message is not sent.
    """
    first = SYSTEM if system is None else system
    if LABELS not in first and LABELS not in template:
        first = f"{first} {REQUEST}".strip()
    names = "\n".join(_described(label, descriptions) for label in classes)
    longest = max(len(label_answer(label).encode("utf-8", "replace")) for label in classes)
    return Prompting(
        system=first.replace(LABELS, names) or None,
        template=template.replace(LABELS, names),
        max_new_tokens=longest + MARGIN,
    )


def _described(label: str, descriptions: Mapping[str, str]) -> str:
    """Return a label, with its description if it has one, as a line of the list of labels."""
    texts = [label]
    if label in descriptions:
        texts.append(descriptions[label])
    return ": ".join(json.dumps(text, ensure_ascii=False) for text in texts)


def label_answer(label: str) -> str:
    """Return the answer with a label, as in examples."""
    return json.dumps({LABEL: label}, ensure_ascii=False)


def label_conversations(rows: Rows) -> Rows:
    """Return rows of texts and labels as conversations with the answer of `label_answer`."""
    return replace(rows, labels=tuple(map(label_answer, rows.labels)), conversations=rows.turns)


@lru_cache(maxsize=64)
def label_format(classes: tuple[str, ...]) -> dict[str, JsonValue]:
    """Return the `response_format` that allows only the classes."""
    schema: dict[str, JsonValue] = {
        "type": "object",
        "properties": {LABEL: {"type": "string", "enum": list(classes)}},
        "required": [LABEL],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": LABEL, "strict": True, "schema": schema}}


def label_of(text: str, *, classes: tuple[str, ...]) -> str | None:
    """Return the class that an answer names, or None if it names none.

    The answer is a JSON object as in `label_answer`, also within a block of code, or the label
    alone. Case, white space and punctuation around the label are ignored, unless several classes
    differ only in them.
    """
    content = text.strip().removeprefix("```json").strip("`").strip()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = content
    if isinstance(value, dict):
        value = value.get(LABEL)
    is_label = isinstance(value, str | int) and not isinstance(value, bool)
    name = str(value) if is_label else content
    if name in classes:
        return name
    return _by_normalised(classes).get(_normalised(name))


@lru_cache(maxsize=64)
def _by_normalised(classes: tuple[str, ...]) -> dict[str, str]:
    """Return the classes by normalised name, without those that share one."""
    counts = Counter(map(_normalised, classes))
    unique = [label for label in classes if counts[_normalised(label)] == 1]
    return {_normalised(label): label for label in unique if _normalised(label)}


def _normalised(text: str) -> str:
    return normalise(text).strip(_STRIPPED)
