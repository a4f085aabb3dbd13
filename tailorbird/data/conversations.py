"""Conversations with weights, as in OpenAI's fine-tuning format."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from tailorbird.data.rows import Conversation

ROLES = ("system", "user", "assistant")


class WeightedConversation(NamedTuple):
    """A conversation up to the last answer that is trained on."""

    turns: Conversation
    untrained: tuple[int, ...]  # positions of the assistant turns with weight 0


def conversation_of(messages: Sequence[Any]) -> WeightedConversation:
    """Return messages `{role, content, weight}` as a conversation. The weight is optional.

    An assistant turn with weight 0 is context: it is not trained on. Turns after the last assistant
    turn of weight 1 have no effect on training, so they are dropped. Raises ValueError for another
    message or weight, and if every assistant turn has weight 0.
    """
    turns: list[tuple[str, str]] = []
    untrained: list[int] = []
    for position, message in enumerate(messages):
        if not isinstance(message, dict):
            raise ValueError(f"message {position} is not an object; give a role and a content")
        role = message.get("role")
        content = message.get("content")
        weight = message.get("weight")
        if role not in ROLES:
            raise ValueError(
                f"message {position} has the role {role!r}; allowed: {', '.join(ROLES)}"
            )
        if not isinstance(content, str):
            raise ValueError(f"message {position} has no content; give a string")
        allowed = (None, 0, 1) if role == "assistant" else (None, 0)
        if weight not in allowed:
            if role == "assistant":
                values = "0 or 1"
            else:
                values = "0, because only turns of the assistant are trained on"
            raise ValueError(
                f"message {position} ({role}) has weight {weight!r}; allowed: {values}"
            )
        if role == "assistant" and weight == 0:
            untrained.append(position)
        turns.append((role, content))
    if len(turns) - 1 in untrained:
        trained = [
            at for at, (role, _) in enumerate(turns) if role == "assistant" and at not in untrained
        ]
        if not trained:
            raise ValueError(
                "every turn of the assistant has weight 0; give at least one the weight 1, or "
                "drop it"
            )
        del turns[trained[-1] + 1 :]
    return WeightedConversation(
        tuple(turns), tuple(position for position in untrained if position < len(turns))
    )


def context_json(turns: Conversation) -> str | None:
    """Return turns as the request log stores them, a JSON list of `[role, content]`; None without
    turns."""
    if turns:
        return json.dumps(turns, ensure_ascii=False)
    return None


def logged_conversation(context: str | None, text: str) -> Conversation:
    """Return the conversation of a row of the request log: the turns of its context, then `text` of
    the user."""
    turns = json.loads(context) if context else []
    return (*((str(role), str(content)) for role, content in turns), ("user", text))


def answer_fault(turns: Conversation) -> str | None:
    """Return why a conversation has no answer to train on; None if it has one."""
    if len(turns) < 2 or turns[-1][0] != "assistant" or not turns[-1][1].strip():
        return "it must have at least two turns and end with a non-empty turn of the assistant"
    return None
