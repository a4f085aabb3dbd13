"""Resolution of a recipe's challenger to a version."""

import json
from pathlib import Path

import pytest

from tailorbird.registry.versions import RegistryError
from tailorbird.release.runs import PromotionRefused
from tailorbird.release.serving import challenger_version

CONFIG = {
    "kind": "full",
    "classes": ["a", "b"],
    "base_model": "s3://models/_base/m",
    "max_length": 32,
    "dtype": "float32",
    "code": "s3://models/toy/code/c.zip",
    "recipe_hash": "0" * 64,
    "created_at": "2026-05-01T12:00:00+00:00",
}


@pytest.fixture
def task_uri(tmp_path: Path) -> str:
    folder = tmp_path / "toy" / "versions" / "full-1"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "manifest.json").write_text("{}")
    return (tmp_path / "toy").as_uri()


def test_a_version_is_found_by_name_or_uri(task_uri: str) -> None:
    for name in ("full-1", f"{task_uri}/versions/full-1", f"{task_uri}/versions/full-1/"):
        assert challenger_version(name, task_uri=task_uri).version == "full-1"


@pytest.mark.parametrize("name", ["../versions/full-1", "full-1/config.json", "s3://models/other/versions/full-1", "/"])
def test_a_name_that_is_not_a_version_of_the_task_is_refused(task_uri: str, name: str) -> None:
    with pytest.raises(PromotionRefused, match="run `tailorbird models` to list"):
        challenger_version(name, task_uri=task_uri)


def test_a_missing_version_and_a_candidate_without_a_run_are_refused(task_uri: str) -> None:
    with pytest.raises(RegistryError, match="no complete model version"):
        challenger_version("full-2", task_uri=task_uri)
    with pytest.raises(PromotionRefused, match="has no finished run"):
        challenger_version("candidate", task_uri=task_uri)
