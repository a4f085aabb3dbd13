"""Turn a conversation into a prompt, with fixed or retrieved examples; training, evaluation and
serving share this."""

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from tailorbird.data.chat_template import Prompt, prompt_tokens
from tailorbird.data.rows import Conversation, query_of
from tailorbird.registry.versions import Prompting

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tailorbird.models.retrieval.index import RetrievalIndex


class NearestAnswer(NamedTuple):
    """The answer of the nearest training row."""

    text: str
    similarity: float  # from 0 to 1


def chat_prompt(
    conversation: Conversation,
    *,
    tokenizer: "PreTrainedTokenizerBase",
    prompting: Prompting,
    index: "RetrievalIndex | None" = None,
    rows: Sequence[int] | None = None,
) -> Prompt:
    """Return the prompt of a conversation: system message, examples, and the turns of the
    conversation.

    With `prompting.retrieval`, the examples are the rows of the index that are nearest to the
    conversation's last turn of the user. If they are known already, `rows` has their positions in
    the index, nearest first. In the prompt, the nearest row comes last. If the prompt exceeds
    `max_prompt_tokens`, examples are omitted, the least similar first. Raises DataError like
    `prompt_tokens`.
    """
    retrieval = prompting.retrieval
    system = prompting.system
    fixed = prompting.shots
    if retrieval is None:
        return Prompt(
            prompt_tokens(conversation, tokenizer=tokenizer, system=system, shots=fixed), fixed
        )
    assert index is not None, "a version with retrieval is loaded with its index"
    if rows is None:
        [neighbours] = index.search([query_of(conversation)], k=retrieval.num_examples)
        rows = neighbours.rows.tolist()
    nearest = [index.turns(row) for row in rows]

    def prompt_of(num_examples: int) -> Prompt:
        examples = (*fixed, *chain.from_iterable(reversed(nearest[:num_examples])))
        return Prompt(
            prompt_tokens(conversation, tokenizer=tokenizer, system=system, shots=examples),
            examples,
        )

    def fits(prompt: Prompt) -> bool:
        return len(prompt.tokens) <= retrieval.max_prompt_tokens

    longest = prompt_of(len(nearest))
    if fits(longest):
        return longest
    shortest = prompt_of(
        0
    )  # if even this one does not fit, other numbers are not tried, because each takes time
    numbers = range(len(nearest) - 1, 0, -1) if fits(shortest) else ()
    return next(filter(fits, map(prompt_of, numbers)), shortest)


def nearest_answer(conversation: Conversation, *, index: "RetrievalIndex") -> NearestAnswer:
    """Return the stripped answer of the row of the index that is nearest to the conversation's last
    turn of the user.

    Answers of a language model are stripped too.
    """
    [neighbours] = index.search([query_of(conversation)], k=1)
    return NearestAnswer(
        index.answer(neighbours.rows[0]).strip(), float(neighbours.similarities[0])
    )
