"""Model versions on S3: written once with the manifest last, and one champion changed by conditional write."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tailorbird.registry.routing import Routing
from tailorbird.storage import (
    exists,
    list_files,
    read_bytes,
    sha256_file,
    sha256_object,
    upload_file,
    upload_folder,
    write_bytes,
)
from tailorbird.storage.s3 import StorageError

Kind = Literal["zero_shot", "few_shot", "centroid", "probe", "lora", "full", "hybrid"]
UNTOUCHED = ("zero_shot", "few_shot", "centroid", "probe")
"""Kinds whose base model is as it came."""
Engine = Literal["torch", "openvino", "onnxruntime-int8"]
"""What runs a classifier's encoder: torch from safetensors, the others on CPU from what `tailorbird.models.runtimes` exported."""
CHAT_WEIGHTS = {"lora": "adapter/adapter_model.safetensors", "full": "model.safetensors"}
CLASSIFIER_WEIGHTS = {"lora": "adapter/adapter_model.safetensors", "full": "encoder.safetensors"}
"""What a version of a kind has its weights in, beside a classifier's head; other kinds leave the base as it is, and an
engine has files of its own."""


class RegistryError(ValueError):
    """A version or champion that is not there, or not whole."""


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Part(Frozen):
    """One of the two versions that a hybrid names."""

    uri: str
    digest: str


class Hybrid(Frozen):
    """Two registered versions, and who of them answers."""

    routing: Routing
    incumbent: Part
    candidate: Part


class Prompting(Frozen):
    """How a chat version is asked, and for how long it answers: as it was evaluated, and is served."""

    system: str | None
    """System message of conversations that have none; None leaves the model's own."""
    shots: tuple[tuple[str, str], ...] = ()
    """Turns, role and content, before every conversation's own: the examples of the kind `few_shot`."""
    max_new_tokens: int


class VersionConfig(Frozen):
    """What a version needs besides its weights; `config.json` in its folder.

    `dtype` is the one it was evaluated in, and is served in; `base_model` and `code` are S3 URIs. A hybrid's own
    `base_model`, `max_length`, `dtype` and `temperature` are not looked at: its parts have theirs.
    """

    kind: Kind
    classes: tuple[str, ...]
    base_model: str
    max_length: int
    dtype: Literal["float32", "bfloat16"]
    code: str
    recipe_hash: str
    created_at: str
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """What its logits are divided by before the softmax."""
    hybrid: Hybrid | None = None
    """Of the kind `hybrid` alone."""
    prompting: Prompting | None = None
    """Of a chat version alone; it has no classes."""
    engine: Engine = "torch"
    exported_from: Part | None = None
    """The version with the same weights that a verdict was about; None of that version itself."""

    @property
    def task(self) -> Literal["classification", "chat"]:
        """What the version answers with: a class, or text."""
        return "classification" if self.prompting is None else "chat"

    @model_validator(mode="after")
    def _parts_of_hybrids(self) -> Self:
        if (self.kind == "hybrid") != (self.hybrid is not None):
            raise ValueError("the kind `hybrid`, and no other, has `hybrid`: its routing and two parts")
        return self

    @model_validator(mode="after")
    def _exported_are_single_classifiers(self) -> Self:
        if self.exported_from is None and self.engine != "torch":
            raise ValueError(f"a version for the engine {self.engine} names in `exported_from` what it was made of")
        if self.exported_from is not None and (self.hybrid or self.task == "chat"):
            raise ValueError("only a single classifier is exported for another engine, no hybrid and no chat model")
        return self


class ModelVersion(VersionConfig):
    """A registered version; `digest` is the sha256 of its manifest and so covers every file."""

    name: str
    version: str
    uri: str
    digest: str


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_config(folder: Path, config: VersionConfig) -> None:
    """Puts `config.json` beside the weights in a local folder."""
    (folder / "config.json").write_text(config.model_dump_json(indent=2), encoding="utf-8")


def read_artifact_config(uri: str) -> VersionConfig:
    """Return the config of an artifact or version at a URI."""
    return VersionConfig.model_validate_json(read_bytes(f"{uri}/config.json"))


def write_artifact_config(uri: str, config: VersionConfig) -> None:
    """Write `config.json` next to the weights at a URI, which makes them loadable."""
    write_bytes(f"{uri}/config.json", config.model_dump_json(indent=2).encode())


def hybrid_config(candidate: ModelVersion, *, incumbent: ModelVersion, routing: Routing) -> VersionConfig:
    """The `config.json` of a hybrid of two registered versions; the same parts and routing give the same version.

    What answers may be a class of either; whatever else one version has, and a hybrid needs, is the candidate's.
    """
    return VersionConfig(
        kind="hybrid",
        classes=tuple(dict.fromkeys(candidate.classes + incumbent.classes)),
        base_model=candidate.base_model,
        max_length=candidate.max_length,
        dtype=candidate.dtype,
        code=candidate.code,
        recipe_hash=candidate.recipe_hash,
        created_at=max(candidate.created_at, incumbent.created_at),
        hybrid=Hybrid(
            routing=routing,
            incumbent=Part(uri=incumbent.uri, digest=incumbent.digest),
            candidate=Part(uri=candidate.uri, digest=candidate.digest),
        ),
    )


