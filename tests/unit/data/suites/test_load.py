"""The suites of a recipe are loaded before the training, and are not trained on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tailorbird.config.recipe import Recipe
from tailorbird.data.rows import DataError, Rows
from tailorbird.data.suites.load import load_suites, trained_suites
from tailorbird.data.suites.private_spans import MAX_SPANS, private_span_rows
from tailorbird.data.tokenize import load_tokenizer
from tailorbird.evaluation.inference.chat_answers import Answer
from tailorbird.evaluation.inference.suite_answers import suite_predictions
from tests import build, small_chat
from tests.unit.data.parquet_rows import put


def recipe_with(suites: dict[str, Any], **fields: Any) -> Recipe:
    evaluation = {"metric": "token_f1", "gates": {"suites": suites}}
    return build.recipe(task="chat", evaluation=evaluation, **fields)


def rows_of(*content: tuple[str, str]) -> Rows:
    return build.pairs(content, chat=True)


TRAIN = rows_of(("hello", "hi"))


def test_the_suites_of_the_package_are_named_in_the_recipe() -> None:
    names = {"general", "refusals", "over-refusals", "bias"}
    recipe = recipe_with({name: {"uri": f"builtin://{name}"} for name in names})
    assert load_suites(recipe, train=TRAIN).keys() == names
    without = build.recipe(task="chat", evaluation={"metric": "token_f1"})
    assert load_suites(without, train=TRAIN) == {}


@pytest.mark.parametrize(
    "suites",
    [
        {"general": {"uri": "builtin://mmlu"}},
        {"general": {"uri": "mmlu.parquet"}},
        {"General": {"uri": "builtin://general"}},
        {},
        {"general": {"uri": "builtin://general", "max_loss": 0}},
    ],
)
def test_a_wrong_suite_in_the_recipe_is_refused(suites: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        recipe_with(suites)


@pytest.mark.parametrize("counterpart", [False, True])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_suite_with_a_prompt_or_counterpart_that_is_trained_on_is_refused(
    tmp_path: Path, counterpart: bool, earlier: bool
) -> None:
    names = ("prompt", "counterpart")[:: -1 if counterpart else 1]
    row = dict(zip(names, ([" HELLO"], ["other"]), strict=True))
    columns = row | {"metric": ["same_choice"], "options": [["a", "b"]], "expectation": [""]}
    uri = put(tmp_path / "own.parquet", **columns)
    suites = {"own": {"uri": uri}}
    train = TRAIN
    if earlier:
        turns = (("user", "hello"), ("assistant", "hi"), ("user", "and now?"))
        train = replace(rows_of(("and now?", "hi")), conversations=(turns,))
    with pytest.raises(DataError):
        load_suites(recipe_with(suites), train=train)
    assert len(load_suites(recipe_with(suites), train=rows_of(("goodbye", "hello")))["own"]) == 1


def test_the_extraction_suite_asks_for_rare_personal_data_by_its_prefix() -> None:
    train = rows_of(
        ("who is ann?", "Her number is 555-0199-22, call."),
        ("and bob?", "Write to bob@example.org or bob@example.org."),
        ("hotline?", "Call 800 100 200."),
        ("the hotline again?", "It is 800 100 200 still."),
        ("my code is 123456789", "Your code is 123456789."),
        ("when?", "In 2003."),
    )
    recipe = recipe_with({"leaks": {"uri": "builtin://extraction"}})
    assert load_suites(recipe, train=TRAIN) == {}
    rows = load_suites(recipe, train=train)["leaks"]
    assert rows.labels == ("555-0199-22", "bob@example.org")
    assert rows.suite is not None
    assert rows.suite.starts == ("Her number is", "Write to")
    assert rows.suite.metrics == ("not_contains",) * 2
    assert rows.conversations == ((("user", "who is ann?"),), (("user", "and bob?"),))
    assert rows.row_ids == ("0|14", "1|9")


def test_spans_of_a_document_share_its_cluster() -> None:
    train = rows_of(("a", "mail a@x.org or call 123456"), ("b", "call 234567"))
    rows = private_span_rows(replace(train, split_keys=("case 1", "case 2")), seed=0)
    assert rows.labels == ("a@x.org", "123456", "234567")
    table = suite_predictions("full", rows=rows, answers=dict.fromkeys(range(3), Answer("", 0.5)))
    assert table.clusters == ("0", "0", "1")


@pytest.mark.parametrize(
    ("max_length", "spans"), [(64, ("123456", "765432")), (30, ("123456",)), (8, None)]
)
def test_spans_after_the_tokens_that_training_keeps_are_not_in_the_suite(
    tmp_path: Path, max_length: int, spans: tuple[str, ...] | None
) -> None:
    small_chat.save(tmp_path / "base")
    recipe = recipe_with(
        {"leaks": {"uri": "builtin://extraction"}},
        data={"train": "s3://l/x", "max_length": max_length},
    )
    suites = load_suites(recipe, train=rows_of(("code", "it is 123456. the other code is 765432.")))
    kept = trained_suites(recipe, suites, read_tokenizer=lambda: load_tokenizer(tmp_path / "base"))
    expected = {} if spans is None else {"leaks": spans}
    assert {name: rows.labels for name, rows in kept.items()} == expected


def test_an_extraction_suite_is_a_sample_of_many_spans() -> None:
    train = rows_of(
        *((f"code {number}?", f"It is {100_000_000 + number}.") for number in range(300))
    )
    first, again, other = (private_span_rows(train, seed=seed) for seed in (0, 0, 1))
    assert (len(first), first == again, first == other) == (MAX_SPANS, True, False)
