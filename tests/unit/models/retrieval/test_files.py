"""A stored index returns the same neighbours; a damaged or replaced index is refused."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailorbird.models.errors import ModelError
from tailorbird.models.retrieval.files import ROWS_FILE, index_files, index_sha256, load_index
from tailorbird.models.retrieval.index import RetrievalIndex, build_index
from tailorbird.registry.versions import INDEX_FILES, Retrieval
from tests.build import rows

TEXTS = ("acute bronchitis", "chronic bronchitis", "fracture of the femur", "", "Straße \ud800")
ANSWERS = ("J20", "J42", "S72", "none", "X")


def index_of(
    texts: tuple[str, ...] = TEXTS[:4], *, keys: tuple[str, ...] | None = None
) -> RetrievalIndex:
    turns = tuple((("system", "s"), ("user", text)) for text in texts)
    answers = ANSWERS[: len(texts)]
    return build_index(rows(texts, answers, split_keys=keys, conversations=turns), seed=0)


def retrieval_of(sha256: str) -> Retrieval:
    return Retrieval(num_examples=1, max_prompt_tokens=1, index_sha256=sha256)


def write(folder: Path, files: dict[str, bytes]) -> str:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return index_sha256(files)


def test_a_loaded_index_returns_the_same_neighbours_and_has_no_value_of_split_by(
    tmp_path: Path,
) -> None:
    keys = ("patient-1", "patient-2", "patient-2", "patient-3")
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
    assert "patient" not in str(pq.read_table(tmp_path / ROWS_FILE).to_pylist())


@pytest.mark.parametrize("name", INDEX_FILES)
@pytest.mark.parametrize("damage", ["other rows", "missing", "pickle", "other columns"])
def test_a_changed_file_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    files = index_files(index_of())
    if damage == "pickle":
        files[name] = b"\x80\x04K\x01."
    elif damage == "other columns":
        table = io.BytesIO()
        pq.write_table(pa.table({"answer": list(ANSWERS)}), table)
        files[ROWS_FILE] = table.getvalue()
    sha256 = write(tmp_path, files)
    if damage == "other rows":
        (tmp_path / name).write_bytes(index_files(index_of(TEXTS[:3]))[name])
    elif damage == "missing":
        (tmp_path / name).unlink()
    with pytest.raises(ModelError):
        load_index(tmp_path, retrieval=retrieval_of(sha256), encoder=None)
