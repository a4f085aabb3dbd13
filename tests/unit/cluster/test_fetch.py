import hashlib
from pathlib import Path

import pytest

from cluster import fetch, storage


def test_a_local_model_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    uri = tmp_path.as_uri()
    assert fetch.stage_base_model(f"{uri}/", registry="s3://unused") == uri
    assert fetch.local_copy(uri) == tmp_path


def test_pickled_weights_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(fetch.FetchError, match="holds no model"):
        fetch.stage_base_model(tmp_path.as_uri(), registry="s3://unused")


@pytest.mark.parametrize(
    "uri", ["pypi://", "pypi://a b", "pypi://-r/etc/x", "pypi://a;b", "hf://", "hf://a/b/c", "x://a"]
)
def test_a_uri_that_names_no_model_is_refused_before_anything_runs(uri: str) -> None:
    with pytest.raises(fetch.FetchError, match="names no model"):
        fetch.stage_base_model(uri, registry="s3://unused")


def test_the_sha256_of_a_file_is_that_of_its_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    assert storage.sha256_file(tmp_path / "a") == hashlib.sha256(b"content").hexdigest()
