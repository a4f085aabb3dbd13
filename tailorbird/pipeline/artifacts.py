"""Make weights loadable, and register the models of a verdict as versions."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tailorbird import storage
from tailorbird.registry.routing import Routing
from tailorbird.registry.versions import (
    ModelVersion,
    VersionConfig,
    hybrid_config,
    read_artifact_config,
    read_version,
    register,
    write_artifact_config,
    write_config,
)
from tailorbird.storage.node_cache import local_copy
from tailorbird.storage.paths import is_version_uri


@dataclass(frozen=True)
class Contender:
    """A model that can answer, with its score on validation."""

    kind: str
    uri: str
    """URI of its artifact or version."""
    validation: float


def make_loadable(uri: str, config: VersionConfig) -> None:
    """Write the config of a folder of weights, unless it has one.

    An existing config is kept to the byte, since other runs may use the same weights.
    """
    if not storage.exists(f"{uri}/config.json"):
        write_artifact_config(uri, config)


def set_temperature(uri: str, temperature: float) -> None:
    """Write the temperature into an artifact's config, unless it is the same."""
    config = read_artifact_config(uri)
    if config.temperature != temperature:
        write_artifact_config(uri, config.model_copy(update={"temperature": temperature}))


def is_hybrid(contender: Contender) -> bool:
    """Return True if the contender routes between two versions."""
    return read_artifact_config(contender.uri).hybrid is not None


def register_contender(task_uri: str, contender: Contender, *, code: str) -> ModelVersion:
    """Register an artifact as a version that is served by the code at the URI `code`; return a version as it is.

    The artifact may be of an earlier run with other code, which did not change what the artifact depends on.
    """
    if is_version_uri(contender.uri):
        return read_version(contender.uri)
    folder = local_copy(contender.uri)
    config = read_artifact_config(folder.as_uri())
    if config.code == code:
        return register(task_uri, folder)
    with tempfile.TemporaryDirectory() as renewed:
        shutil.copytree(folder, renewed, copy_function=os.symlink, dirs_exist_ok=True)
        (Path(renewed) / "config.json").unlink()
        write_config(Path(renewed), config.model_copy(update={"code": code}))
        return register(task_uri, Path(renewed))


def register_hybrid(
    task_uri: str, routing: Routing, *, incumbent: ModelVersion, candidate: ModelVersion
) -> ModelVersion:
    """Register a version that routes between two versions."""
    with tempfile.TemporaryDirectory() as folder:
        write_config(Path(folder), hybrid_config(candidate, incumbent=incumbent, routing=routing))
        return register(task_uri, Path(folder))
