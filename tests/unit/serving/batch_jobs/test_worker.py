"""Scoring of one part of the input."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.batch_jobs import worker
from serving.batch_jobs.schema import BatchSpec, Part
from serving.batch_jobs.worker import score_part
from serving.offline import offline_model
from tailorbird.data.rows import DataError
from tailorbird.evaluation.inference.chat_answers import answer_texts
from tailorbird.models.causal_lm import ChatModel
from tailorbird.models.loading import LoadedChat
from tailorbird.registry.versions import Prompting, Retrieval
from tests import small_chat
from tests.build import rows, version
from tests.unit.serving.engines.test_nearest_engine import index_of

QUESTIONS = ["abc", "what is a dog", "x", "zzzz", "one two three"]
Scored = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def loaded() -> LoadedChat[Any]:
    prompting = Prompting(system="be brief", max_new_tokens=8)
    return LoadedChat(
        model=ChatModel(small_chat.language_model()),
        tokenizer=small_chat.tokenizer(),
        prompting=prompting,
        version=version(prompting=prompting),
    )


def retrieving(loaded: LoadedChat[Any], *answered: str) -> LoadedChat[Any]:
    """Return the model with examples from rows with these questions in the prompt."""
    retrieval = Retrieval(num_examples=2, max_prompt_tokens=256, index_sha256="0" * 64)
    prompting = loaded.prompting.model_copy(update={"retrieval": retrieval})
    return replace(loaded, prompting=prompting, index=index_of(answered))


@pytest.fixture
def scored(tmp_path: Path) -> Scored:
    """Return the columns of a part of an input with this column."""

    def score(
        loaded: LoadedChat[Any], column: Any, *, start: int = 0, num_rows: int | None = None
    ) -> dict[str, Any]:
        table = pa.table({"question": pa.array(column), "key": range(len(column))})
        pq.write_table(table, tmp_path / "in.parquet", row_group_size=2)
        part = Part(
            number=0,
            uri=(tmp_path / "in.parquet").as_uri(),
            start=start,
            first=100 + start,
            num_rows=len(column) if num_rows is None else num_rows,
            etag="e",
        )
        batch = BatchSpec(
            input="s3://lake/in",
            output="s3://lake/out",
            version_uri=loaded.version.uri,
            digest="d",
            column="question",
            id_column="key",
        )
        table = score_part(part, batch, model=offline_model(loaded, batch_size=4))
        columns: dict[str, Any] = table.to_pydict()
        return columns

    return score


@pytest.mark.parametrize("kind", ["plain", "retrieved", "nearest"])
def test_a_part_of_a_batch_has_the_same_answers_as_the_evaluation(
    loaded: LoadedChat[Any], scored: Scored, kind: str
) -> None:
    model = loaded
    if kind != "plain":
        model = retrieving(loaded, "abd", "what is a cat", "one two three")
    if kind == "nearest":
        model = replace(model, model=None, tokenizer=None)
    expected = answer_texts(model, rows(QUESTIONS, chat=True))
    turns = [[{"role": "user", "content": text}] for text in QUESTIONS]
    for column in (QUESTIONS, turns):
        columns = scored(model, column)
        assert columns["answer"] == [answer.text for answer in expected]
        confidences = [answer.confidence for answer in expected]
        assert columns["confidence"] == pytest.approx(confidences)
    part = scored(model, QUESTIONS, start=1, num_rows=3)
    assert (part["row"], part["id"]) == ([101, 102, 103], [1, 2, 3])
    assert part["answer"] == columns["answer"][1:4]
    for reason, answer in zip(columns["finish_reason"], expected, strict=True):
        assert reason == "stop" or len(answer.logprobs) == loaded.prompting.max_new_tokens
    assert ("length" in columns["finish_reason"]) == (kind != "nearest")


def test_a_small_file_with_large_rows_is_read_in_slices(
    loaded: LoadedChat[Any], scored: Scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = replace(retrieving(loaded, *QUESTIONS), model=None, tokenizer=None)
    whole = scored(model, QUESTIONS)
    monkeypatch.setattr(worker, "SLICE_ROWS", 2)
    assert scored(model, QUESTIONS) == whole
    assert whole["row"] == [100, 101, 102, 103, 104]

    monkeypatch.undo()
    num_rows = 20_000
    text = "x" * 20_000
    path = tmp_path / "copies.parquet"
    pq.write_table(pa.table({"question": [text] * num_rows}), path, compression="zstd")
    assert path.stat().st_size < 100_000
    part = Part(number=0, uri=path.as_uri(), start=0, first=0, num_rows=num_rows, etag="e")
    before = pa.total_allocated_bytes()
    total = 0
    for table in worker._slices(part, columns=["question"]):
        total += table.num_rows
        assert pa.total_allocated_bytes() - before < 100 << 20
    assert total == num_rows


def test_examples_are_omitted_from_a_row_that_fits_only_without_them(
    loaded: LoadedChat[Any], scored: Scored
) -> None:
    column = ["x" * 220]
    retrieved = retrieving(loaded, "x" * 30, "y" * 30)
    assert scored(retrieved, column)["answer"] == scored(loaded, column)["answer"]


@pytest.mark.parametrize(
    ("values", "start"),
    [(["abc", "x" * 240], 0), (["a", "b", None], 1), (["abc"], 0)],
    ids=["a prompt that is too long", "null", "a file that lost rows"],
)
def test_rows_that_cannot_be_answered_are_refused_and_not_skipped(
    values: list[str | None], start: int, loaded: LoadedChat[Any], scored: Scored
) -> None:
    with pytest.raises(DataError):
        scored(loaded, values, start=start, num_rows=2)
