"""Costs of texts in the queue, and the choice of the texts of a forward pass."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serving.engines.classify import Prediction
from serving.engines.passes import PassCosts
from serving.engines.text_rows import (
    BAG_BYTES_PER_TOKEN,
    LONG_TEXT_BYTES,
    TOKENIZER_BYTES_PER_TOKEN,
    TextRow,
    cost_of_row,
    estimated_length,
    num_bytes,
    run_pass,
    tokenize,
)
from tailorbird.models.loading import LoadedClassifier
from tailorbird.registry.pooling import Pooling

COSTS = PassCosts(fixed=10, alone=400, share=100, tokenized_bytes=16_384)


class Tokenizer:
    """A tokenizer with one token per word, which records the texts."""

    pad_token_id = unk_token_id = 0

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(
        self, texts: list[str], *, max_length: int, **_options: Any
    ) -> dict[str, list[list[int]]]:
        self.texts += texts
        return {"input_ids": [[1] * min(len(text.split()), max_length) for text in texts]}


def loaded(*, max_length: int = 64, model: Any = "model", bag: Any = None, prompt: str = "") -> Any:
    tokenizer: Any = None if model is None else Tokenizer()
    version: Any = SimpleNamespace(pooling=Pooling(prompt=prompt))
    return LoadedClassifier(model, tokenizer, (), max_length, version, bag)


def run(rows: list[TextRow], *, max_tokens: int = COSTS.alone) -> list[str]:
    """Return the texts of one pass, which starts with the first row."""
    passes: list[list[TextRow]] = []

    def predict(part: list[TextRow]) -> list[Prediction]:
        passes.append(part)
        return [Prediction(row.text, 1.0, np.ones(1)) for row in part]

    done = run_pass(rows, predict=predict, batch_size=8, costs=COSTS, max_tokens=max_tokens)
    assert len(passes) == 1
    assert 0 in done.results
    assert {position: result.label for position, result in done.results.items()} == {
        rows.index(row): row.text for row in passes[0]
    }
    assert done.costs == [cost_of_row(row) for row in rows]
    return [row.text for row in passes[0]]


def test_an_estimate_grows_with_the_text_up_to_the_models_length() -> None:
    assert estimated_length("", max_length=64) > 0
    assert estimated_length("word " * 10, max_length=64) < estimated_length(
        "word " * 20, max_length=64
    )
    assert estimated_length("word " * 1000, max_length=64) == 64
    assert estimated_length("你好" * 20, max_length=64) > estimated_length("ab" * 20, max_length=64)
    assert num_bytes("é\ud800") == 5


def test_the_cost_of_a_text_is_its_number_of_tokens_and_the_work_of_the_bag_of_words() -> None:
    row = TextRow(loaded(), "a b c")
    row.tokens = [1, 2, 3]
    assert cost_of_row(row) == 3
    text = "x" * (10 * BAG_BYTES_PER_TOKEN)
    assert cost_of_row(TextRow(loaded(model=None, bag="bag"), text)) == 10
    assert cost_of_row(TextRow(loaded(max_length=8, bag="bag"), text)) == 18
    assert cost_of_row(TextRow(loaded(model=None, bag="bag"), "")) == 1


def test_the_prompt_of_a_version_is_put_before_a_text_and_adds_to_its_cost() -> None:
    model = loaded(prompt="query is this: ")
    row = TextRow(loaded(), "a b c")
    prompted = TextRow(model, "a b c")
    assert cost_of_row(prompted) > cost_of_row(row)
    tokenize([row, prompted])
    assert (row.tokens, prompted.tokens) == ([1] * 3, [1] * 6)
    assert model.tokenizer.texts == ["query is this: a b c"]


def test_a_text_far_beyond_the_models_length_costs_its_tokenization() -> None:
    row = TextRow(loaded(max_length=8), "x" * (LONG_TEXT_BYTES + 100 * TOKENIZER_BYTES_PER_TOKEN))
    assert cost_of_row(row) == 108
    row.tokens = [1] * 8
    assert cost_of_row(row) == 108


def test_texts_of_similar_length_share_a_pass_up_to_its_size() -> None:
    model = loaded()
    short, long = "a b", "a " * 60
    rows = [TextRow(model, text) for text in [short, long, short, long, short]]
    assert run(rows) == [short] * 3
    assert run(rows[1:]) == [long] * 2
    assert run([TextRow(model, long) for _ in range(8)], max_tokens=130) == [long] * 2
    assert run([TextRow(model, long) for _ in range(8)], max_tokens=5) == [long]


def test_long_texts_are_tokenized_a_few_at_a_time_and_only_once() -> None:
    model = loaded()
    rows = [
        TextRow(model, "word " * (COSTS.tokenized_bytes // 10)) for _ in range(5)
    ]  # half of the limit each
    run(rows)
    assert len(model.tokenizer.texts) == 2
    run(rows)
    assert len(model.tokenizer.texts) == 4
    run(
        [TextRow(model, "word " * COSTS.tokenized_bytes)]
    )  # a text over the limit is tokenized alone
    assert len(model.tokenizer.texts) == 5


@pytest.mark.parametrize("count", [1, 5])
def test_a_bag_of_words_needs_no_tokens(count: int) -> None:
    assert len(run([TextRow(loaded(model=None, bag="bag"), "a b") for _ in range(count)])) == count
