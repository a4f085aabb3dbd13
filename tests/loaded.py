"""A registered version as the model that a test expects."""

from typing import TypeVar

from tailorbird.models.loading import LoadedChat, LoadedClassifier, load_version
from tailorbird.registry.versions import ModelVersion, read_version

Loaded = TypeVar("Loaded", LoadedClassifier[ModelVersion], LoadedChat[ModelVersion])


def load_model(uri: str, kind: type[Loaded], *, device: str | None = None) -> Loaded:
    """Load the version at a URI, which must be of this kind."""
    loaded = load_version(read_version(uri), device=device)
    assert isinstance(loaded, kind)
    return loaded
