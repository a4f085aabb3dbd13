"""Model versions on S3: immutable folders whose manifest is written last."""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tailorbird import storage
from tailorbird.config.formats.response_format import StructuredFormat
from tailorbird.config.prompt import TEXT
from tailorbird.registry.endpoint import Endpoint
from tailorbird.registry.hybrid_routing import Routing
from tailorbird.registry.kinds import KINDS, Kind, KindSpec, spec_of
from tailorbird.registry.pooling import MEAN, Pooling
from tailorbird.storage import MANIFEST, StorageError
from tailorbird.storage.paths import TaskPaths, is_version_uri, parse_version_uri
from tailorbird.storage.stored_model import StoredModel

INDEX_FILES = ("retrieval.safetensors", "retrieval_rows.parquet")
BAG_FILES = ("bag_of_words.json", "bag_of_words.safetensors")
CONFIG = "config.json"
TRAINING_ROWS = "training_rows.parquet"  # fingerprints of the rows that a version learned from
Dtype = Literal["float32", "bfloat16"]
"""Precision of a model in evaluation and serving: that of the worker that trained and scored it."""

NUM_DIGITS = 12
"""Digits of the digest of its manifest at the end of a version's name."""


class RegistryError(ValueError):
    """A version or champion is missing, incomplete or changed."""


class Frozen(BaseModel):
    """An immutable part of a stored model."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(Frozen):
    """A file in the manifest of a version."""

    sha256: str
    size_bytes: int


_MANIFEST_TYPE = TypeAdapter(dict[str, FileEntry])


class PinnedVersion(Frozen):
    """The URI of a version and the digest of its content."""

    uri: str
    digest: str


class Hybrid(Frozen):
    """Two registered versions and their routing rule."""

    routing: Routing
    first: PinnedVersion
    second: PinnedVersion

    @property
    def parts(self) -> tuple[PinnedVersion, PinnedVersion]:
        """Both parts, the first one first."""
        return self.first, self.second


class PinnedEncoder(Frozen):
    """A staged encoder for retrieval, and the digest of its files."""

    uri: str
    sha256: str
    dtype: Dtype  # in evaluation and serving


class Retrieval(Frozen):
    """The retrieval settings of a chat version, in evaluation and serving."""

    num_examples: int = Field(ge=1)
    """Number of nearest training rows that are examples before each conversation. The kind
    `nearest` uses one row."""
    max_prompt_tokens: int = Field(ge=1)
    """Maximum tokens of a prompt with examples. Examples that do not fit are omitted, the least
    similar first."""
    index_sha256: str
    encoder: PinnedEncoder | None = None
    """Encoder whose embeddings are compared. Without one, only n-grams are compared."""
    embedding_weight: float = Field(default=0.0, ge=0, le=1)
    """Weight of the embeddings in the similarity. It is positive if and only if there is an
    encoder."""


class Prompting(Frozen):
    """The prompt and the maximum answer length of a version of a language model, in evaluation and
    serving."""

    system: str | None
    """System message for conversations without a system message; None keeps the model's default."""
    template: str = TEXT
    """Message of the user for each text, also in examples (endpoints)."""
    shots: tuple[tuple[str, str], ...] = ()
    """Turns (role, content) before each conversation: the examples of the kind `few_shot`."""
    max_new_tokens: int
    response_format: StructuredFormat | None = None  # of the answers; None for any text
    retrieval: Retrieval | None = None  # (versions with an index of training rows)

    def within(self, max_prompt_tokens: int) -> Self:
        """Return a copy whose prompts with retrieved examples have at most this many tokens."""
        if self.retrieval is None or max_prompt_tokens >= self.retrieval.max_prompt_tokens:
            return self
        retrieval = self.retrieval.model_copy(
            update={"max_prompt_tokens": max(1, max_prompt_tokens)}
        )
        return self.model_copy(update={"retrieval": retrieval})