def register(task_uri: str, folder: Path) -> ModelVersion:
    """Uploads a version's folder; the manifest, written last, makes it whole. The same files give the same version, and
    what of it was lost or changed on S3 is written again.

    `task_uri` is `<registry>/<name>`. Raises RegistryError for a folder without config, or without weights unless it is a
    hybrid's, whose parts must be there as it names them.
    """
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    if "config.json" not in files:
        raise RegistryError(f"{folder} is no model version: it lacks config.json")
    config = VersionConfig.model_validate_json(files["config.json"].read_bytes())
    if config.hybrid is not None:
        read_parts(config.hybrid)
    else:
        needed = [CHAT_WEIGHTS.get(config.kind)]
        if config.task == "classification":
            needed = ["head.safetensors", CLASSIFIER_WEIGHTS.get(config.kind) if config.engine == "torch" else None]
        missing = [name for name in needed if name is not None and name not in files]
        if missing:
            raise RegistryError(f"{folder} is no model version: it lacks {missing[0]}")
    manifest = json.dumps(
        {name: {"sha256": sha256_file(path), "size_bytes": path.stat().st_size} for name, path in files.items()},
        indent=1,
        sort_keys=True,
    ).encode()
    digest = hashlib.sha256(manifest).hexdigest()
    uri = f"{task_uri}/versions/{_named(config)}-{digest[:12]}"
    if exists(f"{uri}/manifest.json"):
        for name, path in files.items():
            if not (exists(f"{uri}/{name}") and sha256_object(f"{uri}/{name}") == sha256_file(path)):
                upload_file(path, f"{uri}/{name}")
    else:
        upload_folder(folder, uri)
        write_bytes(f"{uri}/manifest.json", manifest)
    version = read_version(uri)
    if version.digest != digest:
        raise RegistryError(
            f"{uri} was changed: its manifest has the digest {version.digest}, not {digest}; restore it"
        )
    return version


def _named(config: VersionConfig) -> str:
    """How a version's name begins: by its kind, and what it was exported for, if it was."""
    kind = config.kind.replace("_", "-")
    if config.exported_from is None:
        return kind
    return f"{kind}-torch-{config.dtype}" if config.engine == "torch" else f"{kind}-{config.engine}"


def read_version(uri: str) -> ModelVersion:
    """The version at a URI; raises RegistryError where there is none or its upload did not finish."""
    try:
        manifest = read_bytes(f"{uri}/manifest.json")
        config = json.loads(read_bytes(f"{uri}/config.json"))
    except StorageError as error:
        raise RegistryError(f"no whole model version at {uri}: {error}; `tailorbird models` lists them") from None
    task_uri, _, version = uri.partition("/versions/")
    name = task_uri.rsplit("/", 1)[-1]
    digest = hashlib.sha256(manifest).hexdigest()
    return ModelVersion(**config, name=name, version=version, uri=uri, digest=digest)


def read_parts(hybrid: Hybrid) -> tuple[ModelVersion, ModelVersion]:
    """A hybrid's incumbent and candidate; raises RegistryError where one is not there, or not the one it names."""
    incumbent, candidate = read_version(hybrid.incumbent.uri), read_version(hybrid.candidate.uri)
    for part, named in ((incumbent, hybrid.incumbent), (candidate, hybrid.candidate)):
        if part.digest != named.digest:
            raise RegistryError(f"{part.uri} has digest {part.digest}, but the hybrid names {named.digest}; run again")
        if part.hybrid is not None:
            raise RegistryError(f"{part.uri} is a hybrid itself; a hybrid's parts are single models")
    return incumbent, candidate


def verify_files(uri: str, folder: Path) -> None:
    """Raises RegistryError where a file of the downloaded version is not the one its manifest names."""
    name = _changed(folder)
    if name is not None:
        raise RegistryError(f"{uri}/{name} is not what the version's manifest names; restore it from a copy")


def is_whole(folder: Path) -> bool:
    """Whether the files of a downloaded version are those that its manifest names."""
    return _changed(folder) is None


def _changed(folder: Path) -> str | None:
    """The first file that is missing or another than the manifest names."""
    for name, told in json.loads((folder / "manifest.json").read_bytes()).items():
        if not (folder / name).is_file() or sha256_file(folder / name) != told["sha256"]:
            return str(name)
    return None


def weights_digest(version: ModelVersion) -> str:
    """Digest of the version that a verdict was about: of one exported for another engine, that of what it was made."""
    return version.exported_from.digest if version.exported_from else version.digest


def list_versions(task_uri: str) -> list[ModelVersion]:
    """Every whole version, oldest first."""
    return sorted((read_version(uri) for uri in version_uris(task_uri)), key=lambda version: version.created_at)


def version_uris(task_uri: str) -> list[str]:
    """Where whole versions lie."""
    if not exists(f"{task_uri}/versions"):
        return []
    found = list_files(f"{task_uri}/versions")
    return [uri.removesuffix("/manifest.json") for uri in found if uri.endswith("/manifest.json")]


def shares_base(config: VersionConfig) -> bool:
    """Whether a classifier answers over the pretrained weights as they came: it is a head, or an adapter with one, that
    torch runs."""
    return config.task == "classification" and config.engine == "torch" and config.kind in (*UNTOUCHED, "lora")


def over_same_base(version: ModelVersion, *, task_uri: str, most: int) -> list[ModelVersion]:
    """The newest other versions, `most` of them, that are a head or an adapter over the version's base model, made for
    the same code, so that one process can hold them all with one copy of it."""

    def place(one: ModelVersion) -> tuple[str, str, str]:
        return one.base_model, one.dtype, one.code

    if not most:
        return []
    others = []
    for uri in version_uris(task_uri):
        try:
            other = read_version(uri)
        except ValueError:  # damaged, or of newer code: it is no reason not to serve the champion
            continue
        if other.digest != version.digest and shares_base(other) and place(other) == place(version):
            others.append(other)
    return sorted(others, key=lambda other: other.created_at)[-most:]
