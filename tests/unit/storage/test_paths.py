"""URIs of a task's files, and the task of a given URI."""

import pytest

from tailorbird.storage.paths import (
    TaskPaths,
    base_model,
    is_staged_base_model,
    is_version_uri,
    parse_version_uri,
)

TASK = TaskPaths("s3://models/prod/tickets")


def test_a_registry_can_be_below_a_folder_named_versions() -> None:
    nested = TaskPaths("s3://models/versions/prod/tickets")
    assert parse_version_uri(nested.version("full-1")) == (nested, "full-1")
    assert not is_version_uri(nested.stage("sweep", "12ab"))


@pytest.mark.parametrize(
    "uri", ["s3://models/prod/tickets/stages/sweep-1", "file:///tmp/model", "full-1", ""]
)
def test_a_uri_of_another_folder_is_not_a_version(uri: str) -> None:
    assert not is_version_uri(uri)
    with pytest.raises(ValueError, match="<registry>/<task>/versions/<name>"):
        parse_version_uri(uri)


def test_a_staged_base_model_is_stored_in_its_registry() -> None:
    uri = base_model("s3://models/", "minilm-0123")
    assert uri == "s3://models/_base/minilm-0123"
    assert is_staged_base_model(uri)
    assert not is_staged_base_model("file:///tmp/minilm")
