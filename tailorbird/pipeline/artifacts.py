"""Make weights loadable, and register the models of a verdict as versions."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tailorbird import storage
from tailorbird.registry import versions
from tailorbird.registry.routing import Routing
from tailorbird.registry.versions import ModelVersion, VersionConfig
from tailorbird.storage.node_cache import local_copy
from tailorbird.storage.paths import is_version_uri

UNCALIBRATED = 1.0  # a temperature


@dataclass(frozen=True)
class Contender:
    """A model that can answer, with its score on validation."""

    kind: str
    uri: str  # URI of its artifact or version
    validation: float


def make_loadable(uri: str, config: VersionConfig) -> None:
    """Write the config of a folder of weights; an existing one is kept to the byte, since other runs may use it."""
    if not storage.exists(f"{uri}/config.json"):
        versions.write_artifact_config(uri, config)


def set_temperature(contender: Contender, temperature: float) -> Contender:
    """Return the contender with the temperature in its config.

    If an earlier run, with other code, calibrated the same weights differently, that run's evidence names its files:
    they are kept, and a copy next to them gets the temperature.
    """
    config = versions.read_artifact_config(contender.uri)
    calibrated = config.model_copy(update={"temperature": temperature})
    if config.temperature in (UNCALIBRATED, temperature):
        if config != calibrated:
            versions.write_artifact_config(contender.uri, calibrated)
        return contender
    copy = replace(contender, uri=f"{contender.uri}-{temperature!r}")
    if not storage.exists(f"{copy.uri}/config.json"):
        with _copy_with_config(local_copy(contender.uri), calibrated) as folder:
            (folder / "config.json").unlink()
            storage.upload_folder(folder, copy.uri)
        versions.write_artifact_config(copy.uri, calibrated)  # last: it makes the copy loadable
    return copy


def is_hybrid(contender: Contender) -> bool:
    """Return True if the contender routes between two versions."""
    return versions.read_artifact_config(contender.uri).hybrid is not None


def register_contender(task_uri: str, contender: Contender, *, code: str) -> ModelVersion:
    """Register an artifact as a version that is served by the code at the URI `code`; return a version as it is.

    The artifact may be of an earlier run with other code, which did not change what the artifact depends on.
    """
    if is_version_uri(contender.uri):
        return versions.read_version(contender.uri)
    folder = local_copy(contender.uri)
    config = versions.read_artifact_config(folder.as_uri())
    if config.code == code:
        return versions.register(task_uri, folder)
    with _copy_with_config(folder, config.model_copy(update={"code": code})) as renewed:
        return versions.register(task_uri, renewed)


def register_hybrid(
    task_uri: str, routing: Routing, *, incumbent: ModelVersion, candidate: ModelVersion
) -> ModelVersion:
    """Register a version that routes between two versions."""
    with tempfile.TemporaryDirectory() as folder:
        versions.write_config(Path(folder), versions.hybrid_config(candidate, incumbent=incumbent, routing=routing))
        return versions.register(task_uri, Path(folder))


@contextmanager
def _copy_with_config(folder: Path, config: VersionConfig) -> Iterator[Path]:
    """Yield a temporary folder with links to the artifact's files and another config."""
    with tempfile.TemporaryDirectory() as copy:
        shutil.copytree(folder, copy, copy_function=os.symlink, dirs_exist_ok=True)
        (Path(copy) / "config.json").unlink()
        versions.write_config(Path(copy), config)
        yield Path(copy)
