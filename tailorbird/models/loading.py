"""From files to a model in memory: the pretrained encoder, and a registered version on top of it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerBase

from tailorbird.data.tokenize import load_tokenizer
from tailorbird.models.causal_lm import ChatModel
from tailorbird.models.classifier import Classifier
from tailorbird.models.errors import ModelError
from tailorbird.models.lora import merge_adapter
from tailorbird.models.runtimes import load_exported
from tailorbird.registry.routing import Routing
from tailorbird.registry.versions import (
    ModelVersion,
    Prompting,
    VersionConfig,
    is_whole,
    read_parts,
    read_version,
    verify_files,
)
from tailorbird.storage import MANIFEST, read_json
from tailorbird.storage.node_cache import local_copy, repaired_copy

ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout")
"""What transformers' configurations call it: BERT and its kin, and most others."""


Version = TypeVar("Version", bound=VersionConfig)


@dataclass(frozen=True)
class LoadedModel(Generic[Version]):
    """A version ready to answer: same tokenizer, length and dtype as when it was evaluated."""

    model: Classifier
    tokenizer: PreTrainedTokenizerBase
    classes: tuple[str, ...]
    max_length: int
    version: Version


@dataclass(frozen=True)
class LoadedChat(Generic[Version]):
    """A chat version ready to answer."""

    model: ChatModel
    tokenizer: PreTrainedTokenizerBase
    prompting: Prompting
    version: Version


@dataclass(frozen=True)
class LoadedHybrid:
    """Both parts of a hybrid, ready to answer, and the rule that says who does."""

    incumbent: LoadedModel[ModelVersion]
    candidate: LoadedModel[ModelVersion]
    routing: Routing
    classes: tuple[str, ...]
    version: ModelVersion


def inference_dtype() -> torch.dtype:
    """bfloat16 where the machine computes in it, else float32."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def dtype_name() -> Literal["float32", "bfloat16"]:
    """`inference_dtype` by name, as a version records it."""
    return "bfloat16" if inference_dtype() == torch.bfloat16 else "float32"


def load_encoder(
    folder: Path, *, dtype: torch.dtype = torch.float32, attention_dropout: float | None = None
) -> nn.Module:
    """The pretrained encoder from a local folder with safetensors weights; nothing is unpickled.

    `attention_dropout` is for training; None leaves what the model was pretrained with. Raises ModelError.
    """
    return without_pooler(_pretrained(AutoModel, folder, dtype=dtype, attention_dropout=attention_dropout))


def load_causal(
    folder: Path, *, dtype: torch.dtype = torch.float32, attention_dropout: float | None = None
) -> nn.Module:
    """The pretrained causal language model from a local folder, as `load_encoder`."""
    return _pretrained(AutoModelForCausalLM, folder, dtype=dtype, attention_dropout=attention_dropout)


def _pretrained(kind: Any, folder: Path, *, dtype: torch.dtype, attention_dropout: float | None) -> nn.Module:
    _refuse_code(folder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if attention_dropout is not None:
            _set_attention_dropout(config, attention_dropout)
        model: nn.Module = kind.from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False
        )
    except (ImportError, OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(f"base model {folder} cannot be loaded: {error}") from None
    return model


def _refuse_code(folder: Path) -> None:
    """Raises ModelError for what transformers would follow all the same: a configuration that names a repository of the
    Hub for its attention or experts, and an index that names pickles, or files elsewhere."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        index = folder / "model.safetensors.index.json"
        files = json.loads(index.read_bytes())["weight_map"].values() if index.is_file() else ()
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"base model {folder} cannot be loaded: {error}") from None
    for name in _implementations(config):
        if "/" in name:
            raise ModelError(f"{folder}/config.json asks for code from elsewhere, {name!r}; no model's code is run")
    for name in files:
        if "/" in name or not name.endswith(".safetensors"):
            raise ModelError(f"{index} names {name!r}, which is no safetensors file beside it; nothing else is read")


def _implementations(config: Any) -> Iterator[str]:
    """What a configuration, or one within it, says under `attn_implementation` and the like: a name, or one a part."""
    for name, value in config.items() if isinstance(config, dict) else ():
        if name.endswith("_implementation"):
            yield from map(str, value.values() if isinstance(value, dict) else [value])
        yield from _implementations(value)


def _set_attention_dropout(config: PretrainedConfig, share: float) -> None:
    names = [name for name in ATTENTION_DROPOUT if hasattr(config, name)]
    if not names:
        raise ModelError(
            f"a {config.model_type} model has no attention dropout to set; leave training.attention_dropout out"
        )
    for name in names:
        setattr(config, name, share)


def without_pooler(encoder: nn.Module) -> nn.Module:
    """BERT's pooler feeds no output we use; without it, it is neither trained nor sharded."""
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # type: ignore[assignment]
    return encoder


def load_weights(folder: Path, *, encoder: nn.Module, kind: str) -> Classifier:
    """Puts a version's own files over the pretrained encoder: head, and adapter or encoder weights by kind.

    Raises ModelError where they lack a weight or were made for another encoder.
    """
    head = load_head(folder)
    try:
        if kind == "lora":
            encoder = merge_adapter(encoder, folder / "adapter")
        elif kind == "full":
            encoder.load_state_dict(_tensors(folder / "encoder.safetensors"))
    except (RuntimeError, SafetensorError) as error:
        first = " ".join(str(error).split("\n\t")[:2])  # torch names every weight
        raise ModelError(f"the weights in {folder} do not fit their base model: {first}") from None
    return Classifier(encoder, head)


