"""Folders of weights made loadable, and what a verdict judged made versions in the registry."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from tailorbird import storage
from tailorbird.config.base import digest
from tailorbird.evaluation.baselines.classification import Head
from tailorbird.evaluation.report.evidence_files import as_routing
from tailorbird.models.loading import dtype_name
from tailorbird.pipeline.prepare import Prepared
from tailorbird.registry.versions import (
    Kind,
    ModelVersion,
    Prompting,
    VersionConfig,
    hybrid_config,
    now,
    read_version,
    register,
    write_config,
)
from tailorbird.storage.node_cache import local_copy


@dataclass(frozen=True)
class Model:
    """A model in the running: its kind, the URI of its artifact, and its score on validation."""

    kind: str
    uri: str
    validation: float


def write_rung(prepared: Prepared, kind: Kind, head: Head, *, temperature: float, uri: str) -> None:
    """A pretrained rung as an artifact: the head over the untouched encoder."""
    with tempfile.TemporaryDirectory() as folder:
        save_file({"weight": head.weight, "bias": head.bias}, Path(folder) / "head.safetensors")
        storage.upload_folder(Path(folder), uri)
    make_loadable(prepared, kind, uri=uri, temperature=temperature)


def write_prompt(prepared: Prepared, kind: Kind, prompting: Prompting, *, uri: str) -> None:
    """A pretrained rung of a chat task as an artifact: how the untouched model is asked."""
    config = _config(prepared, kind, temperature=1.0).model_copy(update={"prompting": prompting})
    storage.write_bytes(f"{uri}/config.json", config.model_dump_json(indent=2).encode())


def make_loadable(prepared: Prepared, kind: Kind, *, uri: str, temperature: float | None = None) -> None:
    """Gives a folder of weights its `config.json`; one that says the same already is left as it is, to the byte.

    Without a temperature any that is there is left, and a new one begins at 1: other runs may hold these weights, and a
    version's digest covers its config.
    """
    found = storage.read_json(f"{uri}/config.json") if storage.exists(f"{uri}/config.json") else None
    if found is not None and temperature in (None, found.get("temperature")):
        return
    config = _config(prepared, kind, temperature=1.0 if temperature is None else temperature)
    storage.write_bytes(f"{uri}/config.json", config.model_dump_json(indent=2).encode())


def is_hybrid(model: Model) -> bool:
    """Whether it is a champion of two models."""
    return bool(storage.read_json(f"{model.uri}/config.json").get("hybrid"))


def registered(prepared: Prepared, model: Model) -> ModelVersion:
    """The model as a version; the champion that serves already is one."""
    if "/versions/" in model.uri:
        return read_version(model.uri)
    return register(prepared.recipe.task_uri, local_copy(model.uri))


def registered_hybrid(
    prepared: Prepared, routing: Mapping[str, Any], *, incumbent: ModelVersion, candidate: ModelVersion
) -> ModelVersion:
    """The version that names both models and says who answers what."""
    config = hybrid_config(candidate, incumbent=incumbent, routing=as_routing(routing))
    with tempfile.TemporaryDirectory() as folder:
        write_config(Path(folder), config)
        return register(prepared.recipe.task_uri, Path(folder))


def _config(prepared: Prepared, kind: Kind, *, temperature: float) -> VersionConfig:
    return VersionConfig(
        kind=kind,
        classes=prepared.classes,
        base_model=prepared.base_model,
        max_length=prepared.recipe.data.max_length,
        dtype=dtype_name(),
        temperature=temperature,
        code=prepared.code.uri,
        recipe_hash=digest(prepared.recipe),
        created_at=now(),
        prompting=prepared.prompting,
    )
