"""Turn trained weights into loadable artifacts, and register the contenders of a verdict as
versions."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tailorbird import storage
from tailorbird.config.base import digest
from tailorbird.data.fingerprints import save_fingerprints
from tailorbird.data.sharding.loading import LoadedDataset
from tailorbird.evaluation.inference.endpoint_requests import RequestLimits
from tailorbird.evaluation.inference.predict import DecisionFit
from tailorbird.models.loading import checked_copy
from tailorbird.registry import versions
from tailorbird.registry.hybrid_routing import Routing
from tailorbird.registry.hybrids import hybrid_config
from tailorbird.registry.version_files import is_evidence
from tailorbird.registry.versions import ModelVersion, VersionConfig
from tailorbird.storage import MANIFEST
from tailorbird.storage.node_cache import local_copy
from tailorbird.storage.paths import is_version_uri, parse_version_uri

UNCALIBRATED = 1.0  # temperature of an artifact before calibration
NUM_DIGITS = 12  # of the digest in the name of a copy


@dataclass(frozen=True)
class Contender:
    """A model that can be compared and served, with its validation score."""

    kind: str
    uri: str  # URI of its artifact or version
    validation: float


def make_loadable(uri: str, config: VersionConfig) -> None:
    """Write the config of a folder of weights. Keep an existing config unchanged, since other runs
    may use it."""
    if storage.exists(f"{uri}/config.json"):
        return
    versions.write_artifact_config(uri, config)


def set_decision(contender: Contender, decision: DecisionFit) -> Contender:
    """Return the contender with the temperature and the offsets in its config, and with their
    validation score.

    If an earlier run with other code or another metric fitted the same weights differently, write a
    copy. The evidence of the earlier run contains hashes of its files, so they must not change.
    """
    contender = replace(contender, validation=decision.validation)
    config = versions.read_artifact_config(contender.uri)
    fitted = {"temperature": decision.temperature, "offsets": decision.offsets}
    calibrated = config.model_copy(update=fitted)
    if config.temperature == UNCALIBRATED or config == calibrated:
        if config != calibrated:
            versions.write_artifact_config(contender.uri, calibrated)
        return contender
    copy = replace(contender, uri=f"{contender.uri}-{digest(fitted)[:NUM_DIGITS]}")
    if not storage.exists(f"{copy.uri}/config.json"):
        with _copy_with_config(local_copy(contender.uri), calibrated) as folder:
            (folder / "config.json").unlink()
            storage.upload_folder(folder, copy.uri)
        versions.write_artifact_config(
            copy.uri, calibrated
        )  # last, because it marks the copy as complete
    return copy


def register_contender(
    task_uri: str, uri: str, *, code: str, limits: RequestLimits, data: LoadedDataset
) -> ModelVersion:
    """Register the artifact at `uri` as a version that is served by the code at the URI `code`.

    If it is a version of the task already, return it unchanged; a version of another task is
    copied. The artifact may come from the stage cache of an earlier run with another code snapshot
    or, for an endpoint, another limit of spend, so its config gets the present ones. It learned
    from the rows of `data`, whose fingerprints are stored, unless it is a copy, which has its own.
    """
    is_copy = is_version_uri(uri)
    if is_copy:
        version = versions.read_version(uri)
        if parse_version_uri(uri)[0].task_uri == task_uri:
            return version
        folder = checked_copy(version.pinned)
    else:
        folder = local_copy(uri)
    config = versions.read_artifact_config(uri)
    endpoint = config.endpoint and limits.for_endpoint(config.endpoint)[1]
    current = config.model_copy(update={"code": code, "endpoint": endpoint})
    with _copy_with_config(folder, current) as renewed:
        if config.spec.learns_from_rows and not is_copy:
            learned = data.learned_rows(in_memory=config.spec.is_baseline)
            save_fingerprints((renewed / versions.TRAINING_ROWS).as_uri(), learned)
        return versions.register(task_uri, renewed)


def register_hybrid(
    task_uri: str, first: ModelVersion, *, second: ModelVersion, routing: Routing
) -> ModelVersion:
    """Register a hybrid that routes between two versions."""
    with tempfile.TemporaryDirectory() as folder:
        versions.write_config(Path(folder), hybrid_config(first, second=second, routing=routing))
        return versions.register(task_uri, Path(folder))


@contextmanager
def _copy_with_config(folder: Path, config: VersionConfig) -> Iterator[Path]:
    """Yield a temporary folder with symbolic links to the artifact's files and with `config` as its
    config, without the manifest and the evidence of a version."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary)
        shutil.copytree(folder, copy, copy_function=os.symlink, dirs_exist_ok=True)
        for link in [path for path in copy.rglob("*") if path.is_symlink()]:
            name = link.relative_to(copy).as_posix()
            if name in (MANIFEST, versions.CONFIG) or is_evidence(name):
                link.unlink()
        versions.write_config(copy, config)
        yield copy
