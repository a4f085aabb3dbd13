"""Stored indexes of training rows."""

from pathlib import Path

from tailorbird.models.retrieval.files import index_files, index_sha256, load_index
from tailorbird.models.retrieval.index import build_index
from tests.unit.models.retrieval.test_training_examples import rows_of


def test_versions_with_the_same_index_share_its_memory(tmp_path: Path) -> None:
    files = index_files(build_index(rows_of(), seed=0))
    sha256 = index_sha256(files)
    for version in ("a", "b"):
        (tmp_path / version).mkdir()
        for name, content in files.items():
            (tmp_path / version / name).write_bytes(content)
    first, second = (load_index(tmp_path / version, expected_sha256=sha256) for version in ("a", "b"))
    assert first is second
