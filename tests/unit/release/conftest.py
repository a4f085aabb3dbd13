"""Rendering without a registry."""

from collections.abc import Iterator

import pytest

from tailorbird.release.manifests import ServedChampion


@pytest.fixture(scope="session", autouse=True)
def _served() -> Iterator[None]:
    """Replace Serve's configuration, which needs a registry and is tested with a real S3 server."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            "tailorbird.release.manifests._serve_config", lambda *_, **__: ServedChampion({"a": 1})
        )
        yield
