"""The folder of the embedded stack."""

import os
from pathlib import Path

import pytest

from cluster.local.folder import NAME, default_folder


def test_the_folder_is_that_of_the_nearest_parent_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TAILORBIRD_HOME", raising=False)
    inner = tmp_path / "project" / "recipes"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert default_folder() == inner / NAME
    (tmp_path / NAME).mkdir()
    assert default_folder() == tmp_path / NAME
    (tmp_path / "project" / NAME).mkdir()
    assert default_folder() == tmp_path / "project" / NAME
    monkeypatch.setattr(
        os, "geteuid", lambda: os.getuid() + 1
    )  # the folders belong to another user
    assert default_folder() == inner / NAME
    monkeypatch.setenv("TAILORBIRD_HOME", "elsewhere")
    assert default_folder() == inner / "elsewhere"
