"""Whether the files of a run are what their manifests name: evidence, predictions, versions, base model and code."""

import hashlib
import json
from collections.abc import Iterator

from pyarrow import ArrowException

from cluster.code_snapshot import CodeVersion, shipped_sha256
from tailorbird import storage
from tailorbird.checks.differences import differences, read_content, read_value
from tailorbird.evaluation.prediction_store import load_predictions
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.report.evidence import UNREGISTERED, BaseModelRecord, Evidence
from tailorbird.evaluation.report.evidence_files import MANIFEST
from tailorbird.registry.versions import Hybrid
from tailorbird.storage import s3
from tailorbird.storage.node_cache import sha256_files

UNREADABLE = (ValueError, KeyError, TypeError, IndexError, AttributeError, OSError, ArrowException)
"""Errors of reading damaged JSON or Parquet; storage that fails raises StorageError, which is not caught."""


def file_faults(uri: str, *, needed: tuple[str, ...], tables: tuple[str, ...]) -> Iterator[str]:
    """Compare files with the evidence manifest: missing, changed, or foreign among the predictions."""
    manifest = read_value(f"{uri}/{MANIFEST}")
    if not isinstance(manifest, dict):
        yield f"{MANIFEST} is missing, or no manifest: the original files are unknown"
        return
    for name in (*needed, *(f"predictions/{table}.parquet" for table in tables)):
        if name not in manifest:
            yield f"{name} is not named in {MANIFEST}"
    for name, expected in manifest.items():
        content = read_content(f"{uri}/{name}")
        if content is None:
            yield f"{name} is missing"
        elif (sha256 := hashlib.sha256(content).hexdigest()) != expected:
            yield f"{name} was changed: its sha256 is {sha256}, {MANIFEST} says {expected}"
    for file in storage.list_files(f"{uri}/predictions", missing_ok=True):
        name = f"predictions/{file.rpartition('/predictions/')[2]}"
        if name not in manifest:
            yield f"{name} is foreign: {MANIFEST} does not name it"


def load_readable_tables(uri: str) -> tuple[dict[str, Predictions], list[str]]:
    """Return the tables of predictions that can be read, by name, and a fault for each that cannot."""
    tables, faults = {}, []
    for file in storage.list_files(f"{uri}/predictions", missing_ok=True):
        name = file.rpartition("/")[2].removesuffix(".parquet")
        try:
            tables[name] = load_predictions(file)
        except s3.StorageError:
            raise
        except UNREADABLE as error:
            faults.append(f"predictions/{name}.parquet cannot be read: {error}")
    return tables, faults


def base_model_faults(base_model: BaseModelRecord) -> Iterator[str]:
    """Compare the files of the pretrained model with what they were when the protocol was registered."""
    uri = base_model.uri
    files = sha256_files(uri) if storage.exists(uri) else {}
    yield from differences(base_model.files, files, at=f"the base model {uri}", other="in the store")


def version_faults(evidence: Evidence) -> Iterator[str]:
    """Check manifest and files of the registered versions, and what is left of an unregistered one's files."""
    for role, version in evidence.versions.items():
        if version.digest != UNREGISTERED:
            yield from registered_faults(f"the {role}", version.uri, digest=version.digest)
            continue
        for name, expected in (version.files or {}).items():
            if (sha256 := _sha256(f"{version.uri}/{name}")) not in (None, expected):
                yield f"the {role}'s file {version.uri}/{name} was changed: its sha256 is {sha256}, not {expected}"


def registered_faults(subject: str, uri: str, *, digest: str) -> Iterator[str]:
    """Check a version's manifest and files, and those of both parts of a hybrid; `subject` begins the sentences."""
    content = read_content(f"{uri}/manifest.json")
    if content is None:
        yield f"{subject} {uri} is missing: it has no manifest.json"
        return
    if (sha256 := hashlib.sha256(content).hexdigest()) != digest:
        yield f"{subject} {uri} is not what was judged: its manifest.json has the digest {sha256}, not {digest}"
        return
    for name, expected in json.loads(content).items():
        file_sha256 = _sha256(f"{uri}/{name}")
        if file_sha256 is None:
            yield f"{subject}'s file {uri}/{name} is missing"
        elif file_sha256 != expected["sha256"]:
            yield f"{subject}'s file {uri}/{name} was changed: its sha256 is {file_sha256}, not {expected['sha256']}"
    config = read_value(f"{uri}/config.json")
    if isinstance(config, dict) and config.get("hybrid"):
        hybrid = Hybrid.model_validate(config["hybrid"])
        for role, part in (("incumbent", hybrid.incumbent), ("candidate", hybrid.candidate)):
            yield from registered_faults(f"the {role} in {subject}", part.uri, digest=part.digest)


def code_faults(code: CodeVersion) -> Iterator[str]:
    """Compare the shipped code with the sha256 that names it."""
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
        yield f"the code {code.uri} was changed: its files give the sha256 {sha256}, not {code.sha256}"


def _sha256(uri: str) -> str | None:
    """Return the hash of an object that may be larger than memory; None if there is no such object."""
    return storage.sha256_object(uri) if storage.exists(uri) else None
