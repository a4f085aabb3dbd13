"""Costs of texts in the queue, and the choice of the texts of a forward pass."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from serving.engines.classify import Prediction
from serving.engines.text_rows import (
    CPU,
    GPU,
    TOKENIZER_BYTES_PER_TOKEN,
    PassCosts,
    TextRow,
    cost_of_row,
    estimated_length,
    pass_costs,
    run_pass,
)
from tailorbird.models.loading import LoadedClassifier
from tailorbird.registry.pooling import Pooling

COSTS = PassCosts(fixed=10, alone=400, share=100, tokenized_bytes=16_384)
BATCH = 8


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


def loaded(*, max_length: int = 64, model: Any = "model", bag: Any = None) -> Any:
    version: Any = SimpleNamespace(pooling=Pooling())
    return LoadedClassifier(
        model=model,
        tokenizer=Tokenizer() if model else None,
        classes=(),
        max_length=max_length,
        version=version,
        bag=bag,
    )


def run(rows: list[TextRow], *, max_tokens: int = COSTS.alone) -> list[str]:
    """Return the texts of one pass, which starts with the first row."""
    passes: list[list[TextRow]] = []

    def predict(part: list[TextRow]) -> list[Prediction]:
        passes.append(part)
        return [Prediction(row.text, 1.0, np.ones(1)) for row in part]

    done = run_pass(rows, predict=predict, batch_size=BATCH, costs=COSTS, max_tokens=max_tokens)
    [chosen] = passes
    assert 0 in done.results
    labels = {position: result.label for position, result in done.results.items()}
    assert labels == {rows.index(row): row.text for row in chosen}
    assert done.costs == [cost_of_row(row) for row in rows]
    return [row.text for row in chosen]


def test_an_estimate_grows_with_the_text_up_to_the_models_length() -> None:
    texts = ("", "word " * 10, "é\ud800" * 20, "word " * 1000)
    estimates = [estimated_length(text, max_length=64) for text in texts]
    assert estimates == [2, 14, 27, 64]
    assert cost_of_row(TextRow(loaded(), "a b c", [1, 2, 3])) == 3
    long = "x" * (100 * TOKENIZER_BYTES_PER_TOKEN)
    assert cost_of_row(TextRow(loaded(max_length=8), long, [1] * 8)) == 108


def test_texts_of_similar_length_share_a_pass_up_to_its_size() -> None:
    model = loaded()
    short = "a b"
    long = "a " * 60
    rows = [TextRow(model, text) for text in [short, long, short, long, short]]
    assert run(rows) == [short] * 3
    assert run(rows[1:]) == [long] * 2
    many = [TextRow(model, long) for _ in range(8)]
    assert run(many, max_tokens=130) == [long] * 2
    assert run(many, max_tokens=5) == [long]
    assert run([TextRow(model, short) for _ in range(2 * BATCH)]) == [short] * BATCH


def test_long_texts_are_tokenized_a_few_at_a_time_and_only_once() -> None:
    model = loaded()
    half = "word " * (COSTS.tokenized_bytes // 10)  # of the limit
    rows = [TextRow(model, half) for _ in range(5)]
    run(rows)
    assert len(model.tokenizer.texts) == 2
    run(rows)
    assert len(model.tokenizer.texts) == 4
    run([TextRow(model, 2 * half + "a text over the limit is tokenized alone")])
    assert len(model.tokenizer.texts) == 5
    bags = [TextRow(loaded(model=None, bag="bag"), "a b") for _ in range(5)]
    assert len(run(bags)) == 5  # they need no tokens


def test_a_gpu_has_passes_of_its_own() -> None:
    assert (pass_costs("cpu"), pass_costs("cuda")) == (CPU, GPU)
