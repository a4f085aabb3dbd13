"""Turn a conversation into a prompt, in training, evaluation and serving."""

from collections.abc import Iterator
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
) -> Prompt:
    """Return the prompt of a conversation: system message, examples, turns.

    The examples are the first of `example_sets` with which the prompt does not exceed
    `max_prompt_tokens`, or the last ones. Raises DataError like `prompt_tokens`.
    """
    retrieval = prompting.retrieval
    for examples in example_sets(conversation, prompting=prompting, index=index):
        tokens = prompt_tokens(
            conversation, tokenizer=tokenizer, system=prompting.system, shots=examples
        )
        if retrieval is not None and len(tokens) <= retrieval.max_prompt_tokens:
            break
    return Prompt(tokens, examples)


def example_sets(
    conversation: Conversation,
    *,
    prompting: Prompting,
    index: "RetrievalIndex | None",
) -> Iterator[Conversation]:
    """Yield the examples of a prompt, and then, with `prompting.retrieval`, the same without the
    least similar row, without the two least similar rows, and so on.

    Retrieved examples follow the fixed ones: the rows of the index that are nearest to the
    conversation's last turn of the user, the nearest row last.
    """
    fixed = prompting.shots
    if prompting.retrieval is not None:
        assert index is not None, "a version with retrieval is loaded with its index"
        nearest = index.nearest(query_of(conversation), k=prompting.retrieval.num_examples)
        examples = [index.turns(row) for row in nearest.rows.tolist()]
        for number in range(len(examples), 0, -1):
            yield (*fixed, *chain.from_iterable(reversed(examples[:number])))
    yield fixed


def nearest_answer(conversation: Conversation, *, index: "RetrievalIndex") -> NearestAnswer:
    """Return the stripped answer of the row that is nearest to the last turn of the user."""
    nearest = index.nearest(query_of(conversation), k=1)
    return NearestAnswer(index.answer(nearest.rows[0]).strip(), float(nearest.similarities[0]))