def load_head(folder: Path) -> nn.Linear:
    """A version's linear head, [D] to [L]."""
    state = _tensors(folder / "head.safetensors")
    num_classes, num_features = state["weight"].shape
    head = nn.Linear(num_features, num_classes)
    head.load_state_dict(state)
    return head


def load_chat_weights(folder: Path, *, lm: nn.Module, kind: str) -> ChatModel:
    """Puts a chat version's own weights, if it has any, over the pretrained model; ModelError as `load_weights`."""
    try:
        if kind == "lora":
            lm = merge_adapter(lm, folder / "adapter")
        elif kind == "full":
            put_weights(lm, _tensors(folder / "model.safetensors"))
    except (RuntimeError, SafetensorError) as error:
        first = " ".join(str(error).split("\n\t")[:2])
        raise ModelError(f"the weights in {folder} do not fit their base model: {first}") from None
    return ChatModel(lm)


def put_weights(lm: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Loads every parameter of a causal language model; one that is tied to another stands under one name only.

    Raises RuntimeError, as torch does, for a parameter that is missing or foreign.
    """
    known = {name for name, _ in lm.named_parameters()}
    if set(state) != known:
        some = sorted(set(state) ^ known)
        raise RuntimeError(f"{len(some)} weights are missing or foreign, {some[0]} among them")
    lm.load_state_dict(state, strict=False)


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    if not file.is_file():
        raise ModelError(f"{file} is not there; weights are read as safetensors, and in no other format")
    tensors: dict[str, torch.Tensor] = load_file(file)
    return tensors


def load_version(uri: str, *, device: str | None = None) -> LoadedModel[ModelVersion]:
    """Downloads (once a node), checks and loads a version of one model.

    Raises RegistryError if it is not whole or was changed, ModelError for a hybrid: `load_served` takes both.
    """
    return _load(uri, read_version(uri), device=device)


def load_served(uri: str, *, device: str | None = None) -> LoadedModel[ModelVersion] | LoadedHybrid:
    """Loads a version of any kind, a hybrid with its two parts; RegistryError if one is not whole or was changed."""
    version = read_version(uri)
    if version.hybrid is None:
        return load_version(uri, device=device)
    checked_copy(uri)
    incumbent, candidate = (load_version(part.uri, device=device) for part in read_parts(version.hybrid))
    return LoadedHybrid(incumbent, candidate, version.hybrid.routing, version.classes, version)


def load_chat(uri: str, *, device: str | None = None) -> LoadedChat[VersionConfig]:
    """Loads a chat artifact, as `load_artifact`."""
    return _load_chat(uri, VersionConfig.model_validate(read_json(f"{uri}/config.json")), device=device)


def load_chat_version(uri: str, *, device: str | None = None) -> LoadedChat[ModelVersion]:
    """Loads a chat version, as `load_version`."""
    return _load_chat(uri, read_version(uri), device=device)


def load_artifact(uri: str, *, device: str | None = None) -> LoadedModel[VersionConfig]:
    """Loads a folder of weights and `config.json`: a rung, a candidate, or a version, whose files are then checked."""
    return _load(uri, VersionConfig.model_validate(read_json(f"{uri}/config.json")), device=device)


def _load(uri: str, config: Version, *, device: str | None) -> LoadedModel[Version]:
    if config.kind == "hybrid":
        raise ModelError(f"{uri} is a hybrid of two versions, not one model; load its parts, or both by `load_served`")
    folder = checked_copy(uri)
    base = local_copy(config.base_model)
    tokenizer = load_tokenizer(base)
    if config.engine != "torch":
        model: Classifier = load_exported(folder, head=load_head(folder), engine=config.engine, dtype=config.dtype)
        model.eval().requires_grad_(False)
        return LoadedModel(model, tokenizer, config.classes, config.max_length, config)
    model = load_weights(folder, encoder=load_encoder(base), kind=config.kind)
    model.to(device or default_device(), dtype=getattr(torch, config.dtype)).eval().requires_grad_(False)
    model.head.float()  # as the ladder judged it: in bfloat16, close calls would turn
    return LoadedModel(model, tokenizer, config.classes, config.max_length, config)


def _load_chat(uri: str, config: Version, *, device: str | None) -> LoadedChat[Version]:
    if config.prompting is None:
        raise ModelError(f"{uri} is a classifier, no chat model; its recipe's task is classification")
    folder, base = checked_copy(uri), local_copy(config.base_model)
    model = load_chat_weights(folder, lm=load_causal(base), kind=config.kind)
    model.to(device or default_device(), dtype=getattr(torch, config.dtype)).eval().requires_grad_(False)
    return LoadedChat(model, load_tokenizer(base), config.prompting, config)


def checked_copy(uri: str) -> Path:
    """A node's own copy of an artifact's files, those of a version checked; RegistryError where they were changed.

    A copy that is not what it should be is fetched once more: what was wrong on S3 may be restored by now.
    """
    folder = local_copy(uri)
    if (folder / MANIFEST).exists() and not is_whole(folder):
        folder = repaired_copy(uri, is_whole=is_whole)
        verify_files(uri, folder)
    return folder


def default_device() -> str:
    """`cuda` where this process was given a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"