class VersionConfig(StoredModel):
    """The content of `config.json` in the folder of a version.

    A hybrid ignores `base_model`, `max_length`, `dtype`, `temperature`, `offsets`, `prompting` and
    `pooling`. Its parts have their own.
    """

    kind: Kind
    classes: tuple[str, ...]
    integer_labels: bool = False
    """The label column holds integers, so answers give labels as integers."""
    base_model: str  # S3 URI
    max_length: int
    dtype: Dtype  # in evaluation and serving
    pooling: Pooling = MEAN
    """(classification only) Pooling of the encoder, with the prompt before each text."""
    code: str  # S3 URI
    recipe_hash: str
    created_at: str
    temperature: float = Field(default=1.0, gt=0)  # divides the logits before the softmax
    offsets: tuple[float, ...] = ()
    """(classifiers only) Added to the logits of the classes before the highest one decides; empty
    for none."""
    hybrid: Hybrid | None = None
    prompting: Prompting | None = None  # (chat, and endpoints for both tasks)
    endpoint: Endpoint | None = None  # (kinds that call one)

    @property
    def task(self) -> Literal["classification", "chat"]:
        if self.prompting is None or self.classes:
            return "classification"
        return "chat"

    @property
    def spec(self) -> KindSpec:
        """The properties of the version's kind."""
        return KINDS[self.kind]

    @property
    def weights_file(self) -> str | None:
        """The file of an adapter or of changed weights; None if the version has neither."""
        if self.spec.base == "adapter":
            return "adapter/adapter_model.safetensors"
        if self.spec.base != "changed":
            return None
        if self.task == "chat":
            return "model.safetensors"
        return "encoder.safetensors"

    def typed_label(self, label: str) -> str | int:
        """Return a label with the type of the label column. Text of an endpoint that is no class
        stays a string."""
        if self.integer_labels and label in self.classes:
            return int(label)
        return label

    @property
    def nonzero_offsets(self) -> dict[str, float]:
        """The offsets that are not 0, by class."""
        offsets = zip(self.classes, self.offsets, strict=bool(self.offsets))
        return {label: offset for label, offset in offsets if offset}

    @property
    def has_index(self) -> bool:
        """True if the version's folder contains an index of training rows."""
        return self.prompting is not None and self.prompting.retrieval is not None

    @property
    def contains_training_text(self) -> bool:
        """True if the version stores training rows as text: as an index, or as examples in the
        prompt."""
        return self.has_index or (self.prompting is not None and bool(self.prompting.shots))


class ModelVersion(VersionConfig):
    """A registered model version. `digest` is the sha256 of its manifest, which has the sha256 of
    every file."""

    name: str
    version: str
    uri: str
    digest: str

    @property
    def pinned(self) -> PinnedVersion:
        return PinnedVersion(uri=self.uri, digest=self.digest)


def now() -> str:
    """Return the current time in UTC as ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_config(folder: Path, config: VersionConfig) -> None:
    """Write `config.json` to the local folder of a version."""
    (folder / CONFIG).write_text(config.model_dump_json(indent=2), encoding="utf-8")


def read_artifact_config(uri: str) -> VersionConfig:
    """Return the config of an artifact or version at a URI. Raises RegistryError if the config of a
    version changed."""
    if is_version_uri(uri):
        content = _read_version_files(uri)[1]
    else:
        content = storage.read_bytes(f"{uri}/{CONFIG}")
    return VersionConfig.model_validate_json(content)


def write_artifact_config(uri: str, config: VersionConfig) -> None:
    """Write `config.json` next to the weights at a URI, which makes them loadable."""
    storage.write_bytes(f"{uri}/{CONFIG}", config.model_dump_json(indent=2).encode())


def register(task_uri: str, folder: Path) -> ModelVersion:
    """Upload the folder of a version and return the version.

    The manifest is written last, so its presence means that the version is complete. Equal files
    give the same version, and restore files that are missing or changed on S3. `task_uri` is
    `<registry>/<name>`. Raises RegistryError if config or weights are missing. A hybrid needs no
    weights, but its parts must be registered with the same digests.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = path
    if CONFIG not in files:
        raise RegistryError(f"{folder} is not a model version: {CONFIG} is missing")
    config = VersionConfig.model_validate_json(files[CONFIG].read_bytes())
    _require_weights(config, folder=folder, files=files)
    entries = {}
    for name, path in files.items():
        entries[name] = {"sha256": storage.sha256_file(path), "size_bytes": path.stat().st_size}
    manifest = json.dumps(entries, indent=1, sort_keys=True).encode()
    digest = hashlib.sha256(manifest).hexdigest()
    kind = config.kind.replace("_", "-")
    uri = TaskPaths(task_uri).version(f"{kind}-{digest[:NUM_DIGITS]}")
    storage.upload_folder(folder, uri)
    storage.write_bytes(f"{uri}/{MANIFEST}", manifest)
    return read_version(uri)


def _require_weights(config: VersionConfig, *, folder: Path, files: Mapping[str, Path]) -> None:
    if config.hybrid is not None:
        read_parts(config.hybrid)
        return
    required = []
    if config.weights_file:
        required.append(config.weights_file)
    if config.spec.has_bag:
        required += BAG_FILES
    if config.has_index:
        required += INDEX_FILES
    if config.task == "classification" and config.spec.uses_base:
        required.append("head.safetensors")
    missing = [name for name in required if name not in files]
    if missing:
        raise RegistryError(f"{folder} is not a model version: {missing[0]} is missing")


