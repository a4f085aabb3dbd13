"""A batch's parts, what may be read and written, and what one worker makes of a part."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from serving.batch_jobs.scoring import PART_BYTES, BatchError, InputFile, _read_bytes, is_under, new_batch, parts_of
from serving.batch_jobs.worker import Batch, Part, score_part
from tailorbird import storage
from tailorbird.config.serving import ServingConfig
from tailorbird.data.chat_template import prompt_tokens
from tailorbird.data.parquet import parquet_files
from tailorbird.data.rows import DataError
from tailorbird.models.causal_lm import ChatModel
from tailorbird.models.generation import answer_prompts
from tailorbird.models.loading import LoadedChat
from tailorbird.registry.versions import ModelVersion, Prompting
from tailorbird.storage import s3
from tests import small_chat

QUESTIONS = ["abc", "what is a dog", "x", "zzzz", "one two three"]


def version(prompting: Prompting | None = None) -> ModelVersion:
    return ModelVersion(
        kind="zero_shot",
        classes=(),
        base_model="s3://none",
        max_length=64,
        dtype="float32",
        code="s3://none.zip",
        recipe_hash="0" * 64,
        created_at="2026-01-01T00:00:00+00:00",
        prompting=prompting,
        name="task",
        version="zero-shot-1",
        uri="s3://models/task/versions/zero-shot-1",
        digest="d",
    )


@given(st.lists(st.integers(0, 300), max_size=8), st.integers(1, 100))
def test_every_row_is_in_one_part_and_parts_do_not_span_files(sizes: list[int], size: int) -> None:
    inputs = [InputFile(f"s3://lake/{number}", "", 0, num_rows, 0) for number, num_rows in enumerate(sizes)]
    parts = list(parts_of(inputs, size=size))
    assert [part.number for part in parts] == list(range(len(parts)))
    assert [part.first + row for part in parts for row in range(part.num_rows)] == list(range(sum(sizes)))
    places = [(part.uri, part.start + row) for part in parts for row in range(part.num_rows)]
    assert places == [(one.uri, row) for one in inputs for row in range(one.num_rows)]
    assert all(0 < part.num_rows <= size for part in parts)


def test_long_rows_go_into_smaller_parts() -> None:
    file = InputFile("s3://lake/long", "", 0, 100, 100 * (PART_BYTES // 8))
    assert [part.num_rows for part in parts_of([file], size=50)] == [8] * 12 + [4]
    larger = InputFile("s3://lake/longer", "", 0, 3, 9 * PART_BYTES)
    assert [part.num_rows for part in parts_of([larger], size=50)] == [1, 1, 1]


def test_bytes_are_counted_of_the_columns_that_are_read(tmp_path: Path) -> None:
    said = [[{"role": "user", "content": "x" * 1000 + str(row)}] for row in range(50)]
    table = pa.table({"messages": said, "other": [str(row) * 5000 for row in range(50)]})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=20)
    metadata = pq.read_metadata(tmp_path / "rows.parquet")
    read, other = (_read_bytes(metadata, [name]) for name in ("messages", "other"))
    assert 50_000 < read < 60_000
    assert read + other == _read_bytes(metadata, ["messages", "other"]) > 5 * read


def test_of_an_error_that_is_behind_another_it_is_known_whether_it_is_the_stores() -> None:
    with pytest.raises(DataError) as caught:
        parquet_files("file:///nowhere/at/all")
    assert storage.is_behind(caught.value)
    assert not storage.is_behind(BatchError("of its own"))
    assert storage.is_behind(s3.StorageError("away"))


@pytest.mark.parametrize(
    ("uri", "prefix", "expected"),
    [
        ("s3://lake/a", "s3://lake/a", True),
        ("s3://lake/a/b", "s3://lake/a", True),
        ("s3://lake/ab", "s3://lake/a", False),
        ("s3://lake", "s3://lake/a", False),
    ],
)
def test_a_prefix_ends_at_a_slash(uri: str, prefix: str, expected: bool) -> None:
    assert is_under(uri, prefix) is expected


@pytest.mark.parametrize(
    ("input", "output"),
    [
        ("file:///etc", "s3://lake/out"),
        ("s3://lake/in", "out"),
        ("s3://lake", "s3://other/out"),
        ("s3://lake/in", "s3://lake/../models/out"),
        ("s3://lake//in", "s3://lake/out"),
        ("s3://lake/in", "s3://lake/in/"),
        ("s3://lake/in", "s3://lake/in/out"),
        ("s3://lake/out/in", "s3://lake/out"),
    ],
)
def test_a_batch_over_a_wrong_or_a_shared_place_is_refused(input: str, output: str) -> None:
    with pytest.raises(BatchError):
        new_batch(version(), input=input, output=output)


def test_the_column_is_that_of_the_versions_task() -> None:
    uris = {"input": "s3://lake/in/", "output": "s3://lake/out/"}
    classified = new_batch(version(), **uris)
    assert (classified.input, classified.output, classified.column) == ("s3://lake/in", "s3://lake/out", "text")
    assert new_batch(version(Prompting(system=None, max_new_tokens=4)), **uris).column == "prompt"
    assert new_batch(version(), **uris, column="words").column == "words"


def test_prefixes_for_batches_are_on_s3() -> None:
    assert ServingConfig(batch_prefixes=("s3://lake/a/",)).batch_prefixes == ("s3://lake/a",)
    with pytest.raises(ValidationError, match="s3://"):
        ServingConfig(batch_prefixes=("file:///lake",))


@pytest.fixture(scope="module")
def loaded() -> LoadedChat[ModelVersion]:
    prompting = Prompting(system="be brief", max_new_tokens=8)
    return LoadedChat(ChatModel(small_chat.language_model()), small_chat.tokenizer(), prompting, version(prompting))


def _scored(
    folder: Path, column: pa.Array, *, loaded: LoadedChat[ModelVersion], start: int, num_rows: int
) -> dict[str, Any]:
    pq.write_table(pa.table({"asked": column, "key": range(len(column))}), folder / "in.parquet", row_group_size=2)
    part = Part(
        number=0, uri=f"file://{folder}/in.parquet", start=start, first=100 + start, num_rows=num_rows, etag="e"
    )
    batch = Batch("s3://lake/in", "s3://lake/out", loaded.version.uri, "d", column="asked", id_column="key")
    found: dict[str, Any] = score_part(part, batch, loaded=loaded, batch_size=4).to_pydict()
    return found


def test_a_chat_models_part_has_the_evaluated_answers_of_its_rows_alone(
    loaded: LoadedChat[ModelVersion], tmp_path: Path
) -> None:
    found = _scored(tmp_path, pa.array(QUESTIONS), loaded=loaded, start=1, num_rows=3)
    prompts = [
        prompt_tokens((("user", text),), tokenizer=loaded.tokenizer, system="be brief") for text in QUESTIONS[1:4]
    ]
    end_id = int(loaded.tokenizer.eos_token_id)
    expected = answer_prompts(loaded.model.lm, prompts, max_new_tokens=8, end_id=end_id)
    texts = [loaded.tokenizer.decode(answer.tokens, skip_special_tokens=True).strip() for answer in expected]
    assert (found["row"], found["id"], found["answer"]) == ([101, 102, 103], [1, 2, 3], texts)
    assert found["finish_reason"] == ["stop" if answer.finished else "length" for answer in expected]
    turns = pa.array([[{"role": "user", "content": text}] for text in QUESTIONS])
    whole = _scored(tmp_path, turns, loaded=loaded, start=0, num_rows=5)
    assert whole["answer"][1:4] == texts


def test_a_conversation_that_is_answered_already_is_refused_by_its_row(
    loaded: LoadedChat[ModelVersion], tmp_path: Path
) -> None:
    roles = ("user", "user", "assistant")
    turns = pa.array([[{"role": role, "content": "abc"}] for role in roles])
    with pytest.raises(DataError, match="row 2 does not end with a turn of the user"):
        _scored(tmp_path, turns, loaded=loaded, start=1, num_rows=2)


def test_a_prompt_that_the_model_cannot_take_is_refused_by_its_row(
    loaded: LoadedChat[ModelVersion], tmp_path: Path
) -> None:
    with pytest.raises(
        DataError, match=r"row 1 has 2\d\d tokens and its answer may have 8, together more than the 256"
    ):
        _scored(tmp_path, pa.array(["abc", "x" * 240]), loaded=loaded, start=0, num_rows=2)


def test_a_null_is_refused_by_its_row_and_not_left_out(loaded: LoadedChat[ModelVersion], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"column 'asked' is null in 1 of 2 rows from row 2 on \(first: row 3\)"):
        _scored(tmp_path, pa.array(["a", "b", "c", None]), loaded=loaded, start=2, num_rows=2)


def test_a_file_that_lost_rows_since_it_was_looked_at_is_refused(
    loaded: LoadedChat[ModelVersion], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="was changed while it was read"):
        _scored(tmp_path, pa.array(QUESTIONS), loaded=loaded, start=3, num_rows=3)
