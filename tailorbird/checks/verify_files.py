"""Compare the files of a run with their manifests: evidence, predictions, versions, base model and
code."""

import hashlib
from collections.abc import Iterator

from pyarrow import ArrowException

from cluster.code_snapshot import CodeVersion, shipped_sha256
from tailorbird import storage
from tailorbird.checks.differences import differences, read_content, read_value
from tailorbird.data.loader import read_test
from tailorbird.data.rows import DataError, rows_sha256
from tailorbird.data.task_data import recipe_task
from tailorbird.evaluation.prediction_store import load_predictions
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.report.evidence import UNREGISTERED, Evidence
from tailorbird.evaluation.report.evidence_files import MANIFEST
from tailorbird.evaluation.trained_rows import trained_rows
from tailorbird.models.base_model import BaseModelRecord
from tailorbird.pipeline.contenders import ContenderError, compared_versions
from tailorbird.registry.hybrid_routing import PARTS
from tailorbird.registry.version_files import version_faults
from tailorbird.registry.versions import Hybrid, PinnedVersion, RegistryError, read_version
from tailorbird.storage import s3
from tailorbird.storage.node_cache import sha256_files

UNREADABLE = (ValueError, KeyError, TypeError, IndexError, AttributeError, OSError, ArrowException)
"""Errors raised for damaged JSON or Parquet. StorageError, raised by failing storage, must
propagate."""


def file_faults(uri: str, *, needed: tuple[str, ...], tables: tuple[str, ...]) -> Iterator[str]:
    """Yield files that are missing, changed, or among the predictions but not in the evidence
    manifest."""
    manifest = read_value(f"{uri}/{MANIFEST}")
    if not isinstance(manifest, dict):
        yield f"{MANIFEST} is missing or damaged, so the original files are unknown"
        return
    for name in (*needed, *(f"predictions/{table}.parquet" for table in tables)):
        if name not in manifest:
            yield f"{name} is not listed in {MANIFEST}"
    for name, expected in manifest.items():
        content = read_content(f"{uri}/{name}")
        if content is None:
            yield f"{name} is missing"
        elif (sha256 := hashlib.sha256(content).hexdigest()) != expected:
            yield f"{name} was changed: its sha256 is {sha256}, but {expected} in {MANIFEST}"
    for file in storage.list_files(f"{uri}/predictions", missing_ok=True):
        name = f"predictions/{file.rpartition('/predictions/')[2]}"
        if name not in manifest:
            yield f"{name} is not listed in {MANIFEST}"


def load_readable_tables(uri: str) -> tuple[dict[str, Predictions], list[str]]:
    """Return the readable prediction tables by name, and a fault for each unreadable one."""
    tables = {}
    faults = []
    for file in storage.list_files(f"{uri}/predictions", missing_ok=True):
        name = file.rpartition("/")[2].removesuffix(".parquet")
        try:
            tables[name] = load_predictions(file)
        except s3.StorageError:
            raise
        except UNREADABLE as error:
            faults.append(f"predictions/{name}.parquet cannot be read: {error}")
    return tables, faults


def model_faults(model: BaseModelRecord | None, *, what: str) -> Iterator[str]:
    """Compare the files of a pretrained model with their hashes at the registration of the test
    protocol."""
    if model is None:
        return
    uri = model.uri
    files = sha256_files(uri) if storage.exists(uri) else {}
    yield from differences(model.files, files, at=f"the {what} {uri}", other="in storage it is")


def evaluated_faults(evidence: Evidence) -> Iterator[str]:
    """Check the manifests and files of registered versions, and the remaining files of unregistered
    ones."""
    for role, version in evidence.versions.items():
        if version.digest != UNREGISTERED:
            yield from registered_faults(f"the {role}", version.uri, digest=version.digest)
            continue
        for name, expected in (version.files or {}).items():
            if (sha256 := _sha256(f"{version.uri}/{name}")) not in (None, expected):
                yield (
                    f"the {role}'s file {version.uri}/{name} was changed: its sha256 is {sha256}, "
                    f"not {expected}"
                )


def trained_rows_faults(evidence: Evidence) -> Iterator[str]:
    """Compare the test rows that the champion and the contenders were trained on with their
    versions, if they and the test rows still exist."""
    recipe = evidence.recipe
    try:
        versions = compared_versions(recipe)
        if evidence.champion is not None:
            versions["incumbent"] = read_version(evidence.champion)
        task = recipe_task(recipe)
        test = read_test(recipe.data, task=task)
    except (RegistryError, ContenderError, DataError):
        return
    if rows_sha256(test) == evidence.data.sha256["test"]:
        expected = trained_rows(test, versions)
        yield from differences(
            evidence.trained_rows, expected, at="trained_rows", other="the compared versions give"
        )


def registered_faults(subject: str, uri: str, *, digest: str) -> Iterator[str]:
    """Check the manifest and files of a version and of the parts of a hybrid; `subject` begins each
    sentence.

    The parts of a hybrid with a fault are not checked, because a changed config can name the hybrid
    itself as a part.
    """
    faults = version_faults(PinnedVersion(uri=uri, digest=digest))
    yield from (f"{subject}'s file {fault}" for fault in faults)
    config = None if faults else read_value(f"{uri}/config.json")
    if isinstance(config, dict) and config.get("hybrid"):
        hybrid = Hybrid.model_validate(config["hybrid"])
        for name, part in zip(PARTS, hybrid.parts, strict=True):
            yield from registered_faults(
                f"the {name} part of {subject}", part.uri, digest=part.digest
            )


def code_faults(code: CodeVersion) -> Iterator[str]:
    """Compare the shipped code with its recorded sha256."""
    content = read_content(code.uri)
    if content is None:
        yield f"the code {code.uri} is missing"
        return
    try:
        sha256 = shipped_sha256(content)
    except ValueError as error:
        yield f"the code {code.uri} was changed: {error}"
        return
    if sha256 != code.sha256:
        yield f"the code {code.uri} was changed: its sha256 is {sha256}, not {code.sha256}"


def _sha256(uri: str) -> str | None:
    """Return the hash of an object, which may be larger than memory, or None if it does not
    exist."""
    if storage.exists(uri):
        return storage.sha256_object(uri)
    return None
