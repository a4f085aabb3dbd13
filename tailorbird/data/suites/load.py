"""Load the suites of a recipe, and check that no row of them is trained on."""

from collections.abc import Callable, Mapping
from itertools import chain
from typing import TYPE_CHECKING

from tailorbird.config.recipe import Recipe
from tailorbird.config.suites import EXTRACTION
from tailorbird.data.rows import DataError, Rows
from tailorbird.data.splits import normalise
from tailorbird.data.suites.private_spans import private_span_rows, within_trained_tokens
from tailorbird.data.suites.read import read_suite

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_suites(recipe: Recipe, *, train: Rows) -> dict[str, Rows]:
    """Return the rows of each suite of the gate `suites` by name; without those of an extraction
    suite that has none.

    Raises DataError if a suite cannot be read, or if one of its prompts or counterparts is a turn
    of the user in a training row.
    """
    suites = {}
    for name, config in (recipe.evaluation.gates.suites or {}).items():
        if config.uri == EXTRACTION:
            rows = private_span_rows(train, seed=recipe.training.seed)
        else:
            rows = read_suite(config.uri)
            _require_untrained(rows, uri=config.uri, train=train)
        if len(rows):
            suites[name] = rows
    return suites


def trained_suites(
    recipe: Recipe,
    suites: Mapping[str, Rows],
    *,
    read_tokenizer: Callable[[], "PreTrainedTokenizerBase"],
) -> dict[str, Rows]:
    """Return the suites; those of extraction only with the spans that training reads, and none
    without such a span.

    `read_tokenizer` returns the tokenizer of the base model, which truncates the training rows.
    """
    configs = recipe.evaluation.gates.suites or {}
    data = recipe.data
    with_rows = {}
    for name, rows in suites.items():
        if configs[name].uri == EXTRACTION:
            tokenizer = read_tokenizer()
            rows = within_trained_tokens(
                rows, tokenizer=tokenizer, system=data.system, max_length=data.max_length
            )
        if len(rows):
            with_rows[name] = rows
    return with_rows


def _require_untrained(rows: Rows, *, uri: str, train: Rows) -> None:
    assert rows.suite is not None
    queries = set(map(normalise, train.queries))
    for role, content in chain.from_iterable(train.turns):
        if role == "user":
            queries.add(normalise(content))
    trained = []
    for row_id, *texts in zip(rows.row_ids, rows.texts, rows.suite.counterparts, strict=True):
        if not queries.isdisjoint(map(normalise, filter(None, texts))):
            trained.append(row_id)
    if trained:
        raise DataError(
            f"{uri}: the prompts of {len(trained)} rows of the suite are also training rows "
            f"(first: row {trained[0]}), so the suite cannot measure what training changes; drop "
            "them from the suite or from data.train"
        )