def calls_endpoint(version: VersionConfig) -> bool:
    """Return True for a version of an endpoint, and for a hybrid with such a part."""
    parts = version.hybrid.parts if version.hybrid else ()
    return version.endpoint is not None or any(spec_at(part.uri).calls_endpoint for part in parts)


def spec_at(uri: str) -> KindSpec:
    """Return the properties of the kind of the version at a URI, from its name, without a request
    to S3."""
    name = parse_version_uri(uri)[1].replace("-", "_")
    return spec_of(
        max((kind for kind in KINDS if name.startswith(f"{kind}_")), key=len, default="")
    )


def read_version(uri: str) -> ModelVersion:
    """Return the version at a URI.

    Raises RegistryError if it does not exist, its upload is incomplete, its manifest does not match
    its name, or its config differs from its manifest. The other files are checked by
    `version_files.version_faults`.
    """
    manifest, config = _read_version_files(uri)
    task, version = parse_version_uri(uri)
    name = task.task_uri.rpartition("/")[2]
    digest = hashlib.sha256(manifest).hexdigest()
    return ModelVersion(**json.loads(config), name=name, version=version, uri=uri, digest=digest)


def _read_version_files(uri: str) -> tuple[bytes, bytes]:
    """Return the content of the manifest and of the config of a version.

    Raises RegistryError unless the name of the version, its manifest and its config match.
    """
    try:
        manifest = storage.read_bytes(f"{uri}/{MANIFEST}")
        config = storage.read_bytes(f"{uri}/{CONFIG}")
    except StorageError as error:
        raise RegistryError(
            f"no complete model version at {uri}: {error}; run `tailorbird models` to list the "
            "versions"
        ) from None
    entries = parse_manifest(manifest, uri=uri)
    digest = hashlib.sha256(manifest).hexdigest()
    named = parse_version_uri(uri)[1].rpartition("-")[2]
    if named != digest[:NUM_DIGITS]:
        raise RegistryError(
            f"{uri} was changed: its manifest has the digest {digest}, but its name has {named}; "
            "restore it from a copy"
        )
    expected = entries.get(CONFIG)
    actual = hashlib.sha256(config).hexdigest()
    if expected is None or actual != expected.sha256:
        stated = expected.sha256 if expected else "none"
        raise RegistryError(
            f"{uri}/{CONFIG} was changed: its sha256 is {actual}, but the manifest has {stated}; "
            "restore it from a copy"
        )
    return manifest, config


def parse_manifest(content: bytes, *, uri: str) -> dict[str, FileEntry]:
    """Return the files of a manifest by name; raise RegistryError if it is not the manifest of a
    version."""
    try:
        return _MANIFEST_TYPE.validate_json(content)
    except ValidationError:
        raise RegistryError(
            f"{uri}/{MANIFEST} is not the manifest of a version; restore it from a copy"
        ) from None


def read_pinned(pinned: PinnedVersion) -> ModelVersion:
    """Return the pinned version; raise RegistryError if it is missing or has another digest."""
    version = read_version(pinned.uri)
    if version.digest != pinned.digest:
        raise RegistryError(
            f"{pinned.uri} was changed: its manifest has the digest {version.digest}, but "
            f"{pinned.digest} is required; run `tailorbird verify {pinned.uri}` to list the "
            "changed files, and restore them from a copy"
        )
    return version


def read_parts(hybrid: Hybrid) -> tuple[ModelVersion, ModelVersion]:
    """Return a hybrid's first and second part; raise RegistryError if one is missing or has another
    digest."""
    return read_pinned(hybrid.first), read_pinned(hybrid.second)


def list_versions(task_uri: str) -> tuple[list[ModelVersion], dict[str, str]]:
    """Return all complete versions, oldest first, and the faults of damaged ones by URI."""
    versions: list[ModelVersion] = []
    damaged: dict[str, str] = {}
    for uri in version_uris(task_uri):
        try:
            versions.append(read_version(uri))
        except RegistryError as error:
            damaged[uri] = str(error)
    return sorted(versions, key=lambda each: each.created_at), damaged


def version_uris(task_uri: str) -> list[str]:
    """Return the URIs of all complete versions."""
    files = storage.list_files(TaskPaths(task_uri).versions, missing_ok=True)
    return [uri.removesuffix(f"/{MANIFEST}") for uri in files if uri.endswith(f"/{MANIFEST}")]
