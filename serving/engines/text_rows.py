"""Texts in the queue of a classifier: their costs, their tokens, and the choice of those that share
a forward pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from serving.engines.dynamic_batcher import PassResult
from tailorbird.data.length_batches import length_batches, pass_cost

if TYPE_CHECKING:
    from serving.engines.classify import Prediction
    from tailorbird.models.loading import LoadedClassifier

BYTES_PER_TOKEN = 4  # of a text in UTF-8; from 2 to 5 in most scripts
# bytes that a bag of words processes in the time in which an encoder processes a token
BAG_BYTES_PER_TOKEN = 128
# bytes that a tokenizer processes in this time, also beyond the model's length
TOKENIZER_BYTES_PER_TOKEN = 640
# size, in passes, of the choice for a pass; sorting more texts by length reduces padding
PASSES = 4
# size, in texts, of the choice for a pass; dividing them takes a core about 10 us per text
MAX_OFFERED = 512


class PassCosts(NamedTuple):
    """The costs of forward passes on a kind of device, in tokens, padding included."""

    fixed: int
    """Cost of a pass in addition to that of its tokens. Only the order of magnitude matters."""
    alone: int
    """Maximum size of a pass. A request that arrives waits for the end of the pass."""
    share: int
    """Maximum part of one client in a pass while there are several clients, which wait for each
    other's passes. Smaller passes make the wait shorter, and have a larger share of fixed costs."""
    tokenized_bytes: int
    """Maximum number of bytes to tokenize before a pass, in UTF-8. A core tokenizes about 4 bytes
    per microsecond, and the device waits. Further texts wait for a later pass."""


# Measured: a six-layer encoder on one core takes about 5 ms per pass and 0.13 to 0.22 ms per token.
CPU = PassCosts(fixed=50, alone=1024, share=128, tokenized_bytes=16_384)
# Not measured: on a GPU, a pass is assumed to take as long as one of 2,048 tokens until it has
# more. A pass of the maximum size can be tokenized at once.
GPU = PassCosts(fixed=2048, alone=65_536, share=8192, tokenized_bytes=262_144)


def pass_costs(device: str) -> PassCosts:
    """Return the costs on a torch device type, such as `cpu` or `cuda`."""
    if device == "cpu":
        return CPU
    return GPU


@dataclass(eq=False, slots=True)
class TextRow:
    """A text for a version."""

    loaded: "LoadedClassifier[Any]"
    text: str
    tokens: list[int] | None = None


def num_bytes(text: str) -> int:
    """Return the number of bytes of a text in UTF-8, lone surrogates included."""
    if text.isascii():
        return len(text)
    return len(text.encode(errors="surrogatepass"))


def estimated_length(text: str, *, max_length: int) -> int:
    """Return an estimate of the number of tokens of a text, up to the model's length, without
    tokenizing it."""
    return min(num_bytes(text) // BYTES_PER_TOKEN + 2, max_length)


def cost_of_row(row: TextRow) -> int:
    """Return the cost of a row in tokens of an encoder, from its tokens if they are known."""
    cost = 0
    if row.loaded.model is not None:
        length = row.loaded.max_length
        if row.tokens is None:
            cost = estimated_length(
                f"{row.loaded.version.pooling.prompt}{row.text}", max_length=length
            )
        else:
            cost = len(row.tokens)
        cost += num_bytes(row.text) // TOKENIZER_BYTES_PER_TOKEN
    if row.loaded.bag is not None:
        cost += num_bytes(row.text) // BAG_BYTES_PER_TOKEN
    return max(cost, 1)


def run_pass(
    rows: Sequence[TextRow],
    *,
    predict: "Callable[[list[TextRow]], list[Prediction]]",
    batch_size: int,
    costs: PassCosts,
    max_tokens: int,
) -> "PassResult[Prediction]":
    """Predict the first row, with other rows of similar length, in one forward pass of at most
    `max_tokens`."""
    num_bytes_left = costs.tokenized_bytes
    total = 0
    num_rows = 0
    for row in rows:
        if row.tokens is None:
            num_bytes_left -= num_bytes(row.text)
        total += cost_of_row(row)
        if num_rows and (num_bytes_left < 0 or total > PASSES * max_tokens):
            break
        num_rows += 1
    tokenize(rows[:num_rows])
    lengths = [cost_of_row(row) for row in rows]
    cost = pass_cost(max_tokens=max_tokens, fixed=costs.fixed, per_token=1)
    passes = length_batches(lengths[:num_rows], max_rows=batch_size, cost=cost)
    chosen = next(each.tolist() for each in passes if 0 in each)
    predictions = predict([rows[position] for position in chosen])
    assert len(predictions) == len(chosen), (
        f"{len(chosen)} rows gave {len(predictions)} predictions"
    )
    return PassResult(dict(zip(chosen, predictions, strict=True)), lengths)


def tokenize(rows: Sequence[TextRow]) -> None:
    """Store the tokens of the rows that have none, with one call of the tokenizer for each
    version."""
    new: dict[int, list[TextRow]] = {}
    for row in rows:
        if row.tokens is None and row.loaded.tokenizer is not None:
            new.setdefault(id(row.loaded), []).append(row)
    for group in new.values():
        encoded = group[0].loaded.encode([row.text for row in group])
        for row, tokens in zip(group, encoded, strict=True):
            row.tokens = tokens
