"""Scoring of one part of the input."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.batch_jobs.schema import BatchSpec, Part
from serving.batch_jobs.worker import score_part
from serving.offline import offline_model
from tailorbird.data.chat_template import prompt_tokens
from tailorbird.data.rows import DataError, Rows
from tailorbird.evaluation.inference.chat_answers import answer_texts
from tailorbird.models.causal_lm import ChatModel
from tailorbird.models.generation import answer_prompts
from tailorbird.models.loading import LoadedChat
from tailorbird.registry.versions import Prompting, Retrieval
from tests import small_chat
from tests.unit.serving.batch_jobs.test_scoring import version
from tests.unit.serving.engines.test_language_model import index_of

QUESTIONS = ["abc", "what is a dog", "x", "zzzz", "one two three"]


@pytest.fixture(scope="module")
def loaded() -> LoadedChat[Any]:
    prompting = Prompting(system="be brief", max_new_tokens=8)
    return LoadedChat(
        ChatModel(small_chat.language_model()),
        small_chat.tokenizer(),
        prompting,
        version(prompting),
    )


def _scored(
    folder: Path,
    column: pa.Array,
    *,
    loaded: LoadedChat[Any],
    start: int,
    num_rows: int,
) -> dict[str, Any]:
    pq.write_table(
        pa.table({"question": column, "key": range(len(column))}),
        folder / "in.parquet",
        row_group_size=2,
    )
    part = Part(
        number=0,
        uri=f"file://{folder}/in.parquet",
        start=start,
        first=100 + start,
        num_rows=num_rows,
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
    columns: dict[str, Any] = score_part(
        part, batch, model=offline_model(loaded, batch_size=4)
    ).to_pydict()
    return columns


def test_a_part_of_a_chat_batch_has_the_same_answers_as_the_evaluation(
    loaded: LoadedChat[Any], tmp_path: Path
) -> None:
    answers = _scored(tmp_path, pa.array(QUESTIONS), loaded=loaded, start=1, num_rows=3)
    prompts = [
        prompt_tokens((("user", text),), tokenizer=loaded.tokenizer, system="be brief")
        for text in QUESTIONS[1:4]
    ]
    end_id = int(loaded.tokenizer.eos_token_id)
    expected = answer_prompts(loaded.lm, prompts, max_new_tokens=8, end_id=end_id)
    texts = [
        loaded.tokenizer.decode(answer.tokens, skip_special_tokens=True).strip()
        for answer in expected
    ]
    assert (answers["row"], answers["id"], answers["answer"]) == ([101, 102, 103], [1, 2, 3], texts)
    assert answers["finish_reason"] == [
        "stop" if answer.finished else "length" for answer in expected
    ]
    turns = pa.array([[{"role": "user", "content": text}] for text in QUESTIONS])
    whole = _scored(tmp_path, turns, loaded=loaded, start=0, num_rows=5)
    assert whole["answer"][1:4] == texts


def test_a_part_of_a_batch_has_the_same_retrieved_and_stored_answers_as_the_evaluation(
    loaded: LoadedChat[Any], tmp_path: Path
) -> None:
    index = index_of(("abd", "what is a cat", "one two three"))
    retrieval = Retrieval(num_examples=2, max_prompt_tokens=200, index_sha256="0" * 64)
    prompting = loaded.prompting.model_copy(update={"retrieval": retrieval})
    retrieved = replace(loaded, prompting=prompting, index=index)
    conversations = tuple((("user", text),) for text in QUESTIONS)
    rows = Rows(tuple(QUESTIONS), tuple(QUESTIONS), tuple(QUESTIONS), conversations=conversations)
    answers = answer_texts(retrieved, rows)
    columns = _scored(tmp_path, pa.array(QUESTIONS), loaded=retrieved, start=0, num_rows=5)
    assert columns["answer"] == [answer.text for answer in answers]
    confidences = [answer.confidence for answer in answers]
    assert columns["confidence"] == pytest.approx(confidences)
    assert confidences != pytest.approx(
        [answer.confidence for answer in answer_texts(loaded, rows)]
    )
    nearest = replace(retrieved, model=None, tokenizer=None)
    answers = answer_texts(nearest, rows)
    columns = _scored(tmp_path, pa.array(QUESTIONS), loaded=nearest, start=0, num_rows=5)
    assert columns["answer"] == [answer.text for answer in answers]
    assert columns["confidence"] == pytest.approx([answer.confidence for answer in answers])
    assert (columns["answer"][1], columns["finish_reason"]) == ("a1", ["stop"] * 5)


def test_examples_are_omitted_from_a_row_that_fits_only_without_them(
    loaded: LoadedChat[Any], tmp_path: Path
) -> None:
    retrieval = Retrieval(num_examples=2, max_prompt_tokens=256, index_sha256="0" * 64)
    prompting = loaded.prompting.model_copy(update={"retrieval": retrieval})
    retrieved = replace(loaded, prompting=prompting, index=index_of(("x" * 30, "y" * 30)))
    column = pa.array(["x" * 220])
    plain = _scored(tmp_path, column, loaded=loaded, start=0, num_rows=1)
    assert (
        _scored(tmp_path, column, loaded=retrieved, start=0, num_rows=1)["answer"]
        == plain["answer"]
    )


@pytest.mark.parametrize(
    ("values", "start"),
    [(["abc", "x" * 240], 0), (["a", "b", None], 1), (["abc"], 0)],
    ids=["a prompt that is too long", "null", "a file that lost rows"],
)
def test_rows_that_cannot_be_answered_are_refused_and_not_skipped(
    values: list[str | None], start: int, loaded: LoadedChat[Any], tmp_path: Path
) -> None:
    with pytest.raises(DataError):
        _scored(tmp_path, pa.array(values), loaded=loaded, start=start, num_rows=2)
