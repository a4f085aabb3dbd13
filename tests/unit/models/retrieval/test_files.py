"""A stored index returns the same neighbours; a damaged or replaced index is refused."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailorbird.data.rows import Rows
from tailorbird.models.errors import ModelError
from tailorbird.models.retrieval.files import ROWS_FILE, index_files, index_sha256, load_index
from tailorbird.models.retrieval.index import RetrievalIndex, build_index, group_hash
from tailorbird.registry.versions import INDEX_FILES, Retrieval

TEXTS = ("acute bronchitis", "chronic bronchitis", "fracture of the femur", "", "Straße \ud800")
ANSWERS = ("J20", "J42", "S72", "none", "X")


def index_of(
    texts: tuple[str, ...] = TEXTS[:4], *, keys: tuple[str, ...] | None = None
) -> RetrievalIndex:
    ids = tuple(map(str, range(len(texts))))
    turns = tuple((("system", "s"), ("user", text)) for text in texts)
    return build_index(
        Rows(ids, texts, ANSWERS[: len(texts)], split_keys=keys, conversations=turns), seed=0
    )


def retrieval_of(sha256: str) -> Retrieval:
    return Retrieval(num_examples=1, max_prompt_tokens=1, index_sha256=sha256)


def write(folder: Path, files: dict[str, bytes]) -> str:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return index_sha256(files)


@pytest.mark.parametrize("keys", [None, ("a", "b", "b", "c")])
def test_a_loaded_index_returns_the_same_neighbours(
    tmp_path: Path, keys: tuple[str, ...] | None
) -> None:
    index = index_of(keys=keys)
    loaded = load_index(
        tmp_path, retrieval=retrieval_of(write(tmp_path, index_files(index))), encoder=None
    )
    for text in TEXTS:
        expected = index.nearest(text, k=4)
        nearest = loaded.nearest(text, k=4)
        np.testing.assert_array_equal(nearest.rows, expected.rows)
        np.testing.assert_array_equal(nearest.similarities, expected.similarities)
    assert [loaded.turns(row) for row in range(4)] == [index.turns(row) for row in range(4)]
    assert loaded.table["group"].to_pylist() == (
        [None] * 4 if keys is None else [group_hash(key) for key in keys]
    )


def test_the_files_contain_no_value_of_split_by(tmp_path: Path) -> None:
    write(
        tmp_path, index_files(index_of(keys=("patient-1", "patient-2", "patient-3", "patient-4")))
    )
    assert "patient" not in str(pq.read_table(tmp_path / ROWS_FILE).to_pylist())


@pytest.mark.parametrize("name", INDEX_FILES)
def test_an_index_of_other_rows_is_refused(tmp_path: Path, name: str) -> None:
    sha256 = write(tmp_path, index_files(index_of()))
    (tmp_path / name).write_bytes(index_files(index_of(TEXTS[:3]))[name])
    with pytest.raises(ModelError):
        load_index(tmp_path, retrieval=retrieval_of(sha256), encoder=None)


@pytest.mark.parametrize("name", INDEX_FILES)
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    sha256 = write(tmp_path, index_files(index_of()))
    (tmp_path / name).unlink()
    with pytest.raises(ModelError):
        load_index(tmp_path, retrieval=retrieval_of(sha256), encoder=None)


@pytest.mark.parametrize("name", INDEX_FILES)
def test_a_file_of_another_format_is_refused(tmp_path: Path, name: str) -> None:
    sha256 = write(tmp_path, index_files(index_of()) | {name: b"\x80\x04K\x01."})  # a pickle
    with pytest.raises(ModelError):
        load_index(tmp_path, retrieval=retrieval_of(sha256), encoder=None)


def test_rows_with_other_columns_are_refused(tmp_path: Path) -> None:
    rows = io.BytesIO()
    pq.write_table(pa.table({"answer": list(ANSWERS)}), rows)
    sha256 = write(tmp_path, index_files(index_of()) | {ROWS_FILE: rows.getvalue()})
    with pytest.raises(ModelError):
        load_index(tmp_path, retrieval=retrieval_of(sha256), encoder=None)


def test_versions_with_the_same_index_share_its_memory(tmp_path: Path) -> None:
    files = index_files(index_of())
    digests = [write(tmp_path / version, files) for version in ("a", "b")]
    retrieval = retrieval_of(digests[0])
    first, second = (
        load_index(tmp_path / version, retrieval=retrieval, encoder=None) for version in ("a", "b")
    )
    assert first is second
