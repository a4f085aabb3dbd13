"""Load pretrained models from safetensors files; the device and the dtype of this process."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
)

from tailorbird.models.errors import ModelError
from tailorbird.registry.versions import Dtype

ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout")
"""Names of the config field in transformers: in BERT and similar models, and in most others."""

Module = TypeVar("Module", bound=nn.Module)


def default_device() -> str:
    """Return `cuda` if this process has a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def inference_dtype() -> torch.dtype:
    """Return bfloat16 if the hardware supports it, else float32."""
    is_supported = cpu_supports_bfloat16()
    if torch.cuda.is_available():
        is_supported = torch.cuda.is_bf16_supported()
    return torch.bfloat16 if is_supported else torch.float32


def cpu_supports_bfloat16() -> bool:
    """Return True if this machine's CPU supports bfloat16 (AVX-512 BF16)."""
    return bool(torch.cpu._is_avx512_bf16_supported())


def dtype_name() -> Dtype:
    """Return the name of `inference_dtype`, as stored in a version."""
    return "bfloat16" if inference_dtype() == torch.bfloat16 else "float32"


def cast_parameters(model: Module, dtype: torch.dtype) -> Module:
    """Cast a model's parameters in place, keep the dtype of its buffers, and return the model.

    `Module.to` also casts buffers. In bf16, the frequencies of rotary embeddings have relative
    errors of up to 2^-9, which moves the 1,000th token by up to two positions.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def load_encoder(
    folder: Path,
    *,
    dtype: torch.dtype | None = torch.float32,
    attention_dropout: float | None = None,
    with_pooler: bool = False,
) -> nn.Module:
    """Load a pretrained encoder from a local folder with safetensors weights, without unpickling
    anything.

    On CPU, weights that are stored in `dtype` are mapped from the files: they take no memory of the
    process, and all processes of a node share them. None keeps the stored dtype.
    `attention_dropout` is for training; None keeps the model's value. `with_pooler` keeps BERT's
    pooler. Raises ModelError.
    """
    from tailorbird.models.attention.padded_attention import use_padded_attention  # slow to import

    loaded = _pretrained(AutoModel, folder, dtype=dtype, attention_dropout=attention_dropout)
    # A decoder would keep the keys and values of all layers until the end of a pass.
    loaded.config.use_cache = False
    use_padded_attention(loaded)
    encoder: nn.Module = loaded if with_pooler else without_pooler(loaded)
    return encoder


def load_causal(
    folder: Path,
    *,
    dtype: torch.dtype | None = torch.float32,
    attention_dropout: float | None = None,
) -> nn.Module:
    """Load a pretrained causal language model from a local folder; see `load_encoder`."""
    lm: nn.Module = _pretrained(
        AutoModelForCausalLM, folder, dtype=dtype, attention_dropout=attention_dropout
    )
    return lm


def load_sequence_classifier(folder: Path) -> Any:
    """Load a sequence classifier from a local folder in fp32; see `load_encoder`.

    Raises ModelError also if a weight is missing, which transformers would initialize at random.
    """
    model, info = _pretrained(
        AutoModelForSequenceClassification,
        folder,
        dtype=torch.float32,
        attention_dropout=None,
        output_loading_info=True,
    )
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{folder} has no weight {missing[0]}, so it is no sequence classifier")
    return model.eval()


def _pretrained(
    kind: Any,
    folder: Path,
    *,
    dtype: torch.dtype | None,
    attention_dropout: float | None,
    **options: Any,
) -> Any:
    _reject_remote_code(folder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if attention_dropout is not None:
            _set_attention_dropout(config, attention_dropout)
        return kind.from_pretrained(
            folder,
            config=config,
            dtype=dtype or "auto",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            **options,
        )
    except (ImportError, OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(f"base model {folder} cannot be loaded: {error}") from None


def _reject_remote_code(folder: Path) -> None:
    """Raise ModelError if a config or index refers to code or to files outside the folder.

    Even without trust_remote_code, transformers follows a config that names a Hub repository for
    its attention or experts, and an index that names pickles or files elsewhere.
    """
    try:
        config = json.loads((folder / "config.json").read_bytes())
        index = folder / "model.safetensors.index.json"
        files = ()
        if index.is_file():
            files = json.loads(index.read_bytes())["weight_map"].values()
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"base model {folder} cannot be loaded: {error}") from None
    for name in _implementations(config):
        if "/" in name:
            raise ModelError(
                f"{folder}/config.json refers to external code, {name!r}; code of models is never "
                "run"
            )
    for name in files:
        if "/" in name or not name.endswith(".safetensors"):
            raise ModelError(
                f"{index} refers to {name!r}; only safetensors files in the same folder are read"
            )


def _implementations(config: Any) -> Iterator[str]:
    """Yield the names in `attn_implementation` and similar keys, at any depth of a config."""
    if not isinstance(config, dict):
        return
    for name, value in config.items():
        if name.endswith("_implementation"):
            yield from map(str, value.values() if isinstance(value, dict) else [value])
        yield from _implementations(value)


def _set_attention_dropout(config: PretrainedConfig, share: float) -> None:
    names = [name for name in ATTENTION_DROPOUT if hasattr(config, name)]
    if not names:
        kind = config.model_type
        raise ModelError(
            f"a model of type {kind} has no attention dropout; remove training.attention_dropout"
        )
    for name in names:
        setattr(config, name, share)


def without_pooler(encoder: nn.Module) -> nn.Module:
    """Remove BERT's pooler, which is unused but would be trained and sharded."""
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # type: ignore[assignment]
    return encoder


def share_weights(model: nn.Module) -> Any:
    """Return a copy of a model whose parameters use the same memory, so they must not be changed in
    place.

    Buffers are copied. Parameters that the model uses twice stay one parameter.
    """
    shared = {}
    for value in model.parameters():
        shared[id(value)] = nn.Parameter(value.detach(), requires_grad=value.requires_grad)
    return copy.deepcopy(model, shared)
